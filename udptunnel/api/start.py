"""The functions that start roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from udptunnel.api.events import Callback, DatagramsReceived, PacketsReceived
from udptunnel.api.handle import Handle
from udptunnel.api.home import Home
from udptunnel.api.logs import LogTap
from udptunnel.api.roles import L3Handle, LocalHandle, PacketHandle, ServerHandle
from udptunnel.config import L3Config, LocalConfig, ServerConfig, Tun2socksConfig
from udptunnel.errors import ConfigError
from udptunnel.services.l3 import L3Service
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.services.tun2socks import Tun2socksService, throughSession, withAddresses

AnyHandle = TypeVar("AnyHandle", bound=Handle)

LOG = "info"
"""The least level of log lines that callbacks get if nothing else is said."""


def start_udp_local(
    profile: LocalConfig,
    callback: Callback | None = None,
    data: Any = None,
    *,
    datagramsReceived: DatagramsReceived | None = None,
    statistics: float = 0.0,
    log: str | None = LOG,
    reactor: Any = None,
) -> LocalHandle:
    """
    Start udp-local. It may be called from any thread, and returns when all sockets are open.

    @param profile: what C{twistd udp-local} has as options. C{socks="none"} without C{forward} opens no socket.
    @param callback: called with each L{event<udptunnel.api.events.Event>} and C{data}, in the reactor's thread.
    @param data: anything.
    @param datagramsReceived: called with answers to what
        L{LocalHandle.send<udptunnel.api.roles.LocalHandle.send>} has sent.
    @param statistics: seconds between two L{Statistics<udptunnel.api.events.Statistics>}; 0 for none.
    @param log: the least level of log lines that C{callback} gets, of L{LEVELS<udptunnel.api.logs.LEVELS>}; C{None}
        for none.
    @param reactor: the program's own, which may run later. If it is not given, that of the process, which runs in a
        thread in the background if it does not run already.
    @raise ConfigError: the profile is wrong.
    @raise ListenError: a socket can not be opened. Then nothing is open.
    """
    _require(profile, LocalConfig)
    home = Home(reactor)
    handle = LocalHandle(home, callback, data, datagramsReceived)
    return _begin(home, handle, lambda reactor: LocalService(profile, reactor), profile, statistics, log)


def start_udp_server(
    profile: ServerConfig,
    callback: Callback | None = None,
    data: Any = None,
    *,
    statistics: float = 0.0,
    log: str | None = LOG,
    reactor: Any = None,
) -> ServerHandle:
    """
    Start udp-server. It may be called from any thread, and returns when all sockets are open.

    The parameters are those of L{start_udp_local}.

    @raise ConfigError: the profile is wrong.
    @raise ListenError: a socket can not be opened. Then nothing is open.
    """
    _require(profile, ServerConfig)
    home = Home(reactor)
    handle = ServerHandle(home, callback, data)
    return _begin(home, handle, lambda reactor: ServerService(profile, reactor), profile, statistics, log)


def start_tun2socks(
    profile: Tun2socksConfig,
    callback: Callback | None = None,
    data: Any = None,
    *,
    packetsReceived: PacketsReceived | None = None,
    local: LocalHandle | None = None,
    statistics: float = 0.0,
    log: str | None = LOG,
    reactor: Any = None,
) -> PacketHandle:
    """
    Start tun2socks. It may be called from any thread, and returns when the TUN is open, if there is one.

    The other parameters are those of L{start_udp_local}. Names of SOCKS5 servers are looked up once, in the calling
    thread: if that is the reactor's, all roles wait.

    @param profile: what C{twistd tun2socks} has as options. C{tunFd} stays the caller's, who closes it whenever he
        likes: the role uses another descriptor for the same TUN. Neither blocks then.
    @param packetsReceived: packets come by L{PacketHandle.sendPackets<udptunnel.api.roles.PacketHandle.sendPackets>}
        then, and go to this, none longer than the profile's C{mtu}. The profile names no TUN and no pipe. TCP needs
        the stack C{netns}, which there is on Linux only; elsewhere, or with C{stack="none"}, UDP alone is carried.
    @param local: UDP goes into its session, and to no SOCKS5 server. Stop it after this.
    @raise ConfigError: the profile is wrong.
    @raise ListenError: a TUN can not be opened, or no stack works. Then nothing is open.
    """
    _require(profile, Tun2socksConfig)
    home = Home(reactor)
    handle = PacketHandle(home, callback, data, packetsReceived)
    # Names are looked up here if that keeps nobody else waiting.
    known = withAddresses(profile) if not home.inside else None

    def make(reactor: Any) -> Tun2socksService:
        udp = throughSession(local.service) if local is not None else None
        if packetsReceived is None:
            return Tun2socksService(profile, reactor, udp=udp, lent=True, known=known)
        pipe = handle.makePipe
        return Tun2socksService(profile, reactor, udp=udp, pipe=pipe, longest=profile.mtu, known=known)

    return _begin(home, handle, make, profile, statistics, log)


def start_l3_tunnel(
    profile: L3Config,
    callback: Callback | None = None,
    data: Any = None,
    *,
    statistics: float = 0.0,
    log: str | None = LOG,
    reactor: Any = None,
) -> L3Handle:
    """
    Start l3-tunnel. It may be called from any thread, and returns when everything is open. Linux only.

    The parameters are those of L{start_udp_local}.

    @raise ConfigError: the profile is wrong.
    @raise ListenError: something can not be opened. Then nothing is open.
    """
    _require(profile, L3Config)
    home = Home(reactor)
    handle = L3Handle(home, callback, data)
    return _begin(home, handle, lambda reactor: L3Service(profile, reactor), profile, statistics, log)


def _require(profile: object, kind: type[Any]) -> None:
    if not isinstance(profile, kind):
        raise ConfigError(f"profile {profile!r}: expected a {kind.__name__}")


def _begin(
    home: Home, handle: AnyHandle, make: Callable[[Any], Any], profile: Any, statistics: float, log: str | None
) -> AnyHandle:
    tap = LogTap(profile, log, home.reactor, handle.logged) if log is not None else None
    try:
        home.call(handle.begin, make, statistics, tap)
    except BaseException:
        handle.stop()
        raise
    return handle
