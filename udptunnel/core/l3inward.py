"""From what the other end of an l3-tunnel has sealed to packets that are injected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from udptunnel.core.counters import Counters
from udptunnel.core.l3join import Headed, Joiner
from udptunnel.core.l3outward import TCP_HEADERS, Batch, isSyn, payloadStart
from udptunnel.core.l3overlap import PassingFragments
from udptunnel.core.l3policy import Policy, hidesHeader
from udptunnel.errors import PacketError
from udptunnel.wire.ip import TCP, UDP, Packet, parse
from udptunnel.wire.l3 import OPEN
from udptunnel.wire.mss import clampMss
from udptunnel.wire.vnet import PLAIN


class Inward:
    """
    Takes packets that were opened.

    @ivar mtu: the longest packet that this end sends to the other one.
    """

    def __init__(self, policy: Policy, mtu: int, counters: Counters) -> None:
        self.mtu = mtu
        self._policy = policy
        self._joiner = Joiner(())
        self._fragments = PassingFragments()
        self._counters = counters

    def join(self, protocols: Iterable[int]) -> None:
        """Join packets of these protocols from now on, of TCP and UDP; of others none."""
        self._joiner = Joiner(protocols)

    def take(self, batches: Sequence[Batch], now: float) -> list[Headed]:
        """
        Judge packets, and make them ready.

        @param batches: packets, with DATA or OPEN; what is no longer than a byte only says that somebody is there.
        @return: what is to be injected.
        """
        joiner = self._joiner
        for word, packets in batches:
            place = 0
            while place < len(packets):
                if word == OPEN and (joined := joiner.followAll(packets, place)):
                    place += joined
                    continue
                if len(packets[place]) > 1:
                    self._take(word, packets[place], now)
                place += 1
        joiner.finish()
        done, joiner.done = joiner.done, []
        return done

    def _take(self, word: int, packet: bytes, now: float) -> None:
        try:
            self._takeOne(word, packet, now)
        except PacketError:
            self._counters.drop("inward malformed")

    def _takeOne(self, word: int, packet: bytes, now: float) -> None:
        found = parse(packet)
        if found.totalLength != len(packet):
            raise PacketError("something stands behind the packet")
        reason = self._policy.inwardRefusal(found, packet) or self._fragmentRefusal(found, now)
        if reason:
            self._counters.drop(reason)
        elif word == OPEN:
            self._passOpen(packet, found)
        else:
            self._joiner.passOn((PLAIN, self._clamped(packet, found, False)))

    def _fragmentRefusal(self, found: Packet, now: float) -> str:
        if found.fragment is None:
            return ""
        if hidesHeader(found) or not self._fragments.mayPass(found, now):
            return "inward fragment"
        return ""

    def _passOpen(self, packet: bytes, found: Packet) -> None:
        if found.protocol not in (TCP, UDP):
            raise PacketError("a partial checksum of neither TCP nor UDP")
        start = payloadStart(packet, found)
        if not self._joiner.ends(packet, found, start):
            self._joiner.begin(self._clamped(packet, found, True), found, start)

    def _clamped(self, packet: bytes, found: Packet, partial: bool) -> bytes:
        """A packet that lets nobody announce longer segments than fit."""
        if not isSyn(packet, found):
            return packet
        clamped = bytearray(packet)
        end = payloadStart(packet, found)
        clampMss(clamped, found.payloadStart, end, self.mtu - TCP_HEADERS[found.version], partial)
        return bytes(clamped)
