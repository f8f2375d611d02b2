"""
The largest segment that the ends of a TCP connection announce (RFC 9293 section 3.7.1).

A SYN says it in an option, C{kind(1)=2 length(1)=4 size(2)}. Where the path is
narrower than the hosts know, it is made smaller on the way, so that no packet
of the connection has to be refused.
"""

from __future__ import annotations

from udptunnel.wire.checksum import FIELD, difference, updated
from udptunnel.wire.vnet import TCP_CHECKSUM

_END, _NOTHING, _MSS = 0, 1, 2
_MSS_BYTES = 4


def clampMss(packet: bytearray, start: int, end: int, most: int, partial: bool) -> None:
    """
    Make the segments that a SYN announces no longer than fits.

    @param start: where its TCP header begins.
    @param end: where its options end.
    @param most: the longest payload of a segment without options.
    @param partial: whether its checksum is a partial one, which has nothing to do with options.
    """
    place = _find(packet, start + 20, end)
    if not place:
        return
    old, new = bytes(packet[place : place + 2]), FIELD.pack(most)
    if old <= new:
        return
    packet[place : place + 2] = new
    if not partial:
        # An option may begin at an odd place; then its bytes count in the other half of a word.
        change = difference(old, new) if (place - start) % 2 == 0 else difference(old[::-1], new[::-1])
        field = start + TCP_CHECKSUM
        FIELD.pack_into(packet, field, updated(FIELD.unpack_from(packet, field)[0], change))


def _find(packet: bytearray, place: int, end: int) -> int:
    """Where the size stands; 0 if nowhere, or if the options are broken before it."""
    while place < end and packet[place] != _END:
        if packet[place] == _NOTHING:
            place += 1
            continue
        if place + 1 >= end or packet[place + 1] < 2 or place + packet[place + 1] > end:
            return 0
        if packet[place] == _MSS:
            return place + 2 if packet[place + 1] == _MSS_BYTES else 0
        place += packet[place + 1]
    return 0
