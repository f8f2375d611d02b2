"""Tests for L{udptunnel.net.packet}, in memory; tests.system.test_packet has real interfaces."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections import deque
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.packet import (
    ETH_P_ALL,
    ETHERNET_BYTES,
    PACKET_IGNORE_OUTGOING,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    QUEUE_BYTES,
    RETRY_SECONDS,
    SO_ATTACH_FILTER,
    SO_LOCK_FILTER,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    CapturePort,
)
from udptunnel.net.packetfilter import INSTRUCTION, capturing
from udptunnel.net.testing import PortReactor

DESCRIPTOR, INTERFACE, PREFIXES = 78, "eth7", ["10.1.0.0/16", "fd01::/16"]
ETHERNET, BARE, RADIO = 1, 65534, 801
PLAIN = bytes(10)
LOST, DONE = Failure(ConnectionLost()), Failure(ConnectionDone())


def failure(code: int) -> OSError:
    """What a system call raises."""
    return OSError(code, os.strerror(code))


def ipv4(length: int, total: int | None = None) -> bytes:
    """A packet that says how long it is."""
    return struct.pack("!BxH", 0x45, length if total is None else total) + bytes(length - 4)


def ipv6(length: int, total: int | None = None) -> bytes:
    """The same of IPv6."""
    return struct.pack("!B3xH", 0x60, (length if total is None else total) - 40) + bytes(length - 6)


class MemorySocket:
    """
    A socket of AF_PACKET.

    @ivar steps: what was done with it, one after the other.
    """

    def __init__(self, system: MemorySystem) -> None:
        self.system = system
        self.steps: list[Any] = []
        self.program = b""
        self.isOpen = True

    def fileno(self) -> int:
        return DESCRIPTOR

    def setsockopt(self, level: int, name: int, value: Any, /) -> None:
        self.steps.append((level, name))
        if name == SO_ATTACH_FILTER and level == socket.SOL_SOCKET:
            count, place = struct.unpack("@HP", value)
            self.program = ctypes.string_at(place, count * INSTRUCTION.size)
        else:
            self.system.options[level, name] = value
        self.system.called((level, name))

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes:
        if (level, name) == (SOL_PACKET, PACKET_STATISTICS):
            dropped, self.system.dropped = self.system.dropped, 0
            return struct.pack("=II", 0, dropped)
        error, self.system.error = self.system.error, 0
        return struct.pack("=i", error)

    def bind(self, address: tuple[str, int], /) -> None:
        self.steps.append(address)
        self.system.called("bind")
        if not self.system.up:
            self.system.error = errno.ENETDOWN

    def close(self) -> None:
        self.isOpen = False


class MemorySystem:
    """
    An operating system with one interface.

    @ivar arrived: what the next calls give, each a list of packets, or raise.
    @ivar refused: what calls raise, by their name or option.
    @ivar dropped: what the kernel has dropped.
    """

    def __init__(self) -> None:
        self.arrived: deque[list[bytes] | OSError] = deque()
        self.refused: dict[Any, OSError] = {}
        self.options: dict[tuple[int, int], Any] = {}
        self.sockets: list[MemorySocket] = []
        self.links: list[int] = []
        self.kind = ETHERNET
        self.up = True
        self.error = self.dropped = 0

    def called(self, what: Any) -> None:
        if what in self.refused:
            raise self.refused[what]

    def socket(self) -> MemorySocket:
        self.called("socket")
        self.sockets.append(MemorySocket(self))
        return self.sockets[-1]

    def linkOf(self, interface: str) -> int:
        self.called("linkOf")
        return self.kind

    def inbox(self, link: int) -> MemorySystem:
        self.links.append(link)
        return self

    def receive(self, descriptor: int) -> list[memoryview]:
        given = self.arrived.popleft() if self.arrived else []
        if isinstance(given, OSError):
            raise given
        return [memoryview(bytearray(each)) for each in given]


class RecordingReceiver:
    """
    A receiver that keeps what arrives.

    @ivar calls: the packets of each call, copied.
    """

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.losses: list[str] = []
        self.broken = False

    def packetsReceived(self, packets: list[memoryview]) -> None:
        self.calls.append([bytes(packet) for packet in packets])
        if self.broken:
            raise ZeroDivisionError

    def lost(self, why: str) -> None:
        self.losses.append(why)


class CaptureTestCase(SynchronousTestCase):
    """A port on a system in memory; when a test ends, nothing is left on the reactor."""

    def setUp(self) -> None:
        self.reactor, self.system, self.counters = PortReactor(), MemorySystem(), Counters()
        self.receiver = RecordingReceiver()
        self.port = CapturePort(self.reactor, INTERFACE, PREFIXES, self.receiver, self.counters, self.system)
        self.addCleanup(self._checkReactor)
        self.addCleanup(self.port.close)

    def _checkReactor(self) -> None:
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual([each for each in self.system.sockets if each.isOpen], [])

    def arrive(self, *given: list[bytes] | OSError) -> None:
        """Things arrive, and are read one after the other."""
        self.system.arrived += given
        for _ in given:
            self.port.doRead()


class OpenTests(CaptureTestCase):
    """Opening and closing."""

    def test_order(self) -> None:
        """
        When the socket is bound, and so receives for the first time, the filter is there and can not be changed any
        more, and what is our own is left out.
        """
        self.port.open()
        (made,) = self.system.sockets
        self.assertEqual(made.steps[-1], (INTERFACE, ETH_P_ALL))
        self.assertEqual(made.program, capturing(PREFIXES))
        attached, locked = (socket.SOL_SOCKET, SO_ATTACH_FILTER), (socket.SOL_SOCKET, SO_LOCK_FILTER)
        self.assertLess(made.steps.index(attached), made.steps.index(locked))
        for option in (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING):
            self.assertEqual(self.system.options[SOL_PACKET, option], 1)
        self.assertEqual(self.reactor.getReaders(), [self.port])
        self.assertEqual((self.port.fileno(), self.port.isCapturing), (DESCRIPTOR, True))
        self.assertEqual(self.port.logPrefix(), f"capture at {INTERFACE}")

    def test_queue(self) -> None:
        """The kernel keeps much for us; what root may ask for, or else what others may."""
        self.system.refused[socket.SOL_SOCKET, SO_RCVBUFFORCE] = failure(errno.EPERM)
        self.port.open()
        self.assertEqual(self.system.options[socket.SOL_SOCKET, socket.SO_RCVBUF], QUEUE_BYTES)

    def test_links(self) -> None:
        """As many bytes are left out as an interface has before the IP packet: 14 of Ethernet, none of tunnels."""
        self.port.open()
        self.port.close()
        self.system.kind = BARE
        self.port.open()
        self.assertEqual(self.system.links, [ETHERNET_BYTES, 0])

    def test_refusals(self) -> None:
        """What can not be captured is refused with the option, its value and the reason; nothing stays open."""
        for what, code, text in (
            ("linkOf", errno.ENODEV, "there is no such interface"),
            ("socket", errno.EPERM, "capturing needs root or CAP_NET_RAW"),
            ("bind", errno.ENOMEM, os.strerror(errno.ENOMEM)),
            ((SOL_PACKET, PACKET_VNET_HDR), errno.EINVAL, os.strerror(errno.EINVAL)),
        ):
            self.system.refused = {what: failure(code)}
            error = self.assertRaises(ListenError, self.port.open)
            self.assertEqual(str(error), f"--interface eth7: {text}")
            self.assertEqual([each for each in self.system.sockets if each.isOpen], [])
        self.assertFalse(self.port.isCapturing)

    def test_otherLinks(self) -> None:
        """An interface of which nobody knows what stands before the IP packet is refused."""
        self.system.kind = RADIO
        error = self.assertRaises(ListenError, self.port.open)
        self.assertIn("neither Ethernet nor bare IP, but of kind 801", str(error))

    def test_noNetworks(self) -> None:
        """Networks are looked at before anything is opened."""
        self.assertRaises(
            ConfigError, CapturePort, self.reactor, INTERFACE, ["x"], self.receiver, self.counters, self.system
        )

    def test_close(self) -> None:
        """A closed port reads no more, has no descriptor, and can be closed again."""
        self.port.open()
        for _ in range(2):
            self.port.close()
        self.assertEqual((self.port.fileno(), self.reactor.getReaders()), (-1, []))


class ArrivalTests(CaptureTestCase):
    """What arrives."""

    def setUp(self) -> None:
        super().setUp()
        self.port.open()

    def test_counted(self) -> None:
        """All that has arrived is passed on in one call, and counted as received, without virtio headers."""
        packets = [PLAIN + ipv4(100), PLAIN + ipv6(200)]
        self.arrive(packets, [])
        self.assertEqual(self.receiver.calls, [packets])
        self.assertEqual((self.counters.received, self.counters.receivedBytes), (2, 300))

    def test_places(self) -> None:
        """
        What the kernel counts from the Ethernet header is counted from the IP header: where the checksum starts, and
        how long the headers are.
        """
        header = struct.Struct("=BBHHHH")
        for given, expected in (
            ((1, 1, 54 + 14, 1448, 20 + 14, 16), (1, 1, 54, 1448, 20, 16)),
            ((1, 0, 0, 0, 40 + 14, 6), (1, 0, 0, 0, 40, 6)),
            ((0, 5, 28 + 14, 1400, 0, 0), (0, 5, 28, 1400, 0, 0)),
            ((2, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0)),
        ):
            self.arrive([header.pack(*given) + ipv4(100)])
            self.assertEqual(header.unpack_from(self.receiver.calls[-1][0]), expected)

    def test_placesWithoutLink(self) -> None:
        """Where there is no Ethernet header, these numbers are right, and nothing was padded."""
        self.port.close()
        self.system.kind = BARE
        self.port.open()
        packet = struct.pack("=BBHHHH", 1, 0, 0, 0, 20, 6) + ipv4(40, 30)
        self.arrive([packet])
        self.assertEqual(self.receiver.calls, [[packet]])

    def test_padding(self) -> None:
        """What Ethernet adds to short packets is taken away, of both versions; longer frames have none."""
        self.arrive([PLAIN + ipv4(46, 28), PLAIN + ipv4(50, 50), PLAIN + ipv6(50, 41), PLAIN + ipv4(51, 28)])
        lengths = [len(packet) - len(PLAIN) for packet in self.receiver.calls[0]]
        self.assertEqual(lengths, [28, 50, 41, 51])

    def test_tooShort(self) -> None:
        """What is too short for a header is passed on as it is, and what comes with it and later, too."""
        stumps = [PLAIN + ipv4(20)[:length] for length in range(20)] + [PLAIN + ipv6(40)[:19]]
        self.arrive([*stumps, PLAIN + ipv4(100)], [PLAIN + ipv4(101)])
        self.assertEqual(self.receiver.calls, [[*stumps, PLAIN + ipv4(100)], [PLAIN + ipv4(101)]])

    def test_ownMistake(self) -> None:
        """A mistake of the port itself, here about what is not even a virtio header, loses no others either."""
        self.arrive([b""], [PLAIN + ipv4(101)])
        self.assertEqual(self.receiver.calls, [[PLAIN + ipv4(101)]])
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_mistake(self) -> None:
        """A mistake of the receiver loses these packets and no others."""
        self.receiver.broken = True
        self.arrive([PLAIN + ipv4(100)], [PLAIN + ipv4(101)])
        self.assertEqual(len(self.receiver.calls), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_readErrors(self) -> None:
        """An error of one call is counted by its name, and the next call goes on."""
        self.arrive(failure(errno.ENOMEM), [PLAIN + ipv4(100)])
        self.assertEqual(self.counters.dropped, {"capture ENOMEM": 1})
        self.assertEqual(len(self.receiver.calls), 1)

    def test_tooSlow(self) -> None:
        """What the kernel dropped because nobody read is counted, also when the port closes."""
        self.system.dropped = 7
        self.port.check()
        self.port.check()
        self.assertEqual(self.counters.dropped, {"capture queue full": 7})
        self.system.dropped = 2
        self.port.close()
        self.port.check()
        self.assertEqual(self.counters.dropped, {"capture queue full": 9})


class LossTests(CaptureTestCase):
    """An interface that goes, and comes back."""

    def setUp(self) -> None:
        super().setUp()
        self.port.open()

    def test_comesBack(self) -> None:
        """A lost interface is said once, after the call in which it was seen, and looked for until it is there."""
        self.system.refused["linkOf"] = failure(errno.ENODEV)
        self.arrive(failure(errno.ENETDOWN))
        self.assertEqual((self.port.isCapturing, self.receiver.losses), (False, []))
        self.reactor.advance(0)
        self.assertEqual(self.receiver.losses, ["down"])
        self.reactor.pump([RETRY_SECONDS] * 5)
        self.assertFalse(self.port.isCapturing)
        del self.system.refused["linkOf"]
        self.reactor.advance(RETRY_SECONDS)
        self.assertTrue(self.port.isCapturing)
        self.arrive([PLAIN + ipv4(100)])
        self.assertEqual((len(self.receiver.calls), self.receiver.losses), (1, ["down"]))

    def test_stillDown(self) -> None:
        """One that is there again, but down, is looked for further."""
        self.system.up = False
        self.arrive(failure(errno.ENETDOWN))
        self.reactor.pump([0, RETRY_SECONDS, RETRY_SECONDS])
        self.assertFalse(self.port.isCapturing)
        self.system.up = True
        self.reactor.advance(RETRY_SECONDS)
        self.assertTrue(self.port.isCapturing)

    def test_downAtFirst(self) -> None:
        """One that is down when we start is no error: it may come up."""
        self.port.close()
        self.system.up = False
        self.port.open()
        self.assertFalse(self.port.isCapturing)
        self.system.up = True
        self.reactor.pump([0, RETRY_SECONDS])
        self.assertTrue(self.port.isCapturing)

    def test_pollSaysSo(self) -> None:
        """The reactor sees an error and takes the descriptor away: that is a loss if the socket has an error."""
        self.system.error = errno.ENETDOWN
        self.port.connectionLost(LOST)
        self.reactor.advance(0)
        self.assertEqual(self.receiver.losses, ["down"])
        self.reactor.advance(RETRY_SECONDS)
        self.assertTrue(self.port.isCapturing)

    def test_reactorStops(self) -> None:
        """Without an error the reactor stops, and nobody looks for anything."""
        self.port.connectionLost(DONE)
        self.assertEqual((self.port.isCapturing, self.reactor.getDelayedCalls()), (False, []))
        self.port.connectionLost(DONE)

    def test_closedMeanwhile(self) -> None:
        """Who closes the port while it looks hears no more of it."""
        self.arrive(failure(errno.ENODEV))
        self.port.close()
        self.reactor.advance(RETRY_SECONDS)
        self.assertEqual((self.receiver.losses, self.port.isCapturing), ([], False))
