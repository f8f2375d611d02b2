"""
Egress through a SOCKS5 server: udp-server has no UDP of its own towards targets.

Each association of a session has a UDP ASSOCIATE of its own there, and another
one as soon as it sends again after that has ended. Names go on as they are,
unless they are to be resolved here: who looks them up is who knows what they
stand for, so that the access rules say nothing about their addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from udptunnel.core.acl import AccessRules
from udptunnel.core.associations import LONG_SECONDS
from udptunnel.net.association import MakeDial
from udptunnel.net.datagrams import KernelAddress, Traffic
from udptunnel.net.dial import Dial, Proxy
from udptunnel.net.egress import ROUTE_SECONDS, Egress, ExternalPort, Filtering, Route
from udptunnel.net.names import Names
from udptunnel.net.reach import isOwn
from udptunnel.net.socksudp import SocksUdp
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, Burst, count
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

PASS, RESOLVE, REFUSE = "pass", "resolve", "refuse"
"""What may become of names: the SOCKS5 server gets them, or their addresses, or nothing."""


class SocksEgress(Egress):
    """
    Sends to targets through a SOCKS5 server. It is the L{udptunnel.net.gateway.UdpWriter} for what comes back.

    @ivar socks: the associations there.
    """

    descriptors = 2

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
        proxy: Proxy,
        udpAddress: Address | None = None,
        namesTo: str = PASS,
        makeDial: MakeDial = Dial,
    ) -> None:
        """
        The same as L{Egress}, and

        @param proxy: the server.
        @param udpAddress: where datagrams go, whatever the server says; its
            host is numeric, and port 0 stands for the server's.
        @param namesTo: what becomes of names: C{pass}, C{resolve} or C{refuse}.
        @param makeDial: what stands between us and the server, for tests.
        """
        super().__init__(traffic, clock, rules, names, mostPorts, isOwn, filtering)
        self._namesTo = namesTo
        self._receivers: dict[Address, ExternalPort] = {}
        self._last = 0
        self.socks = SocksUdp(
            traffic.reactor,
            proxy,
            self,
            traffic,
            traffic.counters,
            clock.seconds,
            most=max(1, mostPorts),
            idleSeconds=LONG_SECONDS,
            udpAddress=udpAddress,
            option="--egress",
            udpOption="--egress-udp-address",
            makeDial=makeDial,
        )

    def __str__(self) -> str:
        return f"SOCKS5 server {self.socks.proxy.address}"

    def use(self, proxy: Proxy, namesTo: str) -> None:
        """From now on use another server, or another password, and do something else with names."""
        self.socks.proxy = proxy
        self._namesTo = namesTo

    # -- to the server

    def openBase(self, port: ExternalPort) -> _SocksBase:
        """What stands for an association of a session: a source that no other one has."""
        self._last += 1
        key = Address("", self._last)
        self._receivers[key] = port
        return _SocksBase(self, key)

    def baseClosed(self, key: Address) -> None:
        """An association of a session is over."""
        self._receivers.pop(key, None)
        self.socks.forget(key)

    def forward(self, key: Address, to: Address, size: int, payload: Buffer) -> None:
        """Send a burst to a target that may be reached."""
        if key in self._receivers:
            self.socks.burstsReceived([AimedBurst(key, to, size, payload)])
        else:
            self.drop("port closed", count(size, payload))

    def _decide(self, address: Address) -> Route | None:
        if address.isName and self._namesTo != RESOLVE:
            until = self.seconds() + ROUTE_SECONDS
            allowed = self._allowsName(address)
            return self._remember(address, Route(address, "", until, address) if allowed else _refused(until))
        return super()._decide(address)

    def _allowsName(self, address: Address) -> bool:
        return self._namesTo == PASS and self._rules.allowsName(address)

    def mayReach(self, target: Address) -> bool:
        """Whether the rules allow a target that was reached before."""
        return self._allowsName(target) if target.isName else super().mayReach(target)

    # -- from the server

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """A burst has come for an association."""
        port = self._receivers.get(to)
        if port is not None:
            port.burstsReceived([Burst(source, size, payload)])

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """There is no way just now. It is counted; udp-local could do nothing about it."""

    # -- the rest

    def tick(self, now: float) -> None:
        """A second or so has passed."""
        super().tick(now)
        self.socks.tick(now)

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {"socks5": self.socks.report()}

    def stop(self) -> None:
        """Close everything."""
        self.socks.stop()


class _SocksBase:
    """What an external port stands on: a source among those of one SOCKS5 server."""

    __slots__ = ("_egress", "address")

    def __init__(self, egress: SocksEgress, address: Address) -> None:
        self._egress = egress
        self.address = address

    def send(self, to: KernelAddress, size: int, payload: Buffer) -> None:
        """Send a burst."""
        assert isinstance(to, Address)
        self._egress.forward(self.address, to, size, payload)

    def close(self) -> None:
        """There will be no more of it."""
        self._egress.baseClosed(self.address)


def _refused(until: float) -> Route:
    return Route(None, "target refused", until)
