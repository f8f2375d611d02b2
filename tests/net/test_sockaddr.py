"""Tests for L{udptunnel.net.sockaddr}."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.net import sockaddr
from udptunnel.net.sockaddr import SOCKADDR_BYTES, PythonNames, SourceNames, familyOf, packSockaddr
from udptunnel.wire.address import Address, normalHost

thorough = settings(max_examples=EXAMPLES, deadline=None)
ports = st.integers(0, 65535)

GOLDEN = {
    ("127.0.0.1", 53): struct.pack("=H", socket.AF_INET) + bytes.fromhex("0035 7f000001") + bytes(8),
    ("1.2.3.4", 65535): struct.pack("=H", socket.AF_INET) + bytes.fromhex("ffff 01020304") + bytes(8),
    ("::1", 443): struct.pack("=H", socket.AF_INET6) + bytes.fromhex("01bb 00000000") + bytes(15) + b"\1" + bytes(4),
    ("fe80::1%7", 1): struct.pack("=H", socket.AF_INET6)
    + bytes.fromhex("0001 00000000 fe800000000000000000000000000001")
    + struct.pack("=I", 7),
}
"""Addresses with the bytes of ip(7) and ipv6(7)."""


class SockaddrTests(SynchronousTestCase):
    """Addresses as the kernel has them."""

    def test_golden(self) -> None:
        """An address has the bytes that the kernel's manual says, for both directions."""
        names = SourceNames()
        for to, raw in GOLDEN.items():
            self.assertEqual(packSockaddr(familyOf(to[0]), to), raw)
            self.assertEqual(len(raw), SOCKADDR_BYTES[familyOf(to[0])])
            self.assertEqual(names[raw], Address(*to))

    def test_roundTrip(self) -> None:
        """Any address comes back from its bytes as its one normal text."""

        @thorough
        @given(st.ip_addresses(v=4), st.ip_addresses(v=6), ports)
        def check(four: object, six: IPv6Address, port: int) -> None:
            names = SourceNames()
            self.assertEqual(names[packSockaddr(socket.AF_INET, (str(four), port))], Address(str(four), port))
            expected = Address(normalHost(str(six)), port)
            self.assertEqual(names[packSockaddr(socket.AF_INET6, (str(six), port))], expected)

        check()

    def test_mapped(self) -> None:
        """IPv4 on a socket for both families is called by its IPv4 address."""
        raw = packSockaddr(socket.AF_INET6, (sockaddr.MAPPED + "1.2.3.4", 5))
        self.assertEqual(SourceNames()[raw], Address("1.2.3.4", 5))
        self.assertEqual(PythonNames()[("::ffff:1.2.3.4", 5, 0, 0)], Address("1.2.3.4", 5))

    def test_python(self) -> None:
        """Python's tuples mean the same addresses; a zone is called by its number."""
        names = PythonNames()
        self.assertEqual(names[("1.2.3.4", 5)], Address("1.2.3.4", 5))
        self.assertEqual(names[("2001:DB8::1", 5, 0, 0)], Address("2001:db8::1", 5))
        self.assertEqual(names[("fe80::1%eth0", 5, 0, 7)], Address("fe80::1%7", 5))

    def test_same(self) -> None:
        """The kernel's bytes and Python's tuple of one address give equal addresses."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.bind(("127.0.0.1", 0))
            name = opened.getsockname()
        self.assertEqual(SourceNames()[packSockaddr(socket.AF_INET, name)], PythonNames()[name])

    def test_bounded(self) -> None:
        """However many strangers there are, no more than a number of them are remembered."""
        self.patch(sockaddr, "MOST_SOURCES", 10)
        kernel, python = SourceNames(), PythonNames()
        for port in range(100):
            self.assertEqual(kernel[packSockaddr(socket.AF_INET, ("1.2.3.4", port))].port, port)
            self.assertEqual(python[("1.2.3.4", port)].port, port)
            self.assertLessEqual(len(kernel), 10)
            self.assertLessEqual(len(python), 10)

    def test_remembered(self) -> None:
        """An address is made once."""
        names = PythonNames()
        self.assertIs(names[("1.2.3.4", 5)], names[("1.2.3.4", 5)])

    def test_family(self) -> None:
        """A host with a colon is an IPv6 address."""
        self.assertEqual(familyOf("::1"), socket.AF_INET6)
        self.assertEqual(familyOf("127.0.0.1"), socket.AF_INET)
