"""Tests for L{udptunnel.services.servers}, and for how udp-local goes from one server to another."""

from __future__ import annotations

import dataclasses
from math import inf
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.services.tunnel import Conversation, TunnelTestCase, cut, freePort, listenAt, portOf
from tests.waiting import until
from udptunnel.core.counters import Counters
from udptunnel.core.session import LocalSession
from udptunnel.errors import RefusedError
from udptunnel.services import local as local_module
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.services.servers import HANDICAP_SECONDS, MARGIN_SECONDS, Server, Servers


class ServersTestCase(SynchronousTestCase):
    """Servers whose logins the test decides."""

    names = ("a", "b", "c")

    def setUp(self) -> None:
        self.clock = Clock()
        self.logins: dict[str, Deferred[str]] = {}
        self.cancelled: list[str] = []
        self.whenCancelled: Exception | None = None
        session, nowhere = LocalSession(1, Counters(), countingRandom()), object()
        every = [
            Server(name, place, nowhere, session.newMembership())  # type: ignore[arg-type]
            for place, name in enumerate(self.names)
        ]
        self.servers: Servers[str] = Servers(self.clock, every, self.login)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def login(self, server: Server) -> Deferred[str]:
        """Somebody logs in; the test says when that has succeeded."""

        def cancel(login: Deferred[str]) -> None:
            self.cancelled.append(server.text)
            if self.whenCancelled is not None:
                login.errback(self.whenCancelled)

        self.logins[server.text] = Deferred(cancel)
        return self.logins[server.text]

    def nearest(self) -> Deferred[str]:
        """Look for the nearest one."""
        return Deferred.fromCoroutine(self.servers.nearest())

    def letIn(self, name: str) -> None:
        """A server lets us in."""
        self.logins[name].callback(f"in at {name}")

    def at(self, name: str) -> Server:
        """A server."""
        return next(each for each in self.servers.all if each.text == name)


class NearestTests(ServersTestCase):
    """Who is chosen."""

    def test_first(self) -> None:
        """If the first in the list answers soon, nobody else is asked."""
        chosen = self.nearest()
        self.assertEqual(list(self.logins), ["a"])
        self.clock.advance(HANDICAP_SECONDS - 0.01)
        self.letIn("a")
        self.assertEqual(self.successResultOf(chosen), "in at a")
        self.assertEqual((list(self.logins), self.servers.current.text), (["a"], "a"))

    def test_handicap(self) -> None:
        """Each is asked a little later than the one before it in the list."""
        chosen = self.nearest()
        asked = []
        for _ in range(3):
            asked.append(list(self.logins))
            self.clock.advance(HANDICAP_SECONDS)
        self.assertEqual(asked, [["a"], ["a", "b"], ["a", "b", "c"]])
        self.letIn("b")
        self.successResultOf(chosen)

    def test_fastest(self) -> None:
        """The first that lets us in is used; the others are given up, or not even asked."""
        chosen = self.nearest()
        self.clock.advance(HANDICAP_SECONDS)
        self.letIn("b")
        self.assertEqual(self.successResultOf(chosen), "in at b")
        self.assertEqual(self.cancelled, ["a"])
        self.clock.advance(10)
        self.assertEqual((list(self.logins), self.servers.current.text), (["a", "b"], "b"))

    def test_oneFails(self) -> None:
        """One that fails does not keep us from the others."""
        chosen = self.nearest()
        self.logins["a"].errback(ConnectionRefusedError("nobody there"))
        self.assertNoResult(chosen)
        self.clock.advance(HANDICAP_SECONDS)
        self.letIn("b")
        self.assertEqual(self.successResultOf(chosen), "in at b")
        self.assertEqual((self.at("a").seconds, self.servers.current.text), (inf, "b"))

    def test_allFail(self) -> None:
        """When nobody lets us in, the first one's reason is told, whenever it came."""
        chosen = self.nearest()
        self.clock.advance(2 * HANDICAP_SECONDS)
        for name in ("c", "a", "b"):
            self.assertNoResult(chosen)
            self.logins[name].errback(RefusedError(f"{name} says no"))
        self.assertEqual(str(self.failureResultOf(chosen, RefusedError).value), "a says no")
        self.assertEqual([each.seconds for each in self.servers.all], [inf] * 3)

    def test_cancelled(self) -> None:
        """Whoever looks no longer leaves nothing behind, and nobody is taken for dead because of it."""
        chosen = self.nearest()
        self.clock.advance(HANDICAP_SECONDS)
        chosen.cancel()
        self.failureResultOf(chosen, CancelledError)
        self.assertEqual(sorted(self.cancelled), ["a", "b"])
        self.assertEqual([each.seconds for each in self.servers.all], [HANDICAP_SECONDS, 0.0, 0.0])

    def lose(self, how: Exception | None) -> float:
        """The first one takes half a second in vain, for the second is faster; tells what is known of the first."""
        self.whenCancelled = how
        chosen = self.nearest()
        self.clock.advance(0.5)
        self.letIn("b")
        self.assertEqual(self.successResultOf(chosen), "in at b")
        self.assertEqual(self.cancelled[-1], "a" if len(self.logins) == 2 else "c")
        return self.at("a").seconds

    def test_losers(self) -> None:
        """A loser is not taken for down, however its attempt is given up: it takes at least as long as we waited."""
        for how in (None, CancelledError(), ConnectingCancelledError(None)):
            self.at("a").seconds = 0.0
            self.assertAlmostEqual(self.lose(how), 0.5)

    def test_loserMeasured(self) -> None:
        """What was measured before is not made less of by a shorter wait; one that was down may be so still."""
        for before in (2.0, inf):
            self.at("a").seconds = before
            self.assertEqual(self.lose(ConnectingCancelledError(None)), before)

    def test_again(self) -> None:
        """All are asked again next time, those that have failed too."""
        chosen = self.nearest()
        self.logins["a"].errback(ConnectionRefusedError("nobody there"))
        self.clock.advance(HANDICAP_SECONDS)
        self.letIn("b")
        self.successResultOf(chosen)
        self.logins.clear()
        chosen = self.nearest()
        self.letIn("a")
        self.assertEqual(self.successResultOf(chosen), "in at a")
        self.assertEqual(self.servers.current.text, "a")


class BetterTests(ServersTestCase):
    """Whether to look for another one."""

    def use(self, name: str, seconds: float) -> None:
        """Log in somewhere, and take so long."""
        Deferred.fromCoroutine(self.servers.login(self.at(name)))
        self.clock.advance(seconds)
        self.letIn(name)

    def better(self) -> list[str]:
        """Those that may be better."""
        return [each.text for each in self.servers.better()]

    def test_seconds(self) -> None:
        """How long logging in took is remembered, and counts with the place in the list."""
        self.use("b", 0.25)
        self.assertAlmostEqual(self.at("b").seconds, 0.25)
        self.assertAlmostEqual(self.at("b").cost, 0.25 + HANDICAP_SECONDS)

    def test_near(self) -> None:
        """Nothing is better than the first of the list if that is near."""
        self.use("a", 0.05)
        self.assertEqual(self.better(), [])

    def test_back(self) -> None:
        """Whoever stands before the one in use may be back, even if it has failed; those behind it are no better."""
        self.at("a").seconds = inf
        self.use("b", 0.01)
        self.assertEqual(self.better(), ["a"])

    def test_far(self) -> None:
        """If the one in use is far away, one that stands behind it may be better."""
        self.use("a", 0.15)
        self.assertEqual(self.better(), ["b"])
        self.use("a", 0.5)
        self.assertEqual(self.better(), ["b", "c"])

    def test_margin(self) -> None:
        """A hair's breadth is not worth a move."""
        self.use("a", HANDICAP_SECONDS + 0.01)
        self.assertEqual(self.better(), [])

    def test_loser(self) -> None:
        """Who has lost by more than the margin is no better: nobody moves there only to move back."""
        chosen = self.nearest()
        self.clock.advance(HANDICAP_SECONDS)
        self.letIn("b")
        self.successResultOf(chosen)
        self.assertEqual(self.better(), [])

    def test_patience(self) -> None:
        """Logging in elsewhere may take as long as it would be worth the move, and not at all if it never is."""
        self.use("b", 0.3)
        patience = [self.servers.patience(self.at(name)) for name in "ac"]
        self.assertAlmostEqual(patience[0], 0.3 + HANDICAP_SECONDS - MARGIN_SECONDS)
        self.assertAlmostEqual(patience[1], 0.3 - HANDICAP_SECONDS - MARGIN_SECONDS)
        self.use("a", 0.01)
        self.assertEqual(self.servers.patience(self.at("b")), 0.0)

    def test_noSwing(self) -> None:
        """Of two that are equally far we do not swing to and fro: what was measured counts, if it was measured."""
        self.at("c").seconds = inf
        moves = 0
        self.use("a", 0.4)
        for _ in range(10):
            for name in [each for each in self.better() if each != "c"][:1]:
                self.use(name, 0.4)
                moves += 1
        self.assertLessEqual(moves, 2)


class MovingTests(TunnelTestCase):
    """udp-local with two real servers."""

    def setUp(self) -> None:
        self.talk = Conversation(self)
        self.patch(local_module, "QUIET_SECONDS", 0.1)
        self.patch(local_module, "LOOK_SECONDS", 0.1)

    def startBoth(self, **fields: Any) -> tuple[ServerService, ServerService]:
        """Two servers; the first can close its door and open it again."""
        return self.startServer(listenAt(freePort()), **fields), self.startServer(**fields)

    def startBetween(self, *servers: ServerService, **fields: Any) -> LocalService:
        """udp-local with both."""
        texts = tuple(f"tcp:127.0.0.1:{portOf(each)}" for each in servers)
        return self.startLocal(servers[0], self.talk.target, server=texts, **fields)

    def using(self, local: LocalService, server: ServerService) -> bool:
        """Whether all links lead to a server, and it knows of them."""
        here = local.servers.current.text.endswith(f":{portOf(server)}")
        return here and sum(len(each.links) for each in server.sessions.values()) == len(local.session.links) > 0

    async def shut(self, server: ServerService) -> None:
        """A server closes its door, loses its links, and keeps everything else."""
        await server.listeners[0].stop()
        cut(server)

    def reopen(self, server: ServerService) -> None:
        """It opens the door again, at the same place."""
        server.listeners[0].start(True)

    async def test_first(self) -> None:
        """The first in the list is used if both are well; the other never hears of us."""
        first, second = self.startBoth()
        local = self.startBetween(first, second)
        await self.linksUp(local)
        await self.talk.turn(local)
        self.assertTrue(self.using(local, first))
        self.assertEqual((second.logins, local.report()["server"]), ({}, local.servers.all[0].text))

    async def test_failOver(self) -> None:
        """When the first one falls silent, the second is used within three heartbeats and a little."""
        self.patch(local_module, "QUIET_SECONDS", 60.0)
        first, second = self.startBoth()
        local = self.startBetween(first, second, heartbeat=0.5)
        await self.linksUp(local)
        await self.talk.turn(local)
        for connection in first.connections:
            # Nothing is read there any more, and nothing written; nor is anybody let in.
            connection.transport.pauseProducing()
            connection.link.carrier.write = lambda buffers: True  # type: ignore[union-attr,method-assign]
        await first.listeners[0].stop()
        clock: Any = reactor
        begin = clock.seconds()
        await until(lambda: self.using(local, second))
        self.assertLess(clock.seconds() - begin, 3 * 0.5 + 1.0)
        await self.talk.turn(local)
        self.assertEqual((len(self.talk.external), local.session.lost), (2, 1))

    async def test_back(self) -> None:
        """
        When the first one is back and nobody minds, the link moves back there: the second one's session is over at
        once, and what the first one has parked is found again.
        """
        self.tickOften()
        first, second = self.startBoth()
        local = self.startBetween(first, second)
        await self.linksUp(local)
        await until(lambda: all(each.link._confirmed for each in first.connections))  # type: ignore[union-attr]
        await self.talk.turn(local)
        await self.shut(first)
        await until(lambda: self.using(local, second))
        await self.talk.turn(local)
        self.assertEqual((first.report()["parkedCount"], local.session.lost, len(second.sessions)), (1, 1, 1))
        self.reopen(first)
        await until(lambda: self.using(local, first))
        await until(lambda: not second.connections)
        self.assertEqual((second.sessions, second.egress.ports, local.session.resumed), ({}, 0, 1))
        await self.talk.turn(local)
        # The link that was made to find out is the one that is used.
        await until(lambda: local._spare is None and not local._turn.locked)
        self.assertEqual((first.logins, len(local.session.links)), ({"accepted": 2}, 1))
        before, between, after = self.talk.external
        self.assertEqual((before, first.resumed), (after, 1))
        self.assertNotEqual(before, between)

    async def test_severalLinks(self) -> None:
        """All links move, the first one alone and the others after it."""
        self.tickOften()
        first, second = self.startBoth()
        local = self.startBetween(first, second, links=3)
        await self.linksUp(local, 3)
        await self.shut(first)
        await until(lambda: len(local.session.links) == 3 and self.using(local, second))
        self.assertEqual(len(second.sessions), 1)
        self.reopen(first)
        await until(lambda: len(local.session.links) == 3 and self.using(local, first))
        await until(lambda: not second.connections)
        self.assertEqual((second.sessions, len(first.sessions)), ({}, 1))
        await self.talk.turn(local)

    async def test_notWhileBusy(self) -> None:
        """While datagrams flow, nothing moves."""
        self.tickOften()
        self.patch(local_module, "QUIET_SECONDS", 0.5)
        first, second = self.startBoth()
        local = self.startBetween(first, second)
        await self.linksUp(local)
        await self.shut(first)
        await until(lambda: self.using(local, second))
        self.reopen(first)
        clock: Any = reactor
        begin = clock.seconds()
        while clock.seconds() - begin < 1.0:
            await self.talk.turn(local)
        self.assertTrue(self.using(local, second))
        self.assertEqual(first.logins, {"accepted": 1})
        await until(lambda: self.using(local, first))

    async def test_notBack(self) -> None:
        """As long as the first one is not back, looking for it disturbs nobody."""
        self.tickOften()
        first, second = self.startBoth()
        local = self.startBetween(first, second)
        await self.linksUp(local)
        await self.shut(first)
        await until(lambda: self.using(local, second))
        await self.talk.turn(local)
        asked = []
        login = local.servers._login
        local.servers._login = lambda server: (asked.append(server.text), login(server))[1]  # type: ignore[func-returns-value]
        await until(lambda: len(asked) == 3)
        await until(lambda: local._looking is None)
        await self.talk.turn(local)
        self.assertEqual(set(asked), {local.servers.all[0].text})
        self.assertEqual((len(self.talk.external), second.logins), (1, {"accepted": 1}))
        self.assertTrue(self.using(local, second))

    async def test_hangs(self) -> None:
        """A better server that takes our connection and says nothing keeps no link from coming back."""
        self.tickOften()
        first, second = self.startBoth()
        local = self.startBetween(first, second)
        local.limits = dataclasses.replace(local.limits, login=3.0)
        await self.linksUp(local)
        await self.shut(first)
        await until(lambda: self.using(local, second))
        silent = await serverFromString(reactor, first.config.listen[0]).listen(Factory.forProtocol(Protocol))
        self.addCleanup(silent.stopListening)
        await until(lambda: len(local._links) > len(local.session.links))
        clock: Any = reactor
        begin = clock.seconds()
        cut(second)
        await until(lambda: not local.session.links)
        await until(lambda: self.using(local, second))
        self.assertLess(clock.seconds() - begin, 1.5)
