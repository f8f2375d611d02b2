"""
A pipe whose other end is this program: packets come by call, and go by callback.

So a host that is given packets by its system, as VPN programs are, needs no
TUN of ours. See L{udptunnel.net.packetpipe} for pipes to other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from twisted.internet.interfaces import IDelayedCall

from udptunnel.core.counters import Counters
from udptunnel.net.packetpipe import LARGEST_MESSAGE, Pipe
from udptunnel.net.tun import PACKETS, Receiver, bare
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import IPV4_BYTES
from udptunnel.wire.vnet import PLAIN

MOST_WAITING = 256
"""Packets that are handed over together at most."""

Leave: TypeAlias = Callable[[list[bytes]], object]
"""Takes packets that go to applications."""


class CallPipe(Pipe):
    """An end whose other one is this program."""

    def __init__(self, reactor: Any, receiver: Receiver, counters: Counters, leave: Leave) -> None:
        """
        The same as L{Pipe}, and

        @param leave: called with packets for applications, each as it is on the wire. All of one turn of the reactor
            come together.
        """
        super().__init__(reactor, receiver, counters, "of this program")
        self._leave = leave
        self._leaving: list[bytes] = []
        self._turn: IDelayedCall | None = None
        self._isOpen = False

    def open(self) -> None:
        """Begin."""
        self._isOpen = True

    # -- what arrives

    def packetsReceived(self, packets: Iterable[bytes]) -> None:
        """Applications have sent packets, each as it is on the wire."""
        if not self._isOpen:
            return
        counters, whole = self._counters, list[memoryview]()
        for packet in packets:
            if not IPV4_BYTES <= len(packet) <= LARGEST_MESSAGE:
                counters.drop("malformed")
                continue
            counters.received += 1
            counters.receivedBytes += len(packet)
            whole.append(memoryview(bytearray(PLAIN) + packet))
        for start in range(0, len(whole), PACKETS):
            self._receiver.packetsReceived(whole[start : start + PACKETS])

    # -- what is written

    def write(self, *packet: Buffer) -> None:
        """
        Write one packet, which may lie in several buffers.

        @param packet: the first buffer begins with the virtio header, which must ask for nothing.
        """
        if not self._isOpen:
            return
        whole = b"".join(bare(packet))
        self._counters.sent += 1
        self._counters.sentBytes += len(whole)
        self._leaving.append(whole)
        if len(self._leaving) >= MOST_WAITING:
            self._flush()
        elif self._turn is None:
            self._turn = self._reactor.callLater(0, self._flushLater)

    def _flushLater(self) -> None:
        self._turn = None
        self._flush()

    def _flush(self) -> None:
        packets, self._leaving = self._leaving, []
        if packets:
            self._leave(packets)

    # -- the rest

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {"name": self.name, "connected": self._isOpen}

    def close(self) -> None:
        """Close it. What was not handed over yet is forgotten."""
        self._isOpen = False
        self._leaving = []
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
