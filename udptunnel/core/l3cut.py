"""
Super-packets cut into the packets that they stand for.

The kernel hands over up to 64 KB of a TCP stream, or many datagrams of one flow,
behind one header (see L{udptunnel.wire.vnet}). What goes to the other end of an
l3-tunnel is what a network card would make of it (Linux, C{tcp_gso_segment} and
C{__udp_gso_segment}), except that the checksums stay partial ones.
"""

from __future__ import annotations

from struct import Struct

from udptunnel.wire.checksum import FIELD, LARGEST_SUM, fold, pseudoSum, wordSum
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
    make = _TcpHeaders if found.protocol == TCP else _Headers
    headers = make(packet, found, start, size)
    packets = [b"".join((headers.number(each), packet[place : place + size])) for each, place in enumerate(places[:-1])]
    last = make(packet, found, start, len(packet) - places[-1])
    packets.append(b"".join((last.number(len(packets), True, size), packet[places[-1] :])))
    return packets


class _Headers:
    """The headers of all packets of one length."""

    __slots__ = ("_base", "_first", "_header", "_size")

    def __init__(self, packet: bytes, found: Packet, start: int, size: int) -> None:
        """
        @param size: of the payload.
        """
        self._size = size
        self._header = header = bytearray(packet[:start])
        self._setLengths(found, start + size)
        self._first = self._base = 0
        if found.version == 4:
            self._first = FIELD.unpack_from(header, _IDENTIFICATION.start)[0]
            header[_IDENTIFICATION] = header[_IPV4_CHECKSUM] = b"\0\0"
            self._base = wordSum(header[:IPV4_BYTES])

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

    def number(self, number: int, last: bool = False, step: int = 0) -> bytearray:
        """
        The header of one of them; good until the next one is asked for.

        @param number: how many come before it.
        @param last: whether none follows.
        @param step: how long the payload of those before it is, if not as long as its own.
        """
        header = self._header
        if self._base:
            identification = (self._first + number) & 0xFFFF
            FIELD.pack_into(header, _IDENTIFICATION.start, identification)
            FIELD.pack_into(header, _IPV4_CHECKSUM.start, LARGEST_SUM - fold(self._base + identification))
        return header


class _TcpHeaders(_Headers):
    """The same of TCP, whose sequence number grows, and whose flags are partly for the first or the last one."""

    __slots__ = ("_flags", "_sequence", "_tcp")

    def __init__(self, packet: bytes, found: Packet, start: int, size: int) -> None:
        super().__init__(packet, found, start, size)
        self._tcp = found.payloadStart
        self._sequence = _SEQUENCE.unpack_from(packet, self._tcp + _SEQUENCE_AT)[0]
        self._flags = packet[self._tcp + _FLAGS_AT]

    def number(self, number: int, last: bool = False, step: int = 0) -> bytearray:
        header = super().number(number)
        sequence = self._sequence + number * (step or self._size)
        _SEQUENCE.pack_into(header, self._tcp + _SEQUENCE_AT, sequence & 0xFFFFFFFF)
        if number < 2 or last:
            absent = (_ONLY_FIRST if number else 0) | (0 if last else _ONLY_LAST)
            header[self._tcp + _FLAGS_AT] = self._flags & ~absent
        return header


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
