"""
Measures compositions of ours with shadowsocks and simple-obfs, and what ours adds to them: C{python -m bench.chain}.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from bench.__main__ import prepare, run, withoutOutput
from bench.chainpeers import CARRIERS, CHAIN_PEERS, PAIRS, Base, OursThrough
from bench.command import Command
from bench.load import Load, Sender
from bench.measures import TRIPS, Effort, Figures, Measure, milliseconds, toSink
from bench.peers import Peer, Tunnel
from bench.picture import Mark, Panel, picture
from bench.places import LOOPBACK
from bench.programs import BenchError, commandName, family
from bench.report import machineFacts, madeBy
from bench.table import Column, Figure, Results, markdown, percent, remarkLines, rows, short, terminalHeads, text

NAME = "chain"
"""Results are NAME.md and NAME.svg."""

ROUNDS, SECONDS = 5, 5.0
QUICK_SECONDS = 1.0

SIZE = 1400
ANY_RATE = 1.0

TITLES = [(peer.name, peer.title) for peer in CHAIN_PEERS]

MOST_TRIP, MOST_SHARE = 1e-3, 0.15
"""What ours may add to the carrier's median round trip, in seconds, and take from its throughput."""


# -- throughput


class ApartMeasure(Measure):
    """A measure of what has a carrier."""

    def obstacle(self, peer: Peer) -> tuple[str, str] | None:
        """Why the carrier can not have a core of its own."""
        if not set(CARRIERS) & set(peer.needs):
            return f"no {self.title}", "there is no carrier"
        return (f"no {self.title}", "there is one core only") if len(os.sched_getaffinity(0)) < 2 else None


@contextmanager
def _apart(tunnel: Tunnel) -> Iterator[None]:
    """Give the carrier a core of its own, and everything else of this benchmark the others."""
    before = os.sched_getaffinity(0)
    first = {min(before)}
    for pid in family(tunnel.pids):
        os.sched_setaffinity(pid, first if commandName(pid) in CARRIERS else before - first)
    os.sched_setaffinity(0, before - first)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _together(tunnel: Tunnel) -> AbstractContextManager[None]:
    """Let all programs share all cores."""
    return nullcontext()


Cores = Callable[[Tunnel], AbstractContextManager[None]]


def _offer(peer: Peer, load: Load, cores: Cores) -> tuple[float, float]:
    """Datagrams per second that arrive, and the share that is lost."""
    if isinstance(peer, Base):
        with peer.run(LOOPBACK, []) as tunnel, cores(tunnel):
            return peer.offer(load).rate, 0.0
    with toSink(peer) as (tunnel, source, sink), cores(tunnel), sink.counting(SIZE, light=True) as counting:
        sent = Sender(source, load, counting.run).sendWindowed(lambda: counting.delivered)
        outcome = counting.finish(*sent)
        return outcome.rate, outcome.lost


def _throughput(kind: str, title: str, cores: Cores, make: type[Measure]) -> Measure:
    def measure(peer: Peer, effort: Effort, before: Figures) -> Figures:
        rate, lost = _offer(peer, Load(SIZE, ANY_RATE, effort.streamSeconds, gso=True), cores)
        if not rate:
            raise BenchError("nothing gets through")
        return {kind: Figure(rate * SIZE * 8), f"{kind}-lost": Figure(lost)}

    columns = Column(kind, title, f"{SIZE} B", "bit/s"), Column(f"{kind}-lost", title, "lost", "", percent)
    return make(kind, title, columns, measure)


CHAIN_MEASURES = (
    _throughput("throughput", "throughput", _together, Measure),
    _throughput("apart", "throughput, carrier apart", _apart, ApartMeasure),
    TRIPS,
)
"""All measures, in the order of the table."""

COLUMNS = [column for measure in CHAIN_MEASURES for column in measure.columns]


# -- what ours adds


SHARE_COLUMNS = [
    Column("with-trips-p50", "round trip, p50", "with ours", "ms", milliseconds),
    Column("without-trips-p50", "round trip, p50", "without", "ms", milliseconds),
    Column("own-trips-p50", "round trip, p50", "ours adds", "ms", milliseconds),
    *(
        Column(f"{key}-{kind}", title, what, unit, show)
        for kind, title in (("apart", "throughput, carrier apart"), ("throughput", "throughput"))
        for key, what, unit, show in (
            ("with", "with ours", "bit/s", short),
            ("without", "without", "bit/s", short),
            ("own", "ours takes", "", percent),
        )
    ),
]
"""The table of what ours adds."""


def shares(results: Results) -> Results:
    """What ours adds to each carrier: from the medians of both, where there are both."""
    own = Results()
    for pair in PAIRS:
        for key in ("trips-p50", "apart", "throughput"):
            mine, base = results.median(pair.ours, key), results.median(pair.base, key)
            if mine is None or base is None:
                continue
            added = mine.value - base.value if key == "trips-p50" else 1 - mine.value / base.value
            for what, figure in (("with", mine), ("without", base), ("own", Figure(added))):
                own.add(pair.ours, f"{what}-{key}", figure)
    return own


# -- what is shown


TEXT = """
Each row is both ends on one machine, with a carrier between them. "ss" is a pair of shadowsocks-libev's programs
(`ss-tunnel` or `ss-local`, and `ss-server`; aes-256-gcm, `--no-delay` at both ends), "http" and "tls" are simple-obfs
as its plugin at both ends. Rows with "TCP" are the same carriers without us: iperf3 through them, and round trips over
one TCP connection with `TCP_NODELAY` at both ends. "shadowsocks' own UDP" is `ss-tunnel -U` and `ss-server -U`, which
needs a network that lets UDP through.
""".strip()

SHARE_TEXT = f"""
What ours adds to each carrier: the median round trip at 1,000/s with ours less that without, wanted at most
{MOST_TRIP * 1e3:g} ms; and how much less than iperf3's TCP our payload gets through, wanted at most
{MOST_SHARE * 100:g} %. In one comparison all programs share all cores, the load generator too; where cores are few that
counts what each program costs. In the other the carrier stands *apart*: its programs have one core for themselves, and
everything else has the others.
""".strip()


def page(results: Results, facts: Sequence[tuple[str, str]], how: str) -> str:
    """The page with the results."""
    own = shares(results)
    lines = [
        "# Results: through shadowsocks and simple-obfs",
        "",
        madeBy(how, results, "#through-shadowsocks-and-simple-obfs"),
        "",
        *(f"* {name}: {fact}" for name, fact in facts),
        "",
        f"![The same figures as a picture]({NAME}.svg)",
        "",
        TEXT,
        "",
        markdown(COLUMNS, rows(results, TITLES, COLUMNS)),
        SHARE_TEXT,
        "",
        markdown(SHARE_COLUMNS, rows(own, TITLES, SHARE_COLUMNS)),
        *(f"* {line}" for line in remarkLines(results, TITLES)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def terminal(results: Results) -> str:
    """The same for a terminal, a table for each group of columns."""

    def make(of: Results, columns: list[Column], prefix: str) -> list[str]:
        groups = dict.fromkeys(column.group for column in columns)
        each = [(group, [column for column in columns if column.group == group]) for group in groups]
        return [f"{prefix}{group}\n{text(terminalHeads(part), rows(of, TITLES, part))}" for group, part in each]

    own = make(shares(results), SHARE_COLUMNS, "what ours adds: ")
    return "\n".join([*make(results, COLUMNS, ""), *own, *remarkLines(results, TITLES)])


def chainPicture(results: Results, facts: Sequence[tuple[str, str]]) -> str:
    """The picture."""

    def mark(key: str, label: str = "", hollow: bool = False, factor: float = 1.0) -> Mark:
        values = {name: each.value * factor for name, _ in TITLES if (each := results.median(name, key))}
        return Mark(label, values, hollow)

    throughput = mark("throughput", "together", True), mark("apart", "carrier apart")
    trips = mark("trips-p50", "p50", True, 1e3), mark("trips-p99", "p99", False, 1e3)
    panels = [
        Panel("Throughput", "bit/s of payload, more is better", throughput, short),
        Panel("Round trip at 1,000/s", "ms, less is better", trips, short),
    ]
    ours = frozenset(peer.name for peer in CHAIN_PEERS if isinstance(peer, OursThrough))
    return picture(panels, TITLES, ours, "; ".join(fact for _, fact in facts))


# -- the command


COMMAND = Command(NAME, CHAIN_PEERS, CHAIN_MEASURES, ROUNDS)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = COMMAND.parser(__doc__, "loads")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"how long each load is [default: {SECONDS:g}]")
    return parser.parse_args(words)


def effort(options: argparse.Namespace) -> Effort:
    """How long each load is."""
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    return Effort(tripSeconds=seconds, streamSeconds=seconds)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmarks, print the tables, and write the page and the picture."""
    given = sys.argv[1:] if words is None else list(words)
    options = parse(given)
    prepare()
    results = run(*COMMAND.chosen(options), effort(options))
    print(terminal(results))
    facts = machineFacts()
    how = " ".join(["python -m bench.chain", *withoutOutput(given)])
    COMMAND.write(options, results, page(results, facts, how), chainPicture(results, facts))


if __name__ == "__main__":
    main()
