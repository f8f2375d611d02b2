"""Tests for L{udptunnel.core.queue}."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import TARGET_ADDRESS, makeAssociation, makeParcel
from tests.examples import EXAMPLES
from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.queue import BURST_BYTES, MOST_PARCELS, Parcel, Queue
from udptunnel.wire.address import Address
from udptunnel.wire.burst import split

MUCH = 1 << 30


def makeQueue(counters: Counters | None = None, most: int = MUCH, age: float = 1.0) -> Queue:
    """A queue."""
    return Queue(counters or Counters(), most, age)


def datagrams(parcels: list[Parcel]) -> list[tuple[int, bytes]]:
    """The datagrams of some bursts, each with the number of its association."""
    return [
        (association.number, bytes(each)) for association, _, size, payload in parcels for each in split(size, payload)
    ]


def payloads(parcels: list[Parcel]) -> list[bytes]:
    """The payloads of some bursts."""
    return [bytes(payload) for _, _, _, payload in parcels]


def bulk(association: Association, datagrams: int = 40, size: int = 1400) -> Parcel:
    """A long burst of a download."""
    return makeParcel(association, *[bytes(size)] * datagrams)


class PutAndTakeTests(SynchronousTestCase):
    """What goes in comes out."""

    def test_order(self) -> None:
        """The bursts of one flow stay in order."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([makeParcel(flow, b"a"), makeParcel(flow, b"b")], 0.0)
        queue.put([makeParcel(flow, b"c")], 0.0)
        self.assertEqual(payloads(queue.take(MUCH, 0.0)), [b"a", b"b", b"c"])

    def test_forget(self) -> None:
        """What waits for an association that is over is dropped and counted; the others keep theirs."""
        counters = Counters()
        queue, over, other = makeQueue(counters), makeAssociation(1), makeAssociation(2)
        queue.put([makeParcel(over, b"a", b"b"), makeParcel(other, b"c"), makeParcel(over, b"d")], 0.0)
        queue.forget(over)
        queue.forget(over)
        self.assertEqual(counters.dropped, {"association closed": 3})
        self.assertEqual(queue.bytes, BURST_BYTES + 1)
        self.assertEqual(payloads(queue.take(MUCH, 0.0)), [b"c"])
        self.assertEqual((queue.bytes, bool(queue)), (0, False))

    def test_whole(self) -> None:
        """A burst comes out with its association, address and size."""
        queue, flow, address = makeQueue(), makeAssociation(3), Address("2001:db8::1", 9)
        queue.put([makeParcel(flow, b"aa", b"b", address=address)], 0.0)
        self.assertEqual(queue.take(MUCH, 0.0), [(flow, address, 2, b"aab")])

    def test_empty(self) -> None:
        """An empty queue is false and gives nothing; one that was emptied does so too, and costs nothing."""
        queue = makeQueue()
        self.assertFalse(queue)
        self.assertEqual(queue.take(MUCH, 0.0), [])
        queue.put([makeParcel(makeAssociation()), makeParcel(makeAssociation(), b"")], 0.0)
        self.assertTrue(queue)
        self.assertEqual(len(queue.take(MUCH, 0.0)), 2)
        self.assertFalse(queue)
        self.assertEqual(queue.bytes, 0)

    def test_emptyDatagram(self) -> None:
        """An empty datagram waits like any other."""
        queue = makeQueue()
        queue.put([makeParcel(makeAssociation(), b"")], 0.0)
        self.assertTrue(queue)
        self.assertEqual(payloads(queue.take(1, 0.0)), [b""])

    def test_itsOwnBytes(self) -> None:
        """What waits does not change with the buffer that it came in."""
        queue, buffer = makeQueue(), bytearray(b"aaaa")
        queue.put([(makeAssociation(), TARGET_ADDRESS, 2, memoryview(buffer))], 0.0)
        buffer[:] = b"bbbb"
        self.assertEqual(payloads(queue.take(MUCH, 0.0)), [b"aaaa"])

    def test_most(self) -> None:
        """No more is taken than asked for; the rest stays."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([makeParcel(flow, bytes(100))] * 5, 0.0)
        self.assertEqual(len(queue.take(250, 0.0)), 2)
        self.assertEqual(len(queue.take(MUCH, 0.0)), 3)

    def test_atLeastOne(self) -> None:
        """However little is asked for, one burst is taken: or a large one would wait for ever."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([makeParcel(flow, bytes(60000))] * 2, 0.0)
        for _ in range(2):
            self.assertEqual(len(queue.take(0, 0.0)), 1)
        self.assertFalse(queue)

    def test_mostParcels(self) -> None:
        """One write holds some bursts only; the others are not lost."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([makeParcel(flow)] * (MOST_PARCELS + 5), 0.0)
        self.assertEqual(len(queue.take(MUCH, 0.0)), MOST_PARCELS)
        self.assertEqual(len(queue.take(MUCH, 0.0)), 5)

    def test_takeAll(self) -> None:
        """Everything that is fresh can be taken for another queue, however much it is."""
        queue, flows = makeQueue(), [makeAssociation(number) for number in range(3)]
        queue.put([makeParcel(flow, b"old") for flow in flows], 0.0)
        queue.put([makeParcel(flow, b"new") for flow in flows] * MOST_PARCELS, 0.9)
        taken = queue.takeAll(1.5)
        self.assertEqual(Counter(datagrams(taken)), Counter({(each, b"new"): MOST_PARCELS for each in range(3)}))
        self.assertFalse(queue)

    def test_quantum(self) -> None:
        """A long burst leaves in pieces when turns are short: cut between datagrams, in order."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([makeParcel(flow, b"aa", b"bb", b"cc", b"d")], 0.0)
        self.assertEqual(payloads(queue.take(MUCH, 0.0, quantum=5)), [b"aabb", b"ccd"])
        queue.put([makeParcel(flow, b"aaa", b"b")], 0.0)
        self.assertEqual(payloads(queue.take(MUCH, 0.0, quantum=1)), [b"aaa", b"b"])


class BoundsTests(SynchronousTestCase):
    """How much waits, and for how long."""

    def test_bytes(self) -> None:
        """No more waits than allowed; the oldest goes first."""
        counters = Counters()
        queue, flow = makeQueue(counters, most=3 * (100 + BURST_BYTES)), makeAssociation()
        queue.put([makeParcel(flow, bytes((number,)) * 100) for number in range(5)], 0.0)
        self.assertEqual([each[0] for each in payloads(queue.take(MUCH, 0.0))], [2, 3, 4])
        self.assertEqual(counters.dropped, {"queue full": 2})

    def test_aFloodOfNothing(self) -> None:
        """Empty datagrams are not free: they can not fill the memory."""
        counters = Counters()
        queue = makeQueue(counters, most=100 * BURST_BYTES)
        queue.put([makeParcel(makeAssociation(), b"")] * 1000, 0.0)
        self.assertEqual(counters.dropped, {"queue full": 900})

    def test_tooLarge(self) -> None:
        """A burst that alone is more than may wait is dropped, with all its datagrams counted."""
        counters = Counters()
        queue = makeQueue(counters, most=1000)
        queue.put([bulk(makeAssociation(), datagrams=40)], 0.0)
        self.assertEqual(queue.take(MUCH, 0.0), [])
        self.assertEqual(counters.dropped, {"queue full": 40})

    def test_theLargestFlowLoses(self) -> None:
        """When the queue is full it is the longest flow that yields, whoever arrives."""
        counters = Counters()
        queue, download, call = makeQueue(counters, most=100_000), makeAssociation(1), makeAssociation(2)
        queue.put([makeParcel(download, bytes(1400))] * 60, 0.0)
        for _ in range(20):
            queue.put([makeParcel(call, bytes(160))], 0.0)
        taken = Counter(number for number, _ in datagrams(queue.take(MUCH, 0.0)))
        self.assertEqual(taken[2], 20)
        self.assertEqual(counters.dropped["queue full"], 60 - taken[1])

    def test_equalFlowsShare(self) -> None:
        """When several flows send more than fits, each keeps its share."""
        queue, flows = makeQueue(most=40 * (1000 + BURST_BYTES)), [makeAssociation(number) for number in range(4)]
        for _ in range(50):
            queue.put([makeParcel(flow, bytes(1000)) for flow in flows], 0.0)
        shares = Counter(number for number, _ in datagrams(queue.take(MUCH, 0.0)))
        self.assertEqual(sum(shares.values()), 40)
        self.assertTrue(all(9 <= shares[flow.number] <= 11 for flow in flows), shares)

    def test_age(self) -> None:
        """What waited longer than it is worth is dropped, and counted."""
        counters = Counters()
        queue, flow = makeQueue(counters, age=0.2), makeAssociation()
        queue.put([makeParcel(flow, b"aa", b"b")], 0.0)
        queue.put([makeParcel(flow, b"c")], 0.1)
        self.assertEqual(payloads(queue.take(MUCH, 0.25)), [b"c"])
        self.assertEqual(counters.dropped, {"too old": 2})

    def test_justFresh(self) -> None:
        """What waited exactly as long as allowed still goes."""
        queue = makeQueue(age=0.25)
        queue.put([makeParcel(makeAssociation())], 0.0)
        self.assertEqual(len(queue.take(MUCH, 0.25)), 1)

    def test_expire(self) -> None:
        """What is too old goes even if nothing is taken."""
        counters = Counters()
        queue = makeQueue(counters, age=0.2)
        queue.put([makeParcel(makeAssociation(number)) for number in range(3)], 0.0)
        queue.put([makeParcel(makeAssociation(9))], 0.2)
        queue.expire(0.3)
        self.assertEqual(counters.dropped, {"too old": 3})
        self.assertEqual([number for number, _ in datagrams(queue.take(MUCH, 0.3))], [9])
        queue.expire(9.0)
        self.assertFalse(queue)

    def test_agesOfPieces(self) -> None:
        """What is left of a burst that was cut is as old as the whole."""
        counters = Counters()
        queue = makeQueue(counters, age=0.2)
        queue.put([bulk(makeAssociation(), datagrams=10, size=100)], 0.0)
        self.assertEqual(len(datagrams(queue.take(300, 0.1, quantum=300))), 3)
        self.assertEqual(queue.take(MUCH, 0.3), [])
        self.assertEqual(counters.dropped, {"too old": 7})


class FairnessTests(SynchronousTestCase):
    """Who goes next."""

    def test_aCallBesideADownload(self) -> None:
        """A datagram of a call overtakes a download that was there before: it waits for one turn, not for all."""
        queue, download, call = makeQueue(), makeAssociation(1), makeAssociation(2)
        queue.put([bulk(download)] * 20, 0.0)
        queue.put([makeParcel(call, bytes(160))], 0.0)
        order: list[tuple[int, bytes]] = []
        while queue:
            order += datagrams(queue.take(1400, 0.0, quantum=2800))
        before = [number for number, _ in order].index(call.number)
        self.assertLessEqual(before * 1400, 3 * 2800)

    def test_shares(self) -> None:
        """Flows take turns by bytes: who sends small datagrams gets as much as who sends large bursts."""
        queue, large, small = makeQueue(most=MUCH), makeAssociation(1), makeAssociation(2)
        queue.put([bulk(large)] * 20 + [makeParcel(small, bytes(200))] * 5000, 0.0)
        taken: Counter[int] = Counter()
        for _ in range(200):
            for association, _, _, payload in queue.take(2000, 0.0, quantum=4000):
                taken[association.number] += len(payload)
        self.assertTrue(0.95 < taken[1] / taken[2] < 1.05, taken)

    def test_manyFlows(self) -> None:
        """No flow gets a second turn before each has had one."""
        queue, flows = makeQueue(), [makeAssociation(number) for number in range(50)]
        queue.put([bulk(flow, datagrams=3) for flow in flows], 0.0)
        taken = [association.number for association, _, _, _ in queue.take(MUCH, 0.0, quantum=1400)]
        self.assertEqual(sorted(taken[:50]), list(range(50)))

    def test_emptyDatagramsHaveTurns(self) -> None:
        """Empty datagrams, too, let others have their turn."""
        queue, flood, call = makeQueue(), makeAssociation(1), makeAssociation(2)
        queue.put([makeParcel(flood, b"")] * 200 + [makeParcel(call)], 0.0)
        taken = [association.number for association, _, _, _ in queue.take(MUCH, 0.0, quantum=10)]
        self.assertLess(taken.index(2), 30)


class PropertiesTests(SynchronousTestCase):
    """What is true however a queue is used."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("put"), st.integers(0, 3), st.integers(0, 6), st.integers(0, 40)),
                st.tuples(st.just("take"), st.integers(0, 60), st.integers(1, 30), st.just(0)),
                st.tuples(st.just("expire"), st.just(0), st.just(0), st.just(0)),
                st.tuples(st.just("takeAll"), st.just(0), st.just(0), st.just(0)),
            ),
            max_size=40,
        ),
        st.integers(0, 2000),
    )
    def test_nothingIsLost(self, steps: list[tuple[str, int, int, int]], most: int) -> None:
        """
        Datagrams that were put in are taken or dropped or still wait: none is lost, doubled or changed, and each flow
        keeps its order.
        """
        counters, flows = Counters(), [makeAssociation(number) for number in range(4)]
        queue, now = makeQueue(counters, most, age=5.0), 0.0
        put: list[tuple[int, bytes]] = []
        taken: list[tuple[int, bytes]] = []
        for step, first, second, third in steps:
            now += 1.0
            if step == "put":
                length = third if second else 0
                payload = b"".join(bytes(((len(put) + at) % 251,)) for at in range(length))
                parcel = (flows[first], TARGET_ADDRESS, second, payload)
                put += datagrams([parcel])
                queue.put([parcel], now)
            elif step == "take":
                taken += datagrams(queue.take(first, now, quantum=second))
            elif step == "takeAll":
                taken += datagrams(queue.takeAll(now))
                self.assertFalse(queue)
            else:
                queue.expire(now)
            self.assertTrue(0 <= queue.bytes <= most)
        dropped = counters.dropped.total()
        taken += datagrams(queue.takeAll(now))
        dropped = counters.dropped.total()
        self.assertEqual(len(put), len(taken) + dropped)
        self.assertEqual(queue.bytes, 0)
        for number in range(4):
            self.assertSubsequence([each for each in taken if each[0] == number], put)

    def assertSubsequence(self, part: list[tuple[int, bytes]], whole: list[tuple[int, bytes]]) -> None:
        """All of C{part} are in C{whole}, in the same order."""
        rest = iter(whole)
        self.assertTrue(all(each in rest for each in part), (part, whole))

    @settings(max_examples=max(10, EXAMPLES // 4), deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3000)), min_size=1, max_size=20), st.integers(1, 4000))
    def test_takesWhatIsAsked(self, bursts: list[tuple[int, int]], most: int) -> None:
        """What is taken is at most what was asked for, unless it is a single burst."""
        queue, flow = makeQueue(), makeAssociation()
        queue.put([bulk(flow, datagrams, size) for datagrams, size in bursts], 0.0)
        while queue:
            lengths = [len(payload) for _, _, _, payload in queue.take(most, 0.0)]
            self.assertTrue(sum(lengths) <= most or len(lengths) == 1)
            self.assertTrue(lengths or not queue)
