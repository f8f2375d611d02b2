"""
The programs of each data flow, from the application to the target.

Flow 2 is tun2socks and udp-local behind shadowsocks, flow 3 the same with
simple-obfs on the wire, flow 4 the whole chain, whose far side sends by way of
packets and a second shadowsocks, flow 5 shadowsocks alone, one for TCP and one
for UDP, flow 6 udp-local whose own link goes into the TUN, and flow 7 other
carriers than shadowsocks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tests.system.namespaces import Namespace, Network
from tests.system.programs import ECHO, LINK, SOCKS, TWISTD, Program
from tests.system.tunnelled import DANTE, DEVICE, PROXY, ROUTES
from udptunnel.pki import Authority

LOOPBACK = "127.0.0.1"
CARRIER, BEYOND = 8388, 8389
"""Ports of ss-servers: the one that the client reaches, and the one that datagrams take after that or instead."""

UDP_PROXY = 1081
"""The port of the client's SOCKS5 server for UDP alone, in flow 5."""

TEXT, NUMBERED, DNS = 5678, 7008, 53
"""Ports of the target: of nc, of what takes numbered datagrams, and of a name server."""

FAKE, ANYBODY = "198.18.0.0/15", "192.0.2.53"
"""Where fake addresses are from, and a name server that does not exist."""

NAMES = "--fake-dns", FAKE, "--route", FAKE, "--route", f"{ANYBODY}/32"
"""Options of tun2socks, so that names travel as names."""

FORWARDED = {
    (host, port): ("::1" if ":" in host else LOOPBACK, port) for host in Network.atTarget for port in (ECHO, TEXT)
}
FORWARDED |= {(Network.atTarget[0], port): (LOOPBACK, port) for port in (NUMBERED, DNS)}
"""Where udp-local of flow 6 takes what is for a target."""


class Hop(NamedTuple):
    """A program of a chain."""

    name: str
    """Those of the far side's second half have "exit" in it."""

    isNear: bool
    """Whether it is at the client, or else at the server."""

    command: tuple[str, ...]

    what: str
    """What it does, for people."""

    port: int = 0
    """Where it listens when it is ready..."""

    kind: str = "tcp"
    """...and how; or else..."""

    says: str = ""
    """...what it has said then."""

    def isUp(self, namespace: Namespace, program: Program) -> bool:
        """Whether it is ready."""
        return namespace.listens(self.kind, self.port) if self.port else self.says in program.said


# -- shadowsocks


def _secret(host: str, port: int) -> tuple[str, ...]:
    return "-s", host, "-p", str(port), "-k", "secret", "-m", "aes-256-gcm", "--no-delay"


def _obfs(which: str) -> tuple[str, ...]:
    return "--plugin", which, "--plugin-opts", "obfs=http" + ";obfs-host=www.example.org" * (which == "obfs-local")


_NEAR = *_secret(Network.atServer[0], CARRIER), "-b", LOOPBACK
_SS_LOCAL = "ss-local", *_NEAR, "-l", str(PROXY)
_SS_TUNNEL = "ss-tunnel", *_NEAR, "-l", str(LINK), "-L", f"{LOOPBACK}:{LINK}"
_SS_SERVER = "ss-server", *_secret(Network.atServer[0], CARRIER)


def _ssLocal(*more: str) -> Hop:
    return Hop("ss-local", True, (*_SS_LOCAL, *more), f"SOCKS5 server for TCP, {LOOPBACK}:{PROXY}", PROXY)


def _ssTunnel(*more: str) -> Hop:
    return Hop("ss-tunnel", True, (*_SS_TUNNEL, *more), f"leads to udp-server, {LOOPBACK}:{LINK}", LINK)


def _ssServer(*more: str) -> Hop:
    return Hop("ss-server", False, (*_SS_SERVER, *more), f"{Network.atServer[0]}:{CARRIER}", CARRIER)


# -- ours


def _tun2socks(*options: str, udp: int = SOCKS, proxy: str = f"{LOOPBACK}:{PROXY}") -> Hop:
    servers = "--socks-server-addr", proxy, *(("--udp-socks-server-addr", f"{LOOPBACK}:{udp}") if udp else ())
    routes = [word for each in ROUTES for word in ("--route", each)]
    words = *TWISTD, "tun2socks", "--tundev", DEVICE, *servers, *routes, *options
    return Hop("tun2socks", True, words, f"TUN {DEVICE} for {', '.join(ROUTES)}", says="tun2socks: TUN")


def _local(*options: str, server: str = f"tcp:{LOOPBACK}:{LINK}") -> Hop:
    words = *TWISTD, "udp-local", "--server", server, *options
    return Hop("udp-local", True, words, f"SOCKS5 server for UDP, {LOOPBACK}:{SOCKS}", SOCKS)


def _server(*options: str, host: str = LOOPBACK) -> Hop:
    allowed = [word for each in ROUTES for word in ("--allow", each)]
    listen = "--listen", f"tcp:{LINK}:interface={host}", "--insecure-no-auth"
    words = *TWISTD, "udp-server", *listen, *allowed, *options
    return Hop("udp-server", False, words, f"links at {host}:{LINK}", LINK)


# -- the flows


def _shadowsocks(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 2: links go through ss-local."""
    local = _local("--via", f"{LOOPBACK}:{PROXY}")
    return [_tun2socks(*options), local, _ssLocal(), _ssServer(), _server()]


def _obfuscated(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 3: simple-obfs on the wire; links go through ss-tunnel."""
    near, far = _obfs("obfs-local"), _obfs("obfs-server")
    return [_tun2socks(*options), _local(), _ssTunnel(*near), _ssLocal(*near), _ssServer(*far), _server()]


def _whole(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 4."""
    near, far = _obfs("obfs-local"), _obfs("obfs-server")
    begin = [_tun2socks(*options), _local(), _ssTunnel(*near), _ssLocal(*near), _ssServer(*far)]
    return begin + exitHops(str(folder / "exit.pipe"), str(folder / "exit.pipe"))


def exitHops(here: str, there: str) -> list[Hop]:
    """
    The second half of the whole chain's far side.

    @param here: the path of udp-server's pipe.
    @param there: the path that tun2socks connects to.
    """
    beyond = *_secret(LOOPBACK, BEYOND), "-u"
    words = "--pipe", there, "--socks-server-addr", f"{LOOPBACK}:{PROXY}", "--udp-idle", "300"
    local = "ss-local", *beyond, "-b", LOOPBACK, "-l", str(PROXY)
    return [
        _server("--egress", f"pipe:{here}"),
        Hop(
            "exit tun2socks", False, (*TWISTD, "tun2socks", *words), "packets of udp-server", says="other end is there"
        ),
        Hop("exit ss-local", False, local, f"SOCKS5 server for UDP, {LOOPBACK}:{PROXY}", PROXY, "udp"),
        Hop("exit ss-server", False, ("ss-server", *beyond), f"{LOOPBACK}:{BEYOND}", BEYOND, "udp"),
    ]


def _apart(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 5: no link of ours; TCP to one ss-local, and UDP to another one that does nothing else."""
    other = *_secret(Network.atServer[0], BEYOND), "-U"
    words = "ss-local", *other, "-b", LOOPBACK, "-l", str(UDP_PROXY)
    return [
        _tun2socks(*options, udp=UDP_PROXY),
        _ssLocal(),
        Hop("ss-local -U", True, words, f"SOCKS5 server for UDP, {LOOPBACK}:{UDP_PROXY}", UDP_PROXY, "udp"),
        _ssServer(),
        Hop("ss-server -U", False, ("ss-server", *other), f"{Network.atServer[0]}:{BEYOND}", BEYOND, "udp"),
    ]


def _localFirst(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 6: udp-server is where only the TUN leads."""
    rules = [f"{_text(here)}={_text(to)}" for to, here in FORWARDED.items()]
    forwards = [word for each in rules for word in ("--forward", each)]
    local = _local(*forwards, server=f"tcp:{Network.beforeTarget[0]}:{LINK}")
    server = _server(host=Network.beforeTarget[0])
    return [local, _tun2socks(*options, udp=0), _ssLocal(), _ssServer(), server]


def _text(place: tuple[str, int]) -> str:
    """HOST:PORT."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_DANTE_AT = f"{Network.atServer[0]}:{PROXY}"


def _dante(folder: Path) -> Hop:
    file = folder / "danted.conf"
    # It is to reach udp-server, too.
    file.write_text(DANTE.replace("external: up0", "external: up0\nexternal: lo\nexternal.rotation: route"))
    return Hop("danted", False, ("danted", "-f", str(file)), f"SOCKS5 server, {_DANTE_AT}", PROXY)


def _otherSocks(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 7: Dante for TCP, and for the links."""
    local = _local("--via", _DANTE_AT, server=f"tcp:{LOOPBACK}:{LINK}")
    return [_tun2socks(*options, proxy=_DANTE_AT), local, _dante(folder), _server()]


def _noCarrier(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 7: links over TCP alone."""
    local, server = _local(server=f"tcp:{Network.atServer[0]}:{LINK}"), _server(host=Network.atServer[0])
    return [_tun2socks(*options, proxy=_DANTE_AT), local, _dante(folder), server]


def _tls(folder: Path, options: tuple[str, ...]) -> list[Hop]:
    """Flow 7: links over TLS, with certificates at both ends."""
    authority = Authority(folder / "pki", datetime.now(UTC))
    authority.create([Network.atServer[0]], 1)
    authority.add("alice", 1)
    local = _local("--tls", str(authority.bundle("alice")), server=f"tcp:{Network.atServer[0]}:{LINK}")
    server = _server("--tls", str(authority.bundle("server")), host=Network.atServer[0])
    return [_tun2socks(*options, proxy=_DANTE_AT), local, _dante(folder), server]


class Flow(NamedTuple):
    """A data flow."""

    what: str
    hops: Callable[[Path, tuple[str, ...]], list[Hop]]
    carriers: tuple[int, ...] = (CARRIER,)
    """Ports of the server: all TCP between client and server goes there."""
    datagrams: int = 0
    """Likewise of UDP; if there is none, there is no UDP either."""
    isForwarded: bool = False


FLOWS = {
    "2": Flow("TUN, tun2socks, udp-local, ss-local, ss-server, udp-server", _shadowsocks),
    "3": Flow("the same by ss-tunnel, with simple-obfs on the wire", _obfuscated),
    "4": Flow("the whole chain, with packets and a second shadowsocks at the far side", _whole),
    "5": Flow("TCP by one ss-local, UDP by another one", _apart, (CARRIER,), BEYOND),
    "6": Flow("udp-local, whose link goes into the TUN", _localFirst, isForwarded=True),
    "7": Flow("Dante instead of shadowsocks", _otherSocks, (PROXY,)),
    "7-none": Flow("links without a carrier", _noCarrier, (PROXY, LINK)),
    "7-tls": Flow("links over TLS", _tls, (PROXY, LINK)),
}
"""All data flows, by the names that the script has for them."""
