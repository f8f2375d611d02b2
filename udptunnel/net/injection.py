"""
Injectors: they put IP packets into the host's stack as if these had come by a wire.

L{RawInjector} uses raw sockets (raw(7)), which need neither an interface nor forwarding; they take one packet at a
time, whose checksums are full. L{TunInjector} writes to a TUN: super-packets go in as they are, and the host forwards
them like those of any other interface.

Packets stand behind a virtio header, as L{TunPort<udptunnel.net.tun.TunPort>} writes them.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from struct import Struct
from typing import Protocol

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError, PacketError
from udptunnel.net.mmsg import PacketOutbox
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.tun import TunPort
from udptunnel.wire.checksum import complete
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import DONT_FRAGMENT, hostOf, refragmented
from udptunnel.wire.segments import cut
from udptunnel.wire.vnet import NEEDS_CSUM, PLAIN, VNET_BYTES

SO_MARK, SO_SNDBUFFORCE = 36, 32
"""From asm-generic/socket.h."""

IP_MTU, IPV6_MTU = 14, 24
"""From linux/in.h and linux/in6.h: how long a packet to where a socket is connected to may be."""

QUEUE_BYTES = 4 << 20
"""What may wait in the kernel for a network card; then packets are dropped, as a router does."""

ANY_PORT = 9
"""Nothing is ever sent there: only the way is asked for."""

_CHECKSUM_PLACES, _CHECKSUM_PLACES_AT = Struct("=HH"), 6
"""Of a virtio header csum_start and csum_offset."""

_FAMILY, _FLAGS, _FLAGS_AT, _OFFSET = Struct("=H"), Struct("!H"), 6, 0x1FFF


class Injector(Protocol):
    """Where packets go that came from the peer."""

    @property
    def segments(self) -> bool:
        """Whether super-packets save work. An injector takes them in any case, but may have to cut them."""

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """
        Put packets into the stack. What the kernel does not take is dropped and counted.

        @param packets: each in one or several buffers, of which the first begins with the virtio header.
        """

    def close(self) -> None:
        """Inject no more."""


class RawSystem(Protocol):
    """The operating system, as far as raw injection needs it. All may raise C{OSError}."""

    def open(self, family: int, mark: int) -> int:
        """A raw socket that takes whole packets; returns its descriptor."""

    def close(self, descriptor: int) -> None:
        """Let go of it."""

    def send(self, descriptor: int, family: int, names: Sequence[bytes], packets: Sequence[Buffer]) -> int:
        """As L{PacketOutbox.send<udptunnel.net.mmsg.PacketOutbox.send>}."""

    def longest(self, family: int, host: str, mark: int) -> int:
        """How long a packet to a host may be."""


class LinuxRawSystem:
    """Linux."""

    def __init__(self) -> None:
        self._outboxes = {family: PacketOutbox(family) for family in (int(socket.AF_INET), int(socket.AF_INET6))}

    def open(self, family: int, mark: int) -> int:
        """A raw socket. IPPROTO_RAW means that headers are ours, also for IPv6 (IPV6_HDRINCL)."""
        with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            if mark:
                made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            with suppress(PermissionError):
                made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, QUEUE_BYTES)
            return made.detach()

    def close(self, descriptor: int) -> None:
        """Let go of it."""
        socket.close(descriptor)

    def send(self, descriptor: int, family: int, names: Sequence[bytes], packets: Sequence[Buffer]) -> int:
        """Send packets, each to its address."""
        return self._outboxes[family].send(descriptor, names, packets)

    def longest(self, family: int, host: str, mark: int) -> int:
        """How long a packet to a host may be: the MTU of the way there, as far as the kernel knows it."""
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            if mark:
                asking.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            asking.connect((host, ANY_PORT))
            if family == socket.AF_INET:
                return asking.getsockopt(socket.IPPROTO_IP, IP_MTU)
            return asking.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)


class _RawPort:
    """
    The socket of one version of IP.

    @ivar target: where in a packet its destination stands.
    """

    __slots__ = ("_after", "_before", "descriptor", "family", "target")

    def __init__(self, family: int) -> None:
        self.family = family
        self.descriptor = -1
        # struct sockaddr_in: family, port, address(4), zeros(8).
        # struct sockaddr_in6: family, port, flow(4), address(16), scope(4).
        isFour = family == socket.AF_INET
        self._before = _FAMILY.pack(family) + bytes(2 if isFour else 6)
        self._after = bytes(8 if isFour else 4)
        self.target = slice(16, 20) if isFour else slice(24, 40)

    def names(self, packets: Sequence[Buffer]) -> list[bytes]:
        """The kernel's form of the address where each packet goes."""
        before, after, target = self._before, self._after, self.target
        return [b"".join((before, packet[target], after)) for packet in packets]


class RawInjector:
    """
    Raw sockets for both versions of IP.

    Packets leave by the route to their destination, and whatever their source: nothing looks whether it fits.
    """

    segments = False

    def __init__(
        self,
        counters: Counters,
        mark: int = 0,
        tooLong: Callable[[bytes, int], None] | None = None,
        system: RawSystem | None = None,
    ) -> None:
        """
        @param counters: what is injected counts as sent.
        @param mark: C{SO_MARK} of what is injected; 0: none.
        @param tooLong: is told of each packet, without virtio header, that may not be cut though it is too long for
            where it goes; and how long it may be. Its sender should be told.
        @param system: the operating system; Linux unless a test says otherwise.
        """
        self._counters = counters
        self._mark = mark
        self._tooLong = tooLong
        self._system: RawSystem = system or LinuxRawSystem()
        self._four, self._six = _RawPort(int(socket.AF_INET)), _RawPort(int(socket.AF_INET6))
        self._identification = 0

    def open(self) -> None:
        """
        Open the sockets. A host without IPv6 just injects none.

        @raise ListenError: this user may not.
        """
        for port in (self._four, self._six):
            try:
                port.descriptor = self._system.open(port.family, self._mark)
            except OSError as error:
                if port is self._four or error.errno != errno.EAFNOSUPPORT:
                    self.close()
                    raise ListenError(f"--inject raw: {_reason(error)}") from error

    def close(self) -> None:
        """Inject no more. It may be closed already."""
        for port in (self._four, self._six):
            if port.descriptor >= 0:
                self._system.close(port.descriptor)
                port.descriptor = -1

    # -- what is injected

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """Put packets into the stack."""
        four: list[Buffer] = []
        six: list[Buffer] = []
        for packet in packets:
            whole = packet[0] if len(packet) == 1 else b"".join(packet)
            into = six if whole[VNET_BYTES] >> 4 == 6 else four
            if whole[1]:
                into += self._finished(whole)
            elif whole[0] & NEEDS_CSUM:
                into += self._completed(whole)
            else:
                into.append(memoryview(whole)[VNET_BYTES:])
        if four:
            self._send(self._four, four)
        if six:
            self._send(self._six, six)

    def _finished(self, whole: Buffer) -> Sequence[Buffer]:
        """What a card would send: packets with full checksums."""
        try:
            return cut(whole)
        except PacketError:
            self._counters.drop("inject headers")
            return ()

    def _completed(self, whole: Buffer) -> Sequence[Buffer]:
        """The same of what is one packet: the usual case, which should not cost what super-packets do."""
        start, offset = _CHECKSUM_PLACES.unpack_from(whole, _CHECKSUM_PLACES_AT)
        packet = bytearray(memoryview(whole)[VNET_BYTES:])
        if start + offset + 2 > len(packet):
            self._counters.drop("inject headers")
            return ()
        complete(packet, start, offset)
        return (packet,)

    def _send(self, port: _RawPort, packets: Sequence[Buffer]) -> None:
        if port.descriptor < 0:
            self._counters.drop("inject closed", len(packets))
            return
        names = port.names(packets)
        start, end, send = 0, len(packets), self._system.send
        while start < end:
            try:
                sent = send(port.descriptor, port.family, names[start:], packets[start:])
            except OSError as error:
                start += self._refused(port, packets[start:], error)
            else:
                self._counters.sent += sent
                self._counters.sentBytes += sum(map(len, packets[start : start + sent]))
                start += sent

    # -- what the kernel does not take

    def _refused(self, port: _RawPort, packets: Sequence[Buffer], error: OSError) -> int:
        """The kernel does not take the first of some packets; returns how many are done with."""
        if error.errno in NOTHING_THERE or error.errno == errno.ENOBUFS:
            # There is no room for the others either, and a router has no place to keep them.
            self._counters.drop("inject queue full", len(packets))
            return len(packets)
        if error.errno == errno.EMSGSIZE:
            self._shorten(port, bytes(packets[0]))
        else:
            self._counters.drop(f"inject {nameOf(error)}")
        return 1

    def _shorten(self, port: _RawPort, packet: bytes) -> None:
        """A packet is longer than where it goes lets through: what may be cut is cut, of others the sender is told."""
        host = hostOf(packet[port.target])
        try:
            most = self._system.longest(port.family, host, self._mark)
        except OSError as error:
            self._counters.drop(f"inject {nameOf(error)}")
            return
        if len(packet) <= most:
            # It is no longer true, or never was: nobody could be told anything that helps.
            self._counters.drop("inject EMSGSIZE")
        elif port.family == socket.AF_INET and not _forbidsFragments(packet):
            self._identification = self._identification % 0xFFFF + 1
            self._send(port, refragmented(packet, most, self._identification))
        else:
            self._counters.drop("inject too long")
            if self._tooLong is not None:
                self._tooLong(packet, most)


def _forbidsFragments(packet: bytes) -> bool:
    return bool(_FLAGS.unpack_from(packet, _FLAGS_AT)[0] & DONT_FRAGMENT)


class TunInjector:
    """A TUN, which somebody else opens; whoever opens it is also told what the host sends into it."""

    def __init__(self, port: TunPort) -> None:
        self._port = port

    @property
    def segments(self) -> bool:
        """Whether super-packets save work."""
        return self._port.headed

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """Put packets into the stack. Where the device has no virtio headers, they are cut first."""
        write = self._port.write
        for packet in packets if self._port.headed else self._plain(packets):
            write(*packet)

    def _plain(self, packets: Sequence[tuple[Buffer, ...]]) -> Iterator[tuple[Buffer, ...]]:
        for packet in packets:
            try:
                pieces = cut(b"".join(packet))
            except PacketError:
                # The port does not take it either, and counts it.
                yield packet
            else:
                for piece in pieces:
                    yield PLAIN, piece

    def close(self) -> None:
        """Inject no more."""
        self._port.close()


def _reason(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "raw sockets need root or CAP_NET_RAW"
    return error.strerror or str(error)
