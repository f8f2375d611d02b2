"""Tests for L{udptunnel.tap.tun2socks}."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IServiceCollection, loadApplication
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.tap.test_local import ROOT
from udptunnel.config import Tun2socksConfig
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.tun2socks import Tun2socksService
from udptunnel.tap import common
from udptunnel.tap.tun2socks import Options, makeService
from udptunnel.wire.address import Address

WRONG = (
    ("--tundev", "a name", "a name of 1 to 15 letters"),
    ("--tun-fd", "-1", "a whole number from 0 to 1048576"),
    ("--netif-ipaddr", "::1", "an IPv4 address"),
    ("--netif-netmask", "255.255.255.254", "a netmask from 128.0.0.0 to 255.255.255.252"),
    ("--netif-netmask", "0.0.0.0", "a netmask from 128.0.0.0 to 255.255.255.252"),
    ("--netif-ip6addr", "10.0.0.1", "an IPv6 address"),
    ("--mtu", "1279", "a whole number from 1280 to 65535"),
    ("--stack", "lwip", "auto or tun or netns"),
    ("--socks-server-addr", "127.0.0.1", "HOST:PORT"),
    ("--socks-server-addr", "127.0.0.1:0", "a port from 1 to 65535"),
    ("--icmp", "on", "off or reply or unreachable"),
    ("--dns", "dns.example:53", "the address of a name server"),
    ("--fake-dns", "198.18.0.1/15", "ADDRESS/LENGTH"),
    ("--route", "everywhere", "ADDRESS/LENGTH"),
    ("--fwmark", "0x100000000", "a whole number from 0 to 4294967295"),
    ("--max-connections", "64513", "a whole number from 1 to 64512"),
    ("--udp-idle", "0", "a number from 1 to 864000"),
    ("--loglevel", "6", "none or error"),
)
"""Options with values that are wrong, and what is expected instead."""

BADVPN = """--tundev tun0 --netif-ipaddr 10.0.0.2 --netif-netmask 255.255.255.0 --socks-server-addr 127.0.0.1:1080
    --username alice --password secret --append-source-to-username --socks5-udp --loglevel 3
    --netif-ip6addr fd00::2 --password-file /etc/password"""


class OptionsTests(SynchronousTestCase):
    """The command line of tun2socks."""

    def parse(self, *words: str) -> Tun2socksConfig:
        """The configuration of a command line."""
        options = Options()
        options.parseOptions(words)
        return options.config

    def test_badvpn(self) -> None:
        """It takes badvpn's options, by their names."""
        config = self.parse(*BADVPN.split())
        self.assertEqual((config.tundev, config.netifIpaddr, config.netifIp6addr), ("tun0", "10.0.0.2", "fd00::2"))
        self.assertEqual((config.socksServerAddr, config.username), (Address("127.0.0.1", 1080), "alice"))
        self.assertEqual((config.loglevel, config.socks5Udp, config.appendSourceToUsername), ("3", True, True))

    def test_numbers(self) -> None:
        """Marks may be hexadecimal, as other programs show them; a name server without a port is at port 53."""
        config = self.parse("--fwmark", "0x75740", "--dns", "2001:db8::1", "--dns", "9.9.9.9")
        self.assertEqual((config.fwmark, config.dns), (0x75740, Address("9.9.9.9", 53)))
        self.assertEqual(self.parse("--dns", "[2001:db8::1]:5353").dns, Address("2001:db8::1", 5353))

    def test_wrong(self) -> None:
        """A wrong value ends the process with one line that names the option, the value and what is allowed."""
        for option, value, expected in WRONG:
            said = str(self.assertRaises(SystemExit, self.parse, option, value))
            self.assertIn(f"{option} {value}: expected", said)
            self.assertIn(expected, said)
            self.assertNotIn("\n", said)


class ServiceTests(TestCase):
    """The service of tun2socks."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    def test_wrong(self) -> None:
        """What only turns out here ends the process with one line as well."""
        for words, expected in (
            (["--tundev", "tun0"], "--socks-server-addr HOST:PORT is missing"),
            (["--socks-server-addr", "127.0.0.1:1"], "give one of --tundev NAME, --tun-fd N and --pipe PATH"),
        ):
            options: Any = Options()
            options.parseOptions(words)
            said = str(self.assertRaises(SystemExit, makeService, options))
            self.assertIn(expected, said)
            self.assertNotIn("\n", said)

    def test_tac(self) -> None:
        """The .tac file makes the same service, and opens nothing yet."""
        ((service,),) = self.load("tun2socks.tac")
        self.assertEqual((service.config.tundev, service.config.socksServerAddr), ("tun0", Address("127.0.0.1", 1080)))

    async def test_together(self) -> None:
        """In one process with udp-local, datagrams go straight into its session."""
        (local,), (service,) = self.load("client-gateway.tac")
        assert isinstance(service, Tun2socksService)
        self.assertIsInstance(service.udp, TunEntry)
        self.assertEqual(local.name, "udp-local")
        await maybeDeferred(local.stopService)

    def load(self, name: str) -> list[Any]:
        """The services of a .tac file."""
        return list(IServiceCollection(loadApplication(os.path.join(ROOT, "tap-configs", name), "python")))
