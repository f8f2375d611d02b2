"""
The machine's default route through a TUN, and one host past it.

This is what Outline's proxy controller does, and what its clients expect: in
the main table, so that C{ip route} shows it, the default routes lead through
the TUN, and a host route leads to the proxy by the way that it had before::

    default via 10.0.85.1 dev tun0 proto 118 metric 5
    203.0.113.5 via 192.168.1.1 dev eth0 proto 118

The old default routes stay where they are, with a greater metric. Where the
old one has a metric that nothing is below, two halves of the address space,
which are more specific, stand instead of the default route.

A family of which the TUN has no address is unreachable meanwhile. So is the
proxy while the machine has no way to it: its packets must not go into the TUN.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass

from udptunnel.errors import RouteError
from udptunnel.net.rtnetlink import EVERYTHING, MAIN, USUAL_METRIC, Device, KernelRoute, Routing

PROTOCOL = 118
"""Who has made a route: the controller. Another number than C{routes.PROTOCOL}, so that neither sweeps the other's."""

METRIC = 5
"""Below what DHCP clients and NetworkManager choose (100 and more), above 0, which is what C{ip route add} chooses."""

HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}

SAMPLES = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Addresses that nobody has (RFC 5737, RFC 3849): where packets to anywhere would go."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)


@dataclass(frozen=True)
class Way:
    """
    What a client has asked for.

    @ivar proxy: the host that is reached past the TUN.
    @ivar router: the gateway in the TUN's network.
    """

    proxy: str
    router: str

    @classmethod
    def parse(cls, proxy: str, router: str, addresses: Iterable[str]) -> Way:
        """
        Check what a client says.

        @param addresses: ADDRESS/LENGTH of each address of the TUN.
        @raise RouteError: one of both is of no use; the text says which and why.
        """
        way = cls(_hostOf("proxyIp", proxy), _hostOf("routerIp", router))
        owns = [ipaddress.ip_interface(each) for each in addresses]
        networks = [own.network for own in owns]
        if not any(ipaddress.ip_address(way.router) in network for network in networks):
            raise RouteError(f"routerIp {router}: expected an address in {' or '.join(map(str, networks))}")
        if any(ipaddress.ip_address(way.proxy) in network for network in networks):
            raise RouteError(f"proxyIp {proxy}: it is in the TUN's own network")
        if ":" in way.router and any(str(own.ip) == way.router for own in owns):
            raise RouteError(f"routerIp {router}: the TUN's own address; the kernel takes that for IPv4 only")
        return way


def _hostOf(name: str, text: str) -> str:
    try:
        host = ipaddress.ip_address(text)
    except ValueError:
        raise RouteError(f"{name} {text[:100]}: expected a numeric IP address") from None
    isOdd = host.is_reserved if host.version == 4 else host.ipv4_mapped is not None or "%" in text
    if host.is_loopback or host.is_unspecified or host.is_multicast or host.is_link_local or isOdd:
        raise RouteError(f"{name} {text}: no address of another machine")
    return str(host)


class Detour:
    """
    The routes of the controller, for one TUN. All calls block for some milliseconds.

    @ivar way: what is in force; C{None}: nothing.
    @ivar reachable: whether the machine has a way to the proxy.
    """

    def __init__(self, system: Routing, keepIpv6: bool = False) -> None:
        """
        @param keepIpv6: whether IPv6 stays as it is while the TUN has no IPv6 address.
        """
        self.way: Way | None = None
        self.reachable = False
        self._system = system
        self._keepIpv6 = keepIpv6
        self._device = Device(0, "", False)

    def sweep(self) -> None:
        """
        Remove what a killed controller has left.

        @raise OSError: that can not be done.
        """
        for route in self._system.routes(PROTOCOL):
            self._remove(route)

    def set(self, device: Device, way: Way) -> None:
        """
        Lead everything but the proxy's packets through a TUN. What was set before is replaced.

        @raise RouteError: there is no way to the proxy, or other routes or rules of this machine go before
            ours. Nothing is set any more.
        @raise OSError: the kernel refuses. Nothing is set any more.
        """
        self.way = way
        try:
            self.mend(device)
            self._check(way)
        except (OSError, RouteError):
            self.clear()
            raise

    def mend(self, device: Device) -> bool:
        """
        See that the routes are what they should be; the machine's own routes may have changed, or the TUN.

        @return: whether something had to be changed.
        @raise OSError: the kernel refuses.
        """
        if self.way is None:
            return False
        self._device = device
        wanted = self._wanted(self.way)
        present = self._system.routes(PROTOCOL)
        stale = [route for route in present if route not in wanted]
        absent = [route for route in wanted if route not in present]
        for route in stale:
            self._remove(route)
        for route in absent:
            self._add(route)
        self.reachable = self._hop(self.way.proxy) is not None
        return bool(stale or absent)

    def clear(self) -> None:
        """
        Make the routes what they were before.

        @raise OSError: that can not be done.
        """
        self.way, self.reachable = None, False
        self.sweep()

    # -- what should be there

    def _wanted(self, way: Way) -> list[KernelRoute]:
        """The proxy's route first: its packets should not see the others without it."""
        wanted = self._pastRoutes(way.proxy)
        for family in EVERYTHING:
            through = family in self._device.families
            if through or not (family == 6 and self._keepIpv6):
                wanted += [self._leading(network, through, way.router) for network in self._networks(family)]
        return wanted

    def _pastRoutes(self, proxy: str) -> list[KernelRoute]:
        """What leads to the proxy; nothing, if it has a more specific route than a default anyway."""
        hop = self._hop(proxy)
        own = f"{proxy}/{128 if ':' in proxy else 32}"
        route = KernelRoute(own, 0, protocol=PROTOCOL)
        route = route._replace(metric=USUAL_METRIC[route.family])
        if hop is None:
            return [route]
        if _lengthOf(hop) > 1:
            return []
        return [route._replace(device=hop.device, gateway=hop.gateway)]

    def _hop(self, proxy: str) -> KernelRoute | None:
        """The route that leads to the proxy without us."""
        address = ipaddress.ip_address(proxy)
        leading = [route for route in self._others() if address in ipaddress.ip_network(route.network)]
        best = max(leading, key=lambda route: (_lengthOf(route), -route.metric), default=None)
        return best if best is not None and best.device else None

    def _networks(self, family: int) -> tuple[str, ...]:
        """What stands for everything: the default route, if ours can be the first."""
        metrics = [route.metric for route in self._others() if route.network == EVERYTHING[family]]
        return (EVERYTHING[family],) if min(metrics, default=METRIC + 1) > METRIC else HALVES[family]

    def _leading(self, network: str, through: bool, router: str) -> KernelRoute:
        route = KernelRoute(network, self._device.number if through else 0, metric=METRIC, protocol=PROTOCOL)
        return route._replace(gateway=router) if through and (":" in router) == (route.family == 6) else route

    def _others(self) -> list[KernelRoute]:
        return [route for route in self._system.routes(table=MAIN) if self._isOthers(route)]

    def _isOthers(self, route: KernelRoute) -> bool:
        return route.protocol != PROTOCOL and route.device != self._device.number

    # -- doing it

    def _add(self, route: KernelRoute) -> None:
        try:
            self._system.addRoute(route)
        except OSError as error:
            # Where IPv6 is switched off nothing can leave beside the TUN that way.
            if route.family != 6 or route.device or error.errno not in _NO_IPV6:
                raise OSError(error.errno, f"{route.network}: {os.strerror(error.errno or 0)}") from error

    def _remove(self, route: KernelRoute) -> None:
        try:
            self._system.removeRoute(route)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _check(self, way: Way) -> None:
        """Ask the kernel whether packets go where they should: rules or routes of others may go first."""
        if not self.reachable:
            raise RouteError(f"proxyIp {way.proxy}: this machine has no way to it")
        for family in self._device.families:
            if self._towards(SAMPLES[family]) != self._device.number:
                raise RouteError(f"other routes or rules of this machine go before those through {self._device.name}")
        if self._towards(way.proxy) == self._device.number:
            raise RouteError(f"proxyIp {way.proxy}: packets to it would go into {self._device.name}")

    def _towards(self, host: str) -> int:
        try:
            return self._system.deviceTowards(host)
        except OSError:
            return 0


def _lengthOf(route: KernelRoute) -> int:
    return int(route.network.rpartition("/")[2])
