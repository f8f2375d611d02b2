"""
Starts both ends in the background, sends a datagram through them and stops them, again and again.

It prints how many descriptors, threads, delayed calls, things to be done at the end of the reactor, log observers and
roles there are after the first time, and in the end.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from queue import SimpleQueue
from typing import Any

from twisted.application.service import Service
from twisted.logger import globalLogPublisher

from udptunnel.api import Handle, SessionUp, start_udp_local, start_udp_server
from udptunnel.config import LocalConfig, ServerConfig

SECONDS = 20.0


def ignore(event: object, data: object) -> None:
    """A callback that does nothing."""


def once(target: socket.socket) -> None:
    """Start, send, stop."""
    up = threading.Event()
    answers: SimpleQueue[Any] = SimpleQueue()
    profile = ServerConfig(listen=("tcp:0:interface=127.0.0.1",), allow=("127.0.0.0/8",))
    server = start_udp_server(profile, ignore)
    beyond = server.sockets[0].address
    local = start_udp_local(
        LocalConfig(socks="tcp:0:interface=127.0.0.1", server=(f"tcp:{beyond}",)),
        lambda event, data: up.set() if isinstance(event, SessionUp) else None,
        statistics=0.01,
        datagramsReceived=lambda datagrams, address, source, data: answers.put(datagrams),
    )
    # Without a link a datagram waits for less than a second.
    assert up.wait(SECONDS)
    local.send(b"there", target.getsockname(), 1)
    _, back = target.recvfrom(100)
    target.sendto(b"back", back)
    assert answers.get(timeout=SECONDS) == [b"back"]
    local.stop()
    server.stop()


def count() -> str:
    """What is open."""
    from twisted.internet import reactor

    found: Any = reactor
    publisher: Any = globalLogPublisher
    gc.collect()
    figures = (
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(found.getDelayedCalls()),
        len(found._eventTriggers["shutdown"].before),
        len(publisher._observers),
        sum(isinstance(each, Service | Handle) for each in gc.get_objects()),
    )
    return " ".join(map(str, figures))


def main(times: int) -> None:
    """Do it so often."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(SECONDS)
        once(target)
        print(count())
        for _ in range(times):
            once(target)
        print(count())


if __name__ == "__main__":
    main(int(sys.argv[1]))
