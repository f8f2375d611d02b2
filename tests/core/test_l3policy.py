"""Tests for L{udptunnel.core.l3policy} and L{udptunnel.core.l3overlap}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.l3 import ALICE4, ALICE6, BEHIND_B, BOB4, BOB6, FOUR, SIX, fragment, udpPacket
from tests.wire.packets import EXTENSIONS6, OPTIONS4
from udptunnel.core.l3overlap import LIFE_SECONDS, MOST_PACKETS, MOST_PARTS, PassingFragments
from udptunnel.core.l3policy import MOST_REMEMBERED, Own, Policy, Prefixes, hidesHeader, isMartian
from udptunnel.wire.ip import ICMP, ICMPV6, TCP, UDP, ipHeader, packHost, parse

MARTIANS = (
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.1.1", "169.254.1.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "febf::1", "ff02::1"),
)
PROPER = "10.0.0.1", "192.0.2.1", "223.255.255.255", "169.253.1.1", "2001:db8::1", "fd00::1", "fec0::1", "::2"


def raw(source: str, destination: str) -> bytes:
    return udpPacket((packHost(source), packHost(destination)), b"x")


class PolicyTests(SynchronousTestCase):
    """L{Policy}."""

    def setUp(self) -> None:
        self.policy = Policy(Prefixes(("10.2.0.0/16", "fd00:2::/64", "0.0.0.0/1")))

    def outward(self, packet: bytes) -> str:
        return self.policy.outwardRefusal(parse(packet), packet)

    def inward(self, packet: bytes) -> str:
        return self.policy.inwardRefusal(parse(packet), packet)

    def test_prefixes(self) -> None:
        """An address is in a network of its own version, or not."""
        prefixes = Prefixes(BEHIND_B)
        inside = ("10.2.0.0", "10.2.255.255", "fd00:2::", "fd00:2::ffff:ffff:ffff:ffff")
        outside = ("10.1.255.255", "10.3.0.0", "fd00:2:0:1::", "fd00:1::", "::")
        self.assertTrue(all(packHost(each) in prefixes for each in inside))
        self.assertFalse(any(packHost(each) in prefixes for each in outside))

    def test_martians(self) -> None:
        """No host has such an address, or can be reached at it through routers."""
        self.assertEqual([each for each in MARTIANS if not isMartian(packHost(each))], [])
        self.assertEqual([each for each in PROPER if isMartian(packHost(each))], [])
        self.assertTrue(isMartian(bytes(10) + b"\xff\xff" + ALICE4))

    def test_passes(self) -> None:
        """A packet for the other end's network goes out, one from there comes in; also the second time."""
        for _ in range(2):
            self.assertEqual(self.outward(udpPacket(FOUR)), "")
            self.assertEqual(self.inward(udpPacket((BOB6, ALICE6))), "")

    def test_prefixAndSource(self) -> None:
        """Nothing goes to another network, and nothing is believed to come from there."""
        for _ in range(2):
            self.assertEqual(self.outward(raw("10.1.0.1", "192.0.2.1")), "outward prefix")
            self.assertEqual(self.inward(raw("192.0.2.1", "10.1.0.1")), "inward source")
            self.assertEqual(self.inward(udpPacket(SIX)), "inward source")

    def test_noHost(self) -> None:
        """What is from no host, or for none, does not pass, whatever the prefixes are."""
        for host in MARTIANS[:6]:
            self.assertEqual(self.outward(raw(host, "10.2.0.1")), "outward martian")
            self.assertEqual(self.inward(raw("10.2.0.1", host)), "inward martian")
        self.assertEqual(self.outward(raw("10.1.0.1", "127.0.0.1")), "outward martian")
        self.assertEqual(self.inward(raw("127.0.0.1", "10.1.0.1")), "inward martian")

    def test_own(self) -> None:
        """Nothing from the other end reaches this machine itself, also at an address that it gets later."""
        packet = udpPacket((BOB4, ALICE4))
        self.assertEqual(self.inward(packet), "")
        self.policy.own = Own(frozenset((ALICE4,)))
        self.assertEqual(self.inward(packet), "inward own address")
        self.policy.own = Own(networks=("10.1.0.0/30", "fd00:1::/126"))
        for ends in ((BOB4, ALICE4), (BOB6, ALICE6)):
            self.assertEqual(self.inward(udpPacket(ends)), "inward own address")
        self.assertEqual(self.inward(raw("10.2.0.1", "10.1.0.4")), "")
        self.policy.own = Own()
        self.assertEqual(self.inward(packet), "")

    def test_options(self) -> None:
        """Options, source routes and what routers look at do not pass, in either direction."""
        for options in (OPTIONS4, EXTENSIONS6):
            found = parse(options)
            self.policy = Policy(Prefixes((f"{found.destinationHost}", f"{found.sourceHost}")))
            self.assertEqual((self.outward(options), self.inward(options)), ("outward options", "inward options"))

    def test_neighbours(self) -> None:
        """Nobody behind the other end passes for a neighbour: neighbour discovery does not, other ICMPv6 does."""
        ends, options = (BOB6, ALICE6), bytes((ICMPV6, 0, 0, 0, 0, 0, 0, 0))
        for kind in range(128, 144):
            expected = "inward neighbour" if 133 <= kind <= 137 else ""
            message = bytes((kind,)) + bytes(23)
            for packet in (
                ipHeader(*ends, ICMPV6, 24) + message,
                ipHeader(*ends, 60, 32) + options + message,
                fragment(ends, ICMPV6, 0, True, message),
            ):
                self.assertEqual(self.inward(packet), expected, kind)
            for packet in (fragment(ends, ICMPV6, 24, False, message), ipHeader(*ends, UDP, 24) + message):
                self.assertEqual(self.inward(packet), "", kind)
        self.assertEqual(self.inward(ipHeader(*ends, ICMPV6, 0)), "")

    def test_routing(self) -> None:
        """A routing header does not pass even if its packet has no other place to go; other extensions do."""
        for kind, expected in ((43, "outward options"), (60, "")):
            packet = ipHeader(*SIX, kind, 8 + 9) + bytes((UDP, 0, 0, 0, 0, 0, 0, 0)) + bytes(9)
            self.assertEqual(self.outward(packet), expected)
        behind = ipHeader(*SIX, 60, 16 + 9) + bytes((43, 0, 0, 0, 0, 0, 0, 0)) + bytes((UDP, 0)) + bytes(15)
        self.assertEqual(self.outward(behind), "outward options")

    def test_bounded(self) -> None:
        """Pairs that may talk are remembered, but not any number of them."""
        for number in range(MOST_REMEMBERED + 10):
            self.assertEqual(self.outward(raw("10.1.0.1", f"10.2.{number >> 8}.{number & 0xFF}")), "")
        self.assertEqual(len(self.policy._good[0]), 10)


class HidingTests(SynchronousTestCase):
    """L{hidesHeader}."""

    def test_first(self) -> None:
        """The first fragment holds all of the header of what it carries (RFC 1858 section 3)."""
        for ends in (FOUR, SIX):
            for protocol, enough in ((TCP, 24), (UDP, 8), (ICMP, 8)):
                good, bad = (fragment(ends, protocol, 0, True, bytes(size)) for size in (enough, enough - 8))
                self.assertEqual((hidesHeader(parse(good)), hidesHeader(parse(bad))), (False, True))

    def test_extensions(self) -> None:
        """The first one of IPv6 brings what it carries, and no more extension headers (RFC 7112, RFC 5095)."""
        for kind in (0, 43, 44, 60):
            self.assertTrue(hidesHeader(parse(fragment(SIX, kind, 0, True, bytes((UDP,)) + bytes(63)))), kind)
            self.assertFalse(hidesHeader(parse(fragment(SIX, kind, 64, True, bytes(64)))), kind)
            self.assertFalse(hidesHeader(parse(fragment(FOUR, kind, 0, True, bytes(64)))), kind)

    def test_inside(self) -> None:
        """No other one begins inside of it (RFC 3128)."""
        for offset, expected in ((8, True), (16, True), (24, False)):
            self.assertEqual(hidesHeader(parse(fragment(FOUR, TCP, offset, False, bytes(8)))), expected)
        self.assertFalse(hidesHeader(parse(fragment(FOUR, UDP, 8, False, bytes(8)))))

    def test_whole(self) -> None:
        """What is no fragment hides nothing."""
        self.assertFalse(hidesHeader(parse(udpPacket())))


class OverlapTests(SynchronousTestCase):
    """L{PassingFragments}."""

    def setUp(self) -> None:
        self.passing = PassingFragments()

    def passes(
        self, offset: int, length: int, number: int = 7, now: float = 0.0, ends: tuple[bytes, bytes] = FOUR
    ) -> bool:
        return self.passing.mayPass(parse(fragment(ends, UDP, offset, True, bytes(length), number)), now)

    def test_parts(self) -> None:
        """Parts beside each other pass, in any order; one that overlaps another does not."""
        for ends in (FOUR, SIX):
            self.assertTrue(self.passes(16, 16, ends=ends))
            self.assertTrue(self.passes(0, 16, ends=ends))
            for offset, length in ((0, 16), (8, 16), (24, 8), (0, 48)):
                self.assertFalse(self.passes(offset, length, ends=ends))
            self.assertTrue(self.passes(32, 8, ends=ends))
            self.assertTrue(self.passes(0, 16, number=8, ends=ends))

    def test_forgotten(self) -> None:
        """After a while the number may be that of another packet."""
        self.assertTrue(self.passes(0, 16))
        self.assertFalse(self.passes(0, 16, now=LIFE_SECONDS - 1))
        self.assertTrue(self.passes(0, 16, now=LIFE_SECONDS))

    def test_bounded(self) -> None:
        """So many packets are remembered, and so many parts of each."""
        for number in range(MOST_PACKETS + 5):
            self.assertTrue(self.passes(0, 16, number=number))
        self.assertEqual(len(self.passing), MOST_PACKETS)
        parts = [self.passes(8 * part, 8, number=0xFFFF) for part in range(MOST_PARTS + 1)]
        self.assertEqual(parts, [True] * MOST_PARTS + [False])

    def test_whole(self) -> None:
        """What is no fragment passes, and leaves nothing."""
        self.assertTrue(self.passing.mayPass(parse(udpPacket()), 0.0))
        self.assertEqual(len(self.passing), 0)
