"""Programs of this project and of others, started inside namespaces, with everything that they say kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.python.components import proxyForInterface
from twisted.trial.itrial import IReporter
from twisted.trial.unittest import PyUnitResultAdapter, SynchronousTestCase

from tests.system.namespaces import Namespace, Network
from tests.system.turns import TakesTurns

SECONDS = 15.0
"""Whatever is waited for is there by then."""

REPOSITORY = Path(__file__).parents[2]
"""Where the package under test is."""

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]

SOCKS, LINK, FORWARD, ECHO = 1234, 3456, 5353, 7007
"""Ports: of udp-local's SOCKS5 server, of udp-server, of a forward, and of a target."""


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} s: {what}")
        time.sleep(0.01)
    return value


class Program:
    """
    One process, and what it says.

    @ivar process: the process; C{ip netns exec} has made way for the program.
    @ivar words: its command line.
    """

    def __init__(self, namespace: Namespace, log: Path, *words: str, stdin: int = subprocess.DEVNULL) -> None:
        """
        @param log: the file that takes its output.
        """
        self.namespace = namespace
        self.log = log
        self.words = words
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                namespace.command(*words),
                stdin=stdin,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> Program:
        """Wait until it has printed a text so many times."""
        self._await(lambda: self.said.count(text) >= times, f"{self.log.name} does not say {text!r} {times} times")
        return self

    def listens(self, port: int, kind: str = "tcp") -> Program:
        """Wait until somebody listens at a port."""
        self._await(lambda: self.namespace.listens(kind, port), f"{self.log.name} does not listen at {kind} {port}")
        return self

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        until(lambda: condition() or self.process.poll() is not None, what)
        if not condition():
            raise AssertionError(f"{what}, and has ended with exit status {self.process.returncode}")

    def write(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def kill(self) -> None:
        """End it at once, as C{kill -9} does."""
        self.process.kill()
        self.process.wait(SECONDS)

    def stop(self) -> None:
        """Ask it to end, and see that it does, with all its children."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            until(self._isOver, f"{self.log.name} does not end")
        finally:
            # It is not waited for yet, so its number is still its own.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(SECONDS)

    def _isOver(self) -> bool:
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Witness(proxyForInterface(IReporter, "reporter")):  # type: ignore[misc]
    """Passes everything on to a reporter, and knows whether the test has failed."""

    failed = False

    def addError(self, *arguments: Any) -> None:
        self.failed = True
        self.reporter.addError(*arguments)

    def addFailure(self, *arguments: Any) -> None:
        self.failed = True
        self.reporter.addFailure(*arguments)


class SystemTestCase(TakesTurns, SynchronousTestCase):
    """
    A test with a L{Network} of its own, and programs in it.

    @cvar programs: which must be installed.
    """

    programs: tuple[str, ...] = ()

    def setUp(self) -> None:
        if os.geteuid():
            raise unittest.SkipTest("network namespaces need root")
        for name in ("ip", *self.programs):
            if shutil.which(name) is None:
                raise unittest.SkipTest(f"{name} is not installed")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self._started: list[Program] = []
        self.network = self.makeNetwork()
        self.addCleanup(self.network.remove)

    def makeNetwork(self) -> Any:
        """The namespaces of a test."""
        return Network()

    def run(self, result: Any) -> Any:
        """Show what the programs said, if the test fails."""
        witness = _Witness(IReporter(result, None) or PyUnitResultAdapter(result))
        super().run(witness)
        if witness.failed:
            self._show()

    def _show(self) -> None:
        for program in getattr(self, "_started", ()):
            lines = program.said.splitlines()
            print(f"\n--- {self.id()}: the last lines of {program.log.name}", file=sys.stderr)
            print("\n".join(lines[-60:]), file=sys.stderr)

    # -- programs

    def start(self, namespace: Namespace, *words: str, stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program in a namespace; it ends with the test."""
        ours = words[: len(TWISTD)] == tuple(TWISTD)
        kind = words[len(TWISTD)] if ours else Path(words[0]).name
        program = Program(namespace, self.folder / f"{len(self._started)}-{kind}.log", *words, stdin=stdin)
        self._started.append(program)
        if ours:
            self.addCleanup(self.assertCalm, program)
        self.addCleanup(program.stop)
        return program

    def assertCalm(self, program: Program) -> None:
        """Whatever happens to one of our roles, nothing in it goes wrong in a way that nobody has thought of."""
        for word in ("Traceback", "Unhandled", "Logged from"):
            self.assertFalse(word in program.said, f"{program.log.name} has a {word!r}")

    def startServer(self, *options: str, host: str = Network.atServer[0], rules: bool = True) -> Program:
        """
        Start udp-server.

        @param host: where it accepts links.
        @param rules: whether the target's private addresses are allowed.
        """
        allowed = ("--allow", "10.77.2.0/24", "--allow", "fd77:2::/64") if rules else ()
        words = "--listen", f"tcp:{LINK}:interface={host}", "--insecure-no-auth", *allowed, *options
        return self.start(self.network.server, *TWISTD, "udp-server", *words).listens(LINK)

    def startLocal(self, *options: str, server: str = f"tcp:{Network.atServer[0]}:{LINK}") -> Program:
        """Start udp-local, and wait until its ports are open."""
        words = "udp-local", "--server", server, *options
        return self.start(self.network.client, *TWISTD, *words).says("udp-local: SOCKS5 at")

    def startBoth(self, *options: str) -> tuple[Program, Program]:
        """Start udp-server and a udp-local with these options, and wait for the link."""
        server = self.startServer()
        return server, self.startLocal(*options).says("is up")

    def startShadowsocks(self, command: str, port: int, *options: str, obfs: str = "") -> Program:
        """
        Start C{ss-server}, which is returned, and the other end of it at a port of the client's.

        @param command: that other end, C{ss-local} or C{ss-tunnel}.
        @param obfs: how simple-obfs disguises the traffic between them, if it does.
        """
        far, near = (), ()
        if obfs:
            far = "--plugin", "obfs-server", "--plugin-opts", f"obfs={obfs}"
            near = "--plugin", "obfs-local", "--plugin-opts", f"obfs={obfs};obfs-host=www.example.org"
        both = "-s", Network.atServer[0], "-p", "8388", "-k", "secret", "-m", "aes-256-gcm", "--no-delay"
        server = self.start(self.network.server, "ss-server", "-v", *both, *far).listens(8388)
        words = command, *both, "-b", "127.0.0.1", "-l", str(port), *near, *options
        self.start(self.network.client, *words).listens(port)
        return server

    def ask(self, namespace: Namespace, *words: str) -> str:
        """Run a program in a namespace until it ends, and return what it prints."""
        done = subprocess.run(
            namespace.command(*words), capture_output=True, text=True, timeout=SECONDS, cwd=self.folder
        )
        self.assertEqual(done.returncode, 0, f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout
