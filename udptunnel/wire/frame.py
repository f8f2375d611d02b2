"""
The native format of a link: ten bytes of header, then a body.

Every frame, in both directions, starts with the same header, all fields
unsigned and in network byte order::

     0       1       2       3       4       5       6       7       8       9
    +-------+-----------------------+---------------+---------------+---------------+
    | kind  |      association      |    target     |     size      |    length     |
    +-------+-----------------------+---------------+---------------+---------------+

C{length} bytes of body follow. What the fields mean depends on the kind; a
field that a kind does not use is sent as 0 and ignored. The whole format,
with golden bytes, is described in docs/topics/protocol.md.
"""

from __future__ import annotations

from struct import Struct
from typing import TypeAlias

from udptunnel.errors import FrameError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are read, never changed."""

Frame: TypeAlias = tuple[int, int, int, memoryview]
"""One decoded frame: its word (kind and association in one), target, size and body."""

HEADER = Struct("!IHHH")
HEADER_BYTES = HEADER.size
LARGEST_BODY = 0xFFFF

ASSOCIATIONS = 1 << 24
"""How many association numbers there are; the word of a DATA frame is below it."""

# The first field of a header as one 32-bit word. DATA is kind 0, so that on
# the data path the word *is* the association's number.
DATA = 0x00 << 24
TARGET = 0x01 << 24
CLOSE = 0x02 << 24
PING = 0x03 << 24
PONG = 0x04 << 24
GOAWAY = 0x05 << 24
CHALLENGE = 0x06 << 24
PROOF = 0x07 << 24
HELLO = int.from_bytes(b"udpt", "big")
WELCOME = int.from_bytes(b"UDPT", "big")

KIND = 0xFF << 24
OPTIONAL = 0x80 << 24
"""Kinds from here on may be skipped by an end that does not know them."""

_PING = Struct("!Q")
_PONG = Struct("!QQ")


def decode(buffer: memoryview) -> tuple[list[Frame], int]:
    """
    Find the whole frames at the start of a buffer.

    The bodies are views into the buffer, not copies.

    @return: the frames, and how many bytes they take; what follows is the
        beginning of a frame that has not arrived completely.
    """
    frames: list[Frame] = []
    append, unpack = frames.append, HEADER.unpack_from
    start, end = 0, len(buffer)
    while end - start >= HEADER_BYTES:
        word, target, size, length = unpack(buffer, start)
        stop = start + HEADER_BYTES + length
        if stop > end:
            break
        append((word, target, size, buffer[start + HEADER_BYTES : stop]))
        start = stop
    return frames, start


def encode(word: int, target: int = 0, size: int = 0, body: Buffer = b"") -> bytes:
    """
    Make one whole frame of any kind.

    @raise FrameError: the body is longer than 65,535 bytes.
    """
    if len(body) > LARGEST_BODY:
        raise FrameError(f"a frame's body holds {LARGEST_BODY} bytes, not {len(body)}")
    return HEADER.pack(word, target, size, len(body)) + body


def ping(moment: int) -> bytes:
    """A PING; C{moment} (0 to 2**64 - 1) means something to its sender only."""
    return encode(PING, body=_PING.pack(moment))


def pong(moment: int, received: int) -> bytes:
    """
    The answer to a PING.

    @param received: how many bytes of this link, the PING included, have
        arrived at the end that answers.
    """
    return encode(PONG, body=_PONG.pack(moment, received))


def unpackPing(body: Buffer) -> int:
    """
    The moment in a PING's body.

    @raise FrameError: the body is too short.
    """
    if len(body) < _PING.size:
        raise FrameError(f"a PING holds {_PING.size} bytes, not {len(body)}")
    return int(_PING.unpack_from(body)[0])


def unpackPong(body: Buffer) -> tuple[int, int]:
    """
    The moment and the count of received bytes in a PONG's body.

    @raise FrameError: the body is too short.
    """
    if len(body) < _PONG.size:
        raise FrameError(f"a PONG holds {_PONG.size} bytes, not {len(body)}")
    moment, received = _PONG.unpack_from(body)
    return moment, received
