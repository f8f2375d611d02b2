"""
Bursts: one or more datagrams of one flow, laid end to end.

All datagrams of a burst are C{size} bytes long but the last, which may be
shorter. A lone datagram is a burst of one. This is what the kernel hands over
with UDP_GRO and takes with UDP_SEGMENT (linux/udp.h), and what a DATA frame
carries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer

LARGEST_DATAGRAM = 65507
"""The payload of the largest UDP datagram over IPv4 (RFC 768 and 791); IPv6 would carry 20 bytes more."""

LARGEST_BURST = 65535
"""A burst fits the body of one frame."""


class Burst(NamedTuple):
    """What arrived at a port."""

    source: Address
    """Where it came from."""

    size: int
    """Length of each datagram but the last, in bytes."""

    payload: Buffer
    """The datagrams. Valid only until the receiver returns, unless it is C{bytes}."""


class AimedBurst(NamedTuple):
    """What came through a TUN, and where it goes to."""

    source: Address
    """Whose it is."""

    target: Address
    """Where it goes to."""

    size: int
    """Length of each datagram but the last, in bytes."""

    payload: Buffer
    """The datagrams. Valid only until the receiver returns, unless it is C{bytes}."""


AnyBurst = TypeVar("AnyBurst", Burst, AimedBurst)


def count(size: int, payload: Buffer) -> int:
    """How many datagrams a burst holds."""
    return -(-len(payload) // size) if len(payload) > size else 1


def split(size: int, payload: Buffer) -> Iterator[Buffer]:
    """The datagrams of a burst, one by one."""
    if len(payload) <= size:
        yield payload
        return
    for start in range(0, len(payload), size):
        yield payload[start : start + size]


def pieces(size: int, payload: Buffer, most: int) -> Sequence[Buffer]:
    """A burst cut into bursts of at most C{most} bytes, never inside a datagram."""
    if len(payload) <= most:
        return (payload,)
    step = max(1, most // size) * size
    return [payload[start : start + step] for start in range(0, len(payload), step)]


def join(bursts: Iterable[AnyBurst]) -> list[AnyBurst]:
    """
    Make one burst of neighbours that have the same source, target and datagram size.

    The order stays, and so do the datagrams. A datagram that is shorter than
    the others ends its burst.
    """
    joined: list[AnyBurst] = []
    run: list[AnyBurst] = []
    length = 0
    for burst in bursts:
        if not (run and _follows(run[-1], run[0], length, burst)):
            joined += _merged(run)
            run, length = [], 0
        run.append(burst)
        length += len(burst.payload)
    return joined + _merged(run)


def _follows(last: AnyBurst, first: AnyBurst, length: int, burst: AnyBurst) -> bool:
    """Whether a burst may be laid behind C{last}, in a run of C{length} bytes that C{first} began."""
    size, payload = first.size, burst.payload
    return (
        burst[:-2] == first[:-2]
        and size > 0
        and length > 0
        and len(payload) > 0
        and len(last.payload) % size == 0
        and (burst.size == size or len(payload) == burst.size < size)
        and length + len(payload) <= LARGEST_BURST
    )


def _merged(run: list[AnyBurst]) -> list[AnyBurst]:
    if len(run) < 2:
        return run
    return [run[0]._replace(payload=b"".join(burst.payload for burst in run))]
