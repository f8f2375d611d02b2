"""Tests for sessions that outlive their links, with both roles on real sockets."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from twisted.logger import LogLevel, capturedLogs

from tests.services.tunnel import Conversation, TunnelTestCase, cut, listenAt, newSecret, portOf
from tests.waiting import until
from udptunnel.core.link import Link
from udptunnel.services import local as local_module
from udptunnel.services import reconnecting as reconnecting_module
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.wire.greeting import SESSION_BYTES, TICKET_BYTES, Greeting


class ResumingTestCase(TunnelTestCase):
    """A conversation through both roles, which is to go on."""

    def setUp(self) -> None:
        self.talk = Conversation(self)

    async def begin(self, server: ServerService, links: int = 1, **fields: Any) -> LocalService:
        """udp-local with a link or more, and an external port."""
        local = self.startLocal(server, self.talk.target, links=links, **fields)
        await self.linksUp(local, links)
        # The server knows that its WELCOMEs have arrived.
        await until(lambda: all(each.link._confirmed for each in server.connections))  # type: ignore[union-attr]
        await self.talk.turn(local)
        return local

    async def interrupt(self, local: LocalService, server: ServerService) -> None:
        """All connections are reset, those of others too, and everybody comes back."""
        links, every, before = len(local.session.links), server.report()["links"], server.logins["accepted"]
        cut(server)
        await until(lambda: server.logins["accepted"] == before + every)
        await self.linksUp(local, links)


class ResumingTests(ResumingTestCase):
    """All links are lost, and the session goes on."""

    async def test_reset(self) -> None:
        """After a reset connection the target sees the same external port, and may go on talking to it."""
        local = await self.begin(server := self.startServer())
        await self.interrupt(local, server)
        await self.talk.hear(self.talk.external[0])
        await self.talk.turn(local)
        self.assertEqual(len(self.talk.external), 1)
        self.assertEqual((local.session.resumed, local.session.lost), (1, 0))
        self.assertEqual((server.resumed, len(server.sessions), server.egress.ports), (1, 1, 1))
        report = local.report()
        self.assertEqual((report["resumed"], report["mappingsLost"], server.report()["resumed"]), (1, 0, 1))

    async def test_resetHere(self) -> None:
        """The same if it is udp-local's end that breaks."""
        local = await self.begin(server := self.startServer())
        for link in list(local.session.links):
            link.carrier.abort()
        await until(lambda: server.resumed == 1 and local.session.links)
        await self.talk.turn(local)
        self.assertEqual((len(self.talk.external), local.session.resumed), (1, 1))

    async def test_again(self) -> None:
        """A session may be resumed as often as its links are lost, each time with another ticket."""
        local = await self.begin(server := self.startServer())
        tickets = {local.session.membership.ticket}
        for _ in range(5):
            await self.interrupt(local, server)
            await until(lambda: all(each.link._confirmed for each in server.connections))  # type: ignore[union-attr]
            tickets.add(local.session.membership.ticket)
        await self.talk.turn(local)
        self.assertEqual((server.resumed, local.session.resumed, local.session.lost), (5, 5, 0))
        self.assertEqual((len(self.talk.external), len(tickets), len(server.sessions)), (1, 6, 1))

    async def test_waiting(self) -> None:
        """What an application sends while no link is up arrives when one is, from the same port."""
        local = await self.begin(server := self.startServer())
        cut(server)
        await until(lambda: not local.session.links)
        await self.talk.turn(local)
        self.assertEqual((len(self.talk.external), local.counters.dropped), (1, {}))

    async def test_noGrace(self) -> None:
        """Without a grace time the external ports are lost with the links, and that is counted."""
        self.tickOften()
        local = await self.begin(server := self.startServer(resumeGrace=0.0))
        cut(server)
        await until(lambda: not server.egress.ports)
        await self.linksUp(local)
        await until(lambda: local.session.lost)
        await self.talk.turn(local)
        self.assertEqual(len(self.talk.external), 2)
        self.assertEqual((local.session.resumed, local.session.lost, server.resumed), (0, 1, 0))
        self.assertEqual(len(server.sessions), 1)

    async def test_noGraceAtOnce(self) -> None:
        """Then nothing is parked, not even until the clock is looked at next."""
        local = await self.begin(server := self.startServer(resumeGrace=0.0))
        await self.interrupt(local, server)
        self.assertEqual((local.session.resumed, local.session.lost, server.resumed), (0, 1, 0))

    async def test_graceOver(self) -> None:
        """Who comes back later than the grace time finds nothing; until then his ports are kept."""
        self.tickOften()
        self.patch(reconnecting_module, "FIRST_SECONDS", 0.6)
        local = await self.begin(server := self.startServer(resumeGrace=0.2))
        cut(server)
        await until(lambda: server.report()["parkedCount"] == 1)
        self.assertEqual(server.egress.ports, 1)
        await until(lambda: not server.sessions)
        self.assertEqual((server.egress.ports, local.session.links), (0, []))
        await self.linksUp(local)
        await self.talk.turn(local)
        self.assertEqual((len(self.talk.external), local.session.lost, local.report()["mappingsLost"]), (2, 1, 1))

    async def test_restart(self) -> None:
        """A server that was restarted does not know the session: one warning, a new session, and no more than that."""
        local = await self.begin(server := self.startServer())
        port = portOf(server)
        with capturedLogs() as events:
            await server.stopService()
            await until(lambda: not local.session.links)
            again = self.startServer(listenAt(port))
            await self.linksUp(local)
            await self.talk.turn(local)
            # The new session is as good as the old one.
            await self.interrupt(local, again)
            await self.talk.turn(local)
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual(len(warnings), 1)
        self.assertIn("mappings lost", warnings[0]["log_format"])
        self.assertFalse([event for event in events if event["log_level"] > LogLevel.warn])
        self.assertEqual((local.session.lost, local.session.resumed, again.resumed), (1, 1, 1))
        self.assertEqual(again.logins, {"accepted": 2})
        self.assertEqual(len(self.talk.external), 2)

    async def test_stopped(self) -> None:
        """When udp-local stops, its session is over at once, whatever the grace time."""
        local = await self.begin(server := self.startServer())
        await local.stopService()
        await until(lambda: not server.connections)
        self.assertEqual((server.sessions, server.egress.ports), ({}, 0))

    async def test_served(self) -> None:
        """While its links are lost, a session's ports take what comes, which waits for a moment for a link."""
        local = await self.begin(server := self.startServer())
        cut(server)
        await until(lambda: server.report()["parkedCount"] == 1)
        await self.talk.hear(self.talk.external[0])
        self.assertEqual((local.session.resumed, server.counters.dropped), (1, {}))


class SeveralLinksTests(ResumingTestCase):
    """Sessions with more than one link."""

    def greetings(self) -> list[Greeting]:
        """What the server is told from now on by those whom it admits."""
        seen: list[Greeting] = []
        admit = ServerService.admit

        def spy(service: ServerService, greeting: Greeting, connection: Any) -> Any:
            seen.append(greeting)
            return admit(service, greeting, connection)

        self.patch(ServerService, "admit", spy)
        return seen

    async def comeUp(self, links: int) -> None:
        """Links come up, each with a ticket, are lost all together, and come up again."""
        seen = self.greetings()
        local = await self.begin(server := self.startServer(), links)
        self.assertEqual(len(server.sessions), 1)
        self.assertEqual([len(each.ticket) for each in seen], [0] + [TICKET_BYTES] * (links - 1))
        self.assertEqual([each.alone for each in seen], [True] + [False] * (links - 1))
        await self.interrupt(local, server)
        await self.talk.turn(local)
        self.assertEqual((len(server.sessions), len(seen)), (1, 2 * links))
        self.assertEqual(len({each.ticket for each in seen}), 2 * links)
        # One interruption, however many links it took.
        self.assertEqual((local.session.resumed, server.resumed, local.session.lost), (1, 1, 0))
        self.assertEqual(len(self.talk.external), 1)

    async def test_two(self) -> None:
        """Two links come up, each with a ticket of its own, and so they do again."""
        await self.comeUp(2)

    async def test_four(self) -> None:
        """The same with four."""
        await self.comeUp(4)

    async def test_oneLost(self) -> None:
        """While a link is left nothing is parked or resumed; the lost one comes back beside it."""
        local = await self.begin(server := self.startServer(), 2)
        local.session.links[0].carrier.abort()
        await until(lambda: server.logins["accepted"] == 3 and len(local.session.links) == 2)
        await self.talk.turn(local)
        self.assertEqual((local.session.resumed, server.resumed, local.session.lost), (0, 0, 0))
        self.assertEqual((len(self.talk.external), len(server.sessions)), (1, 1))

    async def spread(self, schedule: str) -> tuple[list[int], list[int]]:
        """
        How many bursts of one flow each link takes: of 30 questions from udp-local, and of 30 answers and 30 more from
        udp-server.
        """
        local = await self.begin(server := self.startServer(), 3, schedule=schedule)
        offered: Counter[Link] = Counter()
        offer = Link.offer

        def spy(link: Link, parcels: Any, now: float) -> None:
            offered[link] += len(parcels)
            offer(link, parcels, now)

        self.patch(Link, "offer", spy)
        for _ in range(30):
            await self.talk.turn(local)
        for _ in range(30):
            await self.talk.hear(self.talk.external[0])
        (session,) = server.sessions.values()
        return [offered[link] for link in local.session.links], [offered[link] for link in session.links]

    async def test_idle(self) -> None:
        """With --schedule idle one flow uses all links, in turn, and so do its answers."""
        there, back = await self.spread("idle")
        self.assertEqual((there, back), ([10, 10, 10], [20, 20, 20]))

    async def test_flow(self) -> None:
        """With --schedule flow it keeps to one link, and its answers take the same."""
        there, back = await self.spread("flow")
        self.assertEqual((sorted(there), sorted(back)), ([0, 0, 30], [0, 0, 60]))
        self.assertEqual(there.index(30), back.index(60))


class StrangerTests(ResumingTestCase):
    """Somebody shows what is not his."""

    def secrets(self, *users: str) -> dict[str, str]:
        """A file with the secret of each user, and one for the server with all of them."""
        lines = {user: newSecret(user) for user in users}
        return {user: self.file(line) for user, line in lines.items()} | {"": self.file("".join(lines.values()))}

    async def begun(self, **fields: Any) -> tuple[ServerService, LocalService, dict[str, str]]:
        """Alice has a session."""
        files = self.secrets("alice", "bob")
        server = self.startServer(secrets=files[""], **fields)
        return server, await self.begin(server, secret=files["alice"]), files

    async def test_anotherUser(self) -> None:
        """Another user's ticket opens nothing: who shows it gets a session of his own, and disturbs nobody."""
        server, alice, files = await self.begun()
        bob = self.startLocal(server, self.talk.target, secret=files["bob"])
        stolen = alice.session.membership
        bob.servers.current.membership.name, bob.servers.current.membership.ticket = stolen.name, stolen.ticket
        await self.linksUp(bob)
        self.assertNotEqual(bob.session.name, alice.session.name)
        self.assertEqual(sorted(each.user for each in server.sessions.values()), ["alice", "bob"])
        self.assertEqual((bob.session.resumed, server.resumed, len(alice.session.links)), (0, 0, 1))
        # Her ticket is as good as before.
        await self.interrupt(alice, server)
        await self.talk.turn(alice)
        self.assertEqual((alice.session.resumed, len(self.talk.external)), (1, 1))

    async def test_guessed(self) -> None:
        """Nor does a wrong ticket, even of the same user; and a session that nobody knows is a new one."""
        server, alice, files = await self.begun()
        for name, ticket in ((alice.session.name, os.urandom(TICKET_BYTES)), (os.urandom(SESSION_BYTES), b"t" * 32)):
            other = self.startLocal(server, secret=files["alice"])
            other.servers.current.membership.name, other.servers.current.membership.ticket = name, ticket
            await self.linksUp(other)
            self.assertNotEqual(other.session.name, alice.session.name)
            self.assertEqual(other.session.resumed, 0)
        self.assertEqual((server.resumed, len(server.sessions)), (0, 3))
        await self.talk.turn(alice)
        self.assertEqual(len(self.talk.external), 1)


class WarningTests(ResumingTestCase):
    """What is said about lost mappings."""

    async def test_once(self) -> None:
        """Each loss is said once, however many links come up after it."""
        self.tickOften()
        local = await self.begin(server := self.startServer(resumeGrace=0.0), 3)
        with capturedLogs() as events:
            cut(server)
            await until(lambda: local.session.lost)
            await self.linksUp(local, 3)
        said = [event for event in events if event["log_namespace"] == local_module.LocalService._log.namespace]
        self.assertEqual(len([event for event in said if event["log_level"] is LogLevel.warn]), 1)
