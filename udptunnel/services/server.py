"""
udp-server: accepts links, unwraps what comes over them, and sends it to the targets.

L{ServerService} wires the parts together: L{Authority} tells who is at the
door, a session is found or made for each login, and what flows through it
leaves by the egress.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import gatherResults
from twisted.internet.error import ConnectionClosed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.config import ServerConfig
from udptunnel.core.acl import AccessRules
from udptunnel.core.associations import Outlet
from udptunnel.core.counters import Counters
from udptunnel.core.halfopen import HalfOpen
from udptunnel.core.link import Carrier, Link, ServerLink
from udptunnel.core.login import Challenge
from udptunnel.core.penalties import Penalties
from udptunnel.core.session import ServerSession
from udptunnel.errors import AccessRuleError, ConfigError, LoginError, RefusedError
from udptunnel.net import fifo
from udptunnel.net.datagrams import Traffic
from udptunnel.net.descriptors import descriptorLimit
from udptunnel.net.dial import Proxy
from udptunnel.net.egress import DirectEgress, Egress, Filtering
from udptunnel.net.guard import Guard
from udptunnel.net.link import LinkProtocol
from udptunnel.net.logs import lines
from udptunnel.net.memory import physicalBytes, residentBytes
from udptunnel.net.names import Names, Resolver, SystemResolver
from udptunnel.net.offload import parseNames, probe
from udptunnel.net.packetpipe import MakePipe
from udptunnel.net.pipeegress import PipeEgress
from udptunnel.net.platforms import isPortable
from udptunnel.net.reach import isLoopback, siteOf
from udptunnel.net.socksegress import PASS, SocksEgress
from udptunnel.net.tls import whyLost
from udptunnel.services.authority import Authority, Visitor
from udptunnel.services.carrier import stopAll
from udptunnel.services.exit import ownTun2socks, tun2socksConfig
from udptunnel.services.links import allGone, every, linkLimits, quietFactory, tickSeconds
from udptunnel.services.listening import Listening
from udptunnel.services.plugin import BEHIND, ServerPlugin, requirePlugin
from udptunnel.services.proxies import passwordIn, resolved
from udptunnel.services.tun2socks import Tun2socksService
from udptunnel.wire.address import Address
from udptunnel.wire.greeting import SESSION_BYTES, Greeting

RESERVE = 512
"""Descriptors that external ports and links leave for strangers, logs and the like."""

LEAST_HALF_OPEN = 8
"""However few descriptors there are, so many strangers may take one."""

FAREWELL_SECONDS = 5.0
"""How long clients have to close their links after a GOAWAY."""

MOST_REPORTED = 1000
"""Sessions that are told one by one in a report."""


class _ServerLinkProtocol(LinkProtocol):
    """
    A link that somebody else has opened, and where it is received.

    @ivar visitor: who is there, once known.
    @ivar secret: what was proven.
    """

    transport: Any

    def __init__(self, service: ServerService) -> None:
        super().__init__(self._make, service.clock)
        self._service = service
        self.visitor = Visitor()
        self.secret = b""

    @property
    def source(self) -> str:
        """The host or network at the other end; empty for a Unix socket."""
        return siteOf(str(getattr(self.transport.getPeer(), "host", "")))

    def connectionMade(self) -> None:
        """Let it in before the door, if it did not fail there lately."""
        super().connectionMade()
        self._service.entered(self)

    def _make(self, carrier: Carrier, now: float) -> Link:
        service = self._service
        return ServerLink(carrier, service.limits, service.counters, now, self)

    # -- Reception

    def challenge(self, user: str, hello: bytes) -> Challenge | None:
        """What a user must prove."""
        authority = self._service.authority
        self.visitor = authority.greet(self.transport)
        challenge = authority.challenge(self.transport, user, hello)
        if challenge is not None:
            self.visitor, self.secret = Visitor(user), challenge.secret
        return challenge

    def admit(self, greeting: Greeting, link: ServerLink) -> ServerSession:
        """The session for a HELLO."""
        return self._service.admit(greeting, self)

    # -- its end

    def failed(self, error: Exception) -> None:
        """It did not get in, or spoke nonsense."""
        super().failed(error)
        self._service.refused(self, error)

    def ended(self, reason: Failure) -> None:
        """The end of the link."""
        if not reason.check(ConnectionClosed):
            # It failed in TLS, where the other end does not always hear why.
            self._log.info("link with {peer} closed: {error}", peer=self.peer, error=whyLost(self.transport, reason))
        self._service.left(self)


class ServerService(MultiService):
    """
    The role udp-server.

    @ivar sessions: by name, parked ones included.
    @ivar connections: all of them, logged in or not.
    @ivar listeners: where they come in.
    @ivar plugins: what they come through before that, if there is something; one for each listener.
    @ivar tun2socks: that of our own, if C{--egress} says so.
    @ivar authority: who may.
    @ivar counters: its figures.
    @ivar logins: how many were accepted and refused.
    @ivar resumed: how many sessions went on after all their links were lost.
    @ivar draining: whether nothing new is let in, because the end is near.
    @ivar whenSessionBegan: called with each new session.
    @ivar whenSessionEnded: called with each that is over.
    """

    _log = Logger()

    def __init__(
        self,
        config: ServerConfig,
        reactor: Any,
        resolver: Resolver | None = None,
        pipe: MakePipe | None = None,
        guard: Guard | None = None,
    ) -> None:
        """
        @param resolver: what names are resolved with, if not the system's way.
        @param pipe: makes what datagrams leave by as packets, whatever C{--egress}
            says: an end of a L{joint<udptunnel.net.packetpipe.joint>}, for one.
        @param guard: sees to it that plugins do not outlive us; one of our own if it is not given.
        @raise ConfigError: an endpoint, an access rule or a file can not be understood.
        """
        super().__init__()
        self.setName("udp-server")
        self._reactor = reactor
        self.config = config
        self.clock = reactor.seconds
        self.counters = Counters()
        self.limits = linkLimits(config)
        self.sessions: dict[bytes, ServerSession] = {}
        self.connections: set[_ServerLinkProtocol] = set()
        self.logins: Counter[str] = Counter()
        self.whenSessionBegan: Callable[[ServerSession], object] = _nobodyAsks
        self.whenSessionEnded: Callable[[ServerSession], object] = _nobodyAsks
        self.resumed = 0
        self.draining = self._crammed = False
        self._drained: Callable[[], None] | None = None
        self._halfOpen: HalfOpen[_ServerLinkProtocol] = HalfOpen(
            _mostHalfOpen(config), config.maxHalfOpenSource, random.random
        )
        self._penalties = Penalties()
        self._mostMemory = _mostMemory(config)
        self._owners: dict[bytes, tuple[Visitor, bytes]] = {}
        self._byUser: dict[str, set[ServerSession]] = {}
        self.authority = Authority(config)
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        self._resolver = resolver or SystemResolver(reactor)
        names = Names(reactor, self._resolver, config.lookups, config.lookupTimeout)
        self._descriptors = max(1, descriptorLimit() - _reserve())
        self.tun2socks: Tun2socksService | None = None
        if pipe is None and config.egress.tun2socks is not None:
            pipe, self.tun2socks = ownTun2socks(config, reactor)
            self.tun2socks.setServiceParent(self)
        self.egress = self._makeEgress(names, pipe)
        factory = quietFactory(lambda: _ServerLinkProtocol(self))
        self._guard, self._ownsGuard = guard or Guard(), guard is None
        plugged = config.listen if requirePlugin(config) else ()
        self.plugins = [ServerPlugin(reactor, config, text, self._guard) for text in plugged]
        texts = [BEHIND for _ in self.plugins] or config.listen
        self.listeners = [Listening(reactor, "listen", text, factory, self.authority.tls) for text in texts]
        self._ticking: LoopingCall | None = None
        if config.status is not None:
            self._addStatus(config.status)

    def _makeEgress(self, names: Names, pipe: MakePipe | None) -> Egress:
        config = self.config
        socks, place = config.egress.socks, config.egress.pipe
        kind: type[Egress] = DirectEgress
        more: dict[str, Any] = {}
        if pipe is not None or place is not None:
            kind, more = PipeEgress, {"makePipe": pipe or fifo.listener(*place or ())}
        elif socks is not None:
            kind, more = SocksEgress, _socksOptions(config, socks)
        most = config.maxPorts or self._descriptors // max(1, kind.descriptors)
        filtering = Filtering(config.filtering, config.strangerRate)
        return kind(self.traffic, self._reactor, _rules(config), names, most, filtering=filtering, **more)

    def _addStatus(self, endpoint: str) -> None:
        # A web server comes with it, and without one a role starts sooner.
        from udptunnel.services.status import StatusService

        allowed = self.config.insecureNoAuth
        status = StatusService("udp-server", endpoint, self.report, self.illness, self._reactor, allowed)
        status.setServiceParent(self)

    # -- the door

    def entered(self, connection: _ServerLinkProtocol) -> None:
        """A connection was accepted; it has yet to log in."""
        self.connections.add(connection)
        source = connection.source
        if self._penalties.barred(source, self.clock()):
            connection.abort()
            return
        surplus = self._halfOpen.enter(connection, source, crowd=not _isStranger(source))
        if surplus is not None:
            self.logins["dropped early"] += 1
            surplus.abort()

    def refused(self, connection: _ServerLinkProtocol, error: Exception) -> None:
        """A connection did not get in, or broke the rules later."""
        if connection in self._halfOpen:
            self.logins["refused"] += 1
        if isinstance(error, RefusedError):
            self._penalize(connection)

    def _penalize(self, connection: _ServerLinkProtocol) -> None:
        if _isStranger(connection.source):
            self._penalties.failed(connection.source, self.clock())

    def left(self, connection: _ServerLinkProtocol) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self._halfOpen.leave(connection)

    # -- sessions

    def admit(self, greeting: Greeting, connection: _ServerLinkProtocol) -> ServerSession:
        """
        The session for a HELLO: the one that its ticket is good for, or a new one.

        @raise LoginError: there is no room.
        @raise RefusedError: the user was removed since the connection was made.
        """
        if not self._mayStay(connection):
            raise RefusedError("not welcome any more")
        self._requireLink(greeting, connection.visitor.user)
        session = self._resume(greeting, connection) or self._begin(greeting, connection)
        self._owners[session.name] = connection.visitor, connection.secret
        self._halfOpen.leave(connection)
        self.logins["accepted"] += 1
        return session

    def _resume(self, greeting: Greeting, connection: _ServerLinkProtocol) -> ServerSession | None:
        session = self.sessions.get(greeting.session)
        if session is None:
            return None
        parked = session.parkedAt is not None
        if not session.resume(greeting, connection.visitor.user, self.clock()):
            if greeting.ticket:
                self._penalize(connection)
            return None
        if len(session.links) >= self.config.maxLinks:
            raise LoginError(f"a session has at most {self.config.maxLinks} links")
        self.resumed += parked
        return session

    def _begin(self, greeting: Greeting, connection: _ServerLinkProtocol) -> ServerSession:
        user = connection.visitor.user
        self._requireRoom(user)
        # Whoever names a session that is not his gets one of his own.
        name = os.urandom(SESSION_BYTES) if greeting.session in self.sessions else greeting.session
        session = self.sessions[name] = ServerSession(
            name,
            self.config.maxAssociations,
            self.counters,
            self._openOutlet,
            self._emptied,
            os.urandom,
            user,
            self.config.resumeGrace,
        )
        self._byUser.setdefault(user, set()).add(session)
        self._log.info("session {session} begins, user {user!r}", session=session.shortName, user=user)
        self.whenSessionBegan(session)
        return session

    def _requireLink(self, greeting: Greeting, user: str) -> None:
        """One more link must leave room for others; the only one of a session takes that of those before it."""
        if sum(len(each.links) for each in self.sessions.values()) >= self._descriptors // 2:
            raise LoginError("too many links")
        if greeting.alone:
            return
        if self._crammed and greeting.session in self.sessions:
            raise LoginError("no memory is left for one more link")
        self._requireUserLink(user)

    def _requireUserLink(self, user: str) -> None:
        if user and sum(len(each.links) for each in self._byUser.get(user, ())) >= self.config.maxUserLinks:
            raise LoginError(f"too many links of {user}")

    def _requireRoom(self, user: str) -> None:
        # The first link of a new session takes nobody's place.
        self._requireUserLink(user)
        if self.draining:
            raise LoginError("udp-server stops")
        if len(self.sessions) >= self.config.maxSessions or self._crammed:
            raise LoginError("too many sessions")
        if user and len(self._byUser.get(user, ())) >= self.config.maxUserSessions:
            raise LoginError(f"too many sessions of {user}")

    def _openOutlet(self, session: ServerSession, number: int) -> Outlet | None:
        """An external port, if the user may have one more."""
        if self._crammed or len(self.connections) + self.egress.ports * self.egress.descriptors >= self._descriptors:
            return None
        if session.user and self._associationsOf(session.user) >= self.config.maxUserAssociations:
            return None
        return self.egress.openOutlet(session, number)

    def _associationsOf(self, user: str) -> int:
        return sum(len(each.associations) for each in self._byUser.get(user, ()))

    def _emptied(self, session: ServerSession) -> None:
        """A session is over."""
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]
            self._owners.pop(session.name, None)
            self._forgetOf(session.user, session)
            self._log.info("session {session} ends", session=session.shortName)
            session.end()
            self.whenSessionEnded(session)

    def _forgetOf(self, user: str, session: ServerSession) -> None:
        sessions = self._byUser[user]
        sessions.discard(session)
        if not sessions:
            del self._byUser[user]

    def drain(self, drained: Callable[[], None]) -> None:
        """
        Let no new session in from now on; those that are there may go on, and come back.

        @param drained: called once, when no more than C{--drain-sessions} are left.
        """
        self.draining = True
        self._drained = drained
        self._log.info("no new sessions are let in, {count} are left", count=len(self.sessions))
        self._endIfDrained()

    def _endIfDrained(self) -> None:
        drained = self._drained
        if drained is not None and len(self.sessions) <= self.config.drainSessions:
            self._drained = None
            drained()

    def _tick(self) -> None:
        now = self.clock()
        self._endIfDrained()
        self._crammed = 0 < self._mostMemory < residentBytes()
        self.traffic.tick(now)
        self.egress.tick(now)
        for session in list(self.sessions.values()):
            session.tick(now)
        for connection in list(self.connections):
            if connection.link is not None and not connection.link.up:
                connection.link.tick(now)

    # -- the service

    def startService(self) -> None:
        """
        Open all ports.

        @raise ListenError: one is taken, or may not be opened without authentication.
        """
        self.egress.start()
        for listener in self.listeners:
            listener.start(self.authority.mayListenAnywhere, self.authority.advice)
        for plugin, listener in zip(self.plugins, self.listeners, strict=False):
            plugin.start(listener.address, self.authority.mayListenAnywhere, self.authority.advice)
        self.traffic.tick(self.clock())
        self._ticking = every(tickSeconds(self.config), self._tick, self._reactor, self._log)
        self._log.info(
            "udp-server: links at {listen}, egress {egress}, at most {ports} external ports, offload {offload}",
            egress=self.egress,
            listen=", ".join(self.config.listen),
            ports=self.egress.mostPorts,
            offload=self.traffic.offload,
        )
        super().startService()

    def reload(self, config: ServerConfig) -> None:
        """
        Judge targets and users by other rules from now on, sessions that are there included.

        @raise ConfigError: something can not be understood; all stays as it was.
        """
        rules = _rules(config)
        socks = config.egress.socks
        options = _socksOptions(config, socks) if socks is not None else {}
        beyond = tun2socksConfig(config) if self.tun2socks is not None else None
        self.authority.reload(config)
        if self.tun2socks is not None and beyond is not None:
            self.tun2socks.reload(beyond)
        if options and isinstance(self.egress, SocksEgress):
            self.egress.use(options["proxy"], options["namesTo"])
        self.egress.rulesChanged(rules)
        for connection in list(self.connections):
            if connection.link is not None and connection.link.up and not self._mayStay(connection):
                connection.link.goAway("not welcome any more", self.clock())
        for session in list(self.sessions.values()):
            if session.parkedAt is not None and not self.authority.welcomes(*self._owners[session.name]):
                self._emptied(session)

    def _mayStay(self, connection: _ServerLinkProtocol) -> bool:
        return self.authority.welcomes(connection.visitor, connection.secret)

    async def stopService(self) -> None:
        """Say farewell to everybody, then close everything."""
        self.draining = True
        if self._ticking is not None and self._ticking.running:
            self._ticking.stop()
        await gatherResults([listener.stop() for listener in self.listeners])
        await self._sayFarewell()
        for connection in list(self.connections):
            connection.abort()
        for session in list(self.sessions.values()):
            session.end()
        self.sessions.clear()
        self.egress.stop()
        if isinstance(self._resolver, SystemResolver):
            self._resolver.stop()
        await super().stopService()
        await stopAll(plugin.carrier for plugin in self.plugins)
        if self._ownsGuard:
            self._guard.close()

    async def _sayFarewell(self) -> None:
        """Close the links, and wait until the other ends have heard of it."""
        for connection in list(self.connections):
            if connection.link is not None and connection.link.up:
                connection.link.goAway("udp-server stops", self.clock())
            else:
                connection.abort()
        await allGone(lambda: self.connections, FAREWELL_SECONDS, self._reactor)

    def illness(self) -> str:
        """Why nobody can use this server; empty if everything is well."""
        return "udp-server stops" if self.draining else ""

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        sessions = list(self.sessions.values())
        peers = {connection.link: connection.peer for connection in self.connections}
        return {
            "role": "udp-server",
            "up": not self.draining,
            "draining": self.draining,
            "sessions": [self._reportOf(session, peers) for session in sessions[:MOST_REPORTED]],
            "sessionCount": len(sessions),
            "parkedCount": sum(session.parkedAt is not None for session in sessions),
            "links": sum(len(session.links) for session in sessions),
            "halfOpen": len(self._halfOpen),
            "associations": sum(len(session.associations) for session in sessions),
            "externalPorts": self.egress.ports,
            "egress": str(self.egress),
            **self.egress.report(),
            **({"tun2socks": self.tun2socks.report()} if self.tun2socks is not None else {}),
            "logins": dict(self.logins),
            "resumed": self.resumed,
            "offload": str(self.traffic.offload),
            "portable": isPortable(self._reactor, self.traffic.offload),
            "log": lines.report(),
            **self.counters.report(),
        }

    def _reportOf(self, session: ServerSession, peers: Mapping[Link | None, str]) -> dict[str, Any]:
        return {
            "name": session.shortName,
            "user": session.user,
            "links": [{"peer": peers.get(link, ""), **link.report(self.clock())} for link in session.links],
            "associations": len(session.associations),
            "parked": session.parkedAt is not None,
        }


def _nobodyAsks(session: ServerSession) -> None:
    """Nobody wants to know."""


def _reserve() -> int:
    return min(RESERVE, descriptorLimit() // 2)


def _isStranger(source: str) -> bool:
    """Behind a proxy everybody comes from loopback, so nobody suffers there for what another does."""
    return bool(source) and not isLoopback(source)


def _mostHalfOpen(config: ServerConfig) -> int:
    """Strangers take at most half of the descriptors that are kept back."""
    return min(config.maxHalfOpen, max(LEAST_HALF_OPEN, _reserve() // 2))


def _mostMemory(config: ServerConfig) -> int:
    """In bytes; 0 if nobody knows how much there is."""
    return config.maxMemory << 20 or physicalBytes() * 3 // 4


def _socksOptions(config: ServerConfig, server: Address) -> dict[str, Any]:
    """What L{SocksEgress} needs to know besides."""
    namesTo = config.egressNames or PASS
    if config.egressNames is None and config.deny:
        raise ConfigError(
            "--deny with --egress socks5: the SOCKS5 server looks names up, so that no rule can judge what they stand "
            "for; say --egress-names resolve, refuse, or pass if that is all right"
        )
    if namesTo == PASS and config.filtering != "endpoint":
        raise ConfigError(
            f"--filtering {config.filtering} with --egress socks5: nobody here knows who answers for a name; "
            "say --egress-names resolve or refuse, too"
        )
    given = config.egressUdpAddress
    password = passwordIn("--egress-password-file", config.egressPasswordFile)
    return {
        "proxy": Proxy(resolved("--egress", server), config.egressUser or "", password),
        "udpAddress": resolved("--egress-udp-address", given) if given is not None else None,
        "namesTo": namesTo,
    }


def _rules(config: ServerConfig) -> AccessRules:
    try:
        return AccessRules(config.allow, config.deny, config.denyPort)
    except AccessRuleError as error:
        raise ConfigError(f"--allow or --deny: {error}") from error
