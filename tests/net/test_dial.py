"""Tests for L{udptunnel.net.dial}."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs
from tests.net.socks_server import SocksServer
from udptunnel.net.dial import KEEPALIVE_IDLE, NEGOTIATION_SECONDS, Dial, Fault, Proxy
from udptunnel.net.testing import PortReactor
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import Command, Reply, ReplyCode, Request, packReply

TARGET = Address("target.example", 443)
BOUND = Address("192.0.2.7", 4000)


class RecordingCaller:
    """Keeps how its dials ended."""

    def __init__(self) -> None:
        self.opened: list[socket.socket] = []
        self.replies: list[tuple[Reply, bytes]] = []
        self.failures: list[tuple[str, int]] = []

    @property
    def over(self) -> bool:
        """Whether one has ended."""
        return bool(self.replies or self.failures)

    def reached(self, opened: socket.socket, reply: Reply, rest: bytes) -> None:
        self.opened.append(opened)
        self.replies.append((reply, rest))

    def failed(self, why: str, code: int) -> None:
        self.failures.append((why, code))


class DialTestCase(SynchronousTestCase):
    """Dials to a server on loopback."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.caller = RecordingCaller()
        self.addCleanup(self.closeAll)

    def closeAll(self) -> None:
        """Nothing may be left behind."""
        for each in self.caller.opened:
            each.close()
        self.assertEqual((self.reactor.removeAll(), self.reactor.getDelayedCalls()), ([], []))

    def server(self, *given: Any) -> SocksServer:
        """A server that is gone after the test."""
        server = SocksServer(*given)
        self.addCleanup(server.close)
        return server

    def dial(self, server: SocksServer, **given: Any) -> Dial:
        """Start one."""
        dial = Dial(self.reactor, Proxy(server.address, **given), Command.CONNECT, TARGET, self.caller)
        dial.start()
        return dial

    def turn(self, until: Callable[[], bool]) -> None:
        """Have the server and the reactor do their parts."""
        for _ in range(1000):
            if until():
                return
            self.reactor.turn(0.01)
        raise AssertionError("nothing happens")

    def ask(self, server: SocksServer, **given: Any) -> tuple[Dial, socket.socket]:
        """A dial whose request has arrived."""
        dial = self.dial(server, **given)
        server.accept()
        self.turn(server.negotiate)
        assert server.accepted is not None
        return dial, server.accepted


class ReachedTests(DialTestCase):
    """Servers that do what they are asked."""

    def test_reached(self) -> None:
        """The caller gets the reply, and the connection; the reactor has forgotten it."""
        server = self.server()
        _, far = self.ask(server)
        far.sendall(packReply(0, BOUND))
        self.turn(lambda: self.caller.over)
        self.assertEqual(server.negotiation.request, Request(Command.CONNECT, TARGET))
        self.assertEqual(self.caller.replies, [(Reply(0, BOUND), b"")])
        self.caller.opened[0].sendall(b"hello")
        far.settimeout(10)
        self.assertEqual(far.recv(100), b"hello")

    def test_options(self) -> None:
        """The socket does not block, does not wait for larger segments, and is kept alive."""
        server = self.server()
        self.ask(server)[1].sendall(packReply(0, BOUND))
        self.turn(lambda: self.caller.over)
        (opened,) = self.caller.opened
        self.assertFalse(opened.getblocking())
        self.assertTrue(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertEqual(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), KEEPALIVE_IDLE)

    def test_rest(self) -> None:
        """What follows the reply in the same segment is handed on: the targets that speak first."""
        server = self.server()
        self.ask(server)[1].sendall(packReply(0, BOUND) + b"SSH-2.0-x\r\n")
        self.turn(lambda: self.caller.over)
        self.assertEqual(self.caller.replies, [(Reply(0, BOUND), b"SSH-2.0-x\r\n")])

    def test_byteByByte(self) -> None:
        """Messages of the server may be cut anywhere."""
        server = self.server()
        self.dial(server)
        far = server.accept()
        for octet in b"\x05\0" + packReply(0, BOUND):
            far.send(bytes((octet,)))
            self.reactor.turn(0.01)
            self.reactor.turn(0.01)
        self.turn(lambda: self.caller.over)
        self.assertEqual(self.caller.replies, [(Reply(0, BOUND), b"")])

    def test_login(self) -> None:
        """A user and a password of 255 bytes each are passed on."""
        seen: list[tuple[bytes, bytes]] = []
        server = self.server("127.0.0.1", lambda user, password: not seen.append((user, password)))
        self.ask(server, user="u" * 255, password="p" * 255)[1].sendall(packReply(0, BOUND))
        self.turn(lambda: self.caller.over)
        self.assertEqual((seen, len(self.caller.replies)), ([(b"u" * 255, b"p" * 255)], 1))

    def test_ipv6(self) -> None:
        """The server may have an IPv6 address."""
        server = self.server("::1")
        self.ask(server)[1].sendall(packReply(0, BOUND))
        self.turn(lambda: self.caller.over)
        self.assertEqual(len(self.caller.replies), 1)

    def test_writeLater(self) -> None:
        """A kernel that takes only some bytes gets the others when it wants them."""
        server = self.server("127.0.0.1", lambda user, password: True)
        dial = self.dial(server, user="user", password="password")
        real = socket.socket.send

        class Miser(socket.socket):
            """Takes one byte at each second call."""

            calls = 0

            def send(self, data: Any, *flags: Any) -> int:
                self.calls += 1
                if self.calls % 2:
                    raise BlockingIOError(errno.EAGAIN, "not now")
                return real(self, data[:1], *flags)

        opened = dial._socket
        assert opened is not None
        dial._socket = Miser(fileno=opened.detach())
        server.accept()
        self.turn(server.negotiate)
        assert server.accepted is not None
        server.accepted.sendall(packReply(0, BOUND))
        self.turn(lambda: self.caller.over)
        self.assertEqual(len(self.caller.replies), 1)

    @needs("marks on sockets")
    def test_mark(self) -> None:
        """The socket bears the mark before it connects."""
        server = self.server()
        with mock.patch.object(socket.socket, "setsockopt") as asked:
            self.dial(server, mark=7).cancel()
        self.assertIn(mock.call(socket.SOL_SOCKET, socket.SO_MARK, 7), asked.mock_calls)


class FailedTests(DialTestCase):
    """Servers that do not, and those that are none."""

    def failure(self, server: SocksServer, **given: Any) -> tuple[str, int]:
        """What becomes of a dial."""
        self.dialled = self.dial(server, **given)
        self.reactor.advance(0)
        self.turn(lambda: self.caller.over)
        self.assertEqual(len(self.caller.failures), 1)
        return self.caller.failures[0]

    def test_refusal(self) -> None:
        """The server's reply code is the caller's, known or not, and the server was asked."""
        for code in (*list(ReplyCode)[1:], 77):
            with self.subTest(code=code):
                self.caller.failures.clear()
                server = self.server()
                dial, far = self.ask(server)
                far.sendall(packReply(code))
                self.turn(lambda: self.caller.over)
                ((why, seen),) = self.caller.failures
                self.assertEqual((seen, dial.asked, dial.fault), (code, True, Fault.TARGET))
                self.assertIn(str(server.address), why)

    def test_noServer(self) -> None:
        """Where nobody listens, the text names the server, which was not asked."""
        server = self.server()
        server.close()
        dial = self.dial(server)
        self.turn(lambda: self.caller.over)
        why = f"the SOCKS5 server {server.address} can not be reached: Connection refused"
        self.assertEqual(self.caller.failures, [(why, ReplyCode.CONNECTION_REFUSED)])
        self.assertEqual((dial.asked, dial.fault), (False, Fault.SERVER))

    def test_noRoute(self) -> None:
        """A connection that fails at once is told later, not from within C{start}."""
        server = self.server()
        with mock.patch.object(socket.socket, "connect_ex", return_value=errno.ENETUNREACH):
            self.dial(server)
        self.assertEqual(self.caller.failures, [])
        self.reactor.advance(0)
        ((why, code),) = self.caller.failures
        self.assertEqual(code, ReplyCode.HOST_UNREACHABLE)
        self.assertIn("unreachable", why)

    def test_credentials(self) -> None:
        """Credentials that the server does not accept are told as that."""
        server = self.server("127.0.0.1", lambda user, password: False)
        dial, _ = self.ask(server, user="somebody", password="wrong")
        self.turn(lambda: self.caller.over)
        ((why, code),) = self.caller.failures
        self.assertEqual((code, dial.asked, dial.fault), (ReplyCode.NOT_ALLOWED, False, Fault.LOGIN))
        self.assertIn("does not accept the user and password", why)

    def test_noMethod(self) -> None:
        """A server that wants credentials where we have none is told as that."""
        server = self.server("127.0.0.1", lambda user, password: True)
        self.ask(server)
        self.turn(lambda: self.caller.over)
        ((why, code),) = self.caller.failures
        self.assertEqual(code, ReplyCode.NOT_ALLOWED)
        self.assertIn("none of the login methods", why)

    def test_longUser(self) -> None:
        """A user that is too long for SOCKS5 is no exception."""
        why, code = self.failure(self.server(), user="u" * 256)
        self.assertEqual(code, ReplyCode.GENERAL_FAILURE)
        self.assertIn("255 bytes", why)
        self.assertEqual(self.dialled.fault, Fault.LOGIN)

    def test_badName(self) -> None:
        """Nor is a name that SOCKS5 can not carry; that is not the server's fault."""
        server = self.server()
        dial = Dial(self.reactor, Proxy(server.address), Command.CONNECT, Address("n" * 256, 1), self.caller)
        dial.start()
        self.reactor.advance(0)
        self.assertEqual((len(self.caller.failures), dial.fault), (1, Fault.TARGET))

    def test_notSocks(self) -> None:
        """A server that speaks something else is told."""
        server = self.server()
        self.dial(server)
        server.accept().sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.turn(lambda: self.caller.over)
        self.assertIn("not like SOCKS5", self.caller.failures[0][0])

    def test_closed(self) -> None:
        """A server may close instead of answering; some do when there is no target."""
        server = self.server()
        dial, far = self.ask(server)
        far.close()
        self.turn(lambda: self.caller.over)
        self.assertEqual(dial.fault, Fault.TARGET)
        why = f"the SOCKS5 server {server.address} closed the connection"
        self.assertEqual(self.caller.failures, [(why, ReplyCode.GENERAL_FAILURE)])

    def test_closedAtOnce(self) -> None:
        """One that closes before it was asked has other troubles."""
        server = self.server()
        dial = self.dial(server)
        self.reactor.turn(0.01)
        server.accept().close()
        self.turn(lambda: self.caller.over)
        self.assertEqual(dial.fault, Fault.SERVER)

    def test_reset(self) -> None:
        """It may reset the connection."""
        server = self.server()
        _, far = self.ask(server)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        self.turn(lambda: self.caller.over)
        ((why, code),) = self.caller.failures
        self.assertEqual(code, ReplyCode.GENERAL_FAILURE)
        self.assertIn("broke the connection", why)

    def test_silentServer(self) -> None:
        """A server that does not even greet is given up in time."""
        server = self.server()
        self.dial(server)
        self.reactor.turn(0.01)
        self.reactor.advance(NEGOTIATION_SECONDS - 1)
        self.assertFalse(self.caller.over)
        self.reactor.advance(1)
        self.assertEqual([code for _, code in self.caller.failures], [ReplyCode.HOST_UNREACHABLE])

    def test_silentTarget(self) -> None:
        """A server that was asked and still waits for the target is another case."""
        dial, _ = self.ask(self.server())
        self.reactor.advance(NEGOTIATION_SECONDS)
        self.assertEqual([code for _, code in self.caller.failures], [ReplyCode.TTL_EXPIRED])
        self.assertEqual((dial.asked, dial.fault), (True, Fault.SILENT))

    def test_noDescriptor(self) -> None:
        """That no descriptor is left is a failure like others."""
        server = self.server()
        with mock.patch("socket.socket", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))):
            why, code = self.failure(server)
        self.assertEqual(code, ReplyCode.GENERAL_FAILURE)
        self.assertIn("Too many open files", why)
        self.assertEqual(self.dialled.fault, Fault.OURS)

    def test_cancel(self) -> None:
        """A cancelled dial tells nobody, in whatever state it was, and may be cancelled again."""
        server = self.server()
        for turns in range(4):
            with self.subTest(turns=turns):
                dial = self.dial(server)
                for _ in range(turns):
                    self.reactor.turn(0.01)
                dial.cancel()
                dial.cancel()
                self.assertEqual((dial.fileno(), self.caller.over), (-1, False))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cancelFailed(self) -> None:
        """A dial that failed at once, and was cancelled before that was told, tells nobody."""
        server = self.server()
        with mock.patch("socket.socket", side_effect=OSError(errno.EMFILE, "none left")):
            dial = self.dial(server)
        dial.cancel()
        self.reactor.advance(1)
        self.assertFalse(self.caller.over)

    def test_reactorStops(self) -> None:
        """A reactor that has no more use for the descriptor ends a dial."""
        self.dial(self.server()).connectionLost(Failure(ConnectionError()))
        self.assertEqual([code for _, code in self.caller.failures], [ReplyCode.HOST_UNREACHABLE])
        self.assertNotIn("Success", self.caller.failures[0][0])

    def test_lateCalls(self) -> None:
        """A reactor that calls once more after the end does no harm."""
        dial = self.dial(self.server())
        dial.cancel()
        dial.doRead()
        dial.doWrite()
        dial.connectionLost(Failure(ConnectionError()))
        self.assertFalse(self.caller.over)


@needs("epoll")
class EpollTests(DialTestCase):
    """The reactor that most use reports errors in its own way."""

    def setUp(self) -> None:
        super().setUp()
        from twisted.internet.epollreactor import EPollReactor

        self.epoll = EPollReactor()
        self.addCleanup(self.closeReactor)

    def closeReactor(self) -> None:
        """Close the reactor's own descriptors, too."""
        for each in self.epoll.removeAll():
            each.connectionLost(Failure(ConnectionError()))
        for each in list(self.epoll._internalReaders):
            self.epoll._internalReaders.remove(each)
            self.epoll.removeReader(each)
            each.connectionLost(Failure(ConnectionError()))
        self.epoll._poller.close()

    def test_refused(self) -> None:
        """A refused connection is told as that."""
        server = self.server()
        server.close()
        Dial(self.epoll, Proxy(server.address), Command.CONNECT, TARGET, self.caller).start()
        for _ in range(10):
            self.epoll.doIteration(0.1)
            if self.caller.over:
                break
        self.assertEqual([code for _, code in self.caller.failures], [ReplyCode.CONNECTION_REFUSED])
        self.assertIn("Connection refused", self.caller.failures[0][0])
