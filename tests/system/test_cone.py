"""External ports: one for each source, open to the whole world, and closed when the source is gone."""

from __future__ import annotations

import resource
import select
import socket
import unittest

from tests.system.clients import Echo, SocksClient, closeAll, exchange, open_
from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, SECONDS, SystemTestCase, until

CLIENTS = 1000
LOOPBACK = "127.0.0.1"
BRIEF = 53
"""A target port whose associations end soon after the last datagram."""


class FullConeTests(SystemTestCase):
    """Somebody else sends to an external port."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(
            self.network.target, *((host, ECHO) for host in (Network.atTarget[0], Network.third[0], Network.third[1]))
        )
        self.addCleanup(self.echo.close)
        self.target = Network.atTarget[0], ECHO
        self.startBoth("--forward", f"{LOOPBACK}:{FORWARD}={Network.atTarget[0]}:{ECHO}")

    def strangerSends(self, host: str, before: str, payload: bytes) -> tuple[str, int]:
        """Send from an address that nobody has sent to, to the external port that the target has seen."""
        ((_, port),) = self.echo.sources
        stranger = open_(self.network.target, host)
        self.addCleanup(stranger.close)
        stranger.sendto(payload, (before, port))
        return stranger.getsockname()[:2]

    def client(self) -> SocksClient:
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        return client

    def test_stranger(self) -> None:
        """A SOCKS5 client receives what a third address sends, with that address as the source."""
        client = self.client()
        client.exchange(self.target, b"here I am")
        for host, before in zip(Network.third, Network.beforeTarget, strict=True):
            stranger = self.strangerSends(host, before, b"and here am I")
            self.assertEqual(client.receive(), (stranger, b"and here am I"))

    def test_strangerAnswered(self) -> None:
        """What the client sends to that third address comes from the same external port."""
        client = self.client()
        for host in (Network.atTarget[0], *Network.third):
            self.assertEqual(client.exchange((host, ECHO), b"hello"), ((host, ECHO), b"hello"))
        self.assertEqual({host.replace("::ffff:", "") for host, _ in self.echo.sources}, {*Network.beforeTarget})
        self.assertEqual(len({port for _, port in self.echo.sources}), 1)

    def test_forward(self) -> None:
        """An application behind a forward is not given a stranger's datagram as the target's."""
        with open_(self.network.client, LOOPBACK) as udp:
            to = LOOPBACK, FORWARD
            self.assertEqual(exchange(udp, to, b"one"), b"one")
            self.strangerSends(Network.third[0], Network.beforeTarget[0], b"not me")
            self.assertEqual(exchange(udp, to, b"two"), b"two")


class ManyClientsTests(SystemTestCase):
    """A thousand clients at once."""

    alone = True

    def setUp(self) -> None:
        super().setUp()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 4 * CLIENTS:
            raise unittest.SkipTest(f"needs {4 * CLIENTS} descriptors, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        target = Network.atTarget[0]
        self.echo = Echo(self.network.target, (target, ECHO), (target, BRIEF))
        self.addCleanup(self.echo.close)
        self.server, self.local = self.startBoth("--forward", f"{LOOPBACK}:{FORWARD}={target}:{BRIEF}")
        self.atStart = self.descriptors()

    def descriptors(self) -> tuple[int, int]:
        return self.server.descriptors(), self.local.descriptors()

    def assertEachItsOwn(self, sent: dict[socket.socket, bytes]) -> None:
        """Each socket receives what it has sent, and nothing else; the target has seen a port for each."""
        received: dict[socket.socket, bytes] = {}
        poll = select.poll()
        sockets = {each.fileno(): each for each in sent}
        for descriptor in sockets:
            poll.register(descriptor, select.POLLIN)
        while len(received) < len(sent) and (ready := poll.poll(SECONDS * 1000)):
            for descriptor, _ in ready:
                datagram = sockets[descriptor].recv(65535)
                self.assertNotIn(sockets[descriptor], received)
                received[sockets[descriptor]] = datagram
        self.assertEqual(len(received), len(sent))
        self.assertEqual(received, sent)
        self.assertEqual(len(self.echo.received), CLIENTS)
        self.assertEqual(len(self.echo.sources), CLIENTS)

    def assertAllGone(self, what: str) -> None:
        """Both ends have closed what they had opened."""
        until(lambda: self.descriptors() == self.atStart, f"{what}: {self.descriptors()}, not {self.atStart}")

    def test_forward(self) -> None:
        """Each source of a forward has an external port of its own, until it was silent for a while."""
        sockets = [open_(self.network.client, LOOPBACK) for _ in range(CLIENTS)]
        self.addCleanup(closeAll, sockets)
        sent = {udp: b"I am %d" % number for number, udp in enumerate(sockets)}
        for udp, payload in sent.items():
            udp.sendto(payload, (LOOPBACK, FORWARD))
        self.assertEachItsOwn(sent)
        self.assertGreaterEqual(self.server.descriptors(), self.atStart[0] + CLIENTS)
        self.assertAllGone("after 10 s of silence")

    def test_socks5(self) -> None:
        """Each association has an external port of its own, until its control connection is closed."""
        clients: list[SocksClient] = []
        self.addCleanup(closeAll, clients)
        for _ in range(CLIENTS):
            clients.append(SocksClient(self.network.client))
        target = Network.atTarget[0], ECHO
        sent = {}
        for number, client in enumerate(clients):
            client.send(target, b"I am %d" % number)
            sent[client.udp] = b"\0\0\0\1" + socket.inet_aton(target[0]) + ECHO.to_bytes(2, "big") + b"I am %d" % number
        self.assertEachItsOwn(sent)
        self.assertGreaterEqual(self.server.descriptors(), self.atStart[0] + CLIENTS)
        self.assertGreaterEqual(self.local.descriptors(), self.atStart[1] + 2 * CLIENTS)
        closeAll([client.control for client in clients])
        self.assertAllGone("after the control connections were closed")

    def test_otherEndGone(self) -> None:
        """When udp-local has gone, udp-server closes the external ports of all its sources."""
        sockets = [open_(self.network.client, LOOPBACK) for _ in range(10)]
        self.addCleanup(closeAll, sockets)
        for udp in sockets:
            exchange(udp, (LOOPBACK, FORWARD), b"hello")
        self.local.kill()
        linkless = self.atStart[0] - 1
        until(lambda: self.server.descriptors() == linkless, f"{self.server.descriptors()}, not {linkless} descriptors")
