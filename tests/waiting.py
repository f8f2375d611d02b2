"""Waiting for something to become true, where the real reactor runs."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.task import deferLater

PATIENCE_SECONDS = 20.0
"""Much more than anything here takes; a test that waits so long has failed."""


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Come back as soon as a condition holds."""
    clock: object = reactor
    deadline = clock.seconds() + PATIENCE_SECONDS  # type: ignore[attr-defined]
    while not condition():
        if clock.seconds() > deadline:  # type: ignore[attr-defined]
            raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {what or condition}")
        await deferLater(clock, 0.002)  # type: ignore[arg-type]
