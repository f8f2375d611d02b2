"""
Sends three datagrams through udp-server from a Twisted program, without any socket of UDP, and prints what comes back.

    python docs/examples/embed_twisted.py tcp:127.0.0.1:3456 192.0.2.1:7
"""

import sys

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import react

from udptunnel.api import LogLine, MappingsLost, SessionUp, start_udp_local
from udptunnel.config import LocalConfig
from udptunnel.wire.address import Address


def happened(event: object, up: Deferred[None]) -> None:
    """Called with all that happens but datagrams."""
    if isinstance(event, SessionUp) and not up.called:
        up.callback(None)
    elif isinstance(event, MappingsLost):
        print("external ports are new ones", file=sys.stderr)
    elif isinstance(event, LogLine):
        print(event.text, file=sys.stderr)


async def main(reactor: object, server: str, target: str) -> None:
    up: Deferred[None] = Deferred()
    answers: DeferredQueue[tuple[bytes, Address, object]] = DeferredQueue()

    def received(datagrams: list[bytes], address: Address, source: object, data: object) -> None:
        for datagram in datagrams:
            answers.put((datagram, address, source))

    profile = LocalConfig(socks="none", server=(server,))
    handle = start_udp_local(profile, happened, up, datagramsReceived=received, reactor=reactor)
    await up
    for number in range(3):
        # Each number is a source of its own, with an external port of its own.
        handle.send(f"hello {number}".encode(), Address.parse(target), number)
        datagram, address, source = await answers.get()
        print(f"{datagram.decode()} from {address} for {source}")
    await handle.stop()


if __name__ == "__main__":
    react(lambda reactor, *words: Deferred.fromCoroutine(main(reactor, *words)), sys.argv[1:])
