"""Tests for L{udptunnel.tap.common}."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.config import L3Config, LocalConfig, ServerConfig, Tun2socksConfig, anyText, flag, integer, option
from udptunnel.errors import ConfigError, ListenError
from udptunnel.tap import common
from udptunnel.tap.common import RoleService, chooseTurns, optionsFor, prepareProcess, roleService


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
            self.assertEqual(options.pidFile, expected)

    def test_reread(self) -> None:
        """The file may be read again, wherever the process is now; the command line still goes before it."""
        name = self.write('[udp-test]\none-word = "old"\n')
        options = Options()
        options.parseOptions(["--config", name, "--is-so"])
        with open(name, "w", encoding="utf-8") as file:
            file.write('[udp-test]\none-word = "new"\nis-so = false\n')
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir("/")
        self.assertEqual(options.reread(), Config("new", isSo=True))

    def test_rereadWrong(self) -> None:
        """What is wrong by then is said with file, line and option."""
        name = self.write("[udp-test]\n")
        options = Options()
        options.parseOptions(["--config", name])
        with open(name, "w", encoding="utf-8") as file:
            file.write("[udp-test]\nmany-numbers = [10]\n")
        self.assertIn(f"{name}: line 2: --many-numbers 10: exp", str(self.assertRaises(ConfigError, options.reread)))
        os.unlink(name)
        self.assertIn(f"{name}: No such file", str(self.assertRaises(ConfigError, options.reread)))


class PidFileTests(SynchronousTestCase):
    """A pid file that is there already."""

    def start(self, content: str) -> str:
        """Start a role whose pid file is there; the file's name."""
        name = os.path.abspath(self.mktemp())
        with open(name, "w", encoding="ascii") as file:
            file.write(content)
        options: Any = Options()
        options.parent = {"pidfile": name}
        options.parseOptions([])
        return name

    def test_stranger(self) -> None:
        """If it names a live process, one line names the file, the process, and the ways out."""
        for number in (os.getppid(), 1):
            said = str(self.assertRaises(SystemExit, self.start, str(number)))
            self.assertIn(f"names process {number}, which is running", said)
            self.assertIn("--pidfile=FILE, or none with --pidfile=", said)
            self.assertNotIn("\n", said)

    def test_stale(self) -> None:
        """If the process is gone, or there is no number in it, it is left to twistd."""
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        for content in (str(process.pid), "", "nonsense"):
            self.assertTrue(os.path.exists(self.start(content)))

    def test_ourselves(self) -> None:
        """If it names this very process, the one before had the same number, and the file is removed."""
        self.assertFalse(os.path.exists(self.start(str(os.getpid()))))


class FailingService(Service):
    """A service whose port is taken."""

    def startService(self) -> None:
        raise ListenError("--listen tcp:1 can not be opened")

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class Role(Service):
    """A role that takes configurations."""

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.error: Exception | None = None

    def report(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def reload(self, config: Any) -> None:
        """Take a configuration, or not."""
        if self.error is not None:
            raise self.error
        self.configs.append(config)


class FakeNotices:
    """What a supervisor would be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)


class FakeReactor(Clock):
    """A reactor that begins to run when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


class RoleServiceTests(SynchronousTestCase):
    """L{RoleService}."""

    def setUp(self) -> None:
        self.name = self.mktemp()
        self.write("[udp-test]\n")
        options = Options()
        options.parseOptions(["--config", self.name])
        self.role = Role()
        self.notices: Any = FakeNotices()
        self.reactor = FakeReactor()
        self.top = RoleService(self.role, options, self.reactor, self.notices)
        self.said: list[str] = []
        observer = self.observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def observe(self, event: dict[str, Any]) -> None:
        """Remember what is said."""
        self.said.append(f"{event['log_level'].name} {formatEvent(event)}")

    def write(self, text: str) -> None:
        """Change the file."""
        with open(self.name, "w", encoding="utf-8") as file:
            file.write(text)

    def test_started(self) -> None:
        """Once the ports are open and the reactor runs, signals are ours, and then the supervisor is told."""
        signals: Any = self.top._signals
        self.patch(signals, "install", lambda: self.notices.told.append("install"))
        self.top.startService()
        self.assertTrue(self.role.running)
        self.assertEqual(self.notices.told, [])
        (started,) = self.reactor.calls
        started()
        self.assertEqual(self.notices.told, ["install", "ready"])

    def test_reload(self) -> None:
        """The role gets what the file says now; one line says so, and the supervisor is told of both ends of it."""
        self.write('[udp-test]\none-word = "new"\n')
        self.top.reload()
        self.assertEqual(self.role.configs, [Config("new")])
        self.assertEqual(self.said, ["info udp-test is reloaded"])
        self.assertEqual(self.notices.told, ["reloading", "reloaded"])

    def test_wrongFile(self) -> None:
        """A bad file changes nothing; one line names file, line and option; the supervisor does not wait in vain."""
        self.write("[udp-test]\n\nmany-numbers = [10]\n")
        self.top.reload()
        self.assertEqual(self.role.configs, [])
        (said,) = self.said
        self.assertIn(f"error not reloaded, all stays as it was: --config {self.name}: line 3: --many-numbers 10", said)
        self.assertEqual(self.notices.told, ["reloading", "reloaded"])

    def test_wrongParts(self) -> None:
        """So does what only the role finds wrong."""
        self.role.error = ConfigError("--deny moon: no network")
        self.top.reload()
        self.assertEqual(self.said, ["error not reloaded, all stays as it was: --deny moon: no network"])

    def test_unforeseen(self) -> None:
        """What nobody has thought of is logged as such, and ends nothing."""
        self.role.error = ZeroDivisionError()
        self.top.reload()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.notices.told, ["reloading", "reloaded"])

    def test_end(self) -> None:
        """An end at once leaves no pid file behind; there may be none."""
        ended: list[int] = []
        self.patch(os, "_exit", ended.append)
        options: Any = self.top._options
        name = os.path.abspath(self.mktemp())
        with open(name, "w", encoding="ascii"):
            options.parent = {"pidfile": name}
        for status in (143, 0):
            self.top._end(status)
        self.assertEqual((ended, os.path.exists(name)), ([143, 0], False))

    def test_taken(self) -> None:
        """A port that can not be opened stops the start, and is all that is shown."""
        self.addCleanup(lambda: sys.__dict__.pop("tracebacklimit", None))
        top = RoleService(FailingService(), Options(), self.reactor, self.notices)
        error = self.assertRaises(ListenError, top.startService)
        self.assertEqual(str(error), "--listen tcp:1 can not be opened")
        self.assertEqual(sys.tracebacklimit, 0)
        self.assertIs(error.__cause__, None)
        self.assertEqual(self.reactor.calls, [])


class ServiceTests(SynchronousTestCase):
    """L{roleService}."""

    def setUp(self) -> None:
        self.options = Options()
        self.options.parseOptions([])

    def test_wrongParts(self) -> None:
        """What only turns out when the service is made ends the process with one line, too."""
        self.patch(common, "prepareProcess", lambda reactor, config: None)

        def make(reactor: Any) -> Service:
            raise ConfigError("--server nonsense: no client endpoint")

        said = str(self.assertRaises(SystemExit, roleService, make, self.options))
        self.assertEqual(said, "twistd: --server nonsense: no client endpoint")

    def test_made(self) -> None:
        """The process is made fit first; then the service is made with the reactor, and put under the top."""
        from twisted.internet import reactor

        steps: list[Any] = []
        self.patch(common, "prepareProcess", lambda *given: steps.append(given))
        made = Role()

        def make(reactor: Any) -> Service:
            steps.append(reactor)
            return made

        top = roleService(make, self.options)
        self.assertEqual(steps, [(reactor, Config()), reactor])
        self.assertEqual(list(top), [made])

    def test_process(self) -> None:
        """Time is that of a clock that nobody sets, descriptors are many and turns short, and log lines are ours."""
        did: list[Any] = []
        self.patch(common, "raiseDescriptorLimit", lambda: did.append("limit"))
        self.patch(common, "shortenTurns", lambda: did.append("turns"))
        self.patch(common, "useLogLines", lambda *given: did.append(given))
        self.patch(gc, "freeze", lambda: None)
        self.patch(gc, "set_threshold", lambda *_: None)
        reactor = Clock()
        prepareProcess(reactor, ServerConfig())
        self.assertIs(reactor.seconds, time.monotonic)
        self.assertEqual(did, [(ServerConfig(), reactor), "limit", "turns"])

    def test_turns(self) -> None:
        """Turns are short where there are links, and only there."""
        taken: list[str] = []
        self.patch(common, "shortenTurns", lambda: taken.append("short"))
        chooseTurns([Tun2socksConfig(), L3Config()])
        self.assertEqual(taken, [])
        chooseTurns([Tun2socksConfig(), LocalConfig()])
        self.assertEqual(taken, ["short"])
