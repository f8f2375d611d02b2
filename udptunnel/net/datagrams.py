"""
UDP ports: descriptors that read and write bursts.

Twisted's own UDP port reads until it has seen a number of I{bytes}, so that a
flood of empty datagrams keeps it from ever returning to the reactor; it
raises what the kernel reports into the protocol that sends; and it moves one
datagram per system call. Ours counts messages, counts errors, and moves
bursts. The functions stand in the order in which a burst meets them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.counters import Counters
from udptunnel.core.pace import Pace
from udptunnel.core.vigil import Vigil
from udptunnel.errors import ListenError
from udptunnel.net.mmsg import SLOTS, Inbox, Outbox
from udptunnel.net.offload import GRO_SIZE, MOST_SEGMENTS, SEGMENT, SOL_UDP, UDP_GRO, UDP_SEGMENT, Offload
from udptunnel.net.platforms import socketOption
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.sockaddr import PythonNames, SourceNames, addressIn, familyOf
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_DATAGRAM, Burst, count, join, pieces, split
from udptunnel.wire.frame import Buffer

BUFFER_BYTES = 8 << 20
"""What a socket may hold for us while we do something else: 20 ms at 3 Gbit/s."""

_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = socketOption("SO_RCVBUFFORCE", 33), socketOption("SO_SNDBUFFORCE", 32)
"""From asm-generic/socket.h: beyond the system's limit, for who may (CAP_NET_ADMIN)."""

RESTING_BYTES = 4 << 20
"""How much a socket must hold for us, so that nothing is lost while we rest."""

LONE_SECONDS = 0.0002
"""
A datagram that comes alone this long after the one before it is one of a
sparse flow, and so will be the next; unless the port was busy a moment ago.
"""

MOST_DISCARDS = 1 + BUFFER_BYTES // 256 // SLOTS
"""Reads after which a socket is empty, but for what came meanwhile: even an empty datagram costs it 256 bytes."""

_log = Logger()

KernelAddress = tuple[Any, ...]
"""What C{socket.sendto} takes: C{(host, port)}, for IPv6 perhaps with flow and scope."""


class Receiver(Protocol):
    """Who is told of what arrives at a port."""

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Bursts have arrived. Their payloads are valid until this returns."""


class _Nobody:
    """The receiver of a port that is closed."""

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Nothing arrives there."""


_NOBODY = _Nobody()


class Traffic:
    """
    What all UDP ports of a role share: the reactor, the counters and the memory that the kernel fills.
    """

    def __init__(self, reactor: Any, offload: Offload, counters: Counters, rest: float = 0.0) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param rest: how long a busy port waits between two reads, in seconds,
            so that more arrives meanwhile: what network cards do with
            interrupts. 0: it does not.
        """
        self.reactor = reactor
        self.rest = rest
        self.more = False
        """Whether the last read was full, so that more is probably there."""
        self.offload = offload
        self.counters = counters
        self.sources = PythonNames()
        self.inbox = Inbox(SourceNames()) if offload.mmsg else None
        self.outbox = Outbox() if offload.mmsg else None
        self.lone = [memoryview(bytearray(1 << 16))]
        """Where a datagram goes that is received alone."""
        self._ports: set[DatagramPort] = set()
        self._vigil = Vigil()

    def opened(self, port: DatagramPort) -> None:
        """A port is open."""
        self._ports.add(port)

    def closed(self, port: DatagramPort) -> None:
        """A port is closed, perhaps not for the first time."""
        self._ports.discard(port)

    def tick(self, now: float) -> None:
        """A second or so has passed. Who calls this once must go on with it."""
        if self._vigil.tick(now):
            self._discard()

    def stopped(self, now: float) -> bool:
        """
        Something was read. Whether it is too old, because the process was stopped; if so, so is what all ports hold.

        @param now: the time behind the read: the process may be stopped just before it.
        """
        if not self._vigil.stopped(now):
            return False
        self._discard()
        return True

    def _discard(self) -> None:
        for port in list(self._ports):
            port.discard()


@implementer(IReadDescriptor)
class DatagramPort:
    """
    One UDP socket.

    @ivar address: what it is bound to, once it listens.
    """

    __slots__ = (
        "_family",
        "_lone",
        "_pace",
        "_prefix",
        "_readAt",
        "_receiver",
        "_resting",
        "_socket",
        "_traffic",
        "address",
    )

    def __init__(self, traffic: Traffic, address: Address, receiver: Receiver) -> None:
        """
        @param address: a numeric host and a port, 0 for any. The host C{::}
            takes IPv4 as well.
        """
        self.address = address
        self._prefix = f"UDP {address}"
        self._traffic = traffic
        self._receiver = receiver
        self._family = familyOf(address.host)
        self._socket: socket.socket | None = None
        self._resting: IDelayedCall | None = None
        self._pace: Pace | None = None
        self._lone = False
        self._readAt = 0.0

    # -- opening and closing

    def startListening(self) -> None:
        """
        Open the port.

        @raise ListenError: it is taken, or may not be opened.
        """
        try:
            opened = socket.socket(self._family, socket.SOCK_DGRAM)
        except OSError as error:
            raise ListenError(f"no UDP socket can be opened for {self.address}: {error.strerror}") from error
        try:
            self._prepare(opened)
            opened.bind(tuple(self.address))
        except OSError as error:
            opened.close()
            raise ListenError(f"UDP port {self.address} can not be opened: {error.strerror}") from error
        self.adopt(opened)

    def adopt(self, opened: socket.socket) -> None:
        """Use a bound socket that somebody else has opened."""
        self._family = opened.family
        self._socket = opened
        if self._traffic.rest and opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= RESTING_BYTES:
            self._pace = Pace()
        self.address = addressIn(opened.getsockname())
        self._prefix = f"UDP {self.address}"
        self._traffic.reactor.addReader(self)
        self._traffic.opened(self)

    def _prepare(self, opened: socket.socket) -> None:
        if self._family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self.address.host != "::")
        self.equip(opened)

    def equip(self, opened: socket.socket) -> None:
        """Give a socket what it needs to carry a lot; bound ones that are to be adopted, too."""
        opened.setblocking(False)
        _enlarge(opened, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        _enlarge(opened, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        if self._traffic.offload.gro:
            try:
                opened.setsockopt(SOL_UDP, UDP_GRO, 1)
            except OSError as error:
                self._traffic.offload.refused("gro", error)

    def stopListening(self) -> None:
        """Close the port. It may be closed already."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._socket is not None:
            self._traffic.reactor.removeReader(self)
            self._socket.close()
            self._socket = None
            self._traffic.closed(self)

    def close(self) -> None:
        """Close the port for good, and forget its receiver: as long as they know each other, both stay in memory."""
        self.stopListening()
        self._receiver = _NOBODY

    # -- IReadDescriptor

    def fileno(self) -> int:
        """The descriptor; -1 when the port is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about this port begin with. The reactor asks each time that something arrives."""
        return self._prefix

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for the descriptor."""
        self.stopListening()

    # -- what arrives

    def doRead(self) -> None:
        """Pass on what has arrived, at most L{SLOTS} messages, so that others get their turn."""
        traffic = self._traffic
        bursts = self._receive()
        if bursts:
            taken, now = self._count(bursts), traffic.reactor.seconds()
            self._lone = taken == 1 and now - self._readAt > LONE_SECONDS and not self._isBusy()
            self._readAt = now
            if traffic.stopped(now):
                traffic.counters.drop("stale", taken)
                return
            try:
                self._receiver.burstsReceived(bursts)
            except Exception:
                # The reactor would close the port, and nobody would notice.
                _log.failure("datagrams that came to {port} are lost by a mistake of ours", port=self.address)
            if self._pace is not None:
                self._moderate(self._pace, taken, now)

    def _receive(self) -> list[Burst]:
        traffic = self._traffic
        try:
            if self._socket is None:
                return []
            if traffic.inbox is not None and traffic.offload.mmsg:
                if self._lone:
                    return [self._receiveLone(self._socket)]
                bursts = traffic.inbox.receive(self._socket.fileno(), self._family)
                traffic.more = traffic.inbox.full
                return bursts
            return join(self._messages(self._receiveMarked if traffic.offload.gro else self._receivePlain))
        except OSError as error:
            self._receiveFailed(error)
            return []

    def discard(self) -> None:
        """Drop what the socket holds; no more than it could hold, for others may go on sending."""
        for _ in range(MOST_DISCARDS):
            bursts = self._receive()
            if not bursts:
                return
            self._traffic.counters.drop("stale", self._count(bursts))

    def _isBusy(self) -> bool:
        return self._pace is not None and self._pace.busy

    def _moderate(self, pace: Pace, taken: int, now: float) -> None:
        """Rest after a read, if the port is busy."""
        pace.took(taken)
        # What a full read has left belongs to the same time.
        if not self._traffic.more and pace.wantsRest(now) and self._socket is not None:
            self._traffic.reactor.removeReader(self)
            self._resting = self._traffic.reactor.callLater(self._traffic.rest, self._rested)

    def _rested(self) -> None:
        """Read without asking the reactor first: a busy port has something."""
        self._resting = None
        self.doRead()
        if self._resting is None and self._socket is not None:
            self._traffic.reactor.addReader(self)

    def _receiveLone(self, opened: socket.socket) -> Burst:
        """One message, for which Python's own way is shorter than recvmmsg; if more are there, the reactor will say."""
        traffic = self._traffic
        traffic.more = False
        length, ancillary, _, source = opened.recvmsg_into(traffic.lone, 64)
        payload = traffic.lone[0][:length]
        size = GRO_SIZE.unpack_from(ancillary[0][2])[0] if ancillary else length
        return Burst(traffic.sources[source], size, payload)

    def _messages(self, receive: Callable[[socket.socket], Burst]) -> list[Burst]:
        assert self._socket is not None
        bursts: list[Burst] = []
        try:
            while len(bursts) < SLOTS:
                bursts.append(receive(self._socket))
        except OSError as error:
            if not bursts:
                raise
            if error.errno not in NOTHING_THERE:
                self._receiveFailed(error)
        self._traffic.more = len(bursts) == SLOTS
        return bursts

    def _receiveMarked(self, opened: socket.socket) -> Burst:
        """With UDP_GRO a control message tells the size of the datagrams, if there are several."""
        data, ancillary, _, source = opened.recvmsg(65535, 64)
        size = GRO_SIZE.unpack_from(ancillary[0][2])[0] if ancillary else len(data)
        return Burst(self._traffic.sources[source], size, data)

    def _receivePlain(self, opened: socket.socket) -> Burst:
        data, source = opened.recvfrom(65535)
        return Burst(self._traffic.sources[source], len(data), data)

    def _receiveFailed(self, error: OSError) -> None:
        if error.errno == errno.ENOSYS:
            self._traffic.offload.refused("mmsg", error)
        elif error.errno not in NOTHING_THERE:
            self._traffic.counters.drop(f"receive {nameOf(error)}")
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """
        The kernel has reported an error, which is counted; called in the midst of reading or sending.

        Kinds of ports that belong to one peer may take it as the end.
        """

    def _count(self, bursts: list[Burst]) -> int:
        datagrams = octets = 0
        for _, size, payload in bursts:
            datagrams += count(size, payload)
            octets += len(payload)
        counters = self._traffic.counters
        counters.received += datagrams
        counters.receivedBytes += octets
        return datagrams

    # -- what is sent

    def send(self, to: KernelAddress, size: int, payload: Buffer) -> None:
        """
        Send a burst. What the kernel does not take is dropped and counted by its reason.

        @param to: a numeric address that fits the socket.
        """
        opened, counters = self._socket, self._traffic.counters
        if opened is None:
            counters.drop("port closed", count(size, payload))
            return
        if len(payload) > size:
            self._sendSeveral(opened, to, size, payload)
            return
        try:
            opened.sendto(payload, to)
        except OSError as error:
            counters.drop(f"send {nameOf(error)}")
            self.failed(error)
        except (OverflowError, UnicodeError):
            counters.drop("send EINVAL")
        else:
            counters.sent += 1
            counters.sentBytes += len(payload)

    def _sendSeveral(self, opened: socket.socket, to: KernelAddress, size: int, payload: Buffer) -> None:
        most = min(MOST_SEGMENTS * size, LARGEST_DATAGRAM)
        if len(payload) > most:
            for piece in pieces(size, payload, most):
                self.send(to, size, piece)
        elif not (self._traffic.offload.gso and self._sendSegmented(opened, to, size, payload)):
            self._sendEach(opened, to, size, payload)

    def sendHeaded(self, to: KernelAddress, header: bytes, size: int, payload: Buffer) -> None:
        """Send a burst, each datagram behind the same header."""
        if len(payload) <= size:
            self.send(to, len(header) + size, b"".join((header, payload)))
            return
        whole = len(header) + size
        for piece in pieces(size, payload, min(MOST_SEGMENTS * size, LARGEST_DATAGRAM // whole * size or size)):
            parts = [part for datagram in split(size, piece) for part in (header, datagram)]
            self.send(to, whole, b"".join(parts))

    def _sendSegmented(self, opened: socket.socket, to: KernelAddress, size: int, payload: Buffer) -> bool:
        """
        Let the kernel cut a burst.

        @return: False if it can not cut this one.
        """
        try:
            sent = opened.sendmsg((payload,), segmentsOf(size), 0, to)
        except OSError as error:
            return self._segmentsRefused(error, count(size, payload))
        except (OverflowError, UnicodeError):
            self._traffic.counters.drop("send EINVAL", count(size, payload))
            return True
        counters = self._traffic.counters
        counters.sent += -(-sent // size)
        counters.sentBytes += sent
        return True

    def _segmentsRefused(self, error: OSError, datagrams: int) -> bool:
        """
        Segments must fit the path (EINVAL, EMSGSIZE), and the device must compute checksums (EIO).
        Only where even small ones are refused, it is the kernel that can not do it.
        """
        if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
            self._traffic.counters.drop(f"send {nameOf(error)}", datagrams)
            self.failed(error)
            return True
        if error.errno == errno.EIO:
            self._traffic.offload.refused("gso", error)
        return False

    def _sendEach(self, opened: socket.socket, to: KernelAddress, size: int, payload: Buffer) -> None:
        outbox = self._traffic.outbox
        if outbox is not None and self._traffic.offload.mmsg:
            self._sendMany(outbox, opened, to, size, payload)
            return
        for datagram in split(size, payload):
            self.send(to, len(datagram), datagram)

    def _sendMany(self, outbox: Outbox, opened: socket.socket, to: KernelAddress, size: int, payload: Buffer) -> None:
        """sendmmsg stops at an error, but does not tell it unless it is the first datagram's: so ask again."""
        counters = self._traffic.counters
        while payload:
            try:
                sent = outbox.send(opened.fileno(), self._family, (to[0], to[1]), size, payload)
            except OSError as error:
                counters.drop(f"send {nameOf(error)}", count(size, payload))
                self.failed(error)
                return
            except (struct.error, UnicodeError):
                counters.drop("send EINVAL", count(size, payload))
                return
            counters.sent += sent
            counters.sentBytes += min(sent * size, len(payload))
            payload = payload[sent * size :]


@lru_cache(1024)
def segmentsOf(size: int) -> list[tuple[int, int, bytes]]:
    """The control message that has the kernel cut a burst into datagrams of C{size} bytes."""
    return [(SOL_UDP, UDP_SEGMENT, SEGMENT.pack(size))]


def _enlarge(opened: socket.socket, force: int, ask: int) -> None:
    for option in (force, ask):
        try:
            opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            return
        except OSError:
            continue
