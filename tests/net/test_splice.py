"""Tests for L{udptunnel.net.splice}."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from udptunnel.net.splice import HALF_CLOSED_SECONDS, LARGE_BYTES, MOST_IDLE, SMALL_BYTES, Pipe, Pipes, Splice, abort
from udptunnel.net.testing import PortReactor

BUFFER = 64 << 10
"""Small socket buffers, so that a slow reader is soon seen."""


def tcpPair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, which do not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    for each in (one, other):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def openDescriptors() -> set[int]:
    """The descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def reset(opened: socket.socket) -> None:
    """What a program that crashes does to its connection."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()


class SpliceTestCase(SynchronousTestCase):
    """
    A client and a server that are joined.

    @ivar client: the client's own end.
    @ivar server: the server's.
    """

    spliced = True

    def setUp(self) -> None:
        self.before = openDescriptors()
        self.reactor = PortReactor()
        self.pipes = Pipes(self.spliced)
        self.ends: list[str] = []
        self.splice = self.join()
        self.addCleanup(self.closeAll)

    def closeAll(self) -> None:
        """Nothing may be left behind."""
        self.splice.close()
        self.pipes.close()
        self.client.close()
        self.server.close()
        self.assertEqual((self.reactor.removeAll(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual(openDescriptors() - self.before, set())

    def join(self, rests: tuple[bytes, bytes] = (b"", b""), idleSeconds: float = 0.0) -> Splice:
        """Join two new connections."""
        self.client, one = tcpPair()
        other, self.server = tcpPair()
        splice = Splice(self.reactor, self.pipes, one, other, self.ends.append, rests, idleSeconds)
        splice.start()
        return splice

    def again(self, **given: Any) -> None:
        """Instead of what C{setUp} has joined, join something else."""
        self.splice.close()
        self.client.close()
        self.server.close()
        self.splice = self.join(**given)

    def turn(self, until: Callable[[], bool] = lambda: False, most: int = 1000) -> bool:
        """Turn until something is the case, or nothing happens any more."""
        for _ in range(most):
            if until():
                return True
            if not self.reactor.turn(0.02):
                break
        return until()

    def receive(self, opened: socket.socket, count: int) -> bytes:
        """So many bytes, or less if there will not be more."""
        data = bytearray()

        def enough() -> bool:
            while len(data) < count:
                try:
                    piece = opened.recv(count - len(data))
                except BlockingIOError:
                    return False
                if not piece:
                    return True
                data.extend(piece)
            return True

        self.turn(enough)
        return bytes(data)

    def ended(self, opened: socket.socket) -> bool:
        """Whether its peer has said everything."""
        seen: list[bytes] = []

        def looks() -> bool:
            try:
                seen.append(opened.recv(1))
            except BlockingIOError:
                return False
            return True

        self.turn(looks)
        return seen == [b""]

    def wasReset(self, opened: socket.socket) -> bool:
        """Whether its peer has reset the connection."""
        seen: list[Any] = []

        def looks() -> bool:
            try:
                seen.append(opened.recv(1))
            except BlockingIOError:
                return False
            except ConnectionResetError as error:
                seen.append(error.errno)
            return True

        self.turn(looks)
        return seen == [errno.ECONNRESET]

    def takesNothing(self, opened: socket.socket) -> bool:
        """Whether its peer, which had said everything, has reset the connection."""
        try:
            opened.send(b"x")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    def fill(self, opened: socket.socket) -> bytes:
        """Write until nothing goes any more; get what was written."""
        sent = bytearray()
        block = os.urandom(1 << 16)
        idle = 0
        while idle < 3:
            try:
                sent += block[: opened.send(block)]
                idle = 0
            except BlockingIOError:
                idle += 1
                self.turn(most=20)
            self.assertLess(len(sent), 16 << 20)
        return bytes(sent)


class SpliceTests(SpliceTestCase):
    """Two connections, joined by the kernel."""

    def test_bothWays(self) -> None:
        """What one says the other hears, in both directions."""
        self.client.sendall(b"question")
        self.assertEqual(self.receive(self.server, 8), b"question")
        self.server.sendall(b"answer")
        self.assertEqual(self.receive(self.client, 6), b"answer")
        self.assertEqual(self.pipes.moved, 14)

    def test_rests(self) -> None:
        """What was read before the two were joined comes first."""
        self.again(rests=(b"from the client, ", b"SSH-2.0\r\n"))
        self.client.sendall(b"more")
        self.server.sendall(b"more")
        self.assertEqual(self.receive(self.server, 21), b"from the client, more")
        self.assertEqual(self.receive(self.client, 13), b"SSH-2.0\r\nmore")

    def test_clientEndsFirst(self) -> None:
        """A client that has said everything still gets its answer; then both are closed."""
        self.client.sendall(b"question")
        self.client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.receive(self.server, 8), b"question")
        self.assertTrue(self.ended(self.server))
        self.server.sendall(b"answer")
        self.server.close()
        self.assertEqual(self.receive(self.client, 6), b"answer")
        self.assertTrue(self.ended(self.client))
        self.assertEqual(self.ends, [""])

    def test_serverEndsFirst(self) -> None:
        """A server that has said everything still gets what the client has to say."""
        self.server.shutdown(socket.SHUT_WR)
        self.assertTrue(self.ended(self.client))
        self.client.sendall(b"thanks")
        self.assertEqual(self.receive(self.server, 6), b"thanks")
        self.assertEqual(self.ends, [])
        self.client.shutdown(socket.SHUT_WR)
        self.assertTrue(self.ended(self.server))
        self.assertEqual(self.ends, [""])

    def test_endsBehindRest(self) -> None:
        """A side that ends with something that waits for the other: first that, then the end."""
        self.again(rests=(b"last words", b""))
        self.client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.receive(self.server, 10), b"last words")
        self.assertTrue(self.ended(self.server))

    def test_clientResets(self) -> None:
        """A reset is passed on as that, for who cares takes an end for a whole answer."""
        reset(self.client)
        self.assertTrue(self.wasReset(self.server))
        self.assertEqual(self.ends, ["reset"])

    def test_serverResets(self) -> None:
        """In the other direction as well."""
        reset(self.server)
        self.assertTrue(self.wasReset(self.client))
        self.assertEqual(self.ends, ["reset"])

    def test_resetHalfClosed(self) -> None:
        """A client that has said everything and is gone when the answer comes resets the server."""
        self.client.shutdown(socket.SHUT_WR)
        self.assertTrue(self.ended(self.server))
        reset(self.client)
        self.server.sendall(b"answer")
        self.turn(lambda: bool(self.ends))
        self.assertEqual(self.ends, ["reset"])
        self.assertTrue(self.takesNothing(self.server))

    def test_endMeetsReset(self) -> None:
        """An end that can not be told any more, for the other side is broken by then, is no exception."""
        reset(self.server)
        self.client.shutdown(socket.SHUT_WR)
        self.turn(lambda: bool(self.ends))
        self.assertEqual(self.ends, ["reset"])

    def test_flushTooEarly(self) -> None:
        """A wake-up in which the slow reader still takes nothing changes nothing."""
        sent = self.fill(self.client)
        self.splice._other.doWrite()
        self.assertEqual(self.receive(self.server, len(sent)), sent)

    def test_slowReader(self) -> None:
        """Who does not read makes the other wait; nothing but a pipe full piles up, and nothing is lost."""
        sent = self.fill(self.client)
        self.assertLess(len(sent), LARGE_BYTES + (4 << 20))
        self.assertGreater(len(sent), BUFFER)
        self.assertNotIn(self.splice._one, self.reactor.getReaders())
        moved = self.pipes.moved
        self.splice._one.doRead()
        self.assertEqual(self.pipes.moved, moved)
        self.server.sendall(b"the other direction is open")
        self.assertEqual(len(self.receive(self.client, 27)), 27)
        seen = self.receive(self.server, len(sent))
        self.assertEqual(hashlib.sha256(seen).digest(), hashlib.sha256(sent).digest())
        self.client.sendall(b"on")
        self.assertEqual(self.receive(self.server, 2), b"on")

    def test_endBehindMuch(self) -> None:
        """The end comes behind all that a slow reader has still to read."""
        sent = self.fill(self.client)
        self.client.close()
        self.assertEqual(self.receive(self.server, len(sent)), sent)
        self.assertTrue(self.ended(self.server))
        self.server.close()
        self.turn(lambda: bool(self.ends))
        self.assertEqual(self.ends, [""])

    def test_writerResets(self) -> None:
        """A slow reader that resets its connection resets the other, though nobody reads from either."""
        self.fill(self.client)
        self.fill(self.server)
        reset(self.server)
        self.turn(lambda: bool(self.ends), 5)
        self.splice.tick(1.0)
        self.assertEqual(self.ends, ["reset"])

    def test_brokenUnread(self) -> None:
        """A connection that breaks while it is half closed is found by the next tick."""
        self.client.shutdown(socket.SHUT_WR)
        self.assertTrue(self.ended(self.server))
        reset(self.client)
        self.splice.tick(1.0)
        self.assertEqual(self.ends, ["reset"])
        self.assertTrue(self.takesNothing(self.server))

    def test_noIdleTimeout(self) -> None:
        """Two that are open may be silent for a year, unless told otherwise."""
        self.splice.tick(3e7)
        self.assertEqual(self.ends, [])

    def test_idle(self) -> None:
        """If there is a limit, it counts from the last byte on."""
        self.again(idleSeconds=60)
        self.client.sendall(b"x")
        self.assertEqual(self.receive(self.server, 1), b"x")
        self.splice.tick(59)
        self.splice.tick(118)
        self.assertEqual(self.ends, [])
        self.splice.tick(119)
        self.assertEqual(self.ends, ["idle"])
        self.assertTrue(self.wasReset(self.client))

    def test_halfClosed(self) -> None:
        """Silence is limited once one side has said everything; an answer that takes long is not silent."""
        self.client.shutdown(socket.SHUT_WR)
        self.assertTrue(self.ended(self.server))
        self.splice.tick(0)
        self.splice.tick(HALF_CLOSED_SECONDS - 1)
        self.server.sendall(b"x")
        self.assertEqual(self.receive(self.client, 1), b"x")
        self.splice.tick(HALF_CLOSED_SECONDS)
        self.splice.tick(2 * HALF_CLOSED_SECONDS - 1)
        self.assertEqual(self.ends, [])
        self.splice.tick(2 * HALF_CLOSED_SECONDS)
        self.assertEqual(self.ends, ["idle"])

    def test_close(self) -> None:
        """Closing resets both, tells nobody, and may be done again."""
        self.splice.close()
        self.splice.close()
        self.assertTrue(self.wasReset(self.client))
        self.assertTrue(self.wasReset(self.server))
        self.assertEqual(self.ends, [])

    def test_lateCalls(self) -> None:
        """A reactor that calls once more after the end does no harm."""
        sides = (self.splice._one, self.splice._other)
        self.splice.close()
        for side in sides:
            side.doRead()
            side.doWrite()
            side.connectionLost(Failure(ConnectionError()))
        self.splice.tick(1e9)
        self.assertEqual(self.ends, [])

    def test_fair(self) -> None:
        """One turn moves a bounded number of bytes, whatever is there."""
        with mock.patch("udptunnel.net.splice.SHARE_BYTES", 1), mock.patch("udptunnel.net.splice.LITTLE_BYTES", 1):
            self.pipes.close()
            self.pipes.buffer = self.pipes.buffer[:1000]
            self.client.sendall(bytes(5000))
            self.reactor.turn(1)
            self.assertEqual(self.pipes.moved, 1000)

    def test_descriptors(self) -> None:
        """A thousand connections, however they end, leave no descriptor and nothing in the reactor."""
        self.splice.close()
        before = openDescriptors() - {self.client.fileno(), self.server.fileno()}
        self.client.close()
        self.server.close()
        for _ in range(250):
            for number in range(4):
                splice = self.join()
                self.client.sendall(b"x")
                self.reactor.turn()
                (self.client, self.server)[number % 2].close() if number < 3 else reset(self.server)
                self.reactor.turn()
                self.reactor.turn()
                self.client.close()
                self.server.close()
                self.reactor.turn()
                self.reactor.turn()
                splice.close()
        self.pipes.close()
        self.assertEqual(self.reactor.removeAll(), [])
        self.assertEqual(openDescriptors(), before)


class CopyTests(SpliceTests):
    """The same where bytes are copied."""

    spliced = False


class MoveTests(SpliceTestCase):
    """What is special about moving."""

    def test_silentNeedsNoPipe(self) -> None:
        """A pipe is needed while bytes go through, and several connections share one."""
        before = openDescriptors()
        self.client.sendall(b"x")
        self.receive(self.server, 1)
        self.server.sendall(b"x")
        self.receive(self.client, 1)
        self.assertEqual(len(openDescriptors() - before), 2)

    def test_waitingKeepsPipe(self) -> None:
        """A pipe in which bytes wait is nobody else's."""
        sent = self.fill(self.client)
        first, firstServer = self.client, self.server
        splice = self.join()
        self.client.sendall(b"another")
        self.assertEqual(self.receive(self.server, 7), b"another")
        splice.close()
        self.client.close()
        self.server.close()
        self.client, self.server = first, firstServer
        self.assertEqual(self.receive(self.server, len(sent)), sent)

    def test_fairPipe(self) -> None:
        """One turn moves a bounded number of bytes."""
        self.pipes._mostLarge = 0
        self.pipes.giveBack(Pipe(*os.pipe2(os.O_NONBLOCK), 1000))
        with mock.patch("udptunnel.net.splice.SHARE_BYTES", 1), mock.patch("udptunnel.net.splice.LITTLE_BYTES", 1):
            self.client.sendall(bytes(5000))
            self.reactor.turn(1)
        self.assertEqual(self.pipes.moved, 1000)

    def test_refusedAtOnce(self) -> None:
        """A kernel that can not splice a socket has it copied, without a byte lost."""
        with mock.patch("os.splice", side_effect=OSError(errno.EINVAL, "no")):
            self.client.sendall(b"question")
            self.assertEqual(self.receive(self.server, 8), b"question")
        self.assertFalse(self.pipes.spliced)

    def test_refusedHalfway(self) -> None:
        """So has one that splices from a socket but not to one."""
        real = os.splice

        def refuse(source: int, target: int, count: int, flags: int) -> int:
            if target in targets:
                raise OSError(errno.EINVAL, "no")
            return real(source, target, count, flags=flags)

        targets = [side.fileno() for side in (self.splice._one, self.splice._other)]
        with mock.patch("os.splice", refuse):
            self.client.sendall(b"question")
            self.assertEqual(self.receive(self.server, 8), b"question")

    def test_noDescriptor(self) -> None:
        """Where there is no descriptor for a pipe, bytes are copied, but later there may be one."""
        with mock.patch("os.pipe2", side_effect=OSError(errno.EMFILE, "none left")):
            self.client.sendall(b"question")
            self.assertEqual(self.receive(self.server, 8), b"question")
        self.assertTrue(self.pipes.spliced)


class PipesTests(SynchronousTestCase):
    """L{Pipes}."""

    def setUp(self) -> None:
        self.before = openDescriptors()
        self.pipes = Pipes()
        self.lent: list[Pipe] = []
        self.addCleanup(self.closeAll)

    def closeAll(self) -> None:
        """All pipes are closed at the end, whether they were lent or not."""
        self.pipes.close()
        for pipe in self.lent:
            self.pipes.giveBack(pipe)
        self.assertEqual(openDescriptors(), self.before)

    def borrow(self, count: int = 1) -> None:
        """Borrow some."""
        for _ in range(count):
            pipe = self.pipes.borrow()
            assert pipe is not None
            self.lent.append(pipe)

    def test_large(self) -> None:
        """The first ones are as large as any user may have them."""
        self.borrow()
        self.assertEqual(self.lent[0].size, LARGE_BYTES)
        self.assertEqual(fcntl.fcntl(self.lent[0].reader, fcntl.F_GETPIPE_SZ), LARGE_BYTES)

    def test_manyAreSmall(self) -> None:
        """What all together may hold is bounded: most are small."""
        self.borrow(200)
        self.assertEqual(len(set(self.lent)), 200)
        self.assertLessEqual(sum(pipe.size for pipe in self.lent), (32 << 20) + 168 * SMALL_BYTES)

    def test_fewAreKept(self) -> None:
        """After a rush most are closed."""
        self.borrow(200)
        while self.lent:
            self.pipes.giveBack(self.lent.pop())
        self.assertLessEqual(len(openDescriptors() - self.before), 4 * MOST_IDLE)
        self.borrow(200)
        self.assertEqual(sum(pipe.size == LARGE_BYTES for pipe in self.lent), 32)

    def test_onlySmall(self) -> None:
        """A user who may not have large ones gets small ones, and is not asked again."""
        with mock.patch("fcntl.fcntl", side_effect=PermissionError(errno.EPERM, "no")) as asked:
            self.borrow(3)
        self.assertEqual([pipe.size for pipe in self.lent], [SMALL_BYTES] * 3)
        self.assertEqual(asked.call_count, 1)


class EpollTests(TestCase):
    """The reactor that most use reports errors in its own way."""

    def setUp(self) -> None:
        self.epoll = EPollReactor()
        self.pipes = Pipes()
        self.ends: list[str] = []
        self.client, self.one = tcpPair()
        self.other, self.server = tcpPair()
        self.splice = Splice(self.epoll, self.pipes, self.one, self.other, self.ends.append)
        self.splice.start()
        self.addCleanup(self.closeAll)

    def closeAll(self) -> None:
        """Close the reactor's own descriptors, too."""
        self.splice.close()
        self.pipes.close()
        self.client.close()
        self.server.close()
        self.assertEqual(self.epoll.removeAll(), [])
        for each in list(self.epoll._internalReaders):
            self.epoll._internalReaders.remove(each)
            self.epoll.removeReader(each)
            each.connectionLost(Failure(ConnectionError()))
        self.epoll._poller.close()

    def turn(self, count: int = 10) -> None:
        """Have it do something."""
        for _ in range(count):
            self.epoll.doIteration(0.01)

    def test_life(self) -> None:
        """Bytes, then one end, then the other."""
        self.client.sendall(b"question")
        self.client.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual(self.server.recv(100), b"question")
        self.assertEqual(self.server.recv(100), b"")
        self.server.close()
        self.turn()
        self.assertEqual((self.client.recv(100), self.ends), (b"", [""]))

    def test_resetWhileWriting(self) -> None:
        """A side that is only written to is polled for errors, too."""
        block = bytes(1 << 20)
        for _ in range(20):
            try:
                self.client.send(block)
            except BlockingIOError:
                pass
            self.turn(2)
        self.splice._other._reactor.removeReader(self.splice._other)
        reset(self.server)
        self.turn()
        self.assertEqual(self.ends, ["reset"])


class AbortTests(SynchronousTestCase):
    """L{abort}."""

    def test_abort(self) -> None:
        """The peer sees a reset, and the socket is closed; a closed one may be closed again."""
        one, other = tcpPair()
        self.addCleanup(one.close)
        abort(other)
        abort(other)
        with self.assertRaises(ConnectionResetError):
            one.recv(1)
