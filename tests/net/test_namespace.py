"""Tests for L{udptunnel.net.namespace}, without one; tests.system has some."""

from __future__ import annotations

import os
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import ListenError
from udptunnel.net import namespace
from udptunnel.net.namespace import Inside, Wanted

WANTED = Wanted("tun0", ("192.0.0.8/32",))
_texts = st.lists(st.text(max_size=20)).map(tuple)


class WantedTests(SynchronousTestCase):
    """What is told to the small process."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.builds(Wanted, st.text(), _texts, st.integers(), st.booleans(), _texts, st.text(), _texts))
    def test_text(self, wanted: Wanted) -> None:
        """It arrives as it was."""
        self.assertEqual(Wanted.parse(str(wanted)), wanted)


class InsideTests(SynchronousTestCase):
    """A process that does not do what it should."""

    def fail(self, program: str) -> str:  # type: ignore[override]
        """What is said about a process that runs another program."""
        self.patch(namespace, "_PROGRAM", f"import json, os, socket, sys; s = int(sys.argv[2]); {program}")
        inside = Inside(WANTED)
        try:
            return str(self.assertRaises(ListenError, inside.made))
        finally:
            inside.end()
            self.assertIsNotNone(inside.process.returncode)

    def test_died(self) -> None:
        """If it dies that is an error, and not waited for."""
        self.assertIn("has died", self.fail("os._exit(1)"))

    def test_error(self) -> None:
        """What it says is what the caller hears."""
        program = """socket.socket(fileno=s).send(json.dumps({"error": "no way"}).encode())"""
        self.assertEqual(self.fail(program), "no network namespace of our own: no way")

    def test_silent(self) -> None:
        """If it says nothing, the wait has an end, and so has the process, whatever it hangs at."""
        self.patch(namespace, "SECONDS", 0.2)
        self.assertIn("after 0.2 s", self.fail("import time; time.sleep(20)"))

    def test_noProgram(self) -> None:
        """Without Python there is no process, and nothing is left open."""
        self.patch(sys, "executable", "/nonexistent/python")
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, Inside, WANTED)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
