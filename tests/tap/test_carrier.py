"""Tests for L{udptunnel.tap.carrier}, and for the .tac files that have programs of others."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.application.service import IServiceCollection, loadApplication
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import TestCase

from tests.needs import needs
from tests.tap.test_local import ROOT
from tests.waiting import until
from udptunnel.errors import ListenError
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.carrier import Program
from udptunnel.tap import common
from udptunnel.tap.carrier import CarrierService, makeService
from udptunnel.wire.address import Address

SLEEP = sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"


class CarrierServiceTests(TestCase):
    """L{CarrierService}."""

    def test_name(self) -> None:
        """It is called like the program, or as somebody wants."""
        self.assertEqual(makeService("/usr/bin/ss-local", "-u").program.name, "ss-local")
        made = makeService("ss-local", name="beyond")
        self.assertEqual(made.program, Program("beyond", ("ss-local",), "carrier beyond"))

    @needs("process groups")
    async def test_lives(self) -> None:
        """It runs from start to stop, and its output is heard; then nothing of it is left, not even a guard."""
        service = CarrierService(Program("sleep", SLEEP, "carrier sleep"), reactor)
        service.startService()
        self.addCleanup(lambda: service.running and Deferred.fromCoroutine(service.stopService()))
        await until(lambda: service.said, "it does not say anything")
        process = service.process
        await service.stopService()
        self.assertRaises(ProcessLookupError, os.kill, process, 0)
        self.assertIsNone(service._guard._process)

    @needs("process groups")
    def test_noProgram(self) -> None:
        """A program that there is not is said in one line."""
        self.addCleanup(vars(sys).pop, "tracebacklimit", None)
        error = self.assertRaises(ListenError, makeService("no-such-program").startService)
        self.assertEqual(str(error), "carrier no-such-program: there is no program no-such-program")
        self.assertEqual(sys.tracebacklimit, 0)


class TacTests(TestCase):
    """The .tac files make what they say, and start nothing yet."""

    def setUp(self) -> None:
        self.patch(common, "prepareProcess", lambda reactor, config: None)

    def load(self, name: str) -> list[Any]:
        """The services of a .tac file; those of roles are within what ends the process for them."""
        application = loadApplication(os.path.join(ROOT, "tap-configs", name), "python")
        return [getattr(each, "role", each) for each in IServiceCollection(application)]

    async def test_client(self) -> None:
        """ss-local, and udp-local whose links go through it, with tun2socks before both."""
        carrier, local, tun = self.load("client-gateway-shadowsocks.tac")
        self.assertEqual(carrier.program.name, "ss-local")
        self.assertEqual(local.config.via, Address("127.0.0.1", 1080))
        self.assertIsInstance(tun.udp, TunEntry)
        await maybeDeferred(local.stopService)

    @needs("Unix sockets")
    async def test_exit(self) -> None:
        """ss-server, and ss-local behind udp-server's own tun2socks."""
        *carriers, server = self.load("exit-gateway-shadowsocks.tac")
        self.assertEqual([each.program.name for each in carriers], ["ss-server", "ss-local"])
        self.assertEqual(server.config.egress.tun2socks, Address("127.0.0.1", 1080))
        self.assertIs(server.tun2socks.parent, server)
        await maybeDeferred(server.stopService)
