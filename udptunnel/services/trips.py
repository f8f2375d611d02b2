"""
Trips: how long a datagram takes to a target and back, or a PING over a link.

An L{Association} goes the way of any program: by SOCKS5 through a udp-local.
A L{temporaryLink} is a udp-local of our own, for a moment. Both are used by the
commands that look at a path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from statistics import median
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.config import LocalConfig
from udptunnel.core.counters import Counters
from udptunnel.core.link import Link
from udptunnel.errors import LoginError, SocksError, TunnelError
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.offload import Offload
from udptunnel.services.links import quietFactory
from udptunnel.services.local import LocalService
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.socks5 import ClientNegotiation, Command, packHeader, unpackHeader

PATIENCE_SECONDS = 2.0
"""What is not back by then is lost."""

LOGIN_SECONDS = 12.0
"""How long a link may take to come up: a little longer than either end gives it."""

FILLING = bytes(range(256)) * 257
"""What datagrams that nobody reads are filled with."""

POLL_SECONDS = 0.002
"""How often we look whether something has happened that nobody tells us of."""


def spread(trips: list[float]) -> str:
    """The least, the median and the largest of some times."""
    least, middle, most = (f"{1e3 * each:.2f}" for each in (min(trips), median(trips), max(trips)))
    return f"least {least}, median {middle}, most {most} ms"


# -- a way through SOCKS5


class _Control(Protocol):
    """A SOCKS5 client's control connection."""

    transport: Any

    def __init__(self) -> None:
        self.relay: Deferred[Address] = Deferred(lambda _: self.transport.abortConnection())
        self._negotiation = ClientNegotiation(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0))

    def connectionMade(self) -> None:
        """Ask for a relay."""
        self.transport.write(self._negotiation.begin())

    def dataReceived(self, data: bytes) -> None:
        """The answer."""
        if self.relay.called:
            return
        self.transport.write(self._negotiation.receive(data))
        if self._negotiation.failed:
            self.relay.errback(SocksError(self._negotiation.failed))
        elif self._negotiation.reply is not None:
            self.relay.callback(self._negotiation.reply.address)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        if not self.relay.called:
            self.relay.errback(SocksError("the SOCKS5 server closed the connection"))


class Association:
    """
    A SOCKS5 client's way to targets and back, for one datagram at a time.

    @ivar strange: how many datagrams came back that nobody had waited for.
    """

    def __init__(self, reactor: Any, relay: Address) -> None:
        self.strange = 0
        self._reactor = reactor
        self._relay = relay
        self._answered: Deferred[bytes] | None = None
        self._expected: Callable[[bytes], bool] = bool
        here = Address("::" if ":" in relay.host else "0.0.0.0", 0)
        self.port = DatagramPort(Traffic(reactor, Offload(), Counters()), here, self)

    async def trip(
        self,
        target: Address,
        datagram: bytes,
        expected: Callable[[bytes], bool],
        patience: float = PATIENCE_SECONDS,
    ) -> tuple[float, bytes] | None:
        """
        Send a datagram, and wait for what comes back.

        @param expected: whether an answer is the one that we wait for.
        @return: the seconds that it took, and the answer; C{None} if there was none in time.
        """
        self._answered, self._expected = Deferred(), expected
        begin = self._reactor.seconds()
        wrapped = packHeader(target) + datagram
        self.port.send(self._relay, len(wrapped), wrapped)
        try:
            answer = await self._answered.addTimeout(patience, self._reactor)
        except TimeoutError:
            return None
        return self._reactor.seconds() - begin, answer

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Something has come back."""
        for source, size, payload in bursts:
            if source == self._relay:
                for datagram in split(size, payload):
                    self._arrived(bytes(datagram))

    def _arrived(self, datagram: bytes) -> None:
        try:
            answer = datagram[unpackHeader(datagram)[1] :]
        except (TunnelError, ValueError):
            answer = b""
        if self._answered is not None and not self._answered.called and self._expected(answer):
            self._answered.callback(answer)
        else:
            self.strange += 1


@asynccontextmanager
async def associate(reactor: Any, socks: Address) -> AsyncIterator[Association]:
    """
    A way to targets through a SOCKS5 server, for as long as it is needed.

    @raise SocksError: the server can not be reached, or refuses; the text says why.
    """
    where = f"the SOCKS5 server at {socks}"
    try:
        endpoint = HostnameEndpoint(reactor, socks.host, socks.port, timeout=PATIENCE_SECONDS)
        control: Any = await endpoint.connect(quietFactory(_Control))
    except Exception as error:
        raise SocksError(f"{where} can not be reached ({_why(error)}): is udp-local running?") from error
    try:
        relay = await control.relay.addTimeout(PATIENCE_SECONDS, reactor)
        way = Association(reactor, _reachable(relay, control.transport.getPeer().host))
        way.port.startListening()
    except Exception as error:
        control.transport.abortConnection()
        raise SocksError(f"{where} opens no way for datagrams: {_why(error)}") from error
    try:
        yield way
    finally:
        way.port.stopListening()
        control.transport.abortConnection()


def _reachable(relay: Address, server: str) -> Address:
    """A relay's address; one that says "the same host" has the server's."""
    return Address(server, relay.port) if relay.host in ("0.0.0.0", "::") or relay.isName else relay


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


# -- a link of our own


@implementer(ILogObserver)
class Reasons:
    """
    What the log says of links while we wait for one.

    @ivar last: the reason for which the last attempt failed.
    @ivar failed: how many did.
    """

    def __init__(self) -> None:
        self.last = ""
        self.failed = 0

    def __call__(self, event: LogEvent) -> None:
        """A line was logged."""
        if str(event.get("log_namespace", "")).startswith("udptunnel."):
            begin, _, reason = formatEvent(event).partition(": ")
            if begin.startswith("no link"):
                self.failed += 1
                self.last = reason
            elif " closed" in begin:
                self.last = reason


def temporaryLink(
    reactor: Any, config: LocalConfig, patience: float = LOGIN_SECONDS
) -> AbstractAsyncContextManager[LocalService]:
    """
    A udp-local with one link that is up, for as long as it is needed. Its SOCKS5 server is at a free loopback port.

    @raise LoginError: there is no link; the text says why.
    @raise ConfigError: an option is wrong.
    """
    return linked(reactor, LocalService(temporary(config), reactor), patience)


@asynccontextmanager
async def linked(reactor: Any, local: LocalService, patience: float = LOGIN_SECONDS) -> AsyncIterator[LocalService]:
    """
    A udp-local that runs, and has a link, for as long as it is needed.

    @raise LoginError: there is no link; the text says why.
    """
    reasons = Reasons()
    globalLogPublisher.addObserver(reasons)
    try:
        local.startService()
        deadline = reactor.seconds() + patience
        while not local.session.links and not reasons.failed and reactor.seconds() < deadline:
            await deferLater(reactor, POLL_SECONDS)
        if not local.session.links:
            raise LoginError(reasons.last or f"no WELCOME within {patience:g} s")
        yield local
    finally:
        globalLogPublisher.removeObserver(reasons)
        await local.stopService()


def temporary(config: LocalConfig) -> LocalConfig:
    """A configuration with the same way to udp-server, that needs no port which somebody else could have."""
    return dataclasses.replace(
        config,
        socks="tcp:0:interface=127.0.0.1",
        forward=(),
        connectVia=None,
        passwordFile=None,
        links=1,
        insecureNoAuth=False,
        status=None,
    )


async def linkTrip(reactor: Any, link: Link, patience: float = PATIENCE_SECONDS) -> float | None:
    """
    One PING over a link.

    @return: the seconds until its PONG; C{None} if there was none in time.
    """
    now = reactor.seconds()
    link.ask(now)
    sent = link.window.sent
    while link.window.acknowledged < sent:
        if link.lost or reactor.seconds() - now > patience:
            return None
        await deferLater(reactor, POLL_SECONDS)
    return link.window.roundTrip
