"""What the kernel says to a datagram that can not be sent, or to a port that can not be opened: it stays there."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.clients import Echo, SocksClient, closeAll, exchange, open_
from tests.system.namespaces import Network, run
from tests.system.programs import ECHO, FORWARD, SystemTestCase, until
from tests.system.watch import filtering, limitDescriptors, links

LOOPBACK = "127.0.0.1"
CALM = 7008
"""A target on the server itself, which no trouble on the server's wires concerns."""

TARGET = Network.atTarget[0]
FAR = "203.0.113.7"
"""A target behind a route that the tests take away."""

PUBLIC = "8.8.4.4"
"""A target that no explicit rule allows, so that the server asks the kernel whether it is its own."""

SUBNET_BROADCAST = "10.77.2.255"
ALLOWED = FAR, LOOPBACK, "255.255.255.255"
STORM = 3000
SOON = 3.0
"""Seconds within which what was refused is served, when nothing is in the way any more."""

LOGGED_LINES = 5
"""What a role may log while thousands of datagrams fail."""


class ErrorTestCase(SystemTestCase):
    """
    A tunnel, and a witness: a flow of the same session that must not notice anything.

    The answers to the witness come from the server's own loopback interface.
    """

    programs = "nft", "tc"

    def setUp(self) -> None:
        super().setUp()
        network = self.network
        network.target.addAddress(f"{FAR}/32")
        network.target.addAddress(f"{PUBLIC}/32")
        self.route("add", FAR, "via", TARGET)
        self.route("add", PUBLIC, "via", TARGET)
        self.echo = Echo(network.target, (TARGET, ECHO), (FAR, ECHO), (PUBLIC, ECHO))
        self.addCleanup(self.echo.close)
        calm = Echo(network.server, (LOOPBACK, CALM))
        self.addCleanup(calm.close)
        allowed = [word for host in ALLOWED for word in ("--allow", host)]
        self.server = self.startServer(*allowed)
        forwards = f"{LOOPBACK}:{FORWARD}={LOOPBACK}:{CALM}", f"[::1]:{FORWARD}={TARGET}:{ECHO}"
        self.local = self.startLocal(*(word for each in forwards for word in ("--forward", each))).says("is up")
        self.client = self.associate()
        self.witness = open_(network.client, LOOPBACK)
        self.addCleanup(self.witness.close)
        self.bearWitness()
        self.links = links(network.client)
        self.assertEqual(len(self.links), 1)

    def associate(self) -> SocksClient:
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        return client

    def route(self, *words: str) -> None:
        self.network.server.ip("route", *words)

    def bearWitness(self) -> None:
        payload = b"%f" % time.monotonic()
        self.assertEqual(exchange(self.witness, (LOOPBACK, FORWARD), payload), payload)

    def assertUnharmed(self) -> None:
        """The other flow is served, by the same processes over the same TCP connection; see also C{assertCalm}."""
        self.bearWitness()
        self.assertEqual(links(self.network.client), self.links)
        for program in (self.server, self.local):
            self.assertIsNone(program.process.poll())

    def assertEchoes(self, client: SocksClient, host: str = TARGET) -> None:
        """An association is as good as new: the next datagram to a target comes back."""
        payload = b"%f" % time.monotonic()
        self.assertEqual(client.exchange((host, ECHO), payload), ((host, ECHO), payload))

    def assertEchoesLately(self, client: SocksClient, host: str = TARGET) -> None:
        """The same, but what was sent before may come first."""
        payload = b"%f" % time.monotonic()
        client.send((host, ECHO), payload)
        while client.receive() != ((host, ECHO), payload):
            pass

    def assertRefused(self, host: str, port: int, number: int, size: int = 1) -> None:
        """The kernel refuses to send a datagram as udp-server would send it: the trouble is there."""
        with open_(self.network.server, "::") as udp:
            error = self.assertRaises(OSError, udp.sendto, bytes(size), (f"::ffff:{host}", port))
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number])


class AddressTests(ErrorTestCase):
    """Targets that no datagram may go to."""

    def test_portZero(self) -> None:
        """EINVAL: port 0."""
        self.assertRefused(TARGET, 0, errno.EINVAL)
        self.client.send((TARGET, 0), b"to port 0")
        self.assertUnharmed()
        self.assertEchoes(self.client)

    def test_broadcast(self) -> None:
        """EACCES: broadcast addresses, of everybody and of a subnet, although they are allowed."""
        self.route("add", "255.255.255.255", "dev", "up0")
        for host in ("255.255.255.255", SUBNET_BROADCAST):
            self.assertRefused(host, ECHO, errno.EACCES)
            self.client.send((host, ECHO), b"to all")
            self.assertUnharmed()
        self.assertEchoes(self.client)
        self.assertEqual([payload for _, payload in self.echo.received if payload == b"to all"], [])

    def test_largest(self) -> None:
        """EMSGSIZE: 65,508 bytes, which fit into a datagram of IPv6, but not of IPv4."""
        self.assertRefused(TARGET, ECHO, errno.EMSGSIZE, 65_508)
        with open_(self.network.client, "::1") as udp:
            for size in (65_508, 65_527):
                udp.sendto(bytes(size), ("::1", FORWARD))
                self.assertUnharmed()
            payload = bytes(65_507)
            self.assertTrue(exchange(udp, ("::1", FORWARD), payload) == payload)

    def test_sourceZero(self) -> None:
        """EINVAL at udp-local: an application whose datagrams come from port 0 can not be answered."""
        with self.network.client.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        with raw:
            for _ in range(3):
                raw.sendto(struct.pack("!HHHH", 0, FORWARD, 12, 0) + b"echo", (LOOPBACK, 0))
        self.assertUnharmed()


class RouteTests(ErrorTestCase):
    """Ways that lead nowhere, for a while."""

    def test_routes(self) -> None:
        """
        ENETUNREACH, EHOSTUNREACH, EACCES and EINVAL: no route, an unreachable one, a prohibited one and a black hole.

        When the route is back, the flow goes on.
        """
        kinds = (
            ("", errno.ENETUNREACH),
            ("unreachable", errno.EHOSTUNREACH),
            ("prohibit", errno.EACCES),
            ("blackhole", errno.EINVAL),
        )
        for kind, number in kinds:
            self.assertEchoes(self.client, FAR)
            with self.noRoute(kind):
                self.assertRefused(FAR, ECHO, number)
                self.client.send((FAR, ECHO), kind.encode())
                self.assertUnharmed()
        self.assertEchoes(self.client, FAR)
        self.assertEqual({payload for _, payload in self.echo.received} & {kind.encode() for kind, _ in kinds}, set())

    @contextmanager
    def noRoute(self, kind: str) -> Iterator[None]:
        self.route("del", FAR)
        if kind:
            self.route("add", kind, FAR)
        yield
        if kind:
            self.route("del", kind, FAR)
        self.route("add", FAR, "via", TARGET)

    def test_filter(self) -> None:
        """EPERM: the firewall of the server lets nothing out, by dropping or by rejecting it."""
        for verdict in ("drop", "reject with icmp type admin-prohibited"):
            with filtering(self.network.server, f"output ip daddr {FAR} {verdict}"):
                self.assertRefused(FAR, ECHO, errno.EPERM)
                self.client.send((FAR, ECHO), b"out")
                self.assertUnharmed()
        self.assertEchoes(self.client, FAR)


class FullTests(ErrorTestCase):
    """A wire that takes next to nothing."""

    def limitWire(self, *limit: str) -> None:
        words = "replace", "dev", "up0", "root", "tbf", "rate", "8kbit", "burst", "1600", *limit
        run(*self.network.server.command("tc", "qdisc", *words))

    def freeWire(self) -> None:
        run(*self.network.server.command("tc", "qdisc", "del", "dev", "up0", "root"))

    def backlog(self) -> int:
        """Packets that wait for the wire."""
        text = run(*self.network.server.command("tc", "-s", "qdisc", "show", "dev", "up0"))
        return int(text.partition("backlog ")[2].split()[1].rstrip("p"))

    def test_socketFull(self) -> None:
        """EAGAIN: the wire takes 8 kbit/s, and the queue before it all that the external port's buffer holds."""
        self.limitWire("limit", "50000000")
        for _ in range(10):
            for _ in range(40):
                self.client.send((TARGET, ECHO), bytes(60_000))
            self.bearWitness()
        waiting = self.backlog()
        self.assertLess(waiting * 1480, 400 * 60_000)
        self.client.send((TARGET, ECHO), bytes(60_000))
        self.assertUnharmed()
        self.assertEqual(self.backlog(), waiting)
        self.freeWire()
        self.assertEchoes(self.associate())

    def test_queueFull(self) -> None:
        """ENOBUFS: the queue before the wire is full, too."""
        self.limitWire("limit", "3000")
        for _ in range(200):
            self.client.send((TARGET, ECHO), bytes(1400))
        self.assertUnharmed()
        self.freeWire()
        self.assertEchoesLately(self.client)


class ClosedPortTests(ErrorTestCase):
    """ECONNREFUSED: a target at which nobody listens."""

    def answers(self) -> int:
        """ICMP messages that the server has received."""
        with self.network.server.entered():
            text = Path("/proc/thread-self/net/snmp").read_text()
        names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Icmp:"))
        return int(values[names.index("InDestUnreachs")])

    def storm(self) -> None:
        for number in range(STORM):
            # Of unequal sizes, so that the kernel does not hand several over as one.
            self.client.send((TARGET, ECHO + 1), bytes(1 + number % 5))
            if not number % 50:
                self.bearWitness()

    def test_storm(self) -> None:
        """
        Thousands of datagrams that are refused by ICMP leave the flow usable, the session up and the log quiet.
        """
        # The kernel sends only some of these messages, unless told otherwise.
        with self.network.target.entered():
            Path("/proc/sys/net/ipv4/icmp_ratemask").write_text("0")
        logged = [program.said.count("\n") for program in (self.server, self.local)]
        before = self.answers()
        self.storm()
        self.assertGreater(self.answers() - before, STORM // 10)
        self.assertUnharmed()
        self.assertEchoes(self.client)
        for program, lines in zip((self.server, self.local), logged, strict=True):
            self.assertLessEqual(program.said.count("\n"), lines + LOGGED_LINES)

    def test_rejected(self) -> None:
        """A firewall before the target that rejects does no harm either, and the flow goes on when it is gone."""
        with filtering(self.network.target, f"input udp dport {ECHO} reject with icmp type port-unreachable"):
            before = self.answers()
            for _ in range(20):
                self.client.send((TARGET, ECHO), b"rejected")
            until(lambda: self.answers() > before, "nothing is rejected")
            self.assertUnharmed()
        self.assertEchoes(self.client)


class ShortageTests(ErrorTestCase):
    """External ports that can not be opened."""

    alone = True

    def clients(self, number: int) -> list[SocksClient]:
        clients = [self.associate() for _ in range(number)]
        for client in clients:
            client.udp.settimeout(0.1)
            client.send((TARGET, ECHO), b"hello")
        return clients

    def served(self, clients: list[SocksClient]) -> list[SocksClient]:
        """Those that have been answered, now that somebody else has been."""
        self.bearWitness()
        served = []
        for client in clients:
            try:
                client.receive()
            except TimeoutError:
                continue
            served.append(client)
        return served

    def test_descriptors(self) -> None:
        """EMFILE: without descriptors new flows are refused and others go on; when there are some, all are served."""
        limitDescriptors(self.server, self.server.descriptors() + 2)
        clients = self.clients(5)
        self.assertEqual(len(self.served(clients)), 2)
        self.assertUnharmed()
        limitDescriptors(self.server, 1024)
        for client in clients:
            client.udp.settimeout(SOON)
            self.assertEchoesLately(client)
        self.assertUnharmed()

    def test_newTarget(self) -> None:
        """EMFILE: a target that a flow first sends to while there are no descriptors is reached when there are some."""
        self.assertEchoes(self.client)
        limitDescriptors(self.server, self.server.descriptors())
        self.client.send((PUBLIC, ECHO), b"a new target")
        self.assertUnharmed()
        limitDescriptors(self.server, 1024)
        self.client.udp.settimeout(0.1)
        until(self.isReached, "the target is not reached", SOON)

    def isReached(self) -> bool:
        self.client.send((PUBLIC, ECHO), b"again")
        with contextlib.suppress(TimeoutError):
            return self.client.receive() == ((PUBLIC, ECHO), b"again")
        return False

    def test_log(self) -> None:
        """Flows that are refused for lack of descriptors are not logged datagram by datagram."""
        limitDescriptors(self.server, self.server.descriptors())
        lines = self.server.said.count("\n")
        client = self.associate()
        for _ in range(STORM):
            client.send((TARGET, ECHO), b"refused")
        self.assertUnharmed()
        self.assertLessEqual(self.server.said.count("\n"), lines + LOGGED_LINES)

    def test_ports(self) -> None:
        """EADDRINUSE: when all ports of the machine are taken a new flow is refused, until one is free."""
        with self.network.server.entered():
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40003")
        clients = self.clients(6)
        served = self.served(clients)
        self.assertEqual(len(served), 4)
        self.assertUnharmed()
        descriptors = self.server.descriptors()
        closeAll([served[0].control])
        until(lambda: self.server.descriptors() < descriptors, "the external port is not closed")
        refused = next(client for client in clients if client not in served)
        refused.udp.settimeout(SOON)
        self.assertEchoesLately(refused)
        self.assertUnharmed()
