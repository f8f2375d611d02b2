"""Tests for L{udptunnel.services.demo}."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.services.tunnel import HOSTS
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.offload import Offload
from udptunnel.net.testing import MemorySocket, PortReactor, RecordingReceiver
from udptunnel.services import demo as demo_module
from udptunnel.services.demo import FLYING, HEAD, PATIENCE_SECONDS, Demo, EchoTarget, Path, Traveller
from udptunnel.wire.address import Address


class DemoTests(TestCase):
    """L{Demo} with real sockets."""

    async def run_(self) -> Demo:
        """Run the demonstration with fewer datagrams."""
        self.patch(demo_module, "EACH", 3)
        self.shown: list[Any] = []
        demo = Demo(reactor, self.shown.append)
        self.good = await demo.run()
        return demo

    async def test_run(self) -> None:
        """All datagrams of all sizes come back on each path, and the demonstration leaves nothing behind."""
        demo = await self.run_()
        self.assertTrue(self.good)
        families = ["IPv4", "IPv6"][: len(HOSTS)]
        names = [name for family in families for name in (f"forward, {family}", f"SOCKS5, {family} target")]
        self.assertEqual([path.name for path in demo.paths], names)
        for path in demo.paths:
            expected = 3 * len(demo_module.SIZES)
            self.assertEqual((path.sent, path.received, path.damaged), (expected, expected, 0))
        self.assertEqual(self.shown[-1], demo)

    async def test_oneFamily(self) -> None:
        """Where an address family is missing, the other is tried, and a remark says so."""
        start = DatagramPort.startListening

        def startListening(port: DatagramPort) -> None:
            if port.address.host == "::1":
                raise ListenError("no UDP socket can be opened for [::1]:0")
            start(port)

        self.patch(DatagramPort, "startListening", startListening)
        demo = await self.run_()
        self.assertTrue(self.good)
        self.assertEqual(len(demo.paths), 2)
        self.assertEqual(demo.remarks, ["not tried: no UDP socket can be opened for [::1]:0"])


class TravellerTests(SynchronousTestCase):
    """L{Traveller} on a socket in memory."""

    def setUp(self) -> None:
        self.patch(demo_module, "EACH", 2)
        self.clock: Any = Clock()
        self.socket = MemorySocket()
        self.patch(DatagramPort, "startListening", lambda port: port.adopt(self.socket))
        self.reactor = PortReactor()
        self.path = Path("a path", Address("127.0.0.1", 9))
        traffic = Traffic(self.reactor, Offload(), Counters())
        self.traveller = Traveller(traffic, self.clock, self.path)
        self.done = self.traveller.travel()
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(lambda: self.assertEqual(self.reactor.getReaders(), []))

    def turn(self, change: Any = lambda datagram: datagram) -> None:
        """Let come back what was sent."""
        sent, self.socket.sent = self.socket.sent, []
        self.socket.arrived += [(change(datagram), to) for datagram, to in sent]
        for port in self.reactor.getReaders():
            port.doRead()

    def test_good(self) -> None:
        """When all datagrams come back, all are counted, and the way is at its end."""
        self.assertEqual(len(self.socket.sent), FLYING)
        while self.reactor.getReaders():
            self.clock.advance(0.01)
            self.turn()
        self.successResultOf(self.done)
        total = 2 * len(demo_module.SIZES)
        self.assertEqual((self.path.sent, self.path.received, self.path.damaged), (total, total, 0))
        self.assertAlmostEqual(self.path.trips[0], 0.01)

    def test_lost(self) -> None:
        """What does not come back in time is lost, and the rest goes on."""
        self.socket.sent.clear()
        for _ in range(30):
            self.clock.advance(PATIENCE_SECONDS / 20)
        while self.reactor.getReaders():
            self.turn()
        self.successResultOf(self.done)
        self.assertEqual(self.path.sent - self.path.received, FLYING)

    def test_damaged(self) -> None:
        """What comes back altered is counted as such."""
        self.turn(lambda datagram: datagram[:-1] + bytes((datagram[-1] ^ 1,)) if len(datagram) > 8 else datagram)
        while self.reactor.getReaders():
            self.turn()
        self.successResultOf(self.done)
        self.assertEqual(self.path.damaged, FLYING - 2)
        self.assertEqual(self.path.received + self.path.damaged, self.path.sent)


class PathTests(SynchronousTestCase):
    """L{Path} in the table, and L{EchoTarget}."""

    def test_row(self) -> None:
        """A row is as wide as the head of the table, and shows what was lost."""
        path = Path("forward, IPv4", Address("127.0.0.1", 9), sent=10, received=8, seconds=2.0, trips=[0.001] * 8)
        row = path.row()
        self.assertEqual(len(row), len(HEAD))
        self.assertEqual(row.split(), ["forward,", "IPv4", "10", "8", "2", "1.00", "1.00", "4"])

    def test_emptyRow(self) -> None:
        """So is one of a path that was not tried yet."""
        self.assertEqual(len(Path("x", Address("127.0.0.1", 9)).row()), len(HEAD))

    def test_echo(self) -> None:
        """An echo target sends back what comes, to whom it came from."""
        reactor = PortReactor()
        traffic = Traffic(reactor, Offload(), Counters())
        target, receiver = EchoTarget(traffic, "127.0.0.1"), RecordingReceiver()
        port = DatagramPort(traffic, Address("127.0.0.1", 0), receiver)
        for each in (target.port, port):
            each.startListening()
            self.addCleanup(each.stopListening)
        port.send(target.port.address, 3, b"abcde")
        reactor.until(lambda: len(receiver.datagrams) == 2)
        self.assertEqual(receiver.datagrams, [b"abc", b"de"])
