"""
From a captured packet to what is sealed for the other end of an l3-tunnel.

This end is a router for it: a hop is taken from its life, a packet that is too
long is cut or refused with the word how long it may be, and TCP is told
beforehand. The functions stand in the order in which a packet meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from udptunnel.core.bucket import Bucket
from udptunnel.core.counters import Counters
from udptunnel.core.l3cut import cut
from udptunnel.core.l3policy import Policy
from udptunnel.errors import PacketError
from udptunnel.wire.checksum import FIELD, LARGEST_SUM, complete, updated
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import DONT_FRAGMENT, TCP, UDP, Packet, parse, refragmented
from udptunnel.wire.l3 import DATA, OPEN
from udptunnel.wire.mss import clampMss
from udptunnel.wire.transport import SYN, parseTcp, parseUdp, timeExceeded, tooBig
from udptunnel.wire.vnet import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    TCP_CHECKSUM,
    UDP_CHECKSUM,
    VNET_BYTES,
    VnetHeader,
    unpackVnet,
)

Batch: TypeAlias = tuple[int, list[bytes]]
"""DATA or OPEN, and packets of one length, but the last, which may be shorter."""

MOST_REFUSALS = 1000
"""ICMP errors a second."""

TCP_HEADERS = {4: 40, 6: 60}
"""Headers of IP and TCP without options, by the version of IP."""

_LIFE_AT, _IPV4_CHECKSUM_AT, _LAST_LIFE = {4: 8, 6: 7}, 10, 1
_ONE_HOP = LARGEST_SUM - 0x100
_SUPER = {(GSO_TCPV4, 4): TCP, (GSO_TCPV6, 6): TCP, (GSO_UDP_L4, 4): UDP, (GSO_UDP_L4, 6): UDP}
_CHECKSUMS = {TCP: TCP_CHECKSUM, UDP: UDP_CHECKSUM}
_FLAGS_AT = 13


class Outward:
    """
    Takes captured packets.

    @ivar mtu: the longest packet that may go to the other end.
    @ivar peer: the address and port that our own messages go to: these are never captured.
    @ivar batches: what is to be sealed.
    @ivar refusals: what is to be injected back, each behind a virtio header.
    """

    def __init__(self, policy: Policy, mtu: int, counters: Counters, now: float = 0.0) -> None:
        self.mtu = mtu
        self.peer: tuple[bytes, int] | None = None
        self.batches: list[Batch] = []
        self.refusals: list[bytes] = []
        self._policy = policy
        self._counters = counters
        self._bucket = Bucket(MOST_REFUSALS, now)

    def take(self, frames: Sequence[Buffer], now: float) -> tuple[list[Batch], list[bytes]]:
        """
        Judge packets, and make them ready.

        @param frames: each behind a virtio header.
        @return: what is to be sealed, and what is to be injected back.
        """
        for frame in frames:
            try:
                self._takeOne(frame, now)
            except PacketError:
                self._counters.drop("outward malformed")
        batches, self.batches = self.batches, []
        refusals, self.refusals = self.refusals, []
        return batches, refusals

    def _takeOne(self, frame: Buffer, now: float) -> None:
        header = unpackVnet(frame)
        raw = bytearray(memoryview(frame)[VNET_BYTES:])
        found = parse(raw)
        # A short frame was filled up by the network card.
        del raw[found.totalLength :]
        reason = self._policy.outwardRefusal(found, raw) or self._loopRefusal(found, raw)
        if reason:
            self._counters.drop(reason)
        elif not _takeHop(raw, found):
            self._counters.drop("outward hops")
            self._tell(timeExceeded, raw, found, now)
        elif header.gsoType & ~GSO_ECN:
            self._passSuper(header, raw, found, now)
        else:
            self._passOne(header, raw, found, now)

    def _loopRefusal(self, found: Packet, raw: Buffer) -> str:
        """Our own messages would go round and round."""
        if self.peer is None or found.destination != self.peer[0] or found.protocol != UDP or found.fragment:
            return ""
        if parseUdp(raw, found).destinationPort == self.peer[1]:
            return "outward loop"
        return ""

    def _tell(self, make: Callable[[Buffer, Packet], bytes | None], raw: Buffer, found: Packet, now: float) -> None:
        """Tell the sender of a packet why it goes no further."""
        error = make(raw, found) if self._bucket.take(1, now) else None
        if error is not None:
            self.refusals.append(PLAIN + error)

    # -- super-packets

    def _passSuper(self, header: VnetHeader, raw: bytearray, found: Packet, now: float) -> None:
        kind = (header.gsoType & ~GSO_ECN, found.version)
        if kind not in _SUPER:
            # Fragments of UDP (GSO_UDP) are of no length that we could keep.
            self._passOne(header, raw, found, now)
            return
        if _SUPER[kind] != found.protocol:
            raise PacketError("a super-packet of another protocol")
        start = payloadStart(raw, found)
        if start >= len(raw):
            raise PacketError("a super-packet of nothing")
        packets = cut(bytes(raw), found, start, header.segmentSize)
        if len(packets[0]) <= self.mtu:
            self.batches.append((OPEN, packets))
        elif _mayNotCut(raw, found):
            self._refuseLong(raw, found, now)
        else:
            field = found.payloadStart, _CHECKSUMS[found.protocol]
            for packet in packets:
                self._cutOne(_completed(packet, *field))

    # -- packets

    def _passOne(self, header: VnetHeader, raw: bytearray, found: Packet, now: float) -> None:
        partial = header.flags & NEEDS_CSUM
        if partial and not _isUsual(header, found):
            _complete(raw, header)
            partial = 0
        if isSyn(raw, found):
            most = self.mtu - TCP_HEADERS[found.version]
            clampMss(raw, found.payloadStart, payloadStart(raw, found), most, bool(partial))
        if len(raw) <= self.mtu:
            self.batches.append((OPEN if partial else DATA, [bytes(raw)]))
        elif _mayNotCut(raw, found):
            self._refuseLong(raw, found, now)
        else:
            if partial:
                _complete(raw, header)
            self._cutOne(bytes(raw))

    def _refuseLong(self, raw: Buffer, found: Packet, now: float) -> None:
        self._counters.drop("outward too long")
        self._tell(lambda raw, found: tooBig(raw, found, self.mtu), raw, found, now)

    def _cutOne(self, packet: bytes) -> None:
        parts = refragmented(packet, self.mtu)
        self.batches.append((DATA, parts))


def _takeHop(raw: bytearray, found: Packet) -> bool:
    """Whether a packet may go on, and let it be one hop older then."""
    at = _LIFE_AT[found.version]
    if raw[at] <= _LAST_LIFE:
        return False
    raw[at] -= 1
    if found.version == 4:
        value = FIELD.unpack_from(raw, _IPV4_CHECKSUM_AT)[0]
        FIELD.pack_into(raw, _IPV4_CHECKSUM_AT, updated(value, _ONE_HOP))
    return True


def payloadStart(raw: Buffer, found: Packet) -> int:
    """
    Where the payload of TCP or UDP begins.

    @raise PacketError: its header does not fit.
    """
    return parseTcp(raw, found).payloadStart if found.protocol == TCP else parseUdp(raw, found).payloadStart


def isSyn(raw: Buffer, found: Packet) -> bool:
    """Whether a packet is a TCP segment that may announce how long others may be."""
    if found.protocol != TCP or found.fragment is not None:
        return False
    return len(raw) > found.payloadStart + _FLAGS_AT and raw[found.payloadStart + _FLAGS_AT] & SYN != 0


def _isUsual(header: VnetHeader, found: Packet) -> bool:
    """Whether a checksum is missing where the other end will look for it."""
    usual = (found.payloadStart, _CHECKSUMS.get(found.protocol))
    return found.fragment is None and (header.checksumStart, header.checksumOffset) == usual


def _complete(raw: bytearray, header: VnetHeader) -> None:
    if header.checksumStart + header.checksumOffset + FIELD.size > len(raw):
        raise PacketError("a checksum is missing behind the end of the packet")
    complete(raw, header.checksumStart, header.checksumOffset)


def _mayNotCut(raw: Buffer, found: Packet) -> bool:
    """Only hosts cut IPv6 packets (RFC 8200 section 4.5); of IPv4 their senders decide."""
    return found.version == 6 or FIELD.unpack_from(raw, 6)[0] & DONT_FRAGMENT != 0


def _completed(packet: bytes, start: int, offset: int) -> bytes:
    whole = bytearray(packet)
    complete(whole, start, offset)
    return bytes(whole)
