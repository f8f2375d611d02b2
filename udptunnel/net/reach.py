"""What the kernel knows of an address: is it this machine's own, or a broadcast?"""

from __future__ import annotations

import socket

from udptunnel.net.sockaddr import familyOf


def isOwn(host: str) -> bool:
    """
    Whether a numeric host is one of this machine's own addresses or a subnet's broadcast address.

    Connecting a UDP socket sends nothing, but makes the kernel look up the
    route. For a local address it chooses that address as the source, too; a
    broadcast it refuses as long as SO_BROADCAST is not set.
    """
    try:
        asked = socket.socket(familyOf(host), socket.SOCK_DGRAM)
    except OSError:
        # No descriptor is left to ask with: better refuse what may be ours.
        return True
    with asked:
        try:
            asked.connect((host, 9))
        except PermissionError:
            return True
        except OSError:
            return False
        return bool(asked.getsockname()[0] == host.partition("%")[0])
