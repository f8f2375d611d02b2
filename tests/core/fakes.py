"""Stand-ins for what surrounds the rules: carriers, outlets, and the ends of a link that face each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any

from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.link import Link, LinkLimits, LocalLink, ServerLink
from udptunnel.core.login import Challenge, Login
from udptunnel.core.queue import Parcel
from udptunnel.core.session import LocalSession, ServerSession
from udptunnel.wire.address import Address
from udptunnel.wire.burst import split
from udptunnel.wire.frame import Buffer, decode
from udptunnel.wire.greeting import Greeting

TARGET_ADDRESS = Address("198.51.100.1", 4000)

NAME = bytes(range(16))

TICKET = bytes(range(100, 132))

Plain = tuple[int, int, int, bytes]


class MemoryCarrier:
    """
    Keeps what is written.

    @ivar full: whether the path takes no more for now.
    @ivar writes: the buffers of each write, joined.
    @ivar kept: how much the kernel was told to keep at most, each time.
    @ivar patient: whether what is to be called later waits in C{calls}; if not, it is called at once.
    @ivar calls: after how many seconds what is to be called.
    """

    def __init__(self) -> None:
        self.full = False
        self.writes: list[bytes] = []
        self.closed = self.aborted = False
        self.kept: list[int] = []
        self.patient = False
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self._taken = 0

    def write(self, buffers: Sequence[Buffer]) -> bool:
        assert buffers, "nothing to write"
        assert len(buffers) <= 1024, "more than sendmsg takes"
        self.writes.append(b"".join(buffers))
        return not self.full

    def keep(self, most: int) -> None:
        self.kept.append(most)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        if self.patient:
            self.calls.append((seconds, call))
        else:
            call()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    @property
    def written(self) -> bytes:
        """All that was written."""
        return b"".join(self.writes)

    def take(self) -> bytes:
        """What was written since this was asked last."""
        written = self.written
        fresh, self._taken = written[self._taken :], len(written)
        return fresh

    def takeFrames(self) -> list[Plain]:
        """What was written since this was asked last, as frames."""
        return plainFrames(self.take())


class RecordingOutlet:
    """
    Keeps what arrives.

    @ivar bursts: the address, datagram size and payload of each burst.
    @ivar closings: how often it was told that its association is over.
    """

    def __init__(self) -> None:
        self.bursts: list[tuple[Address, int, bytes]] = []
        self.closings = 0

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        assert not self.closings, "sent to an outlet that is closed"
        self.bursts.append((address, size, bytes(payload)))

    def closed(self) -> None:
        self.closings += 1

    @property
    def datagrams(self) -> list[tuple[Address, bytes]]:
        """Each datagram that arrived, with its address."""
        return [(address, bytes(each)) for address, size, payload in self.bursts for each in split(size, payload)]


def plainFrames(stream: bytes) -> list[Plain]:
    """The frames of a stream that holds nothing else."""
    frames, used = decode(memoryview(stream))
    assert used == len(stream), "a frame was not written completely"
    return [(word, target, size, bytes(body)) for word, target, size, body in frames]


def feed(link: Link, stream: bytes, now: float = 0.0) -> bytes:
    """Give a link some bytes, as L{udptunnel.net.link.LinkProtocol} does; return what waits for more."""
    link.beginningReceived(stream)
    frames, used = decode(memoryview(stream))
    link.framesReceived(frames, now)
    return stream[used:]


def makeAssociation(number: int = 0, outlet: RecordingOutlet | None = None, now: float = 0.0) -> Association:
    """An association whose outlet records."""
    return Association(number, outlet or RecordingOutlet(), now)


def makeParcel(association: Association, *datagrams: bytes, address: Address = TARGET_ADDRESS) -> Parcel:
    """A burst on its way; of one datagram of one byte unless told."""
    datagrams = datagrams or (b"x",)
    return association, address, len(datagrams[0]), b"".join(datagrams)


def countingRandom() -> Callable[[int], bytes]:
    """Random bytes that a test knows: each time another byte, so many times."""
    numbers = count()
    return lambda length: bytes(range(length)) if (n := next(numbers)) == 0 else bytes((n & 0xFF,)) * length


class FixedMembership:
    """What a link of udp-local says of any owner of links."""

    def __init__(self, session: Any, ticket: bytes = b"", name: bytes = NAME) -> None:
        self.session = session
        self.name = name
        self.ticket = ticket
        self.greetings: list[Greeting] = []

    def hello(self) -> Greeting:
        return Greeting(self.name, self.session.associations.most, 1, ticket=self.ticket)

    def welcomed(self, greeting: Greeting, now: float) -> None:
        self.greetings.append(greeting)


class OpenReception:
    """
    Lets everybody in, to one session.

    @ivar secrets: what users must prove, if anything.
    @ivar refusal: raised instead of letting anybody in.
    """

    def __init__(self, session: Any, user: str = "") -> None:
        self.session = session
        self.user = user
        self.secrets: dict[str, bytes] = {}
        self.refusal: Exception | None = None
        self.now = 0.0

    def challenge(self, user: str, hello: bytes) -> Challenge | None:
        if not self.secrets:
            return None
        return Challenge(self.secrets.get(user, bytes(32)), bytes(32), b"n" * 32, hello, user in self.secrets)

    def admit(self, greeting: Greeting, link: ServerLink) -> Any:
        if self.refusal is not None:
            raise self.refusal
        if isinstance(self.session, ServerSession):
            self.session.resume(greeting, self.user, self.now)
        return self.session


class Pair:
    """
    Both ends of a session, with any number of links between them.

    @ivar links: both ends of each link.
    @ivar carriers: both carriers of each link.
    @ivar outlets: the server's outlets, by association.
    """

    def __init__(self, associations: int = 100, granted: int = 100, grace: float = 60.0, **limits: Any) -> None:
        """
        @param associations: how many udp-local would like to hold.
        @param granted: how many udp-server allows.
        @param grace: how long the server parks the session.
        """
        self.limits = LinkLimits(**limits)
        self.localCounters, self.serverCounters = Counters(), Counters()
        self.links: list[tuple[LocalLink, ServerLink]] = []
        self.carriers: list[tuple[MemoryCarrier, MemoryCarrier]] = []
        self.outlets: dict[int, RecordingOutlet] = {}
        self.emptied = self.welcomed = 0
        self.refusing = False
        self.local = LocalSession(associations, self.localCounters, countingRandom())
        self.server = ServerSession(
            NAME, granted, self.serverCounters, self._openOutlet, self._emptied, countingRandom(), grace=grace
        )
        self.reception = OpenReception(self.server)
        self.login: Login | None = None

    def _openOutlet(self, session: ServerSession, number: int) -> RecordingOutlet | None:
        if self.refusing:
            return None
        outlet = self.outlets[number] = RecordingOutlet()
        return outlet

    def _emptied(self, session: ServerSession) -> None:
        self.emptied += 1

    def _welcomed(self) -> None:
        self.welcomed += 1

    def connect(self, now: float = 0.0) -> tuple[LocalLink, ServerLink]:
        """Make one more link; it is greeted by L{pump}."""
        local, server = MemoryCarrier(), MemoryCarrier()
        self.carriers.append((local, server))
        ends = (
            LocalLink(local, self.limits, self.localCounters, now, self.local.membership, self._welcomed, self.login),
            ServerLink(server, self.limits, self.serverCounters, now, self.reception),
        )
        self.links.append(ends)
        return ends

    def greeted(self, links: int = 1, now: float = 0.0) -> Pair:
        """Make links and greet them."""
        for _ in range(links):
            self.connect(now)
            self.pump(now)
        return self

    def pump(self, now: float = 0.0, cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        """Carry bytes to and fro until nothing is left to carry; each load is cut in pieces, and arrives so."""
        self.reception.now = now
        busy = True
        while busy:
            busy = False
            for (local, server), (fromLocal, fromServer) in zip(self.links, self.carriers, strict=True):
                for carrier, link in ((fromLocal, server), (fromServer, local)):
                    if data := carrier.take():
                        busy = True
                        self._deliver(link, cut(data), now)

    def _deliver(self, link: Link, pieces: list[bytes], now: float) -> None:
        rest = b""
        for piece in pieces:
            rest = feed(link, rest + piece, now)
        assert not rest, "a frame was not written completely"

    def open(self, now: float = 0.0) -> tuple[Association, RecordingOutlet]:
        """Open an association at the local side."""
        outlet = RecordingOutlet()
        return self.local.begin(lambda number: outlet, now), outlet


class Path:
    """
    A way of some rate and length, with its own time: what is sent leaves one by one and arrives in order.

    @ivar now: the time.
    @ivar rate: bytes a second.
    @ivar roundTrip: seconds, if it is empty.
    @ivar waits: for all that was sent, when that was, and how long it took to leave.
    """

    def __init__(self, megabits: float, roundTrip: float) -> None:
        self.now = 0.0
        self.rate = megabits * 1e6 / 8
        self.waits: list[tuple[float, float]] = []
        self.roundTrip = roundTrip
        self._free = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Have something done at some time."""
        heappush(self._events, (time, next(self._order), call))

    def send(self, length: int, arrived: Callable[[], None]) -> None:
        """Put so many bytes on the narrow way."""
        self._free = max(self.now, self._free) + length / self.rate
        self.waits.append((self.now, self._free - self.now))
        self.at(self._free + self.roundTrip / 2, arrived)

    def answer(self, arrived: Callable[[], None]) -> None:
        """Have something arrive by the way back, which is wide."""
        self.at(self.now + self.roundTrip / 2, arrived)

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heappop(self._events)
            call()
        self.now = until

    def longestWait(self, begin: float, end: float) -> float:
        """How long anything took to leave that was sent between two times."""
        return max((wait for sent, wait in self.waits if begin <= sent < end), default=0.0)
