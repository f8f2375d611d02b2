"""
udp-local: takes UDP in, as a SOCKS5 server and from forwards, and wraps it.

L{LocalService} wires the parts together: entries feed the session, and a
client service keeps each of the session's links up.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.config import LocalConfig
from udptunnel.core.counters import Counters
from udptunnel.core.link import Carrier, Link, LocalLink
from udptunnel.core.session import LocalSession
from udptunnel.errors import ConfigError, LoginError
from udptunnel.net.datagrams import Traffic
from udptunnel.net.entry import Entry, ForwardEntry, SocksRelay
from udptunnel.net.link import LinkProtocol
from udptunnel.net.offload import parseNames, probe
from udptunnel.net.socks5 import SocksServerProtocol
from udptunnel.net.socks5client import SocksClientEndpoint
from udptunnel.services.links import linkLimits, quietFactory, tickSeconds
from udptunnel.services.listening import Listening, isLoopback, requireAuthentication
from udptunnel.services.reconnecting import ReconnectingService
from udptunnel.wire.address import Address
from udptunnel.wire.greeting import SESSION_BYTES
from udptunnel.wire.socks5 import Credentials


@implementer(IStreamClientEndpoint)
class Rotation:
    """Several ways to the server: after a failure the next one is tried."""

    def __init__(self, ways: list[IStreamClientEndpoint]) -> None:
        self._ways = ways
        self._place = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect by the current way."""
        return self._ways[self._place % len(self._ways)].connect(protocolFactory)

    def failed(self) -> None:
        """The current way leads nowhere."""
        self._place += 1


class _LocalLinkProtocol(LinkProtocol):
    """A link of ours, and an L{Attempt<udptunnel.services.reconnecting.Attempt>} to make it."""

    transport: Any
    _welcomed = False

    def __init__(self, service: LocalService) -> None:
        super().__init__(self._make, service.clock)
        self._service = service
        self.greeted: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def _make(self, carrier: Carrier, now: float) -> Link:
        service = self._service
        link = LocalLink(carrier, service.limits, service.counters, now, service.session, self._up)
        service.linkMade(link)
        return link

    def _up(self) -> None:
        self._log.info("link with {peer} is up", peer=self.peer)
        self._welcomed = True
        self.greeted.callback(None)

    def failed(self, error: Exception) -> None:
        """Tell whoever waits for the link."""
        super().failed(error)
        self._giveUp(error)

    def _giveUp(self, error: Exception) -> None:
        if not self.greeted.called:
            self.greeted.errback(error)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The end of the link, or of an attempt."""
        super().connectionLost(reason)
        if self.link is not None:
            self._service.linkGone(self.link)
        if self._welcomed:
            self._log.info("link lost: {why}", why=reason.getErrorMessage())
        self._giveUp(LoginError("the connection was closed before udp-server welcomed us"))
        self.gone.callback(None)

    def abort(self) -> None:
        """Close the connection now."""
        if self.transport is not None:
            self.transport.abortConnection()


class LocalService(MultiService):
    """
    The role udp-local.

    @ivar session: its one session.
    @ivar counters: its figures.
    @ivar entries: the forwards.
    @ivar door: the SOCKS5 server, if there is one.
    """

    _log = Logger()

    def __init__(self, config: LocalConfig, reactor: Any) -> None:
        """
        @raise ConfigError: an endpoint can not be understood, or a file can not be read.
        """
        super().__init__()
        self.setName("udp-local")
        self.config = config
        self.clock: Callable[[], float] = reactor.seconds
        self.counters = Counters()
        self.limits = linkLimits(config)
        self.session = LocalSession(os.urandom(SESSION_BYTES), config.maxAssociations, self.counters)
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        self.entries = [
            ForwardEntry(self.traffic, self.session, self.clock, rule.listen, rule.target) for rule in config.forward
        ]
        self._reactor = reactor
        self.clients: set[SocksServerProtocol] = set()
        self._links: set[Link] = set()
        self._reconnecting: list[ReconnectingService] = []
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor
        self.authenticate = self._readPasswords()
        self._addLinks()
        self.door = (
            None
            if config.socks == "none"
            else Listening(
                reactor,
                "socks",
                config.socks,
                quietFactory(lambda: SocksServerProtocol(reactor, self)),
            )
        )

    # -- parts

    def _readPasswords(self) -> Callable[[bytes, bytes], bool] | None:
        name = self.config.passwordFile
        if name is None:
            return None
        try:
            with open(name, encoding="utf-8") as file:
                return Credentials.parse(file.read()).check
        except Exception as error:
            raise ConfigError(f"--password-file {name}: {error}") from error

    def _addLinks(self) -> None:
        ways = Rotation([self._wayTo(text) for text in self.config.server])
        factory = quietFactory(lambda: _LocalLinkProtocol(self))

        def failed() -> None:
            # All links lead to one server: a session can not be divided.
            if not self.session.links:
                ways.failed()

        for _ in range(self.config.links):
            each = ReconnectingService(self._reactor, partial(ways.connect, factory), failed)
            each.setServiceParent(self)
            self._reconnecting.append(each)

    def _wayTo(self, server: str) -> IStreamClientEndpoint:
        try:
            if self.config.via is None:
                way: IStreamClientEndpoint = clientFromString(self._reactor, server)
                return way
            return SocksClientEndpoint(self._reactor, self._hop(self.config.via), _tcpTarget(server))
        except (ValueError, TypeError, LookupError) as error:
            raise ConfigError(f"--server {server}: no client endpoint: {error}") from error

    def _hop(self, address: Address) -> IStreamClientEndpoint:
        return HostnameEndpoint(self._reactor, address.host, address.port)

    # -- Door

    def endpointFor(self, target: Address) -> IStreamClientEndpoint | None:
        """The way for a CONNECT request: through C{connectVia}, if there is one."""
        if self.config.connectVia is None:
            return None
        return SocksClientEndpoint(self._reactor, self._hop(self.config.connectVia), target)

    def openRelay(self, listen: Address, client: str) -> Entry:
        """
        Open a relay for a SOCKS5 client.

        @raise ListenError: that can not be done.
        """
        relay = SocksRelay(self.traffic, self.session, self.clock, listen, client)
        relay.startListening()
        return relay

    # -- links

    def linkMade(self, link: Link) -> None:
        """A connection is there; from now on it has its time."""
        self._links.add(link)

    def linkGone(self, link: Link) -> None:
        """A connection is gone."""
        self._links.discard(link)

    def _tick(self) -> None:
        now = self.clock()
        if self.session.wantsLink:
            for each in self._reconnecting:
                each.hurry()
        self.session.tick(now)
        for link in list(self._links):
            if not link.up:
                link.tick(now)

    # -- the service

    def startService(self) -> None:
        """
        Open all ports, and look for the server.

        @raise ListenError: a port is taken, or may not be opened without authentication.
        """
        for entry in self.entries:
            requireAuthentication(
                isLoopback(entry.port.address.host), self.config.insecureNoAuth, f"--forward {entry.port.address}"
            )
            entry.startListening()
        if self.door is not None:
            self.door.start(self.authenticate is not None or self.config.insecureNoAuth)
        self._ticking.start(tickSeconds(self.config), now=False)
        self._log.info(
            "udp-local: SOCKS5 at {socks}, forwards {forwards}, server {server}, offload {offload}",
            socks=self.config.socks,
            forwards=", ".join(map(str, self.config.forward)) or "none",
            server=", ".join(self.config.server),
            offload=self.traffic.offload,
        )
        super().startService()

    async def stopService(self) -> None:
        """Close everything."""
        if self._ticking.running:
            self._ticking.stop()
        for entry in self.entries:
            entry.stopListening()
        if self.door is not None:
            await self.door.stop()
        for client in list(self.clients):
            client.abort()
        for link in list(self._links):
            if link.up:
                link.goAway("udp-local stops", self.clock())
        await super().stopService()

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "links": [link.report() for link in self.session.links],
            "associations": len(self.session.associations),
            "offload": str(self.traffic.offload),
            **self.counters.report(),
        }


def _tcpTarget(server: str) -> Address:
    """The address in C{tcp:HOST:PORT}, which is all that a SOCKS5 server can be asked for."""
    kind, _, rest = server.partition(":")
    host, _, port = rest.rpartition(":")
    host, port = host.removeprefix("host="), port.removeprefix("port=")
    if kind != "tcp" or not port.isdigit():
        raise ValueError("with --via it must be tcp:HOST:PORT")
    return Address(host.replace("\\:", ":").strip("[]"), int(port))
