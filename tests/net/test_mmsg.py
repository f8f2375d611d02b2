"""Tests for L{udptunnel.net.mmsg}."""

from __future__ import annotations

import errno
import os
import socket
from unittest import SkipTest

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.net.mmsg import AVAILABLE, FEW_SLOTS, LONGEST_EXPECTED, SLOTS, Inbox, Outbox, PacketInbox, PacketOutbox
from udptunnel.net.sockaddr import SourceNames, packSockaddr
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_DATAGRAM, split


class ManyMessagesTests(SynchronousTestCase):
    """L{Inbox} and L{Outbox}."""

    family = socket.AF_INET
    host = "127.0.0.1"

    def setUp(self) -> None:
        if not AVAILABLE:
            raise SkipTest("this system has no recvmmsg")
        self.inbox, self.outbox = Inbox(SourceNames()), Outbox()
        self.here, self.there = self.open(), self.open()
        self.to = self.there.getsockname()[:2]

    def open(self) -> socket.socket:
        """A bound socket."""
        opened = socket.socket(self.family, socket.SOCK_DGRAM)
        self.addCleanup(opened.close)
        try:
            opened.bind((self.host, 0))
        except OSError:
            raise SkipTest(f"this machine has no {self.host}") from None
        return opened

    def send(self, size: int, payload: bytes) -> int:
        """Send a burst from here to there."""
        return self.outbox.send(self.here.fileno(), self.family, self.to, size, payload)

    def receive(self) -> list[tuple[Address, int, bytes]]:
        """What one call receives there, copied."""
        bursts = self.inbox.receive(self.there.fileno(), self.family)
        return [(source, size, bytes(payload)) for source, size, payload in bursts]

    def test_together(self) -> None:
        """Equal datagrams from one source become one burst."""
        self.assertEqual(self.send(3, b"abcdefghi"), 3)
        source = Address(*self.here.getsockname()[:2])
        self.assertEqual(self.receive(), [(source, 3, b"abcdefghi")])

    def test_apart(self) -> None:
        """Datagrams of several sizes are told apart, empty ones too."""
        for datagram in (b"abc", b"", b"defg", b"hijk", b"lm"):
            self.here.sendto(datagram, self.to)
        self.assertEqual(
            [(size, payload) for _, size, payload in self.receive()], [(3, b"abc"), (0, b""), (4, b"defghijklm")]
        )

    def test_sources(self) -> None:
        """Datagrams of one size from two sources are told apart."""
        other = self.open()
        for opened in (self.here, other, other):
            opened.sendto(b"abc", self.to)
        here, there = (Address(*each.getsockname()[:2]) for each in (self.here, other))
        self.assertEqual(self.receive(), [(here, 3, b"abc"), (there, 3, b"abcabc")])

    def test_slots(self) -> None:
        """One call takes at most 64 messages, one call sends 64."""
        self.assertEqual(self.send(2, b"xy" * SLOTS), SLOTS)
        self.assertEqual(self.send(2, b"xy" * 9), 9)
        self.assertEqual([len(payload) for _, _, payload in self.receive()], [2 * SLOTS])
        self.assertEqual([len(payload) for _, _, payload in self.receive()], [18])
        self.assertEqual(self.receive(), [])

    def test_largest(self) -> None:
        """The largest datagrams fit, and no burst gets longer than a frame's body."""
        datagrams = [bytes((number,)) * LARGEST_DATAGRAM for number in range(3)]
        for datagram in datagrams:
            self.assertEqual(self.send(LARGEST_DATAGRAM, datagram), 1)
            self.assertEqual([payload for _, _, payload in self.receive()], [datagram])
        for _ in range(2):
            for number in range(50):
                self.send(1400, bytes((number,)) * 1400)
            received = self.receive()
            self.assertEqual([len(payload) / 1400 for _, _, payload in received], [46, 4])
            self.assertEqual([payload[0] for _, _, payload in received], [0, 46])

    def test_shapes(self) -> None:
        """Whatever was sent before through the same memory, a burst arrives as it is."""

        @settings(max_examples=min(EXAMPLES, 200), deadline=None)
        @given(st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 40), st.integers(1, 1500)), max_size=4))
        def check(shapes: list[tuple[int, int, int]]) -> None:
            for number, (size, count, last) in enumerate(shapes):
                payload = bytes((number + place) & 0xFF for place in range(size * (count - 1) + min(last, size)))
                self.assertEqual(self.send(size, payload), count)
                received = [bytes(each) for _, size, burst in self.receive() for each in split(size, burst)]
                self.assertEqual(received, list(split(size, payload)))

        check()

    def test_expected(self) -> None:
        """Whatever was received before through the same memory, datagrams arrive as they are, and empty ones too."""
        lengths = st.sampled_from((0, 1, 99, 100, 101, 200, LONGEST_EXPECTED, LONGEST_EXPECTED + 1))
        runs = st.lists(st.tuples(lengths, st.integers(1, 6)), max_size=4)

        @settings(max_examples=min(EXAMPLES, 200), deadline=None)
        @given(st.lists(runs, max_size=6))
        def check(reads: list[list[tuple[int, int]]]) -> None:
            for read in reads:
                sent = [bytes((place,)) * length for length, count in read for place in range(count)]
                for datagram in sent:
                    self.here.sendto(datagram, self.to)
                received = [each for _, size, burst in self.receive() for each in split(size, burst)]
                self.assertTrue(received == sent, (list(map(len, received)), list(map(len, sent))))

        check()

    def test_inPlace(self) -> None:
        """A flood of one length is not copied once it is known: the burst is the memory that the kernel wrote to."""
        for _ in range(2):
            self.send(100, bytes(2000))
            ((_, size, payload),) = self.inbox.receive(self.there.fileno(), self.family)
        self.assertIsInstance(payload, memoryview)
        self.assertEqual((size, len(payload)), (100, 2000))

    def test_sourcesExpected(self) -> None:
        """Datagrams of the expected length from two sources are told apart."""
        self.send(3, b"abc" * 5)
        self.receive()
        self.test_sources()

    def test_nothing(self) -> None:
        """When nothing is there, nothing is received, and that is no error."""
        self.assertEqual(self.receive(), [])

    def test_errors(self) -> None:
        """Any other answer of the kernel is raised with its number."""
        here, there = os.pipe()
        self.addCleanup(os.close, here)
        self.addCleanup(os.close, there)
        error = self.assertRaises(OSError, self.inbox.receive, here, self.family)
        self.assertEqual(error.errno, errno.ENOTSOCK)
        error = self.assertRaises(OSError, self.outbox.send, here, self.family, self.to, 3, b"abc")
        self.assertEqual(error.errno, errno.ENOTSOCK)
        error = self.assertRaises(
            OSError, self.outbox.send, self.here.fileno(), self.family, (self.to[0], 0), 3, b"abcdef"
        )
        self.assertEqual(error.errno, errno.EINVAL)


class ManyMessages6Tests(ManyMessagesTests):
    """The same over IPv6."""

    family = socket.AF_INET6
    host = "::1"


class PacketTests(SynchronousTestCase):
    """L{PacketInbox} and L{PacketOutbox}."""

    family = socket.AF_INET
    host = "127.0.0.1"

    def setUp(self) -> None:
        if not AVAILABLE:
            raise SkipTest("this system has no recvmmsg")
        self.outbox, self.inbox = PacketOutbox(self.family), PacketInbox(10, 14, 70000)
        self.here, self.there, self.elsewhere = self.open(), self.open(), self.open()

    open = ManyMessagesTests.open

    def name(self, opened: socket.socket) -> bytes:
        """Its address as the kernel has it."""
        return packSockaddr(self.family, opened.getsockname()[:2])

    def send(self, *messages: bytes) -> int:
        """Send messages from here to there."""
        return self.outbox.send(self.here.fileno(), [self.name(self.there)] * len(messages), messages)

    def receive(self) -> list[bytes]:
        """What one call receives there, copied."""
        return [bytes(each) for each in self.inbox.receive(self.there.fileno())]

    def test_leftOut(self) -> None:
        """A part in the middle is left out of each message, and the rest of it lies together."""
        self.assertEqual(self.send(b"0123456789" + b"-" * 14 + b"abc", b"9876543210" + b"-" * 14), 2)
        self.assertEqual(self.receive(), [b"0123456789abc", b"9876543210"])
        self.assertEqual(self.receive(), [])

    def test_nothingLeftOut(self) -> None:
        """That part may be empty."""
        self.inbox = PacketInbox(10, 0, 70000)
        self.send(b"0123456789abc")
        self.assertEqual(self.receive(), [b"0123456789abc"])

    def test_addresses(self) -> None:
        """Each message goes to its own address."""
        names = [self.name(self.there), self.name(self.elsewhere), self.name(self.there)]
        self.assertEqual(self.outbox.send(self.here.fileno(), names, [b"a" * 30, b"b" * 31, b"c" * 32]), 3)
        self.assertEqual([each[10:] for each in self.receive()], [b"a" * 6, b"c" * 8])
        self.assertEqual(self.elsewhere.recv(99), b"b" * 31)

    def test_room(self) -> None:
        """One call takes 64 messages, or as many as there is room for, at least one; it says how many."""
        self.assertEqual(self.send(*[b"x" * 30] * 70), SLOTS)
        self.assertEqual(len(self.receive()), SLOTS)
        self.assertEqual(self.send(*[b"y" * 60000] * 3), 2)
        self.assertEqual([len(each) for each in self.receive()], [60000 - 14] * 2)

    def test_long(self) -> None:
        """While messages are long, fewer are taken by one call."""
        for _ in range(2):
            self.there.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
            for _ in range(10):
                self.send(b"z" * 60000, b"z" * 60000)
            counts = [len(self.receive()), len(self.receive())]
        self.assertEqual(counts, [FEW_SLOTS, 20 - FEW_SLOTS])

    def test_errors(self) -> None:
        """The first message that is refused raises if nothing went before; otherwise it is said how many went."""
        names = [self.name(self.there), bytes(28)[: len(self.name(self.there))]]
        self.assertEqual(self.outbox.send(self.here.fileno(), names, [b"a" * 30, b"b" * 30]), 1)
        error = self.assertRaises(OSError, self.outbox.send, self.here.fileno(), names[1:], [b"b" * 30])
        self.assertIn(error.errno, (errno.EINVAL, errno.EAFNOSUPPORT, errno.EDESTADDRREQ))
        here, there = os.pipe()
        self.addCleanup(os.close, here)
        self.addCleanup(os.close, there)
        self.assertEqual(self.assertRaises(OSError, self.inbox.receive, here).errno, errno.ENOTSOCK)

    def test_shapes(self) -> None:
        """Whatever was sent before through the same memory, messages arrive as they are."""

        @settings(max_examples=min(EXAMPLES, 100), deadline=None)
        @given(st.lists(st.lists(st.binary(min_size=24, max_size=200), min_size=1, max_size=20), max_size=4))
        def check(calls: list[list[bytes]]) -> None:
            for messages in calls:
                self.assertEqual(self.send(*messages), len(messages))
                self.assertEqual(self.receive(), [each[:10] + each[24:] for each in messages])

        check()


class Packet6Tests(PacketTests):
    """The same over IPv6."""

    family = socket.AF_INET6
    host = "::1"
