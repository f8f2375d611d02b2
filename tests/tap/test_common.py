"""Tests for L{udptunnel.tap.common}."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.config import anyText, flag, integer, option
from udptunnel.errors import ConfigError, ListenError
from udptunnel.tap import common
from udptunnel.tap.common import RoleService, optionsFor, prepareProcess, roleService


@dataclass(frozen=True)
class Config:
    """A role that there is only here."""

    oneWord: str = option("word", anyText, "WORD", "Some word.")
    manyNumbers: tuple[int, ...] = option((1, 2), integer(0, 9), "N", "Some digits.")
    isSo: bool = flag("Whether it is so.")
    nothing: str | None = option(None, anyText, "WORD", "A word or none.")


Options = optionsFor("udp-test", Config, "    twistd -n udp-test --one-word hello")


def parse(*words: str) -> Config:
    """The configuration of a command line."""
    options = Options()
    options.parseOptions(words)
    return options.config


class OptionsTests(SynchronousTestCase):
    """L{optionsFor}."""

    def write(self, text: str) -> str:
        """A TOML file."""
        name = self.mktemp()
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def refused(self, *words: str) -> str:
        """What a wrong command line is answered with."""
        said = str(self.assertRaises(SystemExit, parse, *words))
        self.assertNotIn("\n", said)
        self.assertTrue(said.startswith("twistd udp-test: "), said)
        self.assertTrue(said.endswith("; see twistd udp-test --help"), said)
        return said

    def test_defaults(self) -> None:
        """An empty command line means the defaults."""
        self.assertEqual(parse(), Config())

    def test_options(self) -> None:
        """Each field has an option; the last one counts, except for those that may be given several times."""
        given = parse("--one-word", "a", "--many-numbers=3", "--many-numbers", "4", "--is-so", "--one-word=b")
        self.assertEqual(given, Config(oneWord="b", manyNumbers=(3, 4), isSo=True))

    def test_wrongValue(self) -> None:
        """A wrong value ends the process with one line that names the option, the value and what is allowed."""
        self.assertIn("--many-numbers ten: expected a whole number from 0 to 9", self.refused("--many-numbers", "ten"))
        self.assertIn("--one-word : expected a text that is not empty", self.refused("--one-word", ""))

    def test_wrongWords(self) -> None:
        """So does what is no option, and an option without its value."""
        self.assertIn("--no-such", self.refused("--no-such"))
        self.assertIn("stray", self.refused("stray", "--is-so"))
        self.assertIn("one-word", self.refused("--one-word"))

    def test_help(self) -> None:
        """The help shows each option with its value, its text and its default, and the examples."""
        shown = " ".join(str(Options()).split())
        for text in ("--one-word=", "WORD: Some word. [default: word]", "[default: 1, 2]", "--is-so", "--config="):
            self.assertIn(text, shown)
        self.assertIn("May be given several times.", shown)
        self.assertIn("twistd -n udp-test --one-word hello", shown)

    def test_config(self) -> None:
        """A file may say the same; the command line goes before it."""
        name = self.write('[udp-test]\none-word = "file"\nmany-numbers = [5, 6]\nis-so = true\n')
        self.assertEqual(parse("--config", name), Config("file", (5, 6), True))
        self.assertEqual(parse("--config", name, "--one-word", "line"), Config("line", (5, 6), True))
        self.assertEqual(parse("--many-numbers", "7", "--config", name), Config("file", (7,), True))

    def test_otherTables(self) -> None:
        """Tables of other roles do not matter."""
        name = self.write('[udp-other]\nx = 1\n[udp-test]\none-word = "file"\n')
        self.assertEqual(parse("--config", name), Config("file"))

    def test_wrongFile(self) -> None:
        """What is wrong in a file is said with the file's name and the line."""
        for text, expected in (
            ('[udp-test]\n\none-word = "x"\none-wrod = "y"\n', "line 4: unknown key one-wrod"),
            ("[udp-test]\n# x\nmany-numbers = [1, 10]\n", "line 3: --many-numbers 10: expected a whole number"),
            ("[udp-test]\nis-so = 1\n", "line 2: --is-so 1: expected true or false"),
            ("[udp-test]\none-word = [1]\n", "line 2: --one-word [1]: expected a text or a number"),
            ("[udp-other]\n", "there is no table [udp-test]"),
            ("[udp-test\n", "line 1"),
        ):
            name = self.write(text)
            said = self.refused("--config", name)
            self.assertIn(f"--config {name}: ", said)
            self.assertIn(expected, said)

    def test_noFile(self) -> None:
        """A file that can not be read is named."""
        self.assertIn("--config /no/such/file: No such file", self.refused("--config", "/no/such/file"))
        name = self.mktemp()
        with open(name, "wb") as file:
            file.write(b"[udp-test]\none-word = '\xff'\n")
        self.assertIn(f"--config {name}: ", self.refused("--config", name))

    def test_pidFile(self) -> None:
        """Both ends can be started in one folder: each has a pid file of its own, and in the foreground none."""
        for nodaemon, given, expected in (
            (True, "twistd.pid", ""),
            (False, "twistd.pid", "udp-test.pid"),
            (False, "/run/my.pid", "/run/my.pid"),
            (True, "/run/my.pid", "/run/my.pid"),
        ):
            options: Any = Options()
            options.parent = {"pidfile": given, "nodaemon": nodaemon}
            options.parseOptions([])
            self.assertEqual(options.parent["pidfile"], expected)


class FailingService(Service):
    """A service whose port is taken."""

    def startService(self) -> None:
        raise ListenError("--listen tcp:1 can not be opened")


class ServiceTests(SynchronousTestCase):
    """L{roleService} and L{RoleService}."""

    def test_wrongParts(self) -> None:
        """What only turns out when the service is made ends the process with one line, too."""
        self.patch(common, "prepareProcess", lambda reactor: None)

        def make(reactor: Any) -> Service:
            raise ConfigError("--server nonsense: no client endpoint")

        self.assertEqual(
            str(self.assertRaises(SystemExit, roleService, make)), "twistd: --server nonsense: no client endpoint"
        )

    def test_made(self) -> None:
        """The process is made fit first; then the service is made with the reactor, and put under the top."""
        from twisted.internet import reactor

        steps: list[Any] = []
        self.patch(common, "prepareProcess", steps.append)
        made = Service()

        def make(reactor: Any) -> Service:
            steps.append(made)
            return made

        top = roleService(make)
        self.assertEqual(steps, [reactor, made])
        self.assertEqual(list(top), [made])

    def test_taken(self) -> None:
        """A port that can not be opened stops the start, and is all that is shown."""
        self.addCleanup(lambda: sys.__dict__.pop("tracebacklimit", None))
        top = RoleService()
        FailingService().setServiceParent(top)
        error = self.assertRaises(ListenError, top.startService)
        self.assertEqual(str(error), "--listen tcp:1 can not be opened")
        self.assertEqual(sys.tracebacklimit, 0)
        self.assertIs(error.__cause__, None)

    def test_process(self) -> None:
        """Time is that of a clock that nobody sets, and there are as many descriptors as there may be."""
        raised: list[bool] = []
        self.patch(common, "raiseDescriptorLimit", lambda: raised.append(True))
        self.patch(gc, "freeze", lambda: None)
        self.patch(gc, "set_threshold", lambda *_: None)
        reactor = Clock()
        prepareProcess(reactor)
        self.assertIs(reactor.seconds, time.monotonic)
        self.assertEqual(raised, [True])
