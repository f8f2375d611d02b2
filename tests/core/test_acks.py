"""Tests for L{udptunnel.core.acks}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core.acks import FEWEST, newest
from udptunnel.wire.vnet import VNET_BYTES

TIMESTAMPS = b"\1\1\x08\x0a" + bytes(8)
SACK = b"\1\1\5\x0a" + bytes(8)
ACK, FIN_ACK = 16, 17


def packet(
    number: int, port: int = 1, version: int = 4, options: bytes = TIMESTAMPS, flags: int = ACK, data: bytes = b""
) -> memoryview:
    """One from a client, which acknowledges up to a number."""
    tcp = port.to_bytes(2, "big") + b"\1\xbb" + bytes(4) + number.to_bytes(4, "big")
    tcp += bytes((20 + len(options) << 2, flags)) + bytes(6) + options + data
    if version == 4:
        return memoryview(bytearray(VNET_BYTES) + b"\x45" + bytes(8) + b"\6" + bytes(10) + tcp)
    return memoryview(bytearray(VNET_BYTES) + b"\x60" + bytes(5) + b"\6" + bytes(33) + tcp)


OTHERS = [packet(0, port) for port in range(100, 100 + FEWEST)]
"""So many that it is worth while."""


class AcksTests(SynchronousTestCase):
    """Which acknowledgements are left out."""

    def assertKept(self, kept: list[memoryview], packets: list[memoryview]) -> None:
        """Of some packets these remain, in their order."""
        self.assertEqual(list(map(id, newest(packets + OTHERS))), list(map(id, kept + OTHERS)))

    def test_older(self) -> None:
        """Of those of a connection the greatest remains, with timestamps or without, in IPv4 and in IPv6."""
        for version in (4, 6):
            for options in (b"", TIMESTAMPS):
                packets = [packet(number, version=version, options=options) for number in (10, 20, 30)]
                self.assertKept(packets[2:], packets)

    def test_around(self) -> None:
        """Numbers begin again at 0."""
        packets = [packet((1 << 32) - 5), packet(5)]
        self.assertKept(packets[1:], packets)

    def test_repeated(self) -> None:
        """What acknowledges the same once more tells of a loss, and stays; so does what comes too late."""
        for numbers in ((10, 10, 10), (30, 20, 10)):
            packets = list(map(packet, numbers))
            self.assertKept(packets, packets)

    def test_news(self) -> None:
        """What has data, other options or other flags stays, and hides nothing else."""
        for special in (
            packet(10, data=b"x"),
            packet(10, options=SACK),
            packet(10, flags=FIN_ACK),
            packet(10, flags=ACK | 64),
            packet(10, options=TIMESTAMPS + SACK),
        ):
            packets = [special, packet(20)]
            self.assertKept(packets, packets)
            packets = [packet(5), special]
            self.assertKept(packets, packets)

    def test_connections(self) -> None:
        """Each connection is looked at by itself."""
        packets = [packet(1, 7), packet(5, 8), packet(2, 7), packet(6, 8)]
        self.assertKept(packets[2:], packets)

    def test_few(self) -> None:
        """Few packets are not looked at."""
        packets = [packet(1), packet(2), packet(3)]
        self.assertIs(newest(packets), packets)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3), st.booleans()), max_size=30))
    def test_everything(self, given: list[tuple[int, int, bool]]) -> None:
        """Only acknowledgements are left out, and only if a greater one of the connection follows; order stays."""
        packets = [packet(number, port, data=b"x" * isData) for number, port, isData in given]
        kept = [id(each) for each in newest(packets)]
        self.assertEqual(kept, [id(each) for each in packets if id(each) in set(kept)])
        for place, (number, port, isData) in enumerate(given):
            if id(packets[place]) not in kept:
                self.assertFalse(isData)
                after = [
                    (n, id(packets[p]))
                    for p, (n, other, d) in enumerate(given)
                    if p > place and (other, d) == (port, False)
                ]
                self.assertTrue(any(n > number and which in kept for n, which in after))

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.binary(min_size=VNET_BYTES + 20, max_size=120), max_size=10))
    def test_garbage(self, raw: list[bytes]) -> None:
        """Whatever comes is no error, and what is no acknowledgement stays."""
        packets = [memoryview(bytearray(each)) for each in raw]
        self.assertLessEqual(len(newest(packets)), len(packets))
