"""twistd udp-local."""

from __future__ import annotations

from twisted.application.service import MultiService

from udptunnel.config import LocalConfig
from udptunnel.services.local import LocalService
from udptunnel.tap.common import RoleOptions, optionsFor, roleService

Options = optionsFor(
    "udp-local",
    LocalConfig,
    """Takes UDP in, as a SOCKS5 server and from forwards, and carries it over
TCP to udp-server.

A SOCKS5 server at 127.0.0.1:1234, and udp-server behind ss-tunnel:

    twistd -n udp-local --server tcp:127.0.0.1:3456

DNS through the tunnel:

    twistd -n udp-local --forward 127.0.0.1:5353=9.9.9.9:53
    dig -p 5353 @127.0.0.1 example.org

Over TLS, with a certificate of our own:

    twistd -n udp-local --server tcp:relay.example:3456 --tls alice.pem

TCP and UDP of a tun2socks that knows one SOCKS5 server only:

    twistd -n udp-local --via 127.0.0.1:1080 --connect-via 127.0.0.1:1080 --server tcp:relay.example:3456
""",
)


def makeService(options: RoleOptions[LocalConfig]) -> MultiService:
    """The service for a command line."""
    return roleService(lambda reactor: LocalService(options.config, reactor), options)
