"""Tests for L{udptunnel.core.fakenames}."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.fakenames import HELD_SECONDS, MOST_NAMES, FakeNames
from udptunnel.errors import AddressError

FOUR, SIX = ip_network("198.18.0.0/15"), ip_network("fd00:198::/64")

LONG = HELD_SECONDS + 1


def small(most: int = MOST_NAMES, prefix: str = "192.0.2.0/29") -> FakeNames:
    """Fake names in a prefix of few addresses."""
    return FakeNames([ip_network(prefix)], most)


class FakeNamesTests(SynchronousTestCase):
    """L{FakeNames}."""

    def test_andBack(self) -> None:
        """A name gets an address of each family, and an address tells the name."""
        names = FakeNames([FOUR, SIX])
        four, six = names.addressFor("host.example", 4, 0), names.addressFor("host.example", 6, 0)
        self.assertEqual((four, six), ("198.18.0.2", "fd00:198::2"))
        assert four is not None and six is not None
        self.assertEqual([names.nameOf(each, 0) for each in (four, six)], ["host.example"] * 2)
        self.assertEqual(len(names), 2)

    def test_same(self) -> None:
        """A name keeps its address, however it is written, and another name gets another one."""
        names = FakeNames([FOUR])
        hosts = [names.addressFor(name, 4, 0) for name in ("a.example", "A.Example.", "b.example", "a.example")]
        self.assertEqual(hosts, ["198.18.0.2", "198.18.0.2", "198.18.0.3", "198.18.0.2"])
        self.assertEqual([names.hostOf(name, 4) for name in ("B.example.", "c.example")], ["198.18.0.3", None])

    def test_noPrefix(self) -> None:
        """A family without a prefix has no addresses."""
        names = FakeNames([FOUR])
        self.assertEqual((names.serves(4), names.serves(6)), (True, False))
        self.assertIsNone(names.addressFor("a.example", 6, 0))
        self.assertIsNone(names.hostOf("a.example", 6))
        self.assertIsNone(names.nameOf("fd00:198::2", 0))

    def test_covers(self) -> None:
        """What lies in a prefix is known, whether it has a name or not."""
        names = FakeNames([FOUR, SIX])
        inside = ["198.18.0.0", "198.19.255.255", "fd00:198::ffff"]
        outside = ["198.20.0.0", "198.17.255.255", "fd00:199::", "name.example", "", "::ffff:198.18.0.2x"]
        for _ in range(2):
            self.assertEqual([names.covers(each) for each in inside + outside], [True] * 3 + [False] * 6)

    def test_coversIsBounded(self) -> None:
        """Of hosts that come and go not all are remembered."""
        names = FakeNames([FOUR])
        for number in range(5000):
            self.assertFalse(names.covers(f"10.0.{number >> 8}.{number & 255}"))
        self.assertLessEqual(len(names._covered), 4096)

    def test_notHosts(self) -> None:
        """What can not be a host's name is refused: what no SOCKS5 request may carry, and numbers."""
        names = FakeNames([FOUR])
        for name in (
            "",
            ".",
            "a..b",
            "192.0.2.1",
            "127.1",
            "a b.example",
            "a:b",
            "h\xf6st.example",
            "x" * 64,
            "a." * 128,
        ):
            self.assertRaises(AddressError, names.addressFor, name, 4, 0)
        self.assertEqual(len(names), 0)

    def test_leftOut(self) -> None:
        """The first two addresses of a prefix and its last are not given to names."""
        names = small()
        hosts = [names.addressFor(f"{number}.example", 4, 0) for number in range(6)]
        self.assertEqual(hosts, [f"192.0.2.{last}" for last in range(2, 7)] + [None])

    def test_prefixes(self) -> None:
        """A prefix with no room, and a second one for a family, are refused, and the text says why."""
        for prefix in ("192.0.2.0/31", "192.0.2.0/32", "2001:db8::/127", "2001:db8::/128"):
            error = self.assertRaises(AddressError, FakeNames, [ip_network(prefix)])
            self.assertIn(prefix, str(error))
        error = self.assertRaises(AddressError, FakeNames, [FOUR, SIX, ip_network("192.0.2.0/24")])
        self.assertIn("192.0.2.0/24 is the second IPv4 prefix", str(error))
        self.assertEqual(small(prefix="192.0.2.0/30").addressFor("a.example", 4, 0), "192.0.2.2")

    def test_oldestMakesRoom(self) -> None:
        """When all addresses are taken, the name that was longest not used loses its own to the new one."""
        names = small()
        for number in range(5):
            names.addressFor(f"{number}.example", 4, number)
        names.addressFor("0.example", 4, 6)  # asked for
        names.nameOf("192.0.2.3", 7)  # sent to
        self.assertEqual(names.addressFor("new.example", 4, 6 + LONG), "192.0.2.4")
        self.assertEqual(names.nameOf("192.0.2.4", 6 + LONG), "new.example")
        self.assertIsNone(names.hostOf("2.example", 4))
        self.assertEqual([names.hostOf(f"{each}.example", 4) for each in (0, 1)], ["192.0.2.2", "192.0.2.3"])

    def test_justUsed(self) -> None:
        """An address that was in use just now keeps its name, even if a new name then gets none."""
        names = small()
        for number in range(5):
            names.addressFor(f"{number}.example", 4, 0)
        self.assertIsNone(names.addressFor("new.example", 4, HELD_SECONDS - 0.1))
        self.assertEqual(names.addressFor("4.example", 4, HELD_SECONDS - 0.1), "192.0.2.6")
        self.assertEqual(names.addressFor("new.example", 4, HELD_SECONDS), "192.0.2.2")

    def test_rest(self) -> None:
        """If the prefix allows, an address rests before it stands for another name."""
        names = small(most=2, prefix="192.0.2.0/24")
        hosts = [names.addressFor(f"{number}.example", 4, number * LONG) for number in range(6)]
        self.assertEqual(hosts, [f"192.0.2.{last}" for last in (2, 3, 4, 5, 2, 3)])
        self.assertIsNone(names.nameOf("192.0.2.4", 0))
        self.assertEqual(len(names), 2)

    @settings(max_examples=max(10, EXAMPLES // 10), deadline=None)
    @given(
        st.sampled_from(["192.0.2.0/30", "192.0.2.0/29", "192.0.2.0/28", "2001:db8::/64"]),
        st.integers(1, 6),
        st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from([0.0, 1.0, 6.0, LONG]), st.booleans())),
    )
    def test_bounds(self, prefix: str, most: int, steps: list[tuple[str, float, bool]]) -> None:
        """Whatever is asked: bounds hold, no two names share an address, and none is taken away just after its use."""
        network = ip_network(prefix)
        names, now = FakeNames([network], most), 0.0
        used: dict[str, tuple[str, float]] = {}
        for name, pause, sends in steps:
            now += pause
            host = names.hostOf(name, network.version) if sends else names.addressFor(name, network.version, now)
            if host is not None:
                self.assertEqual(names.nameOf(host, now), name)
                other, since = used.get(host, (name, 0.0))
                self.assertTrue(other == name or now - since >= HELD_SECONDS)
                used[host] = name, now
            self.assertLessEqual(len(names), min(most, network.num_addresses - 3))
            self.assertLessEqual(len(used), 2 * most)
