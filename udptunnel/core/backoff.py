"""Back-off: whoever fails is left alone for a while, and for twice as long the next time."""

from __future__ import annotations

FIRST_SECONDS = 1.0
"""The first pause."""


class Backoff:
    """
    When to try again.

    @ivar seconds: the pause after the last failure; 0 if there was none since the last success.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._until = 0.0

    def rests(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return self.seconds > 0 and now < self._until

    def failed(self, now: float, most: float) -> None:
        """
        It did not work. What else was on its way and fails during the pause tells nothing new.

        @param most: the longest pause, in seconds.
        """
        if self.rests(now):
            return
        if now - self._until > most:
            # It was fine for long enough, even if nobody has said so.
            self.seconds = 0.0
        self.seconds = min(most, 2 * self.seconds or FIRST_SECONDS)
        self._until = now + self.seconds

    def worked(self) -> None:
        """It worked."""
        self.seconds = 0.0
