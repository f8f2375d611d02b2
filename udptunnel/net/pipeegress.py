"""
Egress as packets: what udp-server sends goes down a pipe as IP packets, one per datagram, and answers come up.

At the other end is tun2socks with C{--pipe}, or any program that takes packets.
Each association gets an address and a port of its own for each family, out of a
private range (L{udptunnel.core.sources}); the other end sees sources behind a
TUN, and keeps them apart. What comes up is read by a
L{udptunnel.net.gateway.Gateway}, as what comes out of a TUN is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from udptunnel.core.acl import AccessRules
from udptunnel.core.sources import Pair, Sources
from udptunnel.net.datagrams import KernelAddress, Traffic
from udptunnel.net.egress import Egress, ExternalPort, Filtering
from udptunnel.net.gateway import Gateway
from udptunnel.net.names import Names
from udptunnel.net.nostack import NoStack
from udptunnel.net.packetpipe import LARGEST_MESSAGE, MakePipe
from udptunnel.net.reach import isOwn
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, Burst, count
from udptunnel.wire.frame import Buffer


class PipeEgress(Egress):
    """
    Sends to targets through a pipe.

    @ivar pipe: the pipe.
    @ivar gateway: makes packets, and reads them.
    """

    descriptors = 0

    def __init__(
        self,
        traffic: Traffic,
        clock: Any,
        rules: AccessRules,
        names: Names,
        mostPorts: int,
        isOwn: Callable[[str], bool] = isOwn,
        filtering: Filtering = Filtering(),  # noqa: B008
        *,
        makePipe: MakePipe,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """
        The same as L{Egress}, and

        @param makePipe: makes the pipe.
        @param random: for tests.
        """
        super().__init__(traffic, clock, rules, names, mostPorts, isOwn, filtering)
        counters = traffic.counters
        self.gateway = Gateway(counters, clock.seconds, self._lost, LARGEST_MESSAGE, "off")
        self.pipe = self.gateway.outer = makePipe(traffic.reactor, self.gateway, counters)
        self.gateway.udp = _Answers(self)
        self.gateway.stack = NoStack(self.pipe, counters)
        self._sources = Sources(random)
        self._receivers: dict[Address, ExternalPort] = {}

    def __str__(self) -> str:
        return f"pipe {self.pipe.name}"

    def start(self) -> None:
        """
        Open the pipe.

        @raise ListenError: that can not be done.
        """
        self.pipe.open()

    def _lost(self, why: str) -> None:
        """A pipe is opened again by itself, so that nobody says this."""

    # -- there

    def openBase(self, port: ExternalPort) -> _PipeBase:
        """An address of each family that no other association has."""
        pair = self._sources.take()
        self._receivers.update(dict.fromkeys(pair, port))
        return _PipeBase(self, pair)

    def baseClosed(self, pair: Pair) -> None:
        """An association is over."""
        for address in pair:
            self._receivers.pop(address, None)

    def forward(self, pair: Pair, to: Address, size: int, payload: Buffer) -> None:
        """Send a burst to a target that may be reached."""
        source = pair[":" in to.host]
        if source in self._receivers:
            self.gateway.send(to, source, size, payload)
        else:
            self.drop("port closed", count(size, payload))

    # -- back

    def answered(self, bursts: list[AimedBurst]) -> None:
        """Datagrams have come up the pipe."""
        for source, target, size, payload in bursts:
            port = self._receivers.get(target)
            if port is None:
                self.drop("no association", count(size, payload))
            else:
                port.burstsReceived([Burst(source, size, payload)])

    # -- the rest

    def tick(self, now: float) -> None:
        """A second or so has passed."""
        super().tick(now)
        self.gateway.tick(now)

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {"pipe": self.pipe.report()}

    def stop(self) -> None:
        """Close the pipe."""
        self.pipe.close()


class _Answers:
    """The receiver of the gateway's datagrams."""

    def __init__(self, egress: PipeEgress) -> None:
        self.burstsReceived = egress.answered

    def tick(self, now: float) -> None:
        """There is nothing to forget."""

    def stop(self) -> None:
        """There is nothing to close."""


class _PipeBase:
    """What an external port stands on: an IPv4 and an IPv6 address with one port."""

    __slots__ = ("_egress", "_pair")

    def __init__(self, egress: PipeEgress, pair: Pair) -> None:
        self._egress = egress
        self._pair = pair

    @property
    def address(self) -> Address:
        """That of IPv4."""
        return self._pair[0]

    def send(self, to: KernelAddress, size: int, payload: Buffer) -> None:
        """Send a burst."""
        assert isinstance(to, Address)
        self._egress.forward(self._pair, to, size, payload)

    def close(self) -> None:
        """There will be no more of it."""
        self._egress.baseClosed(self._pair)
