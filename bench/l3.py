"""
Measures what carries whole IP packets between two sites: C{python -m bench.l3}.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from bench.__main__ import prepare, run
from bench.command import Command
from bench.iperf import iperf
from bench.l3peers import L3_PEERS, TARGET, L3Peer, L3Run, OursL3
from bench.measures import QUICK, Effort, Figures, Measure
from bench.peers import Peer
from bench.picture import Mark, Panel, picture
from bench.programs import BenchError, cpuSeconds
from bench.report import machineFacts, madeBy
from bench.table import Column, Figure, Results, markdown, percent, remarkLines, rows, short, terminalHeads, text

NAME = "l3"
"""Results are NAME.md and NAME.svg."""

ROUNDS = 3
DIRECTIONS = {"up": (), "down": ("-R",)}
STREAMS = (1, 4)
PINGS_PER_SECOND = 200

TITLES = [(peer.name, peer.title) for peer in L3_PEERS]


class L3Measure(Measure):
    """A measure whose peers all can do everything, if only badly."""

    def obstacle(self, peer: Peer) -> tuple[str, str] | None:
        """Nothing."""
        return None


def _tcp(direction: str, streams: int) -> Measure:
    key = f"tcp-{direction}-{streams}"

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        assert isinstance(peer, L3Peer)
        with peer.between() as running:
            pids = [program.pid for program in running.programs]
            used = cpuSeconds(pids)
            report = _send(running, effort.streamSeconds, "-P", str(streams), *DIRECTIONS[direction])
            used = cpuSeconds(pids) - used
        sent, received = report["end"]["sum_sent"], report["end"]["sum_received"]
        if not received["bytes"]:
            raise BenchError("nothing gets through")
        again = sent["retransmits"] * report["start"]["tcp_mss_default"] / sent["bytes"]
        cpu = used / received["bytes"] * 1e9 if pids else float("nan")
        figures = {"": received["bits_per_second"], "-again": again, "-cpu": cpu}
        return {f"{key}{name}": Figure(value) for name, value in figures.items()}

    title = f"{direction}, {streams} stream{'s' * (streams > 1)}"
    columns = (
        Column(key, "TCP", title, "bit/s"),
        Column(f"{key}-again", "Sent again", title, "", percent),
        Column(f"{key}-cpu", "CPU of both ends", title, "s/GB"),
    )
    return L3Measure("tcp", f"TCP {title}", columns, measure)


def _send(running: L3Run, seconds: float, *words: str) -> Any:
    """
    Send from one host to the other.

    @raise BenchError: it fails.
    """
    return iperf(running.inside("iperf3", "-J", "-c", TARGET, "-t", f"{seconds:g}", *words), seconds)


def _trips() -> Measure:
    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        assert isinstance(peer, L3Peer)
        count = max(10, int(effort.tripSeconds * PINGS_PER_SECOND))
        words = ["ping", "-q", "-c", str(count), "-i", f"{1 / PINGS_PER_SECOND:g}", TARGET]
        with peer.between() as running:
            done = subprocess.run(
                running.inside(*words), capture_output=True, text=True, timeout=effort.tripSeconds + 20
            )
        said = done.stdout.splitlines()
        # rtt min/avg/max/mdev = 0.045/0.051/0.061/0.005 ms
        times = next((line.split()[3].split("/") for line in said if line.startswith("rtt ")), None)
        if times is None:
            raise BenchError(f"ping: {done.stdout.strip()[-200:]}")
        return {"trip": Figure(float(times[1])), "trip-most": Figure(float(times[2]))}

    group = f"Round trips, {PINGS_PER_SECOND} a second"
    columns = Column("trip", group, "mean", "ms"), Column("trip-most", group, "longest", "ms")
    return L3Measure("trips", "round trips", columns, measure)


L3_MEASURES = (*(_tcp(direction, streams) for streams in STREAMS for direction in DIRECTIONS), _trips())
"""All measures, in the order of the table."""


# -- what is shown


def table(results: Results, measures: Sequence[Measure], make: Callable[[list[Column]], str]) -> str:
    """A table for each group of columns, as C{make} makes it."""
    columns = [column for measure in measures for column in measure.columns]
    groups = dict.fromkeys(column.group for column in columns)
    return "\n".join(make([column for column in columns if column.group == group]) for group in groups)


def page(results: Results, measures: Sequence[Measure], facts: Sequence[tuple[str, str]], how: str) -> str:
    """The page with the results."""
    lines = [
        "# Results: IP packets between two sites",
        "",
        madeBy(how, results, "#ip-packets-between-two-sites"),
        "",
        *(f"* {name}: {fact}" for name, fact in facts),
        "",
        f"![The same figures as a picture]({NAME}.svg)",
        "",
        table(results, measures, lambda columns: markdown(columns, rows(results, TITLES, columns))),
        *(f"* {line}" for line in remarkLines(results, TITLES)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def terminal(results: Results, measures: Sequence[Measure]) -> str:
    """The same for a terminal."""

    def make(columns: list[Column]) -> str:
        return f"{columns[0].group}\n{text(terminalHeads(columns), rows(results, TITLES, columns))}"

    return "\n".join([table(results, measures, make), *remarkLines(results, TITLES)])


def l3Picture(results: Results, facts: Sequence[tuple[str, str]]) -> str:
    """The picture."""

    def mark(label: str, key: str, hollow: bool = False) -> Mark:
        values = {name: each.value for name, _ in TITLES if (each := results.median(name, key))}
        return Mark(label, values, hollow)

    def both(title: str, note: str, streams: int, suffix: str = "", show: Callable[[float], str] = short) -> Panel:
        marks = [mark(each, f"tcp-{each}-{streams}{suffix}", each == "down") for each in DIRECTIONS]
        return Panel(f"{title}, {streams} stream{'s' * (streams > 1)}", note, tuple(marks), show, False)

    panels = [
        *(both("TCP", "bit/s, more is better", streams) for streams in STREAMS),
        *(both("CPU time of both ends", "s for 1 GB, less is better", streams, "-cpu") for streams in STREAMS),
        both("Sent again", "share of TCP segments, less is better", 1, "-again", percent),
        Panel("Round trip", "ms, less is better", (mark("mean", "trip"),), short, False),
    ]
    ours = frozenset(peer.name for peer in L3_PEERS if isinstance(peer, OursL3))
    return picture(panels, TITLES, ours, "; ".join(fact for _, fact in facts))


# -- the command


COMMAND = Command(NAME, L3_PEERS, L3_MEASURES, ROUNDS)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    return COMMAND.parser(__doc__, "streams").parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmarks, print the tables, and write the page and the picture."""
    options = parse(words)
    prepare()
    peers, measures, rounds = COMMAND.chosen(options)
    results = run(peers, measures, rounds, QUICK if options.quick else Effort())
    print(terminal(results, measures))
    facts = machineFacts()
    how = "python -m bench.l3" + " --quick" * options.quick
    COMMAND.write(options, results, page(results, measures, facts, how), l3Picture(results, facts))


if __name__ == "__main__":
    main()
