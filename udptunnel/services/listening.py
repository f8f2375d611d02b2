"""Stream listeners: opened at once or not at all, and never beyond loopback by mistake."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString, wrapServerTLS
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.python.failure import Failure

from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.reach import isLoopback

ADVICE = (
    "nothing asks them who they are: listen at 127.0.0.1 or [::1], set up authentication, or say --insecure-no-auth"
)


def requireAuthentication(closed: bool, allowed: bool, what: str, advice: str = ADVICE) -> None:
    """
    Let nobody open a door to strangers by mistake.

    @param closed: whether only this machine can come in.
    @param allowed: whether that is ensured otherwise, or was waived in so many words.
    @param advice: what to do about it.
    @raise ListenError: neither is the case.
    """
    if not (closed or allowed):
        raise ListenError(f"{what} is open to other machines, and {advice}")


def isLocal(address: IAddress | None) -> bool:
    """Whether a listening port is reached from this machine only; Unix sockets are."""
    host = getattr(address, "host", None)
    return host is None or isLoopback(str(host))


BACKLOG = 1024
"""Connections that the kernel accepts before we do: a crowd may come at once, and Twisted's own choice is 50."""


def _withBacklog(endpoint: str) -> str:
    isTcp = endpoint.partition(":")[0] in ("tcp", "tcp6", "ssl")
    return f"{endpoint}:backlog={BACKLOG}" if isTcp and ":backlog=" not in endpoint else endpoint


class Listening:
    """
    One stream listener, from an endpoint string.

    @ivar address: what it is bound to, once started.
    """

    address: IAddress | None = None
    _port: IListeningPort | None = None

    def __init__(self, reactor: Any, option: str, text: str, factory: IProtocolFactory, tls: Any = None) -> None:
        """
        @param option: which option the text was given with.
        @param tls: makes the TLS of each connection, if there is to be any.
        @raise ConfigError: it is no server endpoint.
        """
        self._what = f"--{option} {text}"
        self._factory = factory
        try:
            endpoint = serverFromString(reactor, _withBacklog(text))
            self._endpoint = endpoint if tls is None else wrapServerTLS(tls, endpoint)
        except Exception as error:
            raise ConfigError(f"{self._what}: expected a server endpoint, such as tcp:3456: {error}") from error

    def start(self, allowed: bool, advice: str = ADVICE) -> None:
        """
        Open the port.

        @param allowed: whether others than this machine may come in.
        @param advice: what to do if they may not.
        @raise ListenError: it is taken, or others may come in although they may not.
        """
        opened: Deferred[IListeningPort] = self._endpoint.listen(self._factory)
        opened.addCallbacks(self._opened, self._failed)
        failures: list[Failure] = []
        opened.addErrback(failures.append)
        for failure in failures:
            failure.raiseException()
        if self._port is None:
            # Who could come in is not known, so nobody may, not later either.
            opened.addCallback(lambda _: self.stop())
            raise ListenError(f"{self._what} is not open at once, as it must be")
        try:
            requireAuthentication(isLocal(self.address), allowed, self._what, advice)
        except ListenError:
            self.stop()
            raise

    def _opened(self, port: IListeningPort) -> None:
        self._port = port
        self.address = port.getHost()

    def _failed(self, failure: Failure) -> None:
        raise ListenError(f"{self._what} can not be opened: {failure.getErrorMessage()}") from None

    def fileno(self) -> int:
        """The descriptor; -1 if it is not open."""
        port: Any = self._port
        return -1 if port is None else int(port.fileno())

    def stop(self) -> Deferred[Any]:
        """Close the port; connections that came through it stay."""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port is not None else lambda: None)
