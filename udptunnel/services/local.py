"""
udp-local: takes UDP in, as a SOCKS5 server and from forwards, and wraps it.

L{LocalService} wires the parts together: entries feed the session, and a
client service keeps each of the session's links up.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.endpoints import HostnameEndpoint, clientFromString, wrapClientTLS
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.config import Forward, Inherited, LocalConfig
from udptunnel.core.counters import Counters
from udptunnel.core.link import Carrier, Link, LocalLink
from udptunnel.core.login import NO_BINDING, Login
from udptunnel.core.session import LocalSession
from udptunnel.errors import ConfigError, LoginError, RefusedError
from udptunnel.net import tls
from udptunnel.net.datagrams import Traffic
from udptunnel.net.entry import Entry, ForwardEntry, SocksRelay
from udptunnel.net.guard import Guard
from udptunnel.net.inherited import inheritedDatagramSocket
from udptunnel.net.link import LinkProtocol
from udptunnel.net.logs import lines
from udptunnel.net.offload import parseNames, probe
from udptunnel.net.platforms import isPortable
from udptunnel.net.reach import isLoopback
from udptunnel.net.socks5 import SocksServerProtocol
from udptunnel.net.socks5client import SocksClientEndpoint
from udptunnel.services.authority import readSecrets, warnOfEnd
from udptunnel.services.carrier import stopAll
from udptunnel.services.links import allGone, every, linkLimits, quietFactory, tickSeconds
from udptunnel.services.listening import Listening, requireAuthentication
from udptunnel.services.plugin import LocalPlugin, requirePlugin
from udptunnel.services.reconnecting import ReconnectingService
from udptunnel.services.servers import Server, Servers
from udptunnel.wire.address import Address
from udptunnel.wire.greeting import NONCE_BYTES
from udptunnel.wire.socks5 import Credentials

CONNECT_SECONDS = 5.0
"""How long a connection may take: a TCP SYN is sent three times by then, so none is far from the end of an outage."""

QUIET_SECONDS = 10.0
"""No datagram for so long: nobody minds if the links move."""

FAREWELL_SECONDS = 1.0
"""How long our farewell may take to leave."""

LOOK_SECONDS = 30.0
"""How often we look whether a better server is back."""


class _LocalLinkProtocol(LinkProtocol):
    """
    A link of ours.

    @ivar greeted: fires when the link is up; fails when it will not be.
    @ivar gone: fires when the connection is gone.
    """

    transport: Any
    _welcomed = False

    def __init__(self, service: LocalService, server: Server) -> None:
        super().__init__(self._make, service.clock)
        self._service = service
        self._server = server
        self.greeted: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def _make(self, carrier: Carrier, now: float) -> Link:
        service = self._service
        login = service.loginFor(self._binding)
        membership = self._server.membership
        link = LocalLink(carrier, service.limits, service.counters, now, membership, self._up, login)
        service.linkMade(link)
        return link

    def _binding(self) -> bytes:
        if not self._service.sealed:
            return NO_BINDING
        return tls.exporterOf(self.transport)

    def _up(self) -> None:
        self._log.info(
            "link with {peer} is up, session {session}", peer=self.peer, session=self._service.session.shortName
        )
        self._welcomed = True
        self.greeted.callback(None)

    def checkConnection(self) -> None:
        """With TLS, the other end must have said what it speaks."""
        if self._service.sealed:
            tls.checkProtocol(self.transport)

    def failed(self, error: Exception) -> None:
        """Tell whoever waits for the link."""
        if self._welcomed:
            super().failed(error)
        self._giveUp(error)

    def _giveUp(self, error: Exception) -> None:
        if not self.greeted.called:
            self.greeted.errback(error)

    def ended(self, reason: Failure) -> None:
        """The end of the link, or of an attempt."""
        if self.link is not None:
            self._service.linkGone(self.link)
        why = tls.whyLost(self.transport, reason)
        if self._welcomed:
            said = self.link.farewell if self.link is not None else ""
            self._log.info("link lost: {why}", why=f"udp-server says: {said[:200]!r}" if said else why)
        self._giveUp(self._verdict(reason, why))
        self.gone.callback(None)

    def _verdict(self, reason: Failure, why: str) -> LoginError:
        """Why we were not let in, and whether trying again soon would help."""
        if self._service.sealed and not reason.check(ConnectionClosed):
            return RefusedError(why)
        return LoginError("the connection was closed before udp-server welcomed us")


class LocalService(MultiService):
    """
    The role udp-local.

    @ivar session: its one session.
    @ivar servers: where it may be.
    @ivar counters: its figures.
    @ivar entries: the forwards.
    @ivar door: the SOCKS5 server, if there is one.
    @ivar plugins: the plugin on the way to each server, if there is one.
    @ivar whenLinksChanged: called when a link of the session is up, or gone.
    """

    _log = Logger()

    def __init__(self, config: LocalConfig, reactor: Any, guard: Guard | None = None) -> None:
        """
        @param guard: sees to it that plugins do not outlive us; one of our own if it is not given.
        @raise ConfigError: an endpoint can not be understood, or a file can not be read.
        """
        super().__init__()
        self.setName("udp-local")
        self.config = config
        self.clock: Callable[[], float] = reactor.seconds
        self.counters = Counters()
        self.whenLinksChanged: Callable[[], object] = _nobodyAsks
        self.limits = linkLimits(config)
        self.session = LocalSession(config.maxAssociations, self.counters, os.urandom)
        self.session.idle = config.schedule == "idle"
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        self.entries = [
            ForwardEntry(
                self.traffic, self.session, self.clock, _addressToOpen(rule.listen), rule.target, config.newSources
            )
            for rule in config.forward
        ]
        self._reactor = reactor
        self.clients: set[SocksServerProtocol] = set()
        self._links: set[Link] = set()
        self._reconnecting: list[ReconnectingService] = []
        self._ticking: LoopingCall | None = None
        self.reconnects = self._lost = 0
        self._turn = DeferredLock()
        self._spare: _LocalLinkProtocol | None = None
        self._looking: Deferred[None] | None = None
        self._lookedAt = self._quietSince = self.clock()
        self._moved = 0
        self.authenticate = _readPasswords(config)
        self._login = _readLogin(config)
        self._identity, self._trust = _readTls(config)
        warnOfEnd(self._identity, self._log)
        self._guard, self._ownsGuard = guard or Guard(), guard is None
        self.plugins = self._makePlugins() if requirePlugin(config) else {}
        self.servers: Servers[_LocalLinkProtocol] = Servers(
            reactor,
            [
                Server(text, place, self._wayTo(text), self.session.newMembership())
                for place, text in enumerate(config.server)
            ],
            self._logIn,
        )
        self._addLinks(config.links)
        self.door = self._makeDoor(config.socks) if config.socks != "none" else None
        if config.status is not None:
            self._addStatus(config.status)

    # -- parts

    def _makePlugins(self) -> dict[str, LocalPlugin]:
        config, guard = self.config, self._guard
        if config.via is not None:
            raise ConfigError(f"--plugin {config.plugin} and --via {config.via}: the plugin connects by itself")
        try:
            return {text: LocalPlugin(self._reactor, config, tcpTarget(text), guard) for text in config.server}
        except ValueError as error:
            raise ConfigError(f"--server {', '.join(config.server)}: {error}") from error

    def _addLinks(self, links: int) -> None:
        for _ in range(links):
            each = ReconnectingService(self._reactor, self._connect, self._failed)
            each.setServiceParent(self)
            self._reconnecting.append(each)

    def _makeDoor(self, endpoint: str) -> Listening:
        factory = quietFactory(lambda: SocksServerProtocol(self._reactor, self))
        return Listening(self._reactor, "socks", endpoint, factory)

    def _addStatus(self, endpoint: str) -> None:
        # A web server comes with it, and without one a role starts sooner.
        from udptunnel.services.status import StatusService

        allowed = self.config.insecureNoAuth
        status = StatusService("udp-local", endpoint, self.report, self.illness, self._reactor, allowed)
        status.setServiceParent(self)

    @property
    def sealed(self) -> bool:
        """Whether links are TLS of our own."""
        return self._identity is not None or self._trust is not None

    def _wayTo(self, server: str) -> IStreamClientEndpoint:
        """
        The way to a server.

        @raise ConfigError: the text is no endpoint.
        """
        way = self._plainWayTo(server)
        if not self.sealed:
            return way
        name = self.config.tlsName or _hostIn(server)
        sealed: IStreamClientEndpoint = wrapClientTLS(tls.ClientTls(name, self._identity, self._trust), way)
        return sealed

    def _plainWayTo(self, server: str) -> IStreamClientEndpoint:
        if server in self.plugins:
            return self.plugins[server]
        try:
            if self.config.via is None:
                way: IStreamClientEndpoint = clientFromString(self._reactor, server)
                return way
            return SocksClientEndpoint(self._reactor, self._hop(self.config.via), tcpTarget(server))
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

    def loginFor(self, binding: Callable[[], bytes]) -> Login | None:
        """How to prove who we are on a new link; C{None} if we have no secret."""
        return Login(*self._login, os.urandom(NONCE_BYTES), binding) if self._login is not None else None

    def _connect(self) -> Deferred[Any]:
        """
        One more link that is up. They are made one after the other, for each
        needs the ticket that the one before has brought.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._nextLink()))

    async def _nextLink(self) -> _LocalLinkProtocol:
        """To the nearest server, or to that of the other links."""
        if self._looking is not None and not self.session.links:
            self._looking.cancel()
        spare, self._spare = self._spare, None
        if spare is not None and spare.link is not None and spare.link.up:
            return spare
        if self.session.links or len(self.servers.all) == 1:
            return await self.servers.login(self.servers.current)
        return await self.servers.nearest()

    async def _logIn(self, server: Server) -> _LocalLinkProtocol:
        """Connect to a server, and wait until it has welcomed us."""
        factory = quietFactory(lambda: _LocalLinkProtocol(self, server))
        connecting: Deferred[Any] = server.endpoint.connect(factory)
        connecting.addTimeout(CONNECT_SECONDS, self._reactor)
        connection = await connecting
        # What wraps a protocol, such as TLS, has it inside.
        protocol: _LocalLinkProtocol = getattr(connection, "wrappedProtocol", connection)
        try:
            await protocol.greeted
        except BaseException:
            protocol.abort()
            raise
        self._welcomed()
        return protocol

    def _welcomed(self) -> None:
        if self.session.lost > self._lost:
            self._log.warn("mappings lost: udp-server did not know our session any more, external ports are new ones")
        self._lost = self.session.lost
        self.whenLinksChanged()

    def _failed(self) -> None:
        """An attempt has failed."""
        self.reconnects += 1

    def linkMade(self, link: Link) -> None:
        """A connection is there; from now on it has its time."""
        self._links.add(link)

    def linkGone(self, link: Link) -> None:
        """A connection is gone."""
        self._links.discard(link)
        self.whenLinksChanged()

    def _tick(self) -> None:
        now = self.clock()
        if self.session.wantsLink:
            for each in self._reconnecting:
                each.hurry()
        self.traffic.tick(now)
        self.session.tick(now)
        for link in list(self._links):
            if not link.up:
                link.tick(now)
        if len(self.servers.all) > 1:
            self._considerMoving(now)

    # -- moving to a better server

    def _considerMoving(self, now: float) -> None:
        moved = self.counters.sent + self.counters.received
        if moved != self._moved or not self.session.links:
            self._moved, self._quietSince = moved, now
        quiet, rested = now - self._quietSince >= QUIET_SECONDS, now - self._lookedAt >= LOOK_SECONDS
        if quiet and rested and self._looking is None and self.servers.better():
            self._lookedAt = now
            self._looking = Deferred.fromCoroutine(self._move(self.servers.better()))
            self._looking.addBoth(self._looked)

    async def _move(self, better: list[Server]) -> None:
        """Log in at a better server, and leave the present one if that succeeds."""
        for server in better[:1]:
            self.session.moving = server.membership
            login = Deferred.fromCoroutine(self.servers.login(server))
            login.addTimeout(self.servers.patience(server), self._reactor)
            self._spare = await login
            self._log.info("moved to {server}", server=server.text)

    def _looked(self, result: object) -> None:
        self.session.moving = self._looking = None
        if isinstance(result, Failure):
            self._log.debug("no better server: {error}", error=result.getErrorMessage())

    # -- the service

    def startService(self) -> None:
        """
        Open all ports, and look for the server.

        @raise ListenError: a port is taken, or may not be opened without authentication.
        """
        for rule, entry in zip(self.config.forward, self.entries, strict=True):
            self._openEntry(rule, entry)
        if self.door is not None:
            self.door.start(self.authenticate is not None or self.config.insecureNoAuth)
        for plugin in self.plugins.values():
            plugin.carrier.startService()
        self.traffic.tick(self.clock())
        self._ticking = every(tickSeconds(self.config), self._tick, self._reactor, self._log)
        self._log.info(
            "udp-local: SOCKS5 at {socks}, forwards {forwards}, server {server}, offload {offload}",
            socks=self.config.socks,
            forwards=", ".join(map(str, self.config.forward)) or "none",
            server=", ".join(self.config.server),
            offload=self.traffic.offload,
        )
        super().startService()

    def reload(self, config: LocalConfig) -> None:
        """
        Read the files again: passwords, our secret, certificates. Links that are up stay.

        @raise ConfigError: one can not be used; all stays as it was.
        """
        authenticate, login, sealing = _readPasswords(config), _readLogin(config), _readTls(config)
        before = self.config, self._identity, self._trust
        self.config = replace(
            self.config,
            passwordFile=config.passwordFile,
            secret=config.secret,
            tls=config.tls,
            tlsTrust=config.tlsTrust,
        )
        self._identity, self._trust = sealing
        warnOfEnd(self._identity, self._log)
        try:
            ways = [self._wayTo(server.text) for server in self.servers.all]
        except ConfigError:
            self.config, self._identity, self._trust = before
            raise
        self.authenticate, self._login = authenticate, login
        for server, way in zip(self.servers.all, ways, strict=True):
            server.endpoint = way

    def _openEntry(self, rule: Forward, entry: ForwardEntry) -> None:
        opened = None
        if isinstance(rule.listen, Inherited):
            opened = inheritedDatagramSocket(rule.listen.which)
        host = entry.port.address.host if opened is None else opened.getsockname()[0]
        requireAuthentication(isLoopback(host), self.config.insecureNoAuth, f"--forward {rule.listen}")
        if opened is None:
            entry.startListening()
        else:
            entry.adopt(opened)

    async def stopService(self) -> None:
        """Close everything."""
        if self._ticking is not None and self._ticking.running:
            self._ticking.stop()
        if self._looking is not None:
            self._looking.cancel()
        for entry in self.entries:
            entry.stopListening()
        if self.door is not None:
            await self.door.stop()
        for client in list(self.clients):
            client.abort()
        for link in list(self._links):
            if link.up:
                link.goAway("udp-local stops", self.clock())
            else:
                link.carrier.abort()
        await super().stopService()
        await allGone(lambda: self._links, FAREWELL_SECONDS, self._reactor)
        for link in list(self._links):
            link.carrier.abort()
        await stopAll(plugin.carrier for plugin in self.plugins.values())
        if self._ownsGuard:
            self._guard.close()

    def illness(self) -> str:
        """Why no datagram gets through; empty if everything is well."""
        return "" if self.session.links else "no link is up"

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "role": "udp-local",
            "up": bool(self.session.links),
            "server": self.servers.current.text,
            "session": self.session.shortName,
            "links": [link.report(self.clock()) for link in self.session.links],
            "associations": len(self.session.associations),
            "reconnects": self.reconnects,
            "resumed": self.session.resumed,
            "mappingsLost": self.session.lost,
            "offload": str(self.traffic.offload),
            "portable": isPortable(self._reactor, self.traffic.offload),
            "log": lines.report(),
            **self.counters.report(),
        }


def _nobodyAsks() -> None:
    """Nobody wants to know."""


def _readPasswords(config: LocalConfig) -> Callable[[bytes, bytes], bool] | None:
    name = config.passwordFile
    if name is None:
        return None
    try:
        with open(name, encoding="utf-8") as file:
            return Credentials.parse(file.read()).check
    except Exception as error:
        raise ConfigError(f"--password-file {name}: {error}") from error


def _readLogin(config: LocalConfig) -> tuple[str, bytes] | None:
    if config.secret is None:
        return None
    secrets = readSecrets("secret", config.secret)
    try:
        return secrets.only()
    except ConfigError as error:
        raise ConfigError(f"--secret {config.secret}: {error}") from error


def _readTls(config: LocalConfig) -> tuple[tls.Identity | None, tls.Trust | None]:
    identity = tls.readIdentity(config.tls) if config.tls is not None else None
    trust = tls.readTrust(config.tlsTrust) if config.tlsTrust is not None else None
    return identity, trust


def _addressToOpen(listen: Address | Inherited) -> Address:
    """Where to listen; a socket that is inherited has its address already."""
    return listen if isinstance(listen, Address) else Address("0.0.0.0", 0)


def _hostIn(server: str) -> str:
    """
    The host in an endpoint string, which the server's certificate must name.

    @raise ConfigError: there is none.
    """
    try:
        return tcpTarget(server).host
    except ValueError:
        raise ConfigError(f"--server {server}: say with --tls-name which name its certificate has") from None


def tcpTarget(server: str) -> Address:
    """
    The address in C{tcp:HOST:PORT}, which is all that a SOCKS5 server can be asked for.

    @raise ValueError: it is another kind of endpoint.
    """
    kind, _, rest = server.partition(":")
    host, _, port = rest.rpartition(":")
    host, port = host.removeprefix("host="), port.removeprefix("port=")
    if kind != "tcp" or not port.isdigit():
        raise ValueError("with --via or --plugin it must be tcp:HOST:PORT")
    return Address(host.replace("\\:", ":").strip("[]"), int(port))
