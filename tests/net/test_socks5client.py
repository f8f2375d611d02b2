"""Tests for L{udptunnel.net.socks5client}."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.internet.testing import AccumulatingProtocol, MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from udptunnel.errors import AddressError, SocksError
from udptunnel.net.socks5client import (
    NEGOTIATION_SECONDS,
    SocksClientEndpoint,
    SocksRefusedError,
    addressOf,
    parseEndpoint,
)
from udptunnel.net.testing import MortalTransport
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import ReplyCode, Request, ServerNegotiation, packReply


class Application(AccumulatingProtocol):
    """The protocol that wants to talk to the target."""

    data = b""

    def __init__(self) -> None:
        self.lost: Any = None

    def connectionLost(self, reason: Any) -> None:
        self.lost = reason


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Application):
    """One that can be half closed."""

    said = ""

    def readConnectionLost(self) -> None:
        self.said += "read"

    def writeConnectionLost(self) -> None:
        self.said += "write"


class Factories:
    """What makes applications, and remembers them."""

    def __init__(self, kind: Any = Application) -> None:
        self.made: list[Any] = []
        self.kind = kind

    def factory(self) -> Any:
        """A factory for them."""

        def make() -> Any:
            self.made.append(self.kind())
            return self.made[-1]

        factory: Any = Factory.forProtocol(make)
        factory.noisy = False
        factory.protocolConnectionMade = None
        return factory


class EndpointTests(SynchronousTestCase):
    """
    L{SocksClientEndpoint}, with the connection to the SOCKS5 server in memory
    and the server's side spoken by L{ServerNegotiation}.
    """

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.applications = Factories()
        self.addCleanup(lambda: self.assertEqual(self.reactor.getDelayedCalls(), []))

    def connect(self, text: str = "", server: ServerNegotiation | None = None) -> Deferred[Any]:
        """Begin, up to the connection with the SOCKS5 server."""
        endpoint = clientFromString(
            self.reactor, text or r"socks5:name.example:443:endpoint=tcp\:127.0.0.1\:1080\:timeout=3"
        )
        connected: Deferred[Any] = endpoint.connect(self.applications.factory())
        self.server = server or ServerNegotiation()
        self.transport = MortalTransport()
        host, port, factory, *_ = self.reactor.tcpClients[-1]
        self.assertEqual((host, port), ("127.0.0.1", 1080))
        self.outer = factory.buildProtocol(IPv4Address("TCP", host, port))
        self.transport.attach(self.outer)
        return connected

    def serve(self) -> None:
        """The server reads what there is, and answers."""
        while written := self.transport.value():
            self.transport.clear()
            if answer := self.server.receive(written):
                self.outer.dataReceived(answer)

    def succeed(self, text: str = "", server: ServerNegotiation | None = None) -> Any:
        """Connect, and get the application."""
        connected = self.connect(text, server)
        self.serve()
        self.assertNoResult(connected)
        self.outer.dataReceived(packReply(ReplyCode.SUCCEEDED))
        return self.successResultOf(connected)

    def test_string(self) -> None:
        """A string makes an endpoint that asks the SOCKS5 server for its host, unresolved."""
        application = self.succeed()
        self.assertIs(application, self.applications.made[0])
        self.assertEqual(self.server.request, Request(1, Address("name.example", 443)))
        self.assertIs(application.transport, self.transport)

    def test_hosts(self) -> None:
        """Hosts of all kinds can be asked for."""
        for text, host in (("192.0.2.1", "192.0.2.1"), (r"2001\:db8\:\:1", "2001:db8::1"), ("a.b", "a.b")):
            self.succeed(rf"socks5:{text}:53:endpoint=tcp\:127.0.0.1\:1080")
            self.assertEqual(self.server.request, Request(1, Address(host, 53)))

    def test_defaultServer(self) -> None:
        """Without C{endpoint} the SOCKS5 server is at port 1080 of this machine."""
        self.succeed("socks5:name.example:443")

    def test_login(self) -> None:
        """User and password are given where the server wants them."""
        text = r"socks5:name.example:443:endpoint=tcp\:127.0.0.1\:1080:user=alice:password=secret"
        seen: list[tuple[bytes, bytes]] = []

        def check(user: bytes, password: bytes) -> bool:
            seen.append((user, password))
            return password == b"secret"

        self.succeed(text, ServerNegotiation(check))
        self.assertEqual(seen, [(b"alice", b"secret")])
        connected = self.connect(text.replace("secret", "wrong"), ServerNegotiation(check))
        self.serve()
        self.failureResultOf(connected, SocksRefusedError)
        self.assertTrue(self.transport.disconnected)

    def test_noLogin(self) -> None:
        """A server that wants a login, when none is set, refuses."""
        connected = self.connect(server=ServerNegotiation(lambda user, password: True))
        self.serve()
        self.failureResultOf(connected, SocksRefusedError)

    def test_bytes(self) -> None:
        """Then everything passes, both ways."""
        application = self.succeed()
        self.outer.dataReceived(b"abc")
        self.outer.dataReceived(b"def")
        self.assertEqual(application.data, b"abcdef")
        application.transport.write(b"ghi")
        self.assertEqual(self.transport.value(), b"ghi")

    def test_trailingBytes(self) -> None:
        """What the target says together with the server's reply is handed over after the connection is made."""
        connected = self.connect()
        self.serve()
        self.outer.dataReceived(packReply(ReplyCode.SUCCEEDED) + b"220 welcome")
        self.assertEqual(self.successResultOf(connected).data, b"220 welcome")

    def test_byteByByte(self) -> None:
        """The server's answers may come byte by byte."""
        connected = self.connect()
        self.transport.clear()
        for byte in b"\5\0" + packReply(ReplyCode.SUCCEEDED, Address("a.b", 1)) + b"hello":
            self.outer.dataReceived(bytes((byte,)))
        self.assertEqual(self.successResultOf(connected).data, b"hello")

    def test_refused(self) -> None:
        """A refusal is a connection error with the server's code and words, and closes the connection."""
        for code in (*list(ReplyCode)[1:], 9, 255):
            connected = self.connect()
            self.serve()
            self.outer.dataReceived(bytes((5, code, 0, 1)) + bytes(6))
            error = self.failureResultOf(connected, SocksRefusedError).value
            self.assertIsInstance(error, ConnectError)
            self.assertEqual(error.code, code)
            self.assertIn(ReplyCode(code).text if code < 9 else str(code), str(error))
            self.assertTrue(self.transport.disconnected)
            self.transport.die()
        self.assertEqual(self.applications.made, [])

    def test_noSocks(self) -> None:
        """An answer that is no SOCKS5 fails."""
        connected = self.connect()
        self.outer.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.outer.dataReceived(b"more")
        self.failureResultOf(connected, SocksRefusedError)
        self.assertTrue(self.transport.disconnected)

    def test_closed(self) -> None:
        """A server that closes the connection before it has answered fails the connection."""
        connected = self.connect()
        self.transport.die(ConnectionDone())
        self.failureResultOf(connected, SocksRefusedError)

    def test_notReached(self) -> None:
        """So does one that can not be reached at all."""
        endpoint = clientFromString(self.reactor, r"socks5:name.example:443:endpoint=tcp\:127.0.0.1\:1080")
        connected = endpoint.connect(self.applications.factory())
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.failureResultOf(connected, ConnectionRefusedError)

    def test_silent(self) -> None:
        """A server that does not answer is waited for a limited time, however it spreads its bytes."""
        connected = self.connect()
        for byte in b"\5\0\5\0\0":
            self.reactor.advance(NEGOTIATION_SECONDS / 6)
            self.outer.dataReceived(bytes((byte,)))
        self.assertNoResult(connected)
        self.reactor.advance(NEGOTIATION_SECONDS / 6)
        self.failureResultOf(connected, SocksRefusedError)
        self.assertTrue(self.transport.disconnected)
        self.transport.die()

    def test_cancel(self) -> None:
        """A connection can be cancelled while the server is asked; then it is closed."""
        connected = self.connect()
        self.serve()
        connected.cancel()
        self.failureResultOf(connected, CancelledError)
        self.assertTrue(self.transport.disconnected)
        self.transport.die()

    def test_cancelEarly(self) -> None:
        """It can be cancelled while the server is not even reached."""
        endpoint = clientFromString(self.reactor, r"socks5:name.example:443:endpoint=tcp\:127.0.0.1\:1080")
        connected = endpoint.connect(self.applications.factory())
        connected.cancel()
        self.failureResultOf(connected)

    def test_nobody(self) -> None:
        """A factory that does not want the connection gets none."""
        self.applications.kind = None
        factory = self.applications.factory()
        factory.buildProtocol = lambda address: None
        self.patch(self.applications, "factory", lambda: factory)
        connected = self.connect()
        self.serve()
        self.outer.dataReceived(packReply(ReplyCode.SUCCEEDED))
        self.failureResultOf(connected, SocksRefusedError)
        self.assertTrue(self.transport.disconnected)

    def test_lost(self) -> None:
        """The application learns how its connection ends."""
        application = self.succeed()
        reason = ConnectionDone()
        self.transport.die(reason)
        self.assertIs(application.lost.value, reason)

    def test_halfClose(self) -> None:
        """An application that can be half closed is; for any other the end of what is said is the end."""
        self.applications.kind = HalfCloseable
        application = self.succeed()
        half = IHalfCloseableProtocol(self.outer)
        half.readConnectionLost()
        half.writeConnectionLost()
        self.assertEqual(application.said, "readwrite")
        self.assertFalse(self.transport.disconnecting)
        self.applications.kind = Application
        self.succeed()
        half = IHalfCloseableProtocol(self.outer)
        half.writeConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        half.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_halfCloseTooEarly(self) -> None:
        """A server that half closes before it has answered fails the connection."""
        connected = self.connect()
        IHalfCloseableProtocol(self.outer).readConnectionLost()
        self.assertTrue(self.transport.disconnecting)
        self.transport.die(ConnectionDone())
        self.failureResultOf(connected, SocksRefusedError)

    def test_unspeakable(self) -> None:
        """What SOCKS5 can not say fails the connection, before anything is connected."""
        clock: Any = self.reactor
        server = clientFromString(self.reactor, "tcp:127.0.0.1:1080")
        for endpoint, kind in (
            (SocksClientEndpoint(clock, server, Address("a b", 1)), AddressError),
            (SocksClientEndpoint(clock, server, Address("a.b", 1), "u" * 256, "p"), SocksError),
        ):
            self.failureResultOf(endpoint.connect(self.applications.factory()), kind)
        self.assertEqual(self.reactor.tcpClients, [])


class ParseTests(SynchronousTestCase):
    """L{parseEndpoint} and L{addressOf}."""

    def test_ports(self) -> None:
        """A port that is none is refused with its text."""
        for port in ("", "0", "65536", "-1", "x", "٣", "1.5"):
            self.assertIn(repr(port), str(self.assertRaises(AddressError, parseEndpoint, None, "a.b", port)))

    def test_unknownWords(self) -> None:
        """An argument that is not known is refused."""
        self.assertRaises(TypeError, clientFromString, MemoryReactorClock(), "socks5:a.b:1:pasword=x")

    def test_addressOf(self) -> None:
        """A TCP address is ours; for another kind there is none."""
        self.assertEqual(addressOf(IPv4Address("TCP", "192.0.2.1", 5)), Address("192.0.2.1", 5))
        self.assertEqual(addressOf(UNIXAddress("/x")), Address("0.0.0.0", 0))
        self.assertEqual(addressOf(None), Address("0.0.0.0", 0))
