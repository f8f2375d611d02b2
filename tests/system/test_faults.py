"""Processes that end, connections that break, wires that are cut, clogged or bad: what gets through is right."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from tests.system.clients import Echo, SocksClient, closeAll, open_
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import ECHO, FORWARD, LINK, TWISTD, Program, SystemTestCase, until
from tests.system.stream import Stream
from tests.system.watch import filtering, links, processorSeconds, resetLinks, residentBytes
from tests.system.wire import ENDS, Wire

LOOPBACK = "127.0.0.1"
TARGET = Network.atTarget[0]
OTHER = ECHO + 1
"""A second target port."""

HEARTBEAT = 0.3
DEAD_SECONDS = 3 * HEARTBEAT + 1
"""Both ends have given a dead link up by then, and another one has taken its place."""

OLDEST_SECONDS = 1.0
"""Nothing older is delivered."""

TOLERANCE_SECONDS = 0.05
"""What the measurement itself may add to an age: this machine has other work to do."""

RESUMPTIONS = 20


class FaultTestCase(SystemTestCase):
    """
    A tunnel with numbered datagrams that travel all the time, and small heartbeats.

    Times are scaled with the heartbeat: it is 0.3 s instead of 5 s, so that
    three of them and one second are 1.9 s instead of 16 s.
    """

    programs: tuple[str, ...] = "nft", "ss"
    options: tuple[str, ...] = "--heartbeat", str(HEARTBEAT)
    rule = f"{LOOPBACK}:{FORWARD}={TARGET}:{ECHO}"

    def setUp(self) -> None:
        super().setUp()
        self.server = self.startServer(*self.options)
        self.local = self.startNear()

    def startNear(self) -> Program:
        return self.startLocal("--forward", self.rule, *self.options).says("is up")

    def stream(self, rate: float = 500, size: int = 200) -> Stream:
        """Start to send, and wait until the first answers are there."""
        stream = Stream(
            self.network.client, (LOOPBACK, FORWARD), self.network.target, (TARGET, ECHO), rate=rate, size=size
        )
        self.addCleanup(stream.stop)
        self.assertFlows(stream)
        return stream

    def assertFlows(self, stream: Stream, seconds: float = 5.0) -> None:
        """Something that is sent from now on comes back soon."""
        number = stream.sent
        until(lambda: stream.near.all and stream.near.all[-1].number >= number, "no answer", seconds)

    def assertSound(self, stream: Stream) -> None:
        """Nothing was damaged, delivered twice, or delivered late, in either direction."""
        for arrivals in (stream.far, stream.near):
            self.assertEqual(arrivals.damaged, 0)
            numbers = arrivals.numbers
            self.assertEqual(len(set(numbers)), len(numbers))
            self.assertLess(arrivals.oldest, OLDEST_SECONDS + TOLERANCE_SECONDS)

    def connected(self) -> frozenset[tuple[str, str]]:
        return links(self.network.client)


class KillTests(FaultTestCase):
    """C{kill -9}; what test_restart does not look at."""

    def assertNoticed(self, times: int) -> None:
        until(lambda: self.local.said.count("link lost") == times, "the end is not noticed", 1.0)

    def test_server(self) -> None:
        """udp-local notices within a second that udp-server was killed; what was sent meanwhile comes once or not."""
        stream = self.stream()
        for times in (1, 2):
            self.server.kill()
            self.assertNoticed(times)
            self.server = self.startServer(*self.options)
            self.assertFlows(stream)
        self.assertSound(stream)

    def test_local(self) -> None:
        """A killed udp-local that comes back begins anew; what was sent meanwhile comes once or not."""
        stream = self.stream()
        for _ in range(2):
            self.local.kill()
            self.local = self.startNear()
            self.assertFlows(stream)
        self.assertSound(stream)


class GraceTests(FaultTestCase):
    """A session that is parked for half a second, instead of a minute."""

    def test_released(self) -> None:
        """When udp-local was killed, udp-server closes its link, and after the grace its external ports."""
        self.server.kill()
        self.server = self.startServer(*self.options, "--resume-grace", "0.5")
        self.local.says("is up", times=2)
        before = self.server.descriptors()
        stream = self.stream()
        self.assertEqual(self.server.descriptors(), before + 1)
        stream.stop()
        self.local.kill()
        # The link has gone, too. A second is what may pass until a role looks at the clock.
        until(lambda: self.server.descriptors() == before - 1, "descriptors stay open", 3 * HEARTBEAT + 0.5 + 1)


class CutTests(FaultTestCase):
    """A link that breaks while the session lives."""

    alone = True

    def assertReplaced(self, before: frozenset[tuple[str, str]]) -> None:
        until(lambda: self.connected() - before, "no new link", DEAD_SECONDS)

    def test_reset(self) -> None:
        """
        Of a session whose TCP connections are reset twenty times amid frames, no datagram is damaged.

        The target sees the same external port all the time.
        """
        stream = self.stream(rate=1000, size=1400)
        for _ in range(RESUMPTIONS):
            before, moment = self.connected(), time.monotonic()
            resetLinks(self.network.client)
            self.assertReplaced(before)
            self.assertFlows(stream)
            self.assertLess(stream.near.gap(moment), DEAD_SECONDS)
        self.assertSound(stream)
        self.assertEqual(len(stream.far.sources), 1)

    def test_blackHole(self) -> None:
        """
        A link whose packets get lost in silence is replaced within three heartbeats and a second.

        The target sees the same external port as before.
        """
        stream = self.stream()
        ((here, _),) = self.connected()
        port, moment = int(here.partition(":")[2], 16), time.monotonic()
        with filtering(self.network.server, f"input tcp sport {port} drop", f"output tcp dport {port} drop"):
            until(lambda: stream.near.since(moment + 0.2) and stream.near.gap(moment) > HEARTBEAT, "no gap", 5)
            self.assertFlows(stream)
            self.assertLess(stream.near.gap(moment), DEAD_SECONDS)
        self.assertSound(stream)
        self.assertEqual(len(stream.far.sources), 1)

    def test_roaming(self) -> None:
        """A client that moves to another address comes back with a new link, to the same external port."""
        stream = self.stream()
        before, client = self.connected(), self.network.client
        client.ip("address", "del", f"{Network.atClient[0]}/24", "dev", "up0")
        client.addAddress("10.77.1.9/24", "up0")
        self.assertReplaced(before)
        self.assertFlows(stream)
        self.assertSound(stream)
        self.assertEqual(len(stream.far.sources), 1)


class BlackHoleTests(FaultTestCase):
    """No packets of any link get through, in both directions or in one, and nothing says so."""

    def cut(self, *ways: str) -> list[str]:
        return [{"there": f"input tcp dport {LINK} drop", "back": f"output tcp sport {LINK} drop"}[way] for way in ways]

    def accepted(self) -> bool:
        """Whether udp-server has a connection; half of one does not count."""
        with self.network.server.entered():
            lines = open("/proc/thread-self/net/tcp").read().splitlines()[1:]
        fields = [line.split() for line in lines]
        return any(each[1].endswith(f":{LINK:04X}") and each[3] == "01" for each in fields)

    @contextmanager
    def blackHole(self, *ways: str) -> Iterator[None]:
        """A black hole in which both ends give the link up, and free its descriptors, within their time."""
        descriptors = self.server.descriptors(), self.connected()
        with filtering(self.network.server, *self.cut(*ways)):
            began = time.monotonic()
            until(lambda: not (self.accepted() or self.connected() & descriptors[1]), "not given up", DEAD_SECONDS)
            until(lambda: self.server.descriptors() < descriptors[0], "the descriptor stays open", 1)
            self.assertLess(time.monotonic() - began, DEAD_SECONDS)
            yield

    def test_eachWay(self) -> None:
        """It may be one direction only; when it is over the link is back within five seconds."""
        stream = self.stream()
        for way in ("there", "back"):
            with self.blackHole(way):
                pass
            self.assertFlows(stream, 5.0)
        self.assertSound(stream)

    def test_bothWays(self) -> None:
        """However long it lasts, when it is over the link is back within five seconds."""
        stream = self.stream()
        # So that the kernel's pauses between its tries to connect grow from the first one on.
        with self.network.client.entered(), open("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", "w") as file:
            file.write("0")
        with self.blackHole("there", "back"):
            time.sleep(8)
        self.assertFlows(stream, 5.0)
        self.assertSound(stream)


class DefaultTestCase(FaultTestCase):
    """With the default heartbeat of 5 s."""

    options = ()


class LossTests(DefaultTestCase):
    """30 % of all packets are lost, in each direction."""

    alone = True

    seconds = 10.0
    connections = 16
    """Of ours, and of plain ones: chance makes one of them ten times as fast as another."""

    share = 0.8

    rounds = 4

    def startNear(self) -> Program:
        # So that each packet has its own fate: what the kernel hands over in one piece would be lost as one.
        self.network.client.ip("link", "set", "up0", "gso_max_segs", "1")
        self.network.server.ip("link", "set", "down0", "gso_max_segs", "1")
        program = self.startLocal("--forward", self.rule, *self.options, "--links", str(self.connections))
        until(lambda: len(self.connected()) == self.connections, "not all links are there")
        return program

    def drain(self, receivers: list[socket.socket], octets: list[int]) -> None:
        """Count what comes, until the time is over."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            for each in select.select(receivers, [], [], 0.1)[0]:
                octets.append(len(each.recv(1 << 20)))

    def feed(self, senders: list[socket.socket], payload: bytes, pause: float) -> None:
        """Offer more than gets through, until the time is over."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            for each in select.select([], senders, [], 0.1)[1]:
                with contextlib.suppress(BlockingIOError):
                    each.send(payload)
            time.sleep(pause)

    def plain(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """TCP connections on the same wire: their senders and receivers."""
        listening = open_(self.network.server, Network.atServer[0], kind=socket.SOCK_STREAM)
        self.addCleanup(listening.close)
        listening.listen()
        senders, receivers = [], []
        for _ in range(self.connections):
            senders.append(open_(self.network.client, Network.atClient[0], kind=socket.SOCK_STREAM))
            senders[-1].connect(listening.getsockname())
            senders[-1].setblocking(False)
            receivers.append(listening.accept()[0])
        self.addCleanup(closeAll, senders + receivers)
        return senders, receivers

    def flows(self) -> list[socket.socket]:
        """Applications enough for each link to have some."""
        sockets = [open_(self.network.client, LOOPBACK) for _ in range(2 * self.connections)]
        self.addCleanup(closeAll, sockets)
        for udp in sockets:
            udp.connect((LOOPBACK, FORWARD))
            udp.setblocking(False)
        return sockets

    def carried(self, plain: tuple[list[socket.socket], list[socket.socket]], sink: socket.socket) -> tuple[int, int]:
        """What came in one round, by us and by plain connections beside us."""
        (senders, receivers), flows = plain, self.flows()
        ours: list[int] = []
        theirs: list[int] = []
        threads = [
            threading.Thread(target=self.drain, args=([sink], ours)),
            threading.Thread(target=self.drain, args=(receivers, theirs)),
            threading.Thread(target=self.feed, args=(senders, bytes(1 << 16), 0.001)),
            threading.Thread(target=self.feed, args=(flows, bytes(1400), 0.002)),
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return sum(ours), sum(theirs)

    def test_loss(self) -> None:
        """
        The links stay for 10 s, instead of a minute, and carry at least 80 % of what as many TCP connections do.

        Both run at the same time. One round in forty is under it by chance;
        then further ones are added, and all of them together count.
        """
        before, plain = self.connected(), self.plain()
        sink = open_(self.network.target, TARGET, ECHO)
        self.addCleanup(sink.close)
        ours = theirs = 0
        lossy = "input tcp dport != 0 numgen random mod 100 < 30 drop"
        with filtering(self.network.server, lossy), filtering(self.network.client, lossy):
            for _ in range(self.rounds):
                ours, theirs = (a + b for a, b in zip((ours, theirs), self.carried(plain, sink), strict=True))
                self.assertEqual(self.connected(), before)
                if ours > self.share * theirs:
                    break
        self.assertGreater(ours, self.share * theirs)


class BadWireTests(FaultTestCase):
    """A long wire on which packets overtake each other, come twice, and are damaged."""

    options = "--heartbeat", "1"
    seconds = 2.5
    share = 0.1

    def startNear(self) -> Program:
        program = self.start(
            self.network.client, *Wire.command(self.network.client, self.network.server), stdin=subprocess.PIPE
        )
        self.wire = Wire(program)
        self.server.kill()
        self.server = self.startServer(*self.options, host=ENDS[1])
        words = "--forward", self.rule, *self.options
        return self.startLocal(*words, server=f"tcp:{ENDS[1]}:{LINK}").says("is up")

    def test_content(self) -> None:
        """
        Whatever is delivered is whole, and there once.

        Delays of 50 ms, 10 ms more or less, a quarter of the packets out of
        order, 1 % twice, 0.1 % damaged. Some of a flow of 3 Mbit/s gets through.
        """
        self.wire.set(delay=50, jitter=10, reorder=0.25, duplicate=0.01, corrupt=0.001)
        stream = self.stream(rate=1000, size=400)
        time.sleep(self.seconds)
        self.assertSound(stream)
        self.assertGreater(len(stream.far.all), self.share * stream.sent)
        self.assertGreater(len(stream.near.all), self.share * len(stream.far.all))


FLOODED = FORWARD + 1
"""A second forward, to the second target port."""

FLOOD_RATE, FLOOD_BYTES = 10_000, 1400
MOST_GROWTH = 8 << 20
LATENCY_SECONDS, RECOVERY_SECONDS = 0.1, 2.0


class ClogTests(DefaultTestCase):
    """An end of the link, or its wire, takes nothing or next to nothing, while 10,000 datagrams a second come."""

    alone = True
    programs = "nft", "ss", "tc"
    rule2 = f"{LOOPBACK}:{FLOODED}={TARGET}:{OTHER}"

    def startNear(self) -> Program:
        return self.startLocal("--forward", self.rule, "--forward", self.rule2).says("is up")

    def setUp(self) -> None:
        super().setUp()
        self.calm = self.stream(rate=100)
        self.far = open_(self.network.target, TARGET, OTHER)
        self.near = open_(self.network.client, LOOPBACK)
        self.addCleanup(closeAll, [self.far, self.near])
        self.near.sendto(b"here I am", (LOOPBACK, FLOODED))
        _, self.external = self.far.recvfrom(100)

    def flood(self, source: Namespace, here: tuple[str, int], to: tuple[str, int], seconds: float) -> None:
        """Have another process send from one address to another."""
        words = (*here, *to, FLOOD_BYTES, FLOOD_RATE, seconds)
        self.start(source, sys.executable, "-m", "tests.system.stream", *map(str, words))

    def floodThere(self, seconds: float) -> None:
        """Flood udp-local."""
        self.flood(self.network.client, (LOOPBACK, 0), (LOOPBACK, FLOODED), seconds)
        until(lambda: self.far.recv(FLOOD_BYTES), "nothing comes")

    def floodBack(self, seconds: float) -> None:
        """Flood udp-server, from the port that it has sent to."""
        self.far.close()
        self.flood(self.network.target, (TARGET, OTHER), self.external, seconds)
        until(lambda: self.near.recv(FLOOD_BYTES), "nothing comes")

    @contextmanager
    def stopped(self, program: Program) -> Iterator[None]:
        program.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            program.process.send_signal(signal.SIGCONT)

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """The wire to udp-server takes 8 kbit/s."""
        words = "dev", "up0", "root", "tbf", "burst", "3200", "limit", "30000", "rate"
        run(*self.network.client.command("tc", "qdisc", "add", *words, "8kbit"))
        try:
            yield
        finally:
            run(*self.network.client.command("tc", "qdisc", "change", *words, "1gbit"))

    def assertBounded(self, program: Program, seconds: float) -> None:
        """A program does not keep what it can not send."""
        before, end = residentBytes(program), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            self.assertLess(residentBytes(program) - before, MOST_GROWTH)

    def isPrompt(self, since: float) -> bool:
        """Whether nothing that has arrived lately at both ends was late, and all of it was sent after a moment."""
        lately = [each for arrivals in (self.calm.far, self.calm.near) for each in arrivals.all[-10:]]
        return all(each.age < LATENCY_SECONDS and each.at - each.age > since for each in lately)

    def assertRecovers(self, links: frozenset[tuple[str, str]]) -> None:
        """Within two seconds nothing comes late any more, over the same link."""
        now = time.monotonic()
        until(lambda: self.isPrompt(now), "datagrams are late", RECOVERY_SECONDS)
        self.assertEqual(self.connected(), links)

    def assertFresh(self) -> None:
        """Nothing has ever come that was older than a second."""
        self.assertLess(max(self.calm.far.oldest, self.calm.near.oldest), 1.0)

    def test_stoppedServer(self) -> None:
        """
        udp-server sleeps for 5 s, instead of a minute: udp-local keeps little, and goes on with what is new.

        What the kernel has taken for udp-server meanwhile is delivered to nobody.
        """
        links = self.connected()
        self.floodThere(8)
        with self.stopped(self.server):
            self.assertBounded(self.local, 5)
        self.assertRecovers(links)
        self.assertFresh()

    def test_stoppedLocal(self) -> None:
        """
        udp-local sleeps for 4 s, instead of a minute: udp-server keeps little, and goes on with what is new.

        Neither answers nor questions that the kernel has taken meanwhile are delivered.
        """
        links = self.connected()
        self.floodBack(7)
        with self.stopped(self.local):
            self.assertBounded(self.server, 4)
        self.assertRecovers(links)
        self.assertFresh()

    def test_slow(self) -> None:
        """The link takes 8 kbit/s for 2 s: udp-local keeps little, and goes on with what is new."""
        links = self.connected()
        self.floodThere(5)
        with self.slowed():
            self.assertBounded(self.local, 2)
        self.assertRecovers(links)


CROWD = 100
LOGIN_SECONDS = 3.0
"""For another udp-local to start and log in."""

DESCRIPTORS = 64


class DescriptorTests(FaultTestCase):
    """udp-server may have 64 descriptors, and 100 come."""

    programs = "nft", "ss", "prlimit"
    options = "--heartbeat", "1"
    share = 0.2
    """Of one processor's time, that a role may use while it has no descriptors."""

    def startServer(self, *options: str, host: str = Network.atServer[0], rules: bool = True) -> Program:
        words = "--listen", f"tcp:{LINK}:interface={host}", "--insecure-no-auth", "--allow", f"{TARGET}/32", *options
        program = self.start(
            self.network.server, "prlimit", f"--nofile={DESCRIPTORS}", *TWISTD, "udp-server", *words
        ).listens(LINK)
        self.addCleanup(self.assertCalm, program)
        return program

    def another(self) -> Program:
        """One more udp-local."""
        server = "--server", f"tcp:{Network.atServer[0]}:{LINK}"
        return self.start(self.network.client, *TWISTD, "udp-local", "--socks", "none", *server, *self.options)

    def assertAtRest(self, busy: Callable[[], None]) -> None:
        """While something is done over and over, udp-server has time left."""
        began, used = time.monotonic(), processorSeconds(self.server)
        while time.monotonic() < began + 1.5:
            busy()
            time.sleep(0.1)
        self.assertLess(processorSeconds(self.server) - used, self.share * (time.monotonic() - began))

    def associate(self) -> SocksClient:
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        return client

    def test_flows(self) -> None:
        """A hundred flows leave room for logins and for the flows before them; when they have gone, others come."""
        stream = self.stream(rate=50)
        clients = [self.associate() for _ in range(CROWD)]

        def send() -> None:
            for client in clients:
                client.send((TARGET, ECHO), b"is there room?")

        self.assertAtRest(send)
        self.assertFlows(stream, 1)
        self.assertLess(self.server.descriptors(), DESCRIPTORS)
        another = self.another()
        until(lambda: "is up" in another.said, "there is no room for a login", LOGIN_SECONDS)
        closeAll([client.control for client in clients])
        echoed = self.associate()
        echoed.udp.settimeout(0.2)
        stream.stop()
        with closing(Echo(self.network.target, (TARGET, ECHO))):
            until(lambda: self.isServed(echoed), "nobody is served although there is room", 5)

    def isServed(self, client: SocksClient) -> bool:
        try:
            return client.exchange((TARGET, ECHO), b"!") == ((TARGET, ECHO), b"!")
        except TimeoutError:
            return False

    def test_connections(self) -> None:
        """A hundred connections that say nothing leave the link as it is, and room for another login."""
        stream = self.stream(rate=50)
        links = self.connected()
        silent = [open_(self.network.client, Network.atClient[0], kind=socket.SOCK_STREAM) for _ in range(CROWD)]
        self.addCleanup(closeAll, silent)
        for each in silent:
            each.connect((Network.atServer[0], LINK))
        self.assertAtRest(lambda: None)
        self.assertFlows(stream, 1)
        self.assertLessEqual(links, self.connected())
        another = self.another()
        until(lambda: "is up" in another.said, "there is no room for a login", LOGIN_SECONDS)
        self.assertSound(stream)


class SilentNameServerTests(FaultTestCase):
    """The name server of udp-server takes questions, and does not answer."""

    names = 30
    seconds = 1.5
    latency = 0.05

    def setUp(self) -> None:
        super().setUp()
        self.questions = open_(self.network.target, TARGET, 53)
        self.addCleanup(self.questions.close)

    def test_others(self) -> None:
        """Datagrams to thirty names do not delay those of anybody else: 99 % have 50 ms at most."""
        stream = self.stream(rate=200)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        moment = time.monotonic()
        for turn in range(int(self.seconds / 0.25)):
            for number in range(self.names):
                client.send((f"n{turn}-{number}.silent.test", ECHO), b"who are you?")
            time.sleep(0.25)
        self.assertIn(b"silent", self.questions.recv(512))
        for arrivals in (stream.far, stream.near):
            ages = sorted(each.age for each in arrivals.since(moment))
            self.assertGreater(len(ages), 0.98 * 200 * self.seconds)
            self.assertLess(ages[int(0.99 * len(ages))], self.latency)
