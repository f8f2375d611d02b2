"""Tests for L{udptunnel.net.packetcalls}."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.counters import Counters
from udptunnel.net.packetcalls import MOST_WAITING, CallPipe
from udptunnel.wire.vnet import PLAIN

PACKET = bytes(range(40))


class RecordingReceiver:
    """Keeps what comes out of a pipe, as it is called."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []

    def packetsReceived(self, packets: list[memoryview]) -> None:
        for packet in packets:
            assert not packet.readonly
        self.calls.append([bytes(packet) for packet in packets])

    def lost(self, why: str) -> None:
        raise AssertionError(why)


class CallPipeTests(SynchronousTestCase):
    """L{CallPipe}."""

    def setUp(self) -> None:
        self.clock, self.counters, self.receiver = Clock(), Counters(), RecordingReceiver()
        self.left: list[list[bytes]] = []
        clock: Any = self.clock
        self.pipe = CallPipe(clock, self.receiver, self.counters, self.left.append)
        self.pipe.open()

    def test_in(self) -> None:
        """Packets that are handed in come together, each behind an empty virtio header, and may be written to."""
        self.pipe.packetsReceived([PACKET, bytes(65535)])
        self.assertEqual(self.receiver.calls, [[PLAIN + PACKET, PLAIN + bytes(65535)]])
        self.assertEqual((self.counters.received, self.counters.receivedBytes), (2, 65575))

    def test_bounded(self) -> None:
        """Nobody gets more packets at once than a TUN would give."""
        self.pipe.packetsReceived([PACKET] * 1000)
        self.assertEqual(sum(map(len, self.receiver.calls)), 1000)
        self.assertLessEqual(max(map(len, self.receiver.calls)), 256)

    def test_noPackets(self) -> None:
        """What can be no packet is dropped and counted; nothing is no call."""
        self.pipe.packetsReceived([b"", bytes(19), bytes(65536)])
        self.assertEqual((self.receiver.calls, self.counters.dropped), ([], {"malformed": 3}))

    def test_out(self) -> None:
        """Packets of one turn go out together, bare, and not before the turn is over."""
        self.pipe.write(PLAIN + PACKET)
        self.pipe.write(PLAIN, PACKET, b"rest")
        self.assertEqual(self.left, [])
        self.clock.advance(0)
        self.assertEqual(self.left, [[PACKET, PACKET + b"rest"]])
        self.assertEqual((self.counters.sent, self.counters.sentBytes), (2, 84))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_manyOut(self) -> None:
        """Many packets in one turn do not wait until it is over."""
        for _ in range(2 * MOST_WAITING + 1):
            self.pipe.write(PLAIN, PACKET)
        self.assertEqual([len(each) for each in self.left], [MOST_WAITING] * 2)
        self.clock.advance(0)
        self.assertEqual(len(self.left[-1]), 1)

    def test_closed(self) -> None:
        """A pipe that is closed takes nothing, gives nothing, and leaves nothing to be done."""
        self.pipe.write(PLAIN, PACKET)
        self.pipe.close()
        self.pipe.close()
        self.pipe.write(PLAIN, PACKET)
        self.pipe.packetsReceived([PACKET])
        self.assertEqual((self.clock.getDelayedCalls(), self.left, self.receiver.calls), ([], [], []))
        self.assertEqual(self.pipe.report(), {"name": "of this program", "connected": False})
