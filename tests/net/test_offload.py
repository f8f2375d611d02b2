"""Tests for L{udptunnel.net.offload}."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.errors import ConfigError
from udptunnel.net.offload import NAMES, Offload, parseNames, probe


class OffloadTests(SynchronousTestCase):
    """L{Offload} and its text."""

    def test_text(self) -> None:
        """What is used is said in one word or several, which mean the same again."""
        for names in ((), ("gro",), ("gso", "mmsg"), NAMES):
            text = str(Offload(names))
            self.assertEqual(parseNames(text), frozenset(names))
        self.assertEqual(str(Offload()), "none")
        self.assertEqual(str(Offload(NAMES)), "gro,gso,mmsg")

    def test_words(self) -> None:
        """All, none, and any of the names in any order are understood."""
        self.assertEqual(parseNames("all"), frozenset(NAMES))
        self.assertEqual(parseNames("none"), frozenset())
        self.assertEqual(parseNames("mmsg, gro"), frozenset(("gro", "mmsg")))

    def test_otherWords(self) -> None:
        """Anything else is refused, with the option, the text and what is expected."""
        for text in ("", "tso", "gro,", "all,gro", "none,gso", "GRO", "gro;gso"):
            message = str(self.assertRaises(ConfigError, parseNames, text))
            self.assertIn(f"--offload {text}", message)
            self.assertIn("gro,gso,mmsg", message)

    def test_refused(self) -> None:
        """What the kernel refuses is switched off, with one log line however often it is refused."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        offload = Offload(NAMES)
        for _ in range(3):
            offload.refused("gso", OSError(errno.EIO, "Input/output error"))
        self.assertEqual(str(offload), "gro,mmsg")
        said = [event for event in events if event.get("log_level") == LogLevel.warn]
        self.assertEqual([event["ability"] for event in said], ["gso"])

    def test_probe(self) -> None:
        """Only what was asked for is used, and of that only what the kernel has."""
        for name in NAMES:
            self.assertLessEqual(parseNames(str(probe((name,)))), {name})
        self.assertEqual(str(probe(())), "none")

    def test_noKernel(self) -> None:
        """Where not even a socket can be opened, nothing is used that needs one."""

        def refuse(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(socket, "socket", refuse)
        self.assertEqual(str(probe(("gro", "gso"))), "none")
