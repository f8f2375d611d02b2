"""
A client whose traffic goes into a TUN, SOCKS5 servers beyond it, and targets behind these.

The network is that of every other system test: nothing is routed between the
client and the target, so what arrives there went through the TUN.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.system.clients import open_
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import SECONDS, SOCKS, TWISTD, Program, SystemTestCase

DEVICE = "tun5"
PROXY = 1080
"""The port of the SOCKS5 server, at the server and for TCP."""

STORE, WEB, CLOSED = 7100, 8080, 7199
"""Ports of the target: of a L{Store}, of a L{Web}, and one where nobody listens."""

DESCRIPTORS = 100_000

ROUTES = "10.77.2.0/24", "fd77:2::/64"
"""What goes into the TUN unless a test says otherwise: the networks of the target."""

HEV = "HEV_SOCKS5_SERVER"
"""The environment variable that may hold the path of hev-socks5-server, which Debian does not have."""


DANTE = f"""
logoutput: stderr
internal: {Network.atServer[0]} port = {PROXY}
external: up0
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
udp.connectdst: no
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 command: connect udpassociate }}
socks pass {{ from: 0/0 to: 0/0 command: udpreply }}
"""


class Store:
    """
    A TCP target: takes what a client sends, and answers with the same number of other bytes and the hash of what came.

    How much it takes is said first, in eight bytes; nothing means all until the client has closed its half.

    @ivar clients: who has connected.
    """

    def __init__(self, namespace: Namespace, *addresses: tuple[str, int]) -> None:
        self.clients: list[tuple[str, int]] = []
        self._listeners = [open_(namespace, host, port, socket.SOCK_STREAM) for host, port in addresses]
        for each in self._listeners:
            each.settimeout(None)
            each.listen(4096)
            threading.Thread(target=self._accept, args=(each,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, peer = listener.accept()
                self.clients.append(peer[:2])
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            told = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
            digest, count = digestOf(connection, told or None)
            connection.sendall(block(count))
            connection.sendall(digest)

    def close(self) -> None:
        """Listen no more."""
        for each in self._listeners:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def digestOf(connection: socket.socket, most: int | None = None) -> tuple[bytes, int]:
    """
    The hash of what comes, and how much that is.

    @param most: after how much to stop; otherwise all until the end.
    """
    digest, memory, total = hashlib.sha256(), memoryview(bytearray(1 << 18)), 0
    while total != most and (count := connection.recv_into(memory, min(len(memory), (most or 1 << 62) - total))):
        digest.update(memory[:count])
        total += count
    return digest.digest(), total


def block(size: int) -> bytes:
    """So many bytes, the same each time, no two parts of them alike."""
    return hashlib.shake_128(b"block").digest(size)


def store(connection: socket.socket, size: int, halfClose: bool = False) -> None:
    """
    Give a L{Store} so many bytes, and see that it got them, and that those that it sends come, and nothing else.

    @param halfClose: whether to say by closing our half that this was all.
    @raise AssertionError: something else came there, or here.
    """
    sent = block(size)
    connection.sendall((0 if halfClose else size).to_bytes(8, "big"))
    connection.sendall(sent)
    if halfClose:
        connection.shutdown(socket.SHUT_WR)
    digest, count = digestOf(connection)
    whole = hashlib.sha256(sent + hashlib.sha256(sent).digest()).digest()
    if (digest, count) != (whole, size + hashlib.sha256().digest_size):
        raise AssertionError(f"{count} bytes came, and they are not what they should be")


class _Page(BaseHTTPRequestHandler):
    # HTTP/1.0: a connection for each page.

    def do_GET(self) -> None:
        text = f"This is {self.path}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Web:
    """A web server: each page says what it is."""

    def __init__(self, namespace: Namespace, host: str, port: int = WEB, handler: Callable[..., Any] = _Page) -> None:
        """
        @param handler: what answers requests.
        """

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            request_queue_size = 512
            daemon_threads = True

        with namespace.entered():
            self._server = Server((host, port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _File(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Files(Web):
    """A web server that has files, at all addresses of both families."""

    def __init__(self, namespace: Namespace, folder: Path, port: int) -> None:
        super().__init__(namespace, "::", port, partial(_File, directory=str(folder)))


def wiring(namespace: Namespace) -> str:
    """All routes, rules, devices and filters of a namespace, as they are to be once everything is over."""
    lists = "rule", "-6 rule", "route show table all", "-6 route show table all", "-br link"
    parts = [run("ip", "-n", namespace.name, *each.split()) for each in lists]
    return "\n".join([*parts, run(*namespace.command("nft", "list", "ruleset"))])


class Filter:
    """Counters of C{nft} in a namespace; they count what arrives."""

    def __init__(self, namespace: Namespace, **rules: str) -> None:
        """
        @param rules: by name, what is counted, in the words of C{nft}.
        """
        self._namespace = namespace
        lines = ["table inet counted {", *(f"counter {name} {{}}" for name in rules)]
        lines += ["chain input { type filter hook prerouting priority -300;"]
        lines += [f"{rule} counter name {name}" for name, rule in rules.items()]
        run(*namespace.command("nft", "-f", "-"), text="\n".join([*lines, "}", "}"]) + "\n")

    def __getitem__(self, name: str) -> int:
        """How many packets."""
        words = "nft", "-j", "list", "counter", "inet", "counted", name
        listed = json.loads(run(*self._namespace.command(*words)))["nftables"]
        return next(int(each["counter"]["packets"]) for each in listed if "counter" in each)


class TunnelledTestCase(SystemTestCase):
    """
    A test of tun2socks.

    @ivar status: the Unix socket where a role that was started with C{startTun} tells its state.
    """

    programs: tuple[str, ...] = ("nft",)

    def setUp(self) -> None:
        super().setUp()
        if not os.path.exists("/dev/net/tun"):
            raise SkipTest("there is no /dev/net/tun")
        # A Unix socket's path must not be long.
        folder = Path(tempfile.mkdtemp(prefix="tun2socks-"))
        self.addCleanup(shutil.rmtree, folder)
        self.status = folder / "status"

    def allowDescriptors(self) -> None:
        """Allow this process, and those that it starts from now on, as many descriptors as may be."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    # -- programs

    def startTun(self, *options: str, proxy: str = f"{Network.atServer[0]}:{PROXY}") -> Program:
        """Start tun2socks at the client, and wait until it is ready."""
        return self.launchTun(*options, proxy=proxy).says("tun2socks: TUN")

    def launchTun(
        self, *options: str, proxy: str = f"{Network.atServer[0]}:{PROXY}", routes: tuple[str, ...] = ROUTES
    ) -> Program:
        """
        Start tun2socks at the client.

        @param routes: none for what sets routes by itself.
        """
        words = ["--tundev", DEVICE, "--socks-server-addr", proxy, "--status", f"unix:{self.status}"]
        words += [word for each in routes for word in ("--route", each)]
        return self.start(self.network.client, *TWISTD, "tun2socks", *words, *options)

    def startProxy(self) -> Program:
        """Start a SOCKS5 server for TCP: hev-socks5-server if somebody has said where it is, otherwise microsocks."""
        path = os.environ.get(HEV)
        return self.startHev(path) if path else self.startMicrosocks()

    def startHev(self, path: str) -> Program:
        """Start hev-socks5-server with one worker."""
        file = self.folder / "hev.yml"
        # What YAML needs is a part of what JSON has.
        file.write_text(json.dumps({"main": {"workers": 1, "port": PROXY, "listen-address": "::"}}))
        return self.start(self.network.server, path, str(file)).listens(PROXY)

    def startDante(self) -> Program:
        """Start Dante, which carries TCP and UDP, and can close half of a connection; microsocks closes both."""
        file = self.folder / "danted.conf"
        file.write_text(DANTE)
        return self.start(self.network.server, "danted", "-f", str(file)).listens(PROXY)

    def startMicrosocks(self, *options: str) -> Program:
        """Start a SOCKS5 server that does TCP alone."""
        return self.start(self.network.server, "microsocks", "-p", str(PROXY), *options).listens(PROXY)

    def startUdpProxy(self, *options: str) -> str:
        """Start both ends of ours, for their SOCKS5 server with UDP; HOST:PORT of it."""
        self.startServer()
        self.startLocal(*options).says("is up")
        return f"127.0.0.1:{SOCKS}"

    def startWithUdp(self, *options: str) -> Program:
        """Start a SOCKS5 server for TCP, both ends of ours for UDP, and tun2socks before both."""
        self.startProxy()
        return self.startTun("--udp-socks-server-addr", self.startUdpProxy(), *options)

    def startNameServer(self, *options: str) -> Program:
        """Start dnsmasq at the target."""
        words = f"--listen-address={Network.atTarget[0]}", "--bind-interfaces", "--no-resolv", "--no-hosts"
        log = "--conf-file=/dev/null", "--log-queries", "--log-facility=-", "--user=root"
        command = "dnsmasq", "--no-daemon", *words, *log, *options
        return self.start(self.network.target, *command).listens(53, "udp")

    # -- targets and clients

    def addStore(self) -> Store:
        """A L{Store} at both addresses of the target."""
        made = Store(self.network.target, *((host, STORE) for host in Network.atTarget))
        self.addCleanup(made.close)
        return made

    def addWeb(self, host: str = Network.atTarget[0]) -> None:
        """A L{Web} at an address of the target."""
        self.addCleanup(Web(self.network.target, host).close)

    def client(self, host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of the client's, for a target of this family."""
        with self.network.client.entered():
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        self.addCleanup(made.close)
        made.settimeout(SECONDS)
        return made

    def assertStored(self, size: int = 1 << 16, halfClose: bool = False) -> None:
        """Connections to a L{Store} work, over IPv4 and IPv6."""
        for host in Network.atTarget:
            with self.client(host) as client:
                client.connect((host, STORE))
                store(client, size, halfClose)

    def curl(self, *words: str) -> str:
        """Run curl at the client, and return what it prints."""
        return self.ask(self.network.client, "curl", "-sS", "-m", "10", *words)

    # -- state

    def report(self) -> dict[str, Any]:
        """What the role says about itself."""
        words = "curl", "-sS", "-m", "5", "--unix-socket", str(self.status), "http://localhost/status.json"
        found: dict[str, Any] = json.loads(run(*words))
        return found
