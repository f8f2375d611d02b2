"""Tests for L{udptunnel.wire.frame}."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import FrameError
from udptunnel.wire.frame import (
    ASSOCIATIONS,
    CLOSE,
    DATA,
    GOAWAY,
    HEADER_BYTES,
    HELLO,
    KIND,
    LARGEST_BODY,
    OPTIONAL,
    PING,
    PONG,
    TARGET,
    WELCOME,
    decode,
    encode,
    ping,
    pong,
    unpackPing,
    unpackPong,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

Plain = tuple[int, int, int, bytes]

GOLDEN: dict[Plain, str] = {
    (DATA | 7, 2, 3, b"abcde"): "00 000007 0002 0003 0005 6162636465",
    (DATA | ASSOCIATIONS - 1, 0xFFFF, 0, b""): "00 ffffff ffff 0000 0000",
    (TARGET, 2, 0, b"\x01\x09\x09\x09\x09\x00\x35"): "01 000000 0002 0000 0007 01090909090035",
    (CLOSE | 7, 0, 0, b""): "02 000007 0000 0000 0000",
    (PING, 0, 0, bytes(7) + b"\x01"): "03 000000 0000 0000 0008 0000000000000001",
    (PONG, 0, 0, bytes(7) + b"\x01" + bytes(7) + b"\x02"): "04 000000 0000 0000 0010 0000000000000001 0000000000000002",
    (GOAWAY, 0, 0, b"bye"): "05 000000 0000 0000 0003 627965",
    (HELLO, 1, 1, b""): "75647074 0001 0001 0000",
    (WELCOME, 1, 0, b""): "55445054 0001 0000 0000",
    (OPTIONAL, 0, 0, b"?"): "80 000000 0000 0000 0001 3f",
}
"""Each kind of frame with its bytes, for both directions."""

words = st.integers(0, 0xFFFFFFFF)
numbers = st.integers(0, 0xFFFF)
plains = st.tuples(words, numbers, numbers, st.binary(max_size=40))


def decodeAll(stream: bytes) -> tuple[list[Plain], int]:
    """The frames at the start of a stream, with bodies that outlive it, and how many bytes they take."""
    frames, used = decode(memoryview(stream))
    return [(word, target, size, bytes(body)) for word, target, size, body in frames], used


def decodePieces(pieces: list[bytes]) -> list[Plain]:
    """The frames of a stream that arrives in pieces, fed as a carrier feeds them: what is left is fed again."""
    frames: list[Plain] = []
    rest = b""
    for piece in pieces:
        found, used = decodeAll(rest + piece)
        rest = (rest + piece)[used:]
        frames += found
    return frames


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """A stream cut at some places."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


class FrameTests(SynchronousTestCase):
    """L{encode} and L{decode}."""

    def test_golden(self) -> None:
        """The bytes of each kind of frame never change, in either direction."""
        for frame, digits in GOLDEN.items():
            self.assertEqual(encode(*frame).hex(), digits.replace(" ", ""))
            self.assertEqual(decodeAll(bytes.fromhex(digits)), ([frame], len(encode(*frame))))

    def test_dataIsItsAssociation(self) -> None:
        """The word of a DATA frame is the number of its association."""
        (word, *_), *_ = decodeAll(encode(DATA | 0xABCDEF, 1, 1, b"x"))[0]
        self.assertEqual(word, 0xABCDEF)
        self.assertLess(word, ASSOCIATIONS)

    def test_kindsAreTold(self) -> None:
        """The upper eight bits tell the kinds apart; none but those from 0x80 on may be skipped."""
        kinds = [word & KIND for word in (DATA, TARGET, CLOSE, PING, PONG, GOAWAY, HELLO, WELCOME)]
        self.assertEqual(len(set(kinds)), 8)
        self.assertLess(max(kinds), OPTIONAL)

    def test_byteByByte(self) -> None:
        """A stream that trickles in byte by byte gives the same frames."""
        stream = b"".join(encode(*frame) for frame in GOLDEN)
        self.assertEqual(decodePieces([stream[at : at + 1] for at in range(len(stream))]), list(GOLDEN))

    def test_trailing(self) -> None:
        """The beginning of a frame is left for later."""
        whole, next = encode(PING, body=bytes(8)), encode(DATA, 0, 3, b"abc")
        for kept in range(len(next)):
            self.assertEqual(decodeAll(whole + next[:kept]), ([(PING, 0, 0, bytes(8))], len(whole)))

    def test_nothing(self) -> None:
        """No bytes hold no frames."""
        self.assertEqual(decodeAll(b""), ([], 0))

    def test_largest(self) -> None:
        """A body holds 65,535 bytes, and not one more."""
        body = bytes(LARGEST_BODY)
        self.assertEqual(decodeAll(encode(DATA, 0, 9, body)), ([(DATA, 0, 9, body)], HEADER_BYTES + LARGEST_BODY))
        self.assertRaises(FrameError, encode, DATA, 0, 9, bytes(LARGEST_BODY + 1))

    def test_bodiesAreViews(self) -> None:
        """Bodies are not copied: they show the buffer, and are gone when it is."""
        buffer = bytearray(encode(DATA, 0, 1, b"a"))
        frames, _ = decode(memoryview(buffer))
        buffer[-1:] = b"b"
        self.assertEqual(bytes(frames[0][3]), b"b")

    @thorough
    @given(st.lists(plains, max_size=8), st.lists(st.integers(0, 1000), max_size=8))
    def test_cutAnywhere(self, frames: list[Plain], places: list[int]) -> None:
        """Wherever a stream is cut, the same frames come out in the same order."""
        self.assertEqual(decodePieces(cut(b"".join(encode(*frame) for frame in frames), places)), frames)

    @thorough
    @given(st.binary(max_size=200))
    def test_garbage(self, garbage: bytes) -> None:
        """Any bytes are frames or the beginning of one: what was decoded is what was there."""
        frames, used = decodeAll(garbage)
        self.assertEqual(b"".join(encode(*frame) for frame in frames), garbage[:used])


class HeartbeatFrameTests(SynchronousTestCase):
    """PING and PONG."""

    def test_golden(self) -> None:
        """The bytes of PING and PONG never change."""
        self.assertEqual(ping(0x0102030405060708).hex(), "03000000000000000008" + "0102030405060708")
        self.assertEqual(pong(1, 2).hex(), "04000000000000000010" + "0000000000000001" + "0000000000000002")

    def test_limits(self) -> None:
        """A moment and a count have 64 bits each."""
        most = 2**64 - 1
        self.assertEqual(unpackPing(ping(most)[HEADER_BYTES:]), most)
        self.assertEqual(unpackPong(pong(most, most)[HEADER_BYTES:]), (most, most))

    def test_short(self) -> None:
        """A body that is cut short is refused, wherever it is cut."""
        for kept in range(8):
            self.assertRaises(FrameError, unpackPing, ping(1)[HEADER_BYTES:][:kept])
        for kept in range(16):
            self.assertRaises(FrameError, unpackPong, pong(1, 2)[HEADER_BYTES:][:kept])

    @thorough
    @given(st.binary(max_size=40))
    def test_trailing(self, body: bytes) -> None:
        """What follows in a body is left to later versions; only L{FrameError} is raised."""
        for unpack, size in ((unpackPing, 8), (unpackPong, 16)):
            if len(body) < size:
                self.assertRaises(FrameError, unpack, body)
            else:
                self.assertEqual(unpack(body), unpack(memoryview(body)[:size]))
