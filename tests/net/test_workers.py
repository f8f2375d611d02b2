"""Tests for L{udptunnel.net.workers} and L{udptunnel.net.worker}."""

from __future__ import annotations

import errno
import socket
import subprocess
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs
from tests.net.test_splice import openDescriptors, reset, tcpPair
from udptunnel.net import workers as workers_module
from udptunnel.net.splice import HALF_CLOSED_SECONDS
from udptunnel.net.testing import PortReactor
from udptunnel.net.worker import LOOK_SECONDS, NO_ROOM, Worker
from udptunnel.net.workers import (
    AGAIN_SECONDS,
    LOST,
    MOST_REST,
    MOST_WORKERS,
    NUMBER,
    TERMS,
    Channel,
    RemoteSplice,
    Workers,
    startWorker,
)

ROOM = 4
"""Connections that a worker of these tests can take."""


class WorkerReactor(PortReactor):
    """
    The reactor of both sides.

    @ivar stops: how many workers have stopped theirs.
    """

    stops = 0

    def stop(self) -> None:
        self.stops += 1


class FakeProcess:
    """
    A worker that lives in this process.

    @ivar said: what was done with it.
    """

    def __init__(self, hangs: bool = False) -> None:
        self.said: list[str] = []
        self._hangs = hangs

    def wait(self, timeout: float) -> int:
        self.said.append("wait")
        if self._hangs and "kill" not in self.said:
            raise subprocess.TimeoutExpired("worker", timeout)
        return 0

    def kill(self) -> None:
        self.said.append("kill")


@needs("Linux")
class WorkersTestCase(SynchronousTestCase):
    """Workers that live in this process, and connections that are handed to them."""

    hangs = False

    def setUp(self) -> None:
        self.before = openDescriptors()
        self.reactor = WorkerReactor()
        self.patch(workers_module, "SPARE", 0)
        self.limit = 2 * ROOM
        self.processes: list[FakeProcess] = []
        self.inside: list[Worker] = []
        self.ends: list[str] = []
        self.said: list[str] = []
        self.opened: list[socket.socket] = []
        self.workers = Workers(self.reactor, self.start, lambda: self.limit)
        globalLogPublisher.addObserver(self.keep)
        self.addCleanup(globalLogPublisher.removeObserver, self.keep)
        self.addCleanup(self.closeAll)

    def keep(self, event: Any) -> None:
        """Keep our own log lines."""
        if event["log_namespace"] == workers_module.__name__:
            self.said.append(event["log_format"])

    def closeAll(self) -> None:
        """Nothing may be left behind."""
        self.workers.stop()
        self.drain()
        for each in self.opened:
            each.close()
        self.assertEqual((self.reactor.removeAll(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual(openDescriptors() - self.before, set())

    def start(self, inside: socket.socket) -> FakeProcess:
        """Start a worker."""
        self.inside.append(Worker(self.reactor, inside.dup()))
        self.processes.append(FakeProcess(self.hangs))
        return self.processes[-1]

    def drain(self) -> None:
        """Turn until nothing happens any more."""
        while self.reactor.turn(0.01):
            pass

    def join(self, rests: tuple[bytes, bytes] = (b"", b""), idleSeconds: float = 0.0) -> RemoteSplice | None:
        """Hand two new connections over; our own ends are in C{opened}, and those of a refusal are closed."""
        client, one = tcpPair()
        other, server = tcpPair()
        self.opened += client, server
        splice = self.workers.join(one, other, self.ends.append, rests, idleSeconds)
        self.assertEqual({one.fileno() < 0, other.fileno() < 0}, {splice is not None})
        for each in (one, other):
            each.close()
        self.drain()
        return splice

    def joined(self, **given: Any) -> tuple[RemoteSplice, socket.socket, socket.socket]:
        """A connection that a worker has: with the client's and the server's ends."""
        splice = self.join(**given)
        assert splice is not None
        splice.start()
        return splice, self.opened[-2], self.opened[-1]

    def assertReset(self, *opened: socket.socket) -> None:
        """These connections were broken."""
        for each in opened:
            self.assertRaises(ConnectionResetError, each.recv, 1)


class JoinTests(WorkersTestCase):
    """What a worker does with connections."""

    def test_bytes(self) -> None:
        """Bytes go both ways, those first that were read already."""
        _, client, server = self.joined(rests=(b"to the server, ", b"to the client, "))
        client.sendall(b"and so on")
        server.sendall(b"and back")
        self.drain()
        self.assertEqual(server.recv(100), b"to the server, and so on")
        self.assertEqual(client.recv(100), b"to the client, and back")
        self.assertEqual(self.ends, [])

    def test_ended(self) -> None:
        """When both have said everything, both are told, and so are we."""
        _, client, server = self.joined()
        client.shutdown(socket.SHUT_WR)
        self.drain()
        self.assertEqual((server.recv(1), self.ends), (b"", []))
        server.close()
        self.drain()
        self.assertEqual((client.recv(1), self.ends), (b"", [""]))

    def test_reset(self) -> None:
        """When one breaks, so does the other, and we are told."""
        _, client, server = self.joined()
        reset(client)
        self.drain()
        self.assertReset(server)
        self.assertEqual(self.ends, ["reset"])

    def test_closed(self) -> None:
        """What we close is broken on both sides, and nobody is told; others go on."""
        splice, client, server = self.joined()
        _, other, far = self.joined()
        splice.close()
        splice.close()
        self.drain()
        self.assertReset(client, server)
        other.sendall(b"x")
        self.drain()
        self.assertEqual((far.recv(1), self.ends), (b"x", []))

    def test_closedTooLate(self) -> None:
        """It may have ended by itself when we close it."""
        splice, client, server = self.joined()
        client.close()
        server.close()
        self.drain()
        splice.close()
        self.drain()
        self.assertEqual(len(self.ends), 1)

    def test_idle(self) -> None:
        """Silence ends it after the time set; half closed ones have the same limit as elsewhere."""
        self.joined(idleSeconds=60.0)
        _, client, _ = self.joined()
        client.shutdown(socket.SHUT_WR)
        self.drain()
        self.reactor.pump([LOOK_SECONDS] * 13)
        self.drain()
        self.assertEqual(self.ends, ["idle"])
        self.reactor.pump([LOOK_SECONDS] * int(HALF_CLOSED_SECONDS / LOOK_SECONDS))
        self.drain()
        self.assertEqual(self.ends, ["idle", "idle"])

    def test_moved(self) -> None:
        """What went through is known after some seconds, and counted once."""
        _, client, _ = self.joined()
        for _ in range(2):
            client.sendall(b"12345")
            self.drain()
            self.reactor.advance(LOOK_SECONDS)
            self.drain()
        self.assertEqual(self.workers.moved, 10)

    def test_noRoom(self) -> None:
        """A worker that has no descriptor for a connection says so."""
        self.joined()
        channel = self.workers._workers[0]._channel
        splice = self.join()
        assert splice is not None
        self.workers._workers[0].splices[77] = RemoteSplice(self.workers._workers[0], 77, self.ends.append)
        channel.send(NUMBER.pack(77) + TERMS.pack(0.0, 0))
        self.drain()
        self.assertEqual(self.ends, [NO_ROOM])


class ChoiceTests(WorkersTestCase):
    """Whether a connection is handed to a worker, and to which."""

    def test_enough(self) -> None:
        """While there are enough descriptors none is, and no worker is started."""
        self.limit = 1 << 20
        self.assertIsNone(self.join())
        self.assertEqual((len(self.workers), self.processes), (0, []))

    def test_long(self) -> None:
        """What has sent more already than a message should hold stays here."""
        self.assertIsNone(self.join(rests=(b"", bytes(MOST_REST + 1))))
        self.assertIsNotNone(self.join(rests=(b"", bytes(MOST_REST))))

    def test_several(self) -> None:
        """When a worker is full another is started, up to the most; whoever gets free takes more."""
        for _ in range(ROOM * MOST_WORKERS):
            self.joined()
        self.assertEqual(len(self.workers), MOST_WORKERS)
        self.assertIsNone(self.join())
        self.opened[0].close()
        self.opened[1].close()
        self.drain()
        self.assertIsNotNone(self.join())
        self.assertEqual(len(self.processes), MOST_WORKERS)

    def test_notStarted(self) -> None:
        """If none can be started, connections stay here, and after a while it is tried again."""
        tries: list[object] = []

        def fail(inside: socket.socket) -> FakeProcess:
            tries.append(inside)
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        self.workers = Workers(self.reactor, fail, lambda: self.limit)
        for _ in range(3):
            self.assertIsNone(self.join())
        self.assertEqual((len(tries), len(self.said)), (1, 1))
        self.reactor.advance(AGAIN_SECONDS)
        self.assertIsNone(self.join())
        self.assertEqual(len(tries), 2)


class EndTests(WorkersTestCase):
    """The end of workers."""

    def test_stop(self) -> None:
        """A worker that is not needed any more breaks what it has, stops its reactor, and is waited for."""
        _, client, server = self.joined()
        self.workers.stop()
        self.drain()
        self.assertReset(client, server)
        self.assertEqual((self.reactor.stops, self.processes[0].said, self.ends), (1, ["wait"], []))

    def test_lost(self) -> None:
        """With a worker its connections are lost, which is said; for a while connections stay here."""
        for _ in range(2):
            self.joined()
        self.inside[0]._stop()
        self.drain()
        self.assertEqual((self.ends, len(self.workers)), ([LOST, LOST], 0))
        self.assertIn("was lost", self.said[-1])
        self.assertIsNone(self.join())
        self.reactor.advance(AGAIN_SECONDS)
        self.assertIsNotNone(self.join())


class HangingTests(WorkersTestCase):
    """A worker that does not end."""

    hangs = True

    def test_killed(self) -> None:
        """It is killed."""
        self.joined()
        self.workers.stop()
        self.assertEqual(self.processes[0].said, ["wait", "kill", "wait"])


@needs("Linux")
class ChannelTests(SynchronousTestCase):
    """The socket between us and a worker."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.received: list[bytes] = []
        self.ends = 0
        one, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(self.reactor, one, self.keep, self.lost)
        self.addCleanup(self.other.close)
        self.addCleanup(self.channel.close)

    def keep(self, message: bytes, descriptors: list[int]) -> None:
        """Keep a message."""
        self.received.append(message)

    def lost(self) -> None:
        """Count the ends."""
        self.ends += 1
        self.channel.close()

    def test_crowded(self) -> None:
        """What finds no room waits for it, in order; nothing with descriptors is sent meanwhile."""
        messages = [number.to_bytes(4, "big") for number in range(2000)]
        for each in messages:
            self.channel.send(each)
        self.assertEqual(self.reactor.getWriters(), [self.channel])
        self.assertFalse(self.channel.offer(b"now", (self.other.fileno(),)))
        arrived = []
        while len(arrived) < len(messages):
            arrived.append(self.other.recv(100))
            self.reactor.turn()
        self.assertEqual((arrived, self.reactor.getWriters()), (messages, []))

    def test_gone(self) -> None:
        """When the other end is gone we hear of it once, whatever we do first."""
        self.other.close()
        self.channel.send(b"1234")
        self.assertFalse(self.channel.offer(b"now", (0,)))
        self.reactor.turn()
        self.assertEqual((self.ends, self.reactor.getReaders()), (1, []))

    def test_turns(self) -> None:
        """One wake-up takes so many messages, and leaves the rest for the next."""
        self.patch(workers_module, "MESSAGES", 3)
        for number in range(4):
            self.other.send(bytes([number]))
        self.channel.doRead()
        self.assertEqual(len(self.received), 3)
        self.channel.doRead()
        self.assertEqual(len(self.received), 4)


@needs("Linux")
class ProcessTests(SynchronousTestCase):
    """A worker in a process of its own."""

    def test_process(self) -> None:
        """It joins what it is given, and ends with success when it is told to."""
        processes: list[Any] = []

        def start(inside: socket.socket) -> Any:
            processes.append(startWorker(inside))
            return processes[-1]

        # Our own descriptors are taken, and a worker has many.
        workers = Workers(PortReactor(), start, iter((0, 1000)).__next__)
        client, one = tcpPair()
        other, server = tcpPair()
        splice = workers.join(one, other, self.fail, (b"", b""), 0.0)
        self.assertIsNotNone(splice)
        for each in (client, server):
            each.settimeout(20)
        with client, server:
            client.sendall(b"there")
            self.assertEqual(server.recv(10), b"there")
            server.sendall(b"back")
            self.assertEqual(client.recv(10), b"back")
            workers.stop()
            self.assertRaises(ConnectionResetError, client.recv, 1)
        self.assertEqual(processes[0].poll(), 0)
