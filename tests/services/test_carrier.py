"""Tests for L{udptunnel.services.carrier}."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.services.children import KILL, TERM, ChildReactor
from tests.waiting import until
from udptunnel.errors import ListenError
from udptunnel.net.guard import FAREWELL_SECONDS, Guard
from udptunnel.services import carrier
from udptunnel.services.carrier import DRAIN_SECONDS, STABLE_SECONDS, Carrier, Program
from udptunnel.services.reconnecting import LAST_SECONDS

PROGRAM = Program("true", ("true", "-x"), "[[carrier]] true")


class LogTestCase(SynchronousTestCase):
    """With what is logged."""

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def logged(self, namespace: str = "udptunnel") -> list[str]:
        """The lines of a part of the package."""
        return [str(formatEvent(event)) for event in self.events if event["log_namespace"].startswith(namespace)]


class CarrierTests(LogTestCase):
    """A child that does what the test says."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = ChildReactor()
        self.carrier = Carrier(self.reactor, PROGRAM, self.reactor.guard)

    def start(self) -> None:
        self.carrier.startService()

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.carrier.stopService())

    def pauseAfter(self, **how: Any) -> float:
        """How long it is until the child is started again, when it ends in some way."""
        before, begin = len(self.reactor.children), self.reactor.seconds()
        self.reactor.child.exits(**how)
        while len(self.reactor.children) == before:
            self.reactor.advance(0.01)
        return float(self.reactor.seconds() - begin)

    def test_started(self) -> None:
        """It is started with its arguments, by way of the guard, and with our environment."""
        self.patch(os, "environ", {**os.environ, "OURS": "1"})
        self.start()
        self.assertTrue(self.reactor.guard.isStarted)
        self.assertEqual(self.reactor.child.words, ["guarded", "true", "-x"])
        self.assertEqual(self.reactor.child.environment["OURS"], "1")
        self.assertEqual(self.carrier.process, self.reactor.child.pid)

    def test_turns(self) -> None:
        """It begins with turns on a processor as long as anybody's, whatever we have chosen for ourselves."""
        steps: list[str] = []

        @contextmanager
        def usualTurns() -> Iterator[None]:
            steps.append("usual")
            yield
            steps.append("ours")

        spawn = self.reactor.spawnProcess
        self.patch(carrier, "usualTurns", usualTurns)
        self.patch(self.reactor, "spawnProcess", lambda *how, **more: steps.append("start") or spawn(*how, **more))
        self.start()
        self.assertEqual(steps, ["usual", "start", "ours"])

    def test_noProgram(self) -> None:
        """A program that there is not is not started, and what asked for it is named."""
        program = Program("x", ("no-such-program",), "--plugin no-such-program")
        error = self.assertRaises(ListenError, Carrier(self.reactor, program, self.reactor.guard).startService)
        self.assertEqual(str(error), "--plugin no-such-program: there is no program no-such-program")
        self.assertEqual(self.reactor.children, [])

    def test_lines(self) -> None:
        """What it prints is logged line by line, of both streams, under its name; the last line needs no end."""
        self.start()
        self.reactor.child.says(b"hello\nwor")
        self.reactor.child.says(b"oops {x}\n", 2)
        self.reactor.child.says(b"ld\nlast")
        self.assertEqual(self.logged("udptunnel.carrier.true"), ["hello", "oops {x}", "world"])
        self.reactor.child.exits(1)
        self.assertEqual(self.logged("udptunnel.carrier.true")[-1], "last")
        self.assertEqual(
            self.carrier.lastWords, "[[carrier]] true has ended with exit status 1; it said: oops {x} / world / last"
        )

    def test_restarted(self) -> None:
        """When it ends it is started again; the log says how it ended, and the guard forgets it."""
        for how, text in (
            ({"status": 0}, "true has ended with exit status 0"),
            ({"status": 3}, "true has ended with exit status 3"),
            ({"number": KILL}, "true was killed by SIGKILL"),
        ):
            self.reactor = ChildReactor()
            self.carrier = Carrier(self.reactor, PROGRAM, self.reactor.guard)
            self.start()
            first = self.reactor.child
            self.assertLess(self.pauseAfter(**how), 0.5)
            self.assertEqual(self.reactor.guard.over, [first.pid])
            self.assertEqual(self.carrier.process, self.reactor.child.pid)
            self.assertNotEqual(self.carrier.process, first.pid)
            self.assertIn(text, "\n".join(self.logged()))
            self.assertEqual(self.carrier.report()["ends"], 1)

    def test_backOff(self) -> None:
        """The pauses grow up to a bound while it keeps failing; once it has run for a while they begin anew."""
        self.start()
        pauses = [self.pauseAfter(status=1) for _ in range(16)]
        self.assertLess(pauses[0], 0.5)
        for before, after in zip(pauses[:8], pauses[2:10], strict=True):
            self.assertGreater(after, before)
        self.assertGreater(pauses[-1], 0.7 * LAST_SECONDS)
        self.assertLessEqual(pauses[-1], LAST_SECONDS + 0.02)
        self.reactor.advance(STABLE_SECONDS)
        self.assertLess(self.pauseAfter(status=1), 0.5)

    def test_notStarted(self) -> None:
        """If there is no process to be had it is tried again."""
        self.reactor.refusal = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.start()
        self.assertEqual((self.reactor.children, self.carrier.process), ([], 0))
        self.reactor.refusal = None
        self.reactor.advance(0.3)
        self.assertEqual(len(self.reactor.children), 1)
        self.assertIn("can not be started: Resource temporarily unavailable", self.carrier.lastEnd)

    def test_environment(self) -> None:
        """Its own environment is asked for at each start."""
        ports = iter("12")
        carrier = Carrier(self.reactor, PROGRAM, self.reactor.guard, lambda: {"PORT": next(ports)})
        carrier.startService()
        self.pauseAfter(status=1)
        self.assertEqual([each.environment["PORT"] for each in self.reactor.children], ["1", "2"])

    def test_stopped(self) -> None:
        """It is asked to end, waited for, and not started again."""
        self.start()
        self.reactor.child.whenSignalled = lambda number: None
        over = self.stop()
        self.assertNoResult(over)
        self.assertEqual(self.reactor.child.signals, [TERM])
        self.reactor.child.exits(0)
        self.successResultOf(over)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(self.reactor.children), 1)

    def test_killed(self) -> None:
        """One that does not end when asked to is killed after a while."""
        self.start()
        self.reactor.child.whenSignalled = lambda number: self.reactor.child.dies(number) if number == KILL else None
        over = self.stop()
        self.reactor.advance(FAREWELL_SECONDS - 0.01)
        self.assertNoResult(over)
        self.reactor.advance(0.01)
        self.successResultOf(over)
        self.assertEqual(self.reactor.child.signals, [TERM, KILL])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stoppedWhileWaiting(self) -> None:
        """One that is to be started again is not."""
        self.start()
        self.reactor.child.exits(1)
        self.successResultOf(self.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_outputHeld(self) -> None:
        """If somebody else keeps its output open, it is over nevertheless, a little later."""
        self.start()
        self.reactor.child.exits(1, quiet=False)
        self.assertEqual(self.reactor.guard.over, [self.reactor.child.pid])
        self.reactor.child.says(b"last words\n")
        self.reactor.advance(DRAIN_SECONDS)
        self.assertTrue(self.reactor.children[0].isCut)
        self.assertIn("last words", self.carrier.lastWords)
        self.reactor.advance(0.3)
        self.assertEqual(len(self.reactor.children), 2)


class RealTests(TestCase):
    """A real child."""

    async def test_whole(self) -> None:
        """It runs, says something, is killed, runs again, and is gone when we stop."""
        self.patch(sys.modules["udptunnel.services.carrier"], "backOff", lambda failures: 0.01)
        guard = Guard()
        self.addCleanup(guard.close)
        words = (
            sys.executable,
            "-c",
            "import os, sys; print(os.environ['WHO'], sys.argv[1:], flush=True); sys.exit(sys.stdin.read() + '!')",
        )
        program = Program("python", (*words, "a b", "$HOME"), "[[carrier]] python")
        carrier = Carrier(reactor, program, guard, lambda: {"WHO": "me"})
        carrier.startService()
        # It has nothing to read, so it ends by itself.
        await until(lambda: carrier.ends >= 2, "it ends, and is started again")
        self.assertIn("me ['a b', '$HOME']", carrier.said)
        self.assertIn("has ended with exit status 1", carrier.lastEnd)
        await carrier.stopService()
        self.assertEqual(carrier.process, 0)

    async def test_stopped(self) -> None:
        """One that runs is ended."""
        guard = Guard()
        self.addCleanup(guard.close)
        carrier = Carrier(reactor, Program("sleep", ("sleep", "1000"), "[[carrier]] sleep"), guard)
        carrier.startService()
        process = carrier.process
        os.kill(process, 0)
        await carrier.stopService()
        self.assertRaises(ProcessLookupError, os.kill, process, signal.SIGTERM)
