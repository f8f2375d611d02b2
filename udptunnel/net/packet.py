"""
Capture ports: descriptors that hand over IP packets which arrive at an ordinary network interface.

A socket of AF_PACKET (packet(7)) sees a packet before the host does anything with it, and takes nothing away: what is
to go nowhere else must be kept from being routed, see L{udptunnel.net.blackhole}. With PACKET_VNET_HDR the kernel says
what network cards were to do later: so up to 64 KB of a TCP stream arrive as one packet whose checksum nobody has
computed yet, and nobody needs C{ethtool} to switch that off. Who reads gets the same as from
L{TunPort<udptunnel.net.tun.TunPort>}: virtio header, IP packet, and nothing of Ethernet.

Packets are taken with recvmmsg. A ring shared with the kernel (TPACKET_V3) was measured beside it, between two
namespaces. It takes less than half of the processor's time, of which super-packets need little in any case (0.1 s for
1 GB instead of 0.25 s). But its blocks are handed over when they are full or when a clock ticks, at most once a
millisecond: packets came 0.7 ms later, in each direction. Only a stream of single packets, which network cards join,
would gain by it.

The functions stand in the order in which a packet meets them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.mmsg import PacketInbox
from udptunnel.net.packetfilter import INSTRUCTION, capturing
from udptunnel.net.platforms import fcntl
from udptunnel.net.refusals import NOTHING_THERE, nameOf
from udptunnel.net.tun import LARGEST_PACKET, Receiver
from udptunnel.net.tundevice import HEADER_BYTES
from udptunnel.wire.ip import IPV4_BYTES, IPV6_BYTES
from udptunnel.wire.vnet import NEEDS_CSUM

SOL_PACKET = 263
PACKET_STATISTICS, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 6, 15, 23
"""From linux/if_packet.h; the last since Linux 4.20."""

SO_ATTACH_FILTER, SO_LOCK_FILTER, SO_RCVBUFFORCE = 26, 44, 33
"""From asm-generic/socket.h."""

SIOCGIFHWADDR = 0x8927
"""From linux/sockios.h."""

ETH_P_ALL = 0x0003
"""
Packets of all protocols, which the filter tells apart. So one socket sees both versions of IP; and it sees those with a
VLAN tag before they are handed on without it, and knows them.
"""

ETHERNET_BYTES = 14

LINKS = {1: ETHERNET_BYTES, 772: ETHERNET_BYTES} | dict.fromkeys((512, 519, 768, 769, 776, 65534), 0)
"""
Bytes before the IP packet by C{ARPHRD_} number (linux/if_arp.h): Ethernet and loopback; and PPP, raw IP, tunnels of IP
in IP, WireGuard and TUN, which have no header that we would see.
"""

QUEUE_BYTES = 8 << 20
"""What the kernel keeps for us while others have the processor: 100 super-packets or 4,000 single ones, roughly."""

RETRY_SECONDS = 0.5
"""How often we look whether an interface is there again."""

PADDED_BYTES = 64 - ETHERNET_BYTES
"""
What comes in a frame of the shortest kind may have been padded: 60 bytes (IEEE 802.3 section 3.2.8), or 64 where a tag
was taken out of it.
"""

_log = Logger()

_LOST = {errno.ENETDOWN: "down", errno.ENODEV: "gone", errno.ENXIO: "gone", errno.EBADF: "gone"}
"""What a socket says when its interface is no use any more."""

_NO_HEADER = bytes(HEADER_BYTES)
_PLACES, _PLACES_AT = struct.Struct("=HHH"), 2
"""Of a virtio header hdr_len, gso_size and csum_start."""

_REQUEST, _KIND = struct.Struct("=16s24x"), struct.Struct("=16xH")
"""struct ifreq, and in it the kind of a link."""

_PROGRAM = struct.Struct("@HP")
"""struct sock_fprog: how many instructions, and where they are."""

_STATISTICS = struct.Struct("=II")
"""struct tpacket_stats: packets, and how many of them were dropped."""

_LENGTH = struct.Struct("!H")
"""The length in an IP header: in IPv4 of all of the packet, in IPv6 of what follows the header."""


class PacketSocket(Protocol):
    """A socket of AF_PACKET, as Python has it. All may raise C{OSError}."""

    def fileno(self) -> int:
        """Its descriptor."""

    def setsockopt(self, level: int, name: int, value: Any, /) -> None:
        """As C{socket.setsockopt}."""

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes:
        """As C{socket.getsockopt}."""

    def bind(self, address: tuple[str, int], /) -> None:
        """Receive from an interface what has a protocol."""

    def close(self) -> None:
        """Let go of it."""


class Inbox(Protocol):
    """Takes packets from a socket."""

    def receive(self, descriptor: int) -> list[memoryview]:
        """
        What has arrived, but not more than one's share of it: virtio headers and IP packets.

        @raise OSError: the kernel reports anything but "nothing there".
        """


class System(Protocol):
    """The operating system, as far as capture ports need it. All may raise C{OSError}."""

    def socket(self) -> PacketSocket:
        """A socket that does not block, and receives nothing before it is bound."""

    def linkOf(self, interface: str) -> int:
        """The kind of an interface's link (C{ARPHRD_})."""

    def inbox(self, link: int) -> Inbox:
        """What takes packets from a socket, and leaves out as many bytes between virtio header and IP packet."""


class LinuxSystem:
    """Linux."""

    def socket(self) -> PacketSocket:
        """A socket that does not block, and receives nothing before it is bound."""
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)

    def linkOf(self, interface: str) -> int:
        """The kind of an interface's link. Not from /sys, which may show another network namespace than ours."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            answer = fcntl.ioctl(asking, SIOCGIFHWADDR, _REQUEST.pack(os.fsencode(interface)[:15]))
        return int(_KIND.unpack_from(answer)[0])

    def inbox(self, link: int) -> Inbox:
        """What takes packets from a socket."""
        return PacketInbox(HEADER_BYTES, link, HEADER_BYTES + LARGEST_PACKET)


@implementer(IReadDescriptor)
class CapturePort:
    """
    What arrives at one interface for some networks.

    An interface that goes down or away is looked for until it is there again.

    @ivar interface: what it is called.
    @ivar isCapturing: whether it is there.
    """

    __slots__ = (
        "_counters",
        "_inbox",
        "_link",
        "_looking",
        "_program",
        "_reactor",
        "_receiver",
        "_socket",
        "_system",
        "interface",
    )

    def __init__(
        self,
        reactor: Any,
        interface: str,
        prefixes: Sequence[str],
        receiver: Receiver,
        counters: Counters,
        system: System | None = None,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param prefixes: ADDRESS/LENGTH of the networks whose packets are captured.
        @param receiver: is told of packets, and when the interface is lost, which may happen again and again.
        @param counters: what is captured counts as received.
        @param system: the operating system; Linux unless a test says otherwise.
        @raise ConfigError: the prefixes are none, or too many.
        """
        self.interface = interface
        self._program = capturing(prefixes)
        self._reactor = reactor
        self._receiver = receiver
        self._counters = counters
        self._system: System = system or LinuxSystem()
        self._socket: PacketSocket | None = None
        self._link = ETHERNET_BYTES
        self._looking: IDelayedCall | None = None
        self._inbox: Inbox = self._system.inbox(self._link)

    @property
    def isCapturing(self) -> bool:
        """Whether the interface is there."""
        return self._socket is not None

    # -- opening and closing

    def open(self) -> None:
        """
        Capture from now on, or as soon as the interface is up.

        @raise ListenError: there is no such interface, or it is of a kind that carries no IP, or this user may not.
        """
        try:
            self._open()
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                raise ListenError(f"--interface {self.interface}: {_reason(error)}") from error
            self._lose(_LOST[errno.ENETDOWN])

    def _open(self) -> None:
        kind = self._system.linkOf(self.interface)
        if kind not in LINKS:
            raise OSError(errno.EPFNOSUPPORT, f"it is neither Ethernet nor bare IP, but of kind {kind}")
        if self._link != LINKS[kind]:
            self._link = LINKS[kind]
            self._inbox = self._system.inbox(self._link)
        made = self._system.socket()
        try:
            self._prepare(made)
            # Only now does it receive anything, and by now nothing gets past the filter.
            made.bind((self.interface, ETH_P_ALL))
            _checkUp(made)
        except OSError:
            made.close()
            raise
        self._socket = made
        self._reactor.addReader(self)

    def _prepare(self, made: PacketSocket) -> None:
        made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        instructions = ctypes.create_string_buffer(self._program, len(self._program))
        count = len(self._program) // INSTRUCTION.size
        made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(count, ctypes.addressof(instructions)))
        made.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        try:
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)

    def close(self) -> None:
        """Capture no more. It may be closed already."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._letGo()

    def _letGo(self) -> None:
        if self._socket is not None:
            self._countLost(self._socket)
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

    # -- IReadDescriptor

    def fileno(self) -> int:
        """The descriptor; -1 while there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about this port begin with."""
        return f"capture at {self.interface}"

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor has no more use for the descriptor.

        It says the same when it stops and when poll() has seen an error, as of an interface that is down; only the
        latter is a loss.
        """
        if self._socket is not None:
            if code := _errorOf(self._socket):
                self._lose(_LOST.get(code, os.strerror(code)))
            else:
                self.close()

    # -- what arrives

    def doRead(self) -> None:
        """Pass on what has arrived, but not more than its share."""
        try:
            packets = self._inbox.receive(self.fileno())
        except OSError as error:
            self._readFailed(error)
            return
        if packets:
            self._pass(packets)

    def _pass(self, packets: list[memoryview]) -> None:
        try:
            if self._link:
                self._leaveLinkOut(packets)
            counters = self._counters
            counters.received += len(packets)
            counters.receivedBytes += sum(map(len, packets)) - HEADER_BYTES * len(packets)
            self._receiver.packetsReceived(packets)
        except Exception:
            # The reactor would close the port, and nobody would notice.
            _log.failure("packets captured at {name} are lost by a mistake of ours", name=self.interface)

    def _leaveLinkOut(self, packets: list[memoryview]) -> None:
        """Count from the IP header what was counted from the Ethernet header, and take padding away."""
        for place, packet in enumerate(packets):
            if packet[0] & NEEDS_CSUM or packet[1]:
                _countFromIp(packet, self._link)
            if len(packet) <= HEADER_BYTES + PADDED_BYTES:
                packets[place] = _unpadded(packet)

    def _readFailed(self, error: OSError) -> None:
        if error.errno in _LOST:
            self._lose(_LOST[error.errno])
        elif error.errno not in NOTHING_THERE:
            self._counters.drop(f"capture {nameOf(error)}")

    # -- an interface that goes, and comes back

    def check(self) -> None:
        """Count what the kernel has dropped because we were too slow; to be called now and then."""
        if self._socket is not None:
            self._countLost(self._socket)

    def _countLost(self, asked: PacketSocket) -> None:
        with suppress(OSError):
            dropped = _STATISTICS.unpack(asked.getsockopt(SOL_PACKET, PACKET_STATISTICS, _STATISTICS.size))[1]
            if dropped:
                self._counters.drop("capture queue full", dropped)

    def _lose(self, why: str) -> None:
        """Look for the interface from now on; the receiver is told as soon as it is not in the midst of something."""
        self._letGo()
        if self._looking is None:
            _log.warn("{name} is {why}: nothing is captured until it is there again", name=self.interface, why=why)
            self._looking = self._reactor.callLater(0, self._tell, why)

    def _tell(self, why: str) -> None:
        self._looking = self._reactor.callLater(RETRY_SECONDS, self._look)
        self._receiver.lost(why)

    def _look(self) -> None:
        self._looking = None
        try:
            self._open()
        except OSError:
            self._looking = self._reactor.callLater(RETRY_SECONDS, self._look)
        else:
            _log.info("{name} is there again", name=self.interface)


def _checkUp(made: PacketSocket) -> None:
    """
    See that what it was bound to is up.

    @raise OSError: it is not, which the kernel says only to who asks.
    """
    if code := _errorOf(made):
        raise OSError(code, os.strerror(code))


def _errorOf(asked: PacketSocket) -> int:
    """What went wrong since it was asked last; 0: nothing."""
    return int.from_bytes(asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 4), sys.byteorder)


def _countFromIp(packet: memoryview, link: int) -> None:
    header, size, start = _PLACES.unpack_from(packet, _PLACES_AT)
    _PLACES.pack_into(packet, _PLACES_AT, max(0, header - link), size, max(0, start - link))


def _unpadded(packet: memoryview) -> memoryview:
    """A packet without what follows its end; what is too short for a header is left to who reads it."""
    if len(packet) < HEADER_BYTES + IPV4_BYTES:
        return packet
    if packet[HEADER_BYTES] >> 4 == 4:
        (length,) = _LENGTH.unpack_from(packet, HEADER_BYTES + 2)
        return packet[: HEADER_BYTES + length]
    (length,) = _LENGTH.unpack_from(packet, HEADER_BYTES + 4)
    return packet[: HEADER_BYTES + IPV6_BYTES + length]


def _reason(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "capturing needs root or CAP_NET_RAW"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "there is no such interface"
    return error.strerror or str(error)
