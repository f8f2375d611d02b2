"""Tests for L{udptunnel.net.crossing}."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.net.socks_server import SocksServer
from udptunnel.core.counters import Counters
from udptunnel.errors import AddressError
from udptunnel.net.crossing import LOOK_SECONDS, REPEAT_SECONDS, SocksTcp
from udptunnel.net.dial import NEGOTIATION_SECONDS, Proxy
from udptunnel.net.stack import Connection
from udptunnel.net.testing import PortReactor
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import Command, ReplyCode, Request, packReply
from udptunnel.wire.transport import Unreachable

SOURCE = Address("10.0.0.1", 5000)
TARGET = Address("192.0.2.1", 443)


class FakeConnection:
    """What a stack gives; it keeps what was said to it."""

    def __init__(self, source: Address = SOURCE, target: Address = TARGET) -> None:
        self.source, self.target = source, target
        self.said: list[Any] = []

    def accept(self) -> None:
        self.said.append("accept")

    def refuse(self, why: Unreachable | None = None) -> None:
        self.said.append(why or "RST")

    def ignore(self) -> None:
        self.said.append("ignore")

    def closed(self) -> None:
        self.said.append("closed")


class CrossingTestCase(SynchronousTestCase):
    """Connections that cross to a SOCKS5 server on loopback."""

    authenticate: Any = None

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.counters = Counters()
        self.server = SocksServer("127.0.0.1", self.authenticate)
        self.opened: list[socket.socket] = []
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.keep)
        self.addCleanup(globalLogPublisher.removeObserver, self.keep)
        self.tcp = self.make()
        self.addCleanup(self.closeAll)

    def keep(self, event: dict[str, Any]) -> None:
        """Keep our own log lines."""
        if event["log_namespace"].startswith("udptunnel.net.crossing"):
            self.events.append(event)

    def closeAll(self) -> None:
        """Nothing may be left behind."""
        self.tcp.stop()
        self.tcp.pipes.close()
        self.server.close()
        for each in self.opened:
            each.close()
        self.assertEqual((self.reactor.removeAll(), self.reactor.getDelayedCalls()), ([], []))

    def make(self, user: str = "", most: int = 10, **given: Any) -> SocksTcp:
        """One that asks our server."""
        proxy = Proxy(self.server.address, user, "secret" if user else "")
        return SocksTcp(self.reactor, proxy, self.counters, most=most, **given)

    def turn(self, until: Callable[[], bool]) -> None:
        """Turn until something is the case."""
        for _ in range(1000):
            if until():
                return
            self.reactor.turn(0.01)
        raise AssertionError("nothing happens")

    def request(self, **given: Any) -> FakeConnection:
        """Somebody opens a connection."""
        connection = FakeConnection(**given)
        self.tcp.connectionRequested(cast(Connection, connection))
        return connection

    def ask(self, **given: Any) -> FakeConnection:
        """Somebody opens a connection, and the server is asked for its target."""
        connection = self.request(**given)
        self.server.accept()
        self.turn(self.server.negotiate)
        return connection

    def answer(self, connection: FakeConnection, code: int, rest: bytes = b"") -> None:
        """The server answers."""
        assert self.server.accepted is not None
        before = len(connection.said)
        self.server.accepted.sendall(packReply(code) + rest)
        self.turn(lambda: len(connection.said) > before)

    def made(self, connection: FakeConnection) -> socket.socket:
        """The stack has a socket for it; get the client's end."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            opened, _ = listener.accept()
        client.settimeout(10)
        self.opened.append(client)
        self.tcp.connectionMade(cast(Connection, connection), opened)
        return client

    def cross(self, **given: Any) -> tuple[FakeConnection, socket.socket, socket.socket]:
        """A connection that is open: with the client's and the server's ends."""
        connection = self.ask(**given)
        self.answer(connection, 0)
        client = self.made(connection)
        assert self.server.accepted is not None
        self.server.accepted.settimeout(10)
        return connection, client, self.server.accepted

    def texts(self) -> list[str]:
        """The log lines."""
        return [event["log_format"].format(**event) for event in self.events]


class CrossingTests(CrossingTestCase):
    """Connections whose targets are reached."""

    def test_crossing(self) -> None:
        """The client is let in when the target is reached; then bytes go through, both ways, to the end."""
        connection = self.ask()
        self.assertEqual(self.server.negotiation.request, Request(Command.CONNECT, TARGET))
        self.assertEqual(connection.said, [])
        self.answer(connection, 0)
        self.assertEqual(connection.said, ["accept"])
        client = self.made(connection)
        far = self.server.accepted
        assert far is not None
        client.sendall(b"question")
        self.reactor.turn(1)
        self.assertEqual(far.recv(100), b"question")
        far.sendall(b"answer")
        self.reactor.turn(1)
        self.assertEqual(client.recv(100), b"answer")
        client.close()
        far.close()
        self.turn(lambda: "closed" in connection.said)
        self.assertEqual(connection.said, ["accept", "closed"])
        report = self.tcp.report()
        self.assertEqual((report["bytes"], report["open"], report["ended"]), (14, 0, {"closed": 1}))

    def test_rest(self) -> None:
        """A target that speaks first is heard, even if it has spoken together with the reply."""
        connection = self.ask()
        self.answer(connection, 0, b"SSH-2.0-x\r\n")
        client = self.made(connection)
        self.reactor.turn(1)
        self.assertEqual(client.recv(100), b"SSH-2.0-x\r\n")

    def test_options(self) -> None:
        """The client's socket does not block, and is kept alive."""
        connection = self.ask()
        self.answer(connection, 0)
        with mock.patch("udptunnel.net.crossing.equip") as equipped:
            self.made(connection)
        self.assertEqual(equipped.call_count, 1)

    def test_names(self) -> None:
        """The server is asked for what names say a target is: a fake address goes as a name."""
        self.tcp = self.make(names=lambda address: Address("target.example", address.port))
        self.ask()
        self.assertEqual(self.server.negotiation.request, Request(Command.CONNECT, Address("target.example", 443)))

    def test_noName(self) -> None:
        """A client that connects to a fake address without a name is refused, and the server is not asked."""

        def nameless(address: Address) -> Address:
            raise AddressError("no name")

        self.tcp = self.make(names=nameless)
        self.assertEqual(self.request().said, ["RST"])
        self.assertEqual(self.counters.dropped, {"fake address without a name": 1})

    def test_lostWhileAsking(self) -> None:
        """A client that has given up lets the server go, too."""
        connection = self.ask()
        self.tcp.connectionLost(cast(Connection, connection))
        assert self.server.accepted is not None
        self.server.accepted.settimeout(10)
        self.assertEqual(self.server.accepted.recv(1), b"")
        self.assertEqual((connection.said, self.tcp.report()["opening"]), ([], 0))

    def test_lostWhileAccepting(self) -> None:
        """So does one that has given up after it was let in."""
        connection = self.ask()
        self.answer(connection, 0)
        self.tcp.connectionLost(cast(Connection, connection))
        assert self.server.accepted is not None
        self.server.accepted.settimeout(10)
        with self.assertRaises(ConnectionResetError):
            self.server.accepted.recv(1)

    def test_lostUnknown(self) -> None:
        """One that was refused may be lost, too; and one that is made nevertheless is closed."""
        connection = FakeConnection()
        self.tcp.connectionLost(cast(Connection, connection))
        client = self.made(connection)
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertEqual(connection.said, ["closed"])

    def test_reset(self) -> None:
        """A crossing that is reset is forgotten as one that is closed."""
        connection, client, far = self.cross()
        self.assertEqual(self.tcp.report()["open"], 1)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        self.turn(lambda: "closed" in connection.said)
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertEqual(self.tcp.report()["ended"], {"reset": 1})

    def test_idle(self) -> None:
        """Where silence is limited, it ends a connection."""
        self.tcp = self.make(idleSeconds=60)
        connection, _, _ = self.cross()
        self.tcp.tick(59)
        self.tcp.tick(59 + LOOK_SECONDS / 2)
        self.assertEqual(connection.said, ["accept"])
        self.tcp.tick(59 + LOOK_SECONDS)
        self.assertEqual(connection.said, ["accept", "closed"])

    def test_stop(self) -> None:
        """Stopping closes what is open, and what is not yet; then all begins anew."""
        connection, client, _ = self.cross()
        pending = self.request()
        self.tcp.stop()
        self.assertEqual((connection.said, pending.said), (["accept", "closed"], ["ignore"]))
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.server.accept()
        self.server = SocksServer()
        self.addCleanup(self.server.close)
        self.tcp.proxy = Proxy(self.server.address)
        _, client, far = self.cross()
        client.sendall(b"x")
        self.reactor.turn(1)
        self.assertEqual(far.recv(1), b"x")
        self.assertEqual(self.tcp.report()["spliced"], hasattr(os, "splice"))


class FakeWorkers:
    """
    Workers that take everything.

    @ivar joined: what was handed to them.
    """

    moved = 7

    def __init__(self) -> None:
        self.joined: list[tuple[Any, ...]] = []
        self.said: list[str] = []

    def __len__(self) -> int:
        return 1

    def join(self, *given: Any) -> FakeWorkers:
        self.joined.append(given)
        return self

    def start(self) -> None:
        self.said.append("start")

    def tick(self, now: float) -> None:
        self.said.append("tick")

    def close(self) -> None:
        self.said.append("close")

    def stop(self) -> None:
        self.said.append("stop")


class WorkersTests(CrossingTestCase):
    """Connections that a worker holds."""

    def setUp(self) -> None:
        super().setUp()
        self.workers = FakeWorkers()
        self.tcp = self.make(workers=self.workers, idleSeconds=60.0)

    def crossed(self) -> tuple[FakeConnection, Callable[[str], None]]:
        """A connection that was handed over, and what to call when it ends."""
        connection = self.ask()
        self.answer(connection, 0, b"rest")
        self.made(connection)
        one, other, ended, rests, idleSeconds = self.workers.joined[-1]
        self.assertEqual((rests, idleSeconds), ((b"", b"rest"), 60.0))
        for each in (one, other):
            each.close()
        return connection, ended

    def test_ended(self) -> None:
        """It counts as open, with the bytes that workers have moved, until the worker says that it has ended."""
        connection, ended = self.crossed()
        report = self.tcp.report()
        self.assertEqual([report[each] for each in ("open", "opening", "bytes", "workers")], [1, 0, 7, 1])
        ended("reset")
        report = self.tcp.report()
        self.assertEqual((report["open"], report["ended"], connection.said[-1]), (0, {"reset": 1}, "closed"))

    def test_stop(self) -> None:
        """It is closed first, and then the workers are stopped."""
        connection, _ = self.crossed()
        self.tcp.stop()
        self.assertEqual((self.workers.said, connection.said[-1]), (["start", "close", "stop"], "closed"))


class RefusalTests(CrossingTestCase):
    """Connections whose targets are not reached."""

    def test_replies(self) -> None:
        """What the server answers is what the client sees."""
        expected = {
            ReplyCode.GENERAL_FAILURE: "RST",
            ReplyCode.NOT_ALLOWED: Unreachable.PROHIBITED,
            ReplyCode.NETWORK_UNREACHABLE: Unreachable.NET,
            ReplyCode.HOST_UNREACHABLE: Unreachable.HOST,
            ReplyCode.CONNECTION_REFUSED: "RST",
            ReplyCode.TTL_EXPIRED: Unreachable.HOST,
            ReplyCode.COMMAND_NOT_SUPPORTED: Unreachable.PROHIBITED,
            ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: Unreachable.NET,
            99: "RST",
        }
        for code, seen in expected.items():
            with self.subTest(code=code):
                self.server.close()
                self.server = SocksServer()
                self.tcp.proxy = Proxy(self.server.address)
                connection = self.ask()
                self.answer(connection, code)
                self.assertEqual(connection.said, [seen])
        report = self.tcp.report()
        self.assertEqual((report["opening"], sum(report["refused"].values())), (0, len(expected)))
        self.assertEqual(report["refused"]["connection refused"], 1)
        self.assertEqual(report["refused"]["unknown reply code 99"], 1)

    def test_quiet(self) -> None:
        """That one target can not be reached is no log line."""
        self.answer(self.ask(), ReplyCode.CONNECTION_REFUSED)
        self.assertEqual(self.events, [])

    def test_noConnect(self) -> None:
        """That the server does not do CONNECT is one: nothing will ever get through."""
        self.answer(self.ask(), ReplyCode.COMMAND_NOT_SUPPORTED)
        (text,) = self.texts()
        self.assertIn("--socks-server-addr", text)
        self.assertIn("command not supported", text)

    def test_silentTarget(self) -> None:
        """A target that does not answer is left to the client's own time-out."""
        connection = self.ask()
        self.reactor.advance(NEGOTIATION_SECONDS)
        self.assertEqual(connection.said, ["ignore"])
        self.assertEqual((self.tcp.report()["refused"], self.events), ({"no answer": 1}, []))

    def test_noServer(self) -> None:
        """Without the server no host can be reached; the log says so once in a while, and when it is over."""
        address = self.server.address
        self.server.close()
        for _ in range(3):
            connection = self.request()
            self.turn(lambda said=connection.said: bool(said))  # type: ignore[misc]
            self.assertEqual(connection.said, [Unreachable.HOST])
        (text,) = self.texts()
        self.assertIn("Connection refused", text)
        self.assertIn("--socks-server-addr", text)
        self.assertIn(str(address), text)
        self.reactor.advance(REPEAT_SECONDS)
        connection = self.request()
        self.turn(lambda: bool(connection.said))
        self.assertEqual(len(self.events), 2)
        self.server = SocksServer()
        self.tcp.proxy = Proxy(self.server.address)
        self.cross()
        self.assertIn("again", self.texts()[-1])
        self.assertEqual(len(self.events), 3)

    def test_noDescriptor(self) -> None:
        """What this machine has no room for the client may try again; it is said, and not raised."""
        with mock.patch("socket.socket", side_effect=OSError(errno.EMFILE, "Too many open files")):
            connection = self.request()
        self.reactor.advance(0)
        self.assertEqual(connection.said, ["ignore"])
        self.assertIn("Too many open files", self.texts()[0])

    def test_tooMany(self) -> None:
        """Beyond the limit connections are refused, and counted, without asking the server."""
        self.tcp = self.make(most=2)
        first = self.request()
        self.request()
        third = self.request()
        self.assertEqual((third.said, dict(self.counters.dropped)), (["RST"], {"too many TCP connections": 1}))
        self.tcp.connectionLost(cast(Connection, first))
        self.assertEqual(self.request().said, [])


class LoginTests(CrossingTestCase):
    """A server that wants to know who we are."""

    def setUp(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []
        self.good = True
        super().setUp()

    def authenticate(self, user: bytes, password: bytes) -> bool:
        """Keep who comes."""
        self.seen.append((user, password))
        return self.good

    def test_source(self) -> None:
        """The client's address follows the user's name, as with badvpn."""
        self.tcp = self.make("somebody", appendSource=True)
        self.ask()
        self.assertEqual(self.seen, [(b"somebody@10.0.0.1:5000", b"secret")])

    def test_sourceIpv6(self) -> None:
        """An IPv6 address stands in brackets."""
        self.tcp = self.make("somebody", appendSource=True)
        self.ask(source=Address("2001:db8::1", 5000))
        self.assertEqual(self.seen, [(b"somebody@[2001:db8::1]:5000", b"secret")])

    def test_noSource(self) -> None:
        """Unless it is wanted, the name is the same for all."""
        self.tcp = self.make("somebody")
        self.ask()
        self.assertEqual(self.seen, [(b"somebody", b"secret")])

    def test_refused(self) -> None:
        """Wrong credentials are a log line that says where they come from."""
        self.good = False
        self.tcp = self.make("somebody")
        connection = self.ask()
        self.turn(lambda: bool(connection.said))
        self.assertEqual(connection.said, [Unreachable.PROHIBITED])
        (text,) = self.texts()
        self.assertIn("does not accept the user and password", text)
        self.assertIn("--username", text)
        self.assertNotIn("secret", text)

    def test_sourceWithoutUser(self) -> None:
        """Without a user the source is nothing to log in with."""
        self.tcp = self.make("", appendSource=True)
        connection = self.request()
        self.server.accept()
        self.turn(lambda: self.server.negotiate() or bool(connection.said))
        self.assertEqual(self.seen, [])


class EarlyTests(CrossingTestCase):
    """Clients that are let in before the server is asked."""

    def make(self, *given: Any, **named: Any) -> SocksTcp:
        return super().make(*given, early=True, **named)

    def test_reached(self) -> None:
        """The client is let in at once; what it says meanwhile is not lost."""
        connection = self.request()
        self.assertEqual(connection.said, ["accept"])
        client = self.made(connection)
        client.sendall(b"question")
        far = self.server.accept()
        self.turn(self.server.negotiate)
        far.sendall(packReply(0))
        self.turn(lambda: self.tcp.report()["open"] == 1)
        self.reactor.turn(1)
        far.settimeout(10)
        self.assertEqual(far.recv(100), b"question")

    def test_reachedFirst(self) -> None:
        """The server may be quicker than the client."""
        connection = self.ask()
        assert self.server.accepted is not None
        self.server.accepted.sendall(packReply(0) + b"hello")
        self.turn(lambda: self.tcp.report()["reached"] == 1)
        client = self.made(connection)
        self.reactor.turn(1)
        self.assertEqual(client.recv(100), b"hello")

    def test_refused(self) -> None:
        """A target that is not reached resets the connection."""
        connection = self.ask()
        client = self.made(connection)
        self.answer(connection, ReplyCode.HOST_UNREACHABLE)
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertEqual(connection.said, ["accept", "closed"])
        self.assertEqual(self.tcp.report()["ended"], {"refused after early accept": 1})

    def test_refusedFirst(self) -> None:
        """So it does when that is known before the connection is made."""
        connection = self.ask()
        assert self.server.accepted is not None
        self.server.accepted.sendall(packReply(ReplyCode.CONNECTION_REFUSED))
        self.turn(lambda: bool(self.tcp.report()["refused"]))
        client = self.made(connection)
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        self.assertEqual(connection.said, ["accept", "closed"])
