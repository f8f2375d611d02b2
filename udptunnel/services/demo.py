"""
The demonstration: both ends and an echo target in one process, and real datagrams between them.

Everything is on free loopback ports. Each path is tried with datagrams of
several sizes, a few of them on the way at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall

from udptunnel.config import Forward, LocalConfig, ServerConfig
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError, SocksError
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.offload import probe
from udptunnel.net.socks5client import addressOf
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.socks5 import ClientNegotiation, Command, packHeader, unpackHeader

SIZES = (8, 64, 512, 1400, 1473, 8192, 65485)
"""The largest leaves room for a SOCKS5 header with an IPv6 address."""

EACH = 100
"""Datagrams of each size on each path."""

FLYING = 8
"""Datagrams on the way at a time."""

PATIENCE_SECONDS = 2.0
"""A datagram that is not back by then is lost."""

_NUMBER = struct.Struct("!Q")
_FILLING = bytes(range(256)) * 257


class EchoTarget:
    """
    A target that sends everything back where it came from.

    @ivar port: its UDP port.
    """

    def __init__(self, traffic: Traffic, host: str) -> None:
        self.port = DatagramPort(traffic, Address(host, 0), self)

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Send them back."""
        for source, size, payload in bursts:
            self.port.send(source, size, payload)


@dataclass
class Path:
    """
    One way from a client to the echo target and back, and what came of it.

    @ivar name: what the table calls it.
    @ivar prefix: the SOCKS5 header before each datagram, if it goes that way.
    """

    name: str
    to: Address
    prefix: bytes = b""
    sent: int = 0
    received: int = 0
    damaged: int = 0
    seconds: float = 0.0
    trips: list[float] = field(default_factory=list)

    def row(self) -> str:
        """The path's line in the table."""
        p50, p99 = (f"{1e3 * _share(self.trips, share):7.2f}" for share in (0.5, 0.99))
        rate = self.received / self.seconds if self.seconds else 0
        lost = self.sent - self.received
        return f"{self.name:<22}{self.sent:>7}{self.received:>10}{lost:>6}  {p50}  {p99}{rate:>13.0f}"


HEAD = f"{'path':<22}{'sent':>7}{'received':>10}{'lost':>6}  {'p50 ms':>7}  {'p99 ms':>7}{'datagrams/s':>13}"
"""The first line of the table."""


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


class Traveller:
    """Sends datagrams down a path and waits for them to come back."""

    def __init__(self, traffic: Traffic, reactor: Any, path: Path) -> None:
        self._reactor = reactor
        self._path = path
        self._left = [size for size in SIZES for _ in range(EACH)]
        self._flying: dict[int, tuple[float, bytes]] = {}
        self._port = DatagramPort(traffic, Address("::1" if ":" in path.to.host else "127.0.0.1", 0), self)
        self._done: Deferred[None] = Deferred()
        self._watch = LoopingCall(self._giveUp)
        self._watch.clock = reactor

    def travel(self) -> Deferred[None]:
        """Send everything; fires when the last is back, or lost."""
        self._port.startListening()
        self._begin = self._reactor.seconds()
        self._watch.start(0.1, now=False)
        self._fill()
        return self._done

    def _fill(self) -> None:
        while self._left and len(self._flying) < FLYING:
            self._sendOne(self._left.pop(0))
        self._path.seconds = self._reactor.seconds() - self._begin
        if not self._left and not self._flying and not self._done.called:
            self._watch.stop()
            self._port.stopListening()
            self._done.callback(None)

    def _sendOne(self, size: int) -> None:
        number = self._path.sent
        self._path.sent += 1
        datagram = _NUMBER.pack(number) + _FILLING[number & 0xFF :][: size - _NUMBER.size]
        self._flying[number] = (self._reactor.seconds(), datagram)
        self._port.send(self._path.to, len(self._path.prefix) + size, self._path.prefix + datagram)

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Something is back."""
        for _, size, payload in bursts:
            for datagram in split(size, payload):
                self._arrived(bytes(datagram))
        self._fill()

    def _arrived(self, datagram: bytes) -> None:
        if self._path.prefix:
            datagram = datagram[unpackHeader(datagram)[1] :]
        sentAt, sent = self._flying.pop(_NUMBER.unpack_from(datagram)[0], (0.0, b""))
        if datagram == sent:
            self._path.received += 1
            self._path.trips.append(self._reactor.seconds() - sentAt)
        else:
            self._path.damaged += 1

    def _giveUp(self) -> None:
        now = self._reactor.seconds()
        self._flying = {n: each for n, each in self._flying.items() if now - each[0] < PATIENCE_SECONDS}
        self._fill()


class _Control(Protocol):
    """A SOCKS5 client's control connection."""

    def __init__(self) -> None:
        self.relay: Deferred[Address] = Deferred()
        self._negotiation = ClientNegotiation(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0))

    def connectionMade(self) -> None:
        """Ask for a relay."""
        self.transport.write(self._negotiation.begin())  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """The answer."""
        self.transport.write(self._negotiation.receive(data))  # type: ignore[union-attr]
        if self._negotiation.failed:
            self.relay.errback(SocksError(self._negotiation.failed))
        elif self._negotiation.reply is not None:
            self.relay.callback(self._negotiation.reply.address)


class Demo:
    """
    Both ends, an echo target, and the paths between.

    @ivar paths: what was tried, and what came of it.
    @ivar remarks: what could not be tried.
    """

    def __init__(self, reactor: Any, show: Callable[[Demo], None]) -> None:
        """
        @param show: called now and then while datagrams travel.
        """
        self.paths: list[Path] = []
        self.remarks: list[str] = []
        self._reactor = reactor
        self._show = show
        self._traffic = Traffic(reactor, probe(), Counters())

    async def run(self) -> bool:
        """
        Try everything.

        @return: whether every datagram came back as it was.
        """
        targets = self._targets()
        server = ServerService(
            ServerConfig(listen=("tcp:0:interface=127.0.0.1",), allow=("127.0.0.0/8", "::1")), self._reactor
        )
        server.startService()
        local = LocalService(self._localConfig(server, targets), self._reactor)
        local.startService()
        control = await self._control(local)
        relay: Address = await control.relay
        for entry, target in zip(local.entries, targets, strict=True):
            family = "IPv6" if ":" in target.host else "IPv4"
            self.paths.append(Path(f"forward, {family}", entry.port.address))
            self.paths.append(Path(f"SOCKS5, {family} target", relay, packHeader(target)))
        await self._travelAll()
        control.transport.abortConnection()
        await local.stopService()
        await server.stopService()
        for echo in self._echoes:
            echo.port.stopListening()
        return all(path.received == path.sent and not path.damaged for path in self.paths)

    def _targets(self) -> list[Address]:
        """An echo target for each address family that this machine has."""
        self._echoes = [EchoTarget(self._traffic, host) for host in ("127.0.0.1", "::1")]
        targets = []
        for echo in list(self._echoes):
            try:
                echo.port.startListening()
                targets.append(echo.port.address)
            except ListenError as error:
                self._echoes.remove(echo)
                self.remarks.append(f"not tried: {error}")
        return targets

    def _localConfig(self, server: ServerService, targets: list[Address]) -> LocalConfig:
        forwards = tuple(Forward(Address(target.host, 0), target) for target in targets)
        port = addressOf(server.listeners[0].address).port
        return LocalConfig(socks="tcp:0:interface=127.0.0.1", server=(f"tcp:127.0.0.1:{port}",), forward=forwards)

    async def _control(self, local: LocalService) -> Any:
        assert local.door is not None
        endpoint = TCP4ClientEndpoint(self._reactor, "127.0.0.1", addressOf(local.door.address).port)
        return await endpoint.connect(Factory.forProtocol(_Control))

    async def _travelAll(self) -> None:
        showing = LoopingCall(self._show, self)
        showing.clock = self._reactor
        showing.start(0.2)
        try:
            for path in self.paths:
                await Traveller(self._traffic, self._reactor, path).travel()
        finally:
            showing.stop()
        self._show(self)
