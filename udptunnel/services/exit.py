"""
A tun2socks that udp-server starts and owns: C{--egress tun2socks:HOST:PORT}.

What leaves udp-server goes as packets through a joint, without a file, to a
tun2socks in the same process, and from there to a SOCKS5 server.
"""

from __future__ import annotations

from typing import Any

from udptunnel.config import ServerConfig, Tun2socksConfig
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.packetpipe import MakePipe, joint
from udptunnel.services.tun2socks import Tun2socksService

IDLE_SECONDS = 300.0
"""How long tun2socks keeps an association. It can not see when that of udp-server ends, so this is long enough."""


def ownTun2socks(config: ServerConfig, reactor: Any) -> tuple[MakePipe, Tun2socksService]:
    """
    What udp-server's packets leave by, and the tun2socks at the other end, not started.

    @param config: with C{egress.tun2socks}.
    @raise ConfigError: a name or a file can not be found, or there are no such sockets here.
    """
    try:
        near, far = joint()
    except ListenError as error:
        raise ConfigError(f"--egress {config.egress}: {error}") from error
    return near, Tun2socksService(tun2socksConfig(config), reactor, pipe=far)


def tun2socksConfig(config: ServerConfig) -> Tun2socksConfig:
    """The configuration of the tun2socks that a udp-server's options ask for: datagrams alone."""
    return Tun2socksConfig(
        socksServerAddr=config.egress.tun2socks,
        username=config.egressUser,
        passwordFile=config.egressPasswordFile,
        udpAddress=config.egressUdpAddress,
        stack="none",
        udpIdle=IDLE_SECONDS,
        offload=config.offload,
        rest=config.rest,
    )
