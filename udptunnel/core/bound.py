"""
Where a SOCKS5 server takes datagrams: what it says, and what it must mean.

RFC 1928 section 6 has BND.ADDR and BND.PORT for that. The port is right nearly
always. The address often is not: servers say where they are bound (C{0.0.0.0},
C{::}), what they are called inside (a container's or a NAT's private address),
or C{127.0.0.1} to the whole world. Then it is the address at which the server
itself was reached.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from udptunnel.errors import SocksError
from udptunnel.wire.address import Address, IpAddress, normalHost, parseHost

_PRIVATE: tuple[IPv4Network | IPv6Network, ...] = tuple(
    map(ip_network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
"""RFC 1918, RFC 6598 and RFC 4193."""


def relayOf(bound: Address, server: Address, override: Address | None = None, option: str = "--udp-address") -> Address:
    """
    Where to send datagrams for a server, its host in digits.

    @param bound: what the server answered to UDP ASSOCIATE.
    @param server: where the server was reached.
    @param override: what the user says; with port 0 only the host.
    @param option: which one says so.
    @raise SocksError: that can not be known. The text says what would help.
    """
    port = (override.port if override is not None else 0) or bound.port
    if not port:
        raise SocksError(f"it names no port for datagrams (BND.PORT is 0): give {option} HOST:PORT")
    if override is not None:
        return Address(normalHost(override.host), port)
    host = parseHost(bound.host)
    if host is None:
        raise SocksError(f"it names {bound} for datagrams, not an address in digits: give {option} HOST:0")
    return Address(str(host) if _isMeant(host, server.host) else server.host, port)


def _isMeant(bound: IpAddress, server: str) -> bool:
    """Whether an address can be the one to send to, if the server was reached at another one."""
    reached = parseHost(server)
    if reached is None or bound.version != reached.version:
        return False
    if bound.is_loopback:
        return reached.is_loopback
    if bound.is_unspecified or bound.is_multicast or bound.is_link_local or bound.is_reserved:
        return False
    return not _isPrivate(bound) or _isPrivate(reached) or reached.is_loopback


def _isPrivate(host: IpAddress) -> bool:
    return any(host in each for each in _PRIVATE)
