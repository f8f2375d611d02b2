"""Tests for L{udptunnel.net.egress}."""

from __future__ import annotations

import gc
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.needs import needs
from udptunnel.core.acl import AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.session import ServerSession
from udptunnel.errors import ListenError, ResolveError
from udptunnel.net import egress as egress_module
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.egress import NOT_NOW, ROUTE_SECONDS, WAITING_BURSTS, DirectEgress, ExternalPort, Filtering
from udptunnel.net.offload import Offload
from udptunnel.net.platforms import resource
from udptunnel.net.testing import PortReactor, RecordingLink, RecordingReceiver
from udptunnel.wire.address import Address, packAddress, unpackAddress
from udptunnel.wire.burst import Burst, count
from udptunnel.wire.frame import CLOSE, encode


class FakeNames:
    """Names whose addresses the test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, Deferred[tuple[str, ...]]]] = []

    def resolve(self, name: str, asker: Any) -> Deferred[tuple[str, ...]]:
        answer: Deferred[tuple[str, ...]] = Deferred()
        self.asked.append((name, asker, answer))
        return answer


class EgressTestCase(SynchronousTestCase):
    """An egress that may send to loopback addresses, and a target there."""

    allow: tuple[str, ...] = ("127.0.0.0/8", "::1")
    mostPorts = 10
    filtering = Filtering()

    def setUp(self) -> None:
        self.reactor, self.counters, self.names = PortReactor(), Counters(), FakeNames()
        self.own: list[str] = []
        self.traffic = Traffic(self.reactor, Offload(), self.counters)
        self.egress: DirectEgress = self.makeEgress()
        self.session = self.makeSession()
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.target, self.received = self.makeTarget()
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.session.end)
        self.addCleanup(self.target.stopListening)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.egress.ports, 0)

    def makeEgress(self) -> DirectEgress:
        """An egress; what it believes to be its own hosts stands in C{own}."""
        names: Any = self.names
        rules = AccessRules(self.allow)
        return DirectEgress(
            self.traffic, self.reactor, rules, names, self.mostPorts, lambda host: host in self.own, self.filtering
        )

    def makeSession(self) -> ServerSession:
        """A session whose associations have external ports."""
        return ServerSession(
            b"s" * 16, 100, self.counters, self.egress.openOutlet, lambda session: None, countingRandom()
        )

    def makeTarget(self, host: str = "127.0.0.1") -> tuple[DatagramPort, RecordingReceiver]:
        """Somebody to send to."""
        receiver = RecordingReceiver()
        port = DatagramPort(Traffic(self.reactor, Offload(), Counters()), Address(host, 0), receiver)
        port.startListening()
        return port, receiver

    def open(self, number: int = 1) -> ExternalPort:
        """The external port of an association."""
        association = self.session.find(number, self.link, self.reactor.seconds())
        assert association is not None
        outlet: Any = association.outlet
        return outlet  # type: ignore[no-any-return]

    def assertArrives(self, *datagrams: bytes) -> None:
        """These datagrams are at the target, and no others."""
        self.reactor.until(lambda: len(self.received.datagrams) >= len(datagrams))
        self.reactor.turn()
        self.assertEqual(self.received.datagrams, list(datagrams))
        self.received.calls.clear()


class ExternalPortTests(EgressTestCase):
    """L{ExternalPort}."""

    def test_freed(self) -> None:
        """When an association is closed, nothing of its port waits for the collector."""
        self.open()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.session.closeReceived(1)
        self.assertEqual([each for each in gc.get_objects() if isinstance(each, ExternalPort)], [])

    def test_there(self) -> None:
        """A burst goes to its target; all bursts of an association come from one port."""
        outlet = self.open()
        outlet.send(self.target.address, 3, b"abcdefgh")
        outlet.send(self.target.address, 0, b"")
        self.reactor.until(lambda: len(self.received.datagrams) >= 4)
        self.assertEqual({source.port for source in self.received.sources}, {outlet.address.port})
        self.assertArrives(b"abc", b"def", b"gh", b"")

    def test_back(self) -> None:
        """An answer goes to the session with its source, be that the target or a stranger (full cone)."""
        outlet = self.open()
        stranger, _ = self.makeTarget("127.0.0.1")
        self.addCleanup(stranger.stopListening)
        for port in (self.target, stranger):
            port.send(("127.0.0.1", outlet.address.port), 2, b"abcd")
            self.reactor.until(lambda: len(self.link.parcels) > 0)
            self.assertEqual(self.link.parcels, [(1, port.address, 2, b"abcd")])
            self.link.parcels.clear()

    def test_ipv6(self) -> None:
        """The same port reaches IPv6 targets, where this machine has IPv6."""
        try:
            six, received = self.makeTarget("::1")
        except ListenError:
            raise SkipTest("this machine has no IPv6 loopback address") from None
        self.addCleanup(six.stopListening)
        outlet = self.open()
        outlet.send(six.address, 3, b"abc")
        outlet.send(self.target.address, 3, b"abc")
        self.reactor.until(lambda: bool(received.bursts and self.received.bursts))
        self.assertEqual(received.bursts[0].source, Address("::1", outlet.address.port))
        self.assertEqual(self.received.bursts[0].source, Address("127.0.0.1", outlet.address.port))

    def test_associations(self) -> None:
        """Each association has a port of its own."""
        self.assertNotEqual(self.open(1).address.port, self.open(2).address.port)
        self.assertIs(self.open(1), self.open(1))
        self.assertEqual(self.egress.ports, 2)

    def test_closed(self) -> None:
        """With the association its port is closed, and counts no longer."""
        self.open()
        self.session.closeReceived(1)
        self.assertEqual(self.egress.ports, 0)
        self.assertEqual(self.reactor.getReaders(), [self.target])


class StrangersTestCase(EgressTestCase):
    """An external port that has sent to the target, and others that send to it."""

    def setUp(self) -> None:
        super().setUp()
        self.outlet = self.open()
        self.outlet.send(self.target.address, 1, b"x")
        self.assertArrives(b"x")

    def sendsBack(self, port: DatagramPort, payload: bytes = b"answer") -> None:
        """Somebody sends to the external port."""
        host = "::1" if ":" in port.address.host else "127.0.0.1"
        port.send((host, self.outlet.address.port), len(payload), payload)

    def assertComeIn(self, *payloads: bytes) -> None:
        """What was sent has come in, or was dropped: some of it must have come in, in this order."""
        self.reactor.turn()
        self.assertEqual([payload for *_, payload in self.link.parcels], list(payloads))
        self.link.parcels.clear()

    def stranger(self, host: str) -> DatagramPort:
        """Somebody to whom nothing was sent."""
        port, _ = self.makeTarget(host)
        self.addCleanup(port.stopListening)
        return port


class PortFilteringTests(StrangersTestCase):
    """Who may send to an external port that takes answers only."""

    filtering = Filtering("port")

    def test_port(self) -> None:
        """With C{port}, only what exactly was sent to may."""
        outlet = self.outlet = self.open(2)
        outlet.send(self.target.address, 1, b"x")
        self.assertArrives(b"x")
        self.sendsBack(self.stranger("127.0.0.1"))
        self.assertComeIn()
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")
        self.assertEqual(self.counters.dropped, {"from a stranger": 1})

    def test_mapped(self) -> None:
        """A target in whatever form is known again by its answers."""
        self.outlet = self.open(2)
        target, _ = unpackAddress(packAddress(Address("::ffff:127.0.0.1", self.target.address.port)))
        self.outlet.send(target, 1, b"x")
        self.assertArrives(b"x")
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")


class FilteringTests(StrangersTestCase):
    """Who may send to an external port."""

    filtering = Filtering("address")

    def test_known(self) -> None:
        """With C{address}, whoever was sent to may answer, and so may others on the same host; nobody else may."""
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")
        self.sendsBack(self.stranger("127.0.0.1"))
        self.assertComeIn(b"answer")
        self.sendsBack(self.stranger("127.0.0.2"), b"abc")
        self.assertComeIn()
        self.assertEqual(self.counters.dropped, {"from a stranger": 1})

    def test_afterwards(self) -> None:
        """Whoever is sent to later may answer from then on; each association knows its own."""
        other, received = self.makeTarget("127.0.0.2")
        self.addCleanup(other.stopListening)
        second = self.open(2)
        second.send(other.address, 1, b"x")
        self.reactor.until(lambda: bool(received.bursts))
        self.sendsBack(other)
        self.assertComeIn()
        self.outlet.send(other.address, 1, b"x")
        self.sendsBack(other)
        self.assertComeIn(b"answer")

    def test_name(self) -> None:
        """A target that is a name is known by the address that it was sent to."""
        self.outlet = self.open(2)
        self.outlet.send(Address("name.example", self.target.address.port), 1, b"x")
        self.sendsBack(self.target)
        self.assertComeIn()
        self.names.asked.pop()[2].callback(("127.0.0.1",))
        self.assertArrives(b"x")
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")

    def test_refusedTargets(self) -> None:
        """Who may not be sent to is not known for that, and may not send either."""
        self.outlet.send(Address("127.0.0.2", 19), 1, b"x")
        self.sendsBack(self.stranger("127.0.0.2"))
        self.assertComeIn()

    def test_bounded(self) -> None:
        """An association knows so many; then those are forgotten first that it came to know first."""
        self.patch(egress_module, "MOST_KNOWN", 3)
        for last in (2, 3):
            self.outlet.send(Address(f"127.0.0.{last}", 9), 1, b"x")
        # Sending once more to somebody who is known changes nothing.
        for _ in range(5):
            self.outlet.send(self.target.address, 1, b"x")
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")
        self.outlet.send(Address("127.0.0.4", 9), 1, b"x")
        self.sendsBack(self.target)
        self.assertComeIn()
        self.assertEqual(len(self.outlet._known), 3)
        self.outlet.send(self.target.address, 1, b"x")
        self.sendsBack(self.target)
        self.assertComeIn(b"answer")

    def test_nothingLeft(self) -> None:
        """When all of a wake-up comes from strangers, nothing is sent, and the association is no younger for it."""
        association = self.session.associations.get(1)
        assert association is not None
        used = association.used
        self.reactor.advance(5)
        self.sendsBack(self.stranger("127.0.0.2"))
        self.assertComeIn()
        self.assertEqual(association.used, used)


class StrangerRateTests(StrangersTestCase):
    """How much strangers may send."""

    filtering = Filtering("endpoint", 10)

    def come(self, number: int, host: str = "127.0.0.2") -> int:
        """So many datagrams of a stranger come one by one; tells how many come in."""
        port = self.stranger(host)
        for _ in range(number):
            self.sendsBack(port, b"?")
            self.reactor.turn()
        taken = sum(count(size, payload) for _, _, size, payload in self.link.parcels)
        self.link.parcels.clear()
        return taken

    def test_exact(self) -> None:
        """As many as the rate may come at once, and from then on as many a second; each other one is counted."""
        self.assertEqual(self.come(15), 10)
        self.assertEqual(self.counters.dropped, {"too many from strangers": 5})
        self.reactor.advance(0.3)
        self.assertEqual(self.come(15), 3)
        self.reactor.advance(1)
        self.assertEqual(self.come(15), 10)
        self.reactor.advance(3600)
        self.assertEqual(self.come(15), 10)
        self.assertEqual(self.counters.dropped, {"too many from strangers": 27})

    def test_slow(self) -> None:
        """Time counts in full, however often strangers knock meanwhile."""
        self.come(10)
        taken = 0
        for _ in range(40):
            self.reactor.advance(0.025)
            taken += self.come(2)
        self.assertIn(taken, (9, 10))

    def test_allTogether(self) -> None:
        """It is what all strangers have together, for one external port; another one has its own."""
        self.assertEqual(self.come(7, "127.0.0.2") + self.come(7, "127.0.0.3"), 10)
        self.outlet = self.open(2)
        self.assertEqual(self.come(7), 7)

    def test_bursts(self) -> None:
        """A burst comes in whole or not at all, and counts as its datagrams."""
        burst = Burst(Address("198.51.100.1", 9), 1, b"123456")
        self.outlet.burstsReceived([burst, burst])
        self.assertEqual([payload for *_, payload in self.link.parcels], [b"123456"])
        self.assertEqual(self.counters.dropped, {"too many from strangers": 6})
        self.outlet.burstsReceived([Burst(Address("198.51.100.1", 9), 1, b"1234")])
        self.assertEqual(self.link.parcels[-1][3], b"1234")

    def test_knownNotLimited(self) -> None:
        """Whoever was sent to may send without limit, and takes nothing from what strangers may."""
        for _ in range(50):
            self.sendsBack(self.target, b"!")
            self.reactor.turn()
        self.assertEqual((len(self.link.parcels), self.counters.dropped), (50, {}))
        self.link.parcels.clear()
        self.assertEqual(self.come(15), 10)

    def test_noLimit(self) -> None:
        """A rate of 0 is no limit."""
        self.egress.filtering = Filtering("endpoint", 0)
        self.outlet = self.open(2)
        self.assertEqual(self.come(50), 50)


class RulesChangedTests(EgressTestCase):
    """What other rules close."""

    def start(self, number: int, *hosts: str) -> None:
        """An association that sends to some hosts."""
        for host in hosts:
            self.open(number).send(Address(host, 9), 1, b"x")

    def left(self) -> list[int]:
        """The associations that are left."""
        return [each.number for each in self.session.associations]

    def test_onlyWhatItMust(self) -> None:
        """Those are closed that have sent where nobody may go now, and udp-local is told; the others stay."""
        self.start(1, "127.0.0.1")
        self.start(2, "127.0.0.1", "127.0.0.2", "127.0.0.1")
        self.start(3, "127.0.0.2")
        self.start(4)
        self.start(5, "127.0.0.3", "127.0.0.4")
        self.open(6)
        self.egress.rulesChanged(AccessRules(("127.0.0.0/8",), ("127.0.0.2",)))
        self.assertEqual(self.left(), [1, 5, 6])
        self.assertEqual(sorted(self.link.frames), [encode(CLOSE | 2), encode(CLOSE | 3)])
        self.assertEqual(self.egress.ports, 3)

    def test_ports(self) -> None:
        """A rule for ports counts as well."""
        self.start(1, "127.0.0.1")
        self.egress.rulesChanged(AccessRules(("127.0.0.0/8",), (), (9,)))
        self.assertEqual(self.left(), [])

    def test_looser(self) -> None:
        """Looser rules close nothing, and what was refused goes through from now on."""
        self.egress.rulesChanged(AccessRules(("127.0.0.1",)))
        self.start(1, "127.0.0.1", "127.0.0.2")
        self.assertEqual(self.counters.dropped, {"target refused": 1})
        self.egress.rulesChanged(AccessRules(("127.0.0.0/8",)))
        self.assertEqual(self.left(), [1])
        self.start(1, "127.0.0.2")
        self.assertEqual(self.counters.dropped, {"target refused": 1})

    def test_parked(self) -> None:
        """Associations of a session without a link are closed as others are."""
        self.start(1, "127.0.0.2")
        self.session.links.clear()
        self.egress.rulesChanged(AccessRules(("127.0.0.1",)))
        self.assertEqual((self.left(), self.egress.ports), ([], 0))


class LimitTests(EgressTestCase):
    """How many external ports there may be."""

    mostPorts = 2

    def test_limit(self) -> None:
        """Beyond the limit an association is refused, and udp-local is told so; others go on."""
        self.open(1), self.open(2)
        self.assertIs(self.session.find(3, self.link, 0.0), None)
        self.assertEqual(self.link.frames, [encode(CLOSE | 3)])
        self.open(1).send(self.target.address, 1, b"x")
        self.assertArrives(b"x")
        self.session.closeReceived(1)
        self.open(3)

    @needs("limits")
    def test_noDescriptor(self) -> None:
        """Without a descriptor there is no external port, and nothing is raised (E-14)."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            found = self.session.find(1, self.link, 0.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertIs(found, None)
        self.assertEqual(self.egress.ports, 0)
        self.assertEqual(self.link.frames, [encode(CLOSE | 1)])


class RouteTests(EgressTestCase):
    """Which targets may be reached."""

    allow = ("127.0.0.1", "203.0.113.0/24")

    def assertRefused(self, target: Address) -> None:
        """A burst to a target goes nowhere, and each datagram is counted."""
        self.counters.dropped.clear()
        self.open().send(target, 2, b"abcde")
        self.assertEqual(self.counters.dropped, {"target refused": 3}, target)

    def test_refused(self) -> None:
        """What the rules do not allow is refused."""
        for host in (
            "127.0.0.2",
            "10.0.0.1",
            "169.254.169.254",
            "::1",
            "::",
            "0.0.0.0",
            "::ffff:127.0.0.2",
            "fe80::1%1",
        ):
            self.assertRefused(Address(host, 9))
        for port in (0, 19, 25):
            self.assertRefused(Address("127.0.0.1", port))
        self.assertEqual(self.counters.sent, 0)

    def test_own(self) -> None:
        """This machine's own addresses are refused unless a rule allows them."""
        self.own = ["198.18.0.1", "8.8.8.8", "203.0.113.7"]
        self.assertRefused(Address("8.8.8.8", 53))
        route = self.egress.route(Address("203.0.113.7", 53))
        assert route is not None and route.to is not None
        self.assertEqual(route.to[1], 53)
        route = self.egress.route(Address("8.8.4.4", 53))
        assert route is not None
        self.assertIsNot(route.to, None)

    def test_remembered(self) -> None:
        """A verdict is remembered for a while, and then found out again."""
        target = self.target.address
        first = self.egress.route(target)
        self.own.append("8.8.8.8")
        refused = self.egress.route(Address("8.8.8.8", 53))
        self.own.clear()
        self.reactor.advance(ROUTE_SECONDS - 1)
        self.egress.tick(self.reactor.seconds())
        self.assertIs(self.egress.route(target), first)
        self.assertIs(self.egress.route(Address("8.8.8.8", 53)), refused)
        self.reactor.advance(2)
        self.egress.tick(self.reactor.seconds())
        self.assertIsNot(self.egress.route(target), first)
        again = self.egress.route(Address("8.8.8.8", 53))
        assert again is not None
        self.assertIsNot(again.to, None)

    def test_bounded(self) -> None:
        """However many targets there are, no more than a number of verdicts are remembered."""
        self.patch(egress_module, "MOST_ROUTES", 5)
        first = self.egress.route(Address("127.0.0.1", 1000))
        for port in range(1001, 1005):
            self.egress.route(Address("127.0.0.1", port))
        self.assertIs(self.egress.route(Address("127.0.0.1", 1000)), first)
        self.egress.route(Address("127.0.0.1", 1005))
        self.assertIsNot(self.egress.route(Address("127.0.0.1", 1000)), first)

    def test_rulesChanged(self) -> None:
        """Other rules count at once, for known targets too."""
        self.open().send(self.target.address, 1, b"x")
        self.assertArrives(b"x")
        self.egress.rulesChanged(AccessRules(deny=("127.0.0.1",)))
        self.assertRefused(self.target.address)
        self.egress.rulesChanged(AccessRules(("127.0.0.1",)))
        self.open().send(self.target.address, 1, b"y")
        self.assertArrives(b"y")

    def test_oneFamily(self) -> None:
        """Without IPv6 on this machine, IPv6 targets are counted and IPv4 ones reached."""
        self.patch(egress_module, "_hasBothFamilies", lambda: False)
        self.egress = self.makeEgress()
        self.session = self.makeSession()
        self.addCleanup(self.session.end)
        outlet = self.open()
        outlet.send(Address("2001:4860:4860::8888", 53), 1, b"abc")
        self.assertEqual(self.counters.dropped, {"no IPv6 here": 3})
        outlet.send(self.target.address, 1, b"x")
        self.assertArrives(b"x")


class NameTests(EgressTestCase):
    """Targets that are names."""

    allow = ("127.0.0.1",)

    def setUp(self) -> None:
        super().setUp()
        self.name = Address("name.example", self.target.address.port)
        self.outlet = self.open()

    def answer(self, *hosts: str) -> None:
        """Resolve the oldest name."""
        self.names.asked.pop(0)[2].callback(hosts)

    def test_waiting(self) -> None:
        """Bursts wait for the name, which is asked for once, and then go in order."""
        for payload in (b"abcd", b"e", b"f"):
            self.outlet.send(self.name, 3, bytearray(payload))
        self.assertEqual([each[:2] for each in self.names.asked], [("name.example", self.session.name)])
        self.answer("127.0.0.1")
        self.assertArrives(b"abc", b"d", b"e", b"f")

    def test_copied(self) -> None:
        """A burst that waits keeps its bytes, whatever becomes of the memory that it came in."""
        memory = bytearray(b"abc")
        self.outlet.send(self.name, 3, memoryview(memory))
        memory[:] = b"xyz"
        self.answer("127.0.0.1")
        self.assertArrives(b"abc")

    def test_remembered(self) -> None:
        """Later bursts to the same name go at once."""
        self.outlet.send(self.name, 3, b"abc")
        self.answer("127.0.0.1")
        self.outlet.send(self.name, 3, b"def")
        self.assertEqual(self.names.asked, [])
        self.assertArrives(b"abc", b"def")

    def test_bounded(self) -> None:
        """Only so many bursts of an association wait; the others are dropped and counted."""
        for number in range(WAITING_BURSTS + 3):
            self.outlet.send(self.name, 1, bytes((number, number)))
        self.assertEqual(self.counters.dropped, {NOT_NOW: 6})
        self.answer("127.0.0.1")
        self.assertArrives(*(bytes((number,)) for number in range(WAITING_BURSTS) for _ in range(2)))

    def test_several(self) -> None:
        """Names are waited for independently."""
        other = Address("other.example", self.name.port)
        self.outlet.send(self.name, 1, b"a")
        self.outlet.send(other, 1, b"b")
        self.outlet.send(self.target.address, 1, b"c")
        self.assertArrives(b"c")
        self.names.asked.pop(1)[2].callback(("127.0.0.1",))
        self.assertArrives(b"b")
        self.answer("127.0.0.1")
        self.assertArrives(b"a")

    def test_oneForbidden(self) -> None:
        """A name with one forbidden address is refused, whatever its others are."""
        for hosts in (
            ("127.0.0.1", "169.254.169.254"),
            ("127.0.0.1", "::1"),
            ("127.0.0.1", "64:ff9b::a00:1"),
            ("10.0.0.1", "127.0.0.1"),
        ):
            self.counters.dropped.clear()
            self.reactor.advance(ROUTE_SECONDS + 1)
            self.egress.tick(self.reactor.seconds())
            self.outlet.send(self.name, 1, b"abc")
            self.answer(*hosts)
            self.assertEqual(self.counters.dropped, {"target refused": 3})
            # The verdict is remembered too.
            self.outlet.send(self.name, 1, b"x")
            self.assertEqual(self.names.asked, [])
            self.assertEqual(self.counters.dropped, {"target refused": 4})

    def test_rebinding(self) -> None:
        """A name that leads to one of our own addresses is refused."""
        self.own = ["8.8.8.8"]
        self.outlet.send(self.name, 1, b"x")
        self.answer("8.8.8.8")
        self.assertEqual(self.counters.dropped, {"target refused": 1})

    def test_notResolved(self) -> None:
        """What waited for a name without address is dropped and counted; the name is asked for again next time."""
        self.outlet.send(self.name, 1, b"abc")
        self.names.asked.pop()[2].errback(ResolveError("name.example has no address"))
        self.assertEqual(self.counters.dropped, {NOT_NOW: 3})
        self.outlet.send(self.name, 1, b"x")
        self.assertEqual(len(self.names.asked), 1)
        self.answer("127.0.0.1")
        self.assertArrives(b"x")

    def test_answerAtOnce(self) -> None:
        """An answer that is there at once, good or bad, serves as well."""
        self.names.resolve = lambda name, asker: fail(ResolveError("bad name"))  # type: ignore[method-assign]
        self.outlet.send(self.name, 1, b"abc")
        self.assertEqual(self.counters.dropped, {NOT_NOW: 3})

    def test_closedMeanwhile(self) -> None:
        """When the association is over before the name is resolved, nothing is sent, and nothing fails."""
        self.outlet.send(self.name, 1, b"abc")
        self.session.closeReceived(1)
        self.answer("127.0.0.1")
        self.assertEqual(self.counters.dropped, {"port closed": 3})

    def test_rulesChanged(self) -> None:
        """Other rules count for names that are being resolved, and for those that are."""
        self.outlet.send(self.name, 1, b"x")
        self.egress.rulesChanged(AccessRules())
        self.answer("127.0.0.1")
        self.assertEqual(self.counters.dropped, {"target refused": 1})
