"""
Fake names: an address of our own for each name that somebody asks for.

A program looks a name up and then sends to an address; what the name was is
lost on the way. So we answer with an address that belongs to nobody, from a
prefix kept for that (198.18.0.0/15, say: RFC 2544), and know the name when
something is sent there.

The table is bounded. When it is full, the name that was longest not asked for
and not sent to makes room. Addresses are given out in turn, so the one that was
free longest comes next: a program that remembers an address for too long then
meets no address, rather than another name's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from udptunnel.core.acl import normalName
from udptunnel.errors import AddressError

Network: TypeAlias = IPv4Network | IPv6Network

MOST_NAMES = 65_536
"""Names of each family: about 25 MB, and more than a network of clients asks for in a day."""

HELD_SECONDS = 10.0
"""
How long an address is sure to keep its name. An answer lives for a second, but
whoever got it may try other addresses before, or look elsewhere first.
"""

_FIRST = 2
"""Left out are the network's own address, the first host, which is often the TUN's own, and the last (broadcast)."""

_MOST_HOSTS = 4096
"""Hosts of which we remember whether they lie in a prefix."""


class FakeNames:
    """Names and their fake addresses, of one family or of both."""

    def __init__(self, networks: Iterable[Network], most: int = MOST_NAMES) -> None:
        """
        @param networks: the prefixes, one for each family at most.
        @param most: how many names have an address of one family at the same
            time, if the prefix is large enough.
        @raise AddressError: a prefix is too small, or there are two for a family.
        """
        self._pools: dict[int, _Pool] = {}
        self._covered: dict[str, bool] = {}
        for network in networks:
            if network.version in self._pools:
                raise AddressError(f"{network} is the second IPv{network.version} prefix for fake addresses")
            self._pools[network.version] = _Pool(network, most)

    def __len__(self) -> int:
        return sum(len(pool.hosts) for pool in self._pools.values())

    def serves(self, version: int) -> bool:
        """Whether there is a prefix of IP version 4 or 6."""
        return version in self._pools

    def addressFor(self, name: str, version: int, now: float) -> str | None:
        """
        The fake address of a name: the one that it has, or a new one.

        C{None} if there is no prefix of this family, or if all its addresses
        were in use within the last L{HELD_SECONDS}.

        @raise AddressError: this can not be a host's name.
        """
        pool = self._pools.get(version)
        return None if pool is None else pool.take(normalName(name), now)

    def hostOf(self, name: str, version: int) -> str | None:
        """The fake address that a name has, if it has one."""
        pool = self._pools.get(version)
        return None if pool is None else pool.hosts.get(name.lower().removesuffix("."))

    def nameOf(self, host: str, now: float) -> str | None:
        """The name that a fake address stands for, if any; from now on it counts as just used."""
        pool = self._pools.get(6 if ":" in host else 4)
        return None if pool is None else pool.use(host, now)

    def covers(self, host: str) -> bool:
        """Whether a host, as L{udptunnel.wire.address.Address} writes it, lies in a prefix."""
        covered = self._covered.get(host)
        if covered is None:
            if len(self._covered) >= _MOST_HOSTS:
                self._covered.clear()
            covered = self._covered[host] = any(pool.covers(host) for pool in self._pools.values())
        return covered


class _Pool:
    """
    The names of one prefix.

    @ivar hosts: addresses by name.
    """

    __slots__ = ("_freed", "_fresh", "_most", "_names", "_network", "hosts")

    def __init__(self, network: Network, most: int) -> None:
        room = network.num_addresses - _FIRST - 1
        if room < 1:
            raise AddressError(f"{network} is too small for fake addresses: at most a /30, or /126 of IPv6, is needed")
        self._network = network
        self._most = min(room, most)
        # Twice as many as names, so that an address rests before it gets another one.
        self._fresh = iter(range(_FIRST, _FIRST + min(room, 2 * most)))
        self._freed: deque[str] = deque()
        self.hosts: dict[str, str] = {}
        self._names: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def take(self, name: str, now: float) -> str | None:
        """The address of a name in its normal form."""
        host = self.hosts.get(name) or self._give(now)
        if host is not None:
            self.hosts[name] = host
            self._names[host] = name, now
            self._names.move_to_end(host)
        return host

    def _give(self, now: float) -> str | None:
        """An address that has no name."""
        if len(self.hosts) >= self._most and not self._evict(now):
            return None
        offset = next(self._fresh, None)
        return self._freed.popleft() if offset is None else str(self._network[offset])

    def _evict(self, now: float) -> bool:
        """Forget the name that was longest not used; not if that is too short a time ago."""
        host, (name, used) = next(iter(self._names.items()))
        if now - used < HELD_SECONDS:
            return False
        del self._names[host], self.hosts[name]
        self._freed.append(host)
        return True

    def use(self, host: str, now: float) -> str | None:
        """The name of an address."""
        known = self._names.get(host)
        if known is None:
            return None
        self._names[host] = known[0], now
        self._names.move_to_end(host)
        return known[0]

    def covers(self, host: str) -> bool:
        """Whether a host lies in the prefix."""
        try:
            return (IPv6Address(host) if ":" in host else IPv4Address(host)) in self._network
        except ValueError:
            return False
