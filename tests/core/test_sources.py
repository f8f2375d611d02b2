"""Tests for L{udptunnel.core.sources}."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.sources import LEAST_PORT, NETWORK, NETWORK6, SPACE, Sources
from udptunnel.wire.address import Address, normalHost


def sourcesAt(number: int) -> Sources:
    """Those that begin with a number."""
    return Sources(lambda length: number.to_bytes(length, "big"))


class SourcesTests(SynchronousTestCase):
    """L{Sources}."""

    def test_pairs(self) -> None:
        """A pair is an address of each network, with one port; the next one differs by its port."""
        sources = sourcesAt(0)
        self.assertEqual(
            sources.take(), (Address("10.85.0.1", LEAST_PORT), Address("fd75:6470:7475:85::1", LEAST_PORT))
        )
        self.assertEqual(sources.take()[1], Address("fd75:6470:7475:85::1", LEAST_PORT + 1))

    def test_unique(self) -> None:
        """Where the ports of an address end, those of the next one begin."""
        sources = sourcesAt(0)
        pairs = [sources.take() for _ in range(70_000)]
        self.assertEqual(len({four for four, _ in pairs}), len(pairs))
        self.assertEqual(len({six for _, six in pairs}), len(pairs))
        self.assertEqual(pairs[64_511][0], Address("10.85.0.1", 65_535))
        self.assertEqual(pairs[64_512][0], Address("10.85.0.2", LEAST_PORT))

    def test_around(self) -> None:
        """The last number stands for the last host of the network; the first one follows it."""
        sources = sourcesAt(SPACE - 1)
        four, six = sources.take()
        self.assertEqual(four, Address("10.85.255.254", 65_535))
        self.assertIn(ip_address(six.host), NETWORK6)
        self.assertEqual(sources.take()[0], Address("10.85.0.1", LEAST_PORT))

    def test_anywhere(self) -> None:
        """Whatever random bytes say, addresses are in the networks, and written as they are written elsewhere."""
        for number in (1, SPACE, 1 << 40, (1 << 64) - 1):
            for address, network in zip(sourcesAt(number).take(), (NETWORK, NETWORK6), strict=True):
                self.assertIn(ip_address(address.host), network)
                self.assertEqual(normalHost(address.host), address.host)
