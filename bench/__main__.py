"""
Runs the benchmarks: C{python -m bench}.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measures import KINDS, MEASURES, QUICK, Effort, Figures, Measure
from bench.peers import PEERS, Peer
from bench.programs import REPOSITORY, BenchError
from bench.report import machineFacts, resultsPage, resultsPicture, terminalTable
from bench.table import Results

PUBLISHED = Path("docs/benchmarks")
PARTIAL = Path("build/benchmarks")
"""Where results go, in the repository: those of a whole run, and those of any other."""

STOPPED = 130
"""The exit code of a run that was stopped, as shells have it for Ctrl-C."""

ROUNDS = 3
DESCRIPTORS = 16_384


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names, kinds = [peer.name for peer in PEERS], list(KINDS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures both ends of udptunnel and other programs in turn, and prints one table.",
        epilog="docs/benchmarks/README.md says what the measures are, and which environment variables name the peers.",
    )
    parser.add_argument("--quick", action="store_true", help="short loads, one round: shows that it works, no more")
    parser.add_argument("--only", type=someOf(names), default=names, metavar="PEER,...", help=", ".join(names))
    parser.add_argument("--measure", type=someOf(kinds), default=kinds, metavar="NAME,...", help=", ".join(kinds))
    parser.add_argument("--rounds", type=int, metavar="N", help=f"medians are over so many rounds [default: {ROUNDS}]")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where results.md and results.svg go [default: {PUBLISHED}, or {PARTIAL} with any other option]",
    )
    return parser.parse_args(words)


class someOf:  # noqa: N801 argparse shows the name in its messages
    """Reads some of these words, separated by commas."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def __call__(self, text: str) -> list[str]:
        chosen = text.split(",")
        for word in chosen:
            if word not in self._words:
                raise argparse.ArgumentTypeError(f"{word}: expected some of {','.join(self._words)}")
        return chosen


def run(peers: Sequence[Peer], measures: Sequence[Measure], rounds: int, effort: Effort) -> Results:
    """
    Measure everything, one peer after the other within a round, so that what changes on the machine meets all.

    @return: all figures, or those that were there when somebody had enough (C{KeyboardInterrupt}).
    """
    results = Results()
    present = [peer for peer in peers if _isHere(peer, results)]
    steps = [
        (turn, measure, peer)
        for turn in range(rounds)
        for measure in measures
        # Every other round runs backwards, so that nobody always follows the same one.
        for peer in (present if turn % 2 == 0 else reversed(present))
        if _applies(measure, peer, results)
    ]
    for place, (turn, measure, peer) in enumerate(steps, 1):
        head = f"[{place}/{len(steps)}] round {turn + 1}, {measure.title}, {peer.name}"
        begin = time.monotonic()
        try:
            said = _step(measure, peer, effort, results)
        except KeyboardInterrupt:
            results.stopped = f"stopped after {place - 1} of {len(steps)} steps"
            _progress(f"{head}: {results.stopped}")
            break
        _progress(f"{head}: {said} ({time.monotonic() - begin:.0f} s)")
    return results


def _isHere(peer: Peer, results: Results) -> bool:
    absence = peer.absence()
    if absence:
        results.remark(peer.name, f"absent: {absence}")
    return not absence


def _applies(measure: Measure, peer: Peer, results: Results) -> bool:
    obstacle = measure.obstacle(peer)
    if obstacle is not None:
        what, why = obstacle
        results.remark(peer.name, why, what)
    return obstacle is None


def _step(measure: Measure, peer: Peer, effort: Effort, results: Results) -> str:
    """Measure one thing once, and say what came of it."""
    before: Figures = {
        column.key: figure for column in measure.columns if (figure := results.median(peer.name, column.key))
    }
    try:
        figures = measure.measure(peer, effort, before)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        results.remark(peer.name, str(error), measure.title)
        return f"failed: {error}"
    for key, figure in figures.items():
        results.add(peer.name, key, figure)
    shown = [
        f"{column.title if len(figures) > 1 else ''} {column.text(figures[column.key])} {column.unit}".strip()
        for column in measure.columns
    ]
    return ", ".join(shown)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def outputFolder(options: argparse.Namespace, stopped: bool = False) -> Path:
    """Where results go. What is not a whole run does not replace results of one unless it is told to."""
    return folderOf(options, len(PEERS), len(KINDS), stopped)


def folderOf(options: argparse.Namespace, peers: int, kinds: int, stopped: bool) -> Path:
    """
    The same for any of the commands.

    @param peers: how many it knows; with fewer a run is not whole.
    @param kinds: how many kinds of measures it knows.
    """
    if options.output is not None:
        return Path(options.output)
    whole = not (stopped or options.quick) and len(options.only) == peers and len(options.measure) == kinds
    return REPOSITORY / (PUBLISHED if whole else PARTIAL)


def prepare() -> None:
    """Make the process fit: an end that keeps what was measured, and as many descriptors as there may be."""
    # So that programs and namespaces are taken away then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raiseDescriptorLimit()


def write(folder: Path, name: str, results: Results, page: str, picture: str) -> None:
    """
    Write a page and its picture.

    @raise SystemExit: that was not all, for somebody had enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page)
    (folder / f"{name}.svg").write_text(picture)
    print(f"written: {folder}/{name}.md, {folder}/{name}.svg")
    if results.stopped:
        sys.exit(STOPPED)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmarks, print the table, and write the page and the picture."""
    given = sys.argv[1:] if words is None else list(words)
    options = parse(given)
    prepare()
    peers = [peer for peer in PEERS if peer.name in options.only]
    measures = [measure for measure in MEASURES if measure.kind in options.measure]
    results = run(
        peers, measures, options.rounds or (1 if options.quick else ROUNDS), QUICK if options.quick else Effort()
    )
    print(terminalTable(results, measures, shutil.get_terminal_size((0, 0)).columns))
    folder, facts = outputFolder(options, bool(results.stopped)), machineFacts()
    how = " ".join(["python -m bench", *(given if options.output is None else withoutOutput(given))])
    page = resultsPage(results, measures, facts, how)
    write(folder, "results", results, page, resultsPicture(results, peers, facts))


def withoutOutput(words: Sequence[str]) -> list[str]:
    """The command line without where the results go: the page is no place for folders of this machine."""
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--output"):
            kept.append(word)
        skip = word == "--output"
    return kept


def raiseDescriptorLimit() -> None:
    """Sources, and the associations that the peers have for them, are descriptors; the peers inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    main()
