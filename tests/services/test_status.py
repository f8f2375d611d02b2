"""Tests for L{udptunnel.services.status}."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import tempfile
from math import inf
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import MemoryReactorClock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.needs import needs
from udptunnel import __version__
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.testing import MortalTransport
from udptunnel.services.status import LIMIT_SECONDS, MOST_CONNECTIONS, REQUEST_BYTES, StatusService

LINK = {"id": 1, "up": True, "peer": "192.0.2.1:3456", "roundTrip": 0.03, "smallestRoundTrip": 0.02}
LINK |= {"queueDelay": 0.004, "queuedBytes": 1000, "flyingBytes": 500, "age": 9.0}

COUNTED = {"sent": 10, "sentBytes": 1000, "received": 8, "receivedBytes": 800, "dropped": {"queue too old": 2}}
COUNTED |= {"evicted": 1, "resumed": 2}

LOCAL = {"role": "udp-local", "up": True, "server": "tcp:192.0.2.1:3456", "session": "0011aabb", "links": [LINK]}
LOCAL |= {"associations": 3, "reconnects": 4, "mappingsLost": 5, "offload": "none", **COUNTED}

SESSION = {"name": "0011aabb", "user": "alice", "links": [LINK, {**LINK, "roundTrip": 0.05}], "associations": 3}
SERVER = {"role": "udp-server", "up": True, "draining": False, "sessions": [SESSION], "sessionCount": 7, "links": 9}
SERVER |= {"parkedCount": 6, "halfOpen": 1, "associations": 3, "externalPorts": 2}
SERVER |= {"logins": {"accepted": 7, "refused": 1}, **COUNTED}

LOOPBACK = IPv4Address("TCP", "127.0.0.1", 9876)


class Answer:
    """An HTTP answer, taken apart."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)


class MemoryTestCase(SynchronousTestCase):
    """A status service in memory."""

    role = "udp-server"

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.state: dict[str, Any] = {}
        self.wrong = ""
        self.transports: list[MortalTransport] = []
        # In memory every port is bound to 0.0.0.0.
        self.service = self.make("tcp:9876:interface=127.0.0.1", allowed=True)
        self.service.startService()
        self.addCleanup(self._checkReactor)

    def make(self, endpoint: str, **fields: Any) -> StatusService:
        """A service for what this test says."""
        return StatusService(self.role, endpoint, lambda: self.state, lambda: self.wrong, self.reactor, **fields)

    def _checkReactor(self) -> None:
        for transport in self.transports:
            if transport.connected:
                transport.die()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def connect(self, bound: Any = LOOPBACK) -> MortalTransport | None:
        """Somebody connects; C{None} if nobody wants that."""
        _, factory, *_ = self.reactor.tcpServers[0]
        protocol = factory.buildProtocol(None)
        if protocol is None:
            return None
        transport = MortalTransport(hostAddress=bound)
        transport.attach(protocol)
        self.transports.append(transport)
        return transport

    def say(self, raw: bytes, bound: Any = LOOPBACK) -> MortalTransport:
        """Connect, and say something."""
        transport = self.connect(bound)
        assert transport is not None
        transport.protocol.dataReceived(raw)
        return transport

    def ask(self, path: str, method: str = "GET", bound: Any = LOOPBACK, **headers: str) -> Answer:
        """One request, with a Host that is welcome unless the test says otherwise."""
        headers = {"Host": "localhost:9876", **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value != "-")]
        transport = self.say("\r\n".join([*lines, "", ""]).encode(), bound)
        self.assertTrue(transport.disconnecting)
        transport.die()
        return Answer(transport.value())

    def metrics(self) -> dict[tuple[str, ...], float]:
        """The samples of /metrics, by name and label values."""
        families = list(text_string_to_metric_families(self.ask("/metrics").body.decode()))
        samples = [sample for family in families for sample in family.samples]
        return {(each.name.removeprefix("udptunnel_"), *each.labels.values()): each.value for each in samples}


class MetricsTests(MemoryTestCase):
    """/metrics."""

    def test_server(self) -> None:
        """What udp-server reports is there under its name, summed over all clients."""
        self.state = SERVER
        expected = {
            ("info", "udp-server", __version__): 1,
            ("up",): 1,
            ("draining",): 0,
            ("sessions",): 7,
            ("parked_sessions",): 6,
            ("links",): 9,
            ("half_open",): 1,
            ("associations",): 3,
            ("external_ports",): 2,
            ("datagrams_total", "sent"): 10,
            ("datagrams_total", "received"): 8,
            ("bytes_total", "sent"): 1000,
            ("bytes_total", "received"): 800,
            ("dropped_total", "queue too old"): 2,
            ("evicted_total",): 1,
            ("resumed_total",): 2,
            ("logins_total", "accepted"): 7,
            ("logins_total", "refused"): 1,
            ("link_round_trip_seconds", "least"): 0.03,
            ("link_round_trip_seconds", "median"): 0.04,
            ("link_round_trip_seconds", "most"): 0.05,
            ("link_smallest_round_trip_seconds", "least"): 0.02,
            ("link_smallest_round_trip_seconds", "median"): 0.02,
            ("link_smallest_round_trip_seconds", "most"): 0.02,
            ("link_queue_delay_seconds", "least"): 0.004,
            ("link_queue_delay_seconds", "median"): 0.004,
            ("link_queue_delay_seconds", "most"): 0.004,
            ("link_queue_bytes",): 2000,
            ("link_flying_bytes",): 1000,
        }
        self.assertEqual(self.metrics(), expected)

    def test_local(self) -> None:
        """So is what udp-local reports."""
        self.state = LOCAL
        metrics = self.metrics()
        expected = {("up",): 1, ("links",): 1, ("reconnects_total",): 4, ("mappings_lost_total",): 5}
        expected |= {("link_round_trip_seconds", "median"): 0.03, ("link_queue_bytes",): 1000}
        self.assertEqual({key: metrics[key] for key in expected}, expected)
        self.assertNotIn(("sessions",), metrics)

    def test_missing(self) -> None:
        """What a report does not say is left out, and the rest is there."""
        self.assertEqual(list(self.metrics()), [("info", "udp-server", __version__)])
        self.state = {"sessions": 4, "links": [{}], "dropped": {}}
        metrics = self.metrics()
        self.assertEqual((metrics["sessions",], metrics["links",]), (4, 1))
        self.assertNotIn(("link_round_trip_seconds", "median"), metrics)

    def test_noNames(self) -> None:
        """No name of a client or of its user is a label."""
        self.state = SERVER
        body = self.ask("/metrics").body
        for name in (b"alice", b"0011aabb", b"192.0.2.1"):
            self.assertNotIn(name, body)

    def test_kind(self) -> None:
        """It says of itself what Prometheus reads."""
        self.assertEqual(self.ask("/metrics").headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")

    def test_fresh(self) -> None:
        """Each answer is made of the report as it is at that moment."""
        for evicted in (1, 2):
            self.state = {"evicted": evicted}
            self.assertEqual(self.metrics()["evicted_total",], evicted)

    def test_broken(self) -> None:
        """A report that can not be made is an error without a traceback, and the next one is there again."""
        self.state = {"evicted": "many"}
        answer = self.ask("/metrics")
        self.assertEqual(answer.status, 500)
        self.assertNotIn(b"Traceback", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.state = {}
        self.assertEqual(self.ask("/metrics").status, 200)

    def test_documented(self) -> None:
        """Each metric stands in the docs with its labels, and no other does."""
        self.state = {**LOCAL, **SERVER, "reconnects": 1, "mappingsLost": 1}
        made = set()
        for family in text_string_to_metric_families(self.ask("/metrics").body.decode()):
            for sample in family.samples:
                made.add(sample.name + ("{" + ",".join(sample.labels) + "}" if sample.labels else ""))
        page = (Path(__file__).parents[2] / "docs" / "howto" / "monitoring.md").read_text(encoding="utf-8")
        self.assertEqual(set(re.findall(r"^\| `(udptunnel_[^`]+)` \|", page, re.MULTILINE)), made)


class JsonTests(MemoryTestCase):
    """/status.json."""

    def test_report(self) -> None:
        """It is the report, with the version of its names and the time since the start."""
        self.state = SERVER
        self.reactor.advance(1.5)
        answer = self.ask("/status.json")
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(json.loads(answer.body), {"version": 1, "uptime": 1.5, **SERVER})

    def test_role(self) -> None:
        """The role is there even if the report does not say it."""
        self.assertEqual(json.loads(self.ask("/status.json").body)["role"], "udp-server")

    def test_strict(self) -> None:
        """It is JSON even where the report holds what JSON can not say."""
        self.state = {"links": [{"roundTrip": inf}], "sessions": (-inf,), "evicted": 1.5}

        def refuse(name: str) -> None:
            self.fail(f"{name} is no JSON")

        parsed = json.loads(self.ask("/status.json").body, parse_constant=refuse)
        self.assertEqual((parsed["links"], parsed["sessions"]), ([{"roundTrip": None}], [None]))

    def test_names(self) -> None:
        """Nothing that a client has made up reaches a terminal or a page as it is (S-22)."""
        self.state = {"sessions": [{"user": "\x1b[2J<script>\u202e"}]}
        answer = self.ask("/status.json")
        self.assertTrue(answer.body.isascii())
        self.assertNotIn(b"\x1b", answer.body)
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")


class HealthTests(MemoryTestCase):
    """/healthz."""

    def test_well(self) -> None:
        """With nothing wrong it is 200."""
        answer = self.ask("/healthz")
        self.assertEqual((answer.status, answer.body), (200, b"ok\n"))

    def test_wrong(self) -> None:
        """Otherwise it is 503, and says what is wrong."""
        self.wrong = "no link is up"
        answer = self.ask("/healthz")
        self.assertEqual((answer.status, answer.body), (503, b"no link is up\n"))


class AccessTests(MemoryTestCase):
    """Who may ask, and for what (S-22)."""

    def test_hosts(self) -> None:
        """The Host must be localhost or the address that the connection came to, with any port."""
        bound = IPv4Address("TCP", "192.0.2.7", 9876)
        for host in ("localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:9876", "[::1]", "[0:0::1]:9876"):
            self.assertEqual(self.ask("/healthz", Host=host).status, 200, host)
        self.assertEqual(self.ask("/healthz", Host="192.0.2.7:9876", bound=bound).status, 200)
        six = IPv6Address("TCP", "2001:db8::7", 9876)
        self.assertEqual(self.ask("/healthz", Host="[2001:DB8:0::7]:9876", bound=six).status, 200)
        mapped = IPv6Address("TCP", "::ffff:192.0.2.7", 9876)
        self.assertEqual(self.ask("/healthz", Host="192.0.2.7:9876", bound=mapped).status, 200)

    def test_foreignHosts(self) -> None:
        """Any other Host, or none, is refused before anything is looked up: a rebound name gets nothing."""
        self.state = SERVER
        hosts = ("evil.example", "localhost.evil.example", "192.0.2.7", "127.0.0.1.evil.example:9876", "", "-")
        for host in (*hosts, "localhost@evil.example", "localhost:99999999", "::1", "[localhost", "127.0.0.1, x"):
            for path in ("/metrics", "/status.json", "/healthz", "/"):
                answer = self.ask(path, Host=host)
                self.assertEqual(answer.status, 403, (host, path))
                self.assertNotIn(b"udptunnel_", answer.body)

    def test_twoHosts(self) -> None:
        """Two Host headers are refused, whatever they are."""
        raw = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
        self.assertEqual(Answer(self.say(raw).value()).status, 403)

    def test_origins(self) -> None:
        """A page of our own origin may ask, no other."""
        self.assertEqual(self.ask("/metrics", Origin="http://localhost:9876").status, 200)
        for origin in (
            "http://evil.example",
            "null",
            "http://localhost",
            "http://localhost:1",
            "https://localhost:9876",
        ):
            self.assertEqual(self.ask("/metrics", Origin=origin).status, 403, origin)

    def test_unixHosts(self) -> None:
        """Over a Unix socket any Host may stand there, or none; but no page."""
        at = UNIXAddress("/run/status")
        for host in ("localhost", "x", "", "-"):
            self.assertEqual(self.ask("/healthz", Host=host, bound=at).status, 200, host)
        self.assertEqual(self.ask("/healthz", Origin="http://localhost", bound=at).status, 403)

    def test_methods(self) -> None:
        """Only GET and HEAD are served; the answer to any other says so."""
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get"):
            answer = self.ask("/metrics", method)
            self.assertEqual((answer.status, answer.headers["allow"]), (405, "get, head"), method)

    def test_foreignPost(self) -> None:
        """A POST from another page is refused for that."""
        self.assertEqual(self.ask("/metrics", "POST", Origin="http://evil.example").status, 403)

    def test_head(self) -> None:
        """HEAD is answered as GET is, without the body."""
        got, head = self.ask("/healthz"), self.ask("/healthz", "HEAD")
        self.assertEqual((head.status, head.body), (200, b""))
        self.assertEqual(head.headers["content-length"], got.headers["content-length"])

    def test_unknown(self) -> None:
        """Other paths are not there, and the answer does not repeat them."""
        for path in ("/", "/metrics/", "//metrics", "/status.json/x", "/%2e%2e", "/<script>", "http://x/metrics"):
            answer = self.ask(path)
            self.assertEqual(answer.status, 404, path)
            self.assertEqual(answer.body, b"there are /metrics, /status.json and /healthz\n")

    def test_query(self) -> None:
        """What stands behind a question mark changes nothing."""
        self.assertEqual(self.ask("/healthz?full=1").status, 200)

    def test_headers(self) -> None:
        """No answer may be stored or embedded, and none names the program that made it."""
        for path, method in (("/metrics", "GET"), ("/nothing", "GET"), ("/metrics", "POST"), ("*", "OPTIONS")):
            headers = self.ask(path, method).headers
            self.assertNotIn("server", headers)
            if path != "*":
                self.assertEqual(headers["cache-control"], "no-store")
                self.assertEqual(headers["cross-origin-resource-policy"], "same-origin")
                self.assertEqual(headers["connection"], "close")


class BoundsTests(MemoryTestCase):
    """What a client can not make us do."""

    def test_bodies(self) -> None:
        """A body is not read: the answer is there before it, however long it claims to be."""
        for header in (b"Content-Length: 99999999999", b"Transfer-Encoding: chunked"):
            raw = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n"
            transport = self.say(raw)
            self.assertEqual(Answer(transport.value()).status, 405)
            self.assertTrue(transport.disconnecting)
            transport.clear()
            for _ in range(50):
                transport.protocol.dataReceived(b"x" * 4000)
            self.assertEqual(transport.value(), b"")

    def test_large(self) -> None:
        """A request that is too large ends the connection."""
        begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        line = b"X-Line: " + b"x" * 1000 + b"\r\n"
        for more in (line * 9, b"X: " + b"x" * REQUEST_BYTES + b"\r\n", b"X:y\r\n" * 65):
            transport = self.say(begin + more + b"\r\n")
            self.assertTrue(transport.disconnecting)
            self.assertNotIn(b"200", transport.value())
        transport = self.say(b"GET /" + b"x" * REQUEST_BYTES * 2)
        self.assertTrue(transport.disconnecting)

    def test_nonsense(self) -> None:
        """What is no HTTP ends the connection."""
        for raw in (b"\x16\x03\x01\x00\xa5\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n"):
            self.assertTrue(self.say(raw).disconnecting, raw)

    def test_second(self) -> None:
        """There is one request to a connection."""
        raw = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self.assertEqual(self.say(raw * 3).value().count(b"HTTP/1.1"), 1)

    def test_bytewise(self) -> None:
        """A request may come byte by byte."""
        transport = self.connect()
        assert transport is not None
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            transport.protocol.dataReceived(bytes((byte,)))
        self.assertEqual(Answer(transport.value()).status, 200)

    def test_time(self) -> None:
        """Who does not finish within ten seconds is gone, however busy it seems."""
        transport = self.say(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(int(LIMIT_SECONDS) - 1):
            self.reactor.advance(1)
            transport.protocol.dataReceived(b"X: y\r\n")
        self.assertFalse(transport.disconnected)
        self.reactor.advance(1.1)
        self.assertTrue(transport.disconnected)

    def test_slowReader(self) -> None:
        """So is who does not take its answer."""
        transport = self.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.reactor.advance(LIMIT_SECONDS + 0.1)
        self.assertTrue(transport.disconnected)

    def test_connections(self) -> None:
        """There are so many connections at once; when one goes, another may come."""
        held = [self.connect() for _ in range(MOST_CONNECTIONS)]
        self.assertNotIn(None, held)
        self.assertIs(self.connect(), None)
        self.transports[0].die()
        self.assertIsNot(self.connect(), None)


class OpeningTests(MemoryTestCase):
    """Where the endpoint may be."""

    def test_wrong(self) -> None:
        """What is no endpoint is refused with its option and text."""
        error = self.assertRaises(ConfigError, self.make, "nonsense")
        self.assertIn("--status nonsense", str(error))

    def test_strangers(self) -> None:
        """Beyond loopback it does not start unless that is wanted in so many words."""
        service = self.make("tcp:9876")
        error = self.assertRaises(ListenError, service.startService)
        self.assertIn("--status tcp:9876", str(error))
        self.assertIn("--insecure-no-auth", str(error))
        self.assertFalse(service.running)
        self.make("tcp:9876", allowed=True).startService()


class SocketTests(TestCase):
    """With real sockets."""

    def start(self, endpoint: str) -> StatusService:
        """A service that is on."""
        service = StatusService("udp-server", endpoint, lambda: {**SERVER, "filling": "x" * 300_000}, str, reactor)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def test_halfClosed(self) -> None:
        """Who sends a request and closes its side at once gets the whole answer, each time (P-12)."""
        address: Any = self.start("tcp:0:interface=127.0.0.1").listening.address

        def ask(raw: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", address.port)) as client:
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                with client.makefile("rb") as answer:
                    return answer.read()

        for path in ("/healthz", "/status.json"):
            raw = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
            answers = [Answer(await deferToThread(ask, raw)) for _ in range(20)]
            for answer in answers:
                self.assertEqual((answer.status, len(answer.body)), (200, int(answer.headers["content-length"])))
        self.assertEqual(await deferToThread(ask, b"GET /healthz HTTP/1.0\r\n"), b"")

    @needs("Unix sockets")
    async def test_unix(self) -> None:
        """A Unix socket is for its owner alone, and is gone when the service is."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "status")
        service = self.start(f"unix:{path}")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answer:
                client.connect(path)
                client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                return answer.read()

        self.assertEqual(Answer(await deferToThread(ask)).status, 200)
        await service.stopService()
        self.assertEqual(os.listdir(folder), [])

    @needs("Unix sockets")
    async def test_unixMode(self) -> None:
        """Its mode may be another if the endpoint says so."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "status")
        self.start(f"unix:{path}:mode=660")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)

    async def test_stop(self) -> None:
        """A service that stops does not wait for clients."""
        service = self.start("tcp:0:interface=127.0.0.1")
        address: Any = service.listening.address

        with socket.create_connection(("127.0.0.1", address.port)) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            await deferToThread(client.recv, 1)
            await service.stopService()
