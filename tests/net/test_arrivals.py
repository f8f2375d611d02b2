"""Tests for L{udptunnel.net.arrivals}: what a stack would do is done by hand, connections are real."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from udptunnel.net.arrivals import Arrival, Arrivals, Datagrams
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.transport import Unreachable

SOURCE, TARGET = Address("10.0.0.2", 4000), Address("203.0.113.5", 443)


class MemoryConnection:
    """A connection of a stack, which remembers what it was told."""

    def __init__(self, source: Address = SOURCE, target: Address = TARGET) -> None:
        self.source, self.target = source, target
        self.calls: list[Any] = []

    def accept(self) -> None:
        """Let it in."""
        self.calls.append("accept")

    def refuse(self, why: Unreachable | None = None) -> None:
        """Do not."""
        self.calls.append(("refuse", why))

    def ignore(self) -> None:
        """Do nothing."""
        self.calls.append("ignore")

    def closed(self) -> None:
        """It is over."""
        self.calls.append("closed")


class RecordingProtocol(Protocol):
    """Keeps what happens."""

    def __init__(self) -> None:
        self.data = b""
        self.made: Deferred[None] = Deferred()
        self.came: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """It is open."""
        self.made.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Something has come."""
        self.data += data
        if not self.came.called:
            self.came.callback(None)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """It is closed."""
        self.ended.callback(None)


@implementer(IHalfCloseableProtocol)
class HalfProtocol(RecordingProtocol):
    """Can go on when the other side has finished."""

    def readConnectionLost(self) -> None:
        """The other side sends no more."""
        assert self.transport is not None
        self.transport.write(b"still here")
        self.transport.loseWriteConnection()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """We send no more."""
        assert self.transport is not None
        self.transport.loseConnection()


def pair(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; the first does not block."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        far = socket.create_connection(server.getsockname()[:2])
        near, _ = server.accept()
    near.setblocking(False)
    far.settimeout(10)
    return near, far


class DecisionTests(SynchronousTestCase):
    """What a program says about a connection."""

    def setUp(self) -> None:
        self.asked: list[tuple[Arrival, Address]] = []
        self.arrivals = Arrivals(reactor, lambda arrival, target: self.asked.append((arrival, target)))
        self.connection: Any = MemoryConnection()
        self.arrivals.connectionRequested(self.connection)
        self.arrival = self.asked[0][0]

    def test_asked(self) -> None:
        """A program is asked about each connection, knows its ends, and has time."""
        self.assertEqual((self.arrival.source, self.arrival.target, self.asked[0][1]), (SOURCE, TARGET, TARGET))
        self.assertEqual(self.connection.calls, [])

    def test_answers(self) -> None:
        """Each answer goes to the stack."""
        self.arrival.refuse()
        for answer in (
            lambda arrival: arrival.refuse(Unreachable.HOST),
            lambda arrival: arrival.ignore(),
            lambda arrival: arrival.accept(Protocol()),
        ):
            self.arrivals.connectionRequested(self.connection)
            answer(self.asked[-1][0])
        self.assertEqual(self.connection.calls, [("refuse", None), ("refuse", Unreachable.HOST), "ignore", "accept"])

    def test_once(self) -> None:
        """After a connection is refused, or was given up, nothing that is said of it matters."""
        self.arrival.refuse()
        for _ in range(2):
            self.arrival.refuse()
            self.arrival.ignore()
            self.arrival.accept(Protocol())
            self.arrivals.connectionLost(self.connection)
        self.assertEqual(self.connection.calls, [("refuse", None)])

    def test_lost(self) -> None:
        """A program that wants to know is told when the client gives up, accepted or not."""
        for accepts in (False, True):
            self.arrivals.connectionRequested(self.connection)
            arrival, calls = self.asked[-1][0], []
            if accepts:
                arrival.accept(Protocol())
            arrival.lost = lambda calls=calls: calls.append("lost")  # type: ignore[misc]
            self.arrivals.connectionLost(self.connection)
            self.arrivals.connectionLost(self.connection)
            self.assertEqual(calls, ["lost"])

    def test_failure(self) -> None:
        """A program that fails has refused the connection, and the log says why; so it does if it fails later."""

        def fail(*_: object) -> None:
            raise RuntimeError("not today")

        arrivals = Arrivals(reactor, fail)
        arrivals.connectionRequested(self.connection)
        self.assertEqual(self.connection.calls, [("refuse", None)])
        self.arrival.lost = fail
        self.arrivals.connectionLost(self.connection)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_unknown(self) -> None:
        """A connection that nobody has accepted is closed when it opens nevertheless."""
        near, far = pair()
        with near, far:
            self.arrivals.connectionMade(self.connection, near)
            self.assertEqual((near.fileno(), self.connection.calls), (-1, ["closed"]))


class ConnectionTests(TestCase):
    """Connections that are open."""

    def open(
        self, protocol: Protocol, source: Address = SOURCE, target: Address = TARGET, family: Any = socket.AF_INET
    ) -> socket.socket:
        """The client's end of a connection that was accepted."""
        self.arrivals = Arrivals(reactor, lambda arrival, target: arrival.accept(protocol))
        self.connection: Any = MemoryConnection(source, target)
        self.arrivals.connectionRequested(self.connection)
        near, far = pair(family)
        self.addCleanup(far.close)
        self.arrivals.connectionMade(self.connection, near)
        self.assertEqual(near.fileno(), -1)
        self.assertEqual(len(self.arrivals), 1)
        return far

    async def test_transport(self) -> None:
        """A protocol gets a transport: bytes go both ways, and when it is closed the stack is told."""
        protocol = RecordingProtocol()
        far = self.open(protocol)
        await protocol.made
        far.sendall(b"there")
        await protocol.came
        assert protocol.transport is not None
        protocol.transport.write(b"back")
        protocol.transport.loseConnection()
        await protocol.ended
        self.assertEqual((protocol.data, far.recv(100), far.recv(100)), (b"there", b"back", b""))
        self.assertEqual(self.connection.calls, ["accept", "closed"])
        self.assertEqual(len(self.arrivals), 0)

    async def test_addresses(self) -> None:
        """The transport's addresses are those that the client has and sees."""
        for source, target, kind in (
            (SOURCE, TARGET, IPv4Address),
            (Address("fd00::2", 4000), Address("2001:db8::5", 443), IPv6Address),
        ):
            protocol = RecordingProtocol()
            far = self.open(protocol, source, target, socket.AF_INET6 if kind is IPv6Address else socket.AF_INET)
            assert protocol.transport is not None
            self.assertEqual(protocol.transport.getPeer(), kind("TCP", *source))
            self.assertEqual(protocol.transport.getHost(), kind("TCP", *target))
            far.close()
            await protocol.ended

    async def test_halfClosed(self) -> None:
        """A protocol that can go on when the client has finished may do so; another one is closed."""
        for protocol, last in ((HalfProtocol(), b"still here"), (RecordingProtocol(), b"")):
            far = self.open(protocol)
            far.shutdown(socket.SHUT_WR)
            await protocol.ended
            self.assertEqual(far.recv(100), last)
            self.assertEqual(self.connection.calls, ["accept", "closed"])

    async def test_reset(self) -> None:
        """A client that is gone before its connection was looked at is over at once."""
        lost: list[str] = []

        def received(arrival: Arrival, target: Address) -> None:
            arrival.lost = lambda: lost.append("lost")
            arrival.accept(Protocol())

        arrivals = Arrivals(reactor, received)
        connection: Any = MemoryConnection()
        arrivals.connectionRequested(connection)
        near, far = pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        arrivals.connectionMade(connection, near)
        self.assertEqual((near.fileno(), len(arrivals)), (-1, 0))
        self.assertEqual((connection.calls, lost), (["accept", "closed"], ["lost"]))

    async def test_stopped(self) -> None:
        """When all ends, open connections do, too."""
        protocol = RecordingProtocol()
        self.open(protocol)
        self.arrivals.stop()
        await protocol.ended
        self.assertEqual(self.connection.calls, ["accept", "closed"])


class DatagramsTests(SynchronousTestCase):
    """L{Datagrams}."""

    def test_oneByOne(self) -> None:
        """Each datagram of a burst comes by itself, as bytes, with its target and its source."""
        received: list[tuple[bytes, Address, Address]] = []
        datagrams = Datagrams(lambda *given: received.append(given))
        datagrams.burstsReceived(
            [AimedBurst(SOURCE, TARGET, 2, memoryview(b"aabbc")), AimedBurst(SOURCE, TARGET, 0, b"")]
        )
        self.assertEqual(received, [(each, TARGET, SOURCE) for each in (b"aa", b"bb", b"c", b"")])
        self.assertTrue(all(type(each) is bytes for each, _, _ in received))
        datagrams.tick(0.0)
        datagrams.stop()

    def test_failure(self) -> None:
        """What a program raises is logged, and the next burst comes."""
        received: list[bytes] = []

        def fail(datagram: bytes, target: Address, source: Address) -> None:
            received.append(datagram)
            raise RuntimeError("not today")

        Datagrams(fail).burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"a"), AimedBurst(SOURCE, TARGET, 1, b"b")])
        self.assertEqual((received, len(self.flushLoggedErrors(RuntimeError))), ([b"a", b"b"], 2))
