"""Real interfaces: what a kernel lets a capture port see, what it does with injected packets, and with the set-up."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest, skipUnless

from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import Namespace, run
from tests.test_plugins import environment
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.blackhole import PROTOCOL, Setup
from udptunnel.net.discards import LinuxDiscards
from udptunnel.net.injection import Injector, RawInjector, TunInjector
from udptunnel.net.offload import SOL_UDP, UDP_SEGMENT
from udptunnel.net.ownaddresses import ownAddresses
from udptunnel.net.packet import RETRY_SECONDS, CapturePort
from udptunnel.net.rtnetlink import LinuxRouting
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.wire.ip import UDP, packHost, parse
from udptunnel.wire.segments import cut
from udptunnel.wire.transport import checksumHolds, parseTcp, udpHeaders
from udptunnel.wire.vnet import VNET_BYTES, packVnet, udpVnet, unpackVnet

SO_DETACH_FILTER = 27
"""From asm-generic/socket.h."""

PREFIXES = ["10.55.0.0/16", "fd55::/48"]
CAPTURED, OTHERS = ("10.55.0.9", "fd55::9"), ("10.9.0.2", "fd09::2")
HOST, GATEWAY = ("10.9.0.1", "fd09::1"), ("10.9.0.2", "fd09::2")
PORT, SIZE = 5000, 1400
SECONDS = 10.0
"""Whatever is waited for is there by then."""


def family(host: str) -> socket.AddressFamily:
    """Of a numeric host."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


HOLD = """
import sys
from udptunnel.net.blackhole import Setup
setup = Setup("down0", ["10.55.0.0/16", "fd55::/48"], 1400)
setup.start()
print("started", flush=True)
sys.stdin.read()
"""
"""A process that has set everything up."""


class Receiver:
    """Keeps what arrives, copied."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.losses: list[str] = []

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Packets have arrived."""
        self.packets += map(bytes, packets)

    def lost(self, why: str) -> None:
        """The interface is gone."""
        self.losses.append(why)


class PacketTestCase(SynchronousTestCase):
    """host -- gateway, where packets are captured and injected. The host has routes by the gateway."""

    def setUp(self) -> None:
        if os.geteuid() or not shutil.which("ip"):
            raise SkipTest("namespaces need root, and ip from iproute2")
        self.reactor, self.counters, self.receiver = PortReactor(), Counters(), Receiver()
        self.host, self.gateway = self._namespace("h"), self._namespace("g")
        self.wire()
        self.know()

    def wire(self) -> None:
        """Put a wire between the two."""
        self.host.ip("link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", self.gateway.name)
        for namespace, device, addresses in ((self.host, "up0", HOST), (self.gateway, "down0", GATEWAY)):
            for address, length in zip(addresses, ("24", "64"), strict=True):
                namespace.addAddress(f"{address}/{length}", device)
            namespace.ip("link", "set", device, "up")

    def _namespace(self, role: str) -> Namespace:
        made = Namespace(role)
        self.addCleanup(made.remove)
        return made

    def know(self) -> None:
        """No neighbour need be asked: that would take a moment, and IPv6 asks only once its own address is sure."""
        for near, device, far, other, hosts in (
            (self.host, "up0", self.gateway, "down0", GATEWAY),
            (self.gateway, "down0", self.host, "up0", HOST),
        ):
            for host in hosts:
                near.ip("neighbour", "replace", host, "lladdr", self.mac(far, other), "dev", device)
        for network, gateway in zip(PREFIXES, GATEWAY, strict=True):
            self.host.ip("route", "replace", network, "via", gateway)

    def mac(self, namespace: Namespace, device: str) -> str:
        """The Ethernet address of a device."""
        return run(*namespace.command("cat", f"/sys/class/net/{device}/address")).strip()

    @contextmanager
    def capturing(self) -> Iterator[CapturePort]:
        """A port at the gateway."""
        port = CapturePort(self.reactor, "down0", PREFIXES, self.receiver, self.counters)
        with self.gateway.entered():
            port.open()
        try:
            yield port
        finally:
            with self.gateway.entered():
                port.close()

    def udp(self, namespace: Namespace, host: str = "", port: int = 0) -> socket.socket:
        """A UDP socket of a namespace, at an address if one is given."""
        with namespace.entered():
            opened = socket.socket(family(host or "0.0.0.0"), socket.SOCK_DGRAM)
        self.addCleanup(opened.close)
        opened.settimeout(SECONDS)
        opened.bind((host, port))
        return opened


class CaptureTests(PacketTestCase):
    """L{CapturePort}."""

    def test_destinations(self) -> None:
        """Packets to the networks are seen, of both versions; those to others and our own are not."""
        with self.capturing():
            for others, captured, own in zip(OTHERS, CAPTURED, HOST, strict=True):
                sender, back = self.udp(self.host, HOST[":" in own]), self.udp(self.gateway, GATEWAY[":" in own])
                sender.sendto(b"x", (others, PORT))
                back.sendto(b"x", (own, PORT))
                sender.sendto(captured.encode(), (captured, PORT))
            self.reactor.until(lambda: len(self.receiver.packets) == 2)
            while self.reactor.turn():
                pass
        found = [parse(packet[VNET_BYTES:]).destinationHost for packet in self.receiver.packets]
        self.assertEqual(found, list(CAPTURED))
        self.assertEqual(self.counters.received, 2)

    def test_superPackets(self) -> None:
        """A burst that its sender has not cut comes as one packet, and can be cut: nobody has switched anything off."""
        payload = bytes(range(250)) * 40
        with self.capturing():
            for host, own in zip(CAPTURED, HOST, strict=True):
                sender = self.udp(self.host, own)
                sender.setsockopt(SOL_UDP, UDP_SEGMENT, SIZE)
                sender.sendto(payload, (host, PORT))
            self.reactor.until(lambda: len(self.receiver.packets) == 2)
        for frame in self.receiver.packets:
            self.assertEqual(unpackVnet(frame).segmentSize, SIZE)
            pieces = cut(frame)
            self.assertTrue(all(checksumHolds(piece, parse(piece)) for piece in pieces))
            self.assertEqual(b"".join(piece[parse(piece).payloadStart + 8 :] for piece in pieces), payload)

    def test_tcp(self) -> None:
        """The checksum of a TCP packet that came from nearby is still open; completed, it is right."""
        with self.capturing():
            for host in CAPTURED:
                with self.host.entered(), socket.socket(family(host)) as connecting:
                    connecting.setblocking(False)
                    connecting.connect_ex((host, PORT))
            self.reactor.until(lambda: len(self.receiver.packets) >= 2)
        for frame in self.receiver.packets[:2]:
            (packet,) = cut(frame)
            self.assertTrue(checksumHolds(packet, parse(packet)))
            self.assertTrue(parseTcp(packet, parse(packet)).opens)

    def test_padding(self) -> None:
        """What a card adds to short frames is not there; what is not for us, or has a VLAN tag, is not either."""
        packet = udpHeaders(packHost(HOST[0]), packHost(CAPTURED[0]), 9, PORT, 3) + b"abc"
        mac, others = bytes.fromhex(self.mac(self.gateway, "down0").replace(":", "")), b"\2\0\0\0\0\7"
        with self.capturing(), self.host.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card:
            card.bind(("up0", 0))
            card.send(others + others + b"\x08\0" + packet + bytes(15))
            card.send(mac + others + b"\x81\0\0\7\x08\0" + packet + bytes(11))
            card.send(mac + others + b"\x08\0" + packet + bytes(15))
            self.reactor.until(lambda: bool(self.receiver.packets))
            while self.reactor.turn():
                pass
        self.assertEqual([frame[VNET_BYTES:] for frame in self.receiver.packets], [packet])

    def test_downAndUp(self) -> None:
        """An interface that was down captures again when it is up; one that was taken away, when it is made anew."""
        with self.capturing() as port:
            self.gateway.ip("link", "set", "down0", "down")
            self._loses(port, 1)
            self.gateway.ip("link", "set", "down0", "up")
            self._captures(port)
            self.gateway.ip("link", "delete", "down0")
            self._loses(port, 2)
            self.wire()
            self._captures(port)

    def _loses(self, port: CapturePort, times: int) -> None:
        self.reactor.until(lambda: not port.isCapturing)
        self._look(2)
        self.assertEqual((port.isCapturing, len(self.receiver.losses)), (False, times))

    def _look(self, times: int) -> None:
        with self.gateway.entered():
            self.reactor.pump([RETRY_SECONDS] * times)

    def _captures(self, port: CapturePort) -> None:
        self._look(1)
        self.assertTrue(port.isCapturing)
        self.know()
        self.receiver.packets.clear()
        self.udp(self.host).sendto(b"x", (CAPTURED[0], PORT))
        self.reactor.until(lambda: bool(self.receiver.packets))

    def test_filterIsLocked(self) -> None:
        """Nobody who gets hold of the socket can take the filter away."""
        with self.capturing() as port, socket.socket(fileno=os.dup(port.fileno())) as same:
            error = self.assertRaises(OSError, same.setsockopt, socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            self.assertEqual(error.errno, errno.EPERM)

    def test_refused(self) -> None:
        """An interface that is not there is named."""
        port = CapturePort(self.reactor, "none0", PREFIXES, self.receiver, self.counters)
        with self.gateway.entered():
            error = self.assertRaises(ListenError, port.open)
        self.assertEqual(str(error), "--interface none0: there is no such interface")


class InjectionTests(PacketTestCase):
    """Injectors, and what the host does with packets that were captured."""

    def packet(self, target: str, source: str, payload: bytes, size: int = 0) -> bytes:
        """A UDP packet, or a super-packet, with an open checksum."""
        headers = udpHeaders(packHost(source), packHost(target), 9, PORT, len(payload))
        return packVnet(udpVnet(len(headers) - 8, size)) + headers + payload

    def injects(self, injector: Injector) -> None:
        """See that single packets and super-packets arrive at the host, of both versions."""
        payload = bytes(range(250)) * 40
        with self.gateway.entered():
            for target, source in zip(HOST, CAPTURED, strict=True):
                there = self.udp(self.host, target, PORT)
                injector.inject([(self.packet(target, source, b"one"),), (self.packet(target, source, payload, SIZE),)])
                received = [there.recvfrom(65536) for _ in range(9)]
                self.assertEqual(b"".join(data for data, _ in received), b"one" + payload)
                self.assertEqual({address[:2] for _, address in received}, {(source, 9)})

    def test_raw(self) -> None:
        """Raw sockets take packets from any source; the host need forward nothing, and may filter strictly."""
        self.filterStrictly()
        setup = Setup("down0", PREFIXES)
        injector = RawInjector(self.counters)
        with self.gateway.entered():
            injector.open()
            setup.start()
        self.addCleanup(injector.close)
        self.injects(injector)
        with self.gateway.entered():
            setup.stop()
        self.assertEqual(self.counters.dropped, {})

    def test_rawTooLong(self) -> None:
        """What is longer than where it goes: cut if it may be; otherwise it is said how long it may be."""
        told: list[tuple[int, int]] = []
        injector = RawInjector(self.counters, tooLong=lambda packet, most: told.append((len(packet), most)))
        with self.gateway.entered():
            injector.open()
            self.addCleanup(injector.close)
            there = self.udp(self.host, HOST[0], PORT)
            for target, source in zip(HOST, CAPTURED, strict=True):
                injector.inject([(self.packet(target, source, bytes(3000)),)])
            mayBeCut = bytearray(self.packet(HOST[0], CAPTURED[0], bytes(3001)))
            mayBeCut[VNET_BYTES + 6] = 0
            injector.inject([(bytes(mayBeCut),)])
        self.assertEqual(len(there.recv(65536)), 3001)
        self.assertEqual(told, [(3028, 1500), (3048, 1500)])

    def test_tun(self) -> None:
        """
        What comes out of a TUN is forwarded whole, though the host filters strictly and forwards nothing else, because
        the set-up has given it a way back.
        """
        with self.byTun() as port:
            self.injects(TunInjector(port))
        self.assertEqual(self.counters.dropped, {})

    def test_otherAddress(self) -> None:
        """What the host sends bears an address of the interface; also when that has got another one."""
        with self.byTun():
            for version, other in ((0, "10.44.0.77"), (1, "fd44::77")):
                self.assertIn(f" src {GATEWAY[version]} ", self.way(CAPTURED[version]))
                words = run("ip", "-n", self.gateway.name, "-o", "address", "show", "to", GATEWAY[version]).split()
                self.gateway.addAddress(f"{other}/{words[3].partition('/')[2]}", "down0")
                self.gateway.ip("address", "del", words[3], "dev", "down0")
                with self.gateway.entered():
                    self.setup.renew()
                self.assertNotIn(f" src {GATEWAY[version]} ", self.way(CAPTURED[version]))
                self.assertIn(" dev tun9 ", self.way(CAPTURED[version]))
                self.assertRegex(self.way(CAPTURED[version]), f" src {other} ")

    def way(self, target: str) -> str:
        """Which way the gateway's own packets go."""
        return run("ip", "-n", self.gateway.name, "route", "get", target) + " "

    def test_tunReads(self) -> None:
        """
        What the host itself sends to the other side comes out of the TUN, and what arrives by other interfaces; what
        was captured does not, though the host is a router.
        """
        with self.gateway.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        with self.byTun() as port, self.capturing():
            self.udp(self.host, HOST[0]).sendto(b"captured", (CAPTURED[0], PORT))
            self.udp(self.gateway, GATEWAY[0]).sendto(b"own", (CAPTURED[0], PORT))
            port.write(self.packet(CAPTURED[0], "10.55.0.8", b"others"))
            self.reactor.until(lambda: len(self.datagrams) == 3)
            while self.reactor.turn():
                pass
            self.assertEqual(self.datagrams, [b"captured", b"others", b"own"])

    @property
    def datagrams(self) -> list[bytes]:
        """The payloads of UDP packets that have come, in the order of the alphabet: the host also sends redirects."""
        packets = (packet[VNET_BYTES:] for packet in self.receiver.packets)
        return sorted(packet[28:] for packet in packets if parse(packet).protocol == UDP)

    @contextmanager
    def byTun(self) -> Iterator[TunPort]:
        """A TUN at the gateway, with all that it needs."""
        self.filterStrictly()
        self.setup = setup = Setup("down0", PREFIXES)
        port = TunPort(self.reactor, Interface("tun9"), self.receiver, TunOffload(), self.counters)
        with self.gateway.entered():
            port.open()
            setup.start("tun9")
        try:
            yield port
        finally:
            with self.gateway.entered():
                setup.stop()
                self.assertEqual(LinuxRouting().routes(PROTOCOL), [])
                self.assertEqual(LinuxDiscards().networks(), [])
                port.close()

    def filterStrictly(self) -> None:
        """Have the gateway look whether sources have a way back, at all devices."""
        with self.gateway.entered():
            for name in ("all", "default"):
                Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")


class OwnTests(PacketTestCase):
    """L{ownAddresses}."""

    def test_local(self) -> None:
        """All that the host takes for itself is found: also anycast, which routers have, and what routes make local."""
        for words in (("10.99.0.0/24",), ("fd99::/64",)):
            self.gateway.ip("route", "add", "local", *words, "dev", "lo")
        with self.gateway.entered():
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
            own = ownAddresses()
        network = run("ip", "-n", self.gateway.name, "-6", "route", "show", "dev", "down0", "proto", "kernel").split()
        anycast = network[0].partition("/")[0]
        self.assertEqual(own.networks, ("10.99.0.0/24", "fd99::/64"))
        for host in (*GATEWAY, "127.0.0.1", "::1", anycast):
            self.assertIn(packHost(host), own.addresses)


class SetupTests(PacketTestCase):
    """L{Setup}."""

    def test_vanishes(self) -> None:
        """A router that has captured a packet tells nobody that it could not deliver it; without the set-up it does."""
        with self.gateway.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.assertEqual(self.unreachable(), 1)
        setup = Setup("down0", PREFIXES)
        with self.gateway.entered():
            setup.start()
        self.assertEqual(self.unreachable(), 1)
        with self.gateway.entered():
            setup.stop()
        self.assertEqual(self.unreachable(), 2)

    def unreachable(self) -> int:
        """How many errors the gateway has sent, after one more packet to nowhere."""
        self.udp(self.host, HOST[0]).sendto(b"x", (CAPTURED[0], PORT))
        # One who answers has seen what came before.
        run(*self.host.command("ping", "-c", "1", "-W", "5", GATEWAY[0]))
        with self.gateway.entered():
            text = Path("/proc/thread-self/net/snmp").read_text()
        names, values = (line.split() for line in text.splitlines() if line.startswith("Icmp:"))
        return int(values[names.index("OutDestUnreachs")])

    def test_killed(self) -> None:
        """What a killed process has left is taken away by the next one, also the MTU that it has changed."""
        before = self.state()
        with self.gateway.entered():
            LinuxDiscards().add("fd55::/48", "down0")
            self.assertEqual(LinuxDiscards().networks(), ["fd55::/48"])
        command = self.gateway.command(sys.executable, "-c", HOLD)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"started\n")
            self.assertNotEqual(self.state(), before)
            process.kill()
        setup = Setup("down0", ["10.66.0.0/16"])
        with self.gateway.entered():
            setup.start()
            setup.stop()
        self.assertEqual(self.state(), before)

    @skipUnless(shutil.which("nft"), "no nft")
    def test_byHand(self) -> None:
        """What somebody has typed who does without the set-up is his, and stays, whoever starts."""
        for command in Setup("down0", PREFIXES).commands("lo"):
            if command.startswith("nft "):
                run(*self.gateway.command("sh", "-c", command))
        made = run(*self.gateway.command("nft", "list", "ruleset"))
        self.assertEqual(made.count("table inet"), len(PREFIXES))
        setup = Setup("down0", ["10.66.0.0/16"])
        with self.gateway.entered():
            setup.start()
            setup.stop()
        self.assertEqual(run(*self.gateway.command("nft", "list", "ruleset")), made)

    def state(self) -> list[str]:
        """What could be different afterwards."""
        words = ("route",), ("-6", "route"), ("rule",), ("-6", "rule"), ("link", "show", "down0")
        kept = [run("ip", "-n", self.gateway.name, *each) for each in words]
        with self.gateway.entered():
            return [*kept, *LinuxDiscards().networks()]
