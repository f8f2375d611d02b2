"""
The same round trips over a TCP connection: what a carrier takes by itself, without a tunnel in it.

Messages have one size and follow each other in the stream. Both ends send them
at once (C{TCP_NODELAY}), as both ends of a link do.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress

from bench.load import TICK_SECONDS, Source, Way, endAfter, isReadable, payload
from bench.places import Address, Site
from bench.programs import PATIENCE_SECONDS, BenchError

READ_BYTES = 65536
ANSWER_SECONDS = 0.5
"""A connection without an answer in this time is tried anew: a proxy may have nobody behind it yet."""


class StreamSource(Source):
    """
    An application's TCP connection.

    @ivar socket: the connection.
    """

    def __init__(self, way: Way, size: int) -> None:
        """
        @param size: bytes of each message.
        """
        self.socket = way.near.connect(way.to)
        # With a timeout, "do not wait" would wait for it.
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.header = b""
        self._control = None
        self._size, self._rest = size, b""

    def send(self, datagram: bytes) -> None:
        """Send one message. That nobody takes it is no error: it is lost."""
        with suppress(OSError):
            self.socket.sendall(datagram)

    def receive(self) -> bytes | None:
        """The next message, if all of it is there."""
        if len(self._rest) < self._size:
            with suppress(BlockingIOError, ConnectionError):
                self._rest += self.socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        if len(self._rest) < self._size:
            return None
        message, self._rest = self._rest[: self._size], self._rest[self._size :]
        return message


class StreamWay(Way):
    """How messages get to a L{StreamEcho}."""

    size = 64

    def open(self) -> StreamSource:
        """
        A new connection, on which an answer has come.

        @raise BenchError: none comes.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            source = StreamSource(self, self.size)
            source.send(payload(0, self.size, 0.0))
            if isReadable(source.socket, ANSWER_SECONDS) and source.receive() is not None:
                return source
            source.close()
            time.sleep(TICK_SECONDS)
        raise BenchError("nothing comes back over TCP")


class StreamEcho:
    """
    A TCP target that sends everything back, in a process of its own.

    @ivar address: where it is.
    """

    def __init__(self, site: Site) -> None:
        with site.entered():
            self._socket = socket.create_server((site.host, 0))
        self.address: Address = self._socket.getsockname()
        self._child = os.fork()
        if not self._child:
            endAfter(self._accept)

    def _accept(self) -> None:
        parent = os.getppid()
        self._socket.settimeout(TICK_SECONDS)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                # A connection has a thread, so that answering is one blocking read and one write.
                threading.Thread(target=_answer, args=self._socket.accept()[:1], daemon=True).start()

    def close(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._socket.close()


def _answer(connection: socket.socket) -> None:
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(OSError):
        while data := connection.recv(READ_BYTES):
            connection.sendall(data)
