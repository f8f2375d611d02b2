"""Tests for L{udptunnel.wire.l3}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import PacketError
from udptunnel.wire.burst import LARGEST_DATAGRAM
from udptunnel.wire.l3 import (
    DATA,
    DATA_BYTES,
    DATA_HEADER,
    INITIATION,
    INITIATION_BYTES,
    OPEN,
    OVERHEAD,
    RESPONSE,
    RESPONSE_BYTES,
    Initiation,
    Response,
    innerMtu,
    packInitiation,
    packResponse,
    unpackInitiation,
    unpackResponse,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

number, key = st.integers(0, 0xFFFFFFFF), st.binary(min_size=32, max_size=32)
initiations = st.builds(Initiation, number, key, st.binary(min_size=28, max_size=28))
responses = st.builds(Response, number, number, key, st.binary(min_size=16, max_size=16))


class MessageTests(SynchronousTestCase):
    """Messages of a handshake, and the header of the others."""

    def test_golden(self) -> None:
        """The layout is that of the page, byte for byte."""
        initiation = Initiation(5, bytes(range(32)), bytes(range(28)))
        self.assertEqual(packInitiation(initiation).hex(), "0101000000000005" + bytes((*range(32), *range(28))).hex())
        response = Response(9, 5, bytes(range(32)), bytes(range(16)))
        self.assertEqual(
            packResponse(response).hex(), "020100000000000900000005" + bytes((*range(32), *range(16))).hex()
        )
        self.assertEqual(DATA_HEADER.pack(OPEN, 9, 258).hex(), "04000000000000090000000000000102")

    def test_sizes(self) -> None:
        """What both ends must know of lengths: of messages, and of what a packet grows by."""
        self.assertEqual((INITIATION_BYTES, RESPONSE_BYTES, DATA_BYTES, OVERHEAD), (68, 60, 16, 32))
        self.assertEqual((INITIATION, RESPONSE, DATA, OPEN), (0x01000000, 0x02000000, 0x03000000, 0x04000000))

    @thorough
    @given(initiations, responses)
    def test_roundTrip(self, initiation: Initiation, response: Response) -> None:
        """What was packed is unpacked; the header is what stands before the ephemeral key."""
        for message, pack, unpack in (
            (initiation, packInitiation, unpackInitiation),
            (response, packResponse, unpackResponse),
        ):
            raw = pack(message)
            self.assertEqual(unpack(memoryview(raw)), message)
            self.assertEqual(raw[: len(message.header) + 32], message.header + message.ephemeral)

    @thorough
    @given(st.binary(max_size=80))
    def test_garbage(self, raw: bytes) -> None:
        """Anything else is refused: cut, longer, or of another kind or version."""
        for unpack, size in ((unpackInitiation, INITIATION_BYTES), (unpackResponse, RESPONSE_BYTES)):
            if len(raw) != size or raw[:4] not in (b"\1\1\0\0", b"\2\1\0\0"):
                self.assertRaises(PacketError, unpack, raw)

    def test_everyLength(self) -> None:
        """A message that is cut anywhere, or goes on, is refused; so is one of another version, or with a bit set."""
        raw = packInitiation(Initiation(5, bytes(32), bytes(28)))
        for length in range(len(raw)):
            self.assertRaises(PacketError, unpackInitiation, raw[:length])
        self.assertRaises(PacketError, unpackInitiation, raw + b"\0")
        for place in range(4):
            self.assertRaises(PacketError, unpackInitiation, raw[:place] + b"\7" + raw[place + 1 :])

    def test_innerMtu(self) -> None:
        """Around a packet there are 60 bytes with IPv4, 80 with IPv6."""
        self.assertEqual((innerMtu(1500, 4), innerMtu(1500, 6)), (1440, 1420))

    def test_innerMtuLargest(self) -> None:
        """No message is longer than UDP can carry, however much an interface lets through, as loopback does."""
        self.assertEqual(innerMtu(65536, 4) + OVERHEAD, LARGEST_DATAGRAM)
        self.assertLess(innerMtu(65536, 6) + OVERHEAD, LARGEST_DATAGRAM)
