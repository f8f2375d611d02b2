"""Tests for L{udptunnel.net.ownaddresses}."""

from __future__ import annotations

import ipaddress
import sys
from unittest import skipUnless

from twisted.trial.unittest import SynchronousTestCase

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
"""
IF_INET6 = "20010db8000000000000000000000007 02 40 00 80     eth0\n"


class OwnAddressesTests(SynchronousTestCase):
    """L{ownAddresses}."""

    def test_files(self) -> None:
        """Addresses of the host and of broadcast are found, those of networks and of others are not."""
        texts = {"trie": FIB_TRIE, "inet6": IF_INET6}
        for name, text in texts.items():
            path = self.mktemp()
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            self.patch(ownaddresses, "_INTERNET" if name == "trie" else "_INTERNET6", path)
        expected = {ipaddress.ip_address(each).packed for each in ("192.0.2.7", "192.0.2.255", "2001:db8::7")}
        self.assertEqual(ownAddresses(), expected)

    def test_none(self) -> None:
        """A machine without a protocol has no such addresses."""
        self.patch(ownaddresses, "_INTERNET", self.mktemp())
        self.patch(ownaddresses, "_INTERNET6", self.mktemp())
        self.assertEqual(ownAddresses(), frozenset())

    @skipUnless(sys.platform == "linux", "these files are Linux's")
    def test_here(self) -> None:
        """Here, 127.0.0.1 is one."""
        self.assertIn(bytes((127, 0, 0, 1)), ownAddresses())
