"""
The rules of one link: greeting, bursts, heartbeats, farewell.

A link is greeted before it is used: udp-local says HELLO, and only the
WELCOME that answers it makes the link B{up}. A TCP connection alone means
nothing, for a proxy on the way accepts it even when everything behind it is
down. Where users prove a secret, CHALLENGE and PROOF stand between the two.
From then on both ends do the same. L{Link} knows no socket: it writes to
a L{Carrier} and is fed whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from udptunnel.core.associations import Association, Associations
from udptunnel.core.counters import Counters
from udptunnel.core.heartbeat import INTERVAL, Heartbeat
from udptunnel.core.login import Challenge, Login
from udptunnel.core.queue import MOST_PARCELS, Parcel, Queue
from udptunnel.core.relay import Relay
from udptunnel.core.vigil import Vigil
from udptunnel.core.window import MOST_BACKLOG, Window
from udptunnel.errors import FrameError, LoginError, RefusedError
from udptunnel.wire.burst import LARGEST_BURST, count
from udptunnel.wire.frame import (
    ASSOCIATIONS,
    CHALLENGE,
    CLOSE,
    GOAWAY,
    HEADER_BYTES,
    HELLO,
    KIND,
    OPTIONAL,
    PING,
    PONG,
    PROOF,
    TARGET,
    WELCOME,
    Buffer,
    Frame,
    encode,
    ping,
    pong,
    unpackPing,
    unpackPong,
)
from udptunnel.wire.greeting import (
    LARGEST_HELLO,
    VERSION,
    Greeting,
    checkFirstBytes,
    commonVersion,
    packChallenge,
    packHello,
    packProof,
    packWelcome,
    unpackChallenge,
    unpackGreeting,
    unpackProof,
)

CHUNK = 262144
"""
Bytes that are framed for one write, so that little is framed that the kernel
does not take: what is framed can no longer be dropped.
"""

SPARSE_BYTES = 1500
"""The largest burst that goes ahead of others if nothing else of its flow waits: one packet of a call or a game."""

LEAST_QUANTUM = 8192
"""Bytes that a flow may send in its turn at least: 7 ms at 10 Mbit/s."""

ANSWER_SECONDS = 0.005
"""
How long a PONG waits at most for a burst to go with, while bursts are sent now and then; little beside C{delay}.

Hops that are not ours may hold back a small segment until the one before it is acknowledged (Nagle's algorithm). One
with a PONG alone is acknowledged late: nobody answers it, so the acknowledgement waits 40 ms for something to go with.
"""

TALKING_SECONDS = 0.05
"""If the last burst was sent no longer ago than this, the next one is expected soon."""

MOST_PENDING = 4096
"""Control frames that wait while the path is full; a CLOSE that is lost is asked for again."""

LOGIN_SECONDS = 10.0
"""How long a stranger may take to say HELLO, and we wait for WELCOME."""


class Owner(Protocol):
    """What a link belongs to: L{udptunnel.core.session.Session}."""

    name: bytes
    """The name of the session."""

    associations: Associations
    """What flows through it."""

    missing: str
    """Why there may be no association for a DATA frame."""

    def find(self, number: int, link: Link, now: float) -> Association | None:
        """The association that a DATA frame is for; C{None} if there is none."""

    def closeReceived(self, number: int) -> None:
        """The other end has ended an association."""

    def linkUp(self, link: Link, greeting: Greeting, now: float) -> None:
        """A link was greeted at both ends."""

    def linkRetired(self, link: Link, now: float, farewell: bool) -> None:
        """A link that was up is of no more use; whether the other end has said so itself."""


class Membership(Protocol):
    """What udp-local knows of its session at one server: L{udptunnel.core.session.Membership}."""

    @property
    def session(self) -> Owner:
        """What the link will belong to."""

    def hello(self) -> Greeting:
        """What to say of the session on a new link."""

    def welcomed(self, greeting: Greeting, now: float) -> None:
        """
        Learn from a WELCOME what has become of the session.

        @raise LoginError: the link can not be used.
        """


class ServerOwner(Owner, Protocol):
    """What a link of udp-server belongs to."""

    def welcome(self) -> Greeting:
        """What to say of the session on a link that came up."""

    def confirmed(self, link: Link) -> None:
        """The WELCOME of a link has arrived."""


class Reception(Protocol):
    """Where udp-server receives one link: it knows who is there, as far as the connection tells."""

    def challenge(self, user: str, hello: bytes) -> Challenge | None:
        """
        What a user must prove; C{None} if the connection itself says who is there.

        @param hello: the body of the HELLO.
        @raise LoginError: nobody can log in this way.
        """

    def admit(self, greeting: Greeting, link: ServerLink) -> ServerOwner:
        """
        Find or make the session for a HELLO.

        @raise LoginError: there is no room, or the user may not come in.
        """


class Carrier(Protocol):
    """What moves a link's bytes: L{udptunnel.net.link} has two of them."""

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """
        Send some buffers, in order, behind what was written before. All of them are sent sooner or later.

        @return: whether more is welcome now. If not, L{Link.resumed} is called when it is.
        """

    def keep(self, most: int) -> None:
        """Have the kernel keep no more than so many bytes that it can not send yet, or little more."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something after a time, once, unless the connection is gone by then; one call waits at most."""

    def close(self) -> None:
        """Close the connection when everything is sent."""

    def abort(self) -> None:
        """Close the connection now."""


@dataclass(frozen=True)
class LinkLimits:
    """What bounds a link."""

    queueBytes: int = 4 << 20
    """Bytes that may wait in its queue."""

    queueAge: float = 0.2
    """Seconds that a burst may wait in its queue."""

    delay: float = 0.1
    """Seconds that bytes may wait on the path beyond our queue; 0 for no limit."""

    heartbeat: float = INTERVAL
    """Seconds between PINGs."""

    targets: int = 4096
    """Target numbers that the other end may use."""

    login: float = LOGIN_SECONDS
    """Seconds until a link must be up."""


class Link:
    """
    One end of one link.

    @ivar session: the session that the link belongs to, once it is up.
    @ivar up: whether both ends have greeted, and neither has said farewell.
    @ivar queue: what waits for the path.
    @ivar window: what is on the path.
    @ivar farewell: why the other end has closed the link, if it said so.
    """

    session: Owner | None = None
    farewell = ""

    def __init__(self, carrier: Carrier, limits: LinkLimits, counters: Counters, now: float) -> None:
        self.up = False
        self.lost = False
        self.carrier = carrier
        self.limits = limits
        self.queue = Queue(counters, limits.queueBytes, limits.queueAge)
        self.window = Window(limits.delay, now)
        self.relay = Relay(limits.targets)
        self._counters = counters
        self._heartbeat = Heartbeat(limits.heartbeat, now)
        self._full = self._owed = False
        self._backlog = MOST_BACKLOG
        self._pending: list[bytes] = []
        self._pong = b""
        self._moment = -1
        self._spokeAt = -inf
        self._received = 0
        self._madeAt = now
        self._vigil = Vigil()
        self._fence: float | None = None

    # -- what goes out

    def offer(self, parcels: Sequence[Parcel], now: float) -> None:
        """Send bursts, or let those wait that the path does not take."""
        if self.queue:
            self.queue.put(self._letPass(parcels, now), now)
            self.flush(now)
        elif rest := self._write(parcels, now):
            self.queue.put(rest, now)

    def _letPass(self, parcels: Sequence[Parcel], now: float) -> Sequence[Parcel]:
        """
        Let the sparse flows go ahead of those that fill the path: a call does not wait for a download.

        @return: the bursts that must wait.
        """
        if self._full or self.window.reserve <= 0 or self._stalled(now):
            return parcels
        sparse = [each for each in parcels if len(each[3]) <= SPARSE_BYTES and not self.queue.holds(each[0])]
        if not sparse:
            return parcels
        self._writeChunk(self.relay.wrap(sparse[:MOST_PARCELS]), now)
        passed = set(map(id, sparse[:MOST_PARCELS]))
        return [each for each in parcels if id(each) not in passed]

    def _write(self, parcels: Sequence[Parcel], now: float) -> Sequence[Parcel]:
        """Send bursts from the first on, and return those that found no room."""
        if len(parcels) == 1:
            # So it is with sparse flows, for which each step counts.
            if not self._open(now):
                return parcels
            self._writeChunk(self.relay.wrap(parcels), now)
            return ()
        place = 0
        while place < len(parcels) and self._open(now):
            begin, room = place, min(CHUNK, self.window.portion)
            while place < len(parcels) and room > 0 and place - begin < MOST_PARCELS:
                room -= len(parcels[place][3])
                place += 1
            self._writeChunk(self.relay.wrap(parcels[begin:place]), now)
        return parcels[place:] if place else parcels

    def _open(self, now: float) -> bool:
        """Whether more may be sent; asked only when there is more."""
        if self._stalled(now):
            return False
        if not self._full and self.window.room > 0:
            return True
        self.window.crowd(now)
        # The window may have shrunk below what no PING followed, and only an answer makes room again.
        if not self._full and self.window.wantsPing(now):
            self.ask(now)
        return False

    def _stalled(self, now: float) -> bool:
        """
        Whether the path lets nothing through for a while, as one does that loses much.

        What it is given now would arrive too late, and hold up what comes
        later: the queue is the better place, where it gets too old.
        """
        return bool(self.limits.delay) and self.late(now)

    def _writeChunk(self, buffers: list[Buffer], now: float) -> None:
        length = sum(map(len, buffers))
        self.window.wrote(length)
        self._spokeAt = now
        if self._pong:
            buffers.append(self._pong)
            self._pong = b""
        if self.window.wantsPing(now):
            buffers.append(self._ping(now))
        self._full = not self.carrier.write(buffers)

    def _ping(self, now: float) -> bytes:
        # Each has a moment of its own: who answers may leave out all but the newest.
        moment = self._moment = max(int(now * 1e6), self._moment + 1)
        frame = ping(moment)
        self.window.wrote(len(frame))
        self.window.pinged(now)
        # Not "now": the answer is to be known again by its moment.
        self._heartbeat.pinged(moment / 1e6)
        return frame

    def resumed(self, now: float) -> None:
        """The carrier takes more."""
        self._full = False
        self._flushControl()
        if self._owed:
            self.ask(now)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what waits, as far as the path takes it."""
        while self.queue and self._open(now):
            parcels = self.queue.take(int(min(CHUNK, self.window.portion)), now, self._quantum())
            if parcels:
                self._writeChunk(self.relay.wrap(parcels), now)

    def _quantum(self) -> int:
        """Bytes that a flow sends in its turn: a small part of what the path takes, so that turns come often."""
        return int(min(max(LEAST_QUANTUM, self.window.size / 16), LARGEST_BURST))

    def control(self, frame: bytes) -> None:
        """Send a frame that is no burst, ahead of everything that waits."""
        if not self._full:
            self.window.wrote(len(frame))
            self._full = not self.carrier.write([frame])
        elif len(self._pending) < MOST_PENDING:
            self.window.wrote(len(frame))
            self._pending.append(frame)

    def _flushControl(self) -> None:
        frames, self._pending = self._pending, []
        if self._pong:
            frames.append(self._pong)
            self._pong = b""
        if frames:
            self._full = not self.carrier.write([b"".join(frames)])

    # -- what comes in

    def framesReceived(self, frames: Sequence[Frame], now: float) -> None:
        """
        Whole frames have arrived. Bodies are read before this returns.

        @raise FrameError: they break the format; the link is of no more use.
        @raise LoginError: the two ends do not agree to use this link.
        """
        while self.session is None and frames:
            self._checkGreeting(*frames[0])
            frames = self._greetingReceived(frames, now)
        session, addresses = self.session, self.relay.addresses
        if session is None or not self.up:
            # After a farewell nobody listens any more.
            return
        if self._vigil.stopped(now):
            self._raiseFence(now)
        stale = self._fence is not None
        for word, target, size, body in frames:
            self._received += HEADER_BYTES + len(body)
            if word >= ASSOCIATIONS:
                self._controlReceived(word, target, body, now)
                if not self.up:
                    return
                stale = self._fence is not None
                continue
            address = addresses.get(target)
            if address is None or (not size and body):
                raise FrameError(f"a DATA frame of size {size} for target {target}, which was not announced")
            if stale:
                self._counters.drop("stale", count(size, body))
                continue
            association = session.find(word, self, now)
            if association is None:
                self._counters.drop(session.missing, count(size, body))
            else:
                association.touch(address, now)
                association.outlet.send(address, size, body)
                self._heartbeat.heardAt = now

    def _raiseFence(self, now: float) -> None:
        """
        We were stopped, and what the kernel has taken meanwhile is too old to be delivered.

        Nothing tells how old a burst is. But what follows the answer to a
        PING was sent after we woke up, so until then everything is dropped.
        """
        frame = self._ping(now)
        self._fence = self._moment / 1e6
        if self._full:
            self._pending.append(frame)
        else:
            self._full = not self.carrier.write([frame])

    def _controlReceived(self, word: int, target: int, body: Buffer, now: float) -> None:
        kind = word & KIND
        if kind == PING:
            self._answer(pong(unpackPing(body), self._received), now)
        elif kind == PONG:
            self._pongReceived(body, now)
        elif kind == TARGET:
            self.relay.targetReceived(target, body)
        elif kind == CLOSE and self.session is not None:
            self.session.closeReceived(word & ~KIND)
        elif kind == GOAWAY:
            self.goAwayReceived(bytes(body).decode("utf-8", "replace"), now)
        elif kind < OPTIONAL:
            raise FrameError(f"a frame of the unknown kind 0x{kind >> 24:02x}, which may not be skipped")

    def _answer(self, frame: bytes, now: float) -> None:
        """
        Send a PONG, with the next burst if one is expected soon.

        While it can not be sent only the newest waits: PINGs can not fill our memory.
        """
        if not (self._full or self._talking(now)):
            self.control(frame)
            return
        waits, self._pong = bool(self._pong), frame
        if not waits:
            self.window.wrote(len(frame))
            if not self._full:
                self.carrier.later(ANSWER_SECONDS, self._answerAlone)

    def _talking(self, now: float) -> bool:
        """Whether a burst is expected soon that does not have to wait itself."""
        return now - self._spokeAt <= TALKING_SECONDS and not self.queue and self.limits.delay >= 10 * ANSWER_SECONDS

    def _answerAlone(self) -> None:
        """No burst has come that the PONG could go with."""
        if self._pong and not (self._full or self.lost):
            frame, self._pong = self._pong, b""
            self._full = not self.carrier.write([frame])

    def _pongReceived(self, body: Buffer, now: float) -> None:
        moment, received = unpackPong(body)
        sentAt = min(moment / 1e6, now)
        if self._heartbeat.ponged(moment / 1e6, now):
            if self._fence is not None and moment / 1e6 >= self._fence:
                self._fence = None
            self.window.arrived(sentAt, received, now)
            self._limitBacklog()
            self.flush(now)

    def _limitBacklog(self) -> None:
        """Follow the window in large steps, for each is a system call."""
        wanted = self.window.backlog
        if wanted > 2 * self._backlog or 2 * wanted < self._backlog:
            self._backlog = wanted
            self.carrier.keep(wanted)

    firstWords: tuple[int, ...] = ()
    """The frames that the other end may begin with."""

    def beginningReceived(self, data: Buffer) -> None:
        """
        The first bytes are there, perhaps not a whole frame yet.

        @raise FrameError: nothing good can become of them.
        """
        if self.session is None:
            checkFirstBytes(data, self.firstWords)

    def _checkGreeting(self, word: int, target: int, size: int, body: Buffer) -> None:
        """What holds for the first frame holds for each until the link is up, however the bytes were cut."""
        self._received += HEADER_BYTES + len(body)
        if word not in self.firstWords:
            raise FrameError(f"a frame of the kind 0x{word >> 24:02x} before the link is up")
        if len(body) > LARGEST_HELLO:
            raise FrameError(f"a frame before the link is up holds at most {LARGEST_HELLO} bytes")

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        """One more frame has come before the link is up; set C{session} when it is. Returns the frames behind it."""
        raise NotImplementedError

    def _greeted(self, session: Owner, greeting: Greeting, now: float) -> None:
        """Both ends have greeted: from now on the link is used."""
        self.relay.mostNumbers = greeting.targets
        self.session, self.up = session, True
        self._vigil.tick(now)
        self.ask(now)
        session.linkUp(self, greeting, now)

    def goAwayReceived(self, reason: str, now: float) -> None:
        """The other end is about to close this link: use it no more."""
        self.farewell = reason
        self.retire(now, farewell=True)
        self.carrier.close()

    # -- what time brings

    def tick(self, now: float) -> None:
        """A second or so has passed."""
        if self.lost:
            return
        if self.session is None:
            if now - self._madeAt > self.limits.login:
                self.carrier.abort()
        elif self._heartbeat.dead(now):
            self.carrier.abort()
        else:
            if self._vigil.tick(now) and self.up:
                self._raiseFence(now)
            self.queue.expire(now)
            if self._heartbeat.due(now):
                self.ask(now)

    def ask(self, now: float) -> None:
        """Send a PING, or if the path is full as soon as it takes more; the clock of the heartbeat starts at once."""
        self._owed = self._full
        if self._full:
            self._heartbeat.pinged(now)
        else:
            frame = self._ping(now)
            self._full = not self.carrier.write([frame])

    # -- its end

    def goAway(self, reason: str, now: float) -> None:
        """Say farewell: nothing new goes over this link, and it closes."""
        self.carrier.write([_goAway(reason)])
        self.retire(now, farewell=True)
        self.carrier.close()

    def late(self, now: float) -> bool:
        """Whether the other end takes so long to answer that another link is better."""
        return self._heartbeat.late(now, self.window.roundTrip)

    def retire(self, now: float, farewell: bool = False) -> None:
        """Leave the session; its bursts go another way."""
        if self.up and self.session is not None:
            self.up = False
            self.session.linkRetired(self, now, farewell)

    def connectionLost(self, now: float) -> None:
        """The connection is gone."""
        self.lost = True
        self.retire(now)

    def report(self, now: float) -> dict[str, float]:
        """The link's figures as plain values; times in seconds."""
        return {
            "up": self.up,
            "late": self.late(now),
            "age": now - self._madeAt,
            "roundTrip": self.window.roundTrip,
            "smallestRoundTrip": self.window.smallest,
            "sentBytes": self.window.sent,
            "receivedBytes": self._received,
            "queueDelay": self.queue.bytes / self.window.rate if self.window.rate else 0.0,
            "queuedBytes": self.queue.bytes,
            "flyingBytes": self.window.flying,
        }


def _goAway(reason: str) -> bytes:
    return encode(GOAWAY, body=reason.encode()[:LARGEST_HELLO])


class LocalLink(Link):
    """udp-local's end: it says HELLO first, and is up when WELCOME has come."""

    def __init__(
        self,
        carrier: Carrier,
        limits: LinkLimits,
        counters: Counters,
        now: float,
        membership: Membership,
        welcomed: Callable[[], None],
        login: Login | None = None,
    ) -> None:
        """
        @param membership: the session that the link is for.
        @param welcomed: called once, when the link is up.
        @param login: who we are, where users prove a secret.
        """
        super().__init__(carrier, limits, counters, now)
        self._membership = membership
        self._welcomed = welcomed
        self._login = login
        self._proven = login is None
        self.firstWords = (WELCOME, GOAWAY) if login is None else (CHALLENGE, WELCOME, GOAWAY)
        greeting = membership.hello()._replace(targets=limits.targets)
        if login is not None:
            greeting = greeting._replace(user=login.user, nonce=login.nonce)
        self._hello = packHello(greeting)
        self.control(self._hello)

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        word, target, size, body = frames[0]
        if word == GOAWAY:
            raise RefusedError(f"udp-server says: {bytes(body)[:200].decode('utf-8', 'replace')!r}")
        if word == CHALLENGE and self._login is not None:
            self.control(packProof(self._login.answer(self._hello[HEADER_BYTES:], *unpackChallenge(body))))
            self.firstWords, self._proven = (WELCOME, GOAWAY), True
        else:
            self._welcomeReceived(unpackGreeting(target, size, body), now)
        return frames[1:]

    def _welcomeReceived(self, greeting: Greeting, now: float) -> None:
        if greeting.version != VERSION:
            raise RefusedError(f"udp-server chose version {greeting.version} of the format, which was not offered")
        if not self._proven:
            raise RefusedError("udp-server does not ask for our secret: it has no --secrets, or is not ours")
        try:
            self._membership.welcomed(greeting, now)
        except LoginError:
            self.control(_goAway("another link was faster"))
            raise
        self._greeted(self._membership.session, greeting, now)
        self._welcomed()

    def connectionLost(self, now: float) -> None:
        """The connection is gone; whoever made it is not to be kept by the link."""
        super().connectionLost(now)
        self._welcomed, self._login = _nobody, None


def _nobody() -> None:
    """Nobody is there to be told."""


class ServerLink(Link):
    """udp-server's end: it waits for HELLO, and answers WELCOME if it agrees."""

    session: ServerOwner | None = None
    firstWords = (HELLO,)
    _challenge: Challenge | None = None
    _greeting: Greeting
    _confirmed = False

    def __init__(
        self, carrier: Carrier, limits: LinkLimits, counters: Counters, now: float, reception: Reception
    ) -> None:
        """
        @param reception: tells who is there, and which session the link is for.
        """
        super().__init__(carrier, limits, counters, now)
        self._reception: Reception | None = reception

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        _, target, size, body = frames[0]
        reception = self._reception
        if reception is None:
            # The connection is gone.
            return ()
        try:
            if self._challenge is None:
                self._helloReceived(reception, unpackGreeting(target, size, body), bytes(body), now)
            else:
                self._proofReceived(reception, self._challenge, unpackProof(body), now)
        except LoginError as error:
            self.control(_goAway(str(error)))
            raise
        return frames[1:]

    def _helloReceived(self, reception: Reception, greeting: Greeting, hello: bytes, now: float) -> None:
        if commonVersion(greeting) is None:
            raise LoginError(f"version {VERSION} of the format is spoken here, not {greeting.version}")
        self._greeting = greeting
        self._challenge = reception.challenge(greeting.user, hello)
        if self._challenge is None:
            self._admit(reception, now)
        else:
            self.firstWords = (PROOF,)
            self.control(packChallenge(self._challenge.nonce, self._challenge.proof))

    def _proofReceived(self, reception: Reception, challenge: Challenge, proof: bytes, now: float) -> None:
        if not challenge.check(proof):
            raise RefusedError("user or secret is wrong")
        self._admit(reception, now)

    def _admit(self, reception: Reception, now: float) -> None:
        session = reception.admit(self._greeting, self)
        self.control(packWelcome(session.welcome()._replace(targets=self.limits.targets)))
        self._greeted(session, self._greeting, now)

    def _pongReceived(self, body: Buffer, now: float) -> None:
        super()._pongReceived(body, now)
        if not self._confirmed and self.session is not None:
            # The PING that was answered went right behind the WELCOME.
            self._confirmed = True
            self.session.confirmed(self)

    def connectionLost(self, now: float) -> None:
        """The connection is gone; where it was received is not to be kept by the link."""
        super().connectionLost(now)
        self._reception = None
