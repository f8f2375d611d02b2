"""Tests for L{udptunnel.services.local}."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import tempfile
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXClientEndpoint, wrapServerTLS
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.needs import needs
from tests.net.test_pipe import Speaker
from tests.net.test_socks5 import UpstreamServer
from tests.services.tunnel import HOSTS, Control, TunnelTestCase, headerOf
from tests.waiting import until
from udptunnel.config import Forward, Inherited, LocalConfig
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.datagrams import DatagramPort
from udptunnel.net.socks5client import addressOf
from udptunnel.net.testing import MemorySocket, MortalTransport
from udptunnel.net.tls import ALPN
from udptunnel.services import local as local_module
from udptunnel.services.local import FAREWELL_SECONDS, LOOK_SECONDS, LocalService
from udptunnel.services.reconnecting import FIRST_SECONDS, LAST_SECONDS, STABLE_SECONDS
from udptunnel.services.servers import HANDICAP_SECONDS
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.burst import Burst
from udptunnel.wire.frame import CLOSE, DATA, GOAWAY, HELLO, PING, TARGET, decode, encode
from udptunnel.wire.greeting import TICKET_BYTES, Greeting, packWelcome, unpackGreeting

FAR = Address("192.0.2.1", 53)
SOURCE = ("127.0.0.1", 4000)


class MemoryTestCase(SynchronousTestCase):
    """udp-local in memory: its one forward has a socket without a kernel, and the test is udp-server."""

    config = LocalConfig(
        socks="none", forward=(Forward(Address("127.0.0.1", 5353), FAR),), offload="none", delay=0.0, heartbeat=5.0
    )

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.socket = MemorySocket("127.0.0.1", 5353)
        self.patch(DatagramPort, "startListening", lambda port: port.adopt(self.socket))
        self.start(self.config)
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.stop)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual([call for call in self.reactor.getDelayedCalls() if call.active()], [])

    def start(self, config: LocalConfig) -> None:
        """Start the service."""
        self.service = LocalService(config, self.reactor)
        self.service.startService()
        (entry,) = self.service.entries
        self.port = entry.port

    def stop(self) -> None:
        """Stop it."""
        stopped = Deferred.fromCoroutine(self.service.stopService())
        for transport in list(getattr(self, "transports", ())):
            if transport.connected and transport.disconnecting:
                transport.die()
        self.reactor.advance(FAREWELL_SECONDS)
        self.successResultOf(stopped)

    def connect(self) -> MortalTransport:
        """The newest attempt to reach udp-server succeeds, as far as TCP goes."""
        factory = self.reactor.tcpClients.pop()[2]
        transport = MortalTransport()
        transport.attach(factory.buildProtocol(None))
        self.transports = [*getattr(self, "transports", ()), transport]
        return transport

    def frames(self, transport: MortalTransport, pings: bool = False) -> list[tuple[int, int, int, bytes]]:
        """What was written since the last time, as frames; without PINGs unless they are asked for."""
        frames, used = decode(memoryview(transport.value()))
        self.assertEqual(used, len(transport.value()))
        transport.clear()
        return [(word, *rest, bytes(body)) for word, *rest, body in frames if pings or word != PING]  # type: ignore[misc]

    def welcome(self, transport: MortalTransport, associations: int = 100) -> None:
        """udp-server welcomes the link."""
        ((word, target, size, body),) = self.frames(transport)
        self.assertEqual(word, HELLO)
        self.greeting = unpackGreeting(target, size, body)
        resumed = bool(self.greeting.ticket)
        answer = Greeting(self.greeting.session, associations, 100, ticket=os.urandom(TICKET_BYTES), resumed=resumed)
        transport.protocol.dataReceived(packWelcome(answer))
        self.assertEqual(self.service.session.name, self.greeting.session)


class WayTests(MemoryTestCase):
    """A datagram's way through udp-local."""

    def test_aDatagramsWay(self) -> None:
        """A datagram of an application becomes frames on a link, and a frame becomes its answer."""
        transport = self.connect()
        self.welcome(transport)
        transport.clear()
        # 0. Three datagrams of an application have come to the forward's socket.
        self.socket.arrived += [(b"abc", SOURCE), (b"def", SOURCE), (b"g", SOURCE)]
        # 1. The reactor finds the descriptor ready. The port takes all three at once and joins them into one burst.
        seen: list[list[Burst]] = []
        (entry,) = self.service.entries
        receive = entry.burstsReceived
        entry.burstsReceived = lambda bursts: (seen.append(bursts), receive(bursts))  # type: ignore[method-assign,assignment]
        self.port.doRead()
        self.assertEqual(seen, [[Burst(Address(*SOURCE), 3, b"abcdefg")]])
        # 2. The service looks at the clock once: the association is as old as that.
        (association,) = self.service.session.associations
        self.assertEqual(association.used, self.reactor.seconds())
        # 3. The source has association 0, and the address of the target the number 0, announced before it is used.
        # 4. The queue before the link stayed empty, for the path was free.
        (link,) = self.service.session.links
        self.assertFalse(link.queue)
        # 5. One header stands before the whole burst.
        expected = encode(TARGET, 0, 0, packAddress(FAR)) + encode(DATA | 0, 0, 3, b"abcdefg")
        # 6. All of it went to the connection with one write.
        self.assertEqual(transport.value(), expected)
        transport.clear()
        # Back 1. The answer comes as a burst too; udp-server's own number 7 stands for who has sent it.
        answer = encode(TARGET, 7, 0, packAddress(FAR)) + encode(DATA | 0, 7, 2, b"xyz")
        transport.protocol.dataReceived(answer)
        # Back 2. The association leads to the application, which gets the datagrams one by one from the forward.
        self.assertEqual(self.socket.sent, [(b"xy", SOURCE), (b"z", SOURCE)])
        # Back 3. Nothing was dropped on the way, and everything was counted.
        report = self.service.report()
        self.assertEqual((report["received"], report["sent"], report["dropped"]), (3, 2, {}))
        self.assertEqual((report["associations"], len(report["links"])), (1, 1))


class LinkTests(MemoryTestCase):
    """How udp-local keeps its links."""

    def tick(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds * 4)):
            self.reactor.advance(0.25)

    def test_waiting(self) -> None:
        """Without a link, datagrams wait for a moment, and go when the link is up; older ones are dropped."""
        transport = self.connect()
        self.socket.arrived.append((b"old", SOURCE))
        self.port.doRead()
        self.tick(3)
        self.socket.arrived.append((b"new", SOURCE))
        self.port.doRead()
        self.welcome(transport)
        self.assertEqual([body for word, _, _, body in self.frames(transport) if word == DATA], [b"new"])
        self.assertEqual(self.service.counters.dropped, {"too old": 1})

    def test_notWelcomed(self) -> None:
        """A connection whose other end says nothing is given up after ten seconds, and another is tried."""
        transport = self.connect()
        self.tick(9)
        self.assertFalse(transport.disconnected)
        self.tick(3)
        self.assertTrue(transport.disconnected)
        transport.die()
        self.tick(1)
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_backOff(self) -> None:
        """Only a welcome resets the back-off: a proxy that accepts everything does not (S-3)."""
        waits: list[float] = []
        for _ in range(8):
            self.connect().die()
            begin = self.reactor.seconds()
            while not self.reactor.tcpClients:
                self.reactor.advance(0.01)
            waits.append(self.reactor.seconds() - begin)
        for attempt, wait in enumerate(waits):
            most = min(LAST_SECONDS, FIRST_SECONDS * 1.5**attempt)
            self.assertTrue(0.74 * most <= wait <= most + 0.02, waits)
        transport = self.connect()
        self.welcome(transport)
        self.reactor.advance(STABLE_SECONDS)
        transport.die(ConnectionLost())
        begin = self.reactor.seconds()
        while not self.reactor.tcpClients:
            self.reactor.advance(0.01)
        self.assertLess(self.reactor.seconds() - begin, 0.3)

    def test_refused(self) -> None:
        """A connection that is refused is tried again."""
        self.reactor.tcpClients.pop()[2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.tick(1)
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_notWanted(self) -> None:
        """When udp-server says farewell instead of welcome, the link is closed and tried again."""
        transport = self.connect()
        transport.protocol.dataReceived(encode(GOAWAY, body=b"too many sessions"))
        self.assertTrue(transport.disconnecting)
        transport.die()
        self.tick(1)
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_noServer(self) -> None:
        """What answers with no frames is cut off."""
        transport = self.connect()
        transport.protocol.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertTrue(transport.disconnected)
        transport.die()

    def test_dyingTransport(self) -> None:
        """The UDP ports, the session and the associations outlive each link."""
        for number in range(3):
            transport = self.connect()
            self.welcome(transport)
            self.socket.arrived.append((bytes((number,)), SOURCE))
            self.port.doRead()
            words = [word for word, _, _, _ in self.frames(transport)]
            self.assertEqual(words, [TARGET, DATA | 0])
            transport.die(ConnectionLost())
            self.tick(1)
            self.assertIn(self.port, self.reactor.getReaders())
        self.assertFalse(self.socket.closed)
        self.assertEqual(self.service.counters.dropped, {})

    def test_farewell(self) -> None:
        """When udp-server says farewell, the link closes, and udp-local looks for another."""
        transport = self.connect()
        self.welcome(transport)
        transport.protocol.dataReceived(encode(GOAWAY, body=b"udp-server stops"))
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.service.session.links, [])
        transport.die()
        self.tick(1)
        self.assertEqual(len(self.reactor.tcpClients), 1)

    def test_heartbeat(self) -> None:
        """A link whose other end falls silent is closed after three heartbeats."""
        transport = self.connect()
        self.welcome(transport)
        self.tick(6)
        self.assertIn(PING, [word for word, _, _, _ in self.frames(transport, pings=True)])
        self.assertFalse(transport.disconnected)
        self.tick(17)
        self.assertTrue(transport.disconnected)
        transport.die()

    def test_mistake(self) -> None:
        """A tick that fails is logged, and those after it come: a silent link is still given up in time."""
        transport = self.connect()
        self.welcome(transport)
        tick, mistakes = self.service.session.tick, [ZeroDivisionError("a mistake")]

        def fail(now: float) -> None:
            if mistakes:
                raise mistakes.pop()
            tick(now)

        self.patch(self.service.session, "tick", fail)
        self.tick(17)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(transport.disconnected)
        transport.die()

    def refusal(self, answer: bytes) -> list[str]:
        """What is logged when a server answers so and closes the connection."""
        transport = self.connect()
        with capturedLogs() as events:
            transport.protocol.dataReceived(answer)
            transport.die()
        return [formatEvent(event) for event in events]

    def test_oneLine(self) -> None:
        """A refusal makes one line, and so does a server that speaks nonsense."""
        (said,) = self.refusal(encode(GOAWAY, body=b"too many sessions"))
        self.assertEqual(said, "no link: udp-server says: 'too many sessions'")
        self.tick(1)
        (said,) = self.refusal(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assertTrue(said.startswith("no link: "), said)

    def test_stop(self) -> None:
        """A service that stops says farewell on each link, closes its ports, and tries nothing more."""
        transport = self.connect()
        self.welcome(transport)
        self.stop()
        self.assertEqual([word for word, _, _, _ in self.frames(transport)], [GOAWAY])
        self.assertTrue(self.socket.closed)
        self.tick(30)
        self.assertEqual(self.reactor.tcpClients, [])

    def test_grantedAssociations(self) -> None:
        """udp-local keeps to the number of associations that udp-server grants: the oldest go."""
        transport = self.connect()
        self.welcome(transport, associations=2)
        for port in (1, 2, 3):
            self.socket.arrived.append((b"x", ("127.0.0.1", port)))
            self.port.doRead()
            self.tick(0.25)
        self.assertEqual(len(self.service.session.associations), 2)
        self.assertIn((CLOSE | 0, 0, 0, b""), self.frames(transport))


class SeveralLinksTests(MemoryTestCase):
    """A session with several links."""

    config = dataclasses.replace(MemoryTestCase.config, links=3, server=("tcp:127.0.0.1:1", "tcp:127.0.0.1:2"))

    def connectThree(self) -> list[MortalTransport]:
        """All links are up."""
        transports = []
        for _ in range(3):
            transports.append(self.connect())
            self.welcome(transports[-1])
        return transports

    def test_oneAfterTheOther(self) -> None:
        """Links are made one after the other, each with the ticket that the one before has brought."""
        shown = []
        for _ in range(3):
            (attempt,) = self.reactor.tcpClients
            self.assertEqual(attempt[1], 1)
            self.welcome(self.connect())
            shown.append((self.greeting.ticket, self.greeting.alone))
        self.assertEqual(self.reactor.tcpClients, [])
        self.assertEqual(shown[0], (b"", True))
        self.assertEqual([(len(ticket), alone) for ticket, alone in shown[1:]], [(TICKET_BYTES, False)] * 2)
        self.assertEqual(len({ticket for ticket, _ in shown}), 3)
        self.assertEqual(len(self.service.session.links), 3)

    def test_flows(self) -> None:
        """All links belong to one session, and each flow keeps to one of them."""
        transports = self.connectThree()
        for _ in range(3):
            for port in range(1, 10):
                self.socket.arrived.append((bytes((port,)), ("127.0.0.1", port)))
            self.port.doRead()
        used: dict[int, set[int]] = {}
        for number, transport in enumerate(transports):
            for word, _, _, _ in self.frames(transport):
                if word != TARGET:
                    used.setdefault(word, set()).add(number)
        self.assertEqual({len(links) for links in used.values()}, {1})
        self.assertEqual({link for links in used.values() for link in links}, {0, 1, 2})

    def test_nextServer(self) -> None:
        """The second server is asked when the first one takes a moment, and the other links follow the first."""
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [1])
        self.reactor.advance(0.1)
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [1, 2])
        self.welcome(self.connect())
        self.assertEqual(self.service.servers.current.text, "tcp:127.0.0.1:2")
        # The losing attempt is given up.
        self.assertEqual(self.reactor.connectors[0].stoppedConnecting, True)
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [1, 2])
        self.welcome(self.connect())
        self.assertEqual(self.reactor.tcpClients.pop()[1], 2)


class MovingTests(MemoryTestCase):
    """Whether another server is worth a move."""

    config = dataclasses.replace(MemoryTestCase.config, server=("tcp:127.0.0.1:1", "tcp:127.0.0.1:2"), heartbeat=600.0)

    def setUp(self) -> None:
        self.patch(local_module, "QUIET_SECONDS", 5.0)
        super().setUp()
        # The first server is down, and the second is used; then it is time to look again.
        self.reactor.tcpClients.pop()[2].clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.reactor.advance(HANDICAP_SECONDS)
        self.used = self.connect()
        self.welcome(self.used)
        self.links = list(self.service.session.links)
        for _ in range(int(LOOK_SECONDS)):
            self.reactor.advance(1)
        ((_, self.asked, *_),) = self.reactor.tcpClients
        self.patience = self.service.servers.patience(self.service.servers.all[0])

    def assertStays(self) -> None:
        """Nobody looks any more, and the link that is used stays the one."""
        self.assertIs(self.service._looking, None)
        self.assertEqual(self.service.servers.current.text, "tcp:127.0.0.1:2")
        self.assertFalse(self.used.disconnected or self.used.disconnecting)
        self.assertEqual(self.service.session.links, self.links)

    def test_soon(self) -> None:
        """One that lets us in soon enough is moved to."""
        self.assertEqual(self.asked, 1)
        self.reactor.advance(self.patience / 2)
        self.welcome(self.connect())
        self.assertEqual(self.service.servers.current.text, "tcp:127.0.0.1:1")
        self.assertTrue(self.used.disconnecting)
        (link,) = self.service.session.links
        self.assertNotIn(link, self.links)

    def test_slowToWelcome(self) -> None:
        """One that takes our connection, but longer to let us in than it may take to be better, is given up."""
        slow = self.connect()
        self.reactor.advance(self.patience * 0.9)
        self.assertFalse(slow.disconnected)
        self.reactor.advance(self.patience * 0.2)
        self.assertTrue(slow.disconnected)
        slow.die()
        self.assertStays()

    def test_slowToConnect(self) -> None:
        """So is one that takes so long to take it; we look again later."""
        self.reactor.tcpClients.clear()
        self.reactor.advance(self.patience * 1.1)
        self.assertTrue(self.reactor.connectors[-1].stoppedConnecting)
        self.assertStays()
        for _ in range(int(LOOK_SECONDS)):
            self.reactor.advance(1)
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [1])


class PartsTests(SynchronousTestCase):
    """Parts of the service."""

    def test_wrongEndpoints(self) -> None:
        """An endpoint that can not be understood is refused with its option and text."""
        for fields in (
            {"server": ("nonsense",)},
            {"server": ("tcp:",)},
            {"server": ("tcp:127.0.0.1:x",)},
            {"socks": "nonsense:1"},
            {"via": Address("127.0.0.1", 1080), "server": ("unix:/x",)},
            {"passwordFile": "/no/such/file"},
            {"offload": "tso"},
        ):
            config = LocalConfig(**fields)  # type: ignore[arg-type]
            error = self.assertRaises(ConfigError, LocalService, config, MemoryReactorClock())
            option, value = next((name, value) for name, value in fields.items() if name != "via")
            option = {"passwordFile": "password-file"}.get(option, option)
            text = value[0] if isinstance(value, tuple) else value
            self.assertIn(f"--{option} {text}", str(error))
            self.assertNotIn("\n", str(error))

    def test_viaTargets(self) -> None:
        """What stands behind a SOCKS5 server may be written in each of the ways that Twisted knows."""
        for text, host in (
            ("tcp:relay.example:3456", "relay.example"),
            ("tcp:host=relay.example:port=3456", "relay.example"),
            (r"tcp:2001\:db8\:\:1:3456", "2001:db8::1"),
        ):
            asked: list[Address] = []
            self.patch(local_module, "SocksClientEndpoint", lambda reactor, way, target: asked.append(target))  # noqa: B023
            config = LocalConfig(via=Address("127.0.0.1", 1080), server=(text,), socks="none")
            LocalService(config, MemoryReactorClock())
            self.assertEqual(asked, [Address(host, 3456)])

    def test_passwords(self) -> None:
        """A password file with a wrong line is refused with the line's number, and not with what stands there."""
        name = self.mktemp()
        with open(name, "w") as file:
            file.write("alice:secret\nbobsecret\n")
        error = self.assertRaises(ConfigError, LocalService, LocalConfig(passwordFile=name), MemoryReactorClock())
        self.assertIn("line 2", str(error))
        self.assertNotIn("bob", str(error))


class ForwardTests(TunnelTestCase):
    """Forwards, with both roles and real sockets."""

    async def test_echo(self) -> None:
        """What goes into a forward comes out at its target, and back, over IPv4 and IPv6."""
        targets = [self.echo(host) for host in HOSTS]
        local = self.startLocal(self.startServer(), *targets)
        for entry in local.entries:
            await self.assertEchoes(entry.port.address, sizes=(0, 1, 1472, 1473, 8192, 8193, 65507))
        self.assertEqual(local.counters.dropped, {})

    async def test_strangers(self) -> None:
        """A stranger's datagram to the external port does not come out of a forward."""
        target, seen = self.application()
        local = self.startLocal(server := self.startServer(), target.address)
        port, receiver = self.application()
        port.send(local.entries[0].port.address, 5, b"hello")
        await until(lambda: seen.bursts)
        external = Address("127.0.0.1", seen.bursts[0].source.port)
        stranger, _ = self.application()
        stranger.send(external, 8, b"stranger")
        await until(lambda: local.counters.dropped)
        target.send(external, 6, b"answer")
        await until(lambda: receiver.bursts)
        self.assertEqual(receiver.datagrams, [b"answer"])
        self.assertEqual(local.counters.dropped, {"not from the forward's target": 1})
        self.assertEqual(server.counters.dropped, {})

    async def test_severalLinks(self) -> None:
        """Several links carry what one does."""
        local = self.startLocal(server := self.startServer(), self.echo(), links=3)
        await until(lambda: len(local.session.links) == 3)
        for _ in range(4):
            await self.assertEchoes(local.entries[0].port.address)
        self.assertEqual((len(server.sessions), len(server.connections)), (1, 3))

    async def test_stopped(self) -> None:
        """A service that has stopped has closed its ports, and udp-server forgets its session."""
        local = self.startLocal(server := self.startServer(), self.echo())
        await self.assertEchoes(local.entries[0].port.address)
        await local.stopService()
        self.assertEqual(local.entries[0].port.fileno(), -1)
        await until(lambda: not server.sessions and not server.connections)
        self.assertEqual(server.egress.ports, 0)


class ForwardsWithoutOffloadTests(ForwardTests):
    """The same where the kernel is asked for nothing."""

    offload = "none"


class SocksTests(TunnelTestCase):
    """The SOCKS5 server, with both roles and real sockets."""

    async def test_echo(self) -> None:
        """What a client sends through its relay comes back, from IPv4 and IPv6 targets."""
        local = self.startLocal(self.startServer())
        control = await self.control(local)
        assert control.relay is not None
        for host in HOSTS:
            # The largest leaves room for the header.
            await self.assertEchoes(control.relay, headerOf(self.echo(host)), (0, 1, 1472, 1473, 8192, 8193, 65485))
        self.assertEqual(local.counters.dropped, {})

    async def test_ipv6Client(self) -> None:
        """A client that comes over IPv6 has an IPv6 relay."""
        if "::1" not in HOSTS:
            return
        local = self.startLocal(self.startServer(), socks=r"tcp6:0:interface=\:\:1")
        control = await self.control(local)
        assert control.relay is not None
        self.assertEqual(control.relay.host, "::1")
        await self.assertEchoes(control.relay, headerOf(self.echo("127.0.0.1")))

    @needs("Unix sockets")
    async def test_unix(self) -> None:
        """Over a Unix socket there is no address for a relay: it is refused, and that in the language of SOCKS5."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = os.path.join(folder, "s")
        self.startLocal(self.startServer(), socks=f"unix:{path}")
        control: Any = await UNIXClientEndpoint(reactor, path).connect(Factory.forProtocol(Control))
        await until(lambda: control.lost)
        self.assertIn("general SOCKS server failure", control.failed)

    async def test_names(self) -> None:
        """A name that udp-server can not resolve is counted there; nothing is resolved here."""
        local = self.startLocal(server := self.startServer())
        control = await self.control(local)
        port, _ = self.application()
        header = headerOf(Address("no.such.name", 53))
        port.send(control.relay, len(header) + 1, header + b"x")  # type: ignore[arg-type]
        await until(lambda: server.counters.dropped)
        self.assertEqual(server.counters.dropped, {"name not resolved": 1})

    async def test_ends(self) -> None:
        """With the control connection end its associations here, and their external ports there."""
        local = self.startLocal(server := self.startServer())
        control = await self.control(local)
        await self.assertEchoes(control.relay, headerOf(self.echo()))  # type: ignore[arg-type]
        self.assertEqual((len(local.session.associations), server.egress.ports), (1, 1))
        control.transport.loseConnection()
        await until(lambda: control.lost and not server.egress.ports)
        self.assertEqual(len(local.session.associations), 0)

    async def test_stopped(self) -> None:
        """A service that stops closes its clients' connections and relays."""
        local = self.startLocal(self.startServer())
        control = await self.control(local)
        before = [each for each in reactor.getReaders() if isinstance(each, DatagramPort)]  # type: ignore[attr-defined]
        self.assertEqual([each.address for each in before], [control.relay])
        await local.stopService()
        await until(lambda: control.lost)
        after = [each for each in reactor.getReaders() if isinstance(each, DatagramPort)]  # type: ignore[attr-defined]
        self.assertEqual(after, [])

    async def test_connectVia(self) -> None:
        """CONNECT requests are passed on where that is wanted."""
        accepted: list[Any] = []

        def accept() -> Any:
            accepted.append(UpstreamServer())
            return accepted[-1]

        upstream = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(accept))
        local = self.startLocal(self.startServer(), connectVia=addressOf(upstream.getHost()))
        from twisted.internet.endpoints import clientFromString

        door = addressOf(local.door.address)  # type: ignore[union-attr]
        way = clientFromString(reactor, rf"socks5:name.example:443:endpoint=tcp\:{door.host}\:{door.port}")
        speaker: Any = await way.connect(Factory.forProtocol(Speaker))
        speaker.transport.write(b"question")
        await until(lambda: accepted and accepted[0].heard == b"question")
        self.assertEqual(accepted[0].request.address, Address("name.example", 443))
        accepted[0].transport.write(b"answer")
        await until(lambda: speaker.heard == b"answer")
        speaker.transport.abortConnection()
        await until(lambda: speaker.lost and (accepted[0].lost or accepted[0].ended))
        accepted[0].transport.abortConnection()
        await until(lambda: accepted[0].lost)
        await upstream.stopListening()

    async def test_login(self) -> None:
        """Who uses the SOCKS5 server must know a password, if there are any."""
        name = self.mktemp()
        with open(name, "w") as file:
            file.write("alice:secret\n")
        local = self.startLocal(self.startServer(), passwordFile=name)
        assert local.authenticate is not None
        self.assertTrue(local.authenticate(b"alice", b"secret"))
        with self.assertRaises(AssertionError):
            await self.control(local)


class SocksWithoutOffloadTests(SocksTests):
    """The same where the kernel is asked for nothing."""

    offload = "none"


class ViaTests(TunnelTestCase):
    """Reaching udp-server through a SOCKS5 server."""

    async def test_via(self) -> None:
        """The link goes through the SOCKS5 server, which is asked for udp-server's address unresolved."""
        target = self.echo()
        server = self.startServer()
        hop = self.startLocal(server, connectVia=None)
        # A SOCKS5 server that connects directly.
        from twisted.internet.endpoints import TCP4ClientEndpoint

        asked: list[Address] = []

        def direct(address: Address) -> Any:
            asked.append(address)
            return TCP4ClientEndpoint(reactor, "127.0.0.1", address.port)

        hop.endpointFor = direct  # type: ignore[method-assign,assignment]
        port = addressOf(server.listeners[0].address).port
        local = self.startLocal(
            server,
            target,
            socks="none",
            via=addressOf(hop.door.address),  # type: ignore[union-attr]
            server=(f"tcp:relay.example:{port}",),
        )
        await self.assertEchoes(local.entries[0].port.address)
        self.assertEqual(asked, [Address("relay.example", port)])


class Hospitable(Protocol):
    """A server that welcomes whoever says anything."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(packWelcome(Greeting(b"s" * 16, 100, 100, ticket=bytes(TICKET_BYTES))))


@implementer(IOpenSSLServerConnectionCreator)
class Tls:
    """The TLS of a server with a good certificate, which may choose a protocol."""

    def __init__(self, bundle: str, protocol: bytes | None) -> None:
        self._context = SSL.Context(SSL.TLS_METHOD)
        self._context.use_privatekey_file(bundle)
        self._context.use_certificate_chain_file(bundle)
        if protocol is not None:
            self._context.set_alpn_select_callback(lambda connection, offered: protocol)

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context)


class ProtocolTests(TunnelTestCase):
    """What a server must say inside TLS."""

    async def startBetween(self, protocol: bytes | None) -> LocalService:
        """udp-local, with a server that lets everybody in, and chooses a protocol inside TLS, or none."""
        pki = self.pki("alice")
        tls = Tls(str(pki.bundle("server")), protocol)
        endpoint = wrapServerTLS(tls, TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        listening = await endpoint.listen(Factory.forProtocol(Hospitable))
        self.addCleanup(listening.stopListening)
        return self.startLocal(listening.getHost().port, tls=str(pki.bundle("alice")))  # type: ignore[attr-defined]

    async def test_alpn(self) -> None:
        """One that says that it speaks ours is used."""
        local = await self.startBetween(ALPN)
        await self.linksUp(local)

    async def test_noAlpn(self) -> None:
        """One that does not say so is refused, however good its certificate is, with one line each time."""
        with capturedLogs() as events:
            local = await self.startBetween(None)
            await until(lambda: local.reconnects == 2)
            await local.stopService()
        said = [formatEvent(event) for event in events if event["log_namespace"].startswith("udptunnel.")]
        said = [each for each in said if "link" in each]
        self.assertEqual(len(said), 2, said)
        for reason in said:
            self.assertTrue(reason.startswith("no link: the other end did not say"), reason)
        self.assertEqual((local.session.links, local.session.membership.ticket), ([], b""))


class InheritedTests(TunnelTestCase):
    """A forward at a socket that somebody else has opened."""

    def inherit(self, host: str) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(opened.close)
        opened.bind((host, 0))
        self.patch(local_module, "inheritedDatagramSocket", lambda which: opened)
        return opened

    async def test_forward(self) -> None:
        """Datagrams that come to it go to the target, and answers come back."""
        opened = self.inherit("127.0.0.1")
        at = Address(*opened.getsockname())
        local = self.startLocal(self.startServer(), forward=(Forward(Inherited("dns"), self.echo()),), socks="none")
        await until(lambda: local.session.links)
        await self.assertEchoes(at)

    def test_strangers(self) -> None:
        """It is not opened to other machines by mistake either."""
        self.inherit("0.0.0.0")
        error = self.assertRaises(
            ListenError, self.startLocal, 1, forward=(Forward(Inherited("dns"), FAR),), socks="none"
        )
        self.assertIn("--forward systemd:dns", str(error))


class OpeningTests(TunnelTestCase):
    """What can not be opened is said in one line."""

    def test_taken(self) -> None:
        """A UDP port that is taken, for a forward, is named."""
        taken, _ = self.application()
        error = self.assertRaises(ListenError, self.startLocal, 1, forward=(Forward(taken.address, FAR),), socks="none")
        self.assertIn(str(taken.address), str(error))

    async def test_takenDoor(self) -> None:
        """So is a TCP port that is taken; what was opened before can be closed."""
        listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory())
        port = listening.getHost().port
        fields: Any = {"forward": (Forward(Address("127.0.0.1", 0), FAR),), "offload": "none"}
        local = LocalService(LocalConfig(socks=f"tcp:{port}:interface=127.0.0.1", **fields), reactor)
        error = self.assertRaises(ListenError, local.startService)
        self.assertIn(f"--socks tcp:{port}:interface=127.0.0.1", str(error))
        await local.stopService()
        self.assertEqual(local.entries[0].port.fileno(), -1)
        await listening.stopListening()

    async def test_strangers(self) -> None:
        """Beyond loopback nothing is opened without authentication; the error names the way out."""
        for fields, option in (
            ({"socks": "tcp:0"}, "--socks tcp:0"),
            ({"socks": "none", "forward": (Forward(Address("0.0.0.0", 0), FAR),)}, "--forward 0.0.0.0:0"),
        ):
            config: Any = fields
            local = LocalService(LocalConfig(**config), reactor)
            error = self.assertRaises(ListenError, local.startService)
            self.assertIn(option, str(error))
            self.assertIn("--insecure-no-auth", str(error))
            await local.stopService()
            local = LocalService(LocalConfig(insecureNoAuth=True, **config), reactor)
            local.startService()
            await local.stopService()

    async def test_passwordsSuffice(self) -> None:
        """A SOCKS5 server with passwords may be open to other machines."""
        name = os.path.abspath(self.mktemp())
        with open(name, "w") as file:
            file.write("alice:secret\n")
        local = LocalService(LocalConfig(socks="tcp:0", passwordFile=name), reactor)
        local.startService()
        await local.stopService()
