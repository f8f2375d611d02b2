"""
What leads the machine's packets into a TUN.

Either some networks get a route in the main table, or everything is captured,
in WireGuard's way: a table of our own has default routes through the TUN, and
rules choose it. In the order in which the kernel looks at them::

    P      to SERVER         goto P+3                                  past the TUN
    P+1    [not dport 53]    lookup main suppress_prefixlength 0       specific routes win
    P+2    not fwmark N      lookup TABLE                              into the TUN
    P+3                      nop

So packets of our own sockets, which carry the mark, leave as they did before,
by whatever other rules there are.

The rule with the target is there for the way back. Where C{rp_filter} is
strict, the kernel looks up the source of each packet that arrives, as if it
were the target, and wants the same device; and it does so without a mark,
unless C{src_valid_mark} is set and something marks packets that arrive. With
"not fwmark" that lookup finds the TUN. For packets that come out of the TUN
this is right, so C{src_valid_mark} is not needed for them; for answers of a
SOCKS5 server it is wrong, and all of them would be dropped. The rule makes it
right, and no other device's C{rp_filter} has to be touched.

Everything carries our protocol number. Routes through a TUN go with it, rules
do not: what a killed process has left is known by its table, in which no route
leads to a device that somebody has open.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from twisted.logger import Logger

from udptunnel.errors import RouteError
from udptunnel.net.rtnetlink import (
    EVERYTHING,
    MAIN,
    USUAL_METRIC,
    Device,
    KernelRoute,
    LinuxRouting,
    Routing,
    Rule,
    networkOf,
)

PROTOCOL = 117
"""Who has made a route or a rule: us. C{/etc/iproute2/rt_protos} has nobody else there."""

FIRST_TABLE = 11700
"""The first of L{TABLES} tables; each process that captures everything takes one."""

TABLES = 16

FIRST_PRIORITY = 31000
"""P of the first table. The second has a smaller one, so who came last captures: as WireGuard has it."""

MARK = 0x75740
"""What our sockets are marked with if everything is captured and nobody has chosen a mark."""

DNS_PORT = 53

_PAST, _SPECIFIC, _CAPTURE, _END = range(4)
_STEP = 4

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)
"""What the kernel says of a route, rule or device that is not there."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV, errno.EINVAL)
"""What it says where IPv6 is switched off."""


@dataclass(frozen=True)
class Capture:
    """What is to go into a TUN."""

    networks: tuple[str, ...] = ()
    """Networks that get a route in the main table (C{--route})."""

    everything: bool = False
    """Whether everything goes there that has no more specific route (C{--auto-route})."""

    mark: int = 0
    """What our sockets are marked with (C{--fwmark}); 0: L{MARK} if everything is captured, otherwise none."""

    names: bool = False
    """Whether DNS goes there even if its server is in a network that has a more specific route (C{--dns})."""

    past: tuple[str, ...] = ()
    """
    Addresses and networks that are reached past the TUN: the servers that our
    own sockets connect to, and whatever carries these connections further.
    """

    @property
    def socketMark(self) -> int:
        """The mark (C{SO_MARK}) that our own sockets need; 0: none."""
        return self.mark or (MARK if self.everything else 0)


class Routes:
    """
    The routes and rules for one TUN. All calls block for some milliseconds.

    @ivar table: which table is ours; 0: none.
    """

    _log = Logger()

    def __init__(self, capture: Capture, system: Routing | None = None) -> None:
        """
        @param system: the operating system; Linux unless a test says otherwise.
        """
        self.table = 0
        self._capture = capture
        self._system: Routing = system or LinuxRouting()
        self._device = Device(0, "", False)
        self._undo: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    # -- start

    def start(self, name: str) -> None:
        """
        Remove what dead processes have left, and lead packets into a TUN, which is up and has its addresses.

        It may be called again when the TUN was made anew.

        @param name: what the TUN is called.
        @raise RouteError: that can not be done; nothing was changed.
        """
        self.stop()
        if not (self._capture.networks or self._capture.everything):
            return
        try:
            self._start(name)
        except RouteError:
            self.stop()
            raise
        except (OSError, ValueError) as error:
            self.stop()
            raise RouteError(f"{self._options}: {_reason(error)}") from error

    @property
    def _options(self) -> str:
        """The options that are to blame."""
        everything = ["--auto-route"] if self._capture.everything else []
        return " ".join(everything + [f"--route {network}" for network in self._capture.networks])

    def _start(self, name: str) -> None:
        devices = self._system.devices()
        found = [device for device in devices if device.name == name]
        if not found:
            raise RouteError(f"{self._options}: there is no device {name}")
        self._device = found[0]
        sweep(self._system, devices, self._device.number)
        for network in self._capture.networks:
            self._lead(network)
        if self._capture.everything:
            self._takeTable()
            for rule in self._rules():
                self._addRule(rule)
        self._loosen()

    def _lead(self, network: str) -> None:
        route = KernelRoute(networkOf(network), self._device.number, protocol=PROTOCOL)
        try:
            self._addRoute(route._replace(metric=USUAL_METRIC[route.family]))
        except FileExistsError:
            raise RouteError(
                f"--route {network}: there is such a route already; name parts of it, or use --auto-route"
            ) from None

    def _addRoute(self, route: KernelRoute) -> None:
        self._system.addRoute(route)
        self._undo.append((self._system.removeRoute, (route,)))

    def _addRule(self, rule: Rule) -> None:
        self._system.addRule(rule)
        self._undo.append((self._system.removeRule, (rule,)))

    # -- everything

    def _takeTable(self) -> None:
        """
        Fill a table of our own. The kernel refuses a second default route, so no other process can take it too.

        The first route leads to the TUN: a table without such a one counts as left over.
        """
        for table in range(FIRST_TABLE, FIRST_TABLE + TABLES):
            before = len(self._undo)
            try:
                self._fill(table)
            except FileExistsError:
                self._takeBack(before)
            else:
                self.table = table
                return
        raise RouteError(f"--auto-route: {TABLES} processes capture everything already")

    def _fill(self, table: int) -> None:
        through = self._device.families or frozenset(EVERYTHING)
        for family in sorted(EVERYTHING, key=lambda family: family not in through):
            route = KernelRoute(EVERYTHING[family], self._device.number, "", table, USUAL_METRIC[family], PROTOCOL)
            if family in through:
                self._addRoute(route)
            else:
                # Programs are told at once, and take the other family: nothing leaves beside the TUN.
                self._block(route._replace(device=0))

    def _block(self, route: KernelRoute) -> None:
        try:
            self._addRoute(route)
        except OSError as error:
            if route.family != 6 or error.errno not in _NO_IPV6:
                raise
            self._log.warn("IPv6 is not kept from leaving beside the TUN: {error}", error=error.strerror)

    def _rules(self) -> list[Rule]:
        """Our rules, the one that captures last, so that packets go by all or by none."""
        first = priorityOf(self.table)
        past = [networkOf(network) for network in self._capture.past if not _isLoopback(network)]
        rules = []
        for family in EVERYTHING:
            to = [network for network in past if (":" in network) == (family == 6)]
            if to:
                rules.append(Rule(family, first + _END, PROTOCOL))
            rules += [Rule(family, first + _PAST, PROTOCOL, jump=first + _END, to=network) for network in to]
            port = DNS_PORT if self._capture.names else 0
            rules.append(Rule(family, first + _SPECIFIC, PROTOCOL, MAIN, notPort=port, specific=True))
        mark = self._capture.socketMark
        return rules + [Rule(family, first + _CAPTURE, PROTOCOL, self.table, notMark=mark) for family in EVERYTHING]

    # -- the way back

    def _loosen(self) -> None:
        """
        Packets come out of the TUN from any address, also from one that has a route elsewhere. No other
        device is touched; the kernel takes the greater of a device's value and that of C{all}.
        """
        name = self._device.name
        with suppress(OSError):
            before = self._system.reversePath(name)
            if max(before, self._system.reversePath("all")) == 1:
                self._system.setReversePath(name, 2)
                self._undo.append((self._system.setReversePath, (name, before)))

    # -- loops

    def leadsBack(self, host: str) -> bool:
        """Whether packets of ours, with our mark, to a numeric host would go into our own TUN."""
        try:
            return self._system.deviceTowards(host, self._capture.socketMark) == self._device.number
        except OSError:
            return False

    def refuseLoops(self, option: str, hosts: Iterable[str]) -> None:
        """
        See that the servers we need are not reached through our own TUN; to be called once it has its routes.

        @param option: which option they were given with.
        @raise RouteError: one is.
        """
        for host in hosts:
            if self.leadsBack(host):
                raise RouteError(
                    f"{option} {host}: our own packets to it would come back to us through {self._device.name}; "
                    "leave it out of --route, or use --auto-route and --fwmark"
                )

    # -- stop

    def stop(self) -> None:
        """Make everything as it was before. What is gone already is gone."""
        self._takeBack(0)
        self.table = 0

    def _takeBack(self, kept: int) -> None:
        while len(self._undo) > kept:
            call, arguments = self._undo.pop()
            try:
                call(*arguments)
            except OSError as error:
                if error.errno not in _GONE:
                    self._log.warn("not removed, {what}: {error}", what=arguments, error=_reason(error))

    def report(self) -> dict[str, object]:
        """The state as plain values."""
        return {
            "device": self._device.name,
            "routes": list(self._capture.networks),
            "table": self.table,
            "mark": self._capture.socketMark,
        }


def priorityOf(table: int) -> int:
    """The priority of the first rule that belongs to a table."""
    return FIRST_PRIORITY - (table - FIRST_TABLE) * _STEP


def _tableOf(priority: int) -> int:
    """The table that a rule with a priority belongs to."""
    return FIRST_TABLE - (priority - FIRST_PRIORITY) // _STEP


def sweep(system: Routing, devices: Iterable[Device], own: int = 0) -> None:
    """
    Remove what processes have left that are not there any more.

    One that lives has its TUN open, and at least one route through it.

    @param own: number of a device that we have open ourselves, so that nobody else can.
    @raise OSError: something can not be removed.
    """
    open_ = {device.number for device in devices if device.carrier and device.number != own}
    routes = system.routes(PROTOCOL)
    living = {route.table for route in routes if route.device in open_}
    for rule in system.rules(PROTOCOL):
        if _tableOf(rule.priority) not in living:
            _remove(system.removeRule, rule)
    for route in routes:
        if route.device not in open_ if route.table == MAIN else route.table not in living:
            _remove(system.removeRoute, route)


def _remove(call: Callable[..., None], what: KernelRoute | Rule) -> None:
    try:
        call(what)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _isLoopback(network: str) -> bool:
    return ipaddress.ip_network(network).is_loopback


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EPERM:
        return "routes need root or CAP_NET_ADMIN"
    return os.strerror(code) if code else str(error)
