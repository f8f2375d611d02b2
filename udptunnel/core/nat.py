"""
The NAT in a TUN: TCP that comes out of the TUN goes back into it, to a listener of the same kernel.

So the kernel is our TCP stack. OWN is the address of the TUN, and LPORT the
port at which the listener waits there; NEXT is an address beside it that
nobody has. A connection from C:c to D:d gets a port n of NEXT::

    read  C:c -> D:d                   write  NEXT:n -> OWN:LPORT      forth
    read  OWN:LPORT -> NEXT:n          write  D:d -> C:c               back

The listener accepts a connection from NEXT:n, and L{Nat.accept} says where it
really comes from and goes to. A session is::

    PENDING   its SYN is held, and no other is answered, until somebody knows
              whether the target can be reached at all;
    OPEN      packets are rewritten where they lie;
    CLOSING   its connections are closed, but not all of their last packets may
              have come; after a minute it is forgotten;
    GONE      it is forgotten.

A session does not end for being silent: its listener's connection does, if
that is what somebody wants. What a packet's checksums become follows from what
is replaced in it, hence is known beforehand (RFC 1624).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple, TypeAlias

from udptunnel.errors import PacketError
from udptunnel.wire.address import Address
from udptunnel.wire.checksum import FIELD, LARGEST_SUM, difference, updated, updatedPartial
from udptunnel.wire.ip import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING, TCP, hostOf, packHost, parse
from udptunnel.wire.transport import parseTcp
from udptunnel.wire.vnet import NEEDS_CSUM, TCP_CHECKSUM, VNET_BYTES

MutableBuffer: TypeAlias = bytearray | memoryview

FIRST_PORT = 1024
PORTS = 65536 - FIRST_PORT
"""Ports of NEXT, hence connections of one family at a time. Some kernels mistrust those below."""

MOST_PENDING = 8192
"""
Connections whose targets are being tried: nobody should fill the table with
those that do not answer. Nor should one host keep all others from trying: see L{Pending}.
"""

PENDING_SECONDS = 140.0
"""Linux gives up a connection after its seventh SYN, 127 seconds after the first (tcp_syn_retries)."""

ACCEPT_SECONDS = 30.0
"""How long the listener may take to accept what it was sent; the client repeats its SYN five times meanwhile."""

CLOSING_SECONDS = 60.0
"""TCP_TIMEWAIT_LEN of Linux: so long one end may still answer a repeated FIN."""

FIN, SYN, RST, ACK = 1, 2, 4, 16
_KINDS = FIN | SYN | RST | ACK

# From the virtio header's first byte to the TCP checksum, when nothing stands between the headers: flags, version,
# in IPv4 the fragment and the header checksum; protocol, addresses with ports, TCP flags, TCP checksum.
_PLAIN4 = Struct("!B15xHxBH12s8xHxxH")
_PLAIN6 = Struct("!B15xBx36s8xHxxH")
_REPLACED4 = Struct("!H12s")
_SUM4_AT, _ADDRESSES4_AT, _ADDRESSES6_AT = VNET_BYTES + 10, VNET_BYTES + 12, VNET_BYTES + 8
_TCP4_AT, _TCP6_AT = VNET_BYTES + 20, VNET_BYTES + 40
_NO_FRAGMENT = 0x3FFF
"""Of the field of flags and offset, what is 0 in a whole packet."""

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))


class State(Enum):
    """What becomes of a session's packets; see above."""

    PENDING = "pending"
    OPEN = "open"
    CLOSING = "closing"
    GONE = "gone"


class Listener(NamedTuple):
    """Where the kernel accepts the connections of one family."""

    own: str
    """The address of the TUN."""

    next: str
    """One beside it, to which the kernel sends through the TUN."""

    port: int


class Session:
    """
    One connection.

    @ivar key: source address, target address, source port, target port.
    @ivar port: which port of NEXT stands for it; 0 where nothing is rewritten.
    @ivar state: what becomes of its packets.
    @ivar held: while it is pending, its SYN, with the virtio header.
    @ivar transport: where in that the TCP header begins.
    @ivar since: when it got into its state.
    """

    __slots__ = ("held", "key", "port", "since", "state", "transport")

    def __init__(self, key: bytes, port: int, held: bytes, transport: int, now: float) -> None:
        self.key = key
        self.transport = transport
        self.port = port
        self.held = held
        self.state = State.PENDING
        self.since = now

    @property
    def source(self) -> Address:
        """Who opened it."""
        return Address(hostOf(self.key[: len(self.key) // 2 - 2]), int.from_bytes(self.key[-4:-2], "big"))

    @property
    def target(self) -> Address:
        """What it was opened to."""
        return Address(hostOf(self.key[len(self.key) // 2 - 2 : -4]), int.from_bytes(self.key[-2:], "big"))


Leg: TypeAlias = tuple[Session, bytes, int, int]
"""
One direction of a session: what stands instead of its key in its packets, and
by how much that changes the sums of the addresses, and of addresses and ports.
"""


class Action(Enum):
    """What is to be done with a packet."""

    FORWARD = "forward"
    """It was rewritten; write it back."""

    HELD = "held"
    """It begins a session. Find out about its target, then say L{Nat.established} or L{Nat.refused}."""

    DROP = "drop"
    RESET = "reset"
    """It belongs to no connection; answer with a RST."""

    NOT_TCP = "not TCP"
    """Somebody else knows what to do with it."""


class Verdict(NamedTuple):
    """What is to be done with a packet, and why."""

    action: Action
    session: Session | None = None
    """The new session, if the packet is held."""

    reason: str = ""
    """Why it is dropped or refused, for the counters."""


FORWARD, NOT_TCP = Verdict(Action.FORWARD), Verdict(Action.NOT_TCP)
"""For comparison with C{is}: nearly every packet gets one of them."""

REPEATED = Verdict(Action.DROP, None, "repeated SYN")
NOT_UNICAST = Verdict(Action.DROP, None, "not unicast")
FULL = Verdict(Action.DROP, None, "too many sessions")
BUSY = Verdict(Action.DROP, None, "too many pending")
NO_LISTENER = Verdict(Action.RESET, None, "no listener")
"""What a SYN may get instead of being held."""

_MALFORMED = Verdict(Action.DROP, None, "malformed")
_FRAGMENT = Verdict(Action.DROP, None, "TCP fragment")
_OURS = Verdict(Action.DROP, None, "of a forgotten session")
_STRANGE = Verdict(Action.DROP, None, "RST of no session")
_UNKNOWN = Verdict(Action.RESET, None, "no session")


def identify(packet: MutableBuffer) -> Verdict | tuple[bytes, int, int]:
    """
    Read a packet that may have options or extension headers, or be short, or no IP at all.

    @return: its session's key, its TCP flags, and where its TCP header begins;
        or what is to be done with a packet that has no such things.
    """
    frame = memoryview(packet)[VNET_BYTES:]
    try:
        found = parse(frame)
        if found.protocol != TCP:
            return NOT_TCP
        if found.fragment is not None:
            return _FRAGMENT
        flags = parseTcp(frame, found).flags
    except PacketError:
        return _MALFORMED
    ports = bytes(frame[found.payloadStart : found.payloadStart + 4])
    return found.source + found.destination + ports, flags, VNET_BYTES + found.payloadStart


class Pending:
    """
    Sessions that wait to hear of their targets, the one that began first at the begin.

    A host may have as many as there are free places for others: alone half of
    them, and who comes then half of the rest. So one that looks for what does
    not answer takes half, and keeps nobody else from connecting.
    """

    __slots__ = ("_hosts", "_most", "_sessions")

    def __init__(self, most: int) -> None:
        """
        @param most: how many there may be in all.
        """
        self._most = most
        self._sessions: dict[bytes, Session] = {}
        self._hosts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, key: bytes) -> bool:
        return key in self._sessions

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def hasRoom(self, key: bytes) -> bool:
        """Whether the host that a session comes from may have one more."""
        return self._hosts[_hostIn(key)] < self._most - len(self._sessions)

    def add(self, session: Session) -> None:
        """One more."""
        self._sessions[session.key] = session
        self._hosts[_hostIn(session.key)] += 1

    def remove(self, session: Session) -> None:
        """One is decided about, or over."""
        del self._sessions[session.key]
        host = _hostIn(session.key)
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]


def _hostIn(key: bytes) -> bytes:
    """Whose a session is: of an IPv6 address the first half, as who has one has all of a network."""
    return key[: min(len(key) // 2 - 2, 8)]


class _Family:
    """What the sessions of IPv4, or of IPv6, share."""

    __slots__ = ("_freed", "_fresh", "closing", "most", "next", "nextHost", "own", "port", "size", "used")

    def __init__(self, listener: Listener, most: int) -> None:
        self.own, self.next = packHost(listener.own), packHost(listener.next)
        self.nextHost = hostOf(self.next)
        self.port = FIELD.pack(listener.port)
        self.size = len(self.own)
        self.most = min(most, PORTS)
        self.used = 0
        self.closing: dict[Session, None] = {}
        self._fresh = iter(range(FIRST_PORT, FIRST_PORT + PORTS))
        self._freed: deque[int] = deque()

    def takePort(self) -> int:
        """The port that has been free for longest, so that what is left of its last connection is gone."""
        self.used += 1
        return next(self._fresh, 0) or self._freed.popleft()

    def freePort(self, port: int) -> None:
        """Nobody needs a port any more."""
        self.used -= 1
        self._freed.append(port)

    def isOurs(self, key: bytes) -> bool:
        """Whether a packet comes from the listener, or pretends to come from NEXT, as no other host can."""
        source = key[: self.size]
        return source == self.next or (source == self.own and key[-4:-2] == self.port)

    def forth(self, session: Session, key: bytes) -> Leg:
        """What becomes of packets from the client."""
        return _leg(session, key, self.next + self.own + FIELD.pack(session.port) + self.port)

    def back(self, session: Session, key: bytes) -> tuple[bytes, Leg]:
        """What becomes of packets from the listener, and how they look."""
        seen = self.own + self.next + self.port + FIELD.pack(session.port)
        return seen, _leg(session, seen, key[self.size : -4] + key[: self.size] + key[-2:] + key[-4:-2])


def _leg(session: Session, old: bytes, new: bytes) -> Leg:
    return session, new, difference(old[:-4], new[:-4]), difference(old, new)


class Holding:
    """What tables of sessions have in common that hold SYNs until somebody knows about their targets."""

    _pending: Pending

    @property
    def pending(self) -> int:
        """How many sessions wait to hear of their target."""
        return len(self._pending)

    def refused(self, session: Session) -> bytes | None:
        """
        The target of a pending session can not be reached; forget the session.

        @return: its SYN, to be answered with a RST, with an ICMP message or
            not at all; C{None} if the session is gone, or not pending.
        """
        if session.state is not State.PENDING:
            return None
        held = session.held
        self._remove(session)
        return held

    def _remove(self, session: Session) -> None:
        raise NotImplementedError


class Nat(Holding):
    """
    The sessions of one TUN.

    Packets begin at the virtio header, and at C{VNET_BYTES} the IP header
    begins. The functions stand in the order in which a connection meets them.
    """

    def __init__(self, listeners: Iterable[Listener], most: int = PORTS, mostPending: int = MOST_PENDING) -> None:
        """
        @param listeners: at most one of each family. Connections of a family
            that has none are refused.
        @param most: how many sessions of each family there may be. One more
            makes the one go that has been closing for longest; if none is, it
            is not let in.
        @param mostPending: how many may be pending; one host has half of that at most.
        """
        families = [_Family(listener, most) for listener in listeners]
        self._families = {family.size: family for family in families}
        self._legs: dict[bytes, Leg] = {}
        self._pending = Pending(mostPending)
        self._awaited: dict[Address, Session] = {}

    def __len__(self) -> int:
        return sum(family.used for family in self._families.values())

    # -- packets

    def packetReceived(self, packet: MutableBuffer, now: float) -> Verdict:
        """Look at a packet that came out of the TUN, and rewrite it if it is part of a connection."""
        first = packet[VNET_BYTES] if len(packet) > VNET_BYTES else 0
        if first == 0x45:
            return self._plain4(packet, now)
        if first >> 4 == 6:
            return self._plain6(packet, now)
        return self._unusual(packet, now)

    # The following two do the same; a common one would take twice as long.

    def _plain4(self, packet: MutableBuffer, now: float) -> Verdict:
        """IPv4 without options."""
        if len(packet) < _TCP4_AT + 20:
            return self._unusual(packet, now)
        virtio, fragment, protocol, headerSum, key, flags, tcpSum = _PLAIN4.unpack_from(packet)
        if protocol != TCP:
            return NOT_TCP
        leg = self._legs.get(key)
        if leg is None or flags & SYN or fragment & _NO_FRAGMENT:
            return _FRAGMENT if fragment & _NO_FRAGMENT else self._judge(packet, key, flags, _TCP4_AT, now)
        _, replacement, addresses, whole = leg
        tcpSum = (tcpSum + addresses) % LARGEST_SUM if virtio & NEEDS_CSUM else (tcpSum - whole) % LARGEST_SUM
        _REPLACED4.pack_into(packet, _SUM4_AT, (headerSum - addresses) % LARGEST_SUM, replacement)
        FIELD.pack_into(packet, _TCP4_AT + TCP_CHECKSUM, tcpSum)
        return FORWARD

    def _plain6(self, packet: MutableBuffer, now: float) -> Verdict:
        """IPv6, maybe without extension headers."""
        if len(packet) < _TCP6_AT + 20:
            return self._unusual(packet, now)
        virtio, protocol, key, flags, tcpSum = _PLAIN6.unpack_from(packet)
        if protocol != TCP:
            return self._unusual(packet, now) if protocol in _EXTENSIONS else NOT_TCP
        leg = self._legs.get(key)
        if leg is None or flags & SYN:
            return self._judge(packet, key, flags, _TCP6_AT, now)
        _, replacement, addresses, whole = leg
        tcpSum = (tcpSum + addresses) % LARGEST_SUM if virtio & NEEDS_CSUM else (tcpSum - whole) % LARGEST_SUM
        packet[_ADDRESSES6_AT : _TCP6_AT + 4] = replacement
        FIELD.pack_into(packet, _TCP6_AT + TCP_CHECKSUM, tcpSum)
        return FORWARD

    def _unusual(self, packet: MutableBuffer, now: float) -> Verdict:
        """What has options or extension headers, or is short, or no IP at all."""
        found = identify(packet)
        return found if isinstance(found, Verdict) else self._judge(packet, *found, now)

    def _judge(self, packet: MutableBuffer, key: bytes, flags: int, transport: int, now: float) -> Verdict:
        opens, leg = flags & _KINDS == SYN, self._legs.get(key)
        if leg is not None:
            if not (opens and leg[0].state is State.CLOSING):
                _rewrite(packet, leg, transport)
                return FORWARD
            # The client uses its port once more, as it may after a second (RFC 6191).
            self._remove(leg[0])
        family = self._families.get(len(key) // 2 - 2)
        if family is None:
            return NO_LISTENER
        if family.isOurs(key):
            return _OURS
        if not opens:
            return _STRANGE if flags & RST else _UNKNOWN
        return self._begin(family, packet, key, transport, now)

    def _begin(self, family: _Family, packet: MutableBuffer, key: bytes, transport: int, now: float) -> Verdict:
        if key in self._pending:
            return REPEATED
        if not isUnicast(key[family.size : -4]):
            return NOT_UNICAST
        if not self._pending.hasRoom(key):
            return BUSY
        if not self._hasRoom(family):
            return FULL
        session = Session(key, family.takePort(), bytes(packet), transport, now)
        self._pending.add(session)
        return Verdict(Action.HELD, session)

    def _hasRoom(self, family: _Family) -> bool:
        if family.used >= family.most and family.closing:
            self._remove(next(iter(family.closing)))
        return family.used < family.most

    # -- sessions

    def established(self, session: Session, now: float) -> bytearray | None:
        """
        The target of a pending session can be reached, or it does not matter whether it can.

        @return: its SYN, to be written back; C{None} if the session is gone.
        """
        if session.state is not State.PENDING:
            return None
        family, key = self._familyOf(session), session.key
        self._pending.remove(session)
        session.state, session.since = State.OPEN, now
        forth = self._legs[key] = family.forth(session, key)
        seen, back = family.back(session, key)
        self._legs[seen] = back
        self._awaited[_seenFrom(family, session)] = session
        packet, session.held = bytearray(session.held), b""
        _rewrite(packet, forth, session.transport)
        return packet

    def accept(self, host: str, port: int) -> Session | None:
        """
        The listener has accepted a connection.

        @param host: where it seems to come from.
        @return: its session; C{None} if it did not come through the TUN, but
            from some program that has found the listener: close it.
        """
        return self._awaited.pop(Address(host, port), None)

    def closed(self, session: Session, now: float) -> None:
        """All connections of a session are closed, its listener's and that to its target."""
        if session.state is State.PENDING:
            self._remove(session)
        elif session.state is State.OPEN:
            family = self._familyOf(session)
            self._awaited.pop(_seenFrom(family, session), None)
            session.state, session.since = State.CLOSING, now
            family.closing[session] = None

    def tick(self, now: float) -> list[Session]:
        """
        Forget what is over.

        @return: those that were not over, but pending or unaccepted for too
            long: whoever tries to reach their targets may stop.
        """
        for family in self._families.values():
            for session in older(family.closing, now - CLOSING_SECONDS):
                self._remove(session)
        failed = older(self._pending, now - PENDING_SECONDS)
        failed += older(self._awaited.values(), now - ACCEPT_SECONDS)
        for session in failed:
            self._remove(session)
        return failed

    def _familyOf(self, session: Session) -> _Family:
        return self._families[len(session.key) // 2 - 2]

    def _remove(self, session: Session) -> None:
        family, key = self._familyOf(session), session.key
        if session.state is State.PENDING:
            self._pending.remove(session)
        else:
            self._awaited.pop(_seenFrom(family, session), None)
            family.closing.pop(session, None)
            del self._legs[key], self._legs[family.back(session, key)[0]]
        session.state, session.held = State.GONE, b""
        family.freePort(session.port)


def _seenFrom(family: _Family, session: Session) -> Address:
    """Where the listener sees it come from."""
    return Address(family.nextHost, session.port)


def older(sessions: Iterable[Session], than: float) -> list[Session]:
    """Those at the begin that got into their state by then. They stand in that order."""
    old = []
    for session in sessions:
        if session.since > than:
            break
        old.append(session)
    return old


def isUnicast(raw: bytes) -> bool:
    """Whether there can be a TCP server at an address that is not on this machine."""
    ip = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return False
    return not (ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local or raw == b"\xff" * 4)


def _rewrite(packet: MutableBuffer, leg: Leg, transport: int) -> None:
    """Rewrite a packet whose TCP header begins anywhere."""
    _, replacement, addresses, whole = leg
    _replaceSum(packet, transport + TCP_CHECKSUM, addresses, whole)
    packet[transport : transport + 4] = replacement[-4:]
    if len(replacement) == 12:
        (headerSum,) = FIELD.unpack_from(packet, _SUM4_AT)
        FIELD.pack_into(packet, _SUM4_AT, updated(headerSum, addresses))
        packet[_ADDRESSES4_AT : _ADDRESSES4_AT + 8] = replacement[:8]
    else:
        packet[_ADDRESSES6_AT : _ADDRESSES6_AT + 32] = replacement[:32]


def _replaceSum(packet: MutableBuffer, at: int, addresses: int, whole: int) -> None:
    (value,) = FIELD.unpack_from(packet, at)
    partial = packet[0] & NEEDS_CSUM
    FIELD.pack_into(packet, at, updatedPartial(value, addresses) if partial else updated(value, whole))
