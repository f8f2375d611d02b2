"""
Roles inside other programs: started by a function, told of by callbacks, stopped by a handle.

See docs/reference/api.md, and docs/howto/embed-twisted.md,
docs/howto/embed-asyncio.md and docs/howto/embed-thread.md for how to begin.
"""

from __future__ import annotations

from udptunnel.api.events import (
    BoundSocket,
    Event,
    Failed,
    LogLine,
    MappingsLost,
    Ready,
    SessionDown,
    SessionUp,
    Statistics,
    Stopped,
)
from udptunnel.api.handle import Handle
from udptunnel.api.roles import L3Handle, LocalHandle, PacketHandle, ServerHandle
from udptunnel.api.start import start_l3_tunnel, start_tun2socks, start_udp_local, start_udp_server

__all__ = [
    "BoundSocket",
    "Event",
    "Failed",
    "Handle",
    "L3Handle",
    "LocalHandle",
    "LogLine",
    "MappingsLost",
    "PacketHandle",
    "Ready",
    "ServerHandle",
    "SessionDown",
    "SessionUp",
    "Statistics",
    "Stopped",
    "start_l3_tunnel",
    "start_tun2socks",
    "start_udp_local",
    "start_udp_server",
]
