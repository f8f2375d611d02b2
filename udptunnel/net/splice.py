"""
Two TCP connections joined by the kernel: bytes go from one to the other without being seen here.

C{splice()} moves bytes between a socket and a pipe by moving references to
pages. As connections that are silent are the rule, pipes are lent: one is
needed while a wake-up lasts, and longer only where a receiver does not take
at once what has arrived for it. A connection that is held costs two
descriptors, and no timer.

A direction is read only while nothing of it waits. So at most one pipe full
waits in each, and a slow receiver slows its sender down. Where there is no
C{splice()}, or no descriptor for a pipe, bytes are copied through one buffer,
by the same rules.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.net.platforms import fcntl
from udptunnel.wire.frame import Buffer

LARGE_BYTES = 1 << 20
"""Size of the first pipes; also the most that any user may ask for where C{/proc/sys/fs/pipe-max-size} is unchanged."""

MOST_LARGE = 32
"""
How many pipes of that size there may be at once. Others have the kernel's usual size.

What one user without privileges has in pipes is limited to 64 MiB
(C{/proc/sys/fs/pipe-user-pages-soft}); beyond that the kernel makes pipes of two pages.
"""

SMALL_BYTES = 64 << 10
"""Size of the other ones, which is the kernel's default (pipe(7))."""

MOST_IDLE = 16
"""How many pipes of each kind are kept while nobody needs them."""

COPY_BYTES = 256 << 10
"""Size of the buffer through which bytes are copied where they can not be spliced."""

SHARE_BYTES = 1 << 20
"""How much one direction may move before it is somebody else's turn."""

LITTLE_BYTES = 16 << 10
"""Who got less than this has probably got all there was: asking again costs more than being woken again."""

HALF_CLOSED_SECONDS = 3600.0
"""
How long a connection may be silent once one side has said everything.

That side waits for an answer, and something may take long to compute. But
many that are half closed are forgotten by the other side; the trackers of
firewalls give them two minutes.
"""

_MOVE = 1 | 2
"""SPLICE_F_MOVE and SPLICE_F_NONBLOCK (linux/splice.h), which Python does not name everywhere."""

_ABORT = struct.pack("ii", 1, 0)
"""Lingering for no time (struct linger): closing sends a RST."""


class Pipe(NamedTuple):
    """One pipe."""

    reader: int
    writer: int
    size: int
    """How much to move into it at once."""


class Pipes:
    """
    The pipes that all connections share, and the buffer where there are none.

    @ivar moved: bytes that went through.
    """

    __slots__ = ("_large", "_largeCount", "_mostLarge", "_small", "buffer", "moved", "spliced")

    def __init__(self, spliced: bool = hasattr(os, "splice") and fcntl is not None) -> None:
        """
        @param spliced: whether to try C{splice()} at all.
        """
        self.spliced = spliced
        self.moved = 0
        self.buffer = memoryview(bytearray(COPY_BYTES))
        self._large: list[Pipe] = []
        self._small: list[Pipe] = []
        self._largeCount = 0
        self._mostLarge = MOST_LARGE

    def borrow(self) -> Pipe | None:
        """An empty pipe; C{None} if bytes must be copied: the kernel can not splice, or no descriptor is left."""
        if self._large:
            return self._large.pop()
        if not self.spliced:
            return None
        try:
            return self._openLarge() if self._largeCount < self._mostLarge else self._openSmall()
        except OSError:
            return None

    def _openLarge(self) -> Pipe:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, LARGE_BYTES)
        except OSError:
            # Not for this user, who has many pipes already or a limit that was made smaller.
            self._mostLarge = 0
            return Pipe(reader, writer, SMALL_BYTES)
        self._largeCount += 1
        return Pipe(reader, writer, LARGE_BYTES)

    def _openSmall(self) -> Pipe:
        return self._small.pop() if self._small else Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), SMALL_BYTES)

    def giveBack(self, pipe: Pipe) -> None:
        """The pipe is empty, and not needed any more."""
        kept = self._large if pipe.size == LARGE_BYTES else self._small
        if self.spliced and len(kept) < MOST_IDLE:
            kept.append(pipe)
        else:
            self.drop(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Close a pipe, and lose what is in it."""
        self._largeCount -= pipe.size == LARGE_BYTES
        os.close(pipe.reader)
        os.close(pipe.writer)

    def close(self) -> None:
        """
        Lend no more pipes, so that bytes are copied.

        Those that are lent are closed when they come back.
        """
        self.spliced = False
        while self._large:
            self.drop(self._large.pop())
        while self._small:
            self.drop(self._small.pop())


@implementer(IReadWriteDescriptor)
class _Side:
    """
    One of two joined connections, and the direction from it to the other.

    What was read and is not written yet waits, either in a pipe or in C{_rest}.
    """

    __slots__ = ("_ended", "_held", "_pipe", "_pipes", "_reactor", "_rest", "_socket", "_splice", "peer", "through")

    peer: _Side

    def __init__(self, splice: Splice, opened: socket.socket, rest: bytes, reactor: Any, pipes: Pipes) -> None:
        self._splice = splice
        self._socket = opened
        self._rest = rest
        self._reactor = reactor
        self._pipes = pipes
        self._pipe: Pipe | None = None
        self._held = 0
        self._ended = False
        self.through = False
        """Whether this side has said everything, and the other was told."""

    def start(self) -> None:
        """Pass on what was read already, then what comes."""
        if self._rest:
            self._reactor.addWriter(self.peer)
        else:
            self._reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "TCP"

    # -- from here to there

    def doRead(self) -> None:
        """Pass on what has arrived here, but not more than its share."""
        if self._ended or self._waits:
            return
        self._splice.active = True
        pipe = self._pipes.borrow()
        try:
            if pipe is None:
                self._copy()
            else:
                self._move(pipe)
        except OSError:
            self._splice.reset()
            return
        if self._waits:
            self._reactor.removeReader(self)
            self._reactor.addWriter(self.peer)
        elif self._ended:
            self._finish()

    @property
    def _waits(self) -> bool:
        return bool(self._held or self._rest)

    def _move(self, pipe: Pipe) -> None:
        """
        Have the kernel move bytes.

        @raise OSError: one of the two connections is broken. It is not worth
            knowing which: none can go on without the other.
        """
        reader, writer, size = pipe
        pipes, here, there = self._pipes, self._socket.fileno(), self.peer._socket.fileno()
        held = moved = 0
        try:
            while not held and moved < SHARE_BYTES:
                count = held = os.splice(here, writer, size, flags=_MOVE)
                if not count:
                    self._ended = True
                    break
                moved += count
                held -= os.splice(reader, there, count, flags=_MOVE)
                if count < LITTLE_BYTES:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._moveFailed(error, pipe, held)
            return
        pipes.moved += moved
        if held:
            self._pipe, self._held = pipe, held
        else:
            pipes.giveBack(pipe)

    def _moveFailed(self, error: OSError, pipe: Pipe, held: int) -> None:
        """EINVAL is not about the connection: the kernel can not splice it."""
        if error.errno == errno.EINVAL:
            self._rest = os.read(pipe.reader, held) if held else b""
            self._pipes.close()
        self._pipes.drop(pipe)
        if error.errno != errno.EINVAL:
            raise error

    def _copy(self) -> None:
        """
        Copy bytes, where they can not be moved.

        @raise OSError: as above.
        """
        buffer, copied = self._pipes.buffer, 0
        while not self._rest and copied < SHARE_BYTES:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            if not count:
                self._ended = True
                break
            copied += count
            self._rest = bytes(buffer[self._write(buffer[:count]) : count])
            if count < LITTLE_BYTES:
                break
        self._pipes.moved += copied

    def _write(self, data: Buffer) -> int:
        try:
            return self.peer._socket.send(data)
        except BlockingIOError:
            return 0

    # -- when the other side did not take all at once

    def doWrite(self) -> None:
        """This side takes bytes again."""
        self.peer.flush()

    def flush(self) -> None:
        """Pass on what waits. As long as something does, nothing is read."""
        if not self._waits:
            return
        self._splice.active = True
        try:
            if self._pipe is None:
                self._rest = self._rest[self._write(self._rest) :]
            else:
                self._empty(self._pipe)
        except OSError:
            self._splice.reset()
            return
        if not self._waits:
            self._reactor.removeWriter(self.peer)
            self._reactor.addReader(self)

    def _empty(self, pipe: Pipe) -> None:
        try:
            self._held -= os.splice(pipe.reader, self.peer._socket.fileno(), self._held, flags=_MOVE)
        except BlockingIOError:
            return
        if not self._held:
            self._pipe = None
            self._pipes.giveBack(pipe)

    # -- the end

    def _finish(self) -> None:
        """This side has said everything, and all of it is on its way: tell the other."""
        self._reactor.removeReader(self)
        try:
            self.peer._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._splice.reset()
            return
        self.through = True
        self._splice.halfEnded()

    @property
    def broken(self) -> bool:
        """Whether the connection broke while nobody read from it."""
        return (self._ended or self._waits) and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for the descriptor: poll() reports a broken connection in this way."""
        self._splice.reset()

    def close(self, abort: bool) -> None:
        """
        Close the connection.

        @param abort: with a RST.
        """
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        if abort:
            _abortOnClose(self._socket)
        self._socket.close()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._pipes.drop(pipe)
        self._held, self._rest, self._ended = 0, b"", True


def _abortOnClose(opened: socket.socket) -> None:
    with suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def abort(opened: socket.socket) -> None:
    """Close a TCP socket with a RST, so that its peer does not take the end for a regular one."""
    _abortOnClose(opened)
    opened.close()


class Splice:
    """
    Two connections that are one from now on.

    @ivar active: whether bytes went through since the last L{tick}.
    """

    __slots__ = ("_ended", "_idleSeconds", "_one", "_other", "_over", "_since", "active")

    def __init__(
        self,
        reactor: Any,
        pipes: Pipes,
        one: socket.socket,
        other: socket.socket,
        ended: Callable[[str], None],
        rests: tuple[bytes, bytes] = (b"", b""),
        idleSeconds: float = 0.0,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param one: a connection; it does not block, and is ours from now on.
        @param other: likewise.
        @param ended: is told why it ended, once both are closed: an empty text
            if both sides have said everything. It is not called from within L{start} or L{close}.
        @param rests: what was already read from C{one}, and from C{other}.
        @param idleSeconds: how long both may be silent while both are open; 0: for ever.
        """
        self._ended = ended
        self._idleSeconds = idleSeconds or math.inf
        self._since = reactor.seconds()
        self._over = False
        self.active = False
        self._one = _Side(self, one, rests[0], reactor, pipes)
        self._other = _Side(self, other, rests[1], reactor, pipes)
        self._one.peer, self._other.peer = self._other, self._one

    def start(self) -> None:
        """Begin; to be called once."""
        self._one.start()
        self._other.start()

    def halfEnded(self) -> None:
        """One side has said everything; perhaps it was the last one."""
        if self._one.through and self._other.through:
            self._end("", abort=False)

    def reset(self) -> None:
        """One side is broken: break the other."""
        self._end("reset")

    def tick(self, now: float) -> None:
        """
        Look for what no descriptor tells: too long a silence, and connections
        that broke while they were not read. To be called every few seconds.
        """
        if self._over:
            return
        if self.active:
            self.active, self._since = False, now
        if self._one.broken or self._other.broken:
            self.reset()
        elif self._one.through or self._other.through:
            self._limit(now, min(self._idleSeconds, HALF_CLOSED_SECONDS))
        else:
            self._limit(now, self._idleSeconds)

    def _limit(self, now: float, seconds: float) -> None:
        if now - self._since >= seconds:
            self._end("idle")

    def close(self) -> None:
        """Break both connections, and tell nobody. They may be closed already."""
        self._over = True
        self._closeBoth(abort=True)

    def _end(self, why: str, abort: bool = True) -> None:
        if self._over:
            return
        self._over = True
        self._closeBoth(abort)
        self._ended(why)

    def _closeBoth(self, abort: bool) -> None:
        self._one.close(abort)
        self._other.close(abort)
