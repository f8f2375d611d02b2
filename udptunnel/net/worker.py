"""
A worker: the process that holds connections for another one. See L{udptunnel.net.workers} for what they say.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from udptunnel.net.splice import Pipes, Splice
from udptunnel.net.workers import MOVED, NUMBER, TERMS, Channel, endedMessage

LOOK_SECONDS = 5.0
"""How often connections are looked at that may have been silent for too long."""

NO_ROOM = "no descriptor left"


class Worker:
    """Joins what it is given, until the other process is gone."""

    def __init__(self, reactor: Any, opened: socket.socket) -> None:
        """
        @param reactor: provides C{IReactorCore}, C{IReactorFDSet} and C{IReactorTime}.
        @param opened: the socket to the other process.
        """
        self._reactor = reactor
        self._pipes = Pipes()
        self._said = 0
        self._splices: dict[int, Splice] = {}
        self._channel = Channel(reactor, opened, self._received, self._stop)
        self._looking = reactor.callLater(LOOK_SECONDS, self._look)

    def _received(self, message: bytes, descriptors: list[int]) -> None:
        if len(message) > NUMBER.size:
            self._join(message, descriptors)
            return
        splice = self._splices.pop(NUMBER.unpack(message)[0], None)
        if splice is not None:
            splice.close()

    def _join(self, message: bytes, descriptors: list[int]) -> None:
        (number,) = NUMBER.unpack_from(message)
        idleSeconds, length = TERMS.unpack_from(message, NUMBER.size)
        if len(descriptors) != 2:
            # The kernel closes what we have no room for.
            for each in descriptors:
                os.close(each)
            self._channel.send(endedMessage(number, NO_ROOM))
            return
        one, other = (socket.socket(fileno=each) for each in descriptors)
        rest = message[NUMBER.size + TERMS.size :]
        splice = Splice(
            self._reactor,
            self._pipes,
            one,
            other,
            lambda why: self._ended(number, why),
            (rest[:length], rest[length:]),
            idleSeconds,
        )
        self._splices[number] = splice
        splice.start()

    def _ended(self, number: int, why: str) -> None:
        if self._splices.pop(number, None) is not None:
            self._channel.send(endedMessage(number, why))

    def _look(self) -> None:
        self._looking = self._reactor.callLater(LOOK_SECONDS, self._look)
        now = self._reactor.seconds()
        for splice in list(self._splices.values()):
            splice.tick(now)
        moved, self._said = self._pipes.moved - self._said, self._pipes.moved
        if moved:
            self._channel.send(MOVED.pack(0, moved))

    def _stop(self) -> None:
        """The other process wants no more, or is gone."""
        self._looking.cancel()
        self._channel.close()
        for splice in self._splices.values():
            splice.close()
        self._splices.clear()
        self._pipes.close()
        self._reactor.stop()


def main() -> None:
    """
    Be a worker. The only argument is the descriptor of the socket.
    """
    # A terminal tells it to all processes; the one that has started us decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from twisted.internet import reactor

    opened = socket.socket(fileno=int(sys.argv[1]))
    Worker(reactor, opened)
    running: Any = reactor
    running.run(installSignalHandlers=False)
