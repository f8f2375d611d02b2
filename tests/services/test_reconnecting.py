"""Tests of L{udptunnel.services.reconnecting}."""

from __future__ import annotations

from itertools import pairwise

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.errors import LoginError, RefusedError
from udptunnel.services.reconnecting import (
    FIRST_SECONDS,
    HURRY_SECONDS,
    LAST_SECONDS,
    REFUSED_GROWTH,
    REFUSED_LAST_SECONDS,
    STABLE_SECONDS,
    Connection,
    ReconnectingService,
    backOff,
)


class FakeConnection:
    """A connection whose end the test decides."""

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()
        self.aborted = False

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True


class BackOffTests(SynchronousTestCase):
    """How long to wait."""

    def waits(self, refused: bool, jitter: float = 1.0) -> list[float]:
        """The waits before many attempts."""
        return [backOff(attempt, refused, lambda: jitter) for attempt in range(100)]

    def test_grows(self) -> None:
        """The wait grows by half from the first to the longest, with a quarter of it left to chance."""
        waits = self.waits(refused=False)
        self.assertEqual((waits[0], waits[-1]), (FIRST_SECONDS, LAST_SECONDS))
        self.assertEqual(waits, sorted(waits))
        self.assertAlmostEqual(waits[1] / waits[0], 1.5)
        self.assertEqual(self.waits(refused=False, jitter=0.0), [0.75 * each for each in waits])
        self.assertTrue(all(0.75 * FIRST_SECONDS <= backOff(0) <= FIRST_SECONDS for _ in range(100)))

    def test_refused(self) -> None:
        """Whom the server does not let in waits several times as long each time, up to a minute."""
        waits = self.waits(refused=True)
        self.assertEqual((waits[0], waits[-1]), (FIRST_SECONDS, REFUSED_LAST_SECONDS))
        for before, after in pairwise(waits):
            self.assertAlmostEqual(after, min(REFUSED_LAST_SECONDS, REFUSED_GROWTH * before))
        self.assertGreaterEqual(REFUSED_GROWTH, 2)
        self.assertEqual(REFUSED_LAST_SECONDS, 60.0)


class ReconnectingTestCase(SynchronousTestCase):
    """A service whose attempts the test can see."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts: list[Deferred[Connection]] = []
        self.failures = 0
        self.service = ReconnectingService(self.clock, self.connect, self.failed)
        self.service.startService()

    def connect(self) -> Deferred[Connection]:
        """An attempt whose fate the test decides."""
        self.attempts.append(Deferred())
        return self.attempts[-1]

    def failed(self) -> None:
        """Count it."""
        self.failures += 1

    def up(self) -> FakeConnection:
        """The present attempt succeeds."""
        connection = FakeConnection()
        self.attempts[-1].callback(connection)
        return connection

    def fail_(self, error: Exception | None = None) -> float:
        """The present attempt fails; tells how long the service is going to wait."""
        self.attempts[-1].errback(error or LoginError("closed"))
        return self.wait

    @property
    def wait(self) -> float:
        """How long the service waits before the next attempt."""
        (call,) = self.clock.getDelayedCalls()
        return float(call.getTime() - self.clock.seconds())

    def failures_(self, number: int, error: Exception | None = None) -> list[float]:
        """So many attempts fail; tells how long the service waited after each."""
        waits = []
        for _ in range(number):
            waits.append(self.fail_(error))
            self.clock.advance(waits[-1])
        return waits

    def stop(self) -> None:
        """Stop the service; nothing may be left."""
        self.successResultOf(Deferred.fromCoroutine(self.service.stopService()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        attempts = len(self.attempts)
        self.clock.advance(2 * REFUSED_LAST_SECONDS)
        self.assertEqual(len(self.attempts), attempts)


class ReconnectingTests(ReconnectingTestCase):
    """A link is kept up, attempt after attempt."""

    def test_grows(self) -> None:
        """The waits grow with each failed attempt, and each is counted before the next."""
        waits = self.failures_(12)
        for attempt, wait in enumerate(waits):
            most = min(LAST_SECONDS, FIRST_SECONDS * 1.5**attempt)
            self.assertTrue(0.75 * most <= wait <= most, waits)
        self.assertEqual((self.failures, len(self.attempts)), (12, 13))
        self.stop()

    def test_onlyALinkCounts(self) -> None:
        """Only a link that was up, and for more than a moment, makes the next wait a short one."""
        self.failures_(12)
        self.up().gone.callback(None)
        self.assertGreater(self.wait, FIRST_SECONDS)
        self.clock.advance(self.wait)
        connection = self.up()
        self.clock.advance(STABLE_SECONDS)
        connection.gone.callback(None)
        self.assertLessEqual(self.wait, FIRST_SECONDS)
        self.assertEqual(self.failures, 12)
        self.stop()

    def test_shortLives(self) -> None:
        """Links that last for less than a second make the waits grow as failures do, but are not counted as such."""
        waits = []
        for _ in range(8):
            connection = self.up()
            self.clock.advance(STABLE_SECONDS - 0.01)
            connection.gone.callback(None)
            waits.append(self.wait)
            self.clock.advance(self.wait)
        for attempt, wait in enumerate(waits):
            most = min(LAST_SECONDS, FIRST_SECONDS * 1.5**attempt)
            self.assertTrue(0.74 * most <= wait <= 1.01 * most, waits)
        self.assertEqual((self.failures, len(self.attempts)), (0, 9))
        self.stop()

    def test_slowLogin(self) -> None:
        """What counts is how long a link was up, not how long it took to come up."""
        self.failures_(12)
        self.clock.advance(10 * STABLE_SECONDS)
        self.up().gone.callback(None)
        self.assertGreater(self.wait, FIRST_SECONDS)
        self.stop()

    def test_hurry(self) -> None:
        """Who is in a hurry waits a second, not the whole back-off; less than that is waited anyway."""
        self.failures_(20)
        self.assertGreater(self.fail_(), HURRY_SECONDS)
        self.service.hurry()
        self.clock.advance(HURRY_SECONDS - 0.01)
        self.service.hurry()
        self.assertEqual(len(self.attempts), 21)
        self.clock.advance(0.01)
        self.service.hurry()
        self.assertEqual(len(self.attempts), 22)
        # While an attempt is made there is nothing to shorten.
        self.service.hurry()
        self.assertEqual(len(self.attempts), 22)
        self.stop()

    def test_exceptions(self) -> None:
        """Whatever an attempt fails with, there is another one."""
        for error in (ConnectionRefusedError("refused"), OSError(), ValueError("x"), RefusedError("no")):
            before = len(self.attempts)
            self.clock.advance(self.fail_(error))
            self.assertEqual(len(self.attempts), before + 1)
        self.stop()


class RefusedTests(ReconnectingTestCase):
    """What is different while the server does not let us in."""

    def test_grows(self) -> None:
        """The waits grow up to a minute, and no refusal is ever taken for a link (S-3)."""
        waits = self.failures_(12, RefusedError("user or secret is wrong"))
        for attempt, wait in enumerate(waits):
            most = min(REFUSED_LAST_SECONDS, FIRST_SECONDS * REFUSED_GROWTH**attempt)
            self.assertTrue(0.75 * most <= wait <= most, waits)
        self.assertEqual(self.failures, 12)
        self.stop()

    def test_noHurry(self) -> None:
        """Datagrams that wait do not make us knock more often."""
        self.failures_(12, RefusedError("no"))
        wait = self.fail_(RefusedError("no"))
        for _ in range(int(wait)):
            self.clock.advance(1)
            self.service.hurry()
        self.assertEqual(len(self.attempts), 13)
        self.stop()

    def test_over(self) -> None:
        """Who is not even heard after that is refused still; if nobody is there, we are in a hurry again."""
        self.failures_(12, RefusedError("no"))
        self.clock.advance(self.fail_(LoginError("closed")))
        self.service.hurry()
        self.assertEqual(len(self.attempts), 14)
        self.fail_(ConnectionRefusedError())
        self.clock.advance(HURRY_SECONDS)
        self.service.hurry()
        self.assertEqual(len(self.attempts), 15)
        self.stop()


class StopTests(ReconnectingTestCase):
    """A service that stops."""

    def test_whileConnecting(self) -> None:
        """It gives up the attempt that is being made."""
        cancelled: list[Deferred[Connection]] = []
        self.attempts[-1]._canceller = cancelled.append  # type: ignore[assignment]
        self.stop()
        self.assertEqual(cancelled, self.attempts)
        self.assertEqual(self.failures, 1)

    def test_whileUp(self) -> None:
        """It leaves its link to whoever stops it, and makes no other when that is gone."""
        connection = self.up()
        self.stop()
        self.assertFalse(connection.aborted)
        connection.gone.callback(None)
        self.assertEqual((len(self.attempts), self.clock.getDelayedCalls()), (1, []))

    def test_whileWaiting(self) -> None:
        """It waits no longer."""
        self.fail_()
        self.stop()

    def test_twice(self) -> None:
        """It may be stopped twice."""
        self.stop()
        self.stop()
