"""
The status endpoint: the state of a role over HTTP, to be read and nothing else.

C{/metrics} is for Prometheus, C{/status.json} for programs and for
C{udptunnel status}, C{/healthz} for whatever restarts a role that is ill. All
of it comes from the role's C{report()} at the moment of the request, and from
the reactor itself: the thread pool, which C{prometheus_client}'s own resource
would use, may be full of names that nobody answers for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from udptunnel import __version__
from udptunnel.services.listening import Listening
from udptunnel.wire.address import normalHost

Report = Mapping[str, Any]
"""The state of a role as plain values; what it does not say is left out of the answers."""

VERSION = 1
"""The version of C{/status.json}; while it stays the same, the names in it keep their meaning."""

LIMIT_SECONDS = 10.0
"""A connection has its answer within this time or not at all, however it spreads its bytes."""

MOST_CONNECTIONS = 32
"""Connections at once; one more is closed."""

REQUEST_BYTES = 8192
"""The largest request: what browsers send is smaller, unless somebody else's cookies are in it."""


# -- metrics

_GAUGES = (
    ("up", ("up",), "Whether a link is up (udp-local), or links are accepted (udp-server)."),
    ("draining", ("draining",), "Whether the role is about to stop."),
    ("sessions", ("sessionCount", "sessions"), "Sessions, parked ones included."),
    ("parked_sessions", ("parkedCount",), "Sessions without a link, which keep their external ports for a while."),
    ("links", ("links",), "Links."),
    ("half_open", ("halfOpen",), "Connections that are not logged in."),
    ("associations", ("associations",), "UDP sources that are remembered."),
    ("external_ports", ("externalPorts",), "UDP ports towards targets."),
)
"""Name, keys of the report (the first one that is there counts), help. A list stands for its length."""

_COUNTERS = (
    ("evicted", "evicted", "Associations that had to make room for others."),
    ("resumed", "resumed", "Sessions that came back to what they had left."),
    ("mappings_lost", "mappingsLost", "Associations that came back to another external port."),
    ("reconnects", "reconnects", "Links that came up in place of a lost one."),
)

_PAIRS = (
    ("datagrams", "direction", {"sent": "sent", "received": "received"}, "Datagrams of our UDP sockets."),
    ("bytes", "direction", {"sent": "sentBytes", "received": "receivedBytes"}, "Bytes in these datagrams."),
)

_SPREADS = (
    ("link_round_trip_seconds", "roundTrip", "Round trip of links, with what waits on the path."),
    ("link_smallest_round_trip_seconds", "smallestRoundTrip", "Round trip of links while the path was empty."),
    ("link_queue_delay_seconds", "queueDelay", "Time that datagrams wait for a link."),
)
"""
Each is the least, the median and the largest of all links. A link has no
label of its own: each new one would be a new series, and there may be
thousands.
"""

_SUMS = (
    ("link_queue_bytes", "queuedBytes", "Bytes that wait for a link."),
    ("link_flying_bytes", "flyingBytes", "Bytes that were sent over links and are not known to have arrived."),
)


class ReportCollector(Collector):
    """The metrics in a role's report, as it is when somebody asks."""

    def __init__(self, role: str, report: Callable[[], Report]) -> None:
        self._role = role
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """All metrics that the report has something for."""
        report = self._report()
        yield InfoMetricFamily("udptunnel", "Which program this is.", {"role": self._role, "version": __version__})
        yield from _plainMetrics(report)
        yield from _labelledMetrics(report)
        links = list(_links(report))
        if links:
            yield from _linkMetrics(links)


def _plainMetrics(report: Report) -> Iterator[Metric]:
    for name, keys, text in _GAUGES:
        value = next((report[key] for key in keys if key in report), None)
        if value is not None:
            yield GaugeMetricFamily(f"udptunnel_{name}", text, _number(value))
    for name, key, text in _COUNTERS:
        if key in report:
            yield CounterMetricFamily(f"udptunnel_{name}", text, _number(report[key]))


def _number(value: Any) -> float:
    return float(len(value) if isinstance(value, list | tuple) else value)


def _labelledMetrics(report: Report) -> Iterator[Metric]:
    for name, label, keys, text in _PAIRS:
        yield _labelled(name, text, label, {word: report[key] for word, key in keys.items() if key in report})
    yield _labelled("dropped", "Datagrams that went no further.", "reason", report.get("dropped", {}))
    yield _labelled("logins", "Links that asked to be let in.", "result", report.get("logins", {}))


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = CounterMetricFamily(f"udptunnel_{name}", text, labels=[label])
    for word, value in values.items():
        metric.add_metric([word], value)
    return metric


def _links(report: Report) -> Iterator[Mapping[str, Any]]:
    """The links that a report describes: udp-local's own, or those of udp-server's sessions."""
    for holder in (report, *_listOf(report, "sessions")):
        yield from _listOf(holder, "links")


def _listOf(holder: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = holder.get(key)
    return value if isinstance(value, list | tuple) else ()


def _linkMetrics(links: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for name, key, text in _SPREADS:
        values = [link[key] for link in links if key in link]
        if values:
            yield _spread(name, text, values)
    for name, key, text in _SUMS:
        yield GaugeMetricFamily(f"udptunnel_{name}", text, sum(link.get(key, 0) for link in links))


def _spread(name: str, text: str, values: Sequence[float]) -> Metric:
    metric = GaugeMetricFamily(f"udptunnel_{name}", text, labels=["of"])
    for word, value in (("least", min(values)), ("median", median(values)), ("most", max(values))):
        metric.add_metric([word], value)
    return metric


# -- who may ask

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?")


def mayAsk(request: Request) -> bool:
    """
    Whether a request is meant for us.

    A page from elsewhere can make a browser send requests to this machine. If
    it does so under a name of its own, which it lets point to a loopback
    address (DNS rebinding), the Host header holds that name; if not, the
    Origin header names the page. No browser can reach a Unix socket.
    """
    bound = request.getHost()
    if isinstance(bound, UNIXAddress):
        return not request.requestHeaders.hasHeader(b"origin")
    host, scheme = _onlyHeader(request, "host"), "https" if request.isSecure() else "http"
    known = {"localhost", "127.0.0.1", "::1", normalHost(str(getattr(bound, "host", "")))}
    return _hostIn(host) in known and _onlyHeader(request, "origin") in ("", f"{scheme}://{host}")


def _onlyHeader(request: Request, name: str) -> str:
    """A header's text in lower case; if it stands there several times all of them, which is no host."""
    return ", ".join(request.requestHeaders.getRawHeaders(name, [])).lower()


def _hostIn(header: str) -> str:
    """The host in a Host header, without its port."""
    found = _HOST.fullmatch(header)
    return normalHost(found[1].strip("[]")) if found is not None else ""


# -- answers


class StatusResource(Resource):
    """
    Everything that can be asked for.

    @ivar isLeaf: it looks at the whole path itself.
    """

    isLeaf = True

    def __init__(self, pages: Mapping[bytes, Callable[[], tuple[int, str, bytes]]]) -> None:
        """
        @param pages: by path, what makes an answer: status code, content type, body.
        """
        super().__init__()
        self._pages = pages

    def render(self, request: Request) -> bytes:
        """The answer to one request."""
        code, kind, body = self._answer(request)
        request.setResponseCode(code)
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        request.setHeader("content-type", kind)
        request.setHeader("content-length", str(len(body)))
        return body if request.method != b"HEAD" else b""

    def _answer(self, request: Request) -> tuple[int, str, bytes]:
        if not mayAsk(request):
            return _text(403, "ask under the address that this endpoint is bound to, or localhost")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("allow", "GET, HEAD")
            return _text(405, "this can only be read")
        page = self._pages.get(request.path)
        return page() if page is not None else _text(404, "there are /metrics, /status.json and /healthz")


_HEADERS = {
    "cache-control": "no-store",
    "connection": "close",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def _text(code: int, text: str) -> tuple[int, str, bytes]:
    return code, "text/plain; charset=utf-8", f"{text}\n".encode()


def _finite(value: Any) -> Any:
    """A value as JSON can say it; infinity is not among that."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- connections


class _Channel(HTTPChannel):
    """
    A connection: one request, one answer, and a time for both.

    The answer is there as soon as the request's headers are, and with it
    nothing more is read. So whoever sends a request and closes its side at
    once has its answer too.
    """

    maxHeaders = 64
    totalHeadersSize = REQUEST_BYTES
    MAX_LENGTH = REQUEST_BYTES
    site: _StatusSite
    transport: Any
    _deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin."""
        super().connectionMade()
        self.site.channels.add(self)
        self._deadline = self.callLater(LIMIT_SECONDS, self.transport.abortConnection)

    def allHeadersReceived(self) -> None:
        """The request is complete: whatever body follows, nobody reads it."""
        self.length = 0
        super().allHeadersReceived()

    def rawDataReceived(self, data: bytes) -> None:
        """Something has come behind the request; it is not kept."""

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """There is no second request."""
        return False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self.site.channels.discard(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)


class _Request(Request):
    """A request whose answer does not say by whose program it was made."""

    def setHeader(self, name: bytes | str, value: bytes | str) -> None:
        """Set a header."""
        if name != b"Server":
            super().setHeader(name, value)


class _StatusSite(Site):
    """
    Makes channels, and writes no log line for each request.

    @ivar channels: those that are open.
    """

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, resource: Resource, reactor: IReactorTime) -> None:
        # Idle or busy, the channel's own time is the one that counts.
        super().__init__(resource, _Request, timeout=None, reactor=reactor)
        self.channels: set[_Channel] = set()
        self.displayTracebacks = False

    def buildProtocol(self, addr: Any) -> Any:
        """A channel, unless there are enough."""
        return super().buildProtocol(addr) if len(self.channels) < MOST_CONNECTIONS else None

    def acceptableProtocols(self) -> list[bytes]:
        """On a TLS endpoint, HTTP/2 would not be our channel."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Open no log."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: Any) -> None:
        """Say nothing."""


# -- the service


class StatusService(Service):
    """
    Serves the state of a role.

    @ivar listening: where.
    """

    def __init__(
        self,
        role: str,
        endpoint: str,
        report: Callable[[], Report],
        healthy: Callable[[], str],
        reactor: Any,
        allowed: bool = False,
    ) -> None:
        """
        @param endpoint: a server endpoint string; a Unix socket is for its owner alone unless it says C{mode=}.
        @param healthy: says what is wrong, or nothing.
        @param allowed: whether others than this machine may ask.
        @raise ConfigError: the endpoint can not be understood.
        """
        self.setName("status")
        self._role = role
        self._allowed = allowed
        self._report = report
        self._healthy = healthy
        self._clock: Callable[[], float] = reactor.seconds
        self._startedAt = self._clock()
        self._registry = CollectorRegistry()
        self._registry.register(ReportCollector(role, report))
        pages = {b"/metrics": self._metrics, b"/status.json": self._status, b"/healthz": self._health}
        self._site = _StatusSite(StatusResource(pages), reactor)
        self.listening = Listening(reactor, "status", _ownersOnly(endpoint), self._site)

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(self._registry)

    def _status(self) -> tuple[int, str, bytes]:
        uptime = round(self._clock() - self._startedAt, 3)
        state = {"version": VERSION, "role": self._role, "uptime": uptime, **self._report()}
        return 200, "application/json", json.dumps(_finite(state), default=str).encode()

    def _health(self) -> tuple[int, str, bytes]:
        wrong = self._healthy()
        return _text(503, wrong) if wrong else _text(200, "ok")

    def startService(self) -> None:
        """
        Open the port.

        @raise ListenError: it is taken, or others could reach it although they may not.
        """
        self.listening.start(self._allowed)
        self._startedAt = self._clock()
        super().startService()

    async def stopService(self) -> None:
        """Close the port, and what came in by it."""
        super().stopService()
        await self.listening.stop()
        for channel in list(self._site.channels):
            channel.transport.abortConnection()


def _ownersOnly(endpoint: str) -> str:
    """An endpoint string; Twisted would let everybody use a Unix socket."""
    return f"{endpoint}:mode=600" if endpoint.startswith("unix:") and ":mode=" not in endpoint else endpoint
