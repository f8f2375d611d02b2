"""
The Python side of the C library: turns calls of C into calls of L{udptunnel.api}, and its callbacks into those of C.

cffi calls the functions with pointers and numbers. Each returns an error
number, and leaves the reason in a buffer of the caller's thread. Handles are
numbers that look like pointers: one that is used after its role is gone is
found out, and no other role ever has it.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.logger import Logger

from udptunnel.api import (
    Failed,
    LogLine,
    MappingsLost,
    Ready,
    SessionDown,
    SessionUp,
    Statistics,
    Stopped,
    start_l3_tunnel,
    start_tun2socks,
    start_udp_local,
    start_udp_server,
)
from udptunnel.api.handle import Handle
from udptunnel.api.roles import LocalHandle, PacketHandle
from udptunnel.config import L3Config, LocalConfig, ServerConfig, Tun2socksConfig, fieldOf, fill
from udptunnel.errors import AddressError, ConfigError, ListenError, TunnelError
from udptunnel.wire.address import Address

OK, PROFILE, LISTEN, HANDLE, ARGUMENT, FULL, PYTHON, OTHER = range(0, -8, -1)
"""The errors of C{udptunnel.h}."""

KINDS = {
    kind: number
    for number, kind in enumerate(
        (Ready, SessionUp, SessionDown, MappingsLost, Statistics, LogLine, Failed, Stopped), 1
    )
}
LEVELS = None, "debug", "info", "warn", "error", "critical"
"""The numbers of C{udptunnel.h} for events, and for levels of log lines."""

WHY_BYTES = 1024
"""Room for the reason why a call has failed."""

MOST_HOSTS = 4096
"""Hosts whose texts are kept in the form that C has them in."""

UNKNOWN = "there is no such role, or it was stopped, or it can not do that"

_log = Logger()


class HandleError(TunnelError):
    """There is no such role, or it can not do that."""


class ArgumentError(TunnelError):
    """An argument is not what it must be."""


_ERRORS: tuple[tuple[type[Exception], int], ...] = (
    (HandleError, HANDLE),
    (ListenError, LISTEN),
    (ArgumentError, ARGUMENT),
    (AddressError, ARGUMENT),
    (ConfigError, PROFILE),
    (ValueError, ARGUMENT),
)


class Bridge:
    """
    What C calls.

    @ivar roles: those whose end was not told yet, by the number that is their handle.
    """

    def __init__(self, ffi: Any) -> None:
        """
        @param ffi: that of the library, which knows the structs of C{udptunnel.h}.
        """
        self.ffi = ffi
        self.roles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        self._stopping: set[int] = set()
        self._turn = threading.Lock()

    def define(self) -> None:
        """Let C call the functions from now on."""
        for name, function in (
            ("start_udp_local", self.startLocal),
            ("start_udp_server", self.startServer),
            ("start_tun2socks", self.startTun2socks),
            ("start_l3_tunnel", self.startL3),
            ("stop", self.stop),
            ("send", self.send),
            ("send_packets", self.sendPackets),
            ("close_source", self.closeSource),
            ("get_stats", self.tellStats),
            ("report", self.report),
        ):
            self.ffi.def_extern(f"bridge_{name}", error=OTHER)(self._guarded(function))

    def _guarded(self, function: Callable[..., int | None]) -> Callable[..., int]:
        """A function that returns errors instead of raising them."""

        def call(*arguments: Any) -> int:
            try:
                return function(*arguments[:-1]) or OK
            except Exception as error:
                number = next((number for kind, number in _ERRORS if isinstance(error, kind)), OTHER)
                if number == OTHER:
                    _log.failure("a call from C has failed")
                self._say(arguments[-1], str(error) or type(error).__name__)
                return number

        return call

    def _say(self, why: Any, text: str) -> None:
        cut = text.encode(errors="replace")[: WHY_BYTES - 1].replace(b"\0", b"?") + b"\0"
        self.ffi.memmove(why, cut, len(cut))

    def _text(self, pointer: Any) -> str | None:
        return None if pointer == self.ffi.NULL else self.ffi.string(pointer).decode()

    # -- beginning

    def startLocal(self, profile: Any, callbacks: Any, data: Any, handle: Any) -> None:
        """udp-local."""
        fields = "server", "socks", "forward", "via", "connectVia", "secret", "tls", "tlsTrust"
        names = "server", "socks", "forward", "via", "connect_via", "secret", "tls", "tls_trust"
        texts = self._texts(LocalConfig, profile, dict(zip(fields, names, strict=True)))
        config = fill(LocalConfig, texts)
        told = _Told(self, callbacks, data)
        self._begin(told, handle, start_udp_local, config, datagramsReceived=told.datagramsReceived)

    def startServer(self, profile: Any, callbacks: Any, data: Any, handle: Any) -> None:
        """udp-server."""
        names = {name: name for name in ("listen", "egress", "allow", "deny", "secrets", "tls")}
        config = fill(ServerConfig, self._texts(ServerConfig, profile, names))
        self._begin(_Told(self, callbacks, data), handle, start_udp_server, config)

    def startTun2socks(self, profile: Any, callbacks: Any, data: Any, handle: Any) -> None:
        """tun2socks."""
        fields = "tundev", "socksServerAddr", "udpSocksServerAddr", "stack"
        names = "tundev", "socks_server_addr", "udp_socks_server_addr", "stack"
        texts = self._texts(Tun2socksConfig, profile, dict(zip(fields, names, strict=True)))
        if profile.tun_fd >= 0:
            texts["tunFd"] = str(profile.tun_fd)
        if profile.mtu:
            texts["mtu"] = str(profile.mtu)
        local = self._find(profile.local, LocalHandle) if profile.local != self.ffi.NULL else None
        config = fill(Tun2socksConfig, texts)
        told = _Told(self, callbacks, data)
        received = told.packetsReceived if callbacks.packets_received != self.ffi.NULL else None
        self._begin(told, handle, start_tun2socks, config, packetsReceived=received, local=local)

    def startL3(self, profile: Any, callbacks: Any, data: Any, handle: Any) -> None:
        """l3-tunnel."""
        names = {name: name for name in ("interface", "capture", "local", "peer", "link")} | {"keyFile": "key_file"}
        config = fill(L3Config, self._texts(L3Config, profile, names))
        self._begin(_Told(self, callbacks, data), handle, start_l3_tunnel, config)

    def _texts(self, kind: type[Any], profile: Any, names: dict[str, str]) -> dict[str, Any]:
        """What a profile says, as a command line would have it."""
        texts: dict[str, Any] = {}
        for field, name in names.items():
            self._add(kind, texts, field, self._text(getattr(profile, name)))
        for place in range(profile.option_count):
            option = profile.options[place]
            name = self._text(option.name) or ""
            self._add(kind, texts, fieldOf(kind, name), self._text(option.value), given=True)
        return texts

    def _add(self, kind: type[Any], texts: dict[str, Any], field: str, text: str | None, given: bool = False) -> None:
        default = kind.__dataclass_fields__[field].default
        if isinstance(default, bool):
            if text is not None:
                raise ConfigError(f"option {field} takes no value, but has {text!r}: leave it out, or give NULL")
            texts[field] = True
        elif text is None and given:
            raise ConfigError(f"option {field} needs a value")
        elif text is not None and isinstance(default, tuple):
            texts.setdefault(field, []).append(text)
        elif text is not None:
            texts[field] = text

    def _begin(self, told: _Told, handle: Any, start: Callable[..., Any], config: Any, **more: Any) -> None:
        told.number = next(self._numbers)
        handle[0] = self.ffi.cast("udptunnel *", told.number)
        try:
            start(config, told.happened, statistics=told.seconds, log=told.log, **more)
        except BaseException:
            handle[0] = self.ffi.NULL
            raise

    def _find(self, handle: Any, kind: type[Any]) -> Any:
        number = self._numberOf(handle)
        role = self.roles.get(number)
        if not isinstance(role, kind) or number in self._stopping:
            raise HandleError(UNKNOWN)
        return role

    def _numberOf(self, handle: Any) -> int:
        return int(self.ffi.cast("uintptr_t", handle))

    # -- datagrams and packets

    def send(self, handle: Any, datagrams: Any, count: int) -> int:
        """Send datagrams; for how many there was room."""
        role: LocalHandle = self._find(handle, LocalHandle)
        buffer = self.ffi.buffer
        parcels = []
        for place in range(count):
            each = datagrams[place]
            host = self.ffi.string(each.host)
            parcels.append((buffer(each.bytes, each.size)[:], _target(host, each.port), each.source))
        return role.sendEach(parcels)

    def sendPackets(self, handle: Any, packets: Any, count: int) -> int:
        """Hand in packets; for how many there was room."""
        role: PacketHandle = self._find(handle, PacketHandle)
        buffer = self.ffi.buffer
        return role.sendPackets([buffer(packets[place].bytes, packets[place].size)[:] for place in range(count)])

    def closeSource(self, handle: Any, source: int) -> None:
        """Forget a source."""
        self._find(handle, LocalHandle).closeSource(source)

    # -- figures

    def tellStats(self, handle: Any, stats: Any) -> None:
        """Fill a struct with figures."""
        report = self._find(handle, Handle).stats()
        for name, figure in figuresOf(report).items():
            setattr(stats, name, figure)

    def report(self, handle: Any, memory: Any, size: int) -> int:
        """All figures as JSON; how long that is."""
        text = json.dumps(self._find(handle, Handle).stats(), default=str).encode()
        if size:
            cut = text[: size - 1] + b"\0"
            self.ffi.memmove(memory, cut, len(cut))
        return len(text)

    # -- the end

    def stop(self, handle: Any) -> None:
        """Stop a role. Whoever is not the first to say so waits for its end as well, and has an error then."""
        number = self._numberOf(handle)
        with self._turn:
            role = self.roles.get(number)
            isFirst = role is not None and number not in self._stopping
            if isFirst:
                self._stopping.add(number)
        if role is not None:
            role.stop()
        if not isFirst:
            raise HandleError(UNKNOWN)

    def stopped(self, number: int) -> None:
        """The last callback of a role has returned."""
        with self._turn:
            self.roles.pop(number, None)
            self._stopping.discard(number)


class _Told:
    """The callbacks of one role."""

    def __init__(self, bridge: Bridge, callbacks: Any, data: Any) -> None:
        self._ffi = bridge.ffi
        self._bridge = bridge
        null = bridge.ffi.NULL
        self._happened = callbacks.happened if callbacks.happened != null else None
        self._datagrams = callbacks.datagrams_received if callbacks.datagrams_received != null else None
        self._packets = callbacks.packets_received if callbacks.packets_received != null else None
        if not 0 <= callbacks.log_level < len(LEVELS):
            raise ArgumentError(f"log_level {callbacks.log_level}: expected a number from 0 to {len(LEVELS) - 1}")
        if not 0 <= callbacks.statistics_seconds < 1e9:
            raise ArgumentError(f"statistics_seconds {callbacks.statistics_seconds}: expected a number from 0 to 1e9")
        self.log = LEVELS[callbacks.log_level]
        self.seconds = callbacks.statistics_seconds
        self.number = 0
        self._data = data

    def happened(self, event: Any, data: object) -> None:
        """An event, as a struct."""
        if isinstance(event, Ready):
            # The callback that is told of this may use it already.
            self._bridge.roles[self.number] = event.handle
        kept: list[Any] = []
        try:
            if self._happened is not None:
                self._happened(self._structOf(event, kept), self._data)
        finally:
            if isinstance(event, Stopped):
                self._bridge.stopped(self.number)

    def _structOf(self, event: Any, kept: list[Any]) -> Any:
        """
        What C is told.

        @param kept: gets the texts, which must live as long.
        """
        ffi = self._ffi

        def text(given: Any) -> Any:
            if given is None:
                return ffi.NULL
            kept.append(ffi.new("char[]", str(given).encode(errors="surrogateescape").replace(b"\0", b"?")))
            return kept[-1]

        made = ffi.new("struct udptunnel_event *")
        made.size = ffi.sizeof("struct udptunnel_event")
        made.kind = KINDS[type(event)]
        made.handle = ffi.cast("udptunnel *", self.number)
        made.socks_fd = made.udp_fd = -1
        if isinstance(event, Ready):
            made.socks_fd, made.udp_fd = event.socksDescriptor, event.udpDescriptor
            addresses = {each.descriptor: each.address for each in reversed(event.sockets)}
            made.socks_address, made.udp_address = text(addresses.get(made.socks_fd)), text(addresses.get(made.udp_fd))
        made.session = text(getattr(event, "session", None))
        made.resumed = int(getattr(event, "resumed", False))
        made.level = LEVELS.index(event.level) if isinstance(event, LogLine) else 0
        made.text = text(getattr(event, "text", None) or getattr(event, "why", None))
        return made

    def datagramsReceived(self, datagrams: list[bytes], address: Address, source: int, data: object) -> None:
        """Datagrams, as an array of structs."""
        if self._datagrams is None:
            return
        ffi = self._ffi
        made, host = ffi.new("struct udptunnel_datagram[]", len(datagrams)), _hostText(ffi, address.host)
        for place, datagram in enumerate(datagrams):
            each = made[place]
            # The list keeps the bytes where they are.
            each.bytes, each.size = ffi.from_buffer(datagram), len(datagram)
            each.host, each.port, each.source = host, address.port, source
        self._datagrams(made, len(datagrams), self._data)

    def packetsReceived(self, packets: list[bytes], data: object) -> None:
        """Packets, as an array of structs."""
        ffi = self._ffi
        made = ffi.new("struct udptunnel_packet[]", len(packets))
        for place, packet in enumerate(packets):
            made[place].bytes, made[place].size = ffi.from_buffer(packet), len(packet)
        if self._packets is not None:
            self._packets(made, len(packets), self._data)


@lru_cache(MOST_HOSTS)
def _target(host: bytes, port: int) -> tuple[str, int]:
    return host.decode("ascii", "replace"), port


@lru_cache(MOST_HOSTS)
def _hostText(ffi: Any, host: str) -> Any:
    return ffi.new("char[]", host.encode())


def figuresOf(report: dict[str, Any]) -> dict[str, int]:
    """The figures of C{struct udptunnel_stats}, from a report."""
    links, sessions = report.get("links", 0), report.get("sessionCount", 0)
    return {
        "up": int(report.get("up", False)),
        "sent": report.get("sent", 0),
        "sent_bytes": report.get("sentBytes", 0),
        "received": report.get("received", 0),
        "received_bytes": report.get("receivedBytes", 0),
        "dropped": sum(report.get("dropped", {}).values()),
        "links": len(links) if isinstance(links, list) else links,
        "sessions": sessions,
        "associations": report.get("associations", 0),
        "reconnects": report.get("reconnects", 0),
    }


def serve(ffi: Any) -> None:
    """Called by the library once, when Python has begun."""
    Bridge(ffi).define()
