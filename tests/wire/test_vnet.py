"""Tests for L{udptunnel.wire.vnet}."""

from __future__ import annotations

import sys
from ctypes import Structure, c_uint8, c_uint16

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import PacketError
from udptunnel.wire.vnet import (
    DATA_VALID,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    RSC_INFO,
    VNET_BYTES,
    VnetHeader,
    packVnet,
    udpVnet,
    unpackVnet,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

SUPER = VnetHeader(NEEDS_CSUM, GSO_TCPV6 | GSO_ECN, 72, 1440, 40, 16)
GOLDEN = "01 84 0048 05a0 0028 0010"
"""The same in network byte order."""

small, wide = st.integers(0, 0xFF), st.integers(0, 0xFFFF)


class CHeader(Structure):
    """C{struct virtio_net_hdr}, as a C compiler lays it out."""

    _fields_ = (
        ("flags", c_uint8),
        ("gso_type", c_uint8),
        ("hdr_len", c_uint16),
        ("gso_size", c_uint16),
        ("csum_start", c_uint16),
        ("csum_offset", c_uint16),
    )


class VnetTests(SynchronousTestCase):
    """L{packVnet} and L{unpackVnet}."""

    def test_constants(self) -> None:
        """The numbers of linux/virtio_net.h."""
        self.assertEqual((NEEDS_CSUM, DATA_VALID, RSC_INFO), (1, 2, 4))
        self.assertEqual((GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN), (0, 1, 3, 4, 5, 0x80))

    def test_golden(self) -> None:
        """The numbers stand in the byte order of the machine."""
        raw = bytearray.fromhex(GOLDEN)
        if sys.byteorder == "little":
            for place in range(2, VNET_BYTES, 2):
                raw[place : place + 2] = raw[place : place + 2][::-1]
        self.assertEqual(packVnet(SUPER), raw)
        self.assertEqual(unpackVnet(raw + bytes(100)), SUPER)

    @thorough
    @given(st.tuples(small, small, wide, wide, wide, wide))
    def test_layout(self, fields: tuple[int, ...]) -> None:
        """It is what a C compiler makes of the same numbers."""
        self.assertEqual(packVnet(VnetHeader(*fields)), bytes(CHeader(*fields)))

    @thorough
    @given(st.tuples(small, small, wide, wide, st.integers(0, 500), st.integers(0, 500)))
    def test_roundTrip(self, fields: tuple[int, ...]) -> None:
        """What was packed is unpacked, or refused for one of two reasons."""
        header = VnetHeader(*fields)
        frame = packVnet(header) + bytes(600)
        outside = header.flags & NEEDS_CSUM and header.checksumStart + header.checksumOffset + 2 > 600
        if outside or (header.gsoType & 0x7F and not header.segmentSize):
            self.assertRaises(PacketError, unpackVnet, frame)
        else:
            self.assertEqual(unpackVnet(memoryview(frame)), header)

    def test_plain(self) -> None:
        """Ten zeros say nothing."""
        self.assertEqual(unpackVnet(PLAIN), VnetHeader())
        self.assertEqual(packVnet(VnetHeader()), PLAIN)

    def test_short(self) -> None:
        """A frame that is shorter than the header is refused."""
        for length in range(VNET_BYTES):
            self.assertRaises(PacketError, unpackVnet, PLAIN[:length])

    def test_checksumOutside(self) -> None:
        """A checksum that is to be made behind the end of the packet is refused, but not one that ends with it."""
        raw = packVnet(udpVnet(20))
        self.assertEqual(unpackVnet(raw + bytes(28)).checksumStart, 20)
        self.assertRaises(PacketError, unpackVnet, raw + bytes(27))

    def test_emptySegments(self) -> None:
        """A super-packet of empty segments is refused: nobody could cut it."""
        self.assertRaises(PacketError, unpackVnet, packVnet(SUPER._replace(segmentSize=0)) + bytes(100))
        single = VnetHeader(gsoType=GSO_NONE | GSO_ECN)
        self.assertEqual(unpackVnet(packVnet(single)), single)

    def test_udp(self) -> None:
        """What is said of datagrams that we write: one, and many in one packet."""
        self.assertEqual(udpVnet(20), VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 20, 6))
        self.assertEqual(udpVnet(40, 1400), VnetHeader(NEEDS_CSUM, GSO_UDP_L4, 48, 1400, 40, 6))
