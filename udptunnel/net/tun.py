"""
TUN ports: descriptors that read and write IP packets.

With a virtio header before each packet (C{struct virtio_net_hdr} of
linux/virtio_net.h) the kernel hands over up to 64 KB of a TCP stream, or a
whole burst, as one packet whose checksum nobody has computed yet, and takes
the same back. Who reads from a port always sees that header: where the device
has none, ten zero bytes stand there, and mean that nothing is left to do.
The functions stand in the order in which a packet meets them.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from struct import Struct
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.linuxtun import LinuxSystem
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.tundevice import (
    FIONBIO,
    HEADER_BYTES,
    IFF_NO_PI,
    IFF_TAP,
    IFF_TUN,
    IFF_VNET_HDR,
    TUN_F_CSUM,
    TUN_F_TSO,
    TUN_F_USO,
    TUNGETIFF,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
    Interface,
    System,
)
from udptunnel.wire.frame import Buffer

NAMES = ("vnet", "tso", "uso")
"""
What a TUN may be asked for: virtio headers, TCP segmentation, UDP
segmentation (Linux 6.2). The latter two need the first.
"""

LARGEST_PACKET = 40 + 65535
"""An IPv6 header and the longest payload behind it."""

BUFFER_BYTES = 1 << 20
"""Room for 15 of the largest packets: what the caches of a processor still hold when they are written back."""

PACKETS = 64
"""So many are read in one wake-up at most..."""

READ_SECONDS = 0.002
"""...or as many as can be read within this time, so that others get their turn."""

_log = Logger()

_NO_HEADER = bytes(HEADER_BYTES)
_NEEDS_CSUM = 1
_UDP_SEGMENTS, _ECN = 5, 0x80
_INTERFACE = Struct("=16sH22x")
_INT = Struct("=i")

_HEADER = Struct("=BBHHHH")
_PROBES = {
    "tso": _HEADER.pack(_NEEDS_CSUM, 1, 40, 1, 20, 16)
    + bytes.fromhex("4500002a000000000006ffff0000000000000000 0000000000000000000000005010000000000000 0000"),
    "uso": _HEADER.pack(_NEEDS_CSUM, _UDP_SEGMENTS, 28, 1, 20, 6)
    + bytes.fromhex("4500001e000000000011ffff0000000000000000 00000000000a0000 0000"),
}
"""
Packets of two segments, which any kernel takes that can segment at all. Their
IPv4 checksum is wrong on purpose: they go no further.
"""

_ALIVE = _NO_HEADER + b"\x40"
"""The shortest packet that a device looks at. It is dropped at once; but a device that is down refuses it."""

_EBADFD = 77
"""From asm-generic/errno.h; other systems have no such error."""

_LOST = {errno.EIO: "down", _EBADFD: "deleted", errno.EBADF: "deleted"}
"""What a device says when it is no use any more."""


class TunOffload:
    """
    What the kernel is asked for at a TUN; what it refuses is switched off for good.

    @ivar vnet: virtio headers before packets.
    @ivar tso: TCP segments of one stream as one packet.
    @ivar uso: datagrams of one flow as one packet.
    """

    _log = Logger()

    def __init__(self, names: Iterable[str] = NAMES) -> None:
        """
        @param names: the abilities to use, of L{NAMES}. Without C{vnet} there
            are no others: oversized packets would come with nothing that says so.
        """
        chosen = frozenset(names)
        self.vnet, self.tso, self.uso = (name in chosen and "vnet" in chosen for name in NAMES)

    def __str__(self) -> str:
        return ",".join(name for name in NAMES if getattr(self, name)) or "none"

    @property
    def flags(self) -> int:
        """What TUNSETOFFLOAD takes."""
        return self.vnet * TUN_F_CSUM | self.tso * TUN_F_TSO | self.uso * TUN_F_USO

    def refused(self, error: OSError, *names: str) -> None:
        """The kernel does not do this after all: never ask again, and say so once."""
        refused = [name for name in names if getattr(self, name)]
        for name in refused:
            setattr(self, name, False)
        if refused:
            self._log.warn("TUN offload {ability} is off from now on: {error}", ability=",".join(refused), error=error)


class Receiver(Protocol):
    """Who is told of what happens at a TUN port."""

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """
        Packets have arrived, each behind a virtio header.

        They may be written to, and are valid until this returns.
        """

    def lost(self, why: str) -> None:
        """The device is no use any more, and the port is closed. Said once."""


def systemHere() -> System:
    """What opens TUNs on this system."""
    if sys.platform == "darwin":
        from udptunnel.net.utun import UtunSystem

        return UtunSystem()
    if sys.platform == "win32":
        from udptunnel.net.wintun import WintunSystem

        return WintunSystem()
    return LinuxSystem()


@implementer(IReadDescriptor)
class TunPort:
    """
    One TUN.

    @ivar name: what the device is called, once it is open.
    @ivar headed: whether the device itself puts virtio headers before packets, and understands them.
    """

    __slots__ = (
        "_counters",
        "_descriptor",
        "_interface",
        "_losing",
        "_memory",
        "_offload",
        "_reactor",
        "_receiver",
        "_skip",
        "_system",
        "headed",
        "name",
    )

    def __init__(
        self,
        reactor: Any,
        interface: Interface,
        receiver: Receiver,
        offload: TunOffload,
        counters: Counters,
        system: System | None = None,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param counters: what is read counts as received, what is written as sent.
        @param system: the operating system; this one unless a test says otherwise.
        """
        self.name = interface.name
        self.headed = False
        self._interface = interface
        self._reactor = reactor
        self._receiver = receiver
        self._offload = offload
        self._counters = counters
        self._system: System = system or systemHere()
        self._descriptor = -1
        self._skip = HEADER_BYTES
        self._losing: IDelayedCall | None = None
        self._memory = memoryview(bytearray(BUFFER_BYTES))

    @property
    def segments(self) -> bool:
        """Whether the device takes several datagrams as one packet."""
        return self.headed and self._offload.uso

    # -- opening and closing

    def open(self) -> None:
        """
        Make the device and read from it.

        @raise ListenError: that can not be done, or not by this user.
        """
        try:
            self.adopt(self._open())
            self._configure()
        except (OSError, ImportError, ValueError) as error:
            self.close()
            raise ListenError(f"TUN {self._interface.name or 'device'} can not be opened: {_reason(error)}") from error

    def _open(self) -> int:
        plain, name = IFF_TUN | IFF_NO_PI, self._interface.name
        if self._offload.vnet:
            try:
                return self._system.open(name, plain | IFF_VNET_HDR)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._offload.refused(error, *NAMES)
        return self._system.open(name, plain)

    def adopt(self, descriptor: int, headed: bool = False, lent: bool = False) -> None:
        """
        Use a descriptor that somebody else has opened, and leave the device as it is otherwise. It does not block then.

        @param descriptor: it is ours from now on, and is closed with the port.
        @param headed: whether there are virtio headers. The kernel's own word
            counts more; but some hosts do not let us ask it.
        @param lent: whether it stays with whoever has opened it. We use another one for the same device.
        @raise ListenError: it is not a TUN without packet information. It was closed nevertheless, unless it was lent.
        """
        try:
            self._descriptor = os.dup(descriptor) if lent else descriptor
            flags = self._identify(IFF_TUN | IFF_NO_PI | headed * IFF_VNET_HDR)
            self.headed = bool(flags & IFF_VNET_HDR)
            self._skip = 0 if self.headed else HEADER_BYTES
            _checkKind(flags)
            self._ask(FIONBIO, _INT.pack(1))
        except OSError as error:
            self.close()
            raise ListenError(f"descriptor {descriptor} is of no use as a TUN: {error.strerror}") from error
        self._probe()
        self._reactor.addReader(self)

    def _identify(self, assumed: int) -> int:
        """Ask the kernel for the device's name and flags."""
        try:
            name, flags = _INTERFACE.unpack(self._ask(TUNGETIFF, bytes(_INTERFACE.size)))
        except OSError:
            return assumed
        self.name = name.rstrip(b"\0").decode("ascii", "replace")
        return int(flags)

    def configure(self) -> None:
        """Give the device its MTU, addresses and queue, and set it up."""
        self._system.configure(self.name, self._interface)

    def _configure(self) -> None:
        """Somebody else may have made the device for us, with all that it needs."""
        try:
            self.configure()
        except PermissionError:
            if self._interface.addresses:
                raise

    def _ask(self, request: int, argument: int | bytes) -> Any:
        return self._system.ioctl(self._descriptor, request, argument)

    def _probe(self) -> None:
        """Find out what the device can do of what is wanted."""
        if not self.headed:
            # TUNSETOFFLOAD would work, and packets come unfinished with nothing that says so.
            self._offload.refused(OSError(errno.EOPNOTSUPP, "the device has no virtio headers"), *NAMES)
            return
        try:
            self._ask(TUNSETVNETHDRSZ, _INT.pack(HEADER_BYTES))
            self._ask(TUNSETOFFLOAD, self._offload.vnet * TUN_F_CSUM)
        except OSError as error:
            self._offload.refused(error, *NAMES)
        self._try("tso", TUN_F_CSUM | TUN_F_TSO)
        self._try("uso", self._offload.flags)

    def _try(self, name: str, flags: int) -> None:
        if getattr(self._offload, name):
            try:
                self._ask(TUNSETOFFLOAD, flags)
            except OSError as error:
                self._offload.refused(error, name)

    def close(self) -> None:
        """Close the port. It may be closed already."""
        if self._losing is not None:
            self._losing.cancel()
            self._losing = None
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            with suppress(OSError):
                # Of a descriptor that was handed over nobody knows whether it is one.
                self._system.close(self._descriptor)
            self._descriptor = -1

    # -- IReadDescriptor

    def fileno(self) -> int:
        """The descriptor; -1 when the port is closed."""
        return self._descriptor

    def logPrefix(self) -> str:
        """What log lines about this port begin with."""
        return f"TUN {self.name}"

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor has no more use for the descriptor.

        It says the same when it stops and when the device was deleted, which
        poll() reports as an error; only the latter is a loss.
        """
        self.check()
        if self._losing is None:
            self.close()

    # -- what arrives

    def doRead(self) -> None:
        """Pass on what has arrived, but not more than its share."""
        packets = self._read()
        if packets:
            counters = self._counters
            counters.received += len(packets)
            counters.receivedBytes += sum(map(len, packets)) - HEADER_BYTES * len(packets)
            try:
                self._receiver.packetsReceived(packets)
            except Exception:
                # The reactor would close the port, and nobody would notice.
                _log.failure("packets of TUN {name} are lost by a mistake of ours", name=self.name)

    def _read(self) -> list[memoryview]:
        packets: list[memoryview] = []
        memory, skip, seconds = self._memory, self._skip, self._reactor.seconds
        read, descriptor, end, enough = self._system.read, self._descriptor, 0, seconds() + READ_SECONDS
        try:
            while len(packets) < PACKETS and end < BUFFER_BYTES - HEADER_BYTES - LARGEST_PACKET:
                begin, end = end, end + skip + read(descriptor, memory[end + skip :])
                packets.append(memory[begin:end])
                if seconds() >= enough:
                    break
        except OSError as error:
            self._readFailed(error)
        if skip:
            for packet in packets:
                packet[:HEADER_BYTES] = _NO_HEADER
        return packets

    def _readFailed(self, error: OSError) -> None:
        if error.errno in _LOST:
            self._lose(_LOST[error.errno])
        elif error.errno not in NOTHING_THERE:
            self._counters.drop(f"read {nameOf(error)}")

    # -- what is written

    def write(self, *packet: Buffer) -> None:
        """
        Write one packet, which may lie in several buffers. What the kernel does not take is dropped and counted.

        @param packet: the first buffer begins with the virtio header. Where
            the device has none, that must ask for nothing.
        """
        if self._descriptor < 0:
            self._counters.drop("write closed")
            return
        try:
            written = self._system.write(self._descriptor, packet if self.headed else bare(packet))
        except OSError as error:
            self._writeFailed(error, packet[0])
            return
        counters = self._counters
        counters.sent += 1
        counters.sentBytes += written - HEADER_BYTES + self._skip

    def _writeFailed(self, error: OSError, header: Buffer) -> None:
        self._counters.drop(f"write {nameOf(error)}")
        if error.errno in _LOST:
            self._lose(_LOST[error.errno])
        elif error.errno == errno.EINVAL and len(header) > 1 and header[1]:
            self._doubt("uso" if header[1] & ~_ECN == _UDP_SEGMENTS else "tso", error)

    def _doubt(self, name: str, error: OSError) -> None:
        """
        Some kernels take no segments (Linux commit e269d79c7d35); but it may
        be the packet that is wrong, and others can make us write such ones.
        """
        if getattr(self._offload, name) and not self._takes(_PROBES[name]):
            self._offload.refused(error, name)
            self.settle()

    def settle(self) -> None:
        """Ask the device for what L{TunOffload} says now: somebody who shares it may have changed it."""
        with suppress(OSError):
            self._ask(TUNSETOFFLOAD, self._offload.flags)

    def _takes(self, packet: bytes) -> bool:
        try:
            self._system.write(self._descriptor, (packet,))
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    # -- the end

    def check(self) -> None:
        """
        Look whether the device is still there and up; to be called now and then.

        One that was set down is just silent: nothing else tells.
        """
        if self._descriptor < 0:
            return
        try:
            self._system.write(self._descriptor, (_ALIVE[self._skip :],))
        except OSError as error:
            if error.errno in _LOST:
                self._lose(_LOST[error.errno])

    def _lose(self, why: str) -> None:
        """Close the port at once; its receiver, which may be in the midst of writing, is told as soon as it is not."""
        self.close()
        self._losing = self._reactor.callLater(0, self._tell, why)

    def _tell(self, why: str) -> None:
        self._losing = None
        self._receiver.lost(why)


def _checkKind(flags: int) -> None:
    if not flags & IFF_NO_PI or flags & IFF_TAP:
        raise OSError(errno.EINVAL, "it was not opened with IFF_TUN and IFF_NO_PI")


def bare(packet: Sequence[Buffer]) -> Sequence[Buffer]:
    """
    A packet without its virtio header.

    @raise OSError: the header asks for something, which nobody would do.
    """
    first = memoryview(packet[0])
    if first[0] & _NEEDS_CSUM or first[1]:
        raise OSError(errno.EOPNOTSUPP, "the device has no virtio headers")
    return (first[HEADER_BYTES:], *packet[1:])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
