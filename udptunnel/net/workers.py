"""
Workers: processes that hold the connections for which this one has no descriptors.

A process may have only so many descriptors (C{RLIMIT_NOFILE}), and of a user's
limit some systems let nobody go beyond. A connection that crosses takes two.
When most are taken, both sockets of a connection are handed to a worker, which
joins them (L{udptunnel.net.worker}) and says when that is over. A worker is
started when it is needed; it ends when we close the socket between us, or die.

Each message is one packet of a Unix socket; numbers are in network byte order::

    to a worker     number (4 bytes), seconds of silence that end it (8, a double), length n of the first rest (4),
                    the first rest (n), the second; with two descriptors: join these
    to a worker     number: break these, they are of no more use
    from a worker   number, why they ended in UTF-8
    from a worker   0 (4 bytes), bytes (8): so many were moved since the last such message
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from struct import Struct
from typing import Any, Protocol

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.net.descriptors import descriptorLimit
from udptunnel.net.platforms import LINUX
from udptunnel.net.refusals import NOTHING_THERE

MOST_WORKERS = 4

SPARE = 100
"""Descriptors that a worker has for other things than connections."""

MOST_REST = 32 << 10
"""Bytes that were read already, of both sockets: more than a message should hold."""

MESSAGES = 64
"""So many are read in one wake-up at most."""

AGAIN_SECONDS = 10.0
"""After a worker was lost, or could not be started, this long no other is."""

END_SECONDS = 5.0
"""How long a worker may take to end. It closes its connections, and that is all."""

LOST = "worker lost"

NUMBER, TERMS, MOVED = Struct("!I"), Struct("!dI"), Struct("!IQ")

_LARGEST = NUMBER.size + TERMS.size + MOST_REST
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from udptunnel.net.worker import main; main()"
_log = Logger()

Received = Callable[[bytes, list[int]], None]
"""Is told of a message, and the descriptors that came with it."""


@implementer(IReadWriteDescriptor)
class Channel:
    """One end of the socket between us and a worker."""

    def __init__(self, reactor: Any, opened: socket.socket, received: Received, lost: Callable[[], None]) -> None:
        """
        @param opened: one end of a pair of SEQPACKET sockets.
        @param lost: told that the other end is gone.
        """
        opened.setblocking(False)
        self._reactor = reactor
        self._socket = opened
        self._received = received
        self._lost = lost
        self._unsent: deque[bytes] = deque()
        reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "worker"

    def offer(self, message: bytes, descriptors: Iterable[int]) -> bool:
        """Send a message with descriptors now, or not at all. Whether it was sent."""
        rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors)
        try:
            return not self._unsent and self._socket.sendmsg((message,), (rights,)) > 0
        except OSError:
            return False

    def send(self, message: bytes) -> None:
        """Send a message as soon as there is room. As many wait as there are connections, at most."""
        self._unsent.append(message)
        if len(self._unsent) == 1:
            self.doWrite()

    def doWrite(self) -> None:
        """There is room."""
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._reactor.addWriter(self)
            return
        except OSError:
            # The reader will hear of it.
            self._unsent.clear()
        self._reactor.removeWriter(self)

    def doRead(self) -> None:
        """Messages are there, or the end."""
        for _ in range(MESSAGES):
            if self.fileno() < 0:
                return
            try:
                message, descriptors, _, _ = socket.recv_fds(self._socket, _LARGEST, 2)
            except OSError as error:
                if error.errno not in NOTHING_THERE:
                    self._lost()
                return
            if not message:
                self._lost()
                return
            self._received(message, descriptors)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for the descriptor."""
        if self.fileno() >= 0:
            self._lost()

    def close(self) -> None:
        """Close this end. It may be closed already."""
        if self.fileno() >= 0:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()
        self._unsent.clear()


class Process(Protocol):
    """A worker's process, as much as we need of it."""

    def wait(self, timeout: float) -> int:
        """Wait for its end."""

    def kill(self) -> None:
        """End it."""


def startWorker(inside: socket.socket) -> Process:
    """
    Start a worker.

    @param inside: its end of the socket.
    @raise OSError: there is no process to be had.
    """
    words = json.dumps(sys.path), str(inside.fileno())
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, *words], pass_fds=(inside.fileno(),))


class RemoteSplice:
    """Two connections that a worker has joined: to be used like a L{Splice<udptunnel.net.splice.Splice>}."""

    __slots__ = ("_ended", "_number", "_worker")

    def __init__(self, worker: _Worker, number: int, ended: Callable[[str], None]) -> None:
        self._worker: _Worker | None = worker
        self._number = number
        self._ended = ended

    def start(self) -> None:
        """It has begun."""

    def tick(self, now: float) -> None:
        """The worker looks at it."""

    def close(self) -> None:
        """Break both connections, and tell nobody. They may be closed already."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(self._number)

    def over(self, why: str) -> None:
        """It has ended."""
        if self._worker is not None:
            self._worker = None
            self._ended(why)


class _Worker:
    """
    One worker, seen from here.

    @ivar splices: what it holds.
    """

    def __init__(self, owner: Workers, reactor: Any, start: Callable[[socket.socket], Process]) -> None:
        """
        @raise OSError: it can not be started.
        """
        self.splices: dict[int, RemoteSplice] = {}
        self._owner = owner
        self._last = 0
        outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inside:
            try:
                self._process = start(inside)
            except OSError:
                outside.close()
                raise
        self._channel = Channel(reactor, outside, self._received, self._lost)

    def join(
        self, one: socket.socket, other: socket.socket, ended: Callable[[str], None], terms: bytes
    ) -> RemoteSplice | None:
        """
        Hand over two sockets; C{None} if that can not be done now, and they are still the caller's.

        @param terms: what the message says behind the number.
        """
        number = self._last + 1
        message = NUMBER.pack(number) + terms
        if not self._channel.offer(message, (one.fileno(), other.fileno())):
            return None
        one.close()
        other.close()
        self._last = number
        splice = self.splices[number] = RemoteSplice(self, number, ended)
        return splice

    def close(self, number: int) -> None:
        """Break two connections."""
        if self.splices.pop(number, None) is not None:
            self._channel.send(NUMBER.pack(number))

    def _received(self, message: bytes, descriptors: list[int]) -> None:
        (number,) = NUMBER.unpack_from(message)
        if not number:
            self._owner.moved += MOVED.unpack(message)[1]
            return
        splice = self.splices.pop(number, None)
        if splice is not None:
            splice.over(message[NUMBER.size :].decode())

    def _lost(self) -> None:
        self._owner.lost(self)
        self.end()
        splices, self.splices = self.splices, {}
        for splice in splices.values():
            splice.over(LOST)

    def end(self) -> None:
        """Have it end, and wait for that."""
        self._channel.close()
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=END_SECONDS)


class Workers:
    """
    The workers of one role.

    @ivar moved: bytes that went through connections that they have, or had.
    """

    def __init__(
        self,
        reactor: Any,
        start: Callable[[socket.socket], Process] = startWorker,
        limit: Callable[[], int] = descriptorLimit,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param start: starts a worker, given its end of the socket.
        @param limit: how many descriptors a process may have.
        """
        self.moved = 0
        self._reactor = reactor
        self._start = start
        self._limit = limit
        self._workers: list[_Worker] = []
        self._restsUntil = 0.0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._workers)

    def join(
        self,
        one: socket.socket,
        other: socket.socket,
        ended: Callable[[str], None],
        rests: tuple[bytes, bytes],
        idleSeconds: float,
    ) -> RemoteSplice | None:
        """
        Hand two connections to a worker, if three quarters of our own descriptors are taken.

        The parameters are those of L{Splice<udptunnel.net.splice.Splice>}.

        @return: C{None} if there are enough of them, or no worker takes these; then they are still the caller's.
        """
        # The kernel gives the lowest number that is free.
        if max(one.fileno(), other.fileno()) < self._limit() * 3 // 4 or sum(map(len, rests)) > MOST_REST:
            return None
        worker = self._free()
        terms = TERMS.pack(idleSeconds, len(rests[0])) + b"".join(rests)
        return None if worker is None else worker.join(one, other, ended, terms)

    def _free(self) -> _Worker | None:
        """One that can take more; a new one if need be."""
        most = (self._limit() - SPARE) // 2
        for worker in self._workers:
            if len(worker.splices) < most:
                return worker
        now = self._reactor.seconds()
        if not LINUX or len(self._workers) >= MOST_WORKERS or now < self._restsUntil:
            return None
        try:
            worker = _Worker(self, self._reactor, self._start)
        except OSError as error:
            self._restsUntil = now + AGAIN_SECONDS
            _log.warn("no worker can be started for further connections: {why}", why=error.strerror)
            return None
        _log.info("most descriptors are taken: a worker holds further connections")
        self._workers.append(worker)
        return worker

    def lost(self, worker: _Worker) -> None:
        """A worker has ended by itself, and its connections with it."""
        self._workers.remove(worker)
        self._restsUntil = self._reactor.seconds() + AGAIN_SECONDS
        _log.warn("a worker was lost, and {count} connections with it", count=len(worker.splices))

    def stop(self) -> None:
        """End all of them. Their connections break."""
        workers, self._workers = self._workers, []
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.end()


def endedMessage(number: int, why: str) -> bytes:
    """What a worker says when two connections have ended."""
    return NUMBER.pack(number) + why.encode()
