"""Tests of L{udptunnel.services.reconnecting}."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.errors import LoginError
from udptunnel.services.reconnecting import FIRST_SECONDS, HURRY_SECONDS, LAST_SECONDS, ReconnectingService, backOff


class FakeAttempt:
    """An attempt whose fate the test decides."""

    def __init__(self) -> None:
        self.greeted: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self.aborted = False

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


class BackOffTests(SynchronousTestCase):
    """How long to wait."""

    def test_grows(self) -> None:
        """The wait grows from the first to the longest, with a quarter of it left to chance."""
        waits = [backOff(attempt, lambda: 1.0) for attempt in range(60)]
        self.assertEqual((waits[0], waits[-1]), (FIRST_SECONDS, LAST_SECONDS))
        self.assertEqual(waits, sorted(waits))
        self.assertAlmostEqual(backOff(0, lambda: 0.0), 0.75 * FIRST_SECONDS)


class ReconnectingTests(SynchronousTestCase):
    """A link is kept up, attempt after attempt."""

    def setUp(self) -> None:
        """A service whose attempts the test can see."""
        self.clock = Clock()
        self.attempts: list[FakeAttempt] = []
        self.failures = 0
        self.refuse = False
        self.service = ReconnectingService(self.clock, self.connect, self.failed)
        self.service.startService()

    def connect(self) -> Deferred[Any]:
        """TCP connects, unless it is refused."""
        if self.refuse:
            return fail(ConnectionRefusedError("refused"))
        self.attempts.append(FakeAttempt())
        return succeed(self.attempts[-1])

    def failed(self) -> None:
        """Count it."""
        self.failures += 1

    def stop(self) -> None:
        """Stop the service; nothing may be left."""
        self.successResultOf(Deferred.fromCoroutine(self.service.stopService()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_onlyAWelcomeCounts(self) -> None:
        """A connection that ends before it is greeted is a failed attempt, and the waits grow."""
        waits = []
        for _ in range(12):
            self.attempts[-1].greeted.errback(LoginError("closed"))
            (call,) = self.clock.getDelayedCalls()
            waits.append(call.getTime() - self.clock.seconds())
            self.clock.advance(LAST_SECONDS)
        self.assertGreater(waits[-1], 0.7 * LAST_SECONDS)
        self.assertEqual(self.failures, 12)
        self.assertTrue(all(each.aborted for each in self.attempts[:-1]))
        self.attempts[-1].greeted.callback(None)
        self.attempts[-1].gone.callback(None)
        (call,) = self.clock.getDelayedCalls()
        self.assertLessEqual(call.getTime() - self.clock.seconds(), FIRST_SECONDS)
        self.stop()

    def test_hurry(self) -> None:
        """Who is in a hurry waits a second, not the whole back-off; less than that is waited anyway."""
        self.refuse = True
        self.attempts[-1].greeted.errback(LoginError("closed"))
        for _ in range(20):
            self.clock.advance(LAST_SECONDS)
        self.refuse, before = False, len(self.attempts)
        self.service.hurry()
        self.assertEqual(len(self.attempts), before)
        self.clock.advance(HURRY_SECONDS)
        self.assertEqual(len(self.attempts), before)
        self.service.hurry()
        self.assertEqual(len(self.attempts), before + 1)
        self.service.hurry()
        self.stop()

    def test_stopWhileGreeting(self) -> None:
        """A service that stops closes the connection that is not greeted yet."""
        self.stop()
        self.assertTrue(self.attempts[-1].aborted)
        self.attempts[-1].gone.callback(None)

    def test_stopWhileUp(self) -> None:
        """A service that stops closes its link, and does not come back."""
        self.attempts[-1].greeted.callback(None)
        self.stop()
        self.assertTrue(self.attempts[-1].aborted)
        self.clock.advance(2 * LAST_SECONDS)
        self.assertEqual(len(self.attempts), 1)

    def test_stopWhileWaiting(self) -> None:
        """A service that stops between two attempts makes no other."""
        self.attempts[-1].greeted.errback(LoginError("closed"))
        self.stop()
        self.clock.advance(2 * LAST_SECONDS)
        self.assertEqual(len(self.attempts), 1)
