"""Both roles on loopback, and applications and targets beside them."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.names.error import DNSNameError
from twisted.trial.unittest import TestCase

from tests.waiting import until
from udptunnel.config import Forward, LocalConfig, ServerConfig
from udptunnel.core.counters import Counters
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.offload import Offload
from udptunnel.net.socks5client import addressOf
from udptunnel.net.testing import RecordingReceiver
from udptunnel.services import server as server_module
from udptunnel.services.demo import EchoTarget
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import ClientNegotiation, Command, packHeader

LOOPBACK = ("127.0.0.0/8", "::1")


def hasIpv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


HOSTS = ("127.0.0.1", "::1") if hasIpv6() else ("127.0.0.1",)


class NoNames:
    """A resolver that knows no names."""

    def lookupAddress(self, name: str, timeout: Any = None) -> Deferred[Any]:
        return fail(DNSNameError(name))

    lookupIPV6Address = lookupAddress


class Control(Protocol):
    """
    A SOCKS5 client's control connection.

    @ivar relay: where its relay is; C{None} until the server has answered.
    @ivar lost: whether the connection is gone.
    """

    transport: Any
    lost = False

    def __init__(self) -> None:
        self.relay: Address | None = None
        self.failed = ""
        self._negotiation = ClientNegotiation(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0))

    def connectionMade(self) -> None:
        self.transport.write(self._negotiation.begin())

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self._negotiation.receive(data))
        self.failed = self._negotiation.failed
        if self._negotiation.reply is not None:
            self.relay = self._negotiation.reply.address

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class TunnelTestCase(TestCase):
    """What tests with real sockets need; what they opened is closed after them."""

    offload = "all"

    def startServer(self, listen: str = "tcp:0:interface=127.0.0.1", **fields: Any) -> ServerService:
        """udp-server, which may send to loopback addresses."""
        # Nobody here needs long to close a link.
        self.patch(server_module, "FAREWELL_SECONDS", 0.02)
        fields = {"allow": LOOPBACK, "offload": self.offload, **fields}
        server = ServerService(ServerConfig(listen=(listen,), **fields), reactor, NoNames())
        server.startService()
        self.addCleanup(server.stopService)
        return server

    def startLocal(self, beyond: ServerService | int, *targets: Address, **fields: Any) -> LocalService:
        """udp-local, with a forward on a free port for each target; C{beyond} is udp-server or its port."""
        port = beyond if isinstance(beyond, int) else addressOf(beyond.listeners[0].address).port
        fields = {
            "socks": "tcp:0:interface=127.0.0.1",
            "server": (f"tcp:127.0.0.1:{port}",),
            "forward": tuple(Forward(Address(socketHost(target), 0), target) for target in targets),
            "offload": self.offload,
            **fields,
        }
        local = LocalService(LocalConfig(**fields), reactor)
        local.startService()
        self.addCleanup(local.stopService)
        return local

    def traffic(self) -> Traffic:
        """For the ports of applications and targets."""
        clock: Any = reactor
        return Traffic(clock, Offload(), Counters())

    def echo(self, host: str = "127.0.0.1") -> Address:
        """A target that answers everything."""
        target = EchoTarget(self.traffic(), host)
        target.port.startListening()
        self.addCleanup(target.port.stopListening)
        return target.port.address

    def application(self, host: str = "127.0.0.1") -> tuple[DatagramPort, RecordingReceiver]:
        """A UDP port of somebody, and what it receives."""
        receiver = RecordingReceiver()
        port = DatagramPort(self.traffic(), Address(host, 0), receiver)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port, receiver

    async def control(self, local: LocalService) -> Control:
        """A SOCKS5 client that has a relay."""
        assert local.door is not None
        at = addressOf(local.door.address)
        kind = TCP6ClientEndpoint if ":" in at.host else TCP4ClientEndpoint
        control: Any = await kind(reactor, at.host, at.port).connect(Factory.forProtocol(Control))
        self.addCleanup(until, lambda: control.lost)
        self.addCleanup(control.transport.abortConnection)
        await until(lambda: control.relay or control.failed)
        self.assertEqual(control.failed, "")
        return control  # type: ignore[no-any-return]

    async def assertEchoes(self, to: Address, prefix: bytes = b"", sizes: tuple[int, ...] = (1, 1400, 8192)) -> None:
        """Datagrams of some sizes, and a burst, come back from C{to} as they were sent."""
        port, receiver = self.application(socketHost(to))
        datagrams = [prefix + bytes((size + place) & 0xFF for place in range(size)) for size in sizes]
        datagrams += [prefix + bytes((number,)) * 1000 for number in range(20)]
        for count, datagram in enumerate(datagrams, 1):
            port.send(to, len(datagram), datagram)
            await until(lambda: len(receiver.datagrams) >= count, f"echo {count} from {to}")  # noqa: B023
        burst = datagrams[-20:]
        port.send(to, len(burst[0]), b"".join(burst))
        await until(lambda: len(receiver.datagrams) >= len(datagrams) + 20)
        self.assertEqual(receiver.datagrams, datagrams + burst)
        self.assertEqual(receiver.sources, {to})
        port.stopListening()


def socketHost(target: Address) -> str:
    """The loopback host of a target's family."""
    return "::1" if ":" in target.host else "127.0.0.1"


def headerOf(target: Address) -> bytes:
    """The SOCKS5 header for a target."""
    return packHeader(target)
