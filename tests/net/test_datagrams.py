"""Tests for L{udptunnel.net.datagrams}."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any
from unittest import SkipTest

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.needs import needs
from udptunnel.core.counters import Counters
from udptunnel.core.pace import Pace
from udptunnel.errors import ListenError
from udptunnel.net.datagrams import MOST_DISCARDS, DatagramPort, Traffic
from udptunnel.net.mmsg import SLOTS
from udptunnel.net.offload import NAMES, Offload, probe
from udptunnel.net.testing import MemorySocket, PortReactor, RecordingReceiver
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_DATAGRAM, Burst

SIZES = (0, 1, 1472, 1473, 8192, 8193, LARGEST_DATAGRAM)
"""An empty one, the edges of an Ethernet frame and of Twisted's own limit, and the largest over IPv4 (list P-9)."""

COMBINATIONS = ((), ("gro",), ("gso",), ("mmsg",), NAMES)
HOSTS = ("127.0.0.1", "::1")


def pattern(size: int, number: int = 0) -> bytes:
    """A datagram that no other looks like."""
    return bytes((number + place * 7) & 0xFF for place in range(size))


def hasIpv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


class PortTestCase(SynchronousTestCase):
    """Ports on a reactor of their own; when a test ends, nothing is left on it."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.addCleanup(self._checkReactor)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def makePort(self, host: str = "127.0.0.1", offload: Any = ()) -> tuple[DatagramPort, RecordingReceiver, Counters]:
        """An open port, what it receives, and its figures."""
        if ":" in host and not hasIpv6():
            raise SkipTest("this machine has no IPv6 loopback address")
        counters, receiver = Counters(), RecordingReceiver()
        abilities = offload if isinstance(offload, Offload) else probe(offload)
        port = DatagramPort(Traffic(self.reactor, abilities, counters), Address(host, 0), receiver)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port, receiver, counters

    def adopted(self, opened: Any, offload: Offload | None = None) -> tuple[DatagramPort, RecordingReceiver, Counters]:
        """A port on a socket of the test's own."""
        counters, receiver = Counters(), RecordingReceiver()
        port = DatagramPort(Traffic(self.reactor, offload or Offload(), counters), Address("127.0.0.1", 0), receiver)
        port.adopt(opened)
        self.addCleanup(port.stopListening)
        return port, receiver, counters


class DeliveryTests(PortTestCase):
    """What is sent from one port arrives at another as it was."""

    def test_sizes(self) -> None:
        """A datagram of any size arrives unaltered, over IPv4 and IPv6, whatever the kernel is asked for."""
        for host in HOSTS:
            for names in COMBINATIONS:
                here, _, sent = self.makePort(host, names)
                there, receiver, received = self.makePort(host, names)
                datagrams = [pattern(size) for size in SIZES]
                for count, datagram in enumerate(datagrams, 1):
                    here.send(there.address, len(datagram), datagram)
                    self.reactor.until(lambda: len(receiver.datagrams) == count)  # noqa: B023
                self.assertEqual(receiver.datagrams, datagrams)
                self.assertEqual(receiver.sources, {here.address})
                self.assertEqual((sent.sent, sent.sentBytes), (len(SIZES), sum(SIZES)))
                self.assertEqual((received.received, received.receivedBytes), (len(SIZES), sum(SIZES)))
                self.assertEqual(sent.dropped + received.dropped, {})

    def test_bursts(self) -> None:
        """The datagrams of a burst arrive one by one unaltered and in order, the shorter last one too."""
        for host in HOSTS:
            for names in COMBINATIONS:
                for size, count, last in ((1, 64, 1), (10, 3, 3), (1200, 54, 700), (1400, 46, 1400), (8193, 7, 1)):
                    here, _, sent = self.makePort(host, names)
                    there, receiver, _ = self.makePort(host, names)
                    datagrams = [pattern(size, number) for number in range(count - 1)] + [pattern(last)]
                    here.send(there.address, size, b"".join(datagrams))
                    self.reactor.until(lambda: len(receiver.datagrams) >= count)  # noqa: B023
                    self.assertEqual(receiver.datagrams, datagrams)
                    self.assertEqual(sent.sent, count)
                    self.assertEqual(sent.sentBytes, size * (count - 1) + last)

    def test_manyDatagrams(self) -> None:
        """A burst may hold more datagrams than the kernel takes at once."""
        for names in COMBINATIONS:
            here, _, sent = self.makePort(offload=names)
            there, receiver, _ = self.makePort(offload=names)
            datagrams = [pattern(100, number) for number in range(200)]
            here.send(there.address, 100, b"".join(datagrams))
            self.reactor.until(lambda: len(receiver.datagrams) >= 200)  # noqa: B023
            self.assertEqual(receiver.datagrams, datagrams)
            self.assertEqual(sent.sent, 200)

    def test_shapes(self) -> None:
        """Bursts of any shape arrive, one after the other, through the same memory."""
        shapes = st.lists(
            st.tuples(st.integers(1, 2000), st.integers(1, 32), st.integers(1, 2000)), min_size=1, max_size=3
        )
        for names in COMBINATIONS:
            here, _, _ = self.makePort(offload=names)
            there, receiver, _ = self.makePort(offload=names)

            self._checkShapes(here, there, receiver, shapes)

    def _checkShapes(
        self, here: DatagramPort, there: DatagramPort, receiver: RecordingReceiver, shapes: st.SearchStrategy[Any]
    ) -> None:
        @settings(max_examples=min(EXAMPLES, 40), deadline=None)
        @given(shapes)
        def check(shapes: list[tuple[int, int, int]]) -> None:
            receiver.calls.clear()
            expected: list[bytes] = []
            for size, count, last in shapes:
                several = [pattern(size, number) for number in range(count - 1)] + [pattern(min(last, size))]
                expected += several
                here.send(there.address, size if count > 1 else len(several[0]), b"".join(several))
            self.reactor.until(lambda: len(receiver.datagrams) >= len(expected))
            self.assertEqual(receiver.datagrams, expected)

        check()

    def test_views(self) -> None:
        """A payload may be any buffer."""
        for names in COMBINATIONS:
            here, _, _ = self.makePort(offload=names)
            there, receiver, _ = self.makePort(offload=names)
            for buffer in (bytearray(b"abcabcab"), memoryview(b"xabcabcab")[1:]):
                receiver.calls.clear()
                here.send(there.address, 3, buffer)
                self.reactor.until(lambda: len(receiver.datagrams) >= 3)  # noqa: B023
                self.assertEqual(receiver.datagrams, [b"abc", b"abc", b"ab"])

    def test_bothFamilies(self) -> None:
        """A port at C{::} takes IPv4 as well, and calls IPv4 sources by their IPv4 address."""
        for names in COMBINATIONS:
            wide, receiver, _ = self.makePort("::", names)
            four, answers, _ = self.makePort("127.0.0.1", names)
            four.send(("127.0.0.1", wide.address.port), 3, b"one")
            self.reactor.until(lambda: bool(receiver.bursts))  # noqa: B023
            self.assertEqual(receiver.bursts[0].source, four.address)
            wide.send(("::ffff:127.0.0.1", four.address.port), 2, b"abcd")
            self.reactor.until(lambda: len(answers.datagrams) == 2)  # noqa: B023
            self.assertEqual(answers.bursts[0].source, Address("127.0.0.1", wide.address.port))

    def test_oneFamily(self) -> None:
        """A port at an IPv6 address leaves the IPv4 port of the same number to others."""
        six, _, _ = self.makePort("::1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
            four.bind(("0.0.0.0", six.address.port))

    def test_neighbours(self) -> None:
        """Equal neighbours from one source arrive as one burst, which a shorter one ends; empty ones stay alone."""
        for names in ((), ("mmsg",), NAMES):
            here, _, _ = self.makePort(offload=())
            there, receiver, _ = self.makePort(offload=names)
            for datagram in (b"abc", b"def", b"gh", b"ijk", b"", b"", b"lmn"):
                here.send(there.address, len(datagram), datagram)
            there.doRead()
            expected = [(3, b"abcdefgh"), (3, b"ijk"), (0, b""), (0, b""), (3, b"lmn")]
            self.assertEqual([(size, payload) for _, size, payload in receiver.bursts], expected)
            self.assertEqual(len(receiver.calls), 1)

    def test_twoSources(self) -> None:
        """Neighbours from different sources are never joined."""
        for names in COMBINATIONS:
            here, _, _ = self.makePort(offload=())
            other, _, _ = self.makePort(offload=())
            there, receiver, _ = self.makePort(offload=names)
            for port in (here, other, here):
                port.send(there.address, 3, b"abc")
            there.doRead()
            self.assertEqual([source for source, _, _ in receiver.bursts], [here.address, other.address, here.address])


class FairnessTests(PortTestCase):
    """No port keeps the reactor from the others."""

    def test_messages(self) -> None:
        """One C{doRead} takes at most 64 messages and leaves the rest for the next, be they empty or not."""
        for payload in (b"", b"x", pattern(1400)):
            for names in ((), ("mmsg",)):
                there, receiver, _ = self.makePort(offload=names)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    for _ in range(100):
                        sender.sendto(payload, there.address)
                there.doRead()
                self.assertEqual(len(receiver.datagrams), SLOTS)
                there.doRead()
                self.assertEqual(receiver.datagrams, [payload] * 100)

    def test_marked(self) -> None:
        """With C{gro} it is still at most 64 messages, however many datagrams each holds."""
        for names in (("gro",), NAMES):
            there, receiver, counters = self.makePort(offload=names)
            if not probe(("gro",)).gro:
                raise SkipTest("the kernel has no UDP_GRO")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(100):
                    sender.sendto(b"", there.address)
            there.doRead()
            self.assertEqual(counters.received, SLOTS)
            there.doRead()
            self.assertEqual(receiver.datagrams, [b""] * 100)

    def test_nothing(self) -> None:
        """When nothing is there, the receiver is not told, and nothing is counted."""
        for names in COMBINATIONS:
            port, receiver, counters = self.makePort(offload=names)
            port.doRead()
            self.assertEqual((receiver.calls, counters.received, counters.dropped), ([], 0, {}))


class SparseTests(PortTestCase):
    """A port whose datagrams come one by one is read in the way that is shortest for one."""

    def setUp(self) -> None:
        super().setUp()
        if not probe(NAMES).mmsg:
            raise SkipTest("this system has no recvmmsg")
        self.port, self.received, self.counters = self.makePort(offload=NAMES)
        self.far, _, _ = self.makePort(offload=NAMES)

    def alone(self, datagram: bytes) -> None:
        """Let one datagram come a moment after the one before."""
        self.reactor.advance(0.001)
        self.far.send(self.port.address, len(datagram), datagram)
        self.port.doRead()

    def test_alone(self) -> None:
        """From the second one on recvmmsg is not asked any more; datagrams of all sizes are what they were."""
        self.alone(b"first")
        inbox: Any = self.port._traffic.inbox
        inbox.receive = self.fail
        for size in SIZES:
            self.alone(pattern(size))
        self.assertEqual(self.received.datagrams, [b"first", *map(pattern, SIZES)])
        self.assertEqual(self.received.sources, {self.far.address})
        self.assertEqual(self.counters.received, 1 + len(SIZES))

    def test_crowd(self) -> None:
        """When many come at once, two are read alone and the others together."""
        self.alone(b"first")
        for number in range(40):
            self.far.send(self.port.address, 1, bytes([number]))
        self.reactor.advance(0.001)
        for _ in range(3):
            self.port.doRead()
        self.assertEqual(self.received.datagrams, [b"first", *(bytes([number]) for number in range(40))])

    def test_burst(self) -> None:
        """A burst that the kernel hands over as one is one, with the size of its datagrams, and its last is shorter."""
        if not probe(("gro", "gso")).gro:
            raise SkipTest("the kernel has no UDP_GRO")
        self.alone(b"first")
        self.reactor.advance(0.001)
        self.far.send(self.port.address, 100, pattern(1050))
        self.port.doRead()
        self.assertEqual(self.received.bursts[1:], [Burst(self.far.address, 100, pattern(1050))])

    def test_rested(self) -> None:
        """A busy port takes together what has come while it rested, even if before that a single one had come."""
        self.port._traffic.rest, self.port._pace = 0.001, Pace()
        for _ in range(40):
            self.send(50)
            self.reactor.advance(0.001)
            if self.port in self.reactor.getReaders():
                self.port.doRead()
        self.assertNotIn(self.port, self.reactor.getReaders())
        for datagrams in (1, 30):
            self.send(datagrams)
            before = len(self.received.datagrams)
            self.reactor.advance(0.001)
            self.assertEqual(len(self.received.datagrams), before + datagrams)

    def send(self, datagrams: int) -> None:
        """Let some datagrams come."""
        for _ in range(datagrams):
            self.far.send(self.port.address, 1, b"x")

    def test_nothing(self) -> None:
        """If nothing is there after all, that is no error."""
        self.alone(b"first")
        self.port.doRead()
        self.assertEqual((self.received.datagrams, self.counters.dropped), ([b"first"], {}))


class Flooded(MemorySocket):
    """Always has one more."""

    def recvfrom(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
        return b"x", ("127.0.0.1", 9)


class StoppedTests(PortTestCase):
    """What came while the process was stopped."""

    def test_discarded(self) -> None:
        """Nobody wants it any more: the first look at the clock empties all ports, and counts each datagram."""
        for names in COMBINATIONS:
            for first in ("read", "tick"):
                self.reactor = PortReactor()
                one, received, counters = self.makePort(offload=names)
                other = DatagramPort(one._traffic, Address("127.0.0.1", 0), received)
                other.startListening()
                one._traffic.tick(self.reactor.seconds())
                sender, _, _ = self.makePort()
                for _ in range(200):
                    sender.send(tuple(one.address), 3, b"old")
                sender.send(tuple(other.address), 3, b"old")
                self.reactor.advance(60)
                if first == "tick":
                    one._traffic.tick(self.reactor.seconds())
                else:
                    other.doRead()
                self.assertEqual((received.datagrams, counters.dropped), ([], {"stale": 201}))
                for port in (one, other):
                    sender.send(tuple(port.address), 3, b"new")
                    port.doRead()
                    port.stopListening()
                sender.stopListening()
                self.assertEqual(received.datagrams, [b"new", b"new"])

    def test_closed(self) -> None:
        """Ports that are closed have nothing to discard, and are not kept in mind."""
        port, _, counters = self.makePort()
        port._traffic.tick(0)
        port.stopListening()
        port.stopListening()
        port._traffic.tick(60)
        self.assertEqual((len(port._traffic._ports), counters.dropped), (0, {}))

    def test_bounded(self) -> None:
        """Even if it never becomes empty, as under a flood, it comes to an end."""
        flooded = Flooded()
        port, received, counters = self.adopted(flooded, Offload())
        port.discard()
        self.assertEqual(received.datagrams, [])
        self.assertEqual(counters.dropped["stale"], MOST_DISCARDS * 64)
        port.stopListening()

    def test_noTick(self) -> None:
        """Where nothing ticks, nothing is taken for old."""
        port, received, _ = self.makePort()
        sender, _, _ = self.makePort()
        sender.send(tuple(port.address), 1, b"x")
        self.reactor.advance(1000)
        port.doRead()
        self.assertEqual(received.datagrams, [b"x"])


class BrokenReceiver(RecordingReceiver):
    """Makes a mistake each time."""

    def burstsReceived(self, bursts: list[Burst]) -> None:
        super().burstsReceived(bursts)
        raise ZeroDivisionError


class MistakeTests(PortTestCase):
    """A mistake of who receives."""

    def test_mistake(self) -> None:
        """It loses these datagrams and no others: the port stays open."""
        opened: Any = MemorySocket()
        received = BrokenReceiver()
        port = DatagramPort(Traffic(self.reactor, Offload(), Counters()), Address("127.0.0.1", 0), received)
        port.adopt(opened)
        self.addCleanup(port.stopListening)
        for data in (b"one", b"two"):
            opened.arrived.append((data, ("127.0.0.1", 9)))
            port.doRead()
        self.assertEqual(received.datagrams, [b"one", b"two"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class RestTests(PortTestCase):
    """A busy port rests between reads, so that more arrives meanwhile."""

    def open(self, rest: float = 0.002) -> None:
        """A port on a socket in memory."""
        self.socket: Any = MemorySocket()
        self.received = RecordingReceiver()
        traffic = Traffic(self.reactor, Offload(), Counters(), rest)
        self.port = DatagramPort(traffic, Address("127.0.0.1", 0), self.received)
        self.port.adopt(self.socket)
        self.addCleanup(self.port.stopListening)

    def flood(self, datagrams: int) -> None:
        """Let so many datagrams arrive in 40 ms, one read per millisecond, until the port rests."""
        for _ in range(40):
            self.socket.arrived += [(b"x", ("127.0.0.1", 9))] * (datagrams // 40)
            if self.reactor.getReaders():
                self.port.doRead()
                self.reactor.advance(0.001)

    def test_busy(self) -> None:
        """It is not read for the time set, and then it is again; nothing is lost."""
        self.open()
        self.flood(1200)
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(0.002)
        self.assertEqual(self.reactor.getReaders(), [self.port])
        while self.socket.arrived:
            self.port.doRead()
            self.reactor.advance(0.01)
        self.assertEqual(len(self.received.datagrams), 1200)

    def test_atOnce(self) -> None:
        """When it has rested it reads what is there, without being told."""
        self.open()
        self.flood(1200)
        self.socket.arrived.append((b"y", ("127.0.0.1", 9)))
        self.assertEqual(self.reactor.getReaders(), [])
        before = len(self.received.datagrams)
        self.reactor.advance(0.002)
        self.assertGreater(len(self.received.datagrams), before)

    def test_quiet(self) -> None:
        """A port that has little to do never rests, and neither does any if that is not wanted."""
        self.open()
        self.flood(200)
        self.assertEqual(self.reactor.getReaders(), [self.port])
        self.port.stopListening()
        self.open(rest=0.0)
        self.flood(1200)
        self.assertEqual(self.reactor.getReaders(), [self.port])

    def test_closedLoop(self) -> None:
        """A port does not rest if less arrives because it does: then its senders wait for answers."""
        self.open(rest=0.005)
        rested = 0
        for _ in range(900):
            if not self.reactor.getReaders():
                rested += 1
                self.reactor.advance(0.005)
                self.assertEqual(self.reactor.getReaders(), [self.port])
            # Thirty come as soon as the last thirty were answered.
            self.socket.arrived += [(b"x", ("127.0.0.1", 9))] * 30
            self.port.doRead()
            self.reactor.advance(0.001)
        self.assertTrue(1 <= rested <= 15, rested)

    def test_hiccup(self) -> None:
        """It goes on resting if for a moment less arrives: the machine had something else to do."""
        self.open()
        self.flood(1200)
        for datagrams in [60] * 20 + [1] * 20 + [60] * 20:
            self.socket.arrived += [(b"x", ("127.0.0.1", 9))] * datagrams
            self.reactor.advance(0.002)
            if self.reactor.getReaders():
                self.port.doRead()
        self.assertEqual(self.reactor.getReaders(), [])

    def test_closed(self) -> None:
        """A port that is closed while it rests stays closed, and leaves nothing."""
        self.open()
        self.flood(1200)
        self.port.stopListening()
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class HeadedTests(PortTestCase):
    """L{DatagramPort.sendHeaded}."""

    def test_header(self) -> None:
        """The header stands before each datagram of a burst."""
        header = b"headerhead"
        for names in COMBINATIONS:
            for size, count, last in (
                (1, 1, 1),
                (1, 64, 1),
                (5, 3, 2),
                (1400, 46, 700),
                (1200, 54, 1200),
                (30000, 2, 9),
            ):
                here, _, sent = self.makePort(offload=names)
                there, receiver, _ = self.makePort(offload=names)
                datagrams = [pattern(size, number) for number in range(count - 1)] + [pattern(last)]
                here.sendHeaded(there.address, header, size, b"".join(datagrams))
                self.reactor.until(lambda: len(receiver.datagrams) >= count)  # noqa: B023
                self.assertEqual(receiver.datagrams, [header + datagram for datagram in datagrams])
                self.assertEqual(sent.sent, count)

    def test_empty(self) -> None:
        """An empty datagram becomes one that holds the header only."""
        here, _, _ = self.makePort()
        there, receiver, _ = self.makePort()
        here.sendHeaded(there.address, b"header", 0, b"")
        self.reactor.until(lambda: bool(receiver.bursts))
        self.assertEqual(receiver.datagrams, [b"header"])

    def test_tooLong(self) -> None:
        """A datagram that is too long with its header is dropped and counted."""
        for names in COMBINATIONS:
            here, _, counters = self.makePort(offload=names)
            here.sendHeaded(("127.0.0.1", 9), b"header", LARGEST_DATAGRAM, pattern(LARGEST_DATAGRAM))
            self.assertEqual(counters.dropped, {"send EMSGSIZE": 1})


class ErrorTests(PortTestCase):
    """What the kernel refuses is counted by its reason, and never raised."""

    def assertCounted(self, to: Any, reasons: tuple[str, ...], host: str = "127.0.0.1", size: int = 3) -> None:
        """Lone datagrams and bursts to an address are dropped, each datagram counted once."""
        for names in COMBINATIONS:
            for count in (1, 5):
                port, _, counters = self.makePort(host, names)
                port.send(to, size, bytes(size * count))
                self.assertEqual(sum(counters.dropped.values()), count, (to, names, count, counters.dropped))
                self.assertLessEqual(set(counters.dropped), {f"send {reason}" for reason in reasons}, (to, names))
                self.assertEqual((counters.sent, counters.sentBytes), (0, 0))

    def test_portZero(self) -> None:
        """Nothing can be sent to port 0 (E-1)."""
        self.assertCounted(("127.0.0.1", 0), ("EINVAL",))
        self.assertCounted(("::1", 0), ("EINVAL",), "::1")

    def test_broadcast(self) -> None:
        """Nothing is broadcast (E-2)."""
        self.assertCounted(("127.255.255.255", 9), ("EACCES",))
        self.assertCounted(("::ffff:127.255.255.255", 9), ("EACCES",), "::")

    def test_unreachable(self) -> None:
        """Where no route leads, nothing goes (E-3, E-4)."""
        # The kernel does not let a loopback address out of the machine.
        self.assertCounted(("198.51.100.1", 9), ("EINVAL", "ENETUNREACH", "EHOSTUNREACH", "EACCES"))
        self.assertCounted(
            ("::ffff:198.51.100.1", 9), ("EINVAL", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL"), "::1"
        )

    def test_otherFamily(self) -> None:
        """A host that does not fit the socket's family is counted as well."""
        reasons = ("error", "EINVAL", "EAFNOSUPPORT", "EADDRNOTAVAIL", "ENETUNREACH")
        self.assertCounted(("::1", 9), reasons)
        self.assertCounted(("127.0.0.1", 9), reasons, "::1")

    def test_noPort(self) -> None:
        """A port beyond 65,535 is counted as well."""
        self.assertCounted(("127.0.0.1", 65536), ("EINVAL",))

    def test_tooLong(self) -> None:
        """A datagram that no packet holds is counted (E-10)."""
        for names in COMBINATIONS:
            for host in ("127.0.0.1", "::1"):
                port, _, counters = self.makePort(host, names)
                port.send((host, 9), 65528, bytes(65528))
                self.assertEqual(counters.dropped, {"send EMSGSIZE": 1})

    def test_nobodyThere(self) -> None:
        """A target port that is closed is no error of ours, and the port goes on."""
        for names in COMBINATIONS:
            here, receiver, counters = self.makePort(offload=names)
            gone, _, _ = self.makePort()
            target = gone.address
            gone.stopListening()
            for _ in range(3):
                here.send(target, 3, b"abc")
                here.send(target, 3, b"abcdefgh")
                here.doRead()
            self.assertEqual(counters.dropped, {})
            here.send(here.address, 4, b"echo")
            self.reactor.until(lambda: bool(receiver.bursts))  # noqa: B023
            self.assertEqual(receiver.datagrams, [b"echo"])

    def test_closed(self) -> None:
        """What is sent through a port that is closed is counted."""
        port, _, counters = self.makePort()
        port.stopListening()
        port.send(("127.0.0.1", 9), 3, b"abc")
        port.send(("127.0.0.1", 9), 3, b"abcabcab")
        port.sendHeaded(("127.0.0.1", 9), b"header", 3, b"abcabcab")
        self.assertEqual(counters.dropped, {"port closed": 7})

    def test_eachErrno(self) -> None:
        """Whatever else the kernel says is counted by its name, and the next datagram goes (E-5 to E-13)."""
        for number in (
            *(errno.EPERM, errno.ENOBUFS, errno.EAGAIN, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EACCES),
            *(errno.ECONNREFUSED, errno.ENETUNREACH, errno.ENOMEM, errno.EINTR),
        ):
            opened = MemorySocket()
            port, _, counters = self.adopted(opened)
            opened.error = OSError(number, os.strerror(number))
            port.send(("127.0.0.1", 9), 3, b"abc")
            self.assertEqual(counters.dropped, {f"send {errno.errorcode[number]}": 1})
            opened.error = None
            port.send(("127.0.0.1", 9), 3, b"abc")
            self.assertEqual(counters.sent, 1)

    def test_receiveErrors(self) -> None:
        """An error that is waiting at the socket is counted, and what follows it is received."""
        opened = MemorySocket()
        port, receiver, counters = self.adopted(opened)
        opened.error = ConnectionRefusedError(errno.ECONNREFUSED, "")
        port.doRead()
        self.assertEqual(counters.dropped, {"receive ECONNREFUSED": 1})
        opened.error = None
        opened.arrived.append((b"abc", ("127.0.0.1", 9)))
        port.doRead()
        self.assertEqual(receiver.datagrams, [b"abc"])

    def test_errorAmidDatagrams(self) -> None:
        """What had arrived before an error is passed on."""

        class Failing(MemorySocket):
            def recvfrom(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
                if len(self.arrived) == 1:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "")
                return super().recvfrom(size)

        opened = Failing()
        opened.arrived += [(b"abc", ("127.0.0.1", 9)), (b"def", ("127.0.0.1", 9))]
        port, receiver, counters = self.adopted(opened)
        port.doRead()
        self.assertEqual(receiver.datagrams, [b"abc"])
        self.assertEqual(counters.dropped, {"receive ECONNREFUSED": 1})

    def test_receiveErrorsOfManyMessages(self) -> None:
        """With C{mmsg} too an error of the socket is counted."""
        if not probe(("mmsg",)).mmsg:
            raise SkipTest("this system has no recvmmsg")
        here, there = os.pipe()
        self.addCleanup(os.close, there)
        self.addCleanup(os.close, here)

        class NoSocket(MemorySocket):
            def fileno(self) -> int:
                return here

        port, receiver, counters = self.adopted(NoSocket(), Offload(("mmsg",)))
        port.doRead()
        self.assertEqual(counters.dropped, {"receive ENOTSOCK": 1})
        self.assertEqual(receiver.calls, [])
        port.send(("127.0.0.1", 9), 3, b"abcabcab")
        self.assertEqual(counters.dropped["send ENOTSOCK"], 3)


class FailedTests(SynchronousTestCase):
    """What kinds of ports hear of errors: L{DatagramPort.failed}."""

    def test_heard(self) -> None:
        """On a connected socket each way of reading and sending hears that nobody listens there."""
        reactor = PortReactor()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = closed.getsockname()
        for names in COMBINATIONS:
            for payload in (b"abc", b"abcdefgh"):
                for reads in (False, True):
                    port = self.connected(reactor, nobody, probe(names))
                    port.send(nobody, 3, payload)
                    port.doRead() if reads else port.send(nobody, 3, payload)
                    self.assertEqual(set(port.errors), {errno.ECONNREFUSED}, (names, payload, reads))
                    port.stopListening()

    def connected(self, reactor: PortReactor, to: Any, offload: Offload) -> ListeningPort:
        """A port on a connected socket."""
        traffic = Traffic(reactor, offload, Counters())
        port = ListeningPort(traffic, Address("127.0.0.1", 0), RecordingReceiver())
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.connect(to)
        port.equip(opened)
        port.adopt(opened)
        return port


class ListeningPort(DatagramPort):
    """A port that keeps what it hears of errors."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.errors: list[int | None] = []

    def failed(self, error: OSError) -> None:
        super().failed(error)
        self.errors.append(error.errno)


class Refusing:
    """A real socket whose kernel refuses segments."""

    def __init__(self, number: int, beyond: int = 0) -> None:
        """
        @param beyond: segments up to this size are taken.
        """
        self._opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._opened.setblocking(False)
        self._opened.bind(("127.0.0.1", 0))
        self._number, self._beyond = number, beyond
        self.asked = 0

    def sendmsg(self, buffers: Any, ancillary: Any = (), *rest: Any) -> int:
        if ancillary:
            self.asked += 1
            size = int.from_bytes(bytes(ancillary[0][2])[:2], "little")
            if size > self._beyond:
                raise OSError(self._number, os.strerror(self._number))
        return self._opened.sendmsg(buffers, ancillary, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)


class RefusalTests(PortTestCase):
    """The kernel's abilities may turn out to be missing later."""

    def burst(self, opened: Refusing, names: tuple[str, ...]) -> tuple[Offload, list[bytes], Counters]:
        """Send two bursts through a socket."""
        offload = Offload(names)
        port, _, counters = self.adopted(opened, offload)
        there, receiver, _ = self.makePort(offload=())
        for payload in (b"abcdefgh", b"ijklmnop"):
            port.send(there.address, 3, payload)
        self.reactor.until(lambda: len(receiver.datagrams) >= 6)
        return offload, receiver.datagrams, counters

    @needs("Linux")
    def test_noChecksums(self) -> None:
        """
        When the device can not compute checksums (EIO), segments are never
        asked for again, one log line says so, and no datagram is lost.
        """
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for names in (("gso",), ("gso", "mmsg")):
            events.clear()
            opened = Refusing(errno.EIO)
            offload, datagrams, counters = self.burst(opened, names)
            self.assertEqual(datagrams, [b"abc", b"def", b"gh", b"ijk", b"lmn", b"op"])
            self.assertFalse(offload.gso)
            self.assertEqual(opened.asked, 1)
            self.assertEqual((counters.sent, counters.sentBytes, counters.dropped), (6, 16, {}))
            said = [event for event in events if event.get("log_level") == LogLevel.warn]
            self.assertEqual([event["ability"] for event in said], ["gso"])

    def test_longSegments(self) -> None:
        """A burst whose segments do not fit the path goes one by one, and the next is tried again."""
        for number in (errno.EINVAL, errno.EMSGSIZE):
            opened = Refusing(number)
            offload, datagrams, counters = self.burst(opened, ("gso",))
            self.assertEqual(datagrams, [b"abc", b"def", b"gh", b"ijk", b"lmn", b"op"])
            self.assertTrue(offload.gso)
            self.assertEqual(opened.asked, 2)
            self.assertEqual((counters.sent, counters.dropped), (6, {}))

    def test_otherErrors(self) -> None:
        """A burst that is refused for another reason is dropped as a whole, and counted by datagrams."""
        port, _, counters = self.adopted(Refusing(errno.EPERM), Offload(("gso",)))
        port.send(("127.0.0.1", 9), 3, b"abcdefgh")
        self.assertEqual(counters.dropped, {"send EPERM": 3})


class OpeningTests(PortTestCase):
    """Opening and closing a port."""

    def test_taken(self) -> None:
        """A port that is taken can not be opened, and the error names it."""
        taken, _, _ = self.makePort()
        port = DatagramPort(Traffic(self.reactor, Offload(), Counters()), taken.address, RecordingReceiver())
        error = self.assertRaises(ListenError, port.startListening)
        self.assertIn(str(taken.address), str(error))
        self.assertIn(os.strerror(errno.EADDRINUSE), str(error))
        self.assertEqual(port.fileno(), -1)

    def test_notOurs(self) -> None:
        """An address that this machine does not have can not be opened."""
        for host in ("198.51.100.1", "name.example", "2001:db8::1"):
            port = DatagramPort(Traffic(self.reactor, Offload(), Counters()), Address(host, 0), RecordingReceiver())
            self.assertIn(host, str(self.assertRaises(ListenError, port.startListening)))

    def test_address(self) -> None:
        """An open port knows its real port number."""
        port, _, _ = self.makePort()
        self.assertEqual(port.address.host, "127.0.0.1")
        self.assertGreater(port.address.port, 0)
        self.assertIn(str(port.address), port.logPrefix())

    def test_closing(self) -> None:
        """A port may be closed twice, closes its descriptor, and can be opened anew."""
        port, receiver, _ = self.makePort()
        descriptor = port.fileno()
        port.stopListening()
        port.stopListening()
        self.assertEqual(port.fileno(), -1)
        self.assertRaises(OSError, os.fstat, descriptor)
        port.doRead()
        self.assertEqual(receiver.calls, [])
        port.startListening()
        self.assertEqual(self.reactor.getReaders(), [port])

    def test_lost(self) -> None:
        """When the reactor gives the port up, it is closed."""
        port, _, _ = self.makePort()
        port.connectionLost(None)  # type: ignore[arg-type]
        self.assertEqual(port.fileno(), -1)

    def test_closedWhileReading(self) -> None:
        """A receiver may close the port."""
        port, receiver, _ = self.makePort()
        receiver.burstsReceived = lambda bursts: port.stopListening()  # type: ignore[method-assign]
        for payload in (b"abc", b"de", b"f"):
            port.send(port.address, len(payload), payload)
        port.doRead()
        self.assertEqual(port.fileno(), -1)
