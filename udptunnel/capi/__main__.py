"""C{python -m udptunnel.capi build}: builds the C library for this Python."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from udptunnel.capi.build import BuildError, build


def main(words: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    What goes wrong ends it with one text and exit status 1.
    """
    parser = argparse.ArgumentParser(prog="python -m udptunnel.capi", description="Builds the C library.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build libudptunnel for this Python")
    building.add_argument(
        "--prefix",
        type=Path,
        default=Path("build/capi"),
        help="the folder that gets lib/, lib/pkgconfig/ and include/ [default: %(default)s]",
    )
    given = parser.parse_args(words)
    try:
        print(build(given.prefix.absolute()))
    except BuildError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
