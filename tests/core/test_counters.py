"""Tests for L{udptunnel.core.counters}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters


class CountersTests(SynchronousTestCase):
    """L{Counters}."""

    def test_new(self) -> None:
        """All begins at 0, with nothing dropped."""
        report = Counters().report()
        self.assertEqual(report.pop("dropped"), {})
        self.assertEqual(set(report.values()), {0})

    def test_dropped(self) -> None:
        """Drops are counted by reason, one datagram or several at a time."""
        counters = Counters()
        counters.drop("too old")
        counters.drop("too old", 4)
        counters.drop("queue full", 2)
        self.assertEqual(counters.report()["dropped"], {"too old": 5, "queue full": 2})

    def test_reported(self) -> None:
        """A report holds the figures of its moment, as plain values: it does not change afterwards."""
        counters = Counters()
        figures = {"sent": 1, "sentBytes": 2, "received": 3, "receivedBytes": 4, "evicted": 5}
        for name, value in figures.items():
            setattr(counters, name, value)
        report = counters.report()
        counters.sent += 1
        counters.drop("too old")
        self.assertEqual(report, {**figures, "dropped": {}})
        self.assertIs(type(report["dropped"]), dict)
