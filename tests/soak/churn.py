"""
Everything comes and goes (L-8): associations, sessions and links, for a long time.

A udp-server and a udp-local carry, each second,

 - 25 associations of SOCKS5 clients, which end with their control connections;
 - 25 associations of sources that send to a forward once, to port 53, and end
   because they are idle for ten seconds;
 - 5 logins of other clients, each with an association of its own. Of these half
   say GOAWAY, and half just close the connection, so that their sessions stay
   parked for C{--resume-grace};
 - the links of 1 % of these clients are reset, and so is that of udp-local 1 %
   as often as somebody logs in.

Each datagram must be answered, with the fourth try at the latest, for a reset
may cost some. Memory and descriptors are looked at each minute, in a run of
less than ten minutes every two seconds; what is seen during the warm-up, the
first third or fifth of the time, does not count. What must be so:

 - the line through the memory of each role rises by less than 1 MB an hour.
   If less than ten minutes are left after the warm-up, a line says nothing, and
   the last third has on average at most 3 MB more than the first third;
 - the line through its descriptors rises by less than 30 an hour, with the
   same exception, where 40 are allowed: they breathe with what comes and goes;
 - in the end, when everything had time to expire, each role has at most two
   descriptors more than in the beginning, and no association is left.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from argparse import Namespace as Arguments
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.protocol_client import GOAWAY, ProtocolClient
from tests.soak.report import Report
from tests.soak.stage import LOOPBACK, Stage, inWords, measure
from tests.soak.trend import HOUR, MEGABYTE, Point, slope
from tests.system.clients import SocksClient, open_
from tests.system.namespaces import Namespace, run
from tests.system.programs import FORWARD, LINK, Program
from tests.system.watch import links

CLOSED_RATE, IDLE_RATE, LOGIN_RATE = 25.0, 25.0, 5.0
RESET_EACH = 100
TARGET = LOOPBACK, 53
"""At this port an association is idle after ten seconds."""

PORTS = "32768 36767"
"""The local ports that nobody has chosen."""

IDLE_SECONDS = 10.0
TRY_SECONDS, TRIES = 2.0, 4
GRACE_SECONDS, SHORT_GRACE_SECONDS = 60.0, 3.0
SHORT_SECONDS = 600.0
SAMPLE_SECONDS, SHORT_SAMPLE_SECONDS = 60.0, 2.0
MOST_SLOPE, MOST_GROWTH = MEGABYTE / HOUR, 3 * MEGABYTE
MOST_DESCRIPTOR_SLOPE, MOST_BREATH, MOST_LEFT = 30 / HOUR, 40, 2
TELL_SECONDS = 10.0


class Echo(threading.Thread):
    """The target: sends everything back, and remembers nothing."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        self._udp = open_(namespace, *TARGET)
        self._udp.settimeout(0.2)
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                payload, source = self._udp.recvfrom(65535)
            except TimeoutError:
                continue
            self._udp.sendto(payload, source)

    def close(self) -> None:
        """End it."""
        self._over.set()
        self.join()
        self._udp.close()


class Habit(threading.Thread):
    """
    Does something so many times a second, until it is ended.

    @ivar done: how often it was done.
    @ivar failures: what went wrong.
    """

    def __init__(self, rate: float, work: Callable[[int], object]) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.failures: list[str] = []
        self._rate = rate
        self._work = work
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        for number in itertools.count():
            if self._over.wait(max(0.0, began + number / self._rate - time.monotonic())):
                return
            try:
                self._work(number)
                self.done += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__} {error}")

    def close(self) -> None:
        """Do it no more."""
        self._over.set()
        self.join()


class Churn:
    """One run."""

    def __init__(self, stage: Stage, arguments: Arguments) -> None:
        self.stage, self.report = stage, stage.report
        self.seconds = arguments.minutes * 60
        self.short = self.seconds < SHORT_SECONDS
        self.grace = SHORT_GRACE_SECONDS if self.short else GRACE_SECONDS
        self.namespace = stage.namespace("soak")
        self._narrow()
        beat = "--heartbeat", f"{arguments.heartbeat:g}"
        self.server = self._startServer(*beat)
        rule = f"{LOOPBACK}:{FORWARD}={TARGET[0]}:{TARGET[1]}"
        near = "--server", f"tcp:{LOOPBACK}:{LINK}", "--forward", rule, *beat
        self.local = stage.startRole(self.namespace, "udp-local", *near).says("is up")
        self.echo = Echo(self.namespace)
        stage.callback(self.echo.close)
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, list[tuple[float, int, int]]] = {"udp-server": [], "udp-local": []}

    def _startServer(self, *options: str) -> Program:
        words = "--listen", f"tcp:{LINK}:interface={LOOPBACK}", "--allow", "127.0.0.0/8"
        grace = "--resume-grace", f"{self.grace:g}"
        return self.stage.startRole(self.namespace, "udp-server", *words, *grace, *options).listens(LINK)

    def _narrow(self) -> None:
        """What remembers addresses is bounded; with few ports it is full when the warm-up is over."""
        with self.namespace.entered():
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(PORTS)

    @property
    def programs(self) -> dict[str, Program]:
        """Both roles."""
        return {"udp-server": self.server, "udp-local": self.local}

    # -- what comes and goes

    def _ask(self, send: Callable[[bytes], object], receive: Callable[[], bytes]) -> None:
        """Send a datagram until it is answered."""
        for _ in range(TRIES):
            payload = b"%d" % time.monotonic_ns()
            send(payload)
            try:
                if receive() == payload:
                    return
            except TimeoutError:
                self.counts["asked again"] += 1
        raise AssertionError(f"no answer to {TRIES} datagrams")

    def _closeOne(self, number: int) -> None:
        client = SocksClient(self.namespace)
        try:
            client.udp.settimeout(TRY_SECONDS)
            self._ask(lambda payload: client.send(TARGET, payload), lambda: client.receive()[1])
        finally:
            client.close()

    def _leaveOne(self, number: int) -> None:
        with open_(self.namespace, LOOPBACK) as udp:
            udp.settimeout(TRY_SECONDS)
            self._ask(lambda payload: udp.sendto(payload, (LOOPBACK, FORWARD)), lambda: udp.recv(65535))

    def _logIn(self, number: int) -> None:
        with self.namespace.entered():
            client = ProtocolClient(LOOPBACK, LINK)
        with client.link:
            client.announce(1, *TARGET)
            client.ask(0, 1, [b"%d" % number])
            _, _, payload = client.answers(1)[0]
            assert payload == b"%d" % number
            # The WELCOME is acknowledged, so that the session is parked when the link is gone.
            client.ping()
            if number % RESET_EACH == RESET_EACH // 5:
                client.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.counts["clients' links reset"] += 1
            elif number % 2:
                client.send(GOAWAY)
        if number % RESET_EACH == RESET_EACH // 4:
            self._resetLocal()

    def _resetLocal(self) -> None:
        """The other clients' links are made by this thread, and all closed now."""
        for here, _ in links(self.namespace):
            port = str(int(here.rpartition(":")[2], 16))
            run(*self.namespace.command("ss", "-K", "-tn", "sport", "=", f":{port}", "dport", "=", f":{LINK}"))
            self.counts["udp-local's links reset"] += 1

    # -- the run

    def run(self) -> None:
        """All of it."""
        self.before = {name: measure(each) for name, each in self.programs.items()}
        self._tell("before")
        habits = self._begin()
        began = time.monotonic()
        try:
            # What ends because it is idle must begin early enough to end within a short run.
            idle = began + (self.seconds - IDLE_SECONDS - 1 if self.short else self.seconds)
            self._watch(began, idle)
            habits["left idle"].close()
            self._watch(began, began + self.seconds)
        finally:
            for habit in habits.values():
                habit.close()
        self._judgeHabits(habits)
        self._judgeTrends()
        self._awaitRest()

    def _begin(self) -> dict[str, Habit]:
        return {
            "closed": Habit(CLOSED_RATE, self._closeOne),
            "left idle": Habit(IDLE_RATE, self._leaveOne),
            "logins": Habit(LOGIN_RATE, self._logIn),
        }

    def _watch(self, began: float, end: float) -> None:
        """Take samples, each time it is time for one."""
        each = SHORT_SAMPLE_SECONDS if self.short else SAMPLE_SECONDS
        while (now := time.monotonic()) < end:
            if now - began >= each * (1 + len(self.samples["udp-local"])):
                self._sample(now - began)
            time.sleep(min(0.2, max(0.0, end - now)))

    def _sample(self, at: float) -> None:
        for name, program in self.programs.items():
            self.samples[name].append((at, *measure(program)))
        self._tell(f"{at:.0f} s")

    def _tell(self, when: str) -> None:
        found = ", ".join(f"{name} {inWords(measure(each))}" for name, each in self.programs.items())
        self.report.say(f"{when}: {found}")

    # -- what was found

    def _judgeHabits(self, habits: dict[str, Habit]) -> None:
        for name, habit in habits.items():
            text = f"{habit.done} {name}, {len(habit.failures)} failed {habit.failures[:3] or ''}"
            self.report.require(not habit.failures, text)
        self.report.say(", ".join(f"{count} {name}" for name, count in sorted(self.counts.items())))

    def _judgeTrends(self) -> None:
        warm = self.seconds / 3 if self.seconds >= SHORT_SECONDS else self.seconds / 5
        for name, samples in self.samples.items():
            rest = [each for each in samples if each[0] >= warm]
            memory, descriptors = ([(each[0], each[place]) for each in rest] for place in (1, 2))
            if self.seconds - warm >= SHORT_SECONDS:
                self._judgeSlopes(name, memory, descriptors)
            else:
                self._judgeThirds(name, memory, descriptors)

    def _judgeSlopes(self, name: str, memory: Sequence[Point], descriptors: Sequence[Point]) -> None:
        rise, fan = slope(memory), slope(descriptors)
        self.report.require(rise.value < MOST_SLOPE, f"{name}'s memory: {rise.perHour}")
        self.report.require(fan.value < MOST_DESCRIPTOR_SLOPE, f"{name}'s descriptors: {fan.value * HOUR:+.1f} an hour")

    def _judgeThirds(self, name: str, memory: Sequence[Point], descriptors: Sequence[Point]) -> None:
        more, wider = growth(memory), growth(descriptors)
        self.report.require(more <= MOST_GROWTH, f"{name}'s memory has grown by {more / 1e6:+.2f} MB")
        self.report.require(wider <= MOST_BREATH, f"{name}'s descriptors have grown by {wider:+.0f}")

    def _awaitRest(self) -> None:
        """Nothing is left when all has had its time."""
        wait = max(self.grace, 0 if self.short else IDLE_SECONDS) + 3
        end = time.monotonic() + wait
        while not (rests := self._rests()) and time.monotonic() < end:
            time.sleep(0.2)
        more = [each.descriptors() - self.before[name][1] for name, each in self.programs.items()]
        left = [self.stage.status(role)["associations"] for role in self.programs]
        self.report.require(rests, f"in the end {left} associations are left, {more} descriptors more than before")

    def _rests(self) -> bool:
        return all(
            each.descriptors() - self.before[name][1] <= MOST_LEFT and not self.stage.status(name)["associations"]
            for name, each in self.programs.items()
        )


def growth(points: Sequence[Point]) -> float:
    """By how much the mean of the last third is above that of the first third."""
    if len(points) < 2:
        return 0.0
    part = max(1, len(points) // 3)
    first, last = ([value for _, value in some] for some in (points[:part], points[-part:]))
    return sum(last) / part - sum(first) / part


def main(arguments: Arguments) -> int:
    """Run it, and return the exit status."""
    report = Report(f"churn: {arguments.minutes:g} minutes", arguments.report)
    with Stage(report) as stage:
        Churn(stage, arguments).run()
    return report.close()
