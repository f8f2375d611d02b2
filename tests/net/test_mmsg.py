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
from udptunnel.net.mmsg import AVAILABLE, SLOTS, Inbox, Outbox
from udptunnel.net.sockaddr import SourceNames
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
        for number in range(50):
            self.send(1400, bytes((number,)) * 1400)
        self.assertEqual([len(payload) // 1400 for _, _, payload in self.receive()], [46, 4])

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
