"""Tests for L{udptunnel.services.server}."""

from __future__ import annotations

import dataclasses
import gc
import socket
import weakref
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_names import FakeResolver
from tests.net.test_pipe import Speaker
from tests.services.tunnel import HOSTS, LOOPBACK, FilesTestCase, NoNames, TunnelTestCase, headerOf, newSecret, portOf
from tests.waiting import until
from udptunnel.config import ServerConfig
from udptunnel.core.link import LOGIN_SECONDS
from udptunnel.core.login import NO_BINDING, Login
from udptunnel.core.penalties import BARRED_SECONDS, FAILURES
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.datagrams import DatagramPort
from udptunnel.net.descriptors import descriptorLimit
from udptunnel.net.socks5client import addressOf
from udptunnel.net.testing import MemorySocket, MortalTransport
from udptunnel.services import server as server_module
from udptunnel.services.server import FAREWELL_SECONDS, ServerService
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.frame import (
    CHALLENGE,
    CLOSE,
    DATA,
    GOAWAY,
    HEADER_BYTES,
    PING,
    TARGET,
    WELCOME,
    decode,
    encode,
    pong,
    unpackPing,
)
from udptunnel.wire.greeting import Greeting, packHello, packProof, unpackChallenge, unpackGreeting
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

    def connect(self, source: str = "192.0.2.1") -> MortalTransport:
        """Somebody connects."""
        _, factory, *_ = self.reactor.tcpServers[0]
        kind = IPv6Address if ":" in source else IPv4Address
        transport = MortalTransport(peerAddress=kind("TCP", source, 4000))
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

    def greeted(self, session: bytes = NAME, **fields: Any) -> MortalTransport:
        """A link that is up, and known to be up; its ticket is kept."""
        transport = self.hello(session, **fields)
        frames = decode(memoryview(transport.value()))[0]
        self.assertEqual([word for word, *_ in frames], [WELCOME, PING])
        self.welcomed = unpackGreeting(*frames[0][1:])
        transport.clear()
        transport.protocol.dataReceived(pong(unpackPing(frames[1][3]), 0))
        return transport

    def another(self, **fields: Any) -> MortalTransport:
        """One more link of the session that was welcomed last."""
        return self.greeted(self.welcomed.session, ticket=self.welcomed.ticket, **fields)

    def say(self, transport: MortalTransport, *frames: bytes) -> list[tuple[int, int, int, bytes]]:
        """Send frames, and get those that answer them."""
        transport.protocol.dataReceived(b"".join(frames))
        return self.frames(transport)

    def open(self, transport: MortalTransport, *numbers: int) -> list[tuple[int, int, int, bytes]]:
        """Send a datagram from each of some associations, and get what answers them."""
        target = encode(TARGET, 0, 0, packAddress(FAR))
        return self.say(transport, target, *(encode(DATA | number, 0, 1, b"x") for number in numbers))

    def park(self, transport: MortalTransport) -> None:
        """The only link of a session is lost while it has an association."""
        self.open(transport, 1)
        transport.die(ConnectionLost())

    def assertRefused(self, transport: MortalTransport, why: str) -> None:
        """Somebody is sent away, and told why."""
        frames = self.frames(transport)
        self.assertEqual([(word, reason.decode()) for word, _, _, reason in frames], [(GOAWAY, why)])
        self.assertTrue(transport.disconnecting)
        transport.die()


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
        self.assertEqual((report["sessionCount"], report["links"], report["associations"]), (1, 1, 1))
        self.assertEqual((report["externalPorts"], report["halfOpen"], report["logins"]), (1, 0, {"accepted": 1}))


class SessionTests(MemoryTestCase):
    """Who may come in, and what becomes of whom."""

    config = dataclasses.replace(MemoryTestCase.config, maxSessions=2, maxLinks=2, resumeGrace=10.0)

    def test_welcome(self) -> None:
        """A HELLO is answered with WELCOME, which says what the server grants."""
        transport = self.hello()
        ((word, target, size, body),) = self.frames(transport)
        self.assertEqual(word, WELCOME)
        greeting = unpackGreeting(target, size, body)
        self.assertEqual((greeting.session, greeting.associations), (NAME, self.config.maxAssociations))

    def test_sessions(self) -> None:
        """Too many sessions are refused with a reason; another link of a known one is not."""
        self.greeted(b"b" * 16), self.greeted(b"a" * 16)
        refused = self.hello(b"c" * 16)
        ((word, _, _, reason),) = self.frames(refused)
        self.assertEqual((word, reason), (GOAWAY, b"too many sessions"))
        self.assertTrue(refused.disconnecting)
        self.another()
        self.assertEqual(self.welcomed.session, b"a" * 16)
        self.assertEqual(len(self.service.sessions), 2)

    def test_links(self) -> None:
        """Too many links of one session are refused with a reason."""
        self.greeted(), self.another()
        ((word, _, _, reason),) = self.frames(self.hello(ticket=self.welcomed.ticket))
        self.assertEqual((word, reason), (GOAWAY, b"a session has at most 2 links"))

    def test_aloneAtTheLimit(self) -> None:
        """Who has lost all links is let in though we hold them for alive: this one takes their place."""
        old = [self.greeted(), self.another()]
        self.another(alone=True)
        self.assertEqual([each.disconnected for each in old], [True, True])
        self.assertEqual(len(self.service.sessions[NAME].links), 1)
        for each in old:
            each.die(ConnectionLost())
        self.another()

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
        self.assertEqual(self.service.connections, set())

    def test_noPong(self) -> None:
        """Before HELLO nothing is answered (S-13)."""
        transport = self.connect()
        transport.protocol.dataReceived(encode(PING, body=bytes(8)))
        self.assertEqual(transport.value(), b"")
        self.assertTrue(transport.disconnected)

    def test_end(self) -> None:
        """Without a link a session is parked for a while; then it ends, and its external ports are closed."""
        first, second = self.greeted(), self.another()
        self.say(first, encode(TARGET, 0, 0, packAddress(FAR)), encode(DATA | 5, 0, 1, b"x"))
        first.die(ConnectionLost())
        self.assertEqual((len(self.service.sessions), self.service.egress.ports), (1, 1))
        second.die(ConnectionLost())
        self.tick(9)
        self.assertEqual((len(self.service.sessions), self.service.egress.ports), (1, 1))
        self.assertEqual(self.service.report()["parkedCount"], 1)
        self.tick(2)
        self.assertEqual((len(self.service.sessions), self.service.egress.ports), (0, 0))
        self.assertTrue(self.sockets[0].closed)

    def test_dyingTransport(self) -> None:
        """The external ports outlive each link but the last."""
        first, second = self.greeted(), self.another()
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

    def test_parkedCount(self) -> None:
        """Parked sessions count for the limit (S-18); who comes back to his own is let in all the same."""
        self.greeted(b"b" * 16)
        self.park(self.greeted(b"a" * 16))
        self.assertRefused(self.hello(b"c" * 16), "too many sessions")
        self.another()
        self.assertEqual((self.welcomed.session, self.welcomed.resumed), (b"a" * 16, True))

    def test_nothingToKeep(self) -> None:
        """A session without associations is over with its last link."""
        self.greeted().die(ConnectionLost())
        self.assertEqual(self.service.sessions, {})

    def test_unconfirmed(self) -> None:
        """A session that was lost before anybody is known to have its ticket is not parked: nobody could come back."""
        transport = self.hello()
        self.open(transport, 5)
        self.assertEqual(self.service.egress.ports, 1)
        transport.die(ConnectionLost())
        self.assertEqual((self.service.sessions, self.service.egress.ports), ({}, 0))

    def test_answerLost(self) -> None:
        """A WELCOME may be lost: what was shown for it is good once more, and the link of the first try goes."""
        self.park(self.greeted())
        ticket = self.welcomed.ticket
        lost = self.hello(ticket=ticket)
        self.another()
        self.assertTrue(lost.disconnected)
        self.assertTrue(self.welcomed.resumed)
        # Now it is known that the new ticket has arrived.
        self.assertNotEqual(self.welcomed.ticket, ticket)
        late = self.hello(ticket=ticket)
        self.assertEqual(len(self.service.sessions), 2)
        for transport in (lost, late):
            transport.die(ConnectionLost())

    def test_alone(self) -> None:
        """Who has no other link that he knows of takes the session over from those that we still hold for alive."""
        dead = self.greeted()
        self.open(dead, 5)
        self.another(alone=True)
        self.assertTrue(dead.disconnected)
        (session,) = self.service.sessions.values()
        self.assertEqual((len(session.links), self.service.egress.ports), (1, 1))
        self.sockets[0].arrived.append((b"answer", tuple(FAR)))
        self.ports[0].doRead()
        self.assertEqual([frame[3] for frame in self.frames(self.transports[-1]) if frame[0] == DATA | 5], [b"answer"])
        dead.die()

    def test_aloneWithNothing(self) -> None:
        """So it is with a session that has nothing which would be worth keeping."""
        dead = self.greeted()
        again = self.another(alone=True)
        self.assertEqual(list(self.service.sessions), [NAME])
        self.open(again, 5)
        self.assertEqual(self.service.report()["associations"], 1)
        dead.die()

    def test_farewellOfOne(self) -> None:
        """Who says farewell on one link of two goes on with the other; on the last one, the session is over at once."""
        first, second = self.greeted(), self.another()
        self.say(first, encode(GOAWAY, body=b"one link less"))
        self.assertEqual(len(self.service.sessions), 1)
        self.say(second, encode(GOAWAY, body=b"udp-local stops"))
        self.assertEqual(self.service.sessions, {})
        self.assertTrue(first.disconnecting and second.disconnecting)

    def test_afterFarewell(self) -> None:
        """Whoever was sent away is heard no more, though TLS still brings what he says until he closes it, too."""
        transport = self.greeted()
        self.open(transport, 5)
        (connection,) = self.service.connections
        assert connection.link is not None
        connection.link.goAway("not welcome any more", self.reactor.seconds())
        self.assertEqual((self.service.sessions, self.service.egress.ports), ({}, 0))
        self.open(transport, 6)
        self.assertEqual((self.service.counters.sent, self.service.egress.ports), (1, 0))

    def test_farewellAndMore(self) -> None:
        """What stands behind a farewell is not heard either."""
        transport = self.greeted()
        self.open(transport, 5)
        self.say(transport, encode(GOAWAY), encode(DATA | 6, 0, 1, b"x"))
        self.assertEqual((self.service.counters.sent, self.service.egress.ports), (1, 0))

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


class TickTests(MemoryTestCase):
    """What happens again and again."""

    def test_mistake(self) -> None:
        """A tick that fails is logged, and those after it come: strangers are still cut off in time."""
        tick, mistakes = self.service.egress.tick, [ZeroDivisionError("a mistake")]

        def fail(now: float) -> None:
            if mistakes:
                raise mistakes.pop()
            tick(now)

        self.patch(self.service.egress, "tick", fail)
        silent = self.connect()
        self.tick(LOGIN_SECONDS + 1.5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(silent.disconnected)
        silent.die()


class DrainTests(MemoryTestCase):
    """Draining: nobody new, and the end when few enough are left (F-16)."""

    config = dataclasses.replace(MemoryTestCase.config, drainSessions=1)

    def test_drain(self) -> None:
        """New sessions are refused, links of those that are there are not, and it is over when they are few."""
        done: list[str] = []
        first = self.greeted(b"a" * 16)
        self.greeted(b"b" * 16)
        self.service.drain(lambda: done.append("drained"))
        self.assertEqual(self.service.illness(), "udp-server stops")
        refused = self.connect()
        self.assertEqual([frame[0] for frame in self.say(refused, packHello(Greeting(b"c" * 16, 8, 8)))], [GOAWAY])
        self.reactor.advance(5)
        self.assertEqual((done, len(self.service.sessions)), ([], 2))
        self.say(first, encode(GOAWAY))
        first.die()
        self.reactor.advance(2)
        self.reactor.advance(2)
        self.assertEqual((done, len(self.service.sessions)), (["drained"], 1))

    def test_nobody(self) -> None:
        """Where nobody is, it is over at once."""
        done: list[str] = []
        self.service.drain(lambda: done.append("drained"))
        self.assertEqual(done, ["drained"])


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


class DescriptorTests(MemoryTestCase):
    """What links and external ports leave of the descriptors: of 40, half are kept back."""

    descriptors = 20

    def setUp(self) -> None:
        self.patch(server_module, "descriptorLimit", lambda: 40)
        super().setUp()

    def test_links(self) -> None:
        """Links take half of those at most, those of all sessions together, whoever asks for one more."""
        up = [self.greeted(bytes((number,)) * 16) for number in range(6)]
        up += [self.another() for _ in range(4)]
        ticket = self.welcomed.ticket
        self.assertEqual(self.service.report()["links"], self.descriptors // 2)
        for fields in ({}, {"alone": True}):
            self.assertRefused(self.hello(b"x" * 16, **fields), "too many links")
        self.assertRefused(self.hello(self.welcomed.session, ticket=ticket), "too many links")
        up[0].die(ConnectionLost())
        self.greeted(b"x" * 16)
        self.assertEqual(self.service.report()["links"], self.descriptors // 2)

    def test_ports(self) -> None:
        """External ports and connections together take all of those and no more."""
        transport = self.greeted()
        self.connect(), self.connect()
        answers = self.open(transport, *range(30))
        self.assertEqual(self.service.egress.ports, self.descriptors - 3)
        self.assertEqual(answers, [(CLOSE | number, 0, 0, b"") for number in range(self.descriptors - 3, 30)])

    def test_portsAgain(self) -> None:
        """A connection that is gone leaves its descriptor to an external port."""
        transport, other = self.greeted(), self.connect()
        self.open(transport, *range(30))
        other.die(ConnectionLost())
        self.assertEqual(self.open(transport, 100), [])
        self.assertEqual(self.open(transport, 101), [(CLOSE | 101, 0, 0, b"")])
        self.assertEqual(self.service.egress.ports, self.descriptors - 1)


class LoginTimeoutTests(MemoryTestCase):
    """How long logging in may take."""

    config = dataclasses.replace(MemoryTestCase.config, loginTimeout=3.0)

    def test_timeout(self) -> None:
        """--login-timeout decides, and those that are up are not touched by it."""
        up, silent = self.greeted(), self.connect()
        self.tick(2.75)
        self.assertFalse(silent.disconnected)
        self.tick(1.5)
        self.assertTrue(silent.disconnected)
        self.assertFalse(up.disconnected)
        silent.die()
        self.assertEqual(self.service.report()["halfOpen"], 0)


def gone(transports: list[MortalTransport]) -> list[int]:
    """Which connections were closed."""
    return [place for place, each in enumerate(transports) if each.disconnected]


class HalfOpenTests(MemoryTestCase):
    """Connections that are not logged in."""

    config = dataclasses.replace(MemoryTestCase.config, maxHalfOpen=4)

    def test_oneMustGo(self) -> None:
        """One more than there may be makes one of them go, and it is never the one that has just come."""
        waiting = [self.connect() for _ in range(4)]
        self.assertEqual((gone(waiting), self.service.logins), ([], {}))
        for number in range(1, 30):
            waiting.append(self.connect())
            self.assertFalse(waiting[-1].disconnected)
            self.assertEqual(len(gone(waiting)), number)
        report = self.service.report()
        self.assertEqual((report["halfOpen"], report["logins"]), (4, {"dropped early": 29}))

    def test_nothingIsLeft(self) -> None:
        """A connection that is gone waits for no collector, whether it was up, was refused, or said nothing."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for made in (self.connect, self.greeted, lambda: self.hello(ticket=b"x" * 32)):
            transport = made()
            left = [weakref.ref(each) for each in (transport, transport.protocol)]
            transport.die()
            self.transports.remove(transport)
            del transport
            self.assertEqual([each() for each in left], [None, None])

    def test_mostOfOneSource(self) -> None:
        """It is one of the source that has most of them."""
        honest = [self.connect("192.0.2.7"), self.connect("192.0.2.8")]
        flood = [self.connect("192.0.2.66") for _ in range(20)]
        self.assertEqual(gone(honest), [])
        self.assertEqual(len(gone(flood)), 18)

    def test_mostOfOneNetwork(self) -> None:
        """The addresses of one IPv6 network of 64 bits are one source; those of another are not."""
        honest = [self.connect("2001:db8:0:7::1"), self.connect("2001:db8:0:8::1")]
        flood = [self.connect(f"2001:db8:0:66::{number:x}") for number in range(1, 21)]
        self.assertEqual(gone(honest), [])
        self.assertEqual(len(gone(flood)), 18)

    def test_loggedIn(self) -> None:
        """Those that have logged in do not count, nor do those that are gone."""
        up = [self.greeted(bytes((number,)) * 16) for number in range(10)]
        self.assertEqual(self.service.report()["halfOpen"], 0)
        for _ in range(10):
            self.connect().die()
        waiting = [self.connect() for _ in range(4)]
        self.assertEqual((gone(up), gone(waiting)), ([], []))


class HalfOpenSourceTests(MemoryTestCase):
    """Connections of one source that are not logged in."""

    config = dataclasses.replace(MemoryTestCase.config, maxHalfOpen=100, maxHalfOpenSource=2)

    def test_limit(self) -> None:
        """One source has a limit of its own, but not loopback, where everybody behind a carrier comes from."""
        flood = [self.connect("192.0.2.66") for _ in range(5)]
        self.assertEqual(len(gone(flood)), 3)
        self.assertFalse(flood[-1].disconnected)
        crowd = [self.connect("127.0.0.1") for _ in range(5)]
        self.assertEqual((gone(crowd), len(gone(flood))), ([], 3))


class MemoryLimitTests(MemoryTestCase):
    """--max-memory."""

    config = dataclasses.replace(MemoryTestCase.config, maxMemory=100)

    def hold(self, megabytes: int) -> None:
        """The process holds so much memory, and looks."""
        self.patch(server_module, "residentBytes", lambda: megabytes << 20)
        self.tick(1)

    def test_crammed(self) -> None:
        """Above the limit nothing new is let in; what is there goes on, and may come back."""
        up = self.greeted()
        self.open(up, 1)
        self.hold(101)
        self.assertRefused(self.hello(b"b" * 16), "too many sessions")
        self.assertEqual(self.open(up, 1, 2), [(CLOSE | 2, 0, 0, b"")])
        self.assertEqual(self.service.counters.dropped, {"no external port": 1})
        up.die(ConnectionLost())
        again = self.another(alone=True)
        self.assertTrue(self.welcomed.resumed)
        self.open(again, 1)
        self.assertEqual([each for each, _ in self.sockets[0].sent], [b"x", b"x", b"x"])
        self.hold(100)
        self.assertEqual(self.open(again, 2), [])
        self.greeted(b"b" * 16)

    def test_crammedLinks(self) -> None:
        """A session has no further link then; but one that is its only one is let in."""
        up = self.greeted()
        self.open(up, 1)
        self.hold(101)
        ticket = self.welcomed.ticket
        self.assertRefused(self.hello(ticket=ticket), "no memory is left for one more link")
        self.assertFalse(up.disconnected)
        self.another(alone=True)
        self.assertEqual((self.welcomed.resumed, len(self.service.sessions[NAME].links)), (True, 1))
        self.hold(100)
        self.another()
        self.assertEqual(len(self.service.sessions[NAME].links), 2)

    def test_unlimited(self) -> None:
        """Where nobody knows how much memory there is, nothing is refused for it."""
        self.service._mostMemory = 0
        self.hold(1 << 20)
        self.greeted()

    def test_default(self) -> None:
        """Without the option it is three quarters of what the machine has."""
        self.patch(server_module, "physicalBytes", lambda: 400 << 20)
        config = dataclasses.replace(self.config, maxMemory=0)
        self.assertEqual(ServerService(config, MemoryReactorClock(), NoNames())._mostMemory, 300 << 20)


class UserTestCase(MemoryTestCase, FilesTestCase):
    """Users with secrets."""

    def setUp(self) -> None:
        lines = {user: newSecret(user) for user in ("alice", "bob")}
        self.secrets = {user: bytes.fromhex(line.strip().partition(":")[2]) for user, line in lines.items()}
        self.config = dataclasses.replace(self.config, secrets=self.file("".join(lines.values())))
        super().setUp()

    def challenged(self, user: str, source: str, session: bytes, **fields: Any) -> tuple[MortalTransport, Login, bytes]:
        """Somebody who says that he is a user is asked to prove it; tells how he would."""
        hello = packHello(Greeting(session, 100, 100, user=user, nonce=b"l" * 32, **fields))
        transport = self.connect(source)
        self.assertFalse(transport.disconnected, f"{source} is not listened to")
        transport.protocol.dataReceived(hello)
        login = Login(user, self.secrets.get(user, bytes(32)), b"l" * 32, lambda: NO_BINDING)
        return transport, login, hello[HEADER_BYTES:]

    def logIn(
        self, user: str = "alice", session: bytes = NAME, source: str = "192.0.2.1", **fields: Any
    ) -> MortalTransport:
        """A user logs in."""
        transport, login, hello = self.challenged(user, source, session, **fields)
        ((word, _, _, body),) = self.frames(transport)
        self.assertEqual(word, CHALLENGE)
        transport.protocol.dataReceived(packProof(login.answer(hello, *unpackChallenge(body))))
        frames = decode(memoryview(transport.value()))[0]
        if frames[0][0] == WELCOME:
            self.welcomed = unpackGreeting(*frames[0][1:])
            transport.clear()
            transport.protocol.dataReceived(pong(unpackPing(frames[1][3]), 0))
        return transport

    def fail_(self, user: str = "alice", source: str = "192.0.2.1") -> None:
        """Somebody tries to log in, and fails."""
        transport, _, _ = self.challenged(user, source, NAME)
        self.frames(transport)
        transport.protocol.dataReceived(packProof(bytes(32)))
        self.assertRefused(transport, "user or secret is wrong")

    def assertBarred(self, source: str) -> None:
        """Nobody from there is listened to."""
        transport = self.connect(source)
        self.assertTrue(transport.disconnected)
        self.assertEqual(transport.value(), b"")
        transport.die()


class PenaltyTests(UserTestCase):
    """Who fails again and again."""

    def test_barred(self) -> None:
        """After five failures a source is not listened to for a while, whoever it says it is; others are."""
        for user in ("alice", "bob", "nobody", "alice", "alice"):
            self.fail_(user)
        self.assertEqual(self.service.logins, {"refused": 5})
        self.assertBarred("192.0.2.1")
        self.logIn(source="192.0.2.2")
        self.tick(BARRED_SECONDS - 1)
        self.assertBarred("192.0.2.1")
        self.tick(1)
        self.logIn("bob", b"b" * 16)

    def test_fewer(self) -> None:
        """Less than five do no harm."""
        for _ in range(FAILURES - 1):
            self.fail_()
        self.logIn()

    def test_loopback(self) -> None:
        """Whoever comes from loopback may come through a proxy like all others: nobody is kept out there."""
        for source in ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.3"):
            for _ in range(3 * FAILURES):
                self.fail_(source=source)
            self.logIn(session=source.encode().ljust(16), source=source)

    def test_network(self) -> None:
        """All addresses of one IPv6 network of 64 bits are one source; those of another are not."""
        for number in range(FAILURES):
            self.fail_(source=f"2001:db8:0:66::{number + 1:x}")
        self.assertBarred("2001:db8:0:66:ffff::1")
        self.logIn(source="2001:db8:0:67::1")

    def test_mapped(self) -> None:
        """An IPv4 address is the same source in both ways to write it."""
        for number in range(FAILURES):
            self.fail_(source=("192.0.2.66", "::ffff:192.0.2.66")[number % 2])
        self.assertBarred("192.0.2.66")
        self.assertBarred("::ffff:192.0.2.66")
        self.logIn(source="::ffff:192.0.2.67")

    def test_noLogin(self) -> None:
        """Silence, nonsense and a full house are no failed logins."""
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", encode(PING, body=bytes(8))) * FAILURES:
            transport = self.connect()
            transport.protocol.dataReceived(words)
            transport.die(ConnectionLost())
        self.logIn()

    def test_tickets(self) -> None:
        """Who shows tickets of sessions that are not his is barred as well, though he gets sessions of his own."""
        self.logIn()
        for _ in range(FAILURES):
            self.logIn("bob", NAME, "192.0.2.66", ticket=b"t" * 32)
            self.assertNotEqual(self.welcomed.session, NAME)
        self.assertBarred("192.0.2.66")
        self.assertEqual(len(self.service.sessions[NAME].links), 1)

    def test_noProof(self) -> None:
        """Who was asked for a proof has no more time for it than others."""
        transport, _, _ = self.challenged("alice", "192.0.2.1", NAME)
        self.tick(LOGIN_SECONDS + 1.5)
        self.assertTrue(transport.disconnected)
        transport.die()
        self.assertEqual(self.service.sessions, {})


class ReloadTests(UserTestCase):
    """Users who are just logging in while files are read again."""

    def finish(self, transport: MortalTransport, login: Login, hello: bytes) -> list[int]:
        """Somebody who was asked proves who he is; tells what is answered."""
        ((_, _, _, body),) = self.frames(transport)
        transport.protocol.dataReceived(packProof(login.answer(hello, *unpackChallenge(body))))
        return [word for word, *_ in self.frames(transport)]

    def test_removedMeanwhile(self) -> None:
        """Who was asked for his secret before it was taken out of the file does not come in with it afterwards."""
        pending = {user: self.challenged(user, "192.0.2.1", user.encode().ljust(16)) for user in self.secrets}
        assert self.config.secrets is not None
        with open(self.config.secrets, "w") as file:
            file.write(f"alice:{self.secrets['alice'].hex()}\n")
        self.service.reload(self.config)
        self.assertEqual(self.finish(*pending["alice"]), [WELCOME])
        self.assertEqual(self.finish(*pending["bob"]), [GOAWAY])


class UserLimitTests(UserTestCase):
    """What one user may have."""

    config = dataclasses.replace(
        MemoryTestCase.config, maxUserSessions=2, maxUserAssociations=3, resumeGrace=10.0, maxAssociations=10
    )

    def test_sessions(self) -> None:
        """A user has so many sessions and no more; others have theirs."""
        self.logIn(session=b"1" * 16), self.logIn(session=b"2" * 16)
        self.assertRefused(self.logIn(session=b"3" * 16), "too many sessions of alice")
        self.logIn("bob", b"4" * 16)
        self.assertEqual(len(self.service.sessions), 3)

    def test_parkedSessions(self) -> None:
        """Parked ones count (S-18), until they are over; who comes back to one is let in."""
        self.logIn(session=b"1" * 16)
        self.park(self.logIn(session=b"2" * 16))
        ticket = self.welcomed.ticket
        self.assertRefused(self.logIn(session=b"3" * 16), "too many sessions of alice")
        self.logIn(session=b"2" * 16, ticket=ticket).die(ConnectionLost())
        self.assertTrue(self.welcomed.resumed)
        self.tick(11)
        self.logIn(session=b"3" * 16)
        self.assertEqual(sorted(self.service.sessions), [b"1" * 16, b"3" * 16])

    def test_associations(self) -> None:
        """So are associations, over all sessions of a user together, those of parked sessions included."""
        first, second = self.logIn(session=b"1" * 16), self.logIn(session=b"2" * 16)
        self.assertEqual(self.open(first, 1, 2), [])
        self.assertEqual(self.open(second, 1, 2), [(CLOSE | 2, 0, 0, b"")])
        self.assertEqual((self.service.counters.dropped, self.service.egress.ports), ({"no external port": 1}, 3))
        self.assertEqual(self.open(self.logIn("bob", b"4" * 16), 1, 2, 3), [])
        first.die(ConnectionLost())
        self.assertEqual(self.open(second, 3), [(CLOSE | 3, 0, 0, b"")])
        self.say(second, encode(CLOSE | 1))
        self.assertEqual(self.open(second, 3), [])

    def test_forgotten(self) -> None:
        """Nothing is kept of users who are gone."""
        for _ in range(5):
            self.say(self.logIn(), encode(GOAWAY))
        self.assertEqual((self.service._byUser, self.service._owners), ({}, {}))


class UserLinkLimitTests(UserTestCase):
    """How many links one user may have."""

    config = dataclasses.replace(MemoryTestCase.config, maxUserLinks=3, resumeGrace=10.0)

    def fill(self) -> tuple[list[MortalTransport], bytes]:
        """Alice has as many as she may, in two sessions; tells the ticket of the second."""
        up = [self.logIn(session=b"1" * 16), self.logIn(session=b"1" * 16, ticket=self.welcomed.ticket)]
        up.append(self.logIn(session=b"2" * 16))
        return up, self.welcomed.ticket

    def linksOf(self, user: str) -> int:
        """How many a user has."""
        return sum(len(each.links) for each in self.service.sessions.values() if each.user == user)

    def test_exact(self) -> None:
        """They are counted over all sessions of a user, old and new ones; others have theirs."""
        _, ticket = self.fill()
        self.assertRefused(self.logIn(session=b"2" * 16, ticket=ticket), "too many links of alice")
        self.assertRefused(self.logIn(session=b"3" * 16), "too many links of alice")
        self.assertEqual((self.linksOf("alice"), len(self.service.sessions)), (3, 2))
        for number in range(3):
            self.logIn("bob", bytes((number,)) * 16)
        self.assertEqual((self.linksOf("alice"), self.linksOf("bob")), (3, 3))

    def test_again(self) -> None:
        """A link that is gone makes room for one."""
        up, ticket = self.fill()
        up[0].die(ConnectionLost())
        self.logIn(session=b"2" * 16, ticket=ticket)
        self.assertEqual(self.linksOf("alice"), 3)
        self.assertRefused(self.logIn(session=b"2" * 16, ticket=self.welcomed.ticket), "too many links of alice")

    def test_alone(self) -> None:
        """At the limit, a link that takes the place of all others of its session is let in."""
        up, ticket = self.fill()
        self.logIn(session=b"2" * 16, ticket=ticket, alone=True)
        self.assertTrue(up[2].disconnected)
        self.assertEqual((self.welcomed.resumed, self.linksOf("alice")), (True, 3))
        up[2].die()

    def test_aloneInNewSessions(self) -> None:
        """The first link of a new session takes nobody's place: it counts, though it is alone."""
        self.fill()
        self.assertRefused(self.logIn(session=b"3" * 16, alone=True), "too many links of alice")


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


class CrowdTests(TunnelTestCase):
    """A crowd before the door."""

    async def test_silentCrowd(self) -> None:
        """Among 300 connections that say nothing, somebody who means well logs in."""
        server = self.startServer(maxHalfOpen=64)
        for number in range(1, 301):
            silent = socket.socket()
            self.addCleanup(silent.close)
            silent.setblocking(False)
            silent.connect_ex(("127.0.0.1", portOf(server)))
            if number % 20 == 0:
                # No more at a time than stand in line before the door.
                await until(lambda: server.logins["dropped early"] + server.report()["halfOpen"] == number)  # noqa: B023
        self.assertEqual((server.report()["halfOpen"], server.logins["dropped early"]), (64, 300 - 64))
        local = self.startLocal(server, self.echo())
        await self.linksUp(local)
        await self.assertEchoes(local.entries[0].port.address)
        self.assertEqual((server.logins["accepted"], local.reconnects), (1, 0))


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
