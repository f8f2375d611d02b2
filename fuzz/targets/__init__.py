"""
The targets, by name.

A target is a function that takes any bytes. It returns if all is well. A
property that does not hold is an C{AssertionError}; any other exception that
leaves it is one that the parser should not have raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fuzz.targets.access import accessAddress, accessName, accessRules
from fuzz.targets.config import localConfig, serverConfig
from fuzz.targets.l3 import l3Inward, l3Message, l3Outward
from fuzz.targets.links import localLink, localLinkUp, serverLink, serverLinkUp
from fuzz.targets.names import dnsQuestion
from fuzz.targets.packets import fragments, packet
from fuzz.targets.socks import socksClient, socksCredentials, socksHeader, socksServer
from fuzz.targets.tun import gateway, nat, stun, transparent, vnet
from fuzz.targets.wire import address, addressText, burst, frames, greeting, target

Target: TypeAlias = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "access-address": accessAddress,
    "access-name": accessName,
    "access-rules": accessRules,
    "address": address,
    "address-text": addressText,
    "burst": burst,
    "config-local": localConfig,
    "config-server": serverConfig,
    "dns-question": dnsQuestion,
    "fragments": fragments,
    "frames": frames,
    "gateway": gateway,
    "greeting": greeting,
    "l3-inward": l3Inward,
    "l3-message": l3Message,
    "l3-outward": l3Outward,
    "link-local": localLink,
    "link-local-up": localLinkUp,
    "link-server": serverLink,
    "link-server-up": serverLinkUp,
    "nat": nat,
    "packet": packet,
    "socks-client": socksClient,
    "socks-credentials": socksCredentials,
    "socks-header": socksHeader,
    "socks-server": socksServer,
    "stun": stun,
    "target": target,
    "transparent": transparent,
    "vnet": vnet,
}
"""Each target with the name that its corpus has, too."""
