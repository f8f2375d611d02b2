"""Tests for L{udptunnel.net.socksegress}; the SOCKS5 server is in memory."""

from __future__ import annotations

import gc
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.net.test_egress import FakeNames
from tests.net.test_socksudp import BOUND, SERVER, MemoryDial, RelaySocket
from udptunnel.core.acl import AccessRules
from udptunnel.core.counters import Counters
from udptunnel.core.session import ServerSession
from udptunnel.net.datagrams import Traffic
from udptunnel.net.dial import Proxy
from udptunnel.net.egress import ExternalPort, Filtering
from udptunnel.net.offload import Offload
from udptunnel.net.socksegress import PASS, REFUSE, RESOLVE, SocksEgress
from udptunnel.net.testing import PortReactor, RecordingLink
from udptunnel.wire.address import Address
from udptunnel.wire.frame import CLOSE, encode
from udptunnel.wire.socks5 import packHeader, unpackHeader

TARGET, SIX, NAME = Address("8.8.8.8", 53), Address("2001:4860:4860::8888", 53), Address("name.example", 53)
STRANGER = Address("9.9.9.9", 99)


class SocksEgressCase(SynchronousTestCase):
    """An egress, and a SOCKS5 server in memory."""

    namesTo = PASS
    filtering = Filtering()

    def setUp(self) -> None:
        self.reactor: Any = PortReactor()
        self.counters, self.names = Counters(), FakeNames()
        self.dials: list[MemoryDial] = []
        self.sockets: list[RelaySocket] = []
        names: Any = self.names
        self.egress = SocksEgress(
            Traffic(self.reactor, Offload(), self.counters),
            self.reactor,
            AccessRules(("10.1.0.0/16",), ("1.1.1.1",)),
            names,
            3,
            lambda host: False,
            self.filtering,
            proxy=Proxy(SERVER, "alice", "secret"),
            namesTo=self.namesTo,
            makeDial=self._dial,
        )
        self.egress.socks._means.openSocket = self._socket  # type: ignore[assignment]
        self.egress.start()
        self.session = ServerSession(
            b"s" * 16, 100, self.counters, self.egress.openOutlet, lambda session: None, countingRandom()
        )
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.egress.stop)
        self.addCleanup(self.session.end)

    def _checkReactor(self) -> None:
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual((self.egress.ports, self.egress._receivers), (0, {}))

    def _dial(self, *given: Any) -> MemoryDial:
        self.dials.append(MemoryDial(*given))
        return self.dials[-1]

    def _socket(self, relay: Address, local: Any, mark: int) -> RelaySocket:
        self.sockets.append(RelaySocket("192.0.2.1", 5000 + len(self.sockets)))
        return self.sockets[-1]

    def open(self, number: int = 1) -> Any:
        """The external port of an association."""
        association = self.session.find(number, self.link, self.reactor.seconds())
        assert association is not None
        return association.outlet

    def sent(self, place: int = 0) -> list[tuple[Address, bytes]]:
        """What has gone to the server from one of our sockets: targets and payloads."""
        found = []
        for data, to in self.sockets[place].sent:
            self.assertEqual(to, tuple(BOUND))
            target, length = unpackHeader(data)
            found.append((target, data[length:]))
        self.sockets[place].sent.clear()
        return found

    def answer(self, source: Address, payload: bytes, place: int = 0) -> list[Any]:
        """The server sends something to one of our sockets; what arrives at udp-local."""
        self.sockets[place].arrived.append((packHeader(source) + payload, tuple(BOUND)))
        for port in self.reactor.getReaders():
            port.doRead()
        got, self.link.parcels = self.link.parcels, []
        return got  # type: ignore[no-any-return]

    def start(self, number: int = 1, target: Address = TARGET) -> Any:
        """An association whose association at the server is open."""
        outlet = self.open(number)
        outlet.send(target, 5, b"first")
        self.dials[-1].agree()
        self.assertEqual(self.sent(-1), [(target, b"first")])
        return outlet


class SocksEgressTests(SocksEgressCase):
    """L{SocksEgress}."""

    def test_there(self) -> None:
        """Bursts wait until the server has agreed, and go on as the datagrams that they are."""
        outlet = self.open()
        outlet.send(TARGET, 2, b"abcde")
        outlet.send(SIX, 1, b"x")
        (dial,) = self.dials
        self.assertEqual(dial.request[0], Proxy(SERVER, "alice", "secret"))
        dial.agree()
        outlet.send(TARGET, 0, b"")
        self.assertEqual(self.sent(), [(TARGET, b"ab"), (TARGET, b"cd"), (TARGET, b"e"), (SIX, b"x"), (TARGET, b"")])

    def test_associations(self) -> None:
        """Each association has one of its own at the server, whatever it sends to."""
        first, second = self.start(1), self.start(2)
        first.send(STRANGER, 1, b"1")
        second.send(STRANGER, 1, b"2")
        self.assertEqual((len(self.dials), self.sent(0), self.sent(1)), (2, [(STRANGER, b"1")], [(STRANGER, b"2")]))
        self.assertNotEqual(first.address, second.address)

    def test_back(self) -> None:
        """Answers find their association, whoever sends them (full cone), also from a name."""
        self.start(1)
        self.start(2)
        self.assertEqual(self.answer(TARGET, b"a", 0), [(1, TARGET, 1, b"a")])
        self.assertEqual(self.answer(STRANGER, b"b", 1), [(2, STRANGER, 1, b"b")])
        self.assertEqual(self.answer(NAME, b"c", 1), [(2, NAME, 1, b"c")])

    def test_closed(self) -> None:
        """With an association its own at the server is closed, and nothing is sent for it any more."""
        outlet = self.start()
        self.session.closeReceived(1)
        self.assertTrue(self.dials[0].control.closed)
        self.assertTrue(self.sockets[0].closed)
        outlet.send(TARGET, 2, b"late!")
        self.assertEqual((self.counters.dropped, len(self.dials)), ({"port closed": 3}, 1))

    def test_closedBefore(self) -> None:
        """An association that ends before the server has agreed leaves nothing, and the next one gets its turn."""
        self.open(1).send(TARGET, 1, b"x")
        self.session.closeReceived(1)
        self.assertTrue(self.dials[0].cancelled)
        self.start(2)
        self.assertEqual(self.counters.dropped, {"association closed": 1})

    def test_freed(self) -> None:
        """When an association is closed, nothing of its port waits for the collector."""
        self.open()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.session.closeReceived(1)
        self.assertEqual([each for each in gc.get_objects() if isinstance(each, ExternalPort)], [])

    def test_again(self) -> None:
        """When the server ends an association, the next datagram begins another one."""
        outlet = self.start()
        self.answer(TARGET, b"a")
        self.dials[0].control.arrived.append(b"")
        for reader in self.reactor.getReaders():
            reader.doRead()
        outlet.send(TARGET, 1, b"y")
        self.dials[1].agree()
        self.assertEqual(self.sent(1), [(TARGET, b"y")])
        self.assertEqual(self.answer(TARGET, b"z", 1), [(1, TARGET, 1, b"z")])

    def test_refused(self) -> None:
        """While the server carries no UDP, datagrams are dropped and counted, and it is asked again later."""
        outlet = self.open()
        outlet.send(TARGET, 1, b"x")
        self.dials[0].refuse()
        outlet.send(TARGET, 1, b"y")
        self.assertEqual((self.counters.dropped, len(self.dials)), ({"no SOCKS5 association": 2}, 1))
        self.reactor.advance(2)
        self.egress.tick(self.reactor.seconds())
        self.start()

    def test_rules(self) -> None:
        """Targets in digits are judged by the rules, as ever."""
        for host in ("127.0.0.1", "169.254.169.254", "1.1.1.1", "10.2.0.1", "::1"):
            self.open().send(Address(host, 53), 1, b"x")
        self.open().send(Address("8.8.8.8", 25), 1, b"x")
        self.assertEqual((self.counters.dropped, self.dials), ({"target refused": 6}, []))
        self.start(target=Address("10.1.2.3", 53))

    def test_rulesChanged(self) -> None:
        """Associations that have sent where nobody may go any more are closed; names count with their port."""
        self.start(1)
        self.start(2, NAME)
        self.egress.rulesChanged(AccessRules(deny=("8.8.8.8",)))
        self.assertEqual([each.number for each in self.session.associations], [2])
        self.egress.rulesChanged(AccessRules((), (), (53,)))
        self.assertEqual([each.number for each in self.session.associations], [])

    def test_limit(self) -> None:
        """There are so many at once, each two descriptors; udp-local is told."""
        for number in (1, 2, 3):
            self.open(number)
        self.assertIs(self.session.find(4, self.link, 0.0), None)
        self.assertEqual(self.link.frames, [encode(CLOSE | 4)])
        self.assertEqual(self.egress.descriptors, 2)

    def test_otherServer(self) -> None:
        """Another password is for associations that begin from then on."""
        self.start(1)
        self.egress.use(Proxy(SERVER, "alice", "new"), PASS)
        self.start(2)
        self.assertEqual([dial.request[0].password for dial in self.dials], ["secret", "new"])

    def test_report(self) -> None:
        """The report tells of the server."""
        self.start()
        report: Any = self.egress.report()
        self.assertEqual((report["socks5"]["server"], report["socks5"]["associations"]), (str(SERVER), 1))
        self.assertEqual(str(self.egress), f"SOCKS5 server {SERVER}")


class PassTests(SocksEgressCase):
    """Names that the server looks up."""

    filtering = Filtering("endpoint", 2)

    def test_passed(self) -> None:
        """A name goes on as it is, and nobody here asks for its address."""
        self.start(target=NAME)
        self.assertEqual(self.names.asked, [])

    def test_noStrangers(self) -> None:
        """Nobody knows whether an answer comes from where a name leads: such an association has no strangers."""
        self.start(1, TARGET)
        self.start(2, NAME)
        for _ in range(4):
            self.answer(STRANGER, b"?", 0)
            self.assertEqual(len(self.answer(STRANGER, b"?", 1)), 1)
        self.assertEqual(self.counters.dropped, {"too many from strangers": 2})

    def test_refused(self) -> None:
        """Refused are denied ports, what is the machine itself by its name, and numbers that look like names."""
        for host in ("localhost", "LocalHost.", "a.localhost", "127.1", "0x7f000001", "2130706433", "a..b"):
            self.open().send(Address(host, 53), 1, b"x")
        self.open().send(Address("name.example", 19), 1, b"x")
        self.assertEqual((self.counters.dropped, self.dials), ({"target refused": 8}, []))

    def test_loopbackAllowed(self) -> None:
        """Who allows loopback addresses allows C{localhost}."""
        self.egress.rulesChanged(AccessRules(("127.0.0.1", "::1")))
        self.start(target=Address("localhost", 53))


class ResolveTests(SocksEgressCase):
    """Names that are looked up here."""

    namesTo = RESOLVE

    def test_resolved(self) -> None:
        """The server gets the address of a name, if that is allowed."""
        outlet = self.open()
        outlet.send(NAME, 1, b"x")
        self.names.asked.pop()[2].callback(("8.8.8.8",))
        self.dials[0].agree()
        self.assertEqual(self.sent(), [(TARGET, b"x")])
        other = Address("rebound.example", 53)
        outlet.send(other, 1, b"x")
        self.names.asked.pop()[2].callback(("127.0.0.1",))
        self.assertEqual(self.counters.dropped, {"target refused": 1})

    def test_closedMeanwhile(self) -> None:
        """When the association is over before that, nothing is sent, and nothing begins."""
        self.open().send(NAME, 1, b"x")
        self.session.closeReceived(1)
        self.names.asked.pop()[2].callback(("8.8.8.8",))
        self.assertEqual((self.counters.dropped, self.dials), ({"port closed": 1}, []))


class RefuseTests(SocksEgressCase):
    """Names that go nowhere."""

    namesTo = REFUSE

    def test_refused(self) -> None:
        """They are dropped and counted."""
        self.open().send(NAME, 1, b"x")
        self.assertEqual((self.counters.dropped, self.names.asked, self.dials), ({"target refused": 1}, [], []))
