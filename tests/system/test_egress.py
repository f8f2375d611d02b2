"""udp-server with another egress than its own ports: through a SOCKS5 server, and as packets to tun2socks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import threading
import time

from tests.system.clients import LARGEST, Echo, SocksClient, open_
from tests.system.namespaces import Namespace, Network
from tests.system.programs import ECHO, FORWARD, LINK, REPOSITORY, TWISTD, Program, SystemTestCase, until
from tests.system.test_restart import Pulse
from tests.system.tunnelled import CLOSED, DANTE, DEVICE, PROXY, ROUTES, TunnelledTestCase
from udptunnel.net.tun import IFF_NO_PI, IFF_TUN, LinuxSystem

LOOPBACK = "127.0.0.1"
TARGET, TARGET6 = Network.atTarget
BACK_SECONDS = 5.0
"""Echoes come again this soon after what was missing is started again."""

SIZES = (0, 1, 1400)
"""Of payloads: ss-server sends nothing that would be cut into fragments; Dante does."""


class EgressTestCase(SystemTestCase):
    """A client with udp-local, udp-server, something beyond it, and a target that sends everything back."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(self.network.target, *((host, ECHO) for host in (*Network.atTarget, *Network.third)))
        self.addCleanup(self.echo.close)
        self.pipe = self.folder / "exit.pipe"

    # -- what is beyond udp-server

    def startSsLocal(self) -> Program:
        """A SOCKS5 server for TCP and UDP, beside udp-server."""
        both = "-s", LOOPBACK, "-p", "8388", "-k", "secret", "-m", "aes-256-gcm", "-u"
        words = "ss-local", *both, "-b", LOOPBACK, "-l", str(PROXY)
        return self.start(self.network.server, *words).listens(PROXY).listens(PROXY, "udp")

    def startSsServer(self) -> Program:
        """What it leads to, and the target sees."""
        both = "-s", LOOPBACK, "-p", "8388", "-k", "secret", "-m", "aes-256-gcm", "-u"
        return self.start(self.network.server, "ss-server", *both).listens(8388, "udp")

    def startDante(self) -> Program:
        """Another SOCKS5 server."""
        file = self.folder / "danted.conf"
        file.write_text(DANTE)
        return self.start(self.network.server, "danted", "-f", str(file)).listens(PROXY)

    def launchTun(self, proxy: str = f"{LOOPBACK}:{PROXY}") -> Program:
        """tun2socks, beside udp-server."""
        words = "--pipe", str(self.pipe), "--socks-server-addr", proxy, "--udp-idle", "300"
        return self.start(self.network.server, *TWISTD, "tun2socks", *words)

    def startPiped(self) -> Program:
        """udp-server that sends packets."""
        return self.startServer("--egress", f"pipe:{self.pipe}")

    # -- both ends

    def launchLocal(self) -> Program:
        """udp-local, which waits for the server."""
        server = f"tcp:{Network.atServer[0]}:{LINK}"
        return self.start(self.network.client, *TWISTD, "udp-local", "--server", server)

    def startAll(self, *options: str) -> None:
        """Both ends; they start at the same time."""
        local = self.launchLocal()
        self.startServer(*options)
        local.says("is up")

    # -- flows

    def assertCarried(self, *sizes: int, names: str = "") -> None:
        """Datagrams of all sizes go there and back over both families; answers come from where they went."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        for host in (TARGET, TARGET6):
            for size in sizes or SIZES:
                payload = bytes(place * 7 % 251 for place in range(size))
                source, got = client.exchange((host, ECHO), payload)
                self.assertEqual((source, len(got), got), ((host, ECHO), size, payload))
        if names:
            self.assertEqual(client.exchange((names, ECHO), b"by name")[1], b"by name")

    def assertLongCarried(self) -> None:
        """Datagrams that are fragments on their way come through; Dante has IPv4 alone here."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        for size in (0, 1473, 9000, 60_000):
            payload = bytes(place * 7 % 251 for place in range(size))
            self.assertEqual(client.exchange((TARGET, ECHO), payload), ((TARGET, ECHO), payload))

    def assertCone(self) -> None:
        """What one source sends to two targets comes from one port, and a stranger reaches it there."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        for host in (TARGET, Network.third[0]):
            self.assertEqual(client.exchange((host, ECHO), b"hello"), ((host, ECHO), b"hello"))
        ((host, port),) = self.echo.sources
        stranger = open_(self.network.target, Network.third[0])
        self.addCleanup(stranger.close)
        stranger.sendto(b"and here am I", (host, port))
        self.assertEqual(client.receive(), (stranger.getsockname(), b"and here am I"))

    def startPulse(self) -> None:
        """A udp-local with a forward, and a flow through it that never rests."""
        self.startLocal("--forward", f"{LOOPBACK}:{FORWARD}={TARGET}:{ECHO}")
        udp = open_(self.network.client, LOOPBACK)
        self.addCleanup(udp.close)
        self.pulse = Pulse(udp, (LOOPBACK, FORWARD))
        self.addCleanup(self.pulse.stop)

    def assertBeats(self, what: str) -> None:
        """Something that is sent from now on comes back soon."""
        now = time.monotonic()
        until(lambda: self.pulse.last > now, f"no echo, {what}", BACK_SECONDS)

    def assertDies(self, program: Program) -> None:
        """Kill a program, with its children, and see that nothing comes back any more."""
        os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()
        until(lambda: time.monotonic() - self.pulse.last > 0.3, "echoes come from somewhere")


class SocksTests(EgressTestCase):
    """C{--egress socks5}."""

    programs = "ss-local", "ss-server", "danted"

    def test_shadowsocks(self) -> None:
        """
        Through ss-local and ss-server, names as names; udp-server itself has no port towards the target.

        The cone is as full as the SOCKS5 server's.
        """
        self.start(
            self.network.target,
            *("dnsmasq", "--no-daemon", f"--listen-address={TARGET}", "--bind-interfaces", "--no-resolv"),
            *("--no-hosts", "--conf-file=/dev/null", "--user=root", f"--host-record=www.tunnel.test,{TARGET}"),
        ).listens(53, "udp")
        self.startSsServer()
        self.startSsLocal()
        self.startAll("--egress", f"socks5:{LOOPBACK}:{PROXY}")
        self.assertCarried(names="www.tunnel.test")
        self.echo.received.clear()
        self.assertCone()

    def test_restarted(self) -> None:
        """Each program is killed and started again under traffic; whatever comes last, the flow is back soon."""
        self.startPulse()
        server = self.startServer("--egress", f"socks5:{LOOPBACK}:{PROXY}")
        local = self.startSsLocal()
        far = self.startSsServer()
        self.assertBeats("although the last one has come")
        self.assertDies(far)
        self.startSsServer()
        self.assertBeats("although ss-server is back")
        self.assertDies(local)
        self.startSsLocal()
        self.assertBeats("although ss-local is back")
        self.assertDies(server)
        self.startServer("--egress", f"socks5:{LOOPBACK}:{PROXY}")
        self.assertBeats("although udp-server is back")

    def test_dante(self) -> None:
        """Through Dante, which keeps a control connection for each association, and is killed and started again."""
        dante = self.startDante()
        self.startPulse()
        self.startServer("--egress", f"socks5:{Network.atServer[0]}:{PROXY}")
        self.assertBeats("at first")
        self.assertLongCarried()
        for _ in range(2):
            self.assertDies(dante)
            dante = self.startDante()
            self.assertBeats("although Dante is back")


class PipeTests(EgressTestCase):
    """C{--egress pipe}, and tun2socks with C{--pipe}."""

    programs = "ss-local", "ss-server", "danted"

    def test_carried(self) -> None:
        """Datagrams of all sizes, in packets; the cone is full; the socket is for our own user alone."""
        self.startSsServer()
        self.startSsLocal()
        tun = self.launchTun()
        self.startAll("--egress", f"pipe:{self.pipe}")
        self.assertEqual(stat.S_IMODE(self.pipe.stat().st_mode), 0o600)
        tun.says("the other end is there")
        self.assertCarried()
        self.echo.received.clear()
        self.assertCone()

    def test_long(self) -> None:
        """Long datagrams, each in one packet, and through Dante."""
        self.startDante()
        self.launchTun(proxy=f"{Network.atServer[0]}:{PROXY}")
        self.startAll("--egress", f"pipe:{self.pipe}")
        until(lambda: self.echoes(), "nothing comes through")
        self.assertLongCarried()

    def echoes(self) -> bool:
        """Whether a datagram comes back, now that everything should be there."""
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        client.udp.settimeout(1)
        with contextlib.suppress(TimeoutError):
            client.exchange((TARGET, ECHO), b"is anybody there?")
            return True
        return False

    def test_otherKinds(self) -> None:
        """Over a stream, and over named pipes, which outlive who made them, too; what was made is gone in the end."""
        self.startSsServer()
        self.startSsLocal()
        local = self.launchLocal()
        for program in self.assertCarriedOver("stream", local):
            program.stop()
        server, tun = self.assertCarriedOver("fifo", local)
        server.kill()
        server = self.startServer("--egress", f"pipe-fifo:{self.pipe}")
        tun.says("the other end is there", times=2)
        local.says("is up", times=3)
        self.assertCarried()
        server.stop()
        self.assertEqual(list(self.folder.glob("exit.pipe*")), [])

    def assertCarriedOver(self, kind: str, local: Program) -> tuple[Program, Program]:
        """Datagrams go through a pipe of a kind; both ends of it, which udp-local has found."""
        before = local.said.count("is up")
        words = "--pipe", f"{kind}:{self.pipe}", "--socks-server-addr", f"{LOOPBACK}:{PROXY}", "--stack", "none"
        tun = self.start(self.network.server, *TWISTD, "tun2socks", *words)
        server = self.startServer("--egress", f"pipe-{kind}:{self.pipe}")
        tun.says("the other end is there")
        local.says("is up", times=before + 1)
        self.assertCarried()
        return server, tun

    def test_serverFirst(self) -> None:
        """udp-server may come first, and both may be killed."""
        self.startSsServer()
        self.startSsLocal()
        self.startPulse()
        server = self.startPiped()
        tun = self.launchTun().says("the other end is there")
        self.assertBeats("at first")
        self.assertDies(server)
        tun.kill()
        tun = self.launchTun()
        self.startPiped()
        tun.says("the other end is there")
        self.assertBeats("although both are back")

    def test_tac(self) -> None:
        """The .tac file runs as it is, without root: both roles in one process."""
        self.startSsServer()
        self.startSsLocal()
        source = (REPOSITORY / "tap-configs" / "exit-gateway.tac").read_text()
        # The targets of this test are private; the links come from another machine.
        rules = '"--insecure-no-auth", "--allow", "10.77.2.0/24", "--allow", "fd77:2::/64"'
        listen = '"tcp:3456:interface=127.0.0.1"'
        self.assertIn(listen, source)
        tac = self.folder / "exit-gateway.tac"
        tac.write_text(source.replace(listen, f'"tcp:3456:interface={Network.atServer[0]}", {rules}'))
        local = self.launchLocal()
        program = self.start(self.network.server, *TWISTD, "-y", str(tac)).listens(3456)
        local.says("is up")
        self.assertCarried()
        self.assertCalm(program)


class Pump(threading.Thread):
    """Carries packets between a TUN and whoever connects to a pipe: another program than udp-server at its end."""

    def __init__(self, namespace: Namespace, path: str) -> None:
        super().__init__(daemon=True)
        with namespace.entered():
            self._tun = os.fdopen(LinuxSystem().open(DEVICE, IFF_TUN | IFF_NO_PI), "r+b", buffering=0)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._ending, self._wake = socket.socketpair()
        self.start()

    def run(self) -> None:
        with self._listener.accept()[0] as peer:
            while True:
                readable, _, _ = select.select([peer, self._tun, self._ending], [], [])
                if self._ending in readable:
                    return
                if peer in readable:
                    packet = peer.recv(LARGEST)
                    if not packet:
                        return
                    self._tun.write(packet)
                if self._tun in readable:
                    peer.send(self._tun.read(LARGEST))

    def close(self) -> None:
        """End the thread, and remove the TUN."""
        self._wake.send(b"!")
        self.join()
        for each in (self._tun, self._listener, self._ending, self._wake):
            each.close()


class TcpTests(TunnelledTestCase):
    """TCP that comes out of a pipe."""

    programs = "nft", "danted"

    def test_connections(self) -> None:
        """Connections go through the stack netns, over IPv4 and IPv6, and are refused where nobody listens."""
        path = str(self.folder / "pipe")
        pump = Pump(self.network.client, path)
        self.addCleanup(pump.close)
        for address in ("10.99.0.1/24", "fd99::1/64"):
            self.network.client.addAddress(address, DEVICE)
        self.network.client.ip("link", "set", DEVICE, "up")
        for route in ROUTES:
            self.network.client.ip("route", "add", route, "dev", DEVICE)
        self.startDante()
        self.addStore()
        words = "--pipe", path, "--socks-server-addr", f"{Network.atServer[0]}:{PROXY}", "--stack", "netns"
        tun = self.start(self.network.server, *TWISTD, "tun2socks", *words).says("the other end is there")
        self.assertStored(1 << 20)
        with self.client(TARGET) as client, self.assertRaises(ConnectionRefusedError):
            client.connect((TARGET, CLOSED))
        self.assertIn("TCP by stack netns", tun.said)
