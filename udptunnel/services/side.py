"""
One side of the chain in one process: carriers and roles, as a TOML file describes them.

The file has a table for each role, and a table C{[[carrier]]} for each program
of others that is to run beside them. If both tun2socks and udp-local are
there, and tun2socks is not told of another SOCKS5 server for UDP, datagrams go
from one to the other within the process.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.task import deferLater
from twisted.logger import Logger

from udptunnel.config import ROLES, readToml
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.guard import Guard
from udptunnel.services.carrier import Carrier, Program, stopAll
from udptunnel.services.controller import ControllerService
from udptunnel.services.l3 import L3Service
from udptunnel.services.local import LocalService
from udptunnel.services.server import ServerService
from udptunnel.services.tun2socks import Tun2socksService, throughSession

CARRIER = "carrier"
"""What the tables of carriers are called."""

SETTLE_SECONDS = 1.0
"""A carrier that can not do what it is told has ended by then."""

LINK_SECONDS = 3.0
"""So long a side waits for its first link before it is said to be up without."""

LOOK_SECONDS = 0.05


# -- the file


@dataclass(frozen=True)
class SideConfig:
    """What a file describes."""

    carriers: tuple[Program, ...] = ()
    roles: Mapping[str, Any] = field(default_factory=dict)
    """The configuration of each role, by its name."""

    @property
    def tables(self) -> list[str]:
        """What there is, by the names of its tables."""
        return [CARRIER] * bool(self.carriers) + list(self.roles)


def readSide(name: str) -> SideConfig:
    """
    Read a file.

    @raise ConfigError: something in it is wrong; the text says what, and where.
    """
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # Python's limits are not all TOMLDecodeErrors.
        raise ConfigError(f"{name}: {error}") from error
    try:
        return _readTables(tables, text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _readTables(tables: Mapping[str, Any], text: str) -> SideConfig:
    known = ", ".join([*ROLES, CARRIER])
    if not tables:
        raise ConfigError(f"there is no table; known are {known}")
    roles = {}
    for role in tables:
        if role != CARRIER and role not in ROLES:
            raise ConfigError(f"unknown table [{role}]; known are {known}")
        if role != CARRIER:
            with _within(f"[{role}]"):
                roles[role] = readToml(ROLES[role], role, text)
    return SideConfig(_readCarriers(tables.get(CARRIER, [])), roles)


@contextmanager
def _within(where: str) -> Iterator[None]:
    """Have errors say where in the file they are."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from error


def _readCarriers(tables: object) -> tuple[Program, ...]:
    if not isinstance(tables, list):
        raise ConfigError(f"[{CARRIER}]: write [[{CARRIER}]], for there may be several")
    carriers: list[Program] = []
    for number, table in enumerate(tables, 1):
        with _within(f"[[{CARRIER}]] number {number}:"):
            carrier = _readCarrier(table)
            if carrier.name in [each.name for each in carriers]:
                raise ConfigError(f"name {carrier.name}: another one has it; give each a name of its own")
        carriers.append(carrier)
    return tuple(carriers)


def _readCarrier(table: object) -> Program:
    if not isinstance(table, dict):
        raise ConfigError("expected a table")
    for key in table:
        if key not in ("name", "command"):
            raise ConfigError(f"unknown key {key}; known are command, name")
    command = table.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(each, str) for each in command):
        raise ConfigError('command: expected a list of texts, such as ["ss-local", "-c", "ss.json"]')
    if not command[0] or any("\0" in each for each in command):
        raise ConfigError("command: expected the name of a program, and arguments without NUL")
    name = table.get("name", os.path.basename(command[0]))
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", name):
        raise ConfigError(f"name {name}: expected 1 to 32 letters, digits, dots, hyphens and underscores")
    return Program(name, tuple(command), f"[[{CARRIER}]] {name}")


# -- the service


class Side(MultiService):
    """
    Carriers and roles.

    @ivar carriers: the programs of others, those that roles have as plugins not included.
    @ivar roles: the services of the roles, by their names, in the order in which they start.
    @ivar whenFailed: called with the reason when a role can not go on.
    """

    _log = Logger()

    def __init__(self, config: SideConfig, reactor: Any, guard: Guard | None = None) -> None:
        """
        @param guard: sees to it that no carrier outlives us.
        @raise ConfigError: a role can not be made; the text names its table.
        """
        super().__init__()
        self.setName("side")
        self.config = config
        self.whenFailed: Callable[[str], None] = self._nobodyListens
        self._reactor = reactor
        self._guard = guard or Guard()
        self.carriers = [Carrier(reactor, program, self._guard) for program in config.carriers]
        self.roles: dict[str, Any] = {}
        self._started: list[Any] = []
        for role in sorted(config.roles, key=_ORDER.index):
            with _within(f"[{role}]"):
                self.roles[role] = self._make(role, config.roles[role])
        for service in self.roles.values():
            service.setServiceParent(self)
            if hasattr(service, "whenFailed"):
                service.whenFailed = lambda why: self.whenFailed(why)

    def _make(self, role: str, config: Any) -> Service:
        if role == "udp-local":
            return LocalService(config, self._reactor, guard=self._guard)
        if role == "udp-server":
            return ServerService(config, self._reactor, guard=self._guard)
        if role == "proxy-controller":
            return ControllerService(config, self._reactor)
        if role == "l3-tunnel":
            return L3Service(config, self._reactor)
        local = self.roles.get("udp-local") if config.udpSocksServerAddr is None else None
        return Tun2socksService(config, self._reactor, udp=throughSession(local) if local is not None else None)

    # -- beginning

    def startService(self) -> None:
        """
        Start all of it, carriers first. What was started stays so if something fails; then stop the service.

        @raise ListenError: a port or a TUN can not be opened, or there is no such program.
        """
        Service.startService(self)
        for each in (*self.carriers, *self.roles.values()):
            each.startService()
            self._started.append(each)

    async def settled(self) -> None:
        """
        Wait until it is known that the carriers run, and a little longer for a link.

        @raise ListenError: a carrier has ended; the text has its last words.
        """
        carriers, begin, passed = list(self._allCarriers()), self._reactor.seconds(), 0.0
        while passed < LINK_SECONDS:
            for each in carriers:
                if each.ends:
                    raise ListenError(each.lastWords)
            if passed >= SETTLE_SECONDS * bool(carriers) and not any(self._ills()):
                return
            await deferLater(self._reactor, LOOK_SECONDS)
            passed = self._reactor.seconds() - begin

    def _allCarriers(self) -> Iterator[Carrier]:
        yield from self.carriers
        local, server = self.roles.get("udp-local"), self.roles.get("udp-server")
        for plugin in (*(local.plugins.values() if local else ()), *(server.plugins if server else ())):
            yield plugin.carrier

    def _ills(self) -> Iterator[str]:
        return (service.illness() for service in self.roles.values())

    def hops(self) -> list[tuple[str, str]]:
        """What there is, and how it is, in the order in which it started."""
        carriers = [(each.program.name, f"runs, process {each.process}") for each in self._allCarriers()]
        return carriers + [(role, _stateOf(service)) for role, service in self.roles.items()]

    def _nobodyListens(self, why: str) -> None:
        self._log.error("this side can not go on: {why}", why=why)

    # -- the end

    async def stopService(self) -> None:
        """Stop the roles in good order, then the carriers that they have used for it."""
        Service.stopService(self)
        started, self._started = self._started, []
        for each in reversed([each for each in started if not isinstance(each, Carrier)]):
            await _stop(each, self._log)
        await stopAll(each for each in started if isinstance(each, Carrier))
        self._guard.close()

    # -- for whoever runs it

    def reload(self, config: SideConfig) -> None:
        """
        Have the roles read their files again; what else is new takes effect at the next start.

        @raise ConfigError: something is wrong; the role concerned stays as it was.
        """
        for role, service in self.roles.items():
            if role in config.roles:
                with _within(f"[{role}]"):
                    service.reload(config.roles[role])

    def drain(self, drained: Callable[[], None]) -> None:
        """
        Let no new session in, if there is a udp-server.

        @param drained: called once few enough are left.
        """
        if "udp-server" in self.roles:
            self.roles["udp-server"].drain(drained)
        else:
            drained()

    def report(self) -> dict[str, Any]:
        """The state as plain values: of each role under its name, and the figures of one end of the tunnel."""
        reports = {role: service.report() for role, service in self.roles.items()}
        end = reports.get("udp-local") or reports.get("udp-server") or {}
        figures = {key: end[key] for key in ("sessions", "links", "associations") if key in end}
        return {**figures, **reports, "carriers": [each.report() for each in self._allCarriers()]}


_ORDER = ("udp-server", "udp-local", "proxy-controller", "l3-tunnel", "tun2socks")
"""tun2socks comes last: what it leads into the TUN must find its way."""


def _stateOf(service: Any) -> str:
    wrong = service.illness()
    return f"waits: {wrong} yet" if wrong else "is up"


async def _stop(service: Any, log: Logger) -> None:
    """Stop one role; one that fails must not keep the others from it."""
    try:
        await service.stopService()
    except Exception:
        log.failure("a role has not stopped in good order")
