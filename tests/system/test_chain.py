"""
The data flows with the programs that Debian has, each with text, names, load and TCP at the same time.

What each of them is made of stands in L{tests.system.hops}; to see one come up,
run C{python -m tests.system.chain}.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.chain import SETTLED_SECONDS, Chain
from tests.system.clients import SocksClient
from tests.system.hops import BEYOND, CARRIER, NAMES
from tests.system.hoptable import HEAD, Watch, normal
from tests.system.namespaces import Network, run
from tests.system.programs import ECHO, REPOSITORY, TWISTD
from tests.system.traffic import TARGET, TARGET6, Traffic
from tests.system.tunnelled import ROUTES, TunnelledTestCase
from tests.test_docs import read

MEGABYTES, FILE_BYTES = 1.0, 1_000_000
"""Of numbered datagrams each way, and of the file that curl fetches beside them."""


class ChainTestCase(TunnelledTestCase):
    """
    With a chain, and a target at its end.

    @ivar chain: the programs.
    @ivar traffic: what goes through them.
    """

    programs = (
        *("nft", "ss-local", "ss-server", "ss-tunnel", "obfs-local", "obfs-server"),
        *("danted", "nc", "dig", "dnsmasq", "curl", "tcpdump"),
    )

    def bringUp(self, flow: str = "4", options: tuple[str, ...] = (), watch: Watch | None = None) -> None:
        """Start all programs, and wait until they have found each other."""
        self.chain = Chain(self.network, self, self.folder, flow, options, watch.hops if watch else ())
        self.addTraffic(self.chain.flow.isForwarded)
        self.chain.comeUp()
        self.traffic.awaitAll(SETTLED_SECONDS)

    def addTraffic(self, isForwarded: bool = False) -> None:
        """Have targets."""
        self.traffic = Traffic(self.network, self, self.folder, isForwarded)
        self.addCleanup(self.traffic.close)

    def assertFlows(self, flow: str, megabytes: float = MEGABYTES) -> None:
        """
        nc both ways over IPv4 and IPv6, dig, and numbered datagrams, with curl beside them.

        Between client and server there is TCP of the carrier, and nothing else.
        """
        self.bringUp(flow)
        self.traffic.talk(TARGET)
        self.traffic.talk(TARGET6, TARGET6)
        self.traffic.dig()
        self.traffic.load(megabytes, fileBytes=FILE_BYTES)
        self.chain.counted()


class FlowTests(ChainTestCase):
    """The data flows, by their numbers."""

    def test_flow2(self) -> None:
        """TUN, tun2socks, udp-local, ss-local, ss-server, udp-server, target."""
        self.assertFlows("2")

    def test_flow3(self) -> None:
        """The same by ss-tunnel, with simple-obfs on the wire."""
        self.assertFlows("3")

    def test_flow4(self) -> None:
        """The whole chain; its target sees the second ss-server, also when its name was given to udp-local."""
        self.assertFlows("4", 5.0)
        self.assertTrue(self.traffic.page(TARGET6))
        self.network.client.useNameServer(TARGET)
        client = SocksClient(self.network.client)
        self.addCleanup(client.close)
        self.assertEqual(client.exchange(("four.tunnel.test", ECHO), b"hello")[1], b"hello")
        self.assertEqual({host for host, _ in self.traffic.echo.sources}, {Network.beforeTarget[0]})

    def test_flow5(self) -> None:
        """
        TCP goes to one ss-local, and UDP to another one (-U); each server sees its own kind alone.

        Here it is the script that brings it up and says so.
        """
        words = sys.executable, "-m", "tests.system.chain", "--flow", "5", "--load", str(MEGABYTES)
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        for number, name in enumerate(("tun2socks", "ss-local", "ss-local -U", "ss-server", "ss-server -U"), 1):
            self.assertRegex(done.stdout, rf"(?m)^ {number} {name} +(client|server)  up after +[\d.]+ s  ")
        for said in ("nc, text both ways, fd77:2::2: all right", "dig: all right", "0 damaged, 0 twice", "0 datagrams"):
            self.assertIn(said, done.stdout)

    def test_flow6(self) -> None:
        """Applications send to udp-local, whose own link goes into the TUN."""
        self.assertFlows("6")

    def test_flow7(self) -> None:
        """Dante instead of shadowsocks; links without a carrier; links over TLS."""
        self.assertFlows("7")
        for flow in ("7-none", "7-tls"):
            self.chain.become(flow, self.folder)
            self.traffic.awaitAll(SETTLED_SECONDS)
            self.traffic.talk(TARGET)
            self.traffic.talk(TARGET6, TARGET6)
            self.traffic.dig()
            self.traffic.load(MEGABYTES, fileBytes=FILE_BYTES)
        self.assertEqual([each["datagrams"] for each in self.chain.filters], [0, 0])


class HopTests(ChainTestCase):
    """The whole chain, with somebody who watches at each hop."""

    def test_addresses(self) -> None:
        """The addresses are those of docs/topics/chain.md; names travel as names."""
        watch = Watch(self.network, self, self.folder, NAMES)
        self.bringUp("4", NAMES, watch)
        page = read("docs/topics/chain.md")
        written = page[page.index(HEAD[0]) :].partition("\n\n")[0]
        self.assertEqual(normal(watch.table(self.traffic)).splitlines(), normal(written).splitlines())
        self.traffic.byName()
        self.chain.counted()


class RestartTests(ChainTestCase):
    """C{kill -9}; nothing is done to the others."""

    def test_killed(self) -> None:
        """Each program of the whole chain is killed under traffic, in turn; datagrams and TCP come again soon."""
        self.bringUp()
        self.chain.killEach(self.traffic)
        self.chain.counted()


class TacTests(ChainTestCase):
    """Both gateways behind shadowsocks, as .tac files."""

    def test_shadowsocks(self) -> None:
        """The files run as they are but for addresses; what they have started ends with them."""
        self.addTraffic()
        beyond = "-s", "127.0.0.1", "-p", str(CARRIER), "-k", "PASSWORD", "-m", "chacha20-ietf-poly1305", "-u"
        self.start(self.network.server, "ss-server", *beyond)
        server = self.tac("exit-gateway-shadowsocks", '"--egress"', f'"--allow", "{ROUTES[0]}", "--egress"')
        client = self.tac("client-gateway-shadowsocks")
        exit_ = self.start(self.network.server, *TWISTD, "-y", str(server))
        gateway = self.start(self.network.client, *TWISTD, "-y", str(client)).says("tun2socks: TUN")
        self.network.client.ip("route", "add", f"{TARGET}/32", "dev", "tun0")
        self.traffic.awaitAll(SETTLED_SECONDS)
        self.traffic.talk(TARGET)
        self.assertEqual({host for host, _ in self.traffic.echo.sources}, {Network.beforeTarget[0]})
        for program in (gateway, exit_):
            program.stop()
            self.assertCalm(program)
            left = run("ip", "netns", "pids", program.namespace.name).split()
            commands = [Path(f"/proc/{number}/cmdline").read_bytes() for number in left if _isThere(number)]
            self.assertEqual([each for each in commands if str(BEYOND).encode() in each], [])

    def tac(self, name: str, old: str = "", new: str = "") -> Path:
        """A copy of a .tac file, with the addresses of this network, and one text replaced by another."""
        source = (REPOSITORY / "tap-configs" / f"{name}.tac").read_text()
        self.assertIn(old, source)
        source = source.replace("203.0.113.5", Network.atServer[0]).replace("203.0.113.9", "127.0.0.1")
        source = source.replace(old, new) if old else source
        self.assertEqual(re.findall(r"203\.0\.113", source), [])
        copy = self.folder / f"{name}.tac"
        copy.write_text(source)
        return copy


def _isThere(process: str) -> bool:
    return os.path.exists(f"/proc/{process}/cmdline")
