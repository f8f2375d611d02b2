"""
Fragments put together again: IPv4 (RFC 791 section 3.2, RFC 815) and IPv6 (RFC
8200 section 4.5).

Parts may come in any order. A part that has come before is ignored. Parts that
overlap are somebody's attempt to show a firewall another packet than the one that
arrives: then all of the packet is dropped, also what still comes of it, as RFC
5722 section 4 demands for IPv6. IPv4 gains nothing from being more lenient.

Packets that never become whole are forgotten after a time, and before that if
there are too many of them: the one that began first goes first.
"""

from __future__ import annotations

from bisect import bisect
from struct import Struct
from typing import TypeAlias

from udptunnel.wire.checksum import checksum
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import FRAGMENT_BYTES, IPV6_BYTES, LARGEST_LENGTH, Fragment, Packet

LIFE_SECONDS = 30.0
"""How long a packet may take to become whole: C{ipfrag_time} of Linux. RFC 8200 allows twice as much."""

MOST_PACKETS = 256
MOST_BYTES = 4 << 20
"""What may wait at once: C{ipfrag_high_thresh} of Linux."""

PART_BYTES = 200
"""What a part takes besides its payload, roughly. Without it tiny ones would cost much more than they count."""

_Key: TypeAlias = tuple[bytes, bytes, int, int]

_FIELD = Struct("!H")
_LENGTH_AT_V4, _FRAGMENT_AT_V4, _CHECKSUM_AT_V4, _LENGTH_AT_V6 = 2, 6, 10, 4


class _Unfinished:
    """
    A packet of which something is missing.

    @ivar since: when the first part of it came.
    @ivar size: what it takes, in bytes.
    @ivar spoiled: whether it never becomes whole.
    """

    __slots__ = ("_end", "_header", "_held", "_linkAt", "_parts", "_protocol", "_starts", "since", "size", "spoiled")

    def __init__(self, now: float) -> None:
        self.since = now
        self.size = PART_BYTES
        self.spoiled = False
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._held = 0
        # No multiple of eight: only with the last part, which says where the end is, the others add up to it.
        self._end = LARGEST_LENGTH
        self._header = b""
        self._linkAt = self._protocol = 0

    def add(self, frame: Buffer, packet: Packet, fragment: Fragment) -> None:
        """One more part has come."""
        payload = bytes(frame[packet.payloadStart : packet.totalLength])
        place = bisect(self._starts, fragment.offset)
        if self.spoiled or self._isThere(place, fragment.offset, payload):
            return
        if not self._fits(place, fragment, len(payload)):
            self._spoil()
            return
        self._put(place, fragment, payload)
        if not fragment.offset:
            self._begin(frame, packet, fragment)

    def _isThere(self, place: int, offset: int, payload: bytes) -> bool:
        return place > 0 and self._starts[place - 1] == offset and self._parts[place - 1] == payload

    def _fits(self, place: int, fragment: Fragment, length: int) -> bool:
        """Whether a part overlaps none of the others, and the last one ends behind them."""
        isLast = place == len(self._starts)
        before = self._starts[place - 1] + len(self._parts[place - 1]) if place else 0
        after = self._end if isLast else self._starts[place]
        return before <= fragment.offset and fragment.offset + length <= after and (fragment.more or isLast)

    def _spoil(self) -> None:
        """Keep nothing but the memory that it came to nothing."""
        self.spoiled = True
        self.size = PART_BYTES
        self._starts, self._parts, self._header = [], [], b""

    def _put(self, place: int, fragment: Fragment, payload: bytes) -> None:
        self._starts.insert(place, fragment.offset)
        self._parts.insert(place, payload)
        self._held += len(payload)
        self.size += len(payload) + PART_BYTES
        if not fragment.more:
            self._end = fragment.offset + len(payload)

    def _begin(self, frame: Buffer, packet: Packet, fragment: Fragment) -> None:
        """The headers are those of the first part; of IPv6, those before the fragment header."""
        start = packet.payloadStart - (FRAGMENT_BYTES if packet.version == 6 else 0)
        self._header = bytes(frame[:start])
        self.size += start
        self._linkAt, self._protocol = fragment.linkAt, packet.protocol

    @property
    def isWhole(self) -> bool:
        """Whether nothing is missing."""
        return self._held == self._end and not self.spoiled

    def whole(self) -> bytes | None:
        """The packet; nothing if it is longer than a packet can be."""
        header = bytearray(self._header)
        if self._linkAt:
            header[self._linkAt] = self._protocol
        finish = _finishIpv6 if self._linkAt else _finishIpv4
        return bytes(header) + b"".join(self._parts) if finish(header, len(header) + self._end) else None


def _finishIpv4(header: bytearray, total: int) -> bool:
    """Make the header that of a whole packet, if that is not too long."""
    if total > LARGEST_LENGTH:
        return False
    _FIELD.pack_into(header, _LENGTH_AT_V4, total)
    _FIELD.pack_into(header, _FRAGMENT_AT_V4, 0)
    _FIELD.pack_into(header, _CHECKSUM_AT_V4, 0)
    _FIELD.pack_into(header, _CHECKSUM_AT_V4, checksum(header))
    return True


def _finishIpv6(header: bytearray, total: int) -> bool:
    if total - IPV6_BYTES > LARGEST_LENGTH:
        return False
    _FIELD.pack_into(header, _LENGTH_AT_V6, total - IPV6_BYTES)
    return True


class Fragments:
    """
    The packets of which something is missing.

    @ivar size: what they take, in bytes.
    @ivar dropped: how many never became whole: they took too long, had to make
        room, overlapped, or were no proper fragments at all. Whoever counts them may set it back.
    """

    def __init__(self, mostPackets: int = MOST_PACKETS, mostBytes: int = MOST_BYTES) -> None:
        """
        @param mostPackets: how many may wait for the rest.
        @param mostBytes: what they may take together.
        """
        self.size = self.dropped = 0
        self._mostPackets = mostPackets
        self._mostBytes = mostBytes
        # The one that began first stands first.
        self._table: dict[_Key, _Unfinished] = {}

    def __len__(self) -> int:
        return len(self._table)

    def add(self, frame: Buffer, packet: Packet, now: float) -> bytes | None:
        """
        One more packet has come.

        @param packet: what L{parse<udptunnel.wire.ip.parse>} said about the
            frame. The frame is copied.
        @return: a packet that is whole now, to be parsed anew; nothing if
            something is missing. It may be a fragment again: that is nobody's
            honest packet, drop it.
        """
        fragment = packet.fragment
        if fragment is None:
            return bytes(frame[: packet.totalLength])
        self.expire(now)
        if not _isProper(packet, fragment):
            self.dropped += 1
            return None
        key = (packet.source, packet.destination, fragment.identification, _protocolOf(packet))
        unfinished = self._table.get(key) or self._begin(key, now)
        before = unfinished.size
        unfinished.add(frame, packet, fragment)
        self.size += unfinished.size - before
        if unfinished.isWhole:
            return self._take(key)
        self._makeRoom()
        return None

    def _begin(self, key: _Key, now: float) -> _Unfinished:
        unfinished = self._table[key] = _Unfinished(now)
        self.size += unfinished.size
        return unfinished

    def _take(self, key: _Key) -> bytes | None:
        unfinished = self._table.pop(key)
        self.size -= unfinished.size
        whole = unfinished.whole()
        self.dropped += whole is None
        return whole

    def _makeRoom(self) -> None:
        while len(self._table) > self._mostPackets or self.size > self._mostBytes:
            self._dropFirst()

    def _dropFirst(self) -> None:
        key = next(iter(self._table))
        self.size -= self._table.pop(key).size
        self.dropped += 1

    def expire(self, now: float) -> None:
        """Forget those that take too long."""
        while self._table and now - next(iter(self._table.values())).since >= LIFE_SECONDS:
            self._dropFirst()


def _isProper(packet: Packet, fragment: Fragment) -> bool:
    """Whether a fragment holds something, and another one can follow it without a gap (RFC 8200 section 4.5)."""
    length = packet.totalLength - packet.payloadStart
    return length > 0 and not (fragment.more and length % 8)


def _protocolOf(packet: Packet) -> int:
    """What else tells packets apart: in IPv4 the protocol, in IPv6 nothing; there only the first part's counts."""
    return packet.protocol if packet.version == 4 else 0
