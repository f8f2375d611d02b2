"""
Addresses: a host and a port, as text and as SOCKS5 writes them.

TARGET frames, SOCKS5 messages, the command line and the logs all mean the
same L{Address}. On the wire it is what RFC 1928 section 5 says, in network byte
order::

    ATYP(1)  host                  port(2)
      1      4 bytes, IPv4
      3      length(1) name
      4      16 bytes, IPv6
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple, TypeAlias

from udptunnel.errors import AddressError, TruncatedError
from udptunnel.wire.frame import Buffer

IpAddress: TypeAlias = IPv4Address | IPv6Address

IPV4, NAME, IPV6 = 1, 3, 4
"""The address types (ATYP) of RFC 1928 section 5."""

LARGEST_PORT = 65535
LARGEST_ADDRESS = 1 + 1 + 255 + 2
"""Bytes of the longest address on the wire, one with a name."""

_PORT = Struct("!H")
_DECIMAL_PORT = re.compile("0|[1-9][0-9]{0,4}")

# Printable ASCII. Without the four that stand around hosts in texts no name passes for a literal with something around.
_NAME = re.compile(r"(?:(?![][:%])[!-~]){1,255}")


class Address(NamedTuple):
    """
    Where a datagram goes to or comes from.

    It equals, and hashes like, the tuple C{(host, port)} that Python's sockets
    use for IPv4.
    """

    host: str
    """A dotted IPv4 address, an IPv6 address as RFC 5952 writes it (maybe with C{%zone}), or a name."""

    port: int
    """0 to 65,535."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        Read HOST:PORT, the inverse of C{str}.

        @raise AddressError: the text is something else.
        """
        host, _, port = text.rpartition(":")
        try:
            return cls(_parseHostText(host), _parsePort(port))
        except AddressError as error:
            raise AddressError(
                f"{text!r} is not an address: {error}; expected HOST:PORT,"
                f" an IPv6 address in brackets, a port from 0 to {LARGEST_PORT}"
            ) from None

    @property
    def isName(self) -> bool:
        """Whether the host must be looked up before anything can be sent to it."""
        return parseHost(self.host) is None


def _parseHostText(text: str) -> str:
    if not text.startswith("["):
        return _checkName(text)
    host = text[1:-1]
    if not text.endswith("]") or ":" not in host or parseHost(host) is None:
        raise AddressError("only an IPv6 address stands in brackets")
    return normalHost(host)


def _parsePort(text: str) -> int:
    if not _DECIMAL_PORT.fullmatch(text) or int(text) > LARGEST_PORT:
        raise AddressError(f"{text!r} is not a port")
    return int(text)


def _checkName(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise AddressError(f"{name!r} is not a host name of 1 to 255 printable ASCII characters without : % [ ]")
    return name


def parseHost(host: str) -> IpAddress | None:
    """
    The number behind a literal, or C{None} if the host is a name.

    An IPv4-mapped IPv6 address (C{::ffff:a.b.c.d}) is the IPv4 address in it.
    Forms that only C{inet_aton} understands, such as C{127.1}, are names.
    """
    try:
        return _parseIpv6(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        return None


def _parseIpv6(host: str) -> IpAddress | None:
    _, percent, zone = host.partition("%")
    if percent and not _NAME.fullmatch(zone):
        return None
    return _unmap(IPv6Address(host))


def _unmap(ip: IPv6Address) -> IpAddress:
    number = int(ip)
    return IPv4Address(number & 0xFFFFFFFF) if number >> 32 == 0xFFFF else ip


def normalHost(host: str) -> str:
    """
    The one way to write a host: IPv6 in lower case and compressed, IPv4-mapped
    IPv6 as IPv4. A name stays as it is.
    """
    if ":" not in host:
        return host
    ip = parseHost(host)
    return host if ip is None else str(ip)


def packAddress(address: Address) -> bytes:
    """
    An address as RFC 1928 section 5 writes it: C{ATYP(1) host port(2)}.

    A zone means something on one machine only, and is left out.

    @raise AddressError: the host is neither a literal nor a name, or the port
        is out of range.
    """
    host, port = address
    if not 0 <= port <= LARGEST_PORT:
        raise AddressError(f"a port is 0 to {LARGEST_PORT}, not {port}")
    return _packHost(host) + _PORT.pack(port)


def _packHost(host: str) -> bytes:
    ip = parseHost(host)
    if ip is None:
        name = _checkName(host).encode("ascii")
        return bytes((NAME, len(name))) + name
    return bytes((IPV4 if ip.version == 4 else IPV6,)) + ip.packed


def unpackAddress(buffer: Buffer, start: int = 0) -> tuple[Address, int]:
    """
    The address that begins at C{start}, and the offset of what follows it.

    IPv4-mapped IPv6 becomes IPv4, and a literal that was sent as a name
    becomes a literal: what looks like an address is judged as one.

    @raise TruncatedError: the buffer ends inside the address.
    @raise AddressError: the type is unknown, or the name is empty or holds
        other than printable ASCII, or a zone.
    """
    kind = _take(buffer, start, 1)[0]
    size, start = _measure(kind, buffer, start + 1)
    raw = _take(buffer, start, size + _PORT.size)
    return Address(_unpackHost(kind, raw[:size]), _PORT.unpack_from(raw, size)[0]), start + len(raw)


def _take(buffer: Buffer, start: int, count: int) -> bytes:
    taken = bytes(buffer[start : start + count])
    if len(taken) < count:
        raise TruncatedError("an address is cut short")
    return taken


def _measure(kind: int, buffer: Buffer, start: int) -> tuple[int, int]:
    """How many bytes a host takes, and where they begin."""
    if kind == IPV4:
        return 4, start
    if kind == IPV6:
        return 16, start
    if kind != NAME:
        raise AddressError(f"an address has type {IPV4}, {NAME} or {IPV6}, not {kind}")
    size = _take(buffer, start, 1)[0]
    if not size:
        raise AddressError("a name of no bytes")
    return size, start + 1


def _unpackHost(kind: int, raw: bytes) -> str:
    if kind == IPV4:
        return "{}.{}.{}.{}".format(*raw)
    if kind == IPV6:
        return str(_unmap(IPv6Address(raw)))
    return _unpackName(raw)


def _unpackName(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise AddressError(f"{raw!r} is not a name in ASCII") from None
    if "%" not in name and parseHost(name) is not None:
        return normalHost(name)
    return _checkName(name)
