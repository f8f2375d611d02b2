"""Tests for L{udptunnel.net.guard}, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT
from udptunnel.net import guard
from udptunnel.net.guard import NOT_EXECUTABLE, NOT_FOUND, Guard, end

SECONDS = 20.0

STUBBORN = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), child.pid, flush=True)
time.sleep(1000)
"""
"""A program that does not care for SIGTERM, and has started another one."""

LEAVING = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid, flush=True)
"""
"""A program that leaves another one behind."""

OWNER = f"""
import subprocess, sys, time
sys.path.insert(0, {ROOT!r})
from udptunnel.net.guard import Guard
kept = open(sys.argv[1], "r+")
guard = Guard([kept.fileno()])
guard.start()
fds = guard.descriptors
subprocess.Popen(guard.words([sys.executable, "-c", sys.argv[2]]), stdin=fds[0], close_fds=False,
    preexec_fn=lambda: __import__("os").dup2(fds[3], 3))
print(guard._process.pid, flush=True)
time.sleep(1000)
"""
"""A program that has a guard, and a program that the guard knows of."""


def isAlive(process: int) -> bool:
    """Whether a process runs; one that is only not waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def awaitEnd(process: int) -> None:
    """Wait until a process does not run any more."""
    until = time.monotonic() + SECONDS
    while isAlive(process):
        if time.monotonic() > until:
            raise AssertionError(f"process {process} is still there")
        time.sleep(0.01)


class GuardTests(SynchronousTestCase):
    """The guard's process, and what it ends."""

    def setUp(self) -> None:
        if not os.path.exists("/proc/self/stat"):
            self.skipTest("needs /proc to see which processes there are")

    def guard(self) -> Guard:
        """A guard of this process."""
        made = Guard()
        made.start()
        self.addCleanup(made.close)
        return made

    def begin(self, made: Guard, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that the guard knows of."""
        # As spawnProcess does it; the tests of carriers have that.
        nothing, lifeline = (int(made.descriptors[each]) for each in (0, 3))
        started = subprocess.Popen(
            made.words(command),
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            close_fds=False,
            preexec_fn=lambda: os.dup2(lifeline, 3),
        )
        self.addCleanup(self.finish, started)
        return started

    def finish(self, started: subprocess.Popen[bytes]) -> None:
        started.kill()
        started.wait(SECONDS)
        for stream in (started.stdout, started.stderr):
            assert stream is not None
            stream.close()

    def numbers(self, stream: IO[bytes] | None) -> list[int]:
        """The numbers in the next line."""
        assert stream is not None
        return [int(word) for word in stream.readline().split()]

    def test_owner(self) -> None:
        """When its owner is killed, a program ends with all that it has started, willing or not, and the guard too."""
        kept = Path(self.mktemp()).absolute()
        kept.write_text("1234\n")
        owner = subprocess.Popen([sys.executable, "-c", OWNER, str(kept), STUBBORN], stdout=subprocess.PIPE)
        self.addCleanup(owner.wait)
        self.addCleanup(owner.kill)
        self.addCleanup(owner.stdout.close)  # type: ignore[union-attr]
        processes = self.numbers(owner.stdout) + self.numbers(owner.stdout)
        self.assertEqual(len(processes), 3)
        self.assertTrue(all(map(isAlive, processes)))
        begin = time.monotonic()
        owner.kill()
        for each in processes:
            awaitEnd(each)
        self.assertGreater(time.monotonic() - begin, guard.FAREWELL_SECONDS - 1)
        self.assertEqual(kept.read_text(), "", "what was kept still says something")

    def test_closed(self) -> None:
        """A guard that is closed ends what there still is, at once if that is willing, and itself."""
        made = self.guard()
        process = made._process
        started = self.begin(made, sys.executable, "-c", "print(1, flush=True); import time; time.sleep(1000)")
        self.assertEqual(self.numbers(started.stdout), [1])
        made.close()
        self.assertEqual(started.wait(SECONDS), -signal.SIGTERM)
        assert process is not None
        self.assertEqual(process.wait(SECONDS), 0)
        made.close()

    def test_forgotten(self) -> None:
        """What has ended is forgotten, and what it has left is ended: its number may be somebody else's next."""
        made = self.guard()
        started = self.begin(made, sys.executable, "-c", LEAVING)
        (child,) = self.numbers(started.stdout)
        started.wait(SECONDS)
        self.assertTrue(isAlive(child))
        made.ended(started.pid)
        awaitEnd(child)

    def test_signal(self) -> None:
        """A signal goes to a program with all that it has started."""
        made = self.guard()
        started = self.begin(made, sys.executable, "-c", STUBBORN)
        leader, child = self.numbers(started.stdout)
        self.assertEqual(leader, started.pid, "the program is not in its own place")
        made.signal(leader, signal.SIGTERM)
        awaitEnd(child)
        self.assertTrue(isAlive(leader))
        made.signal(leader, signal.SIGKILL)
        self.assertEqual(started.wait(SECONDS), -signal.SIGKILL)
        made.signal(leader, signal.SIGKILL)

    def test_early(self) -> None:
        """A signal reaches a program that has no group yet."""
        made = self.guard()
        started = self.begin(made, sys.executable, "-c", "import time; time.sleep(1000)")
        made.signal(started.pid, signal.SIGKILL)
        self.assertEqual(started.wait(SECONDS), -signal.SIGKILL)

    def test_missing(self) -> None:
        """What is no program is named, and the exit status is that of env."""
        made = self.guard()
        for name, status, reason in (("/no/such/program", NOT_FOUND, "No such file"), ("/", NOT_EXECUTABLE, "denied")):
            started = self.begin(made, name)
            _, said = started.communicate(timeout=SECONDS)
            self.assertEqual(started.returncode, status)
            self.assertIn(f"{name}: ", said.decode())
            self.assertIn(reason, said.decode())

    def test_usualSignals(self) -> None:
        """A program finds signals as it would in a shell, though Python ignores some."""
        made = self.guard()
        started = self.begin(made, "grep", "SigIgn", "/proc/self/status")
        said, _ = started.communicate(timeout=SECONDS)
        # What the shell that has started the tests ignores is its own business.
        ofPython = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
        self.assertEqual(int(said.split()[1], 16) & ofPython, 0)

    def test_end(self) -> None:
        """Groups that are willing end at once; nobody waits for what is gone already."""
        started = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        gone = subprocess.Popen(["true"], start_new_session=True)
        gone.wait(SECONDS)
        end([gone.pid], seconds=1000)
        end([started.pid], seconds=0.1)
        self.assertEqual(started.wait(SECONDS), -signal.SIGTERM)
