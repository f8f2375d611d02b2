"""Tests for L{udptunnel.net.packetpipe}, with real sockets and a clock that a test moves."""

from __future__ import annotations

import errno
import os
import socket
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net import packetpipe
from udptunnel.net.packetpipe import (
    FIRST_PAUSE,
    LARGEST_MESSAGE,
    LONGEST_PAUSE,
    Connector,
    Joint,
    Listener,
    Pipe,
    StreamPort,
    joint,
)
from udptunnel.net.testing import PortReactor
from udptunnel.wire.vnet import PLAIN

SIZES = (20, 1500, 65_507, LARGEST_MESSAGE)


def hasMessages() -> bool:
    """Whether this system has SEQPACKET sockets."""
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close()
    except (AttributeError, OSError):
        return False
    return True


def packet(size: int, seed: int = 0) -> bytes:
    """So many bytes, each time the same."""
    return bytes((place * 7 + seed) % 251 for place in range(size))


class RecordingPackets:
    """
    A receiver of packets.

    @ivar packets: copies of them, each with what stands before it.
    """

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Keep them, and write to them as a receiver may."""
        self.packets += map(bytes, packets)
        for each in packets:
            each[:] = bytes(len(each))

    def lost(self, why: str) -> None:
        """Pipes never say so."""
        raise AssertionError(why)


class PipeTestCase(SynchronousTestCase):
    """A folder for sockets, and pipes that are closed in the end."""

    stream = False

    def setUp(self) -> None:
        if not (self.stream or hasMessages()):
            raise SkipTest("there are no SEQPACKET sockets here")
        self.reactor = PortReactor()
        # The path of a Unix socket has 108 bytes at most.
        folder = Path(os.path.relpath(self.mktemp()))
        folder.mkdir(parents=True)
        self.path = str(folder / "p")
        self.addCleanup(self._checkReactor)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders() + self.reactor.getWriters(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def make(self, kind: Any) -> Any:
        """An end, with C{received} and C{counted} beside it."""
        received, counted = RecordingPackets(), Counters()
        made = kind(self.reactor, received, counted, self.path, self.stream)
        made.received, made.counted = received, counted
        self.addCleanup(made.close)
        return made

    def makePair(self) -> tuple[Any, Any]:
        """Both ends, connected."""
        near, far = self.make(Listener), self.make(Connector)
        near.open()
        far.open()
        self.reactor.until(lambda: near.fileno() >= 0)
        return near, far

    def assertPasses(self, here: Any, there: Any, *packets: bytes) -> None:
        """Packets come through as they are, behind a header of zeros."""
        for each in packets:
            here.write(PLAIN + each[:8], each[8:])
            self.reactor.until(lambda: bool(there.received.packets))
            self.assertEqual(there.received.packets.pop(), PLAIN + each)

    def plug(self, end: Any) -> int:
        """Write until the other end, which does not read, has no room; tells how many packets were taken."""
        while not end.counted.dropped:
            end.write(PLAIN, packet(60_000, end.counted.sent))
        self.assertEqual(end.counted.dropped, {"write EAGAIN": 1})
        return int(end.counted.sent)


class PipeTests(PipeTestCase):
    """Both ends."""

    def test_sizes(self) -> None:
        """Packets of all lengths come through in either direction, one by one, and are counted."""
        near, far = self.makePair()
        packets = [packet(size) for size in SIZES]
        self.assertPasses(near, far, *packets)
        self.assertPasses(far, near, *packets)
        for end in (near, far):
            counted = end.counted
            self.assertEqual((counted.sent, counted.received), (4, 4))
            self.assertEqual((counted.sentBytes, counted.receivedBytes), (sum(SIZES), sum(SIZES)))

    def test_several(self) -> None:
        """What was written meanwhile is read together, in order, and not more of it than its share."""
        near, far = self.makePair()
        for number in range(100):
            near.write(PLAIN + packet(20, number))
        self.reactor.until(lambda: len(far.received.packets) == 100)
        self.assertEqual(far.received.packets, [PLAIN + packet(20, number) for number in range(100)])

    def test_full(self) -> None:
        """What the other end does not read in time is dropped and counted; what was taken arrives whole."""
        near, far = self.makePair()
        taken = self.plug(near)
        self.reactor.until(lambda: len(far.received.packets) == taken)
        self.assertEqual(far.received.packets, [PLAIN + packet(60_000, number) for number in range(taken)])
        far.received.packets.clear()
        self.assertPasses(near, far, packet(100))

    def test_nobody(self) -> None:
        """As long as nobody is at the other end, packets are dropped and counted."""
        for kind in (Listener, Connector):
            end = self.make(kind)
            end.open()
            end.write(PLAIN, packet(20))
            self.assertEqual((end.counted.dropped, end.fileno()), ({"nobody at the pipe": 1}, -1))
            end.close()

    def test_tooLong(self) -> None:
        """What asks for a checksum, or does not fit a message, is dropped and counted."""
        near, _ = self.makePair()
        near.write(b"\1" + bytes(9), packet(20))
        self.assertEqual(near.counted.dropped, {f"write {errno.errorcode[errno.EOPNOTSUPP]}": 1})
        if self.stream:
            near.write(PLAIN, bytes(LARGEST_MESSAGE + 1))
            self.assertEqual(near.counted.dropped["write EMSGSIZE"], 1)

    def test_connectorFirst(self) -> None:
        """Who connects may be there first; it tries again, less and less often."""
        near, far = self.make(Listener), self.make(Connector)
        far.open()
        for _ in range(20):
            self.reactor.advance(LONGEST_PAUSE)
        self.assertEqual(far.fileno(), -1)
        near.open()
        self.reactor.advance(LONGEST_PAUSE)
        self.reactor.until(lambda: near.fileno() >= 0)
        self.assertPasses(far, near, packet(20))

    def test_connectorAgain(self) -> None:
        """Another one may connect once the first one is gone."""
        near, far = self.makePair()
        far.close()
        self.reactor.until(lambda: near.fileno() < 0)
        again = self.make(Connector)
        again.open()
        self.reactor.until(lambda: near.fileno() >= 0)
        self.assertPasses(near, again, packet(20))
        self.assertEqual(near.report(), {"name": self.path, "connected": True, "connections": 2})

    def test_listenerAgain(self) -> None:
        """When who listens is gone, the other end waits for the next one."""
        near, far = self.makePair()
        self.reactor.advance(60)
        near.close()
        self.reactor.until(lambda: far.fileno() < 0)
        again = self.make(Listener)
        again.open()
        self.reactor.advance(FIRST_PAUSE)
        self.reactor.until(lambda: again.fileno() >= 0)
        self.assertPasses(again, far, packet(20))

    def test_onlyOne(self) -> None:
        """A second one is sent away, takes nothing from the first one, and does not knock like mad."""
        near, far = self.makePair()
        second = self.make(Connector)
        tries = [0]
        makeSocket = second._makeSocket

        def counted() -> socket.socket:
            tries[0] += 1
            return makeSocket()  # type: ignore[no-any-return]

        second._makeSocket = counted
        second.open()
        for _ in range(100):
            while self.reactor.turn():
                pass
            self.reactor.advance(0.1)
        self.assertPasses(near, far, packet(20))
        self.assertLess(tries[0], 20)
        second.close()

    def test_closedWhileReading(self) -> None:
        """A receiver may close the pipe it is called from."""
        near, far = self.makePair()
        near.received.packetsReceived = lambda packets: near.close()
        far.write(PLAIN, packet(20))
        self.reactor.until(lambda: near.fileno() < 0)
        far.close()


class StreamTests(PipeTests):
    """The same with a stream."""

    stream = True

    def test_cutAnywhere(self) -> None:
        """However the stream is cut, whole packets come out of it, and the rest waits for more."""
        packets = [packet(size, size) for size in (20, 21, 300, 1500)]
        whole = b"".join(len(each).to_bytes(2, "big") + each for each in packets)

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(st.lists(st.integers(0, len(whole)), max_size=5))
        def holds(cuts: list[int]) -> None:
            here, there = socket.socketpair(socket.AF_UNIX)
            there.setblocking(False)
            received = RecordingPackets()
            lost: list[Any] = []
            port = StreamPort(self.reactor, there, received, Counters(), lost.append)
            places = [0, *sorted(cuts), len(whole)]
            for begin, end in pairwise(places):
                here.sendall(whole[begin:end])
                port.doRead()
            here.sendall(whole[:7])
            port.doRead()
            self.assertEqual(received.packets, [PLAIN + each for each in packets])
            self.assertEqual(lost, [])
            here.close()
            port.doRead()
            self.assertEqual(lost, [port])

        holds()

    def test_byteByByte(self) -> None:
        """Byte by byte, too."""
        here, there = socket.socketpair(socket.AF_UNIX)
        there.setblocking(False)
        self.addCleanup(here.close)
        received = RecordingPackets()
        port = StreamPort(self.reactor, there, received, Counters(), lambda port: None)
        self.addCleanup(port.close)
        for each in b"\0\x14" + packet(20):
            self.assertEqual(received.packets, [])
            here.sendall(bytes((each,)))
            port.doRead()
        self.assertEqual(received.packets, [PLAIN + packet(20)])

    def test_nonsense(self) -> None:
        """A length that no packet has ends the connection: whatever follows could not be right."""
        near, far = self.makePair()
        far._port._socket.sendall(b"\0\x13" + packet(100))
        self.reactor.until(lambda: near.fileno() < 0)
        self.assertEqual((near.received.packets, near.counted.dropped), ([], {"malformed": 1}))

    def test_interrupted(self) -> None:
        """A packet that was begun is ended before another one begins, and dropped packets leave no trace."""
        near, far = self.makePair()
        taken = self.plug(near)
        self.assertEqual(self.reactor.getWriters(), [near._port])
        self.reactor.until(lambda: len(far.received.packets) == taken)
        self.assertEqual(self.reactor.getWriters(), [])
        far.received.packets.clear()
        self.assertPasses(near, far, packet(100))


class ListenerTests(PipeTestCase):
    """The file of the socket."""

    def test_mode(self) -> None:
        """Only our own user may connect, whatever the umask says; in the end the file is gone."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        near = self.make(Listener)
        near.open()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        near.close()
        self.assertFalse(os.path.exists(self.path))

    def test_stale(self) -> None:
        """What somebody who was killed has left is no hindrance."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(self.path)
            dead.listen()
        near, far = self.makePair()
        self.assertPasses(near, far, packet(20))

    def assertRefused(self, text: str) -> None:
        error = self.assertRaises(ListenError, self.make(Listener).open)
        self.assertIn(f"pipe {self.path} can not be opened: ", str(error))
        self.assertIn(text, str(error))

    def test_taken(self) -> None:
        """Where somebody listens nobody else can, of whatever kind his socket is; and his file stays."""
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind) as other:
                other.bind(self.path)
                other.listen()
                self.assertRefused(os.strerror(errno.EADDRINUSE))
                self.assertTrue(os.path.exists(self.path))
            os.unlink(self.path)

    def test_noSocket(self) -> None:
        """A file that is no socket is not touched."""
        Path(self.path).write_text("precious")
        self.assertRefused("no socket")
        self.assertEqual(Path(self.path).read_text(), "precious")

    def test_nowhere(self) -> None:
        """A folder that is not there is said."""
        self.path = "nowhere/at/all"
        self.assertRefused(os.strerror(errno.ENOENT))

    def test_tooLong(self) -> None:
        """A path that no socket can have is refused at once, at either end."""
        self.path = 200 * "x"
        for kind in (Listener, Connector):
            self.assertIn("too long", str(self.assertRaises(ListenError, self.make(kind).open)))

    def test_notOurs(self) -> None:
        """A file that somebody else has made in the place of ours stays."""
        near = self.make(Listener)
        near.open()
        os.unlink(self.path)
        other = self.make(Listener)
        other.open()
        near.close()
        self.assertTrue(os.path.exists(self.path))

    def test_noMessages(self) -> None:
        """Where there are no SEQPACKET sockets, the text says what works."""

        def refuse(*given: Any) -> Any:
            raise OSError(errno.EPROTONOSUPPORT, "")

        near = self.make(Listener)
        self.patch(packetpipe.socket, "socket", refuse)
        self.assertIn("stream", str(self.assertRaises(ListenError, near.open)))


class JointTests(PipeTestCase):
    """L{joint}."""

    def test_both(self) -> None:
        """Its ends are connected from the beginning, and what one writes the other one reads."""
        ends: list[Any] = []
        for make in joint():
            received, counted = RecordingPackets(), Counters()
            end: Any = make(self.reactor, received, counted)
            end.received, end.counted = received, counted
            self.addCleanup(end.close)
            end.open()
            ends.append(end)
        self.assertPasses(*ends, *(packet(size) for size in SIZES))
        self.assertPasses(*reversed(ends), packet(20))
        self.assertIsInstance(ends[0], Joint)

    def test_once(self) -> None:
        """It can not be opened again, and need not be opened at all."""
        near, far = (make(self.reactor, RecordingPackets(), Counters()) for make in joint())
        near.open()
        near.close()
        self.assertRaises(ListenError, near.open)
        far.close()
        self.assertRaises(ListenError, far.open)

    def test_abstract(self) -> None:
        """A pipe of no kind can not be opened."""
        self.assertRaises(NotImplementedError, Pipe(self.reactor, RecordingPackets(), Counters(), "").open)
