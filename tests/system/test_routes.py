"""Real routes: what a real kernel makes of them, and what is left when it is over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.system.namespaces import Namespace, run
from tests.system.turns import TakesTurns
from tests.test_plugins import TWISTD, environment
from udptunnel.errors import RouteError
from udptunnel.net.routes import FIRST_TABLE, MARK, PROTOCOL, Capture, Routes
from udptunnel.net.rtnetlink import MAIN, KernelRoute, LinuxRouting, Rule

GATEWAY, GATEWAY6 = "10.1.0.2", "fd00:1::2"
SERVER, SERVER6 = "203.0.113.5", "2001:db8:5::5"
FAR, FAR6 = "198.51.100.7", "2001:db8:7::7"
SECONDS = 20.0
SO_MARK = 36

HOLD = """
import sys
from udptunnel.net.routes import Capture, Routes
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.core.counters import Counters
from udptunnel.net.testing import PortReactor
from tests.system.test_routes import capture
name = sys.argv[1]
port = TunPort(PortReactor(), Interface(name, ("10.9.0.1/24",)), None, TunOffload(), Counters())
port.open()
routes = Routes(capture(name))
routes.start(name)
print("started", flush=True)
sys.stdin.readline()
routes.stop()
port.close()
"""
"""A process that captures everything until it reads a line."""


def capture(name: str) -> Capture:
    """What these processes capture, each in a network of its own besides."""
    networks = f"192.0.{name[3:]}.0/24", f"2001:db8:{name[3:]}::/48"
    return Capture(networks, everything=True, names=True, past=(SERVER, SERVER6))


class RouteTestCase(TakesTurns, SynchronousTestCase):
    """
    client -- gateway, behind which everything else is.

    When a test ends the client's routes and rules are what they were.
    """

    timeout = 120

    def setUp(self) -> None:
        if os.geteuid() or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
            raise SkipTest("namespaces and TUNs need root, ip and /dev/net/tun")
        self.client, self.gateway = Namespace("c"), Namespace("g")
        self.addCleanup(self.client.remove)
        self.addCleanup(self.gateway.remove)
        self.client.ip("link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", self.gateway.name)
        for namespace, name, addresses in (
            (self.client, "up0", ("10.1.0.1/24", "fd00:1::1/64")),
            (self.gateway, "down0", (f"{GATEWAY}/24", f"{GATEWAY6}/64")),
            (self.gateway, "lo", (f"{SERVER}/32", f"{SERVER6}/128", f"{FAR}/32", f"{FAR6}/128")),
        ):
            for address in addresses:
                namespace.addAddress(address, name)
            namespace.ip("link", "set", name, "up")
        self.client.ip("route", "add", "default", "via", GATEWAY, "metric", "100")
        self.client.ip("route", "add", "default", "via", GATEWAY6, "metric", "1024")
        self.before = self.state()
        self.system = LinuxRouting()

    def state(self) -> list[str]:
        """Everything that a user would look at."""
        return [
            run(*self.client.command("ip", *words)).replace("linkdown ", "")
            for words in (
                ("rule",),
                ("-6", "rule"),
                ("route", "show", "table", "all"),
                ("-6", "route", "show", "table", "all"),
                ("-o", "link", "show", "type", "tun"),
            )
        ]

    def assertRestored(self) -> None:
        """All is what it was before."""
        for now, then in zip(self.state(), self.before, strict=True):
            self.assertEqual(now, then)

    def makeTun(self, name: str = "tun0", *addresses: str) -> int:
        """A TUN that stays although nobody has it open; returns its number."""
        self.client.ip("tuntap", "add", name, "mode", "tun")
        for address in addresses or ("10.9.0.1/24",):
            self.client.addAddress(address, name)
        self.client.ip("link", "set", name, "up")
        return next(device.number for device in self.system.devices() if device.name == name)

    def reaches(self, host: str, mark: int = 0) -> bool:
        """Whether a datagram of ours gets to a host behind the gateway, and the answer back."""
        with self.gateway.entered():
            server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        with self.client.entered():
            client = socket.socket(server.family, socket.SOCK_DGRAM)
        with server, client:
            server.bind((host, 0))
            server.settimeout(0.5)
            client.settimeout(0.5)
            client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            try:
                client.sendto(b"hello", server.getsockname()[:2])
                server.sendto(*server.recvfrom(100))
                return client.recv(100) == b"hello"
            except OSError:
                return False

    def leads(self, host: str, mark: int = 0) -> str:
        """The name of the device by which packets to a host leave; empty if there is none."""
        try:
            number = self.system.deviceTowards(host, mark)
        except OSError:
            return ""
        return next(device.name for device in self.system.devices() if device.number == number)

    def hold(self, name: str) -> subprocess.Popen[str]:
        """A process that captures everything."""
        process = subprocess.Popen(
            self.client.command(sys.executable, "-c", HOLD, name),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdin is not None
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "started\n")
        return process

    def release(self, process: subprocess.Popen[str]) -> None:
        """Let such a process come to its end."""
        process.communicate("\n", SECONDS)
        self.assertEqual(process.returncode, 0)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Let it not even do that."""
        process.kill()
        process.wait(SECONDS)


class SystemTests(RouteTestCase):
    """L{LinuxRouting}."""

    def test_back(self) -> None:
        """Each kind of rule and route that we make is read back as it was made, and can be removed."""
        with self.client.entered():
            tun = self.makeTun("tun0", "10.9.0.1/24", "fd00:9::1/64")
            rules = [
                *(Rule(family, 30003, PROTOCOL) for family in (4, 6)),
                Rule(4, 30000, PROTOCOL, jump=30003, to=f"{SERVER}/32"),
                Rule(6, 30000, PROTOCOL, jump=30003, to="2001:db8::/32"),
                *(Rule(family, 30001, PROTOCOL, MAIN, specific=True) for family in (4, 6)),
                *(Rule(family, 30005, PROTOCOL, MAIN, specific=True, notPort=53) for family in (4, 6)),
                *(Rule(family, 30002, PROTOCOL, FIRST_TABLE, notMark=MARK) for family in (4, 6)),
            ]
            routes = [
                KernelRoute("0.0.0.0/0", tun, "", FIRST_TABLE, 0, PROTOCOL),
                KernelRoute("::/0", tun, "", FIRST_TABLE, 1024, PROTOCOL),
                KernelRoute("0.0.0.0/0", 0, "", FIRST_TABLE + 1, 0, PROTOCOL),
                KernelRoute("::/0", 0, "", FIRST_TABLE + 1, 1024, PROTOCOL),
                KernelRoute("0.0.0.0/0", tun, "10.9.0.1", MAIN, 5, PROTOCOL),
                KernelRoute("192.0.2.0/24", tun, "10.9.0.2", MAIN, 0, PROTOCOL),
                KernelRoute("::/0", tun, "fd00:9::2", MAIN, 5, PROTOCOL),
            ]
            for rule in rules:
                self.system.addRule(rule)
            for route in routes:
                self.system.addRoute(route)
                self.assertRaises(FileExistsError, self.system.addRoute, route)
            self.assertEqual(sorted(self.system.rules(PROTOCOL)), sorted(rules))
            self.assertEqual(sorted(self.system.routes(PROTOCOL)), sorted(routes))
            for rule in rules:
                self.system.removeRule(rule)
                self.assertRaises(OSError, self.system.removeRule, rule)
            for route in routes:
                self.system.removeRoute(route)
                self.assertRaises(OSError, self.system.removeRoute, route)
            self.system.removeDevice(tun)
        self.assertRestored()

    def test_devices(self) -> None:
        """A TUN has a carrier while it is open, and the families of its addresses that are not for neighbours only."""
        with self.client.entered():
            self.makeTun("tun0", "10.9.0.1/24")
            self.makeTun("tun1", "fd00:9::1/64")
            devices = {device.name: device for device in self.system.devices()}
            self.assertEqual((devices["tun0"].families, devices["tun1"].families), ({4}, {6}))
            self.assertEqual((devices["tun0"].carrier, devices["up0"].carrier), (False, True))
            self.system.setAlias(devices["tun0"].number, "mine")
            self.assertEqual({device.alias for device in self.system.devices()}, {"", "mine"})


class CaptureTests(RouteTestCase):
    """L{Routes} on a real kernel."""

    def start(self, wanted: Capture, *addresses: str) -> Routes:
        """Routes through a TUN that nobody reads."""
        self.makeTun("tun0", *addresses)
        self.before = self.state()
        routes = Routes(wanted)
        routes.start("tun0")
        self.addCleanup(lambda: self.within(routes.stop))
        return routes

    def within(self, call: Callable[[], object]) -> None:
        with self.client.entered():
            call()

    def test_everything(self) -> None:
        """Packets without our mark go into the TUN, those with it and those to the servers do not."""
        with self.client.entered():
            routes = self.start(Capture(everything=True, past=(SERVER, SERVER6)), "10.9.0.1/24", "fd00:9::1/64")
            for host, mark, device in (
                *((FAR, 0, "tun0"), (FAR6, 0, "tun0"), (FAR, MARK, "up0"), (FAR6, MARK, "up0")),
                *((SERVER, 0, "up0"), (SERVER6, 0, "up0"), ("127.0.0.1", 0, "lo"), ("::1", 0, "lo")),
                *((GATEWAY, 0, "up0"), (GATEWAY6, 0, "up0"), ("10.9.0.2", 0, "tun0")),
            ):
                self.assertEqual(self.leads(host, mark), device, (host, mark))
            self.assertFalse(routes.leadsBack(FAR))
        self.assertEqual((self.reaches(FAR), self.reaches(FAR, MARK), self.reaches(SERVER)), (False, True, True))
        self.assertEqual((self.reaches(FAR6), self.reaches(FAR6, MARK), self.reaches(SERVER6)), (False, True, True))
        self.within(routes.stop)
        self.assertRestored()
        self.assertTrue(self.reaches(FAR) and self.reaches(FAR6))

    def test_ipv6Blocked(self) -> None:
        """Without an IPv6 address of the TUN nothing leaves by IPv6, except what has our mark."""
        with self.client.entered():
            routes = self.start(Capture(everything=True))
            self.assertEqual((self.leads(FAR6), self.leads(FAR6, MARK)), ("", "up0"))
        self.within(routes.stop)
        self.assertRestored()

    def test_strict(self) -> None:
        """Answers of the servers come in where the reverse path filter is strict, which drops all others' answers."""
        with self.client.entered():
            filters = Path("/proc/sys/net/ipv4/conf")
            (filters / "all" / "rp_filter").write_text("1")
            self.start(Capture(everything=True, past=(SERVER,)))
            self.assertEqual((filters / "tun0" / "rp_filter").read_text(), "2\n")
            self.assertEqual((filters / "up0" / "rp_filter").read_text(), "0\n")
        self.assertTrue(self.reaches(SERVER, MARK))
        # Were it not for the rule, this would be the servers' lot.
        self.assertFalse(self.reaches(FAR, MARK))

    def test_loop(self) -> None:
        """A server in a network that goes into the TUN is found out by asking the kernel."""
        with self.client.entered():
            routes = self.start(Capture(("203.0.113.0/24",)))
            self.assertRaises(RouteError, routes.refuseLoops, "--socks-server-addr", [SERVER])
            routes.refuseLoops("--socks-server-addr", [FAR, GATEWAY, "127.0.0.1"])

    def test_taken(self) -> None:
        """A route that is there already is an error that names it, and nothing of ours stays."""
        with self.client.entered():
            self.makeTun()
            before = self.state()
            error = self.assertRaises(RouteError, Routes(Capture((FAR, "10.1.0.0/24"))).start, "tun0")
            self.client.ip("route", "add", "192.0.2.0/24", "via", GATEWAY)
            error = self.assertRaises(RouteError, Routes(Capture((FAR, "192.0.2.0/24"))).start, "tun0")
            self.client.ip("route", "del", "192.0.2.0/24")
            self.assertIn("--route 192.0.2.0/24", str(error))
            self.assertEqual(self.state(), before)

    def test_processes(self) -> None:
        """Several processes capture, one is killed, another one stops: in the end all is as it was before."""
        first, second = self.hold("tun1"), self.hold("tun2")
        with self.client.entered():
            self.assertEqual((self.leads(FAR), self.leads("192.0.1.1")), ("tun2", "tun1"))
        self.kill(first)
        third = self.hold("tun1")
        with self.client.entered():
            self.assertEqual((self.leads(FAR), self.leads(FAR, MARK)), ("tun2", "up0"))
        self.release(second)
        with self.client.entered():
            self.assertEqual(self.leads(FAR), "tun1")
        self.release(third)
        self.assertRestored()

    def test_killed(self) -> None:
        """After kill -9 the next start and stop leave nothing, whether the TUN is gone or not."""
        self.kill(self.hold("tun1"))
        self.assertNotEqual(self.state(), self.before)
        self.release(self.hold("tun2"))
        self.assertRestored()
        with self.client.entered():
            self.makeTun("tun1")
        self.kill(self.hold("tun1"))
        with self.client.entered():
            self.assertEqual(self.leads(FAR), "tun1")
        self.release(self.hold("tun2"))
        with self.client.entered():
            self.assertEqual((self.system.rules(PROTOCOL), self.system.routes(PROTOCOL)), ([], []))
        self.client.ip("link", "del", "tun1")
        self.assertRestored()


class Client:
    """A client of proxy-controller."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._lines = self._socket.makefile("rb")

    def say(self, request: object) -> None:
        """Ask for something."""
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next line."""
        line = self._lines.readline()
        if not line:
            raise ConnectionError("it was closed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Go away."""
        self._lines.close()
        self._socket.close()


class ControllerTests(RouteTestCase):
    """proxy-controller as a process."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = os.path.relpath(self.folder / "c")
        self.process = self.start()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A controller that takes commands."""
        command = [sys.executable, "-c", TWISTD, "-n", "proxy-controller", "--socket", self.path, *words]
        log = open(self.folder / "log", "ab")
        self.addCleanup(log.close)
        process = subprocess.Popen(self.client.command(*command), env=environment(), stdout=log, stderr=log)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                self.ask(self.connect(), "status")
            except OSError:
                time.sleep(0.02)
            else:
                return process
        raise AssertionError(Path(self.folder / "log").read_text())

    def connect(self) -> Client:
        """A client."""
        client = Client(self.path)
        self.addCleanup(client.close)
        return client

    def ask(self, client: Client, action: str, **parameters: str) -> dict[str, Any]:
        """The answer to a request."""
        client.say({"action": action, "parameters": parameters})
        return client.hear()

    def waitFor(self, condition: Callable[[], bool]) -> None:
        """Until something is so."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def configure(self, client: Client) -> dict[str, Any]:
        """The document's command."""
        return self.ask(client, "configureRouting", proxyIp=SERVER, routerIp="10.0.85.1")

    def stop(self) -> None:
        """The controller ends."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)

    def withoutTun(self) -> list[str]:
        """Rules and routes but those that every device has."""
        return ["\n".join(line for line in text.splitlines() if "tun0" not in line) for text in self.state()[:4]]

    def test_configure(self) -> None:
        """The default route leads through the TUN as the document has it; the proxy is reached, nothing else is."""
        client = self.connect()
        self.assertEqual(self.configure(client)["statusCode"], 0)
        routes = run(*self.client.command("ip", "route"))
        self.assertIn("default via 10.0.85.1 dev tun0", routes)
        self.assertIn(f"{SERVER} via {GATEWAY} dev up0", routes)
        self.assertEqual((self.reaches(SERVER), self.reaches(FAR), self.reaches(FAR6)), (True, False, False))
        self.assertEqual(self.ask(client, "status")["connectionStatus"], 0)
        self.assertEqual(self.ask(client, "resetRouting")["connectionStatus"], 1)
        # The neighbour may have to be found again first, which takes longer than one try.
        self.waitFor(lambda: self.reaches(FAR) and self.reaches(FAR6))
        self.stop()
        self.assertRestored()

    def test_clientGone(self) -> None:
        """A client that is killed takes its routes with it."""
        client = self.connect()
        self.configure(client)
        self.assertFalse(self.reaches(FAR))
        client.close()
        self.waitFor(lambda: self.reaches(FAR))
        self.assertEqual(self.withoutTun(), [text.rstrip("\n") for text in self.before[:4]])

    def test_stopped(self) -> None:
        """So does the controller."""
        self.configure(self.connect())
        self.stop()
        self.assertRestored()

    def test_killed(self) -> None:
        """A controller that is killed leaves everything; the next one removes it."""
        self.configure(self.connect())
        self.process.kill()
        self.process.wait(SECONDS)
        self.assertFalse(self.reaches(FAR))
        self.process = self.start()
        self.waitFor(lambda: self.reaches(FAR) and self.reaches(FAR6))
        self.stop()
        self.assertRestored()

    def test_gatewayChanges(self) -> None:
        """When the gateway changes, so does the proxy's route, and clients are told."""
        client = self.connect()
        self.configure(client)
        self.gateway.addAddress("10.1.0.3/24", "down0")
        self.client.ip("route", "replace", "default", "via", "10.1.0.3", "metric", "100")
        self.assertEqual([client.hear()["connectionStatus"] for _ in range(2)], [2, 0])
        self.assertIn(f"{SERVER} via 10.1.0.3 dev up0", run(*self.client.command("ip", "route")))
        self.assertTrue(self.reaches(SERVER))
        self.client.ip("route", "del", "default", "via", "10.1.0.3")
        self.assertEqual(client.hear()["connectionStatus"], 2)
        self.assertFalse(self.reaches(SERVER))
        self.client.ip("route", "add", "default", "via", GATEWAY, "metric", "100")
        self.assertEqual(client.hear()["connectionStatus"], 0)
        self.stop()
        self.assertRestored()

    def test_owner(self) -> None:
        """The TUN is for the controller's user alone, unless another one is named; that one can open it."""
        attach = (
            # Where the file itself is for root alone, this is what a device group would allow.
            "import fcntl, os, struct; tun = os.open('/dev/net/tun', os.O_RDWR); os.setuid(65534);"
            "fcntl.ioctl(tun, 0x400454CA, struct.pack('16sH22x', b'tun0', 0x1001))"
        )

        def attached() -> bool:
            return not subprocess.run(
                self.client.command(sys.executable, "-c", attach), capture_output=True, timeout=SECONDS
            ).returncode

        self.assertFalse(attached())
        self.stop()
        self.process = self.start("--owner", "65534")
        self.assertTrue(attached())

    def test_second(self) -> None:
        """A second controller in the same network is refused, and the first one does not notice."""
        client = self.connect()
        self.configure(client)
        before = self.state()
        first, self.path = self.path, os.path.relpath(self.folder / "d")
        self.assertRaises(AssertionError, self.start, "--tundev", "tun5")
        self.path = first
        self.assertIn("which is running", (self.folder / "log").read_text())
        self.assertEqual(self.state(), before)
        self.assertEqual(self.ask(client, "status")["connectionStatus"], 0)
