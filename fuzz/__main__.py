"""
Runs the targets under atheris: C{python -m fuzz TARGET}.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from fuzz.corpus import CORPUS

NAMES = sorted(path.name for path in CORPUS.iterdir())
"""A corpus for each target. The targets themselves are imported where atheris watches it."""

FINDINGS = Path("build/fuzz")
"""Where findings and new inputs go, below the working directory."""

SECONDS = 600
LARGEST_INPUT = 4096
"""Longer inputs find no more, but slower."""

PROGRESS_SECONDS = 10.0
LONGEST_LINE = 300


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Feeds parsers with inputs that atheris makes, guided by the code that they reach.",
        epilog="A finding is written as a file, and the exit status is 1. The file can be given in place of --seconds.",
    )
    parser.add_argument("target", nargs="?", choices=[*NAMES, "all"], metavar="TARGET", help="a target, or all")
    parser.add_argument("file", nargs="*", type=Path, metavar="FILE", help="feed these files once, without atheris")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, metavar="N", help=f"how long, for each target [default: {SECONDS}]"
    )
    parser.add_argument("--findings", type=Path, default=FINDINGS, metavar="DIR", help=f"[default: {FINDINGS}]")
    # What a target is run with in a process of its own.
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not (options.list or options.target):
        parser.error("say a TARGET, all, or --list")
    return options


def targetOf(name: str) -> Callable[[bytes], None]:
    """The function behind a name."""
    from fuzz.targets import TARGETS

    return TARGETS[name]


def describe() -> None:
    """Print each target with what it checks."""
    for name in NAMES:
        print(f"{name:20}{' '.join((targetOf(name).__doc__ or '').split())}")


def repeat(name: str, files: Sequence[Path]) -> None:
    """Feed some files to a target; what it finds is raised."""
    for file in files:
        targetOf(name)(file.read_bytes())
        print(f"{name}: {file} is well")


def runOutside(names: Sequence[str], seconds: int, findings: Path) -> int:
    """Run some targets, each in a process of its own, for atheris never returns; the exit status."""
    if find_spec("atheris") is None:
        print("atheris is not installed: pip install '.[fuzz]'", file=sys.stderr)
        return 2
    failed = [name for name in names if not _runOne(name, seconds, findings)]
    print(f"{len(names)} targets, findings in {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _runOne(name: str, seconds: int, findings: Path) -> bool:
    """Run one target, and show each line of progress; whether nothing was found."""
    words = [sys.executable, "-m", "fuzz", name, "--inside", f"--seconds={seconds}", f"--findings={findings}"]
    print(f"{name}: {seconds} seconds", flush=True)
    speaker = _Speaker()
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if speaker.saysNow(line):
                print(f"{name}: {line.rstrip()[:LONGEST_LINE]}", flush=True)
    return process.returncode == 0


class _Speaker:
    """Chooses what is shown of all that atheris says: progress now and then, and everything of a finding."""

    def __init__(self) -> None:
        self._nextAt = 0.0

    def saysNow(self, line: str) -> bool:
        """Whether to show a line."""
        if not line.startswith("#"):
            return not line.startswith(("INFO:", "WARNING:", "Done", '"')) and bool(line.strip())
        if "DONE" not in line and time.monotonic() < self._nextAt:
            return False
        self._nextAt = time.monotonic() + PROGRESS_SECONDS
        return not line.startswith("##")


def runInside(name: str, seconds: int, findings: Path) -> None:
    """Run one target here; this never returns."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["udptunnel", "fuzz"]):
        target = targetOf(name)
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as fresh:
        words = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={LARGEST_INPUT}",
            "-timeout=10",
            "-rss_limit_mb=1024",
            f"-artifact_prefix={findings}/{name}-",
            fresh,
            str(CORPUS / name),
        ]
        atheris.Setup(words, target)
        atheris.Fuzz()


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    options = parse(words)
    if options.list:
        describe()
    elif options.file:
        repeat(options.target, options.file)
    elif options.inside:
        runInside(options.target, options.seconds, options.findings)
    else:
        names = NAMES if options.target == "all" else [options.target]
        return runOutside(names, options.seconds, options.findings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
