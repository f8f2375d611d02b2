"""Tests for L{udptunnel.core.vigil}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.vigil import STOPPED_SECONDS, Vigil


class VigilTests(SynchronousTestCase):
    """L{Vigil}."""

    def test_awake(self) -> None:
        """As long as the ticks come, late ones too, nothing is noticed."""
        vigil = Vigil()
        for now in (0.0, 1.0, 2.9, 4.8, 5.0):
            self.assertFalse(vigil.stopped(now))
            self.assertFalse(vigil.tick(now))

    def test_stopped(self) -> None:
        """Whoever looks first after a long time is told so, and only he, until it happens again."""
        for first, second in ((Vigil.tick, Vigil.stopped), (Vigil.stopped, Vigil.tick)):
            vigil = Vigil()
            vigil.tick(10.0)
            for now in (10.1 + STOPPED_SECONDS, 99.0):
                self.assertTrue(first(vigil, now))
                self.assertFalse(second(vigil, now))

    def test_noTicks(self) -> None:
        """Where nothing ticks, time may pass as it likes."""
        vigil = Vigil()
        self.assertEqual([vigil.stopped(now) for now in (0.0, 100.0, 1e9)], [False] * 3)
