"""Tests for L{udptunnel.core.backoff}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.backoff import Backoff


class BackoffTests(SynchronousTestCase):
    """L{Backoff}."""

    def test_doubles(self) -> None:
        """The pause doubles with each failure, up to the longest."""
        backoff, now, pauses = Backoff(), 100.0, []
        self.assertFalse(backoff.rests(now))
        for _ in range(6):
            backoff.failed(now, 10.0)
            pauses.append(backoff.seconds)
            self.assertTrue(backoff.rests(now + backoff.seconds - 0.01))
            now += backoff.seconds
            self.assertFalse(backoff.rests(now))
        self.assertEqual(pauses, [1.0, 2.0, 4.0, 8.0, 10.0, 10.0])

    def test_together(self) -> None:
        """What fails during a pause does not make it longer."""
        backoff = Backoff()
        for _ in range(5):
            backoff.failed(0.0, 30.0)
        self.assertTrue(backoff.rests(0.99))
        self.assertFalse(backoff.rests(1.0))

    def test_worked(self) -> None:
        """After a success there is no pause, and the next is a short one."""
        backoff = Backoff()
        backoff.failed(0.0, 30.0)
        backoff.failed(1.0, 30.0)
        backoff.worked()
        self.assertFalse(backoff.rests(1.0))
        backoff.failed(1.0, 30.0)
        self.assertEqual(backoff.seconds, 1.0)

    def test_longAgo(self) -> None:
        """A failure long after the last begins anew."""
        backoff = Backoff()
        backoff.failed(0.0, 30.0)
        backoff.failed(1.0, 30.0)
        backoff.failed(3.0 + 30.0, 30.0)
        self.assertEqual(backoff.seconds, 4.0)
        backoff.failed(37.0 + 30.1, 30.0)
        self.assertEqual(backoff.seconds, 1.0)
