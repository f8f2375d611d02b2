"""Tests for L{udptunnel.api}."""

from __future__ import annotations

import base64
import gc
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import SkipTest

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python import log
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from tests.core.l3 import BEHIND_A, BEHIND_B, KEY
from tests.services.test_l3 import MemorySystem
from tests.services.tunnel import LOOPBACK, TunnelTestCase, cut, freePort, listenAt
from tests.waiting import until
from tests.wire.packets import ECHO4, ECHO6, PAIRS, SYN4, UDP4, UDP6
from udptunnel.api import (
    Failed,
    Handle,
    LocalHandle,
    LogLine,
    MappingsLost,
    Ready,
    ServerHandle,
    SessionDown,
    SessionUp,
    Statistics,
    Stopped,
    start,
    start_l3_tunnel,
    start_tun2socks,
    start_udp_local,
    start_udp_server,
)
from udptunnel.config import Forward, L3Config, LocalConfig, ServerConfig, Tun2socksConfig
from udptunnel.core.session import ServerSession
from udptunnel.errors import AddressError, ConfigError, ListenError
from udptunnel.services import server as server_module
from udptunnel.services import tun2socks
from udptunnel.services.l3 import L3Service
from udptunnel.services.local import LocalService
from udptunnel.wire.address import Address
from udptunnel.wire.ip import TCP, parse

PATIENT: dict[str, Any] = {"queueAge": 60_000.0, "delay": 0.0}
"""However slow the machine is, nothing is dropped because it has waited for long."""

LISTEN = "tcp:0:interface=127.0.0.1"
FORWARD = Forward(Address("127.0.0.1", 0), Address("127.0.0.1", 9))

AnyHandle = TypeVar("AnyHandle", bound=Handle)

_log = Logger(namespace="udptunnel.test")


class Host:
    """
    A program that has roles inside.

    @ivar events: what its callback was told, log lines apart.
    @ivar lines: the log lines.
    @ivar datagrams: what came back: each datagram, where from, and for whom.
    """

    def __init__(self, data: object = "data") -> None:
        self.data = data
        self.events: list[Any] = []
        self.lines: list[LogLine] = []
        self.datagrams: list[tuple[bytes, Address, Any]] = []
        self.inside: Callable[[Any], object] = lambda event: None

    def happened(self, event: Any, data: object) -> None:
        assert data is self.data
        (self.lines if isinstance(event, LogLine) else self.events).append(event)
        self.inside(event)

    def received(self, datagrams: list[bytes], address: Address, source: Any, data: object) -> None:
        assert data is self.data
        self.datagrams += [(each, address, source) for each in datagrams]

    @property
    def kinds(self) -> list[type[Any]]:
        """What has happened, in order."""
        return [type(event) for event in self.events]


class ApiTestCase(TunnelTestCase):
    """Both ends by way of the functions, in the reactor that trial runs."""

    def setUp(self) -> None:
        self.patch(server_module, "FAREWELL_SECONDS", 0.02)
        self.host = Host()

    def server(self, host: Host | None = None, listen: str = LISTEN, **options: Any) -> ServerHandle:
        """udp-server."""
        profile = ServerConfig(listen=(listen,), allow=LOOPBACK, **PATIENT)
        callback = (host.happened, host.data) if host is not None else ()
        return self.kept(start_udp_server(profile, *callback, reactor=reactor, **options))

    def local(self, server: Handle, host: Host | None = None, **fields: Any) -> LocalHandle:
        """udp-local, which has no socket unless C{fields} say so."""
        host = host or self.host
        profile = LocalConfig(**{"socks": "none", "server": (f"tcp:127.0.0.1:{portOf(server)}",), **PATIENT, **fields})
        return self.kept(
            start_udp_local(profile, host.happened, host.data, datagramsReceived=host.received, reactor=reactor)
        )

    async def linked(self, handle: LocalHandle) -> LocalHandle:
        """A udp-local that has a link: without one, datagrams wait for less than a second."""
        await until(lambda: handle.service.session.links, "a link")
        return handle

    def kept(self, handle: AnyHandle) -> AnyHandle:
        """A handle that is stopped in the end."""
        self.addCleanup(handle.stop)
        return handle

    async def told(self, *kinds: type[Any], host: Host | None = None) -> None:
        """The callback has been told of just these, in order."""
        events = host or self.host
        await until(lambda: len(events.kinds) >= len(kinds), f"{kinds}, not {events.kinds}")
        self.assertEqual(events.kinds, list(kinds))


def portOf(server: Handle) -> int:
    """Where udp-server listens."""
    address = server.sockets[0].address
    assert isinstance(address, Address)
    return address.port


class EventTests(ApiTestCase):
    """What callbacks are told."""

    def test_ready(self) -> None:
        """Before the function returns the callback is told what is open, with addresses and descriptors."""
        server = self.server(self.host)
        local = self.local(server, socks=LISTEN, forward=(FORWARD, FORWARD))
        ofServer, ofLocal = self.host.events
        self.assertEqual((type(ofServer), ofServer.handle, ofLocal.handle), (Ready, server, local))
        self.assertEqual([each.option for each in ofServer.sockets], ["listen"])
        self.assertEqual([each.option for each in ofLocal.sockets], ["socks", "forward", "forward"])
        for each in ofLocal.sockets:
            with socket.socket(fileno=os.dup(each.descriptor)) as same:
                self.assertEqual(same.getsockname(), each.address)
        self.assertEqual(ofLocal.socksDescriptor, ofLocal.sockets[0].descriptor)
        self.assertEqual(ofLocal.udpDescriptor, ofLocal.sockets[1].descriptor)

    def test_unixSocket(self) -> None:
        """The address of a Unix socket is its path."""
        if not hasattr(socket, "AF_UNIX"):
            raise SkipTest("there are no Unix sockets here")
        place = os.path.relpath(self.mktemp())
        self.assertEqual([each.address for each in self.server(listen=f"unix:{place}").sockets], [place])

    def test_absent(self) -> None:
        """A descriptor that there is none of is -1."""
        server = self.server(self.host)
        self.local(server)
        ofServer, ofLocal = self.host.events
        self.assertEqual((ofServer.socksDescriptor, ofServer.udpDescriptor), (server.sockets[0].descriptor, -1))
        self.assertEqual((ofLocal.socksDescriptor, ofLocal.udpDescriptor, ofLocal.sockets), (-1, -1, ()))

    async def test_sessions(self) -> None:
        """A session comes up, breaks, is resumed, is lost with its mappings, and ends."""
        port = freePort()
        server = self.server(listen=listenAt(port))
        local = self.local(server)
        await self.told(Ready, SessionUp)
        local.send(b"x", self.echo(), 1)
        await until(lambda: self.host.datagrams)
        cut(server.service)
        await self.told(Ready, SessionUp, SessionDown, SessionUp)
        self.assertEqual([each.resumed for each in self.host.events if isinstance(each, SessionUp)], [False, True])
        await server.stop()
        self.server(listen=listenAt(port))
        await self.told(Ready, SessionUp, SessionDown, SessionUp, SessionDown, SessionUp, MappingsLost)
        await local.stop()
        self.assertEqual(self.host.kinds[-2:], [SessionDown, Stopped])
        self.assertEqual(self.host.events[-2].session, self.host.events[-3].session)

    async def test_sessionsOfServer(self) -> None:
        """udp-server tells of each session that begins, and that ends."""
        host = Host()
        server = self.server(host)
        locals = [self.local(server) for _ in range(2)]
        await self.told(Ready, SessionUp, SessionUp, host=host)
        self.assertEqual(len({each.session for each in host.events[1:]}), 2)
        await locals[0].stop()
        await self.told(Ready, SessionUp, SessionUp, SessionDown, host=host)
        await server.stop()
        await self.told(Ready, SessionUp, SessionUp, SessionDown, SessionDown, Stopped, host=host)

    def test_sameNames(self) -> None:
        """Each of two sessions that log lines call the same has an end of its own: their names are chosen elsewhere."""
        host = Host()
        service = self.server(host).service
        rest = service.counters, *[lambda *arguments: None] * 2, os.urandom, "", 1.0
        sessions = [ServerSession(bytes(15) + tail, 1, *rest) for tail in (b"a", b"b")]
        for each in sessions:
            service.whenSessionBegan(each)
        for each in sessions:
            service.whenSessionEnded(each)
        self.assertEqual([each.session for each in host.events[1:]], ["00000000"] * 4)
        self.assertEqual(host.kinds, [Ready, SessionUp, SessionUp, SessionDown, SessionDown])

    async def test_statistics(self) -> None:
        """The figures come as often as was asked for, and whenever they are asked for."""
        handle = self.server(self.host, statistics=0.01)
        await until(lambda: self.host.kinds.count(Statistics) >= 2)
        self.assertEqual(self.host.events[1].report["role"], "udp-server")
        self.assertEqual(handle.stats()["callbackFailures"], 0)
        await handle.stop()
        self.assertEqual(self.host.kinds[-1], Stopped)
        self.assertEqual((handle.stats()["role"], handle.stats()["up"]), ("udp-server", False))

    async def test_lines(self) -> None:
        """Log lines come as texts, from all of the package and from nowhere else, down to the level asked for."""
        handle = self.server(self.host)
        _log.debug("too little")
        Logger(namespace="somebody.else").info("not ours")
        await deferToThread(_log.warn, "from {where}\n", where="elsewhere")
        await until(lambda: "from elsewhere\\n" in [each.text for each in self.host.lines])
        first, last = self.host.lines[0], self.host.lines[-1]
        self.assertIn("udp-server: links at", first.text)
        self.assertEqual((last.level, last.system, last.handle), ("warn", "udptunnel.test", handle))
        self.assertEqual([each.text for each in self.host.lines if "too" in each.text or "not ours" in each.text], [])
        await handle.stop()
        count = len(self.host.lines)
        _log.warn("too late")
        self.assertEqual(len(self.host.lines), count)

    def test_failures(self) -> None:
        """What fails where nobody catches it is logged by Twisted, and comes, too."""
        self.server(self.host)
        Logger(namespace="somebody.else").failure("at large", Failure(ZeroDivisionError("nobody's")))
        log.err(Failure(ZeroDivisionError("somebody's")), "of old")
        last = [(each.level, each.text) for each in self.host.lines[-2:]]
        self.assertEqual([level for level, _ in last], ["critical", "critical"])
        for (_, text), words in zip(last, (("at large", "nobody's"), ("of old", "somebody's")), strict=True):
            for word in words:
                self.assertIn(word, text)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_noLines(self) -> None:
        """Who wants no log lines gets none."""
        self.server(self.host, log=None)
        self.assertEqual(self.host.lines, [])

    async def test_raising(self) -> None:
        """A callback that raises is reported, in the log and in the figures, and harms nothing."""

        def raising(event: Any) -> None:
            raise RuntimeError("a mistake of the host's")

        self.host.inside = raising
        server = self.server()
        local = self.local(server)
        self.host.received = raising  # type: ignore[method-assign,assignment]
        other = self.kept(
            start_udp_local(
                local.service.config, datagramsReceived=lambda *arguments: raising(arguments), reactor=reactor
            )
        )
        await until(lambda: SessionUp in self.host.kinds)
        await self.linked(other)
        for number in range(1, 3):
            other.send(b"x", self.echo(), 1)
            await until(lambda: other.stats()["callbackFailures"] == number)  # noqa: B023
        self.assertGreaterEqual(local.stats()["callbackFailures"], 2)
        await local.stop()
        self.assertIn(Stopped, self.host.kinds)
        self.assertTrue(any("a mistake of the host's" in each.text for each in self.host.lines))
        self.flushLoggedErrors(RuntimeError)

    async def test_failed(self) -> None:
        """When a role can not go on, the callback is told why."""
        handle = self.server(self.host)
        handle.service.whenFailed = None
        handle._watch()
        handle.service.whenFailed("gone")
        self.assertEqual((self.host.events[-1].why, self.host.kinds), ("gone", [Ready, Failed]))


class DatagramTests(ApiTestCase):
    """Datagrams by call."""

    async def test_sources(self) -> None:
        """Each source has an external port of its own, and gets its own answers, whatever stands for it."""
        far, questions = self.application()
        handle = await self.linked(self.local(self.server()))
        sources = 1, 2, "three", Address("192.0.2.1", 4), ("::1", 5)
        for number, source in enumerate(sources):
            self.assertTrue(handle.send(b"question %d" % number, far.address, source))
        await until(lambda: len(questions.datagrams) == len(sources))
        self.assertEqual(len(questions.sources), len(sources))
        for burst in reversed(questions.bursts):
            answer = bytes(burst.payload).replace(b"question", b"answer")
            far.send(burst.source, len(answer), answer)
        await until(lambda: len(self.host.datagrams) == len(sources))
        expected = {(b"answer %d" % number, far.address, source) for number, source in enumerate(sources)}
        self.assertEqual(set(self.host.datagrams), expected)

    async def test_sizes(self) -> None:
        """Datagrams of all sizes come back as they were sent, in order, several targets in one go."""
        handle = await self.linked(self.local(self.server(), links=2))
        here, there = self.echo(), self.echo()
        datagrams = [bytes((size & 0xFF,)) * size for size in (0, 1, 1400, 1400, 1400, 9000, 3, 65507)]
        self.assertEqual(handle.sendAll(datagrams, here, 1), len(datagrams))
        self.assertEqual(handle.sendAll(datagrams, there, 1), len(datagrams))
        await until(lambda: len(self.host.datagrams) == 2 * len(datagrams))
        for target in (here, there):
            back = [each for each, source, _ in self.host.datagrams if source == target]
            self.assertEqual(back, datagrams)
        figures = handle.stats()
        both = len(datagrams), sum(map(len, datagrams))
        self.assertEqual((figures["received"], figures["receivedBytes"]), (2 * both[0], 2 * both[1]))
        self.assertEqual((figures["sent"], figures["sentBytes"]), (2 * both[0], 2 * both[1]))

    async def test_each(self) -> None:
        """Datagrams of several sources to several targets may be sent together."""
        handle = await self.linked(self.local(self.server()))
        here, there = self.echo(), self.echo()
        parcels = [(b"%d" % number, (here, there)[number % 2], number % 3) for number in range(12)]
        self.assertEqual(handle.sendEach(parcels), 12)
        await until(lambda: len(self.host.datagrams) == 12)
        self.assertEqual(set(self.host.datagrams), set(parcels))

    def test_refused(self) -> None:
        """What can not be sent is refused before anything is, with the reason."""
        handle = self.local(self.server())
        for target in (("192.0.2.1", 0), ("192.0.2.1", 65536), ("no name", 1), ("", 1)):
            self.assertRaises(AddressError, handle.send, b"x", target, 1)
        self.assertRaises(ValueError, handle.sendAll, (b"x", bytes(65508)), ("192.0.2.1", 1), 1)
        self.assertRaises(TypeError, handle.send, b"x", ("192.0.2.1", 1), [])
        for wrong in ("text", 7, None, ["x"]):
            self.assertRaises(TypeError, handle.send, wrong, ("192.0.2.1", 1), 1)
            self.assertRaises(TypeError, handle.sendAll, (b"x", wrong), ("192.0.2.1", 1), 1)
            self.assertRaises(TypeError, handle.sendEach, [(b"x", ("192.0.2.1", 1), 1), (wrong, ("192.0.2.1", 1), 1)])
        self.assertEqual(handle.stats()["received"], 0)

    async def test_taken(self) -> None:
        """What is like bytes is sent as it was when it was given, whatever becomes of it."""
        handle = await self.linked(self.local(self.server()))
        memory = bytearray(b"abc")
        handle.sendEach([(memory, self.echo(), 1), (memoryview(memory)[1:], self.echo(), 2)])
        memory[:] = b"xyz"
        await until(lambda: len(self.host.datagrams) == 2)
        self.assertEqual({each for each, _, _ in self.host.datagrams}, {b"abc", b"bc"})

    def test_room(self) -> None:
        """Who sends more at once than there is room for is told how much of it was taken."""
        handle = self.local(self.server())
        taken = handle.sendAll([b"x"] * 5000, ("127.0.0.1", 9), 1)
        self.assertEqual(taken, 4096)
        self.assertFalse(handle.send(b"x", ("127.0.0.1", 9), 2))

    async def test_closeSource(self) -> None:
        """A source that is closed begins anew, with another external port."""
        far, questions = self.application()
        handle = await self.linked(self.local(self.server()))
        for number in (1, 2):
            handle.send(b"x", far.address, 1)
            await until(lambda: len(questions.datagrams) == number)  # noqa: B023
            handle.closeSource(1)
        handle.closeSource("unknown")
        self.assertEqual(len(questions.sources), 2)

    async def test_inOrder(self) -> None:
        """What was sent before a source is closed, or the handle is stopped, goes before."""
        far, questions = self.application()
        handle = await self.linked(self.local(self.server()))
        handle.send(b"one", far.address, 1)
        handle.closeSource(1)
        self.assertEqual((handle.stats()["received"], handle.stats()["associations"]), (1, 0))
        handle.send(b"two", far.address, 1)
        await handle.stop()
        await until(lambda: len(questions.datagrams) == 2)
        self.assertEqual((questions.datagrams, len(questions.sources)), ([b"one", b"two"], 2))

    async def test_stopped(self) -> None:
        """A handle that has stopped takes nothing; its callbacks are not called any more."""
        handle = await self.linked(self.local(self.server()))
        handle.send(b"x", self.echo(), 1)
        await handle.stop()
        self.assertFalse(handle.send(b"x", ("127.0.0.1", 9), 1))
        handle.closeSource(1)
        self.assertEqual(self.host.datagrams, [])

    async def test_severalInstances(self) -> None:
        """Instances in one process have nothing in common."""
        hosts = [Host(number) for number in range(3)]
        servers = [self.server() for _ in hosts]
        handles = [self.local(server, host) for server, host in zip(servers, hosts, strict=True)]
        target = self.echo()
        for handle in handles:
            await self.linked(handle)
        for number, handle in enumerate(handles):
            handle.send(b"%d" % number, target, "same")
        await until(lambda: all(host.datagrams for host in hosts))
        self.assertEqual([host.datagrams for host in hosts], [[(b"%d" % n, target, "same")] for n in range(3)])
        await handles[0].stop()
        self.assertEqual([handle.stats()["up"] for handle in handles], [False, True, True])


class PacketTests(ApiTestCase):
    """Packets by call, without anybody who speaks TCP."""

    def setUp(self) -> None:
        super().setUp()
        self.local_ = self.local(self.server())
        self.packets: list[bytes] = []
        profile = Tun2socksConfig(stack="none", socksServerAddr=Address("127.0.0.1", 9), mtu=1280)
        self.handle = self.kept(
            start_tun2socks(
                profile,
                self.host.happened,
                self.host.data,
                packetsReceived=self.received,
                local=self.local_,
                reactor=reactor,
            )
        )

    def received(self, packets: list[bytes], data: object) -> None:
        assert data is self.host.data
        self.packets += packets

    async def test_answers(self) -> None:
        """What is handed in is answered by packets: an echo request, and a SYN that nobody can serve."""
        self.assertEqual(self.handle.sendPackets([ECHO4, ECHO6]), 2)
        await until(lambda: len(self.packets) == 2)
        self.assertEqual([(parse(each).source, parse(each).destination) for each in self.packets], [*map(back, PAIRS)])
        self.handle.sendPackets([SYN4])
        await until(lambda: len(self.packets) == 3)
        self.assertEqual(parse(self.packets[2]).protocol, TCP)

    async def test_names(self) -> None:
        """Names are looked up once, in the thread that starts the role: that blocks."""
        inside = []

        def resolved(option: str, address: Address) -> Address:
            inside.append(isInIOThread())
            return Address("127.0.0.1", address.port)

        self.patch(tun2socks, "resolved", resolved)
        profile = replace(self.handle.service.config, socksServerAddr=Address("proxy.example", 9))
        begin = partial(start_tun2socks, profile, packetsReceived=self.received, local=self.local_, reactor=reactor)
        handle = self.kept(await deferToThread(begin))
        self.assertEqual(handle.service.config.socksServerAddr, Address("127.0.0.1", 9))
        self.kept(begin())
        self.assertEqual(inside, [False, True])

    async def test_datagrams(self) -> None:
        """Datagrams go into the session of the udp-local that was given, and come back as packets that fit."""
        before = self.handle.stats()["udp"]
        self.handle.sendPackets([UDP4, UDP6, UDP4])
        await until(lambda: self.handle.stats()["udp"]["associations"] == 2)
        self.assertEqual(before, {"associations": 0})
        self.handle.service.gateway.send(Address("192.0.2.1", 4000), Address("198.51.100.7", 53), 3000, bytes(3000))
        await until(lambda: len(self.packets) == 3)
        self.assertEqual([len(each) <= 1280 for each in self.packets], [True] * 3)

    def test_refused(self) -> None:
        """What is no bytes is refused at once, and nothing is handed in."""
        self.assertRaises(TypeError, self.handle.sendPackets, [ECHO4, "text"])
        self.assertEqual(self.handle.sendPackets([bytearray(ECHO4)]), 1)

    async def test_garbage(self) -> None:
        """What is no packet is dropped, and counted."""
        self.handle.sendPackets([b"", b"x" * 19, b"x" * 100, bytes(65536)])
        await until(lambda: self.handle.stats()["dropped"].get("malformed") == 4)
        self.assertEqual(self.packets, [])

    async def test_stopped(self) -> None:
        """A handle that has stopped takes no packets. Those that it had taken before are served first."""
        self.handle.sendPackets([ECHO4])
        await self.handle.stop()
        self.assertEqual((self.handle.sendPackets([ECHO4]), self.handle.stats()["received"]), (0, 1))
        self.assertEqual(self.handle.stats()["role"], "tun2socks")


class DescriptorTests(ApiTestCase):
    """A TUN as a descriptor. A socket of messages does for one: the kernel is asked what it is, and need not know."""

    def setUp(self) -> None:
        super().setUp()
        if not hasattr(socket, "AF_UNIX"):
            raise SkipTest("there are no Unix sockets here")
        self.far, self.near = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (self.far, self.near):
            self.addCleanup(each.close)

    def start(self, descriptor: int, **fields: Any) -> Any:
        """tun2socks with a descriptor."""
        profile = Tun2socksConfig(
            **{"tunFd": descriptor, "stack": "none", "socksServerAddr": Address("127.0.0.1", 9), **fields}
        )
        return self.kept(start_tun2socks(profile, reactor=reactor))

    async def test_stays(self) -> None:
        """It stays the host's, whatever becomes of the role; and the role may go on when the host has closed it."""
        handle = self.start(self.near.fileno())
        self.far.send(ECHO4)
        await until(lambda: handle.stats()["received"] == 1)
        await handle.stop()
        self.far.send(ECHO4)
        self.assertEqual(self.near.recv(1000), ECHO4)
        for wrong in ({"stack": "colourful"}, {"stack": "tun"}, {"fakeDns": ("nonsense",)}, {"socksServerAddr": None}):
            self.assertRaises((ConfigError, ListenError, ValueError), self.start, self.near.fileno(), **wrong)
            self.far.send(ECHO4)
            self.assertEqual(self.near.recv(1000), ECHO4)
        handle = self.start(self.near.fileno())
        self.near.close()
        self.far.send(ECHO4)
        await until(lambda: handle.stats()["received"] == 1)

    def test_nothing(self) -> None:
        """One that is not open is refused by its number."""
        number = self.near.fileno()
        self.near.close()
        self.assertIn(
            f"descriptor {number} is of no use as a TUN", str(self.assertRaises(ListenError, self.start, number))
        )


def back(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """The way back between two hosts."""
    return pair[1], pair[0]


class L3Tests(ApiTestCase):
    """l3-tunnel, with real UDP ports and all else in memory."""

    async def test_events(self) -> None:
        """Both ends tell their ports, each other, and that the other one is gone."""
        key = Path(self.mktemp())
        key.write_bytes(base64.b64encode(KEY))
        self.patch(start, "L3Service", lambda config, reactor: L3Service(config, reactor, MemorySystem()))
        base = L3Config(interface="eth1", keyFile=str(key), local=Address("127.0.0.1", 0))
        far = Host("far")
        other = replace(base, capture=BEHIND_A, peer=Address("127.0.0.1", 9), keepalive=0.0)
        beyond = self.kept(start_l3_tunnel(other, far.happened, far.data, reactor=reactor))
        (ready,) = far.events
        (bound,) = ready.sockets
        self.assertEqual((bound.option, ready.udpDescriptor, ready.socksDescriptor), ("local", bound.descriptor, -1))
        near = replace(base, capture=BEHIND_B, peer=bound.address)
        handle = self.kept(start_l3_tunnel(near, self.host.happened, self.host.data, reactor=reactor))
        await self.told(Ready, SessionUp)
        await self.told(Ready, SessionUp, host=far)
        self.assertEqual(self.host.events[1].session, str(bound.address))
        self.assertEqual(handle.stats()["role"], "l3-tunnel")
        await handle.stop()
        self.assertEqual(self.host.kinds, [Ready, SessionUp, SessionDown, Stopped])
        await beyond.stop()

    def test_wrong(self) -> None:
        """What is missing in a profile is named."""
        error = self.assertRaises(ConfigError, start_l3_tunnel, L3Config(), reactor=reactor)
        self.assertIn("--interface", str(error))


class LifeTests(ApiTestCase):
    """Beginning and end."""

    async def test_wrongProfile(self) -> None:
        """A profile that is wrong is refused with the reason, and leaves nothing open."""
        taken = self.server()
        place = f"tcp:{portOf(taken)}:interface=127.0.0.1"
        beyond = Forward(Address("0.0.0.0", 0), Address("192.0.2.1", 1))
        before, clock = -1, cast(IReactorTime, reactor)
        # What is opened once for the whole process is there after the first round, and the reactor closes in its turn.
        for _ in range(3):
            await deferLater(clock, 0.01)
            before = descriptors()
            for error, begin, profile in (
                (ConfigError, start_udp_local, ServerConfig()),
                (ConfigError, start_udp_server, None),
                (ConfigError, start_tun2socks, LocalConfig()),
                (ConfigError, start_udp_local, LocalConfig(server=("nonsense",))),
                (ListenError, start_udp_server, ServerConfig(listen=(LISTEN, place))),
                (ListenError, start_udp_local, LocalConfig(socks=LISTEN, forward=(FORWARD, beyond))),
                (ConfigError, start_tun2socks, Tun2socksConfig()),
            ):
                self.assertRaises(error, begin, profile, self.host.happened, self.host.data, reactor=reactor)
            self.assertRaises(ConfigError, self.server, log="loud")
        await until(lambda: descriptors() == before)
        self.assertEqual(self.host.events, [])

    async def test_stopAgain(self) -> None:
        """Stopping may be asked for by several, and again; each is told when it is done."""
        handle = self.server(self.host)
        ends: list[Deferred[None]] = [handle.stop(), handle.stop()]
        for each in ends:
            await each
        await handle.stop()
        self.assertEqual(self.host.kinds, [Ready, Stopped])
        self.assertEqual(handle.sockets, ())

    async def test_stopInside(self) -> None:
        """A callback may stop its handle, even the first one."""
        self.host.inside = lambda event: event.handle.stop() if isinstance(event, Ready) else None
        self.server(self.host)
        await self.told(Ready, Stopped)

    async def test_stopInsideLast(self) -> None:
        """Also the last one may, which is told once; that is no mistake that anybody would have to be told of."""
        self.host.inside = lambda event: event.handle.stop() if isinstance(event, Stopped) else None
        await self.server(self.host).stop()
        handle = self.local(self.server())
        end = handle.stop()
        await end
        await self.told(Ready, Stopped, Ready, Stopped)
        self.assertEqual(self.unhandled(), [])

    async def test_stopInsideBoth(self) -> None:
        """The first one and the last one may."""
        self.host.inside = lambda event: event.handle.stop() if isinstance(event, Ready | Stopped) else None
        self.server(self.host, statistics=0.01)
        await self.told(Ready, Stopped)
        self.assertEqual(self.unhandled(), [])

    async def test_stopInsideAndElsewhere(self) -> None:
        """Whoever else waits for the end does so until the last callback has returned."""
        late: list[str] = []

        def inside(event: Any) -> None:
            if isinstance(event, Stopped):
                event.handle.stop()
                late.append("callback")

        self.host.inside = inside
        handle = self.server(self.host)
        handle.stop().addCallback(lambda nothing: late.append("whoever else"))
        await self.told(Ready, Stopped)
        await until(lambda: len(late) == 2)
        self.assertEqual(late, ["callback", "whoever else"])

    async def test_stopBefore(self) -> None:
        """A role that is stopped while it begins, by a callback that gets a line of the log, ends when it has begun."""
        handles: list[Handle] = []

        def inside(event: Any) -> None:
            if isinstance(event, LogLine) and not handles:
                handles.append(event.handle)
                event.handle.stop()

        def make(*arguments: Any) -> LocalService:
            _log.info("begun")
            return LocalService(*arguments)

        server = self.server()
        self.host.inside = inside
        self.patch(start, "LocalService", make)
        handle = self.local(server, socks=LISTEN)
        self.assertEqual(handles, [handle])
        await self.told(Ready, Stopped)
        self.assertEqual((handle.sockets, handle.stats()["up"], self.unhandled()), ((), False, []))

    def unhandled(self) -> list[Any]:
        """What went wrong in a Deferred that nobody has waited for."""
        gc.collect()
        return self.flushLoggedErrors()

    async def test_otherThread(self) -> None:
        """All of it may be called from any thread; callbacks come in the reactor's."""
        far = self.echo()
        server = self.server()

        def elsewhere() -> tuple[dict[str, Any], dict[str, Any]]:
            handle = self.local(server)
            while not handle.stats()["up"]:
                pass
            handle.send(b"x", far, 1)
            while not self.host.datagrams:
                handle.stats()
            handle.closeSource(1)
            early = handle.stats()
            handle.stop()
            handle.stop()
            self.assertEqual(self.host.kinds[-1], Stopped)
            return early, handle.stats()

        inside = []
        self.host.inside = lambda event: inside.append(isInIOThread())
        early, late = await deferToThread(elsewhere)
        self.assertEqual((early["up"], late["up"]), (True, False))
        self.assertEqual(set(inside), {True})

    async def test_otherThreadRefused(self) -> None:
        """What is wrong is raised in the thread that has asked."""
        profile = LocalConfig(server=("nonsense",))
        await self.assertFailure(deferToThread(start_udp_local, profile), ConfigError)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
