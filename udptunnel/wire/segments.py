"""
Super-packets cut into the packets that they stand for, as a network card does it.

A super-packet is what linux/virtio_net.h calls GSO: one IP header, one transport header, and the payload of many
packets. Each gets both headers again. What differs is, in IPv4, the total length, the identification, which counts up,
and the header's checksum; in IPv6 the payload length; in TCP the sequence number, and that FIN and PSH are the last
one's and CWR the first one's (RFC 3168 section 6.1.2); in UDP the length.
"""

from __future__ import annotations

from struct import Struct

from udptunnel.errors import PacketError
from udptunnel.wire.checksum import FIELD, LARGEST_SUM, complete, fold, wordSum
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

_WORD = Struct("!I")
_UDP_BYTES = 8
_TCP_LEAST = 20
_FIN_PSH, _CWR = 0x01 | 0x08, 0x80
_CHECKSUMS = {GSO_TCPV4: TCP_CHECKSUM, GSO_TCPV6: TCP_CHECKSUM, GSO_UDP_L4: UDP_CHECKSUM}


def cut(frame: Buffer, full: bool = True) -> list[bytearray]:
    """
    The packets of a super-packet, or the one packet that a frame holds.

    @param frame: a virtio header, and a packet without IPv6 extension headers or with such that are no fragment's.
    @param full: whether transport checksums are full; otherwise those that were partial are so again.
    @return: packets without virtio headers.
    @raise PacketError: the headers do not fit each other, or are of a kind that nobody sends any more.
    """
    header = unpackVnet(frame)
    packet = memoryview(frame)[VNET_BYTES:]
    if not header.gsoType & ~GSO_ECN:
        return [_single(bytearray(packet), header, full)]
    return _Cut(packet, header).pieces(full)


def _single(packet: bytearray, header: VnetHeader, full: bool) -> bytearray:
    if full and header.flags & NEEDS_CSUM:
        complete(packet, header.checksumStart, header.checksumOffset)
    return packet


class _Cut:
    """What all packets of one super-packet have in common."""

    def __init__(self, packet: memoryview, header: VnetHeader) -> None:
        kind = header.gsoType & ~GSO_ECN
        self._packet, self._size, self._start = packet, header.segmentSize, header.checksumStart
        if _CHECKSUMS.get(kind) != header.checksumOffset or not header.flags & NEEDS_CSUM:
            raise PacketError(f"a super-packet of kind {header.gsoType} without a partial checksum of its transport")
        self._isTcp = kind != GSO_UDP_L4
        self._isFour = packet[0] >> 4 == 4
        if self._start < (max(IPV4_BYTES, (packet[0] & 0xF) * 4) if self._isFour else IPV6_BYTES):
            raise PacketError(f"a transport header {self._start} bytes behind the beginning of an IP header")
        self._field = self._start + header.checksumOffset
        self._payload = self._start + self._transportBytes()
        if not self._payload < len(packet):
            raise PacketError("a super-packet of headers alone")
        # The sum of the pseudo-header without the length of the transport's part.
        self._pseudo = FIELD.unpack_from(packet, self._field)[0] - (len(packet) - self._start)
        self._header = bytes(packet[: self._payload])
        self._bareSum = self._sumWithoutLength()

    def _transportBytes(self) -> int:
        if not self._isTcp:
            return _UDP_BYTES
        length = self._packet[self._start + 12] >> 2 & 0x3C
        if length < _TCP_LEAST:
            raise PacketError(f"a TCP header of {length} bytes")
        return length

    def _sumWithoutLength(self) -> int:
        """Of an IPv4 header the sum of all words but length, identification and checksum."""
        end = (self._header[0] & 0xF) * 4
        return wordSum(self._header[:2]) + wordSum(self._header[6:10]) + wordSum(self._header[12:end])

    def pieces(self, full: bool) -> list[bytearray]:
        """All of them."""
        places = range(self._payload, len(self._packet), self._size)
        return [self._piece(number, place, full) for number, place in enumerate(places)]

    def _piece(self, number: int, place: int, full: bool) -> bytearray:
        payload = self._packet[place : place + self._size]
        piece = bytearray(self._header)
        piece += payload
        self._count(piece, number)
        if self._isTcp:
            isLast = place + self._size >= len(self._packet)
            self._follow(piece, place - self._payload, number == 0, isLast)
        else:
            FIELD.pack_into(piece, self._start + 4, len(piece) - self._start)
        FIELD.pack_into(
            piece, self._field, fold((self._pseudo + len(piece) - self._start) % LARGEST_SUM) or LARGEST_SUM
        )
        if full:
            complete(piece, self._start, self._field - self._start)
        return piece

    def _count(self, piece: bytearray, number: int) -> None:
        """The IP header of a piece."""
        if not self._isFour:
            FIELD.pack_into(piece, 4, len(piece) - IPV6_BYTES)
            return
        (first,) = FIELD.unpack_from(piece, 4)
        identification = first + number & 0xFFFF
        FIELD.pack_into(piece, 2, len(piece))
        FIELD.pack_into(piece, 4, identification)
        FIELD.pack_into(piece, 10, LARGEST_SUM - fold(self._bareSum + len(piece) + identification))

    def _follow(self, piece: bytearray, offset: int, isFirst: bool, isLast: bool) -> None:
        """The TCP header of a piece."""
        (sequence,) = _WORD.unpack_from(piece, self._start + 4)
        _WORD.pack_into(piece, self._start + 4, sequence + offset & 0xFFFFFFFF)
        piece[self._start + 13] &= ~(not isLast and _FIN_PSH) & ~(not isFirst and _CWR)
