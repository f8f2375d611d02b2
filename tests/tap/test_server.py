"""Tests for L{udptunnel.tap.server}."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IServiceCollection, loadApplication
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.tap.test_local import ROOT
from udptunnel.config import EgressPlace, ServerConfig
from udptunnel.services.server import ServerService
from udptunnel.tap import common
from udptunnel.tap.server import Options, makeService

WRONG = (
    ("--listen", "", "a text that is not empty"),
    ("--egress", "moon", "direct"),
    ("--deny-port", "65536", "a whole number from 0 to 65535"),
    ("--deny-port", "dns", "a whole number from 0 to 65535"),
    ("--max-sessions", "0", "a whole number from 1 to 1048576"),
    ("--max-links", "1025", "a whole number from 1 to 1024"),
    ("--max-associations", "", "a whole number from 1 to 1048576"),
    ("--max-ports", "-1", "a whole number from 0 to 1048576"),
    ("--lookups", "0", "a whole number from 1 to 1024"),
    ("--lookup-timeout", "0", "a number from 0.1 to 60"),
    ("--lookup-timeout", "1e3", "a number from 0.1 to 60"),
    ("--delay", "10001", "a number from 0 to 10000"),
    ("--queue-age", "x", "a number from 1 to 60000"),
    ("--queue-bytes", "65535", "a whole number from 65536 to 1073741824"),
    ("--heartbeat", "601", "a number from 0.1 to 600"),
)
"""Options with values that are wrong, and what is expected instead."""


class OptionsTests(SynchronousTestCase):
    """The command line of udp-server."""

    def parse(self, *words: str) -> ServerConfig:
        """The configuration of a command line."""
        options = Options()
        options.parseOptions(words)
        return options.config

    def test_defaults(self) -> None:
        """Without options it listens on loopback, and allows public targets only."""
        config = self.parse()
        self.assertEqual(config, ServerConfig())
        self.assertEqual(config.listen, ("tcp:3456:interface=127.0.0.1",))
        self.assertEqual((config.allow, config.deny, config.egress), ((), (), EgressPlace()))

    def test_all(self) -> None:
        """Each option fills its field."""
        config = self.parse(
            *("--listen", "tcp:1", "--listen", "tcp:2", "--egress", "direct", "--allow", "10.0.0.0/8"),
            *("--deny", "10.1.0.0/16", "--deny-port", "53", "--max-sessions", "1", "--max-links", "2"),
            *("--max-associations", "3", "--max-ports", "4", "--lookups", "5", "--lookup-timeout", "6"),
            *("--offload", "none", "--delay", "7", "--queue-age", "8", "--queue-bytes", "70000", "--heartbeat", "9"),
            "--insecure-no-auth",
        )
        self.assertEqual(
            config,
            ServerConfig(
                *(("tcp:1", "tcp:2"), EgressPlace(), ("10.0.0.0/8",), ("10.1.0.0/16",), (53,), 1, 2, 3, 4, 5, 6.0),
                *("none", 7.0, 8.0, 70000, 9.0, True),
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
    """The service of udp-server."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    async def test_made(self) -> None:
        """The service has the configuration of the command line."""
        options: Any = Options()
        options.parseOptions(["--max-ports", "9", "--allow", "10.0.0.0/8"])
        (service,) = makeService(options)
        assert isinstance(service, ServerService)
        self.assertEqual(service.config, ServerConfig(maxPorts=9, allow=("10.0.0.0/8",)))
        await service.stopService()

    def test_wrong(self) -> None:
        """What only turns out here ends the process with one line as well, and leaves nothing behind."""
        for option, value in (
            *(("--listen", "nonsense"), ("--offload", "tso"), ("--allow", "10.0.0.0/33"), ("--deny", "name.example")),
            *(("--allow", "10.0.0.1/8"), ("--deny", "127.1")),
        ):
            options: Any = Options()
            options.parseOptions([option, value])
            said = str(self.assertRaises(SystemExit, makeService, options))
            self.assertIn(option, said)
            self.assertIn(value, said)
            self.assertNotIn("\n", said)

    async def test_tac(self) -> None:
        """The .tac file makes the same service."""
        application = loadApplication(os.path.join(ROOT, "tap-configs", "udp-server.tac"), "python")
        (top,) = IServiceCollection(application)
        (service,) = top
        self.assertEqual(service.config, ServerConfig())
        await maybeDeferred(service.stopService)
