"""Tests for L{udptunnel.net.packetfilter}; tests.system.test_packet shows the programs to a kernel."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import ConfigError
from udptunnel.net.packetfilter import ETH_P_IP, ETH_P_IPV6, INSTRUCTION, MOST_INSTRUCTIONS, capturing

ALL, NOTHING = 0xFFFFFFFF, 0
NETWORK, AUXILIARY = -0x100000, -0x1000
PROTOCOL, PACKET_TYPE, TAGGED = 0, 4, 48


def run(program: bytes, packet: bytes, protocol: int, kind: int = 0, tagged: int = 0) -> int:
    """What the kernel makes of a packet with a program (Documentation/networking/filter.rst)."""
    instructions = list(INSTRUCTION.iter_unpack(program))
    known = {PROTOCOL: protocol, PACKET_TYPE: kind, TAGGED: tagged}
    accumulator = index = place = 0
    while True:
        code, yes, no, value = instructions[place]
        place += 1
        if code == 0x20:
            where = value - (1 << 32)
            if where >= AUXILIARY:
                accumulator = known[where - AUXILIARY]
            elif where - NETWORK + 4 > len(packet):
                return NOTHING
            else:
                accumulator = int.from_bytes(packet[where - NETWORK :][:4], "big")
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            place += yes if accumulator == value else no
        elif code == 0x05:
            place += value
        elif code == 0x07:
            index = accumulator
        elif code == 0x87:
            accumulator = index
        else:
            assert code == 0x06, code
            return value


def packetTo(host: str) -> tuple[bytes, int]:
    """The header of a packet as far as it matters, and its protocol."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return bytes(16) + address.packed, ETH_P_IP
    return bytes(24) + address.packed, ETH_P_IPV6


def takes(prefixes: list[str], host: str) -> bool:
    """Whether a packet to a host is taken."""
    verdict = run(capturing(prefixes), *packetTo(host))
    assert verdict in (ALL, NOTHING), verdict
    return verdict == ALL


def networks(draw: st.DrawFn) -> str:
    """Any network."""
    bits = draw(st.sampled_from((32, 128)))
    length = draw(st.integers(0, bits))
    number = draw(st.integers(0, (1 << bits) - 1)) >> (bits - length) << (bits - length)
    make = ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
    return f"{make(number)}/{length}"


class CapturingTests(SynchronousTestCase):
    """L{capturing}."""

    def test_destinations(self) -> None:
        """A packet is taken if its destination is in one of the networks, whatever their version, and no other."""
        prefixes = ["10.1.0.0/16", "192.0.2.7/32", "2001:db8:7::/48", "fd00::/9", "2001:db8::5/128"]
        for host in ("10.1.0.0", "10.1.255.255", "192.0.2.7", "2001:db8:7:ffff::1", "fd7f::1", "2001:db8::5"):
            self.assertTrue(takes(prefixes, host), host)
        for host in ("10.0.255.255", "10.2.0.0", "192.0.2.6", "2001:db8:8::", "fd80::1", "fe00::1", "2001:db8::4"):
            self.assertFalse(takes(prefixes, host), host)

    def test_anyNetworks(self) -> None:
        """The program agrees with the textbook about any networks, at their very edges."""

        @settings(max_examples=min(EXAMPLES, 200), deadline=None)
        @given(st.lists(st.composite(networks)(), min_size=1, max_size=6), st.data())
        def check(prefixes: list[str], data: st.DataObject) -> None:
            chosen = ipaddress.ip_network(data.draw(st.sampled_from(prefixes)))
            edges = int(chosen.network_address), int(chosen.broadcast_address)
            number = data.draw(st.sampled_from((edges[0], edges[1], edges[0] - 1, edges[1] + 1)))
            address = type(chosen.network_address)(number % (1 << chosen.max_prefixlen))
            all_ = [ipaddress.ip_network(each) for each in prefixes]
            inside = any(address in each for each in all_ if each.version == address.version)
            self.assertEqual(takes(prefixes, str(address)), inside)

        check()

    def test_others(self) -> None:
        """What is not for this host, or of a VLAN, or no IP, is not taken, even if the destination fits."""
        program, (packet, protocol) = capturing(["0.0.0.0/0", "::/0"]), packetTo("10.0.0.1")
        self.assertEqual(run(program, packet, protocol), ALL)
        for kind in (1, 2, 3, 4):
            self.assertEqual(run(program, packet, protocol, kind), NOTHING)
        self.assertEqual(run(program, packet, protocol, tagged=1), NOTHING)
        self.assertEqual(run(program, packet, 0x0806), NOTHING)

    def test_oneVersion(self) -> None:
        """Without networks of a version nothing of it is taken, whatever its bytes are."""
        self.assertFalse(takes(["0.0.0.0/0"], "::"))
        self.assertFalse(takes(["::/0"], "0.0.0.0"))

    def test_many(self) -> None:
        """The networks of one version may be more than a jump is wide, and those of the other are still found."""
        prefixes = [f"10.{number}.0.0/16" for number in range(250)] + ["fd00::/8"]
        self.assertTrue(takes(prefixes, "10.249.1.1"))
        self.assertTrue(takes(prefixes, "fd00::1"))
        self.assertFalse(takes(prefixes, "10.250.1.1"))

    def test_tooMany(self) -> None:
        """More than the kernel takes are refused, with a way out."""
        prefixes = [f"10.0.{number // 256}.{number % 256}/32" for number in range(MOST_INSTRUCTIONS // 4)]
        error = self.assertRaises(ConfigError, capturing, prefixes)
        self.assertEqual(str(error), "--capture: 1024 networks are more than the kernel can look at; join some")

    def test_noNetwork(self) -> None:
        """What is no network is refused with its name, also one with bits beyond its length."""
        for text in ("example.net/8", "10.0.0.1/8"):
            error = self.assertRaises(ConfigError, capturing, [text])
            self.assertIn(f"--capture {text}: ", str(error))
