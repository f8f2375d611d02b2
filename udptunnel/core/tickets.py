"""
Tickets: how udp-local shows that a session is its own when it comes back.

Each WELCOME brings a new one, 256 random bits, for the next link. A ticket is
good once; but until the other end has shown that the new one has arrived, the
old one still is: the connection may break just before. It may break several
times, and nobody knows which of the WELCOMEs were read before that; hence all
tickets given since then are good, until one of them is shown. What is kept
are hashes, so that what is read from our memory opens no door.

No time is kept here: a link that does not confirm its ticket is dead after
three heartbeats, and all tickets end with their session.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from enum import Enum
from hashlib import sha256

from udptunnel.wire.greeting import TICKET_BYTES

Random = Callable[[int], bytes]
"""Makes so many random bytes, as C{os.urandom} does."""

MOST_GIVEN = 16
"""Tickets that may be on their way: so many links in a row may break before one is known to be up."""

_NONE = b""


class Verdict(Enum):
    """What a ticket is worth."""

    VOID = "void"
    """Nothing."""

    FRESH = "fresh"
    """It was given last, so what brought it has arrived."""

    AGAIN = "again"
    """It is good, but what was given last may not have arrived."""


class Tickets:
    """The tickets of one session, at the server: the one that was shown last, and those that were given since."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._shown = _NONE
        self._given: deque[bytes] = deque(maxlen=MOST_GIVEN)

    def issue(self) -> bytes:
        """A new ticket. Of too many that were given and not shown, the oldest is forgotten."""
        ticket = self._random(TICKET_BYTES)
        self._given.append(sha256(ticket).digest())
        return ticket

    def accept(self, ticket: bytes) -> Verdict:
        """Whether a ticket is good; if so it is the one that was shown last, and what was given beside it is void."""
        digest = sha256(ticket).digest()
        again, *given = (hmac.compare_digest(digest, each) for each in (self._shown, *self._given))
        if any(given):
            self._shown = digest
            self._given.clear()
            return Verdict.FRESH if given[-1] else Verdict.AGAIN
        return Verdict.AGAIN if again else Verdict.VOID

    def confirm(self) -> None:
        """The ticket that was given last has arrived: none but it is good."""
        while len(self._given) > 1:
            self._given.popleft()
        if self._given:
            self._shown = _NONE
