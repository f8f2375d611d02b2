"""twistd udp-server."""

from __future__ import annotations

from twisted.application.service import MultiService

from udptunnel.config import ServerConfig
from udptunnel.net.packetpipe import MakePipe
from udptunnel.services.server import ServerService
from udptunnel.tap.common import RoleOptions, optionsFor, roleService

Options = optionsFor(
    "udp-server",
    ServerConfig,
    """Accepts links from udp-local, and sends the datagrams in them to their
targets. Each local source has an external port of its own.

Behind ss-server on the same machine:

    twistd -n udp-server

Allow one private network besides the internet:

    twistd -n udp-server --allow 10.1.0.0/16 --deny 10.1.99.0/24

With TLS, from other machines too, for users with a certificate:

    udptunnel pki init pki --name relay.example
    udptunnel pki add pki alice
    twistd -n udp-server --listen tcp:3456 --tls pki/server.pem --revoked pki/revoked

By way of another SOCKS5 server:

    twistd -n udp-server --egress socks5:127.0.0.1:1080

The same as IP packets, through a tun2socks in this process:

    twistd -n udp-server --egress tun2socks:127.0.0.1:1080
""",
)


def makeService(options: RoleOptions[ServerConfig], pipe: MakePipe | None = None) -> MultiService:
    """
    The service for a command line.

    @param pipe: an end of a L{joint<udptunnel.net.packetpipe.joint>}: datagrams
        leave there as packets, whatever C{--egress} says.
    """
    return roleService(lambda reactor: ServerService(options.config, reactor, pipe=pipe), options)
