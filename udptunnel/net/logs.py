"""
Log lines: one line for one event, of text or of JSON, without what is to be left out.

twistd chooses where they go: standard output, a file or syslog. It does so
after the service is made, and takes no observer of ours without giving up its
own choice. L{useLogLines} therefore stands in the one place that every way to
start Twisted comes through, C{globalLogBeginner.beginLoggingTo}, and has each
observer that is installed there get our lines. Nothing is logged before: what
was said earlier is kept, and repeated to them.

The functions stand in the order in which an event meets them.
"""

from __future__ import annotations

import json
import math
import os
import select
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatEventAsClassicLogText,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.config import RoleConfig
from udptunnel.net.redaction import LeftOut, Redaction, withoutSecrets
from udptunnel.wire.address import Address

SPAN_SECONDS = 10.0
"""Events of one kind are counted for so long."""

MOST_ALIKE = 5
"""How many of them are written within that time."""

MOST_KINDS = 1000
"""Kinds that are counted at once; what printed lines say is a kind, too, and may be anything."""

_VERBATIM = ("{log_io}", "{log_text}")
"""Formats of events that are nothing but a text: lines that somebody printed, and what the old log was told."""

_TAKEN = frozenset(("time", "level", "system", "text", "message", "format", "isError", "failure"))
"""Names of fields that are ours, or that the old log gives to each event."""


class Lines:
    """
    What became of the lines of this process.

    @ivar written: how many were.
    @ivar lost: how many nobody took: the disk is full, or the reader is gone.
    @ivar suppressed: how many were much like others.
    """

    def __init__(self) -> None:
        self.written = self.lost = self.suppressed = 0

    def report(self) -> dict[str, int]:
        """The figures as plain values."""
        return {"lost": self.lost, "suppressed": self.suppressed, "written": self.written}


lines = Lines()
"""Those of this process; there is one log."""


def useLogLines(config: RoleConfig, reactor: Any, beginner: Any = globalLogBeginner) -> None:
    """
    Have everything that is logged from the beginning on written as our lines.

    @param beginner: a C{LogBeginner}.
    """
    begin = beginner.beginLoggingTo
    if getattr(begin, "writesLines", False):
        # Another role in the same process has seen to it.
        return

    def beginLoggingTo(observers: Iterable[Any], *rest: Any, **named: Any) -> None:
        journals = [Journal(each, Style(config), reactor.seconds) for each in observers]
        for journal in journals:
            _summarise(reactor, journal)
        begin(journals, *rest, **named)

    beginLoggingTo.writesLines = True  # type: ignore[attr-defined]
    beginner.beginLoggingTo = beginLoggingTo


def _summarise(reactor: Any, journal: Journal) -> None:
    """What was suppressed is told even if nothing else happens any more."""
    calls = LoopingCall(journal.summarise)
    calls.clock = reactor
    reactor.callWhenRunning(calls.start, SPAN_SECONDS, now=False)


@implementer(ILogObserver)
class Journal:
    """Takes events, and has their lines written by another observer."""

    def __init__(self, observer: Any, style: Style, clock: Callable[[], float]) -> None:
        """
        @param observer: of a file, or any other.
        @param clock: one that nobody sets; the time in an event is that of the wall.
        """
        self._write = _writerOf(observer)
        self._style = style
        self._repeats = Repeats(clock)
        # Threads log, too; and a signal may interrupt a line, and be logged itself.
        self._turn = threading.RLock()

    def __call__(self, event: LogEvent) -> None:
        """Write an event, unless nobody wants to know, or there were too many like it."""
        if event.get("log_level", LogLevel.critical) < self._style.least:
            return
        with self._turn:
            self._writeSummaries()
            if self._repeats.admits(event):
                self._writeOne(event, 0)
            else:
                lines.suppressed += 1

    def summarise(self) -> None:
        """Tell what was suppressed, if its time is over."""
        with self._turn:
            self._writeSummaries()

    def _writeSummaries(self) -> None:
        for event, count in self._repeats.over():
            self._writeOne(event, count)

    def _writeOne(self, event: LogEvent, more: int) -> None:
        try:
            self._write(self._style.plain(event, more), self._style.line)
        except Exception:
            # A full disk, a reader that is gone, a value that can not be shown: nothing of it may reach whoever logs.
            lines.lost += 1
        else:
            lines.written += 1


# -- too many of one kind


class _Kind:
    """Events that are alike."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.last: LogEvent = {}


class Repeats:
    """Counts events of one namespace and format."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def admits(self, event: LogEvent) -> bool:
        """Whether there were not too many of this kind yet."""
        key = _kindOf(event)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MOST_KINDS:
                return True
            kind = self._kinds[key] = _Kind(self._clock())
        kind.count += 1
        kind.last = event
        return kind.count <= MOST_ALIKE

    def over(self) -> list[tuple[LogEvent, int]]:
        """Kinds whose time is over: the last event, and how many were suppressed, if any were."""
        ended = []
        while self._kinds:
            # The oldest stands first.
            key, kind = next(iter(self._kinds.items()))
            if self._clock() - kind.since < SPAN_SECONDS:
                break
            del self._kinds[key]
            if kind.count > MOST_ALIKE:
                ended.append((kind.last, kind.count - MOST_ALIKE))
        return ended


def _kindOf(event: LogEvent) -> tuple[str, str]:
    text = str(event.get("log_format", ""))
    if text in _VERBATIM:
        text = str(event.get(text[1:-1]))
    return str(event.get("log_namespace")), text


# -- from events to lines


_LEVELS = {
    **dict.fromkeys(("none", "0"), LogLevel.critical),
    **dict.fromkeys(("error", "1"), LogLevel.error),
    **dict.fromkeys(("warning", "2"), LogLevel.warn),
    **dict.fromkeys(("notice", "3", "info", "4"), LogLevel.info),
    **dict.fromkeys(("debug", "5"), LogLevel.debug),
}
"""The levels of C{--loglevel}, which are badvpn's. What ends the process is told even with none."""


class Style:
    """
    How events become lines, going by C{--log-format}, C{--redact} and C{--loglevel}.

    @ivar least: events below this level are left out.
    """

    def __init__(self, config: RoleConfig) -> None:
        self._redaction = Redaction(config) if config.redact else None
        self.least = _LEVELS[getattr(config, "loglevel", "debug")]
        self.line: Callable[[LogEvent], str] = jsonLine if config.logFormat == "json" else textLine

    def plain(self, event: LogEvent, more: int = 0) -> LogEvent:
        """
        An event of texts and numbers alone, which may be shown as it is.

        @param more: how many more like it there were.
        """
        fields = dict(event) if self._redaction is None else self._redaction.fields(event)
        text, trace = _textAndTrace(fields)
        if more:
            text, fields["more"] = f"{text} ... {more} more like this", more
        shown = {name: self._shown(value) for name, value in fields.items() if _isPlain(name, value)}
        return {
            **shown,
            "log_time": event.get("log_time"),
            "log_level": event.get("log_level") or LogLevel.info,
            "log_namespace": str(event.get("log_namespace", "-")),
            "log_format": "{log_text}",
            "log_text": "\n".join(self._shown(each) for each in (text, *trace)),
            **({"log_system": self._shown(str(event["log_system"]))} if "log_system" in event else {}),
            # The old log, such as syslog's, asks for these.
            "message": (),
            "isError": int(bool(event.get("isError")) or event.get("log_level") in (LogLevel.error, LogLevel.critical)),
        }

    def _shown(self, value: Any) -> Any:
        # JSON has no infinity.
        if isinstance(value, Address | LeftOut) or (isinstance(value, float) and not math.isfinite(value)):
            value = str(value)
        if not isinstance(value, str):
            return value
        value = withoutSecrets(value)
        return escape(value if self._redaction is None else self._redaction.text(value))


def escape(text: str) -> str:
    """A text without newlines, terminal sequences and all else that could make one line look like another."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _isPlain(name: str, value: object) -> bool:
    """Whether a field may stand in a line by itself."""
    own = name in _TAKEN or name.startswith("log_")
    return not own and isinstance(value, str | int | float | Address | LeftOut | None)


def _textAndTrace(event: LogEvent) -> tuple[str, list[str]]:
    """What an event says, and the lines of its traceback, if it has one."""
    failure = event.get("log_failure") or event.get("failure")
    if not isinstance(failure, Failure):
        return formatEvent(event), []
    # The old log has put the traceback into the text already.
    old = "log_failure" not in event
    text = str(event.get("why") or "Unhandled Error") if old else formatEvent(event)
    return text, failure.getTraceback().rstrip("\n").split("\n")


def textLine(event: LogEvent) -> str:
    """The line for people, just as twistd writes it."""
    return formatEventAsClassicLogText(event) or ""


def jsonLine(event: LogEvent) -> str:
    """One JSON object."""
    if not event["log_text"]:
        return ""
    own = {
        "time": _utc(event["log_time"]),
        "level": event["log_level"].name,
        "system": event.get("log_system", event["log_namespace"]),
        "text": event["log_text"],
    }
    others = {name: value for name, value in event.items() if not name.startswith("log_") and name not in _TAKEN}
    return json.dumps(own | others) + "\n"


def _utc(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


# -- where lines go


def _writerOf(observer: Any) -> Callable[[LogEvent, Callable[[LogEvent], str]], None]:
    """What writes a plain event in a style."""
    if not isinstance(observer, FileLogObserver):
        return lambda event, line: observer(event if line is textLine else event | {"log_text": line(event).rstrip()})
    # It has no other name, and a file that was deleted is to be opened again.
    file = _File(observer._outFile)
    return lambda event, line: file.write(line(event))


class _File:
    """The file, or the standard output, that twistd has opened."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._broken = False

    def write(self, line: str) -> None:
        """Write a line, or raise why that can not be done."""
        if not line:
            return
        self._openAgain()
        if not self._hasRoom():
            raise BlockingIOError
        # Of the line before, a part may have been written.
        broken, self._broken = self._broken, True
        self._file.write("\n" + line if broken else line)
        self._file.flush()
        self._broken = False

    def _openAgain(self) -> None:
        """Somebody may have deleted or moved the file. If there can be no new one, the old one still takes lines."""
        path = getattr(self._file, "path", None)
        if path is not None and not os.path.exists(path) and os.access(os.path.dirname(path), os.W_OK):
            self._file.reopen()

    def _hasRoom(self) -> bool:
        """Whether writing does not block: the reader of a pipe may be there, and not read."""
        try:
            asked = select.poll()
            asked.register(self._file.fileno(), select.POLLOUT)
        except (AttributeError, OSError, ValueError):
            return True
        return bool(asked.poll(0))
