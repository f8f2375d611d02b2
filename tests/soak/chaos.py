"""
Faults by chance (F-30), while numbered datagrams travel all the time.

Both roles run in network namespaces of their own, joined by a wire; targets are
behind udp-server. SOCKS5 clients and sources of forwards send questions, and
targets answer them. Faults come in episodes: a few at a time, one after the other
or at once, then nothing until all flows have echoes again. The seed decides which
faults there are, not exactly when.

    kill server, kill local        kill -9, and a new start
    reconfigure server             SIGTERM, and a new start with other options
    stop server, stop local        SIGSTOP and SIGCONT, up to 5 s
    reset                          of one link or all of them (ss -K)
    black hole, loss               both ways or one, up to 8 s (nft); 5 to 30 % up to 5 s
    rate limit                     one way, 8 kbit/s to 10 Mbit/s, up to 5 s (tc tbf)
    address flap                   the near machine has no address, up to 3 s
    stall target                   one does not read, up to 3 s

With a heartbeat of less than a second all of that is shorter in proportion. What
must be so:

 - no datagram is altered, comes to another flow than its own, comes twice, or
   comes later than is explained by what held it up: L{tests.soak.holds.Holds}
   has the exact rule. Times are the kernel's, at the socket of whoever receives;
 - each source keeps its external port as long as its session can be resumed,
   which is until one of both roles is started anew;
 - after each episode all flows have echoes again within three heartbeats and
   5 s;
 - SOCKS5 clients lose their association only when udp-local is killed;
 - nothing goes wrong that a role has not thought of: no traceback in its log;
 - in the end, when everything had time to expire, only the associations of
   forwards to ordinary ports are left, no session is parked, and without them
   and the links each role has at most two descriptors more than in the
   beginning;
 - no role ever has 40 MB more than when it was 3 s old; and from their second
   minute on their memory rises by less than 30 MB an hour, as far as that can be
   told: they must have lived for five minutes then, all lives together, and
   twice its standard error is taken off the slope.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from argparse import Namespace as Arguments
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.soak.faults import Fault, plan
from tests.soak.holds import Holds
from tests.soak.judge import ANSWER, QUESTION, Judge
from tests.soak.report import Report
from tests.soak.stage import LOOPBACK, Stage, inWords, measure
from tests.soak.traffic import ForwardSource, SocksSource, Traffic
from tests.soak.trend import HOUR, MEGABYTE, Point, commonSlope
from tests.system.namespaces import Network
from tests.system.programs import FORWARD, LINK, Program
from tests.system.watch import residentBytes
from udptunnel.core.associations import BRIEF_PORTS
from udptunnel.pki import Authority

FAULTS_PER_MINUTE = 1000 / 30
EPISODE_SECONDS, SPREAD_SECONDS, MOST_AT_ONCE = 6.0, 1.5, 8
CALM_SECONDS = 0.3
OVERTIME = 1.5
"""A run that does not get through its faults goes on for so many times as long as it should, and no longer."""

BOUND_SECONDS = 5.0
SHORT_SECONDS = 120.0
GRACE_SECONDS, SHORT_GRACE_SECONDS = 30.0, 8.0
BRIEF_SECONDS = 10.0
FLOW_RATE, SOCKS_CLIENTS, SOURCES_EACH = 15.0, 4, 2
TELL_SECONDS, UP_SECONDS = 10.0, 15.0
YOUNG_SECONDS, GROWN_SECONDS, JUDGED_SECONDS = 3.0, 60.0, 300
MOST_GROWTH, MOST_SLOPE, MOST_LEFT = 40 * MEGABYTE, 30 * MEGABYTE / HOUR, 2

ORDINARY = (Network.atTarget[0], 7007), (Network.third[0], 7007), (Network.atTarget[1], 7007)
BRIEF = (Network.atTarget[0], 53)


class Chaos:
    """
    One run, and the world that faults happen to.

    @ivar programs: the roles, by name.
    @ivar options: what they are told besides the usual.
    """

    def __init__(self, stage: Stage, arguments: Arguments, seed: int) -> None:
        self.stage, self.report = stage, stage.report
        self.seed, self.heartbeat = seed, arguments.heartbeat
        self.seconds = arguments.minutes * 60
        self.short = self.seconds < SHORT_SECONDS
        self.grace = SHORT_GRACE_SECONDS if self.short else GRACE_SECONDS
        self.targets = ORDINARY if self.short else (*ORDINARY, BRIEF)
        self.scale = min(1.0, self.heartbeat)
        count = arguments.faults or max(1, round(arguments.minutes * FAULTS_PER_MINUTE))
        self.faults = plan(seed, count, self.scale, arguments.only.split(",") if arguments.only else ())
        self.judge = Judge(self.report, Holds(self.heartbeat))
        self.network = Network()
        self.programs: dict[str, Program] = {}
        self.options: dict[str, Sequence[str]] = {"udp-server": (), "udp-local": ()}
        self._sealing = self._makeBundles() if arguments.tls else {"udp-server": ("--insecure-no-auth",)}
        self._over = threading.Event()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self.done: Counter[str] = Counter()
        self.worst: dict[str, float] = {}
        self.kills = 0
        self.memory: dict[tuple[str, int], list[Point]] = defaultdict(list)

    def _makeBundles(self) -> dict[str, tuple[str, ...]]:
        authority = Authority(Path(self.stage.folder, "ca"), datetime.now(UTC))
        authority.create([Network.atServer[0]], 30)
        authority.add("near", 30)
        return {
            "udp-server": ("--tls", str(authority.bundle("server"))),
            "udp-local": ("--tls", str(authority.bundle("near"))),
        }

    # -- the roles

    def launch(self, role: str) -> None:
        """Start a role, and wait until its ports are open."""
        namespace = self.network.server if role == "udp-server" else self.network.client
        words = (*self._words(role), "--heartbeat", f"{self.heartbeat:g}", *self._sealing.get(role, ()))
        program = self.programs[role] = self.stage.launchRole(namespace, role, *words, *self.options[role])
        if role == "udp-server":
            program.listens(LINK)
        else:
            program.says("udp-local: SOCKS5 at")

    def _words(self, role: str) -> tuple[str, ...]:
        if role == "udp-server":
            allowed = "--allow", "10.77.2.0/24", "--allow", "fd77:2::/64"
            listen = "--listen", f"tcp:{LINK}:interface={Network.atServer[0]}"
            return *listen, *allowed, "--resume-grace", f"{self.grace:g}"
        rules = [f"{LOOPBACK}:{FORWARD + place}={host}:{port}" for place, (host, port) in self._forwards]
        forwards = [word for rule in rules for word in ("--forward", rule)]
        return "--server", f"tcp:{Network.atServer[0]}:{LINK}", *forwards

    @property
    def _forwards(self) -> list[tuple[int, tuple[str, int]]]:
        """The targets that have a forward, by number."""
        return [(place, each) for place, each in enumerate(self.targets) if each in (ORDINARY[0], BRIEF)]

    def retire(self, role: str, gently: bool) -> None:
        """End a role."""
        program = self.programs[role]
        if gently:
            program.stop()
        else:
            program.kill()
            self.kills += role == "udp-local"
        self.stage.checkLog(program)

    # -- the run

    def run(self) -> None:
        """All of it."""
        for role in ("udp-server", "udp-local"):
            self.launch(role)
        self.programs["udp-local"].says("is up")
        self.before = {role: self._idleDescriptors(role) for role in self.programs}
        self._beginTraffic()
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        try:
            self._recover(time.time(), "the beginning")
            self._suffer()
        finally:
            self._over.set()
            watching.join()
        self._finish()

    def _beginTraffic(self) -> None:
        namespace, numbers = self.network.client, range(len(self.targets))
        self.clients = [SocksSource(namespace, numbers) for _ in range(SOCKS_CLIENTS)]
        forwards = [
            ForwardSource(namespace, FORWARD + place, place) for place, _ in self._forwards for _ in range(SOURCES_EACH)
        ]
        flows = SOCKS_CLIENTS * len(self.targets) + len(forwards)
        sources = [*self.clients, *forwards]
        rate = FLOW_RATE * flows
        self.traffic = Traffic(self.judge, sources, self.network.target, self.targets, BRIEF_PORTS, rate, self.seed)
        self.stage.callback(self.traffic.close)

    def _suffer(self) -> None:
        """Episode after episode, at a pace that gets through all faults in time."""
        began, left, took = time.monotonic(), list(self.faults), EPISODE_SECONDS * self.scale
        while left and time.monotonic() < began + OVERTIME * self.seconds:
            rest = max(1.0, began + self.seconds - time.monotonic())
            count = min(MOST_AT_ONCE, max(1, round(len(left) * took / rest)))
            episode, left = left[:count], left[count:]
            at = time.monotonic()
            self._episode(episode)
            took += 0.2 * (time.monotonic() - at - took)
            # Not faster than asked for, either.
            done = len(self.faults) - len(left)
            self._over.wait(max(0.0, began + self.seconds * done / len(self.faults) - time.monotonic()))
        if left:
            self.report.say(f"no time for {len(left)} faults")

    def _episode(self, faults: Sequence[Fault]) -> None:
        step = SPREAD_SECONDS * self.scale / len(faults)
        threads = [
            threading.Thread(target=self._undergo, args=(fault, place * step), daemon=True)
            for place, fault in enumerate(faults)
        ]
        for each in threads:
            each.start()
        try:
            for each in threads:
                each.join()
        except BaseException:
            # Faults that are under way go by before anything is taken away.
            self._over.set()
            for each in threads:
                each.join()
            raise
        seconds = self._recover(time.time(), " + ".join(map(str, faults)))
        for fault in faults:
            self.done[fault.kind] += 1
            self.worst[fault.kind] = max(self.worst.get(fault.kind, 0.0), seconds)
        self._over.wait(CALM_SECONDS * self.scale)

    def _undergo(self, fault: Fault, wait: float) -> None:
        if self._over.wait(wait):
            return
        with self._locks[fault.resource] if fault.resource else contextlib.nullcontext():
            self.judge.faults.append(str(fault))
            try:
                fault.run(self, self._over)
            except Exception as error:
                self.judge.violate(f"{fault}: {type(error).__name__} {error}")

    def _recover(self, since: float, what: str) -> float:
        """Wait until all flows have echoes of what is sent from now on; how long that took."""
        bound = 3 * self.heartbeat + BOUND_SECONDS
        while missing := self.judge.unanswered(since):
            if time.time() - since > bound + 10:
                raise AssertionError(f"no echoes any more of {missing} after {what}")
            time.sleep(0.02)
        seconds = time.time() - since
        if seconds > bound:
            self.judge.violate(f"echoes only after {seconds:.1f} s, at most {bound:g} s, after {what}")
        return seconds

    # -- watching

    def _watch(self) -> None:
        """Look at the memory each second, and tell how things are now and then."""
        told = time.monotonic()
        while not self._over.wait(1.0):
            for role, program in list(self.programs.items()):
                self._sample(role, program)
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                self._tell()

    def _sample(self, role: str, program: Program) -> None:
        with contextlib.suppress(OSError, IndexError):
            bytes_ = residentBytes(program)
            if bytes_:  # what has ended and is not waited for yet has none
                self.memory[role, program.process.pid].append((time.monotonic(), float(bytes_)))

    def _tell(self) -> None:
        found = []
        for role, program in list(self.programs.items()):
            with contextlib.suppress(OSError, IndexError):
                found.append(f"{role} {inWords(measure(program))}")
        self.report.say(
            f"{self.done.total()} of {len(self.faults)} faults, {self._figures()}, {', '.join(found)}, "
            f"{len(self.report.violations)} violations"
        )

    def _figures(self) -> str:
        sent, asked, answered = self.traffic.sent, self.judge.total(QUESTION), self.judge.total(ANSWER)
        return f"{sent} sent, {asked} arrived, {answered} answered"

    # -- the end

    def _idleDescriptors(self, role: str) -> int:
        """The descriptors that a role has beyond those for links and external ports."""
        state = self.stage.status(role)
        return self.programs[role].descriptors() - _linksOf(state) - int(state.get("externalPorts", 0))

    def _finish(self) -> None:
        refused = self.traffic.refused
        self.traffic.close()
        sent, asked, answered = self.traffic.sent, self.judge.total(QUESTION), self.judge.total(ANSWER)
        self.report.say(f"seed {self.seed}: {self.done.total()} faults")
        for kind, count in self.done.most_common():
            self.report.say(f"{count:6} {kind:20} slowest recovery {self.worst[kind]:.2f} s")
        self.report.say(f"{sent} sent, {asked} arrived, {answered} answered, {sent - answered} lost")
        self.report.say(
            f"{refused} of them were never taken; {self.judge.counts['late because held up']} were late "
            f"because something held them up, the oldest {self.judge.oldest:.1f} s"
        )
        lost = sum(each.lost - 1 for each in self.clients)
        most = SOCKS_CLIENTS * self.kills
        self.report.require(lost <= most, f"SOCKS5 clients have lost {lost} associations, at most {most}")
        self._judgeRest()
        self._judgeMemory()
        for program in self.programs.values():
            self.stage.checkLog(program)

    def _judgeRest(self) -> None:
        left = SOURCES_EACH
        end = time.monotonic() + max(self.grace, 0 if self.short else BRIEF_SECONDS) + 3
        while not (rests := self._rests(left)) and time.monotonic() < end:
            time.sleep(0.2)
        states = {role: self.stage.status(role) for role in self.programs}
        found = ", ".join(f"{role} {state['associations']} associations" for role, state in states.items())
        parked = states["udp-server"]["parkedCount"]
        self.report.require(rests, f"in the end {found}, {parked} parked sessions; {left} and none are right")
        for role in self.programs:
            more = self._idleDescriptors(role) - self.before[role]
            self.report.require(more <= MOST_LEFT, f"{role} has {more} descriptors more than before")

    def _rests(self, left: int) -> bool:
        states = [self.stage.status(role) for role in self.programs]
        return all(each["associations"] <= left for each in states) and not states[0]["parkedCount"]

    def _judgeMemory(self) -> None:
        for role in self.programs:
            lives = [_shifted(points) for (each, _), points in self.memory.items() if each == role]
            growth = max((_growth(points) for points in lives), default=0.0)
            self.report.require(growth <= MOST_GROWTH, f"{role} had at most {growth / 1e6:.1f} MB more than when young")
            grown = [[each for each in points if each[0] > GROWN_SECONDS] for points in lives]
            rise, seconds = commonSlope(grown), sum(map(len, grown))
            found = f"{role}'s memory in {len(lives)} lives, {seconds} s of them when grown up: {rise.perHour}"
            if seconds < JUDGED_SECONDS:
                self.report.say(f"not judged: {found}")
            else:
                self.report.require(rise.value - 2 * rise.error < MOST_SLOPE, found)


def _linksOf(state: dict[str, object]) -> int:
    """How many links a role says that it has."""
    links = state["links"]
    return len(links) if isinstance(links, list) else int(str(links))


def _shifted(points: Sequence[Point]) -> list[Point]:
    """The same, with times since the first."""
    return [(time - points[0][0], value) for time, value in points]


def _growth(points: Sequence[Point]) -> float:
    young = [value for age, value in points if age <= YOUNG_SECONDS]
    return max(value for _, value in points) - max(young)


def main(arguments: Arguments) -> int:
    """Run it, and return the exit status."""
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 31)
    report = Report(f"chaos: seed {seed}, {arguments.minutes:g} minutes", arguments.report)
    with Stage(report) as stage:
        Chaos(stage, arguments, seed).run()
    return report.close()
