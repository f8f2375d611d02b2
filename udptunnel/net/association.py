"""
One UDP ASSOCIATE at a SOCKS5 server (RFC 1928 section 7): what stands for one source.

It is two sockets: the control connection, which says nothing any more but must
stay open, and a UDP socket connected to the server's relay. As that is
connected, the kernel drops what comes from elsewhere, tells us when nobody
listens there, and gives strangers no way to a client behind the TUN. A server
that answers from another of its addresses than the one it was reached at is
not heard then; C{--udp-address} with that address is for those.

A server whose port refuses TCP may carry UDP all the same: C{ss-local -U} has
no port for TCP at all, and takes datagrams without being asked. So they go to
the same address, until the kernel says that nobody is there either.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.bound import relayOf
from udptunnel.errors import SocksError
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.dial import Caller, Dial, Proxy
from udptunnel.net.refusals import NOTHING_THERE
from udptunnel.net.sockaddr import familyOf
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.socks5 import Command, Reply, ReplyCode

QUESTION_PORT = 53
"""What only asks DNS is brief."""

QUESTION_SECONDS = 10.0
"""How long it may be idle: a phone opens one for each question (sing-box has the same)."""

_STRAY_BYTES = 4096
"""What is read at once from a control connection, to be thrown away."""


_FATAL = frozenset((errno.ECONNREFUSED, errno.EINVAL, errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))
"""Errors of the UDP socket that end an association: nobody listens there, or we have got another address meanwhile."""

OpenSocket = Callable[[Address, tuple[Any, ...] | None, int], socket.socket]
"""See L{connectedSocket}."""


class Dialling(Protocol):
    """What is used of a L{Dial}."""

    @property
    def asked(self) -> bool:
        """Whether the server has got the request."""

    def start(self) -> None:
        """Begin."""

    def cancel(self) -> None:
        """Stop."""


MakeDial = Callable[[Any, Proxy, Command, Address, Caller], Dialling]


class Owner(Protocol):
    """Who has associations."""

    def opened(self, association: SocksAssociation) -> None:
        """Datagrams may be sent."""

    def notOpened(self, association: SocksAssociation, why: str, refused: bool) -> None:
        """
        There will be no association.

        @param refused: whether that is the server's will: it has got the request, or does not let us in.
        """

    def answered(self, association: SocksAssociation, bursts: list[Burst]) -> None:
        """Datagrams with headers have come from the relay."""

    def ended(self, association: SocksAssociation) -> None:
        """The server has closed the control connection."""

    def relayFailed(self, association: SocksAssociation, error: OSError) -> None:
        """The UDP socket is no use any more. Called in the midst of reading or sending: close it later."""


class Means:
    """What all associations at one server are made with."""

    def __init__(
        self,
        reactor: Any,
        proxy: Proxy,
        traffic: Traffic,
        udpAddress: Address | None,
        makeDial: MakeDial = Dial,
        openSocket: OpenSocket | None = None,
        udpOption: str = "--udp-address",
    ) -> None:
        """
        @param udpAddress: see C{override} of L{relayOf}.
        @param udpOption: which option that is.
        """
        self.reactor = reactor
        self.proxy = proxy
        self.traffic = traffic
        self.udpAddress = udpAddress
        self.udpOption = udpOption
        self.makeDial = makeDial
        self.openSocket = openSocket or connectedSocket


class SocksAssociation:
    """
    One source's association: it waits for its turn, dials, is open, and is over.

    @ivar source: whose it is.
    @ivar port: the UDP port to the relay, once it is open.
    @ivar relay: where that leads.
    @ivar used: when a burst last went through.
    @ivar idle: how long it may be unused, in seconds.
    @ivar since: when it began to dial, or was opened.
    @ivar heard: whether anything has come back.
    @ivar unasked: whether the server could not be asked, and datagrams go to it all the same: ss-local -U.
    @ivar over: whether it is of no more use, and only has to be closed.
    """

    __slots__ = (
        "_control",
        "_dial",
        "_means",
        "_owner",
        "heard",
        "idle",
        "over",
        "port",
        "relay",
        "since",
        "source",
        "unasked",
        "used",
    )

    def __init__(self, means: Means, owner: Owner, source: Address, now: float) -> None:
        self._means = means
        self._owner = owner
        self._dial: Dialling | None = None
        self._control: _Control | None = None
        self.source = source
        self.port: DatagramPort | None = None
        self.relay = source
        self.used = self.since = now
        self.idle = QUESTION_SECONDS
        self.heard = self.over = self.unasked = False

    def dial(self, now: float) -> None:
        """Ask the server. Where we shall send from is not known yet, which RFC 1928 section 4 has zeros for."""
        means = self._means
        self.since = now
        nowhere = Address("::" if ":" in means.proxy.address.host else "0.0.0.0", 0)
        self._dial = means.makeDial(means.reactor, means.proxy, Command.UDP_ASSOCIATE, nowhere, self)
        self._dial.start()

    # -- Caller

    def reached(self, opened: socket.socket, reply: Reply, rest: bytes) -> None:
        """The server has agreed."""
        means = self._means
        self._dial = None
        self._control = _Control(means.reactor, opened, self._controlLost)
        try:
            self.relay = relayOf(reply.address, means.proxy.address, means.udpAddress, means.udpOption)
        except SocksError as error:
            self._owner.notOpened(self, str(error), True)
        else:
            self._open(opened.getsockname())

    def _open(self, local: tuple[Any, ...] | None) -> None:
        """Open the port to the relay, from the address of the control connection if there is one."""
        try:
            self.port = self._openPort(local)
        except OSError as error:
            self._owner.notOpened(self, f"no UDP socket to its relay {self.relay}: {error.strerror}", False)
        else:
            self._owner.opened(self)

    def _openPort(self, local: tuple[Any, ...] | None) -> DatagramPort:
        means = self._means
        opened = means.openSocket(self.relay, local, means.proxy.mark)
        port = _RelayPort(means.traffic, self)
        port.equip(opened)
        port.adopt(opened)
        return port

    def failed(self, why: str, code: int) -> None:
        """The server has not agreed; or it has no port for TCP at all, which need not keep it from carrying UDP."""
        if code == ReplyCode.CONNECTION_REFUSED and self._dial is not None and not self._dial.asked:
            self._dial = None
            self.unasked = True
            server = self._means.proxy.address
            self.relay = relayOf(server, server, self._means.udpAddress)
            self._open(None)
            return
        refused = code == ReplyCode.NOT_ALLOWED or (self._dial is not None and self._dial.asked)
        self._dial = None
        self._owner.notOpened(self, why, refused)

    # -- bursts

    def touch(self, target: Address, now: float, idle: float) -> None:
        """A burst to C{target} goes through; if that is more than a question, it may be idle for C{idle} seconds."""
        self.used = now
        if target[1] != QUESTION_PORT:
            self.idle = idle

    def send(self, header: bytes, size: int, payload: Buffer) -> None:
        """Send a burst, each datagram behind the same header."""
        if self.port is not None:
            self.port.sendHeaded(self.relay, header, size, payload)

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """The relay has sent something."""
        self._owner.answered(self, bursts)

    def relayFailed(self, error: OSError) -> None:
        """The kernel has reported an error of the UDP socket."""
        if error.errno in _FATAL and not self.over:
            self.over = True
            self._owner.relayFailed(self, error)

    # -- the end

    def _controlLost(self) -> None:
        self._owner.ended(self)

    def close(self) -> None:
        """Close everything. It may be closed already."""
        self.over = True
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self.port is not None:
            self.port.close()
            self.port = None
        if self._control is not None:
            self._control.close()
            self._control = None


class _RelayPort(DatagramPort):
    """The UDP port of one association."""

    __slots__ = ("_association",)

    def __init__(self, traffic: Traffic, association: SocksAssociation) -> None:
        super().__init__(traffic, association.relay, association)
        self._association = association

    def failed(self, error: OSError) -> None:
        """It may be the end of the association."""
        self._association.relayFailed(error)

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor has no more use for the descriptor: poll() reports an error
        that nobody has read yet in this way. Without its socket the
        association is over.
        """
        opened = self._socket
        pending = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if opened is not None else 0
        super().connectionLost(reason)
        self._association.relayFailed(OSError(pending if pending in _FATAL else errno.EINVAL, "reported by poll()"))


@implementer(IReadDescriptor)
class _Control:
    """A control connection: nothing is said on it, and its end is the association's."""

    __slots__ = ("_lost", "_reactor", "_socket")

    def __init__(self, reactor: Any, opened: socket.socket, lost: Callable[[], None]) -> None:
        self._reactor = reactor
        self._socket = opened
        self._lost = lost
        reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about this connection begin with."""
        return "SOCKS5 control connection"

    def doRead(self) -> None:
        """Throw away what stray bytes there are, and see the end."""
        try:
            ended = not self._socket.recv(_STRAY_BYTES)
        except OSError as error:
            ended = error.errno not in NOTHING_THERE
        if ended:
            self._lost()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for the descriptor: poll() reports a broken connection in this way."""
        self._lost()

    def close(self) -> None:
        """Close the connection."""
        if self.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()


def connectedSocket(relay: Address, local: tuple[Any, ...] | None, mark: int) -> socket.socket:
    """
    A UDP socket to a relay.

    A server takes datagrams only from the host that the control connection
    comes from (RFC 1928 section 7), so the socket is bound to that address
    unless there is no way from there to the relay.

    @param local: the control connection's address, as sockets have it, if there is one.
    @param mark: SO_MARK, 0 for none.
    @raise OSError: that can not be done.
    """
    if local is None or familyOf(local[0]) != familyOf(relay.host):
        return _connect(relay, mark, None)
    try:
        return _connect(relay, mark, (local[0], 0, *local[2:]))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL):
            raise
        return _connect(relay, mark, None)


def _connect(relay: Address, mark: int, local: tuple[Any, ...] | None) -> socket.socket:
    opened = socket.socket(familyOf(relay.host), socket.SOCK_DGRAM)
    try:
        if mark:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if local is not None:
            opened.bind(local)
        opened.connect(tuple(relay))
    except OSError:
        opened.close()
        raise
    return opened
