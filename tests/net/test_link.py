"""Tests for L{udptunnel.net.link}."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import select
import shutil
import socket
import struct
import tempfile
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    wrapClientTLS,
    wrapServerTLS,
)
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS
from twisted.internet.tcp import Connection
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.examples import EXAMPLES
from tests.needs import needs
from tests.waiting import until
from udptunnel.core.counters import Counters
from udptunnel.errors import FrameError, LoginError
from udptunnel.net import link
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.link import (
    RETRANSMIT_MILLISECONDS,
    USER_TIMEOUT_MILLISECONDS,
    LinkProtocol,
    SocketCarrier,
    TransportCarrier,
    makeCarrier,
)
from udptunnel.net.offload import Offload
from udptunnel.net.testing import MemorySocket, MortalTransport, PortReactor, RecordingReceiver
from udptunnel.net.turns import LARGE_READ
from udptunnel.wire.address import Address
from udptunnel.wire.frame import Buffer, Frame, encode

FRAMES = [encode(number, number, 3, bytes(range(number))) for number in range(60)]
STREAM = b"".join(FRAMES)


class RecordingLink:
    """A link that keeps what it is told."""

    lost = False
    session = None

    def __init__(self, carrier: Any) -> None:
        self.carrier = carrier
        self.frames: list[bytes] = []
        self.resumptions = 0
        self.error: Exception | None = None

    def beginningReceived(self, data: Buffer) -> None:
        """All beginnings are good."""

    def framesReceived(self, frames: Sequence[Frame], now: float) -> None:
        if self.error is not None and frames:
            raise self.error
        self.frames += [encode(word, target, size, body) for word, target, size, body in frames]

    def resumed(self, now: float) -> None:
        self.resumptions += 1

    def connectionLost(self, now: float) -> None:
        self.lost = True


def linkProtocol(clock: Callable[[], float] = lambda: 0.0) -> Any:
    """A protocol whose link records."""
    make: Any = lambda carrier, now: RecordingLink(carrier)  # noqa: E731
    return LinkProtocol(make, clock)


class Stream(Connection):
    """A TCP transport on a reactor of the test's own."""

    def __init__(self, opened: socket.socket, protocol: Any, reactor: Any) -> None:
        super().__init__(opened, protocol, reactor)
        self.connected = True

    def getPeer(self) -> Any:
        return None

    getHost = getPeer

    def connectionLost(self, reason: Any) -> None:
        protocol = self.protocol
        super().connectionLost(reason)
        protocol.connectionLost(reason)


class Veiled:
    """A transport that can not be told from any other."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class CarrierMixin:
    """
    Both carriers behave alike. One end of a TCP connection is a link protocol,
    the other a plain socket in the test's hands.
    """

    kind: type[Any]

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.addCleanup(self._checkReactor)

    def _checkReactor(self) -> None:
        self.assertEqual(self.reactor.getReaders() + self.reactor.getWriters(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def connect(self, small: bool = False) -> tuple[Any, Stream, socket.socket]:
        """A link protocol, its transport, and the socket at the other end."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            far = socket.socket()
            if small:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            far.connect(listening.getsockname())
            near, _ = listening.accept()
        if small:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setblocking(False)
        self.addCleanup(far.close)
        protocol = linkProtocol()
        transport = Stream(near, protocol, self.reactor)
        protocol.makeConnection(transport if self.kind is SocketCarrier else Veiled(transport))
        assert isinstance(protocol.link.carrier, self.kind)
        transport.startReading()
        self.addCleanup(lambda: protocol.link.lost or transport.connectionLost(Failure(ConnectionDone())))
        return protocol, transport, far

    def readAll(self, far: socket.socket, length: int) -> bytes:
        """What arrives at the other end, until it is this long."""
        arrived = bytearray()
        while len(arrived) < length:
            self.reactor.turn()
            readable, _, _ = select.select([far], [], [], 10)
            if not readable:
                break
            arrived += far.recv(1 << 20)
        return bytes(arrived)

    # -- what arrives

    def test_frames(self) -> None:
        """Whole frames are passed on in order, each once."""
        protocol, _, far = self.connect()
        far.sendall(STREAM)
        self.reactor.until(lambda: len(protocol.link.frames) == len(FRAMES))
        self.assertEqual(protocol.link.frames, FRAMES)

    def test_byteByByte(self) -> None:
        """They are when they come byte by byte."""
        protocol, _, far = self.connect()
        frames = FRAMES[:4]
        for place in range(len(b"".join(frames))):
            far.sendall(STREAM[place : place + 1])
            self.reactor.turn()
        self.reactor.until(lambda: len(protocol.link.frames) == 4)
        self.assertEqual(protocol.link.frames, frames)

    def test_cuts(self) -> None:
        """They are however the stream is cut."""
        protocol, _, far = self.connect()

        @settings(max_examples=min(EXAMPLES, 100), deadline=None)
        @given(st.lists(st.integers(0, len(STREAM)), max_size=20))
        def check(cuts: list[int]) -> None:
            protocol.link.frames.clear()
            for begin, end in pairwise([0, *sorted(cuts), len(STREAM)]):
                far.sendall(STREAM[begin:end])
                self.reactor.turn()
            self.reactor.until(lambda: len(protocol.link.frames) == len(FRAMES))
            self.assertEqual(protocol.link.frames, FRAMES)

        check()

    def test_largest(self) -> None:
        """The largest frames are passed on too, through several reads."""
        protocol, _, far = self.connect()
        frames = [encode(number, 0, 1400, bytes((number,)) * 65535) for number in range(40)]
        stream = memoryview(b"".join(frames))
        while stream:
            _, writable, _ = select.select([], [far], [], 0)
            if writable:
                stream = stream[far.send(stream[:100_000]) :]
            self.reactor.turn()
        self.reactor.until(lambda: len(protocol.link.frames) == 40)
        self.assertEqual(protocol.link.frames, frames)

    def test_twoLinks(self) -> None:
        """The unfinished frames of several links do not get mixed."""
        ends = [self.connect() for _ in range(3)]
        for place in range(0, len(STREAM), 7):
            for _, _, far in ends:
                far.sendall(STREAM[place : place + 7])
            self.reactor.turn()
        for protocol, _, _ in ends:
            self.reactor.until(lambda: len(protocol.link.frames) == len(FRAMES))  # noqa: B023
            self.assertEqual(protocol.link.frames, FRAMES)

    # -- what is sent

    def test_write(self) -> None:
        """Buffers of all kinds arrive as one stream, in order."""
        protocol, _, far = self.connect()
        welcome = protocol.link.carrier.write([b"abc", b"", bytearray(b"def"), memoryview(b"xghi")[1:]])
        self.assertTrue(welcome)
        self.assertEqual(self.readAll(far, 9), b"abcdefghi")

    def test_stoppedReader(self) -> None:
        """
        When the other end does not read, C{write} says so. What was given
        arrives all the same, once it reads again, and then C{resumed} is called.
        """
        protocol, _, far = self.connect(small=True)
        carrier, sent = protocol.link.carrier, bytearray()
        self.reactor.turn()
        protocol.link.resumptions = 0
        while True:
            buffers = [bytes((len(sent) + number & 0xFF,)) * 1000 for number in range(100)]
            welcome = carrier.write(buffers)
            sent += b"".join(buffers)
            if not welcome:
                break
            self.assertLess(len(sent), 20_000_000)
        self.reactor.turn()
        self.assertEqual(protocol.link.resumptions, 0)
        self.assertEqual(self.readAll(far, len(sent)), sent)
        self.reactor.until(lambda: protocol.link.resumptions > 0)
        self.reactor.turn()
        self.assertEqual(protocol.link.resumptions, 1)
        self.assertTrue(carrier.write([b"more"]))
        self.assertEqual(self.readAll(far, 4), b"more")
        self.assertEqual(protocol.link.resumptions, 1)

    def test_close(self) -> None:
        """A connection that is closed sends first what was written."""
        protocol, _, far = self.connect(small=True)
        stream = bytes(300_000)
        protocol.link.carrier.write([stream])
        protocol.link.carrier.close()
        self.assertEqual(len(self.readAll(far, len(stream))), len(stream))
        self.reactor.until(lambda: protocol.link.lost)
        self.assertEqual(self.readAll(far, 0), b"")

    def test_abort(self) -> None:
        """A connection that is aborted is gone with everything that waits."""
        protocol, _, _ = self.connect(small=True)
        protocol.link.carrier.write([bytes(3_000_000)])
        protocol.link.carrier.abort()
        self.reactor.advance(0)
        self.assertTrue(protocol.link.lost)

    # -- the end

    def test_otherEndCloses(self) -> None:
        """When the other end closes, the link is told, once, and after its last frame."""
        protocol, _, far = self.connect()
        far.sendall(STREAM + b"xy")
        far.shutdown(socket.SHUT_WR)
        self.reactor.until(lambda: protocol.link.lost)
        self.assertEqual(protocol.link.frames, FRAMES)

    def test_reset(self) -> None:
        """When the other end resets the connection, nothing is raised, not by later writes either."""
        protocol, _, far = self.connect()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        for _ in range(3):
            protocol.link.carrier.write([b"abc"])
        self.reactor.until(lambda: protocol.link.lost)
        protocol.link.carrier.write([b"abc"])
        protocol.link.carrier.close()
        protocol.link.carrier.abort()


@needs("sendmsg")
class SocketCarrierTests(CarrierMixin, SynchronousTestCase):
    """L{SocketCarrier}."""

    kind = SocketCarrier

    def test_partial(self) -> None:
        """However little of a write the kernel takes, the rest follows it."""
        stream = [bytes((number,)) * 10 for number in range(5)]
        for taken in range(51):
            protocol, transport, far = self.connect()
            real = transport.socket

            class Miser:
                """A socket that takes only a part of the first write."""

                def sendmsg(self, buffers: Sequence[Buffer]) -> int:
                    if not taken:  # noqa: B023
                        raise BlockingIOError
                    return real.send(b"".join(buffers)[:taken])  # type: ignore[no-any-return]  # noqa: B023

                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)  # noqa: B023

            transport.socket = Miser()
            protocol.link.resumptions = 0
            self.assertEqual(protocol.link.carrier.write(stream), taken == 50)
            transport.socket = real
            self.assertEqual(self.readAll(far, 50), b"".join(stream))
            self.reactor.turn()
            self.assertEqual(protocol.link.resumptions, int(taken < 50))

    def test_options(self) -> None:
        """Small segments go at once."""
        _, transport, _ = self.connect()
        self.assertTrue(transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_later(self) -> None:
        """A call waits for its time, and a second one waits in its place; when the connection is gone none is made."""
        protocol, transport, _ = self.connect()
        called: list[int] = []
        for number in (1, 2):
            protocol.link.carrier.later(0.005, lambda number=number: called.append(number))
        self.reactor.advance(0.004)
        self.assertEqual(called, [])
        self.reactor.advance(0.001)
        self.assertEqual(called, [2])
        protocol.link.carrier.later(0.005, lambda: called.append(3))
        transport.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((called, self.reactor.getDelayedCalls()), ([2], []))

    def test_choice(self) -> None:
        """Only a plain TCP transport is gone around."""
        other: Any = MortalTransport()
        self.assertIsInstance(makeCarrier(other, len, lambda: None), TransportCarrier)


class TransportCarrierTests(CarrierMixin, SynchronousTestCase):
    """L{TransportCarrier}."""

    kind = TransportCarrier

    def test_later(self) -> None:
        """Where the transport has no clock, nothing waits."""
        protocol, _, _ = self.connect()
        called: list[int] = []
        protocol.link.carrier.later(0.005, lambda: called.append(1))
        self.assertEqual(called, [1])


class LinkProtocolTests(SynchronousTestCase):
    """L{LinkProtocol} on a transport in memory."""

    def setUp(self) -> None:
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.transport = MortalTransport()
        self.protocol = linkProtocol()
        self.transport.attach(self.protocol)

    def said(self) -> list[str]:
        """What was logged about this link."""
        return [str(event["error"]) for event in self.events if "error" in event]

    def test_strangers(self) -> None:
        """Who sends what is no frame is cut off at once, with one log line, and is listened to no longer."""
        self.protocol.link.error = FrameError("no frame")
        for _ in range(3):
            self.protocol.dataReceived(STREAM)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.said(), ["no frame"])
        self.assertEqual(self.protocol.link.frames, [])
        self.protocol.link.error = None
        self.protocol.dataReceived(STREAM)
        self.assertEqual(self.protocol.link.frames, [])

    def test_notWelcome(self) -> None:
        """Who is not welcome gets what was written before the connection is closed."""
        self.protocol.link.error = LoginError("not you")
        self.protocol.link.carrier.write([b"farewell"])
        self.protocol.dataReceived(STREAM)
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.disconnected)
        self.assertEqual(self.transport.value(), b"farewell")
        self.assertEqual(self.said(), ["not you"])

    def test_beginning(self) -> None:
        """The first bytes are shown to the link before there is a whole frame."""

        def refuse(data: Buffer) -> None:
            raise FrameError(bytes(data).decode())

        self.protocol.link.beginningReceived = refuse
        self.protocol.dataReceived(b"GE")
        self.assertEqual(self.said(), ["GE"])
        self.assertTrue(self.transport.disconnected)

    def test_givesWay(self) -> None:
        """Behind what may fill an application's socket, and only there, others get a turn."""
        turns: list[int] = []
        self.patch(link, "giveWay", lambda: turns.append(len(self.protocol.link.frames)))
        self.protocol.dataReceived(STREAM)
        self.assertEqual([], turns)
        self.protocol.dataReceived(encode(1, 1, 1000, bytes(LARGE_READ)))
        self.assertEqual([len(FRAMES) + 1], turns)

    def test_check(self) -> None:
        """The connection is looked at before the first bytes are, and no longer when the link is up."""
        order: list[str] = []
        self.protocol.checkConnection = lambda: order.append("connection")
        self.protocol.link.beginningReceived = lambda data: order.append("bytes")
        self.assertEqual(order, [])
        self.protocol.dataReceived(b"ud")
        self.assertEqual(order[:2], ["connection", "bytes"])
        order.clear()
        self.protocol.link.session = object()
        self.protocol.dataReceived(b"pt")
        self.assertNotIn("connection", order)

    def test_wrongConnection(self) -> None:
        """If that is not what it should be, no byte is heard, and the link is closed with one log line."""

        def refuse() -> None:
            raise LoginError("another language")

        self.protocol.checkConnection = refuse
        for _ in range(3):
            self.protocol.dataReceived(STREAM)
        self.assertEqual((self.protocol.link.frames, self.said()), ([], ["another language"]))
        self.assertTrue(self.transport.disconnecting)

    def test_endedAnyway(self) -> None:
        """Whoever counts connections hears of the end, even if the rules of the link fail over it."""
        ended: list[Failure] = []
        self.protocol.ended = ended.append

        def fail(now: float) -> None:
            raise ZeroDivisionError("a mistake")

        self.protocol.link.connectionLost = fail
        self.assertRaises(ZeroDivisionError, self.transport.die)
        self.assertEqual(len(ended), 1)

    def test_clock(self) -> None:
        """The clock is looked at once for all frames that arrive together."""
        moments = iter(range(1, 10))
        protocol = linkProtocol(lambda: float(next(moments)))
        MortalTransport().attach(protocol)
        seen: list[float] = []
        protocol.link.framesReceived = lambda frames, now: seen.append(now)
        protocol.dataReceived(STREAM)
        self.assertEqual(seen, [2.0])

    def test_dyingTransport(self) -> None:
        """A transport that dies tells its producer to stop; the UDP port that feeds the link outlives that."""
        opened, receiver = MemorySocket(), RecordingReceiver()
        port = DatagramPort(Traffic(PortReactor(), Offload(), Counters()), Address("127.0.0.1", 0), receiver)
        port.adopt(opened)  # type: ignore[arg-type]
        self.transport.die(ConnectionLost())
        self.assertTrue(self.protocol.link.lost)
        self.assertFalse(opened.closed)
        opened.arrived.append((b"abc", ("127.0.0.1", 9)))
        port.doRead()
        self.assertEqual(receiver.datagrams, [b"abc"])

    def test_freed(self) -> None:
        """When a connection is gone nothing of it waits for the collector, and writing to its link does no harm."""
        link = self.protocol.link
        left = [weakref.ref(each) for each in (self.protocol, link.carrier, self.transport)]
        self.transport.die()
        self.assertFalse(link.carrier.write([b"late"]))
        link.carrier.keep(1)
        link.carrier.close()
        link.carrier.abort()
        gc.disable()
        self.addCleanup(gc.enable)
        del self.protocol, self.transport, link
        self.assertEqual([each() for each in left], [None] * 3)


def certificate() -> PrivateCertificate:
    """A throw-away certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return PrivateCertificate.loadPEM(made.public_bytes(pem) + secret)


class StreamTests(TestCase):
    """Links over other streams of Twisted, on the real reactor."""

    async def carry(self, server: Any, client: Callable[[Any], Any], kind: type[Any]) -> None:
        """Frames go both ways between two protocols, more of them than the path holds."""
        accepted: list[Any] = []

        def accept() -> Any:
            accepted.append(linkProtocol())
            return accepted[-1]

        listening = await server.listen(Factory.forProtocol(accept))
        near = await client(listening.getHost()).connect(Factory.forProtocol(linkProtocol))
        await until(lambda: accepted and accepted[0].link)
        far = accepted[0]
        frames = [encode(number, 0, 1400, bytes((number,)) * 65535) for number in range(100)]
        for here, there in ((near, far), (far, near)):
            self.assertIsInstance(here.link.carrier, kind)
            refused = 0
            for frame in frames:
                refused += not here.link.carrier.write([frame[:10], frame[10:]])
            self.assertGreater(refused, 0)
            await until(lambda: len(there.link.frames) == 100)  # noqa: B023
            self.assertEqual(there.link.frames, frames)
            await until(lambda: here.link.resumptions > 0)  # noqa: B023
        near.link.carrier.close()
        await until(lambda: near.link.lost and far.link.lost)
        await listening.stopListening()

    async def test_tls(self) -> None:
        """Through TLS, links carry the same frames."""
        made = certificate()
        trusted = Certificate.loadPEM(made.dumpPEM().partition(b"-----BEGIN PRIVATE")[0])
        options = optionsForClientTLS("localhost", trustRoot=trusted)
        await self.carry(
            SSL4ServerEndpoint(reactor, 0, made.options(), interface="127.0.0.1"),
            lambda at: wrapClientTLS(options, TCP4ClientEndpoint(reactor, at.host, at.port)),
            TransportCarrier,
        )

    @needs("sendmsg")
    async def test_tcp(self) -> None:
        """Over TCP on the real reactor, the same."""
        await self.carry(
            TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"),
            lambda at: TCP4ClientEndpoint(reactor, at.host, at.port),
            SocketCarrier,
        )

    @needs("Unix sockets")
    async def test_unix(self) -> None:
        """Over Unix sockets, which have no TCP options, the same."""
        # Not in trial's own folder: the path of a Unix socket holds 107 bytes only.
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        await self.carry(
            UNIXServerEndpoint(reactor, os.path.join(path, "s")),
            lambda at: UNIXClientEndpoint(reactor, at.name),
            SocketCarrier,
        )

    def assertTuned(self, protocol: Any, kept: int = 1 << 20) -> None:
        """What is under a link gives up in time and keeps no long queue."""
        stream = protocol.transport
        while not isinstance(stream, Connection):
            stream = stream.transport
        options = [stream.socket.getsockopt(socket.IPPROTO_TCP, number) for number in (18, 25, socket.TCP_NODELAY)]
        self.assertEqual(options[:2], [USER_TIMEOUT_MILLISECONDS, kept])
        self.assertTrue(options[2])
        self.assertTriesSoon(stream.socket)

    def assertTriesSoon(self, opened: socket.socket) -> None:
        """TCP makes no long pauses before it tries again; older kernels have no such option."""
        self.assertTrue(opened.getsockopt(socket.IPPROTO_TCP, 16))
        with contextlib.suppress(OSError):
            self.assertEqual(opened.getsockopt(socket.IPPROTO_TCP, 44), RETRANSMIT_MILLISECONDS)

    @needs("Linux")
    async def test_tuned(self) -> None:
        """The TCP socket below has its time-out (tcp(7)) and its short queue, with TLS in any way and without."""
        made = certificate()
        trusted = Certificate.loadPEM(made.dumpPEM().partition(b"-----BEGIN PRIVATE")[0])
        options = optionsForClientTLS("localhost", trustRoot=trusted)
        plain = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        sealed = SSL4ServerEndpoint(reactor, 0, made.options(), interface="127.0.0.1")
        for server, isSealed in ((plain, False), (sealed, True), (wrapServerTLS(made.options(), plain), True)):
            accepted: list[Any] = []
            factory = Factory.forProtocol(lambda accepted=accepted: accepted.append(linkProtocol()) or accepted[-1])  # type: ignore[misc]
            listening = await server.listen(factory)
            way: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", listening.getHost().port)
            near = await (wrapClientTLS(options, way) if isSealed else way).connect(Factory.forProtocol(linkProtocol))
            await until(lambda: accepted and accepted[0].link)  # noqa: B023
            for end in (near, accepted[0]):
                self.assertTuned(end)
                end.link.carrier.keep(12345)
                self.assertTuned(end, 12345)
            near.link.carrier.close()
            await until(lambda: near.link.lost and accepted[0].link.lost)  # noqa: B023
            await listening.stopListening()
