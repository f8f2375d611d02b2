"""
Egress: how udp-server reaches targets.

Each association has an external port, which anybody may answer to:
endpoint-independent mapping and filtering (RFC 4787), a "full cone", unless a
stricter L{Filtering} is chosen. Whether a target may be reached is decided once
for each target, not for each datagram.

What an external port stands on is up to the kind of egress: L{DirectEgress}
has a UDP port of this machine for each, for IPv4 and IPv6 alike. See
L{udptunnel.net.socksegress} and L{udptunnel.net.pipeegress} for the others.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.core.acl import AccessRules, addressesIn
from udptunnel.core.associations import Outlet
from udptunnel.core.bucket import Bucket
from udptunnel.core.session import ServerSession
from udptunnel.errors import ListenError, ResolveError
from udptunnel.net.datagrams import DatagramPort, KernelAddress, Traffic
from udptunnel.net.names import Names
from udptunnel.net.reach import isOwn
from udptunnel.net.sockaddr import MAPPED
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, count
from udptunnel.wire.frame import Buffer

MOST_ROUTES = 65536
"""Targets whose verdict is remembered."""

ROUTE_SECONDS = 60.0
"""How long a verdict is remembered: addresses of this machine come and go."""

WAITING_BURSTS = 16
"""Bursts of one association that wait for a name."""

NOT_NOW = "name not resolved"

NOWHERE = Address("0.0.0.0", 0)


MOST_KNOWN = 1024
"""Hosts that an external port remembers to have sent to."""


class Filtering(NamedTuple):
    """
    Who may send to an external port (RFC 4787 section 5).

    @ivar who: C{endpoint}, anybody; C{address}, hosts that were sent to; C{port}, only what exactly was sent to.
    @ivar strangers: datagrams a second that one port takes from whom nothing was sent to; 0 for no limit.
    """

    who: str = "endpoint"
    strangers: int = 0

    def keyOf(self, address: Address) -> str | Address:
        """By what a peer is known again."""
        return address if self.who == "port" else address.host


class Route:
    """
    The way to one target, or why there is none.

    @ivar target: the target, its host in digits.
    @ivar to: where to send; C{None} if nothing may be sent.
    @ivar reason: why nothing is.
    @ivar until: when this must be found out again.
    @ivar key: by what an external port remembers that it has sent there.
    """

    __slots__ = ("key", "reason", "target", "to", "until")

    key: str | Address

    def __init__(self, to: KernelAddress | None, reason: str, until: float, target: Address = NOWHERE) -> None:
        self.to = to
        self.target = target
        self.reason = reason
        self.until = until


class Base(Protocol):
    """What an external port stands on."""

    @property
    def address(self) -> Address:
        """What tells it from others: the address that it is bound to, if it has one."""

    def send(self, to: KernelAddress, size: int, payload: Buffer) -> None:
        """
        Send a burst. What can not be sent is dropped and counted by its reason.

        @param to: what L{Egress.routeTo} has made of the target.
        """

    def close(self) -> None:
        """Close it, and forget its receiver."""


class ExternalPort:
    """The outlet of an association on the server: a UDP port that the whole world sees, wherever it is."""

    __slots__ = ("_egress", "_known", "_namesSent", "_number", "_port", "_session", "_strangers", "_waiting")

    def __init__(self, egress: Egress, session: ServerSession, number: int) -> None:
        """
        @raise ListenError: there is nothing that it could stand on.
        """
        self._egress = egress
        self._session = session
        self._number = number
        self._waiting: list[tuple[Address, int, bytes]] = []
        self._known: dict[str | Address, Address] = {}
        self._namesSent = False
        self._strangers = Bucket(egress.filtering.strangers, egress.seconds())
        self._port = egress.openBase(self)

    @property
    def address(self) -> Address:
        """What the port is bound to."""
        return self._port.address

    # -- to the targets

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        """Send a burst to a target, if it may be reached."""
        route = self._egress.route(address)
        if route is None:
            self._await(address, size, payload)
        else:
            self._sendBy(route, size, payload)

    def _sendBy(self, route: Route, size: int, payload: Buffer) -> None:
        if route.to is None:
            self._egress.drop(route.reason, count(size, payload))
        else:
            if route.key not in self._known:
                self._learn(route)
            self._port.send(route.to, size, payload)

    def _learn(self, route: Route) -> None:
        """Remember where something is sent for the first time."""
        if len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[route.key] = route.target
        self._namesSent = self._namesSent or route.target.isName

    def _await(self, address: Address, size: int, payload: Buffer) -> None:
        """Let a burst wait until the name of its target is resolved."""
        if len(self._waiting) >= WAITING_BURSTS:
            self._egress.drop(NOT_NOW, count(size, payload))
            return
        isFirst = all(address != each for each, _, _ in self._waiting)
        self._waiting.append((address, size, bytes(payload)))
        if isFirst:
            self._egress.find(address, self._session.name, self.found)

    def found(self, address: Address, route: Route) -> None:
        """The name of a target is resolved, or is known to be of no use."""
        waiting = [each for each in self._waiting if each[0] == address]
        self._waiting = [each for each in self._waiting if each[0] != address]
        for _, size, payload in waiting:
            self._sendBy(route, size, payload)

    # -- from anywhere

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Somebody has sent something."""
        association = self._session.associations.get(self._number)
        if association is not None:
            now, parcels = self._egress.seconds(), []
            for burst in bursts:
                if self._lets(burst, now):
                    association.touch(burst.source, now)
                    parcels.append((association, *burst))
            if parcels:
                self._session.send(parcels, now)

    def _lets(self, burst: Burst, now: float) -> bool:
        """Whether a burst may come in; counted if not."""
        filtering = self._egress.filtering
        if self._namesSent or filtering.keyOf(burst.source) in self._known:
            # Who stands behind a name that somebody else looks up, only he knows.
            return True
        datagrams = count(burst.size, burst.payload)
        if filtering.who != "endpoint":
            self._egress.drop("from a stranger", datagrams)
            return False
        if filtering.strangers and not self._strangers.take(datagrams, now):
            self._egress.drop("too many from strangers", datagrams)
            return False
        return True

    def rulesChanged(self) -> None:
        """Close the association if it has sent where nobody may go any more."""
        association = self._session.associations.get(self._number)
        if association is not None and not all(map(self._egress.mayReach, self._known.values())):
            self._session.close(association)

    def closed(self) -> None:
        """The association is over."""
        self._port.close()
        self._egress.portClosed(self)


class Egress:
    """
    What all kinds of egress have in common.

    @cvar descriptors: how many each external port takes.
    @ivar mostPorts: how many external ports there may be.
    @ivar filtering: who may send to them.
    """

    _log = Logger()
    descriptors = 1

    def __init__(
        self,
        traffic: Traffic,
        clock: IReactorTime,
        rules: AccessRules,
        names: Names,
        mostPorts: int,
        isOwn: Callable[[str], bool] = isOwn,
        filtering: Filtering = Filtering(),  # noqa: B008
    ) -> None:
        """
        @param mostPorts: how many external ports there may be at once.
        @param isOwn: tells whether a host is this machine itself.
        """
        self.seconds = clock.seconds
        self.filtering = filtering
        self._ports: set[ExternalPort] = set()
        self._traffic = traffic
        self._rules = rules
        self._names = names
        self.mostPorts = mostPorts
        self._isOwn = isOwn
        self._routes: dict[Address, Route] = {}

    def start(self) -> None:
        """
        Be ready for associations.

        @raise ListenError: that can not be done.
        """

    # -- external ports

    def openOutlet(self, session: ServerSession, number: int) -> Outlet | None:
        """An external port for a new association; C{None} if there are too many, or no descriptor is left."""
        if self.ports >= self.mostPorts:
            return None
        try:
            opened = ExternalPort(self, session, number)
        except ListenError as error:
            self._log.debug("no external port: {error}", error=error)
            return None
        self._ports.add(opened)
        return opened

    def openBase(self, port: ExternalPort) -> Base:
        """
        What an external port is to stand on, and get its datagrams from.

        @raise ListenError: that can not be had.
        """
        raise NotImplementedError

    @property
    def ports(self) -> int:
        """How many external ports are open."""
        return len(self._ports)

    def portClosed(self, port: ExternalPort) -> None:
        """An external port is closed."""
        self._ports.discard(port)

    def drop(self, reason: str, datagrams: int) -> None:
        """Count what goes nowhere."""
        self._traffic.counters.drop(reason, datagrams)

    # -- routes

    def route(self, address: Address) -> Route | None:
        """The way to a target; C{None} if its name must be resolved first."""
        return self._routes.get(address) or self._decide(address)

    def _decide(self, address: Address) -> Route | None:
        if address.isName:
            return None
        return self._remember(address, self._judge([address.host], address.port))

    def tick(self, now: float) -> None:
        """A second or so has passed: forget verdicts that are old."""
        for address in [each for each, route in self._routes.items() if now >= route.until]:
            del self._routes[address]

    def find(self, address: Address, asker: bytes, found: Callable[[Address, Route], None]) -> None:
        """Resolve the name of a target, and tell C{found} of the way."""

        def resolved(hosts: tuple[str, ...]) -> Route:
            return self._remember(address, self._judge(hosts, address.port))

        def unresolved(failure: Failure) -> Route:
            failure.trap(ResolveError)
            return Route(None, NOT_NOW, 0.0)

        answer: Any = self._names.resolve(address.host, asker)
        answer.addCallbacks(resolved, unresolved)
        answer.addCallback(lambda route: found(address, route))
        answer.addErrback(lambda failure: self._log.failure("resolving {name}", failure, name=address.host))

    def _judge(self, hosts: tuple[str, ...] | list[str], port: int) -> Route:
        """
        The way to the first of some hosts. All of them must be allowed: a name
        that also leads where nobody may go is not to be trusted.
        """
        until = self.seconds() + ROUTE_SECONDS
        try:
            allowed = all(self.allows(Address(host, port)) for host in hosts)
        except OSError:
            # Nothing is known yet: to be asked again after the next tick.
            return Route(None, "no descriptor", 0.0)
        if not allowed:
            return Route(None, "target refused", until)
        return self.routeTo(Address(hosts[0], port), until)

    def routeTo(self, target: Address, until: float) -> Route:
        """The way to a numeric target that may be reached."""
        return Route(target, "", until, target)

    def allows(self, target: Address) -> bool:
        """
        Whether a numeric target may be reached.

        @raise OSError: no descriptor is left to find out.
        """
        return self._rules.allows(target, self._leadsHome(target.host))

    def mayReach(self, target: Address) -> bool:
        """Whether the rules allow a target that was reached before, so that it is not this machine itself."""
        return self._rules.allows(target, False)

    def _leadsHome(self, host: str) -> bool:
        """Whether a host is this machine, perhaps by way of an IPv4 address inside an IPv6 one."""
        return any(self._isOwn(str(each)) for each in addressesIn(host))

    def _remember(self, address: Address, route: Route) -> Route:
        if len(self._routes) >= MOST_ROUTES:
            self._routes.clear()
        if route.to is not None:
            route.key = self.filtering.keyOf(route.target)
        self._routes[address] = route
        return route

    def rulesChanged(self, rules: AccessRules) -> None:
        """Judge by other rules from now on, known targets included."""
        self._rules = rules
        self._routes.clear()
        for port in list(self._ports):
            port.rulesChanged()

    # -- the rest

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {}

    def stop(self) -> None:
        """Close everything; all external ports are closed by now."""


class DirectEgress(Egress):
    """Sends to targets from this machine."""

    def __init__(
        self,
        traffic: Traffic,
        clock: IReactorTime,
        rules: AccessRules,
        names: Names,
        mostPorts: int,
        isOwn: Callable[[str], bool] = isOwn,
        filtering: Filtering = Filtering(),  # noqa: B008
    ) -> None:
        """
        The same as L{Egress}, which see.
        """
        super().__init__(traffic, clock, rules, names, mostPorts, isOwn, filtering)
        self._host = "::" if _hasBothFamilies() else "0.0.0.0"

    def __str__(self) -> str:
        return "direct"

    def openBase(self, port: ExternalPort) -> DatagramPort:
        """
        A UDP port.

        @raise ListenError: no descriptor is left.
        """
        opened = DatagramPort(self._traffic, Address(self._host, 0), port)
        opened.startListening()
        return opened

    def routeTo(self, target: Address, until: float) -> Route:
        """The way to a target, as a socket for both families wants it."""
        isSix = ":" in target.host
        if isSix and self._host != "::":
            return Route(None, "no IPv6 here", until)
        mapped = MAPPED + target.host if not isSix and self._host == "::" else target.host
        return Route((mapped, target.port), "", until, target)


def _hasBothFamilies() -> bool:
    """Whether one socket can do IPv4 and IPv6."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind(("::", 0))
    except OSError:
        return False
    return True
