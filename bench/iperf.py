"""
What iperf3 says in the end.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from bench.programs import BenchError

SPARE_SECONDS = 20
"""How much longer than its load iperf3 may take."""


def iperf(command: Sequence[str], seconds: float) -> Any:
    """
    Run an iperf3 client; what C{--json} is in its manual.

    @param command: with C{-J}.
    @param seconds: how long its load is.
    @raise BenchError: it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SPARE_SECONDS)
        report = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"iperf3: {error}") from None
    if "end" not in report or "error" in report:
        raise BenchError(f"iperf3: {report.get('error', done.stderr)}")
    return report
