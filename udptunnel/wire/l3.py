"""
Messages between the two ends of an l3-tunnel: each one is a UDP payload.

Two of them make keys, and are what Noise's pattern NNpsk0 sends (revision 34,
section 7.5), behind headers of ours; the others carry packets under these keys::

    INITIATION  kind(1)=1 version(1) 0(2) | sender(4) | ephemeral(32) | sealed stamp(12+16)
    RESPONSE    kind(1)=2 version(1) 0(2) | sender(4) | receiver(4) | ephemeral(32) | sealed nothing(16)
    DATA        kind(1)=3 0(3) | receiver(4) | counter(8) | sealed packet(0...+16)
    OPEN        kind(1)=4, the same

All is in network byte order. C{sender} is the number under which who sends the
message knows the session that is being made; C{receiver} is that of the other
end. The header of DATA and OPEN, 16 bytes, is authenticated with the packet, and
its last twelve bytes are the nonce: no counter is used twice under one key.

DATA carries a whole IP packet. OPEN does too, but the checksum of its TCP or UDP
is still a partial one, see L{udptunnel.wire.checksum}: the seal guards the bytes
meanwhile. A DATA of nothing says that its sender is there; one of a single zero,
which is no packet, asks for that word.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from udptunnel.errors import PacketError
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import LARGEST_LENGTH

VERSION = 1

INITIATION, RESPONSE, DATA, OPEN = (kind << 24 for kind in range(1, 5))
"""The first four bytes of each kind, the version left out."""

KEY_BYTES, STAMP_BYTES, TAG_BYTES = 32, 12, 16
"""Of an X25519 key, of a moment, and of what AES-GCM appends (RFC 5116 section 5.1)."""

DATA_HEADER = Struct("!IIQ")
"""First word, receiver, counter."""

DATA_BYTES = DATA_HEADER.size
NONCE_AT, COUNTER_AT = 4, 8
"""Where in that header the nonce begins, and the counter; both go to its end."""

OVERHEAD = DATA_BYTES + TAG_BYTES
"""Bytes that a packet grows by, headers of UDP and IP not included."""

OUTER_BYTES = {4: 20 + 8, 6: 40 + 8}
"""Headers of IP and UDP around a message, by the version of IP."""

ASK = b"\0"
"""What a DATA carries that asks whether the other end is there."""

_VERSION_AT = 16
_INITIATION = Struct(f"!II{KEY_BYTES}s{STAMP_BYTES + TAG_BYTES}s")
_RESPONSE = Struct(f"!III{KEY_BYTES}s{TAG_BYTES}s")
INITIATION_BYTES, RESPONSE_BYTES = _INITIATION.size, _RESPONSE.size

HEADER_BYTES = {INITIATION: 8, RESPONSE: 12}
"""How much of a message stands before the ephemeral key."""


class Initiation(NamedTuple):
    """The first message of a handshake."""

    sender: int
    ephemeral: bytes
    sealed: bytes
    """The moment at which it was made, sealed."""

    @property
    def header(self) -> bytes:
        """What stands before the ephemeral key."""
        return packInitiation(self)[: HEADER_BYTES[INITIATION]]


class Response(NamedTuple):
    """The answer to it."""

    sender: int
    receiver: int
    ephemeral: bytes
    sealed: bytes
    """Nothing, sealed: it shows that the key is known."""

    @property
    def header(self) -> bytes:
        """What stands before the ephemeral key."""
        return packResponse(self)[: HEADER_BYTES[RESPONSE]]


def packInitiation(message: Initiation) -> bytes:
    """An INITIATION as it is sent."""
    return _INITIATION.pack(INITIATION | VERSION << _VERSION_AT, *message)


def packResponse(message: Response) -> bytes:
    """A RESPONSE as it is sent."""
    return _RESPONSE.pack(RESPONSE | VERSION << _VERSION_AT, *message)


def unpackInitiation(datagram: Buffer) -> Initiation:
    """
    Read an INITIATION.

    @raise PacketError: it is none, or not one of this version.
    """
    return Initiation._make(_fields(datagram, _INITIATION, INITIATION))


def unpackResponse(datagram: Buffer) -> Response:
    """
    Read a RESPONSE.

    @raise PacketError: it is none, or not one of this version.
    """
    return Response._make(_fields(datagram, _RESPONSE, RESPONSE))


def _fields(datagram: Buffer, layout: Struct, kind: int) -> tuple[int | bytes, ...]:
    if len(datagram) != layout.size:
        raise PacketError(f"a handshake message of {len(datagram)} bytes, not {layout.size}")
    word, *fields = layout.unpack(datagram)
    if word != kind | VERSION << _VERSION_AT:
        raise PacketError(f"a handshake message that begins with {word:08x}")
    return tuple(fields)


def innerMtu(outer: int, version: int) -> int:
    """
    The longest packet that fits a message.

    @param outer: the MTU of the path between the ends.
    @param version: of IP on that path, 4 or 6.
    """
    # A loopback interface lets 65,536 bytes through, of which neither IPv4 nor UDP can tell.
    return min(outer, LARGEST_LENGTH) - OUTER_BYTES[version] - OVERHEAD
