"""
Programs that are measured: started with their output kept, waited for, looked at in /proc, ended by their number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

PATIENCE_SECONDS = 15.0
"""Whatever is waited for is there by then."""

REPOSITORY = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_LISTENING = {"tcp": "0A", "udp": "07"}
"""States in /proc/net/tcp and /proc/net/udp (the kernel's tcp_states.h)."""


class BenchError(Exception):
    """A peer can not be measured; the text says why."""


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """
    Wait until a condition holds.

    @raise BenchError: it does not come to hold.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"after {seconds:g} s: {what}")
        time.sleep(0.01)


class Program:
    """
    One process, its children, and what they say.

    @ivar pid: its number; C{ip netns exec} has made way for the program.
    """

    def __init__(self, words: Sequence[str], log: str, environment: Mapping[str, str] | None = None) -> None:
        """
        @param log: the file that takes its output.
        @param environment: variables to set besides ours.
        """
        self._log = Path(log)
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"} | dict(environment or {}),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def says(self, text: str) -> None:
        """Wait until it has printed a text."""
        self._until(lambda: text in self._said, f"{self._log.name} does not say {text!r}")

    def listens(self, port: int, kind: str = "tcp") -> None:
        """Wait until somebody listens at a port there. Nobody connects for that: some serve only once."""
        self._until(lambda: listens(self.pid, kind, port), f"{self._log.name}: nobody listens at {kind} {port}")

    @property
    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            until(lambda: condition() or self._process.poll() is not None, what)
        except BenchError as error:
            raise BenchError(f"{error}; it says {self.lastWords!r}") from None
        self.checkAlive()

    def checkAlive(self) -> None:
        """
        See that it still runs.

        @raise BenchError: it does not.
        """
        status = self._process.poll()
        if status is not None:
            raise BenchError(f"{self._log.name} has ended with exit status {status}; it says {self.lastWords!r}")

    @property
    def lastWords(self) -> str:
        """The end of what it has printed."""
        return self._said.strip()[-200:]

    def stop(self) -> None:
        """End it, with its children."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        try:
            # Its session is its own. Children of a program that has ended are still in it.
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# -- /proc


def listens(pid: int, kind: str, port: int) -> bool:
    """Whether somebody listens at a port in the network namespace of a process."""
    for name in (kind, kind + "6"):
        for line in _lines(f"/proc/{pid}/net/{name}")[1:]:
            words = line.split()
            if int(words[1].rpartition(":")[2], 16) == port and words[3] == _LISTENING[kind]:
                return True
    return False


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []  # no IPv6, or the process has ended


def family(pids: Iterable[int]) -> list[int]:
    """These processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else []
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(pids)
    for pid in found:  # grows as it goes
        found += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold spaces and parentheses."""
    return " ".join(_lines(f"/proc/{pid}/stat")).rpartition(")")[2].split()


def commandName(pid: int) -> str:
    """What a process is called, at most 15 letters; nothing if it has ended."""
    return "".join(_lines(f"/proc/{pid}/comm"))


def cpuSeconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, their descendants, and those of their children that have ended."""
    fields = [_stat(pid) for pid in family(pids)]
    return sum(sum(map(int, each[11:15])) for each in fields if each) / _TICKS


def memoryBytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes and their descendants."""
    fields = [_stat(pid) for pid in family(pids)]
    return sum(int(each[21]) for each in fields if each) * os.sysconf("SC_PAGE_SIZE")
