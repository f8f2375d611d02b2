"""Tests for L{udptunnel.tap.l3}."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceCollection, loadApplication
from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT
from udptunnel.config import L3Config
from udptunnel.console import main
from udptunnel.services.l3options import readKey
from udptunnel.tap import common
from udptunnel.tap.l3 import Options, makeService
from udptunnel.wire.address import Address

WRONG = (
    ("--interface", "an interface", "a name of 1 to 15 letters"),
    ("--capture", "10.2.0.1/16", "zeros behind the length"),
    ("--local", "localhost:1", "the address in digits"),
    ("--local", "127.0.0.1", "HOST:PORT"),
    ("--peer", "192.0.2.1:0", "a port from 1 to 65535"),
    ("--inject", "bpf", "raw or tun"),
    ("--mtu", "-1", "a whole number from 0 to 65535"),
    ("--keepalive", "3601", "a number from 0 to 3600"),
)
"""Options with values that are wrong, and what is expected instead."""


class OptionsTests(SynchronousTestCase):
    """The command line of l3-tunnel."""

    def parse(self, *words: str) -> L3Config:
        options = Options()
        options.parseOptions(words)
        return options.config

    def test_example(self) -> None:
        """The examples of --help are command lines."""
        words = "--interface veth0 --capture 192.168.111.0/30 --local 0.0.0.0:50000 --key-file tunnel.key --setup"
        config = self.parse(*words.split())
        self.assertEqual((config.interface, config.capture), ("veth0", ("192.168.111.0/30",)))
        self.assertEqual((config.local, config.setup, config.inject), (Address("0.0.0.0", 50000), True, "raw"))

    def test_wrong(self) -> None:
        """A wrong value ends the process with one line that names the option, the value and what is allowed."""
        for option, value, expected in WRONG:
            said = str(self.assertRaises(SystemExit, self.parse, option, value))
            self.assertIn(f"{option} {value}: expected", said)
            self.assertIn(expected, said)
            self.assertNotIn("\n", said)


class ServiceTests(SynchronousTestCase):
    """The service of l3-tunnel, and what makes its key."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    def test_wrong(self) -> None:
        """What only turns out here ends the process with one line as well."""
        options: Any = Options()
        options.parseOptions(["--interface", "eth1"])
        said = str(self.assertRaises(SystemExit, makeService, options))
        self.assertIn("--capture CIDR is missing", said)
        self.assertNotIn("\n", said)

    def test_tac(self) -> None:
        """The .tac file makes the same service, with the key of C{udptunnel genkey}, and opens nothing yet."""
        folder, before = self.mktemp(), os.getcwd()
        os.makedirs(folder)
        self.addCleanup(os.chdir, before)
        name = os.path.abspath(os.path.join(ROOT, "tap-configs", "l3-tunnel.tac"))
        os.chdir(folder)
        written: list[str] = []
        self.patch(__import__("builtins"), "print", lambda *words: written.extend(words))
        self.assertEqual(self.assertRaises(SystemExit, main, ["genkey"]).code, 0)
        Path("tunnel.key").write_text(f"{written[0]}\n", encoding="ascii")
        self.assertEqual(len(readKey("tunnel.key")), 32)
        ((service,),) = IServiceCollection(loadApplication(name, "python"))
        self.assertEqual(service.way.peer, Address("198.51.100.7", 50000))
        self.assertEqual(service.config.capture, ("10.2.0.0/16",))

    def test_keys(self) -> None:
        """No two keys are alike."""
        written: list[str] = []
        self.patch(__import__("builtins"), "print", lambda *words: written.extend(words))
        for _ in range(2):
            self.assertRaises(SystemExit, main, ["genkey"])
        self.assertEqual(len(set(written)), 2)
