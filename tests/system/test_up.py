"""C{udptunnel up} and C{down} with shadowsocks and simple-obfs, and plugins without shadowsocks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.system.clients import Echo, exchange, open_
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import ECHO, FORWARD, LINK, REPOSITORY, SystemTestCase, until
from tests.system.test_carriers import CarrierTestCase
from tests.system.test_restart import LOOPBACK, Pulse
from tests.system.traffic import Application
from tests.system.tunnelled import wiring
from tests.test_docs import blocks, read

UDPTUNNEL = [sys.executable, "-c", "from udptunnel.console import main; main()"]

FAR = "203.0.113.5"
"""The far machine in the examples of docs/howto/up.md."""

AGAIN_SECONDS = 5.0
SETTLED_SECONDS = 30.0
CARRIER = 8389

EXIT, CLIENT, PLUGIN_EXIT, PLUGIN_CLIENT = blocks(read("docs/howto/up.md"), "toml")


class UpTestCase(SystemTestCase):
    """With the files of docs/howto/up.md, as they are but for the far machine's address and what the target is."""

    programs = "nft", "ss-local", "ss-server", "obfs-local", "obfs-server"

    def setUp(self) -> None:
        super().setUp()
        self.echo = Echo(self.network.target, (Network.atTarget[0], ECHO))
        self.addCleanup(self.echo.close)
        self.sides = {"client": self.network.client, "exit": self.network.server}
        self.wirings = {side: self.settledWiring(namespace) for side, namespace in self.sides.items()}
        for side in self.sides:
            self.addCleanup(self.downIfUp, side)

    def settledWiring(self, namespace: Namespace) -> str:
        """All that there is, once the kernel has given each wire its link-local address."""
        wires = 1 + (namespace is self.network.server)
        words = "ip", "-6", "-n", namespace.name, "route", "show", "table", "local"
        until(lambda: run(*words).count("local fe80::") == wires, "link-local addresses are missing")
        return wiring(namespace)

    def write(self, client: str, exit_: str) -> None:
        """The files of both sides."""
        allowed = exit_.replace("[udp-server]\n", '[udp-server]\nallow = ["10.77.2.0/24"]\n')
        (self.folder / "client.toml").write_text(client.replace(FAR, Network.atServer[0]))
        (self.folder / "exit.toml").write_text(allowed)

    def command(self, command: str, *sides: str) -> list[str]:
        """Run C{udptunnel} in the namespaces of some sides, at the same time; what it has said at each of them."""
        running = {side: self._launch(command, side) for side in sides}
        ended = {side: (*each.communicate(timeout=60), each.returncode) for side, each in running.items()}
        for side, (_, complaint, status) in ended.items():
            self.assertEqual(status, 0, complaint + self.log(side))
        return [said for said, _, _ in ended.values()]

    def _launch(self, command: str, side: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.sides[side].command(*UDPTUNNEL, command, "--run-dir", "run", f"{side}.toml"),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def up(self, *sides: str) -> list[str]:
        """Bring sides up."""
        return self.command("up", *sides)

    def downIfUp(self, side: str) -> None:
        """Take down what a test that has failed has left."""
        if (self.folder / "run" / f"{side}.pid").exists():
            self.command("down", side)

    def down(self, *sides: str) -> None:
        """Take sides down: no process, route, rule or device of them is left."""
        self.command("down", *sides)
        for side in sides:
            self.assertEqual(processes(self.sides[side]), {})
            self.assertEqual(wiring(self.sides[side]), self.wirings[side])
            self.assertNotIn("Traceback", self.log(side))

    def log(self, side: str) -> str:
        file = self.folder / "run" / f"{side}.log"
        return file.read_text() if file.exists() else ""

    def kill(self, side: str, name: str) -> None:
        """Kill a program of a side, as C{kill -9} does."""
        until(lambda: name in processes(self.sides[side]), f"{name} does not run")
        os.kill(processes(self.sides[side])[name], signal.SIGKILL)


def processes(namespace: Namespace) -> dict[str, int]:
    """What runs in a namespace, by name."""
    found = {}
    for number in run("ip", "netns", "pids", namespace.name).split():
        try:
            found[Path(f"/proc/{number}/comm").read_text().strip()] = int(number)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class WholeTests(UpTestCase):
    """The whole chain, from nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.write(CLIENT, EXIT)

    def pulse(self) -> Pulse:
        """Datagrams that go into the TUN all the time."""
        with self.network.client.entered():
            udp = Application(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((Network.atClient[0], 0))
        self.addCleanup(udp.close)
        pulse = Pulse(udp, (Network.atTarget[0], ECHO))
        self.addCleanup(pulse.stop)
        return pulse

    def assertBeats(self, pulse: Pulse, what: str, seconds: float = AGAIN_SECONDS) -> None:
        now = time.monotonic()
        until(lambda: pulse.last > now, f"no echo, {what}", seconds)

    def test_together(self) -> None:
        """
        Two commands at the same time bring a datagram through, and two others leave nothing behind.

        Each program of the chain is killed under traffic meanwhile; datagrams come again soon.
        """
        exit_, client = self.up("exit", "client")
        self.assertRegex(client, r"(?m)^tun2socks +is up$")
        self.assertRegex(exit_, r"(?m)^ss-server +runs, process \d+$")
        pulse = self.pulse()
        self.assertBeats(pulse, "at first", SETTLED_SECONDS)
        for side, name in (
            ("client", "ss-local"),
            ("client", "obfs-local"),
            ("exit", "ss-server"),
            ("exit", "obfs-server"),
        ):
            before = processes(self.sides[side])
            self.kill(side, name)
            self.assertBeats(pulse, f"although {name} was only killed")
            self.assertNotEqual(processes(self.sides[side])[name], before.get(name))
        pulse.stop()
        self.down("exit", "client")

    def test_clientFirst(self) -> None:
        """
        The client may be up long before the exit.

        If udptunnel itself is killed nothing of it stays but rules, which C{down} removes.
        """
        self.up("client")
        self.up("exit")
        pulse = self.pulse()
        self.assertBeats(pulse, "at first", SETTLED_SECONDS)
        self.assertNotEqual(wiring(self.network.client), self.wirings["client"])
        process = int((self.folder / "run" / "client.pid").read_text().split()[0])
        os.kill(process, signal.SIGKILL)
        until(lambda: processes(self.network.client) == {}, "a carrier is left")
        self.down("client")
        self.up("client")
        self.assertBeats(pulse, "when it is up again", SETTLED_SECONDS)
        pulse.stop()
        self.down("client", "exit")


class PluginTests(CarrierTestCase):
    """Links through simple-obfs, without shadowsocks."""

    programs = "obfs-local", "obfs-server"

    def test_obfs(self) -> None:
        """
        Datagrams get through, whatever simple-obfs makes of the link; when it is killed they do again.

        obfs-server has udp-server's place; who does not speak as obfs-local does hears nothing of udp-server.
        """
        for how in ("http", "tls"):
            server = self.startServer("--plugin", "obfs-server", "--plugin-opts", f"obfs={how}")
            self.assertDisguised()
            options = "--plugin", "obfs-local", "--plugin-opts", f"obfs={how};obfs-host=www.example.org"
            self.assertCarried(*options, server=f"tcp:{Network.atServer[0]}:{LINK}")
            local = self._started[-1]
            for namespace, name in ((self.network.client, "obfs-local"), (self.network.server, "obfs-server")):
                os.kill(processes(namespace)[name], signal.SIGKILL)
                with open_(self.network.client, LOOPBACK) as udp:
                    udp.settimeout(0.3)
                    until(lambda: self.answers(udp), f"no answer although {name} was only killed", 5)
            local.stop()
            server.stop()
            self.assertEqual(processes(self.network.client) | processes(self.network.server), {})

    def assertDisguised(self) -> None:
        """Where the links come in there is obfs-server, which says nothing of us."""
        with self.network.server.entered():
            listeners = run("ss", "-Hlnt")
        self.assertIn(f"{Network.atServer[0]}:{LINK}", listeners)
        with open_(self.network.client, Network.atClient[0], kind=socket.SOCK_STREAM) as tcp:
            tcp.connect((Network.atServer[0], LINK))
            tcp.sendall(b"nonsense\r\n\r\n" * 10)
            tcp.shutdown(socket.SHUT_WR)
            self.assertNotIn(b"UDPT", tcp.recv(100))

    def answers(self, udp: object) -> bool:
        try:
            return exchange(udp, (LOOPBACK, FORWARD), b"again") == b"again"  # type: ignore[arg-type]
        except TimeoutError:
            return False
