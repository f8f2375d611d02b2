"""Tests for L{udptunnel.net.inside}: what it says where it can not work. What it makes is in tests.system."""

from __future__ import annotations

import errno
import os

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net import inside
from udptunnel.net.inside import SWITCHES, explain

DENIED = PermissionError(errno.EPERM, "Operation not permitted", "unshare")


class ExplainTests(SynchronousTestCase):
    """What is said about a failure."""

    def explain(self, error: Exception, settings: dict[str, str] | None = None, device: bool = True) -> str:
        """What is said on a machine with some settings."""
        self.patch(inside, "_read", lambda name: (settings or {}).get(name.removeprefix("/proc/sys/"), ""))
        self.patch(os, "access", lambda name, mode: device)
        return explain(error)

    def test_switches(self) -> None:
        """Each switch that forbids user namespaces is named, with what undoes it; one that is not set is not."""
        for name, (value, other) in SWITCHES.items():
            text = self.explain(DENIED, {name: value})
            self.assertIn("unshare: Operation not permitted; unprivileged user namespaces are switched off", text)
            self.assertIn(f"sysctl {name.replace('/', '.')}={other}", text)
            self.assertNotIn("sysctl", self.explain(DENIED, {name: other}))

    def test_device(self) -> None:
        """Where the device is what is missing, it is named."""
        for number in (errno.EACCES, errno.ENOENT):
            self.assertIn("/dev/net/tun", self.explain(OSError(number, "whatever"), device=False))

    def test_container(self) -> None:
        """Otherwise it is the container."""
        self.assertIn("container", self.explain(DENIED))

    def test_others(self) -> None:
        """What has to do with none of it is said as it is."""
        self.assertEqual(self.explain(OSError(errno.EOPNOTSUPP, "no nftables")), "the kernel: no nftables")
        self.assertEqual(self.explain(ImportError("No module named 'pytun'")), "No module named 'pytun'")
        self.assertEqual(self.explain(KeyError()), "KeyError()")
