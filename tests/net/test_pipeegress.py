"""Tests for L{udptunnel.net.pipeegress}."""

from __future__ import annotations

import gc
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.net.test_egress import FakeNames
from tests.net.test_gateway import RecordingUdp
from tests.net.test_packetpipe import hasMessages
from udptunnel.core.acl import AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.session import ServerSession
from udptunnel.core.sources import NETWORK, NETWORK6
from udptunnel.net.datagrams import Traffic
from udptunnel.net.egress import ExternalPort, Filtering
from udptunnel.net.gateway import Gateway
from udptunnel.net.nostack import NoStack
from udptunnel.net.offload import Offload
from udptunnel.net.packetpipe import LARGEST_MESSAGE, joint
from udptunnel.net.pipeegress import PipeEgress
from udptunnel.net.testing import PortReactor, RecordingLink
from udptunnel.wire.address import Address, parseHost
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import CLOSE, encode

TARGET, SIX, NAME = Address("8.8.8.8", 53), Address("2001:4860:4860::8888", 53), Address("name.example", 53)
STRANGER = Address("9.9.9.9", 99)


class PipeEgressTests(SynchronousTestCase):
    """L{PipeEgress}, and a gateway at the other end of its pipe."""

    filtering = Filtering()

    def setUp(self) -> None:
        if not hasMessages():
            raise SkipTest("there are no SEQPACKET sockets here")
        self.reactor, self.counters, self.names = PortReactor(), Counters(), FakeNames()
        self.own: list[str] = []
        near, far = joint()
        names: Any = self.names
        self.egress = PipeEgress(
            Traffic(self.reactor, Offload(), self.counters),
            self.reactor,
            AccessRules(deny=("1.1.1.1",)),
            names,
            3,
            lambda host: host in self.own,
            self.filtering,
            makePipe=near,
            random=countingRandom(),
        )
        self.egress.start()
        self.beyond, self.beyondCounters = RecordingUdp(), Counters()
        self.gateway = Gateway(self.beyondCounters, self.reactor.seconds, self.fail, LARGEST_MESSAGE)
        self.pipe = self.gateway.outer = far(self.reactor, self.gateway, self.beyondCounters)
        self.gateway.udp, self.gateway.stack = self.beyond, NoStack(self.pipe, self.beyondCounters)
        self.pipe.open()
        self.session = ServerSession(
            b"s" * 16, 100, self.counters, self.egress.openOutlet, lambda session: None, countingRandom()
        )
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.egress.stop)
        self.addCleanup(self.session.end)
        self.addCleanup(self.pipe.close)

    def _checkReactor(self) -> None:
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual((self.egress.ports, self.egress._receivers), (0, {}))

    def open(self, number: int = 1) -> Any:
        """The external port of an association."""
        association = self.session.find(number, self.link, self.reactor.seconds())
        assert association is not None
        return association.outlet

    def sendAndGet(self, target: Address, size: int, payload: bytes, number: int = 1) -> list[AimedBurst]:
        """What arrives at the other end of a burst."""
        self.open(number).send(target, size, payload)
        self.reactor.until(lambda: bool(self.beyond.bursts))
        self.reactor.turn()
        got, self.beyond.bursts = self.beyond.bursts, []
        return got

    def test_there(self) -> None:
        """A burst arrives as the datagrams that it is, from an address of its own in a private network."""
        for target, network in ((TARGET, NETWORK), (SIX, NETWORK6)):
            (burst,) = self.sendAndGet(target, 3, b"abcdefgh")
            self.assertEqual(burst[1:], (target, 3, b"abcdefgh"))
            self.assertIn(parseHost(burst.source.host), network)

    def test_sizes(self) -> None:
        """Datagrams of all lengths arrive; one that fits no packet of IPv6 is fragments on its way."""
        for target in (TARGET, SIX):
            for size in (0, 1, 1472, 9000, 65_507):
                payload = bytes(place % 251 for place in range(size))
                (burst,) = self.sendAndGet(target, size, payload)
                self.assertEqual((burst.target, len(burst.payload), burst.payload), (target, size, payload))
        self.assertEqual((self.counters.dropped, self.beyondCounters.dropped), ({}, {}))

    def test_sources(self) -> None:
        """An association keeps its address, whatever it sends to; each has another one."""
        sources = {self.sendAndGet(TARGET, 1, b"x")[0].source for _ in range(3)}
        self.assertEqual(sources, {self.open(1).address})
        (other,) = self.sendAndGet(TARGET, 1, b"x", 2)
        self.assertNotIn(other.source, sources)

    def answer(self, to: Address, source: Address, payload: bytes, size: int = 0) -> list[Any]:
        """Something comes up the pipe; what arrives at udp-local."""
        before = self.counters.received
        self.gateway.send(to, source, size or len(payload), payload)
        self.reactor.until(lambda: self.counters.received > before)
        got, self.link.parcels = self.link.parcels, []
        return got  # type: ignore[no-any-return]

    def test_back(self) -> None:
        """Answers find their association, whoever sends them (full cone), over either family."""
        for number, target in ((1, TARGET), (2, SIX)):
            (burst,) = self.sendAndGet(target, 1, b"x", number)
            stranger = Address("2001:db8::9", 9) if target is SIX else STRANGER
            for source in (target, stranger):
                self.assertEqual(self.answer(burst.source, source, b"abcde", 2), [(number, source, 2, b"abcde")])

    def test_closed(self) -> None:
        """What comes for an association that is over goes nowhere, and nothing is sent for it any more."""
        (burst,) = self.sendAndGet(TARGET, 1, b"x")
        outlet = self.open()
        self.session.closeReceived(1)
        self.assertEqual(self.answer(burst.source, TARGET, b"late"), [])
        outlet.send(TARGET, 2, b"late!")
        self.assertEqual(self.counters.dropped, {"no association": 1, "port closed": 3})

    def test_freed(self) -> None:
        """When an association is closed, nothing of its port waits for the collector."""
        self.open()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.session.closeReceived(1)
        self.assertEqual([each for each in gc.get_objects() if isinstance(each, ExternalPort)], [])

    def test_rules(self) -> None:
        """Targets are judged as they are without a pipe: by the rules, and as this machine's own."""
        self.own = ["8.8.4.4"]
        for host in ("127.0.0.1", "10.85.0.1", "1.1.1.1", "8.8.4.4", "::1"):
            self.open().send(Address(host, 53), 1, b"x")
        self.assertEqual(self.counters.dropped, {"target refused": 5})
        self.egress.rulesChanged(AccessRules(("127.0.0.1",)))
        self.open().send(Address("127.0.0.1", 53), 1, b"x")
        self.assertEqual(self.counters.dropped, {"target refused": 5})
        self.reactor.turn()

    def test_names(self) -> None:
        """Names are resolved here: no packet has room for one."""
        self.open().send(NAME, 1, b"x")
        self.names.asked.pop()[2].callback(("8.8.8.8",))
        self.reactor.until(lambda: bool(self.beyond.bursts))
        self.assertEqual(self.beyond.bursts[0].target, TARGET)

    def test_limit(self) -> None:
        """There are so many at once; udp-local is told."""
        for number in (1, 2, 3):
            self.open(number)
        self.assertIs(self.session.find(4, self.link, 0.0), None)
        self.assertEqual(self.link.frames, [encode(CLOSE | 4)])

    def test_nobody(self) -> None:
        """When nobody is at the other end, datagrams are dropped and counted."""
        self.pipe.close()
        self.reactor.until(lambda: self.egress.pipe.fileno() < 0)
        self.open().send(TARGET, 2, b"abc")
        self.assertEqual(self.counters.dropped, {"nobody at the pipe": 2})
        self.assertEqual(self.egress.report(), {"pipe": {"name": "joint", "connected": False, "connections": 1}})

    def test_nonsense(self) -> None:
        """What is no packet, or none of UDP, is counted and does no harm."""
        self.pipe.write(bytes(10), b"nonsense")
        self.reactor.until(lambda: bool(self.counters.dropped))
        self.egress.tick(0.0)
        self.assertEqual(self.counters.dropped, {"malformed": 1})

    def test_filtering(self) -> None:
        """Filtering holds for what comes up the pipe."""
        self.egress.filtering = Filtering("address")
        (burst,) = self.sendAndGet(TARGET, 1, b"x")
        self.assertEqual(self.answer(burst.source, STRANGER, b"spam"), [])
        self.assertEqual(self.answer(burst.source, Address(TARGET.host, 1), b"ham"), [(1, (TARGET.host, 1), 3, b"ham")])
        self.assertEqual(self.counters.dropped, {"from a stranger": 1})
