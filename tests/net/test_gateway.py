"""Tests for L{udptunnel.net.gateway}, in memory; tests.system has it behind real TUNs."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.counters import Counters
from udptunnel.net.gateway import LARGEST_SUPER, MOST_NAMES, MOST_SEGMENTS, Gateway
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import ICMP, ICMPV6, UDP, fragmented, ipHeader, packHost, parse
from udptunnel.wire.transport import Unreachable, checksumHolds, parseUdp, udpHeaders, udpPacket
from udptunnel.wire.vnet import DATA_VALID, NEEDS_CSUM, PLAIN, VNET_BYTES, VnetHeader, packVnet, udpVnet, unpackVnet

CLIENTS = {4: Address("192.0.2.9", 40000), 6: Address("2001:db8::9", 40000)}
TARGETS = {4: Address("198.51.100.7", 53), 6: Address("2001:db8:7::7", 53)}
HEADERS = {4: 28, 6: 48}
MTU = 1500


class RecordingWriter:
    """A TUN that packets are written to."""

    def __init__(self) -> None:
        self.headed = self.segments = True
        self.packets: list[bytes] = []

    def write(self, *packet: Buffer) -> None:
        """Keep it."""
        self.packets.append(b"".join(packet))


class RecordingUdp:
    """Gets datagrams, and copies them as who keeps them must."""

    def __init__(self) -> None:
        self.bursts: list[AimedBurst] = []
        self.calls: list[str] = []

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Keep them."""
        self.calls.append("bursts")
        self.bursts += [burst._replace(payload=bytes(burst.payload)) for burst in bursts]

    def tick(self, now: float) -> None:
        """Remember the call."""
        self.calls.append(f"tick {now:g}")

    def stop(self) -> None:
        """Remember the call."""
        self.calls.append("stop")


class RecordingStack:
    """Takes nothing, and remembers what it was shown."""

    name = "none"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        """Nothing to do."""

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        """Return them all."""
        self.calls.append(f"{len(packets)} packets")
        return list(packets)

    def tick(self, now: float) -> None:
        """Remember the call."""
        self.calls.append(f"tick {now:g}")

    def stop(self) -> None:
        """Remember the call."""
        self.calls.append("stop")


def ends(version: int) -> tuple[bytes, bytes, int, int]:
    """Addresses and ports of a datagram to the target."""
    source, target = CLIENTS[version], TARGETS[version]
    return packHost(source.host), packHost(target.host), source.port, target.port


def fresh(version: int, payload: bytes, size: int = 0) -> bytes:
    """A datagram as the kernel gives it to a TUN; of a size, several as one packet."""
    vnet = packVnet(udpVnet(HEADERS[version] - 8, size))
    return vnet + udpHeaders(*ends(version), len(payload)) + payload


def finished(version: int, payload: bytes) -> bytes:
    """A datagram whose checksum nobody vouches for."""
    return PLAIN + udpPacket(*ends(version), payload)


class GatewayCase(SynchronousTestCase):
    """A gateway with nothing but recorders around it."""

    def setUp(self) -> None:
        self.counters, self.losses, self.now = Counters(), list[str](), 0.0
        self.udp, self.stack, self.tun = RecordingUdp(), RecordingStack(), RecordingWriter()
        self.gateway = self.make()

    def make(self, icmp: str = "reply", mtu: int = MTU) -> Gateway:
        """A gateway between them."""
        gateway = Gateway(self.counters, lambda: self.now, self.losses.append, mtu, icmp)
        gateway.udp, gateway.stack, gateway.outer = self.udp, self.stack, self.tun
        return gateway

    def receive(self, *packets: bytes) -> list[AimedBurst]:
        """The bursts that come of packets."""
        self.udp.bursts = []
        self.gateway.packetsReceived([memoryview(bytearray(packet)) for packet in packets])
        return self.udp.bursts

    def written(self) -> list[bytes]:
        """What was written to the TUN since, without virtio headers."""
        packets, self.tun.packets = self.tun.packets, []
        return [packet[VNET_BYTES:] for packet in packets]


class ReceptionTests(GatewayCase):
    """What comes out of the TUN."""

    def test_datagram(self) -> None:
        """A datagram is a burst of one, of whoever sent it, to where it was to go."""
        for version in (4, 6):
            burst = AimedBurst(CLIENTS[version], TARGETS[version], 5, b"hello")
            self.assertEqual(self.receive(fresh(version, b"hello")), [burst])

    def test_empty(self) -> None:
        """A datagram may be empty."""
        self.assertEqual([burst.payload for burst in self.receive(fresh(4, b""), fresh(6, b""))], [b"", b""])

    def test_neighbours(self) -> None:
        """Neighbours of one flow and one size become one burst; another flow, or a longer one, begins anew."""
        bursts = self.receive(*(fresh(4, bytes(100)) for _ in range(3)), fresh(4, bytes(7)), fresh(6, bytes(100)))
        self.assertEqual([(burst.target.host, burst.size, len(burst.payload)) for burst in bursts],
                         [(TARGETS[4].host, 100, 307), (TARGETS[6].host, 100, 100)])  # fmt: skip

    def test_superPacket(self) -> None:
        """What the kernel has not cut stays one burst."""
        for version in (4, 6):
            (burst,) = self.receive(fresh(version, bytes(4321), size=1000))
            self.assertEqual((burst.size, len(burst.payload)), (1000, 4321))

    def test_checksum(self) -> None:
        """A checksum that nobody vouches for is looked at; what is damaged goes no further."""
        for version in (4, 6):
            packet = finished(version, b"payload")
            self.assertEqual(len(self.receive(packet)), 1)
            damaged = packet[:-1] + bytes([packet[-1] ^ 1])
            self.assertEqual(self.receive(damaged), [])
            self.assertEqual(len(self.receive(bytes([DATA_VALID]) + damaged[1:])), 1)
        self.assertEqual(self.counters.dropped, {"checksum": 2})

    def test_noChecksum(self) -> None:
        """Over IPv4 a datagram needs none."""
        packet = bytearray(finished(4, b"payload"))
        packet[VNET_BYTES + 26 : VNET_BYTES + 28] = bytes(2)
        self.assertEqual(len(self.receive(bytes(packet))), 1)

    def test_fragments(self) -> None:
        """Fragments are put together, in whatever order they come."""
        payload = bytes(range(256)) * 35
        for version in (4, 6):
            parts = fragmented(udpPacket(*ends(version), payload), MTU, 7)
            self.assertGreater(len(parts), 6)
            (burst,) = self.receive(*(PLAIN + part for part in reversed(parts)))
            self.assertEqual((burst.source, burst.target, burst.size), (CLIENTS[version], TARGETS[version], 8960))
            self.assertEqual(burst.payload, payload)

    def test_damagedFragments(self) -> None:
        """A datagram from fragments has its checksum looked at, too."""
        parts = fragmented(udpPacket(*ends(4), bytes(3000)), MTU, 7)
        damaged = parts[1][:-1] + b"\1"
        self.assertEqual(self.receive(*(PLAIN + part for part in (parts[0], damaged, parts[2]))), [])
        self.assertEqual(self.counters.dropped, {"checksum": 1})

    def test_options(self) -> None:
        """Options of IPv4 and extension headers of IPv6 do not keep a datagram out."""
        plain = udpPacket(*ends(6), b"hello")
        packet = bytearray(plain[:40] + bytes((17, 0, 1, 4, 0, 0, 0, 0)) + plain[40:])
        packet[5] += 8
        packet[6] = 0
        self.assertEqual([burst.payload for burst in self.receive(PLAIN + packet)], [b"hello"])

    def test_notUnicast(self) -> None:
        """What is for all, for one wire or for one machine stays here."""
        for host in (
            "255.255.255.255",
            "224.0.0.251",
            "0.0.0.0",
            "127.0.0.1",
            "169.254.1.1",
            "ff02::fb",
            "fe80::1",
            "::1",
        ):
            version = ip_address(host).version
            source, _, *ports = ends(version)
            headers = udpHeaders(source, packHost(host), *ports, 2)
            packet = packVnet(udpVnet(len(headers) - 8)) + headers + b"hi"
            self.assertEqual(self.receive(packet), [], host)
        self.assertEqual(self.counters.dropped, {"not unicast": 8})

    def test_mapped(self) -> None:
        """An IPv4-mapped address is no way to one that is not carried, nor to any other."""
        for host in ("127.0.0.1", "198.51.100.7"):
            source, _, *ports = ends(6)
            target = bytes(10) + b"\xff\xff" + packHost(host)
            headers = udpHeaders(source, target, *ports, 2)
            self.assertEqual(self.receive(packVnet(udpVnet(len(headers) - 8)) + headers + b"hi"), [])
            self.assertEqual(self.receive(PLAIN + udpPacket(source, target, *ports, b"hi")), [])
        self.assertEqual(self.counters.dropped, {"not unicast": 4})

    def test_names(self) -> None:
        """Addresses that are remembered are forgotten before there are too many."""
        self.gateway._ends = {
            bytes([n >> 16, n >> 8 & 255, n & 255]): (CLIENTS[4], TARGETS[4]) for n in range(MOST_NAMES)
        }
        self.receive(fresh(4, b"hello"))
        self.assertEqual(len(self.gateway._ends), 1)

    @given(st.binary(max_size=200))
    @settings(max_examples=EXAMPLES, deadline=None)
    def test_garbage(self, frame: bytes) -> None:
        """Whatever comes, nothing is raised."""
        for virtio in (PLAIN, packVnet(udpVnet(20)), packVnet(udpVnet(40, 100)), b""):
            self.receive(virtio + frame)

    @given(st.sampled_from((4, 6)), st.integers(0, 80), st.integers(0, 255), st.sampled_from((0, NEEDS_CSUM)))
    @settings(max_examples=EXAMPLES, deadline=None)
    def test_almost(self, version: int, place: int, value: int, flags: int) -> None:
        """Nor if one byte of a datagram is another one, or the packet ends there."""
        packet = bytearray(fresh(version, b"some payload of a datagram"))
        packet[0] = flags
        self.receive(bytes(packet[:place]))
        packet[place % len(packet)] = value
        self.receive(bytes(packet))


class OthersTests(GatewayCase):
    """What is neither TCP nor UDP."""

    def echo(self, version: int) -> bytes:
        """An echo request, or its answer."""
        source, target, *_ = ends(version)
        kind, protocol = ((8, ICMP), (128, ICMPV6))[version == 6]
        body = bytes((kind, 0, 0, 0, 0, 1, 0, 1)) + b"ping"
        return PLAIN + ipHeader(source, target, protocol, len(body)) + body

    def kinds(self) -> list[tuple[bytes, int, int]]:
        """Source, type and code of the ICMP messages that were written."""
        found = []
        for packet in self.written():
            parsed = parse(packet)
            found.append((parsed.source, packet[parsed.payloadStart], packet[parsed.payloadStart + 1]))
        return found

    def test_reply(self) -> None:
        """An echo request gets a reply from its target."""
        self.receive(self.echo(4), self.echo(6))
        self.assertEqual(self.kinds(), [(ends(4)[1], 0, 0), (ends(6)[1], 129, 0)])

    def test_unreachable(self) -> None:
        """Or it gets the word that nobody is there."""
        self.gateway = self.make("unreachable")
        self.receive(self.echo(4), self.echo(6))
        self.assertEqual([kinds[1:] for kinds in self.kinds()], [(3, 1), (1, 3)])

    def test_off(self) -> None:
        """Or nothing, and is counted."""
        self.gateway = self.make("off")
        self.receive(self.echo(4), self.echo(6))
        self.assertEqual((self.written(), self.counters.dropped), ([], {"ICMP": 2}))

    def test_unknownProtocol(self) -> None:
        """Whoever speaks SCTP is told that nobody here does."""
        for version, expected in ((4, (3, 2)), (6, (4, 1))):
            source, target, *_ = ends(version)
            self.receive(PLAIN + ipHeader(source, target, 132, 12) + bytes(12))
            self.assertEqual([kinds[1:] for kinds in self.kinds()], [expected])
        self.assertEqual(self.counters.dropped, {"unknown protocol": 2})

    def test_malformed(self) -> None:
        """What is no packet is counted."""
        self.receive(PLAIN, PLAIN + b"\x45", b"")
        self.assertEqual(self.counters.dropped, {"malformed": 3})


class AnswerTests(GatewayCase):
    """What goes back into the TUN."""

    def datagrams(self) -> list[tuple[bytes, int, int, bytes]]:
        """Source, ports and payload of the packets that were written, whose checksums hold."""
        found = []
        for packet in self.written():
            parsed = parse(packet)
            udp = parseUdp(packet, parsed)
            found.append(
                (parsed.source, udp.sourcePort, udp.destinationPort, packet[udp.payloadStart : udp.payloadEnd])
            )
        return found

    def test_anySource(self) -> None:
        """An answer comes from wherever it is said to."""
        for version, source in ((4, "203.0.113.1"), (6, "2001:db8:f::1")):
            self.gateway.send(CLIENTS[version], Address(source, 77), 2, b"hi")
            self.assertEqual(self.datagrams(), [(packHost(source), 77, 40000, b"hi")])

    def test_burst(self) -> None:
        """A burst is one packet that the kernel cuts."""
        for version in (4, 6):
            self.gateway.send(CLIENTS[version], TARGETS[version], 1000, bytes(4321))
            (packet,) = self.tun.packets
            self.assertEqual(unpackVnet(packet), udpVnet(HEADERS[version] - 8, 1000))
            self.assertEqual(len(self.datagrams()[0][3]), 4321)

    def test_largeBurst(self) -> None:
        """A burst of more than the kernel takes is several packets, none of which ends within a datagram."""
        for size in (1, 7, 1000):
            payload = bytes(min(65535, size * 200))
            self.gateway.send(CLIENTS[4], TARGETS[4], size, payload)
            lengths = [len(datagram[3]) for datagram in self.datagrams()]
            self.assertEqual(sum(lengths), len(payload))
            self.assertLessEqual(max(lengths), min(LARGEST_SUPER, size * MOST_SEGMENTS))
            self.assertFalse([length for length in lengths[:-1] if length % size])

    def test_withoutSegments(self) -> None:
        """Where the kernel does not cut, each datagram is a packet."""
        self.tun.segments = False
        self.gateway.send(CLIENTS[4], TARGETS[4], 10, bytes(25))
        self.assertEqual({unpackVnet(packet) for packet in self.tun.packets}, {udpVnet(20)})
        self.assertEqual([len(datagram[3]) for datagram in self.datagrams()], [10, 10, 5])

    def test_withoutHeaders(self) -> None:
        """Where the device knows no virtio headers, checksums are ours, and they are right."""
        self.tun.headed = False
        for version in (4, 6):
            self.gateway.send(CLIENTS[version], TARGETS[version], 10, bytes(25))
            self.assertTrue(all(packet.startswith(PLAIN) for packet in self.tun.packets))
            self.assertTrue(all(checksumHolds(packet, parse(packet)) for packet in self.written()))

    def test_longerThanMtu(self) -> None:
        """A datagram that does not fit is cut into fragments, each time with another identification."""
        for version in (4, 6):
            self.gateway.send(CLIENTS[version], TARGETS[version], 9000, bytes(9000))
            self.gateway.send(CLIENTS[version], TARGETS[version], 9000, bytes(9000))
            packets = self.written()
            self.assertLessEqual(max(map(len, packets)), MTU)
            self.assertEqual(len({parse(packet).fragment.identification for packet in packets}), 2)  # type: ignore[union-attr]
            self.receive(*(PLAIN + packet for packet in packets))
            self.assertEqual([len(burst.payload) for burst in self.udp.bursts], [18000])

    def test_largest(self) -> None:
        """The largest datagram gets through, too."""
        self.gateway.send(CLIENTS[4], TARGETS[4], 65507, bytes(65507))
        self.assertEqual(len(self.receive(*(PLAIN + packet for packet in self.written()))[0].payload), 65507)

    def test_unfit(self) -> None:
        """An answer from a name, from the other family or too long for a packet is counted, datagram by datagram."""
        self.gateway.send(CLIENTS[4], TARGETS[6], 10, bytes(25))
        self.gateway.send(CLIENTS[4], Address("example.org", 53), 10, bytes(10))
        self.gateway.send(CLIENTS[4], TARGETS[4], 65530, bytes(65530))
        self.assertEqual((self.tun.packets, self.counters.dropped), ([], {"unfit answer": 5}))

    def test_refuse(self) -> None:
        """Whoever sent a burst is told that its target can not be reached, and which datagram that was about."""
        for version, expected in ((4, (3, 3)), (6, (1, 4))):
            (burst,) = self.receive(fresh(version, bytes(100), size=40))
            self.gateway.refuse(burst, Unreachable.PORT)
            (packet,) = self.written()
            parsed = parse(packet)
            self.assertEqual((packet[parsed.payloadStart], packet[parsed.payloadStart + 1]), expected)
            self.assertIn(udpPacket(*ends(version), bytes(40)), packet)
        self.gateway.refuse(AimedBurst(CLIENTS[4], Address("example.org", 1), 1, b"x"), Unreachable.PORT)
        self.assertEqual(self.written(), [])


class LifeTests(GatewayCase):
    """Beginning and end."""

    def test_all(self) -> None:
        """The stack sees each packet, both are told the time and the end, and the loss of the TUN is passed on."""
        self.receive(fresh(4, b"a"), fresh(6, b"b"))
        self.now = 3.0
        self.gateway.tick(self.now)
        self.gateway.lost("deleted")
        self.gateway.stop()
        self.assertEqual(self.stack.calls, ["2 packets", "tick 3", "stop"])
        self.assertEqual(self.udp.calls, ["bursts", "tick 3", "stop"])
        self.assertEqual(self.losses, ["deleted"])

    def test_lateFragments(self) -> None:
        """What never becomes whole is forgotten."""
        parts = fragmented(udpPacket(*ends(4), bytes(3000)), MTU, 7)
        self.receive(PLAIN + parts[0])
        self.now = 40.0
        self.gateway.tick(self.now)
        self.assertEqual(len(self.gateway._fragments), 0)

    def test_headers(self) -> None:
        """A header that speaks of ECN, too, is one of a super-packet."""
        packet = bytearray(fresh(4, bytes(100), size=40))
        packet[1] |= 0x80
        self.assertEqual(self.receive(bytes(packet))[0].size, 40)
        self.assertEqual(unpackVnet(packet), VnetHeader(NEEDS_CSUM, 0x85, 28, 40, 20, 6))

    def test_udpIsKnown(self) -> None:
        """Other protocols behind the same headers are none of the datagrams'."""
        packet = bytearray(fresh(4, b"hello"))
        packet[VNET_BYTES + 9] = UDP + 1
        self.assertEqual(self.receive(bytes(packet)), [])
