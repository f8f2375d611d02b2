"""Tests for L{udptunnel.net.reach}."""

from __future__ import annotations

import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs
from udptunnel.net.platforms import resource
from udptunnel.net.reach import isLoopback, isOwn, siteOf


class OwnTests(SynchronousTestCase):
    """L{isOwn}."""

    def test_loopback(self) -> None:
        """The loopback addresses are this machine's own."""
        for host in ("127.0.0.1", "::1"):
            if ":" not in host or socket.has_dualstack_ipv6():
                self.assertTrue(isOwn(host), host)

    def test_broadcast(self) -> None:
        """A broadcast address counts as this machine's own."""
        self.assertTrue(isOwn("127.255.255.255"))

    def test_others(self) -> None:
        """The address of another machine is not, whether a route leads there or none."""
        for host in ("8.8.8.8", "2001:4860:4860::8888", "240.0.0.1"):
            self.assertFalse(isOwn(host), host)

    def test_strangeZone(self) -> None:
        """A zone that this machine does not have is not its own."""
        self.assertFalse(isOwn("fe80::1%nosuchzone"))

    @needs("limits")
    def test_noDescriptor(self) -> None:
        """When no socket can be opened to ask with, nobody knows (E-14)."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            self.assertRaises(OSError, isOwn, "8.8.8.8")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_closed(self) -> None:
        """Asking leaves no descriptor open."""
        before = len(os.listdir("/proc/self/fd"))
        isOwn("127.0.0.1")
        isOwn("127.255.255.255")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class LoopbackTests(SynchronousTestCase):
    """L{isLoopback}."""

    def test_loopback(self) -> None:
        """Loopback addresses are, those of IPv4 as IPv6 writes them too."""
        for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::ffff:7f00:2"):
            self.assertTrue(isLoopback(host), host)

    def test_others(self) -> None:
        """All others are not, nor is what is no address."""
        for host in ("::ffff:128.0.0.1", "::ffff:0.0.0.0", "::2", "fe80::1%lo", "10.0.0.1", "localhost", ""):
            self.assertFalse(isLoopback(host), host)


class SiteTests(SynchronousTestCase):
    """L{siteOf}."""

    def test_ipv4(self) -> None:
        """An IPv4 address stands for itself, however it is written."""
        self.assertEqual(siteOf("192.0.2.1"), "192.0.2.1")
        self.assertEqual(siteOf("::ffff:192.0.2.1"), "192.0.2.1")
        self.assertEqual(siteOf("::ffff:127.0.0.1"), "127.0.0.1")

    def test_ipv6(self) -> None:
        """Of an IPv6 address the first 64 bits count."""
        sites = {siteOf(host) for host in ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:0:5::%eth0")}
        self.assertEqual(sites, {"2001:db8::/64"})
        self.assertNotEqual(siteOf("2001:db8:0:1::1"), siteOf("2001:db8::1"))

    def test_loopback(self) -> None:
        """The loopback address is known again as one."""
        self.assertEqual(siteOf("::1"), "::1")
        self.assertTrue(all(isLoopback(siteOf(host)) for host in ("::1", "127.0.0.1", "::ffff:127.0.0.1")))

    def test_noAddress(self) -> None:
        """What is no address stays what it is."""
        for host in ("", "name.example", "/run/socket"):
            self.assertEqual(siteOf(host), host)
