"""Tests for L{udptunnel.services.links}."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.config import LocalConfig, ServerConfig
from udptunnel.services.links import every, linkLimits, quietFactory, tickSeconds


class LinksTests(SynchronousTestCase):
    """What both roles do alike with their links."""

    def test_limits(self) -> None:
        """The limits of a link are those of the configuration, with milliseconds as seconds."""
        for kind in (LocalConfig, ServerConfig):
            config: Any = kind(queueBytes=70000, queueAge=250.0, delay=50.0, heartbeat=2.0)
            limits = linkLimits(config)
            self.assertEqual(
                (limits.queueBytes, limits.queueAge, limits.delay, limits.heartbeat), (70000, 0.25, 0.05, 2.0)
            )

    def test_ticks(self) -> None:
        """The clock is looked at each second, or twice for each heartbeat if those are short."""
        for heartbeat, seconds in ((600.0, 1.0), (5.0, 1.0), (2.0, 1.0), (0.1, 0.05)):
            self.assertEqual(tickSeconds(LocalConfig(heartbeat=heartbeat)), seconds)

    def test_quiet(self) -> None:
        """A factory makes protocols and says nothing about it."""
        made: list[Protocol] = []

        def make() -> Protocol:
            made.append(Protocol())
            return made[-1]

        factory = quietFactory(make)
        self.assertIs(factory.buildProtocol(None), made[0])
        self.assertFalse(factory.noisy)


class EveryTests(SynchronousTestCase):
    """L{every}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.times: list[float] = []
        self.mistakes = 0
        calls = every(2.0, self.call, self.clock, Logger())  # type: ignore[arg-type]
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(calls.stop)

    def call(self) -> None:
        """Remember when, and make some mistakes."""
        self.times.append(self.clock.seconds())
        if self.mistakes:
            self.mistakes -= 1
            raise ZeroDivisionError("a mistake")

    def test_again(self) -> None:
        """Something is done again and again, for the first time after a while."""
        self.clock.pump([1.0] * 7)
        self.assertEqual(self.times, [2.0, 4.0, 6.0])

    def test_mistakes(self) -> None:
        """A call that raises is logged, and does not stop those after it."""
        self.mistakes = 3
        self.clock.pump([2.0] * 5)
        self.assertEqual(self.times, [2.0, 4.0, 6.0, 8.0, 10.0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
