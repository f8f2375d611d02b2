"""Tests for L{udptunnel.core.waiting}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core import waiting as waiting_module
from udptunnel.core.counters import Counters
from udptunnel.core.queue import BURST_BYTES
from udptunnel.core.waiting import MOST_SECONDS, Waiting
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst

TARGET = Address("192.0.2.1", 9)


def source(number: int = 0) -> Address:
    """One of many."""
    return Address("10.0.0.1", 1 + number)


def burst(payload: bytes = b"x", number: int = 0, size: int = 0) -> AimedBurst:
    """A burst of a source."""
    return AimedBurst(source(number), TARGET, size or len(payload), payload)


class WaitingTests(SynchronousTestCase):
    """L{Waiting}."""

    def setUp(self) -> None:
        self.counters = Counters()
        self.waiting = Waiting(self.counters)

    def take(self, number: int = 0, now: float = 0.0) -> list[bytes]:
        """What waits for a source."""
        return [bytes(each.payload) for each in self.waiting.take(source(number), now)]

    def test_order(self) -> None:
        """What waits comes out as it went in, once, for each source on its own."""
        for payload, number in ((b"a", 0), (b"b", 1), (b"", 0), (b"c", 0)):
            self.waiting.put(burst(payload, number), 0.0)
        self.assertEqual(len(self.waiting), 2)
        self.assertEqual((self.take(0), self.take(0), self.take(1)), ([b"a", b"", b"c"], [], [b"b"]))
        self.assertEqual((len(self.waiting), self.waiting.bytes, self.counters.dropped), (0, 0, {}))

    def test_copied(self) -> None:
        """What waits is not what the kernel overwrites next."""
        buffer = bytearray(b"abc")
        self.waiting.put(AimedBurst(source(), TARGET, 3, memoryview(buffer)), 0.0)
        buffer[:] = b"xyz"
        self.assertEqual(self.take(), [b"abc"])

    def test_source(self) -> None:
        """Of what one source lets wait the oldest goes, counted by datagrams; other sources lose nothing."""
        self.patch(waiting_module, "SOURCE_BYTES", 2 * BURST_BYTES + 4)
        self.waiting.put(burst(b"other", 1), 0.0)
        for payload in (b"abcde", b"fg", b"hi"):
            self.waiting.put(burst(payload, size=2), 0.0)
        self.assertEqual((self.take(0), self.take(1)), ([b"fg", b"hi"], [b"other"]))
        self.assertEqual(self.counters.dropped, {"no way yet": 3})

    def test_all(self) -> None:
        """When too much waits in all, the source that has waited longest loses its oldest."""
        self.patch(waiting_module, "ALL_BYTES", 3 * (BURST_BYTES + 1))
        for number in (0, 1, 0, 2):
            self.waiting.put(burst(bytes((number,)), number), 0.0)
        self.assertEqual([self.take(number) for number in range(3)], [[b"\0"], [b"\1"], [b"\2"]])
        self.assertEqual(self.counters.dropped, {"no way yet": 1})

    def test_tooMuch(self) -> None:
        """A burst that is too much by itself does not stay, nor does anything of its source."""
        self.patch(waiting_module, "SOURCE_BYTES", BURST_BYTES)
        self.waiting.put(burst(b"x"), 0.0)
        self.assertEqual((self.take(), len(self.waiting), self.waiting.bytes), ([], 0, 0))

    def test_age(self) -> None:
        """What has waited too long is dropped, whether it is asked for or not."""
        for now in (0.0, 1.0):
            for number in (0, 1):
                self.waiting.put(burst(b"%d" % now, number), now)
        self.assertEqual(self.take(0, MOST_SECONDS + 0.5), [b"1"])
        self.waiting.expire(MOST_SECONDS + 0.5)
        self.assertEqual(self.counters.dropped, {"waited too long for a way": 2})
        self.waiting.expire(MOST_SECONDS + 1.5)
        self.assertEqual((len(self.waiting), self.waiting.bytes), (0, 0))
        self.assertEqual(self.take(1, 99.0), [])

    def test_takenTooLate(self) -> None:
        """When all is too old, nothing is left."""
        self.waiting.put(burst(), 0.0)
        self.assertEqual((self.take(0, 99.0), len(self.waiting), self.waiting.bytes), ([], 0, 0))

    def test_forgotten(self) -> None:
        """What waits for a source that gets no way is dropped and counted."""
        self.waiting.put(burst(b"abc", size=1), 0.0)
        self.waiting.put(burst(b"x"), 0.0)
        self.waiting.put(burst(b"x", 1), 0.0)
        self.waiting.forget(source(0))
        self.waiting.forget(source(0))
        self.assertEqual(self.counters.dropped, {"association closed": 4})
        self.assertEqual((self.take(0), self.take(1)), ([], [b"x"]))

    def test_bounds(self) -> None:
        """Whatever happens, no bound is passed, and every datagram comes out or is counted."""
        self.patch(waiting_module, "SOURCE_BYTES", 1200)
        self.patch(waiting_module, "ALL_BYTES", 3000)
        steps = st.tuples(st.sampled_from("pppptxf"), st.integers(0, 5), st.integers(0, 900))

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(st.lists(steps, max_size=40))
        def check(steps: list[tuple[str, int, int]]) -> None:
            counters = Counters()
            waiting, put, taken = Waiting(counters), 0, 0
            for now, (step, number, length) in enumerate(steps):
                if step == "p":
                    waiting.put(burst(bytes(length), number), now)
                    put += 1
                elif step == "t":
                    taken += len(waiting.take(source(number), now))
                elif step == "x":
                    waiting.expire(now)
                else:
                    waiting.forget(source(number))
                self.assertLessEqual(waiting.bytes, 3000)
            for number in range(6):
                taken += len(waiting.take(source(number), len(steps)))
            self.assertEqual((len(waiting), waiting.bytes), (0, 0))
            self.assertEqual(taken + sum(counters.dropped.values()), put)

        check()
