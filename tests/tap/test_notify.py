"""Tests for L{udptunnel.tap.notify}."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.tap.notify import Notices, send, stateLine

OURS = str(os.getpid())


class SendTests(SynchronousTestCase):
    """L{send}."""

    def listen(self, name: str) -> socket.socket:
        """A supervisor's socket."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listening.close)
        listening.bind(name)
        listening.settimeout(5)
        return listening

    def test_path(self) -> None:
        """The text arrives at a socket with a path."""
        # The path of a Unix socket has at most 107 bytes, and the one of a trial's folder may have more.
        name = f"/tmp/udpt-{OURS}"
        self.addCleanup(os.unlink, name)
        listening = self.listen(name)
        send(name, "READY=1\nSTATUS=é")
        self.assertEqual(listening.recv(100), "READY=1\nSTATUS=é".encode())

    def test_abstract(self) -> None:
        """A name that begins with @ is one without a file."""
        listening = self.listen(f"\0udpt-{OURS}")
        send(f"@udpt-{OURS}", "READY=1")
        self.assertEqual(listening.recv(100), b"READY=1")

    def test_nobody(self) -> None:
        """Nobody there, or nobody who reads, is no error, and does not hold us up."""
        send("/no/such/socket", "READY=1")
        send("@" + "x" * 200, "READY=1")
        self.listen(f"\0udpt-{OURS}")
        for _ in range(10_000):
            send(f"@udpt-{OURS}", "WATCHDOG=1")


class NoticesTests(SynchronousTestCase):
    """L{Notices}."""

    def notices(self, **environment: str) -> Notices:
        """Notices of a supervised process; C{self.told} has what they tell."""
        self.clock = Clock()
        self.told: list[str] = []
        report = {"sessions": 2, "links": [{}, {}, {}], "associations": 5, "sent": 1}

        def send(address: str, text: str) -> None:
            self.assertEqual(address, "@socket")
            self.told.append(text)

        return Notices(self.clock, lambda: report, {"NOTIFY_SOCKET": "@socket", **environment}, send)

    def test_ready(self) -> None:
        """Being ready is told with the number of the process, then the state, at once and every ten seconds."""
        self.notices().ready()
        state = "STATUS=sessions 2, links 3, associations 5"
        self.assertEqual(self.told, [f"READY=1\nMAINPID={OURS}", state])
        self.clock.pump([5, 4])
        self.assertEqual(len(self.told), 2)
        self.clock.advance(1)
        self.assertEqual(self.told[2:], [state])

    def test_reload(self) -> None:
        """A reload is told with the time at which it begins, so that nobody takes an older READY for its end."""
        notices = self.notices()
        self.clock.advance(12.5)
        notices.reloading()
        notices.reloaded()
        self.assertEqual(self.told, ["RELOADING=1\nMONOTONIC_USEC=12500000", "READY=1"])

    def test_stopping(self) -> None:
        """The end is told."""
        self.notices().stopping()
        self.assertEqual(self.told, ["STOPPING=1\nSTATUS=stopping"])

    def test_watchdog(self) -> None:
        """There are signs of life twice as often as the supervisor asks for."""
        self.notices(WATCHDOG_USEC="3000000", WATCHDOG_PID=OURS).ready()
        self.clock.pump([1.5, 1.5])
        self.assertEqual(self.told.count("WATCHDOG=1"), 3)

    def test_noWatchdog(self) -> None:
        """There are none if they were asked of another process, or of none, or in nonsense."""
        for environment in ({"WATCHDOG_PID": "1", "WATCHDOG_USEC": "3000000"}, {}, {"WATCHDOG_USEC": "often"}):
            self.notices(**environment).ready()
            self.clock.advance(3)
            self.assertNotIn("WATCHDOG=1", self.told)

    def test_unsupervised(self) -> None:
        """Without a supervisor nothing is told, and nothing is scheduled."""
        clock = Clock()
        told: list[Any] = []
        notices = Notices(clock, dict, {}, lambda *what: told.append(what))
        for tell in (notices.ready, notices.reloading, notices.reloaded, notices.stopping):
            tell()
        self.assertEqual((told, clock.getDelayedCalls()), ([], []))

    def test_stateLine(self) -> None:
        """What a role does not count is left out."""
        self.assertEqual(stateLine({"links": [], "associations": 0}), "links 0, associations 0")
