"""
Keeping a link up: attempt after attempt, for as long as the service runs.

C{twisted.application.internet.ClientService} would be the usual way, but it
counts an attempt as a success when TCP connects, or breaks when a connection
is lost that is not prepared yet; and with a proxy on the way a TCP connection
means nothing. Here an attempt has succeeded when the link was welcomed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from udptunnel.errors import LoginError, RefusedError

FIRST_SECONDS, LAST_SECONDS, GROWTH = 0.2, 15.0, 1.5
"""The back-off: from the first attempt's wait to the longest one."""

HURRY_SECONDS = 1.0
"""The longest wait while datagrams are waiting too: a server that is back is to be found within two seconds."""

STABLE_SECONDS = 1.0
"""A link that was up for a shorter time than this is worth no more than a failed attempt."""

REFUSED_LAST_SECONDS, REFUSED_GROWTH = 60.0, 3.0
"""The same for whom the server does not let in: only people can change that."""


def backOff(attempt: int, refused: bool = False, jitter: Callable[[], float] = random.random) -> float:
    """
    How long to wait before an attempt, in seconds, so that not all the world comes back at once.

    @param attempt: how many have failed in a row, 0 for none.
    @param refused: whether the last one found a server that did not let us in.
    """
    last, growth = (REFUSED_LAST_SECONDS, REFUSED_GROWTH) if refused else (LAST_SECONDS, GROWTH)
    seconds = min(last, FIRST_SECONDS * growth ** min(attempt, 40))
    return float(seconds * (0.75 + 0.25 * jitter()))


class Connection(Protocol):
    """A connection with a link that is up."""

    gone: Deferred[None]
    """Fires when the connection is gone."""


class ReconnectingService(Service):
    """Keeps one link up."""

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, connect: Callable[[], Deferred[Connection]], failed: Callable[[], None]
    ) -> None:
        """
        @param connect: opens a connection, and fires when its link is up.
        @param failed: told of each failed attempt before the next.
        """
        self._clock = clock
        self._connect = connect
        self._failed = failed
        self._keeping: Deferred[None] | None = None
        self._pausing: Deferred[None] | None = None
        self._pausedAt = 0.0
        self._refused = False

    def startService(self) -> None:
        """Begin with the first attempt."""
        super().startService()
        self._keeping = Deferred.fromCoroutine(self._keepUp())

    async def stopService(self) -> None:
        """Give up the present attempt, and make no other. A link that is up stays."""
        super().stopService()
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await keeping

    async def _keepUp(self) -> None:
        failures = 0
        while self.running:
            seconds = await self._attempt()
            if seconds is None:
                self._failed()
            failures = 0 if seconds is not None and seconds >= STABLE_SECONDS else failures + 1
            if self.running:
                await self._pause(backOff(max(0, failures - 1), self._refused))

    async def _attempt(self) -> float | None:
        """
        One connection, from its beginning to its end.

        @return: how long the link was up, in seconds; C{None} if it never was.
        """
        try:
            attempt = await self._connect()
        except CancelledError:
            self.running = False
        except Exception as error:
            # Who was refused, and is not even heard now, is not let in yet.
            self._refused = isinstance(error, RefusedError) or (self._refused and isinstance(error, LoginError))
            self._log.info("no link: {error}", error=str(error) or type(error).__name__)
        else:
            self._refused = False
            return await self._use(attempt)
        return None

    async def _use(self, connection: Connection) -> float:
        begin = self._clock.seconds()
        try:
            await connection.gone
        except CancelledError:
            # Whoever stops us closes the link, in good order.
            pass
        return self._clock.seconds() - begin

    async def _pause(self, seconds: float) -> None:
        self._pausing = deferLater(self._clock, seconds)
        self._pausedAt = self._clock.seconds()
        try:
            await self._pausing
        except CancelledError:
            # Either there is no time to lose, or the service stops.
            pass
        finally:
            self._pausing = None

    def hurry(self) -> None:
        """Datagrams are waiting: so do we, but not longer than L{HURRY_SECONDS}, unless the server refuses us."""
        if self._pausing is not None and not self._refused and self._clock.seconds() - self._pausedAt >= HURRY_SECONDS:
            self._pausing.cancel()
