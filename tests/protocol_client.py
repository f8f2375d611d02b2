"""
A client for udp-server, written from docs/topics/protocol.md alone, with Python's sockets alone.

It imports nothing of udptunnel, so that it shows whether the page is enough.
"""

import os
import socket
import struct

HEADER = struct.Struct("!I3H")
DATA, TARGET, CLOSE, PING, PONG, GOAWAY = (kind << 24 for kind in range(6))


class ProtocolClient:
    """One session with one link."""

    def __init__(self, host: str, port: int) -> None:
        self.link = socket.create_connection((host, port), timeout=10)
        self.arrived = b""
        self.targets: dict[int, tuple[str, int]] = {}
        self.bytesSent = 0
        session = os.urandom(16)
        fields = b"\x01\x10" + session + b"\x02\x04" + struct.pack("!I", 8) + b"\x03\x04" + struct.pack("!I", 8)
        self.send(int.from_bytes(b"udpt", "big"), 1, 1, fields)
        word, version, _, body = self.receive()
        if word != int.from_bytes(b"UDPT", "big"):
            raise ConnectionError(body.decode())
        assert version == 1 and session in body

    def send(self, word: int, target: int = 0, size: int = 0, body: bytes = b"") -> None:
        frame = HEADER.pack(word, target, size, len(body)) + body
        self.bytesSent += len(frame)
        self.link.sendall(frame)

    def receive(self) -> tuple[int, int, int, bytes]:
        word, target, size, length = HEADER.unpack(self.take(HEADER.size))
        return word, target, size, self.take(length)

    def take(self, count: int) -> bytes:
        while len(self.arrived) < count:
            more = self.link.recv(65536)
            if not more:
                raise ConnectionError("the link was closed")
            self.arrived += more
        taken, self.arrived = self.arrived[:count], self.arrived[count:]
        return taken

    def announce(self, number: int, host: str, port: int) -> None:
        self.send(TARGET, number, 0, b"\x01" + socket.inet_aton(host) + struct.pack("!H", port))

    def ask(self, association: int, target: int, datagrams: list[bytes]) -> None:
        """Send datagrams of one size, the last may be shorter."""
        self.send(DATA | association, target, len(datagrams[0]), b"".join(datagrams))

    def ping(self) -> int:
        """How many bytes have arrived at the server."""
        self.send(PING, body=bytes(8))
        while True:
            word, _, _, body = self.receive()
            if word == PONG:
                return int(struct.unpack("!8xQ", body)[0])

    def answers(self, count: int) -> list[tuple[int, tuple[str, int], bytes]]:
        """The next datagrams: association, where each came from, and what it holds."""
        found: list[tuple[int, tuple[str, int], bytes]] = []
        while len(found) < count:
            word, target, size, body = self.receive()
            if word == TARGET:
                self.targets[target] = (socket.inet_ntoa(body[1:5]), int.from_bytes(body[5:7], "big"))
            elif word == PING:
                self.send(PONG, body=body + bytes(8))
            elif word < TARGET:
                step = size if len(body) > size else len(body) or 1
                pieces = [body[place : place + step] for place in range(0, len(body), step)] or [b""]
                found += [(word, self.targets[target], piece) for piece in pieces]
        return found
