"""
Penalties: whoever fails to log in again and again has to wait.

The table is bounded, so that sources without number can not fill our memory:
when it is full, the source that failed first is forgotten.
"""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")

FAILURES = 5
"""So many failures..."""

WITHIN_SECONDS = 60.0
"""...within this time..."""

BARRED_SECONDS = 30.0
"""...keep a source out for so long."""

MOST_SOURCES = 4096


class Penalties:
    """Failed logins, by the host that they came from."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}
        self._barred: dict[str, float] = {}

    def failed(self, source: str, now: float) -> None:
        """A login from there has failed."""
        count, since = self._failures.pop(source, (0, now))
        if now - since > WITHIN_SECONDS:
            count, since = 0, now
        if count + 1 < FAILURES:
            _put(self._failures, source, (count + 1, since))
        else:
            _put(self._barred, source, now + BARRED_SECONDS)

    def barred(self, source: str, now: float) -> bool:
        """Whether nothing is to be heard from there for now."""
        until = self._barred.get(source)
        if until is not None and now >= until:
            del self._barred[source]
            return False
        return until is not None


def _put(table: dict[str, Value], source: str, value: Value) -> None:
    if len(table) >= MOST_SOURCES:
        del table[next(iter(table))]
    table[source] = value
