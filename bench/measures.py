"""
The measures: each puts a peer under one load, and comes back with its figures.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.load import Echo, Load, Outcome, Sender, Sink, Source, arrives, comesBack, percentile, roundTrips
from bench.peers import Iperf, IperfTcp, Peer, Tunnel
from bench.places import LOOPBACK, Link, Place, wideArea
from bench.programs import BenchError, cpuSeconds, memoryBytes
from bench.search import LEAST_RATE, findMost
from bench.table import Column, Figure, percent, short

SIZES = (64, 512, 1400)
CPU_RATE = 80_000
CPU_SIZE = 1400
TRIP_RATE, TRIP_SIZE = 1000, 64

LINK = Link(delay=25, rate=10, queue=1000)
BULK_SIZE, BULK_BITS = 1200, 20e6
SIDE_SIZE, SIDE_RATE = 200, 50

FIRST_RATE = 20_000
"""Where the search for the highest rate begins."""

AGAIN = 0.7
"""In later rounds it begins at this part of what was found before."""

LAST_ANSWERS_SECONDS = 2.5
"""Longer than what may wait in the link's queue, and in a peer."""

SETTLING_SECONDS = 0.3


@dataclass(frozen=True)
class Effort:
    """
    How much time the measures may take.

    @ivar searchSeconds: for each rate that is tried.
    @ivar closeness: how close the search for the highest rate comes, as a part of it.
    @ivar tries: how often a rate is tried before it counts as too high.
    @ivar sources: whose associations are weighed.
    """

    searchSeconds: float = 1.5
    closeness: float = 0.05
    tries: int = 2
    tripSeconds: float = 10.0
    cpuSeconds: float = 5.0
    sources: int = 1000
    overloadSeconds: float = 20.0
    streamSeconds: float = 5.0


QUICK = Effort(0.4, 0.2, 1, 1.0, 1.0, 200, 4.0, 1.0)

Figures = dict[str, Figure]


@dataclass(frozen=True)
class Measure:
    """
    One load, and the figures that it gives.

    @ivar kind: what C{--measure} calls it, together with others of its kind.
    @ivar title: what is shown while it runs.
    @ivar measure: given a peer, the effort, and the median of the rounds before for each of its columns.
    @ivar gso: whether the sender uses GSO.
    """

    kind: str
    title: str
    columns: tuple[Column, ...]
    measure: Callable[[Peer, Effort, Figures], Figures]
    gso: bool = False

    def obstacle(self, peer: Peer) -> tuple[str, str] | None:
        """What there is not for a peer, and why."""
        what = f"no {KINDS[self.kind]}"
        if self.kind in peer.cannot:
            return what, peer.cannot[self.kind]
        if self.gso and "gso" in peer.cannot:
            return f"{what} with GSO", peer.cannot["gso"]
        missing = _wideAreaObstacle() if self.kind == "overload" else ""
        return (what, missing) if missing else None


KINDS = {
    "throughput": "highest rate",
    "trips": "round trips",
    "cpu": "CPU time",
    "memory": "memory",
    "overload": "overload",
}
"""What C{--measure} takes, and what each is."""


def _wideAreaObstacle() -> str:
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not there"
    return "" if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


@contextmanager
def toSink(peer: Peer) -> Iterator[tuple[Tunnel, Source, Sink]]:
    """A peer, a source before it, and a sink behind it."""
    with closing(Sink(LOOPBACK.far)) as sink, peer.run(LOOPBACK, [sink.address]) as tunnel:
        with closing(tunnel.ways[0].open()) as source:
            if not arrives(source, sink):
                tunnel.checkAlive()
                raise BenchError("nothing gets through")
            yield tunnel, source, sink
            tunnel.checkAlive()


@contextmanager
def _toEcho(peer: Peer) -> Iterator[tuple[Tunnel, Source]]:
    """A peer, a source before it, and an echo behind it."""
    with closing(peer.openEcho(LOOPBACK.far)) as echo, peer.run(LOOPBACK, [echo.address]) as tunnel:
        with closing(tunnel.ways[0].open()) as source:
            _checkComesBack(tunnel, source)
            yield tunnel, source
            tunnel.checkAlive()


def _checkComesBack(tunnel: Tunnel, source: Source, tick: float = 0.2) -> None:
    if not comesBack(source, tick=tick):
        tunnel.checkAlive()
        raise BenchError("nothing comes back")


# -- throughput


@contextmanager
def _offering(peer: Peer) -> Iterator[Callable[[Load], Outcome]]:
    if isinstance(peer, Iperf):
        with peer.run(LOOPBACK, []):
            yield peer.offer
        return
    with toSink(peer) as (_, source, sink):
        yield lambda load: sink.offer(source, load, light=True)


def _throughput(size: int, gso: bool) -> Measure:
    key = f"throughput-{size}" + ("-gso" if gso else "")

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        first = max(LEAST_RATE, before[key].value * AGAIN) if key in before else FIRST_RATE
        with _offering(peer) as offer:
            if isinstance(peer, IperfTcp):
                # TCP finds the highest rate by itself.
                return {key: Figure(offer(Load(size, first, effort.searchSeconds, gso)).rate)}
            most = findMost(
                lambda rate: offer(Load(size, rate, effort.searchSeconds, gso)), first, effort.closeness, effort.tries
            )
        return {key: Figure(most.outcome.rate, most.bySender) if most is not None else Figure(0.0)}

    def show(rate: float) -> str:
        return f"{short(rate)} {short(rate * size * 8)}"

    title = f"{size} B" + (", GSO" if gso else "")
    column = Column(key, "highest rate, < 1 % lost", title, "1/s bit/s", show)
    return Measure("throughput", f"highest rate, {title}", (column,), measure, gso)


# -- round trips


def milliseconds(seconds: float) -> str:
    """A time."""
    return short(seconds * 1e3)


def _trips() -> Measure:
    parts = {"p50": 0.5, "p99": 0.99, "max": 1.0}

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        with _toEcho(peer) as (_, source):
            outcome = roundTrips(source, Load(TRIP_SIZE, TRIP_RATE, effort.tripSeconds))
        return {f"trips-{name}": Figure(percentile(outcome.trips, part)) for name, part in parts.items()}

    columns = [Column(f"trips-{name}", "round trip, 1,000/s", name, "ms", milliseconds) for name in parts]
    return Measure("trips", "round trips", tuple(columns), measure)


TRIPS = _trips()
"""Also measured elsewhere."""


# -- CPU


def _cpu(gso: bool) -> Measure:
    key = "cpu" + ("-gso" if gso else "")
    title = f"{CPU_SIZE} B" + (", GSO" if gso else "")

    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        with toSink(peer) as (tunnel, source, sink):
            used = cpuSeconds(tunnel.pids)
            outcome = sink.offer(source, Load(CPU_SIZE, CPU_RATE, effort.cpuSeconds, gso))
            used = cpuSeconds(tunnel.pids) - used
        if not outcome.delivered:
            raise BenchError("nothing gets through")
        return {key: Figure(used / outcome.delivered * 1e6), f"{key}-lost": Figure(outcome.lost)}

    group = "CPU per 1,000,000, at 80,000/s"
    columns = Column(key, group, title, "s"), Column(f"{key}-lost", group, "lost", "", percent)
    return Measure("cpu", f"CPU time, {title}", columns, measure, gso)


# -- memory


def _memory() -> Measure:
    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        with _toEcho(peer) as (tunnel, _), ExitStack() as undo:
            time.sleep(SETTLING_SECONDS)
            grown = -memoryBytes(tunnel.pids)
            for _ in range(effort.sources):
                _checkComesBack(tunnel, undo.enter_context(closing(tunnel.ways[0].open())))
            time.sleep(SETTLING_SECONDS)
            grown += memoryBytes(tunnel.pids)
        return {"memory": Figure(grown / effort.sources * 1000 / (1 << 20))}

    column = Column("memory", "memory", "per 1,000 associations", "MiB")
    return Measure("memory", "memory", (column,), measure)


# -- overload


def _overload() -> Measure:
    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        with TemporaryDirectory(prefix="bench-") as folder, wideArea(LINK, f"{folder}/link.log") as place:
            bulk, side = _overloaded(peer, place, effort.overloadSeconds)
        return {
            "overload-bulk": Figure(bulk.rate * BULK_SIZE * 8),
            "overload-lost": Figure(side.lost),
            "overload-p50": Figure(percentile(side.trips, 0.5)),
            "overload-p99": Figure(percentile(side.trips, 0.99)),
        }

    group = "overload of 10 Mbit/s, 25 ms"
    columns = (
        Column("overload-bulk", group, "bulk", "bit/s"),
        Column("overload-lost", group, "50/s: lost", "", percent),
        Column("overload-p50", group, "p50", "ms", milliseconds),
        Column("overload-p99", group, "p99", "ms", milliseconds),
    )
    return Measure("overload", "overload", columns, measure)


def _overloaded(peer: Peer, place: Place, seconds: float) -> tuple[Outcome, Outcome]:
    """Offer more than the link carries, and see what becomes of it, and of a small flow beside it."""
    with ExitStack() as undo:
        sink = undo.enter_context(closing(Sink(place.far)))
        echo = undo.enter_context(closing(Echo(place.far)))
        tunnel = undo.enter_context(peer.run(place, [sink.address, echo.address]))
        bulk, side = (undo.enter_context(closing(way.open())) for way in tunnel.ways)
        _checkComesBack(tunnel, side, 1.0)
        if not arrives(bulk, sink):
            raise BenchError("nothing gets through")
        load = Load(BULK_SIZE, BULK_BITS / 8 / BULK_SIZE, seconds)
        counting = undo.enter_context(sink.counting(BULK_SIZE, silence=LAST_ANSWERS_SECONDS))
        with ThreadPoolExecutor(1) as beside:
            flood = beside.submit(Sender(bulk, load, counting.run).send)
            trips = roundTrips(side, Load(SIDE_SIZE, SIDE_RATE, seconds), LAST_ANSWERS_SECONDS)
        outcome = counting.finish(*flood.result())
        tunnel.checkAlive()
        return outcome, trips


MEASURES: tuple[Measure, ...] = (
    *(_throughput(size, gso) for gso in (False, True) for size in SIZES),
    TRIPS,
    _cpu(False),
    _cpu(True),
    _memory(),
    _overload(),
)
"""All measures, in the order of the table."""
