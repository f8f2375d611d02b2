"""
A TUN that stays when nobody has it open, for a program without rights to open.

Its alias says whose it is: what we are called, our process number, and when
that process was started. So the next start knows a TUN that was left by a
killed process from one that belongs to a living one or to somebody else.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress

from udptunnel.errors import ListenError
from udptunnel.net.rtnetlink import Device, Routing
from udptunnel.net.tundevice import IFF_NO_PI, IFF_TUN, Interface, System

TUNSETPERSIST, TUNSETOWNER = 0x400454CB, 0x400454CC
"""From linux/if_tun.h."""

_ALIAS = re.compile(r"udptunnel proxy-controller ([0-9]{1,9}) ([0-9]{1,20})")


class PersistentTun:
    """One TUN, which its owner can open without rights."""

    def __init__(self, interface: Interface, owner: int, system: System, routing: Routing) -> None:
        """
        @param owner: user id of who may open it. Without one everybody could.
        """
        self._interface = interface
        self._owner = owner
        self._system = system
        self._routing = routing

    @property
    def device(self) -> Device | None:
        """It as it is now; C{None} if it is gone."""
        return next((each for each in self._routing.devices() if each.name == self._interface.name), None)

    def make(self) -> Device:
        """
        Make the TUN, set it up, and write on it that it is ours. If a killed process has left it, and
        somebody has it open, it stays as it is: that one need not know.

        @raise ListenError: that can not be done; or there is such a device, and it is not ours.
        """
        name = self._interface.name
        try:
            if not self._takeOver():
                self._open()
            # First of all it must say whose it is: whatever fails now, it can be found.
            self._routing.setAlias(self._present().number, _alias(os.getpid()))
            self._system.configure(name, self._interface)
            return self._present()
        except (OSError, ImportError, ValueError) as error:
            with suppress(OSError):
                self.remove()
            raise ListenError(f"--tundev {name}: {_reason(error)}") from error

    def _present(self) -> Device:
        device = self.device
        if device is None:
            raise OSError(errno.ENODEV, "it is gone")
        return device

    def _takeOver(self) -> bool:
        """Remove what killed processes have left; returns whether the TUN is there already, and in use."""
        isThere = False
        for device in self._routing.devices():
            found = _ALIAS.fullmatch(device.alias)
            if found is not None:
                _checkDead(device, int(found[1]))
            elif device.name == self._interface.name:
                raise OSError(errno.EEXIST, "there is such a device, and it is not ours; choose another name")
            if found is not None and device.name == self._interface.name and device.carrier:
                isThere = True
            elif found is not None:
                self._routing.removeDevice(device.number)
        return isThere

    def _open(self) -> None:
        descriptor = self._system.open(self._interface.name, IFF_TUN | IFF_NO_PI)
        try:
            self._system.ioctl(descriptor, TUNSETOWNER, self._owner)
            self._system.ioctl(descriptor, TUNSETPERSIST, 1)
        finally:
            self._system.close(descriptor)

    def remove(self) -> None:
        """
        Take it away, whoever has it open.

        @raise OSError: that can not be done.
        """
        device = self.device
        if device is not None and device.alias == _alias(os.getpid()):
            self._routing.removeDevice(device.number)


def _checkDead(device: Device, number: int) -> None:
    """
    See that a TUN's process is gone. One of them is enough: two would fight for the default route.

    @raise OSError: it lives.
    """
    if number != os.getpid() and device.alias == _alias(number):
        raise OSError(errno.EBUSY, f"process {number}, which is running, has {device.name} for the same purpose")


def _alias(number: int) -> str:
    """What is written on the TUN of a process; if there is no such process, what nobody writes."""
    try:
        with open(f"/proc/{number}/stat", encoding="ascii", errors="replace") as file:
            # The name of the program, in parentheses, may hold anything.
            started = file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"udptunnel proxy-controller {number} {started}"


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EPERM:
        return "a TUN needs root or CAP_NET_ADMIN"
    return getattr(error, "strerror", None) or str(error)
