"""The corpus: files that each target begins with. Interesting inputs, and those that once were findings, are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def seeds(name: str) -> Iterator[tuple[str, bytes]]:
    """The files of a target, with their names."""
    for path in sorted((CORPUS / name).iterdir()):
        yield path.name, path.read_bytes()
