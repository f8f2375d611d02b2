"""Tests for L{udptunnel.core.associations}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import RecordingOutlet, makeAssociation
from tests.examples import EXAMPLES
from udptunnel.core.associations import BRIEF_SECONDS, LONG_SECONDS, Association, Associations
from udptunnel.wire.address import Address
from udptunnel.wire.frame import ASSOCIATIONS


def makeTable(*used: float, most: int = 100) -> Associations:
    """A table with an association for each time of last use, numbered from 0."""
    table = Associations(most)
    for number, now in enumerate(used):
        table.add(makeAssociation(number, now=now))
    return table


def numbers(associations: list[Association]) -> list[int]:
    """The numbers of some associations."""
    return [each.number for each in associations]


class AssociationTests(SynchronousTestCase):
    """L{Association}."""

    def idleAfter(self, *ports: int) -> float:
        """How long an association that exchanged datagrams with some ports may be unused."""
        association = makeAssociation()
        for port in ports:
            association.touch(Address("192.0.2.1", port), 0.0)
        return association.idle

    def test_briefPorts(self) -> None:
        """What only ever asked DNS, NTP or STUN is over after ten seconds."""
        self.assertEqual(BRIEF_SECONDS, 10.0)
        for ports in ((53,), (123,), (3478,), (53, 123, 3478)):
            self.assertEqual(self.idleAfter(*ports), BRIEF_SECONDS)

    def test_otherPorts(self) -> None:
        """What talked to any other port may be silent for five minutes, whatever it asks later."""
        self.assertEqual(LONG_SECONDS, 300.0)
        for ports in ((443,), (0,), (65535,), (53, 5060), (5060, 53)):
            self.assertEqual(self.idleAfter(*ports), LONG_SECONDS)

    def test_neverUsed(self) -> None:
        """What was opened and never used does not stay long."""
        self.assertEqual(self.idleAfter(), BRIEF_SECONDS)

    def test_touched(self) -> None:
        """Each burst, in either direction, begins the time anew."""
        association = makeAssociation(now=1.0)
        self.assertEqual(association.used, 1.0)
        association.touch(Address("192.0.2.1", 53), 7.5)
        self.assertEqual(association.used, 7.5)


class AssociationsTests(SynchronousTestCase):
    """L{Associations}."""

    def test_added(self) -> None:
        """An association is found by its number."""
        table = Associations(10)
        association = makeAssociation(5)
        table.add(association)
        self.assertIs(table.get(5), association)
        self.assertIsNone(table.get(6))
        self.assertEqual(len(table), 1)
        self.assertEqual(list(table), [association])

    def test_removed(self) -> None:
        """What is taken out is told so, once."""
        table, outlet = Associations(10), RecordingOutlet()
        association = makeAssociation(5, outlet)
        table.add(association)
        self.assertIs(table.remove(5), association)
        self.assertIsNone(table.remove(5))
        self.assertIsNone(table.get(5))
        self.assertEqual(outlet.closings, 1)

    def test_removedWhileWalking(self) -> None:
        """Associations may be taken out while one walks through the table."""
        table = makeTable(0, 0, 0)
        for each in table:
            table.remove(each.number)
        self.assertEqual(len(table), 0)

    def test_numbersAreNotReusedSoon(self) -> None:
        """A number that was given back is not given again before all the others: its datagrams may be on the way."""
        table = Associations(10)
        given: set[int] = set()
        for _ in range(5000):
            number = table.number()
            self.assertNotIn(number, given)
            given.add(number)
            table.add(makeAssociation(number))
            table.remove(number)

    def test_numbersInUse(self) -> None:
        """A number in use is not given."""
        table = Associations(10)
        for taken in (0, 1, 3):
            table.add(makeAssociation(taken))
        self.assertEqual([table.number() for _ in range(3)], [2, 4, 5])

    def test_numbersFit(self) -> None:
        """Numbers fit 24 bits."""
        self.assertEqual(ASSOCIATIONS, 1 << 24)
        self.assertTrue(all(0 <= Associations(1).number() < ASSOCIATIONS for _ in range(10)))

    def test_noSurplus(self) -> None:
        """While there is room, nobody must go."""
        self.assertEqual(makeTable(0, 0, most=3).surplus(), [])

    def test_surplus(self) -> None:
        """In a full table, the one that has been silent longest must go."""
        self.assertEqual(numbers(makeTable(5, 3, 4, most=3).surplus()), [1])

    def test_surplusOfALargeTable(self) -> None:
        """In a large table some go at once, the longest silent ones, and never more than a few."""
        surplus = makeTable(*range(640, 0, -1), most=640).surplus()
        self.assertEqual(sorted(numbers(surplus)), list(range(629, 640)))

    def test_lowered(self) -> None:
        """If fewer are allowed than before, so many go that one more has room."""
        table = makeTable(*range(10))
        table.most = 4
        self.assertEqual(sorted(numbers(table.surplus())), list(range(7)))

    def test_idle(self) -> None:
        """Who was unused for its time is idle, and nobody else."""
        table = makeTable(0, 1, 0)
        for each in table:
            each.idle = LONG_SECONDS if each.number == 2 else BRIEF_SECONDS
        self.assertEqual(numbers(table.idle(9.9)), [])
        self.assertEqual(numbers(table.idle(10)), [0])
        self.assertEqual(numbers(table.idle(11)), [0, 1])
        self.assertEqual(numbers(table.idle(300)), [0, 1, 2])

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 12))
    def test_bounded(self, uses: list[int], most: int) -> None:
        """Who makes room before each new association never has more than allowed, and keeps those used last."""
        table = Associations(most)
        for now in uses:
            gone = [table.remove(each.number) for each in table.surplus()]
            kept = [each.used for each in table]
            self.assertTrue(all(each is not None and each.used <= min(kept, default=each.used) for each in gone))
            table.add(makeAssociation(table.number(), now=now))
            self.assertLessEqual(len(table), most)
