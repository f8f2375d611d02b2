"""Tests for L{udptunnel.net.ownaddresses}."""

from __future__ import annotations

import ipaddress
import sys
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.l3policy import Own
from udptunnel.net import ownaddresses
from udptunnel.net.ownaddresses import ownAddresses

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.7
           /32 host LOCAL
        |-- 192.0.2.9
           /32 link UNICAST
        |-- 192.0.2.255
           /32 link BROADCAST
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 198.51.100.0
        /25 host LOCAL tos=4
        /24 link UNICAST
"""
IF_INET6 = "20010db8000000000000000000000007 02 40 00 80     eth0\n"
ANYCAST6 = """\
2    eth0            20010db8000000000000000000000000     1
2    eth0            fe800000000000000000000000000000     1
"""


def route6(network: str, length: int, flags: str) -> str:
    """A line of ipv6_route."""
    digits = ipaddress.ip_address(network).packed.hex()
    return f"{digits} {length:02x} {'0' * 32} 00 {'0' * 32} 00000000 00000001 00000000 {flags}     eth0\n"


IPV6_ROUTE = "".join(
    (
        route6("2001:db8::", 64, "00000001"),
        route6("2001:db8::7", 128, "80200001"),
        route6("2001:db8::8", 128, "80200001"),
        route6("2001:db8:9::", 48, "80200001"),
        route6("::", 0, "00200200"),
    )
)
FILES = {"_INTERNET": FIB_TRIE, "_INTERNET6": IF_INET6, "_ANYCAST6": ANYCAST6, "_ROUTES6": IPV6_ROUTE}


class OwnAddressesTests(SynchronousTestCase):
    """L{ownAddresses}."""

    def patchAll(self, **texts: str) -> None:
        """Have the kernel show these files and no others."""
        for name in FILES:
            path = self.mktemp()
            if name in texts:
                with open(path, "w", encoding="ascii") as file:
                    file.write(texts[name])
            self.patch(ownaddresses, name, path)

    def test_files(self) -> None:
        """
        Addresses of the host, of broadcast and of anycast are found, and networks that are local; networks that are
        not, addresses of others and the network of loopback are not.
        """
        self.patchAll(**FILES)
        texts = "192.0.2.7", "192.0.2.255", "2001:db8::7", "2001:db8::8", "2001:db8::", "fe80::"
        addresses = frozenset(ipaddress.ip_address(each).packed for each in texts)
        self.assertEqual(ownAddresses(), Own(addresses, ("198.51.100.0/25", "2001:db8:9::/48")))

    def test_none(self) -> None:
        """A machine without a protocol has no such addresses."""
        self.patchAll()
        self.assertEqual(ownAddresses(), Own())

    def test_unreadable(self) -> None:
        """What is there and can not be read is not nothing."""
        for name in FILES:
            self.patchAll(**FILES)
            self.patch(ownaddresses, name, "/")
            self.assertRaises(OSError, ownAddresses)

    @skipUnless(sys.platform == "linux", "these files are Linux's")
    def test_here(self) -> None:
        """Here, 127.0.0.1 is one."""
        self.assertIn(bytes((127, 0, 0, 1)), ownAddresses().addresses)
