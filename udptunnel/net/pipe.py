"""Pipes: two TCP connections joined, each byte of one to the other."""

from __future__ import annotations

from typing import Any

from twisted.internet import interfaces
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IHalfCloseableProtocol)
class PipeEnd(Protocol):
    """
    One connection of a pipe.

    Each end is the producer of the other, so a slow reader slows the writer
    down and nothing piles up. When one side has said all it has to say, the
    other is told just that.
    """

    _other: PipeEnd | None = None
    _ended = False

    def joinTo(self, other: PipeEnd) -> None:
        """Make a pipe of two connected ends."""
        self._other, other._other = other, self
        for here, there in ((self, other), (other, self)):
            IConsumer(here.transport).registerProducer(IPushProducer(there.transport), True)

    @property
    def _stream(self) -> Any:
        """The transport, which Twisted's interfaces describe only in parts."""
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        if self._other is not None:
            self._other._stream.write(data)

    def readConnectionLost(self) -> None:
        """This side has said everything."""
        if self._other is None:
            self._stream.loseConnection()
            return
        self._ended = True
        self._stream.unregisterProducer() if self._other._ended else None
        self._other.finish()

    def finish(self) -> None:
        """Nothing more will be written here."""
        self._stream.unregisterProducer()
        if self._ended:
            self._stream.loseConnection()
        elif interfaces.IHalfCloseableDescriptor.providedBy(self.transport):
            self._stream.loseWriteConnection()
        else:
            self._stream.loseConnection()

    def writeConnectionLost(self) -> None:
        """What we had to write is written."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """One end is gone: so is the pipe."""
        other, self._other = self._other, None
        if other is not None:
            other._other = None
            other._stream.unregisterProducer()
            other._stream.loseConnection()
