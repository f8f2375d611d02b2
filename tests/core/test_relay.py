"""Tests for L{udptunnel.core.relay}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import Plain, makeAssociation, makeParcel, plainFrames
from tests.examples import EXAMPLES
from udptunnel.core.queue import Parcel
from udptunnel.core.relay import Relay
from udptunnel.errors import FrameError
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.frame import ASSOCIATIONS, TARGET

thorough = settings(max_examples=EXAMPLES, deadline=None)

ADDRESSES = [
    Address("192.0.2.1", 1),
    Address("192.0.2.1", 2),
    Address("2001:db8::1", 1),
    Address("name.example", 1),
    Address("192.0.2.2", 1),
]


def makeRelay(numbers: int = 100, targets: int = 100) -> Relay:
    """
    A relay.

    @param numbers: how many numbers the other end remembers.
    @param targets: how many numbers it may use.
    """
    relay = Relay(targets)
    relay.mostNumbers = numbers
    return relay


def wrap(relay: Relay, *parcels: Parcel) -> list[Plain]:
    """The frames for some bursts."""
    return plainFrames(b"".join(relay.wrap(parcels)))


def unwrap(relay: Relay, frames: list[Plain]) -> list[tuple[int, Address, int, bytes]]:
    """What some frames mean: association, address, size and payload of each burst."""
    bursts = []
    for word, target, size, body in frames:
        if word == TARGET:
            relay.targetReceived(target, memoryview(body))
        else:
            assert word < ASSOCIATIONS
            bursts.append((word, relay.addresses[target], size, body))
    return bursts


class WrapTests(SynchronousTestCase):
    """L{Relay.wrap}."""

    def test_golden(self) -> None:
        """A burst to a new address is a TARGET frame and a DATA frame; its payload is not copied."""
        association, payload = makeAssociation(7), b"aabb"
        buffers = makeRelay().wrap([(association, Address("9.9.9.9", 53), 2, payload)])
        wire = "01 000000 0000 0000 0007 01090909090035" + "00 000007 0000 0002 0004 61616262"
        self.assertEqual(b"".join(buffers), bytes.fromhex(wire))
        self.assertIs(buffers[-1], payload)

    def test_once(self) -> None:
        """An address crosses the link once, whoever uses it."""
        relay = makeRelay()
        wrap(relay, makeParcel(makeAssociation(1)))
        self.assertEqual([frame[0] for frame in wrap(relay, makeParcel(makeAssociation(2)))], [2])

    def test_numbers(self) -> None:
        """Each address has its own number, from 0 on."""
        association = makeAssociation()
        frames = wrap(makeRelay(), *(makeParcel(association, address=address) for address in ADDRESSES))
        self.assertEqual([target for word, target, _, _ in frames if word == TARGET], [0, 1, 2, 3, 4])

    def test_allTaken(self) -> None:
        """When all numbers are taken, the one that was given first stands for the new address."""
        relay, association = makeRelay(numbers=2), makeAssociation()
        first, second, third = (makeParcel(association, address=address) for address in ADDRESSES[:3])
        wrap(relay, first, second)
        self.assertEqual(wrap(relay, third)[0][:2], (TARGET, 0))
        self.assertEqual(wrap(relay, first)[0][:2], (TARGET, 1))
        self.assertEqual([frame[0] for frame in wrap(relay, third)], [0])

    def test_newMeaningBeforeItsBurst(self) -> None:
        """One number may mean several addresses within one write: each burst follows its own TARGET."""
        association, other = makeAssociation(), makeRelay(targets=1)
        parcels = [makeParcel(association, bytes((i,)), address=address) for i, address in enumerate(ADDRESSES)]
        bursts = unwrap(other, wrap(makeRelay(numbers=1), *parcels))
        self.assertEqual(bursts, [(0, address, 1, bytes((i,))) for i, address in enumerate(ADDRESSES)])

    def test_nothing(self) -> None:
        """No bursts are no frames."""
        self.assertEqual(makeRelay().wrap([]), [])

    @thorough
    @given(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ADDRESSES), st.binary(max_size=5)), max_size=20),
        st.integers(1, 4),
    )
    def test_roundTrip(self, sent: list[tuple[int, Address, bytes]], numbers: int) -> None:
        """However few numbers there are, each burst arrives with its address, in order."""
        associations = [makeAssociation(number) for number in range(4)]
        relay, other = makeRelay(numbers=numbers), makeRelay(targets=numbers)
        arrived = []
        for number, address, payload in sent:
            arrived += unwrap(other, wrap(relay, makeParcel(associations[number], payload, address=address)))
        self.assertEqual(arrived, [(number, address, len(payload), payload) for number, address, payload in sent])
        self.assertLessEqual(len(other.addresses), numbers)


class TargetTests(SynchronousTestCase):
    """L{Relay.targetReceived}."""

    def test_meaning(self) -> None:
        """A number means what was said of it last."""
        relay = makeRelay()
        for address in ADDRESSES:
            relay.targetReceived(3, packAddress(address))
            self.assertEqual(relay.addresses, {3: address})

    def test_beyond(self) -> None:
        """The other end can not make us remember more addresses than we said."""
        relay = makeRelay(targets=2)
        relay.targetReceived(1, packAddress(ADDRESSES[0]))
        self.assertRaises(FrameError, relay.targetReceived, 2, packAddress(ADDRESSES[0]))
        self.assertEqual(list(relay.addresses), [1])

    def test_cutShort(self) -> None:
        """An address that is cut short is refused, and the number keeps its meaning."""
        for address in ADDRESSES:
            relay, body = makeRelay(), packAddress(address)
            relay.targetReceived(0, packAddress(ADDRESSES[0]))
            for kept in range(len(body)):
                self.assertRaises(FrameError, relay.targetReceived, 0, memoryview(body)[:kept])
            self.assertEqual(relay.addresses, {0: ADDRESSES[0]})

    @thorough
    @given(st.sampled_from(ADDRESSES), st.binary(max_size=10))
    def test_trailing(self, address: Address, tail: bytes) -> None:
        """What follows an address is left to later versions."""
        relay = makeRelay()
        relay.targetReceived(0, memoryview(packAddress(address) + tail))
        self.assertEqual(relay.addresses, {0: address})

    @thorough
    @given(st.binary(max_size=30))
    def test_garbage(self, body: bytes) -> None:
        """Garbage is refused as such, or is an address that can be said again."""
        relay = makeRelay()
        try:
            relay.targetReceived(0, memoryview(body))
        except FrameError:
            self.assertEqual(relay.addresses, {})
        else:
            other = makeRelay()
            other.targetReceived(0, packAddress(relay.addresses[0]))
            self.assertEqual(other.addresses, relay.addresses)
