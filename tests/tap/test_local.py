"""Tests for L{udptunnel.tap.local}."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IServiceCollection, loadApplication
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

import udptunnel
from udptunnel.config import Forward, LocalConfig
from udptunnel.services.local import LocalService
from udptunnel.tap import common
from udptunnel.tap.local import Options, makeService
from udptunnel.wire.address import Address

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(udptunnel.__file__)))

WRONG = (
    ("--socks", "", "a text that is not empty"),
    ("--server", "", "a text that is not empty"),
    ("--via", "127.0.0.1", "HOST:PORT"),
    ("--via", "::1:1080", "an IPv6 address in brackets"),
    ("--forward", "127.0.0.1:53", "LISTEN=TARGET"),
    ("--forward", "127.0.0.1:53=9.9.9.9", "LISTEN=TARGET"),
    ("--forward", "localhost:53=9.9.9.9:53", "a numeric host to listen at"),
    ("--forward", "127.0.0.1:53=9.9.9.9:0", "a target port from 1 to 65535"),
    ("--forward", "127.0.0.1:99999=9.9.9.9:53", "LISTEN=TARGET"),
    ("--connect-via", "127.0.0.1:x", "HOST:PORT"),
    ("--links", "0", "a whole number from 1 to 64"),
    ("--links", "65", "a whole number from 1 to 64"),
    ("--links", "1.5", "a whole number from 1 to 64"),
    ("--links", "-1", "a whole number from 1 to 64"),
    ("--max-associations", "0", "a whole number from 1 to 1048576"),
    ("--delay", "-1", "a number from 0 to 10000"),
    ("--delay", "nan", "a number from 0 to 10000"),
    ("--queue-age", "0", "a number from 1 to 60000"),
    ("--queue-bytes", "1", "a whole number from 65536 to 1073741824"),
    ("--heartbeat", "0", "a number from 0.1 to 600"),
)
"""Options with values that are wrong, and what is expected instead."""


class OptionsTests(SynchronousTestCase):
    """The command line of udp-local."""

    def parse(self, *words: str) -> LocalConfig:
        """The configuration of a command line."""
        options = Options()
        options.parseOptions(words)
        return options.config

    def test_defaults(self) -> None:
        """Without options it is a SOCKS5 server on loopback, and udp-server is on this machine."""
        config = self.parse()
        self.assertEqual(config, LocalConfig())
        self.assertEqual(config.socks, "tcp:1234:interface=127.0.0.1")
        self.assertEqual(config.server, ("tcp:127.0.0.1:3456",))
        self.assertEqual((config.forward, config.via, config.connectVia, config.links), ((), None, None, 1))

    def test_forwards(self) -> None:
        """There may be several forwards, and several servers."""
        config = self.parse(
            *("--forward", "127.0.0.1:5353=9.9.9.9:53", "--forward", "[::1]:53=dns.example:53"),
            *("--server", "tcp:a:1", "--server", "tcp:b:2"),
        )
        self.assertEqual(
            config.forward,
            (
                Forward(Address("127.0.0.1", 5353), Address("9.9.9.9", 53)),
                Forward(Address("::1", 53), Address("dns.example", 53)),
            ),
        )
        self.assertEqual(config.server, ("tcp:a:1", "tcp:b:2"))

    def test_all(self) -> None:
        """Each option fills its field."""
        config = self.parse(
            *("--socks", "none", "--via", "127.0.0.1:1080", "--connect-via", "[::1]:1080", "--password-file", "f"),
            *("--links", "3", "--max-associations", "7", "--offload", "gro", "--delay", "0", "--queue-age", "50"),
            *("--queue-bytes", "65536", "--heartbeat", "1.5", "--insecure-no-auth"),
        )
        self.assertEqual(
            config,
            LocalConfig(
                *("none", ("tcp:127.0.0.1:3456",), Address("127.0.0.1", 1080), (), Address("::1", 1080), "f", 3, 7),
                *("gro", 0.0, 50.0, 65536, 1.5, True),
            ),
        )

    def test_wrong(self) -> None:
        """A wrong value ends the process with one line that names the option, the value and what is allowed."""
        for option, value, expected in WRONG:
            said = str(self.assertRaises(SystemExit, self.parse, option, value))
            self.assertIn(f"{option} {value}: expected", said)
            self.assertIn(expected, said)
            self.assertNotIn("\n", said)


class ServiceTests(TestCase):
    """The service of udp-local."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    def test_made(self) -> None:
        """The service has the configuration of the command line."""
        options: Any = Options()
        options.parseOptions(["--links", "2", "--socks", "none"])
        (service,) = makeService(options)
        assert isinstance(service, LocalService)
        self.assertEqual(service.config, LocalConfig(socks="none", links=2))

    def test_wrong(self) -> None:
        """What only turns out here ends the process with one line as well."""
        for option, value in (
            *(("--server", "nonsense"), ("--socks", "nonsense"), ("--offload", "tso")),
            ("--password-file", "/no/such/file"),
        ):
            options: Any = Options()
            options.parseOptions([option, value])
            said = str(self.assertRaises(SystemExit, makeService, options))
            self.assertIn(f"{option} {value}", said)
            self.assertNotIn("\n", said)

    async def test_tac(self) -> None:
        """The .tac file makes the same service."""
        application = loadApplication(os.path.join(ROOT, "tap-configs", "udp-local.tac"), "python")
        (top,) = IServiceCollection(application)
        (service,) = top
        self.assertEqual(service.config, LocalConfig())
        await maybeDeferred(service.stopService)
