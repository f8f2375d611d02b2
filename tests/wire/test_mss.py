"""Tests for L{udptunnel.wire.mss}."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.wire.checksum import checksum, fold, pseudoSum, wordSum
from udptunnel.wire.ip import TCP, ipHeader, parse
from udptunnel.wire.mss import clampMss
from udptunnel.wire.transport import SYN, checksumHolds

ENDS = bytes((10, 1, 0, 1)), bytes((10, 2, 0, 1))


def syn(options: bytes, payload: bytes = b"") -> bytearray:
    """A SYN with these options, which are filled up."""
    options += bytes(-len(options) % 4)
    length = 20 + len(options) + len(payload)
    header = struct.pack("!HHIIBBHHH", 1, 2, 3, 0, (20 + len(options)) // 4 << 4, SYN, 1000, 0, 0)
    value = checksum(header + options + payload, pseudoSum(*ENDS, TCP, length))
    header = header[:16] + value.to_bytes(2, "big") + header[18:]
    return bytearray(ipHeader(*ENDS, TCP, length) + header + options + payload)


def mss(size: int) -> bytes:
    return struct.pack("!BBH", 2, 4, size)


class ClampTests(SynchronousTestCase):
    """L{clampMss}."""

    def clamped(self, packet: bytearray, end: int, most: int = 1380) -> bytearray:
        clamped = bytearray(packet)
        clampMss(clamped, 20, end, most, False)
        return clamped

    def test_smaller(self) -> None:
        """Larger segments than fit become smaller, others stay, and the checksum stays right."""
        for given_, expected in ((1460, 1380), (1380, 1380), (536, 536), (0xFFFF, 1380), (0, 0)):
            packet = self.clamped(syn(mss(given_)), 44)
            self.assertEqual(packet[40:44], mss(expected))
            self.assertTrue(checksumHolds(packet, parse(packet)))

    def test_oddPlace(self) -> None:
        """The option may stand anywhere among others, at odd places too."""
        for before in (b"\1", b"\1\1", b"\4\2", b"\3\3\7", b"\x08\x0a" + bytes(8)):
            raw = syn(before + mss(9000))
            packet = self.clamped(raw, len(raw))
            self.assertEqual(packet[40 + len(before) :][:4], mss(1380))
            self.assertTrue(checksumHolds(packet, parse(packet)))

    def test_partial(self) -> None:
        """A partial checksum has nothing to do with options."""
        packet = syn(mss(1460))
        before = packet[36:38]
        clampMss(packet, 20, 44, 1380, True)
        self.assertEqual((packet[36:38], packet[42:44]), (before, mss(1380)[2:]))

    def test_none(self) -> None:
        """Without the option, or with broken ones, or behind their end, nothing changes."""
        for options in (b"", b"\1\1\1\1", b"\0" + mss(1460), b"\2\3\5\xb4", b"\3\0", b"\3\x40", b"\x02", b"\3\1"):
            raw = syn(options)
            self.assertEqual(self.clamped(raw, 40 + len(options)), raw, options)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.binary(max_size=40), st.integers(0, 0xFFFF))
    def test_anyOptions(self, options: bytes, most: int) -> None:
        """Whatever the options are, only they change, at most by a size, and the checksum follows."""
        raw = syn(options, b"payload")
        end = 40 + len(options) + -len(options) % 4
        packet = self.clamped(raw, end, most)
        self.assertEqual((packet[:36], packet[38:40], packet[end:]), (raw[:36], raw[38:40], raw[end:]))
        self.assertLessEqual(sum(a != b for a, b in zip(packet[40:], raw[40:], strict=True)), 2)
        pseudo = pseudoSum(*ENDS, TCP, len(packet) - 20)
        self.assertEqual(fold(wordSum(packet[20:]) + pseudo), 0xFFFF)
