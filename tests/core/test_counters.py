"""Tests for L{udptunnel.core.counters}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters


class CountersTests(SynchronousTestCase):
    """L{Counters}."""

    def test_new(self) -> None:
        """All begins at 0."""
        self.assertEqual(
            Counters().report(), {"sent": 0, "sentBytes": 0, "received": 0, "receivedBytes": 0, "dropped": {}}
        )

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
        counters.sent, counters.sentBytes, counters.received, counters.receivedBytes = 1, 2, 3, 4
        report = counters.report()
        counters.drop("too old")
        self.assertEqual(report, {"sent": 1, "sentBytes": 2, "received": 3, "receivedBytes": 4, "dropped": {}})
        self.assertIs(type(report["dropped"]), dict)
