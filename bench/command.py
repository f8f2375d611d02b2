"""What the commands C{python -m bench.chain}, C{bench.l3} and C{bench.tun} do alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.__main__ import folderOf, someOf, write
from bench.measures import Measure
from bench.peers import Peer
from bench.table import Results


class Command:
    """One of them, by what it can measure."""

    def __init__(self, name: str, peers: Sequence[Peer], measures: Sequence[Measure], rounds: int) -> None:
        """
        @param name: what it is called, and its page and picture.
        @param rounds: how many there are unless somebody says so.
        """
        self.name = name
        self._peers, self._measures, self._rounds = peers, measures, rounds

    def parser(self, description: str | None, loads: str) -> argparse.ArgumentParser:
        """
        The command line.

        @param loads: what a measurement is made of.
        """
        names = [peer.name for peer in self._peers]
        kinds = list(dict.fromkeys(measure.kind for measure in self._measures))
        parser = argparse.ArgumentParser(prog=f"python -m bench.{self.name}", description=description)
        add = parser.add_argument
        add("--quick", action="store_true", help=f"short {loads}, one round: shows that it works, no more")
        add("--only", type=someOf(names), default=names, metavar="PEER,...", help=", ".join(names))
        add("--measure", type=someOf(kinds), default=kinds, metavar="NAME,...", help=", ".join(kinds))
        add("--rounds", type=int, metavar="N", help=f"medians are over so many rounds [default: {self._rounds}]")
        add("--output", type=Path, metavar="DIR", help="where the page and the picture go")
        return parser

    def chosen(self, options: argparse.Namespace) -> tuple[list[Peer], list[Measure], int]:
        """Who is measured, what is, and how often."""
        peers = [peer for peer in self._peers if peer.name in options.only]
        measures = [measure for measure in self._measures if measure.kind in options.measure]
        return peers, measures, options.rounds or (1 if options.quick else self._rounds)

    def folder(self, options: argparse.Namespace, results: Results) -> Path:
        """Where the page and the picture go: only what is whole goes where it is published, unless somebody says so."""
        kinds = {measure.kind for measure in self._measures}
        return folderOf(options, len(self._peers), len(kinds), bool(results.stopped))

    def write(self, options: argparse.Namespace, results: Results, page: str, picture: str) -> None:
        """
        Write the page and the picture.

        @raise SystemExit: that was not all, for somebody had enough.
        """
        write(self.folder(options, results), self.name, results, page, picture)
