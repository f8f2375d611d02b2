"""What a run says while it goes on, and its verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

MOST_TOLD = 50
"""Violations that are told one by one; all are counted."""


def _show(line: str) -> None:
    print(line, flush=True)


class Report:
    """
    Lines on the screen and in a file, with the time at which they were said.

    The file has each line at once, so that a run that is killed leaves
    what it knew.

    @ivar violations: what was not as it must be.
    """

    def __init__(self, title: str, path: str | None = None, screen: Callable[[str], object] = _show) -> None:
        """
        @param path: the file, if there is to be one.
        @param screen: shows a line.
        """
        self._screen = screen
        self.violations: list[str] = []
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._file = Path(path).open("w", encoding="utf-8") if path else None
        self.say(title)

    def say(self, text: str) -> None:
        """Say something; any thread may."""
        with self._lock:
            for line in text.splitlines():
                self._write(f"{time.monotonic() - self._began:7.1f} {line}")

    def _write(self, line: str) -> None:
        self._screen(line)
        if self._file is not None:
            print(line, file=self._file, flush=True)

    def violate(self, text: str) -> None:
        """Something is not as it must be."""
        self.violations.append(text)
        if len(self.violations) <= MOST_TOLD:
            self.say(f"VIOLATION {text}")

    def require(self, condition: object, text: str) -> None:
        """Say what was found; it must be as it should."""
        if condition:
            self.say(f"ok: {text}")
        else:
            self.violate(text)

    def close(self) -> int:
        """Say the verdict, and return the exit status."""
        found = len(self.violations)
        self.say(f"FAILED: {found} violations" if found else "PASSED")
        if self._file is not None:
            self._file.close()
        return 1 if found else 0
