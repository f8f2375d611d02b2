"""Tests for L{udptunnel.core.nat}."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.nat import (
    ACCEPT_SECONDS,
    ACK,
    CLOSING_SECONDS,
    FIN,
    FIRST_PORT,
    FORWARD,
    NOT_TCP,
    PENDING_SECONDS,
    PORTS,
    RST,
    SYN,
    Action,
    Listener,
    Nat,
    Session,
    State,
)

FOUR, SIX = Listener("10.0.0.1", "10.0.0.2", 4000), Listener("fd00:9::1", "fd00:9::2", 6000)
LISTENERS = {4: FOUR, 6: SIX}
CLIENTS = {4: "192.0.2.9", 6: "2001:db8::9"}
TARGETS = {4: "198.51.100.7", 6: "2001:db8:7::7"}
CLIENT_PORT, TARGET_PORT = 40000, 443
PARTIAL = 1
HOP_BY_HOP = bytes((6, 0, 1, 4, 0, 0, 0, 0))
"""An extension header with padding in it, and TCP behind it."""

GOLDEN = {
    4: (
        "00000000000014001000 "
        "4500002b0001400040064e88c0000209c6336407 "
        "9c4001bb000003e8000007d05010ffff55770000 "
        "616263 ",
        "00000000000014001000 "
        "4500002b00014000400626ca0a0000020a000001 "
        "04000fa0000003e8000007d05010ffffb8140000 "
        "616263 ",
    ),
    6: (
        "00000000000028001000 "
        "600000000017064020010db80000000000000000 "
        "0000000920010db8000700000000000000000007 "
        "9c4001bb000003e8000007d05010ffffe6320000 "
        "616263 ",
        "00000000000028001000 "
        "6000000000170640fd0000090000000000000000 "
        "00000002fd000009000000000000000000000001 "
        "04001770000003e8000007d05010ffffca300000 "
        "616263 ",
    ),
}
"""The same packet as it comes from a client and as it goes to the listener, as scapy builds both."""


def wordSum(data: bytes) -> int:
    """The plain way to add up 16-bit words, as RFC 1071 describes it."""
    total = 0
    for place in range(0, len(data), 2):
        total += int.from_bytes(data[place : place + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def segment(
    source: str = "",
    target: str = "",
    ports: tuple[int, int] = (CLIENT_PORT, TARGET_PORT),
    flags: int = ACK,
    payload: bytes = b"",
    version: int = 4,
    partial: bool = False,
    between: bytes = b"",
) -> bytearray:
    """
    A TCP packet behind its virtio header, with its checksums.

    @param between: IPv4 options, or an extension header of IPv6.
    """
    here, there = (ip_address(host).packed for host in (source or CLIENTS[version], target or TARGETS[version]))
    version = 4 if len(here) == 4 else 6
    tcp = struct.pack("!HHIIHHHH", *ports, 1000, 2000, 0x5000 | flags, 65535, 0, 0) + payload
    pseudo = wordSum(here + there + struct.pack("!HH", 6, len(tcp)))
    value = pseudo if partial else 0xFFFF - wordSum(pseudo.to_bytes(2, "big") + tcp)
    tcp = tcp[:16] + value.to_bytes(2, "big") + tcp[18:]
    virtio = struct.pack("=BBHHHH", partial, 0, 0, 0, 20 * (version - 2) // 2 + len(between), 16)
    return bytearray(virtio + ipHeader(version, here, there, tcp, between) + tcp)


def ipHeader(version: int, here: bytes, there: bytes, tcp: bytes, between: bytes) -> bytes:
    """What stands before TCP."""
    length = len(between) + len(tcp)
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, 0 if between else 6, 64) + here + there + between
    first = 0x45 + len(between) // 4
    header = struct.pack("!BBHIBBH", first, 0, 20 + length, 0x00014000, 64, 6, 0) + here + there + between
    return header[:10] + (0xFFFF - wordSum(header)).to_bytes(2, "big") + header[12:]


def makeNat(most: int = 100, mostPending: int = 100, listeners: tuple[Listener, ...] = (FOUR, SIX)) -> Nat:
    """A NAT with room for some."""
    return Nat(listeners, most, mostPending)


def hold(nat: Nat, packet: bytearray | None = None, now: float = 0.0) -> Session:
    """Let a SYN come, and return its session."""
    verdict = nat.packetReceived(packet or segment(flags=SYN), now)
    assert verdict.action is Action.HELD and verdict.session is not None, verdict
    return verdict.session


def connect(nat: Nat, packet: bytearray | None = None, now: float = 0.0) -> Session:
    """A session whose connection the listener has accepted."""
    session = hold(nat, packet, now)
    assert nat.established(session, now) is not None
    listener = LISTENERS[6 if ":" in session.target.host else 4]
    assert nat.accept(listener.next, session.port) is session
    return session


def reply(session: Session, version: int = 4, flags: int = ACK, payload: bytes = b"", **more: bool) -> bytearray:
    """A packet of the listener's."""
    listener = LISTENERS[version]
    return segment(listener.own, listener.next, (listener.port, session.port), flags, payload, **more)


class RewriteTests(SynchronousTestCase):
    """What becomes of packets."""

    def test_golden(self) -> None:
        """The bytes of a packet, there and back, over IPv4 and IPv6."""
        for version, (before, after) in GOLDEN.items():
            nat = makeNat()
            session = connect(nat, segment(version=version, flags=SYN))
            packet = bytearray.fromhex(before)
            self.assertIs(nat.packetReceived(packet, 0), FORWARD)
            self.assertEqual(packet.hex(), bytes.fromhex(after).hex())
            self.assertEqual(segment(version=version, payload=b"abc").hex(), bytes.fromhex(before).hex())
            self.assertEqual(session.port, 1024)

    def test_bothWays(self) -> None:
        """To the listener it comes from NEXT, to the client from the target, with the checksums that it would have."""
        for version, listener in LISTENERS.items():
            for partial in (False, True):
                for payload in (b"", b"x", bytes(range(256)) * 200):
                    nat = makeNat()
                    session = connect(nat, segment(version=version, flags=SYN))
                    forth = segment(version=version, payload=payload, partial=partial)
                    self.assertIs(nat.packetReceived(forth, 0), FORWARD)
                    ports = session.port, listener.port
                    self.assertEqual(
                        forth, segment(listener.next, listener.own, ports, payload=payload, partial=partial)
                    )
                    back = reply(session, version, payload=payload, partial=partial)
                    self.assertIs(nat.packetReceived(back, 0), FORWARD)
                    ports = TARGET_PORT, CLIENT_PORT
                    expected = segment(TARGETS[version], CLIENTS[version], ports, payload=payload, partial=partial)
                    self.assertEqual(back, expected)

    def test_between(self) -> None:
        """Options of IPv4 and extension headers of IPv6 stay where they are."""
        for version, between in ((4, b"\x94\x04\0\0"), (4, b"\x01" * 40), (6, HOP_BY_HOP)):
            for partial in (False, True):
                nat, listener = makeNat(), LISTENERS[version]
                session = hold(nat, segment(version=version, flags=SYN, between=between))
                ports = session.port, listener.port
                expected = segment(listener.next, listener.own, ports, SYN, between=between)
                self.assertEqual(nat.established(session, 0), expected)
                packet = segment(version=version, payload=b"abc", between=between, partial=partial)
                self.assertIs(nat.packetReceived(packet, 0), FORWARD)
                expected = segment(listener.next, listener.own, ports, ACK, b"abc", between=between, partial=partial)
                self.assertEqual(packet, expected)

    def test_views(self) -> None:
        """A packet may lie in the midst of a larger buffer; nothing else in that is touched."""
        for version in LISTENERS:
            nat = makeNat()
            connect(nat, segment(version=version, flags=SYN))
            packet = segment(version=version, payload=b"abc")
            memory = bytearray(b"\xaa" * 7 + packet + b"\xbb" * 7)
            self.assertIs(nat.packetReceived(memoryview(memory)[7:-7], 0), FORWARD)
            self.assertEqual((memory[:7], memory[-7:]), (b"\xaa" * 7, b"\xbb" * 7))
            nat.packetReceived(packet, 0)
            self.assertEqual(memory[7:-7], packet)

    def test_handshake(self) -> None:
        """The listener's answer to the SYN passes, and so do a repeated SYN and a RST once the session is open."""
        nat = makeNat()
        session = connect(nat)
        for packet in (segment(flags=SYN), reply(session, flags=SYN | ACK), segment(flags=RST)):
            self.assertIs(nat.packetReceived(packet, 0), FORWARD)

    def test_superPackets(self) -> None:
        """The virtio header of a super-packet stays as it is: lengths do not change."""
        nat = makeNat()
        connect(nat)
        packet = segment(payload=bytes(60000), partial=True)
        packet[:10] = header = struct.pack("=BBHHHH", 1, 1, 40, 1448, 20, 16)
        self.assertIs(nat.packetReceived(packet, 0), FORWARD)
        self.assertEqual(packet[:10], header)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.sampled_from((4, 6)),
        st.data(),
        st.integers(0, 65535),
        st.integers(0, 65535),
        st.binary(max_size=40),
        st.booleans(),
    )
    def test_anything(
        self, version: int, data: st.DataObject, here: int, there: int, payload: bytes, partial: bool
    ) -> None:
        """Whatever the addresses and ports, both checksums are as if computed anew."""
        size = 4 if version == 4 else 16
        source, target = (str(ip_address(data.draw(st.binary(min_size=size, max_size=size)))) for _ in range(2))
        nat, listener = makeNat(), LISTENERS[version]
        verdict = nat.packetReceived(segment(source, target, (here, there), SYN, partial=partial), 0)
        if verdict.session is None:
            self.assertIn(verdict.reason, ("not unicast", "of a forgotten session"))
            return
        session = verdict.session
        self.assertEqual((session.source, session.target), ((source, here), (target, there)))
        ports = session.port, listener.port
        expected = segment(listener.next, listener.own, ports, SYN, partial=partial)
        self.assertEqual(nat.established(session, 0), expected)
        packet = segment(source, target, (here, there), payload=payload, partial=partial)
        self.assertIs(nat.packetReceived(packet, 0), FORWARD)
        self.assertEqual(packet, segment(listener.next, listener.own, ports, ACK, payload, partial=partial))
        back = reply(session, version, payload=payload, partial=partial)
        self.assertIs(nat.packetReceived(back, 0), FORWARD)
        self.assertEqual(back, segment(target, source, (there, here), ACK, payload, partial=partial))


class VerdictTests(SynchronousTestCase):
    """What is done with packets that are not part of a connection."""

    def assertDropped(self, packet: bytes, reason: str, nat: Nat | None = None) -> None:
        """A packet goes no further, and nothing is kept of it."""
        nat = nat or makeNat()
        before = len(nat)
        verdict = nat.packetReceived(bytearray(packet), 0)
        self.assertEqual(verdict, (Action.DROP, None, reason))
        self.assertEqual(len(nat), before)

    def test_unknown(self) -> None:
        """What belongs to no session, and begins none, is answered with a RST; it is left as it was."""
        for version in LISTENERS:
            for flags in (0, ACK, FIN | ACK, SYN | ACK, SYN | FIN):
                packet = segment(flags=flags, version=version)
                before = bytes(packet)
                self.assertIs(makeNat().packetReceived(packet, 0).action, Action.RESET)
                self.assertEqual(packet, before)

    def test_unknownRst(self) -> None:
        """A RST is never answered, not even if it is a SYN, too."""
        for flags in (RST, RST | ACK, RST | SYN):
            self.assertDropped(segment(flags=flags), "RST of no session")

    def test_noListener(self) -> None:
        """Where a family has no listener its clients are told at once, so that they try the other one."""
        nat = makeNat(listeners=(FOUR,))
        self.assertIs(nat.packetReceived(segment(version=6, flags=SYN), 0).action, Action.RESET)
        self.assertEqual(len(nat), 0)

    def test_forgotten(self) -> None:
        """The listener's packets for sessions that are gone go nowhere; nor do its packets to others than NEXT."""
        for version, listener in LISTENERS.items():
            for target in (listener.next, TARGETS[version]):
                for flags in (ACK, SYN, SYN | ACK, RST):
                    packet = segment(listener.own, target, (listener.port, 2000), flags)
                    self.assertDropped(packet, "of a forgotten session")

    def test_next(self) -> None:
        """Nobody may pretend to be NEXT."""
        for version, listener in LISTENERS.items():
            self.assertDropped(segment(listener.next, TARGETS[version], flags=SYN), "of a forgotten session")

    def test_notUnicast(self) -> None:
        """No session begins with an address at which there can be no server elsewhere."""
        for four in ("224.0.0.1", "255.255.255.255", "127.0.0.1", "169.254.1.1", "0.0.0.0"):
            self.assertDropped(segment(target=four, flags=SYN), "not unicast")
        for six in ("ff02::1", "::1", "fe80::1", "::", "::ffff:198.51.100.7"):
            self.assertDropped(segment(target=six, version=6, flags=SYN), "not unicast")

    def test_otherProtocols(self) -> None:
        """What is not TCP is for somebody else."""
        for version, place in ((4, 19), (6, 16)):
            packet = segment(version=version, flags=SYN)
            for protocol in (1, 17, 58, 59, 255):
                packet[place] = protocol
                self.assertIs(makeNat().packetReceived(packet, 0), NOT_TCP)
                packet[place] = 6
        packet = segment(version=6, flags=SYN, between=HOP_BY_HOP)
        packet[50] = 17
        self.assertIs(makeNat().packetReceived(packet, 0), NOT_TCP)

    def test_shortOthers(self) -> None:
        """That goes for packets that are shorter than any of TCP, too."""
        packet = segment(flags=SYN)
        packet[12:14], packet[19] = b"\0\x1c", 17
        self.assertIs(makeNat().packetReceived(packet[:38], 0), NOT_TCP)

    def test_fragments(self) -> None:
        """TCP is not put together again."""
        for word in (0x2000, 0x0001, 0x1FFF, 0x2001):
            for between in (b"", b"\x01" * 4):
                packet = segment(flags=SYN, between=between)
                packet[16:18] = word.to_bytes(2, "big")
                self.assertDropped(packet, "TCP fragment")
        fragment = bytes((6, 0, 0, 1, 0, 0, 0, 9))
        packet = segment(version=6, flags=SYN, between=fragment)
        packet[16] = 44
        self.assertDropped(packet, "TCP fragment")

    def test_fragmentsOfSessions(self) -> None:
        """Not even if its bytes look like those of a session."""
        nat = makeNat()
        connect(nat)
        packet = segment()
        packet[16:18] = b"\0\x01"
        self.assertDropped(packet, "TCP fragment", nat)

    def test_truncated(self) -> None:
        """Cut anywhere, a packet does no harm."""
        for version, between in ((4, b""), (4, b"\x01" * 8), (6, b""), (6, HOP_BY_HOP)):
            packet = segment(version=version, flags=SYN, between=between)
            for end in range(len(packet)):
                self.assertDropped(packet[:end], "malformed")

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.sampled_from((4, 6)), st.binary(max_size=120), st.integers(0, 100))
    def test_garbage(self, version: int, garbage: bytes, place: int) -> None:
        """Whatever bytes come, there is a verdict on them, and what is not forwarded is left as it was."""
        nat = makeNat()
        connect(nat, segment(version=version, flags=SYN))
        packet = segment(version=version, payload=bytes(40))
        packet[place : place + len(garbage)] = garbage
        before = bytes(packet)
        if nat.packetReceived(packet, 0) is not FORWARD:
            self.assertEqual(packet, before)


class SessionTests(SynchronousTestCase):
    """The life of a session."""

    def test_held(self) -> None:
        """The first SYN is held, and begins a session that knows where it comes from and where it goes."""
        for version in LISTENERS:
            nat, packet = makeNat(), segment(version=version, flags=SYN)
            session = hold(nat, packet)
            self.assertEqual(session.source, (CLIENTS[version], CLIENT_PORT))
            self.assertEqual(session.target, (TARGETS[version], TARGET_PORT))
            self.assertIs(session.state, State.PENDING)
            self.assertEqual((session.held, len(nat), nat.pending), (bytes(packet), 1, 1))

    def test_ecn(self) -> None:
        """A SYN that asks for ECN is one, too (RFC 3168 section 6.1.1)."""
        self.assertIs(hold(makeNat(), segment(flags=SYN | 0xC0)).state, State.PENDING)

    def test_repeated(self) -> None:
        """While the target is being tried, the client's repeated SYNs are dropped."""
        nat = makeNat()
        hold(nat)
        for _ in range(3):
            self.assertEqual(nat.packetReceived(segment(flags=SYN), 1).reason, "repeated SYN")
        self.assertEqual(len(nat), 1)

    def test_established(self) -> None:
        """When the target can be reached, the SYN goes to the listener."""
        for version, listener in LISTENERS.items():
            nat = makeNat()
            session = hold(nat, segment(version=version, flags=SYN))
            ports = session.port, listener.port
            self.assertEqual(nat.established(session, 1), segment(listener.next, listener.own, ports, SYN))
            self.assertIs(session.state, State.OPEN)
            self.assertEqual((nat.pending, session.held), (0, b""))
            self.assertIs(nat.established(session, 2), None)

    def test_refused(self) -> None:
        """When it can not, the SYN is there to be answered, and nothing is kept."""
        nat, packet = makeNat(), segment(flags=SYN)
        session = hold(nat, packet)
        self.assertEqual(nat.refused(session), packet)
        self.assertEqual((len(nat), nat.pending, session.state), (0, 0, State.GONE))
        self.assertIs(nat.refused(session), None)
        self.assertIs(nat.established(session, 1), None)
        self.assertIsNot(hold(nat), session)

    def test_refusedTooLate(self) -> None:
        """A session that is open can not be refused any more."""
        nat = makeNat()
        session = connect(nat)
        self.assertIs(nat.refused(session), None)
        self.assertIs(nat.packetReceived(segment(), 0), FORWARD)

    def test_accept(self) -> None:
        """Each accepted connection has one session, and only from NEXT, and only once."""
        nat = makeNat()
        session = hold(nat)
        self.assertIs(nat.accept(FOUR.next, session.port), None)
        nat.established(session, 0)
        self.assertIs(nat.accept(FOUR.own, session.port), None)
        self.assertIs(nat.accept(SIX.next, session.port), None)
        self.assertIs(nat.accept(FOUR.next, session.port + 1), None)
        self.assertIs(nat.accept(FOUR.next, session.port), session)
        self.assertIs(nat.accept(FOUR.next, session.port), None)

    def test_spelling(self) -> None:
        """NEXT may be written in another way than the kernel does."""
        nat = makeNat(listeners=(Listener("FD00:9:0::1", "FD00:9:0:0::2", 6000),))
        session = hold(nat, segment(version=6, flags=SYN))
        nat.established(session, 0)
        self.assertIs(nat.accept("fd00:9::2", session.port), session)

    def test_silence(self) -> None:
        """A connection that is open stays so, however long it is silent."""
        nat = makeNat()
        connect(nat)
        self.assertEqual(nat.tick(1e9), [])
        self.assertIs(nat.packetReceived(segment(), 1e9), FORWARD)

    def test_closing(self) -> None:
        """The last packets of a closed connection still pass, for a minute."""
        nat = makeNat()
        session = connect(nat)
        nat.closed(session, 10)
        self.assertEqual(nat.tick(10 + CLOSING_SECONDS - 1), [])
        for packet in (segment(flags=FIN | ACK), reply(session)):
            self.assertIs(nat.packetReceived(packet, 0), FORWARD)
        self.assertEqual(nat.tick(10 + CLOSING_SECONDS), [])
        self.assertEqual((len(nat), session.state), (0, State.GONE))
        self.assertIs(nat.packetReceived(segment(flags=FIN | ACK), 0).action, Action.RESET)
        self.assertEqual(nat.packetReceived(reply(session), 0).reason, "of a forgotten session")

    def test_closedTwice(self) -> None:
        """Closing what is closed, or gone, changes nothing."""
        nat = makeNat()
        session = connect(nat)
        nat.closed(session, 10)
        nat.closed(session, 50)
        nat.tick(10 + CLOSING_SECONDS)
        nat.closed(session, 80)
        self.assertEqual((len(nat), session.state), (0, State.GONE))

    def test_closedUnaccepted(self) -> None:
        """What was closed before the listener accepted it is not accepted any more."""
        nat = makeNat()
        session = hold(nat)
        nat.established(session, 0)
        nat.closed(session, 1)
        self.assertIs(nat.accept(FOUR.next, session.port), None)

    def test_closedPending(self) -> None:
        """A session that never was more than pending is gone at once."""
        nat = makeNat()
        nat.closed(hold(nat), 0)
        self.assertEqual(len(nat), 0)

    def test_portUsedAgain(self) -> None:
        """A client may open the next connection between the same ports before the last one is forgotten."""
        nat = makeNat()
        first = connect(nat)
        nat.closed(first, 1)
        second = hold(nat)
        self.assertNotEqual(second.port, first.port)
        self.assertEqual((len(nat), first.state), (1, State.GONE))

    def test_neverAnswered(self) -> None:
        """Sessions that stay pending are given up after some time, and so are those that are never accepted."""
        nat = makeNat()
        pending = hold(nat)
        unaccepted = hold(nat, segment(ports=(1, 2), flags=SYN), now=100)
        nat.established(unaccepted, 100)
        accepted = connect(nat, segment(ports=(3, 4), flags=SYN), now=100)
        self.assertEqual(nat.tick(100 + ACCEPT_SECONDS - 1), [])
        self.assertEqual(nat.tick(100 + ACCEPT_SECONDS), [unaccepted])
        self.assertEqual(nat.tick(PENDING_SECONDS), [pending])
        self.assertEqual([each.state for each in (pending, unaccepted, accepted)], [State.GONE, State.GONE, State.OPEN])
        self.assertIs(nat.accept(FOUR.next, unaccepted.port), None)
        self.assertEqual(len(nat), 1)


class TableTests(SynchronousTestCase):
    """Many sessions, and their bounds."""

    def test_onePortTwoTargets(self) -> None:
        """A client may use one port for connections to several targets, as Linux does."""
        for version in LISTENERS:
            nat = makeNat()
            there = [(TARGETS[version], 443), (TARGETS[version], 80), (LISTENERS[version].next, 443)]
            sessions = []
            for host, port in there:
                sessions.append(connect(nat, segment(target=host, ports=(9, port), flags=SYN, version=version)))
            self.assertEqual(len({each.port for each in sessions}), len(there))
            for session, (host, port) in zip(sessions, there, strict=True):
                packet = reply(session, version)
                nat.packetReceived(packet, 0)
                self.assertEqual(packet, segment(host, CLIENTS[version], (port, 9)))

    def test_families(self) -> None:
        """IPv4 and IPv6 have ports of their own."""
        nat = makeNat()
        sessions = connect(nat), connect(nat, segment(version=6, flags=SYN))
        self.assertEqual([each.port for each in sessions], [FIRST_PORT] * 2)

    def test_longestFree(self) -> None:
        """A freed port is used again only after all others that are free."""
        nat = makeNat()
        first = [hold(nat, segment(ports=(number, 80), flags=SYN)) for number in (1, 2, 3)]
        for session in (first[1], first[0], first[2]):
            nat.refused(session)
        ports = []
        for number in range(PORTS):
            session = hold(nat, segment(ports=(number, 81), flags=SYN))
            ports.append(session.port)
            nat.refused(session)
        self.assertEqual(ports[: PORTS - 3], list(range(FIRST_PORT + 3, FIRST_PORT + PORTS)))
        self.assertEqual(ports[PORTS - 3 :], [first[1].port, first[0].port, first[2].port])

    def test_exhausted(self) -> None:
        """There are as many sessions of a family as NEXT has ports; one more gets in only when one goes."""
        nat = makeNat(most=1 << 20, mostPending=1 << 20)
        sessions = [
            hold(nat, segment(ports=(number, 80), flags=SYN, target=f"198.51.100.{1 + number // 65536}"))
            for number in range(PORTS)
        ]
        self.assertEqual(len({each.port for each in sessions}), PORTS)
        self.assertEqual(nat.packetReceived(segment(ports=(1, 81), flags=SYN), 0).reason, "too many sessions")
        nat.refused(sessions[77])
        self.assertEqual(hold(nat, segment(ports=(1, 81), flags=SYN)).port, sessions[77].port)
        self.assertEqual(connect(nat, segment(version=6, flags=SYN)).port, FIRST_PORT)

    def test_evicted(self) -> None:
        """When the table is full, the session that has been closing for longest makes room; an open one never does."""
        nat = makeNat(most=3)
        sessions = [connect(nat, segment(ports=(number, 80), flags=SYN)) for number in range(3)]
        nat.closed(sessions[2], 1)
        nat.closed(sessions[0], 2)
        for number in (3, 4):
            connect(nat, segment(ports=(number, 80), flags=SYN), now=3)
        self.assertEqual([each.state for each in sessions], [State.GONE, State.OPEN, State.GONE])
        verdict = nat.packetReceived(segment(ports=(5, 80), flags=SYN), 3)
        self.assertEqual(verdict, (Action.DROP, None, "too many sessions"))
        self.assertEqual(len(nat), 3)

    def test_mostPending(self) -> None:
        """Only so many targets are being tried at a time."""
        nat = makeNat(mostPending=3)
        first, _ = (hold(nat, segment(ports=(number, 80), flags=SYN)) for number in (1, 2))
        self.assertEqual(nat.packetReceived(segment(ports=(3, 80), flags=SYN), 0).reason, "too many pending")
        nat.established(first, 0)
        hold(nat, segment(ports=(3, 80), flags=SYN))

    def test_pendingOfOne(self) -> None:
        """Who tries all that does not answer keeps nobody else from connecting, whatever address it takes."""
        crowds = (
            ["192.0.2.9"] * 200,
            [f"2001:db8::{number:x}" for number in range(1, 201)],
        )
        for crowd, other in zip(crowds, ("192.0.2.10", "2001:db8:1::9"), strict=True):
            nat = makeNat(most=1000, mostPending=100)
            for port, host in enumerate(crowd, 1):
                target = "2001:db8:7::7" if ":" in host else "198.51.100.7"
                nat.packetReceived(segment(host, target, ports=(port, 80), flags=SYN), 0)
            self.assertEqual(nat.pending, 50)
            held = [hold(nat, segment(other, target, ports=(port, 80), flags=SYN)) for port in range(1, 26)]
            for session in held:
                nat.refused(session)
            nat.tick(PENDING_SECONDS)
            self.assertEqual((nat.pending, dict(nat._pending._hosts)), (0, {}))

    @settings(max_examples=min(EXAMPLES, 300), deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("heracotp"), st.integers(0, 9), st.sampled_from((4, 6))), max_size=80))
    def test_bounded(self, steps: list[tuple[str, int, int]]) -> None:
        """Whatever happens in whatever order, the bounds hold, no port serves two, and at the end nothing is left."""
        nat, now = makeNat(most=5, mostPending=3), 0.0
        sessions: dict[tuple[int, int], Session] = {}
        for what, number, version in steps:
            now += 1
            session = sessions.get((number, version))
            if what == "h":
                verdict = nat.packetReceived(segment(ports=(number, 80), flags=SYN, version=version), now)
                if verdict.session is not None:
                    sessions[number, version] = verdict.session
            elif what == "t":
                now += 20
                nat.tick(now)
            elif what == "p":
                nat.packetReceived(segment(ports=(number, 80), flags=FIN | ACK, version=version), now)
            elif session is not None:
                self.act(nat, what, session, version, now)
            alive = [(key[1], each.port) for key, each in sessions.items() if each.state is not State.GONE]
            self.assertEqual(len(alive), len(set(alive)))
            self.assertEqual(len(nat), len(alive))
            self.assertLessEqual(nat.pending, 3)
        for session in sessions.values():
            nat.closed(session, now)
        nat.tick(now + 1000)
        self.assertEqual((len(nat), nat.pending), (0, 0))
        self.assertEqual([len(table) for table in (nat._legs, nat._pending, nat._awaited)], [0, 0, 0])

    def act(self, nat: Nat, what: str, session: Session, version: int, now: float) -> None:
        """One step of a session's life."""
        if what == "e":
            nat.established(session, now)
        elif what == "r":
            nat.refused(session)
        elif what == "a":
            nat.accept(LISTENERS[version].next, session.port)
        elif what == "c":
            nat.closed(session, now)
        else:
            nat.packetReceived(reply(session, version), now)
