"""What datagrams tell on their arrival, and whether it is as it must be."""

from __future__ import annotations

import struct
import time
import zlib
from collections import Counter, deque
from typing import NamedTuple

from tests.soak.holds import Holds
from tests.soak.report import Report

QUESTION, ANSWER = 0, 1
FILLING = bytes(range(256)) * 64
SILENT_SECONDS = 9.0
"""An association that is used for brief ports only, and for so long not at all, may have ended."""

_HEAD = struct.Struct("!BBBxQddII")
LEAST = _HEAD.size


class Note(NamedTuple):
    """What a datagram says of itself."""

    kind: int
    source: int
    target: int
    number: int
    sentAt: float
    askedAt: float


def pack(note: Note, size: int) -> bytes:
    """A datagram of a size; a checksum covers all of it, and the size is in it."""
    size = max(size, LEAST)
    head = _HEAD.pack(*note, size, 0)
    filling = FILLING[note.number & 0xFF :][: size - LEAST]
    return head[:-4] + zlib.crc32(filling, zlib.crc32(head)).to_bytes(4, "big") + filling


def unpack(datagram: bytes) -> Note | None:
    """What a datagram says; C{None} if it is not as it was sent."""
    if len(datagram) < LEAST:
        return None
    *fields, size, check = _HEAD.unpack_from(datagram)
    clean = datagram[: LEAST - 4] + bytes(4)
    whole = size == len(datagram) and check == zlib.crc32(datagram[LEAST:], zlib.crc32(clean))
    return Note(*fields) if whole else None


class Seen:
    """Numbers that have been there; one byte for each."""

    def __init__(self) -> None:
        self._marks = bytearray()
        self.count = 0

    def add(self, number: int) -> bool:
        """Whether a number is new."""
        if number >= len(self._marks):
            self._marks.extend(bytes(number + 1024 - len(self._marks)))
        new = not self._marks[number]
        self._marks[number] = 1
        self.count += new
        return new


class Judge:
    """
    Looks at each arrival.

    @ivar generation: counts the starts and ends of either role. It is odd while one of them is away: a session of
        before can not be resumed then.
    @ivar faults: the last ones that have begun.
    @ivar lastAsked: by flow, when the newest question was sent that has its answer.
    @ivar counts: what has happened how often.
    """

    def __init__(self, report: Report, holds: Holds) -> None:
        self.report = report
        self.holds = holds
        self.generation = 0
        self.faults: deque[str] = deque(maxlen=4)
        self.lastAsked: dict[tuple[int, int], float] = {}
        self.counts: Counter[str] = Counter()
        self.oldest = 0.0
        self._seen: dict[tuple[int, int, int], Seen] = {}
        self._ports: dict[int, tuple[int, int, float]] = {}
        self._sentIn: dict[tuple[int, int, int], int] = {}

    def violate(self, text: str) -> None:
        """Something is not as it must be; what was done before is told."""
        self.report.violate(f"{text}; faults before: {', '.join(self.faults) or 'none'}")

    # -- arrivals

    def arrived(self, datagram: bytes, kind: int, place: int, at: float) -> Note | None:
        """
        A datagram has come.

        @param kind: what it must be: a question at a target, an answer at a source.
        @param place: the number of that target or source.
        @return: what it says, if it is the first of its kind and for this place.
        """
        note = unpack(datagram)
        if note is None:
            self.violate(f"altered: {len(datagram)} bytes {datagram[:LEAST].hex()}")
        elif note.kind != kind or place != (note.target if kind == QUESTION else note.source):
            self.violate(f"wrong flow: {note} came to {'target' if kind == QUESTION else 'source'} {place}")
        elif not self._seen.setdefault((kind, note.source, note.target), Seen()).add(note.number):
            self.violate(f"twice: {note}")
        else:
            self._judgeAge(note, at)
            return note
        return None

    def _judgeAge(self, note: Note, at: float) -> None:
        age = at - note.sentAt
        self.oldest = max(self.oldest, age)
        if not self.holds.explain(note.sentAt, at):
            self.violate(f"{age:.3f} s old: {note}")
        elif age > 1:
            self.counts["late because held up"] += 1

    def answered(self, note: Note) -> None:
        """A source has its answer."""
        flow = note.source, note.target
        self.lastAsked[flow] = max(self.lastAsked.get(flow, 0.0), note.askedAt)

    # -- external ports

    def asks(self, note: Note) -> None:
        """A source sends a question: remember in which generation."""
        self._sentIn[note[1:4]] = self.generation

    def comesFrom(self, note: Note, port: int, brief: bool) -> None:
        """
        A question has come from an external port: while the session can be resumed, each source keeps its own.

        @param brief: whether the source uses brief ports only.
        """
        sentIn = self._sentIn.pop(note[1:4], -1)
        generation, now = self.generation, time.monotonic()
        if sentIn != generation or generation % 2:
            return
        before, kept, last = self._ports.get(note.source, (-1, 0, now))
        self._ports[note.source] = generation, port, now
        if before == generation and kept != port and not (brief and now - last > SILENT_SECONDS):
            self.violate(f"source {note.source} had the external port {kept}, and has {port} now")

    # -- figures

    def total(self, kind: int) -> int:
        """How many datagrams of a kind have arrived."""
        return sum(seen.count for (each, _, _), seen in list(self._seen.items()) if each == kind)

    def unanswered(self, since: float) -> list[tuple[int, int]]:
        """The flows of which no question that was sent since then has been answered."""
        return [flow for flow, asked in list(self.lastAsked.items()) if asked < since]
