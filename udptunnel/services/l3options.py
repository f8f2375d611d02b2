"""What the options of l3-tunnel come to, beyond what each says by itself."""

from __future__ import annotations

import base64
import binascii
import socket

from udptunnel.config import L3Config, LocalConfig
from udptunnel.core.l3policy import Prefixes
from udptunnel.errors import ConfigError
from udptunnel.net.sockaddr import familyOf
from udptunnel.services.local import tcpTarget
from udptunnel.services.proxies import resolved
from udptunnel.wire.address import Address
from udptunnel.wire.ip import packHost
from udptunnel.wire.l3 import KEY_BYTES

LEAST_MTU = 68
"""What every path carries (RFC 791 section 3.2)."""


def check(config: L3Config) -> None:
    """
    See that nothing is missing.

    @raise ConfigError: something is, or what is given makes no sense together.
    """
    if config.interface is None:
        raise ConfigError("--interface NAME is missing: where do packets come from?")
    if not config.capture:
        raise ConfigError("--capture CIDR is missing: what is behind the other end?")
    if config.keyFile is None:
        raise ConfigError("--key-file FILE is missing: udptunnel genkey makes a key, which both ends need")
    if 0 < config.mtu < LEAST_MTU:
        raise ConfigError(f"--mtu {config.mtu}: expected 0, or at least {LEAST_MTU}")
    if config.link and config.peer is None:
        raise ConfigError("--link: give --peer HOST:PORT, too: where udp-server finds the other end")
    if config.local is None and config.peer is None:
        raise ConfigError("neither --local ADDRESS:PORT nor --peer HOST:PORT is given: one end must know the other")
    if config.local is not None and not config.local.port and config.peer is None:
        raise ConfigError(f"--local {config.local}: without --peer the other end must know the port: give one")


def carriedInItself(config: L3Config, peer: Address | None) -> str:
    """
    What is to be said if messages go to a network that is captured, and so would be carried in messages; empty if not.

    @param peer: the other end, in digits unless there are links; the names of udp-servers are looked up, which blocks.
    """
    hosts = [each for server in config.link for each in _serverOf(server)]
    if not config.link and peer is not None:
        hosts.append(("--peer", peer))
    for option, address in hosts:
        for network in config.capture:
            if packHost(address.host) in Prefixes((network,)):
                return f"{option} {address} is in --capture {network}, and what goes to it would be carried to it"
    return ""


def _serverOf(server: str) -> list[tuple[str, Address]]:
    """A udp-server in digits, with its option; nothing if it has no address, or nobody knows it yet."""
    try:
        return [("--link", resolved("--link", tcpTarget(server)))]
    except (ValueError, ConfigError):
        return []


def readKey(name: str) -> bytes:
    """
    The key in a file.

    @raise ConfigError: it can not be read, or holds no key.
    """
    try:
        with open(name, encoding="ascii") as file:
            key = base64.b64decode(file.read().strip(), validate=True)
    except OSError as error:
        raise ConfigError(f"--key-file {name}: {error.strerror}") from error
    except (UnicodeDecodeError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"--key-file {name}: expected {KEY_BYTES} bytes in base64, as udptunnel genkey makes them")
    return key


def anyPort(peer: Address | None) -> Address:
    """Any port of this machine from which the other end can be reached."""
    isSix = peer is not None and familyOf(peer.host) == socket.AF_INET6
    return Address("::" if isSix else "0.0.0.0", 0)


def linkConfig(config: L3Config) -> LocalConfig:
    """The udp-local that carries messages to udp-server, and does nothing else."""
    return LocalConfig(
        socks="none",
        server=config.link,
        tls=config.tls,
        tlsTrust=config.tlsTrust,
        tlsName=config.tlsName,
        secret=config.secret,
        offload=config.offload,
        rest=config.rest,
    )
