"""Tests for L{udptunnel.core.fakepeers}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.fakepeers import MOST_PEERS, SOURCE_SECONDS, FakePeers
from udptunnel.wire.address import Address

SOURCE, OTHER = Address("10.0.0.2", 4000), Address("10.0.0.2", 4001)
FAKE_A, FAKE_B = Address("198.18.0.2", 443), Address("198.18.0.3", 443)
REAL_A, REAL_B, REAL_C = (Address(f"192.0.2.{last}", 443) for last in (1, 2, 3))


class FakePeersTests(SynchronousTestCase):
    """L{FakePeers}."""

    def setUp(self) -> None:
        self.peers = FakePeers()

    def send(self, target: Address, name: str, source: Address = SOURCE, now: float = 0) -> Address:
        return self.peers.sentToFake(source, target, name, now)

    def seeming(self, *far: Address) -> list[Address]:
        return [self.peers.seeming(SOURCE, each) for each in far]

    def test_there(self) -> None:
        """What is sent to a fake address goes to the name, at the same port."""
        self.assertEqual(self.send(FAKE_A, "a.example"), Address("a.example", 443))

    def test_only(self) -> None:
        """What a real address answers comes from the one fake address that the source sent to at that port."""
        self.send(FAKE_A, "a.example")
        self.send(Address("198.18.0.9", 80), "b.example")
        self.assertEqual(self.seeming(REAL_A, REAL_B), [FAKE_A, FAKE_A])

    def test_name(self) -> None:
        """What a name answers comes from its fake address, whatever was sent to last."""
        self.send(FAKE_A, "a.example")
        self.send(FAKE_B, "b.example")
        named = [Address(f"{each}.example", 443) for each in "ab"]
        self.assertEqual(self.seeming(*named), [FAKE_A, FAKE_B])

    def test_strangers(self) -> None:
        """What comes from another port, or to another source, keeps its address."""
        self.send(FAKE_A, "a.example")
        stranger = Address("192.0.2.1", 444)
        self.assertEqual(self.seeming(stranger), [stranger])
        self.assertEqual(self.peers.seeming(OTHER, REAL_A), REAL_A)

    def test_severalInTurn(self) -> None:
        """A socket that sends to several names at one port: who answers keeps what it was taken for."""
        self.send(FAKE_A, "a.example")
        self.assertEqual(self.seeming(REAL_A), [FAKE_A])
        self.send(FAKE_B, "b.example")
        self.assertEqual(self.seeming(REAL_B, REAL_A), [FAKE_B, FAKE_A])
        self.send(FAKE_A, "a.example")
        self.assertEqual(self.seeming(REAL_A, REAL_B), [FAKE_A, FAKE_B])
        # Somebody else for a name that has answered: the one sent to last.
        self.assertEqual(self.seeming(REAL_C), [FAKE_A])

    def test_severalAtOnce(self) -> None:
        """Of several that have not answered yet, the one that was sent to last comes first."""
        self.send(FAKE_A, "a.example")
        self.send(FAKE_B, "b.example")
        self.assertEqual(self.seeming(REAL_B, REAL_A), [FAKE_B, FAKE_A])

    def test_real(self) -> None:
        """A real address that the source sends to itself stays what it is, also if it was taken for another."""
        self.send(FAKE_A, "a.example")
        self.peers.sentToReal(SOURCE, REAL_A)
        self.assertEqual(self.seeming(REAL_A, REAL_B), [REAL_A, FAKE_A])
        self.peers.sentToReal(SOURCE, REAL_B)
        self.assertEqual(self.seeming(REAL_B), [REAL_B])
        # Who uses no fake addresses is not remembered.
        self.peers.sentToReal(OTHER, REAL_A)
        self.assertEqual(len(self.peers), 1)

    def test_otherName(self) -> None:
        """A fake address that has got another name stands for that one."""
        self.send(FAKE_A, "a.example")
        self.assertEqual(self.send(FAKE_A, "b.example"), Address("b.example", 443))
        self.assertEqual(self.seeming(Address("b.example", 443)), [FAKE_A])

    def test_peersAreBounded(self) -> None:
        """One source can fill only so much: the fake address that was not sent to for longest is forgotten."""
        for number in range(MOST_PEERS + 1):
            self.send(Address("198.18.1.1", 1000 + number), f"{number}.example")
            self.send(Address("198.18.1.1", 1000), "0.example")
        for number, known in ((0, True), (1, False), (2, True), (MOST_PEERS, True)):
            (seeming,) = self.seeming(Address("192.0.2.1", 1000 + number))
            self.assertEqual(seeming.host == "198.18.1.1", known, number)
            (seeming,) = self.seeming(Address(f"{number}.example", 1000 + number))
            self.assertEqual(seeming.host == "198.18.1.1", known, number)

    def test_answersAreBounded(self) -> None:
        """One source remembers only so many real addresses; the first is forgotten, and judged again."""
        self.send(FAKE_A, "a.example")
        self.seeming(REAL_A)
        self.send(FAKE_B, "b.example")
        for number in range(MOST_PEERS):
            self.peers.sentToReal(SOURCE, Address("203.0.113.1", number))
        self.assertEqual(self.seeming(REAL_A), [FAKE_B])

    def test_sourcesAreBounded(self) -> None:
        """There are only so many sources; the one that was silent longest is forgotten."""
        self.peers = FakePeers(2)
        third = Address("10.0.0.2", 4002)
        for source in (SOURCE, OTHER, SOURCE, third):
            self.send(FAKE_A, "a.example", source)
        seeming = [self.peers.seeming(source, REAL_A) for source in (SOURCE, OTHER, third)]
        self.assertEqual(seeming, [FAKE_A, REAL_A, FAKE_A])

    def test_expired(self) -> None:
        """A source that has not sent for long is forgotten."""
        self.send(FAKE_A, "a.example", SOURCE)
        self.send(FAKE_A, "a.example", OTHER, 1)
        self.send(FAKE_A, "a.example", SOURCE, 2)
        self.peers.expire(SOURCE_SECONDS + 1)
        self.assertEqual(len(self.peers), 1)
        self.assertEqual(self.seeming(REAL_A), [FAKE_A])
        self.peers.expire(SOURCE_SECONDS + 2)
        self.assertEqual(len(self.peers), 0)
