"""
Fragments that go by: which parts of which packets have passed.

Whoever puts a packet together chooses between two parts that overlap, and no two
systems choose alike (RFC 1858, RFC 5722): so the later one does not pass.
"""

from __future__ import annotations

from udptunnel.wire.ip import Packet

MOST_PACKETS = 1024
"""So many packets are in parts at once, as far as we remember."""

MOST_PARTS = 128
"""So many parts one has: 65,535 bytes over a path of 576."""

LIFE_SECONDS = 30.0
"""How long the parts of a packet may follow each other (RFC 1122 has 60 to 120; nobody sends one so slowly)."""

_Key = tuple[bytes, bytes, int, int]


class PassingFragments:
    """What has passed, of packets in parts."""

    __slots__ = ("_passed",)

    def __init__(self) -> None:
        self._passed: dict[_Key, tuple[float, list[tuple[int, int]]]] = {}

    def __len__(self) -> int:
        return len(self._passed)

    def mayPass(self, packet: Packet, now: float) -> bool:
        """Whether a fragment overlaps no other of its packet, and is not one too many; then it has passed."""
        fragment = packet.fragment
        if fragment is None:
            return True
        begin = fragment.offset
        end = begin + packet.totalLength - packet.payloadStart
        parts = self._partsOf(packet, fragment.identification, now)
        if len(parts) >= MOST_PARTS or any(begin < till and since < end for since, till in parts):
            return False
        parts.append((begin, end))
        return True

    def _partsOf(self, packet: Packet, identification: int, now: float) -> list[tuple[int, int]]:
        self._expire(now)
        key = (packet.source, packet.destination, identification, packet.protocol if packet.version == 4 else 0)
        if key not in self._passed:
            self._passed[key] = now, []
        return self._passed[key][1]

    def _expire(self, now: float) -> None:
        """The oldest stand first."""
        while self._passed:
            first = next(iter(self._passed))
            if len(self._passed) < MOST_PACKETS and now - self._passed[first][0] < LIFE_SECONDS:
                return
            del self._passed[first]
