"""
The entry of a TUN: what comes out of one goes into a session of ours, without a SOCKS5 server between.

The kernel's bursts go as they are: a super-packet out of the TUN becomes one
frame.
"""

from __future__ import annotations

from collections.abc import Callable

from udptunnel.core.session import Session
from udptunnel.net.entry import Sources
from udptunnel.net.gateway import UdpWriter
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import Buffer


class TunEntry(Sources):
    """
    Gives each source behind a TUN an association: a L{udptunnel.net.gateway.UdpReceiver}.

    Who shares the session closes what is idle, and bounds how many there are.
    """

    def __init__(self, session: Session, writer: UdpWriter, clock: Callable[[], float]) -> None:
        """
        @param writer: takes what comes back.
        """
        super().__init__(session, clock)
        self._writer = writer

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """
        Somebody behind the TUN has sent something.

        The session copies what it lets wait.
        """
        now = self._clock()
        parcels = [
            (self._associationOf(source, target, now), target, size, payload)
            for source, target, size, payload in bursts
        ]
        if parcels:
            self._session.send(parcels, now)

    def answer(self, source: Address, address: Address, size: int, payload: Buffer) -> None:
        """Put a burst into the TUN."""
        self._writer.send(source, address, size, payload)

    def tick(self, now: float) -> None:
        """A second has passed, which is the session's affair."""

    def stop(self) -> None:
        """Close the associations of all sources."""
        self.closeAll()

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {"associations": len(self._associations)}
