"""
proxy-controller: leads the machine's packets through a TUN when a client asks for it.

It is for programs that may not change routes themselves: they attach to the
TUN, which is theirs, and ask for the routes over a Unix socket. Requests and
answers are JSON, one object a line, as Outline's controller has them. Who may
use the socket may lead all traffic of this machine anywhere, so its mode
decides who that is.
"""

from __future__ import annotations

import json
import os
import socket
from struct import Struct
from typing import Any, NamedTuple

from twisted.application.service import MultiService
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.config import ControllerConfig
from udptunnel.errors import ConfigError, ListenError, RouteError, TunnelError
from udptunnel.net.detour import Detour, Way
from udptunnel.net.logs import lines
from udptunnel.net.persistent import PersistentTun
from udptunnel.net.platforms import grp, pwd, require
from udptunnel.net.rtnetlink import LinuxRouting, Routing
from udptunnel.net.tun import Interface, LinuxSystem, System
from udptunnel.net.watch import RouteWatch

LINE_BYTES = 65_536
"""The longest request..."""

BARE_BYTES = 4096
"""...and the longest that need not end with a line feed: Outline's clients send none."""

SUCCESS, FAILURE, UNSUPPORTED = 0, 1, 2
"""C{statusCode} in answers: done; refused; the routes of this machine do not allow it."""

CONNECTED, DISCONNECTED, RECONNECTING = 0, 1, 2
"""C{connectionStatus}: packets go through the TUN; they do not; they do, but there is no way to the proxy."""

_WORDS = {CONNECTED: "connected", DISCONNECTED: "disconnected", RECONNECTING: "reconnecting"}

_CREDENTIALS = Struct("=iII")
"""C{struct ucred} of unix(7): process, user, group."""


# -- requests


class RequestError(TunnelError):
    """
    A request is not one of those that there are.

    @ivar action: which it wanted to be, as far as that is known.
    """

    def __init__(self, text: str, action: str = "") -> None:
        super().__init__(text)
        self.action = action


class Request(NamedTuple):
    """What a client wants."""

    action: str
    proxy: str = ""
    router: str = ""

    @classmethod
    def parse(cls, line: bytes) -> Request:
        """
        Read a request.

        @raise RequestError: it is none.
        """
        action, parameters = _parts(_object(line))
        if action != "configureRouting":
            if parameters:
                raise RequestError(f"parameters: {action} has none", action)
            return cls(action)
        known = {"proxyIp": str, "routerIp": str, "isAutoConnect": bool}
        for name, value in parameters.items():
            if not isinstance(value, known.get(name, ())):
                raise RequestError(f"parameters: {name[:100]} is unknown, or has a value of the wrong kind", action)
        for name in ("proxyIp", "routerIp"):
            if name not in parameters:
                raise RequestError(f"parameters: {name} is missing", action)
        return cls(action, parameters["proxyIp"], parameters["routerIp"])


ACTIONS = "configureRouting", "resetRouting", "status"


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise RequestError("expected a JSON object with an action")
    return value


def _parts(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    action = request.get("action")
    if action not in ACTIONS:
        raise RequestError(f"action: expected {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}")
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters: expected a JSON object", action)
    if request.keys() - {"action", "parameters"}:
        raise RequestError("expected action and parameters, and nothing else", action)
    return action, parameters


def _isWhole(text: bytes) -> bool:
    """Whether a text without a line feed is a whole request."""
    if len(text) > BARE_BYTES or not text.rstrip().endswith(b"}"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# -- connections


@implementer(IHalfCloseableProtocol, IPushProducer)
class ControllerProtocol(Protocol):
    """
    A client.

    @ivar name: its process and user, for log lines.
    """

    _log = Logger()
    transport: Any
    name = "unknown"

    def __init__(self, service: ControllerService) -> None:
        self._service = service
        self._buffer = b""
        self._skipping = self._stuck = self._closing = False

    def connectionMade(self) -> None:
        """Say who it is; or that there are too many."""
        self.name = _peerOf(self.transport)
        # If it does not read our answers, we do not read its requests.
        self.transport.registerProducer(self, True)
        if not self._service.entered(self):
            self._refuse(RequestError("too many clients"))
            self.close()
            return
        self._log.info("client {client} is here", client=self.name)

    def dataReceived(self, data: bytes) -> None:
        """Answer all requests that are complete."""
        *whole, rest = (self._buffer + data).split(b"\n")
        self._buffer = b""
        for line in whole:
            self._lineReceived(line)
        if len(rest) > LINE_BYTES:
            self._tooLong()
        elif not self._skipping and _isWhole(rest):
            self._lineReceived(rest)
        elif not self._skipping:
            self._buffer = rest

    def _tooLong(self) -> None:
        """The rest of this line is not looked at."""
        if not self._skipping:
            self._refuse(RequestError(f"a request is at most {LINE_BYTES} bytes long"))
        self._skipping = True

    def _lineReceived(self, line: bytes) -> None:
        if self._skipping:
            self._skipping = False
        elif len(line) > LINE_BYTES:
            self._tooLong()
            self._skipping = False
        elif line.strip():
            self._answer(line)

    def _answer(self, line: bytes) -> None:
        action = ""
        try:
            request = Request.parse(line)
            action = request.action
            self.say(statusCode=SUCCESS, action=action, **self._service.requested(self, request))
        except (TunnelError, OSError) as error:
            self._refuse(error, action or getattr(error, "action", ""))

    def _refuse(self, error: Exception, action: str = "") -> None:
        code = UNSUPPORTED if isinstance(error, RouteError) else FAILURE
        text = getattr(error, "strerror", None) or str(error)
        self._log.warn("client {client} is refused: {error}", client=self.name, error=text)
        self.say(statusCode=code, action=action, errorMessage=text, returnValue="")

    def say(self, **fields: Any) -> None:
        """Send one line."""
        self.transport.write(json.dumps(fields).encode("ascii") + b"\n")

    def push(self, **fields: Any) -> None:
        """Send a line that it has not asked for. If it does not read, it is not worth more memory."""
        if self._stuck:
            self.transport.abortConnection()
        else:
            self.say(**fields)

    def pauseProducing(self) -> None:
        """It does not read our answers."""
        self._stuck = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """It does."""
        self._stuck = False
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """It is gone; C{connectionLost} follows."""

    def readConnectionLost(self) -> None:
        """It will say no more: that is its end, but our answers still go out."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Nobody does that."""

    def close(self) -> None:
        """Part, when everything has been sent."""
        if not self._closing:
            self._closing = True
            # Twisted waits for a producer to end; this one has only watched.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """What it has asked for ends with it."""
        self._service.left(self)


def _peerOf(transport: Any) -> str:
    """Whose process is at the other end (SO_PEERCRED); it can not lie about that."""
    try:
        raw = transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, AttributeError):
        return "unknown"
    process, user, _ = _CREDENTIALS.unpack(raw)
    return f"process {process} of user {user}"


class _Clients(Factory):
    noisy = False

    def __init__(self, service: ControllerService) -> None:
        self._service = service

    def buildProtocol(self, addr: Any) -> ControllerProtocol:
        return ControllerProtocol(self._service)


# -- the service


class ControllerService(MultiService):
    """
    The role proxy-controller.

    @ivar detour: the routes that are in force.
    @ivar clients: who is connected.
    """

    _log = Logger()

    def __init__(
        self, config: ControllerConfig, reactor: Any, routing: Routing | None = None, system: System | None = None
    ) -> None:
        """
        @param routing: the operating system; Linux unless a test says otherwise.
        @param system: the same, for TUNs.
        @raise ConfigError: something is missing, or there is no such user or group.
        @raise MissingError: this is not Linux, or not all is installed.
        """
        super().__init__()
        self.setName("proxy-controller")
        if config.socket is None:
            raise ConfigError("--socket: expected the PATH of the Unix socket where commands are taken")
        self.config = config
        self.clients: list[ControllerProtocol] = []
        if routing is None:
            require("proxy-controller")
        self._group = _groupOf(config.socketGroup)
        self._reactor = reactor
        routing = routing or LinuxRouting()
        interface = Interface(config.tundev, config.address, config.mtu)
        self._tun = PersistentTun(interface, _userOf(config.owner), system or LinuxSystem(), routing)
        self.detour = Detour(routing, config.ipv6 == "leave")
        self._watch = RouteWatch(reactor, self.changed)
        self._owner: ControllerProtocol | None = None
        self._told = DISCONNECTED
        self._ill = ""
        self._port: IListeningPort | None = None
        if config.status is not None:
            # A web server comes with it, and without one a role starts sooner.
            from udptunnel.services.status import StatusService

            status = StatusService("proxy-controller", config.status, self.report, self.illness, reactor)
            status.setServiceParent(self)

    # -- the service

    def startService(self) -> None:
        """
        Open the socket, make the TUN, and remove the routes that a killed process has left.

        @raise ListenError: one of this can not be done; then nothing is.
        """
        self._listen()
        try:
            self._tun.make()
            self._sweep()
            super().startService()
        except ListenError:
            self._close()
            raise
        self._log.info(
            "proxy-controller: commands at {socket}, TUN {device}", socket=self.config.socket, device=self.config.tundev
        )

    def _listen(self) -> None:
        path = str(self.config.socket)
        try:
            # The lock beside it shows whether who left a socket there is gone.
            self._port = self._reactor.listenUNIX(path, _Clients(self), mode=0o600, wantPID=True)
            if self._group is not None:
                os.chown(path, -1, self._group)
                os.chmod(path, 0o660)
        except CannotListenError as error:
            raise ListenError(f"--socket {path} can not be opened: {error.socketError}") from error
        except OSError as error:
            self._close()
            raise ListenError(f"--socket-group {self.config.socketGroup}: {error.strerror}") from error

    def _sweep(self) -> None:
        try:
            self.detour.sweep()
            self._watch.start()
        except OSError as error:
            raise ListenError(f"routes can not be changed: {error.strerror}") from error

    async def stopService(self) -> None:
        """Make everything as it was before, and part from all clients."""
        self._owner = None
        self._reset()
        self._tell()
        for client in list(self.clients):
            client.close()
        await maybeDeferred(self._close)
        await super().stopService()

    def _close(self) -> Any:
        self._watch.stop()
        try:
            self._tun.remove()
        except OSError as error:
            self._log.error("the TUN is not removed: {error}", error=error.strerror)
        port, self._port = self._port, None
        return port.stopListening() if port is not None else None

    def reload(self, config: ControllerConfig) -> None:
        """There is nothing that could be read again."""

    # -- clients

    def entered(self, client: ControllerProtocol) -> bool:
        """Somebody has connected; returns whether there is room for one more."""
        if len(self.clients) >= self.config.maxClients:
            return False
        self.clients.append(client)
        return True

    def left(self, client: ControllerProtocol) -> None:
        """Somebody is gone. Whoever asked for the routes may not run any more, and then nobody serves the TUN."""
        if client in self.clients:
            self.clients.remove(client)
        if client is self._owner:
            self._log.info("client {client} is gone, and with it what it has asked for", client=client.name)
            self._owner = None
            self._reset()
            self._tell()

    def requested(self, client: ControllerProtocol, request: Request) -> dict[str, Any]:
        """
        Do what a client wants.

        @return: what it is told beside that it was done.
        @raise RouteError: the routes of this machine do not allow it, or an address is of no use.
        @raise OSError: the kernel refuses.
        """
        if request.action == "configureRouting":
            self._configure(client, Way.parse(request.proxy, request.router, self.config.address))
        elif request.action == "resetRouting":
            self.detour.clear()
            self._owner = None
            self._log.info("client {client} has ended the detour", client=client.name)
        self._tell(client)
        return self.state()

    def _configure(self, client: ControllerProtocol, way: Way) -> None:
        try:
            self.detour.set(self._tun.device or self._tun.make(), way)
        except (ListenError, OSError):
            # Nothing is left of what there was before, either.
            self._owner = None
            self._reset()
            self._tell(client)
            raise
        self._owner = client
        self._log.info(
            "client {client} leads everything but {host} through {device}",
            client=client.name,
            host=way.proxy,
            device=self.config.tundev,
        )

    def _reset(self) -> None:
        try:
            self.detour.clear()
        except OSError as error:
            self._log.error("the routes are not what they were before: {error}", error=error.strerror)

    # -- changes

    def changed(self) -> None:
        """The machine's routes, addresses or devices have changed; maybe by ourselves."""
        self._ill = ""
        try:
            device = self._tun.device or self._tun.make()
            mended = self.detour.mend(device)
        except (ListenError, OSError) as error:
            self._ill = str(error)
            self._log.error("the machine's routes have changed, and ours can not follow: {error}", error=error)
            return
        if mended:
            self._log.info("the machine's routes have changed, and ours with them")
            if self.status == self._told == CONNECTED:
                self._push(RECONNECTING)
                self._told = RECONNECTING
        self._tell()

    @property
    def status(self) -> int:
        """What is in force, as C{connectionStatus}."""
        if self.detour.way is None:
            return DISCONNECTED
        return CONNECTED if self.detour.reachable else RECONNECTING

    def _tell(self, but: ControllerProtocol | None = None) -> None:
        """Tell everybody if something has changed, except who has it as an answer."""
        if self.status != self._told:
            self._told = self.status
            self._push(self.status, but)

    def _push(self, status: int, but: ControllerProtocol | None = None) -> None:
        fields = {**self.state(), "connectionStatus": status, "returnValue": _WORDS[status]}
        for client in [each for each in self.clients if each is not but]:
            client.push(statusCode=SUCCESS, action="statusChanged", **fields)

    def state(self) -> dict[str, Any]:
        """What is in force, as answers say it."""
        way = self.detour.way
        return {
            "returnValue": _WORDS[self.status],
            "connectionStatus": self.status,
            "tunDevice": self.config.tundev,
            "proxyIp": way.proxy if way is not None else None,
            "routerIp": way.router if way is not None else None,
        }

    def illness(self) -> str:
        """What is wrong; empty if everything is well."""
        return self._ill

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "role": "proxy-controller",
            "up": self._port is not None and not self._ill,
            "clients": len(self.clients),
            "log": lines.report(),
            **self.state(),
        }


def _groupOf(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"--socket-group {name}: there is no such group") from None


def _userOf(name: str | None) -> int:
    """Who may open the TUN; we, unless somebody else is named."""
    if name is None:
        return os.geteuid()
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"--owner {name}: there is no such user") from None
