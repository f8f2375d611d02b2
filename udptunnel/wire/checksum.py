"""
Checksums of IP, TCP, UDP and ICMP (RFC 1071).

They are sums of 16-bit words in one's-complement arithmetic, which is
arithmetic modulo 65,535 with two ways to write zero: 0 is the sum of zeros
alone, 65,535 every other one. So a buffer need not be cut into words: as one
big number it leaves the same remainder.

The field of a packet holds the complement of the sum of all that it covers. With
VIRTIO_NET_HDR_F_NEEDS_CSUM (linux/virtio_net.h) it holds the sum of the
pseudo-header alone, not complemented, and whoever sends the packet adds the rest.
That is a I{partial} checksum here; the other is a I{full} one.
"""

from __future__ import annotations

from struct import Struct

from udptunnel.wire.frame import Buffer

LARGEST_SUM = 0xFFFF
"""The sum of what arrived well, its checksum included."""

FIELD = Struct("!H")


def fold(number: int) -> int:
    """A sum of 16-bit words as one word, 0 to 65,535; it is 0 only if the sum is."""
    return number % LARGEST_SUM or (LARGEST_SUM if number else 0)


def wordSum(data: Buffer) -> int:
    """The sum of the words in a buffer; behind an odd number of bytes stands a zero."""
    number = int.from_bytes(data, "big")
    return fold(number << 8 if len(data) & 1 else number)


def checksum(data: Buffer, pseudo: int = 0) -> int:
    """
    The full checksum of a buffer in which the field is 0.

    @param pseudo: the sum of the pseudo-header, if there is one.
    """
    return LARGEST_SUM - fold(wordSum(data) + pseudo)


def pseudoSum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """
    The sum of the pseudo-header of IPv4 (RFC 9293 section 3.1) or IPv6 (RFC
    8200 section 8.1): both sum up the same, wherever their zeros stand.

    @param length: bytes of the transport header and all that follows it.
    """
    return fold(int.from_bytes(source + destination, "big") + protocol + length)


def neverZero(value: int) -> int:
    """A checksum for a field in which 0 means that there is none: zero is written the other way (RFC 768)."""
    return value or LARGEST_SUM


def difference(old: Buffer, new: Buffer) -> int:
    """
    By how much the sum changes, 0 to 65,534, when bytes are replaced: addresses, or ports.

    They have the same, even length, and begin an even number of bytes after
    what the checksum covers begins.
    """
    return (int.from_bytes(new, "big") - int.from_bytes(old, "big")) % LARGEST_SUM


def updated(value: int, change: int) -> int:
    """
    A full checksum after the sum has changed (RFC 1624 section 3, equation 3).

    Of UDP: leave a checksum of 0 as it is, for there is none; and put what comes
    out through L{neverZero}.
    """
    return LARGEST_SUM - fold(LARGEST_SUM - value + change)


def updatedPartial(value: int, change: int) -> int:
    """A partial checksum after the sum has changed. Ports are not in it: let C{change} be that of the addresses."""
    return fold(value + change)


def complete(packet: bytearray, start: int, offset: int) -> None:
    """
    Make a full checksum of a partial one, as the kernel's C{skb_checksum_help} does.

    @param start: where the transport header begins.
    @param offset: where in it the field is.
    """
    # The field is part of what is summed up, and that is how the pseudo-header comes in.
    FIELD.pack_into(packet, start + offset, neverZero(checksum(memoryview(packet)[start:])))
