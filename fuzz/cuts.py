"""Ways in which a stream may arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import TypeVar
from zlib import crc32

Outcome = TypeVar("Outcome")

BYTEWISE = 200
"""Inputs up to this length are also fed byte by byte; longer ones would take too long."""


def chunkings(data: bytes) -> Iterator[list[bytes]]:
    """
    Some ways to cut a stream in pieces, some of them maybe empty.

    They follow from the stream, so that a finding can be repeated, and change
    with each of its bytes, so that every cut is met sooner or later.
    """
    if len(data) <= BYTEWISE:
        yield [data[place : place + 1] for place in range(len(data))]
    random = Random(crc32(data))
    for cuts in (1, 5):
        yield cutAt(data, [random.randint(0, len(data)) for _ in range(cuts)])


def cutAt(data: bytes, places: list[int]) -> list[bytes]:
    """A stream cut at some places."""
    return [data[begin:end] for begin, end in pairwise([0, *sorted(places), len(data)])]


def sameInPieces(run: Callable[[list[bytes]], Outcome], data: bytes) -> Outcome:
    """What becomes of a stream, which must not depend on how it is cut."""
    whole = run([data])
    for pieces in chunkings(data):
        cut = run(pieces)
        assert cut == whole, f"{cut!r}, but {whole!r} if it comes at once"
    return whole
