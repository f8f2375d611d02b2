"""Tests for L{udptunnel.net.fifo}, with real pipes and a clock that runs while a test waits."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs
from tests.net import test_packetpipe
from tests.net.test_packetpipe import packet
from udptunnel.config import FIFO, MESSAGES, STREAM
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net import fifo, platforms
from udptunnel.net.fifo import DOWN, UP, FifoConnector, FifoListener
from udptunnel.net.packetpipe import FIRST_PAUSE, LONGEST_PAUSE, Connector, Listener
from udptunnel.net.testing import PortReactor
from udptunnel.wire.vnet import PLAIN


class _Reactor(PortReactor):
    """Nobody hears of the other end of a named pipe, so both look for it from time to time."""

    def until(self, condition: Callable[[], object]) -> None:
        for _ in range(1000):
            if condition():
                return
            if not self.turn():
                self.advance(FIRST_PAUSE)
        raise AssertionError("it does not happen")


@needs("named pipes")
class FifoTestCase(test_packetpipe.PipeTestCase):
    """As for sockets."""

    stream = True

    def setUp(self) -> None:
        super().setUp()
        self.reactor = _Reactor()

    def make(self, kind: Any) -> Any:
        """An end, with C{received} and C{counted} beside it."""
        kind = {Listener: FifoListener, Connector: FifoConnector}.get(kind, kind)
        received, counted = test_packetpipe.RecordingPackets(), Counters()
        made = kind(self.reactor, received, counted, self.path)
        made.received, made.counted = received, counted
        self.addCleanup(made.close)
        return made

    def makePair(self) -> tuple[Any, Any]:
        """Both ends, connected."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        near.open()
        far.open()
        self.met(near, far)
        return near, far

    def met(self, *ends: Any) -> None:
        """Wait until they have found each other."""
        self.reactor.until(lambda: all(each.fileno() >= 0 for each in ends))


class FifoTests(FifoTestCase, test_packetpipe.PipeTests):
    """Both ends: all that holds for a stream, and what is different."""

    def test_connectorFirst(self) -> None:
        """Who connects may be there first; it tries again, less and less often."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        far.open()
        for _ in range(20):
            self.reactor.advance(LONGEST_PAUSE)
        self.assertEqual(far.fileno(), -1)
        near.open()
        self.met(near, far)
        self.assertPasses(far, near, packet(20))
        self.assertPasses(near, far, packet(20))

    def test_connectorAgain(self) -> None:
        """Another one may connect once the first one is gone, and finds nothing that was meant for that one."""
        near, far = self.makePair()
        self.plug(near)
        far.close()
        self.reactor.until(lambda: near.fileno() < 0)
        again = self.make(FifoConnector)
        again.open()
        self.met(near, again)
        self.assertPasses(near, again, packet(20))
        self.assertEqual(near.report(), {"name": self.path, "connected": True, "connections": 2})

    def test_connectorAtOnce(self) -> None:
        """Who connects before the other end has seen that another one is gone waits, and gets no rest of a packet."""
        near, far = self.makePair()
        self.plug(near)
        os.read(far.fileno(), 5001)
        far.close()
        again = self.make(FifoConnector)
        again.open()
        self.assertEqual(again.fileno(), -1)
        self.met(again)
        for _ in range(3):
            self.assertPasses(near, again, packet(1500))
            self.assertPasses(again, near, packet(1500))
        self.assertEqual((again.counted.dropped, near.report()["connections"]), ({}, 2))

    def test_connectorAtOnceEmpty(self) -> None:
        """Also if there is nothing to read."""
        near, far = self.makePair()
        far._port._socket.sendmsg([b"\5\xdc" + packet(100)])
        far.close()
        again = self.make(FifoConnector)
        again.open()
        self.assertEqual(again.fileno(), -1)
        self.met(again)
        self.assertPasses(again, near, packet(20))
        self.assertEqual((near.counted.dropped, near.report()["connections"]), ({}, 2))

    def test_nonsenseDown(self) -> None:
        """Who connects, and has got a length that no packet has, waits for pipes that are new."""
        near, far = self.makePair()
        os.write(near._port.writer.fileno(), b"\0\x13" + packet(100))
        self.reactor.until(lambda: far.counted.dropped)
        self.assertEqual(far.fileno(), -1)
        self.reactor.until(lambda: far.report()["connections"] == 2)
        self.met(near, far)
        self.assertPasses(near, far, packet(20))
        self.assertPasses(far, near, packet(20))
        self.assertEqual((far.counted.dropped, near.report()["connections"]), ({"malformed": 1}, 2))

    def test_listenerAgain(self) -> None:
        """When who listens is gone, the other end waits for the next one, and what it had begun is forgotten."""
        near, far = self.makePair()
        self.plug(far)
        near.close()
        self.reactor.until(lambda: far.fileno() < 0)
        again = self.make(FifoListener)
        again.open()
        self.met(again, far)
        self.assertPasses(far, again, packet(20))
        self.assertPasses(again, far, packet(20))

    def test_killed(self) -> None:
        """After C{kill -9} the files stay, and hinder nobody."""
        near, far = self.makePair()
        near._port.close()
        self.reactor.until(lambda: far.fileno() < 0)
        self.assertTrue(os.path.exists(self.path + UP))
        again = self.make(FifoListener)
        again.open()
        self.met(again, far)
        self.assertPasses(again, far, packet(20))

    def test_onlyOne(self) -> None:
        """A second one waits, takes nothing from the first one, and has its turn when that is gone."""
        near, far = self.makePair()
        second = self.make(FifoConnector)
        second.open()
        for _ in range(100):
            while self.reactor.turn():
                pass
            self.reactor.advance(0.1)
        self.assertPasses(near, far, packet(20))
        self.assertEqual(second.fileno(), -1)
        far.close()
        self.met(second)
        self.met(near)
        self.assertPasses(near, second, packet(20))

    def test_taken(self) -> None:
        """Where somebody listens nobody else can, connected or not; and his pipes stay."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        near.open()
        for _ in range(2):
            error = self.assertRaises(ListenError, self.make(FifoListener).open)
            self.assertIn(f"pipe {self.path} can not be opened: {os.strerror(errno.EADDRINUSE)}", str(error))
            self.assertTrue(os.path.exists(self.path + UP))
            if far.fileno() < 0:
                far.open()
                self.met(near, far)
        self.assertPasses(near, far, packet(20))

    def test_interrupted(self) -> None:
        """A packet that was begun is ended before another one begins, and dropped packets leave no trace."""
        near, far = self.makePair()
        taken = self.plug(near)
        self.assertEqual([each.fileno() for each in self.reactor.getWriters()], [near._port.writer.fileno()])
        self.reactor.until(lambda: len(far.received.packets) == taken)
        self.assertEqual(self.reactor.getWriters(), [])
        far.received.packets.clear()
        self.assertPasses(near, far, packet(100))

    def test_readAlready(self) -> None:
        """What comes before who connects has looked is not lost."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        near.open()
        far.open()
        while near.fileno() < 0:
            near._trying.cancel()
            near._try()
        near.write(PLAIN, packet(20))
        self.reactor.until(lambda: bool(far.received.packets))
        self.assertEqual(far.received.packets, [PLAIN + packet(20)])

    def test_nonsense(self) -> None:
        """A length that no packet has ends the connection; both meet again, with nothing left of it."""
        near, far = self.makePair()
        os.write(far._port.writer.fileno(), b"\0\x13" + packet(100))
        self.reactor.until(lambda: near.counted.dropped)
        self.assertEqual((near.received.packets, near.counted.dropped), ([], {"malformed": 1}))
        self.reactor.until(lambda: far.report()["connections"] == 2)
        self.met(near, far)
        self.assertPasses(far, near, packet(20))

    def test_removed(self) -> None:
        """Pipes that somebody has removed are made again."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        near.open()
        os.unlink(self.path + DOWN)
        far.open()
        self.met(near, far)
        self.assertPasses(near, far, packet(20))

    def test_halfWay(self) -> None:
        """Who listens may go before both have met; who connects finds the pipes of the next one."""
        near, far = self.make(FifoListener), self.make(FifoConnector)
        near.open()
        far.open()
        near.close()
        self.assertEqual((near.fileno(), far.fileno()), (-1, -1))
        again = self.make(FifoListener)
        again.open()
        self.met(again, far)
        self.assertPasses(again, far, packet(20))


class FileTests(FifoTestCase):
    """The files."""

    def test_notOurs(self) -> None:
        """Pipes that somebody else has made in the place of ours stay."""
        near = self.make(FifoListener)
        near.open()
        for end in (DOWN, UP):
            os.unlink(self.path + end)
        other = self.make(FifoListener)
        other.open()
        near.close()
        for end in (DOWN, UP):
            self.assertTrue(os.path.exists(self.path + end))

    def test_mode(self) -> None:
        """Only our own user may use them, whatever the umask says; in the end they are gone."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        near = self.make(FifoListener)
        near.open()
        for end in (DOWN, UP):
            self.assertEqual(stat.S_IMODE(os.stat(self.path + end).st_mode), 0o600)
        near.close()
        self.assertEqual(os.listdir(os.path.dirname(self.path)), [])

    def test_noPipe(self) -> None:
        """A file that is no named pipe is not touched, by neither end."""
        for end in (DOWN, UP):
            Path(self.path + end).write_text("precious")
            error = self.assertRaises(ListenError, self.make(FifoListener).open)
            self.assertIn("no named pipe", str(error))
            self.assertEqual(Path(self.path + end).read_text(), "precious")
            far = self.make(FifoConnector)
            far.open()
            self.assertEqual(far.fileno(), -1)
            far.close()
            os.unlink(self.path + end)

    def test_nowhere(self) -> None:
        """A folder that is not there is said."""
        self.path = "nowhere/at/all"
        self.assertIn(os.strerror(errno.ENOENT), str(self.assertRaises(ListenError, self.make(FifoListener).open)))

    def test_noPipes(self) -> None:
        """Where there are no named pipes, both ends say so."""
        self.patch(platforms, "PARTS", {**platforms.PARTS, "named pipes": lambda: False})
        for kind in (FifoListener, FifoConnector):
            error = self.assertRaises(ListenError, self.make(kind).open)
            self.assertIn("lacks named pipes, which a pair of named pipes takes", str(error))


class KindTests(SynchronousTestCase):
    """L{fifo.listener} and L{fifo.connector}."""

    def test_kinds(self) -> None:
        """Each kind has its ends, and a path that does not depend on the folder."""
        for make, kinds in (
            (fifo.listener, {MESSAGES: Listener, STREAM: Listener, FIFO: FifoListener}),
            (fifo.connector, {MESSAGES: Connector, STREAM: Connector, FIFO: FifoConnector}),
        ):
            for kind, expected in kinds.items():
                made = make("exit", kind)(PortReactor(), test_packetpipe.RecordingPackets(), Counters())
                self.assertIsInstance(made, expected)
                self.assertEqual(made.name, os.path.abspath("exit"))
