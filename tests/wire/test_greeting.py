"""Tests for L{udptunnel.wire.greeting}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import FrameError
from udptunnel.wire.frame import CHALLENGE, GOAWAY, HEADER_BYTES, HELLO, PROOF, WELCOME, decode, encode
from udptunnel.wire.greeting import (
    LARGEST_HELLO,
    LARGEST_USER,
    NONCE_BYTES,
    PROOF_BYTES,
    SESSION_BYTES,
    TICKET_BYTES,
    VERSION,
    Greeting,
    checkFirstBytes,
    commonVersion,
    packChallenge,
    packHello,
    packProof,
    packWelcome,
    unpackChallenge,
    unpackGreeting,
    unpackProof,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)

NAME = bytes(range(SESSION_BYTES))

FIELDS = "01 10 000102030405060708090a0b0c0d0e0f  02 04 00004000  03 04 00000100"

MORE_FIELDS = (
    "04 20 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    "05 01 07"
    "06 05 7ac3bc7269"
    "07 20 404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f"
)
"""The fields that need not be there: ticket, flags, user and nonce."""

TICKET, NONCE = bytes(range(0x20, 0x40)), bytes(range(0x40, 0x60))

secrets = st.just(b"") | st.binary(min_size=32, max_size=32)

users = st.text(max_size=LARGEST_USER).filter(
    lambda user: user.isprintable() and len(user.encode("utf-8", "replace")) <= LARGEST_USER
)

greetings = st.builds(
    Greeting,
    session=st.binary(min_size=SESSION_BYTES, max_size=SESSION_BYTES),
    associations=st.integers(0, 2**32 - 1),
    targets=st.integers(1, 65536),
    version=st.integers(0, 0xFFFF),
    lowest=st.integers(0, 0xFFFF),
    ticket=secrets,
    alone=st.booleans(),
    idle=st.booleans(),
    resumed=st.booleans(),
    user=users,
    nonce=secrets,
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


class ReprTests(SynchronousTestCase):
    """What is seen of a L{Greeting} in a log or a traceback."""

    def test_noSecret(self) -> None:
        """Which session it is of, in short; no ticket and no nonce, nor what the whole name would betray."""
        greeting = Greeting(NAME, 1, 1, ticket=b"T" * TICKET_BYTES, nonce=b"N" * NONCE_BYTES, user="alice")
        for shown in (repr(greeting), str(greeting), f"{greeting}", repr([greeting])):
            self.assertIn(NAME.hex()[:8], shown)
            for hidden in ("TTT", "NNN", NAME.hex(), repr(NAME)[2:-1]):
                self.assertNotIn(hidden, shown)


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

    def test_goldenFully(self) -> None:
        """The bytes of a HELLO and a WELCOME that say everything never change, either."""
        full = makeGreeting()._replace(ticket=TICKET, alone=True, idle=True, resumed=True, user="züri", nonce=NONCE)
        hello = bytes.fromhex("75647074 0001 0001 006c" + FIELDS + MORE_FIELDS)
        welcome = bytes.fromhex("55445054 0001 0000 006c" + FIELDS + MORE_FIELDS)
        self.assertEqual(packHello(full), hello)
        self.assertEqual(packWelcome(full), welcome)
        self.assertEqual(unpackFrame(hello), full)
        self.assertEqual(unpackFrame(welcome), full._replace(lowest=0))

    def test_flags(self) -> None:
        """Each flag has a bit of its own; where none is set the field is left out."""
        for bit, flags in ((1, "alone"), (2, "idle"), (4, "resumed")):
            greeting = makeGreeting()._replace(**{flags: True})
            self.assertEqual(bodyOf(greeting), bytes.fromhex(FIELDS + f"05 01 {bit:02x}"))
            self.assertEqual(unpackFrame(packHello(greeting)), greeting)
        self.assertEqual(unpackGreeting(1, 1, bytes.fromhex(FIELDS + "05 01 00")), makeGreeting())

    def test_unknownFlags(self) -> None:
        """Flags of later versions are skipped, and so are more bytes of them; no byte means no flag."""
        for flags in ("05 01 f8", "05 02 00 ff", "05 00"):
            self.assertEqual(unpackGreeting(1, 1, bytes.fromhex(FIELDS + flags)), makeGreeting())
        for flags in ("05 01 fa", "05 03 02 ffff"):
            self.assertEqual(unpackGreeting(1, 1, bytes.fromhex(FIELDS + flags)), makeGreeting()._replace(idle=True))

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
        for body in ("08 00" + FIELDS, FIELDS + "ff 03 616263", "00 01 00" + FIELDS + "09 00"):
            self.assertEqual(unpackGreeting(1, 1, bytes.fromhex(body)), makeGreeting())

    def test_missing(self) -> None:
        """Each field must be there."""
        fields = FIELDS.split("  ")
        for missing in fields:
            body = bytes.fromhex("".join(field for field in fields if field != missing))
            self.assertRaises(FrameError, unpackGreeting, 1, 1, body)

    def test_cutShort(self) -> None:
        """A greeting that ends too early is refused, wherever it ends within its fields."""
        body = bodyOf(makeGreeting())
        for kept in range(len(body)):
            self.assertRaises(FrameError, unpackGreeting, 1, 1, body[:kept])
        full = body + bytes.fromhex(MORE_FIELDS)
        complete = {len(body) + each for each in (0, 34, 37, 44, 78)}
        for kept in range(len(body), len(full)):
            if kept not in complete:
                self.assertRaises(FrameError, unpackGreeting, 1, 1, full[:kept])
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

    def test_secrets(self) -> None:
        """A ticket and a nonce have 32 bytes, or are not there."""
        self.assertEqual((TICKET_BYTES, NONCE_BYTES), (32, 32))
        for number in (4, 7):
            for length in (1, 16, 31, 33, 64, 255):
                field = bytes((number, length)) + bytes(length)
                self.assertRaises(FrameError, unpackGreeting, 1, 1, bodyOf(makeGreeting()) + field)
            self.assertEqual(unpackGreeting(1, 1, bodyOf(makeGreeting()) + bytes((number, 0))), makeGreeting())

    def test_user(self) -> None:
        """A user is named by 1 to 64 bytes of UTF-8 that can be printed, or not at all."""
        for user in ("a", "zoë müller", "日本", "a" * 64, "ü" * 32, "user:with:colons"):
            self.assertEqual(unpackFrame(packHello(makeGreeting()._replace(user=user))).user, user)
        self.assertEqual(unpackGreeting(1, 1, bodyOf(makeGreeting()) + b"\x06\x00").user, "")
        for name in (b"a" * 65, "ü".encode() * 33, b"\0", b"a\nb", b"\x1b[2J", b"\xff", b"a\xc3", "\u202e".encode()):
            field = bytes((6, len(name))) + name
            self.assertRaises(FrameError, unpackGreeting, 1, 1, bodyOf(makeGreeting()) + field)

    def test_errorsSayNoSecret(self) -> None:
        """What is wrong with a ticket or a nonce is said without it: the text may stand in a log."""
        for number in (4, 7):
            field = bytes((number, 16)) + b"s3cret ticket!!!"
            error = self.assertRaises(FrameError, unpackGreeting, 1, 1, bodyOf(makeGreeting()) + field)
            self.assertNotIn("s3cret", str(error))

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


class ProofTests(SynchronousTestCase):
    """CHALLENGE and PROOF."""

    def test_golden(self) -> None:
        """The bytes of a CHALLENGE and a PROOF never change."""
        self.assertEqual(
            packChallenge(NONCE, TICKET).hex(), "06000000" + "0000" + "0000" + "0040" + (NONCE + TICKET).hex()
        )
        self.assertEqual(packProof(TICKET).hex(), "07000000" + "0000" + "0000" + "0020" + TICKET.hex())

    def test_lengths(self) -> None:
        """Both have one length only."""
        self.assertEqual(unpackChallenge(memoryview(NONCE + TICKET)), (NONCE, TICKET))
        self.assertEqual(unpackProof(memoryview(TICKET)), TICKET)
        for length in (0, 1, 31, 33, 63, 65, LARGEST_HELLO):
            self.assertRaises(FrameError, unpackChallenge, bytes(length))
            self.assertRaises(FrameError, unpackProof, bytes(length))

    @thorough
    @given(st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES), st.binary(min_size=PROOF_BYTES, max_size=PROOF_BYTES))
    def test_roundTrip(self, nonce: bytes, proof: bytes) -> None:
        """What one end says is what the other end hears."""
        ((word, _, _, body), (otherWord, _, _, other)), _ = decode(
            memoryview(packChallenge(nonce, proof) + packProof(proof))
        )
        self.assertEqual((word, otherWord), (CHALLENGE, PROOF))
        self.assertEqual(unpackChallenge(body), (nonce, proof))
        self.assertEqual(unpackProof(other), proof)

    def test_firstBytes(self) -> None:
        """They may begin a link where they are expected only, and are held to the same length."""
        checkFirstBytes(packChallenge(NONCE, TICKET), (CHALLENGE, WELCOME, GOAWAY))
        checkFirstBytes(packProof(TICKET), (PROOF,))
        self.assertRaises(FrameError, checkFirstBytes, packChallenge(NONCE, TICKET), (WELCOME, GOAWAY))
        self.assertRaises(FrameError, checkFirstBytes, packProof(TICKET), (HELLO,))
        large = encode(PROOF, body=bytes(LARGEST_HELLO + 1))[:HEADER_BYTES]
        self.assertRaises(FrameError, checkFirstBytes, large, (PROOF,))


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
