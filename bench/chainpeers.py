"""
Compositions of ours with shadowsocks and simple-obfs, and the same carriers without us.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import ClassVar

from bench.load import Way
from bench.peers import Direct, IperfTcp, Launch, Ours, Peer, nearUdp
from bench.places import LOOPBACK, Address, Site
from bench.programs import until
from bench.stream import StreamEcho, StreamWay

SECRET = "-k", "secret", "-m", "aes-256-gcm"
CARRIERS = "ss-local", "ss-tunnel", "ss-server", "obfs-local", "obfs-server"
"""The programs of carriers."""

NO_DELAY = "--no-delay"
"""Without it at both ends, shadowsocks lets small segments wait for the acknowledgement of others."""


@dataclass(frozen=True)
class Carrier:
    """
    A pair of shadowsocks' programs between the ends; C{ss-server} is always the one at the far end.

    @ivar near: the program at the near end; C{""} for no carrier at all.
    @ivar obfs: how simple-obfs disguises what is between them, if it does.
    """

    near: str = ""
    obfs: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The programs that must be there."""
        plugins = ("obfs-local", "obfs-server") if self.obfs else ()
        return (self.near, "ss-server", *plugins) if self.near else ()

    def plugin(self, name: str, *options: str) -> list[str]:
        """The options for an end's plugin."""
        if not self.obfs:
            return []
        return ["--plugin", name, "--plugin-opts", ";".join((f"obfs={self.obfs}", *options))]

    def carry(self, launch: Launch, target: Address) -> Address:
        """
        Start it, and return where the near end reaches a TCP target at the far end.

        With C{ss-local} that is a SOCKS5 server.
        """
        if not self.near:
            return target
        near, far = launch.place
        server, local = (far.host, far.freePort()), nearTcp(launch)
        both = "-s", server[0], "-p", str(server[1]), *SECRET, NO_DELAY
        launch.start(far, "ss-server", *both, *self.plugin("obfs-server")).listens(server[1])
        words = [self.near, *both, "-b", local[0], "-l", str(local[1])]
        words += self.plugin("obfs-local", "obfs-host=www.example.org")
        if self.near == "ss-tunnel":
            words += ["-L", f"{target[0]}:{target[1]}"]
        launch.start(near, *words).listens(local[1])
        return local


def nearTcp(launch: Launch) -> Address:
    """A free TCP address at the near end, on its loopback interface."""
    return "127.0.0.1", Site("127.0.0.1", launch.place.near.namespace).freePort()


DIRECT, TUNNEL, LOCAL = Carrier(), Carrier("ss-tunnel"), Carrier("ss-local")
HTTP, TLS = Carrier("ss-tunnel", "http"), Carrier("ss-tunnel", "tls")


# -- ours


class OursThrough(Ours):
    """Both ends of ours, and a carrier between them."""

    def __init__(self, name: str, title: str, carrier: Carrier) -> None:
        self.name, self.title, self._carrier = name, title, carrier
        self.needs = carrier.needs

    def _toServer(self, launch: Launch, port: int) -> list[str]:
        server = launch.place.far.host, port
        host, at = self._carrier.carry(launch, server)
        if self._carrier.near == "ss-local":
            return ["--server", f"tcp:{server[0]}:{server[1]}", "--via", f"{host}:{at}"]
        return ["--server", f"tcp:{host}:{at}"]


# -- others


class Relay(Peer):
    """shadowsocks' own UDP relay: what the carrier does with datagrams without us, where UDP gets through."""

    name = "relay"
    title = "shadowsocks' own UDP"
    needs = ("ss-tunnel", "ss-server")

    def launch(self, launch: Launch) -> list[Way]:
        near, far = launch.place
        port = far.freePort()
        both = "-s", far.host, "-p", str(port), *SECRET, "-U"
        launch.start(far, "ss-server", *both).listens(port, "udp")
        ways = []
        for host, at in launch.targets:
            listen = nearUdp(launch)
            words = "-b", listen[0], "-l", str(listen[1]), "-L", f"{host}:{at}"
            launch.start(near, "ss-tunnel", *both, *words).listens(listen[1], "udp")
            ways.append(launch.way(listen))
        return ways


class Base(IperfTcp):
    """A carrier without us: iperf3's TCP through it, and round trips over one TCP connection."""

    cannot: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, title: str, carrier: Carrier) -> None:
        self.name, self.title, self._carrier = name, title, carrier
        self.needs = (*carrier.needs, "iperf3")

    def launch(self, launch: Launch) -> list[Way]:
        if launch.targets:
            return [StreamWay(launch.place.near, self._carrier.carry(launch, target)) for target in launch.targets]
        super().launch(launch)
        _, self._port = self._carrier.carry(launch, (launch.place.far.host, self._port))
        until(lambda: _answers(self._port), "iperf3 gets no connection")
        return []

    def openEcho(self, site: Site) -> StreamEcho:
        return StreamEcho(site)


def _answers(port: int) -> bool:
    """Whether a little gets to iperf3's server. A plugin of shadowsocks may listen a little later than shadowsocks."""
    words = "iperf3", "-J", "-c", LOOPBACK.far.host, "-p", str(port), "-n", "1K", "--connect-timeout", "500"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=3)
        # Its exit status is 0 in any case.
        return "error" not in json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return False


@dataclass(frozen=True)
class Pair:
    """
    A carrier with us and without us.

    @ivar ours: the name of the former.
    @ivar base: the name of the latter.
    """

    ours: str
    base: str


PAIRS = (
    Pair("ours", "tcp"),
    Pair("ours-tunnel", "tcp-tunnel"),
    Pair("ours-local", "tcp-tunnel"),
    Pair("ours-http", "tcp-http"),
    Pair("ours-tls", "tcp-tls"),
)
"""C{ss-local} has the base of C{ss-tunnel}: iperf3 speaks no SOCKS5, and they do the same with the bytes."""

CHAIN_PEERS: tuple[Peer, ...] = (
    Direct(),
    Base("tcp", "TCP", DIRECT),
    OursThrough("ours", "udptunnel", DIRECT),
    Base("tcp-tunnel", "TCP, ss-tunnel", TUNNEL),
    OursThrough("ours-tunnel", "udptunnel, ss-tunnel", TUNNEL),
    OursThrough("ours-local", "udptunnel, ss-local", LOCAL),
    Relay(),
    Base("tcp-http", "TCP, ss + http", HTTP),
    OursThrough("ours-http", "udptunnel, ss + http", HTTP),
    Base("tcp-tls", "TCP, ss + tls", TLS),
    OursThrough("ours-tls", "udptunnel, ss + tls", TLS),
)
"""
All of them, in the order of the table: what is compared is measured one right after the other, so that the same goes on
beside both.
"""
