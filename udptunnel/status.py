"""
C{udptunnel status}: reads the state of a role from its status endpoint, and shows it.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any, TextIO

from twisted.python import usage

from udptunnel.config import number
from udptunnel.errors import AddressError, ConfigError, TunnelError
from udptunnel.wire.address import Address

Report = Mapping[str, Any]
"""What C{/status.json} says."""

DEFAULT = "http://127.0.0.1:9876"
"""Where the state is read if nothing else is said."""

PATIENCE_SECONDS = 5.0
"""The role answers at once, or something is wrong."""

LARGEST_ANSWER = 16 << 20
"""A thousand sessions with dozens of links."""

LONGEST_TEXT = 60
"""Longer texts of the other side are cut."""


class StatusError(TunnelError):
    """The state could not be read. The text says where, why and what to do."""


class StatusOptions(usage.Options):
    """udptunnel status."""

    synopsis = "[options] [ENDPOINT]"
    longdesc = f"""Shows the state of a udp-local or udp-server that was started with --status.
ENDPOINT is where: {DEFAULT} (the default), HOST:PORT, unix:PATH or
a path. Exit status 0 if it is up, 1 if it is down or can not be reached."""
    optFlags = [  # noqa: RUF012
        ["json", None, "Show the state as JSON, on one line."],
        ["watch", "w", "Look again and again, and show what happens per second."],
    ]
    optParameters = [  # noqa: RUF012
        ["interval", "i", 2.0, "Seconds between two looks.", number(0.1, 86_400)],
    ]

    def parseArgs(self, endpoint: str = DEFAULT) -> None:
        """Where."""
        self["endpoint"] = endpoint


def status(options: StatusOptions) -> int:
    """
    Run the command.

    @return: its exit status.
    """
    try:
        look = reader(options["endpoint"])
    except ConfigError as error:
        print(f"udptunnel status: {error}", file=sys.stderr)
        return 1
    show = asJson if options["json"] else asTable
    if options["watch"]:
        return watch(look, show, sys.stdout, lambda: time.sleep(options["interval"]))
    try:
        report = look()
    except StatusError as error:
        print(f"udptunnel status: {error}", file=sys.stderr)
        return 1
    print(show(report, None))
    return exitStatus(report)


# -- reading


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        from udptunnel.net.platforms import require

        require("unix:PATH")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(self._path)


def reader(endpoint: str) -> Callable[[], Report]:
    """
    What reads the state at C{http://HOST:PORT}, C{HOST:PORT}, C{unix:PATH} or a path, or raises L{StatusError}.

    @raise ConfigError: the text is none of these.
    """
    connect = _connecting(endpoint)

    def read() -> Report:
        try:
            return _read(connect())
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StatusError(f"{endpoint}: {escape(why)}; was the role started with --status?") from error

    return read


def _connecting(endpoint: str) -> Callable[[], HTTPConnection]:
    text = endpoint.removeprefix("http://").removesuffix("/") if endpoint.startswith("http://") else endpoint
    if endpoint.startswith("unix:") or "/" in text or ":" not in text:
        path = endpoint.removeprefix("unix:")
        return lambda: _UnixConnection(path)
    try:
        host, port = Address.parse(text)
    except AddressError as error:
        raise ConfigError(f"{endpoint}: expected http://HOST:PORT, HOST:PORT, unix:PATH or a path") from error
    return lambda: HTTPConnection(host, port, timeout=PATIENCE_SECONDS)


def _read(connection: HTTPConnection) -> Report:
    try:
        connection.request("GET", "/status.json")
        answer = connection.getresponse()
        body = answer.read(LARGEST_ANSWER)
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"the answer is {answer.status} {body[:LONGEST_TEXT].decode('utf-8', 'replace').strip()}")
    report = json.loads(body)
    if not isinstance(report, dict) or report.get("version") != 1:
        raise ValueError("the answer is not the state of a role")
    return report


# -- showing

Show = Callable[[Report, Report | None], str]
"""Makes a text of a state and the one before."""


def exitStatus(report: Report) -> int:
    """0 if the role is up."""
    return 0 if report.get("up") else 1


def asJson(report: Report, before: Report | None) -> str:
    """A state as it came; what was escaped stays escaped."""
    return json.dumps(report)


def asTable(report: Report, before: Report | None) -> str:
    """A state for people."""
    return "\n".join((*_headLines(report), *_tableLines(report), *_countLines(report, before)))


def watch(look: Callable[[], Report], show: Show, out: TextIO, pause: Callable[[], None]) -> int:
    """
    Look again and again until the user has seen enough.

    @param pause: returns when it is time to look again.
    @return: the exit status that the last look means.
    """
    before, code = None, 1
    try:
        while True:
            text, before, code = _lookOnce(look, show, before)
            out.write(_onScreen(text) if out.isatty() and show is not asJson else f"{text}\n")
            out.flush()
            pause()
    except KeyboardInterrupt:
        return code


def _lookOnce(look: Callable[[], Report], show: Show, before: Report | None) -> tuple[str, Report | None, int]:
    try:
        report = look()
    except StatusError as error:
        return str(error), None, 1
    return show(report, before), report, exitStatus(report)


def _onScreen(text: str) -> str:
    """A text from the upper left corner of a terminal on, over what was there, as far as there is room."""
    rows = max(1, shutil.get_terminal_size().lines - 1)
    return "\x1b[H\x1b[J" + "\n".join(text.splitlines()[:rows]) + "\n"


def _headLines(report: Report) -> Iterator[str]:
    to = f" to {escape(report['server'])}" if "server" in report else ""
    session = f", session {escape(report['session'])}" if isinstance(report.get("session"), str) else ""
    state = "draining" if report.get("draining") else "up" if report.get("up") else "DOWN"
    yield f"{escape(report.get('role', '?'))}{to}: {state}{session}, running for {_time(report.get('uptime'))}"
    amounts = [f"{word} {_amount(report, key)}" for key, word in _AMOUNTS.items() if key in report]
    yield ", ".join((*amounts, "portable path") if report.get("portable") is True else amounts)


_AMOUNTS = {
    "sessionCount": "sessions",
    "parkedCount": "parked",
    "links": "links",
    "halfOpen": "not logged in",
    "associations": "associations",
    "externalPorts": "external ports",
    "reconnects": "reconnects",
    "resumed": "resumed",
    "mappingsLost": "mappings lost",
    "evicted": "evicted",
    "offload": "offload",
}
"""What a state counts, in the order in which it is shown."""


def _amount(report: Report, key: str) -> str:
    value = report[key]
    return str(len(value)) if isinstance(value, list) else escape(value)


# -- tables

_Row = Sequence[str]

_LINK_HEAD = ("link", "peer", "age", "round trip ms", "queue ms", "queued", "sent", "received")
_SESSION_HEAD = ("session", "user", "age", "links", "associations", "round trip ms", "queue ms", "queued")


def _tableLines(report: Report) -> Iterator[str]:
    """udp-local's links, or udp-server's sessions."""
    if sessions := _listOf(report, "sessions"):
        yield from _columns(_SESSION_HEAD, [_sessionRow(each) for each in sessions])
        if (more := next(iter(_numbers([report.get("sessionCount")])), 0) - len(sessions)) > 0:
            yield f"and {more} more"
    elif links := _listOf(report, "links"):
        yield from _columns(_LINK_HEAD, [_linkRow(each) for each in links])


def _listOf(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = holder.get(key)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _linkRow(link: Mapping[str, Any]) -> _Row:
    times = (_time(link.get("age")), _milliseconds(link.get("roundTrip")), _milliseconds(link.get("queueDelay")))
    amounts = (_count(link.get(key)) for key in ("queuedBytes", "sentBytes", "receivedBytes"))
    return (escape(link.get("id", "-")), escape(link.get("peer", "-")), *times, *amounts)


def _sessionRow(session: Mapping[str, Any]) -> _Row:
    links = _listOf(session, "links")
    trips, delays, queued = ([link.get(key) for link in links] for key in ("roundTrip", "queueDelay", "queuedBytes"))
    count = "parked" if session.get("parked") else str(len(links))
    return (
        *(escape(session.get(key) or "-") for key in ("name", "user")),
        _time(session.get("age")),
        count,
        escape(session.get("associations", "-")),
        _milliseconds(min(_numbers(trips), default=None)),
        _milliseconds(max(_numbers(delays), default=None)),
        _count(sum(_numbers(queued))),
    )


def _columns(head: _Row, rows: Sequence[_Row]) -> Iterator[str]:
    """A table with columns as wide as what is in them, texts on the left and numbers on the right."""
    yield ""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (
            f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _countLines(report: Report, before: Report | None) -> Iterator[str]:
    """What was counted, and with a state from before, how much of it per second."""
    now, old, seconds = _counts(report), _counts(before or {}), _between(before, report)
    rows = [(name, _count(value), _rate(value - old.get(name, 0), seconds)) for name, value in now.items()]
    head = ("since the start", "", "per second" if seconds else "")
    yield ""
    for name, value, rate in (head, *rows):
        yield f"{name:<32}{value:>12}{rate:>12}".rstrip()


def _counts(report: Report) -> dict[str, float]:
    """All counters of a state, by the name that is shown."""
    plain = {name: report.get(key) for key, name in _COUNTED.items()}
    dropped = {f"dropped, {escape(why)}": value for why, value in _within(report, "dropped")}
    logins = {f"logins {escape(how)}": value for how, value in _within(report, "logins")}
    return {name: value for name, value in {**plain, **dropped, **logins}.items() if _isNumber(value)}


_COUNTED = {
    "sent": "datagrams sent",
    "received": "datagrams received",
    "sentBytes": "bytes sent",
    "receivedBytes": "bytes received",
}


def _within(report: Report, key: str) -> Iterable[tuple[str, Any]]:
    value = report.get(key)
    return sorted(value.items()) if isinstance(value, dict) else ()


def _between(before: Report | None, report: Report) -> float:
    """Seconds between two states; 0 if there was none before, or the role was started in between."""
    uptimes = _numbers((each or {}).get("uptime") for each in (before, report))
    return max(0.0, uptimes[1] - uptimes[0]) if len(uptimes) == 2 else 0.0


def _rate(more: float, seconds: float) -> str:
    return _count(more / seconds) if seconds else ""


# -- texts


def escape(value: object, longest: int = LONGEST_TEXT) -> str:
    """
    A value of the other side as a text that a terminal only shows: no control
    characters, nothing that turns the direction of writing, and not endless.
    """
    text = str(value)
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:longest])
    return shown if len(text) <= longest else f"{shown}..."


def _isNumber(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if _isNumber(value)]


def _milliseconds(value: Any) -> str:
    return f"{1e3 * value:.1f}" if _isNumber(value) else "-"


def _time(value: Any) -> str:
    """Seconds as C{h:mm:ss}, behind the days if there are any."""
    if not _isNumber(value):
        return "-"
    minutes, seconds = divmod(int(value), 60)
    days, minutes = divmod(minutes, 24 * 60)
    return (f"{days} d " if days else "") + f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _count(value: Any) -> str:
    """A number with a letter for its thousands, in three or four digits."""
    if not _isNumber(value):
        return "-"
    power = 0
    while abs(value) >= 9999.5 and power < 4:
        value, power = value / 1000, power + 1
    letter = ("", "k", "M", "G", "T")[power]
    return f"{value:.0f}{letter}" if value == int(value) or value >= 100 else f"{value:.1f}{letter}"
