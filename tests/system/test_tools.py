"""Everyday programs through a forward: nc and dig."""

from __future__ import annotations

import subprocess

from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, Program, SystemTestCase

FORWARD_TO = f"127.0.0.1:{FORWARD}="


class NetcatTests(SystemTestCase):
    """C{nc -u} at both ends."""

    programs = ("nc",)

    def test_lineAndAnswer(self) -> None:
        """What is typed into one nc comes out of the other one, and the answer comes back."""
        self.startBoth("--forward", f"{FORWARD_TO}{Network.atTarget[0]}:{ECHO}")
        far = self.start(self.network.target, "nc", "-u", "-l", str(ECHO), stdin=subprocess.PIPE).listens(ECHO, "udp")
        near = self.start(self.network.client, "nc", "-u", "127.0.0.1", str(FORWARD), stdin=subprocess.PIPE)
        near.write("is anybody there?\n")
        far.says("is anybody there?\n")
        far.write("yes\n")
        near.says("yes\n")
        self.assertEqual((far.said, near.said), ("is anybody there?\n", "yes\n"))


class DigTests(SystemTestCase):
    """C{dig} through a forward, with dnsmasq as the target."""

    programs = ("dnsmasq", "dig")

    def setUp(self) -> None:
        super().setUp()
        self.dnsmasq = self.startNameServer("--host-record=www.tunnel.test,198.51.100.77")

    def startNameServer(self, *options: str) -> Program:
        here = Network.atTarget[0]
        words = f"--listen-address={here}", "--bind-interfaces", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"
        names = f"--host-record=dns.tunnel.test,{here}", "--log-queries", "--log-facility=-", "--user=root", *options
        return self.start(self.network.target, "dnsmasq", "--no-daemon", *words, *names).listens(53, "udp")

    def dig(self) -> str:
        words = "-p", str(FORWARD), "@127.0.0.1", "www.tunnel.test", "+short", "+tries=1", "+time=5"
        return self.ask(self.network.client, "dig", *words)

    def test_address(self) -> None:
        """A question that is sent to the forward is answered by its target."""
        self.startBoth("--forward", f"{FORWARD_TO}{Network.atTarget[0]}:53")
        self.assertEqual(self.dig(), "198.51.100.77\n")

    def test_name(self) -> None:
        """The target's name is resolved where udp-server is, and its address judged there."""
        self.startBoth("--forward", f"{FORWARD_TO}dns.tunnel.test:53")
        self.assertEqual(self.dig(), "198.51.100.77\n")
        self.assertIn(f"query[A] dns.tunnel.test from {Network.beforeTarget[0]}", self.dnsmasq.said)
