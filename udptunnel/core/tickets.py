"""
Tickets: how udp-local shows that a session is its own when it comes back.

Each WELCOME brings a new one, 256 random bits, for the next link. A ticket is
good once; but until the other end has shown that the new one has arrived, the
old one still is: the connection may break just before. What is kept here is
a hash, so that what is read from our memory opens no door.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum
from hashlib import sha256

from udptunnel.wire.greeting import TICKET_BYTES

Random = Callable[[int], bytes]
"""Makes so many random bytes, as C{os.urandom} does."""

_NONE = b""


class Verdict(Enum):
    """What a ticket is worth."""

    VOID = "void"
    """Nothing."""

    FRESH = "fresh"
    """It was given last, so what brought it has arrived."""

    AGAIN = "again"
    """It was shown before, and what was given for it may not have arrived."""


class Tickets:
    """The tickets of one session, at the server: the one that was shown last, and the one that was given for it."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._shown = self._given = _NONE

    def issue(self) -> bytes:
        """A new ticket. The one that was given before is forgotten unless it was shown."""
        ticket = self._random(TICKET_BYTES)
        self._given = sha256(ticket).digest()
        return ticket

    def accept(self, ticket: bytes) -> Verdict:
        """Whether a ticket is good; if so it is the one that was shown last."""
        digest = sha256(ticket).digest()
        again, fresh = (hmac.compare_digest(digest, each) for each in (self._shown, self._given))
        if fresh:
            self._shown = digest
        return Verdict.FRESH if fresh else Verdict.AGAIN if again else Verdict.VOID

    def confirm(self) -> None:
        """The ticket that was given last has arrived: none but it is good."""
        self._shown = _NONE
