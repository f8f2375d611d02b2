"""What is known of an address: is it loopback, this machine's own, or a broadcast?"""

from __future__ import annotations

import ipaddress
import socket

from udptunnel.net.sockaddr import familyOf


def isOwn(host: str) -> bool:
    """
    Whether a numeric host is one of this machine's own addresses or a subnet's broadcast address.

    Connecting a UDP socket sends nothing, but makes the kernel look up the
    route. For a local address it chooses that address as the source, too; a
    broadcast it refuses as long as SO_BROADCAST is not set.

    @raise OSError: no descriptor is left to ask with.
    """
    with socket.socket(familyOf(host), socket.SOCK_DGRAM) as asked:
        try:
            asked.connect((host, 9))
        except PermissionError:
            return True
        except OSError:
            return False
        return bool(asked.getsockname()[0] == host.partition("%")[0])


def isLoopback(host: str) -> bool:
    """Whether a numeric host is reached from this machine only."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address in _LOOPBACK4 if address.version == 4 else address == _LOOPBACK6


def siteOf(host: str) -> str:
    """
    What counts as one source: an IPv4 address, or the network of 64 bits of an
    IPv6 address, for whoever has one of those has all of them.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    return (
        str(address)
        if address.version == 4 or address.is_loopback
        else str(ipaddress.ip_network((address, 64), strict=False))
    )


_LOOPBACK4 = ipaddress.ip_network("127.0.0.0/8")
_LOOPBACK6 = ipaddress.ip_address("::1")
