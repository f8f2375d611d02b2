"""A machine's devices, routes and rules in memory, and the kernel's way through them."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator

from udptunnel.net.rtnetlink import MAIN, USUAL_METRIC, Device, KernelRoute, Rule

LAN, TUN = 2, 7
"""Numbers of devices that most tests have."""

USUAL_RULES = [Rule(family, 32766, 2, MAIN) for family in (4, 6)]


def failure(code: int) -> OSError:
    """What a system call raises."""
    return OSError(code, os.strerror(code))


def makeDevice(
    name: str = "tun0", number: int = TUN, carrier: bool = True, alias: str = "", families: tuple[int, ...] = (4,)
) -> Device:
    """A TUN that is open."""
    return Device(number, name, carrier, alias, frozenset(families))


class MemoryRouting:
    """
    A machine with one network card, which has default routes, and a TUN.

    @ivar refused: what the next calls raise, by name of the call, or by call and family.
    @ivar strict: C{rp_filter} by device.
    @ivar forwarding: devices whose packets go further, and the version of IP.
    """

    def __init__(self, *devices: Device) -> None:
        card = Device(LAN, "eth0", True, "", frozenset((4, 6)), 0, ("192.168.1.7", "192.168.1.8", "fd00:1::7"))
        self.present = [Device(1, "lo", True), card, *(devices or (makeDevice(),))]
        self.table = [
            KernelRoute("192.168.1.0/24", LAN, protocol=2),
            KernelRoute("0.0.0.0/0", LAN, "192.168.1.1", metric=100, protocol=16),
            KernelRoute("fd00:1::/64", LAN, metric=256, protocol=2),
            KernelRoute("::/0", LAN, "fe80::1", metric=1024, protocol=9),
        ]
        self.chosen = list(USUAL_RULES)
        self.refused: dict[object, OSError] = {}
        self.strict = {"all": 0, **{device.name: 0 for device in self.present}}
        self.forwarding: set[tuple[str, int]] = set()

    def _called(self, name: str, family: int = 0) -> None:
        for key in (name, (name, family)):
            if key in self.refused:
                raise self.refused[key]

    def devices(self) -> list[Device]:
        self._called("devices")
        return list(self.present)

    def routes(self, protocol: int | None = None, table: int | None = None) -> list[KernelRoute]:
        self._called("routes")
        return [each for each in self.table if protocol in (None, each.protocol) and table in (None, each.table)]

    def addRoute(self, route: KernelRoute) -> None:
        self._called("addRoute", route.family)
        metric = route.metric or USUAL_METRIC[route.family]
        if any((each.network, each.table, each.metric) == (route.network, route.table, metric) for each in self.table):
            raise failure(errno.EEXIST)
        if route.device and all(device.number != route.device for device in self.present):
            raise failure(errno.ENODEV)
        if route.source and all(route.source not in device.sources for device in self.present):
            raise failure(errno.EINVAL)
        self.table.append(route._replace(metric=metric))

    def removeRoute(self, route: KernelRoute) -> None:
        self._called("removeRoute", route.family)
        if route not in self.table:
            raise failure(errno.ESRCH)
        self.table.remove(route)

    def rules(self, protocol: int) -> list[Rule]:
        self._called("rules")
        return [each for each in self.chosen if each.protocol == protocol]

    def addRule(self, rule: Rule) -> None:
        self._called("addRule", rule.family)
        if rule in self.chosen:
            raise failure(errno.EEXIST)
        self.chosen.append(rule)

    def removeRule(self, rule: Rule) -> None:
        self._called("removeRule", rule.family)
        if rule not in self.chosen:
            raise failure(errno.ENOENT)
        self.chosen.remove(rule)

    def setAlias(self, device: int, text: str) -> None:
        self._called("setAlias")
        self.present = [each._replace(alias=text) if each.number == device else each for each in self.present]

    def setMtu(self, device: int, mtu: int) -> None:
        self._called("setMtu")
        self.present = [each._replace(mtu=mtu) if each.number == device else each for each in self.present]

    def removeDevice(self, device: int) -> None:
        """A device is gone, and every route through it."""
        self._called("removeDevice")
        self.present = [each for each in self.present if each.number != device]
        self.table = [each for each in self.table if each.device != device]

    def setAddresses(self, device: int, *addresses: str) -> None:
        """A device has other addresses. With one of IPv4 go the routes that prefer it."""
        self.present = [each._replace(sources=addresses) if each.number == device else each for each in self.present]
        self.table = [each for each in self.table if each.family == 6 or each.source in ("", *addresses)]

    def reversePath(self, name: str) -> int:
        return self.strict[name]

    def setReversePath(self, name: str, value: int) -> None:
        self._called("setReversePath")
        self.strict[name] = value

    def forward(self, name: str, family: int) -> None:
        self._called("forward", family)
        self.forwarding.add((name, family))

    # -- the kernel's way

    def deviceTowards(self, host: str, mark: int = 0, port: int = 0) -> int:
        self._called("deviceTowards")
        address = ipaddress.ip_address(host)
        if address.is_loopback:
            return 1
        for table, specific in self._tables(address, mark, port):
            route = self._best(address, table)
            if route is not None and not (specific and route.network.endswith("/0")):
                if not route.device:
                    raise failure(errno.EHOSTUNREACH)
                return route.device
        raise failure(errno.ENETUNREACH)

    def _tables(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, mark: int, port: int
    ) -> Iterator[tuple[int, bool]]:
        least = 0
        for rule in sorted(self.chosen, key=lambda rule: rule.priority):
            matches = rule.family == address.version and rule.priority >= least
            matches = matches and not (rule.to and address not in ipaddress.ip_network(rule.to))
            matches = matches and not (rule.notMark and rule.notMark == mark)
            if not matches or (rule.notPort and rule.notPort == port):
                continue
            if rule.table:
                yield rule.table, rule.specific
            least = rule.jump or least

    def _best(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, table: int) -> KernelRoute | None:
        fitting = [
            (ipaddress.ip_network(route.network).prefixlen, -route.metric, route)
            for route in self.table
            if route.table == table and address in ipaddress.ip_network(route.network)
        ]
        return max(fitting)[2] if fitting else None
