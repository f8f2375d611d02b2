"""Which tests may run at the same time: what measures time or needs both processors has the machine to itself."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACE = Path(tempfile.gettempdir()) / f"udptunnel-tests-{os.getuid()}.lock"
"""Shared by all runs on this machine."""


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """
    Wait for a turn, and have it.

    @param alone: whether nobody else may have one meanwhile.
    """
    with open(PLACE, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


class TakesTurns:
    """
    A mixin for test cases, before the class that runs them.

    @cvar alone: whether no other of these tests may run beside it.
    """

    alone = False

    def run(self, result: Any) -> Any:
        """Run when it is our turn."""
        with turn(self.alone):
            return super().run(result)  # type: ignore[misc]
