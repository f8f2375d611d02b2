"""What carries the messages of an l3-tunnel: a UDP port, or a session of ours where UDP is blocked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from udptunnel.core.l3way import Message
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.sockaddr import MAPPED
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.local import LocalService
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_BURST, AimedBurst, Burst, pieces
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

OURS = Address("l3-tunnel", 0)
"""Who sends our messages, to the session that carries them."""


class Outer(Protocol):
    """What carries messages."""

    def start(self) -> None:
        """
        Begin.

        @raise ListenError: that can not be done.
        """

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages; what can not be sent is dropped and counted."""

    def stop(self) -> None:
        """End."""


class Receiver(Protocol):
    """Who is told of messages."""

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Messages have come. Their payloads are valid until this returns."""


class UdpOuter:
    """Messages over a UDP port of our own."""

    def __init__(self, traffic: Traffic, local: Address, receiver: Receiver) -> None:
        self.port = DatagramPort(traffic, local, receiver)
        self._wide = ":" in local.host

    def start(self) -> None:
        """Open the port."""
        self.port.startListening()

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages."""
        send, wide = self.port.send, self._wide
        for to, size, payload in messages:
            send(Address(MAPPED + to.host, to.port) if wide and ":" not in to.host else to, size, payload)

    def stop(self) -> None:
        """Close the port."""
        self.port.close()


class LinkOuter:
    """Messages through a session of ours, whose udp-server sends them on."""

    def __init__(self, local: LocalService, receiver: Receiver) -> None:
        self._entry = TunEntry(local.session, _Back(receiver), local.clock)

    def start(self) -> None:
        """The session begins by itself."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages. A frame holds a little less than what 64 KB of a stream become when they are sealed."""
        self._entry.burstsReceived(
            [
                AimedBurst(OURS, to, size, piece)
                for to, size, payload in messages
                for piece in pieces(size, payload, LARGEST_BURST)
            ]
        )

    def stop(self) -> None:
        """Close the association."""
        self._entry.stop()


class _Back:
    """Takes what comes back through the session."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Messages have come."""
        self._receiver.burstsReceived([Burst(source, size, payload)])

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Nobody looks at names on this way, so nothing is refused."""
