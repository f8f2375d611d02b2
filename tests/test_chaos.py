"""
Both ends of a session under every fault at once: a Hypothesis state machine.

The ends face each other over L{Line}s, connections in memory that a test can
hold up, cut at any byte, or make swallow everything. The clock is moved by
hand. Whatever happens, a datagram arrives once or never, as it was sent, where
it was sent to, and not late; nothing grows without a bound; and in the end
nothing is left open.

L{World} alone knows how sessions and links are made, greeted and ticked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.core.heartbeat import BUSY, MISSES
from udptunnel.core.link import CHUNK, MOST_PENDING, Link, LinkLimits, LocalLink, ServerLink
from udptunnel.core.session import WAITING_BYTES, WAITING_SECONDS, LocalSession, ServerSession, Session
from udptunnel.errors import LoginError
from udptunnel.wire.address import Address
from udptunnel.wire.burst import split
from udptunnel.wire.frame import ASSOCIATIONS, Buffer, decode
from udptunnel.wire.greeting import SESSION_BYTES, Greeting

LIMITS = LinkLimits(queueBytes=1 << 18, targets=3)
"""Few target numbers, so that they are given again."""

WANTED, GRANTED = 6, 5
"""Associations that udp-local would like to hold, and that udp-server allows."""

SOURCES = range(8)
TARGETS = [Address(f"198.51.100.{number}", 4000 + number) for number in range(5)]

GRACE = 10.0
"""How long a session without links is kept at the server."""

MOST_LINES = 4

SOCKET_BYTES = 30_000
"""What a connection takes before it is full."""

SILENCE_SECONDS = 120.0
"""How long a connection keeps bytes that it can not get rid of. Not every kernel can be told to give up sooner."""

TICK = 1.0

PATH_SECONDS = (BUSY + MISSES) * LIMITS.heartbeat + 2 * TICK
"""How long what was written may be on its way: then a PING behind it had no answer."""


# -- what was sent, and what became of it


@dataclass
class Sent:
    """A datagram that is long enough to hold its number."""

    flow: Flow
    payload: bytes
    moment: float
    written: int = 0
    arrived: int = 0


@dataclass(frozen=True)
class Flow:
    """Where a datagram belongs: the end that it comes from (0: local), its association, and the far address."""

    end: int
    association: int
    address: Address


class Ledger:
    """
    Knows every datagram, and complains about any that is not as it should be.

    @ivar moves: when links were retired: what waits may have to wait again.
    """

    NUMBER_BYTES = 4

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.tiny: Counter[tuple[Flow, bytes]] = Counter()
        self.moves: list[float] = []

    def make(self, flow: Flow, length: int, now: float) -> bytes:
        """A new datagram: its number over and over, if there is room for it."""
        number = len(self.sent)
        payload = (number.to_bytes(self.NUMBER_BYTES, "big") * (length // self.NUMBER_BYTES + 1))[:length]
        if length < self.NUMBER_BYTES:
            self.tiny[flow, payload] += 1
        else:
            self.sent.append(Sent(flow, payload, now))
        return payload

    def written(self, end: int, association: int, size: int, payload: Buffer, now: float) -> None:
        """A burst was handed to a connection; from now on nobody can take it back."""
        for datagram in self._numbered(size, payload):
            datagram.written += 1
            assert datagram.written == 1, "a datagram is sent twice"
            assert (datagram.flow.end, datagram.flow.association) == (end, association), "sent for another source"
            age, most = now - datagram.moment, self.waitingSeconds(datagram.moment)
            assert age <= most, f"a datagram was sent after {age:.2f} s, and {most:.2f} s are allowed"

    def arrived(self, flow: Flow, size: int, payload: Buffer, now: float) -> None:
        """A burst came out at the other end."""
        for datagram in self._numbered(size, payload):
            datagram.arrived += 1
            assert datagram.arrived == 1, "a datagram arrives twice"
            assert datagram.flow == flow, f"what was for {datagram.flow} comes to {flow}"
            assert now - datagram.moment <= self.waitingSeconds(datagram.moment) + PATH_SECONDS, "it arrives too late"
        for each in split(size, payload):
            if len(each) < self.NUMBER_BYTES:
                self.tiny[flow, bytes(each)] -= 1
                assert self.tiny[flow, bytes(each)] >= 0, f"nobody sent {bytes(each)!r} to {flow}, or not so often"

    def _numbered(self, size: int, payload: Buffer) -> list[Sent]:
        found = [bytes(each) for each in split(size, payload) if len(each) >= self.NUMBER_BYTES]
        return [self._find(each) for each in found]

    def _find(self, payload: bytes) -> Sent:
        number = int.from_bytes(payload[: self.NUMBER_BYTES], "big")
        assert number < len(self.sent) and self.sent[number].payload == payload, "a datagram was altered"
        return self.sent[number]

    def waitingSeconds(self, moment: float) -> float:
        """How long a datagram of that moment may wait at its own end."""
        moves = sum(moved >= moment for moved in self.moves)
        return (WAITING_SECONDS + LIMITS.queueAge) * (1 + moves) + 1e-6


class Outlet:
    """
    Where bursts come out.

    @ivar closings: how often it was told that its association is over.
    """

    def __init__(self, arrived: Callable[[Address, int, Buffer], None], ended: Callable[[], None]) -> None:
        self._arrived = arrived
        self._ended = ended
        self.closings = 0

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        assert not self.closings, "sent to an outlet that is closed"
        self._arrived(address, size, payload)

    def closed(self) -> None:
        self.closings += 1
        self._ended()


# -- connections


class End:
    """
    One end of a connection: the carrier of its link.

    @ivar flying: what was written here and has not arrived at the other end.
    @ivar held: whether it stays where it is for now.
    @ivar hole: since when it never arrives, and nobody is told; C{None} if it does.
    @ivar gone: whether this end knows that the connection is over.
    """

    link: Link
    other: End

    def __init__(self, world: World, place: int) -> None:
        self._world = world
        self._place = place
        self.flying = bytearray()
        self.held = self.full = self.closing = self.aborting = self.gone = False
        self.hole: float | None = None
        self._rest = b""
        self._stuckSince: float | None = None

    # -- Carrier

    def write(self, buffers: Sequence[Buffer]) -> bool:
        assert 0 < len(buffers) <= 1024, "nothing to write, or more than sendmsg takes"
        if self.gone or self.closing or self.aborting:
            return False
        data = b"".join(buffers)
        self._note(data)
        self.flying += data
        self.full = len(self.flying) > SOCKET_BYTES
        return not self.full

    def close(self) -> None:
        self.closing = True

    def keep(self, most: int) -> None:
        """There is no kernel here."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        call()

    def abort(self) -> None:
        self.aborting = True

    def _note(self, data: bytes) -> None:
        """Look at what is written: whole frames, and DATA only while there is room."""
        frames, used = decode(memoryview(data))
        assert used == len(data), "a frame was not written completely"
        for word, _, size, body in frames:
            if word < ASSOCIATIONS:
                assert not self.full, "DATA was written although the connection is full"
                self._world.ledger.written(self._place, word, size, body, self._world.now)

    # -- the path

    @property
    def stuck(self) -> bool:
        """Whether nothing gets through from here."""
        return self.held or self.hole is not None

    def carry(self, most: int = 1 << 30) -> bool:
        """Let up to C{most} bytes arrive, in small pieces and then in larger ones; returns whether any did."""
        if self.stuck or self.gone or not self.flying:
            return False
        data = bytes(self.flying[:most])
        del self.flying[:most]
        begin, step = 0, 1 + self._world.ledger.NUMBER_BYTES
        while begin < len(data):
            self.other.arrived(data[begin : begin + step])
            begin, step = begin + step, step * 3
        self._drained()
        return True

    def _drained(self) -> None:
        if self.full and not self.flying:
            self.full = False
            if not (self.closing or self.aborting or self.gone):
                self.link.resumed(self._world.now)

    def arrived(self, data: bytes) -> None:
        """Bytes from the other end: what L{udptunnel.net.link.LinkProtocol} does with them."""
        if self.gone or self.closing or self.aborting:
            return
        data = self._rest + data
        try:
            self.link.beginningReceived(data)
            frames, used = decode(memoryview(data))
            self._world.watch(self.link, lambda: self.link.framesReceived(frames, self._world.now))
        except LoginError:
            self.close()
            used = len(data)
        self._rest = data[used:]

    def settle(self) -> bool:
        """What the kernel and the reactor do by themselves; returns whether anything happened."""
        if self.gone:
            return False
        if self.aborting or self._timedOut() or (self.closing and not self.flying) or self._refused():
            self.lose()
            return True
        return self.carry()

    def _refused(self) -> bool:
        """Whether this end hears that the other one is gone."""
        return self.other.gone and not self.other.stuck

    def _timedOut(self) -> bool:
        now = self._world.now
        if not (self.stuck and self.flying):
            self._stuckSince = None
            return False
        self._stuckSince = now if self._stuckSince is None else self._stuckSince
        return now - self._stuckSince > SILENCE_SECONDS

    def lose(self) -> None:
        """The connection is over, and this end knows."""
        if not self.gone:
            self.gone = True
            self.flying.clear()
            self._world.watch(self.link, lambda: self.link.connectionLost(self._world.now))


class Line:
    """
    One connection.

    @ivar ends: the local end and the server's.
    """

    def __init__(self, world: World) -> None:
        self.ends = End(world, 0), End(world, 1)
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]

    @property
    def over(self) -> bool:
        """Whether both ends know that it is gone."""
        return all(end.gone for end in self.ends)

    @property
    def greeting(self) -> bool:
        """Whether its link may still come up."""
        return not self.over and any(end.link.session is None for end in self.ends)

    def settle(self) -> bool:
        """Let everything happen that can happen now; returns whether anything did."""
        return any([end.settle() for end in self.ends])

    def cut(self, *kept: int) -> None:
        """Cut it: so many bytes of each direction still arrive, and both ends are told."""
        for end, count in zip(self.ends, kept, strict=False):
            end.carry(count)
        for end in self.ends:
            end.lose()


# -- both roles


class World:
    """
    udp-local and udp-server without their sockets: what L{udptunnel.services} does with sessions and links.

    @ivar now: the time.
    @ivar lines: the connections that are not over at both ends.
    @ivar local: the session at the local side.
    @ivar sessions: those at the server, by name.
    @ivar sources: the open associations of local sources.
    @ivar outlets: all that were ever made.
    @ivar raced: whether a link was made while another one had not been welcomed, so that both show one ticket.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.ledger = Ledger()
        self.lines: list[Line] = []
        self.counters = Counters()
        self._random = Random(0).randbytes
        self.local = LocalSession(WANTED, self.counters, self._random)
        self.sessions: dict[bytes, ServerSession] = {}
        self.sources: dict[int, Association] = {}
        self.outlets: list[Outlet] = []
        self.raced = False
        self._numbers: set[int] = set()

    # -- sessions and links

    def connect(self) -> None:
        """Make one more connection, and a link at each end of it."""
        self.raced |= any(other.greeting for other in self.lines)
        line = Line(self)
        self.lines.append(line)
        local, server = line.ends
        server.link = ServerLink(server, LIMITS, self.counters, self.now, self)
        local.link = LocalLink(local, LIMITS, self.counters, self.now, self.local.membership, lambda: None)

    def challenge(self, user: str, hello: bytes) -> None:
        """Nobody must prove anything."""

    def admit(self, greeting: Greeting, link: ServerLink) -> ServerSession:
        """The session for a HELLO: the one that it has a ticket for, or a new one."""
        session = self.sessions.get(greeting.session)
        if session is None or not session.resume(greeting, "", self.now):
            session = self._beginSession(greeting.session)
        return session

    def _beginSession(self, name: bytes) -> ServerSession:
        name = self._random(SESSION_BYTES) if name in self.sessions else name
        session = self.sessions[name] = ServerSession(
            name, GRANTED, self.counters, self._openOutlet, self._emptied, self._random, grace=GRACE
        )
        return session

    def _emptied(self, session: ServerSession) -> None:
        if self.sessions.pop(session.name, None) is not None:
            session.end()

    def watch(self, link: Link, step: Callable[[], None]) -> None:
        """Do something with a link, and note if it was retired."""
        up = link.up
        step()
        if up and not link.up:
            self.ledger.moves.append(self.now)

    def tick(self) -> None:
        """A second or so has passed."""
        for session in self.all():
            session.tick(self.now)
        for line in self.lines:
            for end in line.ends:
                if not end.gone and not end.link.up:
                    end.link.tick(self.now)

    def all(self) -> list[Session]:
        """All sessions of both ends."""
        return [self.local, *self.sessions.values()]

    def ports(self) -> list[tuple[ServerSession, Association]]:
        """The associations that are open at the server."""
        return [(session, each) for session in self.sessions.values() for each in session.associations]

    def end(self) -> None:
        """Both roles stop."""
        for session in self.all():
            session.end()
        for line in self.lines:
            line.cut(0, 0)

    def tables(self) -> dict[str, tuple[int, int]]:
        """How full each table is, and how full it may be."""
        sizes = {"sessions": (len(self.sessions), 1 + MOST_LINES)}
        for place, session in enumerate(self.all()):
            sizes[f"{place} associations"] = len(session.associations), GRANTED if place else WANTED
            sizes[f"{place} links"] = len(session.links), MOST_LINES
            sizes[f"{place} waiting"] = session._waiting.bytes, WAITING_BYTES
        for line in self.lines:
            for end in line.ends:
                sizes |= self._tablesOf(end, f"link {id(end)}")
        return sizes

    def _tablesOf(self, end: End, name: str) -> dict[str, tuple[int, int]]:
        link = end.link
        return {
            f"{name} queue": (link.queue.bytes, LIMITS.queueBytes),
            f"{name} addresses": (len(link.relay.addresses), LIMITS.targets),
            f"{name} numbers": (len(link.relay._numbers), LIMITS.targets),
            f"{name} pending": (len(link._pending), MOST_PENDING),
            f"{name} flying": (len(end.flying), SOCKET_BYTES + CHUNK),
        }

    # -- datagrams

    def sendFrom(self, source: int, address: Address, sizes: Sequence[int]) -> None:
        """A source sends a burst."""
        association = self.sources.get(source) or self._begin(source)
        association.touch(address, self.now)
        self._send(self.local, 0, association, address, sizes)

    def _begin(self, source: int) -> Association:
        association = self.sources[source] = self.local.begin(lambda number: self._wayBack(source, number), self.now)
        return association

    def _wayBack(self, source: int, number: int) -> Outlet:
        assert number not in self._numbers, "a number is given to another source, and late answers go astray"
        self._numbers.add(number)

        def arrived(address: Address, size: int, payload: Buffer) -> None:
            self.ledger.arrived(Flow(1, number, address), size, payload, self.now)

        def ended() -> None:
            self.sources.pop(source, None)

        return self._outlet(arrived, ended)

    def _openOutlet(self, session: ServerSession, number: int) -> Outlet:
        def arrived(address: Address, size: int, payload: Buffer) -> None:
            self.ledger.arrived(Flow(0, number, address), size, payload, self.now)

        return self._outlet(arrived, lambda: None)

    def _outlet(self, arrived: Callable[[Address, int, Buffer], None], ended: Callable[[], None]) -> Outlet:
        outlet = Outlet(arrived, ended)
        self.outlets.append(outlet)
        return outlet

    def answerTo(
        self, session: ServerSession, association: Association, address: Address, sizes: Sequence[int]
    ) -> None:
        """A target sends a burst to an external port."""
        association.touch(address, self.now)
        self._send(session, 1, association, address, sizes)

    def _send(
        self, session: Session, end: int, association: Association, address: Address, sizes: Sequence[int]
    ) -> None:
        flow = Flow(end, association.number, address)
        payload = b"".join(self.ledger.make(flow, size, self.now) for size in sizes)
        session.send([(association, address, sizes[0], payload)], self.now)

    # -- time

    def settle(self) -> None:
        """Let everything arrive that can."""
        while any([line.settle() for line in self.lines]):
            pass
        self.lines = [line for line in self.lines if not line.over]

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK)
            self.settle()
            self.tick()
            self.settle()


# -- the machine

bursts = st.builds(
    lambda size, count, last: [size] * (count if size else 1) + ([min(last, size)] if size and last else []),
    st.sampled_from([0, 1, 3, 4, 5, 100, 1200, 1472, 9000, 20000]),
    st.integers(1, 3),
    st.sampled_from([0, 1, 4, 60]),
)
addresses = st.sampled_from(TARGETS)
places = st.integers(0, MOST_LINES - 1)
ends = st.integers(0, 1)


class Chaos(RuleBasedStateMachine):
    """Anything may happen at any time."""

    @initialize(links=st.integers(0, 3), idle=st.booleans())
    def begin(self, links: int, idle: bool) -> None:
        """Both roles start."""
        self.world = World()
        self.world.local.idle = idle
        for _ in range(links):
            self.world.connect()
        self.world.settle()

    # -- datagrams

    @rule(flows=st.lists(st.tuples(st.sampled_from(SOURCES), addresses, bursts), min_size=1, max_size=8))
    def send(self, flows: list[tuple[int, Address, list[int]]]) -> None:
        """Sources send bursts."""
        for source, address, sizes in flows:
            self.world.sendFrom(source, address, sizes)

    @precondition(lambda self: self.world.ports())
    @rule(flows=st.lists(st.tuples(st.integers(0, GRANTED - 1), addresses, bursts), min_size=1, max_size=8))
    def answer(self, flows: list[tuple[int, Address, list[int]]]) -> None:
        """Targets, or anybody, send bursts to external ports."""
        ports = self.world.ports()
        for place, address, sizes in flows:
            self.world.answerTo(*ports[place % len(ports)], address, sizes)

    @rule(flows=st.lists(st.tuples(st.sampled_from(SOURCES), addresses, bursts), min_size=1, max_size=8))
    def converse(self, flows: list[tuple[int, Address, list[int]]]) -> None:
        """Sources send bursts, and each port that is open then answers."""
        self.send(flows)
        self.world.settle()
        for place, (session, association) in enumerate(self.world.ports()):
            _, address, sizes = flows[place % len(flows)]
            self.world.answerTo(session, association, address, sizes)
        self.world.settle()

    # -- associations

    @precondition(lambda self: self.world.sources)
    @rule(place=st.integers(0, WANTED - 1))
    def closeSource(self, place: int) -> None:
        """A source goes."""
        sources = list(self.world.sources.values())
        self.world.local.close(sources[place % len(sources)])

    @precondition(lambda self: self.world.ports())
    @rule(place=st.integers(0, GRANTED - 1))
    def closePort(self, place: int) -> None:
        """An external port goes."""
        ports = self.world.ports()
        session, association = ports[place % len(ports)]
        session.close(association)

    # -- connections

    @precondition(lambda self: len(self.world.lines) < MOST_LINES)
    @rule()
    def connect(self) -> None:
        """One more link is made."""
        self.world.connect()

    @precondition(lambda self: self.world.lines)
    @rule(place=places, end=ends, most=st.integers(1, 3000))
    def carry(self, place: int, end: int, most: int) -> None:
        """Some bytes arrive."""
        self._line(place).ends[end].carry(most)

    @precondition(lambda self: self.world.lines)
    @rule(place=places, up=st.integers(0, 3000), down=st.integers(0, 3000))
    def cut(self, place: int, up: int, down: int) -> None:
        """A link is cut anywhere."""
        self._line(place).cut(up, down)
        self.world.settle()

    @precondition(lambda self: self.world.lines)
    @rule(place=places, end=ends)
    def stall(self, place: int, end: int) -> None:
        """One way of a link is held up."""
        self._line(place).ends[end].held = True

    @precondition(lambda self: any(end.held for line in self.world.lines for end in line.ends))
    @rule()
    def resume(self) -> None:
        """What was held up goes on."""
        for line in self.world.lines:
            for end in line.ends:
                end.held = False

    @precondition(lambda self: self.world.lines)
    @rule(place=places, end=ends)
    def swallow(self, place: int, end: int) -> None:
        """From now on nothing arrives by one way of a link, and nobody is told."""
        chosen = self._line(place).ends[end]
        chosen.hole = self.world.now if chosen.hole is None else chosen.hole

    @precondition(lambda self: self.world.lines)
    @rule(place=places, end=ends)
    def goAway(self, place: int, end: int) -> None:
        """One end says farewell on a link."""
        link = self._line(place).ends[end].link
        if link.up:
            self.world.watch(link, lambda: link.goAway("farewell", self.world.now))

    @rule(seconds=st.sampled_from([0.1, 0.9, 5.0, 40.0]), links=st.integers(1, 2))
    def park(self, seconds: float, links: int) -> None:
        """All links are lost; after a while there are others, and within the grace time the session goes on."""
        for line in self.world.lines:
            line.cut(0, 0)
        self.world.settle()
        kept = self.world.sessions.get(self.world.local.name)
        since = None if kept is None else kept.parkedAt
        self.world.wait(seconds)
        assert seconds < GRACE + TICK or not self.world.sessions, "a session is parked longer than the grace time"
        for _ in range(links):
            self.world.connect()
            self.world.settle()
        now = self.world.sessions[self.world.local.name]
        inTime = since is not None and self.world.now - since < GRACE - TICK
        # udp-local greets one link at a time: of two that show one ticket at once, what both are given may be void.
        assert kept is now or not inTime or self.world.raced, "the session was not found again"
        self.world.raced = False
        assert len(now.links) == len(self.world.local.links) == links, "a link did not come up at both ends"

    def _line(self, place: int) -> Line:
        return self.world.lines[place % len(self.world.lines)]

    # -- time

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 2.0, 6.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.wait(seconds)

    @rule()
    def settle(self) -> None:
        """Everything arrives that can."""
        self.world.settle()

    # -- what always holds

    @invariant()
    def bounded(self) -> None:
        """No table is fuller than it may be."""
        for name, (size, most) in self.world.tables().items():
            assert size <= most, f"{name}: {size}, and {most} are allowed"

    @invariant()
    def noticed(self) -> None:
        """A link that does not get through is given up at both ends."""
        for line in self.world.lines:
            for end in line.ends:
                silence = 0.0 if end.hole is None else self.world.now - end.hole
                assert silence <= PATH_SECONDS, f"a link is not given up after {silence} s"

    def teardown(self) -> None:
        """When the faults are over, it works; then both roles stop, and nothing is left."""
        self._recover()
        self.world.end()
        self.world.wait(GRACE + 2 * TICK)
        assert not self.world.lines, "a connection is left"
        assert all(outlet.closings == 1 for outlet in self.world.outlets), "an outlet is not closed once"
        left = {name: size for name, (size, _) in self.world.tables().items() if size}
        assert not left, f"something is left: {left}"

    def _recover(self) -> None:
        self.park(2 * TICK, 1)
        before = sum(datagram.arrived for datagram in self.world.ledger.sent)
        self.world.sendFrom(0, TARGETS[0], [100])
        self.world.settle()
        session = self.world.sessions[self.world.local.name]
        port = session.associations.get(self.world.sources[0].number)
        assert port is not None, "a question does not come through"
        self.world.answerTo(session, port, TARGETS[0], [100])
        self.world.settle()
        after = sum(datagram.arrived for datagram in self.world.ledger.sent)
        assert after - before == 2, "an answer does not come through"


class ChaosTests(SynchronousTestCase):
    """Both ends of a session."""

    def test_faults(self) -> None:
        """Whatever happens to links and associations, no datagram is altered, doubled, misled or late."""
        run_state_machine_as_test(
            Chaos,
            settings=settings(
                max_examples=max(10, EXAMPLES // 10),
                stateful_step_count=100,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
