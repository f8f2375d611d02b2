"""
What signals do to a role.

The first SIGTERM or SIGINT ends it in good order, and within a bounded time;
the second one ends it at once. SIGHUP has it read its files again. SIGUSR2
has it take in nobody new, and end when few enough are left. SIGUSR1 is left to
twistd, which opens a new log file.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

STOP_SECONDS = 10
"""How long saying farewell may take."""

KILLED = 128
"""Plus the number of a signal: the exit status of what a signal has ended, as shells have it."""


class System(Protocol):
    """What we need of the operating system."""

    def handle(self, name: str, handler: Callable[[int, FrameType | None], None]) -> None:
        """Have a signal call this, if there is such a signal."""

    def alarm(self, seconds: int) -> None:
        """Have SIGALRM sent then, if there is such a signal."""


class RealSystem:
    """The real one."""

    def handle(self, name: str, handler: Callable[[int, FrameType | None], None]) -> None:
        """Have a signal call this, if there is such a signal."""
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, handler)

    def alarm(self, seconds: int) -> None:
        """Have SIGALRM sent then, if there is such a signal."""
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)


class Signals:
    """
    The signals of one process.

    Twisted's own handlers call C{reactor.stop} each time, which fails the
    second time, and have the process die of the signal instead of ending with
    status 0.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        stopping: Callable[[], None],
        reload: Callable[[], None],
        end: Callable[[int], None],
        drain: Callable[[], None],
        system: System | None = None,
    ) -> None:
        """
        @param stopping: is told that the end begins.
        @param reload: reads the files again.
        @param end: ends the process at once, with an exit status.
        @param drain: begins to take in nobody new, and stops the reactor when few are left.
        """
        self._reactor = reactor
        self._stopping = stopping
        self._reload = reload
        self._end = end
        self._drain = drain
        self._system = system or RealSystem()
        self._first: int | None = None

    def install(self) -> None:
        """Take over. The reactor must run already: it sets handlers of its own when it begins to."""
        self._system.handle("SIGTERM", self._stopAsked)
        self._system.handle("SIGINT", self._stopAsked)
        self._system.handle("SIGHUP", self._reloadAsked)
        self._system.handle("SIGUSR2", self._drainAsked)

    # Python calls these between any two instructions of the main thread. What takes longer is left to the reactor.

    def _reloadAsked(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload)

    def _drainAsked(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._drain)

    def _stopAsked(self, number: int, frame: FrameType | None) -> None:
        if self._first is not None:
            # Not by way of the reactor: that it hangs is a reason to ask again.
            self._log.warn("{signal} again: ending at once", signal=signal.Signals(number).name)
            self._end(KILLED + number)
            return
        self._first = number
        self._bound()
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)

    def _bound(self) -> None:
        # Not by way of the reactor either: in the end it waits for its threads, and one may be looking up a name.
        self._system.handle("SIGALRM", self._timeIsOver)
        self._system.alarm(STOP_SECONDS)

    def stop(self, why: str) -> None:
        """Stop as the first SIGTERM does."""
        self._bound()
        self._stop(why)

    def _timeIsOver(self, number: int, frame: FrameType | None) -> None:
        self._log.warn("not everything has ended after {seconds} s: ending now", seconds=STOP_SECONDS)
        self._end(0)

    def _stop(self, name: str) -> None:
        self._log.info("{signal}: stopping", signal=name)
        self._stopping()
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            return  # Something else has stopped it, which is just as well.
