"""Tests for L{udptunnel.net.socks5}."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.core.fakes import countingRandom
from tests.examples import EXAMPLES
from tests.net.test_pipe import Speaker
from tests.waiting import until
from udptunnel.core.counters import Counters
from udptunnel.core.session import LocalSession
from udptunnel.errors import ListenError
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.entry import SocksRelay
from udptunnel.net.offload import Offload
from udptunnel.net.socks5 import REQUEST_SECONDS, SocksServerProtocol
from udptunnel.net.socks5client import SocksClientEndpoint, SocksRefusedError
from udptunnel.net.testing import MortalTransport, PortReactor, RecordingLink, RecordingReceiver
from udptunnel.wire.address import Address, unpackAddress
from udptunnel.wire.socks5 import (
    ClientNegotiation,
    Command,
    ReplyCode,
    Request,
    ServerNegotiation,
    packHeader,
    packReply,
)

TARGET = Address("192.0.2.1", 53)


class FakeEndpoint:
    """A way whose outcome the test gives."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.asked: list[Deferred[Any]] = []
        self.factory: Any = None

    def connect(self, factory: Any) -> Deferred[Any]:
        self.factory = factory

        def cancelled(_: object) -> None:
            self.cancelled += 1

        self.asked.append(Deferred(cancelled))
        return self.asked[-1]

    def succeed(self) -> tuple[Any, MortalTransport]:
        """The far end is reached."""
        far = self.factory.buildProtocol(None)
        transport = MortalTransport()
        transport.attach(far)
        self.asked[-1].callback(far)
        return far, transport


class FakeDoor:
    """A door whose relays are real ones, on a reactor of the test's own."""

    def __init__(self, authenticate: Callable[[bytes, bytes], bool] | None = None) -> None:
        self.authenticate = authenticate
        self.way: Any = None
        self.clients: set[SocksServerProtocol] = set()
        self.asked: list[Address] = []
        self.refusal: ListenError | None = None
        self.reactor, self.counters = PortReactor(), Counters()
        self.session = LocalSession(1000, self.counters, countingRandom())
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.traffic = Traffic(self.reactor, Offload(), self.counters)

    def endpointFor(self, target: Address) -> Any:
        self.asked.append(target)
        return self.way

    def openRelay(self, listen: Address, client: str) -> SocksRelay:
        if self.refusal is not None:
            raise self.refusal
        relay = SocksRelay(self.traffic, self.session, self.reactor.seconds, listen, client)
        relay.startListening()
        return relay


def connection(clock: Clock, door: FakeDoor) -> tuple[SocksServerProtocol, MortalTransport]:
    """A client's control connection from loopback to loopback."""
    time: Any = clock
    protocol = SocksServerProtocol(time, door)
    transport = MortalTransport(IPv4Address("TCP", "127.0.0.1", 1080), IPv4Address("TCP", "127.0.0.1", 4000))
    transport.attach(protocol)
    return protocol, transport


def request(command: int, target: Address = Address("0.0.0.0", 0)) -> bytes:  # noqa: B008
    """What a client without login says, up to its request."""
    return b"\5\1\0" + bytes((5, command)) + packReply(0, target)[2:]


class ControlTestCase(SynchronousTestCase):
    """A SOCKS5 server in memory; when a test ends, it has left nothing."""

    authenticate: Callable[[bytes, bytes], bool] | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.door = FakeDoor(None if self.authenticate is None else type(self).authenticate)
        self.protocol, self.transport = connection(self.clock, self.door)
        self.addCleanup(self._checkReactors)
        self.addCleanup(self._hangUp)

    def _hangUp(self) -> None:
        if self.transport.connected:
            self.transport.die()

    def _checkReactors(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.door.reactor.getReaders(), [])
        self.assertEqual(len(self.door.session.associations), 0)

    def say(self, data: bytes) -> bytes:
        """Say something, and get what the server answers."""
        self.transport.clear()
        self.protocol.dataReceived(data)
        return self.transport.value()  # type: ignore[no-any-return]

    def assertRefused(self, answer: bytes, code: int) -> None:
        """The answer ends with a refusal, and the connection is closed once it is out."""
        self.assertEqual(answer, b"\5\0" + packReply(code))
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.disconnected)

    def relay(self) -> Address:
        """Have a relay opened, and get its address."""
        answer = self.say(request(Command.UDP_ASSOCIATE))
        self.assertEqual(answer[:5], b"\5\0\5\0\0")
        return unpackAddress(answer, 5)[0]

    def client(self, host: str = "127.0.0.1") -> tuple[DatagramPort, RecordingReceiver]:
        """A UDP port of a client."""
        receiver = RecordingReceiver()
        port = DatagramPort(Traffic(self.door.reactor, Offload(), Counters()), Address(host, 0), receiver)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port, receiver


class NegotiationTests(ControlTestCase):
    """Greeting and request."""

    def test_pieces(self) -> None:
        """Greeting and request may come in any pieces, also all at once."""
        whole = request(Command.UDP_ASSOCIATE)
        for cuts in (range(1, len(whole)), (), (3,), (2, 5)):
            door = FakeDoor()
            protocol, transport = connection(self.clock, door)
            for begin, end in pairwise([0, *cuts, len(whole)]):
                protocol.dataReceived(whole[begin:end])
            self.assertEqual(transport.value()[:5], b"\5\0\5\0\0")
            transport.die()
            self.assertEqual(door.reactor.getReaders(), [])

    def test_noMethod(self) -> None:
        """A client that offers no method of ours is told so and closed."""
        for greeting in (b"\5\0", b"\5\1\2", b"\5\2\1\2"):
            protocol, transport = connection(self.clock, self.door)
            protocol.dataReceived(greeting)
            self.assertEqual(transport.value(), b"\5\xff")
            self.assertTrue(transport.disconnecting)
            transport.die()

    def test_otherProtocols(self) -> None:
        """Who speaks something else gets nothing but an end."""
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"\4\1\0\x35\1\2\3\4\0", b"\x16\3\1\2\0\1", b"\0"):
            protocol, transport = connection(self.clock, self.door)
            protocol.dataReceived(words)
            protocol.dataReceived(words)
            self.assertEqual(transport.value(), b"")
            self.assertTrue(transport.disconnecting)
            transport.die()

    def test_commands(self) -> None:
        """BIND and commands that nobody knows are refused with code 7."""
        for command in (2, 0, 4, 5, 0xF3, 255):
            protocol, transport = connection(self.clock, self.door)
            protocol.dataReceived(request(command, TARGET))
            self.assertEqual(transport.value(), b"\5\0" + packReply(ReplyCode.COMMAND_NOT_SUPPORTED))
            self.assertTrue(transport.disconnecting)
            transport.die()

    def test_addressType(self) -> None:
        """An address of an unknown type is refused with code 8."""
        answer = self.say(b"\5\1\0\5\3\0\2\1\2\3\4\0\0")
        self.assertRefused(answer, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)

    def test_deadline(self) -> None:
        """A client has ten seconds in all for its request, however it spreads its bytes (S-11)."""
        whole = request(Command.UDP_ASSOCIATE)
        for number in range(9):
            self.clock.advance(1.1)
            self.say(whole[number : number + 1])
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(0.2)
        self.assertTrue(self.transport.disconnected)

    def test_silence(self) -> None:
        """A client that says nothing is closed after ten seconds, without a word."""
        self.clock.advance(REQUEST_SECONDS - 0.1)
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(0.2)
        self.assertTrue(self.transport.disconnected)
        self.assertEqual(self.transport.value(), b"")

    def test_noReader(self) -> None:
        """A client that does not read its refusal does not keep us longer than ten seconds (RFC 1928 section 6)."""
        self.say(b"\5\1\2")
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(REQUEST_SECONDS + 0.1)
        self.assertTrue(self.transport.disconnected)

    def test_garbage(self) -> None:
        """Whatever bytes come, in whatever pieces, nothing is raised, and nothing is left behind."""
        pieces = st.lists(
            st.one_of(
                st.binary(max_size=30),
                st.sampled_from([b"\5", b"\1\0", b"\5\1\0", b"\5\3\0\1", b"\5\1\0\3\1a\0\1", request(3), request(1)]),
            ),
            max_size=8,
        )

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(pieces, st.booleans(), st.booleans(), st.sampled_from(["die", "time", "connect", "refuse"]))
        def check(pieces: list[bytes], login: bool, connects: bool, end: str) -> None:
            clock, door = Clock(), FakeDoor((lambda user, password: user == password) if login else None)
            door.way = FakeEndpoint() if connects else None
            protocol, transport = connection(clock, door)
            for piece in pieces:
                protocol.dataReceived(piece)
            if connects and door.way.asked and end == "connect":
                _, far = door.way.succeed()
                protocol.dataReceived(b"more")
                far.die()
            elif connects and door.way.asked and end == "refuse":
                door.way.asked[0].errback(Failure(SocksRefusedError("no", 5)))
            elif end == "time":
                clock.advance(20)
            for piece in pieces if end != "time" else ():
                protocol.dataReceived(piece)
            transport.die()
            self.assertEqual(clock.getDelayedCalls(), [])
            self.assertEqual(door.reactor.getReaders(), [])

        check()


class LoginTests(ControlTestCase):
    """User and password (RFC 1929)."""

    @staticmethod
    def authenticate(user: bytes, password: bytes) -> bool:
        """One user there is."""
        return (user, password) == (b"alice", b"secret")

    def test_login(self) -> None:
        """Who knows a password is served, byte by byte as well; who does not is closed."""
        good = b"\5\2\0\2\1\5alice\6secret" + request(Command.UDP_ASSOCIATE)[3:]
        for pieces in ([good], [bytes((byte,)) for byte in good]):
            protocol, transport = connection(self.clock, self.door)
            for piece in pieces:
                protocol.dataReceived(piece)
            self.assertEqual(transport.value()[:7], b"\5\2\1\0\5\0\0")
            transport.die()
        self.assertEqual(self.say(good.replace(b"secret", b"sacred")), b"\5\2\1\1")
        self.assertTrue(self.transport.disconnecting)

    def test_mustLogIn(self) -> None:
        """Where a login is wanted, nobody gets in without."""
        self.assertEqual(self.say(request(Command.UDP_ASSOCIATE)), b"\5\xff")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.door.reactor.getReaders(), [])


class AssociateTests(ControlTestCase):
    """UDP ASSOCIATE."""

    def test_reply(self) -> None:
        """The relay is at the control connection's own address, with a port of its own."""
        address = self.relay()
        self.assertEqual(address.host, "127.0.0.1")
        self.assertGreater(address.port, 0)
        self.assertEqual([port.address for port in self.door.reactor.getReaders()], [address])  # type: ignore[attr-defined]

    def test_mapped(self) -> None:
        """An IPv4 client of a socket for both families gets an IPv4 address."""
        door = FakeDoor()
        time: Any = self.clock
        protocol = SocksServerProtocol(time, door)
        transport = MortalTransport(
            IPv4Address("TCP", "::ffff:127.0.0.1", 1080), IPv4Address("TCP", "::ffff:127.0.0.1", 4000)
        )
        transport.attach(protocol)
        protocol.dataReceived(request(Command.UDP_ASSOCIATE))
        self.assertEqual(unpackAddress(transport.value(), 5)[0].host, "127.0.0.1")
        transport.die()
        self.assertEqual(door.reactor.getReaders(), [])

    def test_hint(self) -> None:
        """The address in the request, often a wrong one, does not matter."""
        for hint in (TARGET, Address("::", 0), Address("name.example", 1), Address("255.255.255.255", 65535)):
            door = FakeDoor()
            protocol, transport = connection(self.clock, door)
            protocol.dataReceived(request(Command.UDP_ASSOCIATE, hint))
            self.assertEqual(transport.value()[:5], b"\5\0\5\0\0")
            transport.die()

    def test_there(self) -> None:
        """A client's datagrams go to the targets in their headers; names are passed on unresolved."""
        address = self.relay()
        port, _ = self.client()
        for target in (TARGET, Address("name.example", 53), Address("2001:db8::1", 53)):
            header = packHeader(target)
            port.send(address, len(header) + 3, header + b"abc")
            self.door.reactor.until(lambda: bool(self.door.link.datagrams))
            self.assertEqual(self.door.link.datagrams, [(target, b"abc")])
            self.door.link.parcels.clear()

    def test_back(self) -> None:
        """Replies carry the IP address that they come from."""
        address = self.relay()
        port, receiver = self.client()
        header = packHeader(Address("name.example", 53))
        port.send(address, len(header) + 3, header + b"abc")
        self.door.reactor.until(lambda: bool(self.door.link.parcels))
        (association,) = self.door.session.associations
        association.outlet.send(TARGET, 3, b"defg")
        self.door.reactor.until(lambda: len(receiver.datagrams) == 2)
        self.assertEqual(receiver.datagrams, [packHeader(TARGET) + b"def", packHeader(TARGET) + b"g"])
        self.assertEqual(receiver.sources, {address})

    def test_otherHosts(self) -> None:
        """Datagrams from another host than the client's are dropped and counted."""
        address = self.relay()
        stranger, _ = self.client("127.0.0.2")
        header = packHeader(TARGET)
        stranger.send(address, len(header) + 3, header + b"abc")
        self.door.reactor.until(lambda: bool(self.door.counters.dropped))
        self.assertEqual(self.door.counters.dropped, {"not from the SOCKS5 client": 1})
        self.assertEqual(self.door.link.parcels, [])

    def test_fragments(self) -> None:
        """Fragments are dropped and counted."""
        address = self.relay()
        port, _ = self.client()
        port.send(address, 13, b"\0\0\1" + packHeader(TARGET)[3:] + b"abc")
        self.door.reactor.until(lambda: bool(self.door.counters.dropped))
        self.assertEqual(self.door.counters.dropped, {"SOCKS5 fragment": 1})

    def test_end(self) -> None:
        """The relay and its associations end with the control connection."""
        address = self.relay()
        port, _ = self.client()
        port.send(address, 13, packHeader(TARGET) + b"abc")
        self.door.reactor.until(lambda: bool(self.door.link.parcels))
        self.assertEqual(len(self.door.session.associations), 1)
        self.transport.die()
        self.assertEqual(len(self.door.session.associations), 0)
        self.assertEqual(self.door.reactor.getReaders(), [port])

    def test_stays(self) -> None:
        """They do not end before, however long the control connection is silent, and whatever is said on it."""
        self.relay()
        self.clock.advance(100_000)
        self.assertEqual(self.say(b"unexpected" * 1000), b"")
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(len(self.door.reactor.getReaders()), 1)

    def test_noRelay(self) -> None:
        """When no relay can be opened, the client is told."""
        self.door.refusal = ListenError("no descriptor is left")
        self.assertRefused(self.say(request(Command.UDP_ASSOCIATE)), ReplyCode.GENERAL_FAILURE)


class ConnectTests(ControlTestCase):
    """CONNECT, with the far end in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.way = FakeEndpoint()

    def ask(self) -> bytes:
        """Send a request."""
        self.door.way = self.way
        return self.say(request(Command.CONNECT, TARGET))

    def test_notServed(self) -> None:
        """Where CONNECT is not passed on, it is refused with code 7."""
        self.assertRefused(self.say(request(Command.CONNECT, TARGET)), ReplyCode.COMMAND_NOT_SUPPORTED)
        self.assertEqual(self.door.asked, [TARGET])

    def test_passedOn(self) -> None:
        """When the far end is reached, the client is told, and bytes pass both ways."""
        self.assertEqual(self.ask(), b"\5\0")
        far, transport = self.way.succeed()
        self.assertEqual(self.transport.value(), b"\5\0" + packReply(ReplyCode.SUCCEEDED))
        self.protocol.dataReceived(b"question")
        self.assertEqual(transport.value(), b"question")
        self.transport.clear()
        far.dataReceived(b"answer")
        self.assertEqual(self.transport.value(), b"answer")
        transport.die()
        self.assertTrue(self.transport.disconnecting)

    def test_early(self) -> None:
        """What the client says before it is answered is kept, and it is read no further."""
        self.door.way = self.way
        self.say(request(Command.CONNECT, TARGET) + b"one")
        self.protocol.dataReceived(b"two")
        self.assertEqual(self.transport.producerState, "paused")
        _, transport = self.way.succeed()
        self.assertEqual(transport.value(), b"onetwo")
        self.assertEqual(self.transport.producerState, "producing")
        transport.die()

    def test_refusals(self) -> None:
        """The far server's refusal is passed on with its code; any other failure is a general one."""
        for error, code in (
            (SocksRefusedError("no", ReplyCode.HOST_UNREACHABLE), ReplyCode.HOST_UNREACHABLE),
            (SocksRefusedError("no", ReplyCode.CONNECTION_REFUSED), ReplyCode.CONNECTION_REFUSED),
            (ConnectionRefusedError(), ReplyCode.GENERAL_FAILURE),
        ):
            protocol, transport = connection(self.clock, self.door)
            self.door.way = self.way
            protocol.dataReceived(request(Command.CONNECT, TARGET))
            self.way.asked[-1].errback(Failure(error))
            self.assertEqual(transport.value(), b"\5\0" + packReply(code))
            self.assertTrue(transport.disconnecting)
            transport.die()

    def test_clientGone(self) -> None:
        """When the client is gone before the far end is reached, the attempt is given up, and nothing is left."""
        self.ask()
        self.transport.clear()
        self.transport.die()
        self.assertEqual(self.way.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.transport.value(), b"")

    def test_noDeadline(self) -> None:
        """A connection that is passed on may last."""
        self.ask()
        _, transport = self.way.succeed()
        self.clock.advance(100_000)
        self.assertFalse(self.transport.disconnecting or transport.disconnecting)
        transport.die()


class UpstreamServer(Speaker):
    """
    A small SOCKS5 server that is the target itself.

    @ivar request: what it was asked for.
    """

    request: Request | None = None

    def __init__(self, code: int = 0) -> None:
        super().__init__()
        self._negotiation = ServerNegotiation()
        self._code = code

    def dataReceived(self, data: bytes) -> None:
        if self.request is not None:
            super().dataReceived(data)
            return
        self.transport.write(self._negotiation.receive(data))
        if self._negotiation.request is not None:
            self.request = self._negotiation.request
            self.transport.write(packReply(self._code))
            self.heard += self._negotiation.rest


class SocksSpeaker(Speaker):
    """
    A SOCKS5 client that asks for a connection.

    @ivar negotiation: how far it got.
    """

    def __init__(self, target: Address) -> None:
        super().__init__()
        self.negotiation = ClientNegotiation(Command.CONNECT, target)

    def connectionMade(self) -> None:
        self.transport.write(self.negotiation.begin())

    def dataReceived(self, data: bytes) -> None:
        if self.negotiation.reply is not None:
            super().dataReceived(data)
            return
        self.transport.write(self.negotiation.receive(data))
        self.heard += self.negotiation.rest


class PassedOnTests(TestCase):
    """CONNECT through two SOCKS5 servers on real connections."""

    async def connect(self, code: int = 0) -> tuple[SocksSpeaker, UpstreamServer]:
        """A client, and the target at the far end of its connection."""
        accepted: list[UpstreamServer] = []
        protocols: list[SocksServerProtocol] = []

        def accept() -> Protocol:
            accepted.append(UpstreamServer(code))
            return accepted[-1]

        clock: Any = reactor
        upstream = await TCP4ServerEndpoint(clock, 0, interface="127.0.0.1").listen(Factory.forProtocol(accept))
        way = TCP4ClientEndpoint(clock, "127.0.0.1", upstream.getHost().port)
        door = FakeDoor()
        door.endpointFor = lambda target: SocksClientEndpoint(clock, way, target)  # type: ignore[method-assign]

        def serve() -> Protocol:
            protocols.append(SocksServerProtocol(clock, door))
            return protocols[-1]

        server = await TCP4ServerEndpoint(clock, 0, interface="127.0.0.1").listen(Factory.forProtocol(serve))
        target = Address("name.example", 443)
        endpoint = TCP4ClientEndpoint(clock, "127.0.0.1", server.getHost().port)
        client: Any = await endpoint.connect(Factory.forProtocol(lambda: SocksSpeaker(target)))
        await until(lambda: client.negotiation.reply)
        await upstream.stopListening()
        await server.stopListening()
        self.assertEqual(accepted[0].request, Request(Command.CONNECT, target))
        self.ends = [client, accepted[0]]
        self.protocols = protocols
        self.addCleanup(self._hangUp)
        return client, accepted[0]

    async def _hangUp(self) -> None:
        for end in self.ends:
            end.transport.abortConnection()
        await until(lambda: all(end.lost for end in self.ends))
        await until(lambda: all(each.transport.disconnected for each in self.protocols))  # type: ignore[union-attr]

    async def test_bothWays(self) -> None:
        """Bytes pass both ways, any number of them."""
        client, target = await self.connect()
        for speaker, listener in ((client, target), (target, client)):
            speaker.transport.write(bytes(1_000_000))
            speaker.transport.write(b"end")
            await until(lambda: listener.heard.endswith(b"end"))  # noqa: B023
            self.assertEqual(len(listener.heard), 1_000_003)

    async def test_halfClose(self) -> None:
        """Either side may say that it has said everything, and still listen."""
        for turned in (False, True):
            client, target = await self.connect()
            first, second = (target, client) if turned else (client, target)
            first.transport.write(b"question")
            first.finish()
            await until(lambda: second.ended)  # noqa: B023
            self.assertEqual(second.heard, b"question")
            second.transport.write(b"answer")
            second.finish()
            await until(lambda: first.lost and second.lost)  # noqa: B023
            self.assertEqual(first.heard, b"answer")

    async def test_refused(self) -> None:
        """The far server's refusal arrives with its code."""
        client, _ = await self.connect(ReplyCode.HOST_UNREACHABLE)
        reply = client.negotiation.reply
        assert reply is not None
        self.assertEqual(reply.code, ReplyCode.HOST_UNREACHABLE)
        await until(lambda: client.ended or client.lost)


class UnusedTests(SynchronousTestCase):
    """Edges of the protocol's life."""

    def test_lostAtOnce(self) -> None:
        """A client that goes before it has said anything leaves nothing."""
        clock = Clock()
        _, transport = connection(clock, FakeDoor())
        transport.die(ConnectionDone())
        self.assertEqual(clock.getDelayedCalls(), [])
