"""Tests for L{udptunnel.wire.greeting}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import FrameError
from udptunnel.wire.frame import GOAWAY, HEADER_BYTES, HELLO, WELCOME, decode, encode
from udptunnel.wire.greeting import (
    LARGEST_HELLO,
    SESSION_BYTES,
    VERSION,
    Greeting,
    checkFirstBytes,
    commonVersion,
    packHello,
    packWelcome,
    unpackGreeting,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

NAME = bytes(range(SESSION_BYTES))

FIELDS = "01 10 000102030405060708090a0b0c0d0e0f  02 04 00004000  03 04 00000100"

greetings = st.builds(
    Greeting,
    session=st.binary(min_size=SESSION_BYTES, max_size=SESSION_BYTES),
    associations=st.integers(0, 2**32 - 1),
    targets=st.integers(1, 65536),
    version=st.integers(0, 0xFFFF),
    lowest=st.integers(0, 0xFFFF),
)


def makeGreeting(
    session: bytes = NAME,
    associations: int = 0x4000,
    targets: int = 0x100,
    version: int = VERSION,
    lowest: int = VERSION,
) -> Greeting:
    """A greeting."""
    return Greeting(session, associations, targets, version, lowest)


def unpackFrame(data: bytes) -> Greeting:
    """The greeting in a frame."""
    ((_, target, size, body),), used = decode(memoryview(data))
    assert used == len(data)
    return unpackGreeting(target, size, body)


def bodyOf(greeting: Greeting) -> bytes:
    """The fields of a greeting."""
    return packHello(greeting)[HEADER_BYTES:]


class GreetingTests(SynchronousTestCase):
    """HELLO and WELCOME."""

    def test_golden(self) -> None:
        """The bytes of a HELLO and a WELCOME never change."""
        hello = bytes.fromhex("75647074 0001 0001 001e" + FIELDS)
        welcome = bytes.fromhex("55445054 0001 0000 001e" + FIELDS)
        self.assertEqual(packHello(makeGreeting()), hello)
        self.assertEqual(packWelcome(makeGreeting()), welcome)
        self.assertEqual(unpackFrame(hello), makeGreeting())
        self.assertEqual(unpackFrame(welcome), makeGreeting(lowest=0))

    def test_letters(self) -> None:
        """A link is known in a packet dump by its first letters."""
        self.assertTrue(packHello(makeGreeting()).startswith(b"udpt"))
        self.assertTrue(packWelcome(makeGreeting()).startswith(b"UDPT"))

    def test_order(self) -> None:
        """Fields may stand in any order."""
        fields = FIELDS.split("  ")
        self.assertEqual(unpackGreeting(1, 1, bytes.fromhex("".join(reversed(fields)))), makeGreeting())

    def test_unknownFields(self) -> None:
        """Fields of later versions are skipped, before and behind those that are known."""
        for body in ("04 00" + FIELDS, FIELDS + "ff 03 616263", "00 01 00" + FIELDS + "09 00"):
            self.assertEqual(unpackGreeting(1, 1, bytes.fromhex(body)), makeGreeting())

    def test_missing(self) -> None:
        """Each field must be there."""
        fields = FIELDS.split("  ")
        for missing in fields:
            body = bytes.fromhex("".join(field for field in fields if field != missing))
            self.assertRaises(FrameError, unpackGreeting, 1, 1, body)

    def test_cutShort(self) -> None:
        """A greeting that ends too early is refused, wherever it ends."""
        body = bodyOf(makeGreeting())
        for kept in range(len(body)):
            self.assertRaises(FrameError, unpackGreeting, 1, 1, body[:kept])
        for begun in ("ff", "ff 03", "ff 03 6162"):
            self.assertRaises(FrameError, unpackGreeting, 1, 1, body + bytes.fromhex(begun))

    def test_wrongLength(self) -> None:
        """A field of another length is refused."""
        for wrong in ("01 00", "01 0f 000102030405060708090a0b0c0d0e", "02 03 000001", "03 05 0000000001"):
            self.assertRaises(FrameError, unpackGreeting, 1, 1, bytes.fromhex(FIELDS + wrong))

    def test_targets(self) -> None:
        """A link has at least one target number, and no more than the header can say."""
        for targets in (1, 65536):
            self.assertEqual(unpackFrame(packHello(makeGreeting(targets=targets))).targets, targets)
        for targets in (0, 65537, 2**32 - 1):
            self.assertRaises(FrameError, unpackFrame, packHello(makeGreeting(targets=targets)))

    @thorough
    @given(greetings)
    def test_roundTrip(self, greeting: Greeting) -> None:
        """What one end says is what the other end hears."""
        self.assertEqual(unpackFrame(packHello(greeting)), greeting)
        self.assertEqual(unpackFrame(packWelcome(greeting)), greeting._replace(lowest=0))
        self.assertLessEqual(len(packHello(greeting)), HEADER_BYTES + LARGEST_HELLO)

    @thorough
    @given(st.binary(max_size=80) | st.binary(max_size=20).map(lambda tail: bodyOf(makeGreeting()) + tail))
    def test_garbage(self, body: bytes) -> None:
        """Garbage is refused as such, or says something that can be said again."""
        try:
            greeting = unpackGreeting(1, 1, memoryview(body))
        except FrameError:
            return
        self.assertEqual(unpackFrame(packHello(greeting)), greeting)


class VersionTests(SynchronousTestCase):
    """L{commonVersion}."""

    def test_spoken(self) -> None:
        """A range of versions that holds ours will do."""
        for lowest, highest in ((VERSION, VERSION), (0, VERSION), (VERSION, 9), (0, 0xFFFF)):
            self.assertEqual(commonVersion(makeGreeting(version=highest, lowest=lowest)), VERSION)

    def test_notSpoken(self) -> None:
        """An older or a newer range will not, and neither will an empty one."""
        for lowest, highest in ((0, VERSION - 1), (VERSION + 1, 9), (9, 0)):
            self.assertIsNone(commonVersion(makeGreeting(version=highest, lowest=lowest)))


class FirstBytesTests(SynchronousTestCase):
    """L{checkFirstBytes}."""

    def test_greeting(self) -> None:
        """The beginning of a greeting is welcome, however little of it is there."""
        hello = packHello(makeGreeting())
        for kept in range(len(hello) + 1):
            checkFirstBytes(hello[:kept], (HELLO,))
            checkFirstBytes(memoryview(hello)[:kept], (WELCOME, HELLO))

    def test_stranger(self) -> None:
        """Whoever speaks another protocol is known after four bytes at most."""
        for stranger in (
            b"GET / HTTP/1.1",
            b"\x16\x03\x01\x02",
            b"\x05\x01\x00",
            b"SSH-2.0",
            b"udpT",
            b"\x00\x00\x00\x00",
        ):
            self.assertRaises(FrameError, checkFirstBytes, stranger[:4], (HELLO,))

    def test_anotherRole(self) -> None:
        """A link may begin with the frames that its end expects only."""
        checkFirstBytes(encode(GOAWAY, body=b"full"), (WELCOME, GOAWAY))
        self.assertRaises(FrameError, checkFirstBytes, packHello(makeGreeting()), (WELCOME, GOAWAY))
        self.assertRaises(FrameError, checkFirstBytes, encode(GOAWAY), (HELLO,))

    def test_oversized(self) -> None:
        """A first frame that would not fit 512 bytes is refused as soon as its header is there."""
        checkFirstBytes(encode(HELLO, body=bytes(LARGEST_HELLO))[:HEADER_BYTES], (HELLO,))
        large = encode(HELLO, body=bytes(LARGEST_HELLO + 1))
        checkFirstBytes(large[: HEADER_BYTES - 1], (HELLO,))
        self.assertRaises(FrameError, checkFirstBytes, large[:HEADER_BYTES], (HELLO,))
        self.assertEqual(HEADER_BYTES + LARGEST_HELLO, 512)

    @thorough
    @given(st.binary(max_size=20))
    def test_garbage(self, garbage: bytes) -> None:
        """Four bytes are enough to tell: they are a HELLO's or they are refused."""
        if b"udpt".startswith(garbage[:4]) and int.from_bytes(garbage[8:10].ljust(2, b"\0"), "big") <= LARGEST_HELLO:
            checkFirstBytes(garbage, (HELLO,))
        elif not b"udpt".startswith(garbage[:4]):
            self.assertRaises(FrameError, checkFirstBytes, garbage, (HELLO,))
