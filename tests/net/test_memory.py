"""Tests for L{udptunnel.net.memory}."""

from __future__ import annotations

import builtins
import io
import mmap
import os
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net import memory as memory_module
from udptunnel.net.memory import residentBytes


class ResidentBytesTests(SynchronousTestCase):
    """L{residentBytes}."""

    def reading(self, text: str) -> int:
        """What is found out if the system says this."""
        self.patch(builtins, "open", lambda *_, **__: io.StringIO(text))
        return residentBytes()

    def test_grows(self) -> None:
        """Whoever uses memory holds it, until he gives it back."""
        if not os.path.exists("/proc/self/statm"):
            raise SkipTest("this system does not tell")
        with mmap.mmap(-1, 64 << 20) as taken:
            for place in range(0, len(taken), mmap.PAGESIZE):
                taken[place] = 1
            held = residentBytes()
        self.assertGreater(residentBytes(), 1 << 20)
        self.assertGreater(held - residentBytes(), 32 << 20)

    def test_pages(self) -> None:
        """It is the second number that counts, in pages."""
        self.patch(memory_module, "getpagesize", lambda: 4096)
        self.assertEqual(self.reading("1000 200 30 4 0 50 0\n"), 200 * 4096)

    def test_unknown(self) -> None:
        """Where the system does not tell, or tells something else, it is nothing: no limit counts then."""
        for text in ("", "1000\n", "1000 many\n"):
            self.assertEqual(self.reading(text), 0)

        def refuse(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        self.patch(builtins, "open", refuse)
        self.assertEqual(residentBytes(), 0)

    def test_noPages(self) -> None:
        """Nor where the size of a page is not known."""
        self.patch(memory_module, "getpagesize", None)
        self.assertEqual(self.reading("1000 200 30 4 0 50 0\n"), 0)
