"""
Which of several servers to use.

All are asked at the same time, those further down the list a little later, and
the first one that lets us in is used: the nearest that is well, and of two
that are equally near the first in the list. When the links to it are lost, all
are asked again. While nothing is going on, we look now and then whether one
that should be better is back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from udptunnel.core.session import Membership

HANDICAP_SECONDS = 0.1
"""So much nearer than the one before it must a server be to be better."""

MARGIN_SECONDS = 0.02
"""So much better must another server be to move there."""

Attempt = TypeVar("Attempt")


class Server:
    """
    One C{--server}.

    @ivar text: what the option says.
    @ivar endpoint: the way there.
    @ivar membership: what we know of our session there.
    @ivar seconds: how long logging in took last; infinite if it failed, nothing if it was never tried.
    """

    def __init__(self, text: str, place: int, endpoint: IStreamClientEndpoint, membership: Membership) -> None:
        self.text = text
        self.endpoint = endpoint
        self.membership = membership
        self.handicap = place * HANDICAP_SECONDS
        self.seconds = 0.0

    @property
    def cost(self) -> float:
        """What speaks against it, in seconds."""
        return self.seconds + self.handicap

    @property
    def hope(self) -> float:
        """The same; of one that was down last, what it is if it is well and near."""
        return self.handicap if self.seconds == inf else self.cost


class Servers(Generic[Attempt]):
    """
    All of them.

    @ivar current: the one that is used, or was used last.
    """

    def __init__(
        self, clock: IReactorTime, servers: Sequence[Server], login: Callable[[Server], Awaitable[Attempt]]
    ) -> None:
        """
        @param login: connects and logs in; what it returns is up.
        """
        self._clock = clock
        self._login = login
        self.all = list(servers)
        self.current = self.all[0]

    async def nearest(self) -> Attempt:
        """
        Log in wherever that is done first.

        @raise Exception: nobody lets us in; why the first in the list does not.
        """
        tried = [Deferred.fromCoroutine(self._after(server)) for server in self.all]
        try:
            result: Any = await DeferredList(tried, fireOnOneCallback=True, consumeErrors=True)
        finally:
            for each in tried:
                each.cancel()
        if isinstance(result, tuple):
            return result[0]  # type: ignore[no-any-return]
        failure: Failure = result[0][1]
        failure.raiseException()  # Never returns.

    async def _after(self, server: Server) -> Attempt:
        if server.handicap:
            await deferLater(self._clock, server.handicap)
        return await self.login(server)

    async def login(self, server: Server) -> Attempt:
        """Log in at one of them, and remember how long that took."""
        begin = self._clock.seconds()
        try:
            attempt = await self._login(server)
        except (CancelledError, ConnectingCancelledError):
            # Another one was faster; how long this one takes, only so much is known.
            server.seconds = max(server.seconds, self._clock.seconds() - begin) if server.seconds < inf else inf
            raise
        except Exception:
            server.seconds = inf
            raise
        server.seconds = self._clock.seconds() - begin
        self.current = server
        return attempt

    def patience(self, server: Server) -> float:
        """How long logging in at another server may take for that to be better than the current one."""
        return max(0.0, self.current.cost - MARGIN_SECONDS - server.handicap)

    def better(self) -> list[Server]:
        """Those that may be better than the current one, if they are well."""
        here = self.current.cost - MARGIN_SECONDS
        return [each for each in self.all if each is not self.current and each.hope < here]
