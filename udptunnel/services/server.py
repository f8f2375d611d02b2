"""
udp-server: accepts links, unwraps what comes over them, and sends it to the targets.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.config import ServerConfig
from udptunnel.core.acl import AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.link import Carrier, Link, ServerLink
from udptunnel.core.session import ServerSession
from udptunnel.errors import AccessRuleError, ConfigError, LoginError
from udptunnel.net.datagrams import Traffic
from udptunnel.net.descriptors import descriptorLimit
from udptunnel.net.egress import DirectEgress
from udptunnel.net.link import LinkProtocol
from udptunnel.net.names import Names, Resolver, SystemResolver
from udptunnel.net.offload import parseNames, probe
from udptunnel.services.links import linkLimits, quietFactory, tickSeconds
from udptunnel.services.listening import Listening
from udptunnel.wire.greeting import Greeting

RESERVE = 256
"""Descriptors that external ports leave for links, logs and the like."""

FAREWELL_SECONDS = 0.5
"""How long clients have to close their links after a GOAWAY."""


class _ServerLinkProtocol(LinkProtocol):
    """A link that somebody else has opened."""

    def __init__(self, service: ServerService) -> None:
        super().__init__(self._make, service.clock)
        self._service = service

    def _make(self, carrier: Carrier, now: float) -> Link:
        service = self._service
        link = ServerLink(carrier, service.limits, service.counters, now, service.admit)
        service.links.add(link)
        return link

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The end of the link."""
        super().connectionLost(reason)
        if self.link is not None:
            self._service.links.discard(self.link)


class ServerService(MultiService):
    """
    The role udp-server.

    @ivar sessions: by name.
    @ivar links: all connections, greeted or not.
    @ivar listeners: where they come in.
    @ivar counters: its figures.
    """

    _log = Logger()

    def __init__(self, config: ServerConfig, reactor: Any, resolver: Resolver | None = None) -> None:
        """
        @param resolver: what names are resolved with, if not the system's way.
        @raise ConfigError: an endpoint or an access rule can not be understood.
        """
        super().__init__()
        self.setName("udp-server")
        self.config = config
        self.clock = reactor.seconds
        self.counters = Counters()
        self.limits = linkLimits(config)
        self.sessions: dict[bytes, ServerSession] = {}
        self.links: set[Link] = set()
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        self._resolver = resolver or SystemResolver(reactor)
        names = Names(reactor, self._resolver, config.lookups, config.lookupTimeout)
        most = config.maxPorts or max(16, descriptorLimit() - RESERVE)
        self.egress = DirectEgress(self.traffic, reactor, _rules(config), names, most)
        factory = quietFactory(lambda: _ServerLinkProtocol(self))
        self.listeners = [Listening(reactor, "listen", text, factory) for text in config.listen]
        self._reactor = reactor
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor

    # -- sessions

    def admit(self, greeting: Greeting) -> ServerSession:
        """
        The session for a HELLO.

        @raise LoginError: there are too many.
        """
        session = self.sessions.get(greeting.session)
        if session is None:
            return self._begin(greeting)
        if len(session.links) >= self.config.maxLinks:
            raise LoginError(f"a session has at most {self.config.maxLinks} links")
        return session

    def _begin(self, greeting: Greeting) -> ServerSession:
        if len(self.sessions) >= self.config.maxSessions:
            raise LoginError("too many sessions")
        session = self.sessions[greeting.session] = ServerSession(
            greeting.session, self.config.maxAssociations, self.counters, self.egress.openOutlet, self._emptied
        )
        self._log.info("session {name} begins", name=session.name.hex()[:8])
        return session

    def _emptied(self, session: ServerSession) -> None:
        """The last link of a session is gone."""
        if self.sessions.pop(session.name, None) is not None:
            self._log.info("session {name} ends", name=session.name.hex()[:8])
            session.end()

    def _tick(self) -> None:
        now = self.clock()
        self.egress.tick(now)
        for session in list(self.sessions.values()):
            session.tick(now)
        for link in list(self.links):
            if not link.up:
                link.tick(now)

    # -- the service

    def startService(self) -> None:
        """
        Open all ports.

        @raise ListenError: one is taken, or may not be opened without authentication.
        """
        for listener in self.listeners:
            listener.start(self.config.insecureNoAuth)
        self._ticking.start(tickSeconds(self.config), now=False)
        self._log.info(
            "udp-server: links at {listen}, at most {ports} external ports, offload {offload}",
            listen=", ".join(self.config.listen),
            ports=self.egress.mostPorts,
            offload=self.traffic.offload,
        )
        super().startService()

    async def stopService(self) -> None:
        """Say farewell to everybody, then close everything."""
        if self._ticking.running:
            self._ticking.stop()
        await gatherResults([listener.stop() for listener in self.listeners])
        for link in list(self.links):
            if link.up:
                link.goAway("udp-server stops", self.clock())
        if self.links:
            await deferLater(self._reactor, FAREWELL_SECONDS)
        for link in list(self.links):
            link.carrier.abort()
        for session in list(self.sessions.values()):
            session.end()
        self.sessions.clear()
        if isinstance(self._resolver, SystemResolver):
            self._resolver.stop()
        await super().stopService()

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "sessions": len(self.sessions),
            "links": len(self.links),
            "associations": sum(len(session.associations) for session in self.sessions.values()),
            "externalPorts": self.egress.ports,
            "offload": str(self.traffic.offload),
            **self.counters.report(),
        }


def _rules(config: ServerConfig) -> AccessRules:
    try:
        return AccessRules(config.allow, config.deny, config.denyPort)
    except AccessRuleError as error:
        raise ConfigError(f"--allow or --deny: {error}") from error
