"""Tests for L{udptunnel.core.headers}; how a relay uses them is tested in L{tests.net.test_entry}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.core import headers as headers_module
from udptunnel.core.counters import Counters
from udptunnel.core.headers import Headers
from udptunnel.errors import AddressError
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.socks5 import packHeader

TARGETS = [Address("192.0.2.1", 53), Address("192.0.2.2", 53), Address("2001:db8::1", 9), Address("name.example", 1)]
GOOD = packHeader(TARGETS[0])


class HeadersTests(SynchronousTestCase):
    """L{Headers}."""

    def setUp(self) -> None:
        self.counters = Counters()
        self.headers = Headers(self.counters)

    def unwrap(self, *datagrams: bytes) -> list[tuple[Address, bytes]]:
        """The datagrams in a burst, each with its address."""
        bursts = self.headers.unwrap(len(datagrams[0]), b"".join(datagrams))
        return [(address, bytes(each)) for address, size, payload in bursts for each in split(size, payload)]

    def test_inverse(self) -> None:
        """A header that was made is one that is read."""
        for target in TARGETS:
            for payload in (b"abc", b""):
                self.assertEqual(self.headers.of(target), packHeader(target))
                self.assertEqual(self.unwrap(self.headers.of(target) + payload), [(target, payload)])

    def test_unwritable(self) -> None:
        """What is no address has no header."""
        for address in (Address("no%name", 1), Address("name", 65536), Address("", 1)):
            self.assertRaises(AddressError, self.headers.of, address)

    def test_whole(self) -> None:
        """A burst with one header stays one."""
        self.assertEqual(
            self.headers.unwrap(13, memoryview(GOOD + b"abc" + GOOD + b"d")), [Burst(TARGETS[0], 3, b"abcd")]
        )

    def test_countedOnce(self) -> None:
        """Wherever in a burst a datagram stands that can not be used, it is counted once."""
        for bad, reason in (
            (b"\0\0\1" + GOOD[3:] + b"x", "SOCKS5 fragment"),
            (b"\0\0\0\7" + bytes(7), "no SOCKS5 header"),
        ):
            for place in range(3):
                self.counters.dropped.clear()
                several = [GOOD + b"%d" % number for number in range(2)]
                several.insert(place, bad)
                self.assertEqual(self.unwrap(*several), [(TARGETS[0], b"0"), (TARGETS[0], b"1")])
                self.assertEqual(self.counters.dropped, {reason: 1})

    def test_spread(self) -> None:
        """No header is read across the border of two datagrams."""
        self.assertEqual(self.unwrap(GOOD[:5], GOOD[5:10]), [])
        self.assertEqual(sum(self.counters.dropped.values()), 2)

    def test_eachSomewhere(self) -> None:
        """Each datagram of any burst comes out with what its header says, or is counted."""

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(
            st.integers(1, 40),
            st.lists(st.one_of(st.sampled_from([*map(packHeader, TARGETS)]), st.binary()), min_size=1),
        )
        def check(size: int, parts: list[bytes]) -> None:
            self.counters.dropped.clear()
            whole = b"".join(parts)
            datagrams = [bytes(each) for each in split(size, whole)]
            alone = [pair for each in datagrams for pair in self.unwrap(each)]
            dropped = dict(self.counters.dropped)
            self.counters.dropped.clear()
            self.assertEqual(len(alone) + sum(dropped.values()), len(datagrams))
            together = self.unwrapAll(size, whole)
            self.assertEqual(sorted(together), sorted(alone))
            self.assertEqual(self.counters.dropped, dropped)

        check()

    def unwrapAll(self, size: int, whole: bytes) -> list[tuple[Address, bytes]]:
        """The same as one burst."""
        bursts = self.headers.unwrap(size, whole)
        return [(address, bytes(each)) for address, inner, payload in bursts for each in split(inner, payload)]

    def test_remembered(self) -> None:
        """Only so many are remembered, and all are right nevertheless."""
        self.patch(headers_module, "MOST_HEADERS", 3)
        for port in [*range(9), 0]:
            address = Address("192.0.2.1", port)
            self.assertEqual(self.unwrap(self.headers.of(address) + b"x"), [(address, b"x")])
