"""
Super-packets cut into the packets that they stand for.

The kernel hands over up to 64 KB of a TCP stream, or many datagrams of one flow,
behind one header (see L{udptunnel.wire.vnet}). What goes to the other end of an
l3-tunnel is what a network card would make of it (Linux, C{tcp_gso_segment} and
C{__udp_gso_segment}), except that the checksums stay partial ones.
"""

from __future__ import annotations

from struct import Struct

from udptunnel.wire.checksum import FIELD, LARGEST_SUM, pseudoSum, wordSum
from udptunnel.wire.ip import IPV4_BYTES, IPV6_BYTES, MORE_FRAGMENTS, TCP, Packet
from udptunnel.wire.transport import CWR, FIN, PSH
from udptunnel.wire.vnet import TCP_CHECKSUM, UDP_CHECKSUM

_IDENTIFICATION, _IPV4_CHECKSUM = slice(4, 6), slice(10, 12)
_SEQUENCE = Struct("!I")
_SEQUENCE_AT, _FLAGS_AT, _UDP_LENGTH_AT = 4, 13, 4
_ONLY_FIRST, _ONLY_LAST = CWR, FIN | PSH


def cut(packet: bytes, found: Packet, start: int, size: int) -> list[bytes]:
    """
    The packets that a super-packet of TCP or UDP stands for, with partial checksums.

    @param packet: nothing stands behind its end.
    @param found: what its headers say.
    @param start: where its payload begins, behind all headers.
    @param size: the payload of each but the last.
    """
    places = range(start, len(packet), size)
    headers = _Headers(packet, found, start, size)
    last = _Headers(packet, found, start, len(packet) - places[-1])
    packets = headers.before(packet, places[:-1], size) if len(places) > 1 else []
    header = last.numbered(len(packets), size)
    if found.protocol == TCP:
        last.setFlags(packet, len(packets), True)
    packets.append(bytes(header) + packet[places[-1] :])
    return packets


class _Headers:
    """
    The headers of all packets of one length.

    Of IPv4 each has its own identification (RFC 6864 section 4.1 wants that of those that may be cut), and of TCP its
    own sequence number.
    """

    __slots__ = ("_base", "_first", "_header", "_sequence", "_tcp")

    def __init__(self, packet: bytes, found: Packet, start: int, size: int) -> None:
        """
        @param size: of the payload.
        """
        self._header = header = bytearray(packet[:start])
        self._setLengths(found, start + size)
        self._first = self._base = self._sequence = self._tcp = 0
        if found.version == 4:
            self._first = FIELD.unpack_from(header, _IDENTIFICATION.start)[0]
            header[_IDENTIFICATION] = header[_IPV4_CHECKSUM] = b"\0\0"
            self._base = wordSum(header[:IPV4_BYTES])
        if found.protocol == TCP:
            self._tcp = found.payloadStart
            self._sequence = _SEQUENCE.unpack_from(packet, self._tcp + _SEQUENCE_AT)[0]

    def _setLengths(self, found: Packet, total: int) -> None:
        header, start = self._header, found.payloadStart
        length = total - start
        if found.version == 4:
            FIELD.pack_into(header, 2, total)
        else:
            FIELD.pack_into(header, 4, total - IPV6_BYTES)
        if found.protocol != TCP:
            FIELD.pack_into(header, start + _UDP_LENGTH_AT, length)
        field = start + (TCP_CHECKSUM if found.protocol == TCP else UDP_CHECKSUM)
        FIELD.pack_into(header, field, pseudoSum(found.source, found.destination, found.protocol, length))

    def before(self, packet: bytes, places: range, size: int) -> list[bytes]:
        """All packets but the last."""
        packets = []
        for number, place in enumerate(places):
            header = self.numbered(number, size)
            if self._tcp and number < 2:
                self.setFlags(packet, number, False)
            packets.append(b"".join((header, packet[place : place + size])))
        return packets

    def numbered(self, number: int, size: int) -> bytearray:
        """
        The header of one of them, but for its flags; good until the next one is asked for.

        @param number: how many packets come before it.
        @param size: the payload of each of these.
        """
        header = self._header
        if self._base:
            identification = (self._first + number) & 0xFFFF
            FIELD.pack_into(header, 4, identification)
            # That is fold(), but for a sum of zeros, which no header has.
            sum_ = (self._base + identification) % LARGEST_SUM or LARGEST_SUM
            FIELD.pack_into(header, 10, LARGEST_SUM - sum_)
        if self._tcp:
            sequence = self._sequence + number * size
            _SEQUENCE.pack_into(header, self._tcp + _SEQUENCE_AT, sequence & 0xFFFFFFFF)
        return header

    def setFlags(self, packet: bytes, number: int, last: bool) -> None:
        """Leave out the flags that are only for the first or the last one."""
        absent = (_ONLY_FIRST if number else 0) | (0 if last else _ONLY_LAST)
        self._header[self._tcp + _FLAGS_AT] = packet[self._tcp + _FLAGS_AT] & ~absent


def fragments(packet: bytes, found: Packet, mtu: int) -> list[bytes]:
    """
    The fragments of an IPv4 packet that allows that, as a router makes them (RFC 791 section 3.2).

    @param packet: without options, maybe a fragment itself; its checksums are full.
    @param found: what its headers say.
    @param mtu: at least 28.
    """
    step = (mtu - IPV4_BYTES) & ~7
    parts = []
    for place in range(IPV4_BYTES, len(packet), step):
        payload = packet[place : place + step]
        more = place + step < len(packet) or bool(found.fragment and found.fragment.more)
        offset = (found.fragment.offset if found.fragment else 0) + place - IPV4_BYTES
        header = bytearray(packet[:IPV4_BYTES])
        FIELD.pack_into(header, 2, IPV4_BYTES + len(payload))
        FIELD.pack_into(header, 6, more * MORE_FRAGMENTS | offset >> 3)
        header[_IPV4_CHECKSUM] = b"\0\0"
        FIELD.pack_into(header, _IPV4_CHECKSUM.start, LARGEST_SUM - wordSum(header))
        parts.append(bytes(header) + payload)
    return parts
