"""The long runs of L{tests.soak}, shortened; and that their judges see what they are to see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.soak.faults import plan
from tests.soak.holds import PATH, STOPPED, Holds
from tests.soak.judge import ANSWER, QUESTION, Judge, Note, pack, unpack
from tests.soak.report import Report
from tests.soak.trend import commonSlope, slope
from tests.system.programs import REPOSITORY
from tests.system.turns import TakesTurns

HEARTBEAT = "--heartbeat", "0.3"
PATIENCE_SECONDS, CLEANING_SECONDS = 110.0, 20.0


def interrupt(process: subprocess.Popen[str]) -> str:
    """End a run as Ctrl-C does, and return what it has said."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=CLEANING_SECONDS)[0]
    finally:
        process.kill()


class SoakTests(TakesTurns, SynchronousTestCase):
    """Each of the four, as somebody would start it."""

    def setUp(self) -> None:
        if os.geteuid():
            raise unittest.SkipTest("network namespaces need root")
        for name in ("ip", "nft", "ss", "tc"):
            if shutil.which(name) is None:
                raise unittest.SkipTest(f"{name} is not installed")

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak", *words],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.kill)
        return process

    def assertPasses(self, *words: str) -> str:
        """A run passes; what it has said is shown if it does not."""
        process = self.start(*words)
        try:
            said = process.communicate(timeout=PATIENCE_SECONDS)[0]
        except subprocess.TimeoutExpired:
            self.fail(f"does not end: {interrupt(process)}")
        self.assertEqual(process.returncode, 0, said)
        self.assertIn("PASSED", said)
        return said

    def test_chaos(self) -> None:
        """Thirty-five faults in 25 seconds: no datagram is altered, misled, doubled or too old."""
        report = Path(self.mktemp()).absolute()
        report.parent.mkdir(parents=True, exist_ok=True)
        words = "--minutes", "0.417", "--seed", "1036", "--faults", "35", *HEARTBEAT
        said = self.assertPasses("chaos", *words, "--report", str(report))
        self.assertEqual(report.read_text(), said)

    def test_churn(self) -> None:
        """For 15 seconds associations, sessions and links come and go: nothing of them stays."""
        self.assertPasses("churn", "--minutes", "0.25")

    def test_sessions(self) -> None:
        """Fifty sessions are held for 5 seconds, and come back to a server that was restarted."""
        self.assertPasses("sessions", "--count", "50", "--minutes", "0.083", "--down", "0.2")

    def test_associations(self) -> None:
        """A thousand associations are answered; three thousand come and go without a trace."""
        self.assertPasses("associations", "--sessions", "5", "--count", "1000", "--total", "3000")

    def test_interrupted(self) -> None:
        """After Ctrl-C no process and no namespace is left."""
        process = self.start("chaos", "--minutes", "1", *HEARTBEAT)
        assert process.stdout is not None
        mark = f"udpt{process.pid}-"
        while mark not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout:
            self.assertIsNone(process.poll())
        said = interrupt(process)
        self.addCleanup(shutil.rmtree, said.partition("the logs are in ")[2].split()[0])
        self.assertNotIn(mark, subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout)
        self.assertEqual(process.returncode, 130, said)
        self.assertIn("cut short", said)


class JudgeTests(SynchronousTestCase):
    """What L{Judge} looks at."""

    def setUp(self) -> None:
        self.report = Report("a test", screen=lambda line: None)
        self.holds = Holds(1.0)
        self.judge = Judge(self.report, self.holds)
        self.note = Note(QUESTION, 1, 2, 3, 100.0, 100.0)

    def arrive(self, datagram: bytes, kind: int = QUESTION, place: int = 2, at: float = 100.1) -> None:
        self.judge.arrived(datagram, kind, place, at)

    def assertViolated(self, word: str) -> None:
        self.assertEqual([word in each for each in self.report.violations], [True])

    def test_round(self) -> None:
        """A datagram says what was put into it; whatever bit is turned over in it shows."""
        datagram = pack(self.note, 60)
        self.assertEqual(unpack(datagram), self.note)
        for place in range(len(datagram) * 8):
            changed = bytearray(datagram)
            changed[place // 8] ^= 1 << place % 8
            self.assertIsNone(unpack(bytes(changed)))
        self.assertIsNone(unpack(datagram[:-1]))
        self.assertIsNone(unpack(datagram + b"!"))

    def test_good(self) -> None:
        """Numbers that come once, in any order and within a second, are good."""
        for number in (5, 3, 4):
            self.arrive(pack(self.note._replace(number=number), 60))
        self.assertEqual(self.report.violations, [])
        self.assertEqual(self.judge.total(QUESTION), 3)

    def test_altered(self) -> None:
        """What is not as it was sent is a violation."""
        self.arrive(pack(self.note, 60)[:-1])
        self.assertViolated("altered")

    def test_wrongTarget(self) -> None:
        """So is a question at another target."""
        self.arrive(pack(self.note, 60), place=1)
        self.assertViolated("wrong flow")

    def test_wrongSource(self) -> None:
        """So is an answer at another source."""
        self.arrive(pack(self.note._replace(kind=ANSWER), 60), ANSWER, 2)
        self.assertViolated("wrong flow")

    def test_twice(self) -> None:
        """So is what has come before."""
        for _ in range(2):
            self.arrive(pack(self.note, 60))
        self.assertViolated("twice")

    def test_old(self) -> None:
        """So is what comes after more than a second for no reason, and the faults before are told."""
        self.judge.faults.append("something")
        self.arrive(pack(self.note, 60), at=101.2)
        self.assertViolated("something")

    def test_port(self) -> None:
        """So is another external port, unless a role was away meanwhile."""
        for number, generation, port in ((0, 0, 7), (1, 0, 7), (2, 1, 8), (3, 2, 9), (4, 2, 9), (5, 2, 7)):
            note = self.note._replace(number=number)
            self.judge.generation = generation
            self.judge.asks(note)
            self.assertEqual(self.report.violations, [])
            self.judge.comesFrom(note, port, brief=False)
        self.assertViolated("external port 9")


class HoldsTests(SynchronousTestCase):
    """How old a datagram may be."""

    def setUp(self) -> None:
        self.holds = Holds(1.0)

    def hold(self, kind: str, began: float, ended: float) -> None:
        self.holds.begin(kind, began).ended = ended

    def test_none(self) -> None:
        """One second, if nothing held it up."""
        self.assertTrue(self.holds.explain(100, 101))
        self.assertFalse(self.holds.explain(100, 101.1))

    def test_stopped(self) -> None:
        """As long as a process was stopped, and one second; whatever the links do."""
        self.hold(STOPPED, 100, 110)
        self.assertTrue(self.holds.explain(100, 111.2))
        self.assertFalse(self.holds.explain(100, 111.4))
        self.assertFalse(self.holds.explain(98, 111))

    def test_path(self) -> None:
        """As long as the path was bad, and as long again until TCP has noticed that it is well."""
        self.hold(PATH, 100, 101)
        self.assertTrue(self.holds.explain(100, 102.9))
        self.assertFalse(self.holds.explain(100, 103.1))

    def test_dead(self) -> None:
        """But not longer than a link can live that has no answers."""
        self.hold(PATH, 100, 108)
        self.assertTrue(self.holds.explain(100, 104.4))
        self.assertFalse(self.holds.explain(100, 104.6))

    def test_both(self) -> None:
        """What overlaps counts once."""
        self.hold(PATH, 100, 101)
        self.hold(STOPPED, 100.5, 101.5)
        self.assertTrue(self.holds.explain(100, 102.9))
        self.assertFalse(self.holds.explain(100, 103.1))

    def test_present(self) -> None:
        """What is not over yet explains what comes meanwhile."""
        self.holds.begin(STOPPED, 100)
        self.assertTrue(self.holds.explain(100, 130))


class PlanTests(SynchronousTestCase):
    """Which faults there are."""

    def test_seed(self) -> None:
        """A seed stands for the same faults each time, another one for others."""
        one, again, other = ([str(each) for each in plan(seed, 50, 1.0)] for seed in (1, 1, 2))
        self.assertEqual(one, again)
        self.assertNotEqual(one, other)

    def test_only(self) -> None:
        """Kinds can be chosen, if there are such."""
        self.assertEqual({each.kind for each in plan(1, 20, 1.0, ["reset"])}, {"reset"})
        self.assertRaises(ValueError, plan, 1, 20, 1.0, ["earthquake"])


class TrendTests(SynchronousTestCase):
    """Straight lines through samples."""

    def test_slope(self) -> None:
        """A line that rises by two a second does so without an error."""
        value, error = slope([(0, 5), (1, 7), (3, 11)])
        self.assertAlmostEqual(value, 2.0)
        self.assertAlmostEqual(error, 0.0)

    def test_none(self) -> None:
        """Too little to draw a line through is level."""
        self.assertEqual([slope(points) for points in ([], [(1, 2)])], [(0.0, 0.0)] * 2)

    def test_common(self) -> None:
        """Series that begin elsewhere have a common slope."""
        value, error = commonSlope([[(0, 0), (1, 1)], [(0, 100), (2, 102)]])
        self.assertAlmostEqual(value, 1.0)
        self.assertAlmostEqual(error, 0.0)
