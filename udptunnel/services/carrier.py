"""
Carriers: programs of others, started as our children and kept running.

What one prints goes into our log, line by line. When it ends it is started
again, soon at first and then after longer and longer pauses. It ends with us.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from udptunnel.core.saidlines import SaidLines
from udptunnel.errors import ListenError
from udptunnel.net.guard import FAREWELL_SECONDS, Guard
from udptunnel.net.platforms import require
from udptunnel.net.turns import usualTurns
from udptunnel.services.reconnecting import backOff

STABLE_SECONDS = 10.0
"""What has run for so long is started again at once."""

DRAIN_SECONDS = 1.0
"""So long after its end we still read what a program has printed; somebody else may hold the other end for ever."""

LAST_LINES = 3
"""So many of its last lines are shown when a program has failed."""


class Program(NamedTuple):
    """A program that is to run."""

    name: str
    """What it is called in our log."""

    command: tuple[str, ...]
    """The program, and its arguments."""

    option: str
    """What the user has written to have it: what is to blame."""


class Carrier(Service):
    """
    Keeps one program running.

    @ivar program: which.
    @ivar process: its number while it runs; otherwise 0.
    @ivar ends: how often it has ended.
    @ivar lastEnd: how it did so the last time.
    @ivar said: its last lines.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        program: Program,
        guard: Guard,
        environment: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """
        @param guard: sees to it that it does not outlive us.
        @param environment: what it is to find in its environment besides what is in ours; asked at each start.
        """
        self.setName(f"carrier {program.name}")
        self.program = program
        self.process = self.ends = 0
        self.lastEnd = ""
        self.said: deque[str] = deque(maxlen=LAST_LINES)
        self._reactor = reactor
        self._guard = guard
        self._environment = environment
        # Lines of one namespace and format are of one kind: each program has its own share of the log.
        self._lines = Logger(namespace=f"udptunnel.carrier.{program.name}")
        self._startedAt = 0.0
        self._failures = 0
        self._waiting: IDelayedCall | None = None
        self._gone: Deferred[None] | None = None

    # -- beginning

    def startService(self) -> None:
        """
        Start it.

        @raise ListenError: there is no such program.
        """
        require("a program of others")
        if shutil.which(self.program.command[0]) is None:
            raise ListenError(f"{self.program.option}: there is no program {self.program.command[0]}")
        super().startService()
        self._start()

    def _start(self) -> None:
        self._waiting = None
        self._startedAt = self._reactor.seconds()
        words = self._guard.words(self.program.command)
        try:
            self._guard.start()
            with usualTurns():
                child = self._reactor.spawnProcess(
                    _Child(self, self._reactor),
                    words[0],
                    words,
                    env={**os.environ, **self._environment()},
                    childFDs=self._guard.descriptors,
                )
        except OSError as error:
            self._over(f"can not be started: {error.strerror}")
        else:
            self.process = child.pid
            self._log.info("{carrier} runs, process {process}", carrier=self.program.name, process=child.pid)

    # -- what it says

    def lineReceived(self, line: str) -> None:
        """It has printed a line."""
        self.said.append(line)
        self._lines.info("{line}", line=line)

    # -- its end

    def exited(self) -> None:
        """It has ended; what it has printed may still come."""
        self._guard.ended(self.process)

    def ended(self, reason: Failure) -> None:
        """It has ended, and this was all."""
        self.process = 0
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.callback(None)
        elif self.running:
            self._over(_howEnded(reason))

    def _over(self, how: str) -> None:
        self.ends += 1
        self.lastEnd = how
        ran = self._reactor.seconds() - self._startedAt
        self._failures = 0 if ran >= STABLE_SECONDS else self._failures + 1
        pause = backOff(max(0, self._failures - 1))
        self._log.warn(
            "{carrier} {how}; it is started again in {pause:.1f} s", carrier=self.program.name, how=how, pause=pause
        )
        self._waiting = self._reactor.callLater(pause, self._start)

    async def stopService(self) -> None:
        """Ask it to end, and wait until it has; after L{FAREWELL_SECONDS} it is ended."""
        super().stopService()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        if self.process:
            gone: Deferred[None] = Deferred()
            self._gone = gone
            killing = self._reactor.callLater(FAREWELL_SECONDS, self._kill)
            self._guard.signal(self.process, signal.SIGTERM)
            await gone
            if killing.active():
                killing.cancel()

    def _kill(self) -> None:
        self._log.warn(
            "{carrier} does not end within {seconds:g} s: killed", carrier=self.program.name, seconds=FAREWELL_SECONDS
        )
        self._guard.signal(self.process, signal.SIGKILL)

    @property
    def lastWords(self) -> str:
        """How it has ended, and what it said before."""
        said = f"; it said: {' / '.join(self.said)}" if self.said else ""
        return f"{self.program.option} {self.lastEnd}{said}"

    def report(self) -> dict[str, object]:
        """The state as plain values."""
        return {"name": self.program.name, "process": self.process, "ends": self.ends, "lastEnd": self.lastEnd}


async def stopAll(carriers: Iterable[Carrier]) -> None:
    """End carriers, all at the same time."""
    await gatherResults([Deferred.fromCoroutine(each.stopService()) for each in carriers])


def _howEnded(reason: Failure) -> str:
    if reason.check(ProcessDone):
        return "has ended with exit status 0"
    number = getattr(reason.value, "signal", None)
    if number is not None:
        return f"was killed by {signal.Signals(number).name}"
    return f"has ended with exit status {getattr(reason.value, 'exitCode', '?')}"


class _Child(ProcessProtocol):
    """The process, and the two streams that it prints to."""

    transport: Any

    def __init__(self, carrier: Carrier, reactor: Any) -> None:
        self._carrier = carrier
        self._reactor = reactor
        self._streams = {1: SaidLines(), 2: SaidLines()}
        self._draining: IDelayedCall | None = None

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has printed something."""
        for line in self._streams[childFD].add(data):
            self._carrier.lineReceived(line)

    def processExited(self, reason: Failure) -> None:
        """It is gone."""
        self._carrier.exited()
        self._draining = self._reactor.callLater(DRAIN_SECONDS, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        """Nobody will print anything any more."""
        if self._draining is not None and self._draining.active():
            self._draining.cancel()
        for stream in self._streams.values():
            for line in stream.rest():
                self._carrier.lineReceived(line)
        self._carrier.ended(reason)
