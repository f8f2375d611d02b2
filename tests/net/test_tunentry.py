"""Tests for L{udptunnel.net.tunentry}."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.net.test_socksudp import RecordingWriter
from udptunnel.core.counters import Counters
from udptunnel.core.session import LocalSession
from udptunnel.net.testing import RecordingLink
from udptunnel.net.tunentry import TunEntry
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import CLOSE, encode

SOURCE, OTHER = Address("10.9.0.2", 4000), Address("fd00::2", 4000)
TARGET, STRANGER = Address("198.51.100.1", 9), Address("203.0.113.9", 1)
SIX, NAME = Address("2001:db8::1", 9), Address("name.example", 53)


class TunEntryTests(SynchronousTestCase):
    """L{TunEntry}."""

    def setUp(self) -> None:
        self.clock, self.counters, self.writer = Clock(), Counters(), RecordingWriter()
        self.session = LocalSession(1000, self.counters, countingRandom())
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.entry = TunEntry(self.session, self.writer, self.clock.seconds)

    def send(self, payload: bytes = b"x", source: Address = SOURCE, target: Address = TARGET, size: int = 0) -> None:
        """Somebody behind the TUN sends a burst."""
        self.entry.burstsReceived([AimedBurst(source, target, size or len(payload), memoryview(payload))])

    def test_there(self) -> None:
        """Each source has an association, whatever it sends to."""
        for source in (SOURCE, OTHER, SOURCE):
            for target in (TARGET, SIX, NAME):
                self.send(b"abc", source, target)
        self.assertEqual([each[0] for each in self.link.parcels], [0, 0, 0, 1, 1, 1, 0, 0, 0])
        self.assertEqual({each[1] for each in self.link.parcels}, {TARGET, SIX, NAME})
        self.assertEqual(self.entry.report(), {"associations": 2})

    def test_whole(self) -> None:
        """Bursts of any length, and empty datagrams, go as they are."""
        for size, payload in ((1400, bytes(65000)), (65507, bytes(65507)), (0, b""), (2, b"abcde")):
            self.send(payload, size=size)
            self.assertEqual(self.link.parcels.pop(), (0, TARGET, size, payload))

    def test_together(self) -> None:
        """What comes together is handed over together, whoever sends it; nothing is no call."""
        calls: list[int] = []
        self.session.send = lambda parcels, now: calls.append(len(parcels))  # type: ignore[method-assign]
        self.entry.burstsReceived([AimedBurst(source, TARGET, 1, b"x") for source in (SOURCE, OTHER, SOURCE)])
        self.entry.burstsReceived([])
        self.assertEqual(calls, [3])

    def test_copied(self) -> None:
        """What has to wait for a link is not what the kernel overwrites next."""
        self.session.links.clear()
        buffer = bytearray(b"abc")
        self.entry.burstsReceived([AimedBurst(SOURCE, TARGET, 3, memoryview(buffer))])
        buffer[:] = b"xyz"
        waiting = self.session._waiting.takeAll(0.0)
        self.assertEqual([bytes(payload) for *_, payload in waiting], [b"abc"])

    def test_back(self) -> None:
        """Whoever answers, the source hears it, and from whom: full cone."""
        self.send()
        self.send(source=OTHER)
        for number, source in ((1, OTHER), (0, SOURCE)):
            for sender in (TARGET, STRANGER, SIX):
                association = self.session.associations.get(number)
                assert association is not None
                association.outlet.send(sender, 2, b"abc")
                self.assertEqual(self.writer.bursts.pop(), (source, sender, 2, b"abc"))

    def test_closedByServer(self) -> None:
        """When the server ends an association, the next datagram of its source begins another."""
        self.send()
        self.session.closeReceived(0)
        self.assertEqual(self.entry.report(), {"associations": 0})
        self.send()
        self.assertEqual([each[0] for each in self.link.parcels], [0, 1])

    def test_idle(self) -> None:
        """What nobody uses ends, and leaves nothing behind."""
        self.send(source=SOURCE)
        self.clock.advance(200)
        self.send(source=OTHER)
        self.clock.advance(200)
        self.entry.tick(self.clock.seconds())
        self.session.tick(self.clock.seconds())
        self.assertEqual(self.entry.report(), {"associations": 1})

    def test_most(self) -> None:
        """Thousands of sources stay within the session's bound."""
        for port in range(3000):
            self.send(source=Address("10.9.0.2", 1 + port))
            self.clock.advance(0.001)
        self.assertLessEqual(len(self.session.associations), 1000)
        self.assertEqual(self.entry.report(), {"associations": len(self.session.associations)})

    def test_stopped(self) -> None:
        """When it is stopped, its associations end, and the server is told; those of others go on."""
        other = TunEntry(self.session, self.writer, self.clock.seconds)
        other.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.send()
        self.entry.stop()
        self.entry.stop()
        self.assertEqual(self.link.frames, [encode(CLOSE | 1)])
        self.assertEqual(len(self.session.associations), 1)
