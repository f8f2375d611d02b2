"""
A kit for tests, ours and those of embedding programs: what ports, links and SOCKS5 servers stand on, without a network.

Time stands still here, and descriptors are looked at only when a test says so.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.counters import Counters
from udptunnel.core.queue import Parcel, Queue
from udptunnel.net.sockaddr import familyOf
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.frame import Buffer

PATIENCE_SECONDS = 10.0
"""How long L{PortReactor.until} waits for the kernel; it is hardly ever more than a moment."""


@implementer(IReactorFDSet)
class PortReactor(Clock):
    """
    A reactor whose clock only a test moves, and which serves real descriptors one turn at a time.

    Datagrams through loopback are there as soon as they were sent, so that
    tests with it need neither the global reactor nor a moment's sleep.
    """

    def __init__(self) -> None:
        super().__init__()
        self._readers: list[IReadDescriptor] = []
        self._writers: list[IWriteDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        """Serve a reader from now on."""
        if reader not in self._readers:
            self._readers.append(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        """Serve a writer from now on."""
        if writer not in self._writers:
            self._writers.append(writer)

    def removeReader(self, reader: IReadDescriptor) -> None:
        """Serve a reader no longer."""
        if reader in self._readers:
            self._readers.remove(reader)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        """Serve a writer no longer."""
        if writer in self._writers:
            self._writers.remove(writer)

    def removeAll(self) -> list[Any]:
        """Serve nobody."""
        left = [*self._readers, *self._writers]
        self._readers, self._writers = [], []
        return left

    def getReaders(self) -> list[IReadDescriptor]:
        """Those that are served."""
        return list(self._readers)

    def getWriters(self) -> list[IWriteDescriptor]:
        """Those that are served."""
        return list(self._writers)

    def turn(self, seconds: float = 0.0) -> bool:
        """
        What a reactor does in one turn: each descriptor that is ready reads or writes once.

        @param seconds: how long to wait for the first one; the clock stands still meanwhile.
        @return: whether any was ready.
        """
        readable, writable, _ = select.select(self._readers, self._writers, [], seconds)
        for reader in readable:
            if reader in self._readers:
                self._serve(reader, reader.doRead)
        for writer in writable:
            if writer in self._writers:
                self._serve(writer, writer.doWrite)
        return bool(readable or writable)

    def _serve(self, one: Any, do: Callable[[], Any]) -> None:
        if why := do():
            self.removeReader(one)
            self.removeWriter(one)
            one.connectionLost(Failure(why))

    def until(self, condition: Callable[[], bool]) -> None:
        """
        Turn until something is the case.

        @raise AssertionError: no descriptor gets ready any more, and it is not.
        """
        while not condition():
            if not self.turn(PATIENCE_SECONDS):
                raise AssertionError(f"nothing happens for {PATIENCE_SECONDS:g} s")


class RecordingReceiver:
    """
    A receiver that keeps what arrives.

    @ivar calls: the bursts of each call, with copies of their payloads.
    """

    def __init__(self) -> None:
        self.calls: list[list[Burst]] = []

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Keep them."""
        self.calls.append([Burst(source, size, bytes(payload)) for source, size, payload in bursts])

    @property
    def bursts(self) -> list[Burst]:
        """All bursts, in order."""
        return [burst for call in self.calls for burst in call]

    @property
    def datagrams(self) -> list[bytes]:
        """All datagrams, in order."""
        return [bytes(each) for _, size, payload in self.bursts for each in split(size, payload)]

    @property
    def sources(self) -> set[Address]:
        """Where they came from."""
        return {burst.source for burst in self.bursts}


class RecordingLink:
    """
    A link that is up, and keeps what a session gives it.

    @ivar parcels: the bursts: association number, address, size and a copy of the payload.
    @ivar frames: the other frames.
    @ivar aborted: whether its connection was closed.
    @ivar queue: nothing ever waits in it.
    """

    up = True

    def __init__(self) -> None:
        self.parcels: list[tuple[int, Address, int, bytes]] = []
        self.frames: list[bytes] = []
        self.aborted = False
        self.carrier = self
        self.queue = Queue(Counters(), 1 << 20, 1.0)

    def offer(self, parcels: Sequence[Parcel], now: float) -> None:
        """Keep bursts."""
        self.parcels += [(each.number, address, size, bytes(payload)) for each, address, size, payload in parcels]

    def control(self, frame: bytes) -> None:
        """Keep a frame."""
        self.frames.append(frame)

    def tick(self, now: float) -> None:
        """Time changes nothing."""

    def abort(self) -> None:
        """Close the connection."""
        self.aborted = True

    @property
    def datagrams(self) -> list[tuple[Address, bytes]]:
        """The datagrams of all bursts, in order, each with its address."""
        return [(to, bytes(each)) for _, to, size, payload in self.parcels for each in split(size, payload)]


class MemorySocket:
    """
    A UDP socket without a kernel, for L{udptunnel.net.datagrams.DatagramPort.adopt} with offload C{none}.

    @ivar arrived: datagrams that wait to be received, each with its source.
    @ivar sent: datagrams that were sent, each with its target.
    @ivar error: what the next calls raise, if anything.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 5000) -> None:
        self.arrived: deque[tuple[bytes, tuple[Any, ...]]] = deque()
        self.sent: list[tuple[bytes, tuple[Any, ...]]] = []
        self.error: OSError | None = None
        self.closed = False
        self.family = familyOf(host)
        self._name = (host, port)

    def getsockopt(self, level: int, option: int) -> int:
        """Every buffer is large."""
        return 1 << 30

    def getsockname(self) -> tuple[str, int]:
        """What it is bound to."""
        return self._name

    def fileno(self) -> int:
        """There is no descriptor."""
        return -1

    def close(self) -> None:
        """No more of it."""
        self.closed = True

    def recvfrom(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
        """The next datagram."""
        if self.error is not None:
            raise self.error
        if not self.arrived:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        data, source = self.arrived.popleft()
        return data[:size], source

    def recvmsg(self, size: int, _: int = 0) -> tuple[bytes, list[Any], int, tuple[Any, ...]]:
        """The next datagram, without control messages."""
        data, source = self.recvfrom(size)
        return data, [], 0, source

    def sendto(self, data: Buffer, to: tuple[Any, ...]) -> int:
        """Send a datagram."""
        if self.error is not None:
            raise self.error
        self.sent.append((bytes(data), tuple(to)))
        return len(data)

    def sendmsg(self, buffers: Sequence[Buffer], _: Any = (), flags: int = 0, to: tuple[Any, ...] = ()) -> int:
        """Send a datagram that lies in several buffers."""
        return self.sendto(b"".join(buffers), to)


class MortalTransport(StringTransport):
    """
    A TCP transport in memory that dies as real ones do: it tells its producer to stop before it tells its protocol.

    @ivar protocol: whose connection this is.
    """

    protocol: Any

    def attach(self, protocol: Any) -> None:
        """Connect a protocol."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There are no segments here."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing needs to be kept alive."""

    def unregisterProducer(self) -> None:
        """Forget the producer; there may be none."""
        self.producer = None

    def die(self, reason: Exception | None = None) -> None:
        """The connection is lost."""
        self.connected, self.disconnected = False, True
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))
