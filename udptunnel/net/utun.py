"""
TUNs of macOS: a control socket of the kernel is one C{utun} device as long as it is open.

Before each packet stand four bytes, the number of its address family in
network order (net/if_utun.h); here nobody else sees them. There are no virtio
headers. Only the superuser may open one.

This has been tested with doubles, and not on macOS.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from struct import Struct
from typing import Any

from udptunnel.net.platforms import fcntl
from udptunnel.net.tundevice import FIONBIO, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, TUNGETIFF, Interface
from udptunnel.wire.frame import Buffer

PF_SYSTEM, SYSPROTO_CONTROL = 32, 2
"""From sys/socket.h and sys/sys_domain.h of macOS."""

UTUN_OPT_IFNAME = 2
"""From net/if_utun.h."""

CTLIOCGINFO = 0xC0644E03
"""From sys/kern_control.h: looks up the number of a control."""

FAMILIES = {4: b"\0\0\0\x02", 6: b"\0\0\0\x1e"}
"""What stands before a packet: AF_INET is 2, and AF_INET6 30 (sys/socket.h)."""

_FAMILY_BYTES = 4
_INFO = Struct("=I96s")
_CONTROL = b"com.apple.net.utun_control"
_INTERFACE = Struct("=16sH22x")


class UtunSystem:
    """macOS, as a L{udptunnel.net.tundevice.System}."""

    def __init__(self, run: Callable[..., Any] = subprocess.run, make: Callable[..., Any] = socket.socket) -> None:
        """
        @param run: runs C{ifconfig} and C{route}.
        @param make: makes sockets.
        """
        self._run = run
        self._make = make
        self._sockets: dict[int, Any] = {}

    def open(self, name: str, flags: int) -> int:
        """
        Make a device.

        @param name: C{utun} and a number, or nothing.
        @raise ValueError: it is called something else.
        """
        unit = _unitOf(name)
        if flags & IFF_VNET_HDR:
            raise OSError(errno.EINVAL, "utun has no virtio headers")
        opened = self._make(PF_SYSTEM, socket.SOCK_DGRAM, SYSPROTO_CONTROL)
        try:
            number, _ = _INFO.unpack(fcntl.ioctl(opened.fileno(), CTLIOCGINFO, _INFO.pack(0, _CONTROL)))
            opened.connect((number, unit))
        except OSError:
            opened.close()
            raise
        self._sockets[opened.fileno()] = opened
        return int(opened.fileno())

    def close(self, descriptor: int) -> None:
        """Let go of a device, which is gone then."""
        opened = self._sockets.pop(descriptor, None)
        if opened is None:
            os.close(descriptor)
        else:
            opened.close()

    def read(self, descriptor: int, buffer: memoryview) -> int:
        """Put the next packet into a buffer, without its family."""
        return os.readv(descriptor, (bytearray(_FAMILY_BYTES), buffer)) - _FAMILY_BYTES

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        """Write one packet, behind its family."""
        first = next(each[0] for each in buffers if len(each))
        family = FAMILIES.get(first >> 4, FAMILIES[4])
        return os.writev(descriptor, (family, *buffers)) - _FAMILY_BYTES

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        """What Linux answers, as far as it can be known here."""
        if request == FIONBIO:
            os.set_blocking(descriptor, False)
            return 0
        if request == TUNGETIFF and descriptor in self._sockets:
            name = self._sockets[descriptor].getsockopt(SYSPROTO_CONTROL, UTUN_OPT_IFNAME, 16)
            return _INTERFACE.pack(name, IFF_TUN | IFF_NO_PI)
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def configure(self, name: str, interface: Interface) -> None:
        """Give a device its addresses and MTU, and set it up. It keeps as many packets as macOS sees fit."""
        self._do("/sbin/ifconfig", name, "mtu", str(interface.mtu), "up")
        for each in map(ip_interface, interface.addresses):
            if each.version == 6:
                self._do("/sbin/ifconfig", name, "inet6", str(each), "alias")
            else:
                # It has two ends, and both are ours; its network is to be behind it all the same.
                self._do("/sbin/ifconfig", name, "inet", str(each), str(each.ip), "alias")
                self._do("/sbin/route", "-q", "-n", "add", "-inet", str(each.network), "-interface", name)

    def _do(self, *words: str) -> None:
        try:
            self._run(words, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise OSError(errno.EIO, f"{' '.join(words)}: {error.stderr.strip()}") from error

    def addresses(self, name: str) -> list[str]:
        """None: a device is always a new one."""
        return []


def _unitOf(name: str) -> int:
    """
    The unit to ask for, one more than the device's number; 0 for any.

    @raise ValueError: no device is called so.
    """
    if not name:
        return 0
    number = name.removeprefix("utun")
    if number == name or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{name}: macOS calls its TUNs utun0, utun1...; without a name it finds one")
    return int(number) + 1
