"""One session of an l3-tunnel: two keys, and how packets are sealed and opened under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from udptunnel.core.l3keys import Keys
from udptunnel.core.l3replay import ReplayWindow
from udptunnel.wire.l3 import DATA_BYTES, DATA_HEADER, NONCE, OVERHEAD

SealInto = Callable[[bytes, bytes, bytes, memoryview], object]
"""Seals under a nonce what is given, with a header, into a buffer."""


class L3Session:
    """
    What was agreed in one handshake.

    @ivar index: its number at this end.
    @ivar remote: its number at the other end.
    @ivar began: whether this end has begun the handshake, and so is to begin the next one.
    @ivar since: when it was made.
    @ivar sent: messages that were sealed, which is the next counter.
    @ivar window: the counters that were received.
    @ivar open: opens a sealed packet under its nonce and header, or raises C{InvalidTag}.
    """

    __slots__ = ("_sealInto", "began", "index", "open", "remote", "sent", "since", "window")

    def __init__(self, index: int, remote: int, keys: Keys, began: bool, now: float) -> None:
        self.index = index
        self.remote = remote
        self.began = began
        self.since = now
        self.sent = 0
        self.window = ReplayWindow()
        self.open: Callable[[bytes, bytes, bytes], bytes] = AESGCM(keys.receive).decrypt
        self._sealInto = _intoBuffer(AESGCM(keys.send))

    def seal(self, word: int, packets: Sequence[bytes]) -> bytearray:
        """
        Packets as messages, laid end to end.

        @param word: DATA or OPEN.
        @param packets: all of one length, but the last, which may be shorter.
        """
        step = len(packets[0]) + OVERHEAD
        sealed = bytearray(step * (len(packets) - 1) + len(packets[-1]) + OVERHEAD)
        view, place, counter, remote = memoryview(sealed), 0, self.sent, self.remote
        pack, sealInto = DATA_HEADER.pack, self._sealInto
        for packet in packets:
            header = pack(word, remote, counter)
            sealed[place : place + DATA_BYTES] = header
            sealInto(header[NONCE], packet, header, view[place + DATA_BYTES : place + OVERHEAD + len(packet)])
            counter += 1
            place += step
        self.sent = counter
        return sealed


def _intoBuffer(cipher: Any) -> SealInto:
    """What seals without making an object of the outcome: that takes half the time (cryptography 47)."""
    if hasattr(cipher, "encrypt_into"):
        return cipher.encrypt_into  # type: ignore[no-any-return]

    def sealInto(nonce: bytes, packet: bytes, header: bytes, into: memoryview) -> None:
        into[:] = cipher.encrypt(nonce, packet, header)

    return sealInto
