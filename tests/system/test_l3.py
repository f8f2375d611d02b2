"""l3-tunnel between two sites with a NAT between them, as docs/howto/l3-tunnel.md has it, with real packets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.system.namespaces import Namespace, run
from tests.system.programs import REPOSITORY, TWISTD, Program, SystemTestCase, until
from tests.system.sites import AT_A, AT_B, BEHIND_A, BEHIND_B, DEVICE, INNER, NAT, B, Sites

PORT, LINK = 50_000, 3456
BACK_SECONDS = 5.0
"""Within this time packets go through again, whatever has happened."""

SLACK_SECONDS = 5.0
"""Time that a busy machine needs to start a process."""

MOST_EXPOSURE = 2.5
"""What systemd may say of our unit."""

LARGE = 65_000
"""Bytes of a UDP datagram that goes through in fragments."""

PYTHON = sys.executable
UDPTUNNEL = [PYTHON, "-c", "from udptunnel.console import main; main()"]

ECHO = """
import socket, sys
echo = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
echo.bind((sys.argv[1], 7007))
print("echoing", flush=True)
while True:
    data, source = echo.recvfrom(70000)
    echo.sendto(data, source)
"""

STREAM = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 7008), family=family) as door:
    print("listening", flush=True)
    while True:
        connection, _ = door.accept()
        digest = hashlib.sha256()
        while data := connection.recv(1 << 16):
            digest.update(data)
        connection.sendall(digest.digest())
        connection.close()
"""


BLOCK = """
table inet block {
    chain forward { type filter hook forward priority 0; meta l4proto udp drop; }
}
"""
"""Lets no UDP through."""


class L3TestCase(SystemTestCase):
    """Two sites, and one key for both ends."""

    programs = "ping", "nft", "tcpdump"

    def setUp(self) -> None:
        super().setUp()
        self.sites = self.network
        self.key = self.folder / "tunnel.key"
        self.key.write_bytes(subprocess.run([*UDPTUNNEL, "genkey"], capture_output=True, check=True).stdout)

    def makeNetwork(self) -> Sites:
        return Sites()

    def startEnd(self, namespace: Namespace, networks: tuple[str, str], *words: str) -> Program:
        """Start one end."""
        captured = [word for network in networks for word in ("--capture", network)]
        return self.start(
            namespace,
            *(*TWISTD, "l3-tunnel", "--interface", "lan0", *captured, "--key-file", str(self.key), "--setup", *words),
        )

    def startB(self, *words: str, local: str = "0.0.0.0") -> Program:
        """Start the end that others can reach."""
        where = f"[{local}]" if ":" in local else local
        return self.startEnd(self.sites.b, BEHIND_A, "--local", f"{where}:{PORT}", *words).listens(PORT, "udp")

    def startA(self, *words: str, peer: str = B[0]) -> Program:
        """Start the end behind the NAT."""
        where = f"[{peer}]" if ":" in peer else peer
        return self.startEnd(self.sites.a, BEHIND_B, "--peer", f"{where}:{PORT}", *words)

    def startBoth(self, *words: str) -> tuple[Program, Program]:
        """Start both ends, and wait for a session."""
        b = self.startB(*words)
        return self.startA(*words).says("is up"), b.says("is up")

    def pings(self, namespace: Namespace, host: str, *words: str) -> str:
        """Ping three times, and see that each reply comes; returns what was said."""
        said = self.ask(namespace, "ping", "-c", "3", "-i", "0.2", "-W", "3", *words, host)
        self.assertIn(" 3 received", said)
        return said

    def assertThrough(self) -> None:
        """Packets go both ways, with IPv4 and with IPv6."""
        for device, inner in zip(DEVICE, INNER, strict=True):
            self.pings(self.sites.device, inner)
            self.pings(self.sites.inner, device)

    def capture(self, namespace: Namespace, device: str) -> Program:
        """See what goes over a wire."""
        words = "tcpdump", "-l", "-n", "-i", device, "ip or (ip6 and ip6[6] != 0 and not (icmp6 and ip6[40] >= 133))"
        return self.start(namespace, *words).says("listening on")

    def sends(self, host: str, size: int) -> None:
        """Send a stream of bytes through, and see that it arrives as it was."""
        code = (
            "import hashlib, os, socket, sys\n"
            f"data = os.urandom({size})\n"
            f"with socket.create_connection(({host!r}, 7008), 20) as s:\n"
            "    s.sendall(data); s.shutdown(socket.SHUT_WR)\n"
            "    assert s.recv(32, socket.MSG_WAITALL) == hashlib.sha256(data).digest()\n"
        )
        self.ask(self.sites.device, PYTHON, "-c", code)

    def echoes(self, host: str, size: int) -> None:
        """Send a datagram through and back."""
        code = (
            "import os, socket\n"
            f"s = socket.socket(socket.AF_INET6 if ':' in {host!r} else socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"s.settimeout(3); data = os.urandom({size})\n"
            "for attempt in range(3):\n"
            f"    s.sendto(data, ({host!r}, 7007))\n"
            "    try:\n"
            "        assert s.recv(70000) == data; break\n"
            "    except TimeoutError:\n"
            "        if attempt == 2: raise\n"
        )
        self.ask(self.sites.device, PYTHON, "-c", code)

    def startTargets(self, host: str) -> None:
        """Have somebody at the other site who answers datagrams and streams."""
        for program in (ECHO, STREAM):
            self.start(self.sites.inner, PYTHON, "-c", program, host).says("ing")


class PacketTests(L3TestCase):
    """What goes through, and what is seen of it outside."""

    def test_document(self) -> None:
        """
        As in the document: ping both ways; outside there is only UDP between the ends, at the inner hosts the inner
        packets. Then long datagrams, streams, and the word how long a packet may be; at the end all is as it was.
        """
        before = self.routes()
        a, b = self.startBoth()
        outside, inside = self.capture(self.sites.nat, "wan0"), self.capture(self.sites.inner, "eth0")
        self.assertThrough()
        inside.says(f"{DEVICE[0]} > {INNER[0]}: ICMP echo request", 3).says(
            f"{DEVICE[0]} > {INNER[0]}: ICMP echo reply", 3
        )
        inside.says(f"{DEVICE[1]} > {INNER[1]}: ICMP6, echo request", 3)
        outside.says(f"> {B[0]}.{PORT}: UDP, length 116", 6)
        self.assertEqual([line for line in packetsIn(outside) if not onlyOurs(line)], [])
        self.throughLarge()
        self.pathMtu()
        for end in (a, b):
            end.stop()
        self.assertEqual(self.routes(), before)

    def routes(self) -> list[str]:
        return [
            run("ip", "-n", each.name, *words)
            for each in (self.sites.a, self.sites.b)
            for words in (["route"], ["-6", "route"])
        ]

    def throughLarge(self) -> None:
        """Datagrams of 65,000 bytes and streams go through, with both versions."""
        for host in INNER:
            self.startTargets(host)
            self.echoes(host, LARGE)
            self.echoes(host, 1)
            self.sends(host, 3_000_000)

    def pathMtu(self) -> None:
        """The sender of what is too long is told; also when the path between the ends becomes narrower meanwhile."""
        said = self.refused("1420")
        self.assertRegex(said, "(mtu|MTU).{0,3}14[24]0|message too long")
        self.sites.nat.ip("link", "set", "wan0", "mtu", "1380")
        self.sites.b.ip("link", "set", "wan0", "mtu", "1380")
        self.sends(INNER[0], 1_000_000)
        until(lambda: re.search("mtu.{0,3}1320", self.refused("1350")), "the narrower path is not made known")
        self.sends(INNER[1], 1_000_000)

    def refused(self, size: str) -> str:
        """What ping says of a packet that may not be cut."""
        words = "ping", "-c", "1", "-W", "1", "-M", "do", "-s", size, INNER[0]
        done = subprocess.run(self.sites.device.command(*words), capture_output=True, text=True, timeout=20)
        return done.stdout + done.stderr

    def test_tun(self) -> None:
        """The same through a TUN, which takes and gives super-packets."""
        self.startBoth("--inject", "tun", "--allow-self")
        self.assertThrough()
        self.throughLarge()
        # What these machines themselves send to the other site comes out of the TUN, from the right address.
        for version in (0, 1):
            self.pings(self.sites.b, DEVICE[version])
            self.pings(self.sites.inner, AT_A[version])

    def test_tunOfItself(self) -> None:
        """
        What a machine sends to the other site by itself bears its address towards its own network, which the other end
        takes; so does its word that a packet has met too many routers.
        """
        self.startBoth("--inject", "tun")
        inside = self.capture(self.sites.device, "eth0")
        for version, word in ((0, "ICMP echo request"), (1, "ICMP6, echo request")):
            subprocess.run(
                self.sites.b.command("ping", "-c", "1", "-W", "0.3", DEVICE[version]),
                stdout=subprocess.DEVNULL,
                timeout=20,
            )
            inside.says(f"{AT_B[version]} > {DEVICE[version]}: {word}")
            # The machine at the other site is the one at which the second hop ends.
            words = self.sites.device.command("ping", "-c", "1", "-W", "5", "-t", "2", INNER[version])
            done = subprocess.run(words, capture_output=True, text=True, timeout=20)
            self.assertRegex(done.stdout, f"From {AT_B[version]} icmp_seq=1 Time (to live )?exceeded")

    def test_ipv6(self) -> None:
        """IPv6 outside carries both versions inside."""
        b = self.startB(local="::")
        self.startA(peer=B[1]).says("is up")
        b.says("is up")
        self.assertThrough()

    def test_self(self) -> None:
        """The end itself is not reached by packets of the other site."""
        self.startBoth()
        words = "ping", "-c", "2", "-i", "0.2", "-W", "1", AT_B[0]
        done = subprocess.run(self.sites.device.command(*words), capture_output=True, text=True, timeout=20)
        self.assertIn(" 0 received", done.stdout)

    def test_strangers(self) -> None:
        """Whoever sends what he likes to the port gets no answer, and disturbs nobody."""
        self.startBoth()
        code = (
            "import os, random, socket\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 0)); s.settimeout(1)\n"
            "for n in range(2000):\n"
            "    data = bytes((n % 6, 1, 0, 0)) + os.urandom(random.choice((0, 12, 28, 56, 64, 1000)))\n"
            f"    s.sendto(data, ({B[0]!r}, {PORT}))\n"
            "try:\n"
            "    s.recv(2000); raise SystemExit('somebody has answered')\n"
            "except TimeoutError:\n"
            "    pass\n"
        )
        self.ask(self.sites.nat, PYTHON, "-c", code)
        self.pings(self.sites.device, INNER[0])


class RecoveryTests(L3TestCase):
    """Packets go through again within five seconds, whatever has happened."""

    alone = True

    def assertBack(self, what: str, namespace: Namespace, host: str) -> None:
        """Ping until there is a reply."""
        begin = time.monotonic()
        until(lambda: self.pinged(namespace, host), f"{what}: no packet goes through", 3 * BACK_SECONDS)
        seconds = time.monotonic() - begin
        self.assertLess(seconds, BACK_SECONDS + SLACK_SECONDS, what)

    def pinged(self, namespace: Namespace, host: str) -> bool:
        words = namespace.command("ping", "-c", "1", "-W", "0.3", host)
        return not subprocess.run(words, stdout=subprocess.DEVNULL, timeout=20).returncode

    def test_recovery(self) -> None:
        """Either end killed and started again, an interface down and up, the NAT's mappings others."""
        a, b = self.startBoth()
        self.assertThrough()
        ways = ((self.sites.device, INNER[0]), (self.sites.inner, DEVICE[0]))
        for way in ways:
            b.kill()
            b = self.startB()
            self.assertBack("b is started again", *way)
        for way in ways:
            a.kill()
            a = self.startA().says("l3-tunnel:")
            self.assertBack("a is started again", *way)
        for way in ways:
            for namespace in (self.sites.a, self.sites.b):
                namespace.ip("link", "set", "lan0", "down")
            for namespace in (self.sites.a, self.sites.b):
                namespace.ip("link", "set", "lan0", "up")
            self.assertBack("the interfaces are up again", *way)
        for number, way in enumerate(ways):
            self.sites.translate(f"to :{40_000 + 1000 * number}-{40_999 + 1000 * number}")
            self.assertBack("the NAT translates otherwise", *way)


class LinkTests(L3TestCase):
    """Over TCP, where UDP is blocked."""

    programs = (*L3TestCase.programs, "ss-server", "ss-tunnel")

    def test_link(self) -> None:
        """Through ss-tunnel and udp-server; no UDP is seen outside."""
        run(*self.sites.nat.command("nft", "-f", "-"), text=BLOCK)
        both = "-k", "secret", "-m", "aes-256-gcm", "--no-delay"
        self.start(self.sites.b, "ss-server", "-s", B[0], "-p", "8388", *both).listens(8388)
        words = "-s", B[0], "-p", "8388", "-b", "127.0.0.1", "-l", str(LINK), "-L", f"127.0.0.1:{LINK}"
        self.start(self.sites.a, "ss-tunnel", *words, *both).listens(LINK)
        options = "--listen", f"tcp:{LINK}:interface=127.0.0.1", "--allow", "127.0.0.1"
        self.start(self.sites.b, *TWISTD, "udp-server", *options).listens(LINK)
        b = self.startB()
        outside = self.capture(self.sites.nat, "wan0")
        self.startA("--link", f"tcp:127.0.0.1:{LINK}", peer="127.0.0.1").says("is up", 2)
        b.says("is up")
        self.assertThrough()
        self.startTargets(INNER[0])
        self.echoes(INNER[0], LARGE)
        self.sends(INNER[0], 1_000_000)
        self.assertNotIn("UDP", outside.said)


def packetsIn(capture: Program) -> list[str]:
    """The packets that were seen."""
    return [line for line in capture.said.splitlines() if re.match("[0-9:.]+ IP", line)]


def onlyOurs(line: str) -> bool:
    """Whether a packet is UDP between the ends."""
    return f"{B[0]}.{PORT}" in line and f"{NAT[0]}." in line and "UDP" in line


class PrivilegeTests(L3TestCase):
    """S-21: what it needs of the system."""

    programs = (*L3TestCase.programs, "setpriv", "systemd-analyze")

    def test_capabilities(self) -> None:
        """It needs not be root: CAP_NET_RAW captures and injects, CAP_NET_ADMIN sets up."""
        # The folder of a test is not for everybody.
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        key = folder / "tunnel.key"
        key.write_bytes(self.key.read_bytes())
        for path in (folder, key):
            os.chown(path, 65534, 65534)
        for namespace, networks, words in (
            (self.sites.b, BEHIND_A, ("--local", f"0.0.0.0:{PORT}")),
            (self.sites.a, BEHIND_B, ("--peer", f"{B[0]}:{PORT}")),
        ):
            captured = [word for network in networks for word in ("--capture", network)]
            limited = (
                "setpriv",
                "--reuid",
                "65534",
                "--clear-groups",
                *(f"--{kind}=-all,+net_raw,+net_admin" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
            )
            self.start(
                namespace,
                *limited,
                *TWISTD,
                "l3-tunnel",
                "--interface",
                "lan0",
                *captured,
                "--setup",
                "--key-file",
                str(key),
                *words,
            )
        for program in self._started:
            program.says("is up")
        self.assertThrough()

    def test_unit(self) -> None:
        """The unit leaves these two capabilities to it, and systemd finds it well enough shut in."""
        unit = REPOSITORY / "contrib" / "systemd" / "l3-tunnel.service"
        words = "systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", self.ask(self.sites.a, *words))
        assert found is not None
        self.assertLessEqual(float(found[1]), MOST_EXPOSURE)
        for line in ("CapabilityBoundingSet", "AmbientCapabilities"):
            self.assertIn(f"\n{line}=CAP_NET_RAW CAP_NET_ADMIN\n", unit.read_text())
