"""Strangers, floods and loops: whoever is not asked is not answered, and nobody is kept from what is theirs."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.clients import LARGEST, Echo, SocksClient, closeAll, exchange, open_
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import ECHO, FORWARD, LINK, SECONDS, SOCKS, TWISTD, Program, SystemTestCase, until
from tests.system.watch import links, resetLinks, residentBytes
from udptunnel.pki import Authority
from udptunnel.wire.frame import HEADER_BYTES, ping, pong

LOOPBACK = "127.0.0.1"
TARGET = Network.atTarget[0]
SERVER = Network.atServer[0], LINK
CLIENT = Network.atClient[0]
RULE = f"{LOOPBACK}:{FORWARD}={TARGET}:{ECHO}"
STRANGER = "10.77.1.66"
"""A further address at the client's end, of somebody who is not welcome."""

OTHER = ECHO + 1
"""A second target port."""

GARBAGE = b"", b"\0", b"\0\0\0\1", b"\xff" * 512, bytes(1400), os.urandom(200)
CLIENT_HELLO = bytes.fromhex(
    "16030100b3010000af0303000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f000006130113021303"
    "010000800000001000"
) + bytes(131)
"""The begin of a TLS session, near enough."""


WATCH = """
table inet watch {
    counter out { }
    chain out {
        type filter hook output priority 0;
        meta l4proto udp counter name "out"
    }
}
"""


class FloodTestCase(SystemTestCase):
    """A tunnel, an echo target, and a flow that is to go on."""

    alone = True

    atServer: tuple[str, ...] = ()
    atLocal: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.network.client.addAddress(f"{STRANGER}/24", "up0")
        self.echo = Echo(self.network.target, (TARGET, ECHO))
        self.addCleanup(self.echo.close)
        self.server = self.startServer(*self.atServer)
        self.local = self.startLocal("--forward", RULE, *self.atLocal).says("is up")
        self.application = self.open(LOOPBACK)

    def open(self, host: str) -> socket.socket:
        """A UDP socket at the client's end."""
        udp = open_(self.network.client, host)
        self.addCleanup(udp.close)
        return udp

    def openFar(self, host: str, port: int = 0) -> socket.socket:
        """A UDP socket at the target's end."""
        udp = open_(self.network.target, host, port)
        self.addCleanup(udp.close)
        return udp

    def assertServed(self) -> None:
        payload = b"%f" % time.monotonic()
        self.assertEqual(exchange(self.application, (LOOPBACK, FORWARD), payload), payload)

    def assertSilent(self, udp: socket.socket) -> None:
        """A socket has received nothing; what might come has had its time."""
        self.assertServed()
        udp.settimeout(0.1)
        self.assertRaises(TimeoutError, udp.recv, LARGEST)

    def external(self) -> tuple[str, int]:
        """The external port of the flow."""
        self.assertServed()
        return self.echo.received[-1][0]


class RelayTests(FloodTestCase):
    """A SOCKS5 relay that other hosts can reach."""

    atLocal = "--socks", f"tcp:{SOCKS}:interface={CLIENT}", "--insecure-no-auth"

    def test_thirdHost(self) -> None:
        """What another host than its client sends to a relay goes nowhere, and is not answered."""
        client = SocksClient(self.network.client, CLIENT)
        self.addCleanup(client.close)
        echoed = client.exchange((TARGET, ECHO), b"mine")
        self.assertEqual(echoed, ((TARGET, ECHO), b"mine"))
        descriptors = self.server.descriptors()
        header = b"\0\0\0\1" + socket.inet_aton(TARGET) + ECHO.to_bytes(2, "big")
        strangers = [self.open(STRANGER), open_(self.network.server, SERVER[0])]
        self.addCleanup(strangers[1].close)
        for stranger in strangers:
            for payload in (*GARBAGE, header + b"theirs"):
                stranger.sendto(payload, client.relay)
        self.assertEqual(client.exchange((TARGET, ECHO), b"mine again")[1], b"mine again")
        for stranger in strangers:
            self.assertSilent(stranger)
        self.assertNotIn(b"theirs", [payload for _, payload in self.echo.received])
        # One for the flow of assertSilent.
        self.assertLessEqual(self.server.descriptors(), descriptors + 1)


class ExternalPortTests(FloodTestCase):
    """Whoever finds an external port."""

    def test_noAnswers(self) -> None:
        """udp-server sends nothing to an address that only it was sent from: bytes out by bytes in is 0."""
        external, strangers = self.external(), [self.openFar(host) for host in (TARGET, Network.third[0])]
        for stranger in strangers:
            for payload in GARBAGE:
                stranger.sendto(payload, external)
        for stranger in strangers:
            self.assertSilent(stranger)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        client.exchange((TARGET, ECHO), b"hello")
        for payload in GARBAGE:
            strangers[1].sendto(payload, self.echo.received[-1][0])
        for payload in GARBAGE:
            self.assertEqual(client.receive(), (strangers[1].getsockname(), payload))
        self.assertSilent(strangers[1])


class FilteringTests(FloodTestCase):
    """Who may send to an external port, as C{--filtering} says."""

    def delivered(self, filtering: str) -> list[bool]:
        """Whether the client is given what comes from the port that it has sent to, that host, and another host."""
        self.server.kill()
        self.server = self.startServer("--filtering", filtering)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        until(lambda: self.isAnswered(client), "no link")
        external, target = self.echo.received[-1][0], self.echo.sockets[0]
        senders = [target, self.openFar(TARGET), self.openFar(Network.third[0])]
        for number, sender in enumerate(senders):
            sender.sendto(b"%d" % number, external)
        client.send((TARGET, ECHO), b"end")
        received: list[bytes] = []
        while not received or received[-1] != b"end":
            received.append(client.receive()[1])
        return [b"%d" % number in received for number in range(len(senders))]

    def isAnswered(self, client: SocksClient) -> bool:
        client.udp.settimeout(0.3)
        try:
            return client.exchange((TARGET, ECHO), b"?")[1] == b"?"
        except TimeoutError:
            return False

    def test_filtering(self) -> None:
        """C{endpoint} lets everybody in, C{address} hosts that were sent to, C{port} their ports only."""
        self.assertEqual(self.delivered("endpoint"), [True, True, True])
        self.assertEqual(self.delivered("address"), [True, True, False])
        self.assertEqual(self.delivered("port"), [True, False, False])


class StrangerRateTests(FloodTestCase):
    """Many datagrams to one external port from hosts that were not sent to."""

    atServer = "--stranger-rate", "100"
    offered, most = 2000, 400

    def test_rate(self) -> None:
        """Few of them get through, and all that comes from who was sent to."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        client.exchange((TARGET, ECHO), b"hello")
        external = self.echo.received[-1][0]
        stranger = self.openFar(Network.third[0])
        began = time.monotonic()
        for number in range(self.offered):
            stranger.sendto(b"stranger", external)
            if not number % 100:
                self.echo.sockets[0].sendto(b"%d" % number, external)
        self.echo.sockets[0].sendto(b"end", external)
        received: list[bytes] = []
        while not received or received[-1] != b"end":
            received.append(client.receive()[1])
        strange = received.count(b"stranger")
        self.assertLess(time.monotonic() - began, 2)
        self.assertLessEqual(strange, self.most)
        self.assertGreater(strange, 0)
        self.assertEqual(len(received) - strange, self.offered // 100 + 1)


class LoopTests(FloodTestCase):
    """Datagrams that come back to where they are sent from."""

    programs = ("nft",)
    pingPong = 6001, 6002
    atServer = "--allow", "10.77.1.0/24"
    atLocal = (
        "--insecure-no-auth",
        "--forward",
        f"{CLIENT}:{pingPong[0]}={CLIENT}:{pingPong[1]}",
        "--forward",
        f"{CLIENT}:{pingPong[1]}={CLIENT}:{pingPong[0]}",
    )
    most = 70_000
    """Bytes, as in WireGuard's own test of such a loop."""

    def sentBytes(self) -> int:
        """What udp-server has sent as UDP."""
        table = json.loads(run(*self.network.server.command("nft", "-j", "list", "counters")))["nftables"]
        return int(next(each["counter"]["bytes"] for each in table if "counter" in each))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within a second it is over, and was little."""
        run(*self.network.server.command("nft", "-f", "-"), text=WATCH)
        began = time.monotonic()
        yield
        time.sleep(max(0.0, began + 1 - time.monotonic()))
        sent = self.sentBytes()
        self.assertLess(sent, self.most)
        time.sleep(0.2)
        self.assertEqual(self.sentBytes(), sent)

    def test_ownPort(self) -> None:
        """A flow whose target is its own external port, although that is allowed."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        client.exchange((TARGET, ECHO), b"hello")
        external = self.echo.received[-1][0]
        with self.counting():
            client.send(external, bytes(100))
            self.assertEqual(client.receive(), (external, bytes(100)))
        self.assertServed()

    def test_eachOther(self) -> None:
        """Two forwards whose targets are each other: a datagram to one of them does not run round for ever."""
        stranger = self.open(CLIENT)
        with self.counting():
            stranger.sendto(bytes(100), (CLIENT, self.pingPong[0]))
        self.assertServed()


class SmallDatagramTests(FloodTestCase):
    """A flood of 200,000 datagrams of next to no bytes each second, for some seconds."""

    atServer = atLocal = "--heartbeat", "0.17"
    rate, seconds = 200_000, 1.5

    def test_flood(self) -> None:
        """Heartbeats go on at both ends: with intervals of 0.17 s, the link is still the same one."""
        external, before = self.external(), links(self.network.client)
        for size in (0, 1):
            self.flood(Network.third[0], 0, *external, size)
            self.assertEqual(links(self.network.client), before)
        self.assertServed()

    def flood(self, *addresses: object) -> None:
        """Have another process send from one address to another."""
        words = sys.executable, "-m", "tests.system.stream", *map(str, addresses), str(self.rate), str(self.seconds)
        flood = self.start(self.network.target, *words)
        until(lambda: flood.process.poll() is not None, "the flood does not end")
        self.assertGreater(int(flood.said), 0.2 * self.rate * self.seconds)

    def test_expected(self) -> None:
        """The same from a target, whose datagrams all go over the link."""
        before = links(self.network.client)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        with self.openFar(TARGET, OTHER) as target:
            client.send((TARGET, OTHER), b"hello")
            _, external = target.recvfrom(100)
        self.flood(TARGET, OTHER, *external, 0)
        self.assertEqual(links(self.network.client), before)
        self.assertServed()


class DoorTestCase(FloodTestCase):
    """Strangers at the port for links, who have one second to log in."""

    login = 1.0
    atServer = "--login-timeout", str(login), "--heartbeat", "0.5"
    tick = 0.25
    """A role looks at the clock so often, in seconds: twice a heartbeat."""

    def knock(self) -> socket.socket:
        return self.knocks(1)[0]

    def knocks(self, number: int) -> list[socket.socket]:
        """Connections of strangers, all at once."""
        with self.network.client.entered():
            streams = [socket.socket() for _ in range(number)]
        self.addCleanup(closeAll, streams)
        for stream in streams:
            stream.bind((STRANGER, 0))
            stream.setblocking(False)
            stream.connect_ex(SERVER)
        for stream in streams:
            stream.settimeout(SECONDS)
            select.select([], [stream], [], SECONDS)
        return streams

    def answer(self, stream: socket.socket) -> bytes:
        """All that comes, until the connection is closed."""
        answer = b""
        try:
            while chunk := stream.recv(LARGEST):
                answer += chunk
        except ConnectionError:
            pass
        return answer

    def assertLogsIn(self, seconds: float = 1.0) -> None:
        """udp-local, whose link is reset, is served again soon."""
        began, before = time.monotonic(), links(self.network.client, CLIENT)
        resetLinks(self.network.client)
        until(lambda: links(self.network.client, CLIENT) - before, "no new connection", seconds)
        self.assertServed()
        self.assertLess(time.monotonic() - began, seconds)


class StrangerTests(DoorTestCase):
    """What strangers say."""

    programs = ("ss",)

    def test_silence(self) -> None:
        """Whoever does not speak our language hears nothing."""
        hello = b"udpt" + bytes(5)
        words = os.urandom(64), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", CLIENT_HELLO, b"\5\1\0", hello, b"\n"
        streams = self.knocks(len(words) + 2)
        for said, stream in zip(words, streams, strict=False):
            stream.sendall(said)
        streams[-1].shutdown(socket.SHUT_WR)
        for stream in streams:
            self.assertEqual(self.answer(stream), b"")
        self.assertServed()

    def test_slow(self) -> None:
        """A stranger's time runs from its connection on, not from its last byte."""
        with self.knock() as stream:
            began = time.monotonic()
            stream.settimeout(0.2)
            # The begin of a HELLO of 256 bytes.
            for byte in b"udpt\0\1\0\1\1\0" + bytes(100):
                try:
                    stream.sendall(bytes([byte]))
                    self.assertEqual(stream.recv(100), b"")
                    break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            self.assertLess(time.monotonic() - began, self.login + self.tick + 0.2)

    def test_rate(self) -> None:
        """While one host connects 500 times a second, instead of 1,000, others log in."""
        storm = Storm(self.network.client)
        try:
            for _ in range(3):
                time.sleep(0.3)
                self.assertLogsIn()
        finally:
            storm.stop()
        self.assertGreater(storm.rate, 300)
        self.assertServed()


class CrowdTests(DoorTestCase):
    """
    A crowd of 500 instead of 5,000, of which none lives longer than a login may take.

    They cost little, and whoever knows how to log in does so meanwhile.

    @ivar cost: the bytes that they may cost: a tenth of what 5,000 may.
    """

    programs = ("ss",)
    patience = 1.0
    """Seconds after which the kernel tries again to connect when there was no room."""

    cost = (64 << 20) // 10
    crowd = 500

    def assertHarmless(self, said: bytes = b"") -> None:
        before, descriptors = residentBytes(self.server), self.server.descriptors()
        began, strangers = time.monotonic(), self.knocks(self.crowd)
        for each in strangers:
            with contextlib.suppress(OSError):
                each.send(said)
        until(lambda: self.server.descriptors() > descriptors + 100, "there is no crowd", self.login)
        self.assertLogsIn()
        until(lambda: self.server.descriptors() <= descriptors + 1, "descriptors stay open", 5)
        self.assertLess(time.monotonic() - began, self.patience + self.login + self.tick + 0.5)
        # What they took stays with the process for the next ones, so it is seen afterwards, too.
        self.assertLess(residentBytes(self.server) - before, self.cost)
        for each in strangers:
            # Some never came past the kernel's own queue, and are not closed.
            each.setblocking(False)
            with contextlib.suppress(OSError):
                self.assertEqual(each.recv(100), b"")

    def test_silent(self) -> None:
        """They say nothing."""
        self.assertHarmless()


class SealedCrowdTests(CrowdTests):
    """The same before a door of TLS."""

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        authority = Authority(folder, datetime.datetime.now(datetime.UTC))
        authority.create([SERVER[0]], 1)
        authority.add("alice", 1)
        self.atServer = *DoorTestCase.atServer, "--tls", str(authority.bundle("server"))
        self.atLocal = "--tls", str(authority.bundle("alice"))
        super().setUp()

    def test_half(self) -> None:
        """They say half of what begins a TLS session."""
        self.assertHarmless(CLIENT_HELLO[:90])


class Storm(threading.Thread):
    """Connects 500 times a second, and says something or nothing."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        self._namespace = namespace
        self._over = threading.Event()
        self._begin = time.monotonic()
        self._opened: list[socket.socket] = []
        self._connected = 0
        self.start()

    def run(self) -> None:
        with self._namespace.entered():
            while not self._over.wait(0.02):
                for _ in range(10):
                    self._connect()
                closeAll(self._opened[:-800])
                del self._opened[:-800]

    def _connect(self) -> None:
        stream = socket.socket()
        self._opened.append(stream)
        stream.bind((STRANGER, 0))
        stream.settimeout(1)
        with contextlib.suppress(OSError):
            stream.connect(SERVER)
            self._connected += 1
            if self._connected % 2:
                stream.send(b"udpt")

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self._connected / (time.monotonic() - self._begin)

    def stop(self) -> None:
        """Connect no more."""
        self._over.set()
        self.join()
        closeAll(self._opened)


class PingTests(DoorTestCase):
    """
    A hundred thousand PINGs.

    Whoever sends them answers none, and is silent for as long as this machine
    needs to look at what they did: no heartbeat may miss it meanwhile.
    """

    atServer = "--login-timeout", str(DoorTestCase.login), "--heartbeat", "10"
    pings = b"".join(map(ping, range(100_000)))
    growth = 1 << 20

    def pour(self, stream: socket.socket) -> None:
        """Send PINGs, and take no answer."""
        stream.settimeout(1)
        try:
            stream.sendall(self.pings)
        except (TimeoutError, ConnectionError):
            pass  # it takes no more, or is closed

    def hello(self) -> bytes:
        """What udp-local says first."""
        fake = open_(self.network.server, SERVER[0], kind=socket.SOCK_STREAM)
        self.addCleanup(fake.close)
        fake.listen()
        words = "--socks", "none", "--server", f"tcp:{SERVER[0]}:{fake.getsockname()[1]}"
        self.startOther(*words)
        stream, _ = fake.accept()
        with stream:
            head = stream.recv(HEADER_BYTES, socket.MSG_WAITALL)
            return head + stream.recv(int.from_bytes(head[-2:], "big"), socket.MSG_WAITALL)

    def startOther(self, *words: str) -> Program:
        return self.start(self.network.client, *TWISTD, "udp-local", *words)

    def test_before(self) -> None:
        """Before login none is answered."""
        with self.knock() as stream:
            self.pour(stream)
            self.assertEqual(self.answer(stream), b"")
        self.assertServed()

    def unread(self) -> int:
        """Bytes of strangers that udp-server has not read yet."""
        with self.network.server.entered():
            lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        host = f"{int.from_bytes(socket.inet_aton(STRANGER), 'little'):08X}:"
        return sum(int(line.split()[4].partition(":")[2], 16) for line in lines if line.split()[2].startswith(host))

    def assertAnswered(self, stream: socket.socket) -> None:
        """One more PING has its PONG, behind all the others."""
        moment, data = 1 << 40, b""
        stream.sendall(ping(moment))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        while pong(moment, 0)[:-8] not in data:
            data = data[-64:] + stream.recv(LARGEST)

    def test_after(self) -> None:
        """After login, they fill no memory although nobody reads the answers; the newest is answered in any case."""
        hello = self.hello()
        with self.knock() as stream:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stream.sendall(hello)
            until(lambda: stream.recv(4, socket.MSG_PEEK) == b"UDPT", "no welcome", 1)
            self.pour(stream)
            before = residentBytes(self.server)
            for _ in range(2):
                self.pour(stream)
                until(lambda: not self.unread(), "the PINGs are not read")
                self.assertLess(residentBytes(self.server) - before, self.growth)
            self.assertServed()
            self.assertAnswered(stream)
