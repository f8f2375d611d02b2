"""Learns that the machine's devices, addresses or routes have changed, whatever it was (rtnetlink(7))."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE of linux/rtnetlink.h."""

REST_SECONDS = 0.3
"""Changes come in crowds, such as when an interface goes up: we look once, when the crowd is through."""

_MESSAGES = 64
"""Read in one wake-up at most."""


@implementer(IReadDescriptor)
class RouteWatch:
    """Calls back after each crowd of changes, those that the listener makes included."""

    def __init__(self, reactor: Any, changed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._socket: socket.socket | None = None
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """
        Begin.

        @raise OSError: the kernel has no rtnetlink.
        """
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            opened.bind((0, GROUPS))
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self._reactor.addReader(self)

    def fileno(self) -> int:
        """The descriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about this begin with."""
        return "routes"

    def doRead(self) -> None:
        """Something has changed; what, the listener will see."""
        assert self._socket is not None
        try:
            for _ in range(_MESSAGES):
                self._socket.recv(65536)
        except OSError:
            # There is no more; or there was more than the kernel keeps (ENOBUFS), which is a change, too.
            pass
        if self._call is None:
            self._call = self._reactor.callLater(REST_SECONDS, self._tell)

    def _tell(self) -> None:
        self._call = None
        self._changed()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.stop()

    def stop(self) -> None:
        """End."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
