"""
The rules of one link: greeting, bursts, heartbeats, farewell.

A link is greeted before it is used: udp-local says HELLO, and only the
WELCOME that answers it makes the link B{up}. A TCP connection alone means
nothing, for a proxy on the way accepts it even when everything behind it is
down. From then on both ends do the same. L{Link} knows no socket: it writes to
a L{Carrier} and is fed whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from udptunnel.core.associations import Association, Associations
from udptunnel.core.counters import Counters
from udptunnel.core.heartbeat import INTERVAL, Heartbeat
from udptunnel.core.queue import MOST_PARCELS, Parcel, Queue
from udptunnel.core.relay import Relay
from udptunnel.core.window import Window
from udptunnel.errors import FrameError, LoginError
from udptunnel.wire.burst import LARGEST_BURST, count
from udptunnel.wire.frame import (
    ASSOCIATIONS,
    CLOSE,
    GOAWAY,
    HEADER_BYTES,
    HELLO,
    KIND,
    OPTIONAL,
    PING,
    PONG,
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
    packHello,
    packWelcome,
    unpackGreeting,
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

    def linkRetired(self, link: Link, now: float) -> None:
        """A link that was up is of no more use."""


class Carrier(Protocol):
    """What moves a link's bytes: L{udptunnel.net.link} has two of them."""

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """
        Send some buffers, in order, behind what was written before. All of them are sent sooner or later.

        @return: whether more is welcome now. If not, L{Link.resumed} is called when it is.
        """

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

    targets: int = 16384
    """Target numbers that the other end may use."""


class Link:
    """
    One end of one link.

    @ivar session: the session that the link belongs to, once it is up.
    @ivar up: whether both ends have greeted, and neither has said farewell.
    @ivar queue: what waits for the path.
    @ivar window: what is on the path.
    """

    session: Owner | None = None

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
        self._full = False
        self._pending: list[bytes] = []
        self._pong = b""
        self._received = 0
        self._madeAt = now

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
        if self._full or self.window.reserve <= 0:
            return parcels
        sparse = [each for each in parcels if len(each[3]) <= SPARSE_BYTES and not self.queue.holds(each[0])]
        if not sparse:
            return parcels
        self._writeChunk(self.relay.wrap(sparse[:MOST_PARCELS]), now)
        passed = set(map(id, sparse[:MOST_PARCELS]))
        return [each for each in parcels if id(each) not in passed]

    def _write(self, parcels: Sequence[Parcel], now: float) -> Sequence[Parcel]:
        """Send bursts from the first on, and return those that found no room."""
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
        if not self._full and self.window.room > 0:
            return True
        self.window.crowd(now)
        # The window may have shrunk below what no PING followed, and only an answer makes room again.
        if not self._full and self.window.wantsPing():
            self._beat(now)
        return False

    def _writeChunk(self, buffers: list[Buffer], now: float) -> None:
        length = sum(map(len, buffers))
        self.window.wrote(length)
        if self.window.wantsPing():
            buffers.append(self._ping(now))
        self._full = not self.carrier.write(buffers)

    def _ping(self, now: float) -> bytes:
        moment = int(now * 1e6)
        frame = ping(moment)
        self.window.wrote(len(frame))
        self.window.pinged = self.window.sent
        # Not "now": the answer is to be known again by its moment.
        self._heartbeat.pinged(moment / 1e6)
        return frame

    def resumed(self, now: float) -> None:
        """The carrier takes more."""
        self._full = False
        self._flushControl()
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
        if self.session is None and frames:
            frames = self._greetingReceived(frames, now)
        session, addresses = self.session, self.relay.addresses
        if session is None:
            return
        for word, target, size, body in frames:
            self._received += HEADER_BYTES + len(body)
            if word >= ASSOCIATIONS:
                self._controlReceived(word, target, body, now)
                continue
            address = addresses.get(target)
            if address is None or (not size and body):
                raise FrameError(f"a DATA frame of size {size} for target {target}, which was not announced")
            association = session.find(word, self, now)
            if association is None:
                self._counters.drop(session.missing, count(size, body))
            else:
                association.touch(address, now)
                association.outlet.send(address, size, body)

    def _controlReceived(self, word: int, target: int, body: Buffer, now: float) -> None:
        kind = word & KIND
        if kind == PING:
            self._answer(pong(unpackPing(body), self._received))
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

    def _answer(self, frame: bytes) -> None:
        """Send a PONG. While the path is full only the newest waits: PINGs can not fill our memory."""
        if not self._full:
            self.control(frame)
            return
        if not self._pong:
            self.window.wrote(len(frame))
        self._pong = frame

    def _pongReceived(self, body: Buffer, now: float) -> None:
        moment, received = unpackPong(body)
        sentAt = min(moment / 1e6, now)
        self._heartbeat.ponged(moment / 1e6)
        self.window.arrived(sentAt, received, now)
        self.flush(now)

    firstWords: tuple[int, ...] = ()
    """The frames that the other end may begin with."""

    def beginningReceived(self, data: Buffer) -> None:
        """
        The first bytes are there, perhaps not a whole frame yet.

        @raise FrameError: nothing good can become of them.
        """
        if self.session is None:
            checkFirstBytes(data, self.firstWords)

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        """The first frame of a link has come; set C{session} if it is welcome."""
        raise NotImplementedError

    def goAwayReceived(self, reason: str, now: float) -> None:
        """The other end is about to close this link: use it no more."""
        self.retire(now)
        self.carrier.close()

    # -- what time brings

    def tick(self, now: float) -> None:
        """A second or so has passed."""
        if self.lost:
            return
        if self.session is None:
            if now - self._madeAt > LOGIN_SECONDS:
                self.carrier.abort()
        elif self._heartbeat.dead(now):
            self.carrier.abort()
        else:
            self.queue.expire(now)
            if self._heartbeat.due(now):
                self._beat(now)

    def _beat(self, now: float) -> None:
        """Send a PING, or if the path is full at least start the clock of the heartbeat."""
        if self._full:
            self._heartbeat.pinged(now)
        else:
            frame = self._ping(now)
            self._full = not self.carrier.write([frame])

    # -- its end

    def goAway(self, reason: str, now: float) -> None:
        """Say farewell: nothing new goes over this link, and it closes."""
        self.carrier.write([encode(GOAWAY, body=reason.encode()[:LARGEST_HELLO])])
        self.retire(now)
        self.carrier.close()

    def retire(self, now: float) -> None:
        """Leave the session; its bursts go another way."""
        if self.up and self.session is not None:
            self.up = False
            self.session.linkRetired(self, now)

    def connectionLost(self, now: float) -> None:
        """The connection is gone."""
        self.lost = True
        self.retire(now)

    def report(self) -> dict[str, float]:
        """The link's figures as plain values; times in seconds."""
        return {
            "roundTrip": self.window.roundTrip,
            "smallestRoundTrip": self.window.smallest,
            "sentBytes": self.window.sent,
            "receivedBytes": self._received,
            "queuedBytes": self.queue.bytes,
            "flyingBytes": self.window.flying,
        }


class LocalLink(Link):
    """udp-local's end: it says HELLO first, and is up when WELCOME has come."""

    firstWords = (WELCOME, GOAWAY)

    def __init__(
        self,
        carrier: Carrier,
        limits: LinkLimits,
        counters: Counters,
        now: float,
        session: Owner,
        welcomed: Callable[[], None],
    ) -> None:
        """
        @param session: the session that the link is for.
        @param welcomed: called once, when the link is up.
        """
        super().__init__(carrier, limits, counters, now)
        self._for = session
        self._welcomed = welcomed
        self.control(packHello(Greeting(session.name, session.associations.most, limits.targets)))

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        word, target, size, body = frames[0]
        if word != WELCOME:
            raise LoginError(f"udp-server says: {bytes(body)[:200].decode('utf-8', 'replace')!r}")
        greeting = unpackGreeting(target, size, body)
        if greeting.version != VERSION or greeting.session != self._for.name:
            raise LoginError(f"udp-server welcomes another session, or version {greeting.version} of the format")
        self._received += HEADER_BYTES + len(body)
        self.relay.mostNumbers = greeting.targets
        self.session, self.up = self._for, True
        self._beat(now)
        self.session.linkUp(self, greeting, now)
        self._welcomed()
        return frames[1:]


class ServerLink(Link):
    """udp-server's end: it waits for HELLO, and answers WELCOME if it agrees."""

    firstWords = (HELLO,)

    def __init__(
        self,
        carrier: Carrier,
        limits: LinkLimits,
        counters: Counters,
        now: float,
        admit: Callable[[Greeting], Owner],
    ) -> None:
        """
        @param admit: finds or makes the session for a HELLO, or raises L{LoginError}.
        """
        super().__init__(carrier, limits, counters, now)
        self._admit = admit

    def _greetingReceived(self, frames: Sequence[Frame], now: float) -> Sequence[Frame]:
        _, target, size, body = frames[0]
        greeting = unpackGreeting(target, size, body)
        session = self._session(greeting)
        self._received += HEADER_BYTES + len(body)
        self.relay.mostNumbers = greeting.targets
        self.control(packWelcome(Greeting(session.name, session.associations.most, self.limits.targets)))
        self.session, self.up = session, True
        self._beat(now)
        session.linkUp(self, greeting, now)
        return frames[1:]

    def _session(self, greeting: Greeting) -> Owner:
        """The session for a HELLO; whoever is not welcome is told why."""
        try:
            if commonVersion(greeting) is None:
                raise LoginError(f"version {VERSION} of the format is spoken here, not {greeting.version}")
            return self._admit(greeting)
        except LoginError as error:
            self.control(encode(GOAWAY, body=str(error).encode()[:LARGEST_HELLO]))
            raise
