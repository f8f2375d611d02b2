"""Tests for L{udptunnel.core.saidlines}."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.saidlines import CUT, MOST, SaidLines

TEXT = st.text(st.sampled_from("ab \r\né\x1b"), max_size=200).map(str.encode)


class SaidLinesTests(SynchronousTestCase):
    """What a program prints, cut into lines."""

    def test_lines(self) -> None:
        """Lines come without their ends, and empty ones not at all; what has no end yet comes later."""
        lines = SaidLines()
        self.assertEqual(lines.add(b"one\r\n\n  two\nthr"), ["one", "  two"])
        self.assertEqual(lines.add(b"ee"), [])
        self.assertEqual(lines.add(b"\n"), ["three"])
        self.assertEqual(lines.rest(), [])

    def test_rest(self) -> None:
        """The last line may have no end."""
        lines = SaidLines()
        lines.add(b"Segmentation fault")
        self.assertEqual(lines.rest(), ["Segmentation fault"])
        self.assertEqual(lines.rest(), [])

    def test_long(self) -> None:
        """A line that is too long is cut, and says so; the next one is whole, and nothing is kept meanwhile."""
        lines = SaidLines(5)
        self.assertEqual(lines.add(b"12345\n123456\n12345\n"), ["12345", "12345" + CUT, "12345"])
        for _ in range(100):
            self.assertEqual(lines.add(b"x" * 1000), [])
        self.assertLess(len(lines._begun), 6)
        self.assertEqual(lines.add(b"\nnext\n"), ["xxxxx" + CUT, "next"])

    def test_noText(self) -> None:
        """Bytes that are no UTF-8 are shown as such."""
        self.assertEqual(SaidLines().add(b"\xff\xfe!\n"), ["\ufffd\ufffd!"])

    @given(TEXT, st.lists(st.integers(0, 200)))
    def test_anyCuts(self, data: bytes, cuts: list[int]) -> None:
        """The lines are the same, however they come."""
        whole, parts = SaidLines(), SaidLines()
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        expected = whole.add(data) + whole.rest()
        came = [line for begin, end in pairwise(places) for line in parts.add(data[begin:end])]
        self.assertEqual(came + parts.rest(), expected)

    @given(st.binary(max_size=5000))
    def test_garbage(self, data: bytes) -> None:
        """Whatever comes, no line is longer than it may be."""
        lines = SaidLines()
        for line in lines.add(data) + lines.rest():
            self.assertTrue(line)
            self.assertLessEqual(len(line), MOST + len(CUT))
