"""
What the command lines of all roles have in common.

A role's options are made from the fields of its configuration, so that an
option, its help and its check are written once. What is wrong ends the
process with one line and exit status 1.
"""

from __future__ import annotations

import dataclasses
import gc
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from twisted.application.service import MultiService, Service
from twisted.python import usage

from udptunnel.config import fill, optionName, readToml
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.descriptors import raiseDescriptorLimit

Config = TypeVar("Config")

GARBAGE_THRESHOLDS = (50_000, 20, 50)
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

    def parseArgs(self, *words: str) -> None:
        """There are none."""
        if words:
            raise usage.UsageError(f"{words[0]}: every option begins with --")

    def postOptions(self) -> None:
        """Make the configuration, first from the file, then from the command line."""
        self.config = fill(self.kind, self["texts"], self._readFile())

        self._choosePidFile()

    def _choosePidFile(self) -> None:
        """
        Both ends may be started in one folder: twistd's own name for the file
        would let the second one refuse, even in the foreground.
        """
        parent = getattr(self, "parent", None)
        if parent is not None and parent.get("pidfile") == "twistd.pid":
            parent["pidfile"] = "" if parent.get("nodaemon") else f"{self.role}.pid"

    def getUsage(self, width: int | None = None) -> str:
        """The options, and examples as they are to be typed."""
        return f"{super().getUsage(width)}\n{self.examples}"

    def _readFile(self) -> Any:
        name = self.get("config")
        if name is None:
            return None
        try:
            with open(name, encoding="utf-8") as file:
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


class RoleService(MultiService):
    """
    The top of a role's services: what can not be started ends the process.
    """

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


def prepareProcess(reactor: Any) -> None:
    """
    Make the process fit for relaying: time that no clock setting can stop,
    and as many descriptors as this user may have.
    """
    reactor.seconds = time.monotonic
    raiseDescriptorLimit()
    # What is loaded by now stays: looking through it again and again would
    # hold up datagrams for milliseconds.
    gc.freeze()
    # A hang-up is no reason to drop everybody's datagrams.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def roleService(make: Callable[[Any], Service]) -> MultiService:
    """
    The service that twistd starts.

    @param make: makes the role's service, given the reactor.
    """
    from twisted.internet import reactor

    prepareProcess(reactor)
    top = RoleService()
    try:
        make(reactor).setServiceParent(top)
    except ConfigError as error:
        raise SystemExit(f"twistd: {error}") from None
    return top
