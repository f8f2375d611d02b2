"""
Super-packets cut into the packets that they stand for, as a network card does it.

A super-packet is what linux/virtio_net.h calls GSO: one IP header, one transport header, and the payload of many
packets. Each gets both headers again. What differs is, in IPv4, the total length, the identification, which counts up,
and the header's checksum; in IPv6 the payload length; in TCP the sequence number, and that FIN and PSH are the last
one's and CWR the first one's (RFC 3168 section 6.1.2); in UDP the length; and the checksum, which is a full one here.

L{udptunnel.core.l3cut} does the same for packets that are on their way to another end, where checksums stay partial.
"""

from __future__ import annotations

from struct import Struct

from udptunnel.errors import PacketError
from udptunnel.wire.checksum import FIELD, LARGEST_SUM, complete, wordSum
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import IPV4_BYTES, IPV6_BYTES
from udptunnel.wire.vnet import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    TCP_CHECKSUM,
    UDP_CHECKSUM,
    VNET_BYTES,
    VnetHeader,
    unpackVnet,
)

_SEQUENCE = Struct("!I")
_SEQUENCE_AT, _DATA_AT, _FLAGS_AT, _UDP_LENGTH_AT = 4, 12, 13, 4
_UDP_BYTES, _TCP_LEAST = 8, 20
_ONLY_LAST, _ONLY_FIRST = 0x01 | 0x08, 0x80
"""FIN and PSH; CWR."""

_CHECKSUMS = {GSO_TCPV4: TCP_CHECKSUM, GSO_TCPV6: TCP_CHECKSUM, GSO_UDP_L4: UDP_CHECKSUM}


def cut(frame: Buffer) -> list[bytes]:
    """
    The packets of a super-packet, or the one packet that a frame holds, with full checksums.

    @param frame: a virtio header, and a packet.
    @return: packets without virtio headers.
    @raise PacketError: the headers do not fit each other, or are of a kind that nobody sends any more.
    """
    header = unpackVnet(frame)
    packet = bytes(frame[VNET_BYTES:])
    if header.gsoType & ~GSO_ECN:
        return _pieces(packet, header)
    if header.flags & NEEDS_CSUM:
        whole = bytearray(packet)
        complete(whole, header.checksumStart, header.checksumOffset)
        return [bytes(whole)]
    return [packet]


def _pieces(packet: bytes, header: VnetHeader) -> list[bytes]:
    isTcp, start = header.gsoType & ~GSO_ECN != GSO_UDP_L4, header.checksumStart
    _check(packet, header)
    payload = start + _transportBytes(packet, start, isTcp)
    size, places = header.segmentSize, range(payload, len(packet), header.segmentSize)
    if not places:
        raise PacketError("a super-packet of headers alone")
    common = _Headers(packet[:payload], start, start + header.checksumOffset, isTcp)
    pieces = []
    for number, place in enumerate(places):
        part = packet[place : place + size]
        if number < 2 or place == places[-1]:
            common.become(len(part), number == 0, place == places[-1], len(packet) - payload)
        pieces.append(common.before(part, number, place - payload))
    return pieces


def _check(packet: bytes, header: VnetHeader) -> None:
    offset = _CHECKSUMS.get(header.gsoType & ~GSO_ECN)
    if offset != header.checksumOffset or not header.flags & NEEDS_CSUM:
        raise PacketError(f"a super-packet of kind {header.gsoType} without a partial checksum of its transport")
    isFour = packet[0] >> 4 == 4
    if header.checksumStart < (max(IPV4_BYTES, (packet[0] & 0xF) * 4) if isFour else IPV6_BYTES):
        raise PacketError(f"a transport header {header.checksumStart} bytes behind the beginning of an IP header")


def _transportBytes(packet: bytes, start: int, isTcp: bool) -> int:
    if not isTcp:
        return _UDP_BYTES
    length = packet[start + _DATA_AT] >> 2 & 0x3C
    if length < _TCP_LEAST:
        raise PacketError(f"a TCP header of {length} bytes")
    return length


class _Headers:
    """
    What stands before each piece.

    Most pieces are alike but for three numbers. So what they have in common is summed up once, and only that of each
    one's payload is added.
    """

    __slots__ = ("_first", "_flags", "_header", "_ipSum", "_isTcp", "_pseudo", "_sequence", "_start", "_sum", "_value")

    def __init__(self, headers: bytes, start: int, value: int, isTcp: bool) -> None:
        """
        @param start: where the transport header begins.
        @param value: where its checksum stands.
        """
        self._header = header = bytearray(headers)
        self._start, self._value, self._isTcp = start, value, isTcp
        self._pseudo = FIELD.unpack_from(header, value)[0] - (len(header) - start)
        self._first = self._sequence = self._flags = self._sum = self._ipSum = 0
        if isTcp:
            self._sequence = _SEQUENCE.unpack_from(header, start + _SEQUENCE_AT)[0]
            self._flags = header[start + _FLAGS_AT]
        if header[0] >> 4 == 4:
            (self._first,) = FIELD.unpack_from(header, 4)

    def become(self, length: int, isFirst: bool, isLast: bool, all_: int) -> None:
        """
        Be those of pieces with so much payload.

        @param all_: bytes of the payload of all pieces.
        """
        header, start = self._header, self._start
        total = len(header) + length
        if header[0] >> 4 == 4:
            FIELD.pack_into(header, 2, total)
            header[4:6] = header[10:12] = b"\0\0"
            self._ipSum = wordSum(header[: (header[0] & 0xF) * 4])
        else:
            FIELD.pack_into(header, 4, total - IPV6_BYTES)
        header[self._value : self._value + 2] = b"\0\0"
        if self._isTcp:
            header[start + _SEQUENCE_AT : start + _SEQUENCE_AT + 4] = bytes(4)
            header[start + _FLAGS_AT] = self._flags & ~(not isLast and _ONLY_LAST) & ~(not isFirst and _ONLY_FIRST)
        else:
            FIELD.pack_into(header, start + _UDP_LENGTH_AT, total - start)
        # The pseudo-header's length was that of all pieces together.
        self._sum = wordSum(header[start:]) + self._pseudo - all_ + total - start

    def before(self, payload: bytes, number: int, offset: int) -> bytes:
        """
        A piece.

        @param number: how many come before it.
        @param offset: how many bytes of payload come before it.
        """
        header, sum_ = self._header, int.from_bytes(payload, "big") % LARGEST_SUM
        if len(payload) & 1:
            sum_ <<= 8
        if self._isTcp:
            sequence = self._sequence + offset & 0xFFFFFFFF
            _SEQUENCE.pack_into(header, self._start + _SEQUENCE_AT, sequence)
            # Modulo 65,535 a number of 32 bits is the sum of its words.
            sum_ += sequence
        if self._ipSum:
            identification = self._first + number & 0xFFFF
            FIELD.pack_into(header, 4, identification)
            FIELD.pack_into(header, 10, LARGEST_SUM - (self._ipSum + identification) % LARGEST_SUM)
        FIELD.pack_into(header, self._value, LARGEST_SUM - (sum_ + self._sum) % LARGEST_SUM)
        return b"".join((header, payload))
