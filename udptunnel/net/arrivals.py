"""
What comes out of a TUN, for programs that are written for Twisted.

A connection that somebody behind the TUN opens becomes an ordinary transport
with a protocol on it. L{Arrivals} is a
L{TcpReceiver<udptunnel.net.stack.TcpReceiver>}, L{Datagrams} a
L{UdpReceiver<udptunnel.net.gateway.UdpReceiver>}. The bytes pass Twisted and
Python here. What is to be fast leaves them to the kernel, as tun2socks does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol, ITransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from udptunnel.net.stack import Connection
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, split
from udptunnel.wire.transport import Unreachable

TcpReceived: TypeAlias = "Callable[[Arrival, Address], object]"
"""Called with a connection that somebody opens, and its target."""

UdpReceived: TypeAlias = Callable[[bytes, Address, Address], object]
"""Called with a datagram, its target, and its source."""


class Arrival:
    """
    A TCP connection that somebody behind the TUN opens, and that waits for an answer.

    Say L{accept}, L{refuse} or L{ignore}, at once or later: until then the
    client's connection is not open. A stack does not wait for ever.

    @ivar source: who opens it.
    @ivar target: what to.
    @ivar lost: called when the client or the stack has given up before the connection was open.
    """

    __slots__ = ("_arrivals", "_connection", "lost", "protocol", "source", "target")

    def __init__(self, connection: Connection, arrivals: Arrivals) -> None:
        self.source, self.target = connection.source, connection.target
        self.lost: Callable[[], object] = _nothing
        self.protocol: IProtocol | None = None
        self._connection = connection
        self._arrivals = arrivals

    def accept(self, protocol: IProtocol) -> None:
        """
        Let it in.

        @param protocol: it is connected as soon as the client is. The
            transport's C{getPeer} is the source, and its C{getHost} the target.
        """
        if self._arrivals.waits(self._connection):
            self.protocol = protocol
            self._connection.accept()

    def refuse(self, why: Unreachable | None = None) -> None:
        """
        Do not let it in.

        @param why: what an ICMP message says; without it the client hears that the target refuses.
        """
        if self._arrivals.forget(self._connection):
            self._connection.refuse(why)

    def ignore(self) -> None:
        """Let the client wait until it has had enough."""
        if self._arrivals.forget(self._connection):
            self._connection.ignore()


def _nothing() -> None:
    """What is done if nothing was asked for."""


class Arrivals:
    """Makes transports of connections."""

    _log = Logger()

    def __init__(self, reactor: Any, received: TcpReceived) -> None:
        """
        @param reactor: provides C{IReactorSocket}.
        @param received: decides about each connection. If it raises, the
            connection is refused, and the log says why.
        """
        self._reactor = reactor
        self._received = received
        self._waiting: dict[Connection, Arrival] = {}
        self._open: WrappingFactory[Any] = WrappingFactory(Factory())

    def __len__(self) -> int:
        return len(self._open.protocols)

    def waits(self, connection: Connection) -> bool:
        """Whether a connection is still to be decided about, or to become open."""
        return connection in self._waiting

    def forget(self, connection: Connection) -> bool:
        """Wait for a connection no longer; whether we did."""
        return self._waiting.pop(connection, None) is not None

    def connectionRequested(self, connection: Connection) -> None:
        """Somebody opens a connection."""
        arrival = self._waiting[connection] = Arrival(connection, self)
        with self._log.failuresHandled("a connection to {target} is refused", target=arrival.target) as handled:
            self._received(arrival, arrival.target)
        if handled.failed:
            arrival.refuse()

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """It is open."""
        arrival = self._waiting.pop(connection, None)
        if arrival is None or arrival.protocol is None:
            opened.close()
            connection.closed()
            return
        wrapper = _Wrapper(self._open, arrival.protocol, arrival, connection)
        with opened, self._log.failureHandler("a protocol fails to begin"):
            try:
                # The transport gets a descriptor of its own.
                self._reactor.adoptStreamConnection(opened.fileno(), opened.family, _Once(wrapper))
            except OSError:
                # The client has gone again, and the socket does not know its peer any more.
                connection.closed()
                arrival.lost()

    def connectionLost(self, connection: Connection) -> None:
        """The client or the stack has given up."""
        arrival = self._waiting.pop(connection, None)
        if arrival is not None:
            with self._log.failureHandler("a connection that was given up"):
                arrival.lost()

    def stop(self) -> None:
        """Close all that is open, at once: nothing that is still written would arrive."""
        self._waiting.clear()
        for protocol in list(self._open.protocols):
            protocol.abortConnection()


class _Once:
    """As much of a factory as a reactor needs that adopts a connection."""

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, address: IAddress) -> IProtocol:
        """The one protocol."""
        return self._protocol


class _Wrapper(ProtocolWrapper):
    """
    Stands between a transport and the protocol of an arrival: knows the
    addresses as the client sees them, and tells the stack when all is over.
    """

    def __init__(
        self, factory: WrappingFactory[Any], protocol: IProtocol, arrival: Arrival, connection: Connection
    ) -> None:
        super().__init__(factory, protocol)
        self._ends = arrival.source, arrival.target
        self._connection = connection

    def makeConnection(self, transport: ITransport) -> None:
        """The connection is open."""
        protocol = self.wrappedProtocol
        super().makeConnection(transport)
        if IHalfCloseableProtocol.providedBy(protocol):
            alsoProvides(self, IHalfCloseableProtocol)

    def getPeer(self) -> IAddress:
        """Who has opened the connection."""
        return _twisted(self._ends[0])

    def getHost(self) -> IAddress:
        """What it was opened to."""
        return _twisted(self._ends[1])

    # Twisted's wrapper has nothing for protocols that close one way at a time.

    def readConnectionLost(self) -> None:
        """The client sends no more."""
        IHalfCloseableProtocol(self.wrappedProtocol).readConnectionLost()

    def writeConnectionLost(self) -> None:
        """We send no more."""
        IHalfCloseableProtocol(self.wrappedProtocol).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is closed."""
        # First: a protocol may fail.
        self._connection.closed()
        super().connectionLost(reason)


def _twisted(address: Address) -> IPv4Address | IPv6Address:
    kind = IPv6Address if ":" in address.host else IPv4Address
    return kind("TCP", address.host, address.port)


class Datagrams:
    """Hands out datagrams one by one."""

    _log = Logger()

    def __init__(self, received: UdpReceived) -> None:
        """
        @param received: called with each datagram. If it raises, the log says so.
        """
        self._received = received

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Somebody behind the TUN has sent something."""
        for source, target, size, payload in bursts:
            with self._log.failuresHandled("datagrams from {source} to {target}", source=source, target=target):
                for datagram in split(size, payload):
                    self._received(bytes(datagram), target, source)

    def tick(self, now: float) -> None:
        """Nothing is remembered here."""

    def stop(self) -> None:
        """Nothing is open here."""
