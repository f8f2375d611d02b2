"""
Acknowledgements that a later one makes needless (ACK filtering, RFC 3449 section 5.2.1).

Who receives a flood through a TUN acknowledges each super-packet, and TCP's
acknowledgements are cumulative: of those of a connection that were read at
once, the newest says all. The others would cost as much as packets with data.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from udptunnel.wire.ip import TCP
from udptunnel.wire.vnet import VNET_BYTES

FEWEST = 4
"""Of fewer packets there is little to leave out."""

_ACK = 16
_HALF = 1 << 31
_TIMESTAMPS = b"\1\1\x08\x0a"
"""How systems lay out the only option of an acknowledgement that tells of no loss (RFC 7323 appendix A)."""

_LEAST, _MOST = VNET_BYTES + 20 + 20, VNET_BYTES + 40 + 32
_PLAIN4, _PLAIN6 = Struct("!12s4xIBB"), Struct("!36s4xIBB")
"""Addresses and ports, the acknowledgement number, the length of the TCP header, its flags."""


def newest(packets: Sequence[memoryview]) -> Sequence[memoryview]:
    """
    Leave out acknowledgements without data, options or news that are followed by a greater one of the same connection.

    @param packets: in their order, each behind its virtio header.
    @return: the others, in the same order.
    """
    if len(packets) < FEWEST:
        return packets
    kept: list[memoryview] = []
    later: dict[bytes, int] = {}
    for packet in reversed(packets):
        found = _read(packet) if _LEAST <= len(packet) <= _MOST else None
        if found is not None:
            key, number = found
            greatest = later.get(key, number)
            if 0 < (greatest - number) % (1 << 32) < _HALF:
                continue
            later[key] = number
        kept.append(packet)
    kept.reverse()
    return kept


def _read(packet: memoryview) -> tuple[bytes, int] | None:
    """The connection and the number of an acknowledgement; C{None} if a packet is anything else."""
    first = packet[VNET_BYTES]
    if first == 0x45 and packet[VNET_BYTES + 9] == TCP:
        start, (key, number, length, flags) = VNET_BYTES + 20, _PLAIN4.unpack_from(packet, VNET_BYTES + 12)
    elif first >> 4 == 6 and packet[VNET_BYTES + 6] == TCP and len(packet) >= VNET_BYTES + 60:
        start, (key, number, length, flags) = VNET_BYTES + 40, _PLAIN6.unpack_from(packet, VNET_BYTES + 8)
    else:
        return None
    size = len(packet) - start
    if flags != _ACK or (length >> 4) * 4 != size:
        return None
    return (key, number) if size == 20 or (packet[start + 20 : start + 24] == _TIMESTAMPS and size == 32) else None
