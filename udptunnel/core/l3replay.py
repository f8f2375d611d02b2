"""
Which counters have been seen already: a bitmap that wanders along with the greatest one (RFC 6479).

A message that comes late is still good if it is not more than L{WINDOW}
behind; one that is older can not be told from a replayed one.
"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 8192
"""How far a counter may be behind the greatest one that was seen."""

MOST_MESSAGES = (1 << 64) - WINDOW - 1
"""Counters from this one on are not used: the session has ended long before."""

_SHIFT, _MASK = 6, 63
_WORDS = WINDOW // 64 + 1
"""One more than the window has, so that the greatest counter's word need not be full."""


class ReplayWindow:
    """
    The counters of one session, in one direction.

    @ivar top: one more than the greatest that was seen; 0: none was.
    """

    __slots__ = ("_bits", "top")

    def __init__(self) -> None:
        self.top = 0
        self._bits = [0] * _WORDS

    def accept(self, counter: int) -> bool:
        """
        Whether a message is seen for the first time, and remember it. To be asked once its seal was found good.

        @param counter: 0 to 2**64 - 1.
        """
        word, bit = counter >> _SHIFT, 1 << (counter & _MASK)
        bits = self._bits
        if counter >= self.top:
            if counter >= MOST_MESSAGES:
                return False
            self._clear((self.top - 1) >> _SHIFT, word)
            self.top = counter + 1
        elif counter + WINDOW < self.top - 1 or bits[word % _WORDS] & bit:
            return False
        bits[word % _WORDS] |= bit
        return True

    def acceptAll(self, counters: Sequence[int]) -> list[bool] | None:
        """
        The same for several messages.

        @return: what L{accept} says of each; C{None} if all are seen for the first time, as those of one burst nearly
            always are.
        """
        if not counters:
            return None
        first, last = counters[0], counters[-1]
        if first < self.top or last >= MOST_MESSAGES or not _isRun(counters):
            return [self.accept(counter) for counter in counters]
        self._clear((self.top - 1) >> _SHIFT, last >> _SHIFT)
        self.top = last + 1
        self._setAll(first, last)
        return None

    def _setAll(self, first: int, last: int) -> None:
        """Set the bits of counters that follow each other."""
        for word in range(first >> _SHIFT, (last >> _SHIFT) + 1):
            low, high = max(first - (word << _SHIFT), 0), min(last - (word << _SHIFT), _MASK)
            self._bits[word % _WORDS] |= (2 << high) - (1 << low)

    def _clear(self, last: int, word: int) -> None:
        """Forget what the words behind the last one have held."""
        for each in range(last + 1, min(word, last + _WORDS) + 1):
            self._bits[each % _WORDS] = 0


def _isRun(counters: Sequence[int]) -> bool:
    """Whether each counter follows the one before. The ends are looked at first: between them may be any distance."""
    first, last = counters[0], counters[-1]
    return last - first == len(counters) - 1 and counters == list(range(first, last + 1))
