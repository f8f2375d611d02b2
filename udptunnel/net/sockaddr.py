"""Addresses as the kernel has them (struct sockaddr_in and sockaddr_in6), and as Python's sockets do."""

from __future__ import annotations

import socket
import struct

from udptunnel.wire.address import Address, normalHost

SOCKADDR_BYTES = {int(socket.AF_INET): 16, int(socket.AF_INET6): 28}

MOST_SOURCES = 16_384
"""Sources that are remembered by name before we start again: what strangers can fill is bounded, to about 4 MB."""

_IN = struct.Struct("=H")
_PORT = struct.Struct("!H")
_SCOPE = struct.Struct("=I")

MAPPED = "::ffff:"
"""What an IPv4 address looks like on a socket for both families."""


class SourceNames(dict[bytes, Address]):
    """Addresses by the bytes that the kernel uses for them."""

    def __missing__(self, raw: bytes) -> Address:
        if len(self) >= MOST_SOURCES:
            self.clear()
        address = self[raw] = _unpackSockaddr(raw)
        return address


def _unpackSockaddr(raw: bytes) -> Address:
    """
    Read C{family(2, native) port(2) address(4)}, or for IPv6 C{family port
    flowinfo(4) address(16) scope(4, native)}.
    """
    port = _PORT.unpack_from(raw, 2)[0]
    if len(raw) == SOCKADDR_BYTES[socket.AF_INET]:
        return Address(socket.inet_ntop(socket.AF_INET, raw[4:8]), port)
    host = normalHost(socket.inet_ntop(socket.AF_INET6, raw[8:24]))
    scope = _SCOPE.unpack_from(raw, 24)[0]
    return Address(f"{host}%{scope}" if scope else host, port)


def packSockaddr(family: int, to: tuple[str, int]) -> bytes:
    """The kernel's form of an address for a socket of this family; C{to} is numeric."""
    host, _, scope = to[0].partition("%")
    if family == socket.AF_INET:
        return _IN.pack(family) + _PORT.pack(to[1]) + socket.inet_pton(family, host) + bytes(8)
    raw = socket.inet_pton(family, host)
    return _IN.pack(family) + _PORT.pack(to[1]) + bytes(4) + raw + _SCOPE.pack(int(scope or 0))


class PythonNames(dict[tuple[str, int, int, int] | tuple[str, int], Address]):
    """Addresses by the tuples that Python's sockets use for them."""

    def __missing__(self, given: tuple[str, int, int, int] | tuple[str, int]) -> Address:
        if len(self) >= MOST_SOURCES:
            self.clear()
        address = self[given] = addressIn(given)
        return address


def addressIn(given: tuple[str, int, int, int] | tuple[str, int]) -> Address:
    """The address in a tuple that one of Python's sockets has given."""
    scope = given[3] if len(given) == 4 else 0
    host = normalHost(given[0].partition("%")[0])
    return Address(f"{host}%{scope}" if scope else host, given[1])


def familyOf(host: str) -> int:
    """The address family of a numeric host."""
    return int(socket.AF_INET6 if ":" in host else socket.AF_INET)
