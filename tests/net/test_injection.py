"""Tests for L{udptunnel.net.injection}, in memory; tests.system.test_packet has real sockets."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_tun import MemorySystem as MemoryTun
from tests.net.test_tun import RecordingReceiver
from tests.wire.test_segments import FOUR, SIX, tcp, udp
from udptunnel.core.counters import Counters
from udptunnel.core.fragments import Fragments
from udptunnel.errors import ListenError
from udptunnel.net.injection import RawInjector, TunInjector
from udptunnel.net.sockaddr import packSockaddr
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.wire.checksum import FIELD
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import hostOf, parse, refragmented
from udptunnel.wire.segments import cut
from udptunnel.wire.transport import checksumHolds
from udptunnel.wire.vnet import PLAIN

MARK = 7
V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


def failure(code: int) -> OSError:
    """What a system call raises."""
    return OSError(code, os.strerror(code))


def whole(ends: tuple[bytes, bytes], length: int, mayCut: bool = False) -> bytes:
    """A UDP packet with a full checksum."""
    packet = bytearray(cut(udp(ends, bytes(length), 0))[0])
    if mayCut:
        packet[6] = 0
    return bytes(packet)


class MemoryRaw:
    """
    An operating system that takes packets of a certain length.

    @ivar sent: family, destination and packet of each.
    @ivar refused: what is raised, by call or by destination.
    @ivar most: so many are taken by one call.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[int, str, bytes]] = []
        self.refused: dict[object, OSError] = {}
        self.opened: list[tuple[int, int]] = []
        self.isOpen: set[int] = set()
        self.mtu = 1500
        self.most = 64
        self.calls = 0

    def _called(self, what: object) -> None:
        if what in self.refused:
            raise self.refused[what]

    def open(self, family: int, mark: int) -> int:
        self._called(("open", family))
        self.opened.append((family, mark))
        self.isOpen.add(family)
        return family

    def close(self, descriptor: int) -> None:
        self.isOpen.remove(descriptor)

    def send(self, descriptor: int, family: int, names: Sequence[bytes], packets: Sequence[Buffer]) -> int:
        self.calls += 1
        assert descriptor == family
        for number, (name, packet) in enumerate(zip(names[: self.most], packets, strict=False)):
            raw = bytes(packet)
            host = hostOf(raw[16:20] if family == V4 else raw[24:40])
            assert name == packSockaddr(family, (host, 0))
            try:
                self._called(host)
                if len(raw) > self.mtu:
                    raise failure(errno.EMSGSIZE)
            except OSError:
                if number:
                    return number
                raise
            self.sent.append((family, host, raw))
        return min(self.most, len(packets))

    def longest(self, family: int, host: str, mark: int) -> int:
        self._called("longest")
        return self.mtu


class RawTests(SynchronousTestCase):
    """L{RawInjector}."""

    def setUp(self) -> None:
        self.system, self.counters = MemoryRaw(), Counters()
        self.told: list[tuple[bytes, int]] = []
        self.injector = RawInjector(self.counters, MARK, lambda *told: self.told.append(told), self.system)
        self.injector.open()

    def inject(self, *packets: bytes) -> None:
        """Inject packets that have virtio headers."""
        self.injector.inject([(packet,) for packet in packets])

    @property
    def packets(self) -> list[bytes]:
        """Those that the kernel took."""
        return [packet for _, _, packet in self.system.sent]

    def test_open(self) -> None:
        """There is one socket for each version of IP, with the mark; closing may be repeated."""
        self.assertEqual(self.system.opened, [(V4, MARK), (V6, MARK)])
        for _ in range(2):
            self.injector.close()
        self.assertEqual(self.system.isOpen, set())

    def test_notAllowed(self) -> None:
        """Who may not is told what is missing, and nothing stays open."""
        system = MemoryRaw()
        system.refused["open", V6] = failure(errno.EPERM)
        error = self.assertRaises(ListenError, RawInjector(self.counters, system=system).open)
        self.assertEqual(str(error), "--inject raw: raw sockets need root or CAP_NET_RAW")
        self.assertEqual(system.isOpen, set())

    def test_withoutIpv6(self) -> None:
        """A host without IPv6 injects the other version, and counts what it can not."""
        self.system = MemoryRaw()
        self.system.refused["open", V6] = failure(errno.EAFNOSUPPORT)
        self.injector = RawInjector(self.counters, system=self.system)
        self.injector.open()
        self.inject(PLAIN + whole(SIX, 9), PLAIN + whole(FOUR, 9))
        self.assertEqual(self.packets, [whole(FOUR, 9)])
        self.assertEqual(self.counters.dropped, {"inject closed": 1})

    def test_destinations(self) -> None:
        """Each packet goes to its own destination, without its virtio header, and is counted as sent."""
        other = FOUR[0], b"\x0a\x02\x00\x03"
        packets = [whole(FOUR, 10), whole(other, 11), whole(SIX, 12)]
        self.inject(*(PLAIN + packet for packet in packets))
        hosts = [(V4, "10.2.0.2"), (V4, "10.2.0.3"), (V6, "fd02::2")]
        self.assertEqual(self.system.sent, [(*host, packet) for host, packet in zip(hosts, packets, strict=True)])
        self.assertEqual((self.counters.sent, self.counters.sentBytes), (3, sum(map(len, packets))))
        self.assertEqual(self.system.calls, 2)

    def test_pieces(self) -> None:
        """A packet may lie in several buffers."""
        packet = whole(FOUR, 10)
        self.injector.inject([(PLAIN, packet[:30], memoryview(packet)[30:])])
        self.assertEqual(self.packets, [packet])

    def test_openChecksum(self) -> None:
        """A raw socket computes no checksum: partial ones are completed."""
        self.inject(udp(FOUR, b"abc", 0), udp(SIX, b"abc", 0))
        self.assertEqual(len(self.packets), 2)
        for packet in self.packets:
            self.assertTrue(checksumHolds(packet, parse(packet)))

    def test_superPackets(self) -> None:
        """Nor does it segment: super-packets are cut, among others that are not."""
        self.inject(PLAIN + whole(FOUR, 9), tcp(FOUR, bytes(25), 10), udp(SIX, bytes(25), 10))
        self.assertEqual([len(packet) for packet in self.packets], [37, 50, 50, 45, 58, 58, 53])
        for packet in self.packets:
            self.assertTrue(checksumHolds(packet, parse(packet)))
        self.assertFalse(self.injector.segments)

    def test_badHeader(self) -> None:
        """A virtio header that does not fit is counted, and hurts no other packet."""
        self.inject(tcp(FOUR, bytes(25), 10)[:50], udp(FOUR, b"", 0)[:35], PLAIN + whole(FOUR, 9))
        self.assertEqual(self.packets, [whole(FOUR, 9)])
        self.assertEqual(self.counters.dropped, {"inject headers": 2})

    def test_fewAtOnce(self) -> None:
        """All go even if the kernel takes only some at once."""
        self.system.most = 2
        packets = [whole(FOUR, length) for length in range(5)]
        self.inject(*(PLAIN + packet for packet in packets))
        self.assertEqual(self.packets, packets)

    def test_refused(self) -> None:
        """What is refused is counted by the error's name, and the others go."""
        other = FOUR[0], b"\x0a\x02\x00\x03"
        self.system.refused["10.2.0.3"] = failure(errno.EHOSTUNREACH)
        self.inject(*(PLAIN + whole(ends, 10) for ends in (FOUR, other, FOUR, other)))
        self.assertEqual(len(self.packets), 2)
        self.assertEqual(self.counters.dropped, {"inject EHOSTUNREACH": 2})

    def test_noRoom(self) -> None:
        """When there is no room, what is left of the call is dropped at once: nobody asks again for each packet."""
        for code in (errno.EAGAIN, errno.ENOBUFS):
            self.system.calls = 0
            self.system.refused["10.2.0.2"] = failure(code)
            self.inject(*[PLAIN + whole(FOUR, 10)] * 5)
            self.assertEqual(self.system.calls, 1)
        self.assertEqual(self.counters.dropped, {"inject queue full": 10})

    def test_tooLong(self) -> None:
        """What is too long and may not be cut is dropped, and somebody is told, who can tell its sender."""
        packets = [whole(FOUR, 1473), whole(SIX, 1453)]
        self.inject(*(PLAIN + packet for packet in packets), PLAIN + whole(FOUR, 1472))
        self.assertEqual(self.told, [(packet, 1500) for packet in packets])
        self.assertEqual(self.packets, [whole(FOUR, 1472)])
        self.assertEqual(self.counters.dropped, {"inject too long": 2})

    def test_mayBeCut(self) -> None:
        """What is too long and may be cut is cut, and whoever puts it together has the packet again."""
        packet = whole(FOUR, 4000, mayCut=True)
        self.inject(PLAIN + packet, PLAIN + packet)
        self.assertEqual((self.told, self.counters.dropped), ([], {}))
        self.assertEqual([len(each) for each in self.packets], [1500, 1500, 1068] * 2)
        self.assertEqual(len({each[4:6] for each in self.packets}), 2)
        waiting = Fragments()
        for place in (0, 3):
            found = [waiting.add(each, parse(each), 0.0) for each in self.packets[place : place + 3]]
            self.assertEqual((found[:2], found[2][20:] if found[2] else b""), ([None, None], packet[20:]))

    def test_lengthUnknown(self) -> None:
        """If nobody knows how long it may be, or that is long enough by now, it is just counted."""
        self.system.refused["longest"] = failure(errno.ENETUNREACH)
        self.inject(PLAIN + whole(FOUR, 2000))
        del self.system.refused["longest"]
        self.system.refused["10.2.0.2"] = failure(errno.EMSGSIZE)
        self.inject(PLAIN + whole(FOUR, 1000))
        self.assertEqual(self.counters.dropped, {"inject ENETUNREACH": 1, "inject EMSGSIZE": 1})
        self.assertEqual(self.told, [])


class FragmentsTests(SynchronousTestCase):
    """L{refragmented}."""

    def test_ofFragment(self) -> None:
        """A fragment is cut like a packet: offsets go on from its own, and only the packet's last part ends it."""
        first, second = refragmented(whole(FOUR, 100, mayCut=True), 84, 9)
        parts = [parse(each).fragment for part in (first, second) for each in refragmented(bytes(part), 44, 5)]
        self.assertEqual(
            [(each.offset, each.more) for each in parts if each], [(0, 1), (24, 1), (48, 1), (64, 1), (88, 0)]
        )
        self.assertEqual({each.identification for each in parts if each}, {9})

    def test_identification(self) -> None:
        """A packet that has one keeps it."""
        packet = bytearray(whole(FOUR, 100, mayCut=True))
        FIELD.pack_into(packet, 4, 77)
        self.assertEqual({part[4:6] for part in refragmented(bytes(packet), 84, 9)}, {b"\0M"})


class TunTests(SynchronousTestCase):
    """L{TunInjector}."""

    def setUp(self) -> None:
        self.counters = Counters()

    def make(self, vnet: bool) -> tuple[TunInjector, list[tuple[bytes, ...]]]:
        """One that writes to a TUN, with virtio headers or without, and what is written."""
        system = MemoryTun(vnet)
        port = TunPort(PortReactor(), Interface("tun7"), RecordingReceiver(), TunOffload(), self.counters, system)
        port.open()
        written: list[tuple[bytes, ...]] = []
        self.patch(system, "write", lambda descriptor, buffers: written.append(tuple(map(bytes, buffers))) or 1)
        injector = TunInjector(port)
        self.addCleanup(injector.close)
        return injector, written

    def test_whole(self) -> None:
        """A super-packet is written as it is, in as many buffers as it lies in."""
        injector, written = self.make(vnet=True)
        packet = tcp(FOUR, bytes(25), 10)
        injector.inject([(packet[:10], packet[10:]), (packet,)])
        self.assertEqual(written, [(packet[:10], packet[10:]), (packet,)])
        self.assertTrue(injector.segments)

    def test_withoutHeaders(self) -> None:
        """Where the device has no virtio headers, packets are cut and completed first; what does not fit is counted."""
        injector, written = self.make(vnet=False)
        injector.inject([(tcp(FOUR, bytes(25), 10),), (tcp(FOUR, bytes(25), 10)[:50],), (udp(SIX, b"abc", 0),)])
        packets = [b"".join(each) for each in written]
        self.assertEqual([len(each) for each in packets], [50, 50, 45, 51])
        for packet in packets:
            self.assertTrue(checksumHolds(packet, parse(packet)))
        self.assertFalse(injector.segments)
        self.assertEqual(self.counters.dropped, {"write ENOTSUP": 1})
