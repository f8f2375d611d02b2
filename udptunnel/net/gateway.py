"""
The gateway: what comes out of a TUN is sorted, and what goes back is put into packets.

TCP is left to a stack (L{udptunnel.net.stack}). Datagrams are taken out of
their packets, fragments put together and super-packets kept whole, and given to
a L{UdpReceiver} as bursts. The rest is answered here, or dropped and counted.
The functions stand in the order in which a packet meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, Protocol

from udptunnel.core.counters import Counters
from udptunnel.core.fragments import Fragments
from udptunnel.errors import PacketError
from udptunnel.net.stack import Stack
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, count, join, pieces, split
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, UDP, Packet, fragmented, hostOf, packHost, parse
from udptunnel.wire.transport import (
    UDP_BYTES,
    Unreachable,
    checksumHolds,
    echoReply,
    parseUdp,
    protocolUnreachable,
    udpHeaders,
    udpPacket,
    unreachable,
)
from udptunnel.wire.vnet import DATA_VALID, GSO_ECN, GSO_UDP_L4, NEEDS_CSUM, PLAIN, VNET_BYTES, packVnet, udpVnet

MOST_NAMES = 65_536
"""Pairs of addresses that are remembered as such, and as headers, before we start again."""

MOST_SEGMENTS = 64
"""Datagrams in one super-packet (UDP_MAX_SEGMENTS of Linux before 6.9)."""

LARGEST_SUPER = 65_000
"""Bytes of payload in one super-packet: with its headers it is still an IP packet."""

ICMP_ANSWERS = ("off", "reply", "unreachable")
"""What an echo request may get: nothing, a reply from us, or the word that its target can not be reached."""

# From the virtio header's first byte: flags, kind, size of segments; of IPv4 the fragment; protocol, addresses with
# ports, length of the datagram.
_UDP4 = Struct("!BB2x2s10xHxB2x12sH")
_UDP6 = Struct("!BB2x2s10xBx36sH")
_SIZE = Struct("=H")
_PORTS = Struct("!HH")
_NO_FRAGMENT = 0x3FFF
_UDP4_AT, _UDP6_AT = VNET_BYTES + IPV4_BYTES, VNET_BYTES + IPV6_BYTES
_TRUSTED = NEEDS_CSUM | DATA_VALID


class UdpReceiver(Protocol):
    """Who carries datagrams on."""

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Somebody behind the TUN has sent something."""

    def tick(self, now: float) -> None:
        """To be called once a second: forget what is idle."""

    def stop(self) -> None:
        """Close everything."""


class UdpWriter(Protocol):
    """What puts datagrams into a TUN."""

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """
        Send a burst to somebody behind the TUN.

        @param source: where it is to come from: any address of the same family.
        """

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that the target of a burst can not be reached."""


class Gateway:
    """
    What stands between a TUN and those who carry its traffic on.

    It is the receiver of the TUN's port, and the L{UdpWriter} of its datagrams.

    @ivar outer: where packets to clients are written; to be set before the first packet comes. A TUN port says with
        C{headed} and C{segments} whether checksums may be left to it, and whether bursts may.
    @ivar udp: who gets the datagrams; likewise.
    @ivar stack: who gets the TCP packets; likewise.
    """

    outer: Any
    udp: UdpReceiver
    stack: Stack

    def __init__(
        self,
        counters: Counters,
        clock: Callable[[], float],
        lost: Callable[[str], None],
        mtu: int = 1500,
        icmp: str = "reply",
    ) -> None:
        """
        @param lost: told when the TUN is no use any more, and why.
        @param mtu: longer datagrams are cut into fragments.
        @param icmp: of L{ICMP_ANSWERS}.
        """
        self._counters = counters
        self._clock = clock
        self._lost = lost
        self._mtu = mtu
        self._icmp = icmp
        self._fragments = Fragments()
        self._identification = 0
        self._ends: dict[bytes, tuple[Address, Address]] = {}
        self._hosts: dict[str, bytes] = {}

    # -- what arrives

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Packets have come out of the TUN."""
        now = self._clock()
        others = self.stack.packetsReceived(packets, now)
        if others:
            self._othersReceived(others, now)

    def _othersReceived(self, packets: Sequence[memoryview], now: float) -> None:
        bursts = []
        for packet in packets:
            burst = self._plain(packet) or self._unusual(packet, now)
            if burst is not None:
                bursts.append(burst)
        if bursts:
            self.udp.burstsReceived(join(bursts))

    def _plain(self, packet: memoryview) -> AimedBurst | None:
        """A datagram, or a super-packet of them, behind the usual headers; nothing if it is something else."""
        if len(packet) < _UDP4_AT + UDP_BYTES:
            return None
        if packet[VNET_BYTES] == 0x45:
            flags, kind, segment, fragment, protocol, ends, length = _UDP4.unpack_from(packet)
            at = _UDP4_AT
        elif packet[VNET_BYTES] >> 4 == 6 and len(packet) >= _UDP6_AT + UDP_BYTES:
            flags, kind, segment, protocol, ends, length = _UDP6.unpack_from(packet)
            fragment, at = 0, _UDP6_AT
        else:
            return None
        end = at + length
        if (
            protocol != UDP
            or fragment & _NO_FRAGMENT
            or not flags & _TRUSTED
            or not at + UDP_BYTES <= end <= len(packet)
        ):
            return None
        source, target = self._ends.get(ends) or self._name(ends)
        payload = packet[at + UDP_BYTES : end]
        size = _SIZE.unpack(segment)[0] if kind & ~GSO_ECN == GSO_UDP_L4 else 0
        return AimedBurst(source, target, size or len(payload), payload) if target.host else None

    def _name(self, ends: bytes) -> tuple[Address, Address]:
        """The two ends of a flow, from the bytes of addresses and ports; an end without host if it is not for us."""
        if len(self._ends) >= MOST_NAMES:
            self._ends.clear()
        size = len(ends) // 2 - 2
        from_, to = _PORTS.unpack_from(ends, 2 * size)
        source, target = Address(hostOf(ends[:size]), from_), Address(hostOf(ends[size : 2 * size]), to)
        pair = self._ends[bytes(ends)] = source, target if _isCarried(ends[size : 2 * size]) else _NOWHERE
        return pair

    def _unusual(self, packet: memoryview, now: float) -> AimedBurst | None:
        """Fragments, options, checksums that nobody has looked at, ICMP, and what nobody knows."""
        frame: Buffer = packet[VNET_BYTES:]
        try:
            parsed = parse(frame)
            if parsed.fragment is not None:
                whole = self._fragments.add(frame, parsed, now)
                if whole is None:
                    return None
                frame, parsed = whole, parse(whole)
            elif packet[0] & NEEDS_CSUM:
                return self._trusted(packet, frame, parsed)
            return self._sort(frame, parsed)
        except PacketError:
            self._counters.drop("malformed")
            return None

    def _trusted(self, packet: memoryview, frame: Buffer, parsed: Packet) -> AimedBurst | None:
        if parsed.protocol != UDP:
            return self._sort(frame, parsed)
        size = _SIZE.unpack_from(packet, 4)[0] if packet[1] & ~GSO_ECN == GSO_UDP_L4 else 0
        return self._datagram(frame, parsed, size)

    def _sort(self, frame: Buffer, parsed: Packet) -> AimedBurst | None:
        if parsed.protocol in (ICMP, ICMPV6):
            self._icmpReceived(frame, parsed)
        elif parsed.protocol != UDP:
            self._counters.drop("unknown protocol")
            self._answer(protocolUnreachable(frame, parsed))
        elif not checksumHolds(frame, parsed):
            self._counters.drop("checksum")
        else:
            return self._datagram(frame, parsed, 0)
        return None

    def _datagram(self, frame: Buffer, parsed: Packet, size: int) -> AimedBurst | None:
        udp = parseUdp(frame, parsed)
        if not _isCarried(parsed.destination):
            self._counters.drop("not unicast")
            return None
        source = Address(parsed.sourceHost, udp.sourcePort)
        target = Address(parsed.destinationHost, udp.destinationPort)
        payload = frame[udp.payloadStart : udp.payloadEnd]
        return AimedBurst(source, target, size or len(payload), payload)

    def _icmpReceived(self, frame: Buffer, parsed: Packet) -> None:
        reply = echoReply(frame, parsed)
        if reply is None or self._icmp == "off":
            # Kernels speak of routers and multicast groups, too.
            self._counters.drop("ICMP")
        elif self._icmp == "reply":
            self._answer(reply)
        else:
            self._answer(unreachable(frame, parsed, Unreachable.HOST))

    # -- what goes back

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Send a burst to somebody behind the TUN, from any address."""
        try:
            target, origin = self._pack(to.host), self._pack(source.host)
            if len(target) != len(origin):
                raise PacketError("no packet goes from one family to the other")
            self._write(origin, target, (source.port, to.port), size, payload)
        except PacketError:
            self._counters.drop("unfit answer", count(size, payload))

    def _pack(self, host: str) -> bytes:
        raw = self._hosts.get(host)
        if raw is None:
            if len(self._hosts) >= MOST_NAMES:
                self._hosts.clear()
            raw = self._hosts[host] = packHost(host)
        return raw

    def _write(self, source: bytes, target: bytes, ports: tuple[int, int], size: int, payload: Buffer) -> None:
        header = _headersOf(target)
        if size + header > self._mtu or not self.outer.headed:
            for each in split(size, payload):
                self._writeFinished(udpPacket(source, target, *ports, each))
            return
        most = min(LARGEST_SUPER, MOST_SEGMENTS * size) if self.outer.segments else size
        for piece in pieces(size, payload, max(most, 1)):
            segment = size if len(piece) > size else 0
            vnet = packVnet(udpVnet(header - UDP_BYTES, segment))
            self.outer.write(vnet + udpHeaders(source, target, *ports, len(piece)), piece)

    def _writeFinished(self, packet: bytes) -> None:
        self._identification += 1
        for part in fragmented(packet, self._mtu, self._identification):
            self.outer.write(PLAIN, part)

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that the target of a burst can not be reached."""
        try:
            source, target = self._pack(burst.source.host), self._pack(burst.target.host)
            first = bytes(burst.payload[: burst.size])
            frame = udpPacket(source, target, burst.source.port, burst.target.port, first)
        except PacketError:
            return
        self._answer(unreachable(frame, parse(frame), why))

    def _answer(self, packet: bytes | None) -> None:
        if packet is not None:
            self._writeFinished(packet)

    # -- the rest

    def lost(self, why: str) -> None:
        """The TUN is no use any more."""
        self._lost(why)

    def tick(self, now: float) -> None:
        """To be called once a second."""
        self.stack.tick(now)
        self.udp.tick(now)
        self._fragments.expire(now)

    def stop(self) -> None:
        """Close everything but the TUN."""
        self.stack.stop()
        self.udp.stop()


_NOWHERE = Address("", 0)
_MAPPED = bytes(10) + b"\xff\xff"
"""What IPv4-mapped addresses begin with (RFC 4291 section 2.5.5.2); no packet has one (RFC 4038 section 4.2)."""


def _headersOf(host: bytes) -> int:
    return (IPV4_BYTES if len(host) == 4 else IPV6_BYTES) + UDP_BYTES


def _isCarried(host: bytes) -> bool:
    """Whether datagrams to an address are for the tunnel: those for all, for one wire or for one machine are not."""
    if len(host) == 4:
        return 0 < host[0] < 224 and host[0] != 127 and host[:2] != b"\xa9\xfe"
    if host[:12] == _MAPPED:
        # As text it would be an IPv4 address, 127.0.0.1 for one.
        return False
    return host[0] != 0xFF and (host[0] != 0xFE or host[1] & 0xC0 != 0x80) and host[:15] != bytes(15)
