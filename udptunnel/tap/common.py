"""
What the command lines of all roles have in common.

A role's options are made from the fields of its configuration, so that an
option, its help and its check are written once. What is wrong ends the
process with one line and exit status 1.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from twisted.application.service import MultiService
from twisted.logger import Logger
from twisted.python import usage

from udptunnel.config import LocalConfig, RoleConfig, ServerConfig, fill, optionName, readToml
from udptunnel.errors import ConfigError, ListenError, TunnelError
from udptunnel.net.descriptors import raiseDescriptorLimit
from udptunnel.net.logs import useLogLines
from udptunnel.net.turns import shortenTurns
from udptunnel.tap.notify import Notices
from udptunnel.tap.signals import Signals

Config = TypeVar("Config")

GARBAGE_THRESHOLDS = (50_000, 20, 10)
"""Allocations between collections; the data path makes no cycles."""


class RoleOptions(usage.Options, Generic[Config]):
    """
    A role's command line. L{optionsFor} makes a class for each role.

    @ivar config: what it says, once parsed.
    """

    role = ""
    examples = ""
    kind: type[Any] = object
    config: Config

    def __init__(self) -> None:
        super().__init__()
        self["texts"] = {}

    def parseOptions(self, options: Any = None) -> None:
        """
        Parse, and end the process with one line if something is wrong.
        """
        try:
            super().parseOptions(options)
        except (usage.UsageError, ConfigError) as error:
            raise SystemExit(f"twistd {self.role}: {error}; see twistd {self.role} --help") from None

    def opt_config(self, name: str) -> None:
        """Read options from the table of this role in a TOML FILE. What stands on the command line goes first."""
        self["config"] = name
        # When it is read again, twistd may be in another folder (--rundir).
        self["configPath"] = os.path.abspath(name)

    def parseArgs(self, *words: str) -> None:
        """There are none."""
        if words:
            raise usage.UsageError(f"{words[0]}: every option begins with --")

    def postOptions(self) -> None:
        """Make the configuration, first from the file, then from the command line."""
        self.config = self.reread()
        self._choosePidFile()
        checkPidFile(self.pidFile)

    def reread(self) -> Config:
        """
        The same command line with what its file says now.

        @raise ConfigError: that is wrong. The text names the file, and the line if there is one.
        """
        config: Config = fill(self.kind, self["texts"], self._readFile())
        return config

    @property
    def pidFile(self) -> str:
        """The file that twistd writes its process id to, or none. A .tac file does not know it."""
        parent = getattr(self, "parent", None) or {}
        return str(parent.get("pidfile") or "")

    def _choosePidFile(self) -> None:
        """
        Both ends may be started in one folder: twistd's own name for the file
        would let the second one refuse, even in the foreground.
        """
        if self.pidFile == "twistd.pid":
            parent: Any = self.parent
            parent["pidfile"] = "" if parent.get("nodaemon") else f"{self.role}.pid"

    def getUsage(self, width: int | None = None) -> str:
        """The options, and examples as they are to be typed."""
        return f"{super().getUsage(width)}\n{self.examples}"

    def _readFile(self) -> Any:
        name = self.get("config")
        if name is None:
            return None
        try:
            with open(self["configPath"], encoding="utf-8") as file:
                return readToml(self.kind, self.role, file.read())
        except OSError as error:
            raise ConfigError(f"--config {name}: {error.strerror}") from error
        except (ConfigError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {name}: {error}") from error


def optionsFor(role: str, kind: type[Config], examples: str) -> type[RoleOptions[Config]]:
    """
    The options class of a role.

    @param kind: its configuration.
    @param examples: what C{--help} shows at the end.
    """
    members: dict[str, Any] = {
        "role": role,
        "kind": kind,
        "synopsis": f"[{role} options]",
        "longdesc": kind.__doc__,
        "examples": examples,
        "__doc__": f"The command line of {role}.",
    }
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        members["opt_" + optionName(field.name).replace("-", "_")] = _setter(field)
    return type("Options", (RoleOptions,), members)


def _setter(field: dataclasses.Field[Any]) -> Callable[..., None]:
    """The method that Twisted calls for an option; its docstring is the option's help."""

    def setOne(self: RoleOptions[Any], text: str) -> None:
        self["texts"][field.name] = text

    def addOne(self: RoleOptions[Any], text: str) -> None:
        self["texts"].setdefault(field.name, []).append(text)

    def setFlag(self: RoleOptions[Any]) -> None:
        self["texts"][field.name] = True

    several = isinstance(field.default, tuple)
    method = setFlag if isinstance(field.default, bool) else addOne if several else setOne
    method.__doc__ = _help(field)
    return method


def _help(field: dataclasses.Field[Any]) -> str:
    text = (
        f"{field.metadata['value']}: {field.metadata['text']}" if "value" in field.metadata else field.metadata["text"]
    )
    if isinstance(field.default, tuple):
        text += " May be given several times."
    default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return text if default in (None, "", False) else f"{text} [default: {default}]"


def checkPidFile(name: str) -> None:
    """
    See that a pid file does not stand in the way.

    twistd removes the one of a process that is gone. It takes any other for
    another twistd, even this very process: where few processes are started,
    such as in a container, we soon have the number of the one before us.

    @raise UsageError: it names a live process.
    """
    try:
        with open(name, encoding="ascii") as file:
            number = int(file.read())
        if number == os.getpid():
            os.unlink(name)
        else:
            os.kill(number, 0)
    except (PermissionError, OverflowError):
        pass  # It is alive, and somebody else's; or it is no process at all.
    except (OSError, ValueError):
        return  # It is gone; or twistd tells what is wrong with the file.
    else:
        if number == os.getpid():
            return
    raise usage.UsageError(
        f"{os.path.abspath(name)} names process {number}, which is running: if that is not this role, remove the file, "
        "or write another with twistd --pidfile=FILE, or none with --pidfile="
    )


class RoleService(MultiService):
    """
    The top of a role's services: the life of the process.

    What can not be started ends it. Once it runs, signals and its supervisor
    are attended to.

    @ivar role: the role's service.
    """

    _log = Logger()

    def __init__(self, role: Any, options: RoleOptions[Any], reactor: Any, notices: Notices | None = None) -> None:
        """
        @param role: the role's service, with C{report} and C{reload}.
        @param options: its command line.
        @param notices: what its supervisor is told, if not what the environment says.
        """
        super().__init__()
        self.role = role
        self._options = options
        self._reactor = reactor
        self._notices = notices or Notices(reactor, role.report)
        self._signals = Signals(reactor, self._notices.stopping, self.reload, self._end, self.drain)
        role.setServiceParent(self)
        if hasattr(role, "whenFailed"):
            role.whenFailed = self.fail

    def startService(self) -> None:
        """
        Start the role.

        @raise ListenError: a port can not be opened. Nothing but this line is shown.
        """
        try:
            super().startService()
        except ListenError as error:
            # A traceback would bury the line that tells the user what to do.
            sys.tracebacklimit = 0
            raise error.with_traceback(None) from None
        self._reactor.callWhenRunning(self._started)

    def _started(self) -> None:
        self._signals.install()
        self._notices.ready()

    def reload(self) -> None:
        """Read the configuration again. If something is wrong with it, that is logged, and nothing changes."""
        self._notices.reloading()
        try:
            self.role.reload(self._options.reread())
        except TunnelError as error:
            self._log.error("not reloaded, all stays as it was: {error}", error=error)
        except Exception:
            self._log.failure("not reloaded")
        else:
            self._log.info("{role} is reloaded", role=self._options.role)
        finally:
            self._notices.reloaded()

    def drain(self) -> None:
        """Let nobody new in, and end when the role says that few enough are left; a role that serves nobody ends."""
        self._log.info("{role} drains", role=self._options.role)
        drain = getattr(self.role, "drain", None)
        if drain is None:
            self._drained()
        else:
            drain(self._drained)

    def _drained(self) -> None:
        self._signals.stop("drained")

    def fail(self, why: str) -> None:
        """End with exit status 1: the role can not go on, and says why."""
        self._log.critical("{role} ends: {why}", role=self._options.role, why=why)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._end, 1)
        self._signals.stop("failed")

    def _end(self, status: int) -> None:
        """End the process at once, but leave no pid file that might name a stranger later."""
        with suppress(OSError):
            os.unlink(self._options.pidFile)
        os._exit(status)


def prepareProcess(reactor: Any, config: RoleConfig) -> None:
    """
    Make the process fit for relaying: time that no clock setting can stop,
    as many descriptors as this user may have, turns on a processor that fit
    the role, and log lines as configured.
    """
    reactor.seconds = time.monotonic
    useLogLines(config, reactor)
    raiseDescriptorLimit()
    chooseTurns([config])
    # What is loaded by now stays: looking through it again and again would
    # hold up datagrams for milliseconds.
    gc.freeze()
    # A hang-up is no reason to drop everybody's datagrams, and until the role
    # runs there is nothing to reload.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def chooseTurns(roles: Iterable[RoleConfig]) -> None:
    """
    Take short turns on a processor if one of some roles has links.

    Who moves the bytes of connections only is a tenth faster with long ones.
    """
    if any(isinstance(each, LocalConfig | ServerConfig) for each in roles):
        shortenTurns()


def roleService(make: Callable[[Any], Any], options: RoleOptions[Any]) -> MultiService:
    """
    The service that twistd starts.

    @param make: makes the role's service, given the reactor.
    @param options: the command line.
    """
    from twisted.internet import reactor

    prepareProcess(reactor, options.config)
    try:
        return RoleService(make(reactor), options, reactor)
    except ConfigError as error:
        raise SystemExit(f"twistd: {error}") from None
