"""Tests of L{udptunnel.net.turns}."""

from __future__ import annotations

import os
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net import turns

OTHER, BATCH, ROUND_ROBIN, DEADLINE = 0, 3, 2, 6


class Kernel:
    """Knows the two system calls for one thread."""

    def __init__(self, policy: int = OTHER, runtime: int = 2_800_000, fair: bool = True, allowed: bool = True) -> None:
        self.attributes = [48, policy, 0, 5, 0, runtime, 0, 0]
        self.fair = fair
        self.allowed = allowed
        self.writes: list[list[int]] = []

    def call(self, which: int, area: Any, *rest: int) -> bool:
        """As L{turns._call}."""
        if not self.allowed:
            return False
        if which == 0:
            area.raw = turns._ATTRIBUTES.pack(*self.attributes)
        else:
            self.writes.append(list(turns._ATTRIBUTES.unpack(area.raw[:48])))
            if self.fair:
                self.attributes = self.writes[-1]
        return True


class TurnsTests(SynchronousTestCase):
    """Turns are short where that can be, and only there we give way."""

    def setUp(self) -> None:
        self.patch(turns, "_short", False)
        self.yields = 0
        self.patch(os, "sched_yield", self._yielded)

    def _yielded(self) -> None:
        self.yields += 1

    def _shorten(self, kernel: Kernel) -> bool:
        self.patch(turns, "_call", kernel.call)
        short = turns.shortenTurns()
        turns.giveWay()
        self.assertEqual(int(short), self.yields)
        return short

    def test_short(self) -> None:
        """Only the length of a turn is changed, not the policy nor the nice value."""
        kernel = Kernel()
        self.assertTrue(self._shorten(kernel))
        self.assertEqual([[48, OTHER, 0, 5, 0, 100_000, 0, 0]], kernel.writes)

    def test_batch(self) -> None:
        """So it is with SCHED_BATCH."""
        self.assertTrue(self._shorten(Kernel(BATCH)))

    def test_oldKernel(self) -> None:
        """A kernel before 6.12 does not mind the call and does nothing; then we give no way."""
        self.assertFalse(self._shorten(Kernel(runtime=0, fair=False)))

    def test_otherPolicies(self) -> None:
        """Who has chosen another policy keeps it; there the same field means something else."""
        for policy in (ROUND_ROBIN, DEADLINE):
            kernel = Kernel(policy)
            self.assertFalse(self._shorten(kernel))
            self.assertEqual([], kernel.writes)

    def test_forbidden(self) -> None:
        """A sandbox may forbid both calls."""
        self.assertFalse(self._shorten(Kernel(allowed=False)))

    def test_unknownMachine(self) -> None:
        """On a machine whose numbers of system calls we do not know, none is made."""
        self.patch(turns.platform, "machine", lambda: "pdp11")
        self.assertFalse(turns.shortenTurns())

    def test_usual(self) -> None:
        """Who starts others can have turns of the usual length meanwhile, even if that goes wrong."""
        kernel = Kernel()
        self._shorten(kernel)
        with self.assertRaises(OSError), turns.usualTurns():
            self.assertEqual([48, OTHER, 0, 5, 0, 0, 0, 0], kernel.attributes)
            raise OSError
        self.assertEqual([48, OTHER, 0, 5, 0, 100_000, 0, 0], kernel.attributes)

    def test_usualUnasked(self) -> None:
        """Where turns are not short nothing is changed for that."""
        kernel = Kernel(fair=False)
        self._shorten(kernel)
        kernel.writes.clear()
        with turns.usualTurns():
            pass
        self.assertEqual([], kernel.writes)

    def test_giveWayUnasked(self) -> None:
        """Who did not ask for short turns gives no way."""
        turns.giveWay()
        self.assertEqual(0, self.yields)


class RealTurnsTests(SynchronousTestCase):
    """The kernel itself."""

    def test_real(self) -> None:
        """What is said of this kernel is what it tells of the thread, and no other thread is concerned."""
        self.patch(turns, "_short", False)
        told: list[Any] = []
        before = turns._read()
        thread = threading.Thread(target=lambda: told.extend((turns.shortenTurns(), turns._read())))
        thread.start()
        thread.join()
        short, attributes = told
        self.assertEqual(short, attributes is not None and attributes[turns._RUNTIME] == turns.TURN_NANOSECONDS)
        self.assertEqual(before, turns._read())
