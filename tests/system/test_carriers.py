"""SOCKS5 clients that use udp-local, and SOCKS5 servers and tunnels that carry its link."""

from __future__ import annotations

import socket
import sys
import unittest
from pathlib import Path

from tests.system.clients import Echo, SocksClient, exchange, open_
from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, LINK, SOCKS, Program, SystemTestCase

try:
    import socks
except ImportError:
    socks = None

try:
    import tun2socks
except ImportError:
    tun2socks = None

LOOPBACK = "127.0.0.1"
CARRIER = 1080
"""The port of the SOCKS5 server or tunnel that carries links."""

WEB = 8080
PAGE = "It works through all of them.\n"
PUBLIC = "8.8.4.4"

DANTE = f"""
logoutput: stderr
internal: {Network.atServer[0]} port = {CARRIER}
external: {Network.atServer[0]}
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 command: connect }}
"""


class CarrierTestCase(SystemTestCase):
    """With a target that sends everything back."""

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(self.network.target, (Network.atTarget[0], ECHO))
        self.addCleanup(self.echo.close)

    def startMicrosocks(self) -> Program:
        words = "-i", Network.atServer[0], "-p", str(CARRIER)
        return self.start(self.network.server, "microsocks", *words).listens(CARRIER)

    def assertCarried(self, *options: str, server: str = f"tcp:{LOOPBACK}:{LINK}") -> None:
        """Datagrams get through, in a forward and in an association, when udp-local has these options."""
        forward = f"{LOOPBACK}:{FORWARD}={Network.atTarget[0]}:{ECHO}"
        self.startLocal("--forward", forward, *options, server=server).says("is up")
        with open_(self.network.client, LOOPBACK) as udp:
            for payload in (b"one", b"", bytes(65507), b"two"):
                self.assertEqual(exchange(udp, (LOOPBACK, FORWARD), payload), payload)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        target = Network.atTarget[0], ECHO
        self.assertEqual(client.exchange(target, b"three"), (target, b"three"))


class ViaTests(CarrierTestCase):
    """C{--via}: udp-server listens at loopback only, and is reached through a SOCKS5 server beside it."""

    programs = "microsocks", "danted"

    def setUp(self) -> None:
        super().setUp()
        self.startServer(host=LOOPBACK)

    def test_microsocks(self) -> None:
        """A link goes through microsocks."""
        self.startMicrosocks()
        self.assertCarried("--via", f"{Network.atServer[0]}:{CARRIER}")

    def test_dante(self) -> None:
        """A link goes through Dante."""
        file = self.folder / "danted.conf"
        file.write_text(DANTE)
        self.start(self.network.server, "danted", "-f", str(file)).listens(CARRIER)
        self.assertCarried("--via", f"{Network.atServer[0]}:{CARRIER}")


class ShadowsocksTests(CarrierTestCase):
    """
    Links through shadowsocks-libev; udp-server listens at loopback only.

    Without simple-obfs on the wire that is flow 2 of L{tests.system.test_chain}.
    """

    programs = "ss-local", "ss-server", "ss-tunnel", "obfs-local", "obfs-server"

    def setUp(self) -> None:
        super().setUp()
        self.startServer(host=LOOPBACK)

    def test_localObfuscated(self) -> None:
        """With --via, a link goes through ss-local and simple-obfs."""
        self.startShadowsocks("ss-local", CARRIER, obfs="http")
        self.assertCarried("--via", f"{LOOPBACK}:{CARRIER}")

    def test_tunnelObfuscated(self) -> None:
        """ss-tunnel is a server like any other."""
        self.startShadowsocks("ss-tunnel", LINK, "-L", f"{LOOPBACK}:{LINK}", obfs="tls")
        self.assertCarried()


class PySocksTests(CarrierTestCase):
    """PySocks as the client."""

    def test_datagrams(self) -> None:
        """A PySocks socket sends to a target and receives from it."""
        if socks is None:
            raise unittest.SkipTest("PySocks is not installed")
        self.startBoth()
        target = Network.atTarget[0], ECHO
        with self.network.client.entered():
            client = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
            self.addCleanup(client.close)
            client.settimeout(10)
            client.set_proxy(socks.SOCKS5, LOOPBACK, SOCKS)
            for payload in (b"one", b"two" * 400):
                client.sendto(payload, target)
                self.assertEqual(client.recvfrom(65535), (payload, target))


class ConnectTests(CarrierTestCase):
    """SOCKS5 CONNECT is relayed to the server of C{--connect-via}."""

    programs = "microsocks", "curl", "dnsmasq"

    def setUp(self) -> None:
        super().setUp()
        self.startServer()
        self.startMicrosocks()
        self.network.target.addAddress(f"{PUBLIC}/32")
        self.network.server.ip("route", "add", PUBLIC, "via", Network.atTarget[0])
        (self.folder / "web").mkdir()
        (self.folder / "web" / "page").write_text(PAGE)
        words = "-m", "http.server", str(WEB), "--bind", PUBLIC, "--directory", str(self.folder / "web")
        self.start(self.network.target, sys.executable, *words).listens(WEB)
        self.startLocal("--connect-via", f"{Network.atServer[0]}:{CARRIER}").says("is up")

    def test_page(self) -> None:
        """curl fetches a page from a host whose name only the other end knows."""
        words = f"--listen-address={Network.atTarget[0]}", "--bind-interfaces", "--no-resolv", "--conf-file=/dev/null"
        names = f"--host-record=www.tunnel.test,{PUBLIC}", "--user=root"
        self.start(self.network.target, "dnsmasq", "--no-daemon", *words, *names).listens(53, "udp")
        proxy = "--socks5-hostname", f"{LOOPBACK}:{SOCKS}"
        page = self.ask(self.network.client, "curl", "-sS", "-m", "10", *proxy, f"http://www.tunnel.test:{WEB}/page")
        self.assertEqual(page, PAGE)

    def test_tun2socks(self) -> None:
        """A stock tun2socks with udp-local as its only server carries UDP and TCP."""
        if tun2socks is None:
            raise unittest.SkipTest("tun2socks is not installed")
        if not Path("/dev/net/tun").exists():
            raise unittest.SkipTest("there is no /dev/net/tun")
        client, target = self.network.client, (PUBLIC, ECHO)
        client.ip("tuntap", "add", "tun0", "mode", "tun")
        client.addAddress("198.18.0.1/15", "tun0")
        client.ip("link", "set", "tun0", "up")
        client.ip("route", "add", PUBLIC, "dev", "tun0")
        call = f"tun2socks.startFromArgs('tun://tun0', '', 'info', 'socks5://{LOOPBACK}:{SOCKS}', '')"
        words = sys.executable, "-c", f"import signal, tun2socks; {call}; signal.pause()"
        # Its Go part takes SIGTERM for itself, and does nothing.
        self.addCleanup(self.start(client, *words).says("[STACK]").kill)
        echo = Echo(self.network.target, target)
        self.addCleanup(echo.close)
        with open_(client, "198.18.0.1") as udp:
            for payload in (b"one", b"two" * 400, b"three"):
                udp.sendto(payload, target)
                self.assertEqual(udp.recvfrom(65535), (payload, target))
        self.assertEqual([payload for _, payload in echo.received], [b"one", b"two" * 400, b"three"])
        self.assertEqual(self.ask(client, "curl", "-sS", "-m", "10", f"http://{PUBLIC}:{WEB}/page"), PAGE)
