"""
The kernel's routes and rules, as plain values, and the calls that change them.

What we add carries a protocol number of ours, so that whoever looks at
C{ip route} and C{ip rule} sees whose it is, and the next start finds what a
killed process has left. A call takes well under a millisecond; they are made
when a role starts and stops, not while packets flow.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from udptunnel.net.platforms import require

MAIN = 254
"""RT_TABLE_MAIN of linux/rtnetlink.h."""

EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
"""The network of a default route, by family."""

USUAL_METRIC = {4: 0, 6: 1024}
"""Of a route for which nobody has chosen one; for IPv6, IP6_RT_PRIO_USER of net/ip6_route.h."""

_FAMILIES: dict[int, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTN_UNICAST, _RTN_BLACKHOLE, _RTN_UNREACHABLE = 1, 6, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_RTM_F_CLONED = 0x200
_FR_ACT_TO_TBL, _FR_ACT_GOTO, _FR_ACT_NOP = 1, 2, 3
_FIB_RULE_INVERT = 2
_NO_SUPPRESSION = 0xFFFFFFFF
"""From linux/rtnetlink.h and linux/fib_rules.h."""

_PASSING = 0x01 | 0x08 | 0x20 | 0x40
"""
From linux/if_addr.h, of addresses: secondary or temporary, in use by somebody else, deprecated, or perhaps in use
(IFA_F_SECONDARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE).
"""

_IFF_LOWER_UP = 0x10000
"""From linux/if.h: there is a carrier. A TUN has one while somebody holds its descriptor."""


class Device(NamedTuple):
    """A network device."""

    number: int
    """What the kernel calls its index; 0 is none."""

    name: str
    carrier: bool
    """Whether it works; for a TUN, whether a process has it open."""

    alias: str = ""
    """What somebody has written on it (C{ip link set alias})."""

    families: frozenset[int] = frozenset()
    """4 and 6, as far as it has addresses that others than neighbours can use."""

    mtu: int = 0
    sources: tuple[str, ...] = ()
    """Those of these addresses that packets may bear for long, of both families."""


class KernelRoute(NamedTuple):
    """A route."""

    network: str
    """ADDRESS/LENGTH."""

    device: int
    """Number of the device; 0: the network is unreachable."""

    gateway: str = ""
    table: int = MAIN
    metric: int = 0
    protocol: int = 0
    """Who has made it (C{rtm_protocol})."""

    silent: bool = False
    """Without a device: whether packets vanish, and nobody is told that the network is unreachable."""

    source: str = ""
    """With a device: the address that packets of ours bear (RTA_PREFSRC). It is not read back."""

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.network else 4


class Rule(NamedTuple):
    """One rule of those that choose a table."""

    family: int
    priority: int
    protocol: int
    table: int = 0
    """Which table is looked into; 0: none."""

    jump: int = 0
    """With which priority it goes on; 0: with the next one."""

    to: str = ""
    """Only for targets in this network."""

    notMark: int = 0
    """Only for packets that do not have this mark."""

    notPort: int = 0
    """Only for packets that do not go to this port."""

    specific: bool = False
    """Whether default routes of the table do not count (C{suppress_prefixlength 0})."""


class Routing(Protocol):
    """The operating system, as far as routing needs it. All may raise C{OSError}."""

    def devices(self) -> list[Device]:
        """All network devices."""

    def routes(self, protocol: int | None = None, table: int | None = None) -> list[KernelRoute]:
        """The unicast, unreachable and blackhole routes of both families, or those of one maker or one table."""

    def addRoute(self, route: KernelRoute) -> None:
        """Add a route; one with the same network, table and metric must not be there (EEXIST)."""

    def removeRoute(self, route: KernelRoute) -> None:
        """Take a route away."""

    def rules(self, protocol: int) -> list[Rule]:
        """The rules that somebody has made."""

    def addRule(self, rule: Rule) -> None:
        """Add a rule."""

    def removeRule(self, rule: Rule) -> None:
        """Take a rule away."""

    def deviceTowards(self, host: str, mark: int = 0) -> int:
        """The number of the device by which a packet of ours would leave; the kernel is asked (RTM_GETROUTE)."""

    def setAlias(self, device: int, text: str) -> None:
        """Write something on a device."""

    def setMtu(self, device: int, mtu: int) -> None:
        """Say how long packets of a device may be."""

    def removeDevice(self, device: int) -> None:
        """Take a device away, whoever has it open."""

    def reversePath(self, name: str) -> int:
        """C{rp_filter} of a device, or of C{all}: 0, 1 (strict) or 2 (loose)."""

    def setReversePath(self, name: str, value: int) -> None:
        """Change C{rp_filter} of a device."""

    def forward(self, name: str, family: int) -> None:
        """Have the host forward what arrives by a device, and by no other."""


class LinuxRouting:
    """Linux, by way of pyroute2, which is looked for only when it is needed."""

    def devices(self) -> list[Device]:
        """All network devices."""
        with _opened() as ip:
            addresses: dict[int, list[Any]] = {}
            for each in ip.get_addr():
                if each["scope"] < _RT_SCOPE_LINK:
                    addresses.setdefault(each["index"], []).append(each)
            return [_device(link, addresses.get(link["index"], ())) for link in ip.get_links()]

    def routes(self, protocol: int | None = None, table: int | None = None) -> list[KernelRoute]:
        """The unicast, unreachable and blackhole routes."""
        with _opened() as ip:
            found = [
                _route(each) for family in _FAMILIES.values() for each in ip.get_routes(family=family) if _is(each)
            ]
        return [each for each in found if protocol in (None, each.protocol) and table in (None, each.table)]

    def addRoute(self, route: KernelRoute) -> None:
        """Add a route."""
        with _opened() as ip:
            ip.route("add", **_routeFields(route))

    def removeRoute(self, route: KernelRoute) -> None:
        """Take a route away."""
        with _opened() as ip:
            # The kernel may have taken its source away, as the address is gone.
            ip.route("del", **_routeFields(route._replace(source="")))

    def rules(self, protocol: int) -> list[Rule]:
        """The rules that somebody has made."""
        with _opened() as ip:
            found = [_rule(each) for family in _FAMILIES.values() for each in ip.get_rules(family=family)]
        return [each for each in found if each.protocol == protocol]

    def addRule(self, rule: Rule) -> None:
        """Add a rule."""
        with _opened() as ip:
            ip.rule("add", **_ruleFields(rule))

    def removeRule(self, rule: Rule) -> None:
        """Take a rule away."""
        with _opened() as ip:
            ip.rule("del", **_ruleFields(rule))

    def deviceTowards(self, host: str, mark: int = 0) -> int:
        """The number of the device by which a packet of ours would leave."""
        marked = {"mark": mark} if mark else {}
        with _opened() as ip:
            (answer,) = ip.route("get", dst=host, **marked)
        return int(answer.get_attr("RTA_OIF") or 0)

    def setAlias(self, device: int, text: str) -> None:
        """Write something on a device."""
        with _opened() as ip:
            ip.link("set", index=device, ifalias=text)

    def setMtu(self, device: int, mtu: int) -> None:
        """Say how long packets of a device may be."""
        with _opened() as ip:
            ip.link("set", index=device, mtu=mtu)

    def removeDevice(self, device: int) -> None:
        """Take a device away."""
        with _opened() as ip:
            ip.link("del", index=device)

    def reversePath(self, name: str) -> int:
        """C{rp_filter} of a device."""
        with open(_reversePathFile(name), encoding="ascii") as file:
            return int(file.read())

    def setReversePath(self, name: str, value: int) -> None:
        """Change C{rp_filter} of a device."""
        with open(_reversePathFile(name), "w", encoding="ascii") as file:
            file.write(str(value))

    def forward(self, name: str, family: int) -> None:
        """Have the host forward what arrives by a device. For IPv6 that is possible since Linux 6.17."""
        path = f"ipv4/conf/{name}/forwarding" if family == 4 else f"ipv6/conf/{name}/force_forwarding"
        with open(f"/proc/sys/net/{path}", encoding="ascii") as file:
            if file.read().strip() == "1":
                # Where we may not write, somebody may have done it for us.
                return
        with open(f"/proc/sys/net/{path}", "w", encoding="ascii") as file:
            file.write("1")


@contextmanager
def _opened() -> Iterator[Any]:
    """
    A netlink socket, whose errors are system errors.

    @raise MissingError: there are none here.
    """
    require("a route")
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _reversePathFile(name: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{name}/rp_filter"


def _familyOf(number: int) -> int:
    return 6 if number == socket.AF_INET6 else 4


def _device(link: Any, addresses: Collection[Any]) -> Device:
    name, alias = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_IFALIAS") or ""
    isUp = bool(link["flags"] & _IFF_LOWER_UP)
    families = frozenset(_familyOf(each["family"]) for each in addresses)
    sources = tuple(_addressOf(each) for each in addresses if not each["flags"] & _PASSING)
    return Device(link["index"], name, isUp, alias, families, link.get_attr("IFLA_MTU") or 0, sources)


def _addressOf(message: Any) -> str:
    """The end of it that is here: with point-to-point links the other one is IFA_ADDRESS."""
    return str(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def _is(message: Any) -> bool:
    """Whether a route is of a kind that matters here; the kernel lists what it has cached, too (RTM_F_CLONED)."""
    return message["type"] in (_RTN_UNICAST, _RTN_BLACKHOLE, _RTN_UNREACHABLE) and not message["flags"] & _RTM_F_CLONED


def _route(message: Any) -> KernelRoute:
    family = _familyOf(message["family"])
    host = message.get_attr("RTA_DST") or EVERYTHING[family].partition("/")[0]
    return KernelRoute(
        f"{host}/{message['dst_len']}",
        0 if message["type"] != _RTN_UNICAST else message.get_attr("RTA_OIF") or 0,
        message.get_attr("RTA_GATEWAY") or "",
        message.get_attr("RTA_TABLE") or message["table"],
        message.get_attr("RTA_PRIORITY") or 0,
        message["proto"],
        message["type"] == _RTN_BLACKHOLE,
    )


def _routeFields(route: KernelRoute) -> dict[str, Any]:
    host, _, length = route.network.partition("/")
    family = _FAMILIES[route.family]
    fields: dict[str, Any] = {"family": family, "table": route.table, "proto": route.protocol}
    if int(length):
        fields.update(dst=host, dst_len=int(length))
    if route.metric:
        fields["priority"] = route.metric
    if route.source:
        fields["prefsrc"] = route.source
    if not route.device:
        return {**fields, "type": _RTN_BLACKHOLE if route.silent else _RTN_UNREACHABLE}
    if route.gateway:
        return {**fields, "oif": route.device, "gateway": route.gateway}
    return {**fields, "oif": route.device, "scope": _RT_SCOPE_LINK if route.family == 4 else _RT_SCOPE_UNIVERSE}


def _rule(message: Any) -> Rule:
    to = message.get_attr("FRA_DST")
    suppressed = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    port = message.get_attr("FRA_DPORT_RANGE")
    return Rule(
        _familyOf(message["family"]),
        message.get_attr("FRA_PRIORITY") or 0,
        message.get_attr("FRA_PROTOCOL") or 0,
        (message.get_attr("FRA_TABLE") or 0) if message["action"] == _FR_ACT_TO_TBL else 0,
        message.get_attr("FRA_GOTO") or 0,
        f"{to}/{message['dst_len']}" if to else "",
        message.get_attr("FRA_FWMARK") or 0,
        int(str(port).partition(":")[0]) if port else 0,
        suppressed not in (None, _NO_SUPPRESSION),
    )


def _ruleFields(rule: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": _FAMILIES[rule.family],
        "priority": rule.priority,
        "protocol": rule.protocol,
        "action": _FR_ACT_TO_TBL if rule.table else _FR_ACT_GOTO if rule.jump else _FR_ACT_NOP,
    }
    if rule.table:
        fields["table"] = rule.table
    if rule.jump:
        fields["goto"] = rule.jump
    if rule.to:
        host, _, length = rule.to.partition("/")
        fields.update(dst=host, dst_len=int(length))
    if rule.specific:
        fields["suppress_prefixlen"] = 0
    if rule.notMark:
        fields.update(fwmark=rule.notMark, flags=_FIB_RULE_INVERT)
    if rule.notPort:
        fields.update(dport_range=f"{rule.notPort}:{rule.notPort}", flags=_FIB_RULE_INVERT)
    return fields


def networkOf(text: str) -> str:
    """
    A network as the kernel writes it, ADDRESS/LENGTH; a lone address is a network of its own.

    @raise ValueError: it is none, or has bits beyond its length.
    """
    return str(ipaddress.ip_network(text))
