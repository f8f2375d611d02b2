"""Faults: what may happen to either role, and to the path between them."""

from __future__ import annotations

import itertools
import math
import random
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from tests.soak.holds import PATH, STOPPED, Hold
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import LINK
from tests.system.watch import links

_tables = itertools.count()

THERE, BACK = f"input tcp dport {LINK}", f"output tcp sport {LINK}"
"""The two ways of the path, as udp-server's namespace sees them."""


class Fault:
    """
    One thing that happens.

    @cvar kind: what it is called.
    @cvar resource: what no two faults may touch at the same time; empty if that does not matter.
    @cvar longest: its longest duration in seconds.
    @cvar holds: how it holds datagrams up, if it does.
    @ivar duration: how long it lasts.
    """

    kind: ClassVar[str]
    resource: ClassVar[str] = ""
    shortest: ClassVar[float] = 0.2
    longest: ClassVar[float] = 0.2
    holds: ClassVar[str] = ""

    def __init__(self, chance: random.Random, scale: float) -> None:
        """
        @param scale: what durations are multiplied by.
        """
        low, high = math.log(self.shortest), math.log(self.longest)
        self.duration = scale * math.exp(chance.uniform(low, high))
        self.choose(chance)

    def choose(self, chance: random.Random) -> None:
        """Draw what else is left to chance."""

    def __str__(self) -> str:
        return f"{self.kind} {self.duration:.1f} s{self.details}"

    details = ""
    """What L{choose} has drawn, for people."""

    def run(self, world: Any, over: threading.Event) -> None:
        """Let it happen, and go by. It goes by early if all is over."""
        hold: Hold | None = world.judge.holds.begin(self.holds, time.time()) if self.holds else None
        try:
            self.begin(world)
            over.wait(self.duration)
        finally:
            self.end(world)
            if hold is not None:
                hold.ended = time.time()

    def begin(self, world: Any) -> None:
        """It happens."""

    def end(self, world: Any) -> None:
        """It goes by."""


# -- processes


class Kill(Fault):
    """A role is killed, and started again."""

    longest = 1.0
    role: ClassVar[str]

    def begin(self, world: Any) -> None:
        world.judge.generation += 1
        world.retire(self.role, gently=False)

    def end(self, world: Any) -> None:
        world.launch(self.role)
        world.judge.generation += 1


class KillServer(Kill):
    """udp-server is killed."""

    kind, resource, role = "kill server", "server", "udp-server"


class KillLocal(Kill):
    """udp-local is killed; it may have another number of links then."""

    kind, resource, role = "kill local", "local", "udp-local"

    def choose(self, chance: random.Random) -> None:
        self._options = chance.choice(LOCAL_OPTIONS)
        self.details = f" {' '.join(self._options)}"

    def end(self, world: Any) -> None:
        world.options["udp-local"] = self._options
        super().end(world)


LOCAL_OPTIONS: Sequence[tuple[str, ...]] = (
    (),
    ("--links", "2"),
    ("--links", "3", "--schedule", "idle"),
    ("--links", "2", "--offload", "none"),
)

SERVER_OPTIONS: Sequence[tuple[str, ...]] = (
    (),
    ("--delay", "0"),
    ("--queue-age", "50"),
    ("--offload", "none"),
    ("--filtering", "address"),
    ("--filtering", "port", "--rest", "0"),
    ("--queue-bytes", "65536"),
)


class Reconfigure(Fault):
    """udp-server ends in peace, and comes back with another configuration."""

    kind, resource, longest = "reconfigure server", "server", 1.0

    def choose(self, chance: random.Random) -> None:
        self._options = chance.choice(SERVER_OPTIONS)
        self.details = f" {' '.join(self._options)}"

    def begin(self, world: Any) -> None:
        world.judge.generation += 1
        world.retire("udp-server", gently=True)

    def end(self, world: Any) -> None:
        world.options["udp-server"] = self._options
        world.launch("udp-server")
        world.judge.generation += 1


class Stop(Fault):
    """A role is stopped for a while."""

    longest = 5.0
    holds = STOPPED
    role: ClassVar[str]

    def begin(self, world: Any) -> None:
        world.programs[self.role].process.send_signal(signal.SIGSTOP)

    def end(self, world: Any) -> None:
        world.programs[self.role].process.send_signal(signal.SIGCONT)


class StopServer(Stop):
    """udp-server is stopped."""

    kind, resource, role = "stop server", "server", "udp-server"


class StopLocal(Stop):
    """udp-local is stopped."""

    kind, resource, role = "stop local", "local", "udp-local"


class Stall(Fault):
    """A target does not read for a while."""

    kind, resource, longest = "stall target", "target", 3.0

    def choose(self, chance: random.Random) -> None:
        self._place = chance.randrange(1 << 16)

    def begin(self, world: Any) -> None:
        self._place %= len(world.targets)
        world.traffic.stall(self._place)

    def end(self, world: Any) -> None:
        world.traffic.resume(self._place)


# -- the path


class Reset(Fault):
    """One link or all of them are reset."""

    kind = "reset"

    def choose(self, chance: random.Random) -> None:
        self._all = chance.random() < 0.5
        self._place = chance.randrange(1 << 16)
        self.details = " all" if self._all else " one"

    def begin(self, world: Any) -> None:
        ports = sorted(int(here.rpartition(":")[2], 16) for here, _ in links(world.network.client))
        chosen = ports if self._all or not ports else [ports[self._place % len(ports)]]
        for port in chosen:
            words = "ss", "-K", "-tn", "sport", "=", f":{port}", "dport", "=", f":{LINK}"
            run(*world.network.client.command(*words))


class Filter(Fault):
    """Rules of C{nft} before udp-server for a while; each fault has a table of its own."""

    holds = PATH
    verdict = "drop"

    def begin(self, world: Any) -> None:
        self._table = f"soak{next(_tables)}"
        lines = [f"table inet {self._table} {{"]
        for number, way in enumerate(self._ways):
            hook, _, match = way.partition(" ")
            lines += [f"chain c{number} {{ type filter hook {hook} priority 0;", f"{match} {self.verdict}", "}"]
        run(*world.network.server.command("nft", "-f", "-"), text="\n".join([*lines, "}"]) + "\n")

    def end(self, world: Any) -> None:
        run(*world.network.server.command("nft", "delete", "table", "inet", self._table))

    def choose(self, chance: random.Random) -> None:
        self._ways = chance.choice(((THERE, BACK), (THERE,), (BACK,)))
        self.details = f" {'both ways' if len(self._ways) == 2 else 'there' if self._ways == (THERE,) else 'back'}"


class BlackHole(Filter):
    """Nothing gets through, in both directions or in one."""

    kind, longest = "black hole", 8.0


class Loss(Filter):
    """Some of the packets are lost."""

    kind, shortest, longest = "loss", 0.5, 5.0

    def choose(self, chance: random.Random) -> None:
        super().choose(chance)
        percent = chance.randint(5, 30)
        self.verdict = f"numgen random mod 100 < {percent} drop"
        self.details += f" {percent} %"


class Rate(Fault):
    """One way of the path is slow."""

    kind, resource, shortest, longest, holds = "rate limit", "rate", 0.5, 5.0, PATH

    def choose(self, chance: random.Random) -> None:
        self._kilobits = int(math.exp(chance.uniform(math.log(8), math.log(10_000))))
        self._there = chance.random() < 0.5
        self.details = f" {self._kilobits} kbit/s {'there' if self._there else 'back'}"

    def _device(self, world: Any) -> tuple[Namespace, str]:
        return (world.network.client, "up0") if self._there else (world.network.server, "down0")

    def begin(self, world: Any) -> None:
        namespace, device = self._device(world)
        shape = "tbf", "rate", f"{self._kilobits}kbit", "burst", "3200", "limit", "30000"
        run(*namespace.command("tc", "qdisc", "add", "dev", device, "root", *shape))

    def end(self, world: Any) -> None:
        namespace, device = self._device(world)
        run(*namespace.command("tc", "qdisc", "del", "dev", device, "root"))


class Flap(Fault):
    """The near machine has no address for a while."""

    kind, resource, longest, holds = "address flap", "address", 3.0, PATH
    address = f"{Network.atClient[0]}/24"

    def begin(self, world: Any) -> None:
        world.network.client.ip("address", "del", self.address, "dev", "up0")

    def end(self, world: Any) -> None:
        world.network.client.addAddress(self.address, "up0")


WEIGHTS: dict[type[Fault], int] = {
    Reset: 22,
    BlackHole: 18,
    Loss: 12,
    Rate: 10,
    StopServer: 8,
    StopLocal: 8,
    Flap: 6,
    Stall: 5,
    KillServer: 5,
    KillLocal: 5,
    Reconfigure: 3,
}
"""How often each kind comes, of all together."""


def plan(seed: int, count: int, scale: float, only: Sequence[str] = ()) -> list[Fault]:
    """
    Some faults, always the same ones for the same seed.

    @param only: no other kinds than these.
    @raise ValueError: there is no such kind.
    """
    if unknown := set(only) - {each.kind for each in WEIGHTS}:
        raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
    weights = {kind: weight for kind, weight in WEIGHTS.items() if not only or kind.kind in only}
    chance = random.Random(seed)
    kinds = chance.choices(list(weights), list(weights.values()), k=count)
    return [kind(chance, scale) for kind in kinds]
