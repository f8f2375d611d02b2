"""
TCP connections that come out of a TUN, carried on through a SOCKS5 server.

For each one the server is asked first. Only when it has reached the target does
the client see a connection; what it sees otherwise is what it would see if it
had tried itself. Then the two sockets are joined, and the kernel moves the
bytes. The functions stand in the order in which a connection meets them.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from udptunnel.core.counters import Counters
from udptunnel.errors import AddressError
from udptunnel.net.dial import Dial, Fault, Proxy, equip
from udptunnel.net.splice import Pipes, Splice, abort
from udptunnel.net.stack import Connection
from udptunnel.net.workers import RemoteSplice, Workers
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import Command, Reply, ReplyCode
from udptunnel.wire.transport import Unreachable

LOOK_SECONDS = 5.0
"""How often connections are looked at that may have been silent for too long."""

REPEAT_SECONDS = 60.0
"""How often the log says what is wrong with the server, while it is."""

_ANSWERS: dict[int, Unreachable] = {
    ReplyCode.NOT_ALLOWED: Unreachable.PROHIBITED,
    ReplyCode.NETWORK_UNREACHABLE: Unreachable.NET,
    ReplyCode.HOST_UNREACHABLE: Unreachable.HOST,
    ReplyCode.TTL_EXPIRED: Unreachable.HOST,
    ReplyCode.COMMAND_NOT_SUPPORTED: Unreachable.PROHIBITED,
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: Unreachable.NET,
}
"""
What a client hears when the server answers so; for all others a RST.

A server that can not do IPv6 is as good as no route: clients try IPv4 then. A
general failure, which some servers answer whatever it was, says nothing. A RST
ends the attempt at once everywhere, while some systems go on for a while after
an ICMP message.
"""

_COMPLAINTS = {
    Fault.LOGIN: (
        "the SOCKS5 server {server} (--socks-server-addr) does not let TCP in: {why}; "
        "see --username, --password and --password-file"
    ),
    Fault.SERVER: "TCP waits for the SOCKS5 server {server} (--socks-server-addr): {why}",
    Fault.OURS: "TCP connections fail on this machine: {why}",
    Fault.TARGET: "the SOCKS5 server {server} (--socks-server-addr) carries no TCP for us: {why}",
}

_KNOWN = frozenset(int(code) for code in ReplyCode)

_FAULTS = {
    Fault.SILENT: "no answer",
    Fault.LOGIN: "not let in by the SOCKS5 server",
    Fault.SERVER: "SOCKS5 server not reached",
    Fault.OURS: "no room on this machine",
}
"""What refusals are counted as that are not the server's own words."""


def _same(address: Address) -> Address:
    return address


class SocksTcp:
    """
    Carries connections on through a SOCKS5 server: a
    L{TcpReceiver<udptunnel.net.stack.TcpReceiver>}.

    @ivar proxy: the server; another one counts for new connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        proxy: Proxy,
        counters: Counters,
        *,
        early: bool = False,
        appendSource: bool = False,
        idleSeconds: float = 0.0,
        most: int,
        names: Callable[[Address], Address] = _same,
        workers: Workers | None = None,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param early: let clients in before the server is asked.
        @param appendSource: log in as C{USER@HOST:PORT}, with the client's
            address, as badvpn does with C{--append-source-to-username}. Without a user it means nothing.
        @param idleSeconds: how long a connection may be silent; 0: for ever.
        @param most: how many connections there may be at once.
        @param names: what to ask the server for, given where a client connects to. It
            may raise C{AddressError}, and the client is refused.
        @param workers: who holds connections when most descriptors are taken.
        """
        self.proxy = proxy
        self.early = early
        self.idleSeconds = idleSeconds
        self.reactor = reactor
        self.pipes = Pipes()
        self._workers = Workers(reactor) if workers is None else workers
        self._counters = counters
        self._appendSource = appendSource
        self._most = most
        self._names = names
        self._crossings: dict[Connection, _Crossing] = {}
        self._nextLook = 0.0
        self._saidAt: dict[Fault, float] = {}
        self._complained = False
        self._requested = self._reached = self._moved = 0
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    # -- what the stack tells

    def connectionRequested(self, connection: Connection) -> None:
        """Somebody opens a connection: ask the server."""
        self._requested += 1
        if len(self._crossings) >= self._most:
            self._counters.drop("too many TCP connections")
            connection.refuse()
            return
        try:
            target = self._names(connection.target)
        except AddressError:
            self._counters.drop("fake address without a name")
            connection.refuse()
            return
        crossing = self._crossings[connection] = _Crossing(self, connection)
        crossing.start(self._proxyFor(connection), target)

    def _proxyFor(self, connection: Connection) -> Proxy:
        proxy = self.proxy
        if self._appendSource and proxy.user:
            return replace(proxy, user=f"{proxy.user}@{connection.source}")
        return proxy

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """The client is connected, too."""
        crossing = self._crossings.get(connection)
        if crossing is None:
            abort(opened)
            connection.closed()
            return
        with suppress(OSError):
            equip(opened)
        crossing.made(opened)

    def connectionLost(self, connection: Connection) -> None:
        """The client is not there any more."""
        crossing = self._crossings.pop(connection, None)
        if crossing is not None:
            crossing.close()

    # -- what becomes of crossings

    def join(
        self, client: socket.socket, server: socket.socket, ended: Callable[[str], None], rest: bytes
    ) -> Splice | RemoteSplice:
        """
        Make one connection of two.

        @param ended: is told why it ended.
        @param rest: what the server has sent already.
        """
        rests = b"", rest
        remote = self._workers.join(client, server, ended, rests, self.idleSeconds)
        return remote or Splice(self.reactor, self.pipes, client, server, ended, rests, self.idleSeconds)

    def reached(self) -> None:
        """The server has reached a target: all is well."""
        self._reached += 1
        if self._complained:
            self._complained = False
            self._log.info("TCP gets through the SOCKS5 server {server} again", server=self.proxy.address)

    def refused(self, fault: Fault, why: str, code: int) -> None:
        """A target is not reached; say so in the log if it is not just that target."""
        self._refused[_nameOf(fault, code)] += 1
        if fault is Fault.SILENT or (fault is Fault.TARGET and code != ReplyCode.COMMAND_NOT_SUPPORTED):
            return
        now = self.reactor.seconds()
        if now - self._saidAt.get(fault, -math.inf) >= REPEAT_SECONDS:
            self._saidAt[fault], self._complained = now, True
            self._log.warn(_COMPLAINTS[fault], server=self.proxy.address, why=why)

    def ended(self, connection: Connection, why: str) -> None:
        """A crossing is over: forget it."""
        self._ended[why or "closed"] += 1
        self._crossings.pop(connection, None)
        connection.closed()

    def forget(self, connection: Connection) -> None:
        """A crossing has come to nothing."""
        self._crossings.pop(connection, None)

    # -- time, and the end

    def tick(self, now: float) -> None:
        """To be called about once a second: end what was silent for too long."""
        if now < self._nextLook:
            return
        self._nextLook = now + LOOK_SECONDS
        for crossing in list(self._crossings.values()):
            crossing.tick(now)

    def stop(self) -> None:
        """Close all connections. There may be new ones afterwards."""
        crossings, self._crossings = self._crossings, {}
        for connection, crossing in crossings.items():
            if crossing.close():
                connection.closed()
            else:
                connection.ignore()
        self._moved += self.pipes.moved
        self.pipes.close()
        self.pipes = Pipes()
        self._workers.stop()

    def report(self) -> dict[str, Any]:
        """The figures as plain values."""
        opened = sum(crossing.carries for crossing in self._crossings.values())
        return {
            "open": opened,
            "opening": len(self._crossings) - opened,
            "requested": self._requested,
            "reached": self._reached,
            "refused": dict(self._refused),
            "ended": dict(self._ended),
            "bytes": self._moved + self.pipes.moved + self._workers.moved,
            "spliced": self.pipes.spliced,
            "workers": len(self._workers),
        }


def _nameOf(fault: Fault, code: int) -> str:
    """What a refusal is counted as."""
    if fault is Fault.TARGET:
        return ReplyCode(code).text if code in _KNOWN else f"unknown reply code {code}"
    return _FAULTS[fault]


class _Crossing:
    """
    One connection: a dial, until the server has answered; two sockets, until
    both are there; then a splice.
    """

    __slots__ = ("_connection", "_dial", "_failed", "_opened", "_owner", "_proxied", "_rest", "_splice")

    def __init__(self, owner: SocksTcp, connection: Connection) -> None:
        self._owner = owner
        self._connection = connection
        self._dial: Dial | None = None
        self._opened: socket.socket | None = None
        self._proxied: socket.socket | None = None
        self._rest = b""
        self._splice: Splice | RemoteSplice | None = None
        self._failed = False

    def start(self, proxy: Proxy, target: Address) -> None:
        """Ask the server, and perhaps let the client in meanwhile."""
        self._dial = Dial(self._owner.reactor, proxy, Command.CONNECT, target, self)
        self._dial.start()
        if self._owner.early:
            self._connection.accept()

    # -- the server has answered

    def reached(self, opened: socket.socket, reply: Reply, rest: bytes) -> None:
        """The server has connected the target."""
        self._dial = None
        self._proxied, self._rest = opened, rest
        self._owner.reached()
        if self._owner.early:
            self._join()
        else:
            self._connection.accept()

    def failed(self, why: str, code: int) -> None:
        """It has not."""
        dial, self._dial = self._dial, None
        assert dial is not None
        self._owner.refused(dial.fault, why, code)
        if self._owner.early:
            self._failed = True
            self._join()
        else:
            self._owner.forget(self._connection)
            self._refuse(dial.fault, code)

    def _refuse(self, fault: Fault, code: int) -> None:
        if fault in (Fault.SILENT, Fault.OURS):
            # The client has its own time-out, and asks again meanwhile; there may be room then.
            self._connection.ignore()
        elif fault is Fault.SERVER:
            self._connection.refuse(Unreachable.HOST)
        else:
            self._connection.refuse(_ANSWERS.get(code))

    # -- the client is connected

    def made(self, opened: socket.socket) -> None:
        """The client's own connection is there."""
        self._opened = opened
        self._join()

    def _join(self) -> None:
        """Join the two connections, if both are there."""
        if self._opened is None:
            return
        if self._failed:
            opened, self._opened = self._opened, None
            abort(opened)
            self._owner.ended(self._connection, "refused after early accept")
        elif self._proxied is not None:
            self._splice = self._owner.join(self._opened, self._proxied, self._over, self._rest)
            self._opened, self._proxied, self._rest = None, None, b""
            self._splice.start()

    def _over(self, why: str) -> None:
        self._owner.ended(self._connection, why)

    @property
    def carries(self) -> bool:
        """Whether the two are joined."""
        return self._splice is not None

    def tick(self, now: float) -> None:
        """Time goes by."""
        if self._splice is not None:
            self._splice.tick(now)

    def close(self) -> bool:
        """
        Close everything, and tell nobody.

        @return: whether the client was connected.
        """
        if self._dial is not None:
            self._dial.cancel()
        for each in (self._opened, self._proxied):
            if each is not None:
                abort(each)
        if self._splice is not None:
            self._splice.close()
        return self._splice is not None or self._opened is not None
