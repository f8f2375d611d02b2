"""Tests for L{udptunnel.wire.burst}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_BURST, LARGEST_DATAGRAM, Burst, count, join, pieces, split
from udptunnel.wire.frame import Buffer

thorough = settings(max_examples=EXAMPLES, deadline=None)

ALICE, BOB = Address("192.0.2.1", 1), Address("192.0.2.2", 2)


def makeBurst(*datagrams: bytes, source: Address = ALICE) -> Burst:
    """A burst of some datagrams, all as long as the first but the last."""
    return Burst(source, len(datagrams[0]), b"".join(datagrams))


def splitAll(bursts: list[Burst]) -> list[tuple[Address, bytes]]:
    """All datagrams, with their source."""
    return [(burst.source, bytes(each)) for burst in bursts for each in split(burst.size, burst.payload)]


@st.composite
def bursts(draw: st.DrawFn, largest: int = 6, most: int = 5) -> Burst:
    """A legal burst: some datagrams of one size, and maybe a shorter one at the end; also an unfilled or empty one."""
    size = draw(st.integers(0, largest))
    length = draw(st.integers(0, size * most))
    payload: Buffer = draw(st.binary(min_size=length, max_size=length))
    if draw(st.booleans()):
        payload = memoryview(payload)
    return Burst(draw(st.sampled_from([ALICE, BOB])), size, payload)


class SplitTests(SynchronousTestCase):
    """L{split} and L{count}."""

    def test_equal(self) -> None:
        """A burst is its datagrams laid end to end."""
        self.assertEqual(list(split(2, b"aabbcc")), [b"aa", b"bb", b"cc"])
        self.assertEqual(count(2, b"aabbcc"), 3)

    def test_shorterLast(self) -> None:
        """The last datagram may be shorter."""
        self.assertEqual(list(split(2, b"aabbc")), [b"aa", b"bb", b"c"])
        self.assertEqual(count(2, b"aabbc"), 3)

    def test_lone(self) -> None:
        """A lone datagram is a burst of one, even if it does not fill its size."""
        for size in (3, 4, 65535):
            self.assertEqual(list(split(size, b"abc")), [b"abc"])
            self.assertEqual(count(size, b"abc"), 1)

    def test_empty(self) -> None:
        """An empty datagram is one datagram."""
        for size in (0, 1):
            self.assertEqual(list(split(size, b"")), [b""])
            self.assertEqual(count(size, b""), 1)

    @thorough
    @given(bursts())
    def test_count(self, burst: Burst) -> None:
        """Counting gives as many as splitting, and splitting loses nothing."""
        datagrams = [bytes(each) for each in split(burst.size, burst.payload)]
        self.assertEqual(count(burst.size, burst.payload), len(datagrams))
        self.assertEqual(b"".join(datagrams), burst.payload)
        self.assertTrue(all(len(each) == burst.size for each in datagrams[:-1]))


class PiecesTests(SynchronousTestCase):
    """L{pieces}."""

    def test_fits(self) -> None:
        """A burst that is small enough stays whole, and is not copied."""
        payload = b"aabb"
        (piece,) = pieces(2, payload, 4)
        self.assertIs(piece, payload)

    def test_betweenDatagrams(self) -> None:
        """A burst is cut between datagrams only."""
        self.assertEqual(list(pieces(2, b"aabbccd", 5)), [b"aabb", b"ccd"])

    def test_largeDatagram(self) -> None:
        """A datagram larger than a piece is a piece of its own."""
        self.assertEqual(list(pieces(3, b"aaabbbc", 2)), [b"aaa", b"bbb", b"c"])

    @thorough
    @given(bursts(), st.integers(1, 40))
    def test_datagramsStay(self, burst: Burst, most: int) -> None:
        """Cutting changes no datagram, and no piece of several is longer than allowed."""
        cut = list(pieces(burst.size, burst.payload, most))
        datagrams = [bytes(each) for piece in cut for each in split(burst.size, piece)]
        self.assertEqual(datagrams, [bytes(each) for each in split(burst.size, burst.payload)])
        self.assertTrue(all(len(piece) <= max(most, burst.size) for piece in cut))


class JoinTests(SynchronousTestCase):
    """L{join}."""

    def test_neighbours(self) -> None:
        """Neighbours of one source and size become one burst."""
        self.assertEqual(join([makeBurst(b"aa"), makeBurst(b"bb", b"cc")]), [makeBurst(b"aa", b"bb", b"cc")])

    def test_aShortDatagramEndsItsBurst(self) -> None:
        """A shorter datagram is the last of its burst; what follows begins another one."""
        joined = join([makeBurst(b"aa"), makeBurst(b"b"), makeBurst(b"cc"), makeBurst(b"dd")])
        self.assertEqual(joined, [makeBurst(b"aa", b"b"), makeBurst(b"cc", b"dd")])

    def test_aLongerDatagramBeginsABurst(self) -> None:
        """A longer datagram does not fit behind shorter ones."""
        separate = [makeBurst(b"a"), makeBurst(b"bb")]
        self.assertEqual(join(separate), separate)

    def test_anotherSource(self) -> None:
        """Datagrams of different sources never share a burst."""
        separate = [makeBurst(b"aa"), makeBurst(b"bb", source=BOB), makeBurst(b"cc")]
        self.assertEqual(join(separate), separate)

    def test_empty(self) -> None:
        """Empty datagrams can not be laid end to end: there would be nothing to see."""
        separate = [makeBurst(b""), makeBurst(b""), makeBurst(b"a"), makeBurst(b"")]
        self.assertEqual(join(separate), separate)

    def test_emptyOfASize(self) -> None:
        """An empty datagram is not lost because its burst names a size."""
        separate = [makeBurst(b"aa"), Burst(ALICE, 2, b""), makeBurst(b"bb")]
        self.assertEqual(splitAll(join(separate)), splitAll(separate))

    def test_loneIsNotCopied(self) -> None:
        """A burst without a fitting neighbour goes through as it is."""
        lone = Burst(ALICE, 2, memoryview(b"aa"))
        (joined,) = join([lone])
        self.assertIs(joined, lone)

    def test_largest(self) -> None:
        """A burst never outgrows the body of a frame."""
        large = makeBurst(bytes(30000))
        joined = join([large] * 5)
        self.assertEqual([len(burst.payload) for burst in joined], [60000, 60000, 30000])
        exact = [makeBurst(bytes(LARGEST_DATAGRAM)), makeBurst(bytes(LARGEST_BURST - LARGEST_DATAGRAM))]
        self.assertEqual(len(join(exact)), 1)
        self.assertEqual(len(join([exact[0], makeBurst(bytes(LARGEST_BURST - LARGEST_DATAGRAM + 1))])), 2)

    def test_nothing(self) -> None:
        """Nothing stays nothing."""
        self.assertEqual(join([]), [])

    @thorough
    @given(st.lists(bursts(largest=3, most=3), max_size=12))
    def test_datagramsStay(self, separate: list[Burst]) -> None:
        """The same datagrams come out of the same sources in the same order."""
        joined = join(separate)
        self.assertEqual(splitAll(joined), splitAll(separate))
        self.assertLessEqual(len(joined), len(separate))
        self.assertTrue(all(burst.size > 0 or not burst.payload for burst in joined))

    @settings(max_examples=max(10, EXAMPLES // 10), deadline=None)
    @given(st.lists(st.sampled_from([1, 1000, 1472, 9000, 32768, 65507]), max_size=40))
    def test_neverAboveTheLargest(self, sizes: list[int]) -> None:
        """However many datagrams follow each other, each burst fits a frame and is all of its size but the last."""
        joined = join([makeBurst(bytes(size)) for size in sizes])
        self.assertTrue(all(len(burst.payload) <= LARGEST_BURST for burst in joined))
        self.assertEqual([len(datagram) for _, datagram in splitAll(joined)], sizes)
