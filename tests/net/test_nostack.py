"""Tests for L{udptunnel.net.nostack}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_nat import segment
from tests.net.test_gateway import RecordingWriter
from udptunnel.core.counters import Counters
from udptunnel.core.nat import ACK, SYN
from udptunnel.net.nostack import NoStack
from udptunnel.wire.ip import parse
from udptunnel.wire.transport import RST, parseTcp, udpPacket
from udptunnel.wire.vnet import PLAIN


class NoStackTests(SynchronousTestCase):
    """L{NoStack}."""

    def setUp(self) -> None:
        self.writer, self.counters = RecordingWriter(), Counters()
        self.stack = NoStack(self.writer, self.counters)

    def pass_(self, *packets: bytes | bytearray) -> list[bytes]:
        """What it leaves to others."""
        given = [memoryview(bytearray(each)) for each in packets]
        return [bytes(each) for each in self.stack.packetsReceived(given, 0.0)]

    def test_refused(self) -> None:
        """A SYN is answered with a RST, in both families, and counted."""
        for version in (4, 6):
            self.assertEqual(self.pass_(segment(version=version, flags=SYN)), [])
            frame = self.writer.packets.pop()[len(PLAIN) :]
            answered = parseTcp(frame, parse(frame))
            self.assertEqual(answered.flags, RST | ACK)
        self.assertEqual(self.counters.dropped, {"no TCP here": 2})

    def test_reset(self) -> None:
        """A RST gets no answer."""
        self.assertEqual(self.pass_(segment(flags=RST)), [])
        self.assertEqual(self.writer.packets, [])

    def test_others(self) -> None:
        """Everything else is left to others, what is no packet included."""
        others = [
            PLAIN + udpPacket(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), 1, 2, b"x"),
            PLAIN + udpPacket(bytes(15) + b"\1", bytes(15) + b"\2", 1, 2, b""),
            PLAIN,
            PLAIN + b"\x45",
            PLAIN + bytes(40),
        ]
        self.assertEqual(self.pass_(*others), others)
        self.assertEqual((self.writer.packets, len(self.stack), self.stack.prove()), ([], 0, ""))
