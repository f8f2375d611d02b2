"""
The headers of SOCKS5's UDP (RFC 1928 section 7): taken off bursts, and made for them.

A header costs far more to read and to write than to compare. Flows use the same
ones again and again, so they are remembered.
"""

from __future__ import annotations

from udptunnel.core.counters import Counters
from udptunnel.errors import AddressError, FragmentedError, TruncatedError
from udptunnel.wire.address import Address, normalHost
from udptunnel.wire.burst import Burst, split
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
        # What is joined from views is copied once.
        view = memoryview(payload)
        header = self._find(view[:size])
        if header is not None and _allBeginWith(header, size, view):
            return _stripped(self._addresses[header], len(header), size, view)
        bursts = self._unwrapOne(view[:size], header)
        for datagram in split(size, view[size:]):
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


def _headerLength(payload: Buffer) -> int:
    """How long the header of a datagram is, going by its address type (RFC 1928 section 5)."""
    kind = payload[3] if len(payload) > 4 else 0
    return 10 if kind == 1 else 22 if kind == 4 else 7 + payload[4] if kind == 3 else 0


def _allBeginWith(header: bytes, size: int, view: memoryview) -> bool:
    places = range(0, len(view), size)
    return b"".join([view[place : place + len(header)] for place in places]) == header * len(places)


def _stripped(address: Address, lead: int, size: int, view: memoryview) -> list[Burst]:
    """One burst of the datagrams in a burst, without headers; and one for each empty one, which no burst can hold."""
    places = range(0, len(view), size)
    whole = b"".join([view[place + lead : place + size] for place in places])
    empty = len(places) if size == lead else len(view) - places[-1] == lead
    bursts = [Burst(address, size - lead, whole)] if whole else []
    return bursts + [Burst(address, 0, b"")] * empty
