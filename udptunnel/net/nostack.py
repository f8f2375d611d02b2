"""
The stack C{none}: nobody speaks TCP. For those who have only datagrams to carry, or may not make a namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from udptunnel.core.counters import Counters
from udptunnel.errors import PacketError
from udptunnel.net.stack import Writer
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import IPV4_BYTES, TCP, parse
from udptunnel.wire.transport import resetFor
from udptunnel.wire.vnet import PLAIN, VNET_BYTES

_PROTOCOL_AT = {4: VNET_BYTES + 9, 6: VNET_BYTES + 6}
"""Where a packet says what it carries; behind extension headers TCP is as unknown as anything."""


class NoStack:
    """Refuses all connections, as a L{udptunnel.net.stack.Stack}."""

    name = "none"
    broken = ""

    def __init__(self, outer: Writer, counters: Counters) -> None:
        """
        @param outer: where packets to clients are written.
        """
        self._outer = outer
        self._counters = counters

    def __len__(self) -> int:
        return 0

    def start(self) -> None:
        """There is nothing to be made ready."""

    def prove(self) -> str:
        """It does what it says."""
        return ""

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        """Refuse what is TCP. The others are returned."""
        others = []
        for packet in packets:
            if _isTcp(packet):
                self._refuse(packet)
            else:
                others.append(packet)
        return others

    def _refuse(self, packet: memoryview) -> None:
        self._counters.drop("no TCP here")
        with suppress(PacketError):
            frame = packet[VNET_BYTES:]
            reset = resetFor(frame, parse(frame))
            if reset is not None:
                self._outer.write(PLAIN, reset)

    def tick(self, now: float) -> None:
        """There is nothing to forget."""

    def report(self) -> dict[str, object]:
        """There are no figures."""
        return {}

    def stop(self) -> None:
        """There is nothing to close."""


def _isTcp(packet: Buffer) -> bool:
    if len(packet) < VNET_BYTES + IPV4_BYTES:
        return False
    at = _PROTOCOL_AT.get(packet[VNET_BYTES] >> 4)
    return at is not None and packet[at] == TCP
