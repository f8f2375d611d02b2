"""
Packets joined into super-packets, the other way round than L{udptunnel.core.l3cut}.

Neighbours of one TCP stream whose headers say the same, and whose payloads follow
each other, become one packet again, and so do datagrams of one flow: the kernel
takes up to 64 KB with one call, and carries it through in one piece. Only packets with partial
checksums are joined; a full one would have to be verified first, for it would vanish.

How two headers differ is found by seeing each as one big number: what may differ
is masked out, and what must grow is added beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from udptunnel.wire.checksum import FIELD, LARGEST_SUM, pseudoSum, wordSum
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import IPV4_BYTES, IPV6_BYTES, LARGEST_LENGTH, TCP, UDP, Packet
from udptunnel.wire.transport import ACK, PSH
from udptunnel.wire.vnet import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    TCP_CHECKSUM,
    UDP_CHECKSUM,
    VnetHeader,
    packVnet,
)

Headed: TypeAlias = tuple[Buffer, ...]
"""One packet or super-packet behind a virtio header, which may lie in several buffers."""

MOST_SEGMENTS = 64
"""How many packets one super-packet stands for; UDP may not have more (linux/udp.h, UDP_MAX_SEGMENTS)."""

_TCP_FLAGS_AT, _SEQUENCE_AT, _UDP_LENGTH_AT, _UDP_BYTES = 13, 4, 4, 8
_CHECKSUMS = {TCP: TCP_CHECKSUM, UDP: UDP_CHECKSUM}


class _Flow(NamedTuple):
    """What a packet must look like to follow another one."""

    found: Packet
    start: int
    """Where the payload begins."""

    length: int
    """Of the whole packet."""

    mask: int
    step: int
    """What the header, as a number, grows by."""


class Joiner:
    """
    Joins what is given to it one after the other.

    @ivar done: what is finished; to be taken after L{finish}.
    """

    __slots__ = ("_expected", "_first", "_flow", "_parts", "_protocols", "_total", "done")

    def __init__(self, protocols: Iterable[int]) -> None:
        """
        @param protocols: which are joined: TCP, UDP, both or none.
        """
        self.done: list[Headed] = []
        self._protocols = frozenset(protocols)
        self._flow: _Flow | None = None
        self._expected = 0
        self._first = b""
        self._parts: list[bytes] = []
        self._total = 0

    def followAll(self, packets: Sequence[bytes], place: int) -> int:
        """
        Join packets as long as each follows the one before; returns how many do.

        Nothing is known of them yet but that their checksums are partial. But what was found out about the first one is
        true of all of them: their headers say the same.

        @param place: which of them is the next one.
        """
        flow = self._flow
        if flow is None:
            return 0
        length, start, mask, step, expected = flow.length, flow.start, flow.mask, flow.step, self._expected
        parts = self._parts
        room = min(MOST_SEGMENTS - len(parts), (LARGEST_LENGTH - self._total) // (length - start))
        first, fromBytes = len(parts), int.from_bytes
        for packet in packets[place : place + room]:
            if len(packet) != length or (fromBytes(packet[:start], "big") ^ expected) & mask:
                break
            expected += step
            parts.append(packet[start:])
        joined = len(parts) - first
        self._total += joined * (length - start)
        self._expected = expected
        if joined == room:
            self.finish()
        return joined

    def ends(self, packet: bytes, found: Packet, start: int) -> bool:
        """
        Join a packet as the last one: it is shorter, or says that it is to be pushed.

        @param found: what its headers say.
        @param start: where its payload begins.
        """
        flow = self._flow
        if flow is None or start != flow.start or not start < len(packet) <= flow.length:
            return False
        if self._total + len(packet) - start > LARGEST_LENGTH:
            return False
        same = bytearray(packet[:start])
        self._copyLengths(same, found)
        if found.protocol == TCP:
            same[found.payloadStart + _TCP_FLAGS_AT] &= ~PSH
        if (int.from_bytes(same, "big") ^ self._expected) & flow.mask:
            return False
        self._parts.append(packet[start:])
        self._total += len(packet) - start
        if found.protocol == TCP:
            self._push(found, packet[found.payloadStart + _TCP_FLAGS_AT])
        self.finish()
        return True

    def _copyLengths(self, header: bytearray, found: Packet) -> None:
        """The lengths of the packets before, in place of its own."""
        at = 2 if found.version == 4 else 4
        header[at : at + 2] = self._first[at : at + 2]
        if found.protocol == UDP:
            at = found.payloadStart + _UDP_LENGTH_AT
            header[at : at + 2] = self._first[at : at + 2]

    def _push(self, found: Packet, flags: int) -> None:
        at = found.payloadStart + _TCP_FLAGS_AT
        self._first = self._first[:at] + bytes((flags,)) + self._first[at + 1 :]

    def begin(self, packet: bytes, found: Packet, start: int) -> None:
        """
        Take a packet that follows none, and has a partial checksum.

        @param found: what its headers say.
        @param start: where its payload begins.
        """
        self.finish()
        self._first, self._parts, self._total = packet, [packet[start:]], len(packet)
        if not self._mayBegin(packet, found, start):
            self._flow = _Flow(found, start, len(packet), 0, 0)
            self.finish()
            return
        step = self._stepOf(packet, found, start)
        self._flow = _Flow(found, start, len(packet), _maskOf(packet, found, start), step)
        self._expected = int.from_bytes(packet[:start], "big") + step

    def _mayBegin(self, packet: bytes, found: Packet, start: int) -> bool:
        if found.protocol not in self._protocols or start == len(packet):
            return False
        return found.protocol == UDP or packet[found.payloadStart + _TCP_FLAGS_AT] == ACK

    def _stepOf(self, packet: bytes, found: Packet, start: int) -> int:
        size, step = len(packet) - start, 0
        if found.protocol == TCP:
            step += size << 8 * (start - found.payloadStart - _SEQUENCE_AT - 4)
        if found.version == 4:
            step += 1 << 8 * (start - 6)
        return step

    def passOn(self, packet: Headed) -> None:
        """Take a packet that nothing is to be joined to."""
        self.finish()
        self.done.append(packet)

    def finish(self) -> None:
        """Nothing follows."""
        flow, self._flow = self._flow, None
        if flow is None:
            return
        if len(self._parts) == 1:
            self.done.append((_single(flow.found), self._first))
        else:
            self.done.append((_super(flow, self._first, self._total), *self._parts))


def _maskOf(packet: bytes, found: Packet, start: int) -> int:
    """Ones for all that must be as expected: all but what nobody has computed, or what depends on other things."""
    mask = bytearray(b"\xff" * start)
    field = found.payloadStart + _CHECKSUMS[found.protocol]
    mask[field : field + 2] = b"\0\0"
    if found.version == 4:
        mask[10:12] = b"\0\0"
        if packet[6] & 0x40:
            # What may not be fragmented needs no identification (RFC 6864 section 4.1).
            mask[4:6] = b"\0\0"
    return int.from_bytes(mask, "big")


def _single(found: Packet) -> bytes:
    return packVnet(VnetHeader(NEEDS_CSUM, 0, 0, 0, found.payloadStart, _CHECKSUMS[found.protocol]))


def _super(flow: _Flow, first: bytes, total: int) -> bytes:
    """The virtio header and all headers of a super-packet."""
    found, start = flow.found, flow.start
    header = bytearray(first[:start])
    length, field = total - found.payloadStart, found.payloadStart + _CHECKSUMS[found.protocol]
    if found.protocol == UDP:
        FIELD.pack_into(header, found.payloadStart + _UDP_LENGTH_AT, length)
    FIELD.pack_into(header, field, pseudoSum(found.source, found.destination, found.protocol, length))
    if found.version == 4:
        FIELD.pack_into(header, 2, total)
        header[10:12] = b"\0\0"
        FIELD.pack_into(header, 10, LARGEST_SUM - wordSum(header[:IPV4_BYTES]))
    else:
        FIELD.pack_into(header, 4, total - IPV6_BYTES)
    kind = GSO_UDP_L4 if found.protocol == UDP else GSO_TCPV4 if found.version == 4 else GSO_TCPV6
    vnet = VnetHeader(NEEDS_CSUM, kind, start, flow.length - start, found.payloadStart, _CHECKSUMS[found.protocol])
    return packVnet(vnet) + header
