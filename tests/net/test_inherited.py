"""Tests for L{udptunnel.net.inherited}."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import SynchronousTestCase

import udptunnel
from udptunnel.errors import ListenError
from udptunnel.net.inherited import inheritedDatagramSocket

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(udptunnel.__file__)))

CHILD = """
import os, socket, sys
if "LISTEN_PID" not in os.environ:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    os.dup2(opened.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="dns")
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1]])
import twisted.internet.endpoints
from udptunnel.net.inherited import inheritedDatagramSocket
print(inheritedDatagramSocket("dns").getsockname() == inheritedDatagramSocket("0").getsockname())
"""


class InheritedTests(SynchronousTestCase):
    """L{inheritedDatagramSocket}."""

    def passed(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> ListenFDs:
        """One socket, as systemd hands it over."""
        opened = socket.socket(family, kind)
        self.addCleanup(opened.close)
        return ListenFDs([opened.fileno()], ["dns"])

    def test_found(self) -> None:
        """A socket is found by its name and by its number, may be asked for again, and does not block."""
        passed = self.passed()
        for which in ("dns", "0", "dns"):
            with inheritedDatagramSocket(which, passed) as found:
                self.assertEqual((found.type, found.getblocking()), (socket.SOCK_DGRAM, False))

    def test_missing(self) -> None:
        """A name that is not there is told together with those that are."""
        for passed, expected in ((self.passed(), "handed over 0, dns"), (ListenFDs([], []), "handed over no socket")):
            error = self.assertRaises(ListenError, inheritedDatagramSocket, "web", passed)
            self.assertIn(f"systemd:web: systemd has {expected}", str(error))

    def test_wrongKind(self) -> None:
        """A TCP socket, a Unix socket, and a descriptor that is not open, are refused."""
        for passed in (self.passed(kind=socket.SOCK_STREAM), self.passed(socket.AF_UNIX)):
            error = self.assertRaises(ListenError, inheritedDatagramSocket, "dns", passed)
            self.assertIn("ListenDatagram=", str(error))
        error = self.assertRaises(ListenError, inheritedDatagramSocket, "dns", ListenFDs([999_999], ["dns"]))
        self.assertIn("systemd:dns: Bad file descriptor", str(error))

    def test_process(self) -> None:
        """A real process finds what it was handed, although Twisted has looked before."""
        done = subprocess.run(
            [sys.executable, "-c", CHILD, CHILD],
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.stdout, "True\n", done.stderr)
