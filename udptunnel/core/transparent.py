"""
Sessions whose packets are not rewritten: a kernel of their own takes them as they are.

In a network namespace where every address is a local one (nft's tproxy) the
listener accepts a connection from C:c to D:d, and its socket says C:c and D:d,
too. So nothing needs to be translated, and no packet to be looked up; only a
SYN is held back until somebody knows whether its target can be reached::

    PENDING   its SYN is held, and no other one is let through;
    OPEN      its SYN was let through, and the kernel knows what to do with all others;
    GONE      all is closed. The kernel knows of what may still come, and a SYN begins another session.

The functions stand in the order in which a connection meets them.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from udptunnel.core.nat import (
    ACCEPT_SECONDS,
    ACK,
    BUSY,
    FIN,
    FORWARD,
    FULL,
    MOST_PENDING,
    NO_LISTENER,
    NOT_TCP,
    NOT_UNICAST,
    PENDING_SECONDS,
    PORTS,
    REPEATED,
    RST,
    SYN,
    Action,
    Holding,
    MutableBuffer,
    Pending,
    Session,
    State,
    Verdict,
    identify,
    isUnicast,
    older,
)
from udptunnel.errors import PacketError
from udptunnel.wire.checksum import FIELD
from udptunnel.wire.ip import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4_BYTES, IPV6_BYTES, ROUTING, TCP, packHost
from udptunnel.wire.transport import TCP_BYTES
from udptunnel.wire.vnet import VNET_BYTES

# From the virtio header on: of IPv4 the fragment; the protocol; the TCP flags if no options or extensions come before.
_PLAIN4 = Struct("!16xHxB23xB")
_PLAIN6 = Struct("!16xB46xB")
_LEAST4, _LEAST6 = (VNET_BYTES + header + TCP_BYTES for header in (IPV4_BYTES, IPV6_BYTES))
_NO_FRAGMENT = 0x3FFF
"""Of the field of flags and offset, what is 0 in a whole packet."""

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS))


class Transparent(Holding):
    """
    The sessions of one namespace.

    Packets begin at the virtio header, and at C{VNET_BYTES} the IP header
    begins. Only those that go to the listener come here, not its answers.
    """

    def __init__(self, versions: Iterable[int] = (4, 6), most: int = PORTS, mostPending: int = MOST_PENDING) -> None:
        """
        @param versions: of which IP versions there is a listener. Connections
            of another one are refused.
        @param most: how many sessions there may be.
        @param mostPending: how many of them may be pending; one host has half of that at most.
        """
        self._sizes = frozenset(12 if version == 4 else 36 for version in versions)
        self._most = most
        self._sessions: dict[bytes, Session] = {}
        self._pending = Pending(mostPending)
        self._awaited: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def packetReceived(self, packet: MutableBuffer, now: float) -> Verdict:
        """Look at a packet that goes to the listener. It stays as it is."""
        first = packet[VNET_BYTES] if len(packet) >= _LEAST4 else 0
        if first == 0x45:
            fragment, protocol, flags = _PLAIN4.unpack_from(packet)
            if protocol != TCP:
                return NOT_TCP
            if not (flags & SYN or fragment & _NO_FRAGMENT):
                return FORWARD
        elif first >> 4 == 6 and len(packet) >= _LEAST6:
            protocol, flags = _PLAIN6.unpack_from(packet)
            if protocol == TCP and not flags & SYN:
                return FORWARD
            if protocol != TCP and protocol not in _EXTENSIONS:
                return NOT_TCP
        return self._judge(packet, now)

    def _judge(self, packet: MutableBuffer, now: float) -> Verdict:
        """What may be a SYN, or is unusual."""
        found = identify(packet)
        if isinstance(found, Verdict):
            return found
        key, flags, transport = found
        if flags & (SYN | ACK | RST | FIN) != SYN:
            return FORWARD
        known = self._sessions.get(key)
        if known is not None:
            return REPEATED if known.state is State.PENDING else FORWARD
        return self._begin(packet, key, transport, now)

    def _begin(self, packet: MutableBuffer, key: bytes, transport: int, now: float) -> Verdict:
        if len(key) not in self._sizes:
            return NO_LISTENER
        if not isUnicast(key[len(key) // 2 - 2 : -4]):
            return NOT_UNICAST
        if not self._pending.hasRoom(key):
            return BUSY
        if len(self._sessions) >= self._most:
            return FULL
        session = self._sessions[key] = Session(key, 0, bytes(packet), transport, now)
        self._pending.add(session)
        return Verdict(Action.HELD, session)

    def established(self, session: Session, now: float) -> bytes | None:
        """
        The target of a pending session can be reached, or it does not matter whether it can.

        @return: its SYN, to be passed on to the listener; C{None} if the session is gone.
        """
        if session.state is not State.PENDING:
            return None
        self._pending.remove(session)
        self._awaited[session] = None
        held, session.held = session.held, b""
        session.state, session.since = State.OPEN, now
        return held

    def accept(self, host: str, port: int, targetHost: str, targetPort: int) -> Session | None:
        """
        The listener has accepted a connection.

        @param host: where it comes from (C{getpeername}).
        @param targetHost: where it goes to (C{getsockname}).
        @return: its session; C{None} if its SYN was not held here: close it.
        """
        try:
            key = packHost(host) + packHost(targetHost) + FIELD.pack(port) + FIELD.pack(targetPort)
        except PacketError:
            return None
        session = self._sessions.get(key)
        if session is None or session not in self._awaited:
            return None
        del self._awaited[session]
        return session

    def closed(self, session: Session, now: float) -> None:
        """All connections of a session are closed, its listener's and that to its target."""
        if session.state is not State.GONE:
            self._remove(session)

    def tick(self, now: float) -> list[Session]:
        """
        Forget what will not be.

        @return: sessions that were pending or unaccepted for too long:
            whoever tries to reach their targets may stop.
        """
        failed = older(self._pending, now - PENDING_SECONDS) + older(self._awaited, now - ACCEPT_SECONDS)
        for session in failed:
            self._remove(session)
        return failed

    def _remove(self, session: Session) -> None:
        del self._sessions[session.key]
        if session.state is State.PENDING:
            self._pending.remove(session)
        self._awaited.pop(session, None)
        session.state, session.held = State.GONE, b""
