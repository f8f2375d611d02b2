"""
Measures what carries the packets of a TUN to a SOCKS5 server: C{python -m bench.tun}.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from bench.__main__ import prepare, run
from bench.command import Command
from bench.iperf import iperf
from bench.measures import QUICK, Effort, Figures, Measure
from bench.peers import Peer
from bench.picture import Mark, Panel, picture
from bench.programs import BenchError, cpuSeconds
from bench.report import machineFacts, madeBy
from bench.table import Column, Figure, Results, markdown, percent, remarkLines, rows, short, terminalHeads, text
from bench.tunpeers import TARGET, TUN_PEERS, OursTun, TunPeer, TunRun, proxyName

NAME = "tun"
"""Results are NAME.md and NAME.svg."""

ROUNDS = 3
DIRECTIONS = {"up": (), "down": ("-R",)}
STREAMS = (1, 4)
DATAGRAM_BYTES, DATAGRAM_RATE = 1400, 1_000_000_000
"""Of UDP: bytes of payload, and bits of it per second."""

TITLES = [(peer.name, peer.title) for peer in TUN_PEERS]


class TunMeasure(Measure):
    """A measure whose peers all can do everything, if only badly."""

    def obstacle(self, peer: Peer) -> tuple[str, str] | None:
        """Nothing."""
        return None


def _send(run: TunRun, seconds: float, *words: str) -> Any:
    """
    Send through a TUN.

    @raise BenchError: it fails.
    """
    return iperf(run.near.command("iperf3", "-J", "-c", TARGET, "-t", f"{seconds:g}", *words), seconds)["end"]


def _tcp(direction: str, streams: int) -> Measure:
    key = f"tcp-{direction}-{streams}"

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        assert isinstance(peer, TunPeer)
        with peer.between() as run:
            pids = [run.program.pid] if run.program else []
            used = cpuSeconds(pids)
            received = _send(run, effort.streamSeconds, "-P", str(streams), *DIRECTIONS[direction])["sum_received"]
            used = cpuSeconds(pids) - used
        if not received["bytes"]:
            raise BenchError("nothing gets through")
        cpu = used / received["bytes"] * 1e9 if pids else float("nan")
        return {key: Figure(received["bits_per_second"]), f"{key}-cpu": Figure(cpu)}

    title = f"{direction}, {streams} stream{'s' * (streams > 1)}"
    columns = Column(key, "TCP", title, "bit/s"), Column(f"{key}-cpu", "CPU of the peer", title, "s/GB")
    return TunMeasure("tcp", f"TCP {title}", columns, measure)


def _udp(direction: str) -> Measure:
    key = f"udp-{direction}"

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        assert isinstance(peer, TunPeer)
        words = "-u", "-b", str(DATAGRAM_RATE), "-l", str(DATAGRAM_BYTES), *DIRECTIONS[direction]
        with peer.between() as run:
            total = _send(run, effort.streamSeconds, *words)["sum"]
        sent = total["packets"] * DATAGRAM_BYTES * 8 / total["seconds"]
        return {key: Figure(sent), f"{key}-lost": Figure(total["lost_percent"] / 100)}

    group = "UDP, 1 Gbit/s of 1400 B"
    columns = Column(key, group, f"{direction}: sent", "bit/s"), Column(f"{key}-lost", group, "lost", "", percent)
    return TunMeasure("udp", f"UDP {direction}", columns, measure)


TUN_MEASURES = (
    *(_tcp(direction, streams) for streams in STREAMS for direction in DIRECTIONS),
    *(_udp(direction) for direction in DIRECTIONS),
)
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
        "# Results: through a TUN and a SOCKS5 server",
        "",
        madeBy(how, results, "#through-a-tun"),
        "",
        *(f"* {name}: {fact}" for name, fact in (*facts, ("SOCKS5 server", proxyName()))),
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


def tunPicture(results: Results, facts: Sequence[tuple[str, str]]) -> str:
    """The picture."""

    def panel(title: str, note: str, streams: int, suffix: str = "") -> Panel:
        marks = []
        for direction in DIRECTIONS:
            key = f"tcp-{direction}-{streams}{suffix}"
            values = {name: each.value for name, _ in TITLES if (each := results.median(name, key))}
            marks.append(Mark(direction, values, direction == "down"))
        return Panel(title, note, tuple(marks), short, False)

    panels = [
        panel(f"TCP, {streams} stream{'s' * (streams > 1)}", "bit/s, more is better", streams) for streams in STREAMS
    ]
    cpu, note = "CPU time of the peer", "s for 1 GB, less is better"
    panels += [panel(f"{cpu}, {streams} stream{'s' * (streams > 1)}", note, streams, "-cpu") for streams in STREAMS]
    ours = frozenset(peer.name for peer in TUN_PEERS if isinstance(peer, OursTun))
    return picture(panels, TITLES, ours, "; ".join(fact for _, fact in facts))


# -- the command


COMMAND = Command(NAME, TUN_PEERS, TUN_MEASURES, ROUNDS)


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
    how = "python -m bench.tun" + " --quick" * options.quick
    COMMAND.write(options, results, page(results, measures, facts, how), tunPicture(results, facts))


if __name__ == "__main__":
    main()
