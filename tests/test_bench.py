"""Tests for the parts of L{bench} that need no other program: the search, the table, the picture, the link's rules."""

from __future__ import annotations

import fcntl
import io
import math
import os
import shutil
import socket
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from bench import __main__ as program
from bench import chain, l3, tun
from bench import load as generator
from bench.chain import CHAIN_MEASURES, shares
from bench.chainpeers import CHAIN_PEERS, HTTP, LOCAL, PAIRS, TUNNEL, Carrier
from bench.l3 import L3_MEASURES
from bench.l3peers import L3_PEERS, PacketCord
from bench.load import (
    NUMBERS,
    Load,
    Outcome,
    Sender,
    Sink,
    Way,
    checkWord,
    isReadable,
    isRight,
    payload,
    percentile,
    roundTrips,
    socksHeader,
)
from bench.measures import MEASURES, QUICK, Effort, Figures, Measure
from bench.peers import PEERS, Launch, Peer
from bench.picture import Axis, Mark, Panel, linearAxis, logarithmicAxis, picture, tickText
from bench.places import LOOPBACK, Site
from bench.programs import BenchError, until
from bench.report import madeBy, resultsPage, resultsPicture, terminalTable
from bench.search import MOST_LOST, findMost
from bench.stream import StreamEcho, StreamWay
from bench.table import Column, Figure, Results, fold, markdown, percent, remarkLines, rows, short, text
from bench.tun import TUN_MEASURES
from bench.tunpeers import TUN_PEERS
from bench.wan import Direction
from udptunnel.net.descriptors import raiseDescriptorLimit

SVG = "{http://www.w3.org/2000/svg}"


PLAIN_PEERS = ["packetcord", "routed-plain"]
"""Peers that need devices without offload."""


class FakeTunnel:
    """
    Loses what is above its limit, when its sender can send that much.

    @ivar tried: the rates that were offered.
    """

    def __init__(self, limit: float, sender: float = math.inf, disturbed: frozenset[int] = frozenset()) -> None:
        """
        @param disturbed: which loads something else takes half of.
        """
        self.limit, self.sender, self.disturbed = limit, sender, disturbed
        self.tried: list[float] = []

    def __call__(self, rate: float) -> Outcome:
        self.tried.append(rate)
        sent = min(rate, self.sender)
        delivered = sent / 2 if len(self.tried) in self.disturbed else min(sent, self.limit)
        return Outcome(int(sent), 1.0, int(delivered), 1.0)


class SearchTests(SynchronousTestCase):
    """L{findMost}."""

    def test_limit(self) -> None:
        """It ends below the peer's limit, and as close as it is told."""
        for limit in (150, 4_321, 20_000, 123_456, 9_999_999):
            most = findMost(FakeTunnel(limit), 20_000, 0.05, 1)
            assert most is not None
            self.assertFalse(most.bySender)
            self.assertLess(most.outcome.lost, MOST_LOST)
            self.assertLess(most.outcome.offered, limit / (1 - MOST_LOST) + 1)
            self.assertGreater(most.outcome.offered, limit * 0.94)

    def test_sender(self) -> None:
        """It says so if it is the sender that can do no more."""
        most = findMost(FakeTunnel(1_000_000, sender=150_000), 20_000, 0.05, 2)
        assert most is not None
        self.assertTrue(most.bySender)
        self.assertEqual(most.outcome.offered, 150_000)

    def test_nothing(self) -> None:
        """It gives up if hardly anything gets through."""
        tunnel = FakeTunnel(10)
        self.assertIsNone(findMost(tunnel, 20_000, 0.05, 1))
        self.assertLess(len(tunnel.tried), 12)

    def test_disturbed(self) -> None:
        """A rate that gets through at the second try is not too high."""
        most = findMost(FakeTunnel(100_000, disturbed=frozenset({1, 5})), 20_000, 0.05, 2)
        assert most is not None
        self.assertGreater(most.outcome.offered, 94_000)

    def test_firstTooHigh(self) -> None:
        """It may begin above the limit."""
        most = findMost(FakeTunnel(1_000), 1_000_000, 0.1, 1)
        assert most is not None
        self.assertGreater(most.outcome.offered, 890)


class FakeTime:
    """A clock that goes on when it is looked at, and when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1e-5
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class LoadTests(SynchronousTestCase):
    """The datagrams, and what is made of those that arrive."""

    def test_percentile(self) -> None:
        """It is a value that was seen: the smallest that so many are not above."""
        hundred = [float(value) for value in range(100, 0, -1)]
        self.assertEqual([percentile(hundred, part) for part in (0, 0.5, 0.99, 1)], [1, 50, 99, 100])
        self.assertEqual(percentile([7.0], 0.99), 7)
        self.assertTrue(math.isnan(percentile([], 0.5)))

    def test_isRight(self) -> None:
        """A datagram is right if its number and all that follows its time is."""
        for size in (20, 64, 1400):
            datagram = payload(NUMBERS + 5, size, 1.0)
            self.assertEqual(len(datagram), size)
            self.assertTrue(isRight(datagram, size))
            self.assertFalse(isRight(datagram, size + 1))
            self.assertFalse(isRight(datagram[:-1], size))
            for place in (0, size - 1):
                wrong = bytearray(datagram)
                wrong[place] ^= 1
                self.assertFalse(isRight(wrong, size), place)

    def test_checkWord(self) -> None:
        """It fits into 32 bits, and depends on number and size."""
        self.assertLess(checkWord((1 << 64) - 1, 65507), 1 << 32)
        self.assertEqual(len({checkWord(number, size) for number in (1, 2) for size in (64, 65)}), 4)

    def test_outcome(self) -> None:
        """What came late is not a higher rate, and copies are not less than nothing lost."""
        self.assertEqual(Outcome(100, 1.0, 90, 2.0).rate, 45)
        self.assertEqual(Outcome(100, 1.0, 90, 0.5).rate, 90)
        self.assertAlmostEqual(Outcome(100, 1.0, 90, 0.5).lost, 0.1)
        self.assertEqual(Outcome(100, 1.0, 101, 1.0).lost, 0)
        self.assertEqual((Outcome().lost, Outcome().rate, Outcome().offered), (1, 0, 0))

    def test_batch(self) -> None:
        """A GSO sender fills a burst, and one without sends one at a time when it has little to send."""
        self.assertEqual(Load(1400, 80_000, 1, gso=True).batch, 42)
        self.assertEqual(Load(64, 80_000, 1, gso=True).batch, 60)
        self.assertEqual(Load(64, 50, 1).batch, 1)
        self.assertEqual(Load(64, 80_000, 1).batch, 16)

    def test_socksHeader(self) -> None:
        """It is that of RFC 1928 section 7."""
        self.assertEqual(socksHeader(("127.0.0.1", 53)).hex(" "), "00 00 00 01 7f 00 00 01 00 35")

    def test_realSockets(self) -> None:
        """What is sent on loopback is counted, whole or lightly, with GSO or not, and what came before is not."""
        if sys.platform != "linux":
            raise self.skipTest("the load generator is for Linux")
        sink = Sink(Site())
        self.addCleanup(sink.close)
        source = Way(Site(), sink.address).open()
        self.addCleanup(source.close)
        for load in (Load(64, 1000, 0.1), Load(1400, 2000, 0.1, gso=True)):
            for light in (False, True):
                Sender(source, load, 77).send()
                outcome = sink.offer(source, load, light)
                self.assertGreater(outcome.sent, 0)
                self.assertEqual((outcome.delivered, outcome.damaged, outcome.duplicates), (outcome.sent, 0, 0))

    def test_windowed(self) -> None:
        """A sender with a window does not send what has no room, and goes on when what is missing counts as lost."""
        if sys.platform != "linux":
            raise self.skipTest("the load generator is for Linux")
        sink = Sink(Site())
        self.addCleanup(sink.close)
        source = Way(Site(), sink.address).open()
        self.addCleanup(source.close)
        self.patch(generator, "WINDOW_BYTES", 10 * 1400)
        with sink.counting(1400, light=True) as counting:
            sent = Sender(source, Load(1400, 1, 0.1), counting.run).sendWindowed(lambda: counting.delivered)
            outcome = counting.finish(*sent)
        self.assertEqual((outcome.delivered, outcome.damaged), (outcome.sent, 0))
        self.assertGreater(outcome.sent, 10)
        # Nothing arrives: one window, and another each time that one is given up.
        clock = FakeTime()
        self.patch(generator, "time", clock)
        seconds = 2.5 * generator.GIVE_UP_SECONDS
        self.assertEqual(Sender(source, Load(1400, 1, seconds), 9).sendWindowed(lambda: 0)[0], 30)


class ReadableTests(SynchronousTestCase):
    """L{isReadable} on a socket whose number is larger than C{select()} takes: a thousand sources have such."""

    def test_largeNumber(self) -> None:
        """It says whether something is there."""
        raiseDescriptorLimit()
        near, far = socket.socketpair()
        with near, far, socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD, 1100)) as copied:
            self.assertFalse(isReadable(copied, 0.0))
            far.send(b"there")
            self.assertTrue(isReadable(copied, 0.0))


class TableTests(SynchronousTestCase):
    """The table."""

    def setUp(self) -> None:
        self.results = Results()
        self.column = Column("rate", "highest rate", "64 B", "1/s")
        self.other = Column("trips", "round trip", "p99", "ms")

    def test_short(self) -> None:
        """Numbers have three digits that count."""
        shown = {0: "0", 0.149: "0.15", 1: "1.00", 9.996: "10.0", 99.96: "100", 149: "149", 999.6: "1.00k"}
        shown |= {1000: "1.00k", 149_000: "149k", 999_600: "1.00M", 16.7e9: "16.7G", 2.5e12: "2500G"}
        self.assertEqual({value: short(value) for value in shown}, shown)
        self.assertEqual(percent(0.015), "1.50 %")

    def test_median(self) -> None:
        """Rounds are put together by their median; what is no number does not count."""
        for value in (5.0, 1.0, math.nan, 3.0):
            self.results.add("a", "rate", Figure(value))
        self.assertEqual(self.results.median("a", "rate"), Figure(3.0))
        self.assertIsNone(self.results.median("b", "rate"))

    def test_least(self) -> None:
        """A figure that the load generator bounds says so, if most rounds do."""
        for least in (True, True, False):
            self.results.add("a", "rate", Figure(5.0, least))
            self.results.add("b", "rate", Figure(5.0, not least))
        self.assertEqual(self.results.cell("a", self.column), "≥ 5.00")
        self.assertEqual(self.results.cell("b", self.column), "5.00")

    def test_rows(self) -> None:
        """Each peer with a figure has a row, in the order of the titles."""
        self.results.add("b", "rate", Figure(2.0))
        self.results.add("a", "trips", Figure(1.0))
        titles = [("a", "Peer A"), ("b", "Peer B"), ("c", "Peer C")]
        body = rows(self.results, titles, [self.column, self.other])
        self.assertEqual(body, [["Peer A", "–", "1.00"], ["Peer B", "2.00", "–"]])  # noqa: RUF001

    def test_markdown(self) -> None:
        """All lines have the same number of cells."""
        lines = markdown([self.column, self.other], [["Peer A", "1", "2"]]).splitlines()
        self.assertEqual(lines[0], "|  | highest rate<br>64 B<br>1/s | round trip<br>p99<br>ms |")
        self.assertEqual({line.count("|") for line in lines}, {4})

    def test_remarks(self) -> None:
        """A reason is said once, with all that is not there for it."""
        self.results.remark("a", "absent")
        for what in ("no memory", "no overload", "no memory"):
            self.results.remark("b", "too small", what)
        lines = remarkLines(self.results, [("a", "Peer A"), ("b", "Peer B")])
        self.assertEqual(lines, ["Peer A: absent", "Peer B: no memory, no overload: too small"])

    def test_text(self) -> None:
        """Columns are aligned, the first one to the left."""
        shown = text([["", "p50"], ["", "ms"]], [["Peer", "0.24"], ["Another", "12.0"]])
        self.assertEqual(
            shown.splitlines(),
            ["          p50", "           ms", "-------------", "Peer     0.24", "Another  12.0"],
        )

    def test_fold(self) -> None:
        """A table that is too wide is folded, and the first column stands in each part."""
        self.assertEqual(fold([10, 8, 8, 8], 30), [[0, 1, 2], [0, 3]])
        self.assertEqual(fold([10, 8, 8, 8], 0), [[0, 1, 2, 3]])
        self.assertEqual(fold([10, 8, 8], 5), [[0, 1], [0, 2]])
        self.assertEqual(fold([10], 80), [[0]])


class PictureTests(SynchronousTestCase):
    """The picture."""

    peers = (("a", "Peer <A>"), ("b", "Peer B"))

    def draw(self, *marks: Mark, logarithmic: bool = True) -> ElementTree.Element:
        panel = Panel("Rate", "more is better", marks, short, logarithmic)
        return ElementTree.fromstring(picture([panel], self.peers, frozenset("a"), "a machine"))

    def test_dots(self) -> None:
        """There is a dot for each value, and a name for each peer that has one."""
        root = self.draw(Mark("plain", {"a": 1000.0}, True), Mark("GSO", {"a": 50_000.0}))
        dots = [each.get("class") for each in root.iter(f"{SVG}circle") if "ours" in (each.get("class") or "")]
        self.assertEqual(dots, ["dot ours hollow", "dot ours"])
        texts = [each.text for each in root.iter(f"{SVG}text")]
        self.assertIn("Peer <A>", texts)
        self.assertNotIn("Peer B", texts)
        self.assertIn("50.0k", texts)

    def test_inside(self) -> None:
        """Everything is on the paper."""
        root = self.draw(Mark("", {"a": 0.0, "b": 3.0}), logarithmic=False)
        wide, high = float(root.get("width", "0")), float(root.get("height", "0"))
        for each in root.iter():
            for name, most in (("x", wide), ("cx", wide), ("x2", wide), ("y", high), ("cy", high), ("y2", high)):
                self.assertTrue(0 <= float(each.get(name, "0")) <= most, ElementTree.tostring(each))

    def test_empty(self) -> None:
        """A panel without values is left out."""
        root = self.draw(Mark("", {}))
        self.assertEqual([each.text for each in root.iter(f"{SVG}text")], ["a machine"])

    def test_darkAndLight(self) -> None:
        """The picture follows the reader's colours."""
        style = self.draw(Mark("", {"a": 1.0})).find(f"{SVG}style")
        assert style is not None
        self.assertIn("prefers-color-scheme: dark", style.text or "")

    def test_logarithmicAxis(self) -> None:
        """It is made of whole powers of ten around the values."""
        axis = logarithmicAxis([250.0, 40_000.0])
        self.assertEqual(axis.ticks, [100, 1000, 10_000, 100_000])
        self.assertAlmostEqual(axis.place(100), 0)
        self.assertAlmostEqual(axis.place(1000), 1 / 3)
        self.assertEqual(axis.place(0), 0)
        self.assertEqual(logarithmicAxis([1000.0]).ticks, [1000, 10_000])
        self.assertEqual(logarithmicAxis([0.0]).ticks, [1, 10])

    def test_linearAxis(self) -> None:
        """It begins at zero, and has round steps."""
        self.assertEqual(linearAxis([7.8]).ticks, [0, 2, 4, 6, 8])
        self.assertEqual(linearAxis([100.0]).ticks, [0, 50, 100])
        self.assertEqual(linearAxis([0.0]).ticks[0], 0)
        self.assertEqual(Axis(0.0, 8.0, False).place(2.0), 0.25)

    def test_tickText(self) -> None:
        """Ticks have no digits that say nothing."""
        shown = {1000: "1k", 100: "100", 2: "2", 0.5: "0.5", 0: "0"}
        self.assertEqual({value: tickText(short, value) for value in shown}, shown)
        self.assertEqual(tickText(percent, 0.5), "50 %")


class FakePeer(Peer):
    """A peer that is not started."""

    def __init__(self, name: str, absence: str = "", cannot: dict[str, str] | None = None) -> None:
        self.name = name
        self.cannot = cannot or {}  # type: ignore[misc]
        self._absence = absence

    def absence(self) -> str:
        return self._absence


class RunTests(SynchronousTestCase):
    """The order of things, and what is said at the end."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        self.order: list[str] = []
        self.patch(program, "_progress", self.lines.append)
        column = Column("trips-p50", "round trip", "p50", "ms")
        self.measure = Measure("trips", "round trips", (column,), self._measure)

    def _measure(self, peer: Peer, effort: Effort, before: Figures) -> Figures:
        self.order.append(peer.name)
        if peer.name == "broken":
            raise BenchError("it broke")
        if peer.name == "tedious":
            raise KeyboardInterrupt
        return {"trips-p50": Figure(len(self.order) + 0.5)}

    def run_(self, *peers: Peer, rounds: int = 1) -> Results:
        return program.run(peers, [self.measure], rounds, QUICK)

    def test_alternate(self) -> None:
        """Peers take turns within a round, and every other round runs backwards."""
        self.run_(FakePeer("a"), FakePeer("b"), rounds=3)
        self.assertEqual(self.order, ["a", "b", "b", "a", "a", "b"])

    def test_progress(self) -> None:
        """A line says the measure, the peer, the round, and what came of it."""
        self.run_(FakePeer("a"))
        self.assertEqual(self.lines, ["[1/1] round 1, round trips, a: 1.50 ms (0 s)"])

    def test_absent(self) -> None:
        """What is not there, fails, or can not be measured is said, and does not stop the others."""
        results = self.run_(
            FakePeer("gone", absence="THING is not set"),
            FakePeer("broken"),
            FakePeer("small", cannot={"trips": "one way only"}),
            FakePeer("plain", cannot={"gso": "no GSO"}),
            FakePeer("fine"),
        )
        self.assertEqual(results.peers(), ["plain", "fine"])
        self.assertEqual(
            results.remarks,
            {
                "gone": {"absent: THING is not set": []},
                "small": {"one way only": ["no round trips"]},
                "broken": {"it broke": ["round trips"]},
            },
        )

    def test_stopped(self) -> None:
        """Whoever has enough gets what was measured until then, not where whole runs are published, and is told so."""
        results = self.run_(FakePeer("fine"), FakePeer("tedious"), FakePeer("late"))
        self.assertEqual((results.peers(), self.order), (["fine"], ["fine", "tedious"]))
        self.assertEqual(self.lines[1:], ["[2/3] round 1, round trips, tedious: stopped after 1 of 3 steps"])
        page = resultsPage(results, [self.measure], [], "python -m bench")
        self.assertIn("Made by `python -m bench`, stopped after 1 of 3 steps;", page)
        self.assertEqual(program.outputFolder(program.parse([]), stopped=True), program.REPOSITORY / program.PARTIAL)

    def test_stoppedCommands(self) -> None:
        """So it is with the benches of one part."""
        results = Results()
        for part in (chain, l3, tun):
            options = part.parse([])
            results.stopped = ""
            self.assertEqual(part.COMMAND.folder(options, results), program.REPOSITORY / program.PUBLISHED)
            results.stopped = "stopped after 1 of 3 steps"
            self.assertEqual(part.COMMAND.folder(options, results), program.REPOSITORY / program.PARTIAL)
            options.output = Path(self.mktemp())
            with self.assertRaises(SystemExit) as ended, redirect_stdout(io.StringIO()):
                part.COMMAND.write(options, results, madeBy("python", results), "")
            self.assertEqual(ended.exception.code, program.STOPPED)
            written = (options.output / f"{part.COMMAND.name}.md").read_text()
            self.assertIn("stopped after 1 of 3 steps", written)

    def test_gso(self) -> None:
        """A peer that can not have GSO senders has the figures without."""
        peer = FakePeer("plain", cannot={"gso": "no GSO"})
        self.measure = next(measure for measure in MEASURES if measure.gso)
        self.assertEqual(self.run_(peer).remarks, {"plain": {"no GSO": ["no highest rate with GSO"]}})
        self.assertEqual(self.order, [])

    def test_absence(self) -> None:
        """A peer whose path is not given, or wrong, is absent."""
        rfc1036 = next(peer for peer in PEERS if peer.name == "rfc1036")
        with mock.patch.dict("os.environ", {"UDPTUNNEL_RFC1036": ""}):
            self.assertEqual(rfc1036.absence(), "UDPTUNNEL_RFC1036 is not set")
        with mock.patch.dict("os.environ", {"UDPTUNNEL_RFC1036": "/does/not/exist"}):
            self.assertEqual(rfc1036.absence(), "/does/not/exist is not there")
        with mock.patch.dict("os.environ", {"UDPTUNNEL_RFC1036": sys.executable}):
            self.assertEqual(rfc1036.absence(), "")

    def test_options(self) -> None:
        """Words of a list must be known, and a run that is not whole does not replace published results."""
        self.assertEqual(program.outputFolder(program.parse([])), program.REPOSITORY / program.PUBLISHED)
        for words in (["--quick"], ["--only", "ours,direct"], ["--measure", "cpu"]):
            self.assertEqual(program.outputFolder(program.parse(words)), program.REPOSITORY / program.PARTIAL)
        self.assertEqual(program.outputFolder(program.parse(["--quick", "--output", "here"])), Path("here"))
        self.patch(sys, "stderr", mock.Mock())
        self.assertRaises(SystemExit, program.parse, ["--only", "ours,nobody"])

    def test_withoutOutput(self) -> None:
        """The page does not name folders."""
        words = ["--quick", "--output", "there", "--rounds", "2", "--output=there"]
        self.assertEqual(program.withoutOutput(words), ["--quick", "--rounds", "2"])

    def test_pages(self) -> None:
        """Table, page and picture are made of any figures."""
        results = Results()
        for place, peer in enumerate(PEERS[:3]):
            for measure in MEASURES:
                for column in measure.columns:
                    results.add(peer.name, column.key, Figure(10.0**place))
        results.remark("mullvad", "absent: it is not set")
        facts = [("Kernel", "Linux 6"), ("Date", "today")]
        page = resultsPage(results, MEASURES, facts, "python -m bench")
        self.assertIn("* Kernel: Linux 6\n", page)
        self.assertIn("| udptunnel, TLS | 100 51.2k |", page)
        self.assertIn("* Mullvad udp2tcp: absent: it is not set\n", page)
        self.assertIn("udptunnel, SOCKS5", terminalTable(results, MEASURES, 80))
        root = ElementTree.fromstring(resultsPicture(results, PEERS, facts))
        self.assertIn("Linux 6; today", [each.text for each in root.iter(f"{SVG}text")])


class TunTests(SynchronousTestCase):
    """What is measured through a TUN."""

    def test_pages(self) -> None:
        """Tables, page and picture are made of any figures; a peer that is absent is a line that says so."""
        results = Results()
        for place, peer in enumerate(TUN_PEERS[:3]):
            for measure in TUN_MEASURES:
                for column in measure.columns:
                    results.add(peer.name, column.key, Figure(10.0 ** (place + 7)))
        results.remark("badvpn", "absent: it is not set")
        facts = [("Kernel", "Linux 6"), ("Date", "today")]
        page = tun.page(results, TUN_MEASURES, facts, "python -m bench.tun")
        self.assertIn("| udptunnel, no offload | 1.00G | 1.00G | 1.00G | 1.00G |", page)
        self.assertIn("* badvpn-tun2socks: absent: it is not set\n", page)
        self.assertIn("badvpn-tun2socks: absent", tun.terminal(results, TUN_MEASURES))
        root = ElementTree.fromstring(tun.tunPicture(results, facts))
        self.assertIn("Linux 6; today", [each.text for each in root.iter(f"{SVG}text")])

    def test_absence(self) -> None:
        """A peer whose path is not given is absent."""
        self.patch(os, "geteuid", lambda: 0)
        self.patch(shutil, "which", lambda name: name)
        for peer in TUN_PEERS:
            for need in peer.needs:
                with mock.patch.dict("os.environ", {need: ""}):
                    self.assertEqual(peer.absence(), f"{need} is not set")

    def test_options(self) -> None:
        """Names must be known."""
        self.assertEqual(tun.parse(["--only", "ours,wheel"]).only, ["ours", "wheel"])
        self.patch(sys, "stderr", mock.Mock())
        self.assertRaises(SystemExit, tun.parse, ["--measure", "nonsense"])


class FakeLaunch(Launch):
    """
    Starts nothing.

    @ivar words: the command lines that it was to start.
    """

    def __init__(self) -> None:
        super().__init__(LOOPBACK, [], Path(), ExitStack())
        self.words: list[tuple[str, ...]] = []

    def start(self, site: Site, *words: str) -> mock.Mock:  # type: ignore[override]
        self.words.append(words)
        return mock.Mock()


class ChainTests(SynchronousTestCase):
    """What is measured through shadowsocks and simple-obfs."""

    def carry(self, carrier: Carrier) -> tuple[list[tuple[str, ...]], tuple[str, int]]:
        """What a carrier starts for a target, and where it then is."""
        launch = FakeLaunch()
        at = carrier.carry(launch, ("127.0.0.1", 7))
        return launch.words, at

    def test_carriers(self) -> None:
        """Both ends of a carrier agree, neither waits for acknowledgements, and the near end is where it says."""
        for carrier in (TUNNEL, LOCAL, HTTP):
            (far, near), (_, port) = self.carry(carrier)
            for option in ("-p", "-k", "-m"):
                self.assertEqual(far[far.index(option) + 1], near[near.index(option) + 1])
            self.assertIn("--no-delay", far)
            self.assertIn("--no-delay", near)
            self.assertEqual(near[near.index("-l") + 1], str(port))
            self.assertEqual("127.0.0.1:7" in near, carrier.near == "ss-tunnel")
            self.assertEqual(["obfs-local" in near, "obfs-server" in far], [bool(carrier.obfs)] * 2)
        self.assertEqual(self.carry(Carrier()), ([], ("127.0.0.1", 7)))

    def test_shares(self) -> None:
        """What ours adds is the difference of round trips, and the part of the throughput that is missing."""
        results = Results()
        for name, trip, rate in (("ours-tunnel", 0.003, 80.0), ("tcp-tunnel", 0.001, 100.0), ("ours-tls", 1.0, 1.0)):
            results.add(name, "trips-p50", Figure(trip))
            results.add(name, "apart", Figure(rate))
        own = shares(results)
        columns = {column.key: own.cell("ours-tunnel", column) for column in chain.SHARE_COLUMNS}
        self.assertEqual((columns["own-trips-p50"], columns["own-apart"]), ("2.00", "20.0 %"))
        self.assertEqual((columns["with-apart"], columns["without-apart"]), ("80.0", "100"))
        # Without a base there is nothing to compare.
        self.assertEqual(own.peers(), ["ours-tunnel"])

    def test_pairs(self) -> None:
        """What is compared is there, and one right after the other, or nearly."""
        names = [peer.name for peer in CHAIN_PEERS]
        for pair in PAIRS:
            self.assertIn(names.index(pair.ours) - names.index(pair.base), (1, 2))

    def test_apart(self) -> None:
        """What has no carrier is not measured with the carrier apart, nor is anything where there is one core."""
        peers = {peer.name: peer for peer in CHAIN_PEERS}
        apart = next(measure for measure in CHAIN_MEASURES if measure.kind == "apart")
        self.patch(os, "sched_getaffinity", lambda pid: {0, 1})
        self.assertIsNone(apart.obstacle(peers["tcp-http"]))
        self.assertEqual(apart.obstacle(peers["tcp"]), ("no throughput, carrier apart", "there is no carrier"))
        self.patch(os, "sched_getaffinity", lambda pid: {0})
        self.assertEqual(apart.obstacle(peers["tcp-http"]), ("no throughput, carrier apart", "there is one core only"))

    def test_absence(self) -> None:
        """A composition without its programs is absent, and says which one is missing."""
        self.patch(shutil, "which", lambda name: None if name == "obfs-local" else name)
        absent = {peer.name: peer.absence() for peer in CHAIN_PEERS if peer.absence()}
        names = "tcp-http", "ours-http", "tcp-tls", "ours-tls"
        self.assertEqual(absent, dict.fromkeys(names, "obfs-local is not there"))

    def test_pages(self) -> None:
        """Tables, page and picture are made of any figures; a peer that is absent is a line that says so."""
        results = Results()
        for peer in CHAIN_PEERS[:6]:
            for measure in CHAIN_MEASURES:
                for column in measure.columns:
                    results.add(peer.name, column.key, Figure(1e9))
        results.remark("ours-http", "absent: obfs-local is not there")
        facts = [("Kernel", "Linux 6"), ("Date", "today")]
        page = chain.page(results, facts, "python -m bench.chain")
        self.assertIn("| udptunnel, ss-tunnel | 1.00G |", page)
        self.assertIn("* udptunnel, ss + http: absent: obfs-local is not there\n", page)
        self.assertIn("what ours adds: throughput", chain.terminal(results))
        root = ElementTree.fromstring(chain.chainPicture(results, facts))
        self.assertIn("Linux 6; today", [each.text for each in root.iter(f"{SVG}text")])

    def test_options(self) -> None:
        """A quick run is short, unless it is told how long loads are."""
        self.assertEqual(chain.effort(chain.parse(["--quick"])).tripSeconds, chain.QUICK_SECONDS)
        self.assertEqual(chain.effort(chain.parse(["--quick", "--seconds", "3"])).streamSeconds, 3)
        self.assertEqual(chain.effort(chain.parse([])).streamSeconds, chain.SECONDS)
        self.patch(sys, "stderr", mock.Mock())
        self.assertRaises(SystemExit, chain.parse, ["--only", "nobody"])


class StreamTests(SynchronousTestCase):
    """Round trips over TCP."""

    def setUp(self) -> None:
        if sys.platform != "linux":
            raise self.skipTest("the load generator is for Linux")
        self.echo = StreamEcho(Site())
        self.addCleanup(self.echo.close)
        self.source = StreamWay(Site(), self.echo.address).open()
        self.addCleanup(self.source.close)

    def test_roundTrips(self) -> None:
        """All messages come back, each one whole, also if several arrive with one read."""
        outcome = roundTrips(self.source, Load(64, 1000, 0.05))
        self.assertEqual((outcome.damaged, outcome.delivered), (0, outcome.sent))
        self.assertGreater(outcome.sent, 0)

    def test_cut(self) -> None:
        """A message of which a part has arrived waits for the rest of it."""
        message = payload(1, 64, 0.0)
        self.source.send(message[:40])
        until(lambda: self.source._rest or self.source.receive(), "the first part", 5)
        self.assertIsNone(self.source.receive())
        self.source.send(message[40:])
        answers: list[bytes] = []
        until(lambda: answers or [answers.append(each) for each in (self.source.receive(),) if each], "the rest", 5)
        self.assertEqual(answers, [message])


class DirectionTests(SynchronousTestCase):
    """One way of the wide-area link."""

    def test_delay(self) -> None:
        """A packet arrives when it has passed the slow part and travelled."""
        way = Direction(delay=0.025, rate=1000.0, queue=500.0)
        self.assertTrue(way.enter(b"x" * 100, 10.0))
        self.assertAlmostEqual(way.next, 10.125)
        self.assertEqual(way.leave(10.12), [])
        self.assertEqual(way.leave(10.126), [b"x" * 100])
        self.assertEqual(way.next, math.inf)

    def test_rate(self) -> None:
        """Packets that come together pass one after the other, in their order."""
        way = Direction(delay=0.0, rate=1000.0, queue=500.0)
        for letter in (b"a", b"b", b"c"):
            way.enter(letter * 100, 0.0)
        self.assertEqual(way.leave(0.201), [b"a" * 100, b"b" * 100])

    def test_queue(self) -> None:
        """What finds the queue full is dropped, and there is room again when some have passed."""
        way = Direction(delay=0.0, rate=1000.0, queue=500.0)
        self.assertEqual([way.enter(bytes(100), 0.0) for _ in range(8)], [True] * 6 + [False] * 2)
        self.assertTrue(way.enter(bytes(100), 0.15))


class L3Tests(SynchronousTestCase):
    """What is measured between two sites."""

    def test_pages(self) -> None:
        """Tables, page and picture are made of any figures; a peer that is absent is a line that says so."""
        results = Results()
        for place, peer in enumerate(L3_PEERS[:2]):
            for measure in L3_MEASURES:
                for column in measure.columns:
                    results.add(peer.name, column.key, Figure(10.0 ** (place + 7)))
        results.remark("packetcord", "absent: it is not set")
        facts = [("Kernel", "Linux 6"), ("Date", "today")]
        page = l3.page(results, L3_MEASURES, facts, "python -m bench.l3")
        self.assertIn("| udptunnel, raw sockets | 100M | 100M | 100M | 100M |", page)
        self.assertIn("* PacketCord: absent: it is not set\n", page)
        self.assertIn("PacketCord: absent", l3.terminal(results, L3_MEASURES))
        root = ElementTree.fromstring(l3.l3Picture(results, facts))
        self.assertIn("Linux 6; today", [each.text for each in root.iter(f"{SVG}text")])

    def test_absence(self) -> None:
        """A peer whose paths are not given is absent, and so is one that needs a program that is not there."""
        self.patch(os, "geteuid", lambda: 0)
        self.patch(shutil, "which", lambda name: name)
        with mock.patch.dict("os.environ", dict.fromkeys(PacketCord.needs, "")):
            self.assertEqual(PacketCord().absence(), "PACKETCORD_TEP_A is not set")
        self.patch(shutil, "which", lambda name: None if name == "ethtool" else name)
        self.assertEqual([peer.name for peer in L3_PEERS if peer.absence() == "ethtool is not there"], PLAIN_PEERS)

    def test_options(self) -> None:
        """Names must be known."""
        self.assertEqual(l3.parse(["--only", "ours-raw,routed"]).only, ["ours-raw", "routed"])
        self.patch(sys, "stderr", mock.Mock())
        self.assertRaises(SystemExit, l3.parse, ["--measure", "nonsense"])
