"""Packets for the tests of l3-tunnel's parts, and two ends that face each other."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import count

from udptunnel.core.l3join import Headed
from udptunnel.core.l3way import Message, Way
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.checksum import FIELD, complete, pseudoSum
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import TCP, UDP, ipHeader, packHost, parse
from udptunnel.wire.transport import ACK
from udptunnel.wire.vnet import (
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    PLAIN,
    TCP_CHECKSUM,
    UDP_CHECKSUM,
    VnetHeader,
    packVnet,
    udpVnet,
)

ALICE4, BOB4 = packHost("10.1.0.1"), packHost("10.2.0.1")
ALICE6, BOB6 = packHost("fd00:1::1"), packHost("fd00:2::1")
FOUR, SIX = (ALICE4, BOB4), (ALICE6, BOB6)
"""Alice is behind the one end, Bob behind the other."""

BEHIND_A, BEHIND_B = ("10.1.0.0/16", "fd00:1::/64"), ("10.2.0.0/16", "fd00:2::/64")
A, B = Address("192.0.2.1", 60000), Address("198.51.100.7", 50000)

KEY = bytes(range(0x80, 0xA0))


def tcpPacket(
    ends: tuple[bytes, bytes] = FOUR,
    payload: bytes = b"",
    flags: int = ACK,
    sequence: int = 1000,
    options: bytes = b"",
    full: bool = True,
) -> bytes:
    """A TCP packet, with a full checksum or a partial one."""
    length = 20 + len(options) + len(payload)
    words = (20 + len(options)) // 4 << 4
    fields = 443, 5000, sequence, 77, words, flags, 1000, pseudoSum(*ends, TCP, length), 0
    header = ipHeader(*ends, TCP, length)
    packet = bytearray(header + struct.pack("!HHIIBBHHH", *fields) + options + payload)
    if full:
        complete(packet, len(header), TCP_CHECKSUM)
    return bytes(packet)


def udpPacket(ends: tuple[bytes, bytes] = FOUR, payload: bytes = b"", full: bool = True, port: int = 53) -> bytes:
    """A UDP packet, with a full checksum or a partial one."""
    length = 8 + len(payload)
    header = ipHeader(*ends, UDP, length)
    fields = struct.pack("!HHHH", 4000, port, length, pseudoSum(*ends, UDP, length))
    packet = bytearray(header + fields + payload)
    if full:
        complete(packet, len(header), UDP_CHECKSUM)
    return bytes(packet)


def partial(packet: bytes) -> bytes:
    """A packet with a partial checksum, behind a virtio header."""
    found = parse(packet)
    offset = TCP_CHECKSUM if found.protocol == TCP else UDP_CHECKSUM
    return packVnet(VnetHeader(NEEDS_CSUM, 0, 0, 0, found.payloadStart, offset)) + packet


def completed(packet: Buffer) -> bytes:
    """A packet of TCP or UDP with a full checksum instead of a partial one."""
    whole = bytearray(packet)
    found = parse(whole)
    complete(whole, found.payloadStart, TCP_CHECKSUM if found.protocol == TCP else UDP_CHECKSUM)
    return bytes(whole)


def superPacket(packet: bytes, size: int, kind: int | None = None) -> bytes:
    """A packet with a partial checksum as a super-packet of payloads of some size, behind a virtio header."""
    found = parse(packet)
    if found.protocol == UDP:
        return packVnet(udpVnet(found.payloadStart, size)) + packet
    usual = GSO_TCPV4 if found.version == 4 else GSO_TCPV6
    return packVnet(VnetHeader(NEEDS_CSUM, kind or usual, 0, size, found.payloadStart, TCP_CHECKSUM)) + packet


def plain(packet: bytes) -> bytes:
    """A packet with a full checksum, behind a virtio header."""
    return PLAIN + packet


def life(packet: bytes, hops: int) -> bytes:
    """A packet with another time to live, or hop limit; that of IPv4 with the checksum of its header."""
    raw = bytearray(packet)
    raw[8 if raw[0] >> 4 == 4 else 7] = hops
    return headerSum(raw)


def headerSum(packet: Buffer) -> bytes:
    """A packet whose IPv4 header has the right checksum."""
    raw = bytearray(packet)
    if raw[0] >> 4 == 4:
        raw[10:12] = b"\0\0"
        total = sum(FIELD.unpack_from(raw, place)[0] for place in range(0, (raw[0] & 0xF) * 4, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        raw[10:12] = (0xFFFF - total).to_bytes(2, "big")
    return bytes(raw)


def fragment(
    ends: tuple[bytes, bytes], protocol: int, offset: int, more: bool, payload: bytes, number: int = 7
) -> bytes:
    """A fragment of a packet."""
    if len(ends[0]) == 4:
        raw = bytearray(ipHeader(*ends, protocol, len(payload)))
        raw[4:8] = number.to_bytes(2, "big") + (more << 13 | offset >> 3).to_bytes(2, "big")
        return headerSum(raw) + payload
    fields = bytes((protocol, 0)) + (offset | more).to_bytes(2, "big") + number.to_bytes(4, "big")
    return ipHeader(*ends, 44, 8 + len(payload)) + fields + payload


def joined(packets: Iterable[Headed]) -> list[bytes]:
    """What is injected, without virtio headers."""
    return [b"".join(packet)[len(PLAIN) :] for packet in packets]


class Moments:
    """Nanoseconds that grow, and random bytes that are never the same."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._moments, self._draws = count(1), count()

    def moment(self) -> int:
        return next(self._moments)

    def random(self, length: int) -> bytes:
        return sha256(struct.pack("!II", self._seed, next(self._draws))).digest()[:length]


class Ends:
    """
    Two ends of a tunnel, and a clock that only tests move.

    @ivar a: the one that knows where the other is, and asks whether it is there.
    @ivar lost: whether what is sent is lost.
    """

    def __init__(self, keepalive: float = 25.0, knows: bool = False, mtu: int = 1420) -> None:
        self.now = 0.0
        self.mtu = mtu
        self.moments = Moments(1)
        self.a = self.makeA(keepalive)
        self.b = self.makeB(A if knows else None)
        self.atA, self.atB = A, B
        self.lost = False
        self.sent: list[tuple[Address, bytes]] = []

    def makeA(self, keepalive: float = 25.0, seed: int = 1) -> Way:
        random = Moments(seed).random
        return Way(KEY, B, BEHIND_B, random, self.moments.moment, mtu=self.mtu, keepalive=keepalive, now=self.now)

    def makeB(self, peer: Address | None = None, seed: int = 2) -> Way:
        return Way(KEY, peer, BEHIND_A, Moments(seed).random, self.moments.moment, mtu=self.mtu, now=self.now)

    def carry(self, way: Way, messages: Sequence[Message]) -> tuple[list[bytes], list[bytes]]:
        """Carry messages of one end, and all answers, until there are none; returns what both inject."""
        return self.carryAll([(way, message) for message in messages])

    def carryAll(self, queue: list[tuple[Way, Message]]) -> tuple[list[bytes], list[bytes]]:
        """The same for messages of both ends, in the order in which they were sent."""
        injected: dict[int, list[bytes]] = {id(self.a): [], id(self.b): []}
        while queue:
            sender, message = queue.pop(0)
            source, receiver = (self.atA, self.b) if sender is self.a else (self.atB, self.a)
            self.sent += [(source, bytes(each)) for each in split(message.size, message.payload)]
            reached = message.to == (self.atB if sender is self.a else self.atA)
            if self.lost or not reached:
                continue
            packets, answers = receiver.received([Burst(source, message.size, message.payload)], self.now)
            injected[id(receiver)] += joined(packets)
            queue += [(receiver, answer) for answer in answers]
        return injected[id(self.a)], injected[id(self.b)]

    def up(self) -> Ends:
        """Begin a session."""
        self.carry(self.a, self.a.tick(self.now))
        assert self.a.up and self.b.up
        return self

    def send(self, way: Way, *frames: Buffer) -> tuple[list[bytes], list[bytes]]:
        """Have one end capture packets; returns what both inject."""
        messages, refusals = way.captured(frames, self.now)
        atA, atB = self.carry(way, messages)
        back = [refusal[len(PLAIN) :] for refusal in refusals]
        return (back + atA, atB) if way is self.a else (atA, back + atB)

    def wait(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, as a service does."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for way in (self.a, self.b):
                self.carry(way, way.tick(self.now))

    def datagrams(self, way: Way, *frames: Buffer) -> list[bytes]:
        """What an end sends for packets, without anybody getting it."""
        messages, _ = way.captured(frames, self.now)
        return [bytes(each) for message in messages for each in split(message.size, message.payload)]
