"""
Sources: private addresses, each with a port, that associations get where packets need some.

They are numbered, and a number stands for an address of each family with the
same port. Numbers go round and round a space so large that one is not used
again as long as somebody may still answer to its last owner; and they begin
anywhere, so that this holds after a restart, too.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

from udptunnel.wire.address import Address

NETWORK, NETWORK6 = ip_network("10.85.0.0/16"), ip_network("fd75:6470:7475:85::/112")
"""Where the addresses are from (RFC 1918, RFC 4193). They mean something between the two ends of a pipe only."""

LEAST_PORT = 1024
"""Ports below that mean something to some."""

_PORTS = 65_536 - LEAST_PORT
_HOSTS = NETWORK.num_addresses - 2
"""All but the network itself and its broadcast address."""

SPACE = _PORTS * _HOSTS
"""So many numbers there are."""

Pair = tuple[Address, Address]
"""An IPv4 and an IPv6 address, with one port."""


class Sources:
    """Gives out pairs of addresses."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """
        @param random: C{os.urandom}, or what a test has instead.
        """
        self._next = int.from_bytes(random(8), "big") % SPACE

    def take(self) -> Pair:
        """The next pair."""
        number = self._next
        self._next = (number + 1) % SPACE
        host, port = divmod(number, _PORTS)
        first, first6 = int(NETWORK.network_address), int(NETWORK6.network_address)
        return (
            Address(str(IPv4Address(first + 1 + host)), LEAST_PORT + port),
            Address(str(IPv6Address(first6 + 1 + host)), LEAST_PORT + port),
        )
