"""
An l3-tunnel's way: everything between a captured packet and a message to the other end, and back.

This module moves no bytes: it takes what has come, and says what is to be sent and injected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from udptunnel.core.counters import Counters
from udptunnel.core.l3inward import Inward
from udptunnel.core.l3join import Headed
from udptunnel.core.l3keys import Random
from udptunnel.core.l3outward import Batch, Outward
from udptunnel.core.l3peer import Peer
from udptunnel.core.l3policy import Policy, Prefixes
from udptunnel.core.l3session import L3Session, Opened
from udptunnel.errors import PacketError
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_DATAGRAM, Burst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import packHost, parse
from udptunnel.wire.l3 import (
    ASK,
    DATA,
    DATA_HEADER,
    INITIATION,
    OPEN,
    OVERHEAD,
    RESPONSE,
)
from udptunnel.wire.transport import tooBig

WAITING_BATCHES = 64
"""How much waits for a session: the kernel's super-packets, or single packets..."""

WAITING_SECONDS = 5.0
"""...and for how long."""

MOST_IN_BURST = 64
"""Messages that are laid end to end; UDP_SEGMENT takes no more (linux/udp.h)."""

_KIND = 0xFF << 24
_NOTHING = 0, -1, 0
_SEALED = frozenset((DATA, OPEN))


class Message(NamedTuple):
    """What is to be sent: one or more datagrams, laid end to end. It may be cut without copying."""

    to: Address
    size: int
    payload: Buffer


class Way:
    """
    One end of an l3-tunnel.

    @ivar policy: what may pass.
    @ivar counters: what was dropped, and why.
    """

    def __init__(
        self,
        key: bytes,
        peer: Address | None,
        prefixes: Iterable[str],
        random: Random,
        moment: Callable[[], int],
        *,
        mtu: int = 1420,
        keepalive: float = 0.0,
        counters: Counters | None = None,
        now: float = 0.0,
    ) -> None:
        """
        @param key: the 32 bytes that both ends have.
        @param peer: where the other end is; if not given, it has to begin.
        @param prefixes: ADDRESS/LENGTH of each network behind the other end.
        @param random: makes random bytes.
        @param moment: nanoseconds since 1970.
        @param mtu: the longest packet that is sent to it.
        @param keepalive: seconds of silence after which we ask whether it is there; 0: we never do.
        """
        self.counters = counters or Counters()
        self.policy = Policy(Prefixes(prefixes))
        self._peer = Peer(key, peer, keepalive, random, moment, self.counters)
        self._outward = Outward(self.policy, mtu, self.counters, now)
        self._inward = Inward(self.policy, mtu, self.counters)
        self._waiting: deque[tuple[float, Batch]] = deque()
        self._known: Address | None = None
        self._learn()

    @property
    def peer(self) -> Address | None:
        """Where the other end is."""
        return self._peer.address

    @peer.setter
    def peer(self, address: Address) -> None:
        self._peer.address = address
        self._learn()

    @property
    def up(self) -> bool:
        """Whether there is a session."""
        return self._peer.current is not None

    @property
    def mtu(self) -> int:
        """The longest packet that is sent to the other end."""
        return self._outward.mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._outward.mtu = self._inward.mtu = mtu

    def join(self, protocols: Iterable[int]) -> None:
        """
        Join packets to super-packets before they are injected.

        @param protocols: of which protocols: TCP, UDP, both or none.
        """
        self._inward.join(protocols)

    def _learn(self) -> None:
        """Know what must never be captured."""
        address = self._peer.address
        if address is self._known or address is None:
            return
        self._known = address
        try:
            self._outward.peer = packHost(address.host), address.port
        except PacketError:
            self._outward.peer = None

    # -- outward

    def captured(self, frames: Sequence[Buffer], now: float) -> tuple[list[Message], list[bytes]]:
        """
        Packets for the other end have come.

        @param frames: each behind a virtio header.
        @return: what is to be sent; and what is to be injected back to who sends what can not pass, behind virtio
            headers.
        """
        batches, refusals = self._outward.take(frames, now)
        return self._send(batches, now) if batches else [], refusals

    def refused(self, packet: bytes, mtu: int, now: float) -> list[Message]:
        """
        A packet from the other end is longer than where it goes lets through.

        @return: the word to its sender, to be sent.
        """
        error = tooBig(packet, parse(packet), mtu)
        return self._send([(DATA, [error])], now) if error is not None else []

    def _send(self, batches: Sequence[Batch], now: float) -> list[Message]:
        session = self._peer.current
        if session is None:
            self._wait(batches, now)
            return self._messages(self._peer.begin(now))
        address = self._peer.address
        assert address is not None, "a session with somebody who is nowhere"
        self._peer.packetsSent(now)
        return [
            Message(address, len(packets[0]) + OVERHEAD, memoryview(session.seal(word, packets)))
            for word, packets in merged(batches)
        ]

    def _wait(self, batches: Sequence[Batch], now: float) -> None:
        for batch in batches:
            self._waiting.append((now, batch))
            if len(self._waiting) > WAITING_BATCHES:
                self._dropFirst()

    def _dropFirst(self) -> None:
        _, (_, packets) = self._waiting.popleft()
        self.counters.drop("no session", len(packets))

    def _messages(self, messages: Iterable[bytes]) -> list[Message]:
        to = self._peer.address
        return [Message(to, len(each), each) for each in messages] if to is not None else []

    # -- inward

    def received(self, bursts: Sequence[Burst], now: float) -> tuple[list[Headed], list[Message]]:
        """
        Messages have come, from the other end or from anybody.

        @return: what is to be injected, and what is to be sent.
        """
        packets: list[Batch] = []
        messages: list[Message] = []
        for burst in bursts:
            self._open(burst, packets, messages, now)
        if self._waiting and self._peer.current is not None:
            waiting, self._waiting = self._waiting, deque()
            messages += self._send([batch for _, batch in waiting], now)
        return self._inward.take(packets, now) if packets else [], messages

    def _open(self, burst: Burst, packets: list[Batch], messages: list[Message], now: float) -> None:
        """Open what is sealed, and attend to the rest."""
        data, size, place = bytes(burst.payload), burst.size or 1, 0
        while place < len(data) or not place:
            first = data[place : place + size]
            word, index, _ = DATA_HEADER.unpack_from(first) if len(first) >= OVERHEAD else _NOTHING
            session = self._peer.sessions.get(index)
            if session is None or word not in _SEALED:
                messages += self._handshake(word, first, burst.source, now)
                place += size
                continue
            opened = session.openAll(data, place, size)
            place = opened.place
            if opened.packets:
                messages += self._heard(session, burst.source, opened, now)
                packets.append((word, opened.packets))
            self._count(opened)

    def _count(self, opened: Opened) -> None:
        if opened.altered:
            self.counters.drop("altered", opened.altered)
        if opened.replayed:
            self.counters.drop("replayed", opened.replayed)

    def _heard(self, session: L3Session, source: Address, opened: Opened, now: float) -> list[Message]:
        """The other end has spoken; returns what it asks for."""
        brings = any(len(packet) > 1 for packet in opened.packets)
        self._peer.heard(session, source, opened.newest, brings, now)
        self._learn()
        return self._messages(self._peer.asked()) if ASK in opened.packets else []

    def _handshake(self, word: int, datagram: bytes, source: Address, now: float) -> list[Message]:
        kind = word & _KIND
        if kind == INITIATION:
            return [Message(source, len(each), each) for each in self._peer.initiationReceived(datagram, now)]
        if kind == RESPONSE:
            messages = self._messages(self._peer.responseReceived(datagram, source, now))
            self._learn()
            return messages
        self.counters.drop("stranger")
        return []

    # -- time

    def tick(self, now: float) -> list[Message]:
        """To be called a few times a second; returns what is to be sent."""
        while self._waiting and now - self._waiting[0][0] >= WAITING_SECONDS:
            self._dropFirst()
        return self._messages(self._peer.tick(now))

    def report(self, now: float) -> dict[str, object]:
        """The state as plain values."""
        return {**self._peer.report(now), "up": self.up, "mtu": self.mtu}


def merged(batches: Iterable[Batch]) -> list[Batch]:
    """Batches with neighbours laid together where their lengths allow it."""
    done: list[Batch] = []
    for word, packets in batches:
        if done and _follows(done[-1], word, packets):
            done[-1][1].extend(packets)
        else:
            done.append((word, list(packets)))
    return done


def _follows(before: Batch, word: int, packets: list[bytes]) -> bool:
    first, size = before
    length = len(size[0])
    count = len(size) + len(packets)
    return (
        first == word
        and len(size[-1]) == length
        and (len(packets[0]) == length or (len(packets) == 1 and len(packets[0]) < length))
        and count <= MOST_IN_BURST
        and count * (length + OVERHEAD) <= LARGEST_DATAGRAM
    )
