"""
TUNs of Windows, by way of wintun.dll, which is not ours and does not come with us.

Who has it puts it beside python.exe or into System32. It keeps packets in two
rings of memory and has an event for those that arrive. As C{select()} looks at
sockets only, a thread waits for the event and writes to a socket of ours, whose
other end is the descriptor of the device.

This has been tested with doubles, and not on Windows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_interface
from struct import Struct
from typing import Any

from udptunnel.errors import MissingError
from udptunnel.net.tundevice import FIONBIO, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, TUNGETIFF, Interface
from udptunnel.wire.frame import Buffer

RING_BYTES = 4 << 20
"""Of each ring: a power of two from 128 KiB to 64 MiB (wintun.h)."""

LEAST_BYTES = 20
"""What is shorter than an IPv4 header the driver does not take."""

ERROR_HANDLE_EOF, ERROR_BUFFER_OVERFLOW, ERROR_NO_MORE_ITEMS = 38, 111, 259
"""What wintun.dll says (winerror.h): the device is gone; the ring is full; nothing has arrived."""

_ERRORS = {
    ERROR_HANDLE_EOF: errno.EBADF,
    ERROR_BUFFER_OVERFLOW: errno.ENOBUFS,
    ERROR_NO_MORE_ITEMS: errno.EAGAIN,
    5: errno.EACCES,
}

_FOREVER = 0xFFFFFFFF
_INTERFACE = Struct("=16sH22x")
_pointer, _number = ctypes.c_void_p, ctypes.c_uint32

_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "WintunCreateAdapter": (_pointer, (ctypes.c_wchar_p, ctypes.c_wchar_p, _pointer)),
    "WintunCloseAdapter": (None, (_pointer,)),
    "WintunStartSession": (_pointer, (_pointer, _number)),
    "WintunEndSession": (None, (_pointer,)),
    "WintunGetReadWaitEvent": (_pointer, (_pointer,)),
    "WintunReceivePacket": (_pointer, (_pointer, ctypes.POINTER(_number))),
    "WintunReleaseReceivePacket": (None, (_pointer, _pointer)),
    "WintunAllocateSendPacket": (_pointer, (_pointer, _number)),
    "WintunSendPacket": (None, (_pointer, _pointer)),
}
"""What wintun.h declares, as far as we use it: what comes back, and the arguments."""


class Wintun:
    """The functions of wintun.dll, and two of Windows."""

    def __init__(self, library: Any, kernel: Any, lastError: Callable[[], int]) -> None:
        """
        @param library: wintun.dll.
        @param kernel: kernel32.dll.
        @param lastError: why the last call in this thread has failed.
        """
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        for function in (kernel.WaitForSingleObject, kernel.SetEvent):
            function.restype = _number
        kernel.WaitForSingleObject.argtypes, kernel.SetEvent.argtypes = (_pointer, _number), (_pointer,)
        self._library, self._kernel, self._lastError = library, kernel, lastError

    def _checked(self, result: int | None) -> int:
        if not result:
            number = self._lastError()
            raise OSError(_ERRORS.get(number, errno.EIO), f"wintun.dll: error {number} of Windows")
        return result

    def open(self, name: str) -> tuple[int, int, int]:
        """Make a device; returns its adapter, its session, and the event that says that packets are there."""
        library = self._library
        adapter = self._checked(library.WintunCreateAdapter(name, "udptunnel", None))
        try:
            session = self._checked(library.WintunStartSession(adapter, RING_BYTES))
        except OSError:
            library.WintunCloseAdapter(adapter)
            raise
        return adapter, session, library.WintunGetReadWaitEvent(session)

    def close(self, adapter: int, session: int) -> None:
        """Let go of a device."""
        self._library.WintunEndSession(session)
        self._library.WintunCloseAdapter(adapter)

    def receive(self, session: int, buffer: memoryview) -> int:
        """Put the next packet into a buffer; returns its length."""
        length = _number()
        packet = self._checked(self._library.WintunReceivePacket(session, ctypes.byref(length)))
        buffer[: length.value] = ctypes.string_at(packet, length.value)
        self._library.WintunReleaseReceivePacket(session, packet)
        return length.value

    def send(self, session: int, packet: bytes) -> None:
        """Send a packet."""
        place = self._checked(self._library.WintunAllocateSendPacket(session, len(packet)))
        ctypes.memmove(place, packet, len(packet))
        self._library.WintunSendPacket(session, place)

    def wait(self, event: int) -> None:
        """Wait until an event is set. It is not, then."""
        self._kernel.WaitForSingleObject(event, _FOREVER)

    def set(self, event: int) -> None:
        """Set an event."""
        self._kernel.SetEvent(event)


def load() -> Wintun:
    """
    Load wintun.dll.

    @raise MissingError: it is not there.
    """
    try:
        if sys.platform == "win32":
            library = ctypes.WinDLL("wintun.dll", use_last_error=True)
            return Wintun(library, ctypes.WinDLL("kernel32"), ctypes.get_last_error)
        raise OSError("this is not Windows")
    except OSError as error:
        text = "there is no wintun.dll beside python.exe or in System32, which a TUN takes; see docs/platforms.md"
        raise MissingError(text) from error


class _Device:
    """One device, the socket that shows that packets are there, and the thread that writes to it."""

    def __init__(self, wintun: Wintun, name: str) -> None:
        self.name = name
        self.wintun = wintun
        self.adapter, self.session, self._event = wintun.open(name)
        self.near, self._far = socket.socketpair()
        self.near.setblocking(False)
        self._empty = threading.Event()
        self._empty.set()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name=f"TUN {name}", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        """Say once that packets are there, and again only after all were read."""
        while True:
            self._empty.wait()
            self._empty.clear()
            self.wintun.wait(self._event)
            if self._closing:
                return
            self._far.send(b"\0")

    def emptied(self) -> None:
        """All was read."""
        with suppress(BlockingIOError):
            while self.near.recv(64):
                self._empty.set()

    def close(self) -> None:
        self._closing = True
        self._empty.set()
        self.wintun.set(self._event)
        self._thread.join()
        self.near.close()
        self._far.close()
        self.wintun.close(self.adapter, self.session)


class WintunSystem:
    """Windows, as a L{udptunnel.net.tundevice.System}."""

    def __init__(self, run: Callable[..., Any] = subprocess.run, load: Callable[[], Wintun] = load) -> None:
        """
        @param run: runs C{netsh}.
        @param load: loads wintun.dll.
        """
        self._run = run
        self._load = load
        self._devices: dict[int, _Device] = {}

    def open(self, name: str, flags: int) -> int:
        """
        Make a device, for which one must be an administrator.

        @raise MissingError: there is no wintun.dll.
        """
        if flags & IFF_VNET_HDR:
            raise OSError(errno.EINVAL, "wintun has no virtio headers")
        device = _Device(self._load(), name or "udptunnel")
        self._devices[device.near.fileno()] = device
        return device.near.fileno()

    def close(self, descriptor: int) -> None:
        """Let go of a device, which is gone then."""
        self._deviceOf(descriptor).close()
        del self._devices[descriptor]

    def _deviceOf(self, descriptor: int) -> _Device:
        if descriptor not in self._devices:
            raise OSError(errno.ENOTTY, "on Windows there are no TUNs of others to be used")
        return self._devices[descriptor]

    def read(self, descriptor: int, buffer: memoryview) -> int:
        """Put the next packet into a buffer."""
        device = self._devices[descriptor]
        try:
            return device.wintun.receive(device.session, buffer)
        except BlockingIOError:
            device.emptied()
            raise

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        """Write one packet."""
        packet, device = b"".join(buffers), self._devices[descriptor]
        if len(packet) >= LEAST_BYTES:
            device.wintun.send(device.session, packet)
        return len(packet)

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        """What Linux answers, as far as it can be known here."""
        device = self._deviceOf(descriptor)
        if request == TUNGETIFF:
            return _INTERFACE.pack(device.name.encode("ascii", "replace"), IFF_TUN | IFF_NO_PI)
        if request == FIONBIO:
            return 0
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def configure(self, name: str, interface: Interface) -> None:
        """Give a device its addresses and MTU. It keeps as many packets as its ring has room for."""
        for each in map(ip_interface, interface.addresses):
            family = f"ipv{each.version}"
            if each.version == 6:
                self._do(family, "add", "address", f"interface={name}", f"address={each}")
            else:
                self._do(family, "add", "address", f"name={name}", f"address={each.ip}", f"mask={each.netmask}")
            self._do(family, "set", "subinterface", name, f"mtu={interface.mtu}", "store=active")

    def _do(self, *words: str) -> None:
        try:
            self._run(("netsh", "interface", *words), check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise OSError(errno.EIO, f"netsh interface {' '.join(words)}: {error.stdout.strip()}") from error

    def addresses(self, name: str) -> list[str]:
        """None: a device is always a new one."""
        return []
