"""Tests for L{udptunnel.services.trips}."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from tests.services.tunnel import TunnelTestCase
from tests.waiting import until
from udptunnel.config import Forward, LocalConfig
from udptunnel.errors import LoginError, SocksError
from udptunnel.net.socks5client import addressOf
from udptunnel.services import trips
from udptunnel.services.trips import Reasons, associate, linkTrip, spread, temporary, temporaryLink
from udptunnel.wire.address import Address

clock: Any = reactor


class AssociationTests(TunnelTestCase):
    """L{associate}."""

    async def test_trip(self) -> None:
        """What a target sends back is there, with its time; when the way is over, its port and its relay are."""
        server = self.startServer()
        local, echo = self.startLocal(server), self.echo()
        assert local.door is not None
        async with associate(clock, addressOf(local.door.address)) as way:
            back = await way.trip(echo, b"hello", b"hello".__eq__)
            assert back is not None
            self.assertEqual(back[1], b"hello")
            self.assertGreater(back[0], 0)
        await until(lambda: not local.clients and not len(local.session.associations))

    async def test_others(self) -> None:
        """What nobody waits for does not end a trip, and who is not the relay is not listened to."""
        server = self.startServer()
        local, echo = self.startLocal(server), self.echo()
        assert local.door is not None
        async with associate(clock, addressOf(local.door.address)) as way:
            self.assertIs(await way.trip(echo, b"hello", b"other".__eq__, 0.1), None)
            self.assertEqual(way.strange, 1)
            stranger, _ = self.application()
            stranger.send(Address("127.0.0.1", way.port.address.port), 5, b"hello")
            self.assertIs(await way.trip(Address("127.0.0.1", 9), b"x", b"hello".__eq__, 0.1), None)
            self.assertEqual(way.strange, 1)

    async def test_noServer(self) -> None:
        """A SOCKS5 server that is not there, or is none, is named in one line."""
        self.patch(trips, "PATIENCE_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            await self.assertNoWay(port, "opens no way for datagrams")
        await self.assertNoWay(port, "is udp-local running?")
        server = self.startServer()
        await self.assertNoWay(addressOf(server.listeners[0].address).port, "closed the connection")

    async def assertNoWay(self, port: int, text: str) -> None:
        """There is no way through this port, for this reason."""
        error: Exception | None = None
        try:
            async with associate(clock, Address("127.0.0.1", port)):
                self.fail("there is a way")
        except SocksError as caught:
            error = caught
        self.assertIn(f"127.0.0.1:{port}", str(error))
        self.assertIn(text, str(error))
        self.assertNotIn("\n", str(error))


class LinkTests(TunnelTestCase):
    """L{temporaryLink} and L{linkTrip}."""

    async def test_link(self) -> None:
        """A link is up while it is needed, its PINGs are answered, and then it is gone."""
        server = self.startServer()
        at = f"tcp:127.0.0.1:{addressOf(server.listeners[0].address).port}"
        async with temporaryLink(clock, LocalConfig(server=(at,))) as local:
            (link,) = local.session.links
            for _ in range(3):
                seconds = await linkTrip(clock, link)
                assert seconds is not None
                self.assertLess(0, seconds)
        await until(lambda: not server.report()["links"])
        self.assertIs(await linkTrip(clock, link), None)

    async def test_noLink(self) -> None:
        """Without a link it is said why, and nothing of it stays."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        link = temporaryLink(clock, LocalConfig(server=(f"tcp:127.0.0.1:{port}",)))
        error = await self.assertFailure(Deferred.fromCoroutine(link.__aenter__()), LoginError)  # type: ignore[arg-type]
        self.assertIn("refused", str(error))


class ReasonsTests(SynchronousTestCase):
    """L{Reasons}."""

    def test_lines(self) -> None:
        """The reason of a failed attempt is taken from the log, other lines are not."""
        reasons = Reasons()
        log = Logger(namespace="udptunnel.services.reconnecting", observer=reasons)
        log.info("udp-local: SOCKS5 at {at}", at="x")
        self.assertEqual((reasons.failed, reasons.last), (0, ""))
        log.info("no link: {error}", error="udp-server says: 'no'")
        Logger(namespace="other", observer=reasons).info("no link: {error}", error="of somebody else")
        self.assertEqual((reasons.failed, reasons.last), (1, "udp-server says: 'no'"))


class TemporaryTests(SynchronousTestCase):
    """L{temporary}."""

    def test_ports(self) -> None:
        """The way to the server stays, everything that another process could have taken goes."""
        forward = Forward(Address("127.0.0.1", 5353), Address("9.9.9.9", 53))
        config = LocalConfig(server=("tcp:x:1",), forward=(forward,), links=8, status="tcp:1", heartbeat=2.0)
        made = temporary(config)
        self.assertEqual((made.server, made.heartbeat), (("tcp:x:1",), 2.0))
        self.assertEqual((made.forward, made.links, made.status), ((), 1, None))

    def test_spread(self) -> None:
        """Times are shown in milliseconds."""
        self.assertEqual(spread([0.003, 0.001, 0.0015]), "least 1.00, median 1.50, most 3.00 ms")
