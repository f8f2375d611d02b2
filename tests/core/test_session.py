"""Tests for L{udptunnel.core.session}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import NAME, TARGET_ADDRESS, Pair, feed, makeAssociation, makeParcel
from tests.examples import EXAMPLES
from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.session import WAITING_BYTES, WAITING_SECONDS, LocalSession
from udptunnel.wire.address import Address, packAddress
from udptunnel.wire.frame import CLOSE, KIND, TARGET, encode
from udptunnel.wire.greeting import Greeting

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
        """A burst does not wait longer than a second."""
        self.assertEqual(WAITING_SECONDS, 1.0)
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
        session, asked = LocalSession(NAME, 10, Counters()), []
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
        opened = [pair.open(now) for now in (1.0, 2.0, 3.0)]
        for now, (association, _) in enumerate(opened):
            send(pair, association, now=4.0 + (now + 1) % 3)
        pair.pump(5.0)
        pair.open(10.0)
        pair.pump(10.0)
        self.assertEqual([outlet.closings for _, outlet in opened], [0, 0, 1])
        self.assertEqual(pair.outlets[opened[2][0].number].closings, 1)
        self.assertEqual((pair.localCounters.evicted, pair.localCounters.dropped), (1, {}))

    def test_surplusAtTheServer(self) -> None:
        """The server keeps to its own limit as well."""
        pair = Pair(granted=3).greeted()
        pair.local.associations.most = 100
        for now in range(10):
            send(pair, pair.open(now)[0], now=now)
            pair.pump(now)
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
        pair = Pair().greeted()
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
        """The server's session is over when its last link is gone, not before."""
        pair = Pair().greeted(links=2)
        pair.links[0][1].connectionLost(1.0)
        self.assertEqual(pair.emptied, 0)
        pair.links[1][1].connectionLost(2.0)
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
        pair.local.linkUp(pair.local.links[0], Greeting(NAME, 7, 1), 0.0)
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
