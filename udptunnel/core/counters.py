"""Counters: what went through, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from typing import Any


class Counters:
    """
    The figures of one role.

    @ivar sent: datagrams that were given to UDP sockets.
    @ivar received: datagrams that came from UDP sockets.
    @ivar sentBytes: bytes of the former.
    @ivar receivedBytes: bytes of the latter.
    @ivar dropped: datagrams that were dropped, by reason.
    @ivar evicted: associations that had to make room for others.
    """

    __slots__ = ("dropped", "evicted", "received", "receivedBytes", "sent", "sentBytes")

    def __init__(self) -> None:
        self.evicted = 0
        self.sent = self.received = self.sentBytes = self.receivedBytes = 0
        self.dropped: Counter[str] = Counter()

    def drop(self, reason: str, datagrams: int = 1) -> None:
        """Count datagrams that go no further."""
        self.dropped[reason] += datagrams

    def report(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "sent": self.sent,
            "sentBytes": self.sentBytes,
            "received": self.received,
            "receivedBytes": self.receivedBytes,
            "dropped": dict(self.dropped),
            "evicted": self.evicted,
        }
