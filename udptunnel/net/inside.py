"""
What runs in a network namespace of our own: it makes what L{udptunnel.net.namespace} wants.

Who may not make a network namespace makes a user namespace first, as every user
may where that is not switched off, and has all rights there and nowhere else.
The functions stand in the order in which they are used.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

from udptunnel.net.linuxtun import LinuxSystem
from udptunnel.net.namespace import FAILED, NOT_EXECUTABLE, NOT_FOUND, REDIRECT, TRANSPARENT, Wanted
from udptunnel.net.pacing import delayPacing
from udptunnel.net.platforms import libc
from udptunnel.net.tundevice import IFF_NO_PI, IFF_TUN, IFF_VNET_HDR, Interface

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
"""From linux/sched.h, mount.h, prctl.h, in.h and in6.h."""

PORT = 4000
"""Where the listeners are; nobody else is there."""

BACKLOG = 4096
"""Connections that the kernel accepts before we do."""

MARK, TABLE = 1, 100
"""What packets are marked with to which every address is a local one, and the routing table that says so."""

DEVICES = "/dev/net/tun"

SWITCHES = {
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user/max_user_namespaces": ("0", "10000"),
}
"""What forbids user namespaces (Debian, Ubuntu, RHEL): the value that does, and one that does not."""

RESOLVERS = "/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/var/run/nscd/socket"
"""Sockets at which somebody outside looks up names. Without them the C library asks a name server itself."""

_SYSCTLS = {
    # Packets have sources that are routed through the TUN.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/{}/rp_filter": "0",
    # No connection begins without a SYN that was looked at.
    "net/ipv4/tcp_syncookies": "0",
}

_NFT_TABLE, _INET = "udptunnel", 1
_META_MARK, _META_L4PROTO = 3, 16
_EQUAL, _NOT = 0, 1
_DROP = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", 0)]})]}
"""From linux/netfilter.h and linux/netfilter/nf_tables.h."""

_PORT = PORT.to_bytes(2, "big")

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ALL = {4: "0.0.0.0/0", 6: "::/0"}


def main() -> NoReturn:
    """What the process does. Its arguments are a socket that leads to who started it, and what is wanted."""
    descriptor, text = sys.argv[1:]
    wanted = Wanted.parse(text)
    with socket.socket(fileno=int(descriptor)) as outside:
        outside.set_inheritable(False)
        if not _serve(wanted, outside) or not wanted.command:
            raise SystemExit(FAILED * bool(wanted.command))
    _become(wanted)


def _serve(wanted: Wanted, outside: socket.socket) -> bool:
    """Make what is wanted and hand it over. Whether to go on."""
    try:
        tun, way, listeners = _make(wanted)
    except Exception as error:
        # Whatever it is, there is nobody else to say it to.
        outside.send(json.dumps({"error": explain(error)}).encode())
        return False
    socket.send_fds(outside, [json.dumps({"way": way}).encode()], [tun, *(each.fileno() for each in listeners)])
    os.close(tun)
    return bool(wanted.command and outside.recv(1))


def _make(wanted: Wanted) -> tuple[int, str, list[socket.socket]]:
    separate(CLONE_NEWNET | CLONE_NEWNS * bool(wanted.command))
    tun = _openTun(wanted)
    if wanted.ways:
        # What the kernel has to say itself is for nobody: it looks for routers, and belongs to groups.
        _addRule("filter", "output", 0, *_ifTcp(_NOT), _do("immediate", dreg=0, data=_DROP))
    LinuxSystem().configure(wanted.device, Interface(wanted.device, wanted.addresses, wanted.mtu))
    versions = sorted({6 if ":" in each else 4 for each in wanted.addresses})
    _route(wanted.device, versions)
    listeners = [_listen(version) for version in versions] if wanted.ways else []
    way = _lead(wanted.ways, versions) if listeners else ""
    if wanted.command:
        _isolateNames(wanted.nameServer)
    return tun, way, listeners


# -- namespaces


def separate(flags: int) -> None:
    """
    Leave for namespaces of our own, by way of a user namespace if need be.

    @param flags: which ones (C{CLONE_NEW...}).
    @raise OSError: that is not allowed here.
    """
    try:
        _call("unshare", flags)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        _call("unshare", CLONE_NEWUSER | flags)
        # user_namespaces(7). Everybody stays who they are: programs look at that.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            _write(f"/proc/self/{name}", text)


def _call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _write(name: str, text: str) -> None:
    with open(name, "w", encoding="ascii") as file:
        file.write(text)


def explain(error: Exception) -> str:
    """What to say about a failure, and what to do."""
    if not isinstance(error, OSError):
        return str(error) or repr(error)
    what = f"{error.filename or 'the kernel'}: {error.strerror}"
    if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.ENOENT):
        return _remedy(what)
    return what


def _remedy(what: str) -> str:
    for name, (value, other) in SWITCHES.items():
        if _read(f"/proc/sys/{name}") == value:
            return f"{what}; unprivileged user namespaces are switched off: sysctl {name.replace('/', '.')}={other}"
    if not os.access(DEVICES, os.R_OK | os.W_OK):
        return f"this user may not open {DEVICES}, or there is none: it is usually there, with mode 666"
    return f"{what}; a container must be allowed to make user and network namespaces (seccomp, AppArmor)"


def _read(name: str) -> str:
    try:
        with open(name, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


# -- the network


def _openTun(wanted: Wanted) -> int:
    system, flags = LinuxSystem(), IFF_TUN | IFF_NO_PI
    try:
        return system.open(wanted.device, flags | IFF_VNET_HDR * wanted.headed)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return system.open(wanted.device, flags)


def _route(device: str, versions: Iterable[int]) -> None:
    """Everything goes out through the TUN."""
    from pyroute2 import IPRoute

    for name, value in _SYSCTLS.items():
        # In a container they may be read-only; and most machines have these values anyway.
        with suppress(OSError):
            _write("/proc/sys/" + name.format(device), value)
    with IPRoute() as route:
        (lo,), (tun,) = route.link_lookup(ifname="lo"), route.link_lookup(ifname=device)
        route.link("set", index=lo, state="up")
        for version in versions:
            route.route("add", dst=_ALL[version], oif=tun, family=_FAMILIES[version])


def _listen(version: int) -> socket.socket:
    """A socket that accepts connections to any address."""
    listener = socket.socket(_FAMILIES[version], socket.SOCK_STREAM)
    if version == 6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    listener.setblocking(False)
    delayPacing(listener)
    listener.bind(("", PORT))
    listener.listen(BACKLOG)
    return listener


# -- the way to the listeners


def _lead(ways: tuple[str, ...], versions: Iterable[int]) -> str:
    """Lead TCP to the listeners; returns the way that works."""
    from pyroute2.netlink.exceptions import NetlinkError

    missing = []
    for way in ways:
        try:
            _LEADERS[way](versions)
        except NetlinkError as error:
            missing.append(f"{way}: {os.strerror(error.code)}")
        else:
            return way
    raise OSError(errno.EOPNOTSUPP, f"nftables of this kernel can not do it ({', '.join(missing)})")


def _leadUnchanged(versions: Iterable[int]) -> None:
    """Packets stay as they are. Those that have a mark find every address to be a local one."""
    from pyroute2 import IPRoute

    mark = _load(MARK.to_bytes(4, sys.byteorder)), _do("meta", key=_META_MARK, sreg=1)
    _addRule("filter", "prerouting", -150, *_ifTcp(), _load(_PORT), _do("tproxy", family=0, reg_port=1), *mark)
    with IPRoute() as route:
        (lo,) = route.link_lookup(ifname="lo")
        for version in versions:
            family = _FAMILIES[version]
            route.rule("add", fwmark=MARK, table=TABLE, family=family)
            route.route("add", type="local", scope="host", dst=_ALL[version], oif=lo, table=TABLE, family=family)


def _leadTranslated(versions: Iterable[int]) -> None:
    """Packets get the TUN's own address as their destination."""
    _addRule("nat", "prerouting", -100, *_ifTcp(), _load(_PORT), _do("redir", reg_proto_min=1))


_LEADERS: dict[str, Callable[[Iterable[int]], None]] = {TRANSPARENT: _leadUnchanged, REDIRECT: _leadTranslated}


def _addRule(kind: str, hook: str, priority: int, *expressions: Any) -> None:
    """
    Add a chain of nftables with one rule.

    @param kind: C{filter} or C{nat}.
    """
    from pyroute2.nftables.main import NFTables

    name = f"{kind} {hook}"
    with NFTables(nfgen_family=_INET) as nft:
        nft.table("add", name=_NFT_TABLE)
        nft.chain("add", table=_NFT_TABLE, name=name, type=kind, hook=hook, priority=priority, policy=1)
        nft.rule("add", table=_NFT_TABLE, chain=name, expressions=(expressions,))


def _do(name: str, **attributes: Any) -> Any:
    """An expression of nftables, with its attributes as linux/netfilter/nf_tables.h calls them."""
    from pyroute2.nftables.expressions import genex

    return genex(name, attributes)


def _load(value: bytes) -> Any:
    """Load a value into the register 1."""
    return _do("immediate", dreg=1, data=_data(value))


def _data(value: bytes) -> Any:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _ifTcp(operation: int = _EQUAL) -> tuple[Any, Any]:
    """Go on if a packet is TCP, or if it is L{_NOT}."""
    protocol = _data(bytes((socket.IPPROTO_TCP,)))
    return _do("meta", dreg=1, key=_META_L4PROTO), _do("cmp", sreg=1, op=operation, data=protocol)


# -- the command


def _isolateNames(nameServer: str) -> None:
    """Names are asked for in this namespace, and nowhere outside."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if nameServer:
        with tempfile.NamedTemporaryFile("w", prefix="resolv.", encoding="ascii") as file:
            file.write(f"# of udptunnel run: names are asked for through the tunnel\nnameserver {nameServer}\n")
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            _cover("/etc/resolv.conf", file.name)
    for name in RESOLVERS:
        if os.path.exists(name):
            _cover(name, os.devnull)


def _cover(name: str, by: str) -> None:
    """Have another file stand in a file's place."""
    _call("mount", os.fsencode(by), os.fsencode(name), None, MS_BIND, None)


def _become(wanted: Wanted) -> NoReturn:
    """Become the command, as if its caller had started it."""
    # Without its network it would wait for ever, or worse, be started again with another one.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them, and what is ignored stays so.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted.unblocked)
    try:
        # Who is not root loses with this all rights that the user namespace has given.
        os.execvp(wanted.command[0], wanted.command)
    except OSError as error:
        print(f"udptunnel run: {wanted.command[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE) from None
