"""Tests for L{udptunnel.services.controller}; tests.system.test_routes has real kernels."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock, RaisingMemoryReactor, StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.net.routing import LAN, MemoryRouting, failure
from tests.net.test_persistent import MemoryTuns
from udptunnel.config import ControllerConfig
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.detour import PROTOCOL
from udptunnel.net.rtnetlink import KernelRoute
from udptunnel.net.watch import REST_SECONDS
from udptunnel.services.controller import (
    BARE_BYTES,
    CONNECTED,
    DISCONNECTED,
    FAILURE,
    LINE_BYTES,
    RECONNECTING,
    SUCCESS,
    UNSUPPORTED,
    ControllerProtocol,
    ControllerService,
    Request,
    RequestError,
)

PROXY, ROUTER, FAR = "203.0.113.5", "10.0.85.1", "198.51.100.7"
CONFIGURE = {"action": "configureRouting", "parameters": {"proxyIp": PROXY, "routerIp": ROUTER}}
RESET: dict[str, Any] = {"action": "resetRouting", "parameters": {}}
STATUS = {"action": "status"}


class Reactor(MemoryReactorClock):
    """One whose readers a test serves."""

    def turn(self) -> None:
        """What has happened to routes was seen."""
        for reader in self.getReaders():
            reader.doRead()
        self.advance(REST_SECONDS)


class ServiceTestCase(SynchronousTestCase):
    """A controller on a machine in memory."""

    def setUp(self) -> None:
        self.routing = MemoryRouting()
        self.routing.present.pop()
        self.before = sorted(self.routing.table)
        self.tuns = MemoryTuns(self.routing)
        self.reactor: Any = Reactor()
        self.service = self.make()

    def make(self, **fields: Any) -> ControllerService:
        """A controller that does not run."""
        config = ControllerConfig(**{"socket": "controller.sock", **fields})
        return ControllerService(config, self.reactor, self.routing, self.tuns)

    def start(self, **fields: Any) -> None:
        """A controller that runs until the test ends."""
        if fields:
            self.service = self.make(**fields)
        self.service.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Everything is as it was before."""
        self.successResultOf(Deferred.fromCoroutine(self.service.stopService()))
        self.assertEqual(sorted(self.routing.table), self.before)
        self.assertEqual([device.name for device in self.routing.present], ["lo", "eth0"])
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))

    def connect(self) -> ControllerProtocol:
        """A client."""
        client: ControllerProtocol = self.reactor.unixServers[0][1].buildProtocol(None)
        client.makeConnection(StringTransport())  # type: ignore[arg-type]
        return client

    def said(self, client: ControllerProtocol) -> list[dict[str, Any]]:
        """What a client was told since it was last asked."""
        lines = [json.loads(line) for line in client.transport.value().splitlines()]
        client.transport.clear()
        return lines

    def ask(self, client: ControllerProtocol, request: object) -> dict[str, Any]:
        """The answer to a request; there is nothing else."""
        client.dataReceived(json.dumps(request).encode() + b"\n")
        (answer,) = self.said(client)
        return answer


class RequestTests(SynchronousTestCase):
    """L{Request}."""

    def test_parse(self) -> None:
        """There are three requests. What Outline's clients say beside that is taken, too."""
        self.assertEqual(Request.parse(json.dumps(CONFIGURE).encode()), Request("configureRouting", PROXY, ROUTER))
        outline = {**CONFIGURE, "parameters": {"proxyIp": PROXY, "routerIp": ROUTER, "isAutoConnect": False}}
        self.assertEqual(Request.parse(json.dumps(outline).encode()).proxy, PROXY)
        for request in (RESET, STATUS, {"action": "resetRouting"}):
            self.assertEqual(Request.parse(json.dumps(request).encode()), Request(str(request["action"])))

    def test_refused(self) -> None:
        """Everything else is refused, with the action if there is one that is known."""
        for line, expected, action in (
            (b"hello", "no JSON", ""),
            (b"\xff\xfe", "no JSON", ""),
            (b"[" * 60_000, "no JSON", ""),
            (b"1" * 10_000, "no JSON", ""),
            (b"[]", "JSON object", ""),
            (b"null", "JSON object", ""),
            (b"{}", "action: expected configureRouting, resetRouting or status", ""),
            (b'{"action":["status"]}', "action: expected", ""),
            (b'{"action":"shutdown"}', "action: expected", ""),
            (b'{"action":"Status"}', "action: expected", ""),
            (b'{"action":"status","parameters":[]}', "parameters: expected", "status"),
            (b'{"action":"status","parameters":null}', "parameters: expected", "status"),
            (b'{"action":"status","parameters":{"a":1}}', "parameters: status has none", "status"),
            (b'{"action":"status","command":"rm"}', "nothing else", "status"),
            (b'{"action":"configureRouting"}', "proxyIp is missing", "configureRouting"),
            (b'{"action":"configureRouting","parameters":{"proxyIp":"1.2.3.4"}}', "routerIp is missing", None),
            (b'{"action":"configureRouting","parameters":{"proxyIp":1,"routerIp":"1.2.3.4"}}', "proxyIp", None),
            (b'{"action":"configureRouting","parameters":{"proxyIp":"1.2.3.4","routerIp":null}}', "routerIp", None),
            (b'{"action":"configureRouting","parameters":{"proxyIp":"1.2.3.4","gateway":"1"}}', "gateway", None),
        ):
            error = self.assertRaises(RequestError, Request.parse, line)
            self.assertIn(expected, str(error))
            self.assertEqual(error.action, "configureRouting" if action is None else action)
            self.assertLess(len(str(error)), 300)

    @given(
        st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda value: repr(value).encode())
    )
    def test_garbage(self, line: bytes) -> None:
        """Whatever comes is a request or is refused."""
        try:
            self.assertIn(Request.parse(line).action, ("configureRouting", "resetRouting", "status"))
        except RequestError:
            pass


class CommandTests(ServiceTestCase):
    """What clients ask for."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.client = self.connect()

    def test_configure(self) -> None:
        """After configureRouting everything but the proxy's packets goes through the TUN."""
        answer = self.ask(self.client, CONFIGURE)
        expected = {
            "statusCode": SUCCESS,
            "action": "configureRouting",
            "returnValue": "connected",
            "connectionStatus": CONNECTED,
            "tunDevice": "tun0",
            "proxyIp": PROXY,
            "routerIp": ROUTER,
        }
        self.assertEqual(answer, expected)
        self.assertNotEqual(self.routing.deviceTowards(FAR), LAN)
        self.assertEqual(self.routing.deviceTowards(PROXY), LAN)
        self.assertEqual(self.ask(self.client, STATUS), {**expected, "action": "status"})
        self.assertEqual(self.service.report()["clients"], 1)

    def test_reset(self) -> None:
        """After resetRouting all is as it was before, however often it is asked for."""
        self.ask(self.client, CONFIGURE)
        for _ in range(2):
            answer = self.ask(self.client, RESET)
            self.assertEqual((answer["statusCode"], answer["connectionStatus"]), (SUCCESS, DISCONNECTED))
            self.assertEqual((answer["proxyIp"], answer["routerIp"]), (None, None))
            self.assertEqual(sorted(self.routing.table), self.before)

    def test_refused(self) -> None:
        """What is no request, and what is not possible, has an error for an answer; the connection stays."""
        for request, code in (
            ("hello", FAILURE),
            ({"action": "moon"}, FAILURE),
            ({**CONFIGURE, "parameters": {"proxyIp": "proxy.example", "routerIp": ROUTER}}, UNSUPPORTED),
            ({**CONFIGURE, "parameters": {"proxyIp": PROXY, "routerIp": "192.168.1.1"}}, UNSUPPORTED),
        ):
            answer = self.ask(self.client, request)
            self.assertEqual(answer["statusCode"], code)
            self.assertTrue(answer["errorMessage"])
            self.assertEqual(sorted(self.routing.table), self.before)
        self.assertFalse(self.client.transport.disconnecting)
        self.assertEqual(self.ask(self.client, STATUS)["connectionStatus"], DISCONNECTED)

    def test_kernel(self) -> None:
        """So has what the kernel refuses; it names the request."""
        self.routing.refused["addRoute"] = failure(errno.EPERM)
        answer = self.ask(self.client, CONFIGURE)
        self.assertEqual((answer["statusCode"], answer["action"]), (FAILURE, "configureRouting"))
        self.assertIn("not permitted", answer["errorMessage"])

    def test_worse(self) -> None:
        """If another proxy is not possible, the first one is not in force either, and everybody knows."""
        other = self.connect()
        self.ask(self.client, CONFIGURE)
        self.said(other)
        self.ask(self.client, {**CONFIGURE, "parameters": {"proxyIp": "2001:db8::1", "routerIp": ROUTER}})
        self.assertEqual(self.service.status, CONNECTED)
        self.routing.table.pop(3)
        self.ask(self.client, {**CONFIGURE, "parameters": {"proxyIp": "2001:db8::2", "routerIp": ROUTER}})
        self.assertEqual([line["connectionStatus"] for line in self.said(other)], [DISCONNECTED])
        self.routing.table.insert(3, self.before[-1])
        self.before = sorted(self.routing.table)

    def test_pushed(self) -> None:
        """All others are told of changes; who has made one has its answer, and nobody is told what is no news."""
        others = [self.connect(), self.connect()]
        for request, status in ((CONFIGURE, CONNECTED), (CONFIGURE, None), (RESET, DISCONNECTED), (RESET, None)):
            self.ask(self.client, request)
            for other in others:
                lines = [(line["action"], line["connectionStatus"]) for line in self.said(other)]
                self.assertEqual(lines, [] if status is None else [("statusChanged", status)])

    def test_gone(self) -> None:
        """When the client that has configured is gone, all is as it was before, and the others are told."""
        other = self.connect()
        self.ask(self.client, CONFIGURE)
        self.said(other)
        self.client.connectionLost()
        self.assertEqual(sorted(self.routing.table), self.before)
        self.assertEqual([line["connectionStatus"] for line in self.said(other)], [DISCONNECTED])

    def test_otherGone(self) -> None:
        """Another client's end changes nothing; and who has asked last is the one that counts."""
        other = self.connect()
        self.ask(self.client, CONFIGURE)
        other.connectionLost()
        self.assertEqual(self.service.status, CONNECTED)
        later = self.connect()
        self.ask(later, CONFIGURE)
        self.client.connectionLost()
        self.assertEqual(self.service.status, CONNECTED)
        later.connectionLost()
        self.assertEqual(self.service.status, DISCONNECTED)

    def test_afterReset(self) -> None:
        """Who has been reset, be it by another, ends nobody's routes."""
        self.ask(self.client, CONFIGURE)
        other = self.connect()
        self.ask(other, RESET)
        self.ask(other, CONFIGURE)
        self.client.connectionLost()
        self.assertEqual(self.service.status, CONNECTED)

    def test_tunGone(self) -> None:
        """If somebody has deleted the TUN it is made anew."""
        device = self.service._tun.device
        assert device is not None
        self.routing.removeDevice(device.number)
        self.assertEqual(self.ask(self.client, CONFIGURE)["statusCode"], SUCCESS)

    def test_noTun(self) -> None:
        """If it can not be made, the answer says so, and nothing is in force any more."""
        self.ask(self.client, CONFIGURE)
        device = self.service._tun.device
        assert device is not None
        self.routing.removeDevice(device.number)
        self.tuns.refused["open"] = failure(errno.EBUSY)
        answer = self.ask(self.client, CONFIGURE)
        self.assertEqual(answer["statusCode"], FAILURE)
        self.assertIn("--tundev tun0", answer["errorMessage"])
        self.assertEqual(sorted(self.routing.table), self.before)
        self.assertEqual(self.ask(self.client, STATUS)["connectionStatus"], DISCONNECTED)


class LineTests(ServiceTestCase):
    """How requests are separated."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.client = self.connect()

    def answers(self, *pieces: bytes) -> list[int]:
        """The status codes of the answers."""
        for piece in pieces:
            self.client.dataReceived(piece)
        return [line["statusCode"] for line in self.said(self.client)]

    def test_pieces(self) -> None:
        """Requests may come in any pieces."""
        text = b'{"action": "status",\t"parameters": {}}\r\n\n  \n{"action":"status"}\nx\n'
        expected = [SUCCESS, SUCCESS, FAILURE]
        self.assertEqual(self.answers(text), expected)
        self.assertEqual(self.answers(*(text[place : place + 1] for place in range(len(text)))), expected)

    def test_bare(self) -> None:
        """A request that is complete needs no line feed; if one comes later, it is not another request."""
        bare = b'{"action":"resetRouting","parameters":{}}'
        self.assertEqual(self.answers(bare), [SUCCESS])
        self.assertEqual(self.answers(b"\n", bare, b"\n"), [SUCCESS])
        self.assertEqual(self.answers(bare[:-1]), [])
        self.assertEqual(self.answers(bare[-1:]), [SUCCESS])

    def test_bareLimit(self) -> None:
        """Long texts are not looked at again with each piece."""
        long = b'{"action":"status"' + b" " * BARE_BYTES + b"}"
        self.assertEqual(self.answers(long), [])
        self.assertEqual(self.answers(b"\n"), [SUCCESS])

    def test_tooLong(self) -> None:
        """A line that is too long is refused once, and not kept; the next one is read."""
        for pieces in ((b"x" * (LINE_BYTES + 1),), (b"x" * 1000,) * 100, (b"x" * LINE_BYTES, b"{}")):
            self.assertEqual(self.answers(*pieces), [FAILURE])
            self.assertEqual(len(self.client._buffer), 0)
            self.assertEqual(self.answers(b'{"action":"status"}', b'\n{"action":"status"}\n'), [SUCCESS])
        self.assertEqual(self.answers(b"x" * (LINE_BYTES + 1) + b'\n{"action":"status"}\n'), [FAILURE, SUCCESS])

    def test_tooMany(self) -> None:
        """One client more than allowed is told so, and has to go; when another one goes there is room."""
        self.service.config = self.make(maxClients=2).config
        other = self.connect()
        third = self.connect()
        self.assertEqual([line["errorMessage"] for line in self.said(third)], ["too many clients"])
        self.assertTrue(third.transport.disconnecting)
        third.connectionLost()
        other.connectionLost()
        self.assertFalse(self.connect().transport.disconnecting)

    def test_doesNotRead(self) -> None:
        """Who does not read answers is not listened to, and is cut off before it costs more memory."""
        other = self.connect()
        other.pauseProducing()
        self.assertEqual(other.transport.producerState, "paused")
        self.ask(self.client, CONFIGURE)
        self.assertTrue(other.transport.disconnected)
        self.assertEqual(self.said(other), [])

    def test_readsAgain(self) -> None:
        """Who reads again is listened to again."""
        self.client.pauseProducing()
        self.client.resumeProducing()
        self.assertEqual(self.client.transport.producerState, "producing")
        self.ask(self.connect(), CONFIGURE)
        self.assertEqual(len(self.said(self.client)), 1)

    def test_halfClosed(self) -> None:
        """Who says no more has its answers before it is parted from."""
        self.client.dataReceived(b'{"action":"status"}\n')
        self.client.readConnectionLost()
        self.assertEqual(len(self.said(self.client)), 1)
        self.assertTrue(self.client.transport.disconnecting)


class ChangeTests(ServiceTestCase):
    """The machine's own routes change."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.client = self.connect()
        self.ask(self.client, CONFIGURE)
        self.default = next(route for route in self.routing.table if route.gateway == "192.168.1.1")

    def statuses(self) -> list[int]:
        """What was pushed since it was last asked for."""
        self.reactor.turn()
        return [line["connectionStatus"] for line in self.said(self.client)]

    def test_nothing(self) -> None:
        """Our own changes are no news."""
        self.assertEqual(self.statuses(), [])

    def test_gateway(self) -> None:
        """Another gateway: our routes follow, and clients are told that packets may have been lost."""
        self.routing.table.remove(self.default)
        self.routing.table.append(self.default._replace(gateway="192.168.1.77"))
        self.assertEqual(self.statuses(), [RECONNECTING, CONNECTED])
        (route,) = (route for route in self.routing.routes(PROTOCOL) if route.network == f"{PROXY}/32")
        self.assertEqual(route.gateway, "192.168.1.77")
        self.routing.table[-1:] = []
        self.routing.table = [*self.routing.routes(PROTOCOL), *self.before]

    def test_offline(self) -> None:
        """No gateway, and a gateway again."""
        self.routing.table.remove(self.default)
        self.assertEqual(self.statuses(), [RECONNECTING])
        self.assertEqual(self.ask(self.client, STATUS)["connectionStatus"], RECONNECTING)
        self.routing.table.append(self.default)
        self.assertEqual(self.statuses(), [CONNECTED])

    def test_tunDeleted(self) -> None:
        """A TUN that was deleted is made anew, with its routes."""
        device = self.service._tun.device
        assert device is not None
        self.routing.removeDevice(device.number)
        self.assertEqual(self.statuses(), [RECONNECTING, CONNECTED])
        self.assertGreater(self.routing.deviceTowards(FAR), device.number)

    def test_ill(self) -> None:
        """What can not be mended makes the role ill; when it can be it is well again."""
        self.routing.table.remove(self.default)
        self.routing.refused["removeRoute"] = failure(errno.EPERM)
        self.statuses()
        self.assertIn("not permitted", self.service.illness())
        self.assertFalse(self.service.report()["up"])
        del self.routing.refused["removeRoute"]
        self.routing.table.append(self.default)
        self.statuses()
        self.assertEqual(self.service.illness(), "")


class StartTests(ServiceTestCase):
    """Start and stop."""

    def test_start(self) -> None:
        """The socket is for its owner alone, and a lock beside it tells whether who left one is gone."""
        self.start()
        ((path, _, _, mode, wantPID),) = self.reactor.unixServers
        self.assertEqual((path, mode, bool(wantPID)), ("controller.sock", 0o600, True))

    def test_left(self) -> None:
        """Routes that a killed controller has left are removed."""
        self.routing.table.append(KernelRoute(f"{PROXY}/32", LAN, "192.168.1.1", protocol=PROTOCOL))
        self.start()
        self.assertEqual(sorted(self.routing.table), self.before)

    def test_stop(self) -> None:
        """In the end clients are told that nothing is in force any more, and parted from."""
        self.service.startService()
        client = self.connect()
        self.ask(client, CONFIGURE)
        self.stop()
        self.assertEqual([line["connectionStatus"] for line in self.said(client)], [DISCONNECTED])
        self.assertTrue(client.transport.disconnecting)
        client.connectionLost()

    def test_noSocket(self) -> None:
        """--socket is needed."""
        self.assertIn("--socket", str(self.assertRaises(ConfigError, self.make, socket=None)))

    def test_nobody(self) -> None:
        """Users and groups that there are not are named with their options."""
        for option, field in (("--socket-group", "socketGroup"), ("--owner", "owner")):
            error = self.assertRaises(ConfigError, self.make, **{field: "nobody-has-this-name"})
            self.assertIn(f"{option} nobody-has-this-name", str(error))

    def test_numbers(self) -> None:
        """They may be numbers."""
        service = self.make(owner="4711", socketGroup="4712")
        self.assertEqual((service._tun._owner, service._group), (4711, 4712))

    def test_failed(self) -> None:
        """If one part can not be started nothing stays."""
        self.tuns.refused["open"] = failure(errno.EPERM)
        self.assertIn("--tundev tun0", str(self.assertRaises(ListenError, self.service.startService)))
        self.tuns.refused = {}
        self.routing.refused["routes"] = failure(errno.EPERM)
        self.assertRaises(ListenError, self.service.startService)
        del self.routing.refused["routes"]
        self.assertEqual([device.name for device in self.routing.present], ["lo", "eth0"])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_taken(self) -> None:
        """A socket that is taken is named with its option, before anything else is touched."""
        self.reactor = RaisingMemoryReactor(CannotListenError(None, "controller.sock", "Cannot acquire lock"))
        self.reactor.seconds = lambda: 0.0
        error = self.assertRaises(ListenError, self.make().startService)
        self.assertIn("--socket controller.sock", str(error))
        self.assertEqual(self.tuns.calls, [])


class SocketTests(TestCase):
    """A real socket."""

    def setUp(self) -> None:
        self.routing = MemoryRouting()
        self.routing.present.pop()
        # The path of a Unix socket is short.
        self.path = os.path.relpath(self.mktemp())

    def start(self, **fields: Any) -> ControllerService:
        """A controller that runs until the test ends."""
        config = ControllerConfig(socket=self.path, **fields)
        service = ControllerService(config, reactor, self.routing, MemoryTuns(self.routing))
        service.startService()
        self.addCleanup(lambda: Deferred.fromCoroutine(service.stopService()))
        return service

    def talk(self, text: bytes) -> list[dict[str, Any]]:
        """Everything that a client is told that sends something and says at once that this was all."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self.path)
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            with client.makefile() as file:
                return [json.loads(line) for line in file]

    async def test_talk(self) -> None:
        """Each request is answered, the last one too, and then the routes are gone with the client."""
        service = self.start()
        answers = await deferToThread(
            self.talk, b"".join(json.dumps(each).encode() + b"\n" for each in (CONFIGURE, STATUS))
        )
        self.assertEqual([answer["connectionStatus"] for answer in answers], [CONNECTED, CONNECTED])
        self.assertEqual((service.status, service.clients), (DISCONNECTED, []))

    async def test_name(self) -> None:
        """Log lines say whose process a client is."""
        service = self.start()
        names = []
        entered = service.entered
        self.patch(service, "entered", lambda client: (names.append(client.name), entered(client))[1])
        await deferToThread(self.talk, b"")
        self.assertEqual(names, [f"process {os.getpid()} of user {os.geteuid()}"])

    def test_modes(self) -> None:
        """The socket is for its owner, and for a group if there is one."""
        for fields, expected in (({}, 0o600), ({"socketGroup": str(os.getegid())}, 0o660)):
            self.path = os.path.relpath(self.mktemp())
            self.start(**fields)
            found = os.stat(self.path)
            self.assertEqual((stat.S_IMODE(found.st_mode), found.st_gid), (expected, os.getegid()))

    def test_second(self) -> None:
        """A second controller at the same socket does not start, and the first one keeps it."""
        self.start()
        error = self.assertRaises(ListenError, self.start)
        self.assertIn(f"--socket {self.path}", str(error))
        self.assertTrue(Path(self.path).is_socket())
