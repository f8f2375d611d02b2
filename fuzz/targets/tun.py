"""What comes out of a TUN: the header before each packet, connections, datagrams. And answers of STUN servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from udptunnel.core.counters import Counters
from udptunnel.core.nat import FORWARD, Action, Listener, Nat, Session, State, Verdict
from udptunnel.core.transparent import Transparent
from udptunnel.errors import PacketError
from udptunnel.net.gateway import Gateway
from udptunnel.wire.burst import AimedBurst, split
from udptunnel.wire.ip import ICMP, ICMPV6, parse
from udptunnel.wire.stun import RESPONSE, TRANSACTION_BYTES, unpackAnswer
from udptunnel.wire.transport import Unreachable, checksumHolds
from udptunnel.wire.vnet import GSO_ECN, NEEDS_CSUM, VNET_BYTES, packVnet, unpackVnet

LISTENERS = Listener("10.0.85.2", "10.0.85.1", 7000), Listener("fd75::2", "fd75::1", 7001)
MOST, MOST_PENDING = 4, 2


# -- the virtio header


def vnet(data: bytes) -> None:
    """A header that is read can be written again, and speaks of nothing behind the end of its packet."""
    try:
        header = unpackVnet(data)
    except PacketError as error:
        assert str(error)
        return
    assert packVnet(header) == data[:VNET_BYTES]
    if header.flags & NEEDS_CSUM:
        assert VNET_BYTES + header.checksumStart + header.checksumOffset + 2 <= len(data)
    assert header.segmentSize or not header.gsoType & ~GSO_ECN


# -- connections


def nat(data: bytes) -> None:
    """
    Packets of anybody, in any order, between the steps of connections: bounds hold, nothing is left in the end, and
    what is rewritten keeps its length and its payload, and has right checksums if it had.

    The input is frames, each behind one byte that says what happens first, and two with its length.
    """
    table = Nat(LISTENERS, MOST, MOST_PENDING)
    _run(table, data, lambda session: table.accept(_nextOf(session), session.port))
    assert (len(table._legs), len(table._awaited)) == (0, 0)


def transparent(data: bytes) -> None:
    """
    The same where nothing is rewritten: no packet is changed, and a SYN that was held comes as it was.

    The input is that of C{nat}.
    """
    table = Transparent((4, 6), MOST, MOST_PENDING)
    _run(table, data, lambda session: table.accept(*session.source, *session.target))


def _nextOf(session: Session) -> str:
    return LISTENERS[":" in session.target.host].next


def _run(table: Any, data: bytes, accept: Callable[[Session], object]) -> None:
    sessions: list[Session] = []
    now = 0.0
    for what, frame in _frames(data):
        now += what >> 3
        _act(table, what & 7, sessions, accept, now)
        packet = bytearray(frame)
        verdict = table.packetReceived(packet, now)
        _check(verdict, frame, packet)
        if verdict.session is not None:
            assert verdict.session.held == frame
            sessions.append(verdict.session)
        assert len(table) <= 2 * MOST and table.pending <= MOST_PENDING
    for session in sessions:
        table.closed(session, now)
    table.tick(now + 1000)
    assert (len(table), table.pending) == (0, 0), "something is left"


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 3:
        end = 3 + int.from_bytes(data[1:3], "big")
        yield data[0], data[3:end]
        data = data[end:]


def _act(table: Any, what: int, sessions: list[Session], accept: Callable[[Session], object], now: float) -> None:
    """One step of the session that began last."""
    if what == 7:
        table.tick(now)
    elif sessions and what in (1, 2):
        held = table.established(sessions[-1], now)
        assert held is None or len(held) >= VNET_BYTES + 40
        if what == 2:
            accept(sessions[-1])
    elif sessions and what == 3:
        table.refused(sessions[-1])
    elif sessions and what == 4:
        table.closed(sessions.pop(), now)


def _check(verdict: Verdict, frame: bytes, packet: bytearray) -> None:
    if verdict is not FORWARD:
        assert packet == frame, f"a packet is changed, and then it is to be {verdict.action}"
        assert verdict.reason or verdict.action in (Action.HELD, Action.NOT_TCP)
        assert (verdict.session is not None) == (verdict.action is Action.HELD)
        assert verdict.session is None or verdict.session.state is State.PENDING
        return
    assert len(packet) == len(frame)
    try:
        before, after = parse(frame[VNET_BYTES:]), parse(packet[VNET_BYTES:])
        holds = checksumHolds(frame[VNET_BYTES:], before)
    except PacketError:
        return
    start = VNET_BYTES + before.payloadStart
    assert (
        packet[start + 18 :] == frame[start + 18 :] and packet[start + 4 : start + 16] == frame[start + 4 : start + 16]
    )
    if not frame[0] & NEEDS_CSUM:
        assert checksumHolds(packet[VNET_BYTES:], after) == holds


# -- datagrams


class _Outer:
    """A TUN that takes what is written to it."""

    def __init__(self, headed: bool) -> None:
        self.headed = self.segments = headed
        self.written: list[bytes] = []

    def write(self, *packet: bytes) -> None:
        self.written.append(b"".join(packet))


class _NoTcp:
    """A stack that takes nothing."""

    def packetsReceived(self, packets: Sequence[memoryview], now: float) -> list[memoryview]:
        return list(packets)


class _Receiver:
    """Keeps what it is given, as long as that is valid."""

    def __init__(self) -> None:
        self.bursts: list[AimedBurst] = []

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        self.bursts += [each._replace(payload=bytes(each.payload)) for each in bursts]


def gateway(data: bytes) -> None:
    """
    Whatever comes out of a TUN, what is made of it can be sent back; what is written is good packets, and no error
    answers an error.

    The input is frames as in C{nat}.
    """
    for headed in (False, True):
        made = Gateway(Counters(), lambda: 0.0, lambda why: None)
        receiver, outer = _Receiver(), _Outer(headed)
        made.stack, made.udp, made.outer = _NoTcp(), receiver, outer  # type: ignore[assignment]
        made.packetsReceived([memoryview(bytearray(frame)) for _, frame in _frames(data) if len(frame) >= VNET_BYTES])
        for burst in receiver.bursts:
            assert split(burst.size, burst.payload)
            made.send(burst.source, burst.target, burst.size, burst.payload)
            made.refuse(burst, Unreachable.PORT)
        for each in outer.written:
            _checkWritten(each)


def _checkWritten(written: bytes) -> None:
    header, packet = unpackVnet(written), written[VNET_BYTES:]
    found = parse(packet)
    assert found.totalLength == len(packet)
    # A reply to a request with a wrong checksum has a wrong one, too: that is how the sender learns of it.
    isReply = (found.protocol, packet[found.payloadStart]) in ((ICMP, 0), (ICMPV6, 129))
    if found.fragment is None and not header.flags & NEEDS_CSUM and not isReply:
        assert checksumHolds(packet, found)


# -- STUN


def stun(data: bytes) -> None:
    """
    Whatever a server says, it is an answer or it is none; a good answer has an address, and half of one is none.

    The input is what follows the kind of message; its length is set right.
    """
    transaction = data[4 : 4 + TRANSACTION_BYTES].ljust(TRANSACTION_BYTES, b"\0")
    whole = RESPONSE.to_bytes(2, "big") + max(0, len(data) - 16).to_bytes(2, "big") + data
    answer = unpackAnswer(whole, transaction)
    unpackAnswer(data, transaction)
    if answer is None:
        return
    assert answer.mapped.host and 0 <= answer.mapped.port < 65536
    assert unpackAnswer(whole, bytes(each ^ 1 for each in transaction)) is None
    assert unpackAnswer(whole + b"\0", transaction) is None and unpackAnswer(whole[:-1], transaction) is None
