"""
Bursts that wait until there is a way for their sources.

Bounded for each source and in all; the oldest goes first. What has waited too
long is worth nothing to its flow.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from udptunnel.core.counters import Counters
from udptunnel.core.queue import BURST_BYTES
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, count

SOURCE_BYTES = 128 << 10
"""What one source may let wait: two super-packets, or hundreds of questions."""

ALL_BYTES = 16 << 20
"""What may wait in all."""

MOST_SECONDS = 5.0
"""How long: after that a resolver has asked again."""


class _Line:
    """What waits for one source, and since when."""

    __slots__ = ("bursts", "bytes")

    def __init__(self) -> None:
        self.bursts: deque[tuple[float, AimedBurst]] = deque()
        self.bytes = 0


class Waiting:
    """
    Bursts by source. Owns its bytes: what is put in is copied unless it is C{bytes}.

    @ivar bytes: what waits, with C{BURST_BYTES} for each burst: empty ones must not be free.
    """

    def __init__(self, counters: Counters) -> None:
        self.bytes = 0
        self._counters = counters
        self._lines: OrderedDict[Address, _Line] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, burst: AimedBurst, now: float) -> None:
        """Let a burst wait. If that is too much, the oldest of its source goes, or the oldest of all."""
        line = self._lines.get(burst.source)
        if line is None:
            line = self._lines[burst.source] = _Line()
        line.bursts.append((now, burst._replace(payload=bytes(burst.payload))))
        self._add(line, burst)
        while line.bytes > SOURCE_BYTES:
            self._drop(burst.source, line, "no way yet")
        while self.bytes > ALL_BYTES:
            self._drop(*next(iter(self._lines.items())), "no way yet")

    def _add(self, line: _Line, burst: AimedBurst) -> None:
        cost = BURST_BYTES + len(burst.payload)
        line.bytes += cost
        self.bytes += cost

    def _drop(self, source: Address, line: _Line, reason: str) -> None:
        _, (_, _, size, payload) = line.bursts.popleft()
        cost = BURST_BYTES + len(payload)
        line.bytes -= cost
        self.bytes -= cost
        if not line.bursts:
            del self._lines[source]
        self._counters.drop(reason, count(size, payload))

    def take(self, source: Address, now: float) -> list[AimedBurst]:
        """Take out what waits for a source, oldest first, but not what has waited too long."""
        line = self._lines.get(source)
        if line is None:
            return []
        self._dropOld(source, line, now)
        if line.bursts:
            del self._lines[source]
            self.bytes -= line.bytes
        return [burst for _, burst in line.bursts]

    def forget(self, source: Address) -> None:
        """Drop what waits for a source: there will be no way."""
        while (line := self._lines.get(source)) is not None:
            self._drop(source, line, "association closed")

    def _dropOld(self, source: Address, line: _Line, now: float) -> None:
        while line.bursts and now - line.bursts[0][0] > MOST_SECONDS:
            self._drop(source, line, "waited too long for a way")

    def expire(self, now: float) -> None:
        """Drop what has waited too long."""
        for source, line in list(self._lines.items()):
            self._dropOld(source, line, now)
