"""
IP packets: what their headers say, and new headers.

IPv4 (RFC 791 section 3.1), of which options may follow::

     0               1               2               3
    +-------+-------+---------------+-------------------------------+
    |   4   | words |    service    |         total length          |
    +-------+-------+---------------+-----+-------------------------+
    |        identification         |flags|     fragment offset     |
    +---------------+---------------+-----+-------------------------+
    | time to live  |   protocol    |        header checksum        |
    +---------------+---------------+-------------------------------+
    |                        source, destination                    |

IPv6 (RFC 8200 section 3), which extension headers may follow::

    +-------+---------------+---------------------------------------+
    |   6   | traffic class |              flow label               |
    +-------+---------------+-------+---------------+---------------+
    |        payload length         |  next header  |   hop limit   |
    +-------------------------------+---------------+---------------+
    |              source, destination, 16 bytes each               |

The offset of a fragment is counted in eight bytes. Its flags are, from the left,
0, "don't fragment" and "more fragments". In IPv6 all that stands in a header of
its own (RFC 8200 section 4.5)::

    +---------------+---------------+-------------------------+---+-+
    |  next header  |       0       |     fragment offset     | 0 |M|
    +---------------+---------------+-------------------------+---+-+
    |                        identification                         |

All is in network byte order. Addresses are bytes here, 4 or 16 of them, for
that is how they are compared, looked up and copied.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from struct import Struct
from typing import NamedTuple

from udptunnel.errors import PacketError
from udptunnel.wire.address import normalHost, parseHost
from udptunnel.wire.checksum import FIELD, LARGEST_SUM, checksum, fold
from udptunnel.wire.frame import Buffer

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
"""Protocols."""

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
"""Extension headers of IPv6. Any other number ends the chain; what follows is somebody's payload."""

IPV4_BYTES, IPV6_BYTES = 20, 40
"""Headers without options and extensions."""

FRAGMENT_BYTES = 8

LARGEST_LENGTH = 0xFFFF
"""What the field of a length can say: of all of an IPv4 packet, or of what follows the header of IPv6."""

MOST_EXTENSIONS = 8
"""RFC 8200 section 4.1 wants five of them at most, besides IPsec's. Each one more costs a turn, and 8,000 would fit."""

HOPS = 64
"""The time to live of what we send (RFC 1700)."""

DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
_OFFSET = 0x1FFF

# Of a packet that is read: what matters here.
_IPV4 = Struct("!BxHHHxBxx4s4s")
_IPV6 = Struct("!4xHBx16s16s")
_FRAGMENT = Struct("!BxHI")

_NEW_IPV4 = Struct("!HHHHHH4s4s")
_NEW_IPV6 = Struct("!IHBB16s16s")

_IPV4_PROTOCOL_AT, _IPV6_PROTOCOL_AT = 9, 6
_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))


class Fragment(NamedTuple):
    """Which part of a packet a fragment is."""

    identification: int
    """What all fragments of a packet have in common; 16 bits in IPv4, 32 in IPv6."""

    offset: int
    """Where in the packet's payload this part begins, in bytes."""

    more: bool
    """Whether it is not the last part."""

    linkAt: int
    """Of IPv6, the place of the byte that says that a fragment header follows."""


class Packet(NamedTuple):
    """What the headers of an IP packet say. All places are counted from its first byte."""

    version: int
    """4 or 6."""

    source: bytes
    destination: bytes

    protocol: int
    """What the payload is: the protocol behind all extension headers. Of a fragment of IPv6, what its header says."""

    protocolAt: int
    """The place of the byte that says so."""

    headerLength: int
    """Bytes of the IPv4 header with its options, or of the IPv6 header without its extensions."""

    payloadStart: int
    totalLength: int
    """Also the end of the payload; what follows in the frame is not part of the packet."""

    fragment: Fragment | None
    """Absent of a whole packet; a fragment that is all of its packet is one (RFC 6946)."""

    @property
    def sourceHost(self) -> str:
        """The source as text."""
        return hostOf(self.source)

    @property
    def destinationHost(self) -> str:
        """The destination as text."""
        return hostOf(self.destination)


def hostOf(raw: bytes) -> str:
    """An address of 4 or 16 bytes as text, as it stands in an L{Address<udptunnel.wire.address.Address>}."""
    if len(raw) == 4:
        return "{}.{}.{}.{}".format(*raw)
    return normalHost(str(IPv6Address(raw)))


def packHost(host: str) -> bytes:
    """
    The 4 or 16 bytes of a host.

    An IPv4-mapped address is an IPv4 address, and a zone is left out.

    @raise PacketError: it is a name.
    """
    ip = parseHost(host)
    if ip is None:
        raise PacketError(f"{host!r} is a name; a packet comes from an address, and goes to one")
    return ip.packed


# -- reading


def parse(frame: Buffer) -> Packet:
    """
    Read the headers of the packet that a frame begins with.

    The checksum of an IPv4 header is not looked at: the kernel has done that
    before it hands over a packet.

    @raise PacketError: it is no packet, or not all of one, or has still other
        places to go to.
    """
    version = frame[0] >> 4 if len(frame) else 0
    if version == 4:
        return _parseIpv4(frame)
    if version == 6:
        return _parseIpv6(frame)
    raise PacketError(f"a packet is of version 4 or 6, not {version}")


def _parseIpv4(frame: Buffer) -> Packet:
    _checkEnd(frame, IPV4_BYTES)
    first, total, identification, word, protocol, source, destination = _IPV4.unpack_from(frame)
    start = (first & 0xF) * 4
    if not IPV4_BYTES <= start <= total:
        raise PacketError(f"an IPv4 header of {start} bytes in a packet of {total}")
    _checkEnd(frame, total)
    fragment = _readFragment(identification, word & _OFFSET, word & MORE_FRAGMENTS, 0)
    return Packet(4, source, destination, protocol, _IPV4_PROTOCOL_AT, start, start, total, fragment)


def _readFragment(identification: int, eights: int, more: int, linkAt: int) -> Fragment | None:
    return Fragment(identification, eights * 8, more != 0, linkAt) if eights or more else None


def _checkEnd(frame: Buffer, end: int) -> None:
    if end > len(frame):
        raise PacketError(f"a packet of {end} bytes is cut short after {len(frame)}")


def _parseIpv6(frame: Buffer) -> Packet:
    _checkEnd(frame, IPV6_BYTES)
    length, protocol, source, destination = _IPV6.unpack_from(frame)
    total = IPV6_BYTES + length
    _checkEnd(frame, total)
    if protocol not in _EXTENSIONS:
        return Packet(6, source, destination, protocol, _IPV6_PROTOCOL_AT, IPV6_BYTES, IPV6_BYTES, total, None)
    protocol, place, start, fragment = _walk(frame, protocol, total)
    return Packet(6, source, destination, protocol, place, IPV6_BYTES, start, total, fragment)


def _walk(frame: Buffer, protocol: int, end: int) -> tuple[int, int, int, Fragment | None]:
    """
    Go along extension headers until something else comes, or a fragment: what
    follows its header may be the middle of anything.

    @return: the protocol, where that is said, where the payload begins, and
        which fragment it is.
    """
    place, start = _IPV6_PROTOCOL_AT, IPV6_BYTES
    for _ in range(MOST_EXTENSIONS + 1):
        if protocol not in _EXTENSIONS:
            return protocol, place, start, None
        after = start + _extensionLength(frame, protocol, start, end)
        _checkExtension(frame, protocol, start)
        fragment = _fragmentAt(frame, start, place) if protocol == FRAGMENT else None
        protocol, place, start = frame[start], start, after
        if fragment is not None:
            return protocol, place, start, fragment
    raise PacketError(f"more than {MOST_EXTENSIONS} extension headers")


def _extensionLength(frame: Buffer, protocol: int, start: int, end: int) -> int:
    """RFC 8200 sections 4.3, 4.4 and 4.6: the second byte counts eights, without the first one."""
    length = FRAGMENT_BYTES
    if start + length <= end and protocol != FRAGMENT:
        length += frame[start + 1] * 8
    if start + length > end:
        raise PacketError("an extension header goes beyond the end of its packet")
    return length


def _checkExtension(frame: Buffer, protocol: int, start: int) -> None:
    if protocol == HOP_BY_HOP and start != IPV6_BYTES:
        raise PacketError("hop-by-hop options stand first or nowhere (RFC 8200 section 4.1)")
    # What it says as its destination would not be its last one, and checksums would be about another one.
    if protocol == ROUTING and frame[start + 3]:
        raise PacketError("a packet is routed by its source (RFC 5095)")


def _fragmentAt(frame: Buffer, start: int, linkAt: int) -> Fragment | None:
    _, word, identification = _FRAGMENT.unpack_from(frame, start)
    return _readFragment(identification, word >> 3, word & 1, linkAt)


# -- writing


def ipv4Header(
    source: bytes,
    destination: bytes,
    protocol: int,
    length: int,
    identification: int = 0,
    flags: int = DONT_FRAGMENT,
    offset: int = 0,
) -> bytes:
    """
    A header of 20 bytes with its checksum.

    What may not be fragmented needs no identification (RFC 6864 section 4.1).

    @param length: bytes of the payload.
    @param flags: L{DONT_FRAGMENT} or L{MORE_FRAGMENTS}.
    @param offset: where in a packet's payload this one begins, a multiple of 8.
    @raise PacketError: the payload is too long.
    """
    total = IPV4_BYTES + length
    _checkLength(total)
    word = flags | offset >> 3
    life = HOPS << 8 | protocol
    # The sum of the words below, not of their bytes: nothing is packed twice.
    sum_ = fold(0x4500 + total + identification + word + life + int.from_bytes(source + destination, "big"))
    return _NEW_IPV4.pack(0x4500, total, identification, word, life, LARGEST_SUM - sum_, source, destination)


def _checkLength(length: int) -> None:
    if length > LARGEST_LENGTH:
        raise PacketError(f"the length of a packet is at most {LARGEST_LENGTH}, not {length}")


def ipv6Header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """
    A header of 40 bytes.

    @param length: bytes of all that follows.
    @raise PacketError: that is too much.
    """
    _checkLength(length)
    return _NEW_IPV6.pack(0x60000000, length, protocol, HOPS, source, destination)


def ipHeader(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The header of a whole packet, of the version that the addresses have."""
    make = ipv4Header if len(source) == 4 else ipv6Header
    return make(source, destination, protocol, length)


def fragmented(packet: bytes, mtu: int, identification: int) -> list[bytes]:
    """
    A packet that we made, as fragments if it is longer than C{mtu}.

    It may forbid that, as L{ipHeader} does: that is for those on the way, and we are
    where it comes from.

    @param packet: a whole one without options and extension headers, with a
        full checksum: nobody can complete one later.
    @param identification: another one for each packet between two hosts.
    @raise PacketError: it is another packet, or nothing fits C{mtu}.
    """
    if len(packet) <= mtu:
        return [packet]
    whole = parse(packet)
    if whole.fragment is not None or whole.payloadStart not in (IPV4_BYTES, IPV6_BYTES):
        raise PacketError("only a packet without options is cut into fragments")
    cut = _cutIpv4 if whole.version == 4 else _cutIpv6
    return cut(whole, packet[whole.payloadStart : whole.totalLength], mtu, identification)


def _cutIpv4(whole: Packet, payload: bytes, mtu: int, identification: int) -> list[bytes]:
    addresses, number = (whole.source, whole.destination), identification & 0xFFFF
    return [
        ipv4Header(*addresses, whole.protocol, len(part), number, MORE_FRAGMENTS * more, offset) + part
        for offset, more, part in _parts(payload, mtu - IPV4_BYTES)
    ]


def _cutIpv6(whole: Packet, payload: bytes, mtu: int, identification: int) -> list[bytes]:
    addresses, number = (whole.source, whole.destination), identification & 0xFFFFFFFF
    return [
        ipv6Header(*addresses, FRAGMENT, FRAGMENT_BYTES + len(part))
        + _FRAGMENT.pack(whole.protocol, offset | more, number)
        + part
        for offset, more, part in _parts(payload, mtu - IPV6_BYTES - FRAGMENT_BYTES)
    ]


def _parts(payload: bytes, room: int) -> list[tuple[int, bool, bytes]]:
    """The payload of each fragment, with its offset and whether it is not the last one."""
    step = room & ~7
    if step <= 0:
        raise PacketError("no part of a packet fits such a small MTU")
    starts = range(0, len(payload), step)
    return [(start, start + step < len(payload), payload[start : start + step]) for start in starts]


def refragmented(packet: bytes, mtu: int, identification: int = 0) -> list[bytes]:
    """
    The fragments of an IPv4 packet that allows that, as a router makes them (RFC 791 section 3.2).

    @param packet: maybe a fragment itself; its checksums are full.
    @param mtu: at least 28.
    @param identification: of a packet that has none.
    """
    start = (packet[0] & 0xF) * 4
    header, payload = bytearray(packet[:start]), packet[start:]
    (word,) = FIELD.unpack_from(header, 6)
    if not any(header[4:6]):
        FIELD.pack_into(header, 4, identification)
    step = max(8, mtu - start & ~7)
    fragments = []
    for place in range(0, len(payload), step):
        part = payload[place : place + step]
        more = MORE_FRAGMENTS if place + step < len(payload) else word & MORE_FRAGMENTS
        FIELD.pack_into(header, 6, (word & _OFFSET) + place // 8 | more)
        FIELD.pack_into(header, 2, start + len(part))
        FIELD.pack_into(header, 10, 0)
        FIELD.pack_into(header, 10, checksum(header))
        fragments.append(bytes(header) + part)
    return fragments
