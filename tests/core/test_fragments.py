"""Tests for L{udptunnel.core.fragments}."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.packet import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.wire.packets import ALICE4, ALICE6, BOB4, BOB6, FRAGMENT6, OPTIONS4, PAIRS, UDP4
from udptunnel.core.fragments import LIFE_SECONDS, MOST_BYTES, MOST_PACKETS, PART_BYTES, Fragments
from udptunnel.wire.checksum import wordSum
from udptunnel.wire.ip import FRAGMENT, MORE_FRAGMENTS, TCP, UDP, fragmented, ipHeader, ipv4Header, ipv6Header, parse
from udptunnel.wire.transport import checksumHolds, parseUdp, udpPacket

thorough = settings(max_examples=EXAMPLES, deadline=None)
few = settings(max_examples=max(10, EXAMPLES // 10), deadline=None)

Pair = tuple[bytes, bytes]

SMALL = bytes(range(40))

pairs = st.sampled_from(PAIRS)


def makePart(
    pair: Pair, offset: int, payload: bytes, more: bool = True, identification: int = 5, protocol: int = UDP
) -> bytes:
    """A fragment."""
    if len(pair[0]) == 4:
        flags = MORE_FRAGMENTS * more
        return ipv4Header(*pair, protocol, len(payload), identification, flags, offset) + payload
    header = bytes((protocol, 0)) + (offset | more).to_bytes(2, "big") + identification.to_bytes(4, "big")
    return ipv6Header(*pair, FRAGMENT, 8 + len(payload)) + header + payload


def makeParts(pair: Pair, *places: tuple[int, int], payload: bytes = SMALL) -> list[bytes]:
    """Parts of a payload, from place to place; the one with its end is the last."""
    return [makePart(pair, start, payload[start:end], end < len(payload)) for start, end in places]


def feed(fragments: Fragments, *raws: bytes, now: float = 0.0) -> list[bytes | None]:
    """Let packets come; returns what is whole after each of them."""
    return [fragments.add(raw, parse(raw), now) for raw in raws]


def whole(pair: Pair, payload: bytes = SMALL) -> bytes:
    """The packet of a payload, as it is put together."""
    if len(pair[0]) == 4:
        return ipv4Header(*pair, UDP, len(payload), 5, 0) + payload
    return ipv6Header(*pair, UDP, len(payload)) + payload


class WholeTests(SynchronousTestCase):
    """Packets that become whole."""

    def test_constants(self) -> None:
        """A packet has half a minute; there are bounds."""
        self.assertEqual((LIFE_SECONDS, MOST_PACKETS, MOST_BYTES), (30.0, 256, 4 << 20))

    def test_inOrder(self) -> None:
        """The last part that is missing gives the packet, and nothing is kept of it."""
        for pair in PAIRS:
            fragments = Fragments()
            parts = makeParts(pair, (0, 16), (16, 32), (32, 40))
            self.assertEqual(feed(fragments, *parts), [None, None, whole(pair)])
            self.assertEqual((len(fragments), fragments.size, fragments.dropped), (0, 0, 0))

    def test_anyOrder(self) -> None:
        """Parts may come in any order."""
        for pair in PAIRS:
            for order in ((2, 1, 0), (1, 2, 0), (2, 0, 1), (1, 0, 2), (0, 2, 1)):
                parts = makeParts(pair, (0, 8), (8, 32), (32, 40))
                found = feed(Fragments(), *[parts[place] for place in order])
                self.assertEqual(found, [None, None, whole(pair)], order)

    def test_twice(self) -> None:
        """A part that comes twice is ignored the second time."""
        for pair in PAIRS:
            first, second, third = makeParts(pair, (0, 16), (16, 32), (32, 40))
            found = feed(Fragments(), first, first, third, third, first, second)
            self.assertEqual(found, [None] * 5 + [whole(pair)])

    def test_unfragmented(self) -> None:
        """A whole packet is whole, without what follows it in its frame."""
        alone = makePart(PAIRS[1], 0, SMALL, more=False)
        for raw in (UDP4, alone):
            fragments = Fragments()
            self.assertEqual(fragments.add(raw + b"trailer", parse(raw), 0.0), raw)
            self.assertEqual((len(fragments), fragments.size, fragments.dropped), (0, 0, 0))

    def test_copied(self) -> None:
        """The frame may be overwritten after a part of it was added."""
        fragments = Fragments()
        for raw in makeParts(PAIRS[0], (0, 16), (16, 40)):
            frame = bytearray(raw) + b"trailer"
            found = fragments.add(memoryview(frame), parse(raw), 0.0)
            frame[:] = bytes(len(frame))
        self.assertEqual(found, whole(PAIRS[0]))

    def test_options(self) -> None:
        """The options of the first part are kept, and its checksum is right."""
        first = OPTIONS4[:4] + bytes.fromhex("00052000 40110000") + OPTIONS4[12:32] + SMALL[:8]
        first = first[:2] + len(first).to_bytes(2, "big") + first[4:]
        (_, found) = feed(Fragments(), *makeParts(PAIRS[0], (8, 40)), first)
        assert found is not None
        self.assertEqual((found[:10], found[12:]), (first[:2] + b"\0\x48\0\5\0\0\x40\x11", first[12:] + SMALL[8:]))
        self.assertEqual(wordSum(found[:32]), 0xFFFF)

    def test_extensions(self) -> None:
        """What stands before the fragment header is kept, and leads to what followed it."""
        rest = makePart(PAIRS[1], 8, b"Hello, world!", more=False)
        _, found = feed(Fragments(), rest, FRAGMENT6)
        header = FRAGMENT6[:4] + b"\0\x1d" + FRAGMENT6[6:40] + b"\x11" + FRAGMENT6[41:48]
        self.assertEqual(found, header + FRAGMENT6[56:] + b"Hello, world!")
        assert found is not None
        self.assertEqual((parse(found).protocol, parse(found).payloadStart), (UDP, 48))

    def test_theFirstProtocolCounts(self) -> None:
        """In IPv6 it is the first part that says what a packet is."""
        parts = makePart(PAIRS[1], 16, b"x", more=False, protocol=TCP), makePart(PAIRS[1], 0, SMALL[:16])
        _, found = feed(Fragments(), *parts)
        assert found is not None
        self.assertEqual(parse(found).protocol, UDP)

    def test_apart(self) -> None:
        """Parts of packets of another number, source, destination or (in IPv4) protocol do not mix."""
        for pair in PAIRS:
            fragments = Fragments()
            first, last = makeParts(pair, (0, 16), (16, 40))
            others = [
                makePart(pair, 16, SMALL[16:], False, 6),
                makePart((pair[1], pair[1]), 16, SMALL[16:], False),
                makePart((pair[0], pair[0]), 16, SMALL[16:], False),
            ]
            if pair == PAIRS[0]:
                others.append(makePart(pair, 16, SMALL[16:], False, protocol=TCP))
            self.assertEqual(feed(fragments, first, *others, last), [None] * (1 + len(others)) + [whole(pair)])
            self.assertEqual(len(fragments), len(others))

    def test_largest(self) -> None:
        """The largest packet is put together; one that would be longer is dropped."""
        for pair, largest in zip(PAIRS, (65515, 65535), strict=True):
            payload = bytes(largest)
            raws = [makePart(pair, 0, payload[:65000]), makePart(pair, 65000, payload[65000:], more=False)]
            self.assertEqual(feed(Fragments(), *raws), [None, whole(pair, payload)])
            fragments = Fragments()
            raws[1] = makePart(pair, 65000, payload[65000:] + b"x", more=False)
            self.assertEqual(feed(fragments, *raws), [None, None])
            fragments.expire(LIFE_SECONDS)
            self.assertEqual((len(fragments), fragments.dropped), (0, 1))

    @few
    @given(st.integers(1300, 4000), st.integers(80, 1200), st.randoms())
    def test_scapy(self, length: int, mtu: int, random: Random) -> None:
        """Fragments that scapy makes become the packet that they were."""
        payload = bytes(each & 0xFF for each in range(length))
        udp = inet.UDP(sport=1, dport=2) / Raw(payload)
        packet4 = inet.IP(src="192.0.2.1", dst="198.51.100.7", id=5) / udp
        packet6 = inet6.IPv6(src="2001:db8::1", dst="2001:db8::7") / inet6.IPv6ExtHdrFragment(id=5) / udp
        cuts = inet.fragment(packet4, mtu), inet6.fragment6(packet6, 1280)
        for cut, pair, header in zip(cuts, PAIRS, (20, 40), strict=True):
            raws = random.sample([bytes(each) for each in cut], len(cut))
            *missing, found = feed(Fragments(), *raws)
            self.assertEqual(missing, [None] * (len(cut) - 1))
            assert found is not None
            self.assertEqual(found[header:], udpPacket(*pair, 1, 2, payload)[header:])

    @thorough
    @given(pairs, st.binary(max_size=400), st.integers(60, 200), st.randoms())
    def test_roundTrip(self, pair: Pair, payload: bytes, mtu: int, random: Random) -> None:
        """What we cut is put together, in any order and with parts that come again."""
        packet = udpPacket(*pair, 4000, 53, payload)
        cut = fragmented(packet, mtu, 9)
        cut += random.sample(cut, random.randrange(len(cut)))
        random.shuffle(cut)
        found = next(each for each in feed(Fragments(), *cut) if each is not None)
        udp = parseUdp(found, parse(found))
        self.assertEqual(found[udp.payloadStart : udp.payloadEnd], payload)
        self.assertTrue(checksumHolds(found, parse(found)))


class BadTests(SynchronousTestCase):
    """Packets that never become whole."""

    def test_overlap(self) -> None:
        """If parts overlap all of the packet is dropped, also what comes later, and even if they agree (RFC 5722)."""
        for pair in PAIRS:
            for places in (
                ((0, 16), (8, 24)),
                ((8, 24), (0, 16)),
                ((0, 24), (8, 16)),
                ((8, 16), (0, 24)),
                ((0, 16), (0, 8)),
                ((0, 8), (0, 16)),
                ((24, 40), (16, 32)),
                ((16, 40), (32, 40)),
            ):
                fragments = Fragments()
                parts = makeParts(pair, *places, (0, 8), (8, 16), (16, 24), (24, 32), (32, 40))
                self.assertEqual(feed(fragments, *parts), [None] * len(parts), places)
                fragments.expire(LIFE_SECONDS)
                self.assertEqual((len(fragments), fragments.dropped), (0, 1))

    def test_otherBytes(self) -> None:
        """A part at the same place with other bytes is an overlap."""
        for pair in PAIRS:
            first, last = makeParts(pair, (0, 16), (16, 40))
            other = makePart(pair, 0, bytes(16))
            self.assertEqual(feed(Fragments(), first, other, first, last), [None] * 4)

    def test_twoEnds(self) -> None:
        """A packet ends once: behind its last part nothing comes, and no other part is the last."""
        for pair in PAIRS:
            for spoiler in (
                makePart(pair, 40, bytes(8)),
                makePart(pair, 40, bytes(8), more=False),
                makePart(pair, 8, bytes(8), more=False),
                makePart(pair, 24, SMALL[24:] + b"x", more=False),
            ):
                first, middle, last = makeParts(pair, (0, 16), (16, 24), (24, 40))
                for order in ((first, last, spoiler, middle), (first, spoiler, last, middle)):
                    self.assertEqual(feed(Fragments(), *order), [None] * 4)

    def test_afterwards(self) -> None:
        """When its time is over the number of a dropped packet can be used again."""
        for pair in PAIRS:
            fragments = Fragments()
            feed(fragments, *makeParts(pair, (0, 16), (8, 24)))
            parts = makeParts(pair, (0, 16), (16, 40))
            self.assertEqual(feed(fragments, *parts, now=LIFE_SECONDS - 1), [None, None])
            self.assertEqual(feed(fragments, *parts, now=LIFE_SECONDS), [None, whole(pair)])

    def test_improper(self) -> None:
        """A part of nothing is dropped, and one that no other can follow; the packet may still become whole."""
        for pair in PAIRS:
            fragments = Fragments()
            first, last = makeParts(pair, (0, 16), (16, 40))
            bad = [makePart(pair, 16, SMALL[16:length]) for length in (17, 23, 25)] + [makePart(pair, 16, b"")]
            bad.append(makePart(pair, 16, b"", more=False))
            self.assertEqual(feed(fragments, first, *bad, last), [None] * 6 + [whole(pair)])
            self.assertEqual(fragments.dropped, 5)

    def test_beyondTheEnd(self) -> None:
        """No part lies beyond what the longest packet holds: the "ping of death"."""
        for pair in PAIRS:
            for raw in (makePart(pair, 65528, bytes(8)), makePart(pair, 65528, bytes(300), more=False)):
                fragments = Fragments()
                feed(fragments, raw, *[makePart(pair, start, bytes(9360)) for start in range(0, 65520, 9360)])
                fragments.expire(LIFE_SECONDS)
                self.assertEqual((len(fragments), fragments.dropped), (0, 1))


class BoundsTests(SynchronousTestCase):
    """What waits is bounded."""

    def test_time(self) -> None:
        """A packet has half a minute from its first part on, however often parts of it come."""
        for pair in PAIRS:
            first, middle, last = makeParts(pair, (0, 16), (16, 32), (32, 40))
            for late, found in ((29.9, whole(pair)), (30.0, None)):
                fragments = Fragments()
                feed(fragments, first, now=100.0)
                feed(fragments, middle, now=129.0)
                self.assertEqual(feed(fragments, last, now=100.0 + late), [found])

    def test_expire(self) -> None:
        """Those that took too long are forgotten and counted; the others stay."""
        fragments = Fragments()
        for number in range(5):
            feed(fragments, makePart(PAIRS[0], 0, bytes(8), identification=number), now=10.0 * number)
        fragments.expire(50.0)
        self.assertEqual((len(fragments), fragments.dropped), (2, 3))
        fragments.expire(1000.0)
        fragments.expire(1000.0)
        self.assertEqual((len(fragments), fragments.dropped), (0, 5))

    def test_packets(self) -> None:
        """If there are too many, the one that began first makes room."""
        fragments = Fragments(mostPackets=3)
        for number in range(5):
            feed(fragments, makePart(PAIRS[0], 0, bytes(8), identification=number))
        self.assertEqual((len(fragments), fragments.dropped), (3, 2))
        lasts = [makePart(PAIRS[0], 8, b"x", False, number) for number in range(2, 5)]
        self.assertTrue(all(feed(fragments, *lasts)))

    def test_bytes(self) -> None:
        """If they take too much, too."""
        fragments = Fragments(mostBytes=10_000)
        for number in range(20):
            feed(fragments, makePart(PAIRS[1], 0, bytes(2000), identification=number))
        self.assertEqual((len(fragments), fragments.dropped), (4, 16))

    def test_tinyParts(self) -> None:
        """Tiny parts count for what they take, and so do the headers that are kept."""
        fragments = Fragments(mostBytes=100 * PART_BYTES)
        feed(fragments, *[makePart(PAIRS[0], 16 * place, bytes(8)) for place in range(200)])
        self.assertEqual((len(fragments), fragments.dropped), (1, 2))
        fragments = Fragments(mostBytes=2000)
        body = b"\x2c\xff" + bytes(2046) + bytes.fromhex("1100000100000005") + bytes(8)
        feed(fragments, ipv6Header(ALICE6, BOB6, 0, len(body)) + body)
        self.assertEqual((len(fragments), fragments.dropped), (0, 1))

    def test_spoiled(self) -> None:
        """A packet that is dropped because of an overlap holds no bytes, whatever else comes of it."""
        fragments = Fragments(mostBytes=5000)
        for number in range(10):
            raws = [makePart(PAIRS[0], offset, bytes(2000), True, number) for offset in (0, 8, 2000, 4000)]
            feed(fragments, *raws)
        self.assertEqual((len(fragments), fragments.dropped), (10, 0))

    @thorough
    @given(
        st.lists(
            st.tuples(
                pairs, st.integers(0, 4), st.integers(0, 10), st.integers(0, 20), st.booleans(), st.integers(0, 9)
            ),
            max_size=60,
        ),
        st.integers(1, 4),
        st.integers(500, 3000),
    )
    def test_model(self, steps: list[tuple[Pair, int, int, int, bool, int]], mostPackets: int, mostBytes: int) -> None:
        """Whatever comes, the bounds hold, what is whole is a good packet, and nothing is left in the end."""
        fragments, now = Fragments(mostPackets, mostBytes), 0.0
        for pair, number, eights, length, more, pause in steps:
            now += pause
            (found,) = feed(fragments, makePart(pair, 8 * eights, SMALL[:length], more, number), now=now)
            self.assertLessEqual(len(fragments), mostPackets)
            self.assertLessEqual(fragments.size, mostBytes)
            if found is not None:
                self.assertEqual(parse(found).totalLength, len(found))
                self.assertIs(parse(found).fragment, None)
        fragments.expire(now + LIFE_SECONDS)
        self.assertEqual((len(fragments), fragments.size), (0, 0))


class HeaderTests(SynchronousTestCase):
    """The builders here make what scapy reads."""

    def test_parts(self) -> None:
        """A fragment says where it belongs."""
        part = inet.IP(makePart((ALICE4, BOB4), 16, b"12345678"))
        self.assertEqual((part.frag, int(part.flags), part.id, part.proto), (2, 1, 5, UDP))
        part = inet6.IPv6(makePart((ALICE6, BOB6), 16, b"12345678"))[inet6.IPv6ExtHdrFragment]
        self.assertEqual((part.offset, part.m, part.id, part.nh), (2, 1, 5, UDP))
        self.assertEqual(ipHeader(ALICE6, BOB6, UDP, 0)[6], UDP)
