"""Tests for L{udptunnel.services.tungate}, on a TUN in memory; tests.system runs the example on a real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_tun import NO_HEADER, MemorySystem
from udptunnel.errors import ListenError
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload
from udptunnel.net.tundevice import IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, Interface
from udptunnel.services import tungate
from udptunnel.services.tungate import GatewayService
from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import ICMP, parse
from udptunnel.wire.transport import Unreachable, checksumHolds, parseUdp, udpPacket

SOURCE, TARGET, ANYBODY = Address("10.0.0.2", 4000), Address("203.0.113.5", 53), Address("198.51.100.9", 7)
FOUR, SIX = "10.9.0.1/24", "fd00:9::1/64"


class RecordingSystem(MemorySystem):
    """Keeps all packets that are written, but for those that only try something."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        super().write(descriptor, buffers)
        packet = b"".join(buffers)
        frame = packet[len(NO_HEADER) :] if self.flags & IFF_VNET_HDR else packet
        if len(frame) >= 28:
            self.packets.append(frame)
        return len(packet)


class MemoryStack:
    """A stack that works, or does not."""

    name = "memory"

    def __init__(self, *given: Any) -> None:
        self.given = given
        self.calls: list[Any] = []

    def start(self) -> None:
        """Be ready."""
        self.calls.append("start")

    def prove(self) -> str:
        """All is well."""
        return ""

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        """None is TCP."""
        return list(packets)

    def tick(self, now: float) -> None:
        """A second has passed."""
        self.calls.append(("tick", now))

    def stop(self) -> None:
        """Close everything."""
        self.calls.append("stop")


class SilentStack(MemoryStack):
    """Nothing gets through."""

    name = "silent"

    def prove(self) -> str:
        """Nothing is well."""
        return "nothing gets through"


class FailingStack(MemoryStack):
    """Can not be had."""

    name = "failing"

    def start(self) -> None:
        """Fail."""
        raise ListenError("no such thing here")


class GatewayTests(SynchronousTestCase):
    """L{GatewayService}."""

    def setUp(self) -> None:
        self.reactor, self.system = PortReactor(), RecordingSystem()
        self.received: list[tuple[bytes, Address, Address]] = []
        self.stacks: list[Any] = []
        self.use(MemoryStack, MemoryStack)

    def use(self, tun: type[MemoryStack], netns: type[MemoryStack]) -> None:
        """Which stacks there are."""

        def making(kind: type[MemoryStack]) -> Any:
            def make(*given: Any) -> MemoryStack:
                self.stacks.append(kind(*given))
                return self.stacks[-1]

            return make

        self.patch(tungate, "TunStack", making(tun))
        self.patch(tungate, "NetnsStack", making(netns))

    def make(self, *addresses: str, **options: Any) -> GatewayService:
        """A gateway."""
        return GatewayService(
            Interface("tun7", addresses),
            lambda arrival, target: None,
            lambda *given: self.received.append(given),
            self.reactor,
            system=self.system,
            **options,
        )

    def start(self, *addresses: str, **options: Any) -> GatewayService:
        """A gateway that runs until the test ends."""
        gate = self.make(*(addresses or (FOUR,)), **options)
        gate.startService()
        self.addCleanup(lambda: self.assertEqual(self.reactor.getReaders(), []))
        self.addCleanup(gate.stopService)
        return gate

    def arrive(self, *packets: bytes) -> None:
        """Packets come out of the TUN."""
        self.system.arrived.extend(NO_HEADER + packet for packet in packets)
        (port,) = self.reactor.getReaders()
        port.doRead()

    def test_datagrams(self) -> None:
        """Each datagram comes with its target and its source."""
        self.start()
        ends = bytes((10, 0, 0, 2)), bytes((203, 0, 113, 5))
        self.arrive(*(udpPacket(*ends, SOURCE.port, TARGET.port, each) for each in (b"one", b"other")))
        self.assertEqual(self.received, [(b"one", TARGET, SOURCE), (b"other", TARGET, SOURCE)])

    def test_back(self) -> None:
        """A datagram can be sent back from any address, and is a good packet."""
        gate = self.start(offload=TunOffload(()))
        gate.writeTo(b"hello", to=SOURCE, source=ANYBODY)
        (packet,) = self.system.packets
        found = parse(packet)
        udp = parseUdp(packet, found)
        ends = Address(found.sourceHost, udp.sourcePort), Address(found.destinationHost, udp.destinationPort)
        self.assertEqual((ends, packet[udp.payloadStart : udp.payloadEnd]), ((ANYBODY, SOURCE), b"hello"))
        self.assertTrue(checksumHolds(packet, found))

    def test_refused(self) -> None:
        """A datagram can be refused, with the reason that is given."""
        gate = self.start()
        gate.refuse(b"hello", TARGET, SOURCE)
        gate.refuse(b"hello", TARGET, SOURCE, Unreachable.HOST)
        for packet, code in zip(self.system.packets, (3, 1), strict=True):
            found = parse(packet)
            self.assertEqual((found.protocol, found.destinationHost), (ICMP, SOURCE.host))
            self.assertEqual(tuple(packet[found.payloadStart : found.payloadStart + 2]), (3, code))

    def test_opened(self) -> None:
        """The TUN is opened while we may, once, and is what was asked for."""
        gate = self.make(FOUR, SIX)
        gate.privilegedStartService()
        gate.startService()
        self.assertEqual(self.system.configured, [("tun7", Interface("tun7", (FOUR, SIX)))])
        self.assertEqual(gate.port.name, "tun7")
        gate.stopService()
        self.assertFalse(self.system.isOpen)

    def test_descriptor(self) -> None:
        """A TUN that is open already is left as it is."""
        self.system.flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        self.start(descriptor=99)
        self.assertEqual((self.system.configured, self.system.asked("open")), ([], []))

    def test_firstStack(self) -> None:
        """The stack is the first that works."""
        for tun, netns, name in (
            (MemoryStack, FailingStack, "memory"),
            (SilentStack, MemoryStack, "memory"),
            (FailingStack, MemoryStack, "memory"),
        ):
            self.use(tun, netns)
            gate = self.start()
            self.assertEqual(gate.report()["stack"], name)
            self.doCleanups()
        self.assertEqual([stack.name for stack in self.stacks], ["memory", "silent", "memory", "failing", "memory"])
        self.assertEqual(self.stacks[1].calls, ["start", "stop"])

    def test_noStack(self) -> None:
        """If none works, that is said with all reasons, and nothing stays open."""
        self.use(SilentStack, FailingStack)
        gate = self.make(FOUR)
        error = self.assertRaises(ListenError, gate.startService)
        self.assertEqual(str(error), "nothing gets through; no such thing here")
        self.assertEqual((self.reactor.getReaders(), self.system.isOpen), ([], False))
        gate.stopService()

    def test_chosenStack(self) -> None:
        """Who chooses a stack gets that one; without an address there is no stack tun."""
        for options, addresses, which in (
            ({"stack": "tun"}, (FOUR,), ["silent"]),
            ({"stack": "netns"}, (FOUR,), ["failing"]),
            ({}, (), ["failing"]),
            ({"stack": "other"}, (FOUR,), []),
        ):
            self.use(SilentStack, FailingStack)
            self.stacks.clear()
            error = self.assertRaises(ListenError, self.make(*addresses, **options).privilegedStartService)
            self.assertEqual([stack.name for stack in self.stacks], which)
        self.assertEqual(str(error), "there is no stack other: expected auto, tun, netns")

    def test_places(self) -> None:
        """Stack tun gets each address with the next one in its network, or the one before; there must be one."""
        for address, place in (
            ("10.9.0.1/24", ("10.9.0.1", "10.9.0.2")),
            ("10.9.0.254/24", ("10.9.0.254", "10.9.0.253")),
            ("10.9.0.2/30", ("10.9.0.2", "10.9.0.1")),
            ("fd00:9::1/64", ("fd00:9::1", "fd00:9::2")),
        ):
            self.use(MemoryStack, MemoryStack)
            self.start(address)
            self.assertEqual(self.stacks[-1].given[2], [place])
            self.doCleanups()
        for address in ("10.9.0.1/32", "10.9.0.1/31", "fd00:9::1/128"):
            self.use(MemoryStack, MemoryStack)
            error = self.assertRaises(ListenError, self.make(address, stack="tun").startService)
            self.assertIn(address, str(error))

    def test_time(self) -> None:
        """Once a second everything is told the time; and no more when it has stopped."""
        gate = self.start()
        for _ in range(2):
            self.reactor.advance(1)
        gate.stopService()
        self.reactor.advance(5)
        self.assertEqual(self.stacks[0].calls, ["start", ("tick", 1.0), ("tick", 2.0), "stop"])

    def test_lost(self) -> None:
        """Whoever wants to know is told when the TUN is gone; a gateway that nobody watches says it in the log."""
        for watched in (True, False):
            gate, reasons = self.start(), []
            if watched:
                gate.lost = reasons.append
            self.system.refused["read"] = OSError(77, "deleted")  # EBADFD
            (port,) = self.reactor.getReaders()
            port.doRead()
            self.reactor.advance(0)
            self.assertEqual(reasons, ["deleted"] if watched else [])
            self.system.refused.clear()
            gate.stopService()

    def test_down(self) -> None:
        """A TUN that is set down says nothing by itself; it is found out by looking."""
        gate, reasons = self.start(), []
        gate.lost = reasons.append
        self.system.up = False
        self.reactor.advance(1)
        self.reactor.advance(0)
        self.assertEqual(reasons, ["down"])

    def test_connectionsEnd(self) -> None:
        """Connections end with the gateway that they came through."""
        gate, ended = self.start(), []
        self.patch(gate.tcp, "stop", lambda: ended.append("all"))
        gate.stopService()
        self.assertEqual(ended, ["all"])

    def test_report(self) -> None:
        """The figures say which stack it is, and what went through."""
        gate = self.start()
        gate.writeTo(b"hello", SOURCE, ANYBODY)
        report = gate.report()
        self.assertEqual((report["stack"], report["connections"], report["sent"]), ("memory", 0, 1))
