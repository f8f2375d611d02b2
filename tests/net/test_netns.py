"""Tests for L{udptunnel.net.netns} with a namespace of memory and Unix sockets; tests.system has a real one."""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_nat import CLIENT_PORT, CLIENTS, TARGET_PORT, TARGETS, segment
from tests.net.test_gateway import RecordingWriter
from tests.net.test_stack import RecordingTcp
from udptunnel.core.counters import Counters
from udptunnel.core.nat import ACK, PENDING_SECONDS, SYN
from udptunnel.errors import ListenError
from udptunnel.net.namespace import REDIRECT, TRANSPARENT, Made, Wanted
from udptunnel.net.netns import NetnsStack
from udptunnel.net.sockaddr import packSockaddr
from udptunnel.net.stack import Connection
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class MemoryListener:
    """
    A listening socket.

    @ivar arrived: connections that wait to be accepted, with where they come from.
    """

    def __init__(self) -> None:
        self.arrived: list[tuple[MemoryConnection, tuple[str, int]]] = []
        self.closed = False

    def accept(self) -> tuple[Any, Any]:
        """The next one."""
        if not self.arrived:
            raise BlockingIOError(11, "nothing")
        return self.arrived.pop(0)

    def fileno(self) -> int:
        """None that could be waited for."""
        return -1 if self.closed else 1 << 20

    def close(self) -> None:
        """No more of it."""
        self.closed = True


class MemoryConnection:
    """An accepted socket, which says where it was to go in the way of the kernel."""

    def __init__(self, version: int = 4, original: bool = False, port: int = TARGET_PORT) -> None:
        self.family = FAMILIES[version]
        self.target = (TARGETS[version], port)
        self.original = original
        self.closed = False

    def getsockname(self) -> tuple[str, int]:
        """Our end: the target, unless it was translated."""
        return ("192.0.0.8", 4000) if self.original else self.target

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """What it was before."""
        if not self.original or level == socket.IPPROTO_TCP:
            raise OSError(92, "Protocol not available")
        assert (level, option) == ({socket.AF_INET: 0, socket.AF_INET6: 41}[self.family], 80)
        return packSockaddr(self.family, self.target)[:size]

    def setblocking(self, blocking: bool) -> None:
        """It never blocks."""

    def close(self) -> None:
        """No more of it."""
        self.closed = True


class MemoryInside:
    """
    A process that makes what is wanted out of a Unix socket.

    @ivar wanted: what is wanted.
    @ivar failure: why it can not be had.
    """

    def __init__(self, way: str = TRANSPARENT, failure: str = "") -> None:
        self.way = way
        self.failure = failure
        self.ended = False
        self.wanted: Wanted
        self.listeners: tuple[Any, ...] = MemoryListener(), MemoryListener()
        self.far, self._near = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.settimeout(10)

    def __call__(self, wanted: Wanted) -> Any:
        """Start it."""
        self.wanted = wanted
        return self

    def made(self) -> Made:
        """What it makes."""
        if self.failure:
            raise ListenError(self.failure)
        return Made(self._near.detach(), self.way, self.listeners)

    def end(self) -> None:
        """There is no more to do."""
        self.ended = True

    def close(self) -> None:
        """The test is over."""
        self.far.close()
        self._near.close()


class NetnsCase(SynchronousTestCase):
    """A stack, and all that it meets in memory."""

    def setUp(self) -> None:
        self.reactor, self.counters = PortReactor(), Counters()
        self.tun, self.tcp = RecordingWriter(), RecordingTcp()

    def start(self, inside: MemoryInside | None = None, names: str = "") -> NetnsStack:
        """A stack that is ready."""
        self.inside = inside or MemoryInside()
        self.addCleanup(self.inside.close)
        self.offload = TunOffload(names.split(","))
        stack = NetnsStack(self.reactor, self.tun, self.offload, self.tcp, self.counters, 1400, 10, inside=self.inside)
        stack.start()
        self.addCleanup(stack.stop)
        # They have no descriptors that could be waited for.
        for door in stack.doors:
            self.reactor.removeReader(door)
        return stack

    def receive(self, stack: NetnsStack, packet: bytearray) -> list[memoryview]:
        """A packet from a client."""
        return stack.packetsReceived([memoryview(packet)], self.reactor.seconds())

    def ask(self, stack: NetnsStack, version: int = 4) -> Connection:
        """A connection that somebody opens."""
        self.receive(stack, segment(flags=SYN, version=version))
        return self.tcp.asked[-1]

    def accept(self, stack: NetnsStack, connection: MemoryConnection, version: int = 4) -> None:
        """A listener has a connection."""
        place = 0 if version == 4 else 1
        self.inside.listeners[place].arrived.append((connection, (CLIENTS[version], CLIENT_PORT)))
        stack.doors[place].doRead()


class PacketTests(NetnsCase):
    """What goes into the namespace, and what comes out of it."""

    def test_forth(self) -> None:
        """A packet of a client goes in as it is; without virtio headers on either side it goes in without one."""
        stack = self.start()
        for version in (4, 6):
            packet = segment(version=version, payload=b"abc")
            self.assertEqual(self.receive(stack, packet), [])
            self.assertEqual(self.inside.far.recv(99), bytes(packet[10:]))

    def test_back(self) -> None:
        """What comes out goes to the client as it is, behind a header that asks for nothing."""
        stack = self.start()
        self.inside.far.send(b"\x45whatever")
        self.reactor.until(lambda: bool(self.tun.packets))
        self.assertEqual(self.tun.packets, [bytes(10) + b"\x45whatever"])
        self.assertEqual(stack.report()["innerDropped"], {})

    def test_others(self) -> None:
        """What is not TCP is for somebody else."""
        stack = self.start()
        packet = segment()
        packet[19] = 17
        self.assertEqual(self.receive(stack, packet), [packet])

    def test_held(self) -> None:
        """A SYN goes in when its target was reached, and not before."""
        for version in (4, 6):
            stack = self.start()
            connection = self.ask(stack, version)
            self.receive(stack, segment(version=version, flags=ACK))
            connection.accept()
            self.assertEqual(self.inside.far.recv(99), bytes(segment(version=version, flags=ACK)[10:]))
            self.assertEqual(self.inside.far.recv(99), bytes(segment(version=version, flags=SYN)[10:]))

    def test_wanted(self) -> None:
        """The namespace is asked for what the outer side is like."""
        self.start()
        wanted = self.inside.wanted
        self.assertEqual((wanted.mtu, wanted.headed, wanted.ways), (1400, False, (TRANSPARENT, REDIRECT)))
        self.assertEqual(wanted.command, ())
        self.assertTrue(self.inside.ended)


class ConnectionTests(NetnsCase):
    """Connections of the listeners."""

    def test_made(self) -> None:
        """An accepted connection is the one that was let in, whichever way the kernel tells where it was to go."""
        for way in (TRANSPARENT, REDIRECT):
            for version in (4, 6):
                stack = self.start(MemoryInside(way))
                connection = self.ask(stack, version)
                connection.accept()
                opened = MemoryConnection(version, way == REDIRECT)
                self.accept(stack, opened, version)
                self.assertEqual(self.tcp.made.pop(), (connection, opened))
                self.assertEqual((stack.way, len(stack)), (way, 1))
                connection.closed()
                self.assertEqual(len(stack), 0)

    def test_stranger(self) -> None:
        """One that was not let in is closed, whatever it says."""
        stack = self.start()
        self.ask(stack).accept()
        strangers = MemoryConnection(port=80), MemoryConnection(6)
        for stranger, version in zip(strangers, (4, 6), strict=True):
            self.accept(stack, stranger, version)
            self.assertTrue(stranger.closed)
        self.assertEqual((self.tcp.made, self.counters.dropped), ([], {"stranger at the listener": 2}))

    def test_originalUnknown(self) -> None:
        """If the kernel does not know where a connection was to go, neither do we."""
        stack = self.start(MemoryInside(REDIRECT))
        self.ask(stack).accept()
        stranger = MemoryConnection()
        self.accept(stack, stranger)
        self.assertTrue(stranger.closed)

    def test_tooLong(self) -> None:
        """Whoever tries a target is told when nobody waits for it any more."""
        stack = self.start()
        connection = self.ask(stack)
        stack.tick(PENDING_SECONDS)
        self.assertEqual((self.tcp.lost, len(stack)), ([connection], 0))

    def test_bound(self) -> None:
        """There are no more connections than allowed."""
        stack = self.start()
        for port in range(11):
            self.receive(stack, segment(flags=SYN, ports=(1000 + port, 443)))
        self.assertEqual((len(self.tcp.asked), self.counters.dropped), (10, {"too many sessions": 1}))


class LifeTests(NetnsCase):
    """Beginning and end."""

    def test_impossible(self) -> None:
        """Where there can be no namespace, the error names the option and says why; nothing is left."""
        inside = MemoryInside(failure="no such thing")
        error = self.assertRaises(ListenError, self.start, inside)
        self.assertEqual(str(error), "--stack netns: no such thing")
        self.assertTrue(inside.ended)
        self.assertEqual((self.reactor.getReaders(), self.reactor.getDelayedCalls()), ([], []))

    def test_noProcess(self) -> None:
        """Nor where there can be no process."""

        def fails(wanted: Wanted) -> Any:
            raise OSError(11, "Resource temporarily unavailable")

        stack = NetnsStack(self.reactor, self.tun, TunOffload(()), self.tcp, self.counters, inside=fails)
        self.assertIn("temporarily unavailable", str(self.assertRaises(ListenError, stack.start)))

    def test_stop(self) -> None:
        """In the end nothing is open."""
        stack = self.start()
        stack.stop()
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertTrue(all(listener.closed for listener in self.inside.listeners))
        self.assertRaises(OSError, self.inside.far.send, b"x")
        stack.stop()

    def test_report(self) -> None:
        """The figures say which way it is, how many connections there are, and what the inner TUN did not take."""
        stack = self.start()
        first = self.ask(stack)
        self.ask(stack, 6)
        first.accept()
        stack.stop()
        self.receive(stack, segment())
        report = {"way": TRANSPARENT, "connections": 2, "pending": 1, "innerDropped": {"write closed": 1}}
        self.assertEqual(stack.report(), report)

    def test_settle(self) -> None:
        """What one TUN refuses after all, none of the two is asked for any more."""
        stack = self.start()
        asked: list[int] = []
        self.assertIsNotNone(stack._inner)
        self.patch(type(stack._inner), "settle", lambda port: asked.append(self.offload.flags))
        stack.tick(0)
        self.assertEqual(asked, [])
        # As if there had been something to refuse.
        stack._asked = 7
        stack.tick(0)
        stack.tick(0)
        self.assertEqual(asked, [0])
