"""Tests for L{udptunnel.net.pidfile}."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.errors import ListenError
from udptunnel.net.pidfile import PidFile


class PidFileTests(SynchronousTestCase):
    """A file that says who runs."""

    def setUp(self) -> None:
        self.file = PidFile(self.mktemp())
        self.addCleanup(self.file.release)

    def other(self) -> PidFile:
        """The same file, as another process sees it; the lock is that of an open file."""
        other = PidFile(self.file.name)
        self.addCleanup(other.release)
        return other

    def test_taken(self) -> None:
        """Only one has it; the others can see who."""
        self.assertTrue(self.file.take())
        self.file.write("/etc/client.toml")
        self.assertFalse(self.other().take())
        self.assertEqual(self.other().read(), (os.getpid(), "/etc/client.toml"))
        self.file.write("/x")
        self.assertEqual(self.other().read(), (os.getpid(), "/x"))

    def test_released(self) -> None:
        """Who lets go of it lets the next one have it; what is in the file does not matter."""
        self.file.take()
        self.file.write("x")
        self.file.release()
        other = self.other()
        self.assertTrue(other.take())
        self.assertEqual(other.read()[0], os.getpid())

    def test_inherited(self) -> None:
        """A process that has inherited it has the lock as long as it lives."""
        self.file.take()
        held = [self.file.descriptor]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held)
        self.file.release()
        other = self.other()
        self.assertFalse(other.take())
        self.assertFalse(other.await_(0.05))
        child.communicate(b"\n")
        self.assertTrue(other.await_(10))

    def test_removed(self) -> None:
        """A file that was removed meanwhile is not taken for the one that is there now."""
        self.file.take()
        self.file.remove()
        self.assertFalse(os.path.exists(self.file.name))
        other = self.other()
        self.assertTrue(other.take())
        self.assertTrue(os.path.exists(other.name))
        self.assertFalse(self.file.take())

    def test_removedMeanwhile(self) -> None:
        """Nor is one that is removed between opening and locking it."""
        lock, opened = fcntl.flock, list[int]()

        def removeFirst(descriptor: int, how: int) -> None:
            if not opened:
                os.unlink(self.file.name)
            opened.append(descriptor)
            lock(descriptor, how)

        self.patch(fcntl, "flock", removeFirst)
        self.assertTrue(self.file.take())
        self.assertEqual(len(opened), 2)
        self.assertTrue(os.path.samestat(os.stat(self.file.name), os.fstat(self.file.descriptor)))

    def test_nonsense(self) -> None:
        """A file without a number says nothing; neither does one that is not there."""
        self.assertEqual(self.file.read(), (0, ""))
        for text in ("", "\n", "nonsense\nx\n", "-1\nx\n"):
            with open(self.file.name, "w") as file:
                file.write(text)
            self.assertEqual(self.file.read(), (0, ""), text)

    def test_noFile(self) -> None:
        """A file that can not be made is named; a link somewhere else is not followed."""
        error = self.assertRaises(ListenError, PidFile("/no/such/folder/x.pid").take)
        self.assertEqual(str(error), "/no/such/folder/x.pid: No such file or directory")
        os.symlink(self.mktemp(), self.file.name)
        self.assertIn(self.file.name, str(self.assertRaises(ListenError, self.file.take)))
