"""Both roles on loopback, and applications and targets beside them."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.names.error import DNSNameError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.waiting import until
from udptunnel.config import Forward, LocalConfig, ServerConfig
from udptunnel.core.counters import Counters
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.offload import Offload
from udptunnel.net.socks5client import addressOf
from udptunnel.net.testing import RecordingReceiver
from udptunnel.pki import Authority
from udptunnel.services import local as local_module
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


class Conversation:
    """
    An application and a target that talk through a forward.

    @ivar external: the ports that the target has heard from, in order, each once in a row.
    """

    def __init__(self, test: TunnelTestCase) -> None:
        self._near, self._answers = test.application()
        self._far, self._questions = test.application()
        self.external: list[int] = []
        self._count = 0

    @property
    def target(self) -> Address:
        """What the forward is to lead to."""
        return self._far.address

    async def turn(self, local: LocalService, entry: int = 0) -> int:
        """Ask the target something and hear its answer; tells from which external port the question came."""
        self._count += 1
        text = str(self._count).encode()
        self._near.send(local.entries[entry].port.address, len(text), text)
        await until(lambda: text in self._questions.datagrams, f"question {self._count}")
        port = self._questions.bursts[-1].source.port
        self._far.send(Address("127.0.0.1", port), len(text), text)
        await until(lambda: text in self._answers.datagrams, f"answer {self._count}")
        if self.external[-1:] != [port]:
            self.external.append(port)
        return port

    async def hear(self, port: int) -> None:
        """Let the target say something to an external port of its own accord, and hear it at the other end."""
        self._count += 1
        text = str(self._count).encode()
        self._far.send(Address("127.0.0.1", port), len(text), text)
        await until(lambda: text in self._answers.datagrams, f"message {self._count}")


class FilesTestCase(SynchronousTestCase):
    """Files of secrets and certificates."""

    def file(self, text: str) -> str:
        """The name of a file that holds a text."""
        path = Path(self.mktemp()).absolute()
        path.write_text(text)
        return str(path)

    def pki(self, *users: str) -> Authority:
        """A CA in a folder of its own, with the bundles of a server on loopback and of some users."""
        authority = Authority(Path(self.mktemp()).absolute(), datetime.now(UTC))
        authority.create(HOSTS, 1)
        for user in users:
            authority.add(user, 1)
        return authority


class TunnelTestCase(TestCase, FilesTestCase):
    """What tests with real sockets need; what they opened is closed after them."""

    offload = "all"

    def tickOften(self) -> None:
        """Both roles look at the clock often, though heartbeats are long: nobody dies because a test is slow."""
        for module in (server_module, local_module):
            self.patch(module, "tickSeconds", lambda config: 0.02)

    async def linksUp(self, local: LocalService, links: int = 1) -> None:
        """So many links are up."""
        await until(lambda: len(local.session.links) == links, f"{links} links are up")

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


def newSecret(user: str) -> str:
    """A line of a file with secrets."""
    return f"{user}:{os.urandom(32).hex()}\n"


def freePort() -> int:
    """A TCP port on which nobody listens just now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def cut(server: ServerService) -> None:
    """Reset all connections from outside, as a firewall does that forgets them."""
    for connection in list(server.connections):
        connection.abort()


def portOf(server: ServerService) -> int:
    """Where udp-server listens."""
    return addressOf(server.listeners[0].address).port


def listenAt(port: int) -> str:
    """The same place as somebody before."""
    return f"tcp:{port}:interface=127.0.0.1"


def socketHost(target: Address) -> str:
    """The loopback host of a target's family."""
    return "::1" if ":" in target.host else "127.0.0.1"


def headerOf(target: Address) -> bytes:
    """The SOCKS5 header for a target."""
    return packHeader(target)
