"""twistd tun2socks."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService

from udptunnel.config import Tun2socksConfig
from udptunnel.net.packetpipe import MakePipe
from udptunnel.services.tun2socks import Tun2socksService, throughSession
from udptunnel.tap.common import RoleOptions, optionsFor, roleService

Options = optionsFor(
    "tun2socks",
    Tun2socksConfig,
    """Sends the TCP that comes out of a TUN to one SOCKS5 server, and the UDP to
the same one or another.

TCP and UDP of one network, through a SOCKS5 server:

    twistd -n tun2socks --tundev tun0 --socks-server-addr 10.0.0.1:1080 --route 198.51.100.0/24

All that this machine sends, TCP through ss-local and UDP through udp-local.
Their own packets, to 203.0.113.5, do not come back into the TUN:

    twistd -n tun2socks --tundev tun0 --auto-route --bypass 203.0.113.5 --dns 9.9.9.9 \\
        --socks-server-addr 127.0.0.1:1080 --udp-socks-server-addr 127.0.0.1:1234

What udp-server --egress pipe:/run/udptunnel/exit.pipe sends:

    twistd -n tun2socks --pipe /run/udptunnel/exit.pipe --socks-server-addr 127.0.0.1:1080
""",
)


def makeService(options: RoleOptions[Tun2socksConfig], local: Any = None, pipe: MakePipe | None = None) -> MultiService:
    """
    The service for a command line.

    @param local: what C{makeService} of udp-local has made in the same process:
        UDP goes into its session then, and to no SOCKS5 server.
    @param pipe: an end of a L{joint<udptunnel.net.packetpipe.joint>}, where
        packets come from instead of a TUN.
    """
    udp = throughSession(local.role) if local is not None else None
    return roleService(lambda reactor: Tun2socksService(options.config, reactor, udp=udp, pipe=pipe), options)
