"""
Sends three datagrams through udp-server from a program that knows no reactor, and prints what comes back.

    python docs/examples/embed_thread.py tcp:127.0.0.1:3456 192.0.2.1:7
"""

import queue
import sys
import threading

from udptunnel.api import LogLine, SessionUp, start_udp_local
from udptunnel.config import LocalConfig
from udptunnel.wire.address import Address


def happened(event: object, up: threading.Event) -> None:
    """Called with all that happens but datagrams, in another thread than ours."""
    if isinstance(event, SessionUp):
        up.set()
    elif isinstance(event, LogLine):
        print(event.text, file=sys.stderr)


def main(server: str, target: str) -> None:
    up = threading.Event()
    answers: queue.Queue[tuple[bytes, Address, object]] = queue.Queue()

    def received(datagrams: list[bytes], address: Address, source: object, data: object) -> None:
        for datagram in datagrams:
            answers.put((datagram, address, source))

    profile = LocalConfig(socks="none", server=(server,))
    handle = start_udp_local(profile, happened, up, datagramsReceived=received)
    up.wait()
    for number in range(3):
        # Each number is a source of its own, with an external port of its own.
        handle.send(f"hello {number}".encode(), Address.parse(target), number)
        datagram, address, source = answers.get(timeout=10)
        print(f"{datagram.decode()} from {address} for {source}")
    handle.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
