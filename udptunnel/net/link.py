"""
Links on descriptors: two carriers behind one interface.

On a plain TCP socket, a list of frames goes out with one C{sendmsg}, and
arriving bytes are read into one large buffer that all links share. Going
through Twisted's transport instead joins, slices and copies everything once
or twice more, which costs three quarters of the throughput; so here, and only
here, we go around it. The transport keeps what it is good at: closing,
readiness and errors. Everything else, TLS above all, is written to and read
from by the ordinary interface.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet import main
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IDelayedCall, IPullProducer, IPushProducer, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.link import Carrier, Link
from udptunnel.core.window import MOST_BACKLOG
from udptunnel.errors import FrameError, LoginError
from udptunnel.net.platforms import GATHERS, socketOption
from udptunnel.net.turns import LARGE_READ, giveWay
from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer, decode

MOST_READ_BYTES = 1 << 17
"""What one read of a link takes at most: about as much as a socket of the usual size holds."""

SHARED_BYTES = 2 * MOST_READ_BYTES
"""Room for a read behind an unfinished frame."""

LEAST_READ_BYTES = 65536

FRAMES_PER_READ = 2048
"""Frames that one read should bring at most, so that tiny ones do not keep everybody else waiting."""

_TCP_NOTSENT_LOWAT = socketOption("TCP_NOTSENT_LOWAT", 25)
_TCP_USER_TIMEOUT = socketOption("TCP_USER_TIMEOUT", 18)

USER_TIMEOUT_MILLISECONDS = 20_000
"""Unacknowledged bytes end the connection after this time, a little more than three heartbeats (RFC 5482)."""

_TCP_RTO_MAX_MS = socketOption("TCP_RTO_MAX_MS", 44)
_TCP_THIN_LINEAR_TIMEOUTS = socketOption("TCP_THIN_LINEAR_TIMEOUTS", 16)

RETRANSMIT_MILLISECONDS = 1000
"""
TCP tries again after this time at the latest (C{TCP_RTO_MAX_MS} of
C{linux/tcp.h}, since Linux 6.15), instead of two minutes. A stream would have
a minute at least (RFC 6298, rule 2.5); but where a third of all packets is
lost, the doubled pauses soon exceed the time after which a link is given up.
"""

Feed = Callable[[memoryview], int]
"""Takes the bytes that have arrived, and returns how many of them it is done with."""


def makeCarrier(transport: ITransport, feed: Feed, resumed: Callable[[], None]) -> StreamCarrier:
    """
    The best carrier for a connected transport.

    @param feed: told of arriving bytes.
    @param resumed: called when more may be written after L{Carrier.write} has returned False.
    """
    if GATHERS and isinstance(transport, Connection) and not transport.TLS:
        return SocketCarrier(transport, feed, resumed)
    return TransportCarrier(transport, feed, resumed)


class StreamCarrier:
    """What both carriers do alike."""

    _waking: IDelayedCall | None = None

    def __init__(self, transport: ITransport, feed: Feed, resumed: Callable[[], None]) -> None:
        self._transport: Any = transport
        self._feed = feed
        self._resumed = resumed
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come through the transport."""
        if self._rest:
            data = self._rest + data
        used = self._feed(memoryview(data))
        self._rest = data[used:]

    def decoded(self, frames: int, length: int) -> None:
        """So many frames were found in so many bytes."""

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Send some buffers; L{Carrier.write<udptunnel.core.link.Carrier.write>}."""
        raise NotImplementedError

    def keep(self, most: int) -> None:
        """Have the kernel keep no more than so many bytes that it can not send yet; where there is TCP."""
        opened = getattr(_streamBelow(self._transport), "socket", None)
        if opened is not None:
            _set(opened, _TCP_NOTSENT_LOWAT, most)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a time; at once if the transport knows no clock."""
        clock = getattr(_streamBelow(self._transport), "reactor", None)
        if clock is None:
            call()
        else:
            self._cancel()
            self._waking = clock.callLater(seconds, call)

    def _cancel(self) -> None:
        if self._waking is not None and self._waking.active():
            self._waking.cancel()

    def close(self) -> None:
        """Close the connection when everything is sent."""
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abortConnection()

    def stopProducing(self) -> None:
        """The transport is dying; whoever feeds the link lives on."""

    def forget(self) -> None:
        """The connection is gone: know nobody any more."""
        self._cancel()
        vars(self).clear()


@implementer(IPullProducer)
class SocketCarrier(StreamCarrier):
    """
    Straight to and from the socket of a TCP transport.

    What the kernel does not take of one write goes to the transport's buffer,
    which is otherwise empty; as a pull producer we are told when it is empty
    again.
    """

    _shared = memoryview(bytearray(SHARED_BYTES))
    """One buffer for all links: each read is worked off before the next."""

    def __init__(self, transport: Connection, feed: Feed, resumed: Callable[[], None]) -> None:
        super().__init__(cast(ITransport, transport), feed, resumed)
        self._stream = transport
        self._waiting = False
        self._reach = LEAST_READ_BYTES
        _tune(transport.socket)
        transport.doRead = self.doRead  # type: ignore[assignment]
        transport.registerProducer(self, False)

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Send some buffers with one system call."""
        if not self._stream.connected:
            return False
        try:
            sent = 0 if self._waiting else self._stream.socket.sendmsg(buffers)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The transport will find out by itself, in the reactor's own time.
            sent = 0
        if sent == sum(map(len, buffers)):
            return True
        self._waiting = True
        self._stream.write(_after(sent, buffers))
        return False

    def forget(self) -> None:
        """The connection is gone: know nobody any more, nor be known."""
        stream = vars(self).pop("_stream", None)
        if stream is not None:
            vars(stream).pop("doRead", None)
        super().forget()

    def decoded(self, frames: int, length: int) -> None:
        """Read less at a time when frames are tiny, so that a turn stays short."""
        if frames:
            self._reach = max(LEAST_READ_BYTES, min(MOST_READ_BYTES, FRAMES_PER_READ * length // frames))

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if self._waiting:
            self._waiting = False
            self._resumed()

    def doRead(self) -> Exception | None:
        """Read once, behind what is left of an unfinished frame."""
        shared, kept = self._shared, len(self._rest)
        shared[:kept] = self._rest
        try:
            length = self._stream.socket.recv_into(shared[kept : kept + self._reach])
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return cast(Exception, main.CONNECTION_LOST)
        if not length:
            return cast(Exception, main.CONNECTION_DONE)
        used = self._feed(shared[: kept + length])
        self._rest = bytes(shared[used : kept + length])
        return None


@implementer(IPushProducer)
class TransportCarrier(StreamCarrier):
    """Through the ordinary transport interface."""

    def __init__(self, transport: ITransport, feed: Feed, resumed: Callable[[], None]) -> None:
        super().__init__(transport, feed, resumed)
        self._paused = False
        stream = _streamBelow(transport)
        if stream is not None:
            _tune(stream.socket)
        self._transport.registerProducer(self, True)

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Give the transport some buffers as one."""
        self._transport.write(b"".join(buffers))
        return not self._paused

    def pauseProducing(self) -> None:
        """The transport has enough."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._paused = False
        self._resumed()


def _after(sent: int, buffers: Sequence[Buffer]) -> bytes:
    """What follows the first C{sent} bytes of some buffers."""
    for place, buffer in enumerate(buffers):
        if sent < len(buffer):
            return bytes(buffer[sent:]) + b"".join(buffers[place + 1 :])
        sent -= len(buffer)
    return b""


def _streamBelow(transport: Any) -> Connection | None:
    """The TCP connection below TLS and the like, or C{None} if there is something else."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport if isinstance(transport, Connection) else None


def _tune(opened: socket.socket) -> None:
    """
    Set what the system knows of: small segments at once, a short queue in the kernel, an early end.

    And short pauses before TCP tries again: the first six do not grow while
    little is on its way (C{tcp-thin.rst} of the kernel), later ones not much.
    """
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (_TCP_NOTSENT_LOWAT, MOST_BACKLOG),
        (_TCP_USER_TIMEOUT, USER_TIMEOUT_MILLISECONDS),
        (_TCP_RTO_MAX_MS, RETRANSMIT_MILLISECONDS),
        (_TCP_THIN_LINEAR_TIMEOUTS, 1),
    ):
        _set(opened, option, value)


def _set(opened: socket.socket, option: int, value: int) -> None:
    try:
        opened.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        # Not every system knows it, a Unix socket does not, and the connection may be gone.
        pass


class _GoneCarrier:
    """The carrier of a link whose connection is gone."""

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Nothing can be sent."""
        return False

    def keep(self, most: int) -> None:
        """Nothing is kept."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Nobody is there to be called."""

    def close(self) -> None:
        """It is closed."""

    def abort(self) -> None:
        """It is closed."""


_GONE = _GoneCarrier()


class LinkProtocol(Protocol):
    """
    Feeds a L{Link} from a connection.

    @ivar link: the link, once connected.
    """

    _log = Logger()
    link: Link | None = None
    _carrier: StreamCarrier

    def __init__(self, makeLink: Callable[[Carrier, float], Link], clock: Callable[[], float]) -> None:
        """
        @param makeLink: makes the rules of this link, given its carrier and the time.
        """
        self._makeLink = makeLink
        self._clock = clock
        self._failed = False

    def connectionMade(self) -> None:
        """Begin."""
        assert self.transport is not None
        self._carrier = makeCarrier(self.transport, self._feed, self._resumed)
        self.link = self._makeLink(self._carrier, self._clock())
        # It is often a method of ours.
        del self._makeLink

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come by the ordinary way."""
        self._carrier.dataReceived(data)

    def _feed(self, data: memoryview) -> int:
        if self._failed or self.link is None:
            return len(data)
        try:
            if self.link.session is None:
                self.checkConnection()
                self.link.beginningReceived(data)
            frames, used = decode(data)
            self._carrier.decoded(len(frames), used)
            self.link.framesReceived(frames, self._clock())
            if used > LARGE_READ:
                giveWay()
            if self.link.session is None:
                # A stranger may fill no more with what comes behind its HELLO, either.
                self.link.beginningReceived(data[used:])
        except (FrameError, LoginError) as error:
            return self._fail(error, len(data))
        return used

    def checkConnection(self) -> None:
        """
        Something has come on a link that is not up yet.

        @raise LoginError: the connection is not what it should be.
        """

    def _fail(self, error: Exception, length: int) -> int:
        """The other end does not speak our language, or does not want us: close, and say so once."""
        self._failed = True
        self.failed(error)
        if isinstance(error, FrameError):
            self._carrier.abort()
        else:
            self._carrier.close()
        return length

    def failed(self, error: Exception) -> None:
        """The link is of no use."""
        self._log.info("link with {peer} closed: {error}", peer=self.peer, error=error)

    def abort(self) -> None:
        """Close the connection now."""
        stream: Any = self.transport
        if stream is not None:
            stream.abortConnection()

    @property
    def peer(self) -> str:
        """Whom the connection is with, for log lines."""
        assert self.transport is not None
        peer = self.transport.getPeer()
        return str(Address(peer.host, peer.port) if isinstance(peer, IPv4Address | IPv6Address) else peer)

    def _resumed(self) -> None:
        if self.link is not None and not self.link.lost:
            self.link.resumed(self._clock())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        try:
            if self.link is not None:
                self.link.connectionLost(self._clock())
        finally:
            self.ended(reason)
        # All these know each other, and with TLS they are large: they are not to wait for the collector.
        if self.link is not None:
            self.link.carrier = _GONE
            self._carrier.forget()
        self.transport = None

    def ended(self, reason: Failure) -> None:
        """The connection is gone; for the last time its transport can be asked for something."""
