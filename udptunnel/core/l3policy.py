"""
Which packets may go through an l3-tunnel, in either direction.

The other end is believed as far as its prefixes go: what comes from it bears one
of its addresses, and is for somebody behind us, not for this machine. What may
mean one thing to a firewall and another to who receives it does not pass: options,
source routes, and fragments that hide a header or change one. Nor does what is said among neighbours: who gets it from
us may take us for one, as raw sockets leave the hop limit as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import NamedTuple

from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    IPV6_BYTES,
    ROUTING,
    TCP,
    UDP,
    Packet,
)
from udptunnel.wire.transport import TCP_BYTES, UDP_BYTES

MOST_REMEMBERED = 4096
"""Pairs of addresses about which is remembered that they may talk; then all are forgotten."""

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))

_LEAST_FIRST = {TCP: TCP_BYTES, UDP: UDP_BYTES}
_LEAST_OTHERS = 8
_AMONG_NEIGHBOURS = range(133, 138)
"""Types of ICMPv6: from router solicitation to redirect (RFC 4861 section 4)."""

_FLAGS_AT = 13
_V6_LENGTH_AT = 1


class Prefixes:
    """A set of networks, of both versions."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str]) -> None:
        """
        @param networks: ADDRESS/LENGTH of each.
        """
        self._networks: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for text in networks:
            network = ip_network(text)
            self._networks[network.max_prefixlen // 8].append((int(network.netmask), int(network.network_address)))

    def __contains__(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any(number & mask == network for mask, network in self._networks[len(address)])


class Own(NamedTuple):
    """What this machine takes for itself."""

    addresses: frozenset[bytes] = frozenset()
    """4 or 16 bytes each."""

    networks: tuple[str, ...] = ()
    """ADDRESS/LENGTH of each."""


def isMartian(address: bytes) -> bool:
    """
    Whether an address is none of a host that can be reached through routers: unspecified, loopback, link-local,
    multicast, broadcast, or reserved (RFC 1812 section 5.3.7, RFC 4291 section 2.4); IPv4-mapped ones as well.
    """
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224 or address[:2] == b"\xa9\xfe"
    return (
        address[0] == 0xFF
        or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
        or (not any(address[:10]) and ((not any(address[10:15]) and address[15] < 2) or address[10:12] == b"\xff\xff"))
    )


class Policy:
    """
    The rules of one peer.

    @ivar own: addresses of this machine, those of broadcast and anycast as well: nothing is injected for them.
    """

    def __init__(self, peers: Prefixes) -> None:
        """
        @param peers: the peer's prefixes.
        """
        self._peers = peers
        self._own, self._ownNetworks = Own(), Prefixes(())
        self._good: tuple[set[bytes], set[bytes]] = set(), set()

    @property
    def own(self) -> Own:
        """See above."""
        return self._own

    @own.setter
    def own(self, own: Own) -> None:
        if own != self._own:
            self._own, self._ownNetworks = own, Prefixes(own.networks)
            self._good[1].clear()

    def outwardRefusal(self, packet: Packet, frame: Buffer) -> str:
        """Why a packet must not go to the peer; empty if it may."""
        pair = packet.source + packet.destination
        if pair not in self._good[0]:
            if packet.destination not in self._peers:
                return "outward prefix"
            if isMartian(packet.source) or isMartian(packet.destination):
                return "outward martian"
            self._remember(self._good[0], pair)
        if _hasOptions(packet, frame):
            return "outward options"
        return ""

    def inwardRefusal(self, packet: Packet, frame: Buffer) -> str:
        """Why a packet from the peer must not be injected; empty if it may."""
        pair = packet.source + packet.destination
        if pair not in self._good[1]:
            if packet.source not in self._peers:
                return "inward source"
            if isMartian(packet.source) or isMartian(packet.destination):
                return "inward martian"
            if packet.destination in self._own.addresses or packet.destination in self._ownNetworks:
                return "inward own address"
            self._remember(self._good[1], pair)
        if _hasOptions(packet, frame):
            return "inward options"
        if packet.protocol == ICMPV6 and _isAmongNeighbours(packet, frame):
            return "inward neighbour"
        return ""

    def _remember(self, good: set[bytes], pair: bytes) -> None:
        if len(good) >= MOST_REMEMBERED:
            good.clear()
        good.add(pair)


def _hasOptions(packet: Packet, frame: Buffer) -> bool:
    """Whether a packet carries IPv4 options, or something in IPv6 that routers on the way look at."""
    if packet.version == 4:
        return packet.payloadStart != 20
    if packet.payloadStart == IPV6_BYTES:
        return False
    return any(kind in (HOP_BY_HOP, ROUTING) for kind in _extensions(frame, packet.payloadStart))


def _extensions(frame: Buffer, end: int) -> Iterable[int]:
    """The kinds of the extension headers of a packet that was parsed."""
    kind, place = frame[6], IPV6_BYTES
    while place < end:
        yield kind
        length = 8 if kind not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS) else 8 + frame[place + _V6_LENGTH_AT] * 8
        kind, place = frame[place], place + length


def _isAmongNeighbours(packet: Packet, frame: Buffer) -> bool:
    """Whether a packet of ICMPv6, or the first part of one, is of neighbour discovery."""
    begins = packet.fragment is None or not packet.fragment.offset
    return begins and packet.payloadStart < packet.totalLength and frame[packet.payloadStart] in _AMONG_NEIGHBOURS


def hidesHeader(packet: Packet) -> bool:
    """
    Whether a fragment hides what a firewall wants to see (RFC 1858, RFC 3128): the first one is too short for the
    header of what it carries, or another one begins inside of it. In IPv6 also if the first one begins with one more
    extension header, among which may be a routing header (RFC 5095), or which may go on in the next one (RFC 7112).
    """
    fragment = packet.fragment
    if fragment is None:
        return False
    least = _LEAST_FIRST.get(packet.protocol, _LEAST_OTHERS)
    if fragment.offset:
        return fragment.offset < least
    if packet.version == 6 and packet.protocol in _EXTENSIONS:
        return True
    return packet.totalLength - packet.payloadStart < least
