"""Tests for L{udptunnel.up}, with real processes on loopback; tests.system has namespaces and real carriers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_guard import awaitEnd, isAlive
from tests.services.tunnel import freePort
from tests.test_console import Outcome
from tests.test_plugins import environment
from udptunnel.config import LocalConfig, ServerConfig, Tun2socksConfig
from udptunnel.errors import ConfigError
from udptunnel.services.side import SideConfig
from udptunnel.up import folderFor, logConfigOf

SECONDS = 60.0
UDPTUNNEL = [sys.executable, "-c", "from udptunnel.console import main; main()"]

CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
print('child', child.pid, flush=True)
time.sleep(1000)
"""
"""A carrier with a plugin of its own, as far as processes go."""


class UpTestCase(SynchronousTestCase):
    """With a folder for files, pid files and logs."""

    def setUp(self) -> None:
        if not hasattr(os, "fork"):
            self.skipTest("needs POSIX")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self.port = freePort()
        self.addCleanup(self.end)

    def end(self) -> None:
        """Whatever a failed test has left."""
        self.command("down", "side")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the console script to its end."""
        command, *rest = words
        words = (*UDPTUNNEL, command, "--run-dir", "run", *rest)
        return subprocess.run(
            words, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=SECONDS
        )

    def file(self, *tables: str, name: str = "side.toml") -> str:
        """A file with these tables, and a udp-local."""
        local = f'[udp-local]\nsocks = "tcp:{self.port}:interface=127.0.0.1"\nserver = "tcp:127.0.0.1:1"\n'
        (self.folder / name).write_text("\n".join((local, *tables)), encoding="utf-8")
        return name

    def carrier(self, *command: str, name: str = "carrier") -> str:
        """The table of a carrier."""
        return f"[[carrier]]\nname = {name!r}\ncommand = {list(command)!r}\n"

    def exitFile(self) -> str:
        """A side that is up at once: a udp-server, with the same name."""
        text = f'[udp-server]\nlisten = "tcp:{self.port}:interface=127.0.0.1"\n'
        (self.folder / "side.toml").write_text(text, encoding="utf-8")
        return "side.toml"

    def assertFails(self, *words: str) -> str:
        """A command fails with one line, which is returned."""
        done = self.command(*words)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith(f"udptunnel {words[0]}: "), done.stderr)
        return done.stderr

    def process(self) -> int:
        """Which process it is."""
        return int((self.folder / "run" / "side.pid").read_text().split()[0])

    def said(self) -> str:
        """What it has logged."""
        return (self.folder / "run" / "side.log").read_text()

    def isOpen(self) -> bool:
        """Whether somebody listens at its port."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class UpTests(UpTestCase):
    """Up and down."""

    def test_upAndDown(self) -> None:
        """When up comes back the ports are open, and what runs is listed; when down does, nothing of it is left."""
        file = self.file(self.carrier(sys.executable, "-c", CHILD))
        done = self.command("up", file)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"(?m)^carrier +runs, process \d+$")
        self.assertRegex(done.stdout, r"(?m)^udp-local +waits: no link is up yet$")
        process = self.process()
        self.assertIn(f"side is up: process {process}, log {self.folder}/run/side.log", done.stdout)
        self.assertTrue(self.isOpen())
        children = [int(line.split()[-1]) for line in self.said().splitlines() if "carrier#info] child" in line]
        self.assertEqual(len(children), 1)
        self.assertTrue(isAlive(children[0]))
        done = self.command("down", file)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertFalse(isAlive(process) or isAlive(children[0]))
        self.assertFalse(self.isOpen())
        self.assertEqual(os.listdir(self.folder / "run"), ["side.log"])
        self.assertFalse("Traceback" in self.said())

    def test_twice(self) -> None:
        """What is up is not brought up again, and goes on; down takes its name, too."""
        file = self.exitFile()
        self.assertEqual(self.command("up", file).returncode, 0)
        process = self.process()
        said = self.assertFails("up", file)
        self.assertIn(f"side is up already: process {process}, {self.folder}/side.toml", said)
        self.assertTrue(isAlive(process) and self.isOpen())
        self.assertEqual(self.command("down", "side").returncode, 0)
        self.assertIn("side is not up", self.assertFails("down", "side"))

    def test_carrierFails(self) -> None:
        """A carrier that ends at once is named with its last words, and nothing is left."""
        file = self.file(
            self.carrier(sys.executable, "-c", "import sys; sys.exit('no such cipher')"),
            self.carrier("sleep", "1000", name="other"),
        )
        said = self.assertFails("up", file)
        self.assertIn("[[carrier]] carrier has ended with exit status 1; it said: no such cipher; the log is ", said)
        self.assertEqual(os.listdir(self.folder / "run"), ["side.log"])
        self.assertFalse(self.isOpen())
        other = next(line for line in self.said().splitlines() if "other runs, process" in line)
        self.assertFalse(isAlive(int(other.split()[-1])))

    def test_roleFails(self) -> None:
        """So is a port that is taken, a program that is not there, and what is wrong with the file."""
        with socket.create_server(("127.0.0.1", self.port)):
            self.assertIn(f"--socks tcp:{self.port}", self.assertFails("up", self.file()))
        said = self.assertFails("up", self.file(self.carrier("no-such-program")))
        self.assertIn("[[carrier]] carrier: there is no program no-such-program", said)
        self.assertIn("[[carrier]] number 1: command:", self.assertFails("up", self.file(self.carrier())))
        self.assertIn("side.toml: [tun2socks] no TUN", self.assertFails("up", self.file("[tun2socks]\n")))
        self.assertIn("nowhere.toml: No such file", self.assertFails("up", "nowhere.toml"))
        self.assertIn("no good name", self.assertFails("up", self.file(name="a b.toml")))

    def test_killed(self) -> None:
        """After kill -9 no carrier is left, nor what it has started; up and down find that nothing is up."""
        file = self.file(self.carrier(sys.executable, "-c", CHILD))
        for again in (lambda: self.command("up", file), lambda: self.command("down", file)):
            if not (self.folder / "run" / "side.pid").exists():
                self.assertEqual(self.command("up", file).returncode, 0)
            child = [int(line.split()[-1]) for line in self.said().splitlines() if "carrier#info] child" in line][-1]
            self.assertTrue(isAlive(child))
            process = self.process()
            os.kill(process, signal.SIGKILL)
            done = again()
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertFalse(isAlive(child))
            awaitEnd(process)
        self.assertEqual(os.listdir(self.folder / "run"), ["side.log"])

    def test_leftBehind(self) -> None:
        """A pid file that nobody has locked, of a machine that lost its power say, stands in nobody's way."""
        (self.folder / "run").mkdir()
        (self.folder / "run" / "side.pid").write_text(f"{os.getpid()}\n/x\n")
        done = self.command("down", "side")
        self.assertEqual(done.returncode, 0)
        self.assertIn("was left behind", done.stdout)
        (self.folder / "run" / "side.pid").write_text(f"{os.getpid()}\n/x\n")
        self.assertEqual(self.command("up", self.exitFile()).returncode, 0)

    def test_reload(self) -> None:
        """SIGHUP has the file read again; one that is wrong changes nothing, and that is logged."""
        file = self.exitFile()
        self.command("up", file)
        self._hangUp(lambda: "side is reloaded" in self.said())
        (self.folder / file).write_text("[udp-server]\nallow = 'x'\n")
        self._hangUp(lambda: "not reloaded, all stays as it was: [udp-server] --allow" in self.said())
        self.assertTrue(self.isOpen())

    def _hangUp(self, condition: Callable[[], object]) -> None:
        from tests.system.programs import until

        os.kill(self.process(), signal.SIGHUP)
        until(condition, "it is not read again")


class ForegroundTests(UpTestCase):
    """--foreground."""

    def start(self, file: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [*UDPTUNNEL, "up", "--run-dir", "run", "--foreground", file],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(started.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(started.wait)
        self.addCleanup(started.kill)
        return started

    def awaitLine(self, started: Any, text: str) -> list[str]:
        lines = []
        for line in started.stdout:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError("".join(lines))

    def test_whole(self) -> None:
        """It logs to the standard output, is known to down, and ends with status 0."""
        started = self.start(self.file(self.carrier("sleep", "1000")))
        self.awaitLine(started, "udp-local waits: no link is up yet")
        self.assertEqual(self.process(), started.pid)
        self.assertIn("is up already", self.assertFails("up", "side.toml"))
        self.assertEqual(self.command("down", "side").returncode, 0)
        self.assertIn("SIGTERM: stopping", started.communicate(timeout=SECONDS)[0])
        self.assertEqual(started.returncode, 0)
        self.assertEqual(os.listdir(self.folder / "run"), [])

    def test_failed(self) -> None:
        """What can not be brought up is logged, and ends it with status 1."""
        started = self.start(self.file(self.carrier("false")))
        said, _ = started.communicate(timeout=SECONDS)
        self.assertIn("side is not up: [[carrier]] carrier has ended with exit status 1", said)
        self.assertEqual(started.returncode, 1)


class OptionsTests(SynchronousTestCase):
    """The command lines."""

    def test_help(self) -> None:
        """The help shows a whole example, and what to type."""
        said = Outcome("up", "--help").out
        for text in ("[[carrier]]", "[udp-local]", "udptunnel up client.toml", "--foreground", "--run-dir="):
            self.assertIn(text, said)
        self.assertIn("udptunnel down client", Outcome("down", "--help").out)

    def test_example(self) -> None:
        """The example in the help is right."""
        from udptunnel.up import EXAMPLE

        lines = [line[4:] for line in EXAMPLE.splitlines() if line.startswith("    ") and "udptunnel " not in line]
        name = self.mktemp()
        Path(name).write_text("\n".join(line for line in lines if not line.startswith("dig")))
        self.assertEqual(Outcome("check", name).out, f"{name}: nothing wrong with carrier, udp-local\n")

    def test_folder(self) -> None:
        """The folder is that of root, or of the user; who has none must say so."""
        self.patch(os, "environ", {"XDG_RUNTIME_DIR": self.mktemp()})
        self.patch(os, "geteuid", lambda: 1000)
        folder = folderFor(None)
        self.assertEqual(folder, os.path.abspath(os.environ["XDG_RUNTIME_DIR"] + "/udptunnel"))
        self.assertTrue(os.path.isdir(folder))
        del os.environ["XDG_RUNTIME_DIR"]
        self.assertIn("--run-dir FOLDER", str(self.assertRaises(ConfigError, folderFor, None)))
        self.assertIn("--run-dir /dev/null/x: ", str(self.assertRaises(ConfigError, folderFor, "/dev/null/x")))

    def test_logConfig(self) -> None:
        """The first role says how the log is written, but one that leaves something out goes before it."""
        first, plain, secret = Tun2socksConfig(), LocalConfig(), ServerConfig(redact=True)
        self.assertIs(logConfigOf(SideConfig(roles={"a": first, "b": plain})), first)
        self.assertIs(logConfigOf(SideConfig(roles={"a": plain, "b": secret})), secret)
        self.assertEqual(logConfigOf(SideConfig()).logFormat, "text")
