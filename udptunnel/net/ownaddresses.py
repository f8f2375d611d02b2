"""The addresses of this machine."""

from __future__ import annotations

import ipaddress

from udptunnel.core.l3policy import Own

_INTERNET = "/proc/self/net/fib_trie"
_INTERNET6, _ANYCAST6, _ROUTES6 = "/proc/self/net/if_inet6", "/proc/self/net/anycast6", "/proc/self/net/ipv6_route"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
"""The kernel takes packets for all of it, and no packet for it comes from elsewhere."""

_FLAGS_AT = 132
"""
Where the flags of a route stand, in 8 digits: behind two networks and a gateway of 32 digits each, the length of each
network (2), and three numbers (8), with spaces between them.
"""

_LOCAL_DIGITS = frozenset("89abcdef")
"""What they begin with when RTF_LOCAL of linux/ipv6_route.h is among them."""


def ownAddresses() -> Own:
    """
    All addresses at which the kernel itself takes packets: those of interfaces, of broadcast and anycast, and what
    somebody has made local by a route.

    It reads what the kernel shows as files, which takes a fraction of a millisecond where there are few routes, so
    that it may be asked again and again.

    @raise OSError: they can not be read.
    """
    addresses, networks = set[bytes](), set[str]()
    local: list[_Network] = [*_ipv4(_read(_INTERNET)), *_ipv6(_read(_ROUTES6))]
    for network in local:
        if network.prefixlen == network.max_prefixlen:
            addresses.add(network.network_address.packed)
        elif network != _LOOPBACK:
            networks.add(str(network))
    addresses.update(bytes.fromhex(line.split()[0]) for line in _read(_INTERNET6))
    addresses.update(bytes.fromhex(line.split()[2]) for line in _read(_ANYCAST6))
    return Own(frozenset(addresses), tuple(sorted(networks)))


def _read(name: str) -> list[str]:
    """The lines of a file; none if this machine has no such protocol."""
    try:
        with open(name, encoding="ascii") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _ipv4(lines: list[str]) -> list[ipaddress.IPv4Network]:
    """A leaf, C{|-- ADDRESS}, is followed by lines that say what it is: C{/LENGTH SCOPE TYPE}."""
    found, address = [], ""
    for line in lines:
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words[2:3] == ["LOCAL"] or (words[2:3] == ["BROADCAST"] and words[0] == "/32"):
            found.append(ipaddress.IPv4Network(address + words[0]))
    return found


def _ipv6(lines: list[str]) -> list[ipaddress.IPv6Network]:
    """A line is a route, and begins with a network in 32 digits, and its length in 2."""
    return [
        ipaddress.IPv6Network((bytes.fromhex(line[:32]), int(line[33:35], 16)))
        for line in lines
        if line[_FLAGS_AT : _FLAGS_AT + 1] in _LOCAL_DIGITS
    ]
