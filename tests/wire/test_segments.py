"""Tests for L{udptunnel.wire.segments}."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import PacketError
from udptunnel.wire.checksum import FIELD, checksum, pseudoSum
from udptunnel.wire.ip import ipHeader, parse
from udptunnel.wire.segments import cut
from udptunnel.wire.transport import checksumHolds, parseTcp, parseUdp
from udptunnel.wire.vnet import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    NEEDS_CSUM,
    PLAIN,
    TCP_CHECKSUM,
    VNET_BYTES,
    VnetHeader,
    packVnet,
    udpVnet,
)

FOUR = b"\x0a\x01\x00\x01", b"\x0a\x02\x00\x02"
SIX = bytes.fromhex("fd010000000000000000000000000001"), bytes.fromhex("fd020000000000000000000000000002")
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def tcp(
    ends: tuple[bytes, bytes], payload: bytes, size: int, flags: int = ACK, options: bytes = b"", kind: int = 0
) -> bytes:
    """A TCP super-packet behind its virtio header."""
    length = 20 + len(options) + len(payload)
    fields = 443, 5000, 0xFFFFFF00, 77, (20 + len(options)) // 4 << 4, flags, 1000, pseudoSum(*ends, 6, length), 0
    header = ipHeader(*ends, 6, length)
    usual = GSO_TCPV4 if len(ends[0]) == 4 else GSO_TCPV6
    vnet = VnetHeader(NEEDS_CSUM, kind or usual, 0, size, len(header), TCP_CHECKSUM)
    return packVnet(vnet) + header + struct.pack("!HHIIBBHHH", *fields) + options + payload


def udp(ends: tuple[bytes, bytes], payload: bytes, size: int) -> bytes:
    """A UDP super-packet behind its virtio header."""
    length = 8 + len(payload)
    header = ipHeader(*ends, 17, length)
    fields = struct.pack("!HHHH", 53, 5000, length, pseudoSum(*ends, 17, length))
    return packVnet(udpVnet(len(header), size)) + header + fields + payload


class CutTests(SynchronousTestCase):
    """L{cut}."""

    def check(self, pieces: list[bytes]) -> None:
        """See that each piece is a packet by itself, with good checksums."""
        for piece in pieces:
            packet = parse(piece)
            self.assertEqual(packet.totalLength, len(piece))
            self.assertTrue(checksumHolds(piece, packet))
            if packet.version == 4:
                self.assertEqual(checksum(piece[:20]), 0)

    def test_tcp(self) -> None:
        """Each segment says where its payload stands in the stream, and all that it was cut from comes out again."""

        @settings(max_examples=min(EXAMPLES, 200), deadline=None)
        @given(
            st.sampled_from((FOUR, SIX)), st.binary(min_size=1, max_size=300), st.integers(1, 100), st.integers(0, 10)
        )
        def check(ends: tuple[bytes, bytes], payload: bytes, size: int, words: int) -> None:
            pieces = cut(tcp(ends, payload, size, options=b"\1" * 4 * words))
            self.check(pieces)
            together, place = b"", 0xFFFFFF00
            for piece in pieces:
                segment = parseTcp(piece, parse(piece))
                self.assertEqual((segment.sequence, segment.acknowledgment), (place, 77))
                together += piece[segment.payloadStart :]
                place = (place + len(piece) - segment.payloadStart) & 0xFFFFFFFF
            self.assertEqual(together, payload)
            self.assertEqual(len(pieces), -(-len(payload) // size))

        check()

    def test_udp(self) -> None:
        """Each datagram has its length, and all but the last one the size that was asked for."""
        for ends in (FOUR, SIX):
            pieces = cut(udp(ends, bytes(range(25)), 10))
            self.check(pieces)
            places = [(parseUdp(piece, parse(piece)), piece) for piece in pieces]
            payloads = [bytes(piece[each.payloadStart : each.payloadEnd]) for each, piece in places]
            self.assertEqual(payloads, [bytes(range(10)), bytes(range(10, 20)), bytes(range(20, 25))])

    def test_flags(self) -> None:
        """FIN and PSH are the last segment's, CWR is the first one's, the others are everybody's."""
        kind = GSO_TCPV4 | GSO_ECN
        pieces = cut(tcp(FOUR, bytes(30), 10, FIN | PSH | ACK | CWR, kind=kind))
        self.check(pieces)
        flags = [parseTcp(piece, parse(piece)).flags for piece in pieces]
        self.assertEqual(flags, [ACK | CWR, ACK, ACK | FIN | PSH])

    def test_identification(self) -> None:
        """The identification of IPv4 counts up, and starts again behind its end."""
        frame = bytearray(tcp(FOUR, bytes(30), 10))
        FIELD.pack_into(frame, VNET_BYTES + 4, 0xFFFE)
        pieces = cut(frame)
        self.check(pieces)
        self.assertEqual([FIELD.unpack_from(piece, 4)[0] for piece in pieces], [0xFFFE, 0xFFFF, 0])

    def test_single(self) -> None:
        """What is one packet stays one; its checksum is completed if it is partial."""
        frame = bytearray(udp(FOUR, b"abc", 0))
        self.check(cut(frame))
        self.assertEqual(cut(PLAIN + b"anything"), [b"anything"])

    def test_refused(self) -> None:
        """What is no super-packet, or not one that can be cut, is refused; and never anything else is raised."""
        good = tcp(FOUR, bytes(30), 10)
        no = bytearray(good)
        no[0] = 0
        old = bytearray(udp(FOUR, bytes(30), 10))
        old[1] = GSO_UDP
        short = bytearray(good)
        short[VNET_BYTES + 20 + 12] = 0x40
        for frame in (good[: VNET_BYTES + 40], good[:5], no, old, short):
            self.assertRaises(PacketError, cut, frame)

        @settings(max_examples=min(EXAMPLES, 300), deadline=None)
        @given(
            st.sampled_from((good, udp(SIX, bytes(30), 10))),
            st.integers(0, 60),
            st.integers(0, 255),
            st.integers(0, 100),
        )
        def check(frame: bytes, place: int, value: int, end: int) -> None:
            spoiled = bytearray(frame)
            spoiled[place] = value
            try:
                cut(spoiled[:end])
            except PacketError:
                return

        check()
