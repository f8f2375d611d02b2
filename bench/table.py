"""
The table: a row for each peer, a column for each figure. As text for a terminal, and as Markdown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

NOTHING = "–"  # noqa: RUF001
"""What stands where there is no figure."""

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """A number with three digits that count: 1.49M, 149k, 14.9, 0.15."""
    for factor, prefix in _PREFIXES:
        # So that 999,600 is not 1000k.
        if value >= factor * 0.9995:
            return _digits(value / factor) + prefix
    return _digits(value)


def _digits(value: float) -> str:
    if not value:
        return "0"
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"


def percent(value: float) -> str:
    """A share."""
    return f"{_digits(value * 100)} %"


class Figure(NamedTuple):
    """
    One value.

    @ivar least: whether it was the load generator that could not do more.
    """

    value: float
    least: bool = False


@dataclass(frozen=True)
class Column:
    """
    What a figure means.

    @ivar key: its name, in L{Results}.
    @ivar group: what the measure is called.
    @ivar title: what distinguishes it from others of the group.
    @ivar unit: of what L{show} shows.
    @ivar show: makes the text of a value.
    """

    key: str
    group: str
    title: str
    unit: str
    show: Callable[[float], str] = short

    def text(self, figure: Figure) -> str:
        """The text of a figure."""
        return ("≥ " if figure.least else "") + self.show(figure.value)


class Results:
    """
    All figures, of all rounds.

    @ivar remarks: why there are none: by peer and reason, what there is not.
    @ivar stopped: how far it came, if somebody has stopped it.
    """

    stopped = ""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], list[Figure]] = {}
        self.remarks: dict[str, dict[str, list[str]]] = {}

    def add(self, peer: str, column: str, figure: Figure) -> None:
        """One more figure; a value that is no number is left out."""
        if not math.isnan(figure.value):
            self._figures.setdefault((peer, column), []).append(figure)

    def remark(self, peer: str, reason: str, what: str = "") -> None:
        """Say why something of a peer is not there, once."""
        told = self.remarks.setdefault(peer, {}).setdefault(reason, [])
        if what and what not in told:
            told.append(what)

    def median(self, peer: str, column: str) -> Figure | None:
        """What the rounds say together. It is a least value if that of most rounds is."""
        figures = self._figures.get((peer, column))
        if not figures:
            return None
        least = 2 * sum(figure.least for figure in figures) > len(figures)
        return Figure(statistics.median(figure.value for figure in figures), least)

    def cell(self, peer: str, column: Column) -> str:
        """The text of a figure."""
        figure = self.median(peer, column.key)
        return NOTHING if figure is None else column.text(figure)

    def peers(self) -> list[str]:
        """Those with a figure."""
        return list(dict.fromkeys(peer for peer, _ in self._figures))


Row = Sequence[str]


def rows(results: Results, titles: Iterable[tuple[str, str]], columns: Sequence[Column]) -> list[Row]:
    """
    The cells of the table, without its head.

    @param titles: name and title of each peer. One without any figure has no row.
    """
    known = set(results.peers())
    return [[title, *(results.cell(name, column) for column in columns)] for name, title in titles if name in known]


def text(heads: Sequence[Row], body: Sequence[Row], width: int = 0) -> str:
    """
    The table for a terminal.

    @param heads: the lines of the head; each has a cell for the first column too.
    @param width: of the terminal. A wider table is folded: the first column is repeated. 0: not folded.
    """
    lines = [*heads, *body]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    blocks = []
    for places in fold(widths, width):
        block = [_line(line, places, widths) for line in lines]
        block.insert(len(heads), "-" * max(map(len, block)))
        blocks.append("\n".join(block))
    return "\n\n".join(blocks) + "\n"


def fold(widths: Sequence[int], width: int) -> list[list[int]]:
    """Which columns stand side by side: always the first, and as many others as there is room for, but at least one."""
    blocks: list[list[int]] = []
    room = 0
    for place in range(1, len(widths)):
        if not blocks or (width and room < widths[place] + 2):
            blocks.append([0])
            room = width - widths[0]
        blocks[-1].append(place)
        room -= widths[place] + 2
    return blocks or [[0]]


def _line(line: Row, places: Iterable[int], widths: Sequence[int]) -> str:
    cells = [line[place].rjust(widths[place]) if place else line[0].ljust(widths[0]) for place in places]
    return "  ".join(cells).rstrip()


def terminalHeads(columns: Sequence[Column]) -> list[Row]:
    """The lines of the head: what distinguishes a column within its measure, and its unit."""
    return [["", *(column.title for column in columns)], ["", *(column.unit for column in columns)]]


def markdown(columns: Sequence[Column], body: Sequence[Row]) -> str:
    """The table as Markdown."""
    head = ["", *(f"{column.group}<br>{column.title}<br>{column.unit}" for column in columns)]
    rule = ["---", *("--:" for _ in columns)]
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, rule, *body))


def remarkLines(results: Results, titles: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason why something of a peer is not there."""
    return [
        ": ".join(filter(None, (title, ", ".join(told), reason)))
        for name, title in titles
        for reason, told in results.remarks.get(name, {}).items()
    ]
