"""
What stands in front of each packet of a TUN that was opened with IFF_VNET_HDR.

It is C{struct virtio_net_hdr} (linux/virtio_net.h), ten bytes in the byte order
of the machine::

     0       1       2       3       4       5       6       7       8       9
    +-------+-------+---------------+---------------+---------------+---------------+
    | flags |gso_typ|    hdr_len    |   gso_size    |  csum_start   |  csum_offset  |
    +-------+-------+---------------+---------------+---------------+---------------+

C{gso_size} is the payload of each segment but the last. C{csum_start} is where
the transport header begins, and C{csum_offset} where in it the checksum stands.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from udptunnel.errors import PacketError
from udptunnel.wire.frame import Buffer

NEEDS_CSUM, DATA_VALID, RSC_INFO = 1, 2, 4
"""Flags (VIRTIO_NET_HDR_F_...). Of these only the first means anything when it is written to a TUN."""

GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 3, 4, 5
"""Kinds of super-packets (VIRTIO_NET_HDR_GSO_...); the last since Linux 6.2."""

GSO_ECN = 0x80
"""Set in the kind if the first segment of a TCP super-packet carries CWR."""

UDP_CHECKSUM, TCP_CHECKSUM = 6, 16
"""Where in their header the checksum stands (RFC 768, RFC 9293 section 3.1)."""

# No padding stands between these fields on any machine, so that "=" is the layout of the C compiler.
_HEADER = Struct("=BBHHHH")
VNET_BYTES = _HEADER.size
"""Bytes of the header."""

PLAIN = bytes(VNET_BYTES)
"""In front of a packet that is one packet, and whose checksums are full."""

_UDP_BYTES = 8


class VnetHeader(NamedTuple):
    """What the kernel says about a packet, or we say to it."""

    flags: int = 0
    gsoType: int = GSO_NONE
    """The kind, with L{GSO_ECN}."""

    headerLength: int = 0
    """A hint only: for what was forwarded it may be the length of the whole first segment."""

    segmentSize: int = 0
    checksumStart: int = 0
    checksumOffset: int = 0


def packVnet(header: VnetHeader) -> bytes:
    """The header in front of a packet that is written."""
    return _HEADER.pack(*header)


def unpackVnet(frame: Buffer) -> VnetHeader:
    """
    The header in front of a packet that was read.

    @param frame: the header and the packet.
    @raise PacketError: the frame is too short, or the header speaks of bytes
        that are not there.
    """
    if len(frame) < VNET_BYTES:
        raise PacketError(f"a virtio_net_hdr holds {VNET_BYTES} bytes, not {len(frame)}")
    header = VnetHeader._make(_HEADER.unpack_from(frame))
    if header.flags & NEEDS_CSUM and _checksumEnd(header) > len(frame):
        raise PacketError("a checksum is missing behind the end of the packet")
    if header.gsoType & ~GSO_ECN and not header.segmentSize:
        raise PacketError("a super-packet of empty segments")
    return header


def _checksumEnd(header: VnetHeader) -> int:
    return VNET_BYTES + header.checksumStart + header.checksumOffset + 2


def udpVnet(start: int, size: int = 0) -> VnetHeader:
    """
    What to say of a UDP packet with a partial checksum.

    @param start: where its UDP header begins.
    @param size: the length of each datagram but the last, if it is a
        super-packet.
    """
    if not size:
        return VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, start, UDP_CHECKSUM)
    return VnetHeader(NEEDS_CSUM, GSO_UDP_L4, start + _UDP_BYTES, size, start, UDP_CHECKSUM)
