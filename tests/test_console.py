"""Tests for L{udptunnel.console}."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT
from tests.test_plugins import environment
from udptunnel import __version__
from udptunnel.console import Table, main
from udptunnel.services.demo import HEAD, Path
from udptunnel.wire.address import Address

GOOD = """\
[udp-local]
server = "tcp:relay.example:3456"
forward = ["127.0.0.1:5353=9.9.9.9:53"]
links = 2

[udp-server]
allow = "10.0.0.0/8"
insecure-no-auth = true
"""


class Outcome:
    """What a command said and how it ended."""

    def __init__(self, *words: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main(words)
            except SystemExit as end:
                # What the interpreter makes of it.
                self.status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
                said = end.code if isinstance(end.code, str) else ""
        self.out, self.err = out.getvalue(), err.getvalue() + said


class CommandTests(SynchronousTestCase):
    """The commands, by their words."""

    def test_help(self) -> None:
        """The help names the commands, and the daemons, which are twistd's."""
        outcome = Outcome("--help")
        self.assertEqual(outcome.status, 0)
        for text in ("demo", "check", "twistd -n udp-server", "twistd -n udp-local"):
            self.assertIn(text, outcome.out)

    def test_version(self) -> None:
        """The version is shown on one line."""
        outcome = Outcome("--version")
        self.assertEqual((outcome.status, outcome.out), (0, f"udptunnel {__version__}\n"))

    def test_commandHelp(self) -> None:
        """Each command has a help of its own."""
        self.assertIn("TOML", Outcome("check", "--help").out)
        self.assertIn("echo target", Outcome("demo", "--help").out)

    def test_wrong(self) -> None:
        """What is no command is answered with one line and status 1."""
        for words in ((), ("dance",), ("--dance",), ("check",), ("check", "a", "b")):
            outcome = Outcome(*words)
            self.assertEqual(outcome.status, 1, words)
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)
            self.assertIn("udptunnel --help", outcome.err)


class CheckTests(SynchronousTestCase):
    """udptunnel check."""

    def check(self, content: str | bytes) -> Outcome:
        """Check a file with this in it."""
        self.name = self.mktemp()
        with open(self.name, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return Outcome("check", self.name)

    def test_good(self) -> None:
        """A file with nothing wrong in it is said to be so, with the roles that it has."""
        outcome = self.check(GOOD)
        self.assertEqual((outcome.status, outcome.err), (0, ""))
        self.assertEqual(outcome.out, f"{self.name}: nothing wrong with udp-local, udp-server\n")

    def test_wrong(self) -> None:
        """What is wrong is said in one line, with the file, the table and the line."""
        for change, expected in (
            (("links = 2", "links = 0"), "[udp-local] line 4: --links 0: expected a whole number from 1 to 64"),
            (("links = 2", "link = 2"), "[udp-local] line 4: unknown key link"),
            (("allow =", "alow ="), "[udp-server] line 7: unknown key alow"),
            (("insecure-no-auth = true", 'insecure-no-auth = "yes"'), "[udp-server] line 8: --insecure-no-auth"),
            (("[udp-server]", "[udp-sever]"), "unknown table [udp-sever]; known are udp-local, udp-server"),
            (("links = 2", "links = "), "line 4"),
        ):
            outcome = self.check(GOOD.replace(*change))
            self.assertEqual((outcome.status, outcome.out), (1, ""))
            self.assertTrue(outcome.err.startswith(f"udptunnel check: {self.name}: "), outcome.err)
            self.assertIn(expected, outcome.err)
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)

    def test_wrongParts(self) -> None:
        """So is what only turns out when the parts are made."""
        for change, expected in (
            (('"tcp:relay.example:3456"', '"nonsense"'), "--server nonsense"),
            (('"10.0.0.0/8"', '"10.0.0.0/33"'), "10.0.0.0/33"),
        ):
            outcome = self.check(GOOD.replace(*change))
            self.assertEqual(outcome.status, 1)
            self.assertIn(expected, outcome.err)

    def test_empty(self) -> None:
        """A file without a table is wrong."""
        self.assertIn("there is no table", self.check("").err)

    def test_noToml(self) -> None:
        """Whatever a file holds, the answer is one line and status 1."""
        for content in (
            b"\xff\xfe",
            b"\0",
            b"[" * 5000,
            b"[udp-local]\nlinks = " + b"9" * 5000,
            b"udp-local = 1",
            b"x=1",
        ):
            outcome = self.check(content)
            self.assertEqual((outcome.status, outcome.out), (1, ""))
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)

    def test_noFile(self) -> None:
        """A file that can not be read is named."""
        outcome = Outcome("check", "/no/such/file")
        self.assertEqual(outcome.status, 1)
        self.assertEqual(outcome.err, "udptunnel check: /no/such/file: No such file or directory\n")


class Terminal(io.StringIO):
    """Something that text is written to and drawn over."""

    def isatty(self) -> bool:
        return True


class TableTests(SynchronousTestCase):
    """L{Table}."""

    def setUp(self) -> None:
        class Demo:
            paths = [Path("forward, IPv4", Address("127.0.0.1", 9))]  # noqa: RUF012
            remarks = ["a remark"]  # noqa: RUF012

        self.demo: Any = Demo()

    def test_terminal(self) -> None:
        """On a terminal the table is drawn over the one before."""
        out = Terminal()
        table = Table(out)
        table.show(self.demo)
        first = out.getvalue()
        self.assertEqual(first.splitlines(), [HEAD, self.demo.paths[0].row(), "a remark"])
        table.show(self.demo)
        self.assertEqual(out.getvalue(), f"{first}\x1b[3A\x1b[J{first}")

    def test_file(self) -> None:
        """Elsewhere it is not drawn until somebody says so."""
        out = io.StringIO()
        table = Table(out)
        table.show(self.demo)
        self.assertEqual(out.getvalue(), "")
        table.print(self.demo)
        self.assertEqual(len(out.getvalue().splitlines()), 3)


class DemoTests(SynchronousTestCase):
    """udptunnel demo, as a process."""

    def test_demo(self) -> None:
        """Everything comes back, a table says so, and the exit status is 0."""
        command = [sys.executable, "-c", "from udptunnel.console import main; main()", "demo"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stderr, "")
        lines = done.stdout.splitlines()
        self.assertIn(HEAD, lines)
        self.assertTrue(any(line.startswith("forward, IPv4") for line in lines))
        self.assertTrue(any(line.startswith("SOCKS5, IPv4 target") for line in lines))
        self.assertEqual(lines[-1], "every datagram came back as it was sent")
