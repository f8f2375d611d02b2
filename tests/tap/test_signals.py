"""Tests for L{udptunnel.tap.signals}."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.tap.signals import STOP_SECONDS, RealSystem, Signals


class FakeReactor:
    """A reactor that calls nothing before it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.stops = 0
        self.running = True

    def callFromThread(self, call: Callable[..., None], *arguments: Any) -> None:
        self.waiting.append(lambda: call(*arguments))

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False
        self.stops += 1

    def turn(self) -> None:
        """One turn of its loop."""
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


class FakeSystem:
    """An operating system that sends signals by name."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[int, FrameType | None], None]] = {}
        self.alarms: list[int] = []

    def handle(self, name: str, handler: Callable[[int, FrameType | None], None]) -> None:
        self.handlers[name] = handler

    def alarm(self, seconds: int) -> None:
        self.alarms.append(seconds)

    def send(self, name: str) -> None:
        """Send a signal."""
        self.handlers[name](getattr(signal, name), None)


class SignalsTests(SynchronousTestCase):
    """L{Signals}."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.system = FakeSystem()
        self.did: list[Any] = []
        signals = Signals(
            self.reactor,
            lambda: self.did.append("stopping"),
            lambda: self.did.append("reload"),
            self.did.append,
            lambda: self.did.append("drain"),
            self.system,
        )
        signals.install()
        self.said: list[str] = []
        observer = lambda event: self.said.append(_shown(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_installed(self) -> None:
        """SIGTERM, SIGINT, SIGHUP and SIGUSR2 are ours, and SIGUSR1 stays with twistd."""
        self.assertEqual(set(self.system.handlers), {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"})

    def test_drain(self) -> None:
        """SIGUSR2 begins to drain, in the reactor's own time, and does not stop it."""
        self.system.send("SIGUSR2")
        self.assertEqual(self.did, [])
        self.reactor.turn()
        self.assertEqual((self.did, self.reactor.stops), (["drain"], 0))

    def test_first(self) -> None:
        """The first signal to end stops the reactor, in the reactor's own time."""
        for name in ("SIGTERM", "SIGINT"):
            self.setUp()
            self.system.send(name)
            self.assertEqual((self.did, self.reactor.stops), ([], 0))
            self.reactor.turn()
            self.assertEqual((self.did, self.reactor.stops), (["stopping"], 1))
            self.assertIn(f"info {name}: stopping", self.said)

    def test_second(self) -> None:
        """The second one ends the process at once, though the reactor does nothing, with the status of a signal."""
        self.system.send("SIGTERM")
        self.system.send("SIGINT")
        self.assertEqual(self.did, [128 + signal.SIGINT])
        self.assertIn("warn SIGINT again: ending at once", self.said)

    def test_bounded(self) -> None:
        """Ending in good order has its time; then the process ends as if it had, and says so."""
        self.assertEqual(self.system.alarms, [])
        self.system.send("SIGTERM")
        self.reactor.turn()
        self.assertEqual(self.system.alarms, [STOP_SECONDS])
        self.system.send("SIGALRM")
        self.assertEqual(self.did, ["stopping", 0])
        self.assertIn("warn not everything has ended after 10 s: ending now", self.said)

    def test_stopped(self) -> None:
        """That the reactor was stopped by something else is no error."""
        self.reactor.running = False
        self.system.send("SIGTERM")
        self.reactor.turn()
        self.assertEqual(self.reactor.stops, 0)

    def test_hangUp(self) -> None:
        """SIGHUP reloads each time, in the reactor's own time, and ends nothing."""
        for times in (1, 2):
            self.system.send("SIGHUP")
            self.assertEqual(len(self.did), times - 1)
            self.reactor.turn()
            self.assertEqual((self.did, self.reactor.stops), (["reload"] * times, 0))


def _shown(event: LogEvent) -> str:
    return f"{event['log_level'].name} {formatEvent(event)}"


class RealSystemTests(SynchronousTestCase):
    """L{RealSystem}."""

    def test_handle(self) -> None:
        """A signal calls its handler; what is no signal here does not matter."""
        got: list[int] = []
        self.addCleanup(signal.signal, signal.SIGUSR2, signal.getsignal(signal.SIGUSR2))
        RealSystem().handle("SIGUSR2", lambda number, frame: got.append(number))
        RealSystem().handle("SIGNOTHERE", lambda number, frame: None)
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertEqual(got, [signal.SIGUSR2])

    def test_alarm(self) -> None:
        """An alarm is set."""
        RealSystem().alarm(100)
        self.assertGreater(signal.alarm(0), 90)
