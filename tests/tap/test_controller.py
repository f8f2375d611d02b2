"""Tests for L{udptunnel.tap.controller}."""

from __future__ import annotations

import os

from twisted.application.service import IServiceCollection, loadApplication
from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT
from udptunnel.config import ControllerConfig, fill, readToml
from udptunnel.errors import ConfigError
from udptunnel.services.controller import ControllerService
from udptunnel.tap import common
from udptunnel.tap.controller import Options, makeService

WRONG = (
    ("--socket", "", "a text that is not empty"),
    ("--tundev", "", "a name of 1 to 15 letters"),
    ("--tundev", "sixteen-letters-", "a name of 1 to 15 letters"),
    ("--tundev", "../tun", "a name of 1 to 15 letters"),
    ("--tundev", "..", "a name of 1 to 15 letters"),
    ("--tundev", "tun%d", "a name of 1 to 15 letters"),
    ("--tundev", "tun 0", "a name of 1 to 15 letters"),
    ("--tundev", "tun0\n", "a name of 1 to 15 letters"),
    ("--address", "10.0.85.1", "ADDRESS/LENGTH"),
    ("--address", "10.0.85.1/33", "ADDRESS/LENGTH"),
    ("--address", "tun0/24", "ADDRESS/LENGTH"),
    ("--address", "fe80::1%eth0/64", "ADDRESS/LENGTH"),
    ("--mtu", "1279", "a whole number from 1280 to 65535"),
    ("--ipv6", "route", "block or leave"),
    ("--max-clients", "0", "a whole number from 1 to 1024"),
)
"""Options with values that are wrong, and what is expected instead."""


class OptionsTests(SynchronousTestCase):
    """The command line of proxy-controller."""

    def parse(self, *words: str) -> ControllerConfig:
        """The configuration of a command line."""
        options = Options()
        options.parseOptions(words)
        return options.config

    def test_all(self) -> None:
        """Each option fills its field."""
        config = self.parse(
            *("--socket", "/run/c", "--socket-group", "netdev", "--tundev", "tun5", "--owner", "alice"),
            *("--address", "10.9.0.1/24", "--address", "fd00::1/64", "--mtu", "9000", "--ipv6", "leave"),
            *("--max-clients", "3", "--status", "unix:s", "--log-format", "json", "--redact"),
        )
        expected = ControllerConfig(
            "/run/c",
            "netdev",
            "tun5",
            "alice",
            ("10.9.0.1/24", "fd00::1/64"),
            9000,
            "leave",
            3,
            "unix:s",
            "json",
            True,
        )
        self.assertEqual(config, expected)

    def test_wrong(self) -> None:
        """What is wrong is refused, with the option and what is expected."""
        for name, value, expected in WRONG:
            error = self.assertRaises(SystemExit, self.parse, name, value)
            self.assertIn(f"{name} {value}: expected {expected}", str(error))

    def test_toml(self) -> None:
        """A file says the same."""
        text = '[proxy-controller]\nsocket = "/run/c"\naddress = ["fd00::1/64"]\n'
        expected = fill(ControllerConfig, {"socket": "/run/c", "address": ["fd00::1/64"]})
        self.assertEqual(readToml(ControllerConfig, "proxy-controller", text), expected)
        self.assertRaises(ConfigError, readToml, ControllerConfig, "proxy-controller", "[proxy-controller]\nmtu = 1\n")


class ServiceTests(SynchronousTestCase):
    """What twistd is given."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    def test_service(self) -> None:
        """A command line becomes the service."""
        options = Options()
        options.parseOptions(["--socket", "c", "--tundev", "tun5"])
        (service,) = makeService(options)
        self.assertIsInstance(service, ControllerService)
        self.assertEqual(service.config.tundev, "tun5")

    def test_noSocket(self) -> None:
        """Without --socket the process ends, and says so."""
        options = Options()
        options.parseOptions([])
        self.assertIn("--socket", str(self.assertRaises(SystemExit, makeService, options)))

    def test_tac(self) -> None:
        """The example for twistd -y makes the same service."""
        application = loadApplication(os.path.join(ROOT, "tap-configs", "proxy-controller.tac"), "python")
        (top,) = IServiceCollection(application)
        self.assertEqual(top.getServiceNamed("proxy-controller").config.socket, "/run/udptunnel.sock")
