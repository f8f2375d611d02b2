"""
The other end of an l3-tunnel: the sessions with it, where it is, and whether it is still there.

There are three sessions at most: the B{current} one, the one before it, whose
messages may still be on their way, and the B{next} one, which we have answered
for and which becomes the current one with the first message under its keys:
until then the INITIATION may have been a replayed one. Who has begun a session
begins the next one before it is too old. If both have begun one at the same
moment, both send in the one that has the greater number of all four.

Whether the other end is there is found out by asking, for both ends may be
started anew, and what is between them may forget the way: who has sent a packet
hears something within a second, or L{DEAD_SECONDS} later begins a handshake.
The end with a keepalive also asks while nothing is sent, often as long as there
was traffic a moment ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from udptunnel.core.bucket import Bucket
from udptunnel.core.counters import Counters
from udptunnel.core.l3keys import Asked, Attempt, Random, Stamp
from udptunnel.core.l3session import L3Session
from udptunnel.errors import PacketError
from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer
from udptunnel.wire.l3 import (
    ASK,
    DATA,
    unpackInitiation,
    unpackResponse,
)

LIFE_SECONDS = 180.0
"""How old a session may become."""

RENEW_SECONDS = {True: 120.0, False: 150.0}
"""
Age at which it is renewed: by who has begun it, and by the other end, for if
both begin at the same moment each may use what the other has begun.
"""

RENEW_MESSAGES = 1 << 60
"""Messages after which it is renewed, too."""

RETRY_SECONDS = (1.0, 2.0, 5.0)
"""How long to wait for the answer to the first, the second, and each further INITIATION."""

ANSWER_SECONDS = 1.0
"""Who has received packets, and had nothing to send for so long, says that it is there."""

PENDING_SECONDS = 5.0
"""How long an INITIATION that was answered, but perhaps is a replayed one, makes those that are no younger old."""

DEAD_SECONDS = 2.5
"""So long after what wants an answer there is none: the other end has lost the session, or is not there."""

ASK_SECONDS = 1.5
"""How long the end with a keepalive listens, while there is traffic, before it asks..."""

LIVELY_SECONDS = 60.0
"""...and how long after the last packet that is so."""

MOST_ASKED = 1000
"""
INITIATIONS a second that are looked at: whether one is the other end's is only seen with keys, which takes some 30
microseconds. More than that are somebody's who has not the key; one of the other end that is lost among them is
followed by others.
"""

PATIENT_SECONDS = 90.0
"""How long the end without a keepalive tries to reach the other one, after the last packet for it."""


class Peer:
    """
    The other end.

    @ivar address: where it is, as far as is known.
    @ivar sessions: those that exist, by our number.
    @ivar current: the one that packets are sent in.
    """

    def __init__(
        self,
        key: bytes,
        address: Address | None,
        keepalive: float,
        random: Random,
        moment: Callable[[], int],
        counters: Counters,
    ) -> None:
        """
        @param key: the 32 bytes that both ends have.
        @param keepalive: seconds of silence after which we ask whether it is there; 0: we never do.
        @param moment: nanoseconds since 1970.
        @param counters: count the messages that are no good.
        """
        self.address = address
        self.sessions: dict[int, L3Session] = {}
        self.current: L3Session | None = None
        self._key = key
        self._keepalive = keepalive
        self._random = random
        self._moment = moment
        self._counters = counters
        self._asking = Bucket(MOST_ASKED, 0.0)
        self._process = random(4)
        self._stamped = 0
        self._lastMoment = self._pendingMoment = -1
        self._pendingUntil = 0.0
        self._previous: L3Session | None = None
        self._next: L3Session | None = None
        self._crossing: L3Session | None = None
        self._attempt: Attempt | None = None
        self._tries = 0
        self._retryAt = 0.0
        self._lastHeard = self._lastPacket = self._lastWanted = float("-inf")
        self._unanswered: float | None = None
        self._owing: float | None = None
        self._made = 0

    # -- what happens

    def wanted(self, now: float) -> None:
        """There is a packet for it, and no session."""
        self._lastWanted = now

    def packetsSent(self, now: float) -> None:
        """Packets were sealed in the current session, and are sent now."""
        self._lastPacket = self._lastWanted = now
        self._owing = None
        if self._unanswered is None:
            self._unanswered = now

    def heard(self, session: L3Session, source: Address, newest: bool, packets: bool, now: float) -> None:
        """
        Messages under the keys of a session have come.

        @param newest: whether one of them is newer than all before: it says where the other end is.
        @param packets: whether they bring packets, and not only the word that it is there.
        """
        self._lastHeard, self._unanswered = now, None
        if session is self._next:
            self._next = self._attempt = None
            self._lastMoment = self._pendingMoment
            self._confirmed(session)
        if newest and session is self.current:
            self.address = source
        if packets:
            self._lastPacket = now
            if self._owing is None:
                self._owing = now

    def _confirmed(self, session: L3Session) -> None:
        """The other end uses the session that it has begun, perhaps while we have begun the current one."""
        if session is self._crossing and self.current is not None and _greatest(self.current) > _greatest(session):
            self._forget(self._previous)
            self._previous = session
            return
        self._use(session)

    def asked(self) -> list[bytes]:
        """It wants to know whether we are there."""
        return self._say(b"")

    def initiationReceived(self, datagram: Buffer, now: float) -> list[bytes]:
        """
        It may want a new session.

        @return: the answer, if it is its word, and not an old one.
        """
        try:
            initiation = unpackInitiation(datagram)
            if not self._asking.take(1, now):
                self._counters.drop("handshake flood")
                return []
            asked = Asked(self._key, initiation)
            if not self._isNew(asked.stamp, now):
                self._counters.drop("handshake replayed")
                return []
            index = self._number()
            message, keys = asked.answer(index, self._random)
        except PacketError:
            self._counters.drop("handshake refused")
            return []
        self._pendingMoment, self._pendingUntil = asked.stamp.moment, now + PENDING_SECONDS
        self._forget(self._next)
        self._next = self._add(L3Session(index, initiation.sender, keys, False, now))
        return [message]

    def _isNew(self, stamp: Stamp, now: float) -> bool:
        """
        Whether it is younger than what has led to a session, and than what was answered a moment ago; and not our own
        that somebody has sent back. What no session came of binds no longer than that: it may be one of before our
        start, even our own, by a clock that was ahead.
        """
        last = max(self._lastMoment, self._pendingMoment) if now < self._pendingUntil else self._lastMoment
        return stamp.moment > last and stamp.process != self._process

    def responseReceived(self, datagram: Buffer, source: Address, now: float) -> list[bytes]:
        """
        It may have answered.

        @return: the word that we have understood, if so.
        """
        attempt = self._attempt
        try:
            response = unpackResponse(datagram)
            if attempt is None or response.receiver != attempt.index:
                self._counters.drop("handshake late")
                return []
            keys = attempt.finish(response)
        except PacketError:
            self._counters.drop("handshake refused")
            return []
        self._attempt = None
        self._crossing = self._next
        self.address = source
        self._lastHeard, self._unanswered = now, None
        self._use(self._add(L3Session(attempt.index, response.sender, keys, True, now)))
        return self._say(b"")

    # -- sessions

    def _number(self) -> int:
        """A number that no session has."""
        while (number := int.from_bytes(self._random(4), "big")) in self.sessions:
            pass
        return number

    def _add(self, session: L3Session) -> L3Session:
        self.sessions[session.index] = session
        return session

    def _use(self, session: L3Session) -> None:
        """Send in this session from now on; messages in the one before may still come."""
        self._forget(self._previous)
        self._previous, self.current = self.current, session
        self._made += 1

    def _forget(self, session: L3Session | None) -> None:
        if session is not None:
            self.sessions.pop(session.index, None)

    def _expire(self, now: float) -> None:
        for session in list(self.sessions.values()):
            if now - session.since >= LIFE_SECONDS:
                self._forget(session)
        self.current, self._previous, self._next = (
            each if each is not None and each.index in self.sessions else None
            for each in (self.current, self._previous, self._next)
        )

    # -- time

    def tick(self, now: float) -> Iterator[bytes]:
        """To be called a few times a second; yields what is to be sent."""
        self._expire(now)
        if self._beginsNow(now):
            yield from self._begin(now)
        if self._owing is not None and now - self._owing >= ANSWER_SECONDS:
            yield from self._say(b"")
        if self._asksNow(now):
            self._unanswered = now
            yield from self._say(ASK)

    def begin(self, now: float) -> list[bytes]:
        """An INITIATION, if there is no session and none was sent a moment ago."""
        self.wanted(now)
        return self._begin(now) if self.current is None and self._beginsNow(now) else []

    def _beginsNow(self, now: float) -> bool:
        if self.address is None:
            return False
        if self._attempt is not None:
            return now >= self._retryAt and self._wants(now)
        return self._needsSession(now) and self._wants(now)

    def _wants(self, now: float) -> bool:
        """Whether there is somebody who would use a session."""
        return self._keepalive > 0 or now - self._lastWanted < PATIENT_SECONDS

    def _needsSession(self, now: float) -> bool:
        session = self.current
        if session is None or self._isDead(now):
            return True
        return now - session.since >= RENEW_SECONDS[session.began] or session.sent >= RENEW_MESSAGES

    def _isDead(self, now: float) -> bool:
        return self._unanswered is not None and now - self._unanswered >= DEAD_SECONDS

    def _begin(self, now: float) -> list[bytes]:
        again = self._attempt is not None and now - self._retryAt < RETRY_SECONDS[-1]
        self._tries = self._tries + 1 if again else 0
        wait = RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
        self._retryAt = now + wait * (0.9 + 0.2 * self._random(1)[0] / 0xFF)
        # A clock that stands still or goes back must not make two of one stamp.
        self._stamped = max(self._moment(), self._stamped + 1)
        self._attempt = Attempt(self._key, self._number(), Stamp(self._stamped, self._process), self._random)
        return [self._attempt.message]

    def _asksNow(self, now: float) -> bool:
        if not self._keepalive or self.current is None or self._unanswered is not None:
            return False
        lively = now - self._lastPacket < LIVELY_SECONDS
        return now - self._lastHeard >= (min(ASK_SECONDS, self._keepalive) if lively else self._keepalive)

    def _say(self, what: bytes) -> list[bytes]:
        """A message that carries no packet."""
        self._owing = None
        return [self.current.seal(DATA, (what,))] if self.current is not None else []

    def report(self, now: float) -> dict[str, object]:
        """The state as plain values; times are seconds ago."""
        session = self.current
        return {
            "peer": str(self.address) if self.address is not None else "",
            "session": round(now - session.since, 1) if session is not None else None,
            "heard": round(now - self._lastHeard, 1) if self._made else None,
            "handshakes": self._made,
        }


def _greatest(session: L3Session) -> int:
    """The greater one of its two numbers, which is the same at both ends."""
    return max(session.index, session.remote)
