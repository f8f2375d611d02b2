"""Token buckets: so many at once, and so many a second."""

from __future__ import annotations


class Bucket:
    """Says whether something may be done once more."""

    __slots__ = ("_filledAt", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        """
        @param rate: how often a second, and how often at once after a second of rest.
        """
        self._rate = rate
        self._tokens = rate
        self._filledAt = now

    def take(self, tokens: int, now: float) -> bool:
        """Whether C{tokens} more may be had now; if so they are taken."""
        self._tokens = min(self._rate, self._tokens + self._rate * (now - self._filledAt))
        self._filledAt = now
        # A full bucket takes more than it holds, or what comes in one piece would never pass.
        if self._tokens < min(tokens, self._rate):
            return False
        self._tokens -= tokens
        return True
