"""
Another system, as far as Python can play one: what Windows does not have is taken away from this process.

C{python -m tests.elsewhere PROGRAM [WORD]...} runs a program there, with the C{select} reactor; C{core} is the suite
of what must work there. All is taken away before anything of ours or any reactor is imported, and does not come back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import runpy
import select
import signal
import socket
import sys
import sysconfig
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

MODULES = frozenset(("fcntl", "grp", "pwd", "resource", "termios", "pytun", "pyroute2"))
"""Modules that are not there."""

NAMES: dict[Any, str] = {
    errno: "EBADFD",
    os: "O_CLOEXEC O_NOFOLLOW chown fork geteuid killpg mkfifo pipe2 pwrite readv setsid splice sysconf writev",
    select: "epoll poll",
    signal: "SIGALRM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 alarm pthread_sigmask sigwaitinfo",
    socket: "AF_NETLINK AF_PACKET AF_UNIX MSG_DONTWAIT SOCK_CLOEXEC SOCK_NONBLOCK SO_BINDTODEVICE SO_MARK SO_PEERCRED "
    "TCP_USER_TIMEOUT recv_fds send_fds",
}
"""What modules do not have."""

PROGRAMS = {"twistd": "twisted.scripts.twistd:run", "udptunnel": "udptunnel.console:main"}
"""Programs, and the functions that they are."""

CORE = (
    "tests.api",
    "tests.core",
    "tests.test_api",
    "tests.wire",
    "tests.net.test_arrivals",
    "tests.net.test_crossing",
    "tests.net.test_datagrams",
    "tests.net.test_detour",
    "tests.net.test_dial",
    "tests.net.test_dns",
    "tests.net.test_dnsmessages",
    "tests.net.test_doorstep",
    "tests.net.test_egress",
    "tests.net.test_entry",
    "tests.net.test_gateway",
    "tests.net.test_inside",
    "tests.net.test_link",
    "tests.net.test_names",
    "tests.net.test_nostack",
    "tests.net.test_offload",
    "tests.net.test_packetcalls",
    "tests.net.test_persistent",
    "tests.net.test_pipe",
    "tests.net.test_platforms",
    "tests.net.test_reach",
    "tests.net.test_redaction",
    "tests.net.test_routes",
    "tests.net.test_sockaddr",
    "tests.net.test_socks5",
    "tests.net.test_socks5client",
    "tests.net.test_socksegress",
    "tests.net.test_socksudp",
    "tests.net.test_stack",
    "tests.net.test_tls",
    "tests.net.test_tunentry",
    "tests.net.test_watch",
    "tests.net.test_wintun",
    "tests.services.test_authority",
    "tests.services.test_demo",
    "tests.services.test_exits",
    "tests.services.test_links",
    "tests.services.test_listening",
    "tests.services.test_local",
    "tests.services.test_reconnecting",
    "tests.services.test_resuming",
    "tests.services.test_server",
    "tests.services.test_servers",
    "tests.services.test_status",
    "tests.services.test_trips",
    "tests.services.test_tun2socks",
    "tests.services.test_tungate",
    "tests.services.test_walk",
    "tests.tap.test_common",
    "tests.tap.test_local",
    "tests.tap.test_server",
    "tests.tap.test_tun2socks",
    "tests.test_checknet",
    "tests.test_config",
    "tests.test_console",
    "tests.test_ping",
    "tests.test_pki",
    "tests.test_status",
)
"""
The tests of what works everywhere: all of core and wire, and of the other layers those modules of tests that need
nothing of Linux themselves.
"""

METHODS = "recvmsg", "recvmsg_into", "sendmsg", "sendmsg_afalg"
"""What sockets can not do."""


class _Nowhere(MetaPathFinder):
    """Says of what is not there that it is not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class _Library(ctypes.CDLL):
    """A library, which must have a name there."""

    def __init__(self, name: str | None, *arguments: Any, **others: Any) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *arguments, **others)


class _Absent:
    """A method that is not there, neither of an object nor of its class."""

    def __set_name__(self, owner: Any, name: str) -> None:
        self._name = name

    def __get__(self, one: Any, owner: Any = None) -> Any:
        raise AttributeError(self._name)


def _pair(*_: Any) -> tuple[socket.socket, socket.socket]:
    """As C{socket.socketpair} where there are no Unix sockets: two ends of a connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def go() -> None:
    """Be there from now on."""
    # What is known of this Python is in a file that is called after the system.
    sysconfig.get_config_vars()
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Nowhere())
    for module, names in NAMES.items():
        for name in names.split():
            vars(module).pop(name, None)
    for name in METHODS:
        method = _Absent()
        method.__set_name__(socket.socket, name)
        setattr(socket.socket, name, method)
    socket.socketpair = _pair  # type: ignore[assignment]
    ctypes.CDLL = _Library  # type: ignore[misc]
    sys.platform = "elsewhere"
    # Twisted looks once which of its modules there are. Its twistd of Windows is plain Python; its reactors are not.
    from twisted.python import runtime

    runtime.platformType = "win32"
    import_module("twisted.scripts.twistd")
    runtime.platformType = "elsewhere"
    from twisted.internet import selectreactor, tcp

    # This is still Linux, where a port that was just closed must be asked for.
    tcp.platformType = "posix"
    selectreactor.install()


def main(words: Sequence[str]) -> None:
    """Run a program there, C{twistd} or C{udptunnel}, or else a module."""
    go()
    if words[0] == "core":
        words = ("twisted.trial", *words[1:], *CORE)
    sys.argv[:] = words
    if words[0] in PROGRAMS:
        module, _, name = PROGRAMS[words[0]].partition(":")
        getattr(import_module(module), name)()
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
