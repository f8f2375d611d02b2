"""twistd l3-tunnel."""

from __future__ import annotations

from twisted.application.service import MultiService

from udptunnel.config import L3Config
from udptunnel.services.l3 import L3Service
from udptunnel.tap.common import RoleOptions, optionsFor, roleService

Options = optionsFor(
    "l3-tunnel",
    L3Config,
    """Carries the IP packets between two networks. Both ends have the same key:

    udptunnel genkey >tunnel.key

The end that others can reach, with 11.11.11.0/24 behind veth0:

    twistd -n l3-tunnel --interface veth0 --capture 192.168.111.0/30 --local 0.0.0.0:50000 \\
        --key-file tunnel.key --setup

The end behind a NAT, with 192.168.111.0/30 behind enp6s0:

    twistd -n l3-tunnel --interface enp6s0 --capture 11.11.11.0/24 --peer 198.51.100.7:50000 \\
        --key-file tunnel.key --setup

The same where UDP is blocked, by a udp-server that can reach the other end:

    twistd -n l3-tunnel --interface enp6s0 --capture 11.11.11.0/24 --peer 127.0.0.1:50000 \\
        --key-file tunnel.key --setup --link tcp:127.0.0.1:3456
""",
)


def makeService(options: RoleOptions[L3Config]) -> MultiService:
    """The service for a command line."""
    return roleService(lambda reactor: L3Service(options.config, reactor), options)
