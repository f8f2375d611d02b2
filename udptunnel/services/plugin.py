"""
Plugins of shadowsocks, without shadowsocks: they carry our links (SIP003).

A plugin is a program that finds four addresses in its environment. Beside
udp-local it listens at a port of loopback, where we connect to, and connects
to the plugin of the other side. That one listens where udp-server would, and
connects to udp-server, which listens at a port of loopback in its place::

    udp-local - plugin ======== plugin - udp-server
"""

from __future__ import annotations

import os
import re
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from udptunnel.config import LocalConfig, ServerConfig
from udptunnel.errors import ConfigError
from udptunnel.net.guard import Guard
from udptunnel.net.reach import isLoopback
from udptunnel.net.socks5client import addressOf
from udptunnel.services.carrier import Carrier, Program
from udptunnel.services.listening import requireAuthentication
from udptunnel.wire.address import Address

LOOPBACK = "127.0.0.1"

BEHIND = f"tcp:0:interface={LOOPBACK}"
"""Where udp-server listens for its plugin."""

_EVERYWHERE = {"tcp": "0.0.0.0", "tcp6": "::"}


@implementer(IStreamClientEndpoint)
class LocalPlugin:
    """
    A plugin that leads to one udp-server, and an endpoint that leads to the plugin.

    @ivar carrier: the plugin's process.
    """

    def __init__(self, reactor: Any, config: LocalConfig, remote: Address, guard: Guard) -> None:
        """
        @param remote: the plugin of the other side.
        """
        self.carrier = Carrier(reactor, _program(config), guard, self._environment)
        self._reactor = reactor
        self._options = config.pluginOpts
        self._remote = remote
        self._port = 0

    def _environment(self) -> dict[str, str]:
        # Each start has a port of its own: the last one may be somebody else's by now.
        self._port = _freePort()
        return environmentOf(self._remote, Address(LOOPBACK, self._port), self._options)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to the plugin, which then connects to the other side."""
        connecting: Deferred[IProtocol] = TCP4ClientEndpoint(self._reactor, LOOPBACK, self._port).connect(
            protocolFactory
        )
        return connecting


class ServerPlugin:
    """
    A plugin that listens in the place of udp-server.

    @ivar carrier: the plugin's process.
    @ivar listen: where it listens.
    """

    def __init__(self, reactor: Any, config: ServerConfig, listen: str, guard: Guard) -> None:
        """
        @param listen: the endpoint string that udp-server was to listen at.
        @raise ConfigError: that is no TCP port.
        """
        self.carrier = Carrier(reactor, _program(config), guard, self._environment)
        self.listen = _listenAddress(listen)
        self._text = listen
        self._options = config.pluginOpts
        self._behind: IAddress | None = None

    def start(self, behind: IAddress | None, allowed: bool, advice: str) -> None:
        """
        Start it.

        @param behind: where udp-server listens.
        @param allowed: whether others than this machine may come in.
        @param advice: what to do if they may not.
        @raise ListenError: there is no such program, or others could come in although they may not.
        """
        requireAuthentication(isLoopback(self.listen.host), allowed, f"--listen {self._text}", advice)
        self._behind = behind
        self.carrier.startService()

    def _environment(self) -> dict[str, str]:
        return environmentOf(self.listen, addressOf(self._behind), self._options)


def environmentOf(remote: Address, local: Address, options: str | None) -> dict[str, str]:
    """What a plugin finds in its environment (SIP003)."""
    return {
        "SS_REMOTE_HOST": remote.host,
        "SS_REMOTE_PORT": str(remote.port),
        "SS_LOCAL_HOST": local.host,
        "SS_LOCAL_PORT": str(local.port),
        **({"SS_PLUGIN_OPTIONS": options} if options is not None else {}),
    }


def requirePlugin(config: LocalConfig | ServerConfig) -> bool:
    """
    Whether there is to be a plugin.

    @raise ConfigError: there are options for one, but there is none.
    """
    if config.plugin is None and config.pluginOpts is not None:
        raise ConfigError(f"--plugin-opts {config.pluginOpts}: there is no --plugin to have them")
    return config.plugin is not None


def _program(config: LocalConfig | ServerConfig) -> Program:
    plugin = config.plugin or ""
    return Program(os.path.basename(plugin), (plugin,), f"--plugin {plugin}")


def _listenAddress(text: str) -> Address:
    """
    Where an endpoint string would listen.

    @raise ConfigError: a plugin can not listen there.
    """
    kind, *parts = (part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text))
    port = parts[0].removeprefix("port=") if parts else ""
    host = parts[1].removeprefix("interface=") if len(parts) > 1 else _EVERYWHERE.get(kind, "")
    plain = len(parts) == 1 or (len(parts) == 2 and parts[1].startswith("interface="))
    if kind not in _EVERYWHERE or not plain or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen {text}: with --plugin it must be tcp:PORT or tcp:PORT:interface=HOST")
    return Address(host, int(port))


def _freePort() -> int:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        return int(taken.getsockname()[1])
