"""
What is shown and written at the end: the table, the machine's facts, the panels of the picture.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import twisted

from bench.measures import SIZES, Measure
from bench.peers import PEERS, Ours, Peer
from bench.picture import Mark, Panel, picture
from bench.table import NOTHING, Column, Results, markdown, percent, remarkLines, rows, short, terminalHeads, text

TITLES = [(peer.name, peer.title) for peer in PEERS]
OURS = frozenset(peer.name for peer in PEERS if isinstance(peer, Ours))


def machineFacts() -> list[tuple[str, str]]:
    """What one must know about the machine to compare figures."""
    return [
        ("Processor", f"{_processor()}, {len(os.sched_getaffinity(0))} cores"),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.1f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}, Twisted {twisted.__version__}"),
        ("Date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def columnsOf(measures: Sequence[Measure]) -> list[Column]:
    """All columns of some measures."""
    return [column for measure in measures for column in measure.columns]


def terminalTable(results: Results, measures: Sequence[Measure], width: int) -> str:
    """The table for a terminal: a part for each measure, and what is to be said below it."""
    parts = []
    columns = columnsOf(measures)
    for group in dict.fromkeys(column.group for column in columns):
        of = [column for column in columns if column.group == group]
        body = [row for row in rows(results, TITLES, of) if any(cell != NOTHING for cell in row[1:])]
        if body:
            parts.append(f"{group}\n{text(terminalHeads(of), body, width)}")
    remarks = remarkLines(results, TITLES)
    return "\n".join([*parts, *remarks]) + "\n"


def madeBy(how: str, results: Results, part: str = "") -> str:
    """
    The line that says where a page comes from, and whether it is whole.

    @param how: what was run.
    @param part: which part of the guide is about it.
    """
    stopped = f", {results.stopped}" if results.stopped else ""
    return f"Made by `{how}`{stopped}; see [how to read and to repeat them](README.md{part})."


def resultsPage(results: Results, measures: Sequence[Measure], facts: Sequence[tuple[str, str]], how: str) -> str:
    """
    The page with the results.

    @param how: what was run.
    """
    columns = columnsOf(measures)
    lines = [
        "# Results",
        "",
        madeBy(how, results),
        "",
        *(f"* {name}: {fact}" for name, fact in facts),
        "",
        "![The same figures as a picture](results.svg)",
        "",
        markdown(columns, rows(results, TITLES, columns)),
        "≥: the load generator could do no more; the peer might.",
        "",
        *(f"* {line}" for line in remarkLines(results, TITLES)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def resultsPicture(results: Results, peers: Sequence[Peer], facts: Sequence[tuple[str, str]]) -> str:
    """The picture of the results."""
    titles = [(peer.name, peer.title) for peer in peers]
    caption = "; ".join(fact for _, fact in facts)
    return picture(_panels(results), titles, OURS, caption)


def _panels(results: Results) -> list[Panel]:
    def mark(label: str, key: str, hollow: bool = False, factor: float = 1.0) -> Mark:
        values = {name: figure.value * factor for name, _ in TITLES if (figure := results.median(name, key))}
        return Mark(label, values, hollow)

    def throughput(size: int) -> Panel:
        marks = mark("plain sender", f"throughput-{size}", True), mark("GSO sender", f"throughput-{size}-gso")
        return Panel(f"Highest rate, {size} B", "datagrams/s with < 1 % lost, more is better", marks, short)

    def one(title: str, note: str, key: str, show: Callable[[float], str] = short, log: bool = True) -> Panel:
        return Panel(title, note, (mark("", key),), show, log)

    def milliseconds(title: str, measure: str, *parts: str) -> Panel:
        marks = tuple(mark(part, f"{measure}-{part}", part != "p99", 1e3) for part in parts)
        return Panel(title, "ms, less is better", marks, short)

    cpu = mark("plain sender", "cpu", True), mark("GSO sender", "cpu-gso")
    return [
        *(throughput(size) for size in reversed(SIZES)),
        Panel("CPU time", "s for 1,000,000 datagrams of 1400 B, less is better", cpu, short, False),
        milliseconds("Round trip at 1,000/s", "trips", "p50", "p99"),
        milliseconds("Round trip beside an overload", "overload", "p50", "p99"),
        one("Lost beside an overload", "share of 50 datagrams/s, less is better", "overload-lost", percent, False),
        one("Memory", "MiB for 1,000 associations, less is better", "memory", short, False),
    ]
