"""Tests for L{udptunnel.net.tun}, in memory; tests.system.test_tun has real devices."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest.mock import patch

from twisted.internet.error import ConnectionLost
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.linuxtun import LinuxSystem
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import LARGEST_PACKET, NAMES, PACKETS, READ_SECONDS, TunOffload, TunPort
from udptunnel.net.tundevice import (
    FIONBIO,
    HEADER_BYTES,
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_VNET_HDR,
    QUEUE_PACKETS,
    TUN_F_CSUM,
    TUN_F_TSO,
    TUN_F_USO,
    TUNGETIFF,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
    Interface,
)
from udptunnel.wire.frame import Buffer

DESCRIPTOR = 77
MODULES = "pytun", "pyroute2", "pyroute2.netlink", "pyroute2.netlink.exceptions"
NO_HEADER = bytes(HEADER_BYTES)
SEGMENTS = struct.pack("=BBHHHH", 1, 1, 40, 1448, 20, 16)
DATAGRAMS = struct.pack("=BBHHHH", 1, 5, 28, 1400, 20, 6)
PACKET = b"\x45 a packet"


def failure(code: int) -> OSError:
    """What a system call raises."""
    return OSError(code, os.strerror(code))


class MemorySystem:
    """
    An operating system with one TUN, whose packets a test puts in and takes out.

    @ivar arrived: packets that wait to be read.
    @ivar written: packets that were written, without those that only try something.
    @ivar refused: what the next calls raise: for a write by its second byte, for others by their name or request.
    @ivar offload: what TUNSETOFFLOAD was last given.
    """

    def __init__(self, vnet: bool = True) -> None:
        self.vnet = vnet
        self.flags = 0
        self.arrived: deque[bytes] = deque()
        self.written: list[bytes] = []
        self.refused: dict[Any, OSError] = {}
        self.calls: list[tuple[Any, Any]] = []
        self.configured: list[tuple[str, Interface]] = []
        self.offload = 0
        self.up = self.isOpen = True
        self.broken = False

    def _called(self, what: Any, argument: Any = None) -> None:
        self.calls.append((what, argument))
        if what in self.refused:
            raise self.refused[what]

    def open(self, name: str, flags: int) -> int:
        self._called("open", (name, flags))
        if flags & IFF_VNET_HDR and not self.vnet:
            raise failure(errno.EINVAL)
        self.flags = flags
        return DESCRIPTOR

    def close(self, descriptor: int) -> None:
        self._called("close", descriptor)
        self.isOpen = False

    def read(self, descriptor: int, buffer: memoryview) -> int:
        self._called("read")
        if not self.arrived:
            raise failure(errno.EAGAIN)
        packet = self.arrived.popleft()
        buffer[: len(packet)] = packet
        return len(packet)

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        packet = b"".join(buffers)
        if "write" in self.refused:
            raise self.refused["write"]
        if self.flags & IFF_VNET_HDR and packet[1] and (self.broken or b"wrong" in packet):
            raise failure(errno.EINVAL)
        if not self.up:
            raise failure(errno.EIO)
        if PACKET in packet:
            self.written.append(packet)
        return len(packet)

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        self._called(request, argument)
        if request == TUNGETIFF:
            return struct.pack("=16sH22x", b"tun7", self.flags)
        if request == TUNSETOFFLOAD:
            if isinstance(argument, int) and (TUNSETOFFLOAD, argument) in self.refused:
                raise self.refused[TUNSETOFFLOAD, argument]
            self.offload = argument
        return 0

    def configure(self, name: str, interface: Interface) -> None:
        self._called("configure")
        self.configured.append((name, interface))

    def addresses(self, name: str) -> list[str]:
        return []

    def asked(self, what: Any) -> list[Any]:
        """The arguments of all calls of a kind."""
        return [argument for called, argument in self.calls if called == what]


class RecordingReceiver:
    """
    A receiver that keeps what arrives.

    @ivar calls: the packets of each call, copied.
    """

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.losses: list[str] = []

    def packetsReceived(self, packets: list[memoryview]) -> None:
        self.calls.append([bytes(packet) for packet in packets])

    def lost(self, why: str) -> None:
        self.losses.append(why)


class TunTestCase(SynchronousTestCase):
    """Ports on a system in memory; when a test ends, nothing is left on the reactor."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.receiver = RecordingReceiver()
        self.counters = Counters()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.addCleanup(self._checkReactor)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    @property
    def warnings(self) -> list[str]:
        """The abilities of all log lines that say that some are off."""
        return [event["ability"] for event in self.events if event.get("log_level") == LogLevel.warn]

    def makePort(
        self, system: MemorySystem, names: Sequence[str] = NAMES, interface: Interface | None = None
    ) -> TunPort:
        """A port that is not open."""
        interface = interface or Interface("tun7")
        port = TunPort(self.reactor, interface, self.receiver, TunOffload(names), self.counters, system)
        self.addCleanup(port.close)
        return port

    def openPort(
        self, system: MemorySystem | None = None, names: Sequence[str] = NAMES
    ) -> tuple[TunPort, MemorySystem]:
        """A port that is open."""
        system = system or MemorySystem()
        port = self.makePort(system, names)
        port.open()
        return port, system


class OffloadTests(TunTestCase):
    """L{TunOffload}."""

    def test_text(self) -> None:
        """What is used is said in one word or several."""
        self.assertEqual(str(TunOffload()), "vnet,tso,uso")
        self.assertEqual(str(TunOffload(("uso", "vnet"))), "vnet,uso")
        self.assertEqual(str(TunOffload(())), "none")

    def test_needHeaders(self) -> None:
        """Without virtio headers nothing else is used."""
        self.assertEqual(str(TunOffload(("tso", "uso"))), "none")
        self.assertEqual(TunOffload(("tso", "uso")).flags, 0)

    def test_refused(self) -> None:
        """What the kernel refuses is off, with one log line however often it is refused."""
        offload = TunOffload()
        for _ in range(3):
            offload.refused(failure(errno.EINVAL), "tso", "uso")
        self.assertEqual((str(offload), self.warnings), ("vnet", ["tso,uso"]))


class OpenTests(TunTestCase):
    """Making a device, or using one."""

    def test_open(self) -> None:
        """A device is made, and asked for all that it can do, one thing after the other; no call of it blocks."""
        port, system = self.openPort()
        self.assertEqual(system.asked("open"), [("tun7", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)])
        steps = [TUN_F_CSUM, TUN_F_CSUM | TUN_F_TSO, TUN_F_CSUM | TUN_F_TSO | TUN_F_USO]
        self.assertEqual(system.asked(TUNSETOFFLOAD), steps)
        self.assertEqual(system.asked(TUNSETVNETHDRSZ), [struct.pack("=i", HEADER_BYTES)])
        self.assertEqual(system.asked(FIONBIO), [struct.pack("=i", 1)])
        self.assertEqual((port.name, port.headed, port.fileno()), ("tun7", True, DESCRIPTOR))
        self.assertEqual((port.logPrefix(), self.reactor.getReaders(), self.warnings), ("TUN tun7", [port], []))

    def test_configured(self) -> None:
        """It gets what it is to have, under the name that the kernel gave it."""
        system = MemorySystem()
        interface = Interface(addresses=("10.0.0.1/24", "fd00:9::1/64"), mtu=1400)
        self.makePort(system, interface=interface).open()
        self.assertEqual(system.configured, [("tun7", interface)])
        self.assertEqual(interface.queue, QUEUE_PACKETS)

    def test_chosen(self) -> None:
        """Nothing is asked for that is switched off."""
        for names, asked in (
            (("vnet",), TUN_F_CSUM),
            (("vnet", "tso"), TUN_F_CSUM | TUN_F_TSO),
            (("vnet", "uso"), TUN_F_CSUM | TUN_F_USO),
        ):
            _, system = self.openPort(names=names)
            self.assertEqual(system.offload, asked)

    def test_withoutHeaders(self) -> None:
        """Where virtio headers are switched off there are none, and never a TUNSETOFFLOAD."""
        port, system = self.openPort(names=())
        self.assertEqual(system.asked("open"), [("tun7", IFF_TUN | IFF_NO_PI)])
        self.assertEqual((system.asked(TUNSETOFFLOAD), port.headed, self.warnings), ([], False, []))

    def test_noHeaders(self) -> None:
        """A kernel without virtio headers makes a device without them, and that is said once."""
        port, system = self.openPort(MemorySystem(vnet=False))
        self.assertEqual([flags & IFF_VNET_HDR for _, flags in system.asked("open")], [IFF_VNET_HDR, 0])
        self.assertEqual((system.asked(TUNSETOFFLOAD), port.headed), ([], False))
        self.assertEqual(self.warnings, ["vnet,tso,uso"])

    def test_halfAble(self) -> None:
        """What a kernel refuses is left out, and what it takes is used."""
        tso, uso = TUN_F_CSUM | TUN_F_TSO, TUN_F_CSUM | TUN_F_USO
        for refused, left, text, said in (
            ((tso | uso,), tso, "vnet,tso", ["uso"]),
            ((tso,), uso, "vnet,uso", ["tso"]),
            ((tso, uso), TUN_F_CSUM, "vnet", ["tso", "uso"]),
            ((TUN_F_CSUM,), 0, "none", ["vnet,tso,uso"]),
        ):
            self.events.clear()
            system, offload = MemorySystem(), TunOffload()
            system.refused = {(TUNSETOFFLOAD, flags): failure(errno.EINVAL) for flags in refused}
            port = TunPort(self.reactor, Interface(), self.receiver, offload, self.counters, system)
            self.addCleanup(port.close)
            port.open()
            self.assertEqual((system.offload, str(offload), self.warnings), (left, text, said))
            self.assertTrue(port.headed)

    def test_canNot(self) -> None:
        """If the device can not be made or configured, that is said, and nothing stays open."""
        for what in ("open", "configure", FIONBIO):
            for code in (errno.EPERM, errno.ENOENT, errno.EBUSY):
                system = MemorySystem()
                system.refused = {what: failure(code)}
                port = self.makePort(system, interface=Interface("tun7", ("10.0.0.1/24",)))
                message = str(self.assertRaises(ListenError, port.open))
                self.assertIn(os.strerror(code), message)
                self.assertEqual((port.fileno(), system.isOpen), (-1, what == "open"))

    def test_configuredByOthers(self) -> None:
        """Who may not configure a device may use one that has its addresses already."""
        system = MemorySystem()
        system.refused = {"configure": failure(errno.EPERM)}
        port = self.makePort(system)
        port.open()
        self.assertEqual(port.fileno(), DESCRIPTOR)

    def test_noModule(self) -> None:
        """A machine without python-pytun hears that it is missing."""
        system = MemorySystem()
        system.refused = {"open": ImportError("No module named 'pytun'")}  # type: ignore[dict-item]
        self.assertIn("pytun", str(self.assertRaises(ListenError, self.makePort(system).open)))

    def test_closedTwice(self) -> None:
        """A port may be closed at any time, and any number of times."""
        port, system = self.openPort()
        for _ in range(2):
            port.close()
        self.assertEqual((system.asked("close"), port.fileno()), ([DESCRIPTOR], -1))


class AdoptTests(TunTestCase):
    """Descriptors that somebody else has opened."""

    def adopt(self, flags: int, headed: bool = False, silent: bool = False) -> tuple[TunPort, MemorySystem]:
        """A port on a device that has these flags, which the kernel may not tell."""
        system = MemorySystem()
        system.flags = flags
        if silent:
            system.refused[TUNGETIFF] = failure(errno.EPERM)
        port = self.makePort(system)
        port.adopt(DESCRIPTOR, headed)
        return port, system

    def test_kernelsWord(self) -> None:
        """The kernel knows whether there are virtio headers."""
        for headed in (False, True):
            port, system = self.adopt(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, headed)
            self.assertEqual((port.headed, system.offload), (True, 0x67))
            port, system = self.adopt(IFF_TUN | IFF_NO_PI, headed)
            self.assertEqual((port.headed, system.asked(TUNSETOFFLOAD)), (False, []))

    def test_ownWord(self) -> None:
        """Where it does not tell, whoever hands over the descriptor does."""
        port, system = self.adopt(0, headed=False, silent=True)
        self.assertEqual((port.headed, system.asked(TUNSETOFFLOAD)), (False, []))
        port, system = self.adopt(0, headed=True, silent=True)
        self.assertEqual((port.headed, system.offload), (True, 0x67))

    def test_leftAlone(self) -> None:
        """The device is not configured, unless somebody asks for it."""
        port, system = self.adopt(IFF_TUN | IFF_NO_PI)
        self.assertEqual(system.configured, [])
        port.configure()
        self.assertEqual([name for name, _ in system.configured], ["tun7"])

    def test_headersUnwanted(self) -> None:
        """Virtio headers can not be switched off later; but nothing is asked for."""
        system = MemorySystem()
        system.flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        port = self.makePort(system, ())
        port.adopt(DESCRIPTOR)
        self.assertEqual((port.headed, system.asked(TUNSETOFFLOAD)), (True, [0]))

    def test_otherDevices(self) -> None:
        """A TAP, and a TUN with packet information, are of no use."""
        for flags in (IFF_TAP | IFF_NO_PI, IFF_TUN, IFF_TUN | IFF_VNET_HDR):
            self.assertIn("IFF_NO_PI", str(self.assertRaises(ListenError, self.adopt, flags)))


class FakeDevice:
    """What python-pytun makes, with a pipe in the place of the device."""

    made: tuple[str, int] = ("", 0)

    def __init__(self, name: str, flags: int) -> None:
        FakeDevice.made = name, flags
        self._far, self._near = os.pipe()

    def fileno(self) -> int:
        return self._near

    def close(self) -> None:
        os.close(self._near)
        os.close(self._far)


class FakeRoute:
    """What pyroute2 does, of which it is only noted down."""

    done: list[tuple[Any, ...]] = []  # noqa: RUF012
    error: Exception | None = None

    def __enter__(self) -> FakeRoute:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link_lookup(self, ifname: str) -> list[int]:
        return [5]

    def link(self, what: str, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.done.append((what, options))

    def addr(self, what: str, **options: Any) -> None:
        self.done.append((what, options))


class FakeNetlinkError(Exception):
    """What pyroute2 raises."""

    code = errno.EPERM


class LinuxTests(TunTestCase):
    """L{LinuxSystem}, without devices."""

    def setUp(self) -> None:
        super().setUp()
        FakeRoute.done, FakeRoute.error = [], None
        fakes = {name: ModuleType(name) for name in MODULES}
        fakes["pytun"].__dict__["TunTapDevice"] = FakeDevice
        fakes["pyroute2"].__dict__["IPRoute"] = FakeRoute
        fakes["pyroute2.netlink.exceptions"].__dict__["NetlinkError"] = FakeNetlinkError
        patched = patch.dict(sys.modules, fakes)
        patched.start()
        self.addCleanup(patched.stop)
        self.system = LinuxSystem()

    def test_open(self) -> None:
        """A device lives as long as the descriptor, which no child inherits."""
        descriptor = self.system.open("tun7", IFF_TUN)
        self.assertEqual((FakeDevice.made, os.get_inheritable(descriptor)), (("tun7", IFF_TUN), False))
        self.system.close(descriptor)
        self.assertRaises(OSError, os.fstat, descriptor)

    def test_packets(self) -> None:
        """Packets are written from several buffers and read into one; nothing blocks when there is none."""
        far, near = os.pipe()
        self.addCleanup(os.close, far)
        self.system.ioctl(far, FIONBIO, struct.pack("=i", 1))
        self.assertEqual(self.system.write(near, (NO_HEADER, PACKET)), HEADER_BYTES + len(PACKET))
        self.system.close(near)
        memory = bytearray(100)
        length = self.system.read(far, memoryview(memory)[1:])
        self.assertEqual(memory[1 : length + 1], NO_HEADER + PACKET)
        self.assertFalse(os.get_blocking(far))

    def test_configure(self) -> None:
        """MTU, queue and addresses come before the device is set up; nobody is asked about an IPv6 address."""
        self.system.configure("no-such-device", Interface("", ("10.0.0.1/24", "fd00:9::1/64"), 1400, 700))
        expected = [
            ("set", {"index": 5, "mtu": 1400, "txqlen": 700}),
            ("replace", {"index": 5, "address": "10.0.0.1", "prefixlen": 24}),
            ("replace", {"index": 5, "address": "fd00:9::1", "prefixlen": 64, "flags": 2}),
            ("set", {"index": 5, "state": "up"}),
        ]
        self.assertEqual(FakeRoute.done, expected)

    def test_mayNot(self) -> None:
        """What netlink refuses is an error of the operating system."""
        FakeRoute.error = FakeNetlinkError()
        error = self.assertRaises(OSError, self.system.configure, "no-such-device", Interface())
        self.assertEqual(error.errno, errno.EPERM)

    def test_noDescriptor(self) -> None:
        """A number that is no descriptor is an error that says so."""
        port = TunPort(self.reactor, Interface(), self.receiver, TunOffload(), self.counters)
        self.assertIn("descriptor 99999", str(self.assertRaises(ListenError, port.adopt, 99999)))
        self.assertEqual(port.fileno(), -1)


class ReadTests(TunTestCase):
    """What arrives."""

    def test_together(self) -> None:
        """What has arrived is passed on in one call, in order."""
        port, system = self.openPort()
        packets = [NO_HEADER + b"\x45 first", SEGMENTS + b"\x45" * 60000, NO_HEADER + b"\x60"]
        system.arrived.extend(packets)
        port.doRead()
        self.assertEqual(self.receiver.calls, [packets])
        self.assertEqual((self.counters.received, self.counters.receivedBytes), (3, 7 + 60000 + 1))

    def test_mistake(self) -> None:
        """A mistake of who gets the packets does not close the port: the next ones arrive."""
        port, system = self.openPort()
        self.patch(self.receiver, "packetsReceived", lambda packets: 1 // 0)
        system.arrived.append(NO_HEADER + b"\x45 first")
        port.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(port.fileno(), DESCRIPTOR)

    def test_withoutHeaders(self) -> None:
        """Where the device has no virtio headers, there stand some that ask for nothing."""
        port, system = self.openPort(names=())
        for packets in ([b"\xff" * 100] * 3, [b"\x45 first", b"\x45 second"]):
            system.arrived.extend(packets)
            port.doRead()
            self.assertEqual(self.receiver.calls.pop(), [NO_HEADER + packet for packet in packets])
        self.assertEqual(self.counters.receivedBytes, 300 + 7 + 8)

    def test_largest(self) -> None:
        """The largest packet there is arrives whole, whatever came before it."""
        for names in (NAMES, ()):
            port, system = self.openPort(names=names)
            header = NO_HEADER if names else b""
            whole = [header + os.urandom(LARGEST_PACKET) for _ in range(40)]
            system.arrived.extend(whole)
            while system.arrived:
                port.doRead()
            got = [packet for call in self.receiver.calls for packet in call]
            self.assertTrue([packet[-LARGEST_PACKET:] for packet in got] == [each[-LARGEST_PACKET:] for each in whole])
            self.assertGreaterEqual(len(self.receiver.calls[0]), 15)
            self.receiver.calls.clear()
            port.close()

    def test_share(self) -> None:
        """At most so many are read in one wake-up, and the rest in the next."""
        port, system = self.openPort()
        system.arrived.extend([NO_HEADER + PACKET] * (PACKETS + 10))
        port.doRead()
        port.doRead()
        self.assertEqual([len(call) for call in self.receiver.calls], [PACKETS, 10])

    def test_slow(self) -> None:
        """Nor does one wake-up read for longer than its share of time."""

        class SlowSystem(MemorySystem):
            def read(system, descriptor: int, buffer: memoryview) -> int:  # noqa: N805
                self.reactor.advance(READ_SECONDS / 4)
                return super().read(descriptor, buffer)

        port, system = self.openPort(SlowSystem())
        system.arrived.extend([NO_HEADER + PACKET] * 10)
        port.doRead()
        self.assertEqual(len(self.receiver.calls[0]), 4)

    def test_nothing(self) -> None:
        """A wake-up for nothing is no call."""
        port, system = self.openPort()
        for code in (errno.EAGAIN, errno.EINTR):
            system.refused["read"] = failure(code)
            port.doRead()
        self.assertEqual((self.receiver.calls, self.counters.dropped), ([], {}))

    def test_errors(self) -> None:
        """What else goes wrong is counted by its name."""
        port, system = self.openPort()
        system.refused["read"] = failure(errno.EFAULT)
        port.doRead()
        self.assertEqual(self.counters.dropped, {"read EFAULT": 1})

    def test_writable(self) -> None:
        """What has arrived may be changed where it lies, and written back."""
        port, system = self.openPort()

        class Receiver(RecordingReceiver):
            def packetsReceived(self, packets: list[memoryview]) -> None:
                for packet in packets:
                    packet[10] = 0x45
                    port.write(packet)

        port._receiver = Receiver()
        system.arrived.append(NO_HEADER + b"\0" + PACKET[1:])
        port.doRead()
        self.assertEqual(system.written, [NO_HEADER + PACKET])


class WriteTests(TunTestCase):
    """What is written."""

    def test_pieces(self) -> None:
        """A packet may lie in several buffers."""
        port, system = self.openPort()
        port.write(SEGMENTS, bytearray(PACKET), memoryview(b"payload"))
        self.assertEqual(system.written, [SEGMENTS + PACKET + b"payload"])
        self.assertEqual((self.counters.sent, self.counters.sentBytes), (1, len(PACKET) + 7))

    def test_withoutHeaders(self) -> None:
        """A device without virtio headers gets none."""
        port, system = self.openPort(names=())
        port.write(NO_HEADER + PACKET)
        port.write(NO_HEADER, PACKET)
        self.assertEqual(system.written, [PACKET, PACKET])
        self.assertEqual((self.counters.sent, self.counters.sentBytes), (2, 2 * len(PACKET)))

    def test_unfinished(self) -> None:
        """It does not get what only others could finish."""
        port, system = self.openPort(names=())
        for header in (SEGMENTS, DATAGRAMS, b"\x01" + NO_HEADER[1:]):
            port.write(header + PACKET)
        self.assertEqual(system.written, [])
        self.assertEqual(sum(self.counters.dropped.values()), 3)

    def test_errors(self) -> None:
        """What the kernel does not take is dropped and counted by reason; the port stays open."""
        port, system = self.openPort()
        for code in (errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM, errno.EINVAL):
            system.refused["write"] = failure(code)
            port.write(NO_HEADER + PACKET)
        del system.refused["write"]
        port.write(NO_HEADER + PACKET)
        reasons = {f"write {name}": 1 for name in ("ENOBUFS", "EAGAIN", "ENOMEM", "EINVAL")}
        self.assertEqual((self.counters.dropped, len(system.written)), (reasons, 1))
        self.assertEqual(self.warnings, [])

    def test_brokenKernel(self) -> None:
        """A kernel that takes no segments is not asked for any more, with one log line for each kind."""
        port, system = self.openPort()
        system.broken = True
        for header in (SEGMENTS, DATAGRAMS) * 3:
            port.write(header + PACKET)
        self.assertEqual(self.warnings, ["tso", "uso"])
        self.assertEqual((system.offload, system.written), (TUN_F_CSUM, []))
        self.assertEqual(self.counters.dropped, {"write EINVAL": 6})
        port.write(NO_HEADER + PACKET)
        self.assertEqual(len(system.written), 1)

    def test_brokenPacket(self) -> None:
        """If it is only this packet that is wrong, nothing is switched off."""
        port, system = self.openPort()
        for header in (SEGMENTS, DATAGRAMS):
            port.write(header + PACKET + b"wrong")
            port.write(header + PACKET)
        self.assertEqual((self.warnings, system.offload, len(system.written)), ([], 0x67, 2))

    def test_closed(self) -> None:
        """What is written to a closed port is dropped."""
        port, system = self.openPort()
        port.close()
        port.write(NO_HEADER + PACKET)
        self.assertEqual((system.written, self.counters.dropped), ([], {"write closed": 1}))


class LossTests(TunTestCase):
    """Devices that go away."""

    def assertLost(self, why: str, system: MemorySystem) -> None:
        """The port is closed, and the receiver is told once, later."""
        self.assertEqual((self.reactor.getReaders(), system.isOpen, self.receiver.losses), ([], False, []))
        self.reactor.advance(0)
        self.reactor.advance(10)
        self.assertEqual(self.receiver.losses, [why])

    def test_reading(self) -> None:
        """A deleted device is found out by reading; what came before is not lost."""
        port, system = self.openPort()
        system.refused["read"] = failure(errno.EBADFD)
        port.doRead()
        port.doRead()
        self.assertLost("deleted", system)

    def test_writing(self) -> None:
        """Both are found out by writing, however much is written before the receiver can be told."""
        for code, why in ((errno.EIO, "down"), (errno.EBADFD, "deleted")):
            port, system = self.openPort()
            system.refused["write"] = failure(code)
            for _ in range(5):
                port.write(NO_HEADER + PACKET)
            self.assertLost(why, system)
            self.receiver.losses.clear()

    def test_checking(self) -> None:
        """A device that was set down is silent; looking at it finds out, and harms none that is up."""
        for names in (NAMES, ()):
            port, system = self.openPort(names=names)
            port.check()
            self.assertEqual((port.fileno(), self.counters.sent), (DESCRIPTOR, 0))
            system.up = False
            for _ in range(3):
                port.check()
            self.assertLost("down", system)
            self.receiver.losses.clear()

    def test_checkingErrors(self) -> None:
        """A look that fails for another reason means nothing."""
        port, system = self.openPort()
        system.refused["write"] = failure(errno.ENOBUFS)
        port.check()
        self.assertEqual(port.fileno(), DESCRIPTOR)

    def test_polling(self) -> None:
        """When poll() reports an error the device is deleted, and the reactor says so without a read."""
        port, system = self.openPort()
        system.refused["write"] = failure(errno.EBADFD)
        self.reactor.removeReader(port)
        port.connectionLost(Failure(ConnectionLost()))
        self.assertLost("deleted", system)

    def test_stopping(self) -> None:
        """A reactor that stops says the same, but then nothing is lost."""
        port, system = self.openPort()
        port.connectionLost(Failure(ConnectionLost()))
        self.reactor.advance(0)
        self.assertEqual((self.receiver.losses, system.isOpen), ([], False))

    def test_closedMeanwhile(self) -> None:
        """Whoever closes a port hears no more of it."""
        port, system = self.openPort()
        system.refused["write"] = failure(errno.EIO)
        port.write(NO_HEADER + PACKET)
        port.close()
        self.reactor.advance(0)
        self.assertEqual(self.receiver.losses, [])

    def test_again(self) -> None:
        """A port whose device is gone may be opened once more."""
        port, system = self.openPort()
        system.refused["write"] = failure(errno.EBADFD)
        port.check()
        self.assertLost("deleted", system)
        del system.refused["write"]
        port.open()
        port.write(NO_HEADER + PACKET)
        self.assertEqual(len(system.written), 1)
