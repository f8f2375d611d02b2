"""Tests for L{udptunnel.core.session}."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import (
    NAME,
    TARGET_ADDRESS,
    TICKET,
    MemoryCarrier,
    OpenReception,
    Pair,
    countingRandom,
    feed,
    makeAssociation,
    makeParcel,
    plainFrames,
)
from tests.examples import EXAMPLES
from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.link import LinkLimits, LocalLink, ServerLink
from udptunnel.core.queue import BURST_BYTES
from udptunnel.core.session import WAITING_BYTES, WAITING_SECONDS, LocalSession, Membership, ServerSession
from udptunnel.errors import LoginError
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.frame import CLOSE, GOAWAY, KIND, PONG, TARGET, WELCOME, encode
from udptunnel.wire.greeting import Greeting, packWelcome, unpackGreeting

DNS = Address("9.9.9.9", 53)


def send(pair: Pair, association: Association, payload: bytes = b"x", now: float = 0.0) -> None:
    """Send a datagram from the local side, as L{udptunnel.services.local} does."""
    association.touch(TARGET_ADDRESS, now)
    pair.local.send([makeParcel(association, payload)], now)


def arrived(pair: Pair, association: Association) -> list[bytes]:
    """The datagrams of an association that came out at the server."""
    return [datagram for _, datagram in pair.outlets[association.number].datagrams]


def carried(pair: Pair, end: int) -> list[list[bytes]]:
    """The bodies of the DATA frames that wait to be carried from one end (0: local), for each link."""
    return [[body for word, _, _, body in carriers[end].takeFrames() if not word & KIND] for carriers in pair.carriers]


class WaitingTests(SynchronousTestCase):
    """Bursts without a link."""

    def test_waits(self) -> None:
        """A burst waits for the first link."""
        pair = Pair()
        association, _ = pair.open()
        send(pair, association, b"early")
        pair.greeted(now=WAITING_SECONDS)
        self.assertEqual(arrived(pair, association), [b"early"])

    def test_aSecond(self) -> None:
        """A burst does not wait longer than a second, not even if it has waited for a link that was lost before."""
        self.assertLess(WAITING_SECONDS + LinkLimits().queueAge, 1.0)
        pair = Pair()
        association, _ = pair.open()
        send(pair, association, b"old", now=0.0)
        send(pair, association, b"new", now=0.5)
        pair.greeted(now=1.1)
        self.assertEqual(arrived(pair, association), [b"new"])
        self.assertEqual(pair.localCounters.dropped, {"too old": 1})

    def test_forgotten(self) -> None:
        """What waited in vain is dropped even if no link ever comes."""
        pair = Pair()
        association, _ = pair.open()
        send(pair, association)
        pair.local.tick(1.1)
        self.assertEqual(pair.localCounters.dropped, {"too old": 1})

    def test_bounded(self) -> None:
        """No more waits than a mebibyte."""
        pair = Pair()
        association, _ = pair.open()
        pair.local.send([makeParcel(association, bytes(60000))] * 100, 0.0)
        self.assertGreater(pair.localCounters.dropped["queue full"], 100 - WAITING_BYTES // 60000 - 1)

    def test_theLastLinkEnds(self) -> None:
        """When the last link ends, bursts wait for another."""
        pair = Pair().greeted()
        association, _ = pair.open()
        pair.links[0][0].connectionLost(1.0)
        send(pair, association, b"x", now=1.0)
        pair.greeted(now=1.5)
        self.assertEqual(arrived(pair, association), [b"x"])


class AssociationsTests(SynchronousTestCase):
    """How associations begin and end."""

    def test_begin(self) -> None:
        """An association is open at once, and its outlet knows its number."""
        session, asked = LocalSession(10, Counters(), countingRandom()), []
        pair = Pair()

        def makeOutlet(number: int) -> object:
            asked.append(number)
            return pair.open()[1]

        association = session.begin(makeOutlet, 1.0)  # type: ignore[arg-type]
        self.assertEqual(asked, [association.number])
        self.assertIs(session.associations.get(association.number), association)
        self.assertEqual(association.used, 1.0)

    def test_theFirstBurstOpens(self) -> None:
        """The server opens an association when its first burst comes, and only once."""
        pair = Pair().greeted()
        association, _ = pair.open()
        self.assertEqual(len(pair.server.associations), 0)
        for payload in (b"a", b"b"):
            send(pair, association, payload)
            pair.pump()
        self.assertEqual(len(pair.server.associations), 1)
        self.assertEqual(arrived(pair, association), [b"a", b"b"])

    def test_answers(self) -> None:
        """An answer comes out where its question came in, with the address that it is from."""
        pair = Pair().greeted()
        association, outlet = pair.open()
        send(pair, association)
        pair.pump()
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        pair.server.send([makeParcel(theirs, b"answer", address=DNS)], 0.0)
        pair.pump()
        self.assertEqual(outlet.datagrams, [(DNS, b"answer")])

    def test_noExternalPort(self) -> None:
        """If the server can not open one more, it says so, and the local side ends it."""
        pair = Pair().greeted()
        pair.refusing = True
        association, outlet = pair.open()
        send(pair, association)
        pair.pump()
        self.assertEqual((outlet.closings, len(pair.local.associations)), (1, 0))
        self.assertEqual(pair.serverCounters.dropped, {"no external port": 1})

    def test_unknownAtTheLocalSide(self) -> None:
        """A burst for an association that the local side has ended ends it at the server, too."""
        pair = Pair().greeted()
        association, _ = pair.open()
        send(pair, association)
        pair.pump()
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        pair.local.associations.remove(association.number)
        pair.server.send([makeParcel(theirs)], 0.0)
        pair.pump()
        self.assertEqual(pair.outlets[association.number].closings, 1)
        self.assertEqual(pair.localCounters.dropped, {"no association": 1})

    def test_closed(self) -> None:
        """Closing at one end closes at the other, and tells each outlet once; a second time does nothing."""
        for end in (0, 1):
            pair = Pair().greeted()
            association, outlet = pair.open()
            send(pair, association)
            pair.pump()
            session = (pair.local, pair.server)[end]
            ours = session.associations.get(association.number) or self.fail("it is not open")
            session.close(ours)
            session.close(ours)
            self.assertEqual([frame[0] for frame in pair.carriers[0][end].takeFrames()], [CLOSE | ours.number])
            feed(pair.links[0][1 - end], encode(CLOSE | ours.number))
            pair.pump()
            self.assertEqual((outlet.closings, pair.outlets[0].closings), (1, 1))
            self.assertEqual((len(pair.local.associations), len(pair.server.associations)), (0, 0))

    def test_closedWhileWaiting(self) -> None:
        """What waits for an association that is closed does not follow its CLOSE, which would open it again."""
        for end in (0, 1):
            pair = Pair().greeted()
            association, _ = pair.open()
            send(pair, association)
            pair.pump()
            pair.carriers[0][0].full = True
            for _ in range(3):
                send(pair, association)
            self.assertTrue(pair.links[0][0].queue)
            if end:
                pair.local.closeReceived(association.number)
            else:
                pair.local.close(association)
            self.assertFalse(pair.links[0][0].queue)
            self.assertGreater(pair.localCounters.dropped["association closed"], 0)

    def test_unknown(self) -> None:
        """An association of which a session knows nothing can be closed without harm."""
        pair = Pair().greeted()
        pair.carriers[0][0].take()
        pair.local.close(makeAssociation(77))
        self.assertEqual(pair.carriers[0][0].take(), b"")

    def test_numbersAreNotReusedSoon(self) -> None:
        """A new association does not get the number of one that has just ended: late answers would go astray."""
        pair = Pair().greeted()
        seen = set()
        for now in range(300):
            association, _ = pair.open(now)
            seen.add(association.number)
            pair.local.close(association)
        self.assertEqual(len(seen), 300)

    def test_surplus(self) -> None:
        """One association too many ends the one that was silent longest; the other end is told."""
        pair = Pair(associations=3).greeted()
        opened = [pair.open(now) for now in (0.1, 0.2, 0.3)]
        for now, (association, _) in enumerate(opened):
            send(pair, association, now=0.4 + (now + 1) % 3 / 10)
        pair.pump(0.6)
        pair.open(1.0)
        pair.pump(1.0)
        self.assertEqual([outlet.closings for _, outlet in opened], [0, 0, 1])
        self.assertEqual(pair.outlets[opened[2][0].number].closings, 1)
        self.assertEqual((pair.localCounters.evicted, pair.localCounters.dropped), (1, {}))

    def test_surplusAtTheServer(self) -> None:
        """The server keeps to its own limit as well."""
        pair = Pair(granted=3).greeted()
        pair.local.associations.most = 100
        for now in range(10):
            send(pair, pair.open(now / 10)[0], now=now / 10)
            pair.pump(now / 10)
        self.assertEqual(len(pair.server.associations), 3)
        self.assertEqual(sorted(each.number for each in pair.local.associations), [7, 8, 9])

    def test_granted(self) -> None:
        """The local side holds no more associations than the server grants, even if it has more when it hears of it."""
        pair = Pair(associations=100, granted=4)
        for now in range(10):
            pair.open(now)
        pair.greeted(now=10.0)
        self.assertEqual(pair.local.associations.most, 4)
        pair.open(11.0)
        self.assertEqual(len(pair.local.associations), 4)

    def test_grantedMore(self) -> None:
        """The local side keeps its own limit if the server grants more, and at least one if it grants none."""
        for granted, most in ((1000, 100), (0, 1)):
            pair = Pair(associations=100, granted=granted).greeted()
            self.assertEqual(pair.local.associations.most, most)

    def test_idle(self) -> None:
        """After ten seconds of silence a DNS question is over, after five minutes anything else, at both ends."""
        for address, seconds in ((DNS, 10.0), (Address("192.0.2.1", 123), 10.0), (TARGET_ADDRESS, 300.0)):
            pair = Pair().greeted()
            association, outlet = pair.open(0.0)
            association.touch(address, 0.0)
            pair.local.send([makeParcel(association, address=address)], 0.0)
            pair.pump(0.0)
            for now in (seconds - 0.1, seconds):
                self.assertEqual((outlet.closings, pair.outlets[0].closings), (0, 0))
                pair.local.tick(now)
                pair.pump(now)
            self.assertEqual((outlet.closings, pair.outlets[0].closings), (1, 1))

    def test_idleAtTheServer(self) -> None:
        """The server ends what is idle even if the local side says nothing."""
        pair = Pair().greeted()
        association, outlet = pair.open(0.0)
        send(pair, association)
        pair.pump(0.0)
        for now in range(5, 300, 5):
            pair.server.tick(float(now))
            pair.pump(float(now))
        self.assertEqual(pair.outlets[0].closings, 0)
        pair.server.tick(300.0)
        pair.pump(300.0)
        self.assertEqual((outlet.closings, pair.outlets[0].closings), (1, 1))

    def test_answersCount(self) -> None:
        """An answer is a sign of life, too."""
        pair = Pair().greeted(now=249.0)
        association, _ = pair.open(0.0)
        feed(pair.links[0][0], encode(TARGET, body=packAddress(TARGET_ADDRESS)) + encode(0, 0, 1, b"x"), 250.0)
        self.assertEqual(association.used, 250.0)

    def test_end(self) -> None:
        """When a session ends, each outlet is told, and each connection is closed."""
        pair = Pair().greeted(links=2)
        outlets = [pair.open()[1] for _ in range(3)]
        pair.local.end()
        self.assertEqual([outlet.closings for outlet in outlets], [1, 1, 1])
        self.assertEqual(len(pair.local.associations), 0)
        self.assertTrue(all(local.aborted for local, _ in pair.carriers))


class LinksTests(SynchronousTestCase):
    """A session with several links."""

    def test_sticks(self) -> None:
        """A flow stays on its link, so that its datagrams do not overtake each other."""
        pair = Pair().greeted(links=3)
        association, _ = pair.open()
        for _ in range(5):
            send(pair, association, b"x")
        self.assertEqual(sorted(map(len, carried(pair, 0))), [0, 0, 5])

    def test_spreads(self) -> None:
        """Flows are spread over the links."""
        pair = Pair().greeted(links=3)
        associations = [pair.open()[0] for _ in range(9)]
        pair.local.send([makeParcel(each) for each in associations], 0.0)
        self.assertEqual([len(each) for each in carried(pair, 0)], [3, 3, 3])

    def test_sticksWhenLinksCome(self) -> None:
        """A new link does not draw the flows of the others over to it."""
        pair = Pair().greeted(links=2)
        associations = [pair.open()[0] for _ in range(6)]
        for each in associations:
            send(pair, each, bytes((each.number,)))
        before = carried(pair, 0)
        pair.connect()
        pair.pump()
        for each in associations:
            send(pair, each, bytes((each.number,)))
        self.assertEqual(carried(pair, 0), [*before, []])

    def test_moves(self) -> None:
        """When its link is gone, a flow goes on over another one, and stays there."""
        pair = Pair().greeted(links=3)
        association, _ = pair.open()
        send(pair, association, b"0")
        pair.pump()
        (way,) = [place for place, (local, _) in enumerate(pair.links) if local is pair.local.links[0]]
        pair.links[way][0].connectionLost(1.0)
        pair.links[way][1].connectionLost(1.0)
        for payload in (b"1", b"2"):
            send(pair, association, payload, now=1.0)
        ways = carried(pair, 0)
        self.assertEqual(ways[way], [])
        self.assertEqual(sorted(ways), [[], [], [b"1", b"2"]])

    def test_waitingMoves(self) -> None:
        """What waits for a link that goes is sent over the others, in order."""
        pair = Pair().greeted(links=2)
        association, _ = pair.open()
        way = association.number % 2
        pair.carriers[way][0].full = True
        for payload in (b"1", b"2", b"3"):
            send(pair, association, payload, now=1.0)
        self.assertEqual(carried(pair, 0)[way], [b"1"])
        pair.links[way][0].goAwayReceived("bye", 1.1)
        self.assertEqual(carried(pair, 0)[1 - way], [b"2", b"3"])

    def test_answersGoBack(self) -> None:
        """Answers come back on the link that the last request took: the server follows the local side."""
        pair = Pair().greeted(links=3)
        association, _ = pair.open()
        address = encode(TARGET, body=packAddress(TARGET_ADDRESS))
        for way in (1, 0, 2):
            feed(pair.links[way][1], address + encode(association.number, 0, 1, b"q"))
            theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
            pair.server.send([makeParcel(theirs, b"a")], 0.0)
            self.assertEqual([len(each) for each in carried(pair, 1)], [int(place == way) for place in range(3)])

    def test_answersAvoidLostLinks(self) -> None:
        """Answers to a request whose link is gone take another one."""
        pair = Pair().greeted(links=2)
        association, outlet = pair.open()
        send(pair, association)
        pair.pump()
        way = association.number % 2
        for link in pair.links[way]:
            link.connectionLost(1.0)
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        pair.server.send([makeParcel(theirs, b"answer")], 1.0)
        pair.pump(1.0)
        self.assertEqual(outlet.datagrams, [(TARGET_ADDRESS, b"answer")])

    def test_emptied(self) -> None:
        """The server's session with something in it is over some time after its last link is gone, not before."""
        pair = Pair(grace=60.0).greeted(links=2)
        send(pair, pair.open()[0])
        pair.pump()
        pair.links[0][1].connectionLost(1.0)
        self.assertIsNone(pair.server.parkedAt)
        pair.links[1][1].connectionLost(2.0)
        self.assertEqual((pair.server.parkedAt, pair.emptied), (2.0, 0))
        pair.server.tick(61.9)
        self.assertEqual(pair.emptied, 0)
        pair.server.tick(62.0)
        self.assertEqual(pair.emptied, 1)

    def test_closeTakesAnyLink(self) -> None:
        """CLOSE is said once, on one of the links; without any it is not said, and nothing breaks."""
        pair = Pair().greeted(links=2)
        first, second = pair.open()[0], pair.open()[0]
        pair.local.close(first)
        self.assertEqual(sum(len(local.takeFrames()) for local, _ in pair.carriers), 1)
        for local, _ in pair.links:
            local.connectionLost(1.0)
        pair.local.close(second)
        self.assertEqual(len(pair.local.associations), 0)

    def test_ticks(self) -> None:
        """Time reaches each link: a silent one is asked whether it lives."""
        pair = Pair().greeted(links=2)
        pair.local.tick(5.0)
        self.assertTrue(all(local.take() for local, _ in pair.carriers))

    def test_lateGreeting(self) -> None:
        """A limit that is lower on a second link holds from then on."""
        pair = Pair(associations=100).greeted()
        pair.local.membership.welcomed(Greeting(NAME, 7, 1), 0.0)
        self.assertEqual(pair.local.associations.most, 7)

    @settings(max_examples=max(10, EXAMPLES // 2), deadline=None)
    @given(
        st.integers(1, 4),
        st.lists(
            st.one_of(
                st.tuples(st.just("send"), st.integers(0, 4)),
                st.tuples(st.just("lose"), st.integers(0, 9)),
                st.tuples(st.just("connect"), st.just(0)),
            ),
            max_size=25,
        ),
    )
    def test_orderWithinAFlow(self, links: int, steps: list[tuple[str, int]]) -> None:
        """
        While links come and go, with time to deliver what is on its way, each flow's datagrams arrive once, in order.
        """
        pair = Pair().greeted(links=links)
        associations = [pair.open()[0] for _ in range(5)]
        sent: dict[int, list[bytes]] = {}
        for number, (step, which) in enumerate(steps):
            if step == "send":
                send(pair, associations[which], bytes((number,)))
                sent.setdefault(which, []).append(bytes((number,)))
            elif step == "connect":
                pair.connect()
            elif pair.local.links:
                link = pair.local.links[which % len(pair.local.links)]
                for end in next(ends for ends in pair.links if ends[0] is link):
                    end.connectionLost(0.0)
            pair.pump()
        if not pair.local.links:
            pair.greeted()
        for which, payloads in sent.items():
            self.assertEqual(arrived(pair, associations[which]), payloads)


SECOND_NAME = b"another session!"


def lose(pair: Pair, *ways: int, now: float = 1.0) -> None:
    """Some links break, or all of them; both ends notice."""
    for way in ways or range(len(pair.links)):
        for end in pair.links[way]:
            if not end.lost:
                end.connectionLost(now)


def loseAtLocal(pair: Pair, *ways: int, now: float = 1.0) -> None:
    """Some links break, or all of them; only udp-local notices yet, and nothing more is carried."""
    for way in ways or range(len(pair.links)):
        pair.links[way][0].connectionLost(now)
        for carrier in pair.carriers[way]:
            carrier.take()


def hello(pair: Pair, ticket: bytes | None = None, alone: bool = False) -> Greeting:
    """What udp-local would say on one more link."""
    greeting = pair.local.membership.hello()
    return greeting._replace(ticket=greeting.ticket if ticket is None else ticket, alone=alone)


def carry(pair: Pair, way: int, now: float, *ends: int) -> None:
    """Carry what waits at some ends of one link (0: local) to the other, once each, in this order."""
    for end in ends:
        if data := pair.carriers[way][end].take():
            feed(pair.links[way][1 - end], data, now)


class Door(OpenReception):
    """Lets in whoever shows a good ticket, as L{udptunnel.services.server} does, and the first one without."""

    begun = False

    def admit(self, greeting: Greeting, link: ServerLink) -> ServerSession:
        if self.begun and not self.session.resume(greeting, self.user, self.now):
            raise LoginError("this is not your session")
        self.begun = True
        session: ServerSession = self.session
        return session


class ResumptionTests(SynchronousTestCase):
    """How a session outlives its links."""

    def makeParked(self, links: int = 2, **limits: Any) -> tuple[Pair, Association]:
        """Two ends with an association that is open at both of them, all of whose links were lost after a second."""
        pair = Pair(**limits).greeted(links=links)
        association, _ = pair.open()
        send(pair, association, b"before")
        pair.pump()
        lose(pair, now=1.0)
        return pair, association

    def test_parked(self) -> None:
        """When all links are lost the session is parked: at both ends associations and their outlets stay."""
        pair, association = self.makeParked()
        self.assertEqual((pair.server.parkedAt, pair.emptied), (1.0, 0))
        self.assertEqual((len(pair.local.associations), len(pair.server.associations)), (1, 1))
        self.assertEqual(pair.outlets[association.number].closings, 0)

    def test_resumed(self) -> None:
        """With the ticket it goes on: the same outlets, in both directions, and both ends know it."""
        pair, association = self.makeParked()
        outlet = pair.outlets[association.number]
        pair.greeted(now=30.0)
        self.assertEqual((pair.server.resumed, pair.server.parkedAt), (True, None))
        self.assertEqual((pair.local.resumed, pair.local.lost), (1, 0))
        send(pair, association, b"after", now=30.0)
        pair.pump(30.0)
        self.assertIs(pair.outlets[association.number], outlet)
        self.assertEqual(arrived(pair, association), [b"before", b"after"])
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        pair.server.send([makeParcel(theirs, b"answer")], 30.0)
        pair.pump(30.0)
        ours: Any = association.outlet
        self.assertEqual(ours.datagrams, [(TARGET_ADDRESS, b"answer")])

    def test_welcome(self) -> None:
        """The WELCOME says whether the session went on, and brings a new ticket each time."""
        pair, tickets = Pair(), []
        for resumed in (False, True, True):
            pair.connect()
            carry(pair, -1, 0.0, 0)
            (word, target, size, body), *_ = plainFrames(pair.carriers[-1][1].written)
            greeting = unpackGreeting(target, size, body)
            self.assertEqual((word, greeting.resumed, greeting.session), (WELCOME, resumed, NAME))
            tickets.append(greeting.ticket)
            pair.pump()
            self.assertEqual(pair.local.membership.ticket, greeting.ticket)
        self.assertEqual(len({*tickets, b""}), 4)

    def test_oftenResumed(self) -> None:
        """It goes on as often as its links break, and each link that comes back alone counts."""
        pair, association = self.makeParked(links=1)
        for now in range(10, 100, 10):
            pair.greeted(links=2, now=now)
            send(pair, association, now=now)
            pair.pump(now)
            lose(pair, now=now + 1)
            self.assertEqual(pair.server.parkedAt, now + 1)
        self.assertEqual((pair.local.resumed, pair.local.lost, len(pair.outlets), pair.emptied), (9, 0, 1, 0))

    def test_answersWait(self) -> None:
        """What comes from targets while the session is parked waits for a moment, and then goes over the new link."""
        pair, association = self.makeParked()
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        for payload, now in ((b"too old", 2.0), (b"fresh", 2.5)):
            pair.server.send([makeParcel(theirs, payload)], now)
        pair.greeted(now=2.1 + WAITING_SECONDS)
        ours: Any = association.outlet
        self.assertEqual([payload for _, payload in ours.datagrams], [b"fresh"])

    def test_refused(self) -> None:
        """Another user, no ticket, or a wrong one: it does not go on, nothing is disturbed, the right one still may."""
        for parked in (True, False):
            pair = Pair().greeted(links=2)
            association, _ = pair.open()
            send(pair, association)
            pair.pump()
            if parked:
                lose(pair)
            before = list(pair.server.links), pair.server.parkedAt, pair.server.resumed
            right = hello(pair).ticket
            for user, ticket in (
                ("mallory", right),
                ("", b""),
                ("", bytes(32)),
                ("", right[:-1] + b"x"),
                ("", right[:-1]),
                ("mallory", b""),
            ):
                self.assertFalse(pair.server.resume(hello(pair, ticket, alone=True), user, 2.0))
                self.assertEqual((pair.server.links, pair.server.parkedAt, pair.server.resumed), before)
            self.assertFalse(any(server.aborted for _, server in pair.carriers))
            self.assertEqual((pair.outlets[0].closings, pair.emptied), (0, 0))
            self.assertTrue(pair.server.resume(hello(pair, right), "", 2.0))

    def test_users(self) -> None:
        """A session is its user's: with somebody else's name its ticket is worth nothing."""
        server = ServerSession(NAME, 9, Counters(), lambda *_: None, lambda _: None, countingRandom(), "alice", 60.0)
        ticket = server.welcome().ticket
        greeting = Greeting(NAME, 9, 1, ticket=ticket)
        for user in ("", "bob", "Alice", "alice "):
            self.assertFalse(server.resume(greeting, user, 0.0))
        self.assertTrue(server.resume(greeting, "alice", 0.0))

    def test_anOldTicket(self) -> None:
        """A ticket that was shown is void once its link is confirmed: whoever reads one later gets nothing."""
        pair = Pair().greeted()
        old = pair.local.membership.ticket
        pair.greeted()
        self.assertFalse(pair.server.resume(hello(pair, old, alone=True), "", 0.0))
        self.assertEqual(len(pair.server.links), 2)

    def test_graceIsOver(self) -> None:
        """After the grace time nobody may come back; the time runs from the last loss."""
        pair, _ = self.makeParked(grace=20.0)
        pair.greeted(now=15.0)
        pair.server.tick(30.0)
        pair.pump(30.0)
        lose(pair, now=31.0)
        pair.server.tick(50.9)
        self.assertEqual(pair.emptied, 0)
        pair.server.tick(51.0)
        self.assertEqual(pair.emptied, 1)

    def test_noGrace(self) -> None:
        """Without a grace time the session is over at the next look at the clock, if not before."""
        pair, _ = self.makeParked(grace=0.0)
        pair.server.tick(1.0)
        self.assertTrue(pair.emptied)

    def test_linksKeepIt(self) -> None:
        """While a link is up the grace time does not run."""
        pair = Pair(grace=1.0).greeted(links=2)
        lose(pair, 0)
        for now in range(2, 100):
            pair.server.tick(now)
            pair.pump(now)
        self.assertEqual(pair.emptied, 0)

    def test_idleWhileParked(self) -> None:
        """A parked session loses its idle associations as any other does."""
        pair, association = self.makeParked(grace=1000.0)
        pair.server.tick(299.0)
        self.assertEqual(pair.outlets[association.number].closings, 0)
        pair.server.tick(300.0)
        self.assertEqual(pair.outlets[association.number].closings, 1)

    def test_farewell(self) -> None:
        """After a farewell on the last link, whoever says it, the session is over at once: nobody will come back."""
        for end in (0, 1):
            pair = Pair().greeted()
            send(pair, pair.open()[0])
            pair.pump()
            pair.links[0][end].goAway("bye", 1.0)
            pair.pump(1.0)
            self.assertEqual((len(pair.server.associations), pair.emptied), (1, 1))

    def test_farewellOfOne(self) -> None:
        """A farewell on one of several links ends that link only; if the others are lost, the session is parked."""
        pair = Pair().greeted(links=2)
        send(pair, pair.open()[0])
        pair.pump()
        pair.links[0][0].goAway("bye", 1.0)
        pair.pump(1.0)
        self.assertEqual((len(pair.server.links), pair.server.parkedAt), (1, None))
        lose(pair, 1)
        self.assertEqual((pair.server.parkedAt, pair.emptied), (1.0, 0))

    def test_nothingToKeep(self) -> None:
        """A session without associations is not parked: there is nothing to come back for."""
        pair = Pair().greeted(links=2)
        association, _ = pair.open()
        send(pair, association)
        pair.pump()
        pair.local.close(association)
        pair.pump()
        lose(pair, 0)
        self.assertEqual(pair.emptied, 0)
        lose(pair, 1)
        pair.server.tick(2.0)
        self.assertTrue(pair.emptied)

    def test_neverConfirmed(self) -> None:
        """A session whose first WELCOME may not have arrived is over at once: nobody has a ticket for it."""
        pair = Pair()
        pair.connect()
        carry(pair, 0, 0.0, 0)
        burst = encode(TARGET, body=packAddress(TARGET_ADDRESS)) + encode(0, 0, 1, b"x")
        feed(pair.links[0][1], burst)
        self.assertEqual((pair.server.links, len(pair.server.associations)), ([pair.links[0][1]], 1))
        lose(pair)
        self.assertEqual(pair.emptied, 1)

    def test_confirmed(self) -> None:
        """The answer to the PING behind the WELCOME confirms it; any other frame does not."""
        for answered in (False, True):
            pair = Pair()
            send(pair, pair.open()[0])
            pair.connect()
            carry(pair, 0, 0.0, 0, 1)
            frames = pair.carriers[0][0].takeFrames()
            for word, target, size, body in frames:
                if word != PONG or answered:
                    feed(pair.links[0][1], encode(word, target, size, body))
            self.assertIn(PONG, [word for word, *_ in frames])
            lose(pair)
            self.assertEqual(pair.emptied, int(not answered))

    def test_confirmedByTicket(self) -> None:
        """Whoever shows the ticket of a WELCOME has seen it: the link that brought it stays, without any PONG."""
        pair = Pair()
        pair.connect()
        carry(pair, 0, 0.0, 0, 1)
        pong = pair.carriers[0][0].take()
        pair.connect()
        carry(pair, 1, 0.0, 0, 1)
        self.assertEqual(pair.server.links, [pair.links[0][1], pair.links[1][1]])
        feed(pair.links[0][1], pong)
        pair.pump()
        self.assertFalse(any(server.aborted for _, server in pair.carriers))

    def test_keptByTicket(self) -> None:
        """So the session is worth keeping from then on."""
        pair = Pair()
        send(pair, pair.open()[0])
        for way in (0, 1):
            pair.connect()
            carry(pair, way, 0.0, 0, 1)
        burst = encode(TARGET, body=packAddress(TARGET_ADDRESS)) + encode(0, 0, 1, b"x")
        feed(pair.links[0][1], burst)
        lose(pair)
        self.assertEqual((len(pair.server.associations), pair.emptied), (1, 0))

    def test_alone(self) -> None:
        """A HELLO of udp-local that knows no other link closes older ones: the server has not noticed their end yet."""
        pair = Pair().greeted(links=2)
        association, _ = pair.open()
        send(pair, association)
        pair.pump()
        loseAtLocal(pair)
        pair.connect(2.0)
        carry(pair, 2, 2.0, 0, 1)
        self.assertEqual(pair.server.links, [pair.links[2][1]])
        self.assertEqual([server.aborted for _, server in pair.carriers], [True, True, False])
        self.assertEqual((pair.server.parkedAt, pair.emptied, pair.outlets[0].closings), (None, 0, 0))
        self.assertEqual((pair.local.resumed, pair.local.lost), (1, 0))
        for _, old in pair.links[:2]:
            old.connectionLost(3.0)
        self.assertEqual((pair.server.parkedAt, pair.emptied), (None, 0))

    def test_aloneWithNothingToKeep(self) -> None:
        """A session that goes on with a link which closes all others is not over, even if it would not be parked."""
        for opened, grace in ((0, 60.0), (1, 60.0), (0, 0.0), (1, 0.0)):
            pair = Pair(grace=grace).greeted()
            for _ in range(opened):
                send(pair, pair.open()[0])
            pair.pump()
            loseAtLocal(pair)
            pair.greeted(now=2.0)
            self.assertEqual((pair.server.links, pair.server.parkedAt), ([pair.links[1][1]], None))
            self.assertEqual((len(pair.server.associations), pair.emptied), (opened, 0))

    def test_notAlone(self) -> None:
        """A HELLO of udp-local that has other links closes none."""
        pair = Pair().greeted(links=3)
        self.assertEqual(len(pair.server.links), 3)
        self.assertFalse(any(server.aborted for _, server in pair.carriers))

    def test_sameTicket(self) -> None:
        """Of two links that show the same ticket the earlier one is closed: its WELCOME was lost. Others stay."""
        pair = Pair().greeted()
        for way in (1, 2):
            pair.connect()
            carry(pair, way, 0.0, 0)
            loseAtLocal(pair, way)
        self.assertEqual(pair.server.links, [pair.links[0][1], pair.links[2][1]])
        pair.connect()
        pair.pump()
        self.assertEqual(pair.server.links, [pair.links[0][1], pair.links[3][1]])
        self.assertEqual([server.aborted for _, server in pair.carriers], [False, True, True, False])
        self.assertEqual(pair.local.links, [pair.links[0][0], pair.links[3][0]])

    def test_whatWaitsForARival(self) -> None:
        """What waits for a link that is closed so goes over the new one."""
        pair = Pair().greeted()
        association, _ = pair.open()
        send(pair, association)
        pair.pump()
        loseAtLocal(pair)
        pair.carriers[0][1].full = True
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        for payload in (b"gone", b"waits"):
            pair.server.send([makeParcel(theirs, payload)], 1.0)
        pair.carriers[0][1].take()
        pair.greeted(now=1.1)
        ours: Any = association.outlet
        self.assertEqual([payload for _, payload in ours.datagrams], [b"waits"])

    def test_lateConfirmation(self) -> None:
        """A PONG of a link that is not the newest confirms nothing: the ticket that udp-local may have stays good."""
        pair = Pair()
        pair.reception = Door(pair.server)
        send(pair, pair.open()[0])
        pair.connect()
        carry(pair, 0, 0.0, 0, 1)
        late = pair.carriers[0][0].take()
        self.assertIn(PONG, [word for word, *_ in plainFrames(late)])
        pair.connect()
        carry(pair, 1, 0.0, 0)
        feed(pair.links[0][1], late)
        loseAtLocal(pair, 0, 1)
        pair.greeted(now=2.0)
        self.assertEqual((pair.local.resumed, pair.local.lost, len(pair.server.links)), (1, 0, 1))

    def test_overtaken(self) -> None:
        """
        Two HELLOs with one ticket, of whose WELCOMEs only the one arrives that was written first: its ticket is good.

        The link that came by the other HELLO is nobody's, and goes.
        """
        pair = Pair().greeted()
        pair.reception = door = Door(pair.server)
        door.begun = True
        send(pair, pair.open()[0])
        pair.pump()
        loseAtLocal(pair, 0)
        pair.connect()
        pair.links[1][0].connectionLost(1.0)
        pair.connect()
        carry(pair, 2, 1.0, 0, 1)
        self.assertTrue(pair.links[2][0].up)
        carry(pair, 1, 1.0, 0)
        self.assertEqual((pair.server.links, pair.carriers[2][1].aborted), ([pair.links[1][1]], True))
        loseAtLocal(pair, 2)
        pair.connect(2.0)
        carry(pair, 3, 2.0, 0, 1, 0)
        self.assertEqual((pair.server.links, pair.carriers[1][1].aborted), ([pair.links[3][1]], True))
        self.assertEqual((pair.local.lost, pair.emptied, pair.outlets[0].closings), (0, 0, 0))

    def test_manyWelcomesLost(self) -> None:
        """However often a WELCOME is lost, the session is found with the ticket that did arrive."""
        pair = Pair().greeted()
        pair.reception = door = Door(pair.server)
        door.begun = True
        send(pair, pair.open()[0])
        pair.pump()
        for way in range(1, 40):
            loseAtLocal(pair, way - 1)
            pair.connect()
            carry(pair, way, 1.0, 0)
        loseAtLocal(pair, 39)
        pair.greeted(now=2.0)
        self.assertEqual((pair.local.lost, pair.emptied, len(pair.server.links)), (0, 0, 1))

    @settings(max_examples=max(10, EXAMPLES // 2), deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("connect"), st.just(0), st.just(0)),
                st.tuples(st.just("carry"), st.integers(0, 9), st.integers(0, 1)),
                st.tuples(st.just("lose"), st.integers(0, 9), st.integers(0, 2)),
            ),
            max_size=40,
        )
    )
    def test_anyLoss(self, steps: list[tuple[str, int, int]]) -> None:
        """
        Whenever links break, whatever is lost with them, and whichever end notices: the session that was up is found.

        Links come one after the other, as udp-local makes them.
        """
        pair = Pair(grace=1e9)
        pair.reception = Door(pair.server)
        pair.greeted()
        association, _ = pair.open()
        send(pair, association)
        pair.pump()
        for step, which, end in steps:
            coming = [local for local, _ in pair.links if not local.up and not local.lost]
            if step == "connect" and not coming:
                pair.connect()
            elif step == "carry":
                self.carryOne(pair, which % len(pair.links), end)
            elif step == "lose":
                for each, link in enumerate(pair.links[which % len(pair.links)]):
                    if end in (each, 2):
                        link.connectionLost(1.0)
        for local, _ in pair.links:
            if not local.up and not local.lost:
                local.connectionLost(2.0)
        pair.connect(2.0)
        for end in (0, 1):
            self.carryOne(pair, len(pair.links) - 1, end)
        self.assertTrue(pair.links[-1][0].up and pair.links[-1][1].up)
        self.assertEqual((pair.local.lost, pair.emptied, pair.outlets[0].closings), (0, 0, 0))

    def carryOne(self, pair: Pair, way: int, end: int) -> None:
        """Carry what waits at one end of a link; what a connection that is gone would bring is gone."""
        data, link = pair.carriers[way][end].take(), pair.links[way][1 - end]
        if data and not link.lost and not pair.carriers[way][1 - end].aborted and not pair.carriers[way][end].aborted:
            try:
                feed(link, data)
            except LoginError:
                # A HELLO that was overtaken by another one with its ticket. Nobody waits for the answer any more.
                self.assertTrue(pair.links[way][end].lost)


class MembershipTests(SynchronousTestCase):
    """What udp-local knows of its session at each server."""

    def join(self, pair: Pair, membership: Membership, now: float = 1.0) -> tuple[LocalLink, MemoryCarrier]:
        """One more link, to another server, which has not answered yet."""
        carrier = MemoryCarrier()
        link = LocalLink(carrier, pair.limits, pair.localCounters, now, membership, pair._welcomed)
        carrier.take()
        return link, carrier

    def welcome(self, name: bytes = SECOND_NAME, resumed: bool = False, ticket: bytes = TICKET) -> bytes:
        """What another server answers."""
        return packWelcome(Greeting(name, 100, 100, ticket=ticket, resumed=resumed))

    def test_hello(self) -> None:
        """A HELLO shows the ticket, and says whether there are other links there, and how bursts are to go."""
        pair = Pair(associations=77)
        self.assertEqual(pair.local.membership.hello(), Greeting(pair.local.name, 77, 1, alone=True))
        pair.local.idle = True
        pair.greeted()
        ticket = pair.local.membership.ticket
        self.assertEqual(pair.local.membership.hello(), Greeting(NAME, 77, 1, ticket=ticket, idle=True))
        self.assertEqual(len(ticket), 32)
        other = pair.local.newMembership()
        self.assertEqual(other.hello(), Greeting(other.name, 77, 1, alone=True, idle=True))
        lose(pair)
        self.assertEqual(pair.local.membership.hello(), Greeting(NAME, 77, 1, ticket=ticket, alone=True, idle=True))

    def test_repr(self) -> None:
        """What is seen of it in a log or a traceback is its name, and no ticket."""
        membership = Membership(Pair().local, NAME, b"T" * 32)
        for shown in (repr(membership), str(membership)):
            self.assertNotIn("TTT", shown)
            self.assertNotIn("LocalSession", shown)

    def test_names(self) -> None:
        """Each server gets another random name: two of them can not tell that they serve the same udp-local."""
        local = Pair().local
        names = {local.newMembership().name for _ in range(10)} | {local.membership.name}
        self.assertEqual(len(names), 11)

    def test_wanted(self) -> None:
        """A HELLO asks for what udp-local wants, even if it was granted less before."""
        pair = Pair(associations=77, granted=5).greeted()
        self.assertEqual((pair.local.associations.most, pair.local.membership.hello().associations), (5, 77))

    def test_anotherName(self) -> None:
        """The session is called what the server says."""
        pair = Pair()
        link, _ = self.join(pair, pair.local.membership)
        feed(link, self.welcome())
        membership = pair.local.membership
        self.assertEqual((membership.name, pair.local.name, membership.ticket), (SECOND_NAME, SECOND_NAME, TICKET))

    def test_noTicket(self) -> None:
        """A server that gives no ticket is joined again without one, even if it gave one before."""
        pair = Pair().greeted()
        lose(pair)
        link, _ = self.join(pair, pair.local.membership)
        feed(link, self.welcome(ticket=b""))
        link.connectionLost(1.0)
        self.assertEqual(pair.local.membership.hello().ticket, b"")

    def test_anotherServer(self) -> None:
        """While links to one server are up, a link to another is given up with a farewell; nothing else changes."""
        pair = Pair().greeted()
        other = pair.local.newMembership()
        self.refused(pair, other, self.welcome())
        self.assertEqual(other.ticket, b"")

    def test_anotherSession(self) -> None:
        """The same is true for a link to the same server which gave it another session."""
        pair = Pair().greeted()
        self.refused(pair, pair.local.membership, self.welcome())

    def refused(self, pair: Pair, membership: Membership, welcome: bytes) -> None:
        """A link to some server is refused when the WELCOME comes."""
        before = replace(pair.local.membership)
        link, carrier = self.join(pair, membership)
        self.assertRaises(LoginError, feed, link, welcome)
        self.assertEqual([word for word, *_ in carrier.takeFrames()], [GOAWAY])
        self.assertEqual((link.up, link.session, pair.local.links), (False, None, [pair.links[0][0]]))
        after = pair.local.membership
        self.assertEqual((after.name, after.ticket, pair.local.name), (before.name, before.ticket, NAME))
        self.assertEqual((pair.local.lost, pair.welcomed, pair.links[0][0].up), (0, 1, True))

    def test_farewellEmpties(self) -> None:
        """The server that is left so does not keep the session that it has begun."""
        pair, other = Pair().greeted(), Pair()
        link, carrier = self.join(pair, other.local.membership)
        membership = pair.local.newMembership()
        link, carrier = MemoryCarrier(), MemoryCarrier()
        local = LocalLink(link, pair.limits, pair.localCounters, 0.0, membership, lambda: None)
        server = ServerLink(carrier, other.limits, other.serverCounters, 0.0, other.reception)
        feed(server, link.take())
        self.assertRaises(LoginError, feed, local, carrier.take())
        feed(server, link.take())
        self.assertEqual((other.emptied, other.server.links), (1, []))

    def test_lost(self) -> None:
        """When the server has forgotten the session external ports have changed, which counts as lost."""
        pair = Pair().greeted()
        pair.open()
        self.assertEqual((pair.local.resumed, pair.local.lost), (0, 0))
        for times, name in enumerate((SECOND_NAME, NAME, NAME), 1):
            lose(pair)
            link, _ = self.join(pair, pair.local.membership)
            feed(link, self.welcome(name))
            self.assertEqual((pair.local.resumed, pair.local.lost), (0, times))
            link.connectionLost(2.0)

    def test_lostAtAnother(self) -> None:
        """It is lost as well when another server takes over that does not know it."""
        pair = Pair().greeted()
        pair.open()
        lose(pair)
        link, _ = self.join(pair, pair.local.newMembership())
        feed(link, self.welcome())
        self.assertEqual((pair.local.resumed, pair.local.lost), (0, 1))

    def test_nothingToLose(self) -> None:
        """Without associations nothing is lost with the session."""
        pair = Pair().greeted()
        lose(pair)
        link, _ = self.join(pair, pair.local.membership)
        feed(link, self.welcome())
        self.assertEqual((pair.local.resumed, pair.local.lost), (0, 0))

    def test_moreLinksCountNothing(self) -> None:
        """A second link to a session that is up neither resumes nor loses it."""
        pair = Pair().greeted(links=3)
        self.assertEqual((pair.local.resumed, pair.local.lost), (0, 0))

    def test_associationsStay(self) -> None:
        """Associations outlive a server that has forgotten them: their next burst opens new external ports."""
        pair, other = Pair().greeted(), Pair()
        association, outlet = pair.open()
        send(pair, association)
        pair.pump()
        lose(pair)
        other.local, other.localCounters = pair.local, pair.localCounters
        other.greeted(now=2.0)
        send(other, association, b"again", now=2.0)
        other.pump(2.0)
        self.assertEqual((arrived(other, association), outlet.closings, pair.local.lost), ([b"again"], 0, 1))

    def test_move(self) -> None:
        """When the server to move to has let us in, the others' links get a farewell, and bursts take the new one."""
        pair = Pair().greeted(links=2)
        association, _ = pair.open()
        pair.pump()
        better = pair.local.moving = pair.local.newMembership()
        link, carrier = self.join(pair, better)
        self.assertEqual(len(pair.local.links), 2)
        feed(link, self.welcome())
        self.assertEqual((pair.local.links, pair.local.membership, pair.local.moving), ([link], better, None))
        for local, _ in pair.carriers:
            self.assertEqual(([word for word, *_ in local.takeFrames()], local.closed), ([GOAWAY], True))
        self.assertEqual((pair.local.name, pair.local.lost, len(pair.local.associations)), (SECOND_NAME, 1, 1))
        carrier.take()
        send(pair, association, b"x")
        self.assertEqual([body for word, _, _, body in carrier.takeFrames() if not word & KIND], [b"x"])

    def test_moveEmpties(self) -> None:
        """The server that is left knows at once that its session is over."""
        pair = Pair().greeted(links=2)
        pair.local.moving = pair.local.newMembership()
        feed(self.join(pair, pair.local.moving)[0], self.welcome())
        pair.pump()
        self.assertEqual((pair.emptied, pair.server.links), (1, []))

    def test_whatWaitsMoves(self) -> None:
        """What waits for the former links goes over the new one."""
        pair = Pair().greeted()
        association, _ = pair.open()
        pair.carriers[0][0].full = True
        for payload in (b"gone", b"waits"):
            send(pair, association, payload, now=1.0)
        pair.local.moving = pair.local.newMembership()
        link, carrier = self.join(pair, pair.local.moving)
        feed(link, self.welcome(), 1.1)
        self.assertEqual([body for word, _, _, body in carrier.takeFrames() if not word & KIND], [b"waits"])

    def test_moveFails(self) -> None:
        """If the better server does not let us in, all stays as it is."""
        pair = Pair().greeted()
        pair.local.moving = pair.local.newMembership()
        link, _ = self.join(pair, pair.local.moving)
        self.assertRaises(LoginError, feed, link, encode(GOAWAY, body=b"no"))
        self.assertEqual((pair.local.links, pair.local.name), ([pair.links[0][0]], NAME))
        self.assertEqual(pair.carriers[0][0].take(), b"")


class ScheduleTests(SynchronousTestCase):
    """Which of several links a burst takes."""

    def ways(self, pair: Pair, end: int = 0) -> list[list[int]]:
        """The numbers of the bursts that wait to be carried from one end, for each link."""
        return [[body[0] for body in way] for way in carried(pair, end)]

    def makeIdle(self, links: int = 3, **limits: Any) -> tuple[Pair, Association]:
        """Two ends whose bursts are to go by the link that was silent longest, with an association open at both."""
        pair = Pair(**limits)
        pair.local.idle = True
        pair.greeted(links=links)
        association, _ = pair.open()
        send(pair, association, b"\xff")
        pair.pump()
        return pair, association

    def test_turns(self) -> None:
        """With the schedule "idle" each burst takes the link that was silent longest, of whatever flow it is."""
        pair, association = self.makeIdle()
        other, _ = pair.open()
        for number in range(9):
            send(pair, (association, other)[number % 2], bytes((number,)))
        first, second, third = sorted(self.ways(pair))
        self.assertEqual([first, second, third], [[0, 3, 6], [1, 4, 7], [2, 5, 8]])

    def test_turnsWithinARead(self) -> None:
        """Bursts that come at once are divided, too."""
        pair, association = self.makeIdle()
        pair.local.send([makeParcel(association, bytes((number,))) for number in range(9)], 0.0)
        self.assertEqual(sorted(self.ways(pair)), [[0, 3, 6], [1, 4, 7], [2, 5, 8]])

    def test_serverFollows(self) -> None:
        """The server sends answers the same way: the HELLO says so."""
        pair, association = self.makeIdle()
        self.assertTrue(pair.server.idle)
        theirs = pair.server.associations.get(association.number) or self.fail("it is not open")
        for number in range(6):
            pair.server.send([makeParcel(theirs, bytes((number,)))], 0.0)
        self.assertEqual(sorted(self.ways(pair, 1)), [[0, 3], [1, 4], [2, 5]])
        self.assertFalse(Pair().greeted().server.idle)

    def test_crowdedLinks(self) -> None:
        """A link before which something waits is left out, until nothing does."""
        pair, association = self.makeIdle()
        pair.carriers[1][0].full = True
        for number in range(9):
            send(pair, association, bytes((number,)))
        ways = self.ways(pair)
        self.assertEqual(list(map(len, ways)), [4, 1, 3] if len(ways[0]) == 4 else [3, 1, 4])
        self.assertEqual(pair.links[1][0].queue.bytes, BURST_BYTES + 1)
        pair.carriers[1][0].full = False
        pair.links[1][0].resumed(0.0)
        for number in range(9, 12):
            send(pair, association, bytes((number,)))
        self.assertTrue(all(self.ways(pair)))

    def test_allCrowded(self) -> None:
        """If something waits before each link, they still take turns: none gets all that waits."""
        pair, association = self.makeIdle()
        for local, _ in pair.carriers:
            local.full = True
        for number in range(30):
            send(pair, association, bytes((number,)))
        waiting = [link.queue.bytes // (BURST_BYTES + 1) for link, _ in pair.links]
        self.assertEqual(waiting, [9, 9, 9])

    def test_flow(self) -> None:
        """With the schedule "flow" a flow keeps to its link, however long that one is busy."""
        pair = Pair().greeted(links=3)
        association, _ = pair.open()
        send(pair, association, b"\0")
        (way,) = [place for place, each in enumerate(self.ways(pair)) if each]
        pair.carriers[way][0].full = True
        for number in range(1, 6):
            send(pair, association, bytes((number,)))
        self.assertEqual([each for place, each in enumerate(self.ways(pair)) if place != way], [[], []])
        self.assertEqual(pair.links[way][0].queue.bytes, 4 * (BURST_BYTES + 1))

    def makeLate(self, *late: int, links: int = 2) -> Pair:
        """Two ends, with some links whose other ends do not answer for a while."""
        pair = Pair().greeted(links=links)
        pair.local.idle = False
        pair.local.tick(5.0)
        for way in range(links):
            if way not in late:
                carry(pair, way, 5.0, 0, 1)
        pair.local.tick(6.1)
        for local, _ in pair.carriers:
            local.take()
        return pair

    def test_late(self) -> None:
        """A link whose other end is late to answer is left out."""
        pair = self.makeLate(1, links=3)
        associations = [pair.open(6.0)[0] for _ in range(6)]
        pair.local.send([makeParcel(each) for each in associations], 6.1)
        self.assertEqual(list(map(len, carried(pair, 0))), [3, 0, 3])

    def test_lateAndIdle(self) -> None:
        """That also holds for the schedule "idle"."""
        pair = self.makeLate(1, links=3)
        pair.local.idle = True
        association, _ = pair.open(6.0)
        for _ in range(6):
            send(pair, association, now=6.1)
        self.assertEqual(list(map(len, carried(pair, 0))), [3, 0, 3])

    def test_flowsMove(self) -> None:
        """The flows of a late link move to the others; those of the others stay."""
        pair = Pair().greeted(links=3)
        associations = [pair.open()[0] for _ in range(6)]
        pair.local.send([makeParcel(each, bytes((each.number,))) for each in associations], 0.0)
        before = self.ways(pair)
        pair.pump()
        pair.local.tick(5.0)
        for way in (0, 2):
            carry(pair, way, 5.0, 0, 1)
        pair.local.tick(6.1)
        carried(pair, 0)
        pair.local.send([makeParcel(each, bytes((each.number,))) for each in associations], 6.1)
        after = self.ways(pair)
        self.assertEqual(after[1], [])
        self.assertTrue(set(before[0]) < set(after[0]) and set(before[2]) < set(after[2]))
        self.assertEqual(sorted(each for way in after for each in way), list(range(6)))

    def test_inTimeAgain(self) -> None:
        """A link that has answered is used again."""
        pair = self.makeLate(1)
        pair.local.tick(7.0)
        feed(pair.links[1][0], encode(PONG, body=(5_000_000).to_bytes(8, "big") + bytes(8)), 7.0)
        pair.local.tick(8.0)
        carried(pair, 0)
        pair.local.send([makeParcel(pair.open(8.0)[0]) for _ in range(4)], 8.0)
        self.assertEqual(list(map(len, carried(pair, 0))), [2, 2])

    def test_allLate(self) -> None:
        """If all are late, all are used: there is nothing better. Each sends when it is answered."""
        pair = self.makeLate(0, 1)
        pair.local.send([makeParcel(pair.open(6.0)[0]) for _ in range(4)], 6.1)
        self.assertEqual(list(map(len, carried(pair, 0))), [0, 0])
        for near, _ in pair.links:
            feed(near, encode(PONG, body=(5_000_000).to_bytes(8, "big") + bytes(8)), 6.2)
        self.assertEqual(list(map(len, carried(pair, 0))), [2, 2])

    def test_waysAreForgotten(self) -> None:
        """Which link a flow took is forgotten with the association, whichever end closes it."""
        pair = Pair().greeted(links=2)
        for end in (0, 1):
            for _ in range(20):
                association, _ = pair.open()
                send(pair, association)
                pair.pump()
                session = (pair.local, pair.server)[end]
                session.close(session.associations.get(association.number) or self.fail("it is not open"))
                pair.pump()
        self.assertEqual((pair.local._ways, pair.server._ways), ({}, {}))
