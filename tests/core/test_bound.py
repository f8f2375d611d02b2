"""Tests for L{udptunnel.core.bound}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.bound import relayOf
from udptunnel.errors import SocksError
from udptunnel.wire.address import Address

PUBLIC, PRIVATE, HERE = "198.51.100.80", "10.1.0.80", "127.0.0.1"
PUBLIC_V6, PRIVATE_V6, HERE_V6 = "2001:db8::80", "fd00::80", "::1"
LINK = "fe80::80%eth0"

MEANT = [
    # the server, and what it may well mean by itself
    (PUBLIC, PUBLIC),
    (PUBLIC, "198.51.100.81"),
    (PRIVATE, PRIVATE),
    (PRIVATE, "192.168.7.7"),
    (PRIVATE, PUBLIC),
    (HERE, HERE),
    (HERE, "127.0.0.2"),
    (HERE, PRIVATE),
    (HERE, PUBLIC),
    (PUBLIC_V6, "2001:db8::81"),
    (PRIVATE_V6, "fd00::81"),
    (HERE_V6, HERE_V6),
    (HERE_V6, PUBLIC_V6),
]

NOT_MEANT = [
    # the server, and what can not be reached by who has reached it
    (PUBLIC, "0.0.0.0"),
    (PUBLIC, "::"),
    (PUBLIC, HERE),
    (PUBLIC, "127.9.9.9"),
    (PUBLIC, "::1"),
    (PUBLIC, PRIVATE),
    (PUBLIC, "172.31.255.255"),
    (PUBLIC, "192.168.0.1"),
    (PUBLIC, "100.64.0.1"),
    (PUBLIC, "169.254.0.1"),
    (PUBLIC, "224.0.0.1"),
    (PUBLIC, "255.255.255.255"),
    (PUBLIC, PUBLIC_V6),
    (PRIVATE, "0.0.0.0"),
    (PRIVATE, HERE),
    (PRIVATE, PUBLIC_V6),
    (HERE, "0.0.0.0"),
    (HERE, "::"),
    (HERE, "::1"),
    (PUBLIC_V6, "::"),
    (PUBLIC_V6, "0.0.0.0"),
    (PUBLIC_V6, "::1"),
    (PUBLIC_V6, PUBLIC),
    (PUBLIC_V6, PRIVATE_V6),
    (PUBLIC_V6, "fe80::1"),
    (PUBLIC_V6, "ff02::1"),
    (HERE_V6, HERE),
    (LINK, "fe80::80"),
    (LINK, "::"),
]


def at(host: str, port: int = 7000) -> Address:
    """An address."""
    return Address(host, port)


class RelayTests(SynchronousTestCase):
    """L{relayOf}."""

    def test_meant(self) -> None:
        """What a server says is where datagrams go, if that can be."""
        for server, said in MEANT:
            self.assertEqual(relayOf(at(said), at(server, 1080)), at(said), (server, said))

    def test_notMeant(self) -> None:
        """Otherwise they go where the server was reached, to the port that it says."""
        for server, said in NOT_MEANT:
            self.assertEqual(relayOf(at(said), at(server, 1080)), at(server), (server, said))

    def test_mapped(self) -> None:
        """An IPv4-mapped address is the IPv4 address in it."""
        self.assertEqual(relayOf(at(f"::ffff:{PUBLIC}"), at(PUBLIC, 1080)), at(PUBLIC))

    def test_override(self) -> None:
        """What the user says stands before all that, a name included."""
        for said in (PUBLIC, "0.0.0.0", "name.example"):
            self.assertEqual(relayOf(at(said), at(PUBLIC), at("192.0.2.9", 9)), at("192.0.2.9", 9))
            self.assertEqual(relayOf(at(said), at(PUBLIC), at("192.0.2.9", 0)), at("192.0.2.9", 7000))
        self.assertEqual(relayOf(at(PUBLIC, 0), at(PUBLIC), at("2001:DB8::9", 9)), at("2001:db8::9", 9))

    def test_noPort(self) -> None:
        """Without a port there is no way; the text names the option that helps."""
        for override in (None, at("192.0.2.9", 0)):
            error = self.assertRaises(SocksError, relayOf, at(PUBLIC, 0), at(PUBLIC, 1080), override)
            self.assertIn("BND.PORT", str(error))
            self.assertIn("--udp-address HOST:PORT", str(error))

    def test_name(self) -> None:
        """A name is not looked up, for whoever asks may ask through this tunnel; the text names it."""
        error = self.assertRaises(SocksError, relayOf, at("name.example"), at(PUBLIC, 1080))
        self.assertIn("name.example:7000", str(error))
        self.assertIn("--udp-address HOST:0", str(error))

    def test_any(self) -> None:
        """Whatever address it is, the relay has a host in the server's family and the port that was said."""
        servers = st.sampled_from([PUBLIC, PRIVATE, HERE, PUBLIC_V6, PRIVATE_V6, HERE_V6, LINK])
        hosts = st.one_of(st.ip_addresses().map(str))

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(servers, hosts, st.integers(1, 65535))
        def check(server: str, said: str, port: int) -> None:
            relay = relayOf(at(said, port), at(server, 1080))
            self.assertEqual((":" in relay.host, relay.port), (":" in server, port))
            self.assertFalse(relay.isName)

        check()
