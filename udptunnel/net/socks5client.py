"""
The C{socks5:} client endpoint: any Twisted program's connections through a SOCKS5 server.

As a string, C{socks5:HOST:PORT:endpoint=tcp\\:127.0.0.1\\:1080}, with
C{:user=...:password=...} where the server wants them. HOST is passed on
unresolved. Once the server has agreed, the program's protocol is connected to
the real transport; nothing stands between them but this module's
C{dataReceived}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError, ConnectionAborted
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.errors import AddressError, SocksError
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import ClientNegotiation, Command, ReplyCode

NEGOTIATION_SECONDS = 30.0
"""How long the server may take until the target is connected."""


class SocksRefusedError(ConnectError):
    """
    The SOCKS5 server did not do what it was asked; the text says why.

    @ivar code: its reply code.
    """

    def __init__(self, why: str, code: int = ReplyCode.GENERAL_FAILURE) -> None:
        super().__init__(string=why)
        self.code = code


@implementer(IStreamClientEndpoint)
class SocksClientEndpoint:
    """Connects to a target through a SOCKS5 server."""

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: IStreamClientEndpoint,
        target: Address,
        user: str = "",
        password: str = "",
    ) -> None:
        """
        @param endpoint: reaches the SOCKS5 server.
        @param user: offered if it is not empty (RFC 1929).
        """
        self._reactor = reactor
        self._endpoint = endpoint
        self._target = target
        self._user, self._password = user, password

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with L{SocksRefusedError} if the server refuses."""
        try:
            negotiation = ClientNegotiation(Command.CONNECT, self._target, self._user, self._password)
        except (AddressError, SocksError) as error:
            return fail(error)
        outer = _Negotiator(self._reactor, negotiation, protocolFactory)
        made: Deferred[Any] = self._endpoint.connect(Factory.forProtocol(lambda: outer))

        def connected(_: object) -> Deferred[IProtocol]:
            return outer.agreed

        made.addCallback(connected)
        return made


@implementer(IHalfCloseableProtocol)
class _Negotiator(Protocol):
    """
    Speaks SOCKS5 first, then steps aside.

    It can always be half closed, for endpoints look at that before we know
    whether the program's protocol can.
    """

    def __init__(self, reactor: IReactorTime, negotiation: ClientNegotiation, factory: IProtocolFactory) -> None:
        self.agreed: Deferred[IProtocol] = Deferred(lambda _: self._abort())
        self._negotiation = negotiation
        self._factory_ = factory
        self._inner: IProtocol | None = None
        self._reactor = reactor

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self._deadline = self._reactor.callLater(NEGOTIATION_SECONDS, self._refuse, "the SOCKS5 server does not answer")
        self.transport.write(self._negotiation.begin())

    def dataReceived(self, data: bytes) -> None:
        """Negotiate, or pass on."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        assert self.transport is not None
        self.transport.write(self._negotiation.receive(data))
        reply = self._negotiation.reply
        if self._negotiation.failed:
            self._refuse(self._negotiation.failed, ReplyCode.GENERAL_FAILURE if reply is None else reply.code)
        elif reply is not None:
            self._succeeded()

    def _succeeded(self) -> None:
        self._deadline.cancel()
        assert self.transport is not None
        inner = self._factory_.buildProtocol(self.transport.getPeer())
        if inner is None:
            self._refuse("nobody wants this connection")
            return
        self._stepAside(inner)

    def _stepAside(self, inner: IProtocol) -> None:
        assert self.transport is not None
        self._inner = inner
        inner.makeConnection(self.transport)
        rest, self._negotiation.rest = self._negotiation.rest, b""
        self.agreed.callback(inner)
        if rest:
            inner.dataReceived(rest)

    def _refuse(self, why: str, code: int = ReplyCode.GENERAL_FAILURE) -> None:
        if not self.agreed.called:
            self.agreed.errback(SocksRefusedError(why, code))
        self._abort()

    def _abort(self) -> None:
        if self._deadline.active():
            self._deadline.cancel()
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def readConnectionLost(self) -> None:
        """The other end has said everything, which for a protocol that can not be half closed is the end."""
        half = IHalfCloseableProtocol(self._inner, None)
        if half is not None:
            half.readConnectionLost()
        elif self.transport is not None:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """We have said everything, and it is out."""
        half = IHalfCloseableProtocol(self._inner, None)
        if half is not None:
            half.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end, before or after the agreement."""
        if self._deadline.active():
            self._deadline.cancel()
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.agreed.called and not reason.check(ConnectionAborted, CancelledError):
            self.agreed.errback(SocksRefusedError("the SOCKS5 server closed the connection"))


def parseEndpoint(
    reactor: Any, host: str, port: str, endpoint: str = "tcp:127.0.0.1:1080", user: str = "", password: str = ""
) -> SocksClientEndpoint:
    """
    What a C{socks5:} endpoint string stands for.

    @param endpoint: an endpoint string for the SOCKS5 server itself.
    @raise AddressError: C{host} and C{port} are no address.
    """
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise AddressError(f"socks5: the port is a number from 1 to 65535, not {port!r}")
    return SocksClientEndpoint(reactor, clientFromString(reactor, endpoint), Address(host, int(port)), user, password)


def addressOf(given: IAddress | None) -> Address:
    """A TCP address as ours; C{0.0.0.0:0} for any other kind."""
    host, port = getattr(given, "host", "0.0.0.0"), getattr(given, "port", 0)
    return Address(str(host), int(port))
