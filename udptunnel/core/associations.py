"""
Associations: one UDP source on the local side, one UDP port on the server.

The same table serves both ends. udp-local numbers an association when a new
source sends; udp-server opens one for a number that it has not seen. There is
no round trip: the first DATA frame opens the association.
"""

from __future__ import annotations

from typing import Protocol

from udptunnel.core.recent import Recent
from udptunnel.wire.address import Address
from udptunnel.wire.frame import ASSOCIATIONS, Buffer

BRIEF_SECONDS = 10.0
LONG_SECONDS = 300.0
"""RFC 4787 REQ-5 recommends five minutes, and allows less for ports whose use is known."""

BRIEF_PORTS = frozenset((53, 123, 3478))
"""DNS, NTP and STUN: one question, one answer. A phone opens an association for each."""


class Outlet(Protocol):
    """Where what arrives for an association goes."""

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        """Pass on a burst that goes to C{address} (on the server) or comes from it (on the local side)."""

    def closed(self) -> None:
        """The association is over; nothing more will be sent."""


class Association:
    """
    One entry of the table.

    @ivar number: its number in the session, 0 to 2**24 - 1.
    @ivar outlet: where arriving bursts go.
    @ivar used: when a burst last went through, in either direction.
    @ivar idle: how long it may be unused, in seconds.
    """

    __slots__ = ("idle", "number", "outlet", "used")

    def __init__(self, number: int, outlet: Outlet, now: float) -> None:
        self.number = number
        self.outlet = outlet
        self.used = now
        self.idle = BRIEF_SECONDS

    def touch(self, address: Address, now: float) -> None:
        """A burst to or from C{address} goes through."""
        self.used = now
        if self.idle != LONG_SECONDS and address[1] not in BRIEF_PORTS:
            self.idle = LONG_SECONDS


class Associations(Recent[int, Association]):
    """The associations of one session, by number: bounded, and gone when they were idle too long."""

    def __init__(self, most: int) -> None:
        """
        @param most: how many there may be at once. One more makes those go
            that have been silent longest.
        """
        super().__init__(most)
        self._next = 0

    def number(self) -> int:
        """A number that no association has, and that was not in use lately."""
        while self._next in self._table:
            self._next = (self._next + 1) % ASSOCIATIONS
        chosen = self._next
        self._next = (chosen + 1) % ASSOCIATIONS
        return chosen

    def add(self, association: Association) -> None:
        """Put in a new one, under its number."""
        self.put(association.number, association)

    def remove(self, number: int) -> Association | None:
        """Take one out and tell its outlet; C{None} if there is none of this number."""
        association = self.pop(number)
        if association is not None:
            association.outlet.closed()
        return association
