"""
What systemd is told: that we are ready, how we are, and that we are alive.

The protocol is that of sd_notify(3): lines C{NAME=VALUE} in one datagram to
the Unix socket that C{NOTIFY_SOCKET} names. Without it nothing is said.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall

STATUS_SECONDS = 10.0
"""Between two lines about the state."""

STATED = ("sessions", "links", "associations")
"""What of a report they tell."""


def send(address: str, text: str) -> None:
    """
    Send a datagram to a Unix socket. If it does not take it, it will do without.

    @param address: a path, or a name that begins with @ (unix(7), abstract).
    """
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            # A socket that is full must not hold up datagrams.
            notices.setblocking(False)
            notices.sendto(text.encode(), name)
    except OSError:
        return


class Notices:
    """
    What the supervisor of this process is told, if there is one.
    """

    def __init__(
        self,
        reactor: Any,
        report: Callable[[], Mapping[str, Any]],
        environment: Mapping[str, str] = os.environ,
        send: Callable[[str, str], None] = send,
    ) -> None:
        """
        @param report: tells the state as plain values.
        @param environment: what the supervisor has set.
        """
        self._reactor = reactor
        self._report = report
        self._environment = environment
        self._send = send

    def ready(self) -> None:
        """All ports are open. From now on there are lines about the state, and signs of life."""
        # MAINPID: twistd may have become a daemon, which is another process.
        self._tell("READY=1", f"MAINPID={os.getpid()}")
        if "NOTIFY_SOCKET" in self._environment:
            self._repeat(STATUS_SECONDS, self._tellState)
        if (span := self._watchdogSeconds()) > 0:
            self._repeat(span / 2, lambda: self._tell("WATCHDOG=1"))

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(self._reactor.seconds() * 1_000_000)}")

    def reloaded(self) -> None:
        """That is over, for better or worse."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def _tell(self, *lines: str) -> None:
        if "NOTIFY_SOCKET" in self._environment:
            self._send(self._environment["NOTIFY_SOCKET"], "\n".join(lines))

    def _tellState(self) -> None:
        self._tell(f"STATUS={stateLine(self._report())}")

    def _repeat(self, seconds: float, say: Callable[[], None]) -> None:
        calls = LoopingCall(say)
        calls.clock = self._reactor
        calls.start(seconds)

    def _watchdogSeconds(self) -> float:
        """After how long a silence we are taken for dead (sd_watchdog_enabled(3)); 0: never."""
        ours = self._environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = self._environment.get("WATCHDOG_USEC", "")
        return int(text) / 1_000_000 if ours and text.isdecimal() else 0.0


def stateLine(report: Mapping[str, Any]) -> str:
    """How many sessions, links and associations there are, in one line."""
    return ", ".join(f"{name} {_count(report[name])}" for name in STATED if name in report)


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value
