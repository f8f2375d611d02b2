"""Tests for L{udptunnel.net.reach}."""

from __future__ import annotations

import os
import resource
import socket

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net.reach import isOwn


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
