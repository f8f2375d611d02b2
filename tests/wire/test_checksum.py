"""Tests for L{udptunnel.wire.checksum}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy import utils
from scapy.layers import inet, inet6
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.wire.checksum import (
    checksum,
    complete,
    difference,
    fold,
    neverZero,
    pseudoSum,
    updated,
    updatedPartial,
    wordSum,
)
from udptunnel.wire.ip import hostOf

thorough = settings(max_examples=EXAMPLES, deadline=None)
few = settings(max_examples=max(10, EXAMPLES // 10), deadline=None)

RFC1071 = bytes.fromhex("0001f203f4f5f6f7")
"""The example of RFC 1071 section 3, whose sum is ddf2."""

words = st.integers(0, 0xFFFF)
ports = st.integers(1, 0xFFFF)
evenBytes = st.binary(max_size=60).map(lambda data: data[: len(data) // 2 * 2])
addresses = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(*[st.binary(min_size=size, max_size=size) for _ in range(4)])
)


def slowSum(data: bytes) -> int:
    """The sum as RFC 1071 section 4.1 computes it."""
    total = sum(int.from_bytes(data[place : place + 2].ljust(2, b"\0"), "big") for place in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class SumTests(SynchronousTestCase):
    """L{wordSum}, L{checksum} and L{pseudoSum}."""

    def test_example(self) -> None:
        """The example of the RFC."""
        self.assertEqual(wordSum(RFC1071), 0xDDF2)
        self.assertEqual(checksum(RFC1071), 0x220D)

    def test_zeros(self) -> None:
        """Only the sum of zeros is 0; every other sum that leaves no remainder is 65,535."""
        for data, expected in ((b"", 0), (bytes(7), 0), (b"\xff\xff", 0xFFFF), (b"\xff\xfe\0\1", 0xFFFF), (b"\1", 256)):
            self.assertEqual(wordSum(data), expected, data)

    @thorough
    @given(st.binary(max_size=70))
    def test_slowly(self, data: bytes) -> None:
        """It is the sum that adding up word by word gives, of any buffer."""
        self.assertEqual(wordSum(data), slowSum(data))
        self.assertEqual(wordSum(memoryview(data)), slowSum(data))
        self.assertEqual(checksum(bytearray(data)), utils.checksum(data))

    @thorough
    @given(evenBytes, words)
    def test_holds(self, data: bytes, pseudo: int) -> None:
        """With its checksum in it, what is covered sums up to 65,535."""
        value = checksum(data, pseudo)
        self.assertEqual(fold(wordSum(data + value.to_bytes(2, "big")) + pseudo), 0xFFFF)

    def test_pseudoHeaders(self) -> None:
        """The pseudo-headers of RFC 9293 and RFC 8200, laid out."""
        source, destination = bytes.fromhex("c0000201"), bytes.fromhex("c6336407")
        laidOut = source + destination + bytes.fromhex("0011000d")
        self.assertEqual(pseudoSum(source, destination, 17, 13), slowSum(laidOut))
        source, destination = bytes(range(16)), bytes(range(16, 32))
        laidOut = source + destination + bytes.fromhex("0001000d 0000003a")
        self.assertEqual(pseudoSum(source, destination, 58, 65549), slowSum(laidOut))


class UpdateTests(SynchronousTestCase):
    """L{difference}, L{updated} and L{updatedPartial}."""

    def test_example(self) -> None:
        """The example of RFC 1624 section 4, which an older formula gets wrong."""
        self.assertEqual(updated(0xDD2F, difference(b"\x55\x55", b"\x32\x85")), 0x0000)

    def test_nothing(self) -> None:
        """No change leaves every checksum as it is, in whichever way it writes zero."""
        for value in (0, 1, 0xFFFE, 0xFFFF):
            self.assertEqual(updated(value, 0), value)
            self.assertEqual(updatedPartial(value, 0), value)

    @thorough
    @given(evenBytes, addresses)
    def test_anyData(self, rest: bytes, addresses: tuple[bytes, ...]) -> None:
        """A checksum that is updated is the one of the data that has been changed."""
        old, new = addresses[0], addresses[1]
        if any(rest) or (any(old) and any(new)):
            self.assertEqual(updated(checksum(old + rest), difference(old, new)), checksum(new + rest))

    @thorough
    @given(addresses, st.sampled_from([6, 17]), words)
    def test_partial(self, addresses: tuple[bytes, ...], protocol: int, length: int) -> None:
        """A partial checksum that is updated is the sum of the other pseudo-header."""
        old, new = b"".join(addresses[:2]), b"".join(addresses[2:])
        value = updatedPartial(pseudoSum(addresses[0], addresses[1], protocol, length), difference(old, new))
        self.assertEqual(value, pseudoSum(addresses[2], addresses[3], protocol, length))

    @few
    @given(addresses, ports, ports, ports, st.binary(max_size=40), st.booleans())
    def test_translation(
        self, addresses: tuple[bytes, ...], far: int, old: int, new: int, payload: bytes, isTcp: bool
    ) -> None:
        """Translated headers have the checksums that scapy gives to the translated packet."""
        before, after = (
            scapyPacket(addresses[place], addresses[place + 1], port, far, payload, isTcp)
            for place, port in ((0, old), (2, new))
        )
        header = 20 if len(addresses[0]) == 4 else 40
        moved = difference(b"".join(addresses[:2]), b"".join(addresses[2:]))
        if header == 20:
            self.assertEqual(updated(word(before, 10), moved), word(after, 10))
        moved += difference(old.to_bytes(2, "big"), new.to_bytes(2, "big"))
        value = updated(word(before, header + (16 if isTcp else 6)), moved)
        self.assertEqual(value if isTcp else neverZero(value), word(after, header + (16 if isTcp else 6)))


class CompleteTests(SynchronousTestCase):
    """L{complete}."""

    @few
    @given(addresses, ports, ports, st.binary(max_size=40), st.booleans())
    def test_complete(self, addresses: tuple[bytes, ...], one: int, two: int, payload: bytes, isTcp: bool) -> None:
        """A partial checksum becomes the one that scapy gives to the packet."""
        whole = scapyPacket(addresses[0], addresses[1], one, two, payload, isTcp)
        start, offset = (20 if len(addresses[0]) == 4 else 40), (16 if isTcp else 6)
        packet = bytearray(whole)
        pseudo = pseudoSum(addresses[0], addresses[1], 6 if isTcp else 17, len(whole) - start)
        packet[start + offset : start + offset + 2] = pseudo.to_bytes(2, "big")
        complete(packet, start, offset)
        self.assertEqual(packet[:start] + packet[start + offset : start + offset + 2], cut(whole, start, offset))

    def test_neverZero(self) -> None:
        """A sum whose complement is 0 is written as 65,535, for 0 would say that there is no checksum."""
        packet = bytearray(b"\xff\xfe\0\1")
        complete(packet, 0, 2)
        self.assertEqual(packet, b"\xff\xfe\xff\xff")
        self.assertEqual([neverZero(value) for value in (0, 1, 0xFFFF)], [0xFFFF, 1, 0xFFFF])


def scapyPacket(source: bytes, destination: bytes, one: int, two: int, payload: bytes, isTcp: bool) -> bytes:
    """A packet as scapy builds it."""
    ip = (inet.IP if len(source) == 4 else inet6.IPv6)(src=scapyHost(source), dst=scapyHost(destination))
    return bytes(ip / (inet.TCP if isTcp else inet.UDP)(sport=one, dport=two) / payload)


def scapyHost(raw: bytes) -> str:
    """An address that scapy does not look up or unmap."""
    return hostOf(raw) if len(raw) == 4 else ":".join(raw[place : place + 2].hex() for place in range(0, 16, 2))


def word(packet: bytes, place: int) -> int:
    """A field of a packet."""
    return int.from_bytes(packet[place : place + 2], "big")


def cut(packet: bytes, start: int, offset: int) -> bytes:
    """The IP header of a packet, and the checksum behind it."""
    return packet[:start] + packet[start + offset : start + offset + 2]
