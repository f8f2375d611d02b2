"""
The SOCKS5 server of udp-local (RFC 1928, RFC 1929).

UDP ASSOCIATE opens a relay that lives exactly as long as its control
connection. CONNECT is passed on to another SOCKS5 server, so that a stock
tun2socks can point at this one for TCP and UDP alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.errors import ListenError
from udptunnel.net.entry import Entry
from udptunnel.net.pipe import PipeEnd
from udptunnel.net.socks5client import SocksRefusedError, addressOf
from udptunnel.wire.address import Address, normalHost
from udptunnel.wire.socks5 import Command, ReplyCode, Request, ServerNegotiation, packReply

REQUEST_SECONDS = 10.0
"""A client says what it wants within this time, however it spreads its bytes."""


class Door(TypingProtocol):
    """What the SOCKS5 server is attached to."""

    authenticate: Callable[[bytes, bytes], bool] | None
    """Checks a user and a password; C{None} if anybody may come in."""

    clients: set[SocksServerProtocol]
    """The connected clients, kept here by themselves."""

    def endpointFor(self, target: Address) -> IStreamClientEndpoint | None:
        """The way for a CONNECT request; C{None} if such requests are not served."""

    def openRelay(self, listen: Address, client: str) -> Entry:
        """
        Open a relay for a client.

        @raise ListenError: that can not be done.
        """


class SocksServerProtocol(PipeEnd):
    """One client's control connection."""

    _log = Logger()
    _relay: Entry | None = None
    _asking: Deferred[IProtocol] | None = None

    def __init__(self, reactor: IReactorTime, door: Door) -> None:
        self._reactor = reactor
        self._door = door
        self._negotiation = ServerNegotiation(door.authenticate)
        self._decided = False

    def connectionMade(self) -> None:
        """Give the client its time."""
        self._door.clients.add(self)
        self._stream.setTcpKeepAlive(True)
        self._stream.setTcpNoDelay(True)
        self._deadline = self._reactor.callLater(REQUEST_SECONDS, self._stream.abortConnection)

    # -- negotiation

    def dataReceived(self, data: bytes) -> None:
        """Negotiate; then pass on, or for a relay ignore, what else comes."""
        if self._decided:
            self._more(data)
            return
        self._stream.write(self._negotiation.receive(data))
        if self._negotiation.failed:
            self._log.debug("SOCKS5 client refused: {why!r}", why=self._negotiation.failed)
            self._end()
        elif self._negotiation.request is not None:
            self._decided = True
            self._deadline.cancel()
            self._requested(self._negotiation.request)

    def _more(self, data: bytes) -> None:
        if self._relay is not None:
            return
        if self._asking is None:
            super().dataReceived(data)
        else:
            self._negotiation.receive(data)
            self._stream.pauseProducing()

    def _requested(self, request: Request) -> None:
        if request.command == Command.UDP_ASSOCIATE:
            self._associate()
        elif request.command == Command.CONNECT and (way := self._door.endpointFor(request.address)) is not None:
            self._connect(way)
        else:
            self._refuse(ReplyCode.COMMAND_NOT_SUPPORTED)

    def _refuse(self, code: ReplyCode) -> None:
        self._stream.write(packReply(code))
        self._end()

    def _end(self) -> None:
        """Close once the last reply is out; a client that does not read does not keep us."""
        self._decided = True
        if not self._deadline.active():
            self._deadline = self._reactor.callLater(REQUEST_SECONDS, self._stream.abortConnection)
        self._stream.loseConnection()

    # -- UDP ASSOCIATE

    def _associate(self) -> None:
        """
        The relay is where the client has reached us: it knows the way there,
        and nobody else is let in who could not reach this address.
        """
        here, there = addressOf(self._stream.getHost()), addressOf(self._stream.getPeer())
        if not here.port:
            # A Unix socket: nothing tells where datagrams could reach us, or whose they are.
            self._refuse(ReplyCode.GENERAL_FAILURE)
            return
        try:
            self._relay = self._door.openRelay(Address(normalHost(here.host), 0), there.host)
        except ListenError as error:
            self._log.warn("no SOCKS5 relay: {error}", error=error)
            self._refuse(ReplyCode.GENERAL_FAILURE)
            return
        self._stream.write(packReply(ReplyCode.SUCCEEDED, self._relay.port.address))

    # -- CONNECT

    def _connect(self, endpoint: IStreamClientEndpoint) -> None:
        self._asking = endpoint.connect(Factory.forProtocol(PipeEnd))
        self._asking.addCallbacks(self._connected, self._notConnected)

    def _connected(self, far: IProtocol) -> None:
        self._asking = None
        assert isinstance(far, PipeEnd)
        self._stream.write(packReply(ReplyCode.SUCCEEDED))
        self.joinTo(far)
        if rest := self._negotiation.rest:
            super().dataReceived(rest)
        self._stream.resumeProducing()

    def _notConnected(self, failure: Failure) -> None:
        if self._asking is None:
            # The client is gone, and it was us who gave up.
            return
        self._asking = None
        refused = failure.check(SocksRefusedError)
        if not refused:
            self._log.warn("CONNECT can not be passed on: {why}", why=failure.getErrorMessage())
        self._refuse(failure.value.code if refused else ReplyCode.GENERAL_FAILURE)  # type: ignore[union-attr]

    # -- the end

    def abort(self) -> None:
        """Close the connection now, and with it all that hangs on it."""
        self._stream.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The control connection is gone, and with it all that hangs on it."""
        self._door.clients.discard(self)
        if self._deadline.active():
            self._deadline.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
        if self._relay is not None:
            self._relay.stopListening()
        super().connectionLost(reason)
