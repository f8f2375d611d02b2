"""The program L{tests.soak.holder}, as those who have started it see it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.soak.holder import NO_PORT, NONE
from tests.soak.stage import Stage
from tests.system.namespaces import Namespace
from tests.system.programs import Program

LOOK_SECONDS = 0.1


class Clients:
    """
    Many udp-locals.

    @ivar program: the process that they are in.
    @ivar attempts: when they tried to connect.
    @ivar state: what was told last.
    """

    def __init__(
        self, stage: Stage, namespace: Namespace, heartbeat: float, bundles: str = NONE, firstPort: int = NO_PORT
    ) -> None:
        words = sys.executable, "-m", "tests.soak.holder", f"{heartbeat:g}", bundles, str(firstPort)
        self.program: Program = stage.start(namespace, "clients", *words, stdin=subprocess.PIPE)
        self.attempts: list[float] = []
        self.state: dict[str, Any] = {"began": 0, "up": 0, "mappings": 0}
        self._read = 0

    def begin(self, count: int) -> None:
        """Have some more of them begin."""
        self.program.write(f"{count}\n")

    def look(self) -> dict[str, Any]:
        """Read what was told since last time."""
        with open(self.program.log, "rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + (1 if whole else 0)
        for line in whole.splitlines():
            self._lineRead(line)
        return self.state

    def _lineRead(self, line: bytes) -> None:
        if not line.startswith(b"{"):
            raise AssertionError(f"the clients say {line.decode(errors='replace')}")
        self.state = json.loads(line)
        self.attempts += self.state["attempts"]

    def wait(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> float | None:
        """Wait until a condition holds for the state; how long that took, or C{None} if it did not come to that."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            if condition(self.look()):
                return time.monotonic() - began
            time.sleep(LOOK_SECONDS)
        return None

    def allUp(self, count: int, seconds: float) -> float | None:
        """Wait until so many are up."""
        return self.wait(lambda state: state["up"] == count, seconds)
