"""Tests for L{udptunnel.net.persistent}."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.net.routing import MemoryRouting, failure, makeDevice
from udptunnel.errors import ListenError
from udptunnel.net.persistent import TUNSETOWNER, TUNSETPERSIST, PersistentTun, _alias
from udptunnel.net.tundevice import IFF_NO_PI, IFF_TUN, Interface
from udptunnel.wire.frame import Buffer

DEAD = "udptunnel proxy-controller 999999999 1"


class MemoryTuns:
    """
    Makes TUNs in a L{MemoryRouting}.

    @ivar calls: what was asked for.
    @ivar refused: what the next calls raise, by name.
    """

    def __init__(self, routing: MemoryRouting) -> None:
        self.routing = routing
        self.calls: list[tuple[Any, ...]] = []
        self.refused: dict[str, OSError] = {}
        self.number = 20

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.refused:
            raise self.refused[call[0]]

    def open(self, name: str, flags: int) -> int:
        self._called("open", name, flags)
        self.number += 1
        self.routing.present.append(makeDevice(name, self.number, families=()))
        return 77

    def close(self, descriptor: int) -> None:
        self._called("close", descriptor)
        self.routing.present = [
            each._replace(carrier=False) if each.number == self.number else each for each in self.routing.present
        ]

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        self._called("ioctl", request, argument)

    def configure(self, name: str, interface: Interface) -> None:
        self._called("configure", name, interface)
        families = frozenset(6 if ":" in address else 4 for address in interface.addresses)
        self.routing.present = [
            each._replace(families=families) if each.name == name else each for each in self.routing.present
        ]

    def read(self, descriptor: int, buffer: memoryview) -> int:
        raise NotImplementedError

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        raise NotImplementedError


class PersistentTests(SynchronousTestCase):
    """L{PersistentTun}."""

    def setUp(self) -> None:
        self.routing = MemoryRouting()
        self.routing.present.pop()
        self.tuns = MemoryTuns(self.routing)
        self.interface = Interface("tun0", ("10.0.85.1/24",))
        self.tun = PersistentTun(self.interface, 1000, self.tuns, self.routing)

    def put(self, alias: str, carrier: bool = False, name: str = "tun0") -> None:
        """There is a TUN already."""
        self.routing.present.append(makeDevice(name, 9, carrier, alias))

    def test_make(self) -> None:
        """It is made for its owner, stays when it is closed, is set up, and says whose it is."""
        device = self.tun.make()
        self.assertEqual(
            self.tuns.calls,
            [
                ("open", "tun0", IFF_TUN | IFF_NO_PI),
                ("ioctl", TUNSETOWNER, 1000),
                ("ioctl", TUNSETPERSIST, 1),
                ("close", 77),
                ("configure", "tun0", self.interface),
            ],
        )
        self.assertEqual((device.name, device.families), ("tun0", {4}))
        present = self.tun.device
        assert present is not None
        self.assertEqual(present.alias, _alias(os.getpid()))
        self.assertIn(f" {os.getpid()} ", present.alias)

    def test_remove(self) -> None:
        """It goes when it is removed; removing it again is nothing."""
        self.tun.make()
        self.tun.remove()
        self.tun.remove()
        self.assertIsNone(self.tun.device)

    def test_stranger(self) -> None:
        """A device that is not ours is refused, and stays as it is."""
        for alias in ("", "my TUN", DEAD + " "):
            self.put(alias)
            before = list(self.routing.present)
            error = self.assertRaises(ListenError, self.tun.make)
            self.assertIn("--tundev tun0: there is such a device, and it is not ours", str(error))
            self.tun.remove()
            self.assertEqual((self.routing.present, self.tuns.calls), (before, []))
            self.routing.present.pop()

    def test_left(self) -> None:
        """What a killed process has left is made anew, under whatever name."""
        for name in ("tun0", "tun5"):
            self.put(DEAD, name=name)
            device = self.tun.make()
            self.assertNotEqual(device.number, 9)
            self.assertEqual([each.name for each in self.routing.present], ["lo", "eth0", "tun0"])
            self.tun.remove()

    def test_leftInUse(self) -> None:
        """If somebody has it open, that one does not notice."""
        self.put(DEAD, carrier=True)
        device = self.tun.make()
        self.assertEqual((device.number, [call[0] for call in self.tuns.calls]), (9, ["configure"]))
        self.tun.remove()
        self.assertIsNone(self.tun.device)

    def test_living(self) -> None:
        """What belongs to a process that lives is refused, under whatever name; when it is dead it is not."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            for name in ("tun0", "tun5"):
                self.put(_alias(other.pid), name=name)
                self.assertIn(f"process {other.pid}", str(self.assertRaises(ListenError, self.tun.make)))
                self.routing.present.pop()
            self.put(_alias(other.pid))
            number, started = _alias(other.pid).split()[2:]
            other.communicate(b"\n")
        self.assertNotEqual(self.tun.make().number, 9)
        self.assertEqual((int(number), started.isdigit()), (other.pid, True))

    def test_anotherWithTheNumber(self) -> None:
        """A process that merely has the number of the dead one is not taken for it."""
        self.put(f"udptunnel proxy-controller {os.getppid()} 1")
        self.assertNotEqual(self.tun.make().number, 9)

    def test_notConfigured(self) -> None:
        """One that can not be set up does not stay."""
        self.tuns.refused["configure"] = failure(errno.EACCES)
        self.assertIn("Permission denied", str(self.assertRaises(ListenError, self.tun.make)))
        self.assertIsNone(self.tun.device)

    def test_notAllowed(self) -> None:
        """Who may not make TUNs is told what is missing; the descriptor is closed."""
        self.tuns.refused["open"] = failure(errno.EPERM)
        self.assertIn("root or CAP_NET_ADMIN", str(self.assertRaises(ListenError, self.tun.make)))
        self.tuns.refused = {"ioctl": failure(errno.EBUSY)}
        self.assertRaises(ListenError, self.tun.make)
        self.assertEqual(self.tuns.calls[-1], ("close", 77))
