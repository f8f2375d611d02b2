"""
Pipes: IP packets between two programs of one machine, over a Unix socket.

A message of a SEQPACKET socket (Linux) is one packet of at most 65,535 bytes;
where there are no such sockets, the same goes over a stream, with the length of
each packet in two bytes before it, in network byte order; and where there are
no Unix sockets at all, over named pipes (L{udptunnel.net.fifo}). One end listens, for
its own user alone (mode 0600); the other one connects, again and again until
that works. So either may come first, and either may be started again.

A pipe has the shape of a L{TUN port<udptunnel.net.tun.TunPort>}: what is
written begins with a virtio header that asks for nothing, and so does what is
read. What the other end does not take in time is dropped and counted: the
kernel's buffer is the only queue. The functions stand in the order in which a
packet meets them.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct
from typing import Any, TypeAlias

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor, IReadWriteDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.platforms import require, socketOption
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.tun import PACKETS, READ_SECONDS, Receiver, bare
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import IPV4_BYTES
from udptunnel.wire.vnet import PLAIN, VNET_BYTES

LARGEST_MESSAGE = 65_535
"""Bytes of a packet: what two bytes can say."""

BUFFER_BYTES = 1 << 20
"""Room for what is read at once: 15 of the longest packets."""

QUEUE_BYTES = 4 << 20
"""What the kernel may keep for the other end; it takes less unless we have CAP_NET_ADMIN."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds before we try again to connect, at first and at most."""

MODE = 0o600
"""Who can connect: our own user."""

_SO_SNDBUFFORCE = socketOption("SO_SNDBUFFORCE", 32)
"""From asm-generic/socket.h."""

_LENGTH = Struct("!H")

Lost: TypeAlias = Callable[["PacketPort"], None]
MakePipe: TypeAlias = Callable[[Any, Receiver, Counters], "Pipe"]
"""Makes an end of a pipe, given the reactor, the receiver of its packets, and what counts them."""


# -- one connection


@implementer(IReadDescriptor)
class PacketPort:
    """A connected SEQPACKET socket: each message is a packet."""

    def __init__(self, reactor: Any, opened: Any, receiver: Receiver, counters: Counters, lost: Lost) -> None:
        """
        @param opened: a connected socket, or what can do the same; it does not block, and is closed by us.
        @param lost: told once, when the other end is gone. The port is closed then.
        """
        self._reactor = reactor
        self._socket = opened
        self._receiver = receiver
        self._counters = counters
        self._lost: Lost | None = lost
        self._memory = memoryview(bytearray(BUFFER_BYTES))
        reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return int(self._socket.fileno())

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "pipe"

    # -- what arrives

    def doRead(self) -> None:
        """Pass on what has arrived, but not more than its share."""
        packets: list[memoryview] = []
        isOver = self._read(packets)
        if packets:
            counters = self._counters
            counters.received += len(packets)
            counters.receivedBytes += sum(map(len, packets)) - VNET_BYTES * len(packets)
            self._receiver.packetsReceived(packets)
        if isOver:
            self._lose()

    def _read(self, packets: list[memoryview]) -> bool:
        """Read packets; returns whether that was the end. A message of no bytes is one, too: no packet is so short."""
        memory, seconds, end = self._memory, self._reactor.seconds, 0
        enough = seconds() + READ_SECONDS
        try:
            while len(packets) < PACKETS and end < BUFFER_BYTES - VNET_BYTES - LARGEST_MESSAGE and seconds() <= enough:
                begin, start = end, end + VNET_BYTES
                size = self._socket.recv_into(memory[start : start + LARGEST_MESSAGE])
                if not size:
                    return True
                end = start + size
                memory[begin:start] = PLAIN
                packets.append(memory[begin:end])
        except OSError as error:
            return self._readFailed(error)
        return False

    def _readFailed(self, error: OSError) -> bool:
        return error.errno not in NOTHING_THERE

    # -- what is written

    def write(self, packet: Sequence[Buffer]) -> None:
        """Write one packet that lies in several buffers, of which the first one begins with the virtio header."""
        try:
            self._send(bare(packet))
        except OSError as error:
            self._counters.drop(f"write {nameOf(error)}")
        else:
            self._counters.sent += 1
            self._counters.sentBytes += sum(map(len, packet)) - VNET_BYTES

    def _send(self, packet: Sequence[Buffer]) -> None:
        self._socket.sendmsg(packet)

    # -- the end

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for it."""
        self._lose()

    def _lose(self) -> None:
        lost = self._lost
        self.close()
        if lost is not None:
            lost(self)

    def close(self) -> None:
        """Close it, and tell nobody. It may be closed already."""
        self._lost = None
        if self.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()


@implementer(IReadWriteDescriptor)
class StreamPort(PacketPort):
    """
    A connected stream socket, or something like it: before each packet stands its length.

    @ivar writer: what the reactor is to watch when there is no room.
    """

    writer: IWriteDescriptor

    def __init__(self, *arguments: Any) -> None:
        """As for L{PacketPort}."""
        self._rest = b""
        self._begun = bytearray()
        self.writer = self
        super().__init__(*arguments)

    # -- what arrives

    def _read(self, packets: list[memoryview]) -> bool:
        try:
            data = self._socket.recv(BUFFER_BYTES // 2)
        except OSError as error:
            return self._readFailed(error)
        self._begun += data
        return not data or not self._cut(packets)

    def _cut(self, packets: list[memoryview]) -> bool:
        """Take whole packets out of what has come; returns whether it can be right."""
        begun, at = self._begun, 0
        while len(begun) - at >= _LENGTH.size:
            start = at + _LENGTH.size
            (size,) = _LENGTH.unpack_from(begun, at)
            if size < IPV4_BYTES:
                self._counters.drop("malformed")
                return False
            if len(begun) - start < size:
                break
            at = start + size
            packets.append(memoryview(bytearray(PLAIN) + begun[start:at]))
        del begun[:at]
        return True

    # -- what is written

    def _send(self, packet: Sequence[Buffer]) -> None:
        """
        Write a packet.

        @raise OSError: what was begun before must go first, and can not yet; or the packet is too long.
        """
        size = sum(map(len, packet))
        if size > LARGEST_MESSAGE:
            raise OSError(errno.EMSGSIZE, "two bytes can not say that")
        if self._rest:
            raise BlockingIOError(errno.EAGAIN, "another packet has begun")
        parts = (_LENGTH.pack(size), *packet)
        sent = self._socket.sendmsg(parts)
        if sent < _LENGTH.size + size:
            self._rest = b"".join(parts)[sent:]
            self._reactor.addWriter(self.writer)

    def doWrite(self) -> None:
        """Write what is left of a packet."""
        try:
            self._rest = self._rest[self._socket.send(self._rest) :]
        except OSError as error:
            if error.errno not in NOTHING_THERE:
                self._reactor.removeWriter(self.writer)
                # Whoever reads will see the end.
                return
        if not self._rest:
            self._reactor.removeWriter(self.writer)

    def close(self) -> None:
        """Close it, and tell nobody. It may be closed already."""
        if self.fileno() >= 0:
            self._reactor.removeWriter(self.writer)
        super().close()


def _enlarge(opened: socket.socket) -> None:
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        with suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
            return


# -- pipes


class Pipe:
    """
    One end of a pipe, whoever is at the other one, if anybody is.

    @cvar headed: whether checksums may be left to the other end: nobody there could compute them.
    @cvar segments: likewise, whether bursts may.
    @ivar name: what log lines call it.
    """

    _log = Logger()
    headed = segments = False

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, name: str, stream: bool = False) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param counters: what is read counts as received, what is written as sent.
        @param stream: whether it is a stream instead of messages.
        """
        self.name = name
        self._reactor = reactor
        self._receiver = receiver
        self._counters = counters
        self._stream = stream
        self._port: PacketPort | None = None
        self._connected = 0

    @property
    def kind(self) -> int:
        """The type of its socket."""
        return int(socket.SOCK_STREAM if self._stream else socket.SOCK_SEQPACKET)

    def open(self) -> None:
        """
        Begin.

        @raise ListenError: that can not be done.
        """
        raise NotImplementedError

    def _makeSocket(self) -> socket.socket:
        require("a pipe")
        try:
            return socket.socket(socket.AF_UNIX, self.kind)
        except (AttributeError, OSError) as error:
            raise ListenError(f"pipe {self.name}: there are no such sockets here; try a stream") from error

    def _use(self, opened: socket.socket) -> None:
        """Somebody is at the other end of a socket."""
        opened.setblocking(False)
        _enlarge(opened)
        self._begin(StreamPort if self._stream else PacketPort, opened)

    def _begin(self, kind: type[PacketPort], opened: Any) -> None:
        self._connected += 1
        self._port = kind(self._reactor, opened, self._receiver, self._counters, self._portLost)
        self._log.info("pipe {name}: the other end is there", name=self.name)

    def _portLost(self, port: PacketPort) -> None:
        """The other end is gone."""
        self._port = None
        self._log.info("pipe {name}: the other end is gone", name=self.name)

    def fileno(self) -> int:
        """The descriptor of the connection; -1 if nobody is at the other end."""
        return -1 if self._port is None else self._port.fileno()

    def write(self, *packet: Buffer) -> None:
        """
        Write one packet, which may lie in several buffers. What the other end does not take is dropped and counted.

        @param packet: the first buffer begins with the virtio header, which must ask for nothing.
        """
        if self._port is None:
            self._counters.drop("nobody at the pipe")
        else:
            self._port.write(packet)

    def check(self) -> None:
        """Nothing is to be found out: a Unix socket tells when it is over."""

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {"name": self.name, "connected": self._port is not None, "connections": self._connected}

    def close(self) -> None:
        """Close it. It may be closed already."""
        port, self._port = self._port, None
        if port is not None:
            port.close()


class Listener(Pipe):
    """The end that makes the socket's file, and that the other one comes to."""

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, name: str, stream: bool = False) -> None:
        """
        The same as L{Pipe}, and

        @param name: the path of the socket.
        """
        super().__init__(reactor, receiver, counters, name, stream)
        self._door: _Door | None = None
        self._made = (0, 0)
        self._crowded = False

    def open(self) -> None:
        """
        Listen.

        @raise ListenError: that can not be done, or somebody else does.
        """
        opened = self._makeSocket()
        try:
            self._removeStale()
            opened.bind(self.name)
            # Nobody can connect before we listen, so there is no moment when others could.
            os.chmod(self.name, MODE)
            opened.listen()
        except OSError as error:
            opened.close()
            raise ListenError(f"pipe {self.name} can not be opened: {error.strerror or error}") from error
        self._made = _identityOf(self.name)
        opened.setblocking(False)
        self._door = _Door(self._reactor, opened, self._accepted)

    def _removeStale(self) -> None:
        """
        Remove the file of somebody who is gone.

        @raise OSError: it is no socket, or somebody listens there.
        """
        try:
            if not stat.S_ISSOCK(os.lstat(self.name).st_mode):
                raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, self.kind) as tried:
            tried.setblocking(False)
            try:
                tried.connect(self.name)
            except ConnectionRefusedError:
                os.unlink(self.name)
                return
            except OSError:
                # It is full, or of another kind: in any case somebody's.
                pass
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def _accepted(self, opened: socket.socket) -> None:
        if self._port is None:
            self._crowded = False
            self._use(opened)
            return
        opened.close()
        if not self._crowded:
            self._crowded = True
            self._log.warn("pipe {name}: somebody else is there already; only one can be", name=self.name)

    def close(self) -> None:
        """Close it, and remove the file if it is ours."""
        super().close()
        door, self._door = self._door, None
        if door is not None:
            with suppress(OSError):
                if _identityOf(self.name) == self._made:
                    os.unlink(self.name)
            door.close()


def _identityOf(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


@implementer(IReadDescriptor)
class _Door:
    """A listening Unix socket."""

    def __init__(self, reactor: Any, opened: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor
        self._socket = opened
        self._accepted = accepted
        reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about it begin with."""
        return "pipe listener"

    def doRead(self) -> None:
        """Accept one: more are hardly ever there."""
        # Without a descriptor it is tried again; whoever waits at the door is the only one.
        with suppress(OSError):
            opened, _ = self._socket.accept()
            self._accepted(opened)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for it."""
        self.close()

    def close(self) -> None:
        """Accept nothing any more."""
        if self.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()


class Connector(Pipe):
    """The end that comes, and comes again."""

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, name: str, stream: bool = False) -> None:
        """
        The same as L{Pipe}, and

        @param name: the path of the socket.
        """
        super().__init__(reactor, receiver, counters, name, stream)
        self._pause = FIRST_PAUSE
        self._since = 0.0
        self._trying: IDelayedCall | None = None
        self._said = ""

    def open(self) -> None:
        """
        Connect as soon as that is possible.

        @raise ListenError: there are no such sockets here, or the path can not be that of one.
        """
        self._trying = None
        opened = self._makeSocket()
        opened.setblocking(False)
        try:
            opened.connect(self.name)
        except OSError as error:
            opened.close()
            if error.errno is None:
                # Python itself has refused the path: it is too long.
                raise ListenError(f"pipe {self.name}: {error}") from error
            self._failed(error.strerror or str(error))
        else:
            self._said = ""
            self._since = self._reactor.seconds()
            self._use(opened)

    def _failed(self, why: str) -> None:
        if why != self._said:
            self._said = why
            self._log.info("pipe {name}: nobody is at the other end yet: {why}", name=self.name, why=why)
        self._tryAgain()

    def _tryAgain(self) -> None:
        self._trying = self._reactor.callLater(self._pause, self.open)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _portLost(self, port: PacketPort) -> None:
        if self._reactor.seconds() - self._since >= LONGEST_PAUSE:
            # Otherwise we were sent away, and would be again.
            self._pause = FIRST_PAUSE
        super()._portLost(port)
        self._tryAgain()

    def close(self) -> None:
        """Close it, and try no more."""
        super().close()
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None


class Joint(Pipe):
    """An end of a pipe that has been there from the beginning, in this process or another one, until it is over."""

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, opened: socket.socket) -> None:
        """
        The same as L{Pipe}, and

        @param opened: a connected SEQPACKET socket.
        """
        super().__init__(reactor, receiver, counters, "joint")
        self._opened: socket.socket | None = opened

    def open(self) -> None:
        """
        Begin.

        @raise ListenError: it was closed before.
        """
        if self._opened is None:
            raise ListenError("a joint can be used only once")
        opened, self._opened = self._opened, None
        self._use(opened)

    def close(self) -> None:
        """Close it."""
        super().close()
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def joint() -> tuple[MakePipe, MakePipe]:
    """
    Both ends of a pipe without a file, for two roles in one process.

    @raise ListenError: there are no such sockets here.
    """
    require("a pipe")
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except (AttributeError, OSError) as error:
        raise ListenError("there are no sockets here that a joint could be made of") from error
    near, far = (_end(each) for each in pair)
    return near, far


def _end(opened: socket.socket) -> MakePipe:
    return lambda reactor, receiver, counters: Joint(reactor, receiver, counters, opened)
