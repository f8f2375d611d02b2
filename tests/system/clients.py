"""Applications and targets: plain sockets of this process, opened inside namespaces."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tests.system.namespaces import Namespace
from tests.system.programs import SECONDS, SOCKS
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import packHeader, unpackHeader

SO_RCVBUFFORCE = 33
LARGEST = 65535


def open_(namespace: Namespace, host: str, port: int = 0, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """A socket in a namespace, bound to an address."""
    with namespace.entered():
        opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    opened.settimeout(SECONDS)
    opened.bind((host, port))
    if kind == socket.SOCK_DGRAM:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    return opened


class Echo(threading.Thread):
    """
    Targets that send everything back.

    @ivar received: source and payload of each datagram, in the order in which they came.
    """

    def __init__(self, namespace: Namespace, *addresses: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.received: list[tuple[tuple[str, int], bytes]] = []
        self.sockets = [open_(namespace, host, port) for host, port in addresses]
        self._ending, self._wake = socket.socketpair()
        self.start()

    def run(self) -> None:
        while True:
            readable, _, _ = select.select([*self.sockets, self._ending], [], [])
            if self._ending in readable:
                return
            for each in readable:
                payload, source = each.recvfrom(LARGEST)
                self.received.append((source[:2], payload))
                each.sendto(payload, source)

    @property
    def sources(self) -> set[tuple[str, int]]:
        """Who has sent something."""
        return {source for source, _ in list(self.received)}

    def close(self) -> None:
        """End the thread, and close the sockets."""
        self._wake.send(b"!")
        self.join()
        for each in (*self.sockets, self._ending, self._wake):
            each.close()


class SocksClient:
    """
    A UDP association with a SOCKS5 server (RFC 1928).

    @ivar control: the connection that it lives with.
    @ivar relay: where its datagrams go.
    @ivar udp: where they come from.
    """

    def __init__(self, namespace: Namespace, host: str = "127.0.0.1", port: int = SOCKS) -> None:
        with ExitStack() as undo:
            self.control = undo.enter_context(open_(namespace, host, kind=socket.SOCK_STREAM))
            self.control.connect((host, port))
            self.control.sendall(b"\x05\x01\x00")
            _expect(self.control, b"\x05\x00")
            self.control.sendall(b"\x05\x03\x00\x01" + bytes(6))
            _expect(self.control, b"\x05\x00\x00")
            six = self.control.recv(1, socket.MSG_WAITALL) == b"\x04"
            raw = self.control.recv(18 if six else 6, socket.MSG_WAITALL)
            relay = socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, raw[:-2])
            self.relay = relay, int.from_bytes(raw[-2:], "big")
            self.udp = open_(namespace, host)
            undo.pop_all()

    def send(self, target: tuple[str, int], payload: bytes) -> None:
        """Send a datagram; the target's host may be a name."""
        self.udp.sendto(packHeader(Address(*target)) + payload, self.relay)

    def receive(self) -> tuple[tuple[str, int], bytes]:
        """Wait for a datagram: who sent it, and its payload."""
        datagram = self.udp.recv(LARGEST)
        source, length = unpackHeader(datagram)
        return (source.host, source.port), datagram[length:]

    def exchange(self, target: tuple[str, int], payload: bytes) -> tuple[tuple[str, int], bytes]:
        """Send a datagram, and wait for the next one that comes."""
        self.send(target, payload)
        return self.receive()

    def close(self) -> None:
        """Leave."""
        self.control.close()
        self.udp.close()


def _expect(stream: socket.socket, expected: bytes) -> None:
    received = stream.recv(len(expected), socket.MSG_WAITALL)
    if received != expected:
        raise AssertionError(f"the SOCKS5 server said {received.hex()}, not {expected.hex()}")


def exchange(udp: socket.socket, to: tuple[str, int], payload: bytes) -> bytes:
    """Send a datagram, and wait for the next one that comes."""
    udp.sendto(payload, to)
    return udp.recv(LARGEST)


def closeAll(these: Sequence[Any]) -> None:
    """Close all of these."""
    for each in these:
        each.close()
