"""Tests for L{udptunnel.services.listening}."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.needs import needs
from tests.waiting import until
from udptunnel.errors import ConfigError, ListenError
from udptunnel.services.links import quietFactory
from udptunnel.services.listening import Listening, isLocal, isLoopback, requireAuthentication


class LoopbackTests(SynchronousTestCase):
    """What is reached from this machine only."""

    def test_loopback(self) -> None:
        """Loopback addresses are; all others, and what is no address, are not."""
        for host in ("127.0.0.1", "127.255.255.254", "::1", "0:0::1", "::1%lo"):
            self.assertTrue(isLoopback(host), host)
        for host in ("0.0.0.0", "::", "", "10.0.0.1", "localhost", "127.1", "128.0.0.1", "::2", "::ffff:0.0.0.0"):
            self.assertFalse(isLoopback(host), host)

    def test_local(self) -> None:
        """A Unix socket is; a TCP port is if its host is."""
        for address in (UNIXAddress("/x"), IPv4Address("TCP", "127.0.0.1", 1), IPv6Address("TCP", "::1", 1)):
            self.assertTrue(isLocal(address))
        for other in (IPv4Address("TCP", "0.0.0.0", 1), IPv6Address("TCP", "::", 1)):
            self.assertFalse(isLocal(other))

    def test_authentication(self) -> None:
        """What is open to others must ask who they are, or it must be waived in so many words."""
        for closed, allowed in ((True, False), (False, True), (True, True)):
            requireAuthentication(closed, allowed, "--listen x")
        error = str(self.assertRaises(ListenError, requireAuthentication, False, False, "--listen x"))
        self.assertIn("--listen x", error)
        self.assertIn("--insecure-no-auth", error)
        self.assertNotIn("\n", error)


class ListeningTests(TestCase):
    """L{Listening} with real sockets."""

    def make(self, text: str) -> Listening:
        """A listener."""
        return Listening(reactor, "listen", text, quietFactory(Factory))  # type: ignore[arg-type]

    async def test_address(self) -> None:
        """A listener that was started knows where; it may be stopped twice."""
        listening = self.make("tcp:0:interface=127.0.0.1")
        listening.start(False)
        address: Any = listening.address
        self.assertEqual(address.host, "127.0.0.1")
        self.assertGreater(address.port, 0)
        await listening.stop()
        await listening.stop()

    async def test_neverStarted(self) -> None:
        """One that was never started may be stopped."""
        await self.make("tcp:0").stop()

    @needs("Unix sockets")
    async def test_unix(self) -> None:
        """A Unix socket needs no authentication."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        listening = self.make(f"unix:{os.path.join(folder, 's')}")
        listening.start(False)
        await listening.stop()

    async def test_strangers(self) -> None:
        """A port that others could reach is closed again if they may not."""
        listening = self.make("tcp:0")
        error = self.assertRaises(ListenError, listening.start, False)
        self.assertIn("--listen tcp:0", str(error))
        address: Any = listening.address

        def isClosed() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", address.port)) != 0

        await until(isClosed)
        listening.start(True)
        await listening.stop()

    async def test_taken(self) -> None:
        """A port that is taken is named."""
        first = self.make("tcp:0:interface=127.0.0.1")
        first.start(False)
        address: Any = first.address
        text = f"tcp:{address.port}:interface=127.0.0.1"
        error = str(self.assertRaises(ListenError, self.make(text).start, False))
        self.assertIn(f"--listen {text} can not be opened", error)
        self.assertNotIn("\n", error)
        await first.stop()


class FakePort:
    """A port that somebody has opened."""

    stopped = False

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def stopListening(self) -> None:
        self.stopped = True


class LaterTests(SynchronousTestCase):
    """An endpoint that takes its time, as those of other packages may."""

    def setUp(self) -> None:
        self.later: Deferred[Any] = Deferred()
        reactor_: Any = MemoryReactorClock()
        self.listening = Listening(reactor_, "listen", "tcp:1", Factory())
        self.listening._endpoint = self  # type: ignore[assignment]

    def listen(self, factory: Any) -> Deferred[Any]:
        """Open a port, sooner or later."""
        return self.later

    def test_later(self) -> None:
        """A port that is not open at once is an error, whoever may come in."""
        error = str(self.assertRaises(ListenError, self.listening.start, True))
        self.assertIn("--listen tcp:1 is not open at once", error)
        self.successResultOf(self.listening.stop())

    def test_opensLater(self) -> None:
        """If it opens after that, it is closed again: nobody asks who may come in there."""
        self.assertRaises(ListenError, self.listening.start, False)
        port = FakePort()
        self.later.callback(port)
        self.assertTrue(port.stopped)

    def test_failsLater(self) -> None:
        """If it fails after that, nothing more is said."""
        self.assertRaises(ListenError, self.listening.start, True)
        self.later.errback(OSError("taken"))
        self.successResultOf(self.listening.stop())


class TextTests(SynchronousTestCase):
    """The texts of endpoints."""

    def test_wrong(self) -> None:
        """What is no server endpoint is refused with option and text."""
        for text in ("", "nonsense", "nonsense:1", "tcp", "tcp:x:y:z", "ssl:1:privateKey=/no/such/file", "udp:1"):
            reactor_: Any = MemoryReactorClock()
            error = str(self.assertRaises(ConfigError, Listening, reactor_, "socks", text, Factory()))
            self.assertIn(f"--socks {text}", error)
            self.assertNotIn("\n", error)
