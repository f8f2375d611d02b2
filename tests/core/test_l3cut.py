"""Tests for L{udptunnel.core.l3cut} and L{udptunnel.core.l3join}: what one takes apart, the other puts together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.l3 import ALICE4, FOUR, SIX, completed, headerSum, joined, superPacket, tcpPacket, udpPacket
from tests.examples import EXAMPLES
from udptunnel.core.l3cut import cut
from udptunnel.core.l3join import MOST_SEGMENTS, Joiner
from udptunnel.core.l3outward import payloadStart
from udptunnel.wire import segments
from udptunnel.wire.checksum import pseudoSum
from udptunnel.wire.ip import DONT_FRAGMENT, MORE_FRAGMENTS, TCP, UDP, parse, refragmented
from udptunnel.wire.transport import ACK, CWR, FIN, PSH
from udptunnel.wire.vnet import GSO_ECN, GSO_TCPV4, VNET_BYTES, unpackVnet

several = settings(max_examples=min(EXAMPLES, 300), deadline=None)


def cutUp(packet: bytes, size: int) -> list[bytes]:
    found = parse(packet)
    return cut(packet, found, payloadStart(packet, found), size)


def joinAll(packets: list[bytes], *protocols: int) -> list[tuple[bytes, bytes]]:
    """What is injected of packets with partial checksums: virtio header and packet of each."""
    joiner, place = Joiner(protocols or (TCP, UDP)), 0
    while place < len(packets):
        if done := joiner.followAll(packets, place):
            place += done
            continue
        found = parse(packets[place])
        start = payloadStart(packets[place], found)
        if not joiner.ends(packets[place], found, start):
            joiner.begin(packets[place], found, start)
        place += 1
    joiner.finish()
    whole = [b"".join(each) for each in joiner.done]
    return [(each[:VNET_BYTES], each[VNET_BYTES:]) for each in whole]


ends = st.sampled_from((FOUR, SIX))
payloads = st.binary(min_size=1, max_size=400)


class CutTests(SynchronousTestCase):
    """L{cut}."""

    def assertCut(self, packet: bytes, size: int, frame: bytes) -> None:
        """It makes what a network card makes, but for the checksums, which are partial."""
        pieces = cutUp(packet, size)
        self.assertEqual([completed(piece) for piece in pieces], segments.cut(frame))
        for piece in pieces:
            found = parse(piece)
            field = found.payloadStart + (16 if found.protocol == TCP else 6)
            sum_ = pseudoSum(found.source, found.destination, found.protocol, len(piece) - found.payloadStart)
            self.assertEqual(piece[field : field + 2], sum_.to_bytes(2, "big"))

    @several
    @given(ends, payloads, st.integers(1, 100), st.integers(0, 10), st.sampled_from((ACK, ACK | PSH, ACK | FIN | CWR)))
    def test_tcp(self, ends: tuple[bytes, bytes], payload: bytes, size: int, words: int, flags: int) -> None:
        """It makes what a network card makes, with partial checksums."""
        packet = tcpPacket(ends, payload, flags, 0xFFFFFF00, b"\1" * 4 * words, full=False)
        self.assertCut(packet, size, superPacket(packet, size))

    @several
    @given(ends, payloads, st.integers(1, 100))
    def test_udp(self, ends: tuple[bytes, bytes], payload: bytes, size: int) -> None:
        """The same of datagrams."""
        packet = udpPacket(ends, payload, full=False)
        self.assertCut(packet, size, superPacket(packet, size))

    def test_ecn(self) -> None:
        """CWR is the first one's only (RFC 3168 section 6.1.2)."""
        packet = tcpPacket(payload=bytes(30), flags=ACK | CWR, full=False)
        self.assertCut(packet, 10, superPacket(packet, 10, GSO_TCPV4 | GSO_ECN))
        self.assertEqual([each[33] & CWR for each in cutUp(packet, 10)], [CWR, 0, 0])

    def test_identification(self) -> None:
        """It counts up, and begins again behind its end."""
        packet = bytearray(tcpPacket(payload=bytes(30), full=False))
        packet[4:6] = b"\xff\xfe"
        self.assertEqual([each[4:6].hex() for each in cutUp(headerSum(packet), 10)], ["fffe", "ffff", "0000"])


class JoinTests(SynchronousTestCase):
    """L{Joiner}."""

    @several
    @given(ends, payloads, st.integers(1, 100), st.sampled_from((ACK, ACK | PSH)), st.integers(0, 10))
    def test_inverse(self, ends: tuple[bytes, bytes], payload: bytes, size: int, flags: int, words: int) -> None:
        """What was cut is put together again, as far as one super-packet goes."""
        for packet in (
            tcpPacket(ends, payload, flags, 5, b"\1" * 4 * words, full=False),
            udpPacket(ends, payload, full=False),
        ):
            done = joinAll(cutUp(packet, size))
            if len(payload) <= size * MOST_SEGMENTS:
                self.assertEqual([each for _, each in done], [packet])
                self.assertEqual(unpackVnet(done[0][0] + packet).segmentSize, size if len(payload) > size else 0)
            else:
                again = [bytes(piece) for each in done for piece in segments.cut(b"".join(each))]
                start = payloadStart(packet, parse(packet))
                self.assertEqual(b"".join(piece[start:] for piece in again), payload)

    def test_largest(self) -> None:
        """A super-packet is no longer than its header can say, whatever follows."""
        packets = cutUp(tcpPacket(payload=bytes(60_000), full=False), 1400)
        packets += cutUp(tcpPacket(payload=bytes(60_000), sequence=61_000, full=False), 1400)
        done = joinAll(packets)
        self.assertEqual(sum(len(each) - 40 for _, each in done), 120_000)
        self.assertEqual([len(each) for _, each in done], [60_040, 60_040])
        full = [tcpPacket(payload=bytes(1400), sequence=1000 + 1400 * each, full=False) for each in range(100)]
        self.assertEqual([len(each) for _, each in joinAll(full)], [46 * 1400 + 40] * 2 + [8 * 1400 + 40])

    def assertApart(self, first: bytes, second: bytes, *protocols: int) -> None:
        self.assertEqual([each for _, each in joinAll([first, second], *protocols)], [first, second])

    def test_apart(self) -> None:
        """What does not follow, or says something else, stays for itself."""
        first = tcpPacket(payload=bytes(100), full=False)
        follower = tcpPacket(payload=bytes(100), sequence=1100, full=False)
        self.assertEqual(len(joinAll([first, follower])), 1)
        for place in (1, 8, 12, 16, 20, 22, 25, 28, 33, 34):
            raw = bytearray(follower)
            raw[place] ^= 4
            self.assertApart(first, headerSum(raw))
        self.assertApart(first, tcpPacket(payload=bytes(100), sequence=1101, full=False))
        self.assertApart(first, tcpPacket(payload=bytes(101), sequence=1100, full=False))
        self.assertApart(first, tcpPacket(sequence=1100, full=False))
        self.assertApart(first, follower, UDP)
        self.assertApart(udpPacket(full=False), udpPacket(full=False))

    def test_push(self) -> None:
        """A segment that is to be pushed ends a super-packet, which is pushed then."""
        parts = [tcpPacket(payload=bytes(100), sequence=1000 + 100 * each, full=False) for each in range(4)]
        pushed = tcpPacket(payload=bytes(100), flags=ACK | PSH, sequence=1100, full=False)
        done = joinAll([parts[0], pushed, *parts[2:]])
        self.assertEqual([each[33] for _, each in done], [ACK | PSH, ACK])

    def test_mayBeCut(self) -> None:
        """IPv4 packets that may be cut on the way keep their identifications, which follow each other."""
        raw = [bytearray(udpPacket(payload=bytes(100), full=False)) for _ in range(3)]
        for number, packet in zip((5, 6, 8), raw, strict=True):
            packet[4:8] = bytes((0, number, 0, 0))
        done = joinAll([headerSum(packet) for packet in raw])
        self.assertEqual([(len(each), each[5]) for _, each in done], [(228, 5), (128, 8)])

    def test_passOn(self) -> None:
        """What can not be joined keeps its place."""
        joiner = Joiner((TCP,))
        first = tcpPacket(payload=bytes(100), full=False)
        joiner.begin(first, parse(first), 40)
        joiner.passOn((bytes(10), b"other"))
        self.assertEqual(joiner.followAll([first], 0), 0)
        joiner.finish()
        self.assertEqual(joined(joiner.done), [first, b"other"])


class FragmentTests(SynchronousTestCase):
    """L{refragmented}."""

    def test_parts(self) -> None:
        """All parts but the last carry a multiple of eight bytes; together they are the packet."""
        raw = bytearray(udpPacket(payload=bytes(range(250)) * 4))
        raw[4:8] = b"\0\x09\0\0"
        packet = headerSum(raw)
        parts = refragmented(packet, 301)
        found = [parse(part) for part in parts]
        self.assertEqual([each.totalLength for each in found], [300, 300, 300, 188])
        self.assertEqual(b"".join(part[20:] for part in parts), packet[20:])
        self.assertEqual([each.fragment and each.fragment.offset for each in found], [0, 280, 560, 840])
        self.assertEqual([bool(each.fragment and each.fragment.more) for each in found], [True, True, True, False])
        self.assertEqual([headerSum(part) for part in parts], parts)
        self.assertEqual([part[4:6] for part in parts], [b"\0\x09"] * 4)

    def test_again(self) -> None:
        """A fragment may be cut once more: offsets go on, and the last part is the last one only if it was."""
        raw = bytearray(udpPacket(payload=bytes(600)))
        raw[4:8] = (9).to_bytes(2, "big") + (MORE_FRAGMENTS | 100).to_bytes(2, "big")
        packet = headerSum(raw)
        found = [parse(part).fragment for part in refragmented(packet, 420)]
        self.assertEqual([each and (each.offset, each.more) for each in found], [(800, True), (1200, True)])

    def test_flags(self) -> None:
        """The parts may be cut further, and say nothing else than their packet did."""
        raw = bytearray(udpPacket(payload=bytes(600)))
        raw[6:8] = b"\0\0"
        packet = headerSum(raw)
        for part in refragmented(packet, 400):
            self.assertEqual(int.from_bytes(part[6:8], "big") & DONT_FRAGMENT, 0)
            self.assertEqual((part[12:16], part[8]), (ALICE4, 64))
