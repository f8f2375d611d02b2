"""
What IP packets carry: TCP, UDP and ICMP, and the answers that we give ourselves.

TCP (RFC 9293 section 3.1), UDP (RFC 768), and ICMP (RFC 792, RFC 4443), of which
the four bytes after the checksum mean something else in each message::

    TCP   source(2) destination(2) sequence(4) acknowledgment(4) words(4 bits) 0(4 bits) flags(1)
          window(2) checksum(2) urgent(2) options
    UDP   source(2) destination(2) length(2) checksum(2)
    ICMP  type(1) code(1) checksum(2) rest(4)

What reads takes a frame and what L{parse<udptunnel.wire.ip.parse>} said about it.
What answers makes whole IP packets with full checksums.
"""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import NamedTuple, TypeAlias

from udptunnel.errors import PacketError
from udptunnel.wire.checksum import (
    FIELD,
    LARGEST_SUM,
    checksum,
    difference,
    fold,
    neverZero,
    pseudoSum,
    updated,
    wordSum,
)
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, TCP, UDP, Packet, ipHeader
from udptunnel.wire.vnet import UDP_CHECKSUM

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
"""The flags of TCP."""

TCP_BYTES, UDP_BYTES, ICMP_BYTES = 20, 8, 8
"""Headers without options."""

_TCP = Struct("!HHIIBB6x")
_NEW_TCP = Struct("!HHIIBBHHH")
_UDP = Struct("!HHHH")
_ICMP = Struct("!BBHI")

_CHECKSUM_AT = 2
"""Where it stands in an ICMP message."""

LARGEST_ERRORS = {4: 576, 6: 1280}
"""All of an ICMP error, its IP header included (RFC 1812 section 4.3.2.3, RFC 4443 section 3.1)."""

UNREACHABLE, TOO_BIG = 3, 4
"""A type of ICMP, and a code of it."""

TIME_EXCEEDED = 11
"""A type of ICMP."""

UNREACHABLE_V6, TOO_BIG_V6, TIME_EXCEEDED_V6, PARAMETER_PROBLEM_V6 = 1, 2, 3, 4
"""Types of ICMPv6."""

_UNKNOWN_PROTOCOL, _UNKNOWN_PROTOCOL_V6 = 2, 1

_Message: TypeAlias = tuple[int, int, int]
"""Type, code and rest of an ICMP message."""

# Type and code of an echo request, and of its reply.
_ECHO = {(4, ICMP): (b"\x08\0", b"\0\0"), (6, ICMPV6): (b"\x80\0", b"\x81\0")}

# Errors and redirects are never answered by an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e); neither is a
# type that nobody knows.
_QUESTIONS = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
_LEAST_QUESTION_V6, _REDIRECT_V6 = 128, 137


class Unreachable(Enum):
    """Why a target can not be reached: the codes that say so in ICMP and ICMPv6."""

    NET = (0, 0)
    HOST = (1, 3)
    PORT = (3, 4)
    PROHIBITED = (13, 1)


class TcpSegment(NamedTuple):
    """What a TCP header says."""

    sourcePort: int
    destinationPort: int
    sequence: int
    acknowledgment: int
    flags: int
    payloadStart: int
    """Where in the frame what follows the header and its options begins."""

    payloadLength: int

    @property
    def length(self) -> int:
        """How many sequence numbers the segment takes (SEG.LEN in RFC 9293 section 3.3.1)."""
        return self.payloadLength + (self.flags & SYN != 0) + (self.flags & FIN != 0)

    @property
    def opens(self) -> bool:
        """Whether it is the first one of a connection."""
        return self.flags & (SYN | ACK | RST | FIN) == SYN


class UdpDatagram(NamedTuple):
    """What a UDP header says."""

    sourcePort: int
    destinationPort: int
    payloadStart: int
    payloadEnd: int
    """Where in the frame the payload begins and ends."""


# -- reading


def parseTcp(frame: Buffer, packet: Packet) -> TcpSegment:
    """
    Read the TCP header of a packet.

    @raise PacketError: it is a fragment, or the header does not fit.
    """
    _checkWhole(packet, TCP_BYTES)
    source, destination, sequence, acknowledgment, words, flags = _TCP.unpack_from(frame, packet.payloadStart)
    start = packet.payloadStart + (words >> 4) * 4
    if not packet.payloadStart + TCP_BYTES <= start <= packet.totalLength:
        raise PacketError(f"a TCP header of {(words >> 4) * 4} bytes does not fit")
    return TcpSegment(source, destination, sequence, acknowledgment, flags, start, packet.totalLength - start)


def _checkWhole(packet: Packet, least: int) -> None:
    if packet.fragment is not None:
        raise PacketError("a fragment is no packet of its own")
    if packet.totalLength - packet.payloadStart < least:
        raise PacketError(f"a header of {least} bytes is cut short")


def parseUdp(frame: Buffer, packet: Packet) -> UdpDatagram:
    """
    Read the UDP header of a packet. The checksum is not computed: see
    L{checksumHolds}.

    @raise PacketError: it is a fragment, or its length is wrong, or it has no
        checksum though it needs one (RFC 8200 section 8.1).
    """
    _checkWhole(packet, UDP_BYTES)
    source, destination, length, value = _UDP.unpack_from(frame, packet.payloadStart)
    end = packet.payloadStart + length
    if length < UDP_BYTES or end > packet.totalLength:
        raise PacketError(f"a UDP datagram of {length} bytes does not fit")
    if not value and packet.version == 6:
        raise PacketError("a UDP datagram over IPv6 has no checksum")
    return UdpDatagram(source, destination, packet.payloadStart + UDP_BYTES, end)


def checksumHolds(frame: Buffer, packet: Packet) -> bool:
    """
    Whether the full checksum of a whole TCP, UDP or ICMP packet is right, or
    there is none. Never ask about a packet with NEEDS_CSUM.
    """
    start, end = packet.payloadStart, packet.totalLength
    if packet.protocol == UDP:
        end = parseUdp(frame, packet).payloadEnd
        if not FIELD.unpack_from(frame, start + UDP_CHECKSUM)[0]:
            return True
    length = end - start
    pseudo = 0 if packet.protocol == ICMP else pseudoSum(packet.source, packet.destination, packet.protocol, length)
    return fold(wordSum(frame[start:end]) + pseudo) == LARGEST_SUM


# -- UDP


def udpHeaders(source: bytes, destination: bytes, sourcePort: int, destinationPort: int, length: int) -> bytes:
    """
    IP and UDP header of a datagram, or of a super-packet of datagrams, with a
    partial checksum: to be written before the payload, and behind what
    L{udpVnet<udptunnel.wire.vnet.udpVnet>} says.

    @param length: bytes of the payload.
    @raise PacketError: that is too much.
    """
    size = UDP_BYTES + length
    header = ipHeader(source, destination, UDP, size)
    return header + _UDP.pack(sourcePort, destinationPort, size, pseudoSum(source, destination, UDP, size))


def udpPacket(source: bytes, destination: bytes, sourcePort: int, destinationPort: int, payload: Buffer) -> bytes:
    """
    A whole datagram with a full checksum: where there is no offload, and to be
    cut into fragments.

    @raise PacketError: the payload is too long.
    """
    packet = bytearray(udpHeaders(source, destination, sourcePort, destinationPort, len(payload)))
    field = len(packet) - 2
    value = fold(FIELD.unpack_from(packet, field)[0] + wordSum(packet[-UDP_BYTES:-2]) + wordSum(payload))
    FIELD.pack_into(packet, field, neverZero(LARGEST_SUM - value))
    return bytes(packet) + payload


# -- TCP


def resetFor(frame: Buffer, packet: Packet) -> bytes | None:
    """
    The RST that refuses a segment, as RFC 9293 section 3.10.7.1 says; nothing if it is
    one itself, or comes from where nobody is.

    @raise PacketError: it is no segment.
    """
    segment = parseTcp(frame, packet)
    if segment.flags & RST or not _mayAnswer(packet):
        return None
    if segment.flags & ACK:
        return _reset(packet, segment, RST, segment.acknowledgment, 0)
    return _reset(packet, segment, RST | ACK, 0, segment.sequence + segment.length & 0xFFFFFFFF)


def _reset(packet: Packet, segment: TcpSegment, flags: int, sequence: int, acknowledgment: int) -> bytes:
    ports = segment.destinationPort, segment.sourcePort
    fields = (*ports, sequence, acknowledgment, TCP_BYTES // 4 << 4, flags, 0)
    pseudo = pseudoSum(packet.destination, packet.source, TCP, TCP_BYTES)
    value = checksum(_NEW_TCP.pack(*fields, 0, 0), pseudo)
    return _answer(packet, TCP, _NEW_TCP.pack(*fields, value, 0))


def _answer(packet: Packet, protocol: int, payload: Buffer) -> bytes:
    return ipHeader(packet.destination, packet.source, protocol, len(payload)) + payload


def _mayAnswer(packet: Packet) -> bool:
    """Whether a packet is from a host and to one (RFC 1122 sections 3.2.2 and 4.2.3.10, RFC 4443 section 2.4 e)."""
    source, destination = packet.source, packet.destination
    if packet.version == 6:
        return source[0] != 0xFF and destination[0] != 0xFF and any(source)
    # From 224 on there are multicast, what is reserved, and the limited broadcast.
    return source[0] not in (0, 127) and source[0] < 224 and destination[0] < 224


# -- ICMP


def echoReply(frame: Buffer, packet: Packet) -> bytes | None:
    """
    The reply to an echo request; nothing if a packet is none.

    It is as long as the request, and may have to be
    L{fragmented<udptunnel.wire.ip.fragmented>}. If the checksum of the request
    is wrong, so is that of the reply.
    """
    request, reply = _ECHO.get((packet.version, packet.protocol), (b"", b""))
    message = bytes(frame[packet.payloadStart : packet.totalLength])
    if len(message) < ICMP_BYTES or message[:2] != request or packet.fragment is not None or not _mayAnswer(packet):
        return None
    value = updated(FIELD.unpack_from(message, _CHECKSUM_AT)[0], difference(request, reply))
    # In a reply of zeros alone 0 would be wrong; the other zero never is. What IPv6 sums up is never all zeros.
    return _answer(packet, packet.protocol, reply + FIELD.pack(neverZero(value)) + message[4:])


def unreachable(frame: Buffer, packet: Packet, why: Unreachable) -> bytes | None:
    """
    The error that says that the destination of a packet can not be reached;
    nothing if RFC 1122 section 3.2.2 or RFC 4443 section 2.4 forbids it.
    """
    inIpv4, inIpv6 = why.value
    return _error(frame, packet, (UNREACHABLE, inIpv4, 0), (UNREACHABLE_V6, inIpv6, 0))


def protocolUnreachable(frame: Buffer, packet: Packet) -> bytes | None:
    """The error that says that nobody knows the protocol of a packet; nothing if L{unreachable} makes nothing."""
    inIpv6 = (PARAMETER_PROBLEM_V6, _UNKNOWN_PROTOCOL_V6, packet.protocolAt)
    return _error(frame, packet, (UNREACHABLE, _UNKNOWN_PROTOCOL, 0), inIpv6)


def tooBig(frame: Buffer, packet: Packet, mtu: int) -> bytes | None:
    """
    The error that says how long a packet may be (RFC 1191 section 4, RFC 4443
    section 3.2); nothing if L{unreachable} makes nothing.
    """
    return _error(frame, packet, (UNREACHABLE, TOO_BIG, min(mtu, 0xFFFF)), (TOO_BIG_V6, 0, mtu))


def timeExceeded(frame: Buffer, packet: Packet) -> bytes | None:
    """
    The error that says that a packet has met too many routers (RFC 792, RFC
    4443 section 3.3); nothing if L{unreachable} makes nothing.
    """
    return _error(frame, packet, (TIME_EXCEEDED, 0, 0), (TIME_EXCEEDED_V6, 0, 0))


def _error(frame: Buffer, packet: Packet, inIpv4: _Message, inIpv6: _Message) -> bytes | None:
    if not _mayReport(frame, packet):
        return None
    if packet.version == 4:
        return _answer(packet, ICMP, _icmp(*inIpv4, _quote(frame, packet, IPV4_BYTES), 0))
    quote = _quote(frame, packet, IPV6_BYTES)
    pseudo = pseudoSum(packet.destination, packet.source, ICMPV6, ICMP_BYTES + len(quote))
    return _answer(packet, ICMPV6, _icmp(*inIpv6, quote, pseudo))


def _mayReport(frame: Buffer, packet: Packet) -> bool:
    """Whether an error may be sent because of a packet."""
    isFirst = packet.fragment is None or not packet.fragment.offset
    return isFirst and _mayAnswer(packet) and not _isError(frame, packet)


def _isError(frame: Buffer, packet: Packet) -> bool:
    """Whether a packet is an error itself, or a redirect, or cut short so that nobody knows."""
    kind = frame[packet.payloadStart] if packet.payloadStart < packet.totalLength else UNREACHABLE
    if packet.protocol == ICMPV6:
        return kind < _LEAST_QUESTION_V6 or kind == _REDIRECT_V6
    return packet.protocol == ICMP and kind not in _QUESTIONS


def _quote(frame: Buffer, packet: Packet, header: int) -> bytes:
    """As much of a packet as fits an error."""
    room = LARGEST_ERRORS[packet.version] - header - ICMP_BYTES
    return bytes(frame[: min(packet.totalLength, room)])


def _icmp(kind: int, code: int, rest: int, body: bytes, pseudo: int) -> bytes:
    value = checksum(_ICMP.pack(kind, code, 0, rest) + body, pseudo)
    return _ICMP.pack(kind, code, value, rest) + body
