"""docs/examples/tungate.py, run as it stands: a gateway as a library, with a real TUN."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import Namespace, run
from tests.system.turns import TakesTurns

ROOT = Path(__file__).parent.parent.parent
DEVICE = "tun9"
OWN = "10.9.0.1/24", "fd00:9::1/64"
NETWORKS = "203.0.113.0/24", "2001:db8:7::/64"
TARGETS = "203.0.113.5", "2001:db8:7::5"
SECONDS = 30.0


RULES = """
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
    }
}
"""
"""A firewall that lets nothing new in."""


class GatewayTests(TakesTurns, SynchronousTestCase):
    """
    The example, in a namespace of its own.

    @cvar stack: the one that it finds.
    """

    stack = "tun"

    def setUp(self) -> None:
        if os.geteuid():
            raise SkipTest("network namespaces need root")
        if shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
            raise SkipTest("there is no ip command, or no /dev/net/tun")
        self.namespace = Namespace("g")
        self.addCleanup(self.namespace.remove)
        self.prepare()
        self.log = open(self.mktemp(), "w+")
        self.addCleanup(self.log.close)
        words = self.namespace.command(sys.executable, str(ROOT / "docs/examples/tungate.py"), DEVICE, *OWN)
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.addCleanup(self.end)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        self.assertEqual(line, f"TUN {DEVICE} is open, TCP by stack {self.stack}\n", self.logged())
        for network in NETWORKS:
            self.namespace.ip("route", "add", network, "dev", DEVICE)

    def prepare(self) -> None:
        """What the namespace is like before."""

    def logged(self) -> str:
        """What the example has said."""
        return Path(self.log.name).read_text()

    def end(self) -> None:
        """End the example, if it runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def socket(self, host: str, kind: socket.SocketKind) -> socket.socket:
        """A socket inside."""
        with self.namespace.entered():
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        self.addCleanup(made.close)
        made.settimeout(SECONDS)
        return made

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection."""
        client = self.socket(host, socket.SOCK_STREAM)
        client.connect((host, port))
        return client

    def test_tcp(self) -> None:
        """A connection hears what it was opened to, again and again, and then ends."""
        for host in TARGETS:
            shown = f"[{host}]" if ":" in host else host
            for port in (80, 443, 65535):
                with self.connect(host, port) as client, client.makefile("rb") as file:
                    self.assertEqual(file.read(), f"{shown}:{port}\n".encode())

    def test_refused(self) -> None:
        """What the program refuses is refused to the client, in the words that it chose."""
        for host in TARGETS:
            for port, expected in ((1, errno.ECONNREFUSED), (2, errno.EHOSTUNREACH)):
                error = self.assertRaises(OSError, self.connect, host, port)
                self.assertEqual(error.errno, expected)

    def test_udp(self) -> None:
        """A datagram comes back from where it was sent to, whatever its size."""
        for host in TARGETS:
            client = self.socket(host, socket.SOCK_DGRAM)
            for port, size in ((7, 0), (53, 1), (7, 1400), (7, 9000), (7, 65507)):
                sent = os.urandom(size)
                client.sendto(sent, (host, port))
                received, source = client.recvfrom(65536)
                self.assertEqual((source[:2], received), ((host, port), sent))

    def test_udpRefused(self) -> None:
        """A datagram that the program refuses is refused to its sender."""
        for host in TARGETS:
            client = self.socket(host, socket.SOCK_DGRAM)
            client.connect((host, 1))
            client.send(b"x")
            self.assertRaises(ConnectionRefusedError, client.recv, 1)

    def test_stopped(self) -> None:
        """When the program is told to end, it does, and its device is gone."""
        self.connect(TARGETS[0], 80)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)
        with self.namespace.entered():
            self.assertNotIn(DEVICE, [name for _, name in socket.if_nameindex()])
        self.assertNotIn("Traceback", self.logged())

    def test_lost(self) -> None:
        """When somebody deletes the device, the program hears of it, and ends."""
        self.namespace.ip("link", "del", DEVICE)
        self.assertEqual(self.process.wait(SECONDS), 1)
        self.assertIn(f"TUN {DEVICE} is deleted", self.logged())


class FirewallTests(GatewayTests):
    """The same behind a firewall that lets nothing new in."""

    stack = "netns"

    def prepare(self) -> None:
        """Nothing new comes in."""
        if shutil.which("nft") is None:
            raise SkipTest("there is no nft command")
        run(*self.namespace.command("nft", "-f", "-"), text=RULES)
