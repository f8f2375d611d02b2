"""Tests for L{udptunnel.net.socksudp} and L{udptunnel.net.association}."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters
from udptunnel.core.waiting import SOURCE_BYTES
from udptunnel.net.association import QUESTION_SECONDS, connectedSocket
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.dial import Proxy
from udptunnel.net.offload import NAMES, Offload, probe
from udptunnel.net.socksudp import (
    MOST_DIALS,
    PATIENCE_SECONDS,
    REFUSALS,
    REFUSED_SECONDS,
    REPEAT_SECONDS,
    UNREACHABLE_SECONDS,
    SocksUdp,
)
from udptunnel.net.testing import MemorySocket, PortReactor
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, split
from udptunnel.wire.frame import Buffer
from udptunnel.wire.socks5 import Command, Reply, ReplyCode, ServerNegotiation, packHeader, packReply, unpackHeader
from udptunnel.wire.transport import Unreachable

SERVER = Address("192.0.2.80", 1080)
BOUND = Address("192.0.2.80", 7000)
SOURCE = Address("10.9.0.2", 4000)
OTHER = Address("10.9.0.2", 4001)
TARGET = Address("198.51.100.1", 9)
QUESTION = Address("198.51.100.1", 53)
SIX = Address("2001:db8::1", 9)
NAME = Address("name.example", 9)
IDLE = 60.0


class RecordingWriter:
    """
    Keeps what is to go into the TUN.

    @ivar bursts: to whom, from whom, size and payload.
    @ivar refusals: sources and targets, and why not.
    """

    def __init__(self) -> None:
        self.bursts: list[tuple[Address, Address, int, bytes]] = []
        self.refusals: list[tuple[Address, Address, Unreachable]] = []

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        self.bursts.append((to, source, size, bytes(payload)))

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        self.refusals.append((burst.source, burst.target, why))

    @property
    def datagrams(self) -> list[tuple[Address, Address, bytes]]:
        """The same, datagram by datagram."""
        return [(to, source, bytes(each)) for to, source, size, whole in self.bursts for each in split(size, whole)]


class MemoryControl:
    """A control connection without a kernel."""

    def __init__(self) -> None:
        self.arrived: deque[bytes | OSError] = deque()
        self.closed = False

    def fileno(self) -> int:
        return -1 if self.closed else 1 << 20

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", 50000)

    def recv(self, size: int) -> bytes:
        if not self.arrived:
            raise BlockingIOError(errno.EAGAIN, "")
        arrived = self.arrived.popleft()
        if isinstance(arrived, OSError):
            raise arrived
        return arrived[:size]

    def close(self) -> None:
        self.closed = True


class RelaySocket(MemorySocket):
    """The UDP socket of an association, which says nothing of what it is prepared with."""

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, *given: Any) -> None:
        pass


class MemoryDial:
    """A dial that a test decides."""

    asked = False

    def __init__(self, reactor: Any, proxy: Proxy, command: Command, target: Address, caller: Any) -> None:
        self.request = (proxy, command, target)
        self.caller = caller
        self.started = self.cancelled = False
        self.control = MemoryControl()

    def start(self) -> None:
        assert not self.started
        self.started = True

    def cancel(self) -> None:
        self.cancelled = True

    def agree(self, bound: Address = BOUND) -> None:
        """The server agrees."""
        assert self.started and not self.cancelled
        self.asked = True
        self.caller.reached(self.control, Reply(0, bound), b"")

    def refuse(self, code: int = ReplyCode.COMMAND_NOT_SUPPORTED, why: str = "not supported") -> None:
        """The server does not."""
        assert self.started and not self.cancelled
        self.asked = True
        self.caller.failed(why, code)

    def fail(self, why: str = "can not be reached", code: int = ReplyCode.HOST_UNREACHABLE) -> None:
        """The server is not there."""
        assert self.started and not self.cancelled
        self.caller.failed(why, code)


class SocksUdpTestCase(SynchronousTestCase):
    """A L{SocksUdp} between a TUN and a server in memory."""

    most = 100
    udpAddress: Address | None = None
    server = SERVER

    def setUp(self) -> None:
        self.reactor, self.writer, self.counters = PortReactor(), RecordingWriter(), Counters()
        self.dials: list[MemoryDial] = []
        self.sockets: list[RelaySocket] = []
        self.relays: list[Address] = []
        self.openError: OSError | None = None
        self.log: list[str] = []
        globalLogPublisher.addObserver(self.logged)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged)
        self.udp = self.make()
        self.addCleanup(self.checkEnd)

    def logged(self, event: dict[str, Any]) -> None:
        """A line for the log."""
        self.log.append(event["log_format"].format(**event))

    def make(self) -> SocksUdp:
        """Another one."""
        return SocksUdp(
            self.reactor,
            Proxy(self.server, mark=7),
            self.writer,
            Traffic(self.reactor, Offload(), self.counters),
            self.counters,
            self.reactor.seconds,
            most=self.most,
            idleSeconds=IDLE,
            udpAddress=self.udpAddress,
            makeDial=self.makeDial,
            openSocket=self.openSocket,  # type: ignore[arg-type]
        )

    def makeDial(self, *given: Any) -> MemoryDial:
        """Keep it."""
        self.dials.append(MemoryDial(*given))
        return self.dials[-1]

    def openSocket(self, relay: Address, local: Any, mark: int) -> RelaySocket:
        """Keep it."""
        self.assertIn((local, mark), ((("192.0.2.1", 50000), 7), (None, 7)))
        if self.openError is not None:
            raise self.openError
        self.relays.append(relay)
        self.sockets.append(RelaySocket(relay.host))
        return self.sockets[-1]

    def checkEnd(self) -> None:
        """When all is stopped, nothing is left."""
        self.udp.stop()
        self.assertEqual(self.reactor.removeAll(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertTrue(all(each.closed for each in self.sockets))
        report = self.udp.report()
        left = [report[each] for each in ("associations", "associationsDialing", "associationsInLine", "waitingBytes")]
        self.assertEqual(left, [0, 0, 0, 0])

    # -- what happens

    def send(self, payload: bytes = b"x", source: Address = SOURCE, target: Address = TARGET, size: int = 0) -> None:
        """Somebody behind the TUN sends a burst."""
        self.udp.burstsReceived([AimedBurst(source, target, size or len(payload), memoryview(payload))])

    def receive(self, *datagrams: bytes, place: int = -1) -> None:
        """The relay sends datagrams."""
        opened = self.sockets[place]
        opened.arrived += [(each, tuple(self.relays[place])) for each in datagrams]
        self.portOf(place).doRead()

    def portOf(self, place: int) -> Any:
        """The port on a socket."""
        (port,) = [each for each in self.reactor.getReaders() if getattr(each, "_socket", None) is self.sockets[place]]
        return port

    def controlOf(self, dial: MemoryDial) -> Any:
        """What reads a control connection."""
        (control,) = [each for each in self.reactor.getReaders() if getattr(each, "_socket", None) is dial.control]
        return control

    def advance(self, seconds: float) -> None:
        """Time passes."""
        for _ in range(int(seconds)):
            self.reactor.advance(1.0)
            self.udp.tick(self.reactor.seconds())

    def warnings(self, said: str) -> int:
        """How many log lines say that."""
        return sum(said in line for line in self.log)

    @property
    def associations(self) -> Any:
        """How many there are."""
        return self.udp.report()["associations"]


class ThereTests(SocksUdpTestCase):
    """From the TUN to the server."""

    def test_request(self) -> None:
        """The request is a UDP ASSOCIATE from an address that is not known yet (RFC 1928 section 4)."""
        self.send()
        (dial,) = self.dials
        self.assertEqual(dial.request, (Proxy(SERVER, mark=7), Command.UDP_ASSOCIATE, Address("0.0.0.0", 0)))

    def test_requestIpv6(self) -> None:
        """A server that is reached over IPv6 is asked for a relay there."""
        self.server = Address("2001:db8::80", 1080)
        self.udp = self.make()
        self.send()
        self.assertEqual(self.dials[0].request[2], Address("::", 0))

    def test_waits(self) -> None:
        """What a source sends waits until the server agrees, and then goes in order, each with its header."""
        self.send(b"one")
        self.send(b"two", target=NAME)
        self.assertEqual(len(self.dials), 1)
        self.dials[0].agree()
        self.send(b"three", target=SIX)
        self.assertEqual(self.relays, [BOUND])
        expected = [(TARGET, b"one"), (NAME, b"two"), (SIX, b"three")]
        self.assertEqual(self.sockets[0].sent, [(packHeader(to) + what, tuple(BOUND)) for to, what in expected])

    def test_bursts(self) -> None:
        """A burst is sent datagram by datagram, each behind its header; an empty one, too."""
        self.send()
        self.dials[0].agree()
        self.sockets[0].sent.clear()
        self.send(b"abcde", size=2)
        self.send(b"")
        header = packHeader(TARGET)
        self.assertEqual(
            [each for each, _ in self.sockets[0].sent], [header + b"ab", header + b"cd", header + b"e", header]
        )

    def test_sources(self) -> None:
        """Each source has an association of its own, whatever it sends to."""
        for source in (SOURCE, OTHER):
            for target in (TARGET, QUESTION):
                self.send(b"x", source, target)
        for dial in self.dials:
            dial.agree()
        self.assertEqual([len(each.sent) for each in self.sockets], [2, 2])

    def test_unwritable(self) -> None:
        """A target that SOCKS5 can not write is dropped and counted."""
        self.send()
        self.dials[0].agree()
        self.send(target=Address("no%name", 53))
        self.assertEqual(len(self.sockets[0].sent), 1)
        self.assertEqual(self.counters.dropped, {"no SOCKS5 address": 1})

    def test_bounded(self) -> None:
        """While a server is slow to agree, a source keeps what it sent last, and the rest is counted."""
        for number in range(300):
            self.send(number.to_bytes(2) + bytes(1022))
        waiting: Any = self.udp.report()["waitingBytes"]
        self.assertLessEqual(waiting, SOURCE_BYTES)
        self.dials[0].agree()
        numbers = [int.from_bytes(each[10:12]) for each, _ in self.sockets[0].sent]
        self.assertEqual(numbers, list(range(300 - len(numbers), 300)))
        self.assertGreater(len(numbers), 90)
        self.assertEqual(self.counters.dropped, {"no way yet": 300 - len(numbers)})

    def test_turns(self) -> None:
        """Only so many requests are on their way at once; the other sources follow in order."""
        self.most = 1000
        self.udp = self.make()
        for port in range(MOST_DIALS + 3):
            self.send(port.to_bytes(2), source=Address("10.9.0.2", 1 + port))
        self.assertEqual(len(self.dials), MOST_DIALS)
        self.dials[5].agree()
        self.assertEqual(len(self.dials), MOST_DIALS + 1)
        self.dials[MOST_DIALS].agree()
        self.assertEqual(self.sockets[-1].sent[0][0][10:], MOST_DIALS.to_bytes(2))


class BackTests(SocksUdpTestCase):
    """From the server to the TUN."""

    def setUp(self) -> None:
        super().setUp()
        self.send()
        self.dials[0].agree()

    def test_fullCone(self) -> None:
        """Whoever answers, the source hears it, and from whom."""
        for sender in (TARGET, Address("203.0.113.7", 1), SIX, NAME):
            self.receive(packHeader(sender) + b"abc")
            self.assertEqual(self.writer.bursts.pop(), (SOURCE, sender, 3, b"abc"))

    def test_source(self) -> None:
        """An answer goes to the source whose association it came through."""
        self.send(source=OTHER)
        self.dials[1].agree()
        self.receive(packHeader(TARGET) + b"b", place=1)
        self.receive(packHeader(TARGET) + b"a", place=0)
        self.assertEqual([each[0] for each in self.writer.bursts], [OTHER, SOURCE])

    def test_bursts(self) -> None:
        """Answers of one length from one address become one burst."""
        header = packHeader(TARGET)
        self.receive(header + b"abc", header + b"def", header + b"g")
        self.assertEqual(self.writer.bursts, [(SOURCE, TARGET, 3, b"abcdefg")])

    def test_severalSenders(self) -> None:
        """Neighbours from one address become one burst in between others', and the order stays."""
        one, other = packHeader(TARGET), packHeader(QUESTION)
        self.receive(one + b"a", other + b"b", other + b"c", one + b"d")
        self.assertEqual(
            self.writer.bursts, [(SOURCE, TARGET, 1, b"a"), (SOURCE, QUESTION, 1, b"bc"), (SOURCE, TARGET, 1, b"d")]
        )

    def test_empty(self) -> None:
        """Empty answers are passed on, each one."""
        self.receive(packHeader(TARGET), packHeader(TARGET))
        self.assertEqual(self.writer.datagrams, [(SOURCE, TARGET, b"")] * 2)

    def test_unusable(self) -> None:
        """Fragments and what has no whole header are dropped and counted; what is between them is not."""
        good = packHeader(TARGET) + b"x"
        self.receive(b"\0\0\1" + good[3:], good, b"", b"\0\0", good[:9], good)
        self.assertEqual(self.writer.datagrams, [(SOURCE, TARGET, b"x")] * 2)
        self.assertEqual(self.counters.dropped, {"SOCKS5 fragment": 1, "no SOCKS5 header": 3})


class RelayAddressTests(SocksUdpTestCase):
    """Servers that name no address to send to, or a wrong one; see also L{tests.core.test_bound}."""

    def opened(self, bound: Address) -> Address:
        """Where datagrams go."""
        self.send()
        self.dials[-1].agree(bound)
        return self.relays[-1]

    def test_unspecified(self) -> None:
        """Where a server names no address, it is its own."""
        self.assertEqual(self.opened(Address("0.0.0.0", 7000)), Address("192.0.2.80", 7000))

    def test_override(self) -> None:
        """What the user says stands before what the server says."""
        self.udpAddress = Address("192.0.2.90", 0)
        self.udp = self.make()
        self.assertEqual(self.opened(Address("127.0.0.1", 7000)), Address("192.0.2.90", 7000))

    def test_useless(self) -> None:
        """A server that names no port, or a name, carries nothing; the log says what would help."""
        for bound, hint in (
            (Address("192.0.2.80", 0), "BND.PORT"),
            (Address("name.example", 7000), "name.example:7000"),
        ):
            self.send()
            self.dials[-1].agree(bound)
            self.assertEqual((self.relays, self.associations), ([], 0))
            self.assertTrue(self.dials[-1].control.closed)
            self.assertEqual(self.warnings(hint), 1)
            self.assertEqual(self.warnings("--udp-address"), self.warnings("--udp-socks-server-addr"))
            self.advance(REFUSED_SECONDS)


class RefusedTests(SocksUdpTestCase):
    """Servers that do not do it."""

    def test_refused(self) -> None:
        """Who sent what waits is told that there is no way, and one line in the log says why and names the option."""
        self.send(b"a")
        self.send(b"b", target=QUESTION)
        self.send(source=OTHER)
        self.dials[0].refuse()
        self.assertEqual(
            self.writer.refusals, [(SOURCE, TARGET, Unreachable.PORT), (SOURCE, QUESTION, Unreachable.PORT)]
        )
        self.dials[1].refuse()
        self.assertEqual(self.counters.dropped, {"no SOCKS5 association": 3})
        self.assertEqual(self.associations, 0)
        said = f"the SOCKS5 server {SERVER} (--udp-socks-server-addr) carries no UDP for us: not supported"
        self.assertEqual(self.log, [said])

    def test_leftAlone(self) -> None:
        """It is asked again after a second, then after two, four and so on, but twice a minute at least."""
        asked: list[float] = []
        for _ in range(150):
            self.send()
            if self.dials and not self.dials[-1].asked:
                asked.append(self.reactor.seconds())
                self.dials[-1].refuse()
            self.advance(1)
        self.assertEqual(asked, [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0, 121.0])
        self.assertEqual(self.counters.dropped, {"no SOCKS5 association": 150})

    def test_notSilent(self) -> None:
        """The log says it again, but not more often than once a minute."""
        for _ in range(200):
            self.send()
            if not self.dials[-1].asked:
                self.dials[-1].refuse()
            self.advance(1)
        self.assertEqual(REPEAT_SECONDS, 60.0)
        self.assertEqual(self.warnings("--udp-socks-server-addr"), 4)

    def test_refusals(self) -> None:
        """Clients are not told more often than so many times a second."""
        self.send()
        self.dials[0].refuse()
        for _ in range(2 * REFUSALS):
            self.send()
        self.assertEqual(len(self.writer.refusals), REFUSALS)
        self.assertEqual(self.counters.dropped, {"no SOCKS5 association": 2 * REFUSALS + 1})

    def test_inLine(self) -> None:
        """When it refuses, those that wait for their turn are told so, too, and do not ask."""
        self.most = 1000
        self.udp = self.make()
        for port in range(MOST_DIALS + 10):
            self.send(source=Address("10.9.0.2", 1 + port))
        self.dials[0].refuse()
        self.assertEqual(len(self.writer.refusals), 11)
        self.assertEqual(len(self.dials), MOST_DIALS)
        self.assertEqual(self.associations, MOST_DIALS - 1)

    def test_oneFirst(self) -> None:
        """After the pause one source asks; when it has got through, so do the others."""
        self.send()
        self.dials[0].refuse()
        self.advance(1)
        for port in range(5):
            self.send(source=Address("10.9.0.2", 1 + port))
        self.assertEqual(len(self.dials), 2)
        self.dials[1].agree()
        self.assertEqual(len(self.dials), 6)

    def test_again(self) -> None:
        """When an answer has come, the log says so, and the next pause is a short one."""
        self.send()
        self.dials[0].refuse()
        self.advance(1)
        self.send()
        self.dials[1].refuse()
        self.advance(2)
        self.send()
        self.dials[2].agree()
        self.assertEqual(self.warnings("again"), 0)
        self.receive(packHeader(TARGET) + b"x")
        self.assertEqual(self.warnings(f"UDP gets through the SOCKS5 server {SERVER} again"), 1)
        self.receive(packHeader(TARGET) + b"x")
        self.assertEqual(self.warnings("again"), 1)
        self.send(source=OTHER)
        self.dials[3].refuse()
        self.advance(1)
        self.send(source=OTHER)
        self.assertEqual(len(self.dials), 5)

    def test_others(self) -> None:
        """Associations that are open go on while the server refuses more."""
        self.send()
        self.dials[0].agree()
        self.send(source=OTHER)
        self.dials[1].refuse()
        self.send(b"y")
        self.assertEqual(len(self.sockets[0].sent), 2)
        self.assertEqual(self.writer.refusals, [(OTHER, TARGET, Unreachable.PORT)])

    def test_login(self) -> None:
        """A server that does not let us in is asked as rarely: it may lock out who tries often."""
        self.send()
        self.dials[0].caller.failed("wrong password", ReplyCode.NOT_ALLOWED)
        self.assertEqual(self.writer.refusals, [(SOURCE, TARGET, Unreachable.PORT)])

    def test_otherPassword(self) -> None:
        """Another password is tried at once; the same one is not."""
        self.send()
        self.dials[0].caller.failed("wrong password", ReplyCode.NOT_ALLOWED)
        self.udp.proxy = Proxy(SERVER, mark=7)
        self.send()
        self.assertEqual(len(self.dials), 1)
        self.udp.proxy = Proxy(SERVER, "user", "secret", 7)
        self.send()
        self.assertEqual(self.dials[1].request[0], Proxy(SERVER, "user", "secret", 7))

    def test_unreachable(self) -> None:
        """A server that is not there is asked every few seconds; to clients it is as if the target were not there."""
        asked: list[float] = []
        for _ in range(20):
            self.send()
            if len(self.dials) > len(asked):
                asked.append(self.reactor.seconds())
                self.dials[-1].fail()
            self.advance(1)
        self.assertEqual(asked, [0.0, 1.0, 3.0, 7.0, 11.0, 15.0, 19.0])
        self.assertEqual(UNREACHABLE_SECONDS, 4.0)
        self.assertEqual({why for _, _, why in self.writer.refusals}, {Unreachable.HOST})
        self.assertEqual(
            self.log, [f"UDP waits for the SOCKS5 server {SERVER} (--udp-socks-server-addr): can not be reached"]
        )

    def test_silent(self) -> None:
        """A server that does not say anything is given up after ten seconds, and the log says so."""
        self.send(target=QUESTION)
        self.advance(PATIENCE_SECONDS - 1)
        self.assertEqual((self.dials[0].cancelled, self.log), (False, []))
        self.advance(1)
        self.assertTrue(self.dials[0].cancelled)
        self.assertEqual(self.warnings("within 10 s"), 1)
        self.assertEqual(self.associations, 0)

    def test_nothingListens(self) -> None:
        """
        A server that agrees, and has no relay, carries no UDP.

        That is what an ss-local without -u does.
        """
        for error in ("send", "receive"):
            with self.subTest(error):
                self.udp, before = self.make(), len(self.dials)
                self.log.clear()
                self.send()
                self.dials[-1].agree()
                port = self.portOf(-1)
                self.sockets[-1].error = ConnectionRefusedError(errno.ECONNREFUSED, "")
                if error == "send":
                    self.send()
                else:
                    port.doRead()
                self.assertEqual(self.warnings(f"nothing takes datagrams at {BOUND}"), 1)
                self.send()
                self.assertEqual(len(self.dials), before + 1)
                self.assertEqual(self.writer.refusals.pop(), (SOURCE, TARGET, Unreachable.PORT))
                self.advance(1)
                self.assertTrue(self.dials[-1].control.closed)
                self.send()
                self.assertEqual(len(self.dials), before + 2)
                self.udp.stop()

    def test_unasked(self) -> None:
        """A server that refuses TCP gets datagrams all the same, at the same address: ss-local -U does not take TCP."""
        self.send(b"a")
        self.dials[0].fail("refused", ReplyCode.CONNECTION_REFUSED)
        self.assertEqual((self.relays, self.log), ([SERVER], []))
        self.receive(packHeader(TARGET) + b"b")
        self.assertEqual(self.writer.bursts, [(SOURCE, TARGET, 1, b"b")])
        self.assertEqual(self.associations, 1)

    def test_unaskedElsewhere(self) -> None:
        """They go to --udp-address, if that was given."""
        self.udpAddress = Address("192.0.2.99", 0)
        self.udp = self.make()
        self.send(b"a")
        self.dials[0].fail("refused", ReplyCode.CONNECTION_REFUSED)
        self.assertEqual(self.relays, [Address("192.0.2.99", SERVER.port)])

    def test_nobody(self) -> None:
        """If the kernel says that nobody takes them either, the server is not there; it is asked again soon."""
        self.send(b"a")
        self.dials[0].fail("refused", ReplyCode.CONNECTION_REFUSED)
        self.sockets[0].error = ConnectionRefusedError(errno.ECONNREFUSED, "")
        self.portOf(0).doRead()
        self.assertEqual(self.warnings("nobody is there, neither for TCP nor for UDP"), 1)
        self.send(b"b")
        self.assertEqual(self.writer.refusals, [(SOURCE, TARGET, Unreachable.HOST)])
        self.advance(2)
        self.send(b"c")
        self.assertEqual(len(self.dials), 2)

    def test_unaskedSilent(self) -> None:
        """As long as nothing comes from a server that was not asked, it is asked again and again: it may be back."""
        self.send(b"a")
        self.dials[0].fail("refused", ReplyCode.CONNECTION_REFUSED)
        self.advance(UNREACHABLE_SECONDS)
        self.send(b"b")
        self.assertEqual(len(self.dials), 2)
        self.dials[1].fail("refused", ReplyCode.CONNECTION_REFUSED)
        self.receive(packHeader(TARGET) + b"c", place=1)
        self.advance(2 * UNREACHABLE_SECONDS)
        self.send(b"d")
        self.assertEqual(len(self.dials), 2)

    def test_polled(self) -> None:
        """What poll() reports of the UDP socket is the end of the association, too; the next datagram gets another."""
        self.send(b"a")
        self.dials[0].agree()
        self.receive(packHeader(TARGET) + b"b")
        self.portOf(0).connectionLost(Failure(ConnectionLost()))
        self.send(b"c")
        self.assertEqual((len(self.dials), self.counters.dropped), (2, {}))

    def test_noDescriptor(self) -> None:
        """When no socket can be had, that is no fault of the server's; nothing is left open."""
        self.openError = OSError(errno.EMFILE, "Too many open files")
        self.send()
        self.dials[0].agree()
        self.assertTrue(self.dials[0].control.closed)
        self.assertEqual(self.writer.refusals, [(SOURCE, TARGET, Unreachable.HOST)])
        self.assertEqual(self.warnings("Too many open files"), 1)
        self.openError = None
        self.advance(1)
        self.send()
        self.dials[1].agree()
        self.assertEqual(len(self.sockets[0].sent), 1)


class EndTests(SocksUdpTestCase):
    """How associations end."""

    def opened(self, source: Address = SOURCE, target: Address = TARGET) -> MemoryDial:
        """An open association, which has been of use."""
        self.send(source=source, target=target)
        self.dials[-1].agree()
        self.receive(packHeader(target) + b"x")
        return self.dials[-1]

    def test_controlLost(self) -> None:
        """When the control connection ends, so does the association; the next datagram gets another at once."""
        for how in (b"", ConnectionResetError(errno.ECONNRESET, "")):
            dial = self.opened()
            control = self.controlOf(dial)
            dial.control.arrived.append(how)
            control.doRead()
            self.assertEqual(self.associations, 0)
            self.assertTrue(dial.control.closed and self.sockets[-1].closed)
        dial = self.opened()
        self.controlOf(dial).connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.associations, 0)
        self.send()
        self.assertEqual(len(self.dials), 4)
        self.assertEqual(self.log, [])

    def test_stray(self) -> None:
        """What a server says on the control connection is thrown away."""
        dial = self.opened()
        dial.control.arrived += [b"stray", BlockingIOError(errno.EAGAIN, ""), InterruptedError(errno.EINTR, "")]
        for _ in range(3):
            self.controlOf(dial).doRead()
        self.assertEqual(self.associations, 1)

    def test_atOnce(self) -> None:
        """A server that agrees and hangs up is one that refuses: otherwise each datagram would ask it again."""
        self.send()
        self.dials[0].agree()
        self.dials[0].control.arrived.append(b"")
        self.controlOf(self.dials[0]).doRead()
        self.send()
        self.assertEqual(len(self.dials), 1)
        self.assertEqual(self.warnings("closes the control connection"), 1)

    def test_relayLost(self) -> None:
        """When nobody listens any more where somebody did, the next datagram gets another association at once."""
        for number in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EINVAL):
            source = Address("10.9.0.2", number)
            dial = self.opened(source)
            port = self.portOf(-1)
            self.sockets[-1].error = OSError(number, os.strerror(number))
            port.doRead()
            port.doRead()
            self.send(source=source)
            self.assertTrue(dial.control.closed)
            self.assertFalse(self.dials[-1].cancelled)
            self.assertIsNot(self.dials[-1], dial)
            self.dials[-1].agree()
        self.assertEqual(self.log, [])

    def test_lostForGood(self) -> None:
        """What is of no more use is closed soon, even if its source has nothing more to say."""
        dial = self.opened()
        port = self.portOf(-1)
        self.sockets[0].error = ConnectionRefusedError(errno.ECONNREFUSED, "")
        port.doRead()
        self.advance(1)
        self.assertEqual((self.associations, dial.control.closed), (0, True))

    def test_passing(self) -> None:
        """Errors that pass do not end it."""
        self.opened()
        for number in (errno.ENOBUFS, errno.EPERM, errno.EHOSTUNREACH, errno.EMSGSIZE):
            self.sockets[0].error = OSError(number, os.strerror(number))
            self.send()
        self.sockets[0].error = None
        self.send()
        self.assertEqual((len(self.dials), len(self.sockets[0].sent)), (1, 2))

    def test_idle(self) -> None:
        """What nobody uses ends; either direction is a use."""
        self.opened()
        self.advance(IDLE - 1)
        self.send()
        self.advance(IDLE - 1)
        self.receive(packHeader(TARGET) + b"x")
        self.advance(IDLE - 1)
        self.assertEqual(self.associations, 1)
        self.advance(1)
        self.assertEqual(self.associations, 0)
        self.assertTrue(self.dials[0].control.closed and self.sockets[0].closed)

    def test_questions(self) -> None:
        """Who has only asked DNS is done after ten seconds; who then sends something else is not."""
        self.opened(SOURCE, QUESTION)
        self.opened(OTHER, QUESTION)
        self.send(source=OTHER)
        self.advance(QUESTION_SECONDS)
        self.assertEqual(self.associations, 1)
        self.send(source=OTHER, target=QUESTION)
        self.advance(IDLE - 1)
        self.assertEqual(self.associations, 1)

    def test_most(self) -> None:
        """When there are too many, the one that was silent longest makes room, and is counted."""
        self.most = 3
        self.udp = self.make()
        sources = [Address("10.9.0.2", 1 + port) for port in range(4)]
        for source in sources[:3]:
            self.opened(source)
            self.reactor.advance(0.1)
        self.send(source=sources[0])
        self.opened(sources[3])
        self.assertEqual([each.control.closed for each in self.dials], [False, True, False, False])
        self.assertEqual((self.counters.evicted, self.associations), (1, 3))

    def test_evictedWhileWaiting(self) -> None:
        """An association may have to go before it is open: the request is given up, what waits is counted."""
        self.most = 1
        self.udp = self.make()
        self.send()
        self.send(source=OTHER)
        self.assertEqual([each.cancelled for each in self.dials], [True, False])
        self.assertEqual(self.counters.dropped, {"association closed": 1})

    def test_stopped(self) -> None:
        """After the end nothing begins; it may be stopped twice."""
        self.opened()
        self.send(source=OTHER)
        self.udp.stop()
        self.udp.stop()
        self.assertTrue(self.dials[1].cancelled)
        self.send()
        self.udp.tick(0.0)
        self.assertEqual(len(self.dials), 2)

    def test_manySources(self) -> None:
        """Five thousand sources, come and gone, leave nothing behind."""
        self.most = 5000
        self.udp = self.make()
        sources = [Address("10.9.0.2", 1000 + port) for port in range(5000)]
        self.udp.burstsReceived([AimedBurst(source, QUESTION, 30, bytes(30)) for source in sources])
        answered = 0
        while answered < len(self.dials):
            self.assertLessEqual(len(self.dials) - answered, MOST_DIALS)
            self.dials[answered].agree()
            answered += 1
        self.assertEqual((answered, self.associations), (5000, 5000))
        self.assertEqual([len(each.sent) for each in self.sockets], [1] * 5000)
        self.advance(QUESTION_SECONDS)
        self.assertEqual(self.associations, 0)
        self.assertTrue(all(each.control.closed for each in self.dials))
        self.assertEqual(self.counters.dropped, {})


# -- with a kernel


class ServerOnLoopback:
    """
    A SOCKS5 server for UDP, on the test's reactor, that echoes each datagram from its target.

    @ivar bound: what it says where it takes datagrams; by default where it does.
    """

    def __init__(self, reactor: PortReactor, host: str = "127.0.0.1", code: int = 0) -> None:
        self._reactor = reactor
        self._host = host
        self._code = code
        self.listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
        self.listener.setblocking(False)
        self.address = Address(host, self.listener.getsockname()[1])
        self.bound: Address | None = None
        self.clients: list[_ServedClient] = []
        reactor.addReader(self)  # type: ignore[arg-type]

    def fileno(self) -> int:
        return self.listener.fileno()

    def doRead(self) -> None:
        accepted, _ = self.listener.accept()
        self.clients.append(_ServedClient(self._reactor, accepted, self._code, self.bound))

    def close(self) -> None:
        """No more of it."""
        self._reactor.removeReader(self)  # type: ignore[arg-type]
        self.listener.close()
        for each in self.clients:
            each.close()


class _ServedClient:
    """One client's control connection, and its relay."""

    def __init__(self, reactor: PortReactor, accepted: socket.socket, code: int, bound: Address | None) -> None:
        accepted.setblocking(False)
        self._reactor, self._accepted, self._code, self._bound = reactor, accepted, code, bound
        self._negotiation = ServerNegotiation()
        self.relay = socket.socket(accepted.family, socket.SOCK_DGRAM)
        self.relay.bind((accepted.getsockname()[0], 0))
        self.relay.setblocking(False)
        self._reading = _Reading(self.relay, self.echo)
        self.gone = False
        reactor.addReader(self)  # type: ignore[arg-type]
        reactor.addReader(self._reading)  # type: ignore[arg-type]

    def fileno(self) -> int:
        return self._accepted.fileno()

    def doRead(self) -> None:
        data = self._accepted.recv(4096)
        if not data:
            self.close()
            return
        self._accepted.sendall(self._negotiation.receive(data))
        if self._negotiation.request is not None:
            bound = self._bound or Address(*self.relay.getsockname()[:2])
            self._accepted.sendall(packReply(self._code, bound))

    def echo(self) -> None:
        """Send a datagram back as it is: from its target, to its source."""
        data, source = self.relay.recvfrom(65535)
        unpackHeader(data)
        self.relay.sendto(data, source)

    def close(self) -> None:
        """The association is over."""
        if not self.gone:
            self.gone = True
            for each in (self, self._reading):
                self._reactor.removeReader(each)  # type: ignore[arg-type]
            self._accepted.close()
            self.relay.close()


class _Reading:
    """A reader of one socket."""

    def __init__(self, opened: socket.socket, read: Callable[[], None]) -> None:
        self._opened = opened
        self.doRead = read

    def fileno(self) -> int:
        return self._opened.fileno()


class LoopbackTests(SynchronousTestCase):
    """The same with real sockets."""

    def setUp(self) -> None:
        self.reactor, self.writer, self.counters = PortReactor(), RecordingWriter(), Counters()
        self.addCleanup(lambda: self.assertEqual(self.reactor.getReaders(), []))

    def make(self, server: ServerOnLoopback, offload: Any = NAMES) -> SocksUdp:
        """One to a server."""
        self.addCleanup(server.close)
        traffic = Traffic(self.reactor, probe(offload), self.counters)
        udp = SocksUdp(
            self.reactor,
            Proxy(server.address),
            self.writer,
            traffic,
            self.counters,
            self.reactor.seconds,
            most=1000,
            idleSeconds=IDLE,
        )
        self.addCleanup(udp.stop)
        return udp

    def test_echo(self) -> None:
        """Bursts and large datagrams come back as they were, over IPv4 and IPv6, whatever the kernel is asked for."""
        for host in ("127.0.0.1", "::1"):
            for names in ((), ("mmsg",), NAMES):
                udp = self.make(ServerOnLoopback(self.reactor, host), names)
                self.writer.bursts.clear()
                sent = [bytes((number,)) * 1400 for number in range(46)]
                udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1400, memoryview(b"".join(sent)))])
                self.reactor.until(lambda: len(self.writer.datagrams) >= 46)
                udp.burstsReceived([AimedBurst(SOURCE, SIX, 60000, bytes(60000))])
                self.reactor.until(lambda: len(self.writer.datagrams) >= 47)
                expected = [(SOURCE, TARGET, each) for each in sent] + [(SOURCE, SIX, bytes(60000))]
                self.assertEqual(self.writer.datagrams, expected)
                udp.stop()
        self.assertEqual(self.counters.dropped, {})

    def test_wrongAddress(self) -> None:
        """A server that names an address of no use is reached where it is."""
        for said in ("0.0.0.0", "::", "224.0.0.1"):
            server = ServerOnLoopback(self.reactor)
            udp = self.make(server)
            udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
            self.reactor.until(lambda: bool(server.clients))  # noqa: B023
            server.clients[0]._bound = Address(said, server.clients[0].relay.getsockname()[1])
            self.writer.bursts.clear()
            self.reactor.until(lambda: bool(self.writer.bursts))

    def test_strangers(self) -> None:
        """What comes from elsewhere than the relay never arrives."""
        server = ServerOnLoopback(self.reactor)
        udp = self.make(server)
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.reactor.until(lambda: bool(self.writer.bursts))
        (port,) = [each for each in self.reactor.getReaders() if isinstance(each, DatagramPort)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(packHeader(TARGET) + b"stranger", tuple(port.address))
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"y")])
        self.reactor.until(lambda: len(self.writer.bursts) > 1)
        self.assertEqual([each[3] for each in self.writer.bursts], [b"x", b"y"])

    def test_nobodyListens(self) -> None:
        """The kernel tells us when a server agrees and has no relay."""
        server = ServerOnLoopback(self.reactor)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            server.bound = Address(*closed.getsockname())
        udp = self.make(server)
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.reactor.until(lambda: bool(udp.report()["refused"]))
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.assertEqual(self.writer.refusals, [(SOURCE, TARGET, Unreachable.PORT)])

    def test_refused(self) -> None:
        """A server that can not do UDP ASSOCIATE is one that refuses."""
        udp = self.make(ServerOnLoopback(self.reactor, code=ReplyCode.COMMAND_NOT_SUPPORTED))
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.reactor.until(lambda: bool(self.writer.refusals))
        self.assertEqual(self.writer.refusals, [(SOURCE, TARGET, Unreachable.PORT)])

    def test_restart(self) -> None:
        """After the server has gone and come back, the next datagram finds its way."""
        server = ServerOnLoopback(self.reactor)
        udp = self.make(server)
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"x")])
        self.reactor.until(lambda: bool(self.writer.bursts))
        server.clients.pop().close()
        self.reactor.until(lambda: udp.report()["associations"] == 0)
        udp.burstsReceived([AimedBurst(SOURCE, TARGET, 1, b"y")])
        self.reactor.until(lambda: len(self.writer.bursts) > 1)

    def test_manySources(self) -> None:
        """Hundreds of sources at once get their answers, and leave no descriptor behind."""
        server = ServerOnLoopback(self.reactor)
        udp = self.make(server)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        sources = [Address("10.9.0.2", 1000 + port) for port in range(200)]
        udp.burstsReceived([AimedBurst(source, QUESTION, 2, b"ab") for source in sources])
        self.reactor.until(lambda: len(self.writer.bursts) == 200)
        self.assertEqual({each[0] for each in self.writer.bursts}, set(sources))
        udp.tick(self.reactor.seconds() + QUESTION_SECONDS)
        self.reactor.until(lambda: all(each.gone for each in server.clients))
        if before:
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class SocketTests(SynchronousTestCase):
    """L{connectedSocket}."""

    def test_bound(self) -> None:
        """Datagrams come from the address that the control connection comes from."""
        opened = connectedSocket(Address("127.0.0.1", 9), ("127.0.0.5", 1234), 0)
        self.addCleanup(opened.close)
        self.assertEqual(opened.getsockname()[0], "127.0.0.5")
        self.assertEqual(opened.getpeername(), ("127.0.0.1", 9))

    def test_notBound(self) -> None:
        """Unless there is no way from there."""
        for local in (("192.0.2.1", 1), ("::1", 1, 0, 0)):
            opened = connectedSocket(Address("127.0.0.1", 9), local, 0)
            self.addCleanup(opened.close)
            self.assertEqual(opened.getsockname()[0], "127.0.0.1")

    def test_failed(self) -> None:
        """What can not be connected leaves no socket behind, and says why."""
        self.assertRaises(OSError, connectedSocket, Address("255.255.255.255", 9), ("127.0.0.1", 1), 0)
