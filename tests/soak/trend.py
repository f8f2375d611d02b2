"""Whether something grows: a straight line through samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

HOUR, MEGABYTE = 3600.0, 1e6

Point = tuple[float, float]
"""A time in seconds, and what was measured then."""


class Slope(NamedTuple):
    """
    The steepness of a straight line, and how sure it is.

    @ivar value: by how much it rises in a second.
    @ivar error: the standard error of that.
    """

    value: float
    error: float

    @property
    def perHour(self) -> str:
        """For bytes, in MB an hour."""
        value, error = (each * HOUR / MEGABYTE for each in self)
        return f"{value:+.2f} ± {error:.2f} MB/h"


def slope(points: Sequence[Point]) -> Slope:
    """The line with the least squares through one series."""
    return commonSlope([points])


def commonSlope(series: Iterable[Sequence[Point]]) -> Slope:
    """The steepness that several series have in common, each of which begins somewhere else."""
    centred = [pair for points in series for pair in _centred(points)]
    across = sum(time * time for time, _ in centred)
    if not across:
        return Slope(0.0, 0.0)
    value = sum(time * found for time, found in centred) / across
    rest = sum((found - value * time) ** 2 for time, found in centred)
    return Slope(value, (rest / max(1, len(centred) - 2) / across) ** 0.5)


def _centred(points: Sequence[Point]) -> list[Point]:
    if not points:
        return []
    times, values = zip(*points, strict=True)
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    return [(time - middle, value - mean) for time, value in points]
