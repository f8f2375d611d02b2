"""
Events: what a callback is told, besides datagrams and packets.

They are few, and come in the thread of the reactor, one after the other. The
first one of a handle is L{Ready}, and the last one L{Stopped}; only
L{LogLine} may come before or between them at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from udptunnel.wire.address import Address

if TYPE_CHECKING:
    from udptunnel.api.handle import Handle

ABSENT = -1
"""The descriptor of a socket that there is none of."""


class BoundSocket(NamedTuple):
    """A socket of ours that takes in what applications and other ends send."""

    option: str
    """What it is for: C{socks}, C{forward}, C{listen} or C{local}, as the options are called."""

    address: Address | str
    """What it is bound to; of a Unix socket, its path."""

    descriptor: int
    """Its descriptor, which stays ours: to be looked at, not to be closed."""


@dataclass(frozen=True)
class Event:
    """
    What all events have in common.

    @ivar handle: whose it is.
    """

    handle: Handle


@dataclass(frozen=True)
class Ready(Event):
    """
    All sockets are open. Told before the function that starts a role returns.

    @ivar sockets: those that have an address.
    """

    sockets: tuple[BoundSocket, ...]

    def _first(self, *options: str) -> int:
        return next((each.descriptor for each in self.sockets if each.option in options), ABSENT)

    @property
    def socksDescriptor(self) -> int:
        """That of the SOCKS5 server, or of the first listener of udp-server; -1 without."""
        return self._first("socks", "listen")

    @property
    def udpDescriptor(self) -> int:
        """That of the first forward, or of l3-tunnel's port; -1 without."""
        return self._first("forward", "local")


@dataclass(frozen=True)
class SessionUp(Event):
    """
    A session can carry datagrams: of udp-local, the first of its links is up; to udp-server, somebody has come; of
    l3-tunnel, the other end is there.

    @ivar session: what log lines call it.
    @ivar resumed: whether it goes on with what was there before, external ports included.
    """

    session: str
    resumed: bool = False


@dataclass(frozen=True)
class SessionDown(Event):
    """
    Of udp-local, its last link is gone; others are tried. Of udp-server, a session is over. Of l3-tunnel, the other end
    is not heard any more.

    @ivar session: what log lines call it.
    """

    session: str


@dataclass(frozen=True)
class MappingsLost(Event):
    """
    udp-server did not know our session any more: external ports are new ones.

    @ivar session: what log lines call it now.
    """

    session: str


@dataclass(frozen=True)
class Statistics(Event):
    """
    The figures, as often as was asked for.

    @ivar report: as L{Handle.stats<udptunnel.api.handle.Handle.stats>} gives them.
    """

    report: Mapping[str, Any]


@dataclass(frozen=True)
class LogLine(Event):
    """
    A line of the log. There is one log in a process, so all handles get the lines of all roles.

    @ivar level: C{debug}, C{info}, C{warn}, C{error} or C{critical}.
    @ivar system: the module that says it.
    @ivar text: the line; of a mistake, the traceback is in it.
    """

    level: str
    system: str
    text: str


@dataclass(frozen=True)
class Failed(Event):
    """
    The role can not go on by itself. It is to be stopped.

    @ivar why: the reason.
    """

    why: str


@dataclass(frozen=True)
class Stopped(Event):
    """Everything is closed. Nothing follows."""


Callback: TypeAlias = Callable[[Any, Any], object]
"""Called with an event, and with what was given as C{data}."""

DatagramsReceived: TypeAlias = Callable[[list[bytes], Address, Any, Any], object]
"""
Called with datagrams that have come from one address for one source: the
datagrams, the address, the source, and what was given as C{data}.
"""

PacketsReceived: TypeAlias = Callable[[list[bytes], Any], object]
"""Called with IP packets that are to go to the applications, and with what was given as C{data}."""
