"""
Peers with a TUN: how each is started, in one of two namespaces, with a SOCKS5 server in the other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.peers import TWISTD, Peer, addressText
from bench.places import Place, Site, wired
from bench.programs import Program, until

DEVICE = "bench0"
TARGETS = "198.51.100.0/24"
TARGET = "198.51.100.7"
"""Where the traffic goes: only the far end has that address, and the near one sends what is for it into the TUN."""

OWN, ROUTER = "10.88.0.1", "10.88.0.2"
"""The TUN's own address, and the one beside it."""

PROXY_PORT, TARGET_PORT = 1080, 5201
SOCKS_VARIABLE = "HEV_SOCKS5_SERVER"


@dataclass
class TunRun:
    """
    A peer that runs.

    @ivar near: where its clients are.
    @ivar program: the peer's process; nothing if there is no peer.
    """

    near: Site
    program: Program | None


class TunPeer(Peer):
    """
    A peer that takes packets from a TUN and asks a SOCKS5 server to carry them on.

    @cvar makesDevice: whether it makes the TUN itself and gives it an address.
    @cvar setsRoute: whether it sets the route into it, too.
    """

    needs: tuple[str, ...] = ()
    makesDevice = True
    setsRoute = False

    def absence(self) -> str:
        """Why it can not be measured here, or nothing."""
        if os.geteuid():
            return "network namespaces need root"
        for name in ("ip", "iperf3", *(() if os.environ.get(SOCKS_VARIABLE) else ("microsocks",))):
            if shutil.which(name) is None:
                return f"{name} is not there"
        return super().absence()

    @contextmanager
    def between(self) -> Iterator[TunRun]:
        """
        Run it in the nearer of two namespaces, until what is for the targets goes through it.

        @raise bench.programs.BenchError: nothing gets through.
        """
        with TemporaryDirectory(prefix="bench-") as name, wired() as place, ExitStack() as undo:
            folder = Path(name)
            _addTarget(place.far)
            _serve(place.far, folder, undo)
            program = self._begin(place, folder, undo)
            until(lambda: _answers(place.near), f"{self.name}: no connection through the TUN")
            yield TunRun(place.near, program)
            if program is not None:
                program.checkAlive()

    def _begin(self, place: Place, folder: Path, undo: ExitStack) -> Program | None:
        if not self.makesDevice:
            _ip(place.near, "tuntap", "add", "dev", DEVICE, "mode", "tun")
            _ip(place.near, "address", "add", f"{OWN}/24", "dev", DEVICE)
            _ip(place.near, "link", "set", DEVICE, "up")
        proxy = addressText((place.far.host, PROXY_PORT))
        program = Program(place.near.command(*self.words(proxy, folder)), str(folder / f"{self.name}.log"))
        undo.callback(program.stop)
        until(lambda: _isUp(place.near), f"{self.name} makes no TUN; it says {program.lastWords!r}")
        program.checkAlive()
        if not self.setsRoute:
            _ip(place.near, "route", "add", TARGETS, "dev", DEVICE)
        return program

    def words(self, proxy: str, folder: Path) -> list[str]:
        """
        Its command line.

        @param proxy: HOST:PORT of the SOCKS5 server.
        @param folder: for files that it reads.
        """
        raise NotImplementedError


def _ip(site: Site, *words: str) -> None:
    subprocess.run(["ip", "-n", site.namespace, *words], check=True)


def _isUp(site: Site) -> bool:
    shown = subprocess.run(
        ["ip", "-n", site.namespace, "-4", "address", "show", DEVICE], capture_output=True, text=True
    )
    return ",UP" in shown.stdout and "inet " in shown.stdout


def _addTarget(far: Site) -> None:
    _ip(far, "address", "add", f"{TARGET}/32", "dev", "lo")


def _serve(far: Site, folder: Path, undo: ExitStack) -> None:
    """Start the SOCKS5 server and the target of the streams."""
    for port, words in ((PROXY_PORT, _proxyWords(far, folder)), (TARGET_PORT, ["iperf3", "-s", "-B", TARGET])):
        server = Program(far.command(*words), str(folder / f"{port}.log"))
        undo.callback(server.stop)
        server.listens(port)


def _proxyWords(far: Site, folder: Path) -> list[str]:
    path = os.environ.get(SOCKS_VARIABLE)
    if not path:
        return ["microsocks", "-i", far.host, "-p", str(PROXY_PORT)]
    configuration = folder / "socks.yml"
    # What YAML needs is a part of what JSON has.
    main = {"workers": 1, "port": PROXY_PORT, "listen-address": far.host, "udp-listen-address": far.host}
    configuration.write_text(json.dumps({"main": main}))
    return [path, str(configuration)]


def proxyName() -> str:
    """Which SOCKS5 server it is."""
    return "hev-socks5-server with one worker" if os.environ.get(SOCKS_VARIABLE) else "microsocks"


def _answers(near: Site) -> bool:
    """Whether a little gets to the target."""
    words = ["iperf3", "-J", "-c", TARGET, "-n", "1K", "--connect-timeout", "500"]
    try:
        done = subprocess.run(near.command(*words), capture_output=True, text=True, timeout=3)
        # Its exit status is 0 in any case.
        return "error" not in json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return False


# -- ours


class OursTun(TunPeer):
    """Ours."""

    name = "ours"
    title = "udptunnel"
    text = "ours: `twistd tun2socks`, MTU 1500"
    setsRoute = True
    options: tuple[str, ...] = ()

    def words(self, proxy: str, folder: Path) -> list[str]:
        at = "--tundev", DEVICE, "--netif-ipaddr", ROUTER, "--netif-netmask", "255.255.255.0", "--route", TARGETS
        return [*TWISTD, "tun2socks", *at, "--socks-server-addr", proxy, *self.options]


class OursNetns(OursTun):
    """Ours, with TCP in a namespace of its own."""

    name = "ours-netns"
    title = "udptunnel, netns"
    text = "ours: as the first, with `--stack netns`"
    options = ("--stack", "netns")


class OursPlainTun(OursTun):
    """Ours, without super-packets."""

    name = "ours-plain"
    title = "udptunnel, no offload"
    text = "ours: as the first, with `--tun-offload none`"
    options = ("--tun-offload", "none")


# -- others


class HevTun(TunPeer):
    """github.com/heiher/hev-socks5-tunnel."""

    name = "hev-8500"
    title = "hev, MTU 8500"
    text = "hev-socks5-tunnel, in C, with the MTU that it has by default"
    needs = ("HEV_SOCKS5_TUNNEL",)
    mtu = 8500

    def words(self, proxy: str, folder: Path) -> list[str]:
        host, _, port = proxy.rpartition(":")
        configuration = folder / "tunnel.yml"
        tunnel = {"name": DEVICE, "mtu": self.mtu, "multi-queue": False, "ipv4": OWN}
        socks = {"address": host, "port": int(port), "udp": "udp"}
        configuration.write_text(json.dumps({"tunnel": tunnel, "socks5": socks}))
        return [os.environ[self.needs[0]], str(configuration)]


class HevTunSmall(HevTun):
    """The same, with the MTU of Ethernet."""

    name = "hev-1500"
    title = "hev, MTU 1500"
    text = "hev-socks5-tunnel with the MTU that all others here have"
    mtu = 1500


class Badvpn(TunPeer):
    """github.com/ambrop72/badvpn."""

    name = "badvpn"
    title = "badvpn-tun2socks"
    text = "badvpn-tun2socks, in C"
    needs = ("BADVPN_TUN2SOCKS",)
    makesDevice = False

    def words(self, proxy: str, folder: Path) -> list[str]:
        at = "--tundev", DEVICE, "--netif-ipaddr", ROUTER, "--netif-netmask", "255.255.255.0"
        program = os.environ[self.needs[0]]
        return [program, *at, "--socks-server-addr", proxy, "--socks5-udp", "--loglevel", "warning"]


class Wheel(TunPeer):
    """github.com/xjasonlyu/tun2socks, by way of its wheel."""

    name = "wheel"
    title = "tun2socks (gVisor)"
    text = "xjasonlyu's tun2socks, in Go, from the wheel `tun2socks` on PyPI"
    makesDevice = False

    def absence(self) -> str:
        return super().absence() or ("" if find_spec("tun2socks") else "the wheel tun2socks is not installed")

    def words(self, proxy: str, folder: Path) -> list[str]:
        start = f"startFromArgs('tun://{DEVICE}', '', 'warning', 'socks5://{proxy}', '')"
        return [sys.executable, "-c", f"import tun2socks, time; tun2socks.{start}; time.sleep(1e6)"]


class DirectTun(TunPeer):
    """No TUN, and no SOCKS5 server."""

    name = "direct"
    title = "no TUN"
    text = "the same streams over the wire itself: what the machine and iperf3 can do"

    def _begin(self, place: Place, folder: Path, undo: ExitStack) -> Program | None:
        _ip(place.near, "route", "add", TARGETS, "via", place.far.host)
        return None


TUN_PEERS: tuple[TunPeer, ...] = (
    OursTun(),
    OursNetns(),
    OursPlainTun(),
    HevTunSmall(),
    HevTun(),
    Badvpn(),
    Wheel(),
    DirectTun(),
)
"""All of them, in the order of the table."""
