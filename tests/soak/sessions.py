"""
Many sessions with certificates (L-1, L-5): held for a while, then their server is restarted.

What must be so:

 - all of them come up, and none loses its link while nothing happens;
 - udp-server needs at most 60 kB for each, and half a megabyte for whatever else
   it is doing. A few sessions come first, so that what the first ones cost
   once is not counted;
 - after udp-server was restarted all are back within 15 s from when it listens
   again, and come at different times: no second holds more than 30 % of
   all the attempts from the stop until then. Seconds are counted from the stop.
   If it is all over in less than five of them, which a few sessions are, that
   is told and not judged.
"""

from __future__ import annotations

import time
from argparse import Namespace as Arguments
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.clients import Clients
from tests.soak.report import Report
from tests.soak.stage import Stage, inWords, measure
from tests.system.namespaces import Namespace
from tests.system.programs import LINK, Program
from udptunnel.pki import Authority

SESSION_BYTES, OTHER_BYTES = 60_000, 500_000
BACK_SECONDS = 15.0
MOST_SHARE, JUDGED_SECONDS = 0.3, 5
UP_SECONDS, TELL_SECONDS, SETTLE_SECONDS = 120.0, 60.0, 2.0
DAYS = 30


class Sessions:
    """One run."""

    def __init__(self, stage: Stage, arguments: Arguments) -> None:
        self.stage, self.report = stage, stage.report
        self.count: int = arguments.count
        self.arguments = arguments
        self.namespace: Namespace = stage.namespace("soak")
        self._makeBundles()
        self.server = self._startServer()
        self.clients = Clients(stage, self.namespace, arguments.heartbeat, str(self._folder))

    @property
    def _folder(self) -> Path:
        return self.stage.folder / "ca"

    def _makeBundles(self) -> None:
        """Each client is a user of its own."""
        authority = Authority(self._folder, datetime.now(UTC))
        authority.create(["127.0.0.1"], DAYS)
        for number in range(self.count):
            authority.add(str(number), DAYS)
        self.report.say(f"{self.count} users have certificates")

    def _startServer(self) -> Program:
        words = "--listen", f"tcp:{LINK}:interface=127.0.0.1", "--tls", str(self._folder / "server.pem")
        limits = "--max-sessions", str(self.count + 100), "--heartbeat", f"{self.arguments.heartbeat:g}"
        return self.stage.startRole(self.namespace, "udp-server", *words, *limits).listens(LINK)

    def run(self) -> None:
        """All of it."""
        self._rise()
        self._hold(self.arguments.minutes * 60)
        self._restart()

    def _rise(self) -> None:
        few = max(1, self.count // 10)
        self._begin(few, few)
        before = measure(self.server)
        self._begin(self.count - few, self.count)
        after = measure(self.server)
        more = self.count - few
        allowed = SESSION_BYTES + OTHER_BYTES / more
        each = (after[0] - before[0]) / more
        self.report.say(f"{few} sessions: {inWords(before)}; {self.count}: {inWords(after)}")
        self.report.require(each <= allowed, f"{each / 1e3:.1f} kB for each session, at most {allowed / 1e3:.1f} kB")

    def _begin(self, more: int, count: int) -> None:
        self.clients.begin(more)
        seconds = self.clients.allUp(count, UP_SECONDS)
        self.report.require(seconds is not None, f"{self.clients.state['up']} of {count} are up")
        time.sleep(SETTLE_SECONDS)

    def _hold(self, seconds: float) -> None:
        self.clients.look()
        attempts, end, least = len(self.clients.attempts), time.monotonic() + seconds, self.count
        told = time.monotonic()
        while time.monotonic() < end:
            time.sleep(min(0.5, seconds))
            least = min(least, self.clients.look()["up"])
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.report.say(f"{least} are up, udp-server has {inWords(measure(self.server))}")
        lost = len(self.clients.attempts) - attempts
        self.report.require(
            least == self.count and not lost, f"{seconds:g} s: at least {least} were up, {lost} began anew"
        )

    def _restart(self) -> None:
        self.clients.look()
        self.clients.attempts.clear()
        began = time.monotonic()
        self.server.stop()
        ended = time.monotonic()
        time.sleep(max(0.0, ended + self.arguments.down - time.monotonic()))
        self.server = self._startServer()
        listens = time.monotonic()
        self.report.say(f"udp-server ended after {ended - began:.1f} s and listens again after {listens - began:.1f} s")
        self.clients.wait(lambda state: state["up"] < self.count, 2)
        seconds = self.clients.allUp(self.count, BACK_SECONDS - (time.monotonic() - listens))
        took = time.monotonic() - listens
        self.report.require(seconds is not None, f"{self.clients.state['up']} are back {took:.1f} s after it listens")
        self._judgeAttempts(began)
        self.report.say(f"udp-server has {inWords(measure(self.server))}")

    def _judgeAttempts(self, began: float) -> None:
        seconds = perSecond(self.clients.attempts, began)
        total = sum(seconds.values())
        share = max(seconds.values(), default=0) / max(1, total)
        self.report.say(f"attempts in each second from the stop on: {dict(sorted(seconds.items()))}")
        found = f"the busiest second has {share:.0%} of {total} attempts, at most 30 %"
        if max(seconds, default=0) < JUDGED_SECONDS:
            self.report.say(f"not judged: {found}")
        else:
            self.report.require(share <= MOST_SHARE, found)


def perSecond(moments: Iterable[float], began: float) -> Counter[int]:
    """How many moments are in each second."""
    return Counter(int(each - began) for each in moments)


def main(arguments: Arguments) -> int:
    """Run it, and return the exit status."""
    report = Report(f"sessions: {arguments.count} for {arguments.minutes:g} minutes", arguments.report)
    with Stage(report) as stage:
        Sessions(stage, arguments).run()
    return report.close()
