"""udp-server with another egress than its own ports: through SOCKS5 servers, and down a pipe to tun2socks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.application.service import IServiceCollection, loadApplication
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.needs import needs
from tests.net.test_packetpipe import hasMessages
from tests.services.tunnel import NoNames, TunnelTestCase
from tests.tap.test_local import ROOT
from tests.waiting import until
from udptunnel.config import FIFO, MESSAGES, STREAM, EgressPlace, PipePlace, ServerConfig, Tun2socksConfig
from udptunnel.errors import ConfigError
from udptunnel.net import gateway as gateway_module
from udptunnel.net.dial import Proxy
from udptunnel.net.packetpipe import MakePipe, joint
from udptunnel.net.pipeegress import PipeEgress
from udptunnel.net.socks5client import addressOf
from udptunnel.net.socksegress import SocksEgress
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.services.tun2socks import Tun2socksService
from udptunnel.tap import common
from udptunnel.wire.address import Address

SOCKS = EgressPlace(socks=Address("127.0.0.1", 1080))


class ConfigurationTests(SynchronousTestCase):
    """What options mean for the egress."""

    def make(self, **fields: Any) -> ServerService:
        """udp-server, not started."""
        return ServerService(ServerConfig(offload="none", **fields), MemoryReactorClock(), NoNames())

    def socks(self, **fields: Any) -> SocksEgress:
        """One with a SOCKS5 server."""
        egress = self.make(egress=SOCKS, **fields).egress
        assert isinstance(egress, SocksEgress)
        return egress

    def refused(self, **fields: Any) -> str:
        """Why a configuration is none."""
        return str(self.assertRaises(ConfigError, self.make, **fields))

    def test_kinds(self) -> None:
        """Each place has its kind, and says so in the report."""
        self.assertEqual(self.make().report()["egress"], "direct")
        self.assertEqual(self.make(egress=SOCKS).report()["egress"], "SOCKS5 server 127.0.0.1:1080")
        service = self.make(egress=EgressPlace(pipe=PipePlace("exit")))
        self.assertIsInstance(service.egress, PipeEgress)
        self.assertEqual(
            service.report()["pipe"], {"name": os.path.abspath("exit"), "connected": False, "connections": 0}
        )

    def test_descriptors(self) -> None:
        """An association at a SOCKS5 server takes two descriptors, so there are half as many."""
        direct, socks = self.make().egress.mostPorts, self.socks().mostPorts
        self.assertEqual(socks, direct // 2)

    def test_user(self) -> None:
        """Name and password go to the server."""
        name = self.mktemp()
        Path(name).write_text("top secret\n", encoding="utf-8")
        egress = self.socks(egressUser="alice", egressPasswordFile=name)
        self.assertEqual(egress.socks.proxy, Proxy(Address("127.0.0.1", 1080), "alice", "top secret"))

    def test_wrong(self) -> None:
        """What can not be found is named by its option."""
        nobody = EgressPlace(socks=Address("nobody.invalid", 1080))
        self.assertIn("--egress nobody.invalid:1080", self.refused(egress=nobody))
        self.assertIn("--egress-password-file /nowhere", self.refused(egress=SOCKS, egressPasswordFile="/nowhere"))
        given = Address("nobody.invalid", 0)
        self.assertIn("--egress-udp-address nobody.invalid:0", self.refused(egress=SOCKS, egressUdpAddress=given))

    def test_names(self) -> None:
        """Rules and filters that names would get around must be meant so."""
        self.assertIn("--deny", self.refused(egress=SOCKS, deny=("9.9.9.9",)))
        self.assertIn("--egress-names", self.refused(egress=SOCKS, deny=("9.9.9.9",)))
        for how in ("pass", "resolve", "refuse"):
            self.socks(deny=("9.9.9.9",), egressNames=how)
        self.assertIn("--filtering port", self.refused(egress=SOCKS, filtering="port"))
        self.assertIn("--filtering port", self.refused(egress=SOCKS, filtering="port", egressNames="pass"))
        self.socks(filtering="port", egressNames="resolve")
        # Without a SOCKS5 server names are resolved here.
        self.make(deny=("9.9.9.9",), filtering="port")

    def test_reload(self) -> None:
        """A new password, and other ways with names, count from then on; what is wrong changes nothing."""
        service = self.make(egress=SOCKS)
        egress: Any = service.egress
        name = self.mktemp()
        Path(name).write_text("new", encoding="utf-8")
        wrong = ServerConfig(egress=SOCKS, offload="none", deny=("9.9.9.9",))
        self.assertRaises(ConfigError, service.reload, wrong)
        self.assertEqual(egress.socks.proxy.password, "")
        service.reload(ServerConfig(egress=SOCKS, offload="none", egressPasswordFile=name, egressNames="refuse"))
        self.assertEqual(egress.socks.proxy.password, "new")
        self.assertIsNone(egress.route(Address("name.example", 53)).to)


class ExitTests(TunnelTestCase):
    """
    Two tunnels in a row: what leaves the first one goes through the SOCKS5 server of the second one.

    @ivar far: udp-server of the second tunnel, which reaches the target.
    @ivar proxy: where the SOCKS5 server is.
    """

    def setUp(self) -> None:
        self.tickOften()
        # Here the targets are on loopback, which no packet leads to from outside.
        self.patch(gateway_module, "_isCarried", lambda host: True)
        self.far = self.startServer()
        self.door = self.startLocal(self.far)
        assert self.door.door is not None
        self.proxy = addressOf(self.door.door.address)

    def startExit(self, pipe: MakePipe | None = None, **fields: Any) -> ServerService:
        """udp-server of the first tunnel."""
        config = ServerConfig(listen=("tcp:0:interface=127.0.0.1",), allow=("127.0.0.0/8",), **fields)
        server = ServerService(config, reactor, NoNames(), pipe)
        return server

    def run_(self, server: ServerService) -> ServerService:
        """Start it, and stop it in the end."""
        server.startService()
        self.addCleanup(server.stopService)
        return server

    def tun(self, made: MakePipe | None = None, place: PipePlace | None = None) -> Tun2socksService:
        """tun2socks, before the SOCKS5 server."""
        config = Tun2socksConfig(socksServerAddr=self.proxy, stack="none", pipe=place)
        return Tun2socksService(config, reactor, pipe=made)

    def entry(self, local: LocalService) -> Address:
        """Where an application sends to."""
        return local.entries[0].port.address

    def needsMessages(self) -> None:
        """Skip where there are no SEQPACKET sockets."""
        if not hasMessages():
            raise SkipTest("there are no SEQPACKET sockets here")

    async def test_socks(self) -> None:
        """Datagrams of all sizes, and bursts, go through the SOCKS5 server and come back."""
        server = self.run_(self.startExit(egress=EgressPlace(socks=self.proxy)))
        await self.assertEchoes(self.entry(self.startLocal(server, self.echo())))
        report = server.report()
        self.assertEqual((report["externalPorts"], report["socks5"]["associations"]), (1, 1))

    async def test_socksAgain(self) -> None:
        """When the SOCKS5 server has ended the association, the next datagrams make another one."""
        server = self.run_(self.startExit(egress=EgressPlace(socks=self.proxy)))
        entry = self.entry(self.startLocal(server, self.echo()))
        await self.assertEchoes(entry, sizes=(1,))
        for association in list(server.egress.socks._associations):  # type: ignore[attr-defined]
            server.egress.socks._close(association)  # type: ignore[attr-defined]
        await self.assertEchoes(entry, sizes=(1,))

    @needs("Unix sockets")
    async def test_pipe(self) -> None:
        """Through a pipe; either end may come first."""
        for kind in (STREAM, FIFO, MESSAGES):
            if not kind:
                self.needsMessages()
            place = PipePlace(os.path.relpath(self.mktemp()), kind)
            os.makedirs(os.path.dirname(place.path), exist_ok=True)
            tun = self.tun(place=place)
            tun.startService()
            self.addCleanup(tun.stopService)
            server = self.run_(self.startExit(egress=EgressPlace(pipe=place)))
            local = self.startLocal(server, self.echo())
            await until(lambda: server.egress.report()["pipe"]["connected"])  # type: ignore[index]  # noqa: B023
            await self.assertEchoes(self.entry(local))
            self.assertEqual((tun.report()["pipe"]["connected"], tun.illness()), (True, ""))

    async def test_owned(self) -> None:
        """udp-server can own tun2socks: it starts and stops with it, in one process and without a file."""
        self.needsMessages()
        near, far = joint()
        server, tun = self.startExit(near), self.tun(far)
        tun.setServiceParent(server)
        self.run_(server)
        self.assertTrue(tun.running)
        local = self.startLocal(server, self.echo())
        await self.assertEchoes(self.entry(local))
        self.assertEqual(server.report()["egress"], "pipe joint")

    async def test_egress(self) -> None:
        """C{--egress tun2socks} does the same: udp-server makes its own, with the options for the SOCKS5 server."""
        self.needsMessages()
        server = self.run_(self.startExit(egress=EgressPlace(tun2socks=self.proxy)))
        tun = server.tun2socks
        assert tun is not None
        self.assertTrue(tun.running)
        await self.assertEchoes(self.entry(self.startLocal(server, self.echo())))
        self.assertEqual(server.report()["tun2socks"]["udp"]["associations"], 1)
        await maybeDeferred(server.stopService)
        self.assertFalse(tun.running)

    async def test_egressReloaded(self) -> None:
        """Its password is read again with the others; a file that is not there changes nothing."""
        self.needsMessages()
        name = self.mktemp()
        Path(name).write_text("old", encoding="utf-8")
        place = EgressPlace(tun2socks=self.proxy)
        server = self.startExit(egress=place, egressUser="alice", egressPasswordFile=name)
        socks = server.tun2socks.udp  # type: ignore[union-attr]
        self.assertEqual(socks.proxy, Proxy(self.proxy, "alice", "old"))  # type: ignore[attr-defined]
        Path(name).write_text("new", encoding="utf-8")
        server.reload(server.config)
        self.assertEqual(socks.proxy.password, "new")  # type: ignore[attr-defined]
        os.unlink(name)
        self.assertRaises(ConfigError, server.reload, server.config)
        await maybeDeferred(server.stopService)

    async def test_tac(self) -> None:
        """The .tac file makes both roles, which are joined."""
        self.needsMessages()
        self.patch(common, "prepareProcess", lambda reactor, config: None)
        application = loadApplication(os.path.join(ROOT, "tap-configs", "exit-gateway.tac"), "python")
        server, tun = (next(iter(top)) for top in IServiceCollection(application))
        self.assertIsInstance(server.egress, PipeEgress)
        self.assertIsInstance(tun, Tun2socksService)
        tun.startService()
        server.egress.start()
        self.assertTrue(server.egress.report()["pipe"]["connected"])
        await maybeDeferred(server.stopService)
        await maybeDeferred(tun.stopService)
