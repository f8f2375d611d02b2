"""Tests for L{udptunnel.net.pipe}."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests.waiting import until
from udptunnel.net.pipe import PipeEnd


@implementer(IHalfCloseableProtocol)
class Speaker(Protocol):
    """
    Somebody at an end of a pipe, in the test's hands.

    @ivar heard: what the other has said.
    @ivar ended: whether the other has said everything.
    @ivar lost: whether the connection is gone.
    """

    transport: Any

    def __init__(self) -> None:
        self.heard = bytearray()
        self.ended = self.lost = self.finished = False

    def finish(self) -> None:
        """We have said everything."""
        self.finished = True
        if self.ended:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def readConnectionLost(self) -> None:
        self.ended = True
        if self.finished:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """We know."""

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class PipeTests(TestCase):
    """L{PipeEnd}."""

    async def connect(self) -> tuple[Any, Any]:
        """Two speakers with a pipe between them."""
        ends: list[Any] = []

        def makeEnd() -> PipeEnd:
            ends.append(PipeEnd())
            return ends[-1]

        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listening = await endpoint.listen(Factory.forProtocol(makeEnd))
        port = listening.getHost().port
        speakers = [
            await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(Speaker)) for _ in range(2)
        ]
        await until(lambda: len(ends) == 2 and all(end.transport for end in ends))
        await listening.stopListening()
        # Which end has which speaker.
        ports = [speaker.transport.getHost().port for speaker in speakers]
        ends.sort(key=lambda end: ports.index(end.transport.getPeer().port))
        ends[0].joinTo(ends[1])
        self.ends = ends
        return speakers[0], speakers[1]

    async def hangUp(self, *speakers: Any) -> None:
        """End everything."""
        for speaker in speakers:
            speaker.transport.abortConnection()
        await until(lambda: all(speaker.lost for speaker in speakers))
        await until(lambda: all(end.transport.disconnected for end in self.ends))

    async def test_bothWays(self) -> None:
        """Each byte of one side comes out at the other, in order."""
        here, there = await self.connect()
        for speaker, listener in ((here, there), (there, here)):
            for word in (b"one", b"two", bytes(300_000)):
                speaker.transport.write(word)
            await until(lambda: len(listener.heard) == 300_006)  # noqa: B023
            self.assertEqual(listener.heard[:6], b"onetwo")
        await self.hangUp(here, there)

    async def test_halfClose(self) -> None:
        """When one side has said everything, the other is told just that, and can still answer."""
        for turned in (False, True):
            here, there = await self.connect()
            first, second = (there, here) if turned else (here, there)
            first.transport.write(b"question")
            first.finish()
            await until(lambda: second.ended)  # noqa: B023
            self.assertEqual(second.heard, b"question")
            self.assertFalse(second.lost or first.ended)
            second.transport.write(b"answer")
            second.finish()
            await until(lambda: first.lost and second.lost)  # noqa: B023
            self.assertEqual(first.heard, b"answer")
            await self.hangUp(here, there)

    async def test_halfCloseOfMuch(self) -> None:
        """Nothing that was said before is lost, however much waits for a slow reader."""
        here, there = await self.connect()
        there.transport.pauseProducing()
        here.transport.write(bytes(8_000_000))
        here.finish()
        await until(lambda: self.ends[0].transport.producer is not None)
        there.transport.resumeProducing()
        await until(lambda: there.ended)
        self.assertEqual(len(there.heard), 8_000_000)
        there.transport.write(b"answer")
        there.finish()
        await until(lambda: here.lost and there.lost)
        self.assertEqual(here.heard, b"answer")
        await self.hangUp(here, there)

    async def test_slowReader(self) -> None:
        """A reader that stops stops the writer: hardly anything piles up in between."""
        here, there = await self.connect()
        there.transport.pauseProducing()
        here.transport.write(bytes(30_000_000))
        # The pipe's end has stopped reading: its transport is paused by the other one.
        await until(lambda: self.ends[0].transport not in reactor.getReaders())  # type: ignore[attr-defined]
        waiting = self.ends[1].transport
        self.assertLess(len(waiting.dataBuffer) + waiting._tempDataLen, 1_000_000)
        there.transport.resumeProducing()
        await until(lambda: len(there.heard) == 30_000_000)
        await self.hangUp(here, there)

    async def test_abort(self) -> None:
        """When one connection breaks, the other is closed."""
        for turned in (False, True):
            here, there = await self.connect()
            first, second = (there, here) if turned else (here, there)
            first.transport.abortConnection()
            await until(lambda: second.ended or second.lost)  # noqa: B023
            await until(lambda: all(end.transport.disconnected for end in self.ends))
            await self.hangUp(here, there)

    async def test_alone(self) -> None:
        """An end without a pipe drops what comes, and ends with its other side."""
        ends: list[Any] = []

        def makeEnd() -> PipeEnd:
            ends.append(PipeEnd())
            return ends[-1]

        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listening = await endpoint.listen(Factory.forProtocol(makeEnd))
        client = TCP4ClientEndpoint(reactor, "127.0.0.1", listening.getHost().port)
        speaker: Any = await client.connect(Factory.forProtocol(Speaker))
        speaker.transport.write(b"anybody?")
        speaker.finish()
        await until(lambda: speaker.lost)
        await listening.stopListening()
