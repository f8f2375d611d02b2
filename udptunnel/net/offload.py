"""
Abilities of the kernel that move many datagrams with one system call.

  - C{gro}: UDP_GRO (Linux 5.0), datagrams of one flow arrive as one burst.
  - C{gso}: UDP_SEGMENT (Linux 4.18), a burst is sent as it is.
  - C{mmsg}: recvmmsg and sendmmsg, several messages with one call.

Each is tried once at the start, can be switched off by name, and is switched
off for good when the kernel refuses it later: C{UDP_SEGMENT} gives EIO where
the outgoing device can not compute checksums. Everything works without them,
only slower.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable

from twisted.logger import Logger

from udptunnel.errors import ConfigError
from udptunnel.net.platforms import GATHERS, LINUX

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
"""From linux/udp.h; Python's socket module does not have them."""

MOST_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.9; 128 since."""

NAMES = ("gro", "gso", "mmsg")

SEGMENT = struct.Struct("=H")
"""What UDP_SEGMENT takes: the size of a datagram."""

GRO_SIZE = struct.Struct("=i")
"""What UDP_GRO gives: the same, as an int."""


class Offload:
    """
    What the kernel is asked for.

    @ivar gro: receive with UDP_GRO.
    @ivar gso: send with UDP_SEGMENT.
    @ivar mmsg: receive and send several messages with one call.
    """

    _log = Logger()

    def __init__(self, names: Iterable[str] = ()) -> None:
        """
        @param names: the abilities to use, of L{NAMES}.
        """
        chosen = frozenset(names)
        self.gro, self.gso, self.mmsg = (name in chosen for name in NAMES)

    def __str__(self) -> str:
        return ",".join(name for name in NAMES if getattr(self, name)) or "none"

    def refused(self, name: str, error: OSError) -> None:
        """The kernel does not do this after all: never ask again, and say so once."""
        if getattr(self, name):
            setattr(self, name, False)
            self._log.warn("offload {ability} is off from now on: the kernel says {error}", ability=name, error=error)


def parseNames(text: str) -> frozenset[str]:
    """
    Read C{gro,gso,mmsg}, a part of it, C{all} or C{none}.

    @raise ConfigError: there is another word in it.
    """
    words = frozenset(text.replace(" ", "").split(","))
    if words in ({"none"}, {"all"}):
        return frozenset(NAMES if words == {"all"} else ())
    if words - set(NAMES):
        raise ConfigError(f"--offload {text}: expected all, none, or some of {','.join(NAMES)}")
    return words


def probe(names: Iterable[str] = NAMES) -> Offload:
    """
    Find out which of these abilities the kernel has.

    The environment variable C{UDPTUNNEL_OFFLOAD} may allow fewer, in the words
    of L{parseNames}: for a whole machine whose kernel is known to be broken.
    """
    allowed = parseNames(os.environ.get("UDPTUNNEL_OFFLOAD", "all"))
    return Offload(name for name in names if name in allowed and _PROBES[name]())


def _accepts(option: int, value: int) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probed:
            probed.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True


def _hasManyMessages() -> bool:
    try:
        from udptunnel.net import mmsg
    except ImportError:
        return False
    return mmsg.AVAILABLE


_PROBES: dict[str, Callable[[], bool]] = {
    "gro": lambda: LINUX and hasattr(socket.socket, "recvmsg") and _accepts(UDP_GRO, 1),
    "gso": lambda: LINUX and GATHERS and _accepts(UDP_SEGMENT, 1200),
    "mmsg": _hasManyMessages,
}
