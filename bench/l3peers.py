"""
Peers that carry whole IP packets between two sites: how each is started at both of them.

Five namespaces stand in a row, with the addresses of the example that PacketCord brings, because its program knows no
others: a host, the tunnel's near end, a router, the far end, and another host. Only the router routes::

    host 11.11.11.100  --  11.11.11.1 near 198.51.100.1  --  router  --  198.51.200.1 far 192.168.111.1  --  host ...100
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.peers import TWISTD, Peer
from bench.places import namespace
from bench.programs import Program, until

SERVER_PORT = 5201
TARGET = "192.168.111.100"
"""Where the traffic goes."""

KEY = "2Ab0mO1cJ0nDLOq0o9k0rUuHqO2J8m1bY0n0e5hS2lI="
"""32 bytes in base64, as C{udptunnel genkey} makes them."""


class End(NamedTuple):
    """One end of the tunnel: devices towards its host and towards the router, its addresses, and its host's."""

    inner: str
    outer: str
    network: str
    gateway: str
    host: str
    address: str
    router: str
    port: int


NEAR = End("veth1", "veth2", "11.11.11.0/24", "11.11.11.1", "11.11.11.100", "198.51.100.1", "198.51.100.2", 50000)
FAR = End("veth6", "veth5", "192.168.111.0/24", "192.168.111.1", TARGET, "198.51.200.1", "198.51.200.2", 60000)


class Row(NamedTuple):
    """The namespaces, by their names."""

    nearHost: str
    near: str
    router: str
    far: str
    farHost: str


@dataclass
class L3Run:
    """
    A peer that runs.

    @ivar row: where.
    @ivar programs: its processes at both ends; none if there is no peer.
    """

    row: Row
    programs: list[Program]

    def inside(self, *words: str) -> list[str]:
        """The command line that runs another one at the nearer host."""
        return _inside(self.row.nearHost, *words)


class L3Peer(Peer):
    """
    A peer that takes packets for the other site from a network device.

    @cvar offload: whether devices may hand over super-packets and open checksums.
    @cvar mtu: of the devices between hosts and ends.
    """

    needs: tuple[str, ...] = ()
    offload = True
    mtu = 1500

    def absence(self) -> str:
        """Why it can not be measured here, or nothing."""
        if os.geteuid():
            return "network namespaces need root"
        for name in ("ip", "iperf3", "ping", *(() if self.offload else ("ethtool",))):
            if shutil.which(name) is None:
                return f"{name} is not there"
        return super().absence()

    @contextmanager
    def between(self) -> Iterator[L3Run]:
        """
        Run it, until one host reaches the other.

        @raise bench.programs.BenchError: nothing gets through.
        """
        with TemporaryDirectory(prefix="bench-") as name, ExitStack() as undo:
            row = Row(*(undo.enter_context(namespace(role)) for role in Row._fields))
            self._wire(row)
            server = Program(_inside(row.farHost, "iperf3", "-s"), f"{name}/iperf3.log")
            undo.callback(server.stop)
            server.listens(SERVER_PORT)
            programs = self._begin(row, Path(name), undo)
            until(lambda: _reaches(row), f"{self.name}: one host does not reach the other")
            yield L3Run(row, programs)
            for program in programs:
                program.checkAlive()

    def _wire(self, row: Row) -> None:
        for namespaces, devices, addresses, mtu in (
            ((row.nearHost, row.near), ("veth0", NEAR.inner), (NEAR.host, NEAR.gateway), self.mtu),
            ((row.near, row.router), (NEAR.outer, "veth3"), (NEAR.address, NEAR.router), 1500),
            ((row.router, row.far), ("veth4", FAR.outer), (FAR.router, FAR.address), 1500),
            ((row.far, row.farHost), (FAR.inner, "veth7"), (FAR.gateway, FAR.host), self.mtu),
        ):
            ip(namespaces[0], "link", "add", devices[0], "type", "veth", "peer", devices[1], "netns", namespaces[1])
            for where, device, address in zip(namespaces, devices, addresses, strict=True):
                ip(where, "address", "add", f"{address}/24", "dev", device)
                ip(where, "link", "set", device, "mtu", str(mtu), "up")
                if not self.offload:
                    switch = _inside(where, "ethtool", "--offload", device, "rx", "off", "tx", "off")
                    subprocess.run(switch, check=True, stdout=subprocess.DEVNULL)
        for where, gateway in (
            (row.nearHost, NEAR.gateway),
            (row.near, NEAR.router),
            (row.far, FAR.router),
            (row.farHost, FAR.gateway),
        ):
            ip(where, "route", "add", "default", "via", gateway)
        _route(row.router)

    def _begin(self, row: Row, folder: Path, undo: ExitStack) -> list[Program]:
        programs = []
        for where, end, other in ((row.near, NEAR, FAR), (row.far, FAR, NEAR)):
            words = self.words(end, other, folder)
            programs.append(Program(_inside(where, *words), str(folder / f"{self.name}-{end.inner}.log")))
            undo.callback(programs[-1].stop)
            self.prepare(where, other)
        return programs

    def prepare(self, where: str, other: End) -> None:
        """Do at one end by hand what a peer does not do itself."""

    def words(self, end: End, other: End, folder: Path) -> list[str]:
        """
        Its command line at one end.

        @param folder: for files that it reads.
        """
        raise NotImplementedError


def ip(where: str, *words: str) -> None:
    """Run C{ip} in a namespace."""
    subprocess.run(["ip", "-n", where, *words], check=True)


def _inside(where: str, *words: str) -> list[str]:
    return ["ip", "netns", "exec", where, *words]


def _route(where: str) -> None:
    subprocess.run(_inside(where, "sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True)


def _reaches(row: Row) -> bool:
    return (
        subprocess.run(_inside(row.nearHost, "ping", "-c1", "-W1", TARGET), stdout=subprocess.DEVNULL).returncode == 0
    )


# -- ours


class OursL3(L3Peer):
    """Ours."""

    name = "ours-tun"
    title = "udptunnel, TUN"
    text = "ours, encrypted: `twistd l3-tunnel --setup --inject tun`"
    inject = "tun"

    def words(self, end: End, other: End, folder: Path) -> list[str]:
        key = folder / "key"
        if not key.exists():
            key.write_text(KEY + "\n")
            key.chmod(0o600)
        at = "--local", f"{end.address}:{end.port}", "--peer", f"{other.address}:{other.port}", "--key-file", str(key)
        what = "--interface", end.inner, "--capture", other.network, "--inject", self.inject, "--setup"
        return [*TWISTD, "l3-tunnel", *what, *at]


class OursL3Raw(OursL3):
    """Ours, with raw sockets."""

    name = "ours-raw"
    title = "udptunnel, raw sockets"
    text = "ours, encrypted: the same with `--inject raw`"
    inject = "raw"


# -- others


class PacketCord(L3Peer):
    """github.com/packetcord/packetcord.io, its application l3_tunnel."""

    name = "packetcord"
    title = "PacketCord"
    text = "PacketCord's l3_tunnel, in C, not encrypted; MTU 1420, and offloads off at all devices, as it needs"
    needs = ("PACKETCORD_TEP_A", "PACKETCORD_TEP_B")
    offload = False
    mtu = 1420

    def words(self, end: End, other: End, folder: Path) -> list[str]:
        return [os.environ[self.needs[end is FAR]]]

    def prepare(self, where: str, other: End) -> None:
        """Its documentation leaves that to its user."""
        ip(where, "route", "add", "blackhole", other.network)


class Routed(L3Peer):
    """No tunnel: all five route."""

    name = "routed"
    title = "no tunnel"
    text = "no tunnel: both ends route packets as they are"

    def _begin(self, row: Row, folder: Path, undo: ExitStack) -> list[Program]:
        ip(row.router, "route", "add", NEAR.network, "via", NEAR.address)
        ip(row.router, "route", "add", FAR.network, "via", FAR.address)
        for where in (row.near, row.far):
            _route(where)
        return []


class RoutedPlain(Routed):
    """The same, with the devices that PacketCord needs."""

    name = "routed-plain"
    title = "no tunnel, no offload"
    text = "no tunnel, with MTU 1420 and offloads off: what PacketCord's devices let through"
    offload = False
    mtu = 1420


L3_PEERS: tuple[L3Peer, ...] = (OursL3(), OursL3Raw(), PacketCord(), RoutedPlain(), Routed())
"""All of them, in the order of the table."""
