"""
TCP stacks: the kernel's own, put to use for whoever is behind a TUN.

A stack takes the TCP packets of a TUN and makes connected sockets of them. The
first packet of a connection, its SYN, is held until somebody has found out
whether the target can be reached; so a refusal is a refusal to the client, too.
The functions stand in the order in which a connection meets them.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.acks import newest
from udptunnel.core.counters import Counters
from udptunnel.core.nat import FORWARD, NOT_TCP, PORTS, Action, Listener, MutableBuffer, Nat, Session, Verdict
from udptunnel.errors import ListenError, PacketError
from udptunnel.net.pacing import delayPacing, settlePacing
from udptunnel.net.platforms import socketOption
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.sockaddr import addressIn, familyOf
from udptunnel.net.tun import TunPort
from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import parse
from udptunnel.wire.transport import Unreachable, resetFor, unreachable
from udptunnel.wire.vnet import PLAIN, VNET_BYTES

BACKLOG = 4096
"""Connections that the kernel accepts before we do."""

ACCEPTS = 64
"""So many are accepted in one wake-up at most."""

SCARCE_SECONDS = 0.1
"""How long nothing is accepted after the kernel had no descriptor or memory for it."""

PROOF_SECONDS = 1.0
"""How long the self-test may take; it takes a millisecond where it works."""

PROOF_TRIES = 5
"""
So many connections are tried within this time. The kernel makes the route to a
new IPv6 address a moment after the address (addrconf_dad_work), and drops what
comes before.
"""

PROOF_PORT = 9
"""Where the self-test connects to: discard (RFC 863)."""

_NOBODY_THERE = NOTHING_THERE | {errno.ECONNABORTED}


_SO_BINDTODEVICE = socketOption("SO_BINDTODEVICE", 25)
"""From asm-generic/socket.h."""

_log = Logger()


class Connection:
    """
    A TCP connection that somebody behind a TUN opens.

    @ivar source: who.
    @ivar target: what to.
    """

    __slots__ = ("_session", "_stack", "source", "target")

    def __init__(self, stack: KernelStack, session: Session) -> None:
        self.source, self.target = session.source, session.target
        self._stack = stack
        self._session = session

    def accept(self) -> None:
        """The target is reached, or that does not matter: let it in. L{TcpReceiver.connectionMade} follows."""
        self._stack.establish(self._session)

    def refuse(self, why: Unreachable | None = None) -> None:
        """
        The target can not be reached. Forgets the connection.

        @param why: what an ICMP message says; without it a RST says that the
            target refuses.
        """
        self._stack.refuse(self._session, why)

    def ignore(self) -> None:
        """Nobody answers: neither do we. Forgets the connection."""
        self._stack.forget(self._session)

    def closed(self) -> None:
        """After L{TcpReceiver.connectionMade}: all of it is closed."""
        self._stack.closed(self._session)


class TcpReceiver(Protocol):
    """Who decides about connections, and carries them on."""

    def connectionRequested(self, connection: Connection) -> None:
        """Somebody opens a connection. Say in time what becomes of it."""

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """It is open. The socket, which does not block, is the receiver's from now on."""

    def connectionLost(self, connection: Connection) -> None:
        """It took too long to become open: stop trying."""


class Writer(Protocol):
    """What packets are written to: a TUN port, or something like it."""

    def write(self, *packet: Buffer) -> None:
        """Write one packet; the first buffer begins with the virtio header."""


class Table(Protocol):
    """What becomes of a stack's packets; see L{Nat}, which is one."""

    def packetReceived(self, packet: MutableBuffer, now: float) -> Verdict:
        """Look at a packet, and rewrite it if that is to be done."""

    def established(self, session: Session, now: float) -> bytes | bytearray | None:
        """Let a session in; its SYN, as it is to be written."""

    def refused(self, session: Session) -> bytes | None:
        """Forget a session that is not let in; its SYN, as it came."""

    def closed(self, session: Session, now: float) -> None:
        """A session's connections are closed."""

    def tick(self, now: float) -> list[Session]:
        """Forget what is over; those that took too long to be let in, or accepted."""

    def __len__(self) -> int: ...


class Stack(Protocol):
    """
    What makes connections of packets.

    @ivar name: what C{--stack} calls it.
    @ivar broken: why it can make no more connections, and must be made anew; empty if all is well.
    """

    name: str
    broken: str

    def start(self) -> None:
        """
        Be ready for packets.

        @raise ListenError: that can not be done here.
        """

    def prove(self) -> str:
        """See whether connections get through. What is wrong and what to do; empty if all is well."""

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        """Take what is TCP. The others are returned."""

    def tick(self, now: float) -> None:
        """To be called once a second."""

    def __len__(self) -> int: ...

    def stop(self) -> None:
        """Close all that is ours; connections that are open are their receiver's."""


@implementer(IReadDescriptor)
class Door:
    """A listening socket of the kernel."""

    __slots__ = ("_accepted", "_counters", "_reactor", "_socket")

    def __init__(
        self,
        reactor: Any,
        opened: socket.socket,
        accepted: Callable[[socket.socket, Address], None],
        counters: Counters,
    ) -> None:
        """
        @param opened: it listens, and does not block.
        @param accepted: called with each connection, and where it comes from.
        """
        self._reactor = reactor
        self._socket = opened
        self._accepted = accepted
        self._counters = counters

    def open(self) -> None:
        """Begin to accept."""
        self._reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "TCP listener"

    def doRead(self) -> None:
        """Accept what has come."""
        for _ in range(ACCEPTS):
            try:
                opened, peer = self._socket.accept()
            except OSError as error:
                self._failed(error)
                return
            opened.setblocking(False)
            try:
                self._accepted(opened, addressIn(peer))
            except Exception:
                # The reactor would close the door for ever.
                _log.failure("a connection is lost by a mistake of ours")

    def _failed(self, error: OSError) -> None:
        if error.errno not in _NOBODY_THERE:
            self._counters.drop(f"accept {nameOf(error)}")
            self._reactor.removeReader(self)
            self._reactor.callLater(SCARCE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self.fileno() >= 0:
            self._reactor.addReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, or has no more use for it."""
        self.close()

    def close(self) -> None:
        """Accept nothing any more."""
        if self.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()


class KernelStack:
    """
    What stacks that leave TCP to a kernel have in common.

    @ivar name: what C{--stack} calls it.
    @ivar table: what becomes of packets.
    @ivar doors: its listening sockets.
    @ivar broken: why it can make no more connections, and must be made anew; empty if all is well.
    @ivar _forward: gives a packet to the kernel that terminates TCP.
    """

    name = broken = ""
    table: Table

    def __init__(self, reactor: Any, outer: Writer, receiver: TcpReceiver, counters: Counters) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param outer: where packets to clients are written.
        @param counters: count what is dropped.
        """
        self.doors: list[Door] = []
        self._reactor = reactor
        self._outer = outer
        self._receiver = receiver
        self._counters = counters
        self._forward: Callable[[Buffer], None] = outer.write
        self._connections: dict[Session, Connection] = {}

    def __len__(self) -> int:
        return len(self.table)

    def start(self) -> None:
        """
        Be ready for packets.

        @raise ListenError: that can not be done here.
        """
        raise NotImplementedError

    def prove(self) -> str:
        """See whether connections get through. What is wrong and what to do; empty if all is well."""
        return ""

    # -- packets

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        """Take what is TCP. The others are returned."""
        received, forward = self.table.packetReceived, self._forward
        others = []
        for packet in newest(packets):
            verdict = received(packet, now)
            if verdict is FORWARD:
                forward(packet)
            elif verdict is NOT_TCP:
                others.append(packet)
            else:
                self._act(verdict, packet)
        return others

    def _act(self, verdict: Verdict, packet: memoryview) -> None:
        if verdict.session is not None:
            self._requested(verdict.session)
            return
        self._counters.drop(verdict.reason)
        if verdict.action is Action.RESET:
            self._reset(packet)

    def _reset(self, packet: Buffer) -> None:
        frame = packet[VNET_BYTES:]
        with suppress(PacketError):
            self._answer(resetFor(frame, parse(frame)))

    def _answer(self, packet: bytes | None) -> None:
        if packet is not None:
            self._outer.write(PLAIN, packet)

    # -- connections

    def _requested(self, session: Session) -> None:
        connection = self._connections[session] = Connection(self, session)
        self._receiver.connectionRequested(connection)

    def establish(self, session: Session) -> None:
        """Let a connection in."""
        packet = self.table.established(session, self._reactor.seconds())
        if packet is not None:
            self._forward(packet)

    def refuse(self, session: Session, why: Unreachable | None) -> None:
        """Answer a connection's SYN with a RST, or an ICMP message."""
        packet = self.forget(session)
        if packet is None:
            return
        if why is None:
            self._reset(packet)
            return
        frame = packet[VNET_BYTES:]
        with suppress(PacketError):
            self._answer(unreachable(frame, parse(frame), why))

    def forget(self, session: Session) -> bytes | None:
        """Forget a connection that is not let in. Its SYN, if it was still waiting."""
        self._connections.pop(session, None)
        return self.table.refused(session)

    def _accepted(self, opened: socket.socket, peer: Address) -> None:
        session = self._whose(opened, peer)
        connection = self._connections.get(session) if session is not None else None
        if connection is None:
            self._counters.drop("stranger at the listener")
            opened.close()
        else:
            settlePacing(opened)
            self._receiver.connectionMade(connection, opened)

    def _whose(self, opened: socket.socket, peer: Address) -> Session | None:
        """Which session an accepted socket belongs to."""
        raise NotImplementedError

    def closed(self, session: Session) -> None:
        """All of a connection is closed."""
        self._connections.pop(session, None)
        self.table.closed(session, self._reactor.seconds())

    def tick(self, now: float) -> None:
        """Forget what is over."""
        for session in self.table.tick(now):
            connection = self._connections.pop(session, None)
            if connection is not None:
                self._receiver.connectionLost(connection)

    def stop(self) -> None:
        """Close all that is ours."""
        for door in self.doors:
            door.close()
        self.doors.clear()


class Place(NamedTuple):
    """The two addresses that one family needs at a TUN."""

    own: str
    """That of the TUN."""

    next: str
    """One beside it that nobody has, to which the kernel sends through the TUN."""


class TunStack(KernelStack):
    """
    The stack C{tun}: TCP goes back into the TUN that it came out of, to a
    listener at the TUN's own address. See L{udptunnel.core.nat}.
    """

    name = "tun"

    def __init__(
        self,
        reactor: Any,
        outer: TunPort,
        places: Iterable[Place],
        receiver: TcpReceiver,
        counters: Counters,
        most: int = PORTS,
    ) -> None:
        """
        @param outer: the TUN. It must be open, with its addresses, when the stack is started.
        @param places: at most one of each family.
        @param most: connections of each family at once.
        """
        super().__init__(reactor, outer, receiver, counters)
        self._tun = outer
        self._places = list(places)
        self._most = most
        self._proving: dict[Address, Session | None] = {}

    # -- beginning

    def start(self) -> None:
        """
        Open the listeners.

        @raise ListenError: that can not be done.
        """
        try:
            self.table = Nat([self._listen(place) for place in self._places], self._most)
        except OSError as error:
            self.stop()
            raise ListenError(f"--stack tun: no listener at TUN {self._tun.name}: {error.strerror}") from error
        for door in self.doors:
            door.open()

    def _listen(self, place: Place) -> Listener:
        opened = socket.socket(familyOf(place.own), socket.SOCK_STREAM)
        self.doors.append(Door(self._reactor, opened, self._accepted, self._counters))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if opened.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with suppress(OSError):
            # Other networks reach all addresses of this machine. Who may not say so has strangers shown out instead.
            opened.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, self._tun.name.encode())
        opened.setblocking(False)
        delayPacing(opened)
        opened.bind((place.own, 0))
        opened.listen(BACKLOG)
        return Listener(place.own, place.next, opened.getsockname()[1])

    def _whose(self, opened: socket.socket, peer: Address) -> Session | None:
        assert isinstance(self.table, Nat)
        return self.table.accept(peer.host, peer.port)

    # -- the self-test

    def prove(self) -> str:
        """
        See whether connections get through, by making one for each family. Blocks for up to a second.

        A firewall of this machine that lets nothing new in is what usually
        keeps them out.

        @return: which address does not work and what to do; empty if all is well.
        """
        for place in self._places:
            if not any(self._connects(place) for _ in range(PROOF_TRIES)):
                return (
                    f"nothing gets from TUN {self._tun.name} to a listener at {place.own}: does a firewall drop what "
                    f"comes in through it? Allow that (nft: iifname {self._tun.name} accept), or use --stack netns"
                )
        return ""

    def _connects(self, place: Place) -> bool:
        with socket.socket(familyOf(place.own), socket.SOCK_STREAM) as test:
            test.setblocking(False)
            test.bind((place.own, 0))
            mine = addressIn(test.getsockname())
            self._proving[mine] = None
            test.connect_ex((place.next, PROOF_PORT))
            until = time.monotonic() + PROOF_SECONDS / PROOF_TRIES
            while mine in self._proving and time.monotonic() < until:
                self._turn()
            works = mine not in self._proving
            session = self._proving.pop(mine, None)
            if session is not None:
                self.closed(session)
            return works

    def _turn(self) -> None:
        """What the reactor does otherwise."""
        # Not select(), which knows no descriptor beyond 1023; and the TUN may be closed meanwhile.
        readers: dict[int, Any] = {each.fileno(): each for each in (self._tun, *self.doors) if each.fileno() >= 0}
        waiting = select.poll()
        for number in readers:
            waiting.register(number, select.POLLIN)
        for number, _ in waiting.poll(50):
            readers[number].doRead()

    def _requested(self, session: Session) -> None:
        if session.source in self._proving:
            self._proving[session.source] = session
            self._connections[session] = Connection(self, session)
            self.establish(session)
        else:
            super()._requested(session)

    def _accepted(self, opened: socket.socket, peer: Address) -> None:
        proven = self._provenBy(peer)
        if proven is None:
            super()._accepted(opened, peer)
            return
        opened.close()
        del self._proving[proven.source]
        self.closed(proven)

    def _provenBy(self, peer: Address) -> Session | None:
        return next((each for each in self._proving.values() if each is not None and each.port == peer.port), None)


AnyStack = TypeVar("AnyStack", bound=Stack)


def firstThatWorks(stacks: Iterable[AnyStack], use: Callable[[AnyStack], None]) -> AnyStack:
    """
    Try stacks, one after the other.

    @param use: called with each before it is tried: packets go to it then.
    @return: the first one that works; it is started, and the others are stopped.
    @raise ListenError: none does; the text has the reasons of all.
    """
    reasons = []
    for stack in stacks:
        use(stack)
        try:
            stack.start()
            why = stack.prove()
        except (ListenError, OSError) as error:
            why = str(error)
        if not why:
            return stack
        stack.stop()
        _log.warn("stack {stack} does not work: {why}", stack=stack.name, why=why)
        reasons.append(why)
    raise ListenError("; ".join(reasons))
