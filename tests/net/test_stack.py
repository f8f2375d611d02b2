"""Tests for L{udptunnel.net.stack}, without a TUN; tests.system has one."""

from __future__ import annotations

import errno
import os
import socket
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_nat import CLIENTS, FOUR, SIX, TARGETS, segment
from tests.needs import needs
from tests.net.test_gateway import RecordingWriter
from tests.net.test_tun import MemorySystem
from udptunnel.core.counters import Counters
from udptunnel.core.nat import ACCEPT_SECONDS, ACK, PENDING_SECONDS, RST, SYN, Nat, Session
from udptunnel.net import stack
from udptunnel.net.descriptors import raiseDescriptorLimit
from udptunnel.net.platforms import fcntl, resource
from udptunnel.net.stack import (
    SCARCE_SECONDS,
    Connection,
    Door,
    KernelStack,
    Place,
    TunStack,
    firstThatWorks,
)
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.wire.address import Address
from udptunnel.wire.ip import ICMP, ICMPV6, parse
from udptunnel.wire.transport import Unreachable, parseTcp
from udptunnel.wire.vnet import VNET_BYTES


class RecordingTcp:
    """Decides nothing by itself."""

    def __init__(self) -> None:
        self.asked: list[Connection] = []
        self.made: list[tuple[Connection, socket.socket]] = []
        self.lost: list[Connection] = []

    def connectionRequested(self, connection: Connection) -> None:
        """Keep it."""
        self.asked.append(connection)

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """Keep it."""
        self.made.append((connection, opened))

    def connectionLost(self, connection: Connection) -> None:
        """Keep it."""
        self.lost.append(connection)


class NatStack(KernelStack):
    """A stack whose listener hears only of what a test says it has accepted."""

    name = "test"

    def __init__(
        self, reactor: PortReactor, outer: RecordingWriter, receiver: RecordingTcp, counters: Counters
    ) -> None:
        super().__init__(reactor, outer, receiver, counters)
        self.table = self.nat = Nat([FOUR, SIX])

    def _whose(self, opened: socket.socket, peer: Address) -> Session | None:
        return self.nat.accept(peer.host, peer.port)


class StackCase(SynchronousTestCase):
    """A stack with nothing but recorders around it."""

    def setUp(self) -> None:
        self.reactor, self.counters = PortReactor(), Counters()
        self.tun, self.tcp = RecordingWriter(), RecordingTcp()
        self.stack = NatStack(self.reactor, self.tun, self.tcp, self.counters)

    def receive(self, *packets: bytes | bytearray) -> list[memoryview]:
        """What the stack does not want."""
        given = [memoryview(bytearray(packet)) for packet in packets]
        return self.stack.packetsReceived(given, self.reactor.seconds())

    def ask(self, version: int = 4) -> Connection:
        """A connection that somebody opens."""
        self.receive(segment(flags=SYN, version=version))
        return self.tcp.asked[-1]

    def accepted(self, host: str, port: int) -> socket.socket:
        """The listener has accepted something."""
        here, there = socket.socketpair()
        self.addCleanup(here.close)
        self.addCleanup(there.close)
        self.stack._accepted(here, Address(host, port))
        return here

    def flagsWritten(self) -> list[int]:
        """TCP flags of the packets that were written since."""
        packets, self.tun.packets = self.tun.packets, []
        frames = [packet[VNET_BYTES:] for packet in packets]
        return [parseTcp(frame, parse(frame)).flags for frame in frames]


class ConnectionTests(StackCase):
    """A connection from its SYN to its end."""

    def test_request(self) -> None:
        """The receiver is asked once, with both addresses; nobody else hears of it meanwhile."""
        for version in (4, 6):
            connection = self.ask(version)
            self.receive(segment(flags=SYN, version=version))
            self.assertEqual(connection.source, Address(CLIENTS[version], 40000))
            self.assertEqual(connection.target, Address(TARGETS[version], 443))
        self.assertEqual((len(self.tcp.asked), self.tun.packets), (2, []))
        self.assertEqual(self.counters.dropped, {"repeated SYN": 2})

    def test_accept(self) -> None:
        """Once accepted, the held SYN goes to the listener, and the receiver gets the socket."""
        connection = self.ask()
        connection.accept()
        self.assertEqual(self.flagsWritten(), [SYN])
        opened = self.accepted(FOUR.next, connection._session.port)
        self.assertEqual(self.tcp.made, [(connection, opened)])

    def test_refuse(self) -> None:
        """A refusal is a RST, and the same client may try again."""
        for version in (4, 6):
            self.ask(version).refuse()
            self.assertEqual(self.flagsWritten(), [RST | ACK])
            self.ask(version)
        self.assertEqual(len(self.tcp.asked), 4)

    def test_unreachable(self) -> None:
        """Or it is an ICMP message that says why."""
        for version, protocol, code in ((4, ICMP, 1), (6, ICMPV6, 3)):
            self.ask(version).refuse(Unreachable.HOST)
            frame = self.tun.packets.pop()[VNET_BYTES:]
            parsed = parse(frame)
            self.assertEqual((parsed.protocol, frame[parsed.payloadStart + 1]), (protocol, code))

    def test_unreachableMalformed(self) -> None:
        """A SYN whose length is wrong gets no message; its connection is forgotten all the same."""
        packet = segment(flags=SYN)
        packet[VNET_BYTES + 2 : VNET_BYTES + 4] = b"\xff\xff"
        self.receive(packet)
        self.tcp.asked[-1].refuse(Unreachable.HOST)
        self.assertEqual((self.tun.packets, len(self.stack)), ([], 0))

    def test_ignore(self) -> None:
        """Or it is silence."""
        self.ask().ignore()
        self.assertEqual((self.tun.packets, len(self.stack)), ([], 0))

    def test_decidedTwice(self) -> None:
        """What was decided stays so."""
        connection = self.ask()
        connection.refuse()
        self.tun.packets.clear()
        connection.refuse()
        connection.accept()
        connection.ignore()
        self.assertEqual(self.tun.packets, [])

    def test_closed(self) -> None:
        """A connection that is closed is forgotten after a while."""
        connection = self.ask()
        connection.accept()
        self.accepted(FOUR.next, connection._session.port)
        connection.closed()
        self.assertEqual(self.stack._connections, {})
        self.reactor.advance(100)
        self.stack.tick(self.reactor.seconds())
        self.assertEqual((len(self.stack), self.tcp.lost), (0, []))

    def test_undecided(self) -> None:
        """Who decides nothing for too long, or whose listener does not accept, is told that it is over."""
        first, second = self.ask(4), self.ask(6)
        second.accept()
        self.reactor.advance(ACCEPT_SECONDS)
        self.stack.tick(self.reactor.seconds())
        self.assertEqual(self.tcp.lost, [second])
        self.reactor.advance(PENDING_SECONDS)
        self.stack.tick(self.reactor.seconds())
        self.assertEqual((self.tcp.lost, len(self.stack)), ([second, first], 0))

    def test_stranger(self) -> None:
        """Whoever finds the listener without the TUN is shown out."""
        opened = self.accepted("127.0.0.1", 5)
        self.assertEqual((opened.fileno(), self.tcp.made), (-1, []))
        self.assertEqual(self.counters.dropped, {"stranger at the listener": 1})

    def test_others(self) -> None:
        """What is no TCP is returned; TCP of no connection gets a RST; a RST gets nothing."""
        other = bytearray(segment())
        other[VNET_BYTES + 9] = 17
        self.assertEqual(self.receive(other, segment(flags=ACK), segment(flags=RST)), [other])
        self.assertEqual(self.flagsWritten(), [RST])


class DoorTests(SynchronousTestCase):
    """The listening socket."""

    def setUp(self) -> None:
        self.reactor, self.counters = PortReactor(), Counters()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.listener.setblocking(False)
        self.accepted: list[tuple[socket.socket, Address]] = []
        self.door = Door(self.reactor, self.listener, lambda *each: self.accepted.append(each), self.counters)
        self.addCleanup(self.door.close)
        self.door.open()

    def connect(self) -> socket.socket:
        """A client that has connected."""
        client = socket.create_connection(self.listener.getsockname())
        self.addCleanup(client.close)
        return client

    def test_accept(self) -> None:
        """All that have come are accepted in one turn, do not block, and say where they come from."""
        clients = [self.connect() for _ in range(10)]
        self.reactor.turn(1)
        self.assertEqual([peer for _, peer in self.accepted], [Address(*client.getsockname()) for client in clients])
        self.assertEqual({opened.getblocking() for opened, _ in self.accepted}, {False})
        for opened, _ in self.accepted:
            opened.close()

    def test_mistake(self) -> None:
        """A mistake of who gets a connection does not close the door for all others."""

        def accepted(opened: socket.socket, peer: Address) -> None:
            opened.close()
            raise ValueError("a mistake")

        self.door._accepted = accepted
        self.connect()
        self.reactor.turn(1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.reactor.getReaders(), [self.door])

    def test_scarcity(self) -> None:
        """Where no descriptor is left, we do not spin, and go on a moment later."""
        self.door._socket = self.poor = PoorSocket(self.listener)  # type: ignore[assignment]
        self.connect()
        self.reactor.turn(1)
        self.assertEqual((self.reactor.getReaders(), self.counters.dropped), ([], {"accept EMFILE": 1}))
        self.poor.rich = True
        self.reactor.advance(SCARCE_SECONDS)
        self.reactor.turn(1)
        self.assertEqual(len(self.accepted), 1)
        self.accepted[0][0].close()

    def test_close(self) -> None:
        """Once closed it is served no longer, and the end of the scarcity does not change that."""
        self.door._socket = PoorSocket(self.listener)  # type: ignore[assignment]
        self.connect()
        self.reactor.turn(1)
        self.door.close()
        self.door.close()
        self.reactor.advance(SCARCE_SECONDS)
        self.assertEqual((self.reactor.getReaders(), self.door.fileno()), ([], -1))


@needs("limits")
class ProofTests(SynchronousTestCase):
    """The self-test, without a TUN that could pass it."""

    def setUp(self) -> None:
        raiseDescriptorLimit()
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 1024:
            raise SkipTest("no descriptor beyond 1023 may be had here")
        system, here = MemorySystem(), os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, here)
        self.high = fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, 1024)
        self.addCleanup(os.close, self.high)
        reactor, counters = PortReactor(), Counters()
        self.tun = TunPort(reactor, Interface("tun7"), Silent(), TunOffload(), counters, system)
        self.tun.open()
        places = [Place("127.0.0.1", "127.0.0.2")]
        self.stack = TunStack(reactor, self.tun, places, RecordingTcp(), counters)
        self.stack.start()
        self.addCleanup(self.stack.stop)
        self.tun._descriptor = self.high

    def test_manyDescriptors(self) -> None:
        """Where many descriptors are open, it fails as it does elsewhere."""
        self.patch(stack, "PROOF_SECONDS", 0.05)
        self.assertIn("127.0.0.1", self.stack.prove())

    def test_lost(self) -> None:
        """A TUN that is lost meanwhile is just one that does not work."""
        self.patch(stack, "PROOF_SECONDS", 0.05)
        self.tun.close()
        self.assertIn("127.0.0.1", self.stack.prove())

    def test_error(self) -> None:
        """A stack that the kernel has no socket for does not work; the next one is tried."""
        self.patch(TunStack, "prove", _fail)
        other = NatStack(PortReactor(), RecordingWriter(), RecordingTcp(), Counters())
        self.patch(other, "start", lambda: None)
        self.assertIs(firstThatWorks([self.stack, other], lambda each: None), other)


def _fail(_: TunStack) -> str:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Silent:
    """Nobody sends anything here."""

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """That does not happen."""

    def lost(self, why: str) -> None:
        """Neither does that."""


class PoorSocket:
    """A listener on a machine without descriptors, until it is rich."""

    def __init__(self, listener: socket.socket) -> None:
        self.rich = False
        self._listener = listener
        self.fileno, self.close = listener.fileno, listener.close

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """As of a socket."""
        if not self.rich:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._listener.accept()
