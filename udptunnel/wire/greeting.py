"""
HELLO and WELCOME: what the two ends of a link tell each other first.

Both are frames (L{udptunnel.wire.frame}) whose first four bytes are letters,
C{udpt} and C{UDPT}. In a HELLO the target field is the highest version of the
format that udp-local speaks and the size field the lowest; in a WELCOME the
target field is the version chosen. The body is a list of fields, C{number(1)
length(1) value(length)}, in any order; unknown numbers are skipped.

Where users prove a secret, two frames stand between them: CHALLENGE with a
nonce and the proof of udp-server, and PROOF with that of udp-local.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from udptunnel.errors import FrameError
from udptunnel.wire.frame import CHALLENGE, HEADER_BYTES, HELLO, PROOF, WELCOME, Buffer, encode

VERSION = 1
"""The version of the format that is written here."""

SESSION_BYTES = 16

LARGEST_HELLO = 512 - HEADER_BYTES
"""A stranger makes us keep no more than 512 bytes before we know it."""

TICKET_BYTES = NONCE_BYTES = PROOF_BYTES = 32

LARGEST_USER = 64
"""Bytes of a user's name."""

_SESSION, _ASSOCIATIONS, _TARGETS, _TICKET, _FLAGS, _USER, _NONCE = range(1, 8)
_COUNT = Struct("!I")

_ALONE, _IDLE, _RESUMED = 1, 2, 4


class Greeting(NamedTuple):
    """What one end says of itself and of the session."""

    session: bytes
    """The session that this link belongs to: 16 bytes, random, chosen by udp-local."""

    associations: int
    """How many associations of this session the sender of the greeting holds at once."""

    targets: int
    """How many target numbers, from 0, the sender of the greeting remembers on this link: 1 to 65,536."""

    version: int = VERSION
    """The highest version spoken (HELLO) or the one chosen (WELCOME)."""

    lowest: int = VERSION
    """The lowest version spoken (HELLO only)."""

    ticket: bytes = b""
    """In a HELLO, what shows that its sender knows the session; in a WELCOME, what to show next time: 32 bytes."""

    alone: bool = False
    """The session has no other link that udp-local knows of (HELLO only)."""

    idle: bool = False
    """Bursts are to go by the link that was silent longest (HELLO only)."""

    resumed: bool = False
    """The session goes on with the associations that it had (WELCOME only)."""

    user: str = ""
    """Who opens the link, where users prove a secret (HELLO only)."""

    nonce: bytes = b""
    """32 random bytes that udp-server's proof is about, where users prove a secret (HELLO only)."""

    def __repr__(self) -> str:
        return f"<Greeting of {self.session.hex()[:8]}>"  # A ticket opens a session.


def packHello(greeting: Greeting) -> bytes:
    """The frame with which udp-local opens a link."""
    return encode(HELLO, greeting.version, greeting.lowest, _packFields(greeting))


def packWelcome(greeting: Greeting) -> bytes:
    """The frame with which udp-server accepts a link."""
    return encode(WELCOME, greeting.version, 0, _packFields(greeting))


def _packFields(greeting: Greeting) -> bytes:
    flags = _ALONE * greeting.alone | _IDLE * greeting.idle | _RESUMED * greeting.resumed
    return b"".join(
        bytes((number, len(value))) + value
        for number, value in (
            (_SESSION, greeting.session),
            (_ASSOCIATIONS, _COUNT.pack(greeting.associations)),
            (_TARGETS, _COUNT.pack(greeting.targets)),
            (_TICKET, greeting.ticket),
            (_FLAGS, bytes((flags,)) if flags else b""),
            (_USER, greeting.user.encode()),
            (_NONCE, greeting.nonce),
        )
        if value
    )


def unpackGreeting(target: int, size: int, body: Buffer) -> Greeting:
    """
    What a HELLO's or a WELCOME's header fields and body say.

    @raise FrameError: a field is missing, cut short or out of range.
    """
    fields = dict(_splitFields(bytes(body)))
    session = fields.get(_SESSION, b"")
    if len(session) != SESSION_BYTES:
        raise FrameError(f"a session is named by {SESSION_BYTES} bytes, not {len(session)}")
    associations, targets = _count(fields, _ASSOCIATIONS), _count(fields, _TARGETS)
    if not 1 <= targets <= 1 << 16:
        raise FrameError(f"a link has 1 to 65536 target numbers, not {targets}")
    flags = fields.get(_FLAGS, b"\0")[:1] or b"\0"
    return Greeting(
        session,
        associations,
        targets,
        target,
        size,
        _secret(fields, _TICKET, TICKET_BYTES),
        bool(flags[0] & _ALONE),
        bool(flags[0] & _IDLE),
        bool(flags[0] & _RESUMED),
        _user(fields.get(_USER, b"")),
        _secret(fields, _NONCE, NONCE_BYTES),
    )


def _splitFields(body: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(body):
        value = body[start + 2 : start + 2 + body[start + 1]] if start + 1 < len(body) else b""
        if start + 2 > len(body) or len(value) != body[start + 1]:
            raise FrameError("a greeting ends inside a field")
        yield body[start], value
        start += 2 + len(value)


def _count(fields: dict[int, bytes], number: int) -> int:
    value = fields.get(number, b"")
    if len(value) != _COUNT.size:
        raise FrameError(f"field {number} of a greeting holds {_COUNT.size} bytes, not {len(value)}")
    return int(_COUNT.unpack(value)[0])


def _secret(fields: dict[int, bytes], number: int, length: int) -> bytes:
    value = fields.get(number, b"")
    if value and len(value) != length:
        raise FrameError(f"field {number} of a greeting holds {length} bytes, not {len(value)}")
    return value


def _user(value: bytes) -> str:
    try:
        user = value.decode()
    except UnicodeDecodeError:
        user = "\0"
    if len(value) > LARGEST_USER or (user and not user.isprintable()):
        raise FrameError(f"a user is named by 1 to {LARGEST_USER} bytes of printable UTF-8")
    return user


def packChallenge(nonce: bytes, proof: bytes) -> bytes:
    """
    The frame with which udp-server asks who is there.

    @param nonce: 32 random bytes that the answer is about.
    @param proof: 32 bytes which show that udp-server knows the secret, too.
    """
    return encode(CHALLENGE, body=nonce + proof)


def unpackChallenge(body: Buffer) -> tuple[bytes, bytes]:
    """
    The nonce and the proof in a CHALLENGE.

    @raise FrameError: the body has another length.
    """
    if len(body) != NONCE_BYTES + PROOF_BYTES:
        raise FrameError(f"a CHALLENGE holds {NONCE_BYTES + PROOF_BYTES} bytes, not {len(body)}")
    return bytes(body[:NONCE_BYTES]), bytes(body[NONCE_BYTES:])


def packProof(proof: bytes) -> bytes:
    """The frame with which udp-local answers a CHALLENGE."""
    return encode(PROOF, body=proof)


def unpackProof(body: Buffer) -> bytes:
    """
    The 32 bytes in a PROOF.

    @raise FrameError: the body has another length.
    """
    if len(body) != PROOF_BYTES:
        raise FrameError(f"a PROOF holds {PROOF_BYTES} bytes, not {len(body)}")
    return bytes(body)


def checkFirstBytes(data: Buffer, words: tuple[int, ...]) -> None:
    """
    Look at the first bytes of a link, even before its first frame is complete.

    So a stranger is known after four bytes, and fills no more than 512 bytes
    of memory.

    @param words: the frames that may come first.
    @raise FrameError: this is none of them.
    """
    begin = bytes(data[:HEADER_BYTES])
    if not any(word.to_bytes(4, "big").startswith(begin[:4]) for word in words):
        raise FrameError(f"a link does not begin with {begin[:4]!r}")
    if len(begin) == HEADER_BYTES and int.from_bytes(begin[-2:], "big") > LARGEST_HELLO:
        raise FrameError(f"the first frame holds at most {LARGEST_HELLO} bytes")


def commonVersion(greeting: Greeting) -> int | None:
    """The highest version that a HELLO's sender and we both speak, or C{None}."""
    return VERSION if greeting.lowest <= VERSION <= greeting.version else None
