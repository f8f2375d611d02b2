"""Tests for L{udptunnel.net.watch}."""

from __future__ import annotations

import socket
from unittest import SkipTest

from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net.watch import REST_SECONDS, RouteWatch


class WatchTests(SynchronousTestCase):
    """L{RouteWatch}; that the kernel says something is for tests.system.test_routes to show."""

    def setUp(self) -> None:
        if not hasattr(socket, "AF_NETLINK"):
            raise SkipTest("there is no netlink")
        self.reactor = MemoryReactorClock()
        self.times: list[float] = []
        self.watch = RouteWatch(self.reactor, lambda: self.times.append(self.reactor.seconds()))
        self.watch.start()
        self.addCleanup(self.watch.stop)

    def test_crowd(self) -> None:
        """Many changes are one, and later ones are another one."""
        for _ in range(3):
            self.watch.doRead()
        self.assertEqual(self.times, [])
        self.reactor.advance(REST_SECONDS)
        self.assertEqual(len(self.times), 1)
        self.watch.doRead()
        self.reactor.advance(REST_SECONDS)
        self.assertEqual(len(self.times), 2)

    def test_stop(self) -> None:
        """After the end nothing is told, and nothing is left on the reactor; it may end twice."""
        self.assertEqual(self.reactor.getReaders(), [self.watch])
        self.assertGreaterEqual(self.watch.fileno(), 0)
        self.watch.doRead()
        self.watch.connectionLost(Failure(Exception()))
        self.watch.stop()
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual((self.watch.fileno(), self.times), (-1, []))
