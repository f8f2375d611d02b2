"""
Two sites, and a NAT between them, as network namespaces::

    device -- a -- nat -- b -- inner

C{a} has a device behind it, and is itself behind the NAT; C{b} has a host behind a
veth. Nothing between C{a} and C{b} knows of the networks behind them.
"""

from __future__ import annotations

from pathlib import Path

from tests.system.namespaces import Namespace, run

DEVICE, INNER = ("192.168.111.2", "fd77:a::2"), ("11.11.11.100", "fd77:b::100")
"""Who talks to whom, by IPv4 and by IPv6."""

BEHIND_A, BEHIND_B = ("192.168.111.0/30", "fd77:a::/64"), ("11.11.11.0/24", "fd77:b::/64")
AT_A, AT_B = ("192.168.111.1", "fd77:a::1"), ("11.11.11.1", "fd77:b::1")
"""The addresses of both ends of the tunnel towards their own networks."""

B = "10.78.0.2", "fd77:78::2"
"""Where the one end finds the other."""

NAT = "10.78.0.1", "fd77:78::1"
"""What the other end sees of the one."""

_RULES = """
table ip nat {{
    chain out {{ type nat hook postrouting priority 100; oifname "wan0" meta l4proto {{ tcp, udp }} masquerade {how}; }}
}}
table ip6 nat {{
    chain out {{ type nat hook postrouting priority 100; oifname "wan0" meta l4proto {{ tcp, udp }} masquerade {how}; }}
}}
"""


class Sites:
    """The namespaces, their wires and routes. Packets for the other site go nowhere by themselves."""

    def __init__(self) -> None:
        self.all: list[Namespace] = []
        self.device, self.a, self.nat, self.b, self.inner = (self._add(role) for role in "dansi")
        self._wire(self.device, "eth0", (f"{DEVICE[0]}/30", f"{DEVICE[1]}/64"), self.a, "lan0", _with(AT_A, "30"))
        self._wire(self.a, "wan0", ("192.168.100.5/24", "fd77:c::5/64"), self.nat, "lan0", _with(_GATEWAY, "24"))
        self._wire(self.nat, "wan0", _with(NAT, "24"), self.b, "wan0", _with(B, "24"))
        self._wire(self.b, "lan0", _with(AT_B, "24"), self.inner, "eth0", _with(INNER, "24"))
        for namespace, by in ((self.device, AT_A), (self.a, _GATEWAY), (self.inner, AT_B)):
            for address in by:
                namespace.ip("route", "add", "default", "via", address)
        forward(self.nat)
        self.translate()

    def _add(self, role: str) -> Namespace:
        self.all.append(Namespace(f"l{role}"))
        return self.all[-1]

    def _wire(
        self, one: Namespace, name: str, addresses: tuple[str, str], other: Namespace, far: str, its: tuple[str, str]
    ) -> None:
        one.ip("link", "add", name, "type", "veth", "peer", "name", far, "netns", other.name)
        for namespace, device, given in ((one, name, addresses), (other, far, its)):
            for address in given:
                namespace.addAddress(address, device)
            namespace.ip("link", "set", device, "up")

    def translate(self, how: str = "") -> None:
        """
        Have the NAT translate, and forget what it has translated before.

        @param how: such as C{to :40000-40999}, which makes all ports others.
        """
        rules = "flush ruleset\n" + _RULES.format(how=how)
        run(*self.nat.command("nft", "-f", "-"), text=rules)
        # Without conntrack's own tool: a table that is gone takes its mappings along only when the address goes.
        for device, addresses in (("wan0", _with(NAT, "24")),):
            for address in addresses:
                self.nat.ip("address", "del", address, "dev", device)
                self.nat.addAddress(address, device)

    def blackhole(self) -> None:
        """Do by hand what --setup does, without the MTU."""
        for namespace, networks in ((self.a, BEHIND_B), (self.b, BEHIND_A)):
            for network in networks:
                namespace.ip("route", "add", "blackhole", network)

    def remove(self) -> None:
        """Take everything away."""
        for namespace in self.all:
            namespace.remove()


_GATEWAY = "192.168.100.1", "fd77:c::1"


def _with(addresses: tuple[str, str], length: str) -> tuple[str, str]:
    return f"{addresses[0]}/{length}", f"{addresses[1]}/64"


def forward(namespace: Namespace) -> None:
    """Have a namespace route packets."""
    with namespace.entered():
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path(f"/proc/sys/net/{name}").write_text("1")
