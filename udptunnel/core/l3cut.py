"""
Super-packets cut into the packets that they stand for.

The kernel hands over up to 64 KB of a TCP stream, or many datagrams of one flow,
behind one header (see L{udptunnel.wire.vnet}). What goes to the other end of an
l3-tunnel is what a network card would make of it (Linux, C{tcp_gso_segment} and
C{__udp_gso_segment}), except that the checksums stay partial ones.
"""

from __future__ import annotations

from struct import Struct, calcsize, pack

from udptunnel.wire.checksum import FIELD, LARGEST_SUM, pseudoSum, wordSum
from udptunnel.wire.ip import IPV4_BYTES, IPV6_BYTES, TCP, Packet
from udptunnel.wire.transport import CWR, FIN, PSH
from udptunnel.wire.vnet import TCP_CHECKSUM, UDP_CHECKSUM

_IDENTIFICATION_AT, _IPV4_CHECKSUM_AT = 4, 10
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
    last = len(places) - 1
    heads = _heads(packet, found, start, size, range(last), size)
    packets = [
        heads[place : place + start] + packet[payload : payload + size]
        for place, payload in zip(range(0, len(heads), start), places, strict=False)
    ]
    tail = packet[places[last] :]
    packets.append(_heads(packet, found, start, len(tail), range(last, last + 1), size) + tail)
    if found.protocol == TCP:
        _setFlags(packets, packet, found.payloadStart + _FLAGS_AT)
    return packets


def _heads(packet: bytes, found: Packet, start: int, length: int, numbers: range, size: int) -> bytes:
    """
    The headers of some packets of one length, laid end to end.

    Of IPv4 each has its own identification, and of TCP its own sequence number. They are set in all headers at once:
    that takes half the time.

    @param length: of the payload of each.
    @param numbers: how many packets come before each of them.
    @param size: the payload of each packet before them.
    """
    header = _header(packet, found, start, length)
    heads = header * len(numbers)
    if found.version == 4:
        (first,), base = FIELD.unpack_from(packet, _IDENTIFICATION_AT), wordSum(header[:IPV4_BYTES])
        identifications = [(first + number) & 0xFFFF for number in numbers]
        _setColumn(heads, _IDENTIFICATION_AT, start, "H", identifications)
        # That is fold(), but for a sum of zeros, which no header has.
        sums = [LARGEST_SUM - ((base + each) % LARGEST_SUM or LARGEST_SUM) for each in identifications]
        _setColumn(heads, _IPV4_CHECKSUM_AT, start, "H", sums)
    if found.protocol == TCP:
        at = found.payloadStart + _SEQUENCE_AT
        (first,) = _SEQUENCE.unpack_from(packet, at)
        _setColumn(heads, at, start, "I", [(first + number * size) & 0xFFFFFFFF for number in numbers])
    return bytes(heads)


def _setColumn(heads: bytearray, at: int, step: int, kind: str, values: list[int]) -> None:
    """Give a field its value in each of many headers."""
    packed = pack(f"!{len(values)}{kind}", *values)
    width = calcsize("!" + kind)
    for place in range(width):
        heads[at + place :: step] = packed[place::width]


def _header(packet: bytes, found: Packet, start: int, length: int) -> bytearray:
    """The header of a packet with a payload of this length; in IPv4 without identification and checksum."""
    header, total = bytearray(packet[:start]), start + length
    transport = total - found.payloadStart
    if found.version == 4:
        FIELD.pack_into(header, 2, total)
        header[_IDENTIFICATION_AT : _IDENTIFICATION_AT + 2] = header[_IPV4_CHECKSUM_AT : _IPV4_CHECKSUM_AT + 2] = (
            b"\0\0"
        )
    else:
        FIELD.pack_into(header, 4, total - IPV6_BYTES)
    if found.protocol != TCP:
        FIELD.pack_into(header, found.payloadStart + _UDP_LENGTH_AT, transport)
    field = found.payloadStart + (TCP_CHECKSUM if found.protocol == TCP else UDP_CHECKSUM)
    FIELD.pack_into(header, field, pseudoSum(found.source, found.destination, found.protocol, transport))
    if found.protocol == TCP:
        header[found.payloadStart + _FLAGS_AT] &= ~(_ONLY_FIRST | _ONLY_LAST)
    return header


def _setFlags(packets: list[bytes], packet: bytes, at: int) -> None:
    """Give the first and the last one the flags that are only theirs."""
    for place, flags in ((0, packet[at] & _ONLY_FIRST), (-1, packet[at] & _ONLY_LAST)):
        if flags:
            one = packets[place]
            packets[place] = one[:at] + bytes((one[at] | flags,)) + one[at + 1 :]
