"""Real TUNs: what the kernel takes and gives, and its own TCP through L{udptunnel.core.nat}."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import Namespace, run
from tests.system.turns import TakesTurns
from udptunnel.core.counters import Counters
from udptunnel.core.nat import FORWARD, Action, Listener, Nat, Session
from udptunnel.errors import ListenError
from udptunnel.net.linuxtun import LinuxSystem
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import NAMES, TunOffload, TunPort
from udptunnel.net.tundevice import HEADER_BYTES, IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, QUEUE_PACKETS, Interface
from udptunnel.wire.ip import parse
from udptunnel.wire.transport import resetFor
from udptunnel.wire.vnet import PLAIN

DEVICE, MTU = "tun7", 1500
OWN, NEXT = ("10.9.0.1", "fd00:9::1"), ("10.9.0.2", "fd00:9::2")
TARGETS = "198.51.100.7", "2001:db8:7::7"
PORT = 443
MEGABYTES = 50
BLOCK = os.urandom(1 << 20)
ABILITIES = "vnet,tso,uso", "vnet,tso"
"""Of kernels since Linux 6.2, and of those before."""

SECONDS = 30.0
"""Whatever is waited for is there by then."""


def blocks() -> Iterator[bytes]:
    """What is sent: no two parts of it are alike."""
    return (BLOCK[number:] + BLOCK[:number] for number in range(MEGABYTES))


def send(connection: socket.socket) -> None:
    """Send everything, and say that it was all."""
    for block in blocks():
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)


def receive(connection: socket.socket) -> bytes:
    """The hash of everything that comes."""
    digest, memory = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while count := connection.recv_into(memory):
        digest.update(memory[:count])
    return digest.digest()


class Gateway:
    """
    A TUN whose TCP the kernel itself terminates.

    @ivar refusing: whether it finds that no target can be reached.
    @ivar largest: the length of the longest packet that came.
    """

    def __init__(self, reactor: Any, names: tuple[str, ...]) -> None:
        self.counters = Counters()
        self.offload = TunOffload(names)
        addresses = (f"{OWN[0]}/24", f"{OWN[1]}/64")
        self.port = TunPort(reactor, Interface(DEVICE, addresses, MTU), self, self.offload, self.counters)
        self.port.open()
        self.listeners = [socket.create_server((own, 0), family=family(own), backlog=64) for own in OWN]
        ports = (listener.getsockname()[1] for listener in self.listeners)
        self.nat = Nat(map(Listener, OWN, NEXT, ports))
        self.sessions: list[Session] = []
        self.losses: list[str] = []
        self.refusing = False
        self.largest = 0

    def close(self) -> None:
        """Close everything."""
        self.port.close()
        for listener in self.listeners:
            listener.close()

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Rewrite them."""
        received, write = self.nat.packetReceived, self.port.write
        for packet in packets:
            verdict = received(packet, 0.0)
            if verdict is FORWARD:
                write(packet)
            elif verdict.session is not None:
                self._begin(verdict.session)
            else:
                assert verdict.action is not Action.RESET, parse(packet[HEADER_BYTES:])
            self.largest = max(self.largest, len(packet) - HEADER_BYTES)

    def _begin(self, session: Session) -> None:
        self.sessions.append(session)
        if self.refusing:
            held = self.nat.refused(session) or b""
            reset = resetFor(held[HEADER_BYTES:], parse(held[HEADER_BYTES:]))
            self.port.write(PLAIN, reset or b"")
        else:
            self.port.write(self.nat.established(session, 0.0) or b"")

    def lost(self, why: str) -> None:
        """The device is gone."""
        self.losses.append(why)


class Nobody:
    """Who does not care for packets."""

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """So they are dropped."""

    def lost(self, why: str) -> None:
        """So be it."""


def family(host: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class TunTestCase(TakesTurns, SynchronousTestCase):
    """A namespace of its own, and a reactor that this test turns."""

    def setUp(self) -> None:
        if os.geteuid():
            raise SkipTest("network namespaces need root")
        if shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
            raise SkipTest("ip or /dev/net/tun is missing")
        if importlib.util.find_spec("pytun") is None or importlib.util.find_spec("pyroute2") is None:
            raise SkipTest("python-pytun or pyroute2 is not installed")
        self.namespace = Namespace("t")
        self.addCleanup(self.namespace.remove)
        self.reactor = PortReactor()

    def open(self, names: tuple[str, ...] = NAMES, reactor: Any = None) -> Gateway:
        """A gateway to the targets."""
        with self.namespace.entered():
            gateway = Gateway(reactor or self.reactor, names)
        self.addCleanup(gateway.close)
        for host in TARGETS:
            self.namespace.ip("route", "add", host, "dev", DEVICE)
        return gateway

    def connect(self, host: str) -> socket.socket:
        """A socket that wants to connect."""
        with self.namespace.entered():
            client = socket.socket(family(host))
        self.addCleanup(client.close)
        client.settimeout(SECONDS)
        return client

    def serve(self, *threads: threading.Thread) -> None:
        """Turn the reactor until some threads end."""
        deadline = time.monotonic() + SECONDS
        for thread in threads:
            # If the test fails they may wait for ever.
            thread.daemon = True
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.reactor.turn(0.01)
            self.assertLess(time.monotonic(), deadline, "the transfer does not end")


class TransferTests(TunTestCase):
    """TCP through a TUN, the NAT and the kernel's own listener, in one namespace."""

    alone = True

    def transfer(self, gateway: Gateway, place: int) -> None:
        """Send some megabytes there and back, and compare what comes with what was sent."""
        host, got = TARGETS[place], {}

        def answer() -> None:
            connection, peer = gateway.listeners[place].accept()
            with connection:
                got["peer"] = peer[:2]
                got["there"] = receive(connection)
                send(connection)

        def ask() -> None:
            with client:
                client.connect((host, PORT))
                got["own"] = client.getsockname()[:2]
                send(client)
                got["here"] = receive(client)

        client = self.connect(host)
        self.serve(threading.Thread(target=answer), threading.Thread(target=ask))
        digest = hashlib.sha256(b"".join(blocks())).digest()
        self.assertEqual((got["there"], got["here"]), (digest, digest))
        session = gateway.nat.accept(*got["peer"])
        assert session is gateway.sessions[-1]
        self.assertEqual((session.source, session.target), (got["own"], (host, PORT)))

    def test_offload(self) -> None:
        """With all offloads, over IPv4 and IPv6: packets are far larger than the MTU."""
        gateway = self.open()
        for place in range(2):
            gateway.largest = 0
            self.transfer(gateway, place)
            self.assertGreater(gateway.largest, 10 * MTU)
        self.assertEqual(gateway.counters.dropped, {})

    def test_headersOnly(self) -> None:
        """With checksum offload alone packets are no larger than the MTU."""
        gateway = self.open(("vnet",))
        self.transfer(gateway, 0)
        self.assertEqual(gateway.largest, MTU)

    def test_withoutOffload(self) -> None:
        """With none, over IPv4 and IPv6."""
        gateway = self.open(())
        for place in range(2):
            self.transfer(gateway, place)
            self.assertEqual(gateway.largest, MTU)

    def test_refused(self) -> None:
        """A refusal is one for the client, too, which is never connected."""
        for names in (NAMES, ()):
            gateway = self.open(names)
            gateway.refusing = True
            for host in TARGETS:
                client, errors = self.connect(host), []

                def ask(client: socket.socket = client, host: str = host, errors: list[int] = errors) -> None:
                    errors.append(client.connect_ex((host, PORT)))

                self.serve(threading.Thread(target=ask))
                self.assertEqual(errors, [errno.ECONNREFUSED])
            self.assertEqual(len(gateway.nat), 0)
            gateway.close()


class DeviceTests(TunTestCase):
    """What the kernel makes of what is asked for."""

    def test_configured(self) -> None:
        """A device gets its name, MTU, queue and addresses, and none of its own making."""
        self.open()
        shown = run("ip", "-n", self.namespace.name, "address", "show", "dev", DEVICE)
        for words in (f"{DEVICE}:", "mtu 1500", f"qlen {QUEUE_PACKETS}", ",UP,", f"{OWN[0]}/24", f"{OWN[1]}/64"):
            self.assertIn(words, shown)
        self.assertNotIn("fe80", shown)
        self.assertNotIn("tentative", shown)

    def test_abilities(self) -> None:
        """This kernel can do all that its age allows."""
        gateway = self.open()
        self.assertTrue(gateway.port.headed)
        self.assertIn(str(gateway.offload), ABILITIES)

    def test_wrongPackets(self) -> None:
        """Wrong super-packets are dropped; the kernel shows that it takes right ones, so nothing is switched off."""
        gateway = self.open()
        for kind in (1, 4, 5, 0x7F):
            gateway.port.write(struct.pack("=BBHHHH", 1, kind, 9999, 1, 60000, 16), b"\x45" + bytes(40))
        self.assertEqual(gateway.counters.dropped, {"write EINVAL": 4})
        self.assertIn(str(gateway.offload), ABILITIES)

    def test_adopted(self) -> None:
        """A descriptor that somebody else has opened is known for what it is."""
        for flags, names in ((IFF_VNET_HDR, ABILITIES), (0, ("none",))):
            with self.namespace.entered():
                descriptor = LinuxSystem().open("tun8", IFF_TUN | IFF_NO_PI | flags)
            offload = TunOffload()
            port = TunPort(self.reactor, Interface(), Nobody(), offload, Counters())
            self.addCleanup(port.close)
            port.adopt(descriptor)
            self.assertEqual((port.name, port.headed), ("tun8", bool(flags)))
            self.assertIn(str(offload), names)
            port.close()

    def test_notADevice(self) -> None:
        """A name that is taken, and an address that is none, are errors that say so."""
        for interface in (Interface("lo"), Interface("tun8", ("10.0.0.1/99",)), Interface("tun8", ("nonsense",))):
            port = TunPort(self.reactor, interface, Nobody(), TunOffload(), Counters())
            with self.namespace.entered():
                self.assertIn(interface.name, str(self.assertRaises(ListenError, port.open)))
            self.assertEqual(port.fileno(), -1)

    def test_down(self) -> None:
        """A device that is set down is found out by looking."""
        gateway = self.open()
        gateway.port.check()
        self.assertEqual(gateway.losses, [])
        self.namespace.ip("link", "set", DEVICE, "down")
        gateway.port.check()
        self.reactor.advance(0)
        self.assertEqual(gateway.losses, ["down"])

    def test_deleted(self) -> None:
        """When the device is deleted a real reactor finds out at once, and does not spin."""
        reactor = EPollReactor()
        gateway = self.open(reactor=reactor)
        reactor.callLater(0.1, self.namespace.ip, "link", "del", DEVICE)
        reactor.callLater(1.0, reactor.stop)
        used = time.process_time()
        reactor.run(installSignalHandlers=False)
        self.assertEqual((gateway.losses, gateway.port.fileno()), (["deleted"], -1))
        self.assertLess(time.process_time() - used, 0.5)
