"""Tests for L{udptunnel.services.plugin}; tests.system has simple-obfs."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from tests.services.children import ChildReactor
from tests.services.tunnel import TunnelTestCase, freePort
from tests.waiting import until
from udptunnel.config import LocalConfig, ServerConfig
from udptunnel.errors import ConfigError, ListenError
from udptunnel.services import plugin as module
from udptunnel.services.local import LocalService
from udptunnel.services.plugin import environmentOf
from udptunnel.services.server import ServerService
from udptunnel.wire.address import Address

PLUGIN = f"""#!{sys.executable}
import os, socket, threading
near, far = [(os.environ[f"SS_{{each}}_HOST"], int(os.environ[f"SS_{{each}}_PORT"])) for each in ("LOCAL", "REMOTE")]
if os.environ["SS_PLUGIN_OPTIONS"] == "server":
    near, far = far, near
def copy(a, b):
    while data := a.recv(65536):
        # So that it shows if one of the two is left out.
        b.sendall(bytes(each ^ 0x55 for each in data))
    b.shutdown(socket.SHUT_WR)
listener = socket.create_server(near)
while True:
    client, _ = listener.accept()
    beyond = socket.create_connection(far)
    for pair in ((client, beyond), (beyond, client)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""
"""A plugin as SIP003 has it."""


class ConfigurationTests(SynchronousTestCase):
    """What the options come to."""

    def test_environment(self) -> None:
        """A plugin finds the addresses that SIP003 names, without brackets, and its options if there are any."""
        found = environmentOf(Address("2001:db8::1", 443), Address("127.0.0.1", 5), "a=b\\;c;d")
        self.assertEqual(
            found,
            {
                "SS_REMOTE_HOST": "2001:db8::1",
                "SS_REMOTE_PORT": "443",
                "SS_LOCAL_HOST": "127.0.0.1",
                "SS_LOCAL_PORT": "5",
                "SS_PLUGIN_OPTIONS": "a=b\\;c;d",
            },
        )
        self.assertNotIn("SS_PLUGIN_OPTIONS", environmentOf(Address("a", 1), Address("b", 2), None))

    def test_wrong(self) -> None:
        """What does not go together with a plugin is named."""
        for config, text in (
            (LocalConfig(pluginOpts="a"), "--plugin-opts a: there is no --plugin"),
            (LocalConfig(plugin="p", via=Address("127.0.0.1", 1)), "--plugin p and --via 127.0.0.1:1"),
            (LocalConfig(plugin="p", server=("unix:x",)), "--server unix:x: with --via or --plugin it must be tcp:"),
        ):
            self.assertIn(text, str(self.assertRaises(ConfigError, LocalService, config, ChildReactor())))
        for listen in ("unix:x", "tcp:0", "tcp:x", "tcp:99999", "ssl:1", "tcp", "tcp:1:backlog=5", "systemd:x"):
            config = ServerConfig(plugin="p", listen=(listen,))
            error = self.assertRaises(ConfigError, ServerService, config, ChildReactor())
            self.assertIn(f"--listen {listen}: with --plugin it must be tcp:PORT", str(error))
        self.assertRaises(ConfigError, ServerService, ServerConfig(pluginOpts="a"), ChildReactor())

    def test_listen(self) -> None:
        """udp-server's plugin listens where udp-server was to."""
        texts = "tcp:8388", "tcp6:1", "tcp:2:interface=10.0.0.1", r"tcp6:3:interface=\:\:1", "tcp:port=4"
        service = ServerService(ServerConfig(plugin="p", listen=texts), ChildReactor())
        addresses = [str(each.listen) for each in service.plugins]
        self.assertEqual(addresses, ["0.0.0.0:8388", "[::]:1", "10.0.0.1:2", "[::1]:3", "0.0.0.0:4"])

    def test_ports(self) -> None:
        """Each start of udp-local's plugin has a port of its own, and links go to the last one."""
        ports = iter((1, 2))
        self.patch(module, "_freePort", lambda: next(ports))
        reactor = ChildReactor()
        config = LocalConfig(plugin="true", server=("tcp:relay.example:8388",))
        (plugin,) = LocalService(config, reactor).plugins.values()
        plugin.carrier.startService()
        reactor.child.exits(1)
        reactor.advance(1)
        found = [(each.environment["SS_LOCAL_PORT"], each.environment["SS_REMOTE_HOST"]) for each in reactor.children]
        self.assertEqual(found, [("1", "relay.example"), ("2", "relay.example")])
        asked: list[tuple[str, int]] = []
        reactor.connectTCP = lambda host, port, *rest, **named: asked.append((host, port))
        plugin.connect(Factory())
        self.assertEqual(asked, [("127.0.0.1", 2)])

    def test_open(self) -> None:
        """A plugin asks nobody who he is: beyond loopback somebody else must, as without it."""
        reactor = ChildReactor()
        (plugin,) = ServerService(ServerConfig(plugin="true", listen=("tcp:8388",)), reactor).plugins
        error = self.assertRaises(ListenError, plugin.start, None, False, "do something")
        self.assertEqual(str(error), "--listen tcp:8388 is open to other machines, and do something")
        self.assertEqual(reactor.children, [])


class CarriedTests(TunnelTestCase):
    """Links through plugins, with real sockets."""

    def plugin(self) -> str:
        """A plugin's file."""
        file = Path(self.mktemp()).absolute()
        file.write_text(PLUGIN)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return str(file)

    async def test_carried(self) -> None:
        """Datagrams come there and back; when either plugin is killed they do again, soon."""
        self.tickOften()
        plugin, port = self.plugin(), freePort()
        server = self.startServer(f"tcp:{port}:interface=127.0.0.1", plugin=plugin, pluginOpts="server", heartbeat=0.5)
        local = self.startLocal(port, self.echo(), plugin=plugin, pluginOpts="local", heartbeat=0.5)
        (near,), (far,) = local.plugins.values(), server.plugins
        for each in (None, near, far):
            if each is not None:
                os.kill(each.carrier.process, signal.SIGKILL)
                await until(lambda: not local.session.links, "the link is gone")
            await self.linksUp(local)
            await self.assertEchoes(local.entries[0].port.address)

    async def test_stopped(self) -> None:
        """A role that stops says farewell through its plugin, and leaves none behind."""
        plugin, port = self.plugin(), freePort()
        server = self.startServer(f"tcp:{port}:interface=127.0.0.1", plugin=plugin, pluginOpts="server")
        local = self.startLocal(port, plugin=plugin, pluginOpts="local")
        await self.linksUp(local)
        processes = [each.carrier.process for each in (*local.plugins.values(), *server.plugins)]
        await local.stopService()
        await until(lambda: not server.connections, "the farewell arrives")
        self.assertEqual(server.report()["sessions"], [])
        await server.stopService()
        for each in processes:
            self.assertRaises(ProcessLookupError, os.kill, each, 0)

    async def test_noPlugin(self) -> None:
        """A plugin that is not installed is named at the start."""
        config = LocalConfig(plugin="no-such-plugin", socks="none")
        service = LocalService(config, ChildReactor())
        self.assertIn("--plugin no-such-plugin", str(self.assertRaises(ListenError, service.startService)))
