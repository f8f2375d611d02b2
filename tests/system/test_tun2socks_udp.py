"""tun2socks and datagrams: DNS, long ones, full cone, ICMP, and a server for UDP alone."""

from __future__ import annotations

import errno
import json
import select
import socket
import subprocess
from collections.abc import Iterable

from tests.system.clients import LARGEST, Echo, closeAll, open_
from tests.system.namespaces import Network
from tests.system.programs import ECHO, Program, until
from tests.system.tunnelled import STORE, WEB, Filter, TunnelledTestCase, store
from tests.system.watch import residentBytes

TARGET, TARGET6 = Network.atTarget
LOOPBACK = "127.0.0.1"
SIZES = (0, 1, 1400, 1472, 1473, 9000, 65485)
"""Of payloads: around what fits into one packet, and the most that fits behind a SOCKS5 header with an IPv6 address."""

SOURCES = 1000
RATE, DATAGRAM, STREAM_SECONDS = 30_000_000, 1400, 8
"""Bits a second, bytes of each datagram, and so long that what is under way in the end does not count for much."""


class UdpTestCase(TunnelledTestCase):
    """With targets that send everything back."""

    programs = "nft", "microsocks"

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(self.network.target, *((host, ECHO) for host in (*Network.atTarget, *Network.third)))
        self.addCleanup(self.echo.close)

    def udp(self, host: str = TARGET) -> socket.socket:
        """A UDP socket of the client's."""
        return self.client(host, socket.SOCK_DGRAM)

    def exchange(self, udp: socket.socket, host: str, payload: bytes, port: int = ECHO) -> None:
        """A datagram gets to a target and comes back, from that target."""
        udp.sendto(payload, (host, port))
        got, source = udp.recvfrom(LARGEST)
        self.assertEqual((source[:2], len(got), got), ((host, port), len(payload), payload))

    def assertEchoes(self, *hosts: str) -> None:
        for host in hosts or Network.atTarget:
            self.exchange(self.udp(host), host, b"hello")


class DatagramTests(UdpTestCase):
    """Datagrams through both ends of ours."""

    def assertSizes(self) -> None:
        for host in Network.atTarget:
            udp = self.udp(host)
            for size in SIZES:
                try:
                    self.exchange(udp, host, bytes(place * 7 % 251 for place in range(size)))
                except TimeoutError:
                    self.fail(f"{size} bytes do not come back from {host}")

    def test_sizes(self) -> None:
        """Datagrams of all lengths go there and back, over IPv4 and IPv6; long ones are fragments on their way."""
        self.startWithUdp()
        self.assertSizes()

    def test_withoutOffload(self) -> None:
        """Without offload, too."""
        self.startWithUdp("--tun-offload", "none", "--offload", "none")
        self.assertSizes()

    def test_netns(self) -> None:
        """With a namespace of its own for TCP, too."""
        self.startWithUdp("--stack", "netns")
        self.assertSizes()

    def test_segments(self) -> None:
        """What an application hands the kernel as one message arrives as the datagrams that it is."""
        self.startWithUdp()
        for host in Network.atTarget:
            udp = self.udp(host)
            udp.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
            payload = bytes(place * 7 % 251 for place in range(20_500))
            udp.sendto(payload, (host, ECHO))
            got = [udp.recv(LARGEST) for _ in range(21)]
            self.assertEqual([len(each) for each in got], [1000] * 20 + [500])
            self.assertEqual(b"".join(got), payload)

    def test_dante(self) -> None:
        """Through Dante, which carries TCP and UDP."""
        self.startDante()
        self.addCleanup(self.addStore().close)
        self.startTun()
        self.assertEchoes(TARGET)
        with self.client(TARGET) as client:
            client.connect((TARGET, STORE))
            store(client, 1 << 20)

    def test_ownProcess(self) -> None:
        """An answer comes from the address that the datagram went to, also for a connected socket."""
        self.startWithUdp()
        for host in Network.atTarget:
            udp = self.udp(host)
            udp.connect((host, ECHO))
            udp.send(b"connected")
            self.assertEqual(udp.recv(LARGEST), b"connected")

    def test_noUdp(self) -> None:
        """A server that carries no UDP is said to in the log, and clients are told; TCP works all the same."""
        self.startMicrosocks()
        self.addCleanup(self.addStore().close)
        tun = self.startTun()
        udp = self.udp()
        udp.connect((TARGET, ECHO))

        def refused() -> bool:
            try:
                udp.send(b"is anybody there?")
                udp.recv(1)
            except (ConnectionRefusedError, OSError) as error:
                return error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
            return False

        until(refused, "nobody says that there is no way")
        self.assertIn("carries no UDP for us", tun.said)
        self.assertStored()


class ConeTests(UdpTestCase):
    """One source of a client's is one external port, open to the whole world."""

    programs = "nft", "microsocks", "turnserver", "turnutils_natdiscovery"

    def test_stun(self) -> None:
        """The STUN client of coturn finds a mapping and a filter that do not depend on the endpoint (RFC 5780)."""
        words = "--listening-ip", TARGET, "--listening-ip", Network.third[0], "--relay-ip", TARGET, "--stun-only"
        quiet = "--no-cli", "--no-tls", "--no-dtls", "--no-tcp", "--no-tcp-relay", "--log-file=stdout", "--no-auth"
        more = "--userdb", str(self.folder / "turndb"), "--pidfile", str(self.folder / "turn.pid")
        turn = self.start(self.network.target, "turnserver", "-n", *words, *quiet, *more)
        turn.listens(3479, "udp")
        self.startWithUdp()
        said = self.ask(self.network.client, "turnutils_natdiscovery", "-m", "-f", TARGET)
        self.assertIn("NAT with Endpoint Independent Mapping!", said)
        self.assertIn("NAT with Endpoint Independent Filtering!", said)

    def test_manyTargets(self) -> None:
        """What one socket sends to several targets comes from one port; strangers reach it, too."""
        self.startWithUdp()
        udp = self.udp()
        for host in (TARGET, Network.third[0]):
            self.exchange(udp, host, b"hello")
        ((host, port),) = self.echo.sources
        stranger = open_(self.network.target, Network.third[0])
        self.addCleanup(stranger.close)
        stranger.sendto(b"and here am I", (host, port))
        self.assertEqual(udp.recvfrom(LARGEST), (b"and here am I", stranger.getsockname()))

    def test_manySources(self) -> None:
        """Each of a thousand sources has a port of its own, and gets its own answer; memory is bounded."""
        self.allowDescriptors()
        tun = self.startWithUdp("--udp-idle", "5")
        self.assertEchoes()
        memory = residentBytes(tun)
        sockets = [open_(self.network.client, "0.0.0.0") for _ in range(SOURCES)]
        self.addCleanup(closeAll, sockets)
        waiting = {udp: b"%d" % number for number, udp in enumerate(sockets)}
        until(lambda: self.exchangeSome(waiting), "some sources get no answer", 60)
        self.assertLess((residentBytes(tun) - memory) / SOURCES, 32 << 10)
        until(lambda: self.report()["udp"]["associations"] == 0, "associations stay", 20)

    def exchangeSome(self, waiting: dict[socket.socket, bytes]) -> bool:
        """Send for each that has no answer yet, no more than a TUN's queue holds; whether all have theirs."""
        for udp in list(waiting)[:500]:
            udp.sendto(waiting[udp], (TARGET, ECHO))
        while readable := _readable(waiting):
            for udp in readable:
                self.assertEqual(udp.recv(LARGEST), waiting.pop(udp))
        return not waiting

    def test_bound(self) -> None:
        """There are never more associations than allowed; who was silent longest makes room."""
        self.startWithUdp("--max-associations", "10")
        for _ in range(30):
            self.exchange(self.udp(), TARGET, b"hello")
            self.assertLessEqual(self.report()["udp"]["associations"], 10)


def _readable(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Those that something comes for soon; there may be more of them than select takes."""
    poll, byNumber = select.poll(), {each.fileno(): each for each in sockets}
    for number in byNumber:
        poll.register(number, select.POLLIN)
    return [byNumber[number] for number, _ in poll.poll(500)]


class NameTests(UdpTestCase):
    """DNS."""

    programs = "nft", "microsocks", "dnsmasq", "dig", "curl"

    def setUp(self) -> None:
        super().setUp()
        records = f"--host-record=www.tunnel.test,{TARGET},{TARGET6}"
        self.dnsmasq = self.startNameServer(records, f"--host-record=four.tunnel.test,{TARGET}")

    def dig(self, server: str, *words: str) -> list[str]:
        options = "+short", "+tries=1", "+time=5"
        return self.ask(self.network.client, "dig", f"@{server}", *words, *options).split()

    def test_dig(self) -> None:
        """A question to a name server beyond the TUN is answered, over UDP and over TCP."""
        self.startWithUdp()
        self.assertEqual(self.dig(TARGET, "www.tunnel.test"), [TARGET])
        self.assertEqual(self.dig(TARGET, "www.tunnel.test", "AAAA", "+tcp"), [TARGET6])

    def test_redirected(self) -> None:
        """With --dns all questions go to one name server, and the answer comes from where the question went."""
        anybody = "192.0.2.53", "2001:db8::53"
        self.startWithUdp("--dns", TARGET, "--route", "192.0.2.0/24", "--route", "2001:db8::/32")
        for server in anybody:
            self.assertEqual(self.dig(server, "www.tunnel.test"), [TARGET])
        self.assertEqual(self.dig(anybody[0], "www.tunnel.test", "AAAA", "+tcp"), [TARGET6])

    def test_fakeNames(self) -> None:
        """With --fake-dns a name reaches the SOCKS5 server as a name, and nobody else is asked for its address."""
        self.addWeb()
        self.startProxy()
        self.network.client.useNameServer("192.0.2.53")
        routes = "--route", "192.0.2.0/24", "--route", "198.18.0.0/15"
        self.startTun("--fake-dns", "198.18.0.0/15", *routes)
        (fake,) = self.dig("192.0.2.53", "www.tunnel.test")
        self.assertRegex(fake, r"^198\.1[89]\.")
        self.assertNotIn("query", self.dnsmasq.said)
        # What microsocks does with a name that has two addresses is not our business.
        self.assertEqual(self.curl(f"http://four.tunnel.test:{WEB}/page"), "This is /page.\n")
        self.assertIn(f"four.tunnel.test from {Network.beforeTarget[0]}", self.dnsmasq.said)

    def test_fakeNamesUdp(self) -> None:
        """Datagrams to a fake address go to the name, and the answer comes from the fake address."""
        self.startWithUdp("--fake-dns", "198.18.0.0/15", "--route", "192.0.2.0/24", "--route", "198.18.0.0/15")
        (fake,) = self.dig("192.0.2.53", "www.tunnel.test")
        self.exchange(self.udp(), fake, b"hello, whoever you are")


class PingTests(UdpTestCase):
    """C{--icmp}."""

    programs = "nft", "microsocks", "ping"

    def ping(self, host: str) -> str:
        words = "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", host
        command = self.network.client.command(*words)
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout

    def assertPings(self, how: str, text: str) -> None:
        """What ping says with this option, of IPv4 and IPv6."""
        tun = self.startTun("--icmp", how)
        for host in Network.atTarget:
            self.assertIn(text, self.ping(host))
        tun.stop()

    def test_modes(self) -> None:
        """It is answered, left alone, or told that there is no way."""
        self.startProxy()
        self.assertPings("reply", "2 received, 0% packet loss")
        self.assertPings("off", "0 received, 100% packet loss")
        self.assertPings("unreachable", "nreachable")

    def test_unknownProtocol(self) -> None:
        """Whoever speaks a protocol that we do not know is told so, at least over IPv4."""
        self.startProxy()
        self.startTun()
        with self.network.client.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
        self.addCleanup(raw.close)
        raw.settimeout(5)
        raw.connect((TARGET, 0))
        raw.send(bytes(12))
        with self.assertRaises(OSError) as caught:
            raw.recv(1)
        self.assertEqual(caught.exception.errno, errno.ENOPROTOOPT)


class TwoServersTests(UdpTestCase):
    """TCP to one ss-local and UDP to another: the way of the first document."""

    programs = "nft", "ss-local", "ss-server"

    def startPair(self, port: int, far: int, *options: str, kind: str = "tcp") -> Program:
        """Start ss-server and ss-local."""
        both = "-s", Network.atServer[0], "-p", str(far), "-k", "secret", "-m", "aes-256-gcm"
        self.start(self.network.server, "ss-server", *both, *options).listens(far, kind)
        local = self.start(self.network.client, "ss-local", *both, "-b", LOOPBACK, "-l", str(port), *options)
        return local.listens(port, kind)

    def test_both(self) -> None:
        """
        Each server sees its own kind alone, also when the second one has a port for TCP, too (-u).

        With -U it has none, so that no association can be asked for: that is flow 5 of L{tests.system.test_chain}.
        """
        self.addCleanup(self.addStore().close)
        self.startPair(1080, 8388)
        self.startPair(1081, 8389, "-u", kind="udp")
        seen = {f"{kind}{port}": f"{kind} dport {port}" for kind in ("tcp", "udp") for port in (8388, 8389)}
        counted = Filter(self.network.server, **seen)
        self.startTun("--udp-socks-server-addr", f"{LOOPBACK}:1081", proxy=f"{LOOPBACK}:1080")
        for host in Network.atTarget:
            with self.client(host) as client:
                client.connect((host, STORE))
                store(client, 1 << 20)
            self.exchange(self.udp(host), host, bytes(1200))
        self.assertGreater(counted["tcp8388"], 0)
        self.assertGreater(counted["udp8389"], 0)
        self.assertEqual((counted["udp8388"], counted["tcp8389"]), (0, 0))


class StreamTests(UdpTestCase):
    """A steady stream."""

    alone = True
    programs = "nft", "microsocks", "iperf3"

    def test_iperf(self) -> None:
        """Of 30 Mbit/s in datagrams of 1400 bytes less than 1 % is lost, in either direction."""
        self.start(self.network.target, "iperf3", "-s", "-B", TARGET).listens(5201)
        self.startWithUdp()
        for direction in ((), ("-R",)):
            words = "-u", "-b", str(RATE), "-l", str(DATAGRAM), "-t", str(STREAM_SECONDS), *direction
            total = json.loads(self.ask(self.network.client, "iperf3", "-J", "-c", TARGET, *words))["end"]["sum"]
            self.assertGreater(total["packets"] * DATAGRAM * 8 / total["seconds"], 0.9 * RATE)
            self.assertLess(total["lost_percent"], 1.0)
