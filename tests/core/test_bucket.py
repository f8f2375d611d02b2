"""Tests for L{udptunnel.core.bucket}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.bucket import Bucket


class BucketTests(SynchronousTestCase):
    """L{Bucket}."""

    def taken(self, bucket: Bucket, times: int, now: float) -> int:
        """How often one may be had of so many times."""
        return sum(bucket.take(1, now) for _ in range(times))

    def test_rate(self) -> None:
        """After a second of rest there are as many as the rate, and then as many a second."""
        bucket = Bucket(10, 0.0)
        self.assertEqual([self.taken(bucket, 15, now) for now in (0.0, 0.5, 1.5, 100.0)], [10, 5, 10, 10])

    def test_refusedIsFree(self) -> None:
        """What is refused takes nothing."""
        bucket = Bucket(10, 0.0)
        self.assertTrue(bucket.take(6, 0.0))
        self.assertFalse(bucket.take(6, 0.0))
        self.assertTrue(bucket.take(4, 0.0))

    def test_largeBurst(self) -> None:
        """What is larger than the rate passes when the bucket is full, for it would never pass otherwise."""
        self.assertTrue(Bucket(10, 0.0).take(35, 0.0))

    def test_largeBurstNotFull(self) -> None:
        """It does not pass when anything is missing, and is refused without a price."""
        bucket = Bucket(10, 0.0)
        self.assertTrue(bucket.take(1, 0.0))
        self.assertFalse(bucket.take(35, 0.05))
        self.assertTrue(bucket.take(9, 0.05))

    def test_paidBack(self) -> None:
        """It is paid back before anything else passes."""
        bucket = Bucket(10, 0.0)
        bucket.take(35, 0.0)
        self.assertFalse(bucket.take(1, 2.5))
        self.assertTrue(bucket.take(1, 2.625))
        self.assertFalse(bucket.take(35, 3.5))
        self.assertTrue(bucket.take(35, 3.75))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 50)), max_size=50))
    def test_onAverage(self, steps: list[tuple[float, int]]) -> None:
        """However large bursts are: before the last that passes, no more has passed than the rate allows."""
        bucket, now, passed = Bucket(10, 0.0), 0.0, 0
        for pause, tokens in steps:
            now += pause
            if bucket.take(tokens, now):
                self.assertLessEqual(passed, 10 + 10 * now)
                passed += tokens
