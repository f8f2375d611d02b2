"""Tests for L{udptunnel.wire.transport}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import inet, inet6
from scapy.packet import Packet as Layers
from scapy.packet import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.wire.packets import (
    ALICE4,
    ALICE6,
    BOB4,
    BOB6,
    ECHO4,
    ECHO6,
    EXTENSIONS6,
    FRAGMENT6,
    OPTIONS4,
    PAIRS,
    SYN4,
    SYN6,
    UDP4,
    UDP6,
    WHOLE,
)
from udptunnel.errors import PacketError
from udptunnel.wire.checksum import complete, neverZero
from udptunnel.wire.ip import ICMP, ICMPV6, TCP, UDP, hostOf, ipHeader, parse
from udptunnel.wire.transport import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    TcpSegment,
    UdpDatagram,
    Unreachable,
    checksumHolds,
    echoReply,
    parseTcp,
    parseUdp,
    protocolUnreachable,
    resetFor,
    tooBig,
    udpHeaders,
    udpPacket,
    unreachable,
)

thorough = settings(max_examples=EXAMPLES, deadline=None)
few = settings(max_examples=max(10, EXAMPLES // 10), deadline=None)

ports = st.integers(0, 0xFFFF)
numbers = st.integers(0, 0xFFFFFFFF)
pairs = st.sampled_from(PAIRS)

NOWHERE = (
    (bytes(4), BOB4),
    (bytes.fromhex("7f000001"), BOB4),
    (bytes.fromhex("e0000001"), BOB4),
    (bytes.fromhex("ffffffff"), BOB4),
    (ALICE4, bytes.fromhex("e00000fb")),
    (ALICE4, bytes.fromhex("ffffffff")),
    (bytes(16), BOB6),
    (bytes.fromhex("ff02") + bytes(14), BOB6),
    (ALICE6, bytes.fromhex("ff02") + bytes(14)),
)
"""Sources and destinations of packets that nobody answers."""


def spoil(packet: bytes, place: int, *values: int) -> bytes:
    """A packet with other bytes at a place."""
    return packet[:place] + bytes(values) + packet[place + len(values) :]


def scapyIp(source: bytes, destination: bytes) -> Layers:
    """An IP header as scapy makes it, with what our own ones say."""
    if len(source) == 4:
        return inet.IP(src=hostOf(source), dst=hostOf(destination), id=0, flags="DF")
    return inet6.IPv6(src=hostOf(source), dst=hostOf(destination))


def makeTcp(
    pair: tuple[bytes, bytes] = PAIRS[0],
    flags: int = SYN,
    sequence: int = 0,
    acknowledgment: int = 0,
    data: bytes = b"",
) -> bytes:
    """A segment from port 1 to port 2."""
    tcp = inet.TCP(sport=1, dport=2, seq=sequence, ack=acknowledgment, flags=flags)
    return bytes(scapyIp(*pair) / tcp / data)


def answered(raw: bytes) -> bytes:
    """The RST that refuses a segment."""
    reset = resetFor(raw, parse(raw))
    assert reset is not None
    return reset


class TcpTests(SynchronousTestCase):
    """L{parseTcp}."""

    def test_flags(self) -> None:
        """The flags of RFC 9293."""
        self.assertEqual((FIN, SYN, RST, PSH, ACK, URG, ECE, CWR), (1, 2, 4, 8, 16, 32, 64, 128))

    def test_golden(self) -> None:
        """What the headers of good segments say; what follows in the frame is no payload."""
        for raw, start, sequence in ((SYN4, 44, 0x01020304), (SYN6, 64, 0xFFFFFFFF)):
            for buffer in (raw, memoryview(raw + b"trailer")):
                segment = parseTcp(buffer, parse(buffer))
                self.assertEqual(segment, TcpSegment(40000, 443, sequence, 0, SYN, start, 0))

    def test_truncated(self) -> None:
        """A segment in a packet that ends before its header does is refused."""
        for raw in (SYN4, SYN6):
            whole = parse(raw)
            for end in range(whole.payloadStart, whole.totalLength):
                self.assertRaises(PacketError, parseTcp, raw, whole._replace(totalLength=end))

    def test_words(self) -> None:
        """The header is 20 bytes or longer, and no longer than its packet."""
        for words in range(16):
            raw = spoil(SYN4, 32, words << 4)
            if words in (5, 6):
                self.assertEqual(parseTcp(raw, parse(raw)).payloadStart, 20 + 4 * words)
            else:
                self.assertRaises(PacketError, parseTcp, raw, parse(raw))

    def test_length(self) -> None:
        """SYN and FIN count like a byte each."""
        for flags, length in ((SYN, 4), (ACK, 3), (FIN | ACK, 4), (SYN | FIN, 5)):
            raw = makeTcp(flags=flags, data=b"abc")
            self.assertEqual(parseTcp(raw, parse(raw)).length, length)

    def test_opens(self) -> None:
        """A connection begins with a SYN without ACK, whatever it says about congestion."""
        for flags, opens in (
            (SYN, True),
            (SYN | ECE | CWR, True),
            (SYN | ACK, False),
            (ACK, False),
            (SYN | RST, False),
        ):
            raw = makeTcp(flags=flags)
            self.assertEqual(parseTcp(raw, parse(raw)).opens, opens)

    def test_fragment(self) -> None:
        """A fragment is refused: its beginning may be anything."""
        for raw in (spoil(SYN4, 6, 0x20, 0), FRAGMENT6 + bytes(20)):
            self.assertRaises(PacketError, parseTcp, raw, parse(raw))


class ResetTests(SynchronousTestCase):
    """L{resetFor}."""

    def test_syn(self) -> None:
        """A SYN is refused by RST and ACK, which acknowledges it, also where the numbers begin anew."""
        for raw, pair, acknowledgment in ((SYN4, (BOB4, ALICE4), 0x01020305), (SYN6, (BOB6, ALICE6), 0)):
            tcp = inet.TCP(sport=443, dport=40000, seq=0, ack=acknowledgment, flags="RA", window=0)
            self.assertEqual(answered(raw), bytes(scapyIp(*pair) / tcp))

    def test_others(self) -> None:
        """What acknowledges something is refused by an RST with that number; anything else is acknowledged."""
        for flags, data, expected in (
            (ACK, b"", (7, 0, RST)),
            (SYN | ACK, b"", (7, 0, RST)),
            (ACK | FIN, b"abc", (7, 0, RST)),
            (0, b"abc", (0, 13, RST | ACK)),
            (FIN, b"abc", (0, 14, RST | ACK)),
            (SYN | FIN, b"abc", (0, 15, RST | ACK)),
        ):
            reset = answered(makeTcp(flags=flags, sequence=10, acknowledgment=7, data=data))
            segment = parseTcp(reset, parse(reset))
            self.assertEqual((segment.sequence, segment.acknowledgment, segment.flags), expected)

    def test_reset(self) -> None:
        """An RST is not answered."""
        for flags in (RST, RST | ACK, RST | SYN):
            raw = makeTcp(flags=flags)
            self.assertIs(resetFor(raw, parse(raw)), None)

    def test_nowhere(self) -> None:
        """What is from or to no host is not answered."""
        for source, destination in NOWHERE:
            raw = ipHeader(source, destination, TCP, 20) + SYN4[20:32] + b"\x50\2" + bytes(6)
            self.assertIs(resetFor(raw, parse(raw)), None)

    @few
    @given(pairs, st.integers(0, 0xFF).filter(lambda flags: not flags & RST), numbers, numbers, st.binary(max_size=30))
    def test_scapy(
        self, pair: tuple[bytes, bytes], flags: int, sequence: int, acknowledgment: int, data: bytes
    ) -> None:
        """The RST for any segment is what scapy makes of RFC 9293 section 3.10.7.1."""
        raw = makeTcp(pair, flags, sequence, acknowledgment, data)
        length = len(data) + bool(flags & SYN) + bool(flags & FIN)
        fields = {"seq": 0, "ack": (sequence + length) % 2**32, "flags": "RA"}
        if flags & ACK:
            fields = {"seq": acknowledgment, "ack": 0, "flags": "R"}
        expected = scapyIp(*pair[::-1]) / inet.TCP(sport=2, dport=1, window=0, **fields)
        self.assertEqual(answered(raw), bytes(expected))


class UdpTests(SynchronousTestCase):
    """L{parseUdp}, L{udpHeaders} and L{udpPacket}."""

    def test_golden(self) -> None:
        """What the headers of good datagrams say."""
        for raw, expected in (
            (UDP4, UdpDatagram(4000, 53, 28, 33)),
            (UDP6, UdpDatagram(4000, 53, 48, 53)),
            (OPTIONS4, UdpDatagram(1, 2, 40, 41)),
            (EXTENSIONS6, UdpDatagram(1, 2, 72, 73)),
        ):
            for buffer in (raw, memoryview(raw + b"trailer")):
                self.assertEqual(parseUdp(buffer, parse(buffer)), expected)

    def test_truncated(self) -> None:
        """A datagram in a packet that ends before it does is refused."""
        for raw in (UDP4, UDP6):
            whole = parse(raw)
            for end in range(whole.payloadStart, whole.totalLength):
                self.assertRaises(PacketError, parseUdp, raw, whole._replace(totalLength=end))

    def test_lengths(self) -> None:
        """A datagram is as long as it says: not shorter than its header, and not longer than its packet."""
        for length in range(20):
            raw = spoil(UDP4, 24, 0, length)
            if 8 <= length <= 13:
                self.assertEqual(parseUdp(raw, parse(raw)).payloadEnd, 20 + length)
            else:
                self.assertRaises(PacketError, parseUdp, raw, parse(raw))

    def test_noChecksum(self) -> None:
        """Over IPv4 a datagram may come without a checksum, over IPv6 it may not."""
        raw = spoil(UDP4, 26, 0, 0)
        self.assertEqual(parseUdp(raw, parse(raw)).payloadEnd, 33)
        self.assertTrue(checksumHolds(raw, parse(raw)))
        raw = spoil(UDP6, 46, 0, 0)
        self.assertRaises(PacketError, parseUdp, raw, parse(raw))

    def test_fragment(self) -> None:
        """A fragment is refused."""
        for raw in (spoil(UDP4, 6, 0x20, 0), spoil(UDP4, 6, 0, 1), FRAGMENT6):
            self.assertRaises(PacketError, parseUdp, raw, parse(raw))

    def test_made(self) -> None:
        """Datagrams that are made are those that scapy makes."""
        self.assertEqual(udpPacket(ALICE4, BOB4, 4000, 53, b"hello"), UDP4)
        self.assertEqual(udpPacket(ALICE6, BOB6, 4000, 53, memoryview(b"hello")), UDP6)

    @few
    @given(pairs, ports, ports, st.binary(max_size=100))
    def test_scapy(self, pair: tuple[bytes, bytes], source: int, destination: int, payload: bytes) -> None:
        """With any payload they are; with a partial checksum they become so when somebody completes it."""
        expected = bytes(scapyIp(*pair) / inet.UDP(sport=source, dport=destination) / payload)
        self.assertEqual(udpPacket(*pair, source, destination, payload), expected)
        packet = bytearray(udpHeaders(*pair, source, destination, len(payload)) + payload)
        complete(packet, parse(packet).payloadStart, 6)
        self.assertEqual(packet, expected)

    def test_checksumZero(self) -> None:
        """A checksum that comes out as 0 is written as 65,535, for 0 says that there is none."""
        for source, destination in PAIRS:
            first = udpPacket(source, destination, 1, 2, b"\0\0")
            field = len(first) - 4
            packet = udpPacket(source, destination, 1, 2, first[field : field + 2])
            self.assertEqual(packet[field : field + 2], b"\xff\xff")
            self.assertTrue(checksumHolds(packet, parse(packet)))

    def test_largest(self) -> None:
        """A payload that is too long is refused."""
        for (source, destination), largest in zip(PAIRS, (65507, 65527), strict=True):
            packet = udpPacket(source, destination, 1, 2, bytes(largest))
            self.assertEqual(len(packet) - parseUdp(packet, parse(packet)).payloadStart, largest)
            self.assertRaises(PacketError, udpHeaders, source, destination, 1, 2, largest + 1)


class ChecksumTests(SynchronousTestCase):
    """L{checksumHolds}."""

    def test_holds(self) -> None:
        """The checksums of good packets are right, whatever follows them in their frame; any other byte shows."""
        for raw in WHOLE:
            packet = parse(raw)
            self.assertTrue(checksumHolds(raw + b"trailer", packet))
            for place in range(packet.payloadStart, packet.totalLength):
                if packet.protocol != UDP or not 4 <= place - packet.payloadStart < 6:
                    self.assertFalse(checksumHolds(spoil(raw, place, raw[place] ^ 0x10), packet), (raw, place))

    def test_behindADatagram(self) -> None:
        """What follows a datagram in its packet is not covered."""
        raw = ipHeader(ALICE4, BOB4, UDP, 15) + UDP4[20:] + b"no"
        self.assertTrue(checksumHolds(raw, parse(raw)))


class EchoTests(SynchronousTestCase):
    """L{echoReply}."""

    def test_reply(self) -> None:
        """A reply is what scapy makes: the request, from where it went to where it came from."""
        reply = bytes(scapyIp(BOB4, ALICE4) / inet.ICMP(type=0, id=1, seq=2) / b"ping")
        self.assertEqual(echoReply(ECHO4, parse(ECHO4)), reply)
        self.assertEqual(echoReply(memoryview(ECHO4 + b"trailer"), parse(ECHO4)), reply)
        reply = bytes(scapyIp(BOB6, ALICE6) / inet6.ICMPv6EchoReply(id=1, seq=2, data=b"ping"))
        self.assertEqual(echoReply(ECHO6, parse(ECHO6)), reply)

    @few
    @given(ports, ports, st.binary(max_size=60))
    def test_scapy(self, identifier: int, sequence: int, data: bytes) -> None:
        """With any data it is."""
        fields = {"id": identifier, "seq": sequence}
        raw = bytes(scapyIp(*PAIRS[0]) / inet.ICMP(type=8, **fields) / data)
        expected = bytearray(bytes(scapyIp(BOB4, ALICE4) / inet.ICMP(type=0, **fields) / data))
        expected[22:24] = neverZero(int.from_bytes(expected[22:24], "big")).to_bytes(2, "big")
        self.assertEqual(echoReply(raw, parse(raw)), expected)
        raw = bytes(scapyIp(*PAIRS[1]) / inet6.ICMPv6EchoRequest(data=data, **fields))
        expected = bytearray(bytes(scapyIp(BOB6, ALICE6) / inet6.ICMPv6EchoReply(data=data, **fields)))
        expected[42:44] = neverZero(int.from_bytes(expected[42:44], "big")).to_bytes(2, "big")
        self.assertEqual(echoReply(raw, parse(raw)), expected)

    def test_zeros(self) -> None:
        """A reply of zeros alone has the checksum 65,535: with 0 they would not sum up to it."""
        raw = bytes(scapyIp(*PAIRS[0]) / inet.ICMP(type=8, id=0, seq=0) / bytes(8))
        reply = echoReply(raw, parse(raw))
        assert reply is not None
        self.assertEqual(reply[20:], b"\0\0\xff\xff" + bytes(12))
        self.assertTrue(checksumHolds(reply, parse(reply)))

    def test_wrongChecksum(self) -> None:
        """Data that was spoiled on its way stays visibly so."""
        raw = spoil(ECHO4, 30, 0)
        reply = echoReply(raw, parse(raw))
        assert reply is not None
        self.assertFalse(checksumHolds(reply, parse(reply)))

    def test_others(self) -> None:
        """Replies, other codes, other protocols, fragments and what is cut short are no requests."""
        for raw in (
            spoil(ECHO4, 20, 0),
            spoil(ECHO4, 21, 1),
            spoil(ECHO4, 9, ICMPV6),
            spoil(ECHO4, 6, 0x20, 0),
            spoil(ECHO4, 2, 0, 27),
            spoil(ECHO4, 2, 0, 20),
            spoil(ECHO6, 40, 129),
            spoil(ECHO6, 6, ICMP),
            spoil(ECHO6, 4, 0, 7),
            UDP4,
            FRAGMENT6,
        ):
            self.assertIs(echoReply(raw, parse(raw)), None, raw.hex())

    def test_nowhere(self) -> None:
        """A request from or to no host is not answered."""
        for source, destination in NOWHERE:
            protocol, message = (ICMP, ECHO4[20:]) if len(source) == 4 else (ICMPV6, ECHO6[40:])
            raw = ipHeader(source, destination, protocol, len(message)) + message
            self.assertIs(echoReply(raw, parse(raw)), None)


class ErrorTests(SynchronousTestCase):
    """L{unreachable}, L{protocolUnreachable} and L{tooBig}."""

    def test_unreachable(self) -> None:
        """An error says why, and quotes the packet: what scapy makes."""
        for why, inIpv4, inIpv6 in (
            (Unreachable.NET, 0, 0),
            (Unreachable.HOST, 1, 3),
            (Unreachable.PORT, 3, 4),
            (Unreachable.PROHIBITED, 13, 1),
        ):
            for raw in (UDP4, SYN4, OPTIONS4):
                expected = bytes(scapyIp(BOB4, ALICE4) / inet.ICMP(type=3, code=inIpv4) / raw)
                self.assertEqual(unreachable(raw, parse(raw), why), expected)
            for raw in (UDP6, SYN6, EXTENSIONS6):
                expected = bytes(scapyIp(BOB6, ALICE6) / inet6.ICMPv6DestUnreach(code=inIpv6) / Raw(raw))
                self.assertEqual(unreachable(raw, parse(raw), why), expected)

    def test_protocol(self) -> None:
        """IPv6 says which byte it is that nobody understands."""
        expected = bytes(scapyIp(BOB4, ALICE4) / inet.ICMP(type=3, code=2) / UDP4)
        self.assertEqual(protocolUnreachable(UDP4, parse(UDP4)), expected)
        for raw, place in ((UDP6, 6), (EXTENSIONS6, 56)):
            expected = bytes(scapyIp(BOB6, ALICE6) / inet6.ICMPv6ParamProblem(code=1, ptr=place) / Raw(raw))
            self.assertEqual(protocolUnreachable(raw, parse(raw)), expected)

    def test_tooBig(self) -> None:
        """A packet that is too long is told the length that is not."""
        expected = bytes(scapyIp(BOB4, ALICE4) / inet.ICMP(type=3, code=4, nexthopmtu=1400) / UDP4)
        self.assertEqual(tooBig(UDP4, parse(UDP4), 1400), expected)
        expected = bytes(scapyIp(BOB6, ALICE6) / inet6.ICMPv6PacketTooBig(mtu=70000) / Raw(UDP6))
        self.assertEqual(tooBig(UDP6, parse(UDP6), 70000), expected)
        error = tooBig(UDP4, parse(UDP4), 70000)
        assert error is not None
        self.assertEqual(error[24:28], b"\0\0\xff\xff")

    @few
    @given(pairs, st.integers(0, 2000), st.binary(max_size=10))
    def test_quote(self, pair: tuple[bytes, bytes], length: int, trailer: bytes) -> None:
        """An error quotes as much as fits 576 or 1,280 bytes, and never what follows the packet."""
        raw = udpPacket(*pair, 1, 2, bytes(length))
        error = unreachable(raw + trailer, parse(raw), Unreachable.PORT)
        assert error is not None
        most, headers = (576, 28) if len(pair[0]) == 4 else (1280, 48)
        self.assertEqual(len(error), min(most, headers + len(raw)))
        self.assertEqual(error[headers:], raw[: len(error) - headers])
        self.assertTrue(checksumHolds(error, parse(error)))

    def test_errors(self) -> None:
        """Errors and redirects, and what can not be told from them, are never answered by an error."""
        for kind in (0, 8, 13):
            raw = spoil(ECHO4, 20, kind)
            self.assertIsNot(unreachable(raw, parse(raw), Unreachable.HOST), None)
        for kind in (3, 4, 5, 11, 12, 255):
            raw = spoil(ECHO4, 20, kind)
            self.assertIs(unreachable(raw, parse(raw), Unreachable.HOST), None)
        for kind in (128, 129, 255):
            raw = spoil(ECHO6, 40, kind)
            self.assertIsNot(unreachable(raw, parse(raw), Unreachable.HOST), None)
        for kind in (1, 2, 3, 4, 127, 137):
            raw = spoil(ECHO6, 40, kind)
            self.assertIs(unreachable(raw, parse(raw), Unreachable.HOST), None)
        for (source, destination), protocol in zip(PAIRS, (ICMP, ICMPV6), strict=True):
            raw = ipHeader(source, destination, protocol, 0)
            self.assertIs(protocolUnreachable(raw + b"\x80", parse(raw)), None)

    def test_fragments(self) -> None:
        """Of all fragments of a packet only the first is answered."""
        for raw, answers in (
            (spoil(UDP4, 6, 0x20, 0), True),
            (spoil(UDP4, 6, 0x20, 1), False),
            (FRAGMENT6, True),
            (spoil(FRAGMENT6, 50, 0, 9), False),
        ):
            self.assertEqual(tooBig(raw, parse(raw), 1280) is not None, answers)

    def test_nowhere(self) -> None:
        """What is from or to no host is not answered."""
        for source, destination in NOWHERE:
            raw = udpPacket(source, destination, 1, 2, b"")
            self.assertIs(unreachable(raw, parse(raw), Unreachable.PORT), None)
            self.assertIs(tooBig(raw, parse(raw), 1280), None)

    @thorough
    @given(st.sampled_from(WHOLE), st.integers(0, 60), st.binary(max_size=60))
    def test_anything(self, whole: bytes, keep: int, noise: bytes) -> None:
        """Whatever packet comes, answering it does not fail; an error is a good packet, and gets no error."""
        frame = whole[:keep] + noise
        try:
            packet = parse(frame)
        except PacketError:
            return
        for answer in (unreachable(frame, packet, Unreachable.NET), tooBig(frame, packet, 1280)):
            if answer is not None:
                self.assertTrue(checksumHolds(answer, parse(answer)))
                self.assertIs(unreachable(answer, parse(answer), Unreachable.NET), None)
        echoReply(frame, packet)
