"""
What the operating system and this Python have, looked for in one place.

Linux has everything. Elsewhere parts are missing: who uses one of them has
another way, or has L{require} say by name what is missing. What is left is
the portable path: sockets, the reactor on C{select()}, and no ability of a kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from udptunnel.errors import MissingError

LINUX = sys.platform in ("linux", "android")


def found(name: str) -> Any:
    """A module, or C{None} where there is none of this name."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _isInstalled(name: str) -> bool:
    """Whether there is a module, without loading it."""
    try:
        return name in sys.modules or find_spec(name) is not None
    except ImportError:
        return False


def _library() -> Any:
    """The C library, which this process has loaded; C{None} where it is not to be had without a name (Windows)."""
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None


fcntl, grp, pwd, resource = map(found, ("fcntl", "grp", "pwd", "resource"))
libc = _library()

NO_OPTION = -1
"""An option of a socket that no system knows."""


def socketOption(name: str, linux: int) -> int:
    """
    The number of a socket's option.

    @param linux: what it is on Linux, for a Python that does not name it. Elsewhere the same number means
        something else, so there it is L{NO_OPTION}.
    """
    return int(getattr(socket, name, linux if LINUX else NO_OPTION))


GATHERS = hasattr(socket.socket, "sendmsg")
"""Whether a socket sends several buffers with one call."""

PARTS: dict[str, Callable[[], bool]] = {
    "fcntl": lambda: fcntl is not None,
    "fork": lambda: hasattr(os, "fork"),
    "marks on sockets": lambda: hasattr(socket, "SO_MARK"),
    "named pipes": lambda: hasattr(os, "mkfifo"),
    "network namespaces": lambda: LINUX and hasattr(libc, "unshare"),
    "packet sockets": lambda: hasattr(socket, "AF_PACKET"),
    "process groups": lambda: hasattr(os, "killpg"),
    "pyroute2": lambda: _isInstalled("pyroute2"),
    "pytun": lambda: _isInstalled("pytun"),
    "rtnetlink": lambda: hasattr(socket, "AF_NETLINK"),
    "sigwaitinfo": lambda: hasattr(signal, "sigwaitinfo"),
    "Unix sockets": lambda: hasattr(socket, "AF_UNIX"),
    "users and groups": lambda: grp is not None and pwd is not None,
}
"""What may be missing, and whether it is here."""

NEEDS: dict[str, tuple[str, ...]] = {
    "a TUN": ("fcntl", "pytun", "pyroute2"),
    "a TUN of somebody else": ("fcntl",),
    "--fwmark": ("marks on sockets",),
    "a route": ("rtnetlink", "pyroute2"),
    "proxy-controller": ("Unix sockets", "users and groups", "rtnetlink", "fcntl", "pytun", "pyroute2"),
    "l3-tunnel": ("packet sockets", "rtnetlink", "fcntl", "pytun", "pyroute2"),
    "udptunnel run": ("network namespaces", "Unix sockets", "sigwaitinfo", "fcntl", "pytun", "pyroute2"),
    "udptunnel up": ("fork", "process groups", "fcntl"),
    "a pipe": ("Unix sockets",),
    "a pair of named pipes": ("named pipes", "fcntl"),
    "unix:PATH": ("Unix sockets",),
    "a network namespace": ("network namespaces", "Unix sockets", "pytun", "pyroute2"),
    "a program of others": ("process groups",),
}
"""
What can not be had on every system, and what of L{PARTS} it takes. A TUN takes something else
on macOS (L{udptunnel.net.utun}) and on Windows (L{udptunnel.net.wintun}).
"""

LINUX_ONLY = frozenset(
    f"udptunnel.{name}"
    for name in (
        "net.blackhole",
        "net.discards",
        "net.injection",
        "net.inside",
        "net.mmsg",
        "net.namespace",
        "net.netns",
        "net.ownaddresses",
        "net.packet",
        "net.packetfilter",
        "net.persistent",
        "net.rtnetlink",
        "net.watch",
        "run",
        "services.controller",
        "services.l3",
        "services.l3outer",
        "tap.controller",
        "tap.l3",
    )
)
"""Modules that are of use on Linux only. They can be imported everywhere; who uses one is told what is missing."""


def missing(parts: Iterable[str]) -> list[str]:
    """Which of some L{PARTS} are not here."""
    return [each for each in parts if not PARTS[each]()]


def require(what: str) -> None:
    """
    See that something can be had here.

    @param what: one of L{NEEDS}.
    @raise MissingError: it can not; the text names all that is missing.
    """
    absent = missing(NEEDS[what])
    if absent:
        raise MissingError(f"this system lacks {', '.join(absent)}, which {what} takes; see docs/platforms.md")


def isPortable(reactor: object, offload: object) -> bool:
    """
    Whether datagrams take the portable path.

    @param offload: what the kernel is asked for, in words.
    """
    return str(offload) == "none" and type(reactor).__name__ == "SelectReactor"
