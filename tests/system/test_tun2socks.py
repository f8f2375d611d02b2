"""tun2socks and TCP: what a client behind the TUN sees of its targets, through real SOCKS5 servers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import resource
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.system.namespaces import Network
from tests.system.programs import SECONDS, until
from tests.system.tunnelled import (
    CLOSED,
    DEVICE,
    PROXY,
    STORE,
    WEB,
    Filter,
    Store,
    TunnelledTestCase,
    block,
    digestOf,
    store,
    wiring,
)
from tests.system.watch import filtering, processorSeconds, residentBytes

TARGET, TARGET6 = Network.atTarget
UNREACHABLE = "10.77.2.99", "fd77:2::99"
"""In the networks of the target, but the server has a route that says that nobody is there."""

SOON = 3.0
"""Seconds within which a client is told no; a SYN that nobody answers is sent again after one."""

PAGES, AT_ONCE = 300, 50
HELD = 1000
FEW = 900
MEGABYTE = 1 << 20
FIREWALL = "input ct state established,related accept", "input drop"
"""What lets in nothing that nobody inside has asked for."""

NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH)


class TcpTestCase(TunnelledTestCase):
    """With targets, and a SOCKS5 server for TCP."""

    programs = "nft", "microsocks", "danted", "curl"

    def setUp(self) -> None:
        super().setUp()
        self.store = self.addStore()
        for host in UNREACHABLE:
            self.network.server.ip("route", "add", "unreachable", host)

    def connectError(self, host: str, port: int = CLOSED) -> int | None:
        """What a client is told that connects; it has to be told soon."""
        begin = time.monotonic()
        with self.client(host) as client:
            error = client.connect_ex((host, port))
        self.assertLess(time.monotonic() - begin, SOON)
        return error

    def assertErrors(self) -> None:
        """What can not be reached is refused in the right way, over IPv4 and IPv6."""
        for host in Network.atTarget:
            self.assertEqual(self.connectError(host), errno.ECONNREFUSED, host)
        for host in UNREACHABLE:
            self.assertIn(self.connectError(host), NO_WAY, host)
        self.assertSilence()

    def assertSilence(self) -> None:
        """Where nobody answers the client hears nothing, and gives up when it likes."""
        with filtering(self.network.target, f"input tcp dport {CLOSED} drop"):
            for host in Network.atTarget:
                client = self.client(host)
                client.settimeout(1.5)
                self.assertRaises(TimeoutError, client.connect, (host, CLOSED))


class TransferTests(TcpTestCase):
    """Bytes there and back."""

    alone = True

    def assertTransfers(self) -> None:
        """Some megabytes each way arrive as they were sent."""
        self.assertStored(20 * MEGABYTE)
        self.assertEqual(len(self.store.clients), 2)

    def test_proxy(self) -> None:
        """Through a SOCKS5 server, over IPv4 and IPv6."""
        self.startProxy()
        self.assertIn("by stack tun", self.startTun().said)
        self.assertTransfers()

    def test_halfClosed(self) -> None:
        """That a client has said all reaches its target, with either stack, and the answer still comes."""
        self.startDante()
        for stack in ("tun", "netns"):
            tun = self.startTun("--stack", stack)
            self.assertStored(MEGABYTE, halfClose=True)
            tun.stop()

    def test_netns(self) -> None:
        """With a namespace of its own for TCP."""
        self.startProxy()
        self.assertIn("by stack netns", self.startTun("--stack", "netns").said)
        self.assertTransfers()

    def test_withoutOffload(self) -> None:
        """Without any offload, with either stack; the log says that there is none."""
        self.startProxy()
        for stack in ("tun", "netns"):
            tun = self.startTun("--tun-offload", "none", "--stack", stack)
            self.assertRegex(tun.said, f"TUN {DEVICE} with none.* by stack {stack}")
            self.assertTransfers()
            self.assertEqual(self.report()["tunOffload"], "none")
            tun.stop()
            self.store.clients.clear()

    def test_olderKernels(self) -> None:
        """With the offloads of kernels before Linux 6.2."""
        self.startProxy()
        self.startTun("--tun-offload", "vnet,tso")
        self.assertTransfers()

    def test_oursForBoth(self) -> None:
        """udp-local relays CONNECT to another server, so that it can be the only server."""
        self.startProxy()
        proxy = self.startUdpProxy("--connect-via", f"{Network.atServer[0]}:{PROXY}")
        self.startTun(proxy=proxy)
        self.assertTransfers()

    def test_smallMtu(self) -> None:
        """With the least MTU that IPv6 allows, and with one larger than that of any wire."""
        self.startProxy()
        for mtu in ("1280", "65535"):
            tun = self.startTun("--mtu", mtu)
            self.assertTransfers()
            tun.stop()
            self.store.clients.clear()


class RefusalTests(TcpTestCase):
    """Targets that can not be reached. The client is never connected to what there is not."""

    def setUp(self) -> None:
        super().setUp()
        # It says why it does not reach a target; hev-socks5-server has one answer for all.
        self.startMicrosocks()

    def test_errors(self) -> None:
        """A refused, an unreachable and a silent target look as if there were no proxy; then all still works."""
        self.startTun()
        self.assertErrors()
        self.assertStored()

    def test_netns(self) -> None:
        """It is the same with a namespace of its own for TCP."""
        self.startTun("--stack", "netns")
        self.assertErrors()
        self.assertStored()

    def test_happyEyeballs(self) -> None:
        """curl goes on to IPv4 at once if a name's IPv6 address can not be reached, or refuses."""
        self.startTun()
        self.addWeb()
        patient = "--happy-eyeballs-timeout-ms", "60000"
        for dead in (UNREACHABLE[1], TARGET6):
            resolve = "--resolve", f"www.tunnel.test:{WEB}:[{dead}],{TARGET}"
            begin = time.monotonic()
            page = self.curl(*patient, *resolve, f"http://www.tunnel.test:{WEB}/page")
            self.assertEqual(page, "This is /page.\n")
            self.assertLess(time.monotonic() - begin, SOON)

    def test_early(self) -> None:
        """With --early-accept the client is connected before, and is told then."""
        self.startTun("--early-accept")
        self.assertStored(MEGABYTE)
        client = self.client(TARGET)
        # Either is the end: it is closed, or reset, perhaps before we get to look. A refusal would be another error.
        with contextlib.suppress(ConnectionResetError):
            client.connect((TARGET, CLOSED))
            self.assertEqual(client.recv(1), b"")

    def test_abandoned(self) -> None:
        """Connections of clients that give up while nobody answers are forgotten, also at the SOCKS5 server."""
        tun = self.startTun()
        before = tun.descriptors()
        with filtering(self.network.target, f"input tcp dport {CLOSED} drop"), ExitStack() as undo:
            for _ in range(20):
                client = undo.enter_context(self.client(TARGET))
                client.setblocking(False)
                self.assertEqual(client.connect_ex((TARGET, CLOSED)), errno.EINPROGRESS)
            until(lambda: tun.descriptors() >= before + 20, "nobody is being tried")
        self.assertStored()


class ServerTests(TcpTestCase):
    """The SOCKS5 server itself."""

    def test_absent(self) -> None:
        """Without a SOCKS5 server clients are told so; once there is one, it works, and nobody has to do anything."""
        tun = self.startTun()
        self.assertIn(self.connectError(TARGET, STORE), (errno.ECONNREFUSED, *NO_WAY))
        self.startProxy()
        self.assertStored()
        self.assertIsNone(tun.process.poll())

    def test_password(self) -> None:
        """A name and a password are told to the server; the password may be in a file."""
        self.startMicrosocks("-u", "alice", "-P", "wonder:land")
        file = self.folder / "password"
        file.write_text("wonder:land\n")
        for words in (("--password", "wonder:land"), ("--password-file", str(file))):
            tun = self.startTun("--username", "alice", *words)
            self.assertStored()
            tun.stop()

    def test_wrongPassword(self) -> None:
        """A wrong one is said in the log, without the password; clients are told that there is no way."""
        self.startMicrosocks("-u", "alice", "-P", "wonderland")
        tun = self.startTun("--username", "alice", "--password", "looking-glass")
        self.assertIn(self.connectError(TARGET, STORE), (errno.ECONNREFUSED, *NO_WAY))
        until(
            lambda: f"{Network.atServer[0]}:{PROXY}" in tun.said.partition("tun2socks: TUN")[2],
            "the log does not say so",
        )
        self.assertNotIn("looking-glass", tun.said)

    def test_restarted(self) -> None:
        """The server may be killed and started again; what was open ends, and what comes is carried."""
        proxy = self.startProxy()
        self.startTun()
        client = self.client(TARGET)
        client.connect((TARGET, STORE))
        proxy.kill()
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(client.recv(1), b"")
        self.startProxy()
        self.assertStored()


class ManyTests(TcpTestCase):
    """Many connections."""

    alone = True

    def setUp(self) -> None:
        super().setUp()
        self.allowDescriptors()
        # hev-socks5-server closes some of many connections.
        self.startMicrosocks()
        self.tun = self.startTun()
        self.assertStored()
        until(lambda: self.connections() == 0, "a connection stays")
        self.atStart = self.tun.descriptors()

    def connections(self) -> int:
        """How many are open, or being opened."""
        figures = self.report()["tcp"]
        return int(figures["open"] + figures["opening"])

    def assertAllGone(self) -> None:
        """Everything is closed that was opened."""
        until(lambda: self.tun.descriptors() <= self.atStart, f"{self.tun.descriptors()}, not {self.atStart}")
        self.assertEqual(self.connections(), 0)

    def test_pages(self) -> None:
        """Of many small pages, fetched many at a time, none is missing; then all is closed, and memory hardly grows."""
        self.addWeb()
        pages = "--parallel", "--parallel-immediate", "--parallel-max", str(AT_ONCE)
        memory = 0
        for _ in range(2):
            got = self.curl("--no-progress-meter", *pages, f"http://{TARGET}:{WEB}/[1-{PAGES}]")
            self.assertEqual(sorted(got.splitlines()), sorted(f"This is /{number}." for number in range(1, PAGES + 1)))
            self.assertAllGone()
            memory, before = residentBytes(self.tun), memory
        self.assertLess(memory - before, 4 * MEGABYTE)

    def hold(self, meanwhile: Callable[[], None]) -> None:
        """Open many connections; each is its own, before and after something else is looked at."""
        with ExitStack() as undo:
            clients = [undo.enter_context(self.client(TARGET)) for _ in range(HELD)]
            for number, client in enumerate(clients):
                client.connect((TARGET, STORE))
                client.sendall(len(b"%d!" % number).to_bytes(8, "big") + b"%d" % number)
            until(lambda: self.connections() == HELD, f"{self.connections()} connections")
            meanwhile()
            for number, client in enumerate(clients):
                client.sendall(b"!")
                sent = b"%d!" % number
                expected = block(len(sent)) + hashlib.sha256(sent).digest()
                self.assertEqual(digestOf(client), (hashlib.sha256(expected).digest(), len(expected)))

    def test_held(self) -> None:
        """A thousand connections are held, each of them its own; a connection costs less than 32 KiB."""
        memory = residentBytes(self.tun)
        self.hold(lambda: self.assertLess((residentBytes(self.tun) - memory) / HELD, 32 << 10))
        self.assertAllGone()

    def test_fewDescriptors(self) -> None:
        """A thousand are held with descriptors for less than half of them, by workers; with tun2socks they end."""
        number = self.tun.process.pid
        resource.prlimit(number, resource.RLIMIT_NOFILE, (FEW, FEW))
        self.hold(lambda: self.assertLess(self.tun.descriptors(), FEW))
        until(lambda: self.connections() == 0, "a connection stays")
        workers = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        self.assertEqual(len(workers), self.report()["tcp"]["workers"])
        self.assertGreater(len(workers), 0)
        self.tun.process.terminate()
        until(lambda: not any(Path(f"/proc/{each}").exists() for each in workers), "a worker stays")

    def test_refused(self) -> None:
        """A port scan leaves nothing behind."""
        for port in range(20_000, 20_300):
            self.assertEqual(self.connectError(TARGET, port), errno.ECONNREFUSED)
        self.assertAllGone()
        self.assertStored()

    def test_reset(self) -> None:
        """A RST of either end reaches the other one."""
        with self.client(TARGET) as client:
            client.connect((TARGET, STORE))
            until(lambda: len(self.store.clients) == 3, "the target is not reached")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.assertAllGone()


class FirewallTests(TcpTestCase):
    """A machine whose firewall drops all that comes in and was not asked for."""

    def setUp(self) -> None:
        super().setUp()
        # It says why it does not reach a target; hev-socks5-server has one answer for all.
        self.startMicrosocks()
        undo = ExitStack()
        undo.enter_context(filtering(self.network.client, *FIREWALL))
        self.addCleanup(undo.close)

    def test_auto(self) -> None:
        """The self-test says why one stack does not work, and chooses the other one, with which all is as before."""
        tun = self.startTun()
        self.assertIn("stack tun does not work", tun.said)
        self.assertIn("by stack netns", tun.said)
        self.assertStored(20 * MEGABYTE)
        self.assertErrors()
        self.addWeb()
        self.assertEqual(self.curl(f"http://{TARGET}:{WEB}/page"), "This is /page.\n")

    def test_chosen(self) -> None:
        """If somebody has chosen the stack that does not work, the role ends with status 1 and says why."""
        tun = self.launchTun("--stack", "tun")
        self.assertEqual(tun.process.wait(SECONDS), 1)
        self.assertIn("firewall", tun.said.splitlines()[-1])


class WiringTests(TcpTestCase):
    """What is changed on the machine, and changed back."""

    def setUp(self) -> None:
        super().setUp()
        self.startProxy()
        self.network.client.ip("route", "add", "default", "via", Network.atServer[0])
        self.network.client.ip("route", "add", "default", "via", Network.atServer[1])
        self.before = wiring(self.network.client)

    def assertAsBefore(self) -> None:
        """Nothing of it is left."""
        self.assertEqual(wiring(self.network.client), self.before)

    def test_stopped(self) -> None:
        """When it is stopped all routes, rules, devices and filters are what they were before."""
        for words in ((), ("--auto-route",), ("--auto-route", "--stack", "netns")):
            tun = self.startTun(*words)
            self.assertStored()
            self.assertNotEqual(wiring(self.network.client), self.before)
            tun.stop()
            self.assertAsBefore()

    def test_killed(self) -> None:
        """After a kill -9 the next start and stop leave nothing of either."""
        for words in ((), ("--auto-route",), ("--auto-route", "--stack", "netns")):
            tun = self.startTun(*words)
            self.assertStored()
            tun.kill()
            tun = self.startTun(*words)
            self.assertStored()
            tun.stop()
            self.assertAsBefore()

    def test_deleted(self) -> None:
        """When the TUN is deleted it is made again, with its routes, or the role ends with status 1; neither spins."""
        tun = self.startTun("--auto-route")
        for _ in range(2):
            self.assertStored()
            used, begin = processorSeconds(tun), time.monotonic()
            self.network.client.ip("link", "del", DEVICE)
            until(lambda: tun.process.poll() is not None or self.isUp(), "the TUN is not made again", 5.0)
            self.assertLess(processorSeconds(tun) - used, 0.5 + (time.monotonic() - begin) / 2)
            if tun.process.poll() is not None:
                self.assertEqual(tun.process.returncode, 1)
                break
            self.assertStored()
        tun.stop()
        self.assertAsBefore()

    def isUp(self) -> bool:
        with contextlib.suppress(RuntimeError):
            return bool(self.report()["up"]) and DEVICE in wiring(self.network.client)
        return False

    def test_everything(self) -> None:
        """--auto-route captures what has no more specific route; the way to the SOCKS5 server stays what it was."""
        far = "203.0.113.7"
        self.network.target.addAddress(f"{far}/32")
        self.network.server.ip("route", "add", far, "via", TARGET)
        self.addCleanup(Store(self.network.target, (far, STORE)).close)
        counted = Filter(self.network.server, captured=f"iifname down0 ip daddr {far}", asked=f"tcp dport {PROXY}")
        self.launchTun("--auto-route", routes=()).says("tun2socks: TUN")
        with self.client(far) as client:
            client.connect((far, STORE))
            store(client, MEGABYTE)
        self.assertEqual(counted["captured"], 0)
        self.assertGreater(counted["asked"], 0)

    def test_serverFarAway(self) -> None:
        """Nor does it capture what goes to a SOCKS5 server that only the default route leads to."""
        with self.network.server.entered(), open("/proc/sys/net/ipv4/ip_forward", "w") as file:
            file.write("1")
        for namespace in (self.network.target,):
            namespace.ip("route", "add", f"{Network.atClient[0]}/32", "via", Network.beforeTarget[0])
        far = "203.0.113.8"
        self.network.target.addAddress(f"{far}/32")
        self.network.server.ip("route", "add", far, "via", TARGET)
        self.start(self.network.target, "microsocks", "-p", str(PROXY)).listens(PROXY)
        for words in ((), ("--fwmark", "77"), ("--stack", "netns")):
            tun = self.launchTun("--auto-route", *words, proxy=f"{far}:{PROXY}", routes=())
            tun.says("tun2socks: TUN")
            with self.client(TARGET) as client:
                client.connect((TARGET, STORE))
                store(client, MEGABYTE)
            tun.stop()

    def test_loop(self) -> None:
        """A SOCKS5 server whose own packets would go into the TUN is refused at the start."""
        tun = self.launchTun("--route", f"{Network.atServer[0]}/32")
        self.assertEqual(tun.process.wait(SECONDS), 1)
        self.assertIn("--socks-server-addr", tun.said.splitlines()[-1])
        self.assertAsBefore()


class OptionTests(TcpTestCase):
    """What is said about wrong command lines."""

    def test_badvpn(self) -> None:
        """A command line for badvpn-tun2socks works as it is, with a TUN that somebody else has made."""
        self.startProxy()
        client = self.network.client
        client.ip("tuntap", "add", "dev", DEVICE, "mode", "tun")
        client.addAddress("10.0.0.1/24", DEVICE)
        client.ip("link", "set", DEVICE, "up")
        client.ip("route", "add", TARGET, "via", "10.0.0.2")
        words = "--netif-ipaddr", "10.0.0.2", "--netif-netmask", "255.255.255.0", "--loglevel", "3", "--socks5-udp"
        self.launchTun(*words, routes=()).says("tun2socks: TUN")
        with self.client(TARGET) as client_:
            client_.connect((TARGET, STORE))
            store(client_, MEGABYTE)
