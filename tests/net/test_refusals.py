"""Tests for L{udptunnel.net.refusals}."""

from __future__ import annotations

import errno
import socket

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net.refusals import NOTHING_THERE, nameOf


class RefusalTests(SynchronousTestCase):
    """What the kernel says."""

    def test_nothingThere(self) -> None:
        """An empty socket has no error; one whose other end is gone for good has."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with here:
            here.setblocking(False)
            self.assertIn(self.assertRaises(OSError, here.recv, 1).errno, NOTHING_THERE)
            there.close()
            self.assertNotIn(self.assertRaises(OSError, here.send, b"x").errno, NOTHING_THERE)

    def test_name(self) -> None:
        """An error has the name that everybody knows it by; one without a number, or with a strange one, has none."""
        self.assertEqual(nameOf(OSError(errno.EMSGSIZE, "too long")), "EMSGSIZE")
        self.assertEqual((nameOf(OSError("what?")), nameOf(OSError(99999, "what?"))), ("error", "error"))
