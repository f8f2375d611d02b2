"""twistd proxy-controller."""

from __future__ import annotations

from twisted.application.service import MultiService

from udptunnel.config import ControllerConfig
from udptunnel.services.controller import ControllerService
from udptunnel.tap.common import RoleOptions, optionsFor, roleService

Options = optionsFor(
    "proxy-controller",
    ControllerConfig,
    """Makes a TUN, and leads the machine's packets through it when a client
asks for it over a Unix socket, in JSON. Linux only, and as root.

For the members of one group, with a TUN that alice may open:

    twistd -n proxy-controller --socket /run/udptunnel.sock --socket-group netdev --owner alice

What she may ask for then; the routes stay until the connection closes:

    {"action":"configureRouting","parameters":{"proxyIp":"203.0.113.5","routerIp":"10.0.85.1"}}
    {"action":"status"}
    {"action":"resetRouting","parameters":{}}
""",
)


def makeService(options: RoleOptions[ControllerConfig]) -> MultiService:
    """The service for a command line."""
    return roleService(lambda reactor: ControllerService(options.config, reactor), options)
