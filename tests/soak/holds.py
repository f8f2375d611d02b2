"""When something held datagrams up, and so how old they may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

STOPPED, PATH = "stopped", "path"
"""What holds datagrams up: a process that does not run, and a path that lets less through than comes."""

MOST_AGE = 1.0
"""Nothing older is delivered, but for what was held up."""

WAKE_SECONDS = 0.3
"""For a process that runs again, until it has done what waited for it."""

RETRY_SECONDS = 0.5
"""The least time until TCP notices that its path is well again."""

KEPT_SECONDS = 120.0
"""Holds that ended so long ago explain nothing."""


@dataclass
class Hold:
    """One of them; the times are those of the clock on the wall, as the kernel's on datagrams are."""

    kind: str
    began: float
    ended: float = inf

    @property
    def over(self) -> float:
        """
        When it explains nothing any more.

        What TCP has sent in vain is sent again after a time that doubles with
        each try. So the next try after the end of a path's trouble may be as
        far from it as its beginning was.
        """
        if self.kind == STOPPED:
            return self.ended + WAKE_SECONDS
        return self.ended + max(RETRY_SECONDS, self.ended - self.began)


class Holds:
    """
    All of them.

    B{The rule.} A datagram that was sent at I{s} and delivered at I{d} may be
    delivered if

     - without the time in I{s} to I{d} during which anything held it up, it is at
       most one second old; and
     - without the time during which a process was stopped, it is at most as old
       as a link can be silent before it is declared dead (three heartbeats, and
       half a heartbeat or a second until somebody looks), and one second.

    So a path's trouble explains a late datagram only if the link it came by
    outlived the trouble, and nothing but a stopped process explains a later
    one. A killed process, a reset link and another configuration explain
    nothing: what was on its way then is lost, or comes within a second.
    """

    def __init__(self, heartbeat: float) -> None:
        self._longestSilence = 3 * heartbeat + min(1.0, heartbeat / 2)
        self._all: list[Hold] = []

    def begin(self, kind: str, now: float) -> Hold:
        """Something holds datagrams up from now on; whoever knows sets its C{ended}."""
        hold = Hold(kind, now)
        self._all = [each for each in self._all if each.over > now - KEPT_SECONDS] + [hold]
        return hold

    def explain(self, sentAt: float, at: float) -> bool:
        """Whether a datagram may be as old as it is."""
        age = at - sentAt
        if age <= MOST_AGE:
            return True
        held = covered(self._all, sentAt, at)
        stopped = covered([each for each in self._all if each.kind == STOPPED], sentAt, at)
        return age - held <= MOST_AGE and age - stopped <= MOST_AGE + self._longestSilence


def covered(holds: Iterable[Hold], begin: float, end: float) -> float:
    """How much of a time is covered by some holds together."""
    total, reached = 0.0, begin
    for each in sorted(holds, key=lambda hold: hold.began):
        first, last = max(each.began, reached), min(each.over, end)
        if last > first:
            total += last - first
            reached = last
    return total
