"""One session of an l3-tunnel: two keys, and how packets are sealed and opened under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from udptunnel.core.l3keys import Keys
from udptunnel.core.l3replay import ReplayWindow
from udptunnel.wire.l3 import COUNTER_AT, DATA_BYTES, DATA_HEADER, NONCE_AT


class Opened(NamedTuple):
    """What came of some messages."""

    packets: list[bytes]
    place: int
    """Where the next message begins."""

    altered: int
    """How many were not sealed by the other end, or not like that."""

    replayed: int
    """How many were seen before, or are too old to know."""

    newest: bool
    """Whether one of them is newer than all before."""


class L3Session:
    """
    What was agreed in one handshake.

    @ivar index: its number at this end.
    @ivar remote: its number at the other end.
    @ivar began: whether this end has begun the handshake, and so is to begin the next one.
    @ivar since: when it was made.
    @ivar sent: messages that were sealed, which is the next counter.
    @ivar window: the counters that were received.
    """

    __slots__ = ("_open", "_seal", "began", "index", "remote", "sent", "since", "window")

    def __init__(self, index: int, remote: int, keys: Keys, began: bool, now: float) -> None:
        self.index = index
        self.remote = remote
        self.began = began
        self.since = now
        self.sent = 0
        self.window = ReplayWindow()
        self._open = AESGCM(keys.receive).decrypt
        self._seal = AESGCM(keys.send).encrypt

    def seal(self, word: int, packets: Sequence[bytes]) -> bytes:
        """
        Packets as messages, laid end to end.

        @param word: DATA or OPEN.
        @param packets: all of one length, but the last, which may be shorter.
        """
        pack, encrypt, remote = DATA_HEADER.pack, self._seal, self.remote
        parts: list[bytes] = []
        for counter, packet in enumerate(packets, self.sent):
            header = pack(word, remote, counter)
            parts += (header, encrypt(header[NONCE_AT:], packet, header))
        self.sent += len(packets)
        return b"".join(parts)

    def openAll(self, data: bytes, place: int, size: int) -> Opened:
        """
        Open the messages of a burst as long as they are of this session and of one kind.

        @param place: where the first one begins, which must be of this session.
        @param size: of each but the last.
        """
        beginning, end = data[place : place + COUNTER_AT], len(data)
        decrypt, packets, counters, altered = self._open, list[bytes](), list[int](), 0
        while place < end and data.startswith(beginning, place):
            header = data[place : place + DATA_BYTES]
            try:
                packets.append(decrypt(header[NONCE_AT:], data[place + DATA_BYTES : place + size], header))
                counters.append(int.from_bytes(header[COUNTER_AT:], "big"))
            except (InvalidTag, ValueError):
                # Too short for a seal is a ValueError, or not, by the version of the library.
                altered += 1
            place += size
        before = self.window.top
        fresh = self.window.acceptAll(counters)
        if fresh is not None:
            packets = [packet for packet, isFresh in zip(packets, fresh, strict=True) if isFresh]
        return Opened(packets, place, altered, len(counters) - len(packets), self.window.top > before)
