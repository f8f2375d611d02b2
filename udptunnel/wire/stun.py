"""
STUN (RFC 8489), as much of it as tells under which address a UDP port is seen.

And as much of RFC 5780 as tells what the NAT in front of it does: a server
with two addresses says the other one, and answers from there if it is asked
to.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from udptunnel.wire.address import Address, normalHost

COOKIE = 0x2112A442
"""What tells STUN from everything else."""

TRANSACTION_BYTES = 12

REQUEST, RESPONSE = 0x0001, 0x0101
"""The kinds of messages that there are here, both of the method Binding."""

MAPPED, CHANGE, XOR_MAPPED, OTHER = 0x0001, 0x0003, 0x0020, 0x802C
"""Attributes: MAPPED-ADDRESS, CHANGE-REQUEST, XOR-MAPPED-ADDRESS, OTHER-ADDRESS."""

CHANGE_PORT, CHANGE_BOTH = 2, 6
"""From where an answer is wanted: from the other port, or from the other host and port."""

_HEADER = Struct("!HHI12s")
_ATTRIBUTE = Struct("!HH")
_HOST_BYTES = {1: 4, 2: 16}


class StunAnswer(NamedTuple):
    """What a STUN server says."""

    mapped: Address
    """Where the request came from, as the server sees it."""

    other: Address | None
    """The other host and port of the server, if it has them."""


def packRequest(transaction: bytes, change: int = 0) -> bytes:
    """
    A question for our address.

    @param change: L{CHANGE_PORT} or L{CHANGE_BOTH}, if the answer is not to come from where the question went.
    """
    body = _ATTRIBUTE.pack(CHANGE, 4) + change.to_bytes(4, "big") if change else b""
    return _HEADER.pack(REQUEST, len(body), COOKIE, transaction) + body


def unpackAnswer(data: bytes, transaction: bytes) -> StunAnswer | None:
    """The answer to the question of a transaction; C{None} if these bytes are something else."""
    if len(data) < _HEADER.size or _HEADER.unpack_from(data) != (
        RESPONSE,
        len(data) - _HEADER.size,
        COOKIE,
        transaction,
    ):
        return None
    attributes = dict(_attributes(data))
    mapped = _address(_unmask(attributes.get(XOR_MAPPED, b""), data)) or _address(attributes.get(MAPPED, b""))
    return None if mapped is None else StunAnswer(mapped, _address(attributes.get(OTHER, b"")))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = _HEADER.size
    while place + _ATTRIBUTE.size <= len(data):
        kind, length = _ATTRIBUTE.unpack_from(data, place)
        place += _ATTRIBUTE.size
        yield kind, data[place : place + length]
        # Each begins at a multiple of four.
        place += length + -length % 4


def _unmask(value: bytes, data: bytes) -> bytes:
    """An XOR-MAPPED-ADDRESS as a MAPPED-ADDRESS: the port and the host are masked with what stands in the header."""
    mask = bytes(2) + data[4:6] + data[4 : _HEADER.size]
    return bytes(each ^ over for each, over in zip(value, mask, strict=False))


def _address(value: bytes) -> Address | None:
    """A MAPPED-ADDRESS: C{0(1) family(1) port(2) host(4 or 16)}."""
    if len(value) < 4 or len(value) - 4 != _HOST_BYTES.get(value[1]):
        return None
    host = IPv4Address(value[4:]) if value[1] == 1 else IPv6Address(value[4:])
    return Address(normalHost(str(host)), int.from_bytes(value[2:4], "big"))
