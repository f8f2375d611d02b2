"""
Packets over named pipes, where there are no Unix sockets, or a program at the other end knows none.

A pair of them has one path: what udp-server sends goes down C{PATH.down}, and
answers come up C{PATH.up}. As in a stream, the length of each packet stands in
two bytes before it. Both belong to our own user alone (mode 0600).

A named pipe outlives whoever used it, and what he has left in it would be read
as the beginning of something else. So who listens makes both anew whenever the
other end is gone, and nobody writes before the other end has opened both: who
listens opens C{PATH.up} for reading; who connects opens C{PATH.down} for
reading, C{PATH.up} for writing, and waits; then who listens opens C{PATH.down}
for writing, which is possible only now, and the other one sees that somebody
may write to him. So either may come first, and either may be started again.

A pair serves one connection. Who connects, and finds that somebody may write
already, has come to that of another one, who is gone and whom the other end
still takes for there: it lets go, so that this is noticed, and comes again.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.config import FIFO, STREAM
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.packetpipe import (
    BUFFER_BYTES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MODE,
    QUEUE_BYTES,
    Connector,
    Listener,
    MakePipe,
    PacketPort,
    Pipe,
    StreamPort,
)
from udptunnel.net.platforms import fcntl, require
from udptunnel.net.tun import Receiver

DOWN, UP = ".down", ".up"
"""What the names of the pipes end with: packets from udp-server, and packets to it."""

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_WRITE = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)


# -- one connection


class Ends:
    """
    The end of one pipe that is read, and that of another one that is written, with what a socket can do.

    @ivar come: what was read already.
    """

    come = b""

    def __init__(self, reading: int, writing: int) -> None:
        """
        @param reading: a descriptor that does not block; it is closed by us.
        @param writing: likewise.
        """
        self.reading, self.writing = reading, writing
        _enlarge(writing)

    def fileno(self) -> int:
        """The descriptor that is read; -1 when it is closed."""
        return self.reading

    def recv(self, size: int) -> bytes:
        """
        Read something; nothing is the end.

        @raise OSError: there is nothing yet, or it went wrong.
        """
        come, self.come = self.come, b""
        return come or os.read(self.reading, size)

    def sendmsg(self, parts: Any) -> int:
        """
        Write as much as there is room for, and return how many bytes that was.

        @raise OSError: there is none, or nobody is at the other end.
        """
        return os.writev(self.writing, parts)

    def send(self, data: bytes) -> int:
        """As L{sendmsg}."""
        return os.write(self.writing, data)

    def close(self) -> None:
        """Close both."""
        reading, self.reading, writing, self.writing = self.reading, -1, self.writing, -1
        os.close(reading)
        os.close(writing)


def _enlarge(writing: int) -> None:
    """Have the kernel keep more than its usual 64 KiB: a megabyte is what Linux allows everybody."""
    for size in (QUEUE_BYTES, BUFFER_BYTES):
        with suppress(AttributeError, OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
            return


class FifoPort(StreamPort):
    """A connected pair of named pipes."""

    def __init__(self, reactor: Any, opened: Ends, *arguments: Any) -> None:
        """As for L{StreamPort}."""
        super().__init__(reactor, opened, *arguments)
        self.writer = _Writer(self, opened)


@implementer(IWriteDescriptor)
class _Writer:
    """The pipe that is written, for the reactor: it has another descriptor than the one that is read."""

    def __init__(self, port: FifoPort, ends: Ends) -> None:
        self._port = port
        self._ends = ends

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._ends.writing

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "pipe"

    def doWrite(self) -> None:
        """There is room."""
        self._port.doWrite()

    def connectionLost(self, reason: Failure) -> None:
        """Nobody reads any more."""
        self._port.connectionLost(reason)


# -- pairs of pipes


class _Fifo(Pipe):
    """One end of a pair: it looks for the other one again and again, less and less often."""

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, name: str) -> None:
        """
        The same as L{Pipe}, and

        @param name: the path that both pipes' names begin with.
        """
        super().__init__(reactor, receiver, counters, name, stream=True)
        self.down, self.up = name + DOWN, name + UP
        self._pause = FIRST_PAUSE
        self._trying: IDelayedCall | None = None
        self._said = ""

    def _try(self) -> None:
        """See whether somebody is there."""
        self._trying = None
        try:
            ends = self._connect()
        except OSError as error:
            self._failed(error.strerror or str(error))
            ends = None
        if ends is None:
            self._tryAgain()
            return
        self._said, self._pause = "", FIRST_PAUSE
        self._begin(FifoPort, ends)
        if self._port is not None:
            # What was read already makes no descriptor readable.
            self._port.doRead()

    def _connect(self) -> Ends | None:
        """
        Both ends, or nothing if nobody is there yet.

        @raise OSError: nobody is there, or something stands in the way.
        """
        raise NotImplementedError

    def _failed(self, why: str) -> None:
        if why != self._said:
            self._said = why
            self._log.info("pipe {name}: nobody is at the other end yet: {why}", name=self.name, why=why)

    def _tryAgain(self) -> None:
        self._trying = self._reactor.callLater(self._pause, self._try)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def close(self) -> None:
        """Close it, and try no more."""
        super().close()
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None


class FifoListener(_Fifo):
    """The end that makes the pipes."""

    _reading = -1

    def open(self) -> None:
        """
        Make the pipes, and wait for somebody.

        @raise ListenError: that can not be done, or somebody else has done it.
        """
        require("a pair of named pipes")
        try:
            self._requireFree()
            self._renew()
        except OSError as error:
            raise ListenError(f"pipe {self.name} can not be opened: {error.strerror or error}") from error
        self._tryAgain()

    def _renew(self) -> None:
        """Make both anew, so that nothing is in them. The one that others open last comes last."""
        self._forget()
        for path in (self.down, self.up):
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.mkfifo(path, MODE)
        self._reading = os.open(self.up, _READ)

    def _connect(self) -> Ends | None:
        if self._reading < 0:
            self._renew()
        try:
            writing = os.open(self.down, _WRITE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            # Somebody has taken them away.
            self._forget()
            raise
        reading, self._reading = self._reading, -1
        return Ends(reading, writing)

    def _portLost(self, port: PacketPort) -> None:
        super()._portLost(port)
        # Nobody comes to those that were used.
        self._try()

    def _forget(self) -> None:
        reading, self._reading = self._reading, -1
        if reading >= 0:
            os.close(reading)

    def close(self) -> None:
        """Close them, and remove them if they are ours."""
        isOpen = self._port is not None or self._reading >= 0
        super().close()
        self._forget()
        if isOpen:
            with suppress(OSError):
                self._requireFree()
                for path in (self.down, self.up):
                    os.unlink(path)

    def _requireFree(self) -> None:
        """
        See that nothing is in our way. Pipes of somebody who is gone are not.

        @raise OSError: there is something that is no pipe, or somebody listens.
        """
        for path in (self.down, self.up):
            with suppress(FileNotFoundError):
                if not stat.S_ISFIFO(os.lstat(path).st_mode):
                    raise FileExistsError(errno.EEXIST, "there is a file that is no named pipe")
        if _isRead(self.up):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _isRead(path: str) -> bool:
    """Whether somebody has a pipe open to read from it."""
    try:
        os.close(os.open(path, _WRITE))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    return True


class FifoConnector(_Fifo):
    """The end that comes, and comes again."""

    _half: Ends | None = None

    def open(self) -> None:
        """
        Connect as soon as that is possible.

        @raise ListenError: there are no named pipes here.
        """
        require("a pair of named pipes")
        self._try()

    def _connect(self) -> Ends | None:
        if self._half is not None and not self._isThere(self._half):
            # There are new ones, also if they were made while we opened these.
            self._forget()
        if self._half is None:
            self._half = self._openNew()
            return None
        half = self._half
        with suppress(BlockingIOError):
            half.come = half.recv(BUFFER_BYTES // 2)
            if not half.come:
                # The end, which in a pipe is also the beginning: nobody may write yet.
                return None
        self._half = None
        return half

    def _openNew(self) -> Ends:
        """
        Both, if nobody may write yet. What there is to read otherwise begins somewhere inside of a packet.

        @raise OSError: nobody is there, or somebody may write.
        """
        ends = self._openBoth()
        try:
            isNew = not ends.recv(1)
        except OSError:
            isNew = False
        if not isNew:
            ends.close()
            raise OSError(errno.EBUSY, "who was connected is gone, and the other end has not noticed it yet")
        return ends

    def _openBoth(self) -> Ends:
        reading = os.open(self.down, _READ)
        try:
            if not stat.S_ISFIFO(os.fstat(reading).st_mode):
                raise OSError(errno.EINVAL, "there is a file that is no named pipe")
            _claim(reading)
            return Ends(reading, os.open(self.up, _WRITE))
        except OSError:
            os.close(reading)
            raise

    def _portLost(self, port: PacketPort) -> None:
        super()._portLost(port)
        # The other end needs a moment to see it, and to make new ones.
        self._tryAgain()

    def _isThere(self, ends: Ends) -> bool:
        """Whether it still is the pipe of that name."""
        try:
            return os.path.samestat(os.fstat(ends.reading), os.stat(self.down))
        except OSError:
            return False

    def _forget(self) -> None:
        half, self._half = self._half, None
        if half is not None:
            half.close()

    def close(self) -> None:
        """Close it, and try no more."""
        super().close()
        self._forget()


def _claim(reading: int) -> None:
    """
    Be the only one who reads: of two each would get a part.

    @raise OSError: somebody else is.
    """
    try:
        fcntl.flock(reading, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "somebody else is there already; only one can be") from None


# -- pipes of all kinds


def listener(path: str, kind: str) -> MakePipe:
    """
    The end that makes what stands at a path.

    @param kind: as that of L{PipePlace<udptunnel.config.PipePlace>}.
    """
    path = os.path.abspath(path)
    if kind == FIFO:
        return lambda reactor, receiver, counters: FifoListener(reactor, receiver, counters, path)
    return lambda reactor, receiver, counters: Listener(reactor, receiver, counters, path, kind == STREAM)


def connector(path: str, kind: str) -> MakePipe:
    """The end that connects; see L{listener}."""
    path = os.path.abspath(path)
    if kind == FIFO:
        return lambda reactor, receiver, counters: FifoConnector(reactor, receiver, counters, path)
    return lambda reactor, receiver, counters: Connector(reactor, receiver, counters, path, kind == STREAM)
