"""
HELLO and WELCOME: what the two ends of a link tell each other first.

Both are frames (L{udptunnel.wire.frame}) whose first four bytes are letters,
C{udpt} and C{UDPT}. In a HELLO the target field is the highest version of the
format that udp-local speaks and the size field the lowest; in a WELCOME the
target field is the version chosen. The body is a list of fields, C{number(1)
length(1) value(length)}, in any order; unknown numbers are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from udptunnel.errors import FrameError
from udptunnel.wire.frame import HEADER_BYTES, HELLO, WELCOME, Buffer, encode

VERSION = 1
"""The version of the format that is written here."""

SESSION_BYTES = 16

LARGEST_HELLO = 512 - HEADER_BYTES
"""A stranger makes us keep no more than 512 bytes before we know it."""

_SESSION, _ASSOCIATIONS, _TARGETS = 1, 2, 3
_COUNT = Struct("!I")


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


def packHello(greeting: Greeting) -> bytes:
    """The frame with which udp-local opens a link."""
    return encode(HELLO, greeting.version, greeting.lowest, _packFields(greeting))


def packWelcome(greeting: Greeting) -> bytes:
    """The frame with which udp-server accepts a link."""
    return encode(WELCOME, greeting.version, 0, _packFields(greeting))


def _packFields(greeting: Greeting) -> bytes:
    return b"".join(
        bytes((number, len(value))) + value
        for number, value in (
            (_SESSION, greeting.session),
            (_ASSOCIATIONS, _COUNT.pack(greeting.associations)),
            (_TARGETS, _COUNT.pack(greeting.targets)),
        )
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
    return Greeting(session, associations, targets, target, size)


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
