"""
Many udp-locals in one process: true clients, each with a session of its own.

    python -m tests.soak.holder HEARTBEAT BUNDLES FIRST-PORT

Each line of its input, a number, has so many more of them begin, ten a tick.
C{BUNDLES} is a folder with the bundles 0.pem, 1.pem, ...: the links are TLS
then; or C{-}. From C{FIRST-PORT} on each has a SOCKS5 server; or 0. What has
become of them is told in one JSON object a line, four times a second::

    began     how many have begun
    up        how many have a link that is up
    attempts  when they tried to connect since the last line, by the clock of the machine
    mappings  how many have ever had to begin a new session
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.logger import LogLevel, formatEvent, globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from zope.interface import implementer

from udptunnel.config import LocalConfig
from udptunnel.services.local import LocalService

SERVER = "tcp:127.0.0.1:3456"
NONE, NO_PORT = "-", 0
TELL_SECONDS, TICK_SECONDS, EACH_TICK = 0.25, 0.05, 10


@implementer(IStreamClientEndpoint)
class NotingEndpoint:
    """Notes when somebody tries to connect."""

    def __init__(self, endpoint: Any, attempts: list[float]) -> None:
        self._endpoint = endpoint
        self._attempts = attempts

    def connect(self, factory: Any) -> Any:
        """Try."""
        self._attempts.append(time.monotonic())
        return self._endpoint.connect(factory)


class Holder:
    """All of them."""

    def __init__(self, configs: Iterable[LocalConfig]) -> None:
        self._configs = iter(configs)
        self._services: list[LocalService] = []
        self._attempts: list[float] = []
        self._wanted = 0

    def begin(self, count: int) -> None:
        """Some more of them are to begin."""
        self._wanted += count

    def tick(self) -> None:
        """Let a few begin."""
        for _ in range(min(EACH_TICK, self._wanted - len(self._services))):
            service = LocalService(next(self._configs), reactor)
            for server in service.servers.all:
                server.endpoint = NotingEndpoint(server.endpoint, self._attempts)
            service.startService()
            self._services.append(service)

    def tell(self) -> None:
        """Say what has become of them."""
        up = sum(bool(each.session.links) for each in self._services)
        lost = sum(each.session.lost > 0 for each in self._services)
        state = {"began": len(self._services), "up": up, "attempts": self._attempts[:], "mappings": lost}
        print(json.dumps(state), flush=True)
        self._attempts.clear()


class Orders(LineOnlyReceiver):
    """Takes the input."""

    delimiter = b"\n"

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def lineReceived(self, line: bytes) -> None:
        """A number."""
        self._holder.begin(int(line))

    def connectionLost(self, reason: Any = None) -> None:
        """Whoever has started us is gone."""
        os._exit(0)


def configs(heartbeat: float, bundles: str, firstPort: int) -> Iterable[LocalConfig]:
    """What they are told, one after the other."""
    for number in range(1 << 20):
        yield LocalConfig(
            socks=f"tcp:{firstPort + number}:interface=127.0.0.1" if firstPort else "none",
            server=(SERVER,),
            tls=None if bundles == NONE else str(Path(bundles, f"{number}.pem")),
            heartbeat=heartbeat,
        )


def _complain(event: Any) -> None:
    """What goes wrong in a way that nobody has thought of is said; the rest is for nobody."""
    if event.get("log_level") == LogLevel.critical:
        print(f"Unhandled: {formatEvent(event)} {event.get('log_failure', '')}", file=sys.stderr, flush=True)


def main(heartbeat: str, bundles: str, firstPort: str) -> None:
    """Hold them until the input ends."""
    clock: Any = reactor
    clock.seconds = time.monotonic
    globalLogBeginner.beginLoggingTo([_complain], redirectStandardIO=False)
    holder = Holder(configs(float(heartbeat), bundles, int(firstPort)))
    StandardIO(Orders(holder))
    LoopingCall(holder.tick).start(TICK_SECONDS)
    LoopingCall(holder.tell).start(TELL_SECONDS)
    clock.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
