"""
Handles: a role that somebody has started, from its beginning to its end.

All methods may be called from any thread. In the reactor's own they return at
once; elsewhere they wait for what they return, but for those that send.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from udptunnel.api.events import (
    BoundSocket,
    Callback,
    Event,
    Failed,
    LogLine,
    Ready,
    SessionDown,
    SessionUp,
    Statistics,
    Stopped,
)
from udptunnel.api.home import Home
from udptunnel.api.logs import LogTap
from udptunnel.net.socks5client import addressOf
from udptunnel.services.l3 import L3Service
from udptunnel.services.links import every


class Handle:
    """
    A role that runs.

    @ivar service: the role's service, for those who know more. It is used in the reactor's thread only.
    @ivar sockets: its sockets, while they are open.
    """

    _log = Logger()

    def __init__(self, home: Home, callback: Callback | None, data: Any) -> None:
        """
        @param home: where it runs.
        @param callback: told of events.
        @param data: told with each of them.
        """
        self.service: Any = None
        self.sockets: tuple[BoundSocket, ...] = ()
        self._home = home
        self._callback = callback
        self._data = data
        self._beginning = self._begun = self._stopping = self._over = False
        self._failures = 0
        self._up: dict[Hashable, str] = {}
        self._tap: LogTap | None = None
        self._counting: LoopingCall | None = None
        self._atEnd: Any = None
        self._waiting: list[Deferred[None]] = []
        self._last: dict[str, Any] | None = None

    # -- its beginning

    def begin(self, make: Callable[[Any], Any], statistics: float = 0.0, tap: LogTap | None = None) -> None:
        """
        Make the role's service, and start it. The functions C{start_...} do this.

        @param make: makes the service, given the reactor.
        @param statistics: seconds between two L{Statistics}; 0 for none.
        @param tap: what gives it log lines.
        @raise ConfigError: the profile is wrong.
        @raise ListenError: something can not be opened.
        """
        reactor = self._home.reactor
        self._beginning = True
        try:
            self._start(make, tap)
        finally:
            self._beginning = False
        self._atEnd = reactor.addSystemEventTrigger("before", "shutdown", self._shutdown)
        self._tell(Ready(self, self.sockets))
        if self._waiting:
            self._closeOnce()
        if statistics and not self._stopping:
            self._counting = every(statistics, self._tellStatistics, reactor, self._log)

    def _start(self, make: Callable[[Any], Any], tap: LogTap | None) -> None:
        if tap is not None:
            self._tap = tap
            tap.begin()
        self.service = make(self._home.reactor)
        self._watch()
        self.service.startService()
        self._begun = True
        self.sockets = tuple(_socketsOf(self.service))

    def _watch(self) -> None:
        """Be told of what happens to the service."""
        if hasattr(self.service, "whenFailed"):
            self.service.whenFailed = self._failed

    # -- events

    def _tell(self, event: Event) -> None:
        if self._callback is not None:
            self._guarded(self._callback, event, self._data)

    def _guarded(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call something of the host's. A mistake in there must not end anything of ours."""
        try:
            call(*arguments)
        except Exception:
            self._failures += 1
            self._log.failure("a callback has failed")

    def logged(self, level: str, system: str, text: str) -> None:
        """Somebody has logged something."""
        self._tell(LogLine(self, level, system, text))

    def _failed(self, why: str) -> None:
        self._log.error("{role} can not go on: {why}", role=self.service.name, why=why)
        self._tell(Failed(self, why))

    def _tellStatistics(self) -> None:
        self._tell(Statistics(self, self._report()))

    def _sessionUp(self, key: Hashable, session: str, resumed: bool = False) -> None:
        """
        A session is there.

        @param key: what no other session has. The other end chooses its name, and so what log lines call it.
        """
        self._up[key] = session
        self._tell(SessionUp(self, session, resumed))

    def _sessionDown(self, key: Hashable) -> None:
        session = self._up.pop(key, None)
        if session is not None:
            self._tell(SessionDown(self, session))

    # -- figures

    def stats(self) -> dict[str, Any]:
        """
        The state and the figures as plain values, as C{--status} tells them; the last ones, once it has stopped.

        C{callbackFailures} says how many exceptions callbacks have raised.
        """
        if self._last is not None:
            return self._last
        report: dict[str, Any] = self._home.call(self._report)
        return report

    def _report(self) -> dict[str, Any]:
        if self._last is not None:
            return self._last
        return {**self.service.report(), "callbackFailures": self._failures}

    # -- its end

    def stop(self) -> Deferred[None]:
        """
        Stop the role: say farewell to the other end, and close everything.

        It may be called several times.

        @return: fires when everything is closed. Outside of the reactor's thread that has happened when this returns.
        """
        if self._home.inside:
            return self._stop()
        if not self._over:
            self._home.call(self._stop)
        return succeed(None)

    def _shutdown(self) -> Deferred[None]:
        """The reactor is about to end."""
        self._atEnd = None
        return self._stop()

    def _stop(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if self._over:
            self._fireAll()
        elif not self._beginning:
            # Otherwise it is closed as soon as there is all that is to be closed.
            self._closeOnce()
        return waiting

    def _closeOnce(self) -> None:
        if not self._stopping:
            # A callback that is told the end may stop it again before this returns.
            self._stopping = True
            Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._closeDoors()
        if self._counting is not None:
            self._counting.stop()
        if self._atEnd is not None:
            self._home.reactor.removeSystemEventTrigger(self._atEnd)
        if self.service is not None:
            await self._closeService()
        for key in list(self._up):
            self._sessionDown(key)
        if self._tap is not None:
            self._tap.end()
        self._last = self._lastReport()
        self.sockets = ()
        if self._begun:
            self._tell(Stopped(self))
        self._callback = None
        self._over = True
        self._fireAll()

    def _closeDoors(self) -> None:
        """Take nothing from the host any more."""

    async def _closeService(self) -> None:
        try:
            await maybeDeferred(self.service.stopService)
        except Exception:
            self._log.failure("a role has not stopped in good order")

    def _lastReport(self) -> dict[str, Any]:
        if not self._begun:
            return {}
        try:
            return self._report()
        except Exception:
            self._log.failure("a role has no last figures")
            return {}

    def _fireAll(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)


def _socketsOf(service: Any) -> list[BoundSocket]:
    """What a service has open for others to send to."""
    found = []
    door = getattr(service, "door", None)
    if door is not None:
        found.append(_streamSocket("socks", door))
    found += [_streamSocket("listen", each) for each in getattr(service, "listeners", ())]
    for entry in getattr(service, "entries", ()):
        found.append(BoundSocket("forward", entry.port.address, entry.port.fileno()))
    if isinstance(service, L3Service) and service.port is not None:
        found.append(BoundSocket("local", service.port.address, service.port.fileno()))
    return found


def _streamSocket(option: str, listening: Any) -> BoundSocket:
    bound = listening.address
    address = addressOf(bound) if hasattr(bound, "port") else _pathOf(bound)
    return BoundSocket(option, address, listening.fileno())


def _pathOf(bound: Any) -> str:
    name = getattr(bound, "name", None) or ""
    return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
