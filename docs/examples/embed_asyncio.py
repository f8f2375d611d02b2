"""
Sends three datagrams through udp-server from an asyncio program, without any socket of UDP, and prints what comes back.

    python docs/examples/embed_asyncio.py tcp:127.0.0.1:3456 192.0.2.1:7
"""

import asyncio
import sys

from twisted.internet import asyncioreactor

# Twisted runs in this loop, and what awaits there may use all of asyncio.
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
asyncioreactor.install(loop)

# ruff: noqa: E402
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from udptunnel.api import LogLine, SessionUp, start_udp_local
from udptunnel.config import LocalConfig
from udptunnel.wire.address import Address


def happened(event: object, up: asyncio.Event) -> None:
    """Called with all that happens but datagrams."""
    if isinstance(event, SessionUp):
        up.set()
    elif isinstance(event, LogLine):
        print(event.text, file=sys.stderr)


async def main(reactor: object, server: str, target: str) -> None:
    up = asyncio.Event()
    answers: asyncio.Queue[tuple[bytes, Address, object]] = asyncio.Queue()

    def received(datagrams: list[bytes], address: Address, source: object, data: object) -> None:
        for datagram in datagrams:
            answers.put_nowait((datagram, address, source))

    profile = LocalConfig(socks="none", server=(server,))
    handle = start_udp_local(profile, happened, up, datagramsReceived=received, reactor=reactor)
    await up.wait()
    for number in range(3):
        # Each number is a source of its own, with an external port of its own.
        handle.send(f"hello {number}".encode(), Address.parse(target), number)
        datagram, address, source = await asyncio.wait_for(answers.get(), 10)
        print(f"{datagram.decode()} from {address} for {source}")
    await handle.stop().asFuture(loop)


if __name__ == "__main__":
    react(lambda reactor, *words: Deferred.fromFuture(loop.create_task(main(reactor, *words))), sys.argv[1:])
