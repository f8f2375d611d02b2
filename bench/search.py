"""
The highest rate that gets through: first doubled until too much is lost, then bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from bench.load import Outcome

MOST_LOST = 0.01
"""The share that may be lost."""

SHORT = 0.95
"""A sender that sends less than this part of what it should is short."""

GAIN = 1.1
"""A sender that is short can do no more if it does not even send so many times as much as at the rate before."""

LEAST_RATE = 100
"""Datagrams per second. Who loses too many of these carries none."""


class Most(NamedTuple):
    """
    The highest rate that was found.

    @ivar outcome: what became of it.
    @ivar bySender: whether it was the sender that could not do more, so that the peer might.
    """

    outcome: Outcome
    bySender: bool


def findMost(offer: Callable[[float], Outcome], first: float, closeness: float, tries: int) -> Most | None:
    """
    Find the highest rate with less than L{MOST_LOST} lost.

    @param offer: sends at a rate, and says what became of it.
    @param first: the rate to begin with.
    @param closeness: end when the rates that get through and that do not are so close, as a part of the latter.
    @param tries: how often a rate is tried before it counts as too high. Something else on the machine may disturb one.
    @return: C{None} if nothing gets through.
    """
    best: Outcome | None = None
    low, high, rate = 0.0, 0.0, first
    while not high or high - low > closeness * high:
        outcome = _tryHard(offer, rate, tries)
        if outcome.lost >= MOST_LOST:
            high = rate
            if high < LEAST_RATE:
                break
        else:
            gain = outcome.offered / best.offered if best is not None else math.inf
            best, low = outcome if gain > 1 else best, min(rate, outcome.offered)
            if _isShort(outcome, rate) and gain < GAIN:
                return Most(best or outcome, True)
        rate = (low + high) / 2 if high else 2 * rate
    return Most(best, False) if best is not None else None


def _tryHard(offer: Callable[[float], Outcome], rate: float, tries: int) -> Outcome:
    """The best of some tries; the first that is good enough."""
    outcomes = []
    for _ in range(tries):
        outcome = offer(rate)
        outcomes.append(outcome)
        if outcome.lost < MOST_LOST and not _isShort(outcome, rate):
            break
    return min(outcomes, key=lambda each: (each.lost >= MOST_LOST, -each.offered))


def _isShort(outcome: Outcome, rate: float) -> bool:
    return outcome.offered < SHORT * rate
