"""Tests for L{udptunnel.net.egress}."""

from __future__ import annotations

import resource
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.acl import AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.session import ServerSession
from udptunnel.errors import ListenError, ResolveError
from udptunnel.net import egress as egress_module
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.egress import NOT_NOW, ROUTE_SECONDS, WAITING_BURSTS, DirectEgress, ExternalPort
from udptunnel.net.offload import Offload
from udptunnel.net.testing import PortReactor, RecordingLink, RecordingReceiver
from udptunnel.wire.address import Address
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

    def setUp(self) -> None:
        self.reactor, self.counters, self.names = PortReactor(), Counters(), FakeNames()
        self.own: list[str] = []
        self.traffic = Traffic(self.reactor, Offload(), self.counters)
        self.egress: DirectEgress = self.makeEgress()
        self.session = ServerSession(b"s" * 16, 100, self.counters, self.egress.openOutlet, lambda session: None)
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
        return DirectEgress(self.traffic, self.reactor, rules, names, self.mostPorts, lambda host: host in self.own)

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
        outlet = self.open()
        outlet.send(self.target.address, 1, b"x")
        self.assertArrives(b"x")
        self.egress.rulesChanged(AccessRules(deny=("127.0.0.1",)))
        self.assertRefused(self.target.address)
        self.egress.rulesChanged(AccessRules(("127.0.0.1",)))
        outlet.send(self.target.address, 1, b"y")
        self.assertArrives(b"y")

    def test_oneFamily(self) -> None:
        """Without IPv6 on this machine, IPv6 targets are counted and IPv4 ones reached."""
        self.patch(egress_module, "_hasBothFamilies", lambda: False)
        self.egress = self.makeEgress()
        self.session = ServerSession(b"s" * 16, 100, self.counters, self.egress.openOutlet, lambda session: None)
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
