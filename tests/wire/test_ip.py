"""Tests for L{udptunnel.wire.ip}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.wire.packets import (
    ALICE4,
    ALICE6,
    BOB4,
    BOB6,
    ECHO4,
    EXTENSIONS6,
    FRAGMENT6,
    OPTIONS4,
    PAIRS,
    SYN6,
    UDP4,
    UDP6,
    WHOLE,
)
from udptunnel.errors import PacketError
from udptunnel.wire.checksum import wordSum
from udptunnel.wire.ip import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    MOST_EXTENSIONS,
    ROUTING,
    TCP,
    UDP,
    Fragment,
    Packet,
    fragmented,
    hostOf,
    ipHeader,
    ipv4Header,
    ipv6Header,
    packHost,
    parse,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)
few = settings(max_examples=max(10, EXAMPLES // 10), deadline=None)

GOLDEN = (
    (UDP4, Packet(4, ALICE4, BOB4, UDP, 9, 20, 20, 33, None)),
    (UDP6, Packet(6, ALICE6, BOB6, UDP, 6, 40, 40, 53, None)),
    (SYN6, Packet(6, ALICE6, BOB6, TCP, 6, 40, 40, 64, None)),
    (ECHO4, Packet(4, ALICE4, BOB4, ICMP, 9, 20, 20, 32, None)),
    (OPTIONS4, Packet(4, ALICE4, BOB4, UDP, 9, 32, 32, 41, None)),
    (EXTENSIONS6, Packet(6, ALICE6, BOB6, UDP, 56, 40, 64, 73, None)),
    (FRAGMENT6, Packet(6, ALICE6, BOB6, UDP, 48, 40, 56, 64, Fragment(5, 0, True, 40))),
)
"""Packets, and what their headers say."""

pairs = st.sampled_from(PAIRS)


def spoil(packet: bytes, place: int, *values: int) -> bytes:
    """A packet with other bytes at a place."""
    return packet[:place] + bytes(values) + packet[place + len(values) :]


def extended(*chain: tuple[int, bytes], last: int = UDP) -> bytes:
    """An IPv6 packet of extension headers, each with its number and all of its bytes but the first."""
    numbers = [number for number, _ in chain] + [last]
    body = b"".join(bytes((following,)) + rest for following, (_, rest) in zip(numbers[1:], chain, strict=True))
    return ipv6Header(ALICE6, BOB6, numbers[0], len(body)) + body


OPTIONS = bytes.fromhex("00010400000000")
"""Padding, in an extension header of eight bytes."""


class ParseTests(SynchronousTestCase):
    """L{parse}."""

    def test_golden(self) -> None:
        """What the headers of good packets say, whatever buffer they stand in."""
        for raw, packet in GOLDEN:
            for buffer in (raw, bytearray(raw), memoryview(raw)):
                self.assertEqual(parse(buffer), packet)

    def test_trailing(self) -> None:
        """What follows a packet in its frame is not part of it."""
        for raw, packet in GOLDEN:
            self.assertEqual(parse(raw + b"trailer"), packet)

    def test_truncated(self) -> None:
        """A packet that is cut short anywhere is refused."""
        for raw, _ in GOLDEN:
            for length in range(len(raw)):
                self.assertRaises(PacketError, parse, raw[:length])

    def test_truncatedInItsLength(self) -> None:
        """A packet whose length ends inside its headers is refused, and nothing behind it is read."""
        for raw, packet in GOLDEN:
            for length in range(packet.payloadStart):
                cut = spoil(raw, 2, 0, length) if packet.version == 4 else spoil(raw, 4, 0, max(0, length - 40))
                if packet.version == 4 or 0 < packet.payloadStart - 40:
                    self.assertRaises(PacketError, parse, cut)

    def test_versions(self) -> None:
        """Nothing but IPv4 and IPv6 is a packet."""
        for version in set(range(16)) - {4, 6}:
            self.assertRaises(PacketError, parse, spoil(UDP4 + bytes(40), 0, version << 4 | 5))

    def test_headerLengths(self) -> None:
        """An IPv4 header is 20 bytes or longer, and not longer than its packet."""
        for words in range(16):
            raw = spoil(UDP4, 0, 0x40 | words)
            if 5 <= words <= 8:
                self.assertEqual(parse(raw).payloadStart, 4 * words)
            else:
                self.assertRaises(PacketError, parse, raw)

    def test_noPayload(self) -> None:
        """A packet may hold nothing."""
        for source, destination in PAIRS:
            packet = parse(ipHeader(source, destination, UDP, 0))
            self.assertEqual(packet.payloadStart, packet.totalLength)

    def test_hosts(self) -> None:
        """Addresses are to be had as text."""
        self.assertEqual((parse(UDP4).sourceHost, parse(UDP4).destinationHost), ("192.0.2.1", "198.51.100.7"))
        self.assertEqual((parse(UDP6).sourceHost, parse(UDP6).destinationHost), ("2001:db8::1", "2001:db8::7"))

    def test_ipv4Fragments(self) -> None:
        """Either a place behind the first byte or more to come makes a fragment; the other two flags do not."""
        for word, fragment in (
            (0x0000, None),
            (0x4000, None),
            (0x8000, None),
            (0x2000, Fragment(7, 0, True, 0)),
            (0x0001, Fragment(7, 8, False, 0)),
            (0x3FFF, Fragment(7, 65528, True, 0)),
        ):
            self.assertEqual(parse(spoil(UDP4, 4, 0, 7, word >> 8, word & 0xFF)).fragment, fragment)

    def test_ipv6Fragments(self) -> None:
        """The same of IPv6, where one that is all of its packet is none (RFC 6946)."""
        for word, fragment in (
            (0x0000, None),
            (0x0006, None),
            (0x0001, Fragment(5, 0, True, 40)),
            (0x0008, Fragment(5, 8, False, 40)),
            (0xFFF9, Fragment(5, 65528, True, 40)),
        ):
            packet = parse(spoil(FRAGMENT6, 50, word >> 8, word & 0xFF))
            self.assertEqual((packet.fragment, packet.protocol, packet.payloadStart), (fragment, UDP, 56))

    def test_afterAFragment(self) -> None:
        """Behind the header of a fragment nothing is taken for a header; behind one of a whole packet it is."""
        chain = (FRAGMENT, bytes.fromhex("00000900000005")), (DESTINATION_OPTIONS, OPTIONS)
        self.assertEqual(parse(extended(*chain)).protocol, DESTINATION_OPTIONS)
        atomic = (FRAGMENT, bytes.fromhex("00000000000005")), (DESTINATION_OPTIONS, OPTIONS)
        self.assertEqual((parse(extended(*atomic)).protocol, parse(extended(*atomic)).payloadStart), (UDP, 56))

    def test_chain(self) -> None:
        """A chain of extension headers may be so long, and not longer."""
        for length in range(MOST_EXTENSIONS + 3):
            raw = extended(*[(DESTINATION_OPTIONS, OPTIONS)] * length)
            if length <= MOST_EXTENSIONS:
                packet = parse(raw)
                self.assertEqual((packet.protocol, packet.payloadStart), (UDP, 40 + 8 * length))
                self.assertEqual(packet.protocolAt, 32 + 8 * length if length else 6)
            else:
                self.assertRaises(PacketError, parse, raw)

    def test_longExtension(self) -> None:
        """An extension header says its length in eights; one that is longer than its packet is refused."""
        raw = extended((HOP_BY_HOP, b"\2" + bytes(22)))
        self.assertEqual(parse(raw).payloadStart, 64)
        self.assertRaises(PacketError, parse, spoil(raw, 41, 3))
        self.assertRaises(PacketError, parse, spoil(raw, 41, 255))

    def test_hopByHop(self) -> None:
        """Hop-by-hop options stand first or nowhere."""
        self.assertEqual(parse(extended((HOP_BY_HOP, OPTIONS), (DESTINATION_OPTIONS, OPTIONS))).protocol, UDP)
        for first in (HOP_BY_HOP, DESTINATION_OPTIONS):
            self.assertRaises(PacketError, parse, extended((first, OPTIONS), (HOP_BY_HOP, OPTIONS)))

    def test_routing(self) -> None:
        """A routing header that has been worked off is passed over; a packet that is to go on is refused."""
        self.assertEqual(parse(extended((ROUTING, bytes(7)))).protocol, UDP)
        self.assertRaises(PacketError, parse, extended((ROUTING, bytes.fromhex("00000100000000"))))

    def test_endOfTheChain(self) -> None:
        """Any other number ends the chain, also "no next header" and those of IPsec."""
        for number in (50, 51, 59, 135, 255):
            self.assertEqual(parse(extended((DESTINATION_OPTIONS, OPTIONS), last=number)).protocol, number)

    @thorough
    @given(st.binary(max_size=120), st.sampled_from(WHOLE), st.integers(0, 60))
    def test_anything(self, noise: bytes, whole: bytes, keep: int) -> None:
        """Whatever comes is refused, or all that is said about it lies inside of it."""
        for frame in (noise, whole[:keep] + noise, bytes((0x60,)) + noise):
            try:
                packet = parse(frame)
            except PacketError:
                continue
            self.assertTrue(packet.headerLength <= packet.payloadStart <= packet.totalLength <= len(frame))
            self.assertEqual(frame[packet.protocolAt], packet.protocol)
            self.assertTrue(len(packet.source) == len(packet.destination) == (4 if packet.version == 4 else 16))


class HostTests(SynchronousTestCase):
    """L{hostOf} and L{packHost}."""

    def test_mapped(self) -> None:
        """An IPv4-mapped address is the IPv4 address, and a zone is left out."""
        self.assertEqual(hostOf(bytes(10) + b"\xff\xff\xc0\0\2\1"), "192.0.2.1")
        self.assertEqual(packHost("::ffff:192.0.2.1"), ALICE4)
        self.assertEqual(packHost("fe80::1%eth0"), b"\xfe\x80" + bytes(13) + b"\1")

    def test_name(self) -> None:
        """A name is refused."""
        self.assertRaises(PacketError, packHost, "example.org")

    @thorough
    @given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
    def test_roundTrip(self, raw: bytes) -> None:
        """The text of an address is that address."""
        self.assertEqual(packHost(hostOf(raw)), raw if raw[:12] != bytes(10) + b"\xff\xff" else raw[12:])


class HeaderTests(SynchronousTestCase):
    """L{ipv4Header}, L{ipv6Header} and L{ipHeader}."""

    def test_golden(self) -> None:
        """They are what scapy makes."""
        self.assertEqual(ipHeader(ALICE4, BOB4, UDP, 13), UDP4[:20])
        self.assertEqual(ipHeader(ALICE6, BOB6, UDP, 13), UDP6[:40])
        self.assertEqual(ipv4Header(ALICE4, BOB4, ICMP, 12, 1, 0), ECHO4[:20])

    @few
    @given(
        st.binary(min_size=8, max_size=8),
        st.integers(0, 255),
        st.integers(0, 65515),
        st.integers(0, 0xFFFF),
        st.integers(0, 7),
        st.integers(0, 8191),
    )
    def test_scapy(self, hosts: bytes, protocol: int, length: int, number: int, flags: int, eights: int) -> None:
        """With any fields they are what scapy makes of them."""
        header = ipv4Header(hosts[:4], hosts[4:], protocol, length, number, flags << 13, 8 * eights)
        addresses = {"src": hostOf(hosts[:4]), "dst": hostOf(hosts[4:])}
        other = inet.IP(**addresses, proto=protocol, len=20 + length, id=number, flags=flags, frag=eights, ttl=64)
        self.assertEqual(header, bytes(other))
        other = inet6.IPv6(src="2001:db8::1", dst="2001:db8::7", nh=protocol, plen=length, hlim=64)
        self.assertEqual(ipv6Header(ALICE6, BOB6, protocol, length), bytes(other))

    @thorough
    @given(pairs, st.integers(0, 255).filter(lambda number: number not in (0, 43, 44, 60)), st.binary(max_size=30))
    def test_roundTrip(self, pair: tuple[bytes, bytes], protocol: int, payload: bytes) -> None:
        """What was written is read, and the checksum is right."""
        header = ipHeader(*pair, protocol, len(payload))
        packet = parse(header + payload)
        self.assertEqual((packet.source, packet.destination, packet.protocol), (*pair, protocol))
        self.assertEqual((packet.payloadStart, packet.totalLength), (len(header), len(header) + len(payload)))
        if packet.version == 4:
            self.assertEqual(wordSum(header), 0xFFFF)

    def test_largest(self) -> None:
        """A payload that a length can not count is refused."""
        for (source, destination), largest in zip(PAIRS, (65515, 65535), strict=True):
            self.assertEqual(len(ipHeader(source, destination, UDP, largest)), 65535 - largest or 40)
            self.assertRaises(PacketError, ipHeader, source, destination, UDP, largest + 1)


class FragmentedTests(SynchronousTestCase):
    """L{fragmented}."""

    def test_fits(self) -> None:
        """A packet that fits stays as it is."""
        for raw in WHOLE:
            self.assertEqual(fragmented(raw, len(raw), 1), [raw])

    def test_scapy(self) -> None:
        """Fragments of IPv4 are those that scapy makes."""
        payload = bytes(range(256)) * 20
        packet = inet.IP(src="192.0.2.1", dst="198.51.100.7", id=9, proto=17) / payload
        expected = [bytes(each) for each in inet.fragment(packet, 1480)]
        self.assertEqual(fragmented(ipHeader(ALICE4, BOB4, UDP, len(payload)) + payload, 1500, 9), expected)

    def test_golden6(self) -> None:
        """Fragments of IPv6 hold a fragment header each."""
        first, second, third = fragmented(ipHeader(ALICE6, BOB6, UDP, 18) + b"0123456789abcdefgh", 57, 0x01020304)
        header = ipv6Header(ALICE6, BOB6, FRAGMENT, 16)
        self.assertEqual(first, header + bytes.fromhex("1100000101020304") + b"01234567")
        self.assertEqual(second, header + bytes.fromhex("1100000901020304") + b"89abcdef")
        self.assertEqual(third, ipv6Header(ALICE6, BOB6, FRAGMENT, 10) + bytes.fromhex("1100001001020304") + b"gh")

    @thorough
    @given(pairs, st.integers(0, 400), st.integers(60, 200), st.integers(0, 1 << 40))
    def test_parts(self, pair: tuple[bytes, bytes], length: int, mtu: int, identification: int) -> None:
        """No fragment is longer than allowed; the parts lie end to end, all with the same number."""
        whole = ipHeader(*pair, UDP, length) + bytes(each & 0xFF for each in range(length))
        cut = fragmented(whole, mtu, identification)
        self.assertTrue(all(len(raw) <= mtu for raw in cut))
        payload = b""
        for raw in cut:
            packet = parse(raw)
            fragment = packet.fragment or Fragment(0, 0, False, 0)
            self.assertEqual((fragment.offset, fragment.more), (len(payload), raw is not cut[-1]))
            self.assertIn(fragment.identification, (0, identification & 0xFFFF, identification & 0xFFFFFFFF))
            payload += raw[packet.payloadStart :]
        self.assertEqual(payload, whole[parse(whole).payloadStart :])

    def test_refused(self) -> None:
        """A packet with options is not cut, nor a fragment, nor one into nothing."""
        for raw in (OPTIONS4, EXTENSIONS6, FRAGMENT6, spoil(UDP4, 6, 0x20, 0)):
            self.assertRaises(PacketError, fragmented, raw, len(raw) - 1, 1)
        self.assertRaises(PacketError, fragmented, UDP4, 27, 1)
        self.assertEqual(len(fragmented(UDP4, 28, 1)), 2)
        self.assertRaises(PacketError, fragmented, UDP6, 52, 1)
