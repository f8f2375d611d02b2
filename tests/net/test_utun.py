"""Tests for L{udptunnel.net.utun}, on a macOS in memory."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_tun import RecordingReceiver
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net import utun
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import HEADER_BYTES, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, Interface
from udptunnel.net.utun import CTLIOCGINFO, PF_SYSTEM, SYSPROTO_CONTROL, UTUN_OPT_IFNAME, UtunSystem

CONTROL = 7
"""The number of the control on this machine."""

PACKET4, PACKET6 = b"\x45 a packet", b"\x60 another packet"
FAMILY4, FAMILY6 = b"\0\0\0\x02", b"\0\0\0\x1e"
NO_HEADER = bytes(HEADER_BYTES)


class FakeControl:
    """A control socket; a test has the other end."""

    def __init__(self, machine: Machine, refusal: OSError | None) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._machine = machine
        self._refusal = refusal

    def fileno(self) -> int:
        return self.near.fileno()

    def connect(self, address: tuple[int, int]) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._machine.connected.append(address)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return {(SYSPROTO_CONTROL, UTUN_OPT_IFNAME): b"utun5\0"}[level, option]

    def close(self) -> None:
        self.near.close()


class Machine:
    """
    What macOS does.

    @ivar connected: the control and unit of each device.
    @ivar ran: the commands that were run.
    """

    def __init__(self) -> None:
        self.connected: list[tuple[int, int]] = []
        self.ran: list[str] = []
        self.made: list[tuple[int, ...]] = []
        self.controls: list[FakeControl] = []
        self.refusal: OSError | None = None
        self.failure: subprocess.CalledProcessError | None = None

    def make(self, *kind: int) -> FakeControl:
        self.made.append(kind)
        self.controls.append(FakeControl(self, self.refusal))
        return self.controls[-1]

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> bytes:
        assert request == CTLIOCGINFO
        assert argument == struct.pack("=I96s", 0, b"com.apple.net.utun_control")
        return struct.pack("=I", CONTROL) + argument[4:]

    def run(self, words: tuple[str, ...], **_: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.ran.append(" ".join(words))

    def close(self) -> None:
        for each in self.controls:
            each.near.close()
            each.far.close()


class UtunTests(SynchronousTestCase):
    """L{UtunSystem}, and a port on it."""

    def setUp(self) -> None:
        if not hasattr(socket, "AF_UNIX"):
            self.skipTest("this double of macOS takes Unix sockets")
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.patch(utun, "fcntl", self.machine)
        self.system = UtunSystem(self.machine.run, self.machine.make)
        self.receiver = RecordingReceiver()
        self.counters = Counters()

    def openPort(self, name: str = "", *addresses: str) -> tuple[TunPort, socket.socket]:
        """A port, and the other side of its device."""
        interface = Interface(name, addresses, 1400)
        port = TunPort(PortReactor(), interface, self.receiver, TunOffload(), self.counters, self.system)
        port.open()
        self.addCleanup(port.close)
        return port, self.machine.controls[-1].far

    def test_open(self) -> None:
        """A device is a connected control socket, does not block, and is called what the kernel says."""
        port, _ = self.openPort()
        self.assertEqual(self.machine.made[-1], (PF_SYSTEM, socket.SOCK_DGRAM, SYSPROTO_CONTROL))
        self.assertEqual(self.machine.connected, [(CONTROL, 0)])
        self.assertEqual((port.name, port.headed), ("utun5", False))
        self.assertFalse(os.get_blocking(port.fileno()))

    def test_name(self) -> None:
        """A device may be asked for by its number, one less than its unit; any other name is refused."""
        self.openPort("utun5")
        self.assertEqual(self.machine.connected, [(CONTROL, 6)])
        for name in ("tun0", "utun", "utun-1", "5", "utun५"):
            error = self.assertRaises(ListenError, self.openPort, name)
            self.assertIn("utun0, utun1", str(error), name)

    def test_packets(self) -> None:
        """The address family stands before each packet on the wire, and nobody else sees it."""
        port, far = self.openPort()
        port.write(NO_HEADER + PACKET4)
        port.write(NO_HEADER, PACKET6[:3], PACKET6[3:])
        self.assertEqual([far.recv(100), far.recv(100)], [FAMILY4 + PACKET4, FAMILY6 + PACKET6])
        far.send(FAMILY4 + PACKET4)
        far.send(FAMILY6 + PACKET6)
        port.doRead()
        self.assertEqual(self.receiver.calls, [[NO_HEADER + PACKET4, NO_HEADER + PACKET6]])
        counters = self.counters
        self.assertEqual((counters.sentBytes, counters.receivedBytes), (len(PACKET4 + PACKET6),) * 2)
        self.assertEqual(counters.dropped, {})

    def test_configure(self) -> None:
        """A device gets MTU and addresses, and the networks behind them."""
        self.openPort("", "10.0.85.1/24", "fd00:9::1/64")
        expected = [
            "/sbin/ifconfig utun5 mtu 1400 up",
            "/sbin/ifconfig utun5 inet 10.0.85.1/24 10.0.85.1 alias",
            "/sbin/route -q -n add -inet 10.0.85.0/24 -interface utun5",
            "/sbin/ifconfig utun5 inet6 fd00:9::1/64 alias",
        ]
        self.assertEqual(self.machine.ran, expected)
        self.assertEqual(self.system.addresses("utun5"), [])

    def test_notConfigured(self) -> None:
        """What ifconfig does not do is said in its words, and nothing stays open."""
        self.machine.failure = subprocess.CalledProcessError(1, "ifconfig", "", "ioctl: permission denied\n")
        error = self.assertRaises(ListenError, self.openPort)
        self.assertIn("/sbin/ifconfig utun5 mtu 1400 up: ioctl: permission denied", str(error))
        self.assertEqual(self.machine.controls[-1].fileno(), -1)

    def test_refused(self) -> None:
        """Who is not the superuser gets none, and nothing stays open."""
        self.machine.refusal = PermissionError(errno.EPERM, "Operation not permitted")
        self.assertIn("Operation not permitted", str(self.assertRaises(ListenError, self.openPort)))
        self.assertEqual(self.machine.controls[-1].fileno(), -1)

    def test_headers(self) -> None:
        """There are no virtio headers; who asks for them is told as on an old Linux."""
        error = self.assertRaises(OSError, self.system.open, "", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
        self.assertEqual(error.errno, errno.EINVAL)

    def test_handedOver(self) -> None:
        """A descriptor that somebody else has opened is read and written in the same way, and closed."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(far.close)
        port = TunPort(PortReactor(), Interface("utun9"), self.receiver, TunOffload(), self.counters, self.system)
        port.adopt(near.detach())
        far.send(FAMILY6 + PACKET6)
        port.doRead()
        self.assertEqual((port.name, self.receiver.calls), ("utun9", [[NO_HEADER + PACKET6]]))
        port.close()
        self.assertRaises(OSError, far.send, b"")
