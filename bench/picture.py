"""
The picture: panels of dots, one row for each peer. An SVG that follows the reader's light or dark colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH, MARGIN, GAP = 960, 16, 28
LABELS, VALUES = 158, 52
"""Room for the names at the left of a panel, and for the number right of the last dot."""

ROW, TOP, BOTTOM = 19, 44, 22
"""Heights: of a peer, of what stands above the first in a panel, and of the axis below the last."""

LEGEND = 34

STYLE = """
  .paper { fill: #ffffff } text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } .faint, .tick { fill: #656d76 } .tick { font-size: 10px }
  .value { font-size: 11px } .grid { stroke: #d0d7de; stroke-width: 1 } .span { stroke: #8c959f; stroke-width: 2 }
  .other { fill: #57606a; stroke: #57606a } .ours { fill: #0969da; stroke: #0969da }
  .dot { stroke-width: 2 } .hollow { fill: #ffffff } .ours.name { stroke: none; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } text { fill: #e6edf3 } .faint, .tick { fill: #8d96a0 }
    .grid { stroke: #30363d } .span { stroke: #6e7681 }
    .other { fill: #9198a1; stroke: #9198a1 } .ours { fill: #4493f8; stroke: #4493f8 } .hollow { fill: #0d1117 }
    .ours.name { fill: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Mark:
    """
    One dot in each row of a panel.

    @ivar label: what the legend says.
    @ivar values: by peer.
    @ivar hollow: whether only its edge is drawn.
    """

    label: str
    values: dict[str, float]
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """
    One measure.

    @ivar note: which end is the good one, and the unit.
    @ivar marks: the dots; a line joins those of a peer.
    @ivar show: makes the text of a value.
    @ivar logarithmic: whether each step of the axis is a factor.
    """

    title: str
    note: str
    marks: tuple[Mark, ...]
    show: Callable[[float], str]
    logarithmic: bool = True

    @property
    def values(self) -> list[float]:
        """All of them."""
        return [value for mark in self.marks for value in mark.values.values()]


@dataclass(frozen=True)
class Axis:
    """
    From values to places.

    @ivar least: the value at the left end.
    @ivar most: the value at the right end.
    """

    least: float
    most: float
    logarithmic: bool
    ticks: list[float] = field(default_factory=list)

    def place(self, value: float) -> float:
        """Where a value is, from 0 to 1. One that is below the axis is at its left end."""
        scale = _logarithm if self.logarithmic else float
        low, high = scale(self.least), scale(self.most)
        return min(1.0, max(0.0, (scale(max(value, self.least)) - low) / (high - low)))


def _logarithm(value: float) -> float:
    return math.log10(value)


def logarithmicAxis(values: Sequence[float]) -> Axis:
    """An axis of whole powers of ten that holds all values above zero."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive)) + 1e-9), math.ceil(math.log10(max(positive)) - 1e-9)
    high = max(high, low + 1)
    return Axis(10.0**low, 10.0**high, True, [10.0**power for power in range(low, high + 1)])


def linearAxis(values: Sequence[float], steps: int = 4) -> Axis:
    """An axis from zero, with about so many steps of 1, 2 or 5 times a power of ten."""
    most = max([*values, 0.0]) or 1.0
    power = 10.0 ** math.floor(math.log10(most / steps))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * steps >= most * (1 - 1e-9))
    count = math.ceil(most / step - 1e-9)
    return Axis(0.0, step * count, False, [step * place for place in range(count + 1)])


def picture(panels: Sequence[Panel], peers: Sequence[tuple[str, str]], ours: frozenset[str], caption: str) -> str:
    """
    The picture as SVG.

    @param panels: two of them stand side by side. One without values is left out.
    @param peers: name and title of each.
    @param ours: the names of those that are to stand out.
    @param caption: what stands below.
    """
    shown = [panel for panel in panels if panel.values]
    wide = (WIDTH - 2 * MARGIN - GAP) / 2
    parts, y = [], float(MARGIN)
    for left in range(0, len(shown), 2):
        pair = shown[left : left + 2]
        for place, panel in enumerate(pair):
            parts.append(_panel(panel, peers, ours, MARGIN + place * (wide + GAP), y, wide))
        y += max(_height(panel, peers) for panel in pair) + GAP
    parts.append(_text(MARGIN, y, caption, "faint"))
    return _document(y + LEGEND - MARGIN, parts)


def _document(height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>Benchmarks</title>\n<style>{STYLE}</style>'
    )
    return "\n".join([head, paper, *parts, "</svg>\n"])


def _height(panel: Panel, peers: Sequence[tuple[str, str]]) -> float:
    return TOP + ROW * len(_known(panel, peers)) + BOTTOM


def _known(panel: Panel, peers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, title) for name, title in peers if any(name in mark.values for mark in panel.marks)]


def _panel(
    panel: Panel, peers: Sequence[tuple[str, str]], ours: frozenset[str], x: float, y: float, wide: float
) -> str:
    axis = (logarithmicAxis if panel.logarithmic else linearAxis)(panel.values)
    left, long = x + LABELS, wide - LABELS - VALUES
    known = _known(panel, peers)
    bottom = y + TOP + ROW * len(known)
    parts = [_text(x, y + 12, panel.title, "title"), _text(x, y + 28, panel.note, "faint"), _legend(panel, x + wide, y)]
    parts += [_tick(panel, value, left + long * axis.place(value), y + TOP, bottom) for value in axis.ticks]
    for place, (name, title) in enumerate(known):
        kind = "ours" if name in ours else "other"
        middle = y + TOP + ROW * (place + 0.5)
        parts.append(_text(x, middle + 4, title, "ours name" if kind == "ours" else "name"))
        parts.append(_dots(panel, name, kind, axis, left, long, middle))
    return "\n".join(parts)


def _tick(panel: Panel, value: float, x: float, top: float, bottom: float) -> str:
    line = f'<line class="grid" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>'
    return line + _text(x, bottom + 13, tickText(panel.show, value), "tick", "middle")


def tickText(show: Callable[[float], str], value: float) -> str:
    """A value without digits that say nothing: 1k, not 1.00k."""
    number, rest = show(value), ""
    for place, character in enumerate(number):
        if character not in "0123456789.":
            number, rest = number[:place], number[place:]
            break
    return (number.rstrip("0").rstrip(".") if "." in number else number) + rest


def _dots(panel: Panel, name: str, kind: str, axis: Axis, left: float, long: float, y: float) -> str:
    marks = [(mark, mark.values[name]) for mark in panel.marks if name in mark.values]
    places = [left + long * axis.place(value) for _, value in marks]
    parts = [f'<line class="span" x1="{min(places):.1f}" y1="{y:.1f}" x2="{max(places):.1f}" y2="{y:.1f}"/>']
    for (mark, _), x in zip(marks, places, strict=True):
        parts.append(_dot(mark, kind, x, y))
    last = max(value for _, value in marks)
    parts.append(_text(max(places) + 9, y + 4, panel.show(last), "value"))
    return "".join(parts)


def _dot(mark: Mark, kind: str, x: float, y: float) -> str:
    return f'<circle class="dot {kind}{" hollow" if mark.hollow else ""}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _legend(panel: Panel, right: float, y: float) -> str:
    """What the dots are, if there are several; about 7 pixels for each letter."""
    parts = []
    for mark in reversed(panel.marks if len(panel.marks) > 1 else ()):
        parts.append(_text(right, y + 12, mark.label, "faint", "end"))
        right -= 7 * len(mark.label) + 10
        parts.append(_dot(mark, "other", right, y + 8))
        right -= 16
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
