"""
A session: one udp-local and its udp-server.

It holds the associations and the links that are up, and outlives each link.
While no link is up, bursts wait for a moment, and udp-server keeps the
external ports for a while: the session is B{parked}. Whoever comes back with
the session's ticket finds it as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from udptunnel.core.associations import Association, Associations, Outlet
from udptunnel.core.counters import Counters
from udptunnel.core.link import Link
from udptunnel.core.queue import Parcel, Queue
from udptunnel.core.tickets import Random, Tickets, Verdict
from udptunnel.errors import LoginError
from udptunnel.wire.frame import CLOSE, encode
from udptunnel.wire.greeting import SESSION_BYTES, Greeting

WAITING_SECONDS = 0.75
"""How long a burst waits for a link when none is up. With what it has waited before, it is not a second."""

WAITING_BYTES = 1 << 20
"""How much waits then."""


class Session:
    """
    One end of a session.

    @ivar name: its 16 bytes.
    @ivar associations: what flows through it.
    @ivar links: those that are up, the newest last.
    @ivar idle: whether each burst goes by the link that was silent longest. If not, each flow keeps to a link.
    """

    def __init__(self, name: bytes, associations: int, counters: Counters) -> None:
        """
        @param associations: how many there may be at once.
        """
        self.name = name
        self.associations = Associations(associations)
        self.links: list[Link] = []
        self.idle = False
        self._turns: deque[Link] = deque()
        self._ways: dict[Association, Link] = {}
        self._counters = counters
        self._waiting = Queue(counters, WAITING_BYTES, WAITING_SECONDS)

    @property
    def shortName(self) -> str:
        """What log lines and reports call it: 8 hexadecimal digits."""
        return self.name.hex()[:8]

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
            self._forget(association)
            for link in self.links[:1]:
                link.control(encode(CLOSE | association.number))

    def closeReceived(self, number: int) -> None:
        """The other end has ended an association."""
        association = self.associations.remove(number)
        if association is not None:
            self._forget(association)

    def _forget(self, association: Association) -> None:
        """What still waits would open the association again at the other end, behind its back."""
        self._ways.pop(association, None)
        for queue in (self._waiting, *(link.queue for link in self.links)):
            queue.forget(association)

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
        """Each burst to the link of its flow, or to the one that was silent longest."""
        shares: dict[Link, list[Parcel]] = {}
        for parcel in parcels:
            way = self._nextTurn() if self.idle else self._way(parcel[0])
            shares.setdefault(way, []).append(parcel)
        return shares

    def _nextTurn(self) -> Link:
        """The link that was silent longest, leaving out those before which something waits already."""
        turns = self._turns
        for _ in range(len(turns)):
            turns.rotate(-1)
            if not turns[-1].queue:
                return turns[-1]
        turns.rotate(-1)
        return turns[-1]

    def _way(self, association: Association) -> Link:
        way = self._ways.get(association)
        if way is None or not way.up:
            way = self._ways[association] = self._turns[association.number % len(self._turns)]
        return way

    def _chooseLinks(self, now: float) -> None:
        """Bursts take the links whose other end answers in time; all of them, if none does."""
        good = [link for link in self.links if not link.late(now)] or self.links
        if set(good) != set(self._turns):
            self._turns = deque(good)
            self._ways = {association: way for association, way in self._ways.items() if way in self._turns}

    @property
    def wantsLink(self) -> bool:
        """Whether bursts wait because no link is up."""
        return bool(self._waiting)

    # -- links

    def linkUp(self, link: Link, greeting: Greeting, now: float) -> None:
        """A link was greeted at both ends."""
        self.links.append(link)
        self._chooseLinks(now)
        if waiting := self._waiting.takeAll(now):
            link.offer(waiting, now)

    def linkRetired(self, link: Link, now: float, farewell: bool) -> None:
        """A link is of no more use; what waits for it goes another way."""
        self.links.remove(link)
        self._chooseLinks(now)
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
        if len(self.links) > 1:
            self._chooseLinks(now)

    def end(self) -> None:
        """Close everything that is open."""
        for association in self.associations:
            self.associations.remove(association.number)
        for link in list(self.links):
            link.carrier.abort()


@dataclass(eq=False)
class Membership:
    """
    What udp-local knows of its session at one server.

    @ivar session: the session.
    @ivar name: what it is called there, 16 bytes.
    @ivar ticket: what to show on the next link; empty if there is no session yet.
    """

    session: LocalSession = field(repr=False)
    name: bytes
    ticket: bytes = field(default=b"", repr=False)

    def hello(self) -> Greeting:
        """What to say on a new link."""
        session = self.session
        alone = not (session.links and self is session.membership)
        return Greeting(self.name, session.wanted, 1, ticket=self.ticket, alone=alone, idle=session.idle)

    def welcomed(self, greeting: Greeting, now: float) -> None:
        """
        The server has let us in: from now on its session is ours.

        @raise LoginError: there are links to another server, or to another session of this one.
        """
        self.session.entered(self, greeting, now)
        self.name, self.ticket = greeting.session, greeting.ticket


class LocalSession(Session):
    """
    udp-local's end; it keeps to the number of associations that the server grants.

    @ivar wanted: how many associations it would like to have.
    @ivar membership: the session at the server that is used now.
    @ivar moving: the one that is to be used as soon as it lets us in.
    @ivar resumed: how often a session went on after all its links were lost.
    @ivar lost: how often the server did not know the session any more, so that external ports have changed.
    """

    def __init__(self, associations: int, counters: Counters, random: Random) -> None:
        """
        @param associations: how many there may be at once.
        """
        self._random = random
        self.membership = self.newMembership()
        super().__init__(self.membership.name, associations, counters)
        self.wanted = associations
        self.moving: Membership | None = None
        self.resumed = self.lost = 0

    def newMembership(self) -> Membership:
        """For a server that does not know us yet."""
        return Membership(self, self._random(SESSION_BYTES))

    def entered(self, at: Membership, greeting: Greeting, now: float) -> None:
        """
        A server has let us in.

        @raise LoginError: there are links to another one, or to another session.
        """
        known = at.ticket or self.membership.ticket
        if at is self.moving:
            self._leave(now)
        if self.links and (at is not self.membership or greeting.session != at.name):
            raise LoginError("this link leads to another session than the others")
        if not self.links and known:
            self.resumed += greeting.resumed
            self.lost += bool(self.associations) and not greeting.resumed
        self.membership, self.name = at, greeting.session
        self.associations.most = max(1, min(self.wanted, greeting.associations))

    def _leave(self, now: float) -> None:
        """Give up the links to the present server: a better one has let us in."""
        self.moving = None
        # The farewell ends our session there.
        self.membership.ticket = b""
        for link in list(self.links):
            link.goAway("udp-local moves to another server", now)


class ServerSession(Session):
    """
    udp-server's end: a DATA frame for a new number opens an association.

    @ivar user: whose session it is; empty if nobody was asked.
    @ivar resumed: whether the link that comes up just now goes on with what was there.
    @ivar parkedAt: since when there is no link; C{None} while there is one.
    """

    missing = "no external port"

    def __init__(
        self,
        name: bytes,
        associations: int,
        counters: Counters,
        openOutlet: Callable[[ServerSession, int], Outlet | None],
        emptied: Callable[[ServerSession], None],
        random: Random,
        user: str = "",
        grace: float = 0.0,
    ) -> None:
        """
        @param openOutlet: makes the outlet of an association, or returns C{None} if that can not be done.
        @param emptied: called when the session is over: its last link is gone, and it is not to be parked any longer.
        @param grace: how many seconds it is parked.
        """
        super().__init__(name, associations, counters)
        self.user = user
        self.grace = grace
        self.resumed = False
        self.parkedAt: float | None = None
        self._openOutlet = openOutlet
        self._emptied = emptied
        self._tickets = Tickets(random)
        self._confirmed = self._resuming = False
        self._newest: Link | None = None

    # -- logging in

    def resume(self, greeting: Greeting, user: str, now: float) -> bool:
        """
        Whether a HELLO belongs to this session: it comes from the same user, with a ticket that is good.

        A link that showed the same ticket before, and may not even have seen
        its answer, must go: a ticket is for one link.
        """
        verdict = self._tickets.accept(greeting.ticket) if user == self.user else Verdict.VOID
        if verdict is Verdict.VOID:
            return False
        if verdict is Verdict.FRESH:
            self._newest = None
        self.resumed = self._confirmed = True
        # The session is not over with its last rival: another link is about to come up.
        self._resuming = True
        for link in [each for each in self.links if greeting.alone or each is self._newest]:
            link.retire(now)
            link.carrier.abort()
        self._resuming = False
        return True

    def welcome(self) -> Greeting:
        """What to say of the session on a link that came up."""
        return Greeting(self.name, self.associations.most, 1, ticket=self._tickets.issue(), resumed=self.resumed)

    def linkUp(self, link: Link, greeting: Greeting, now: float) -> None:
        """The newest link is not known to have had its answer yet."""
        self.idle = greeting.idle
        self.parkedAt = None
        self._newest = link
        super().linkUp(link, greeting, now)

    def confirmed(self, link: Link) -> None:
        """The WELCOME of a link has arrived: udp-local has its new ticket, and the old one is void."""
        if link is self._newest:
            self._newest = None
            self._confirmed = True
            self._tickets.confirm()

    # -- associations

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

    # -- its end

    def linkRetired(self, link: Link, now: float, farewell: bool) -> None:
        """A link is of no more use. Without any the session is parked, or over if udp-local has said farewell."""
        super().linkRetired(link, now, farewell)
        if not self.links:
            self.parkedAt = now
            # Without associations nothing is worth keeping.
            kept = self._confirmed and self.associations and self.grace
            if farewell or not (kept or self._resuming):
                self._emptied(self)

    def tick(self, now: float) -> None:
        """A second or so has passed: nobody may come back any more."""
        super().tick(now)
        if self.parkedAt is not None and now - self.parkedAt >= self.grace:
            self._emptied(self)
