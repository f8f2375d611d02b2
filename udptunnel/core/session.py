"""
A session: one udp-local and its udp-server.

It holds the associations and the links that are up, and outlives each link.
While no link is up, bursts wait for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from udptunnel.core.associations import Association, Associations, Outlet
from udptunnel.core.counters import Counters
from udptunnel.core.link import Link
from udptunnel.core.queue import Parcel, Queue
from udptunnel.wire.frame import CLOSE, encode
from udptunnel.wire.greeting import Greeting

WAITING_SECONDS = 1.0
"""How long a burst waits for a link when none is up."""

WAITING_BYTES = 1 << 20
"""How much waits then."""


class Session:
    """
    One end of a session.

    @ivar name: its 16 bytes.
    @ivar associations: what flows through it.
    @ivar links: those that are up, the newest last.
    """

    def __init__(self, name: bytes, associations: int, counters: Counters) -> None:
        """
        @param associations: how many there may be at once.
        """
        self.name = name
        self.associations = Associations(associations)
        self.links: list[Link] = []
        self._ways: dict[Association, Link] = {}
        self._counters = counters
        self._waiting = Queue(counters, WAITING_BYTES, WAITING_SECONDS)

    missing = "no association"
    """Why there may be no association for a DATA frame."""

    # -- associations

    def begin(self, makeOutlet: Callable[[int], Outlet], now: float) -> Association:
        """Open an association for a new source of ours."""
        number = self.associations.number()
        return self._add(number, makeOutlet(number), now)

    def _add(self, number: int, outlet: Outlet, now: float) -> Association:
        for each in self.associations.surplus():
            self._counters.evicted += 1
            self.close(each)
        association = Association(number, outlet, now)
        self.associations.add(association)
        return association

    def find(self, number: int, link: Link, now: float) -> Association | None:
        """The association that a DATA frame on C{link} is for; C{None} if there is none."""
        association = self.associations.get(number)
        if association is None:
            link.control(encode(CLOSE | number))
        return association

    def close(self, association: Association) -> None:
        """End an association, and tell the other end."""
        if self.associations.remove(association.number) is not None:
            self._ways.pop(association, None)
            for link in self.links[:1]:
                link.control(encode(CLOSE | association.number))

    def closeReceived(self, number: int) -> None:
        """The other end has ended an association."""
        association = self.associations.remove(number)
        if association is not None:
            self._ways.pop(association, None)

    # -- bursts

    def send(self, parcels: Sequence[Parcel], now: float) -> None:
        """Send bursts over the links that are up."""
        if len(self.links) == 1:
            self.links[0].offer(parcels, now)
        elif not self.links:
            self._waiting.put(parcels, now)
        else:
            for link, share in self._divide(parcels).items():
                link.offer(share, now)

    def _divide(self, parcels: Sequence[Parcel]) -> dict[Link, list[Parcel]]:
        """Each burst to the link of its flow."""
        shares: dict[Link, list[Parcel]] = {}
        for parcel in parcels:
            shares.setdefault(self._way(parcel[0]), []).append(parcel)
        return shares

    def _way(self, association: Association) -> Link:
        way = self._ways.get(association)
        if way is None or not way.up:
            way = self._ways[association] = self.links[association.number % len(self.links)]
        return way

    @property
    def wantsLink(self) -> bool:
        """Whether bursts wait because no link is up."""
        return bool(self._waiting)

    # -- links

    def linkUp(self, link: Link, greeting: Greeting, now: float) -> None:
        """A link was greeted at both ends."""
        self.links.append(link)
        if waiting := self._waiting.takeAll(now):
            link.offer(waiting, now)

    def linkRetired(self, link: Link, now: float) -> None:
        """A link is of no more use; what waits for it goes another way."""
        self.links.remove(link)
        self._ways = {association: way for association, way in self._ways.items() if way is not link}
        if left := link.queue.takeAll(now):
            self.send(left, now)

    # -- time

    def tick(self, now: float) -> None:
        """A second or so has passed."""
        self._waiting.expire(now)
        for association in self.associations.idle(now):
            self.close(association)
        for link in list(self.links):
            link.tick(now)

    def end(self) -> None:
        """Close everything that is open."""
        for association in self.associations:
            self.associations.remove(association.number)
        for link in list(self.links):
            link.carrier.abort()


class LocalSession(Session):
    """udp-local's end; it keeps to the number of associations that the server grants."""

    def linkUp(self, link: Link, greeting: Greeting, now: float) -> None:
        """Take the server's limit over before the first burst goes."""
        self.associations.most = max(1, min(self.associations.most, greeting.associations))
        super().linkUp(link, greeting, now)


class ServerSession(Session):
    """udp-server's end: a DATA frame for a new number opens an association."""

    missing = "no external port"

    def __init__(
        self,
        name: bytes,
        associations: int,
        counters: Counters,
        openOutlet: Callable[[ServerSession, int], Outlet | None],
        emptied: Callable[[ServerSession], None],
    ) -> None:
        """
        @param openOutlet: makes the outlet of an association, or returns C{None} if that can not be done.
        @param emptied: called when the last link is gone.
        """
        super().__init__(name, associations, counters)
        self._openOutlet = openOutlet
        self._emptied = emptied

    def find(self, number: int, link: Link, now: float) -> Association | None:
        """The association that a DATA frame is for, opened if it is new. Its answers take the link that it came by."""
        association = self.associations.get(number) or self._open(number, link, now)
        if association is not None and len(self.links) > 1:
            self._ways[association] = link
        return association

    def _open(self, number: int, link: Link, now: float) -> Association | None:
        outlet = self._openOutlet(self, number)
        if outlet is None:
            link.control(encode(CLOSE | number))
            return None
        return self._add(number, outlet, now)

    def linkRetired(self, link: Link, now: float) -> None:
        """A link is of no more use; without any, the session is over."""
        super().linkRetired(link, now)
        if not self.links:
            self._emptied(self)
