"""
The ends of a link: frames from somebody who may be a stranger, or means no good.

L{_Local} and L{_Server} alone know how sessions and links are made.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.cuts import sameInPieces
from udptunnel.core.counters import Counters
from udptunnel.core.link import Carrier, Link, LinkLimits, LocalLink, ServerLink
from udptunnel.core.login import NO_BINDING, Challenge, Login
from udptunnel.core.session import LocalSession, ServerSession
from udptunnel.net.link import LinkProtocol
from udptunnel.wire.address import Address
from udptunnel.wire.burst import split
from udptunnel.wire.frame import HEADER_BYTES, Buffer
from udptunnel.wire.greeting import LARGEST_HELLO, NONCE_BYTES, Greeting

LIMITS = LinkLimits(targets=16)

MOST = 8
"""Associations of a session."""

GRACE = 10.0
LATER = 1000.0
"""When everything that ends by itself has ended."""

SECRET, NONCE = bytes(32), bytes(NONCE_BYTES)

Outcome = tuple[object, ...]


class _Transport:
    """Keeps what is written, and may be full from the beginning."""

    def __init__(self, full: bool) -> None:
        self.written = b""
        self.over = False
        self._full = full

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Nobody is asked for more."""

    def write(self, data: bytes) -> None:
        self.written += data

    def loseConnection(self) -> None:
        self.over = True

    def abortConnection(self) -> None:
        self.over = True


class _Protocol(LinkProtocol):
    """
    What feeds the link.

    @ivar failure: the kind of exception that ended it.
    """

    failure = ""

    def failed(self, error: Exception) -> None:
        """Keep what happened; there is no log."""
        self.failure = type(error).__name__


class _Outlet:
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.arrived: list[tuple[Address, bytes]] = []
        self.closings = 0

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        assert not self.closings, "sent to an outlet that is closed"
        self.arrived += [(address, bytes(each)) for each in split(size, payload)]

    def closed(self) -> None:
        self.closings += 1


class _End:
    """One end of a link, fed by the protocol that feeds it on a real connection."""

    def __init__(self, full: bool) -> None:
        self.transport = _Transport(full)
        self.counters = Counters()
        self.outlets: list[_Outlet] = []
        self.random = Random(0).randbytes
        self._protocol = _Protocol(self.makeLink, lambda: 1.0)

    def makeLink(self, carrier: Carrier, now: float) -> Link:
        """The rules of this end."""
        raise NotImplementedError

    def begin(self) -> None:
        """The connection is made."""
        self._protocol.makeConnection(self.transport)

    @property
    def link(self) -> Link:
        """The rules of this end, once there is a connection."""
        assert self._protocol.link is not None
        return self._protocol.link

    def feed(self, data: bytes) -> None:
        """Bytes arrive, unless the connection is over."""
        if not self.transport.over:
            self._protocol.dataReceived(data)
            self.check()

    def check(self) -> None:
        """Nothing is kept without a bound."""
        assert len(self.link.relay.addresses) <= LIMITS.targets
        if self.link.session is None and not self.transport.over:
            kept = len(self._protocol._carrier._rest)
            assert kept < HEADER_BYTES + LARGEST_HELLO, f"a stranger makes us keep {kept} bytes"

    def outlet(self) -> _Outlet:
        """One more outlet."""
        self.outlets.append(_Outlet())
        return self.outlets[-1]

    def outcome(self) -> Outcome:
        """All that can be seen from outside."""
        arrived = [(outlet.arrived, outlet.closings) for outlet in self.outlets]
        return self._protocol.failure, self.transport.over, self.transport.written, arrived, self.counters.report()

    def end(self) -> None:
        """The connection is lost, and time passes: nothing is left."""
        self._protocol.connectionLost()
        self.finish()
        assert all(outlet.closings == 1 for outlet in self.outlets), "something is left open"

    def finish(self) -> None:
        """The session has no link any more."""


class _Local(_End):
    """udp-local's end, with two open associations."""

    def __init__(self, full: bool = False, secret: bool = False) -> None:
        super().__init__(full)
        self.session: LocalSession = LocalSession(MOST, self.counters, self.random)
        for _ in range(2):
            self.session.begin(lambda number: self.outlet(), 0.0)
        self._login = Login("ann", SECRET, NONCE, lambda: NO_BINDING) if secret else None
        self.begin()

    def makeLink(self, carrier: Carrier, now: float) -> Link:
        """A link to the session's server."""
        membership = self.session.membership
        return LocalLink(carrier, LIMITS, self.counters, now, membership, lambda: None, self._login)

    def finish(self) -> None:
        """Idle associations are closed."""
        self.session.tick(LATER)


class _Server(_End):
    """udp-server's end, and where it is received."""

    def __init__(self, full: bool = False, secret: bool = False) -> None:
        super().__init__(full)
        self._secret = secret
        self.sessions: list[ServerSession] = []
        self.begin()

    def makeLink(self, carrier: Carrier, now: float) -> Link:
        """A link from anybody."""
        return ServerLink(carrier, LIMITS, self.counters, now, self)

    def challenge(self, user: str, hello: bytes) -> Challenge | None:
        """Ask for the secret, if there is one."""
        return Challenge(SECRET, NO_BINDING, NONCE, hello, user == "ann") if self._secret else None

    def admit(self, greeting: Greeting, link: ServerLink) -> ServerSession:
        """A new session for each HELLO."""

        def open(session: ServerSession, number: int) -> _Outlet | None:
            return self.outlet() if number % 5 else None

        session = ServerSession(greeting.session, MOST, self.counters, open, self._emptied, self.random, grace=GRACE)
        self.sessions.append(session)
        return session

    def _emptied(self, session: ServerSession) -> None:
        self.sessions.remove(session)
        session.end()

    def check(self) -> None:
        super().check()
        assert all(len(session.associations) <= MOST for session in self.sessions)

    def finish(self) -> None:
        """The session is parked no longer."""
        for session in list(self.sessions):
            session.tick(LATER)
        assert not self.sessions


def _greeted(full: bool) -> tuple[_Local, _Server]:
    """Both ends of a link that is up."""
    local, server = _Local(full), _Server(full)
    server.feed(local.transport.written)
    local.feed(server.transport.written)
    assert local.link.up and server.link.up
    return local, server


def _check(make: Callable[[], _End], data: bytes) -> None:
    """However the bytes are cut, the same becomes of them; and whatever that is, it ends well."""

    def run(parts: list[bytes]) -> Outcome:
        end = make()
        for part in parts:
            end.feed(part)
        outcome = end.outcome()
        end.end()
        return outcome

    sameInPieces(run, data)


def localLink(data: bytes) -> None:
    """udp-local hears something before a link is up, with a secret and without."""
    _check(_Local, data)
    _check(lambda: _Local(secret=True), data)


def serverLink(data: bytes) -> None:
    """udp-server hears something from a stranger, with secrets and without."""
    _check(_Server, data)
    _check(lambda: _Server(secret=True), data)


def localLinkUp(data: bytes) -> None:
    """udp-local hears something on a link that is up; the first bit tells whether the path is full."""
    _check(lambda: _greeted(data[:1] >= b"\x80")[0], data[1:])


def serverLinkUp(data: bytes) -> None:
    """udp-server hears something on a link that is up; the first bit tells whether the path is full."""
    _check(lambda: _greeted(data[:1] >= b"\x80")[1], data[1:])
