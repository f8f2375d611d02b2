"""Where a run happens: programs, the namespaces that they are in, and the end of all that in any case."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.soak.report import Report
from tests.system.namespaces import Namespace, run
from tests.system.programs import TWISTD, Program
from tests.system.watch import residentBytes

LOOPBACK = "127.0.0.1"
ALARMS = "Traceback", "Unhandled", "Logged from"
"""What no log of ours may hold."""

STATUS_SECONDS = 5.0
"""A role has told its state by then."""


class Stage(ExitStack):
    """
    A folder and the programs that run, all of which are gone in the end.

    @ivar folder: where logs and other files are.
    """

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report
        self.folder = Path(tempfile.mkdtemp(prefix="udptunnel-soak-"))
        self._serial = 0

    def __exit__(self, *exception: Any) -> bool | None:
        """Take everything away; the folder stays if something went wrong, for there are the logs."""
        with undisturbed():
            done = super().__exit__(*exception)
            removeNamespaces()
        if exception[0] is not None:
            self.report.violate(f"the run was cut short: {exception[0].__name__} {exception[1]}")
        if self.report.violations:
            self.report.say(f"the logs are in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return done

    def namespace(self, role: str) -> Namespace:
        """A network namespace with nothing but a loopback interface; like all that this process makes, it goes."""
        return Namespace(role)

    def start(self, namespace: Namespace, kind: str, *words: str, stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program; its log has a name of its own."""
        self._serial += 1
        program = Program(namespace, self.folder / f"{self._serial:04}-{kind}.log", *words, stdin=stdin)
        self.callback(end, program)
        return program

    def startRole(self, namespace: Namespace, role: str, *options: str) -> Program:
        """Start one of our roles, whose state can be asked for; what it says is looked at in the end."""
        program = self.launchRole(namespace, role, *options)
        self.callback(self.checkLog, program)
        return program

    def launchRole(self, namespace: Namespace, role: str, *options: str) -> Program:
        """The same, for who looks at what it says himself."""
        status = "--status", f"unix:{self._statusPath(role)}"
        return self.start(namespace, role, *TWISTD, role, *status, *options)

    def _statusPath(self, role: str) -> Path:
        return self.folder / f"{role}.status"

    def checkLog(self, program: Program) -> None:
        """Nothing has gone wrong in a way that nobody has thought of."""
        for word in ALARMS:
            if word in program.said:
                self.report.violate(f"{program.log.name} has a {word!r}")

    def status(self, role: str) -> dict[str, Any]:
        """The state that a role tells."""
        connection = http.client.HTTPConnection("localhost", timeout=STATUS_SECONDS)
        with socket.socket(socket.AF_UNIX) as connection.sock:
            connection.sock.settimeout(STATUS_SECONDS)
            connection.sock.connect(str(self._statusPath(role)))
            connection.request("GET", "/status.json")
            state: dict[str, Any] = json.load(connection.getresponse())
        return state


def end(program: Program) -> None:
    """End a program with all its children, even if it was stopped or ended before."""
    if program.process.stdin is not None:
        program.process.stdin.close()
    if program.process.poll() is None:
        # It is not waited for yet, so its number is still its own.
        os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()


def removeNamespaces() -> None:
    """Take away all network namespaces that this process has made, even half made ones."""
    for name in (line.split()[0] for line in run("ip", "netns", "list").splitlines() if line):
        if name.startswith(f"udpt{os.getpid()}-"):
            run("ip", "netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nobody who presses Ctrl-C once more keeps us from cleaning up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measure(program: Program) -> tuple[int, int]:
    """The resident bytes and the open descriptors of a program."""
    return residentBytes(program), program.descriptors()


def inWords(measured: tuple[int, int]) -> str:
    """What L{measure} has found, for people."""
    return f"{measured[0] / 1e6:.1f} MB, {measured[1]} descriptors"
