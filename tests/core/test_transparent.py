"""Tests for L{udptunnel.core.transparent}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_nat import (
    CLIENT_PORT,
    CLIENTS,
    HOP_BY_HOP,
    TARGET_PORT,
    TARGETS,
    segment,
)
from tests.examples import EXAMPLES
from udptunnel.core.nat import (
    ACCEPT_SECONDS,
    ACK,
    FIN,
    FORWARD,
    NOT_TCP,
    PENDING_SECONDS,
    RST,
    SYN,
    Action,
    Session,
    State,
)
from udptunnel.core.transparent import Transparent

BETWEEN = {4: (b"", b"\x94\x04\0\0", b"\x01" * 40), 6: (b"", HOP_BY_HOP)}
"""What may stand between the headers."""


def hold(table: Transparent, packet: bytearray | None = None, now: float = 0.0) -> Session:
    """Let a SYN come, and return its session."""
    verdict = table.packetReceived(packet or segment(flags=SYN), now)
    assert verdict.action is Action.HELD and verdict.session is not None, verdict
    return verdict.session


def accept(table: Transparent, version: int = 4, port: int = CLIENT_PORT) -> Session | None:
    """The listener accepts a connection."""
    return table.accept(CLIENTS[version], port, TARGETS[version], TARGET_PORT)


def connect(table: Transparent, version: int = 4, port: int = CLIENT_PORT, now: float = 0.0) -> Session:
    """A session whose connection the listener has accepted."""
    session = hold(table, segment(version=version, ports=(port, TARGET_PORT), flags=SYN), now)
    assert table.established(session, now) is not None
    assert accept(table, version, port) is session
    return session


class PacketTests(SynchronousTestCase):
    """What is done with packets."""

    def test_forwarded(self) -> None:
        """All but SYNs go on as they are, whether anything is known of them or not: the kernel knows what to do."""
        for version, all_ in BETWEEN.items():
            for between in all_:
                for flags in (0, ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | RST, SYN | FIN):
                    table = Transparent()
                    packet = segment(version=version, flags=flags, between=between)
                    before = bytes(packet)
                    self.assertIs(table.packetReceived(packet, 0), FORWARD)
                    self.assertEqual((packet, len(table)), (before, 0))

    def test_held(self) -> None:
        """A SYN is held as it came, and its session says from where to where."""
        for version, all_ in BETWEEN.items():
            for between in all_:
                for flags in (SYN, SYN | 8, SYN | 0xC0):
                    packet = segment(version=version, flags=flags, between=between)
                    session = hold(Transparent(), memoryview(packet))  # type: ignore[arg-type]
                    self.assertEqual(session.held, packet)
                    self.assertEqual(session.source, (CLIENTS[version], CLIENT_PORT))
                    self.assertEqual(session.target, (TARGETS[version], TARGET_PORT))
                    self.assertIs(session.state, State.PENDING)

    def test_repeated(self) -> None:
        """A SYN that is held is not let through a second time; that of another connection is not mistaken for it."""
        table = Transparent()
        hold(table)
        verdict = table.packetReceived(segment(flags=SYN), 0)
        self.assertEqual(verdict, (Action.DROP, None, "repeated SYN"))
        for ports in ((CLIENT_PORT, 80), (CLIENT_PORT + 1, TARGET_PORT)):
            hold(table, segment(flags=SYN, ports=ports))
        hold(table, segment(flags=SYN, target="198.51.100.8"))
        hold(table, segment(flags=SYN, source="192.0.2.10"))
        self.assertEqual((len(table), table.pending), (5, 5))

    def test_repeatedLater(self) -> None:
        """When the target was reached, a repeated SYN goes on: the answer to the first one may be lost."""
        table = Transparent()
        session = hold(table)
        table.established(session, 0)
        self.assertIs(table.packetReceived(segment(flags=SYN), 0), FORWARD)
        self.assertIs(accept(table), session)
        self.assertIs(table.packetReceived(segment(flags=SYN), 0), FORWARD)

    def test_otherProtocols(self) -> None:
        """What is not TCP is for somebody else, however short it is."""
        for version, place in ((4, 19), (6, 16)):
            packet = segment(version=version, flags=SYN)
            packet[place] = 17
            self.assertIs(Transparent().packetReceived(packet, 0), NOT_TCP)
            # Just a UDP header: the field of the length is the whole packet's, or what follows the IPv6 header.
            where, length = (12, 28) if version == 4 else (14, 8)
            packet[where : where + 2] = length.to_bytes(2, "big")
            self.assertIs(Transparent().packetReceived(packet[:-12], 0), NOT_TCP)
        packet = segment(version=6, flags=SYN, between=HOP_BY_HOP)
        packet[50] = 17
        self.assertIs(Transparent().packetReceived(packet, 0), NOT_TCP)

    def test_fragments(self) -> None:
        """A SYN does not get through in parts."""
        for word in (0x2000, 0x0001, 0x1FFF, 0x2001):
            for flags in (SYN, ACK):
                packet = segment(flags=flags)
                packet[16:18] = word.to_bytes(2, "big")
                self.assertEqual(Transparent().packetReceived(packet, 0), (Action.DROP, None, "TCP fragment"))
        packet = segment(version=6, flags=ACK, between=bytes((6, 0, 0, 1, 0, 0, 0, 9)))
        packet[16] = 44
        self.assertEqual(Transparent().packetReceived(packet, 0), (Action.DROP, None, "TCP fragment"))

    def test_notUnicast(self) -> None:
        """No session begins with an address at which there can be no server elsewhere."""
        for host in ("224.0.0.1", "127.0.0.1", "0.0.0.0", "::1", "ff02::1", "fe80::1"):
            table = Transparent()
            verdict = table.packetReceived(segment(target=host, version=6 if ":" in host else 4, flags=SYN), 0)
            self.assertEqual((verdict, len(table)), ((Action.DROP, None, "not unicast"), 0))

    def test_noListener(self) -> None:
        """Where a family has no listener its clients are told at once, so that they try the other one."""
        for version in (4, 6):
            table = Transparent((version,))
            self.assertIs(table.packetReceived(segment(version=10 - version, flags=SYN), 0).action, Action.RESET)
            hold(table, segment(version=version, flags=SYN))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.sampled_from((4, 6)), st.data())
    def test_cut(self, version: int, data: st.DataObject) -> None:
        """A SYN that is cut short anywhere is dropped, not held, and never an exception."""
        packet = segment(version=version, flags=SYN, between=data.draw(st.sampled_from(BETWEEN[version])))
        table = Transparent()
        verdict = table.packetReceived(packet[: data.draw(st.integers(0, len(packet) - 1))], 0)
        self.assertEqual((verdict, len(table)), ((Action.DROP, None, "malformed"), 0))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.binary(max_size=120), st.sampled_from((b"", b"\x45", b"\x60", b"\x4f")))
    def test_garbage(self, garbage: bytes, first: bytes) -> None:
        """Anything at all gets a verdict; only what is HELD leaves something behind."""
        table = Transparent()
        verdict = table.packetReceived(bytearray(bytes(10) + first + garbage), 0)
        self.assertEqual(len(table), verdict.action is Action.HELD)


class SessionTests(SynchronousTestCase):
    """How a connection begins and ends."""

    def test_established(self) -> None:
        """The SYN that was held is let through as it came, once."""
        for version in (4, 6):
            table, packet = Transparent(), segment(version=version, flags=SYN)
            session = hold(table, packet)
            self.assertEqual(table.established(session, 0), segment(version=version, flags=SYN))
            self.assertIs(table.established(session, 0), None)
            self.assertEqual((len(table), table.pending, session.held), (1, 0, b""))

    def test_refused(self) -> None:
        """A refused session gives back its SYN, to be answered, and is forgotten: the next SYN is held anew."""
        table = Transparent()
        session = hold(table)
        self.assertEqual(table.refused(session), segment(flags=SYN))
        self.assertEqual((len(table), table.pending, session.state), (0, 0, State.GONE))
        self.assertIs(table.refused(session), None)
        self.assertIs(table.established(session, 0), None)
        self.assertIsNot(hold(table), session)

    def test_notRefused(self) -> None:
        """What was let through can not be refused any more."""
        table = Transparent()
        session = connect(table)
        self.assertIs(table.refused(session), None)
        self.assertEqual(len(table), 1)

    def test_accept(self) -> None:
        """An accepted connection finds its session by both ends, once."""
        for version in (4, 6):
            table = Transparent()
            session = hold(table, segment(version=version, flags=SYN))
            self.assertIs(accept(table, version), None)
            table.established(session, 0)
            self.assertIs(accept(table, version, CLIENT_PORT + 1), None)
            self.assertIs(table.accept(CLIENTS[version], CLIENT_PORT, CLIENTS[version], TARGET_PORT), None)
            self.assertIs(table.accept(CLIENTS[version], CLIENT_PORT, TARGETS[version], 80), None)
            self.assertIs(accept(table, version), session)
            self.assertIs(accept(table, version), None)

    def test_acceptZone(self) -> None:
        """A zone, as the kernel shows it, is no part of an address; a name is none."""
        table = Transparent()
        session = hold(table, segment("fe80::9", version=6, flags=SYN))
        table.established(session, 0)
        self.assertIs(table.accept("fe80::9%7", CLIENT_PORT, TARGETS[6], TARGET_PORT), session)
        self.assertIs(table.accept("somebody", CLIENT_PORT, TARGETS[6], TARGET_PORT), None)

    def test_closed(self) -> None:
        """A session that is closed is forgotten in any state, and the same ends may be used at once."""
        table = Transparent()
        for begin in (hold, connect):
            session = begin(table)
            table.closed(session, 0)
            table.closed(session, 0)
            self.assertIs(session.state, State.GONE)
            self.assertEqual((len(table), table.pending), (0, 0))
        session = hold(table)
        table.established(session, 0)
        table.closed(session, 0)
        self.assertIs(accept(table), None)
        hold(table)

    def test_bounds(self) -> None:
        """There are no more sessions than allowed, nor pending ones; what is forgotten makes room."""
        table = Transparent(most=3, mostPending=3)
        first, second = (hold(table, segment(flags=SYN, ports=(port, 443))) for port in (1, 2))
        self.assertEqual(table.packetReceived(segment(flags=SYN), 0).reason, "too many pending")
        table.established(first, 0)
        hold(table)
        table.established(second, 0)
        self.assertEqual(table.packetReceived(segment(flags=SYN, ports=(3, 443)), 0).reason, "too many sessions")
        self.assertEqual(len(table), 3)
        table.closed(first, 0)
        hold(table, segment(flags=SYN, ports=(3, 443)))

    def test_pendingOfOne(self) -> None:
        """Who tries all that does not answer keeps nobody else from connecting."""
        table = Transparent(mostPending=100)
        for port in range(1, 201):
            table.packetReceived(segment(flags=SYN, ports=(port, 443)), 0)
        self.assertEqual(table.pending, 50)
        session = hold(table, segment("192.0.2.10", flags=SYN))
        table.established(session, 0)
        table.tick(PENDING_SECONDS)
        self.assertEqual(table.pending, 0)

    def test_pendingTooLong(self) -> None:
        """A target that is not heard of is given up after the client has."""
        table = Transparent()
        session, later = hold(table), hold(table, segment(version=6, flags=SYN), 1.0)
        self.assertEqual(table.tick(PENDING_SECONDS - 0.1), [])
        self.assertEqual(table.tick(PENDING_SECONDS), [session])
        self.assertEqual((session.state, later.state, len(table)), (State.GONE, State.PENDING, 1))

    def test_unaccepted(self) -> None:
        """What the listener never accepts is forgotten; what it has accepted never is."""
        table = Transparent()
        session = hold(table)
        accepted = connect(table, 6)
        table.established(session, 5.0)
        self.assertEqual(table.tick(ACCEPT_SECONDS + 4.9), [])
        self.assertEqual(table.tick(ACCEPT_SECONDS + 5.0), [session])
        self.assertEqual(table.tick(1e9), [])
        self.assertEqual((session.state, accepted.state), (State.GONE, State.OPEN))
