"""
A client for udp-server, written from docs/topics/protocol.md alone, with Python's sockets alone.

It imports nothing of udptunnel, so that it shows whether the page is enough.
"""

import hmac
import os
import socket
import struct

HEADER = struct.Struct("!I3H")
DATA, TARGET, CLOSE, PING, PONG, GOAWAY, CHALLENGE, PROOF = (kind << 24 for kind in range(8))
HELLO, WELCOME = (int.from_bytes(word, "big") for word in (b"udpt", b"UDPT"))


class ProtocolClient:
    """One session with one link."""

    def __init__(
        self, host: str, port: int, user: str = "", secret: bytes = b"", session: bytes = b"", ticket: bytes = b""
    ) -> None:
        self.link = socket.create_connection((host, port), timeout=10)
        self.arrived = b""
        self.targets: dict[int, tuple[str, int]] = {}
        self.bytesSent = 0
        counts = struct.pack("!I", 8)
        fields = {1: session or os.urandom(16), 2: counts, 3: counts}
        if ticket:
            fields |= {4: ticket, 5: b"\x01"}
        if user:
            fields |= {6: user.encode(), 7: os.urandom(32)}
        hello = b"".join(bytes((number, len(value))) + value for number, value in fields.items())
        self.send(HELLO, 1, 1, hello)
        word, version, _, body = self.receive()
        if word == CHALLENGE:
            self.prove(secret, hello, body)
            word, version, _, body = self.receive()
        if word != WELCOME:
            raise ConnectionError(body.decode())
        assert version == 1
        self.welcomed(body)

    def prove(self, secret: bytes, hello: bytes, challenge: bytes) -> None:
        said = bytes(32) + challenge[:32] + hello
        expected = hmac.digest(secret, b"udptunnel server" + said, "sha256")
        if not hmac.compare_digest(expected, challenge[32:]):
            raise ConnectionError("not our server")
        self.send(PROOF, body=hmac.digest(secret, b"udptunnel local " + said, "sha256"))

    def welcomed(self, body: bytes) -> None:
        fields = {}
        while body:
            fields[body[0]], body = body[2 : 2 + body[1]], body[2 + body[1] :]
        self.session, self.ticket = fields[1], fields[4]
        self.resumed = bool(fields.get(5, b"\0")[0] & 4)

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

    def ask_once(self, to: tuple[str, int]) -> None:
        """Send one datagram, and see it come back."""
        self.announce(0, *to)
        self.ask(0, 0, [b"hello"])
        assert self.answers(1) == [(0, tuple(to), b"hello")]

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
