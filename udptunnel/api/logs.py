"""Log lines for a callback: what this package logs, as texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.threadable import isInIOThread
from zope.interface import implementer

from udptunnel.errors import ConfigError
from udptunnel.net.logs import Journal, Style

PACKAGE = "udptunnel"

LEVELS = tuple(level.name for level in LogLevel.iterconstants())


@implementer(ILogObserver)
class LogTap:
    """
    Gives what is logged to one who wants to hear it, in the reactor's thread, in the style that the profile asks for.
    """

    def __init__(self, profile: Any, least: str, reactor: Any, heard: Callable[[str, str, str], None]) -> None:
        """
        @param least: the least level, of L{LEVELS}.
        @param heard: called with the level, the module and the text.
        @raise ConfigError: there is no such level.
        """
        if least not in LEVELS:
            raise ConfigError(f"log {least}: expected {', '.join(LEVELS)}")
        self._least = LogLevel.lookupByName(least)
        self._reactor = reactor
        self._heard = heard
        self._journal = Journal(self._plain, Style(profile), reactor.seconds)
        self._telling = False

    def begin(self) -> None:
        """Listen."""
        globalLogPublisher.addObserver(self)

    def end(self) -> None:
        """Listen no more."""
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """Something was logged, in whatever thread."""
        level = event.get("log_level") or LogLevel.info
        if level < self._least or not _isOurs(event):
            return
        if isInIOThread() or not self._reactor.running:
            self._tell(event)
        else:
            self._reactor.callFromThread(self._tell, event)

    def _tell(self, event: LogEvent) -> None:
        # What goes wrong in telling is logged, too; that must not go round for ever.
        if self._telling:
            return
        self._telling = True
        try:
            self._journal(event)
        finally:
            self._telling = False

    def _plain(self, event: LogEvent) -> None:
        self._heard(event["log_level"].name, event["log_namespace"], event["log_text"])


def _isOurs(event: LogEvent) -> bool:
    """
    Whether somebody here has logged it, or might be the reason for it.

    What fails where nobody catches it is logged by Twisted, whoever's mistake it is.
    """
    return (
        str(event.get("log_namespace", "")).startswith(PACKAGE) or "log_failure" in event or bool(event.get("isError"))
    )
