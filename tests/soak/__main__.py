"""
The command line.

    python -m tests.soak sessions --count 1000 --minutes 10
    python -m tests.soak associations
    python -m tests.soak churn --minutes 30
    python -m tests.soak chaos --minutes 30 --seed 1

All of them need root. Whatever they start ends with them, after Ctrl-C too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tests.soak import associations, chaos, churn, sessions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for add in (_addChaos, _addChurn, _addSessions, _addAssociations):
        add(kinds)
    return parser


def _add(kinds: Any, module: Any, heartbeat: float) -> argparse.ArgumentParser:
    name = module.__name__.rpartition(".")[2]
    added: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=module.__doc__.strip().partition("\n")[0],
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(main=module.main)
    added.add_argument("--report", metavar="FILE", help="write everything that is said into a file, too")
    added.add_argument("--heartbeat", metavar="S", type=float, default=heartbeat, help="of both ends (%(default)g)")
    return added


def _addChaos(kinds: Any) -> None:
    parser = _add(kinds, chaos, 1.0)
    parser.add_argument("--minutes", metavar="M", type=float, default=30.0, help="how long (%(default)g)")
    parser.add_argument("--seed", metavar="N", type=int, help="which faults; without it, others each time")
    parser.add_argument("--faults", metavar="N", type=int, help="how many faults (1,000 in 30 minutes)")
    parser.add_argument("--tls", action="store_true", help="links are TLS with certificates")
    parser.add_argument("--only", metavar="KIND,...", help="no other kinds of faults than these")


def _addChurn(kinds: Any) -> None:
    parser = _add(kinds, churn, 5.0)
    parser.add_argument("--minutes", metavar="M", type=float, default=30.0, help="how long (%(default)g)")


def _addSessions(kinds: Any) -> None:
    parser = _add(kinds, sessions, 5.0)
    parser.add_argument("--minutes", metavar="M", type=float, default=10.0, help="how long they are held (%(default)g)")
    parser.add_argument("--count", metavar="N", type=int, default=1000, help="how many (%(default)d)")
    parser.add_argument("--down", metavar="S", type=float, default=1.0, help="how long it is away then (%(default)g)")


def _addAssociations(kinds: Any) -> None:
    parser = _add(kinds, associations, 5.0)
    parser.add_argument("--sessions", metavar="N", type=int, default=50, help="how many (%(default)d)")
    parser.add_argument("--count", metavar="N", type=int, default=10_000, help="associations at once (%(default)d)")
    parser.add_argument("--total", metavar="N", type=int, default=100_000, help="opened and closed then (%(default)d)")


def main(words: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    arguments = _parser().parse_args(words)
    if os.geteuid():
        print("network namespaces need root", file=sys.stderr)
        return 2
    # A plain end would leave programs and namespaces behind; an exception cleans up.
    # SIGINT too: whoever is started in the background of a script has inherited that it is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return int(arguments.main(arguments))
    except KeyboardInterrupt:
        print("interrupted; everything is cleaned up", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
