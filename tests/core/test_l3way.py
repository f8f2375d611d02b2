"""Tests for L{udptunnel.core.l3way}, with what is below it: two ends, packets between them, and attackers."""

from __future__ import annotations

import random
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.core.l3 import (
    ALICE4,
    ALICE6,
    BEHIND_A,
    BOB4,
    BOB6,
    FOUR,
    KEY,
    SIX,
    A,
    B,
    Ends,
    Moments,
    completed,
    fragment,
    headerSum,
    joined,
    life,
    partial,
    plain,
    superPacket,
    tcpPacket,
    udpPacket,
)
from udptunnel.core.l3outward import MOST_REFUSALS
from udptunnel.core.l3peer import (
    ASK_SECONDS,
    DEAD_SECONDS,
    LIFE_SECONDS,
    LIVELY_SECONDS,
    MOST_ASKED,
    PENDING_SECONDS,
    RENEW_SECONDS,
)
from udptunnel.core.l3policy import Own
from udptunnel.core.l3way import MOST_IN_BURST, WAITING_BATCHES, WAITING_SECONDS, Message, Way, merged
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, count
from udptunnel.wire.checksum import complete
from udptunnel.wire.ip import ICMP, ICMPV6, TCP, UDP, ipHeader, parse
from udptunnel.wire.l3 import DATA, INITIATION_BYTES, OPEN, OVERHEAD
from udptunnel.wire.transport import SYN, checksumHolds
from udptunnel.wire.vnet import GSO_UDP, NEEDS_CSUM, PLAIN, VnetHeader, packVnet

ELSEWHERE = Address("203.0.113.9", 4444)


def older(packet: bytes) -> bytes:
    """A packet as it arrives: one hop older."""
    return life(packet, 63)


class HandshakeTests(SynchronousTestCase):
    """How sessions begin, go on and end."""

    def test_begins(self) -> None:
        """The end that knows the other one begins at once, and both have a session then."""
        ends = Ends()
        self.assertEqual((ends.a.up, ends.b.up, ends.b.peer), (False, False, None))
        ends.up()
        self.assertEqual((ends.a.peer, ends.b.peer), (B, A))
        self.assertEqual([len(datagram) for _, datagram in ends.sent], [INITIATION_BYTES, 60, OVERHEAD])

    def test_quiet(self) -> None:
        """Without a keepalive an end begins when there is something to send, and not before."""
        ends = Ends(keepalive=0)
        ends.wait(5)
        self.assertEqual(ends.sent, [])
        _, atB = ends.send(ends.a, plain(udpPacket()))
        self.assertEqual(atB, [older(udpPacket())])

    def test_waits(self) -> None:
        """What comes before there is a session goes through as soon as there is one; some of it, and not for long."""
        ends = Ends()
        ends.lost = True
        ends.send(ends.a, *[plain(udpPacket(payload=bytes((n,)))) for n in range(WAITING_BATCHES + 1)])
        ends.lost = False
        _, atB = ends.carry(ends.a, [*self.until(ends)])
        self.assertEqual([packet[-1] for packet in atB], list(range(1, WAITING_BATCHES + 1)))
        self.assertEqual(ends.a.counters.dropped, {"no session": 1})
        ends = Ends()
        ends.lost = True
        ends.send(ends.a, plain(udpPacket()))
        ends.wait(WAITING_SECONDS + 1)
        self.assertEqual(ends.a.counters.dropped, {"no session": 1})

    def until(self, ends: Ends) -> list[Message]:
        """The next INITIATION."""
        while True:
            ends.now += 0.25
            if messages := ends.a.tick(ends.now):
                return messages

    def test_retries(self) -> None:
        """It is tried again, at first soon and then each five seconds or so."""
        ends = Ends()
        ends.lost = True
        moments = []
        for _ in range(120):
            ends.now += 0.25
            moments += [ends.now] * len(ends.a.tick(ends.now))
        gaps = [b - a for a, b in pairwise(moments)]
        self.assertTrue(0.9 <= gaps[0] <= 1.35 and 1.8 <= gaps[1] <= 2.5, gaps)
        self.assertTrue(all(4.5 <= gap <= 5.75 for gap in gaps[2:]), gaps)

    def test_givesUp(self) -> None:
        """Without a keepalive nobody is called for ever."""
        ends = Ends(keepalive=0)
        ends.lost = True
        ends.send(ends.a, plain(udpPacket()))
        ends.wait(300, 1)
        before = len(ends.sent)
        ends.wait(100, 1)
        self.assertEqual(len(ends.sent), before)

    def test_renewed(self) -> None:
        """A session is renewed before it is over, and no packet is lost meanwhile."""
        ends = Ends().up()
        for number in range(int(LIFE_SECONDS * 4)):
            ends.wait(0.5)
            _, atB = ends.send(ends.a, plain(udpPacket(payload=number.to_bytes(4, "big"))))
            atA, _ = ends.send(ends.b, plain(udpPacket((BOB4, ALICE4))))
            self.assertEqual((len(atA), len(atB)), (1, 1), number)
        handshakes = [each for each in ends.sent if len(each[1]) == INITIATION_BYTES and each[1][0] == 1]
        self.assertEqual(len(handshakes), 1 + int(2 * LIFE_SECONDS / RENEW_SECONDS[True]))
        self.assertFalse(ends.a.counters.dropped + ends.b.counters.dropped)

    def test_over(self) -> None:
        """Who hears nothing more has no session any more, and no key of it."""
        ends = Ends(keepalive=0)
        ends.send(ends.a, plain(udpPacket()))
        ends.wait(LIFE_SECONDS + 1, 1)
        self.assertEqual((ends.a.up, ends.b.up), (False, False))
        self.assertEqual((ends.a._peer.sessions, ends.b._peer.sessions), ({}, {}))

    def test_both(self) -> None:
        """Both may begin at the same moment; packets go both ways, then and later."""
        ends = Ends(knows=True)
        fromA, fromB = ends.a.tick(0), ends.b._messages(ends.b._peer.begin(0))
        ends.carry(ends.a, fromA)
        ends.carry(ends.b, fromB)
        for _ in range(int(LIFE_SECONDS * 2)):
            ends.wait(1)
            _, atB = ends.send(ends.a, plain(udpPacket()))
            atA, _ = ends.send(ends.b, plain(udpPacket((BOB4, ALICE4))))
            self.assertEqual((len(atA), len(atB)), (1, 1))
            ages = [way.report(ends.now)["session"] for way in (ends.a, ends.b)]
            self.assertLess(max(ages), RENEW_SECONDS[False] + 2)  # type: ignore[type-var]

    def cross(self, seed: int) -> Ends:
        """Both begin at the same moment, and hear each other's INITIATION before the RESPONSE."""
        ends = Ends(knows=True)
        ends.a, ends.b = ends.makeA(seed=2 * seed), ends.makeB(A, seed=2 * seed + 1)
        fromA, fromB = ends.a.tick(0), ends.b._messages(ends.b._peer.begin(0))
        ends.carryAll([(ends.a, message) for message in fromA] + [(ends.b, message) for message in fromB])
        return ends

    def test_crossing(self) -> None:
        """
        If both begin at the same moment, both send in one session then, whichever it is. So each is followed to where
        it goes, and no packet is lost when the next session begins.
        """
        begun = set()
        for seed in range(8):
            ends = self.cross(seed)
            a, b = ends.a._peer.current, ends.b._peer.current
            assert a is not None and b is not None
            self.assertEqual((a.index, a.remote, a.began), (b.remote, b.index, not b.began))
            begun.add(a.began)
            ends.atA = ELSEWHERE
            self.assertEqual(len(ends.send(ends.a, plain(udpPacket()))[1]), 1)
            self.assertEqual(ends.b.peer, ELSEWHERE)
            late = ends.datagrams(ends.b, plain(udpPacket((BOB4, ALICE4))))
            ends.carry(ends.a, ends.a._messages(ends.a._peer._begin(ends.now)))
            for datagram in late:
                self.assertEqual(len(ends.a.received([Burst(B, len(datagram), datagram)], ends.now)[0]), 1)
        self.assertEqual(begun, {True, False})

    def test_confirmed(self) -> None:
        """Who answers uses the new session only once the other end has: an INITIATION may be a replayed one."""
        ends = Ends(knows=True)
        (initiation,) = ends.a.tick(0)
        _, (response,) = ends.b.received([Burst(A, initiation.size, initiation.payload)], 0)
        self.assertFalse(ends.b.up)
        _, (said,) = ends.a.received([Burst(B, response.size, response.payload)], 0)
        ends.b.received([Burst(A, said.size, said.payload)], 0)
        self.assertTrue(ends.b.up)


class TrafficTests(SynchronousTestCase):
    """Packets that go through."""

    def test_packets(self) -> None:
        """A packet arrives as it was, one hop older, of both versions and both ways."""
        ends = Ends().up()
        for make in (udpPacket, tcpPacket):
            for pair in (FOUR, SIX):
                packet, back = make(pair, b"hello"), make((pair[1], pair[0]), b"hello")
                self.assertEqual(ends.send(ends.a, plain(packet)), ([], [older(packet)]))
                self.assertEqual(ends.send(ends.b, plain(back)), ([older(back)], []))

    def test_padded(self) -> None:
        """What stands behind the end of a packet stays behind."""
        ends = Ends().up()
        self.assertEqual(ends.send(ends.a, plain(udpPacket()) + bytes(18))[1], [older(udpPacket())])

    def test_superPackets(self) -> None:
        """A super-packet arrives as a super-packet if somebody takes it, otherwise in parts; checksums are partial."""
        for pair in (FOUR, SIX):
            packet = tcpPacket(pair, random.Random(1).randbytes(40_000), full=False)
            ends = Ends().up()
            _, parts = ends.send(ends.a, superPacket(packet, 1300))
            self.assertEqual([len(each) for each in parts], [len(packet) - 40_000 + 1300] * 30 + [len(packet) - 39_000])
            self.assertTrue(all(checksumHolds(whole, parse(whole)) for whole in map(completed, parts)))
            ends.b.join((TCP,))
            self.assertEqual(ends.send(ends.a, superPacket(packet, 1300))[1], [older(packet)])

    def test_bursts(self) -> None:
        """Packets of one length go out as one burst, of no more messages than the kernel cuts."""
        ends = Ends().up()
        messages, _ = ends.a.captured([plain(udpPacket(payload=bytes(1000)))] * 100, ends.now)
        self.assertEqual([count(each.size, each.payload) for each in messages], [61, 39])
        messages, _ = ends.a.captured([plain(udpPacket())] * 100, ends.now)
        self.assertEqual([count(each.size, each.payload) for each in messages], [MOST_IN_BURST, 36])
        sizes = [(DATA, [b"aa"]), (DATA, [b"b"]), (DATA, [b"c"]), (OPEN, [b"d"]), (OPEN, [b"ee"])]
        self.assertEqual(merged(sizes), [(DATA, [b"aa", b"b"]), (DATA, [b"c"]), (OPEN, [b"d"]), (OPEN, [b"ee"])])

    def test_disorder(self) -> None:
        """Messages may come in any order, late ones under the session before, and each only once."""
        ends = Ends().up()
        datagrams = ends.datagrams(ends.a, *[plain(udpPacket(payload=bytes((n,)))) for n in range(50)])
        random.Random(5).shuffle(datagrams)
        late = datagrams.pop()
        got = [joined(ends.b.received([Burst(A, len(each), each)], 0)[0]) for each in datagrams * 2]
        self.assertEqual([len(each) for each in got], [1] * 49 + [0] * 49)
        ends.carry(ends.a, ends.a._messages(ends.a._peer._begin(1.0)))
        self.assertEqual(len(ends.b.received([Burst(A, len(late), late)], 1)[0]), 1)

    def test_unusual(self) -> None:
        """A partial checksum that is not where the other end would look is completed here."""
        ends = Ends().up()
        packet = ipHeader(*FOUR, 47, 12) + bytes(4) + b"abcdefgh"
        frame = packVnet(VnetHeader(NEEDS_CSUM, 0, 0, 0, 20, 2)) + packet
        whole = bytearray(packet)
        complete(whole, 20, 2)
        self.assertEqual(ends.send(ends.a, frame)[1], [older(bytes(whole))])

    def test_mss(self) -> None:
        """Both ends of a TCP connection learn how long a segment may be, whichever end looks at their SYNs."""
        ends = Ends().up()
        for pair, most in ((FOUR, 1380), (SIX, 1360)):
            packet = tcpPacket(pair, flags=SYN, options=b"\2\4\x05\xb4")
            (arrived,) = ends.send(ends.a, plain(packet))[1]
            self.assertEqual(arrived[-2:], most.to_bytes(2, "big"))
            self.assertTrue(checksumHolds(arrived, parse(arrived)))
            (open_,) = ends.send(ends.a, partial(tcpPacket(pair, flags=SYN, options=b"\2\4\x05\xb4", full=False)))[1]
            self.assertEqual(completed(open_), arrived)
        ends.b.mtu = 1300
        (arrived,) = ends.send(ends.a, plain(tcpPacket(flags=SYN, options=b"\2\4\x05\xb4")))[1]
        self.assertEqual(arrived[-2:], (1260).to_bytes(2, "big"))
        self.assertTrue(checksumHolds(arrived, parse(arrived)))


class LimitTests(SynchronousTestCase):
    """What is too long, too old, or too much."""

    def setUp(self) -> None:
        self.ends = Ends().up()

    def refused(self, frame: bytes, reason: str) -> bytes:
        """The word that a sender gets, and nothing arrives."""
        (word,), arrived = self.ends.send(self.ends.a, frame)
        self.assertEqual(arrived, [])
        self.assertEqual(self.ends.a.counters.dropped[reason], 1)
        self.assertTrue(checksumHolds(word, parse(word)))
        return word

    def test_tooLong(self) -> None:
        """The sender of what is too long learns how long it may be; 1,420 bytes are not too long."""
        for pair, header, kind in ((FOUR, 28, b"\3\4"), (SIX, 48, b"\2\0")):
            fits = udpPacket(pair, bytes(1420 - header))
            self.assertEqual(self.ends.send(self.ends.a, plain(fits))[1], [older(fits)])
            self.ends.a.counters.dropped.clear()
            word = self.refused(plain(udpPacket(pair, bytes(1421 - header))), "outward too long")
            found = parse(word)
            self.assertEqual((found.destination, found.protocol), (pair[0], ICMP if len(pair[0]) == 4 else ICMPV6))
            self.assertEqual(word[found.payloadStart :][:2], kind)
            self.assertEqual(int.from_bytes(word[found.payloadStart + 4 :][:4], "big"), 1420)

    def test_longSegments(self) -> None:
        """So does who sends segments that are too long, though the kernel handed over many as one."""
        packet = tcpPacket(SIX, bytes(10_000), full=False)
        word = self.refused(superPacket(packet, 1440), "outward too long")
        self.assertEqual(parse(word).destination, ALICE6)

    def test_cut(self) -> None:
        """IPv4 that may be cut is cut: single packets, and those of a super-packet."""
        for packet, frame in (
            (udpPacket(payload=bytes(3000)), None),
            (udpPacket(payload=bytes(3000), full=False), 1450),
        ):
            raw = bytearray(packet)
            raw[4:8] = bytes((0, 7 if frame is None else 17, 0, 0))
            raw = bytearray(headerSum(raw))
            given = plain(bytes(raw)) if frame is None else superPacket(bytes(raw), frame)
            _, arrived = self.ends.send(self.ends.a, given)
            self.assertTrue(all(len(each) <= 1420 for each in arrived))
            self.assertEqual(sum(len(each) - 20 for each in arrived), 3008 if frame is None else 3000 + 3 * 8)

    def test_ufo(self) -> None:
        """A packet that the kernel wants to have cut into fragments is cut into fragments."""
        raw = bytearray(udpPacket(payload=bytes(4000), full=False))
        raw[6:8] = b"\0\0"
        frame = packVnet(VnetHeader(NEEDS_CSUM, GSO_UDP, 0, 1480, 20, 6)) + headerSum(raw)
        _, arrived = self.ends.send(self.ends.a, frame)
        self.assertEqual(b"".join(each[20:] for each in arrived), completed(bytes(raw))[20:])

    def test_hops(self) -> None:
        """What has met too many routers goes no further, and its sender learns that."""
        for pair, kind in ((FOUR, b"\x0b\0"), (SIX, b"\3\0")):
            self.ends.a.counters.dropped.clear()
            word = self.refused(plain(life(udpPacket(pair), 1)), "outward hops")
            self.assertEqual(word[parse(word).payloadStart :][:2], kind)
            self.assertEqual(
                self.ends.send(self.ends.a, plain(life(udpPacket(pair), 2)))[1], [life(udpPacket(pair), 1)]
            )

    def test_fewWords(self) -> None:
        """There are only so many errors a second, and none about errors."""
        _, refusals = self.ends.a.captured([plain(life(udpPacket(), 1))] * (MOST_REFUSALS + 50), self.ends.now)
        self.assertEqual(len(refusals), MOST_REFUSALS)
        self.ends.now += 60
        error = ipHeader(*FOUR, ICMP, 8) + b"\3\3" + bytes(6)
        self.assertEqual(self.ends.a.captured([plain(life(error, 1))], self.ends.now)[1], [])

    def test_refused(self) -> None:
        """What is too long behind the other end is reported through the tunnel."""
        packet = udpPacket(FOUR, bytes(1300))
        atA, _ = self.ends.carry(self.ends.b, self.ends.b.refused(packet, 1000, 0))
        self.assertEqual((parse(atA[0]).destination, atA[0][26:28]), (ALICE4, (1000).to_bytes(2, "big")))

    def test_malformed(self) -> None:
        """What is no packet, or a super-packet of nothing, is dropped."""
        good = superPacket(tcpPacket(payload=bytes(100), full=False), 10)
        for frame in (
            b"",
            PLAIN,
            plain(udpPacket())[:20],
            superPacket(tcpPacket(full=False), 10),
            superPacket(udpPacket(payload=bytes(10)), 5)[:1] + b"\1" + superPacket(udpPacket(payload=bytes(10)), 5)[2:],
            bytes(good)[:40],
            packVnet(VnetHeader(NEEDS_CSUM, 0, 0, 0, 30, 6)) + udpPacket() + bytes(20),
        ):
            self.ends.a.counters.dropped.clear()
            self.assertEqual(self.ends.send(self.ends.a, frame), ([], []))
            self.assertEqual(self.ends.a.counters.dropped, {"outward malformed": 1}, frame)

    def test_loop(self) -> None:
        """Our own messages are not captured, wherever the other end is said to be."""
        self.ends.b.peer = Address("10.1.0.1", 53)
        packet = udpPacket((BOB4, ALICE4), b"x")
        self.ends.b.captured([plain(packet)], 0)
        self.assertEqual(self.ends.b.counters.dropped, {"outward loop": 1})
        self.assertEqual(len(self.ends.b.captured([plain(udpPacket((BOB4, ALICE4), b"x", port=54))], 0)[0]), 1)
        self.ends.b.peer = Address("not-an-address", 53)
        self.assertEqual(len(self.ends.b.captured([plain(packet)], 0)[0]), 1)


class HostileTests(SynchronousTestCase):
    """S-19: an other end that knows the key, but means harm; and those who do not know it."""

    def setUp(self) -> None:
        self.ends = Ends().up()
        self.ends.a.policy.own = Own(frozenset((ALICE4, ALICE6)))

    def fromB(self, word: int, *packets: bytes) -> list[bytes]:
        """What A injects when B seals anything."""
        session = self.ends.b._peer.current
        assert session is not None
        for packet in packets:
            sealed = session.seal(word, [packet])
            got, answers = self.ends.a.received([Burst(B, len(sealed), sealed)], 0)
            self.assertEqual(answers, [])
            if got:
                return joined(got)
        return []

    def test_good(self) -> None:
        """The packets below would be injected but for what is wrong with them."""
        self.ends.a.policy.own = Own()
        for packet in (udpPacket((BOB4, ALICE4)), udpPacket((BOB6, ALICE6))):
            self.assertEqual(self.fromB(DATA, packet), [packet])

    def test_inward(self) -> None:
        """0 injected: foreign sources, this machine itself, options, source routes, hiding fragments, and nonsense."""
        carol4, carol6 = bytes((10, 1, 0, 9)), ALICE6[:-1] + b"\x09"
        options = bytearray(ipHeader(BOB4, carol4, UDP, 4 + 8))
        options[0] = 0x46
        routed = ipHeader(BOB6, carol6, 43, 8 + 8) + bytes((UDP, 0, 0, 0, 0, 0, 0, 0)) + bytes(8)
        jumbled = udpPacket((BOB4, carol4), b"more")
        cases = {
            "inward source": [udpPacket((carol4, carol4)), udpPacket((bytes((8, 8, 8, 8)), carol4))],
            "inward own address": [udpPacket((BOB4, ALICE4)), udpPacket((BOB6, ALICE6))],
            "inward martian": [udpPacket((BOB4, bytes((each, 0, 0, 1)))) for each in (0, 127, 224, 255)],
            "inward options": [headerSum(bytes(options) + bytes(12)), routed],
            "inward fragment": [
                fragment((BOB4, carol4), TCP, 0, True, bytes(8)),
                fragment((BOB4, carol4), TCP, 8, False, bytes(8)),
                fragment((BOB6, carol6), UDP, 0, True, b""),
            ],
            "inward malformed": [jumbled + b"x", jumbled[:-1], b"\x99" * 40, b"45", bytes(41)],
        }
        for reason, packets in cases.items():
            self.ends.a.counters.dropped.clear()
            self.assertEqual(self.fromB(DATA, *packets), [], reason)
            self.assertEqual(self.ends.a.counters.dropped, {reason: len(packets)})

    def test_overlap(self) -> None:
        """Of fragments that overlap only the first one is injected."""
        first = fragment((BOB4, bytes((10, 1, 0, 9))), UDP, 0, True, bytes(16))
        again = fragment((BOB4, bytes((10, 1, 0, 9))), UDP, 8, False, bytes(16))
        self.assertEqual(self.fromB(DATA, first), [first])
        self.assertEqual(self.fromB(DATA, again), [])

    def test_open(self) -> None:
        """A partial checksum is TCP's or UDP's, of a whole packet."""
        carol = bytes((10, 1, 0, 9))
        # Its fifth and sixth byte would be the length of a datagram.
        echo = ipHeader(BOB4, carol, ICMP, 8) + b"\x08\0\0\0\0\x08\0\0"
        part = fragment((BOB4, carol), UDP, 0, True, bytes(16))
        self.assertEqual(self.fromB(OPEN, echo, part, tcpPacket((BOB4, carol))[:30]), [])
        self.assertEqual(self.ends.a.counters.dropped["inward malformed"], 3)

    def test_joinedRules(self) -> None:
        """A packet that differs from the one before in anything that matters is judged anew."""
        self.ends.a.join((TCP,))
        carol = bytes((10, 1, 0, 9))
        first = tcpPacket((BOB4, carol), bytes(100), full=False)
        second = tcpPacket((bytes((10, 3, 0, 1)), carol), bytes(100), sequence=1100, full=False)
        session = self.ends.b._peer.current
        assert session is not None
        sealed = session.seal(OPEN, [first, second, first])
        got, _ = self.ends.a.received([Burst(B, len(first) + OVERHEAD, sealed)], 0)
        self.assertEqual(joined(got), [first, first])
        self.assertEqual(self.ends.a.counters.dropped, {"inward source": 1})

    def test_tries(self) -> None:
        """Replayed, altered and truncated messages, and those of strangers: 0 injected, 0 answers."""
        injected, answers = tries(2000, 1)
        self.assertEqual((injected, answers), (0, 0))

    def test_counted(self) -> None:
        """What does not pass is counted by its reason."""
        good, again, other = self.ends.datagrams(self.ends.b, *[plain(udpPacket((BOB4, ALICE4)))] * 3)
        for datagram, reason in (
            (good[:-1] + bytes((good[-1] ^ 1,)), "altered"),
            (good[:40], "altered"),
            (good[:31], "stranger"),
            (b"", "stranger"),
            (other[:4] + bytes(4) + other[8:], "stranger"),
        ):
            self.ends.a.counters.dropped.clear()
            self.ends.a.received([Burst(B, len(datagram), datagram)], 0)
            self.assertEqual(self.ends.a.counters.dropped, {reason: 1})
        self.ends.a.counters.dropped.clear()
        self.ends.a.received([Burst(B, len(again), again + again[:40])], 0)
        self.ends.a.received([Burst(B, len(again), again + again)], 0)
        self.assertEqual(self.ends.a.counters.dropped, {"inward own address": 1, "altered": 1, "replayed": 2})

    def test_reflected(self) -> None:
        """An end's own messages, sent back to it, are none of the other end's, at any time."""
        own = [datagram for source, datagram in self.ends.sent if source == A]
        later = self.ends.datagrams(self.ends.a, plain(udpPacket()))
        for datagram in own + later:
            self.assertEqual(self.ends.a.received([Burst(B, len(datagram), datagram)], 0), ([], []))
        waiting = Ends()
        (initiation,) = waiting.a.tick(0)
        self.assertEqual(waiting.a.received([Burst(B, initiation.size, initiation.payload)], 0), ([], []))
        self.assertEqual(waiting.a.counters.dropped, {"handshake replayed": 1})

    def test_otherKey(self) -> None:
        """Who has another key gets no answer, and leaves nothing behind."""
        stranger = Way(bytes(32), B, (), Moments(7).random, Moments(7).moment, keepalive=5)
        (initiation,) = stranger.tick(0)
        before = len(self.ends.b._peer.sessions)
        self.assertEqual(self.ends.b.received([Burst(ELSEWHERE, initiation.size, initiation.payload)], 0), ([], []))
        self.assertEqual(self.ends.b.counters.dropped, {"handshake refused": 1})
        self.assertEqual((len(self.ends.b._peer.sessions), self.ends.b.peer), (before, A))

    def test_recorded(self) -> None:
        """
        Who has recorded an INITIATION of before the start, even the end's own by a clock that was ahead, is answered,
        but locks nobody out with it for longer than some seconds.
        """
        before = Way(KEY, A, BEHIND_A, Moments(9).random, lambda: 10**9, keepalive=5)
        (recorded,) = before.tick(0)
        ends = Ends()
        for expected in (1, 0):
            _, answers = ends.b.received([Burst(ELSEWHERE, recorded.size, recorded.payload)], 0)
            self.assertEqual(len(answers), expected)
        ends.carry(ends.a, ends.a.tick(0))
        self.assertFalse(ends.b.up)
        self.assertEqual(ends.b.counters.dropped, {"handshake replayed": 2})
        ends.wait(3 * PENDING_SECONDS)
        self.assertTrue(ends.b.up)

    def test_answeredTwice(self) -> None:
        """What a session came of is never answered again, nor is what is older."""
        ends = Ends()
        older, newer = ends.a.tick(0) + ends.a._messages(ends.a._peer._begin(0))
        ends.carry(ends.a, [newer])
        self.assertTrue(ends.b.up)
        for message in (newer, older):
            self.assertEqual(ends.b.received([Burst(A, message.size, message.payload)], 100), ([], []))
        self.assertEqual(ends.b.counters.dropped, {"handshake replayed": 2})

    def test_flood(self) -> None:
        """Of INITIATIONs only so many a second cost anything; later the other end gets through as before."""
        stranger = Way(bytes(32), B, (), Moments(7).random, Moments(7).moment, keepalive=5)
        (initiation,) = stranger.tick(0)
        flood = Burst(ELSEWHERE, initiation.size, bytes(initiation.payload) * (MOST_ASKED + 100))
        self.ends.now = 60
        self.ends.b.received([flood], 60)
        self.assertEqual(self.ends.b.counters.dropped, {"handshake refused": MOST_ASKED, "handshake flood": 100})
        before = self.ends.b.report(60)["handshakes"]
        for moment, more in ((60, 0), (60.5, 1)):
            self.ends.carry(self.ends.a, self.ends.a._messages(self.ends.a._peer._begin(moment)))
            self.ends.now = 60.5
            self.assertEqual(self.ends.b.report(moment)["handshakes"], before + more)  # type: ignore[operator]

    def test_lateResponse(self) -> None:
        """An answer that nobody waits for is none."""
        (response,) = [datagram for _, datagram in self.ends.sent if len(datagram) == 60]
        self.assertEqual(self.ends.a.received([Burst(B, 60, response)], 0), ([], []))
        self.assertEqual(self.ends.a.counters.dropped, {"handshake late": 1})
        forged = bytearray(response)
        forged[-1] ^= 1
        waiting = Ends()
        waiting.a.tick(0)
        index = waiting.a._peer._attempt.index  # type: ignore[union-attr]
        forged[8:12] = index.to_bytes(4, "big")
        self.assertEqual(waiting.a.received([Burst(B, 60, bytes(forged))], 0), ([], []))
        self.assertEqual(waiting.a.counters.dropped, {"handshake refused": 1})


def tries(rounds: int, seed: int) -> tuple[int, int]:
    """
    Have attackers try, again and again: each round sends one replayed, altered, truncated or made-up message.

    @return: how many packets were injected, and how many answers sent.
    """
    ends, chance = Ends().up(), random.Random(seed)
    frames = [plain(udpPacket(payload=bytes((n, n)))) for n in range(100)]
    heard = [datagram for source, datagram in ends.sent if source == A] + ends.datagrams(ends.a, *frames)
    for datagram in heard[-100:]:
        ends.b.received([Burst(A, len(datagram), datagram)], 0)
    injected = answers = 0
    for _ in range(rounds):
        datagram = attack(chance, heard)
        source = chance.choice((A, ELSEWHERE))
        packets, messages = ends.b.received([Burst(source, len(datagram), datagram)], 0)
        injected, answers = injected + len(packets), answers + len(messages)
    assert ends.b.peer == A, "an attacker has led our messages elsewhere"
    return injected, answers


def attack(chance: random.Random, heard: list[bytes]) -> bytes:
    """What somebody sends who has heard all of it."""
    datagram = chance.choice(heard)
    kind = chance.randrange(5)
    if kind == 0:
        return datagram
    if kind == 1:
        place = chance.randrange(len(datagram))
        return datagram[:place] + bytes((datagram[place] ^ (1 << chance.randrange(8)),)) + datagram[place + 1 :]
    if kind == 2:
        return datagram[: chance.randrange(len(datagram))]
    if kind == 3:
        return datagram[:16] + chance.randbytes(chance.randrange(100))
    return chance.choice((b"\1\1\0\0", b"\2\1\0\0", b"\3\0\0\0", b"")) + chance.randbytes(chance.randrange(120))


class LivenessTests(SynchronousTestCase):
    """Whether the other end is there, and where."""

    def test_roams(self) -> None:
        """An end is where its newest message comes from, and not where an old one does, or one that is not its own."""
        ends = Ends().up()
        old, new = (ends.datagrams(ends.a, plain(udpPacket()))[0] for _ in range(2))
        ends.b.received([Burst(ELSEWHERE, len(new), new)], 0)
        self.assertEqual(ends.b.peer, ELSEWHERE)
        for datagram in (old, new, new[:-1] + b"\0"):
            ends.b.received([Burst(A, len(datagram), datagram)], 0)
            self.assertEqual(ends.b.peer, ELSEWHERE)

    def test_response(self) -> None:
        """Who answers may be elsewhere than where it was called; there it is from now on."""
        ends = Ends()
        (initiation,) = ends.a.tick(0)
        _, (response,) = ends.b.received([Burst(A, initiation.size, initiation.payload)], 0)
        ends.a.received([Burst(ELSEWHERE, response.size, response.payload)], 0)
        self.assertEqual((ends.a.peer, ends.a.up), (ELSEWHERE, True))

    def assertBack(self, ends: Ends, fromA: bool, within: float = 5.0) -> None:
        """With packets from one side only, each half second, they arrive again within some seconds."""
        way, pair = (ends.a, FOUR) if fromA else (ends.b, (BOB4, ALICE4))
        begin = ends.now
        while True:
            ends.wait(0.5)
            atA, atB = ends.send(way, plain(udpPacket(pair)))
            if atB if fromA else atA:
                return
            self.assertLess(ends.now - begin, within)

    def test_otherRestarted(self) -> None:
        """The other end was killed and started again, and knows nothing: packets of either side go through soon."""
        for fromA in (True, False):
            ends = Ends().up()
            ends.send(ends.a, plain(udpPacket()))
            ends.wait(1)
            ends.b = ends.makeB(seed=22)
            self.assertBack(ends, fromA)

    def test_restarted(self) -> None:
        """The end that begins was killed and started again."""
        for fromA in (True, False):
            ends = Ends().up()
            ends.send(ends.b, plain(udpPacket((BOB4, ALICE4))))
            ends.wait(1)
            ends.a = ends.makeA(seed=11)
            self.assertBack(ends, fromA, 1.5)

    def test_mappingChanged(self) -> None:
        """A NAT has forgotten the one end, which is somewhere else now: packets of either side go through soon."""
        for fromA in (True, False):
            ends = Ends().up()
            ends.send(ends.b, plain(udpPacket((BOB4, ALICE4))))
            ends.wait(1)
            ends.atA = ELSEWHERE
            self.assertBack(ends, fromA)

    def test_oneWay(self) -> None:
        """Who only sends hears at times that somebody is there; so there is no other handshake."""
        ends = Ends(keepalive=0)
        for _ in range(40):
            ends.wait(0.5)
            ends.send(ends.a, plain(udpPacket()))
        self.assertEqual(ends.a.report(ends.now)["handshakes"], 1)

    def test_keepalive(self) -> None:
        """In silence the end with a keepalive asks, and is answered: often after traffic, then as it was told."""
        ends = Ends().up()
        ends.send(ends.a, plain(udpPacket()))
        ends.wait(LIVELY_SECONDS)
        before = len(ends.sent)
        self.assertGreater(before, LIVELY_SECONDS / (ASK_SECONDS + 1))
        ends.wait(50)
        self.assertEqual(len(ends.sent) - before, 4)

    def test_dead(self) -> None:
        """Who gets no answer to packets begins a handshake, and no sooner than that."""
        ends = Ends().up()
        ends.lost = True
        ends.send(ends.a, plain(udpPacket()))
        sent = len(ends.sent)
        ends.wait(DEAD_SECONDS - 0.25)
        self.assertEqual(len(ends.sent), sent)
        ends.wait(0.5)
        self.assertEqual(len(ends.sent[-1][1]), INITIATION_BYTES)

    def test_report(self) -> None:
        """The state says where the other end is, and how it is."""
        ends = Ends()
        self.assertEqual(
            ends.b.report(0), {"peer": "", "session": None, "heard": None, "handshakes": 0, "up": False, "mtu": 1420}
        )
        ends.up()
        ends.now = 5
        report = ends.a.report(5)
        self.assertEqual((report["peer"], report["session"], report["up"]), (str(B), 5.0, True))
