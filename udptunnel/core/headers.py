"""
The headers of SOCKS5's UDP (RFC 1928 section 7): taken off bursts, and made for them.

A header costs far more to read and to write than to compare. Flows use the same
ones again and again, so they are remembered.
"""

from __future__ import annotations

from udptunnel.core.counters import Counters
from udptunnel.errors import AddressError, FragmentedError, TruncatedError
from udptunnel.wire.address import Address, normalHost
from udptunnel.wire.burst import Burst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.socks5 import packHeader, unpackHeader

MOST_HEADERS = 4096
"""Headers that are remembered, each way."""


class Headers:
    """The headers that a socket, or several, read and write."""

    def __init__(self, counters: Counters) -> None:
        """
        @param counters: where datagrams are counted that have no header that we can use.
        """
        self._counters = counters
        self._addresses: dict[bytes, Address] = {}
        self._headers: dict[Address, bytes] = {}

    def unwrap(self, size: int, payload: Buffer) -> list[Burst]:
        """
        The bursts in a burst of datagrams with headers: one, if all headers are alike.

        Each has as its source the address that its headers name. What has no
        header that we can use is dropped and counted.
        """
        if len(payload) <= size:
            return self._unwrapOne(payload, self._find(payload))
        data = bytes(payload)
        header = self._find(data[:size])
        if header is not None and _allBeginWith(header, size, data):
            lead = len(header)
            inner = [data[place + lead : place + size] for place in range(0, len(data), size)]
            return _burstsOf(self._addresses[header], size - lead, inner)
        bursts = self._unwrapOne(data[:size], header)
        for place in range(size, len(data), size):
            datagram = data[place : place + size]
            bursts += self._unwrapOne(datagram, self._find(datagram))
        return bursts

    def _unwrapOne(self, datagram: Buffer, header: bytes | None) -> list[Burst]:
        if header is None:
            return []
        lead = len(header)
        return [Burst(self._addresses[header], len(datagram) - lead, datagram[lead:])]

    def _find(self, datagram: Buffer) -> bytes | None:
        """The header that a datagram begins with; C{None}, and counted, if it has none that we can use."""
        header = bytes(datagram[: _headerLength(datagram)])
        if header not in self._addresses:
            try:
                address, length = unpackHeader(datagram)
            except FragmentedError:
                self._counters.drop("SOCKS5 fragment")
                return None
            except (AddressError, TruncatedError):
                self._counters.drop("no SOCKS5 header")
                return None
            if len(self._addresses) >= MOST_HEADERS:
                self._addresses.clear()
            header = bytes(datagram[:length])
            self._addresses[header] = Address(normalHost(address.host), address.port)
        return header

    def of(self, address: Address) -> bytes:
        """
        The header that names an address.

        @raise AddressError: it can not be written.
        """
        header = self._headers.get(address)
        if header is None:
            if len(self._headers) >= MOST_HEADERS:
                self._headers.clear()
            header = self._headers[address] = packHeader(address)
        return header


def _burstsOf(address: Address, size: int, datagrams: list[bytes]) -> list[Burst]:
    """One burst of datagrams of one size, and one for each empty one, which no burst can hold."""
    whole = b"".join(datagrams)
    empty = [Burst(address, 0, b"")] * datagrams.count(b"")
    return [Burst(address, size, whole), *empty] if whole else empty


def _headerLength(payload: Buffer) -> int:
    """How long the header of a datagram is, going by its address type (RFC 1928 section 5)."""
    kind = payload[3] if len(payload) > 4 else 0
    return 10 if kind == 1 else 22 if kind == 4 else 7 + payload[4] if kind == 3 else 0


def _allBeginWith(header: bytes, size: int, data: bytes) -> bool:
    return all(data.startswith(header, place) for place in range(0, len(data), size))
