"""Tests for L{udptunnel.net.doorstep}."""

from __future__ import annotations

import gc
import ssl
import weakref
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.net.test_tls import GOOD_SERVER
from udptunnel.net.doorstep import LARGEST_RECORD, Doorstep, isWhole
from udptunnel.net.tls import ALPN, ServerTls, whyLost

BEGIN = b"\x16\x03\x01"


def record(length: int) -> bytes:
    """A record with so many bytes in it."""
    return BEGIN + length.to_bytes(2, "big") + bytes(length)


class WholeTests(SynchronousTestCase):
    """L{isWhole}."""

    def test_begins(self) -> None:
        """Each beginning of a record is not whole, the record is, and so is what follows it."""
        for length in (1, 200, LARGEST_RECORD):
            whole = record(length)
            for place in {*range(8), len(whole) // 2, len(whole) - 1}:
                self.assertFalse(isWhole(whole[: min(place, len(whole) - 1)]), place)
            self.assertTrue(isWhole(whole))
            self.assertTrue(isWhole(whole + b"x"))

    def test_nonsense(self) -> None:
        """What can not become a ClientHello is not waited for: OpenSSL says what is wrong."""
        for data in (b"GET / HTTP/1.1", b"\x15", b"\x17\x03\x03", b"\x16\x02", b"\x16\x04\x01", b"udpt"):
            self.assertTrue(isWhole(data), data)
        self.assertTrue(isWhole(BEGIN + b"\xff\xff"))
        self.assertTrue(isWhole(BEGIN + (LARGEST_RECORD + 1).to_bytes(2, "big")))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.binary(max_size=40))
    def test_bounded(self, data: bytes) -> None:
        """Whatever comes, what is waited for is never more than a record."""
        self.assertTrue(isWhole(data + bytes(5 + LARGEST_RECORD)))
        self.assertTrue(isWhole(BEGIN + data + bytes(5 + LARGEST_RECORD)))


class Waiter(Protocol):
    """Remembers what it hears, and how it ends."""

    why: str | None = None

    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.why = whyLost(self.transport, reason)


class MortalTransport(StringTransport):
    """Is aborted as a TCP connection is."""

    aborting = False

    def abortConnection(self) -> None:
        self.aborting = True


class DoorstepTests(SynchronousTestCase):
    """L{Doorstep}, below Twisted's TLS transport."""

    def setUp(self) -> None:
        self.waiters: list[Waiter] = []
        factory: Any = Factory.forProtocol(self.accept)
        self.factory = TLSMemoryBIOFactory(ServerTls(GOOD_SERVER, False), False, factory, Clock())
        self.transport = MortalTransport()
        self.tls: Any = self.factory.buildProtocol(None)
        self.tls.makeConnection(self.transport)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([ALPN.decode()])
        self.client = context.wrap_bio(self.incoming, self.outgoing)

    def accept(self) -> Waiter:
        self.waiters.append(Waiter())
        return self.waiters[-1]

    def hello(self) -> bytes:
        """The client begins."""
        self.assertRaises(ssl.SSLWantReadError, self.client.do_handshake)
        return self.outgoing.read()

    @property
    def connection(self) -> SSL.Connection | None:
        step: Doorstep = self.tls.getHandle()
        return step.connection

    def finish(self) -> None:
        """The rest of the handshake, and a word."""
        self.incoming.write(self.transport.value())
        self.transport.clear()
        self.client.do_handshake()
        self.client.write(b"word")
        self.tls.dataReceived(self.outgoing.read())
        self.assertEqual((self.waiters[0].heard, self.tls.negotiatedProtocol), (b"word", ALPN))

    def test_silent(self) -> None:
        """Whoever says nothing has no TLS connection, and is told nothing."""
        self.assertIsNone(self.connection)
        self.assertEqual((len(self.waiters), self.transport.value()), (1, b""))

    def test_half(self) -> None:
        """Nor has who says half of a ClientHello, or all of it but a byte; however long that takes."""
        hello = self.hello()
        for place in range(len(hello) - 1):
            self.tls.dataReceived(hello[place : place + 1])
            self.assertIsNone(self.connection)
        self.assertEqual(self.transport.value(), b"")
        self.tls.dataReceived(hello[-1:])
        self.assertIsNotNone(self.connection)
        self.finish()

    def test_whole(self) -> None:
        """A ClientHello in one piece is answered at once, and everything behind it goes on as ever."""
        self.tls.dataReceived(self.hello())
        self.assertNotEqual(self.transport.value(), b"")
        self.finish()
        self.tls.write(b"answer")
        self.factory._clock.advance(0)  # type: ignore[attr-defined]
        self.incoming.write(self.transport.value())
        self.assertEqual(self.client.read(), b"answer")

    def test_nonsense(self) -> None:
        """What is no TLS is answered by an alert at once, and the reason is known."""
        self.tls.dataReceived(b"GET / HTTP/1.1\r\n")
        self.assertTrue(self.transport.disconnecting)
        self.tls.connectionLost(Failure(ConnectionDone()))
        self.assertIn("TLS failed", str(self.waiters[0].why))

    def test_aborted(self) -> None:
        """To turn somebody away makes no TLS connection either."""
        self.tls.dataReceived(self.hello()[:50])
        self.tls.abortConnection()
        self.assertTrue(self.transport.aborting)
        step: Doorstep = self.tls.getHandle()
        self.tls.connectionLost(Failure(ConnectionAborted()))
        self.assertIsNone(step.connection)
        self.assertIsNotNone(self.waiters[0].why)

    def lose(self, said: bytes, abort: bool) -> list[weakref.ref[Any]]:
        """A connection ends when so much was said; return what must not be left of it."""
        self.tls.dataReceived(said)
        left = [weakref.ref(each) for each in (self.tls, self.waiters.pop(), self.tls.getHandle(), self.connection)
                if each is not None]  # fmt: skip
        if abort:
            self.tls.abortConnection()
        self.tls.connectionLost(Failure(ConnectionAborted()))
        del self.tls, self.transport
        return left

    def test_nothingIsLeft(self) -> None:
        """However far it came, a connection that is gone waits for no collector: a crowd of them would be large."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for abort in (True, False):
            for part in (0, 0.5, 1):
                self.setUp()
                hello = self.hello()
                left = self.lose(hello[: int(len(hello) * part)], abort)
                self.assertEqual(len(left), 4 if part == 1 else 3)
                self.assertEqual([each() for each in left], [None] * len(left), (abort, part))

    def test_closed(self) -> None:
        """The other end's farewell is heard, and it is no failure."""
        self.tls.dataReceived(self.hello())
        self.finish()
        self.assertRaises(ssl.SSLWantReadError, self.client.unwrap)
        self.tls.dataReceived(self.outgoing.read())
        self.assertTrue(self.transport.disconnecting)
        self.tls.connectionLost(Failure(ConnectionDone()))
        self.assertIn("cleanly", str(self.waiters[0].why))
