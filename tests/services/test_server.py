"""Tests for L{udptunnel.services.server}."""

from __future__ import annotations

import dataclasses
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_names import FakeResolver
from tests.net.test_pipe import Speaker
from tests.services.tunnel import HOSTS, LOOPBACK, NoNames, TunnelTestCase, headerOf
from tests.waiting import until
from udptunnel.config import ServerConfig
from udptunnel.core.link import LOGIN_SECONDS
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.datagrams import DatagramPort
from udptunnel.net.descriptors import descriptorLimit
from udptunnel.net.socks5client import addressOf
from udptunnel.net.testing import MemorySocket, MortalTransport
from udptunnel.services.server import FAREWELL_SECONDS, ServerService
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.frame import CLOSE, DATA, GOAWAY, PING, TARGET, WELCOME, decode, encode
from udptunnel.wire.greeting import Greeting, packHello, unpackGreeting
from udptunnel.wire.socks5 import unpackHeader

FAR = Address("127.0.0.1", 53)
NAME = b"a" * 16


class MemoryTestCase(SynchronousTestCase):
    """udp-server in memory: its external ports have sockets without a kernel, and the test is udp-local."""

    config = ServerConfig(listen=("tcp:3456",), insecureNoAuth=True, allow=LOOPBACK, offload="none", delay=0.0)

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.sockets: list[MemorySocket] = []
        self.ports: list[DatagramPort] = []
        self.transports: list[MortalTransport] = []
        self.patch(DatagramPort, "startListening", lambda port: self._listen(port))
        self.resolver = FakeResolver()
        self.service = ServerService(self.config, self.reactor, self.resolver)
        self.service.startService()
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.stop)

    def _listen(self, port: DatagramPort) -> None:
        self.sockets.append(MemorySocket("127.0.0.1", 40000 + len(self.sockets)))
        self.ports.append(port)
        port.adopt(self.sockets[-1])  # type: ignore[arg-type]

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.service.egress.ports, 0)

    def stop(self) -> None:
        """Stop the service; clients close their links when they are told to."""
        stopped = Deferred.fromCoroutine(self.service.stopService())
        self.reactor.advance(FAREWELL_SECONDS)
        for transport in self.transports:
            if transport.connected:
                transport.die()
        self.successResultOf(stopped)

    def tick(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds * 4)):
            self.reactor.advance(0.25)

    def connect(self) -> MortalTransport:
        """Somebody connects."""
        _, factory, *_ = self.reactor.tcpServers[0]
        transport = MortalTransport()
        transport.attach(factory.buildProtocol(None))
        self.transports.append(transport)
        return transport

    def hello(self, session: bytes = NAME, **fields: Any) -> MortalTransport:
        """udp-local connects and says HELLO."""
        transport = self.connect()
        transport.protocol.dataReceived(packHello(Greeting(session, 100, 100, **fields)))
        return transport

    def frames(self, transport: MortalTransport) -> list[tuple[int, int, int, bytes]]:
        """What was written since the last time, as frames, without PINGs."""
        frames, used = decode(memoryview(transport.value()))
        self.assertEqual(used, len(transport.value()))
        transport.clear()
        return [(word, *rest, bytes(body)) for word, *rest, body in frames if word != PING]  # type: ignore[misc]

    def greeted(self, session: bytes = NAME) -> MortalTransport:
        """A link that is up."""
        transport = self.hello(session)
        self.assertEqual([word for word, _, _, _ in self.frames(transport)], [WELCOME])
        return transport

    def say(self, transport: MortalTransport, *frames: bytes) -> list[tuple[int, int, int, bytes]]:
        """Send frames, and get those that answer them."""
        transport.protocol.dataReceived(b"".join(frames))
        return self.frames(transport)


class WayTests(MemoryTestCase):
    """A datagram's way through udp-server."""

    def test_aDatagramsWay(self) -> None:
        """Frames from a link become datagrams to a target, and its answers become frames."""
        transport = self.greeted()
        # 1. Bytes have come over the link: what 0 stands for, and a burst of three datagrams for association 5.
        incoming = encode(TARGET, 0, 0, packAddress(FAR)) + encode(DATA | 5, 0, 3, b"abcdefg")
        # 2. They are cut into frames, however TCP has cut them, and the clock is looked at once for all of them.
        transport.protocol.dataReceived(incoming[:7])
        transport.protocol.dataReceived(incoming[7:])
        # 3. The association is new, and so is the external port that stands for it from now on.
        (session,) = self.service.sessions.values()
        association = session.associations.get(5)
        assert association is not None
        self.assertEqual(association.used, self.reactor.seconds())
        ((external,), (port,)) = self.sockets, self.ports
        # 4. The target may be reached: the verdict is remembered for the next burst.
        route = self.service.egress.route(FAR)
        assert route is not None and route.to is not None
        self.assertIs(self.service.egress.route(FAR), route)
        # 5. The burst goes out as datagrams (here one by one: the kernel's help is off).
        self.assertEqual(external.sent, [(each, route.to) for each in (b"abc", b"def", b"g")])
        # Back 1. The target answers twice, a stranger once. The port takes all with one wake-up, joined into bursts.
        stranger = Address("192.0.2.9", 9)
        external.arrived += [(b"xy", tuple(FAR)), (b"z", tuple(FAR)), (b"hi", tuple(stranger))]
        port.doRead()
        # Back 2. Each source has a number on this link, announced before it is used; one header goes before each burst.
        expected = encode(TARGET, 0, 0, packAddress(FAR)) + encode(DATA | 5, 0, 2, b"xyz")
        expected += encode(TARGET, 1, 0, packAddress(stranger)) + encode(DATA | 5, 1, 2, b"hi")
        # Back 3. The queue before the link stayed empty, and all of it went with one write.
        self.assertFalse(session.links[0].queue)
        frames = self.frames(transport)
        self.assertEqual(b"".join(encode(*frame) for frame in frames), expected)
        # Nothing was dropped on the way, and everything was counted.
        report = self.service.report()
        self.assertEqual((report["sent"], report["received"], report["dropped"]), (3, 3, {}))
        self.assertEqual((report["sessions"], report["links"], report["associations"]), (1, 1, 1))
        self.assertEqual(report["externalPorts"], 1)


class SessionTests(MemoryTestCase):
    """Who may come in, and what becomes of whom."""

    config = dataclasses.replace(MemoryTestCase.config, maxSessions=2, maxLinks=2)

    def test_welcome(self) -> None:
        """A HELLO is answered with WELCOME, which says what the server grants."""
        transport = self.hello()
        ((word, target, size, body),) = self.frames(transport)
        self.assertEqual(word, WELCOME)
        greeting = unpackGreeting(target, size, body)
        self.assertEqual((greeting.session, greeting.associations), (NAME, self.config.maxAssociations))

    def test_sessions(self) -> None:
        """Too many sessions are refused with a reason; another link of a known one is not."""
        self.greeted(b"a" * 16), self.greeted(b"b" * 16)
        refused = self.hello(b"c" * 16)
        ((word, _, _, reason),) = self.frames(refused)
        self.assertEqual((word, reason), (GOAWAY, b"too many sessions"))
        self.assertTrue(refused.disconnecting)
        self.greeted(b"a" * 16)
        self.assertEqual(len(self.service.sessions), 2)

    def test_links(self) -> None:
        """Too many links of one session are refused with a reason."""
        self.greeted(), self.greeted()
        ((word, _, _, reason),) = self.frames(self.hello())
        self.assertEqual((word, reason), (GOAWAY, b"a session has at most 2 links"))

    def test_versions(self) -> None:
        """Who speaks only other versions is told which one is spoken here."""
        ((word, _, _, reason),) = self.frames(self.hello(version=9, lowest=8))
        self.assertEqual(word, GOAWAY)
        self.assertIn(b"version 1", reason)

    def test_strangers(self) -> None:
        """Who sends no HELLO is cut off without a word (S-6)."""
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x05\x01\x00", b"udpx", bytes(4)):
            transport = self.connect()
            transport.protocol.dataReceived(words)
            if len(words) >= 4:
                self.assertTrue(transport.disconnected, words)
            self.assertEqual(transport.value(), b"")
            transport.die()

    def test_silence(self) -> None:
        """Who says nothing is cut off after ten seconds, whatever it drips (S-10, S-11)."""
        silent, slow = self.connect(), self.connect()
        hello = packHello(Greeting(NAME, 1, 1))
        for place in range(int(LOGIN_SECONDS) + 2):
            slow.protocol.dataReceived(hello[place : place + 1])
            self.tick(1)
        for transport in (silent, slow):
            self.assertTrue(transport.disconnected)
            self.assertEqual(transport.value(), b"")
            transport.die()
        self.assertEqual(self.service.links, set())

    def test_noPong(self) -> None:
        """Before HELLO nothing is answered (S-13)."""
        transport = self.connect()
        transport.protocol.dataReceived(encode(PING, body=bytes(8)))
        self.assertEqual(transport.value(), b"")
        self.assertTrue(transport.disconnected)

    def test_end(self) -> None:
        """With its last link a session ends, and its external ports are closed."""
        first, second = self.greeted(), self.greeted()
        self.say(first, encode(TARGET, 0, 0, packAddress(FAR)), encode(DATA | 5, 0, 1, b"x"))
        first.die(ConnectionLost())
        self.assertEqual((len(self.service.sessions), self.service.egress.ports), (1, 1))
        second.die(ConnectionLost())
        self.assertEqual((len(self.service.sessions), self.service.egress.ports), (0, 0))
        self.assertTrue(self.sockets[0].closed)

    def test_dyingTransport(self) -> None:
        """The external ports outlive each link but the last."""
        first, second = self.greeted(), self.greeted()
        self.say(first, encode(TARGET, 0, 0, packAddress(FAR)), encode(DATA | 5, 0, 1, b"x"))
        first.die(ConnectionLost())
        self.assertFalse(self.sockets[0].closed)
        self.sockets[0].arrived.append((b"answer", tuple(FAR)))
        self.ports[0].doRead()
        self.assertEqual([frame[3] for frame in self.frames(second) if frame[0] == DATA | 5], [b"answer"])

    def test_closed(self) -> None:
        """An association that is idle is closed, and so is its port; udp-local is told."""
        transport = self.greeted()
        self.say(transport, encode(TARGET, 0, 0, packAddress(FAR)), encode(DATA | 5, 0, 1, b"x"))
        self.tick(12)
        self.assertEqual(self.service.egress.ports, 0)
        self.assertIn((CLOSE | 5, 0, 0, b""), self.frames(transport))

    def test_socketErrors(self) -> None:
        """Whatever the kernel says about a datagram, the link stays up, and other flows go on (E list)."""
        transport = self.greeted()
        targets = [encode(TARGET, n, 0, packAddress(Address("127.0.0.1", 1000 + n))) for n in range(3)]
        self.say(transport, *targets, encode(DATA | 5, 0, 1, b"x"), encode(DATA | 6, 1, 1, b"y"))
        for number in (1, 11, 13, 22, 90, 101, 105, 111, 113):
            self.sockets[0].error = OSError(number, "refused by the test")
            self.say(transport, encode(DATA | 5, 0, 1, b"xxx"))
            self.ports[0].doRead()
        self.assertFalse(transport.disconnected or transport.disconnecting)
        self.say(transport, encode(DATA | 6, 1, 1, b"z"))
        self.assertEqual([each for each, _ in self.sockets[1].sent], [b"y", b"z"])
        self.assertEqual(self.service.counters.dropped["send EPERM"], 3)

    def test_names(self) -> None:
        """A target that is a name is resolved by the server, in its own time."""
        transport = self.greeted()
        self.say(
            transport, encode(TARGET, 0, 0, packAddress(Address("name.example", 53))), encode(DATA | 5, 0, 1, b"x")
        )
        self.assertEqual(self.sockets[0].sent, [])
        self.resolver.answer("127.0.0.1")
        self.assertEqual([each for each, _ in self.sockets[0].sent], [b"x"])

    def test_farewell(self) -> None:
        """A server that stops says so on each link, waits for a moment, and closes what is left."""
        transport = self.greeted()
        stopped = Deferred.fromCoroutine(self.service.stopService())
        self.assertEqual([frame[0] for frame in self.frames(transport)], [GOAWAY])
        self.assertNoResult(stopped)
        self.reactor.advance(FAREWELL_SECONDS)
        self.successResultOf(stopped)
        self.assertTrue(transport.disconnected)
        self.assertEqual(self.service.sessions, {})


class PortLimitTests(MemoryTestCase):
    """The limit of external ports."""

    config = dataclasses.replace(MemoryTestCase.config, maxPorts=2)

    def test_limit(self) -> None:
        """Associations beyond it are refused, the others go on, and logins are not hindered."""
        transport = self.greeted()
        self.say(transport, encode(TARGET, 0, 0, packAddress(FAR)))
        answers = [self.say(transport, encode(DATA | number, 0, 1, b"x")) for number in (1, 2, 3)]
        self.assertEqual(answers, [[], [], [(CLOSE | 3, 0, 0, b"")]])
        self.assertEqual(self.service.counters.dropped, {"no external port": 1})
        self.say(transport, encode(DATA | 1, 0, 1, b"y"))
        self.assertEqual([each for each, _ in self.sockets[0].sent], [b"x", b"y"])
        self.greeted(b"b" * 16)


class ConfigurationTests(SynchronousTestCase):
    """What a configuration means."""

    def test_wrong(self) -> None:
        """What can not be understood is refused with its option and text."""
        for fields, text in (
            ({"listen": ("nonsense",)}, "--listen nonsense"),
            ({"allow": ("10.0.0.0/33",)}, "10.0.0.0/33"),
            ({"deny": ("name",)}, "'name'"),
            ({"offload": "tso"}, "--offload tso"),
        ):
            config: Any = fields
            error = self.assertRaises(
                ConfigError, ServerService, ServerConfig(**config), MemoryReactorClock(), NoNames()
            )
            self.assertIn(text, str(error))
            self.assertNotIn("\n", str(error))

    def test_ports(self) -> None:
        """Unless it is said otherwise, external ports leave some descriptors for the rest."""
        service = ServerService(ServerConfig(offload="none"), MemoryReactorClock(), NoNames())
        self.assertLess(service.egress.mostPorts, descriptorLimit())
        service = ServerService(ServerConfig(maxPorts=7, offload="none"), MemoryReactorClock(), NoNames())
        self.assertEqual(service.egress.mostPorts, 7)


class TunnelTests(TunnelTestCase):
    """Both roles with real sockets."""

    async def test_fullCone(self) -> None:
        """Anybody may answer to an external port, and the SOCKS5 client sees who it was."""
        local = self.startLocal(self.startServer())
        control = await self.control(local)
        assert control.relay is not None
        target, seen = self.application()
        client, receiver = self.application()
        header = headerOf(target.address)
        client.send(control.relay, len(header) + 5, header + b"hello")
        await until(lambda: seen.bursts)
        for host in HOSTS:
            third, _ = self.application(host)
            third.send(Address(host, seen.bursts[0].source.port), 5, b"third")
            receiver.calls.clear()
            await until(lambda: receiver.bursts)
            (datagram,) = receiver.datagrams
            source, length = unpackHeader(datagram)
            self.assertEqual((source, datagram[length:]), (third.address, b"third"))

    async def test_onePortPerSource(self) -> None:
        """All that one source sends comes from one external port, whatever its target; another has another."""
        local = self.startLocal(self.startServer())
        control = await self.control(local)
        assert control.relay is not None
        targets = [self.application() for _ in range(2)]
        for client in (self.application()[0], self.application()[0]):
            for target, _ in targets:
                header = headerOf(target.address)
                client.send(control.relay, len(header) + 1, header + b"x")
        await until(lambda: all(len(seen.datagrams) == 2 for _, seen in targets))
        self.assertEqual(targets[0][1].sources, targets[1][1].sources)
        self.assertEqual(len(targets[0][1].sources), 2)

    async def test_forbidden(self) -> None:
        """A target that may not be reached is refused and counted, and the link stays up."""
        server = self.startServer(allow=("127.0.0.1",))
        local = self.startLocal(server, self.echo())
        control = await self.control(local)
        forbidden, seen = self.application("127.0.0.2")
        client, _ = self.application()
        for target in (forbidden.address, Address("0.0.0.0", forbidden.address.port), Address("127.0.0.1", 19)):
            header = headerOf(target)
            client.send(control.relay, len(header) + 1, header + b"x")  # type: ignore[arg-type]
        await until(lambda: server.counters.dropped["target refused"] == 3)
        await self.assertEchoes(local.entries[0].port.address)
        self.assertEqual(seen.bursts, [])

    async def test_socketErrors(self) -> None:
        """Datagrams to port 0, to a broadcast address and to a closed port leave the link up (E-1, E-2, E-11)."""
        server = self.startServer(denyPort=())
        local = self.startLocal(server, self.echo())
        control = await self.control(local)
        client, _ = self.application()
        gone, _ = self.application()
        gone.stopListening()
        for target in (Address("127.0.0.1", 0), Address("127.255.255.255", 9), gone.address):
            header = headerOf(target)
            client.send(control.relay, len(header) + 1, header + b"x")  # type: ignore[arg-type]
        await until(lambda: sum(server.counters.dropped.values()) == 2)
        await self.assertEchoes(local.entries[0].port.address)

    async def test_restart(self) -> None:
        """After the server was stopped and started again at the same port, echoes flow again."""
        target = self.echo()
        server = self.startServer()
        local = self.startLocal(server, target)
        entry = local.entries[0].port.address
        await self.assertEchoes(entry)
        port = addressOf(server.listeners[0].address).port
        await server.stopService()
        self.assertEqual(server.egress.ports, 0)
        await until(lambda: not local.session.links)
        again = self.startServer(f"tcp:{port}:interface=127.0.0.1")
        await until(lambda: local.session.links)
        await self.assertEchoes(entry)
        self.assertEqual(len(again.sessions), 1)

    async def test_localFirst(self) -> None:
        """udp-local may be started before udp-server."""
        reserved = self.startServer()
        port = addressOf(reserved.listeners[0].address).port
        await reserved.stopService()
        local = self.startLocal(port, self.echo())
        await until(lambda: local.services[0].running)
        self.startServer(f"tcp:{port}:interface=127.0.0.1")
        await until(lambda: local.session.links)
        await self.assertEchoes(local.entries[0].port.address)

    async def test_twoLocals(self) -> None:
        """Each udp-local has a session of its own."""
        server = self.startServer()
        target = self.echo()
        locals_ = [self.startLocal(server, target) for _ in range(2)]
        for local in locals_:
            await self.assertEchoes(local.entries[0].port.address)
        self.assertEqual(len(server.sessions), 2)
        await locals_[0].stopService()
        await until(lambda: len(server.sessions) == 1)
        await self.assertEchoes(locals_[1].entries[0].port.address)

    async def test_ipv6Link(self) -> None:
        """The link may go over IPv6."""
        if "::1" not in HOSTS:
            return
        server = self.startServer(r"tcp6:0:interface=\:\:1")
        port = addressOf(server.listeners[0].address).port
        local = self.startLocal(server, self.echo(), server=(rf"tcp:\:\:1:{port}",))
        await until(lambda: local.session.links)
        await self.assertEchoes(local.entries[0].port.address)

    async def test_strangers(self) -> None:
        """Somebody who speaks no language of ours gets no byte, and disturbs nobody."""
        server = self.startServer()
        local = self.startLocal(server, self.echo())
        port = addressOf(server.listeners[0].address).port
        stranger: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(Speaker))
        stranger.transport.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: stranger.lost)
        self.assertEqual(stranger.heard, b"")
        await self.assertEchoes(local.entries[0].port.address)


class TunnelWithoutOffloadTests(TunnelTests):
    """The same where the kernel is asked for nothing."""

    offload = "none"


class OpeningTests(TunnelTestCase):
    """What can not be opened is said in one line."""

    async def test_taken(self) -> None:
        """A port that is taken is named."""
        port = addressOf(self.startServer().listeners[0].address).port
        error = self.assertRaises(ListenError, self.startServer, f"tcp:{port}:interface=127.0.0.1")
        self.assertIn(f"--listen tcp:{port}:interface=127.0.0.1", str(error))
        self.assertNotIn("\n", str(error))

    async def test_strangers(self) -> None:
        """Beyond loopback nothing is opened without authentication; the error names the way out."""
        error = self.assertRaises(ListenError, self.startServer, "tcp:0")
        self.assertIn("--listen tcp:0", str(error))
        self.assertIn("--insecure-no-auth", str(error))
        self.startServer("tcp:0", insecureNoAuth=True)
