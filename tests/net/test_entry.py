"""Tests for L{udptunnel.net.entry}."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.examples import EXAMPLES
from udptunnel.core import headers
from udptunnel.core.counters import Counters
from udptunnel.core.session import LocalSession
from udptunnel.net.datagrams import Traffic
from udptunnel.net.entry import MOST_SOURCES, Entry, ForwardEntry, SocksRelay
from udptunnel.net.offload import Offload
from udptunnel.net.testing import MemorySocket, PortReactor, RecordingLink
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst
from udptunnel.wire.frame import CLOSE, encode
from udptunnel.wire.socks5 import packHeader

TARGET = Address("192.0.2.1", 53)
SIX = Address("2001:db8::1", 53)
NAME = Address("name.example", 53)
SOURCE = Address("127.0.0.1", 4000)


class EntryTestCase(SynchronousTestCase):
    """An entry on a socket in memory, and a session whose link keeps what it gets."""

    def setUp(self) -> None:
        self.clock, self.counters = Clock(), Counters()
        self.session = LocalSession(1000, self.counters, countingRandom())
        self.link: Any = RecordingLink()
        self.session.links.append(self.link)
        self.socket = MemorySocket("127.0.0.1", 1080)
        self.reactor = PortReactor()
        self.traffic = Traffic(self.reactor, Offload(), self.counters)

    def open(self, entry: Any) -> Any:
        """Let an entry listen."""
        entry.port.adopt(self.socket)
        self.addCleanup(lambda: self.assertEqual(self.reactor.getReaders(), []))
        self.addCleanup(entry.stopListening)
        return entry

    def answer(self, number: int, source: Address, size: int, payload: bytes) -> None:
        """The server has sent something for an association."""
        association = self.session.associations.get(number)
        assert association is not None
        association.outlet.send(source, size, payload)


class ForwardTests(EntryTestCase):
    """L{ForwardEntry}."""

    def makeEntry(self, target: Address = TARGET) -> ForwardEntry:
        """A forward."""
        entry = ForwardEntry(self.traffic, self.session, self.clock.seconds, Address("127.0.0.1", 0), target)
        return self.open(entry)  # type: ignore[no-any-return]

    def test_there(self) -> None:
        """Whatever comes goes to the target, each source in an association of its own."""
        entry = self.makeEntry()
        other = Address("127.0.0.1", 4001)
        entry.burstsReceived([Burst(SOURCE, 3, b"abcde"), Burst(other, 1, b"x"), Burst(SOURCE, 0, b"")])
        entry.burstsReceived([Burst(other, 1, b"y")])
        self.assertEqual(
            self.link.parcels,
            [(0, TARGET, 3, b"abcde"), (1, TARGET, 1, b"x"), (0, TARGET, 0, b""), (1, TARGET, 1, b"y")],
        )

    def test_together(self) -> None:
        """Bursts that arrive together are handed over together."""
        entry = self.makeEntry()
        calls: list[int] = []
        self.session.send = lambda parcels, now: calls.append(len(parcels))  # type: ignore[method-assign]
        entry.burstsReceived([Burst(SOURCE, 1, b"x")] * 5)
        self.assertEqual(calls, [5])

    def test_back(self) -> None:
        """The target's answers go to the source that asked, datagram by datagram."""
        entry = self.makeEntry()
        entry.burstsReceived([Burst(SOURCE, 1, b"x"), Burst(Address("127.0.0.1", 4001), 1, b"x")])
        self.answer(1, TARGET, 3, b"abcde")
        self.answer(0, TARGET, 0, b"")
        self.assertEqual(
            self.socket.sent, [(b"abc", ("127.0.0.1", 4001)), (b"de", ("127.0.0.1", 4001)), (b"", tuple(SOURCE))]
        )

    def test_strangers(self) -> None:
        """What comes from anybody else is dropped and counted: the application could not tell it from an answer."""
        entry = self.makeEntry()
        entry.burstsReceived([Burst(SOURCE, 1, b"x")])
        for stranger in (Address("192.0.2.2", 53), Address("192.0.2.1", 54), SIX):
            self.answer(0, stranger, 1, b"x")
        self.assertEqual(self.socket.sent, [])
        self.assertEqual(self.counters.dropped, {"not from the forward's target": 3})

    def test_sameTarget(self) -> None:
        """A target may be written in another form than the one it answers with."""
        entry = self.makeEntry(Address("2001:DB8:0::1", 53))
        entry.burstsReceived([Burst(SOURCE, 1, b"x")])
        self.assertEqual(self.link.parcels, [(0, SIX, 1, b"x")])
        self.answer(0, SIX, 1, b"y")
        self.assertEqual(self.socket.sent, [(b"y", tuple(SOURCE))])

    def test_name(self) -> None:
        """A target that is a name may answer from any host, but from its port only."""
        entry = self.makeEntry(NAME)
        entry.burstsReceived([Burst(SOURCE, 1, b"x")])
        self.assertEqual(self.link.parcels, [(0, NAME, 1, b"x")])
        self.answer(0, TARGET, 1, b"y")
        self.answer(0, Address("192.0.2.1", 54), 1, b"z")
        self.assertEqual(self.socket.sent, [(b"y", tuple(SOURCE))])
        self.assertEqual(self.counters.dropped, {"not from the forward's target": 1})

    def test_closedByServer(self) -> None:
        """When the server ends an association, the next datagram of its source begins another."""
        entry = self.makeEntry()
        entry.burstsReceived([Burst(SOURCE, 1, b"x")])
        self.session.closeReceived(0)
        entry.burstsReceived([Burst(SOURCE, 1, b"y")])
        self.assertEqual([each[0] for each in self.link.parcels], [0, 1])

    def test_stopped(self) -> None:
        """When an entry is closed, its associations end, and the server is told; it may be closed twice."""
        entry = self.makeEntry()
        entry.burstsReceived([Burst(SOURCE, 1, b"x"), Burst(Address("127.0.0.1", 4001), 1, b"x")])
        entry.stopListening()
        entry.stopListening()
        self.assertEqual(len(self.session.associations), 0)
        self.assertEqual(self.link.frames, [encode(CLOSE | 0), encode(CLOSE | 1)])
        self.assertTrue(self.socket.closed)

    def test_used(self) -> None:
        """A source that goes on sending keeps its association."""
        entry = self.makeEntry(Address("192.0.2.1", 9999))
        for _ in range(5):
            entry.burstsReceived([Burst(SOURCE, 1, b"x")])
            self.clock.advance(200)
            self.session.tick(self.clock.seconds())
            self.assertEqual(len(self.session.associations), 1)
        self.clock.advance(200)
        self.session.tick(self.clock.seconds())
        self.assertEqual(len(self.session.associations), 0)


class SocksRelayTests(EntryTestCase):
    """L{SocksRelay}."""

    def setUp(self) -> None:
        super().setUp()
        self.relay: SocksRelay = self.open(
            SocksRelay(self.traffic, self.session, self.clock.seconds, Address("127.0.0.1", 0), "127.0.0.1")
        )

    def receive(self, *datagrams: bytes, source: Address = SOURCE) -> None:
        """Datagrams of one size, but for the last, as one burst."""
        self.relay.burstsReceived([Burst(source, len(datagrams[0]), b"".join(datagrams))])

    def test_there(self) -> None:
        """The header is taken off, and the rest goes to the target that it names, be it empty."""
        for target in (TARGET, SIX, NAME):
            for payload in (b"abc", b""):
                self.receive(packHeader(target) + payload)
                self.assertEqual(self.link.parcels.pop(), (0, target, len(payload), payload))

    def test_names(self) -> None:
        """A name is passed on as it is, unresolved."""
        self.receive(packHeader(Address("No.Such.Name", 53)) + b"abc")
        self.assertEqual(self.link.parcels, [(0, Address("No.Such.Name", 53), 3, b"abc")])

    def test_burst(self) -> None:
        """A burst to one target stays a burst, without the headers."""
        header = packHeader(TARGET)
        self.receive(header + b"abc", header + b"def", header + b"g")
        self.assertEqual(self.link.parcels, [(0, TARGET, 3, b"abcdefg")])

    def test_emptyLast(self) -> None:
        """A burst whose last datagram is a header only keeps that empty datagram."""
        header = packHeader(TARGET)
        self.receive(header + b"abc", header + b"def", header)
        datagrams = [datagram for _, datagram in self.link.datagrams]
        self.assertEqual(datagrams, [b"abc", b"def", b""])

    def test_allEmpty(self) -> None:
        """A burst of headers only is as many empty datagrams."""
        header = packHeader(TARGET)
        self.receive(header, header, header)
        datagrams = [datagram for _, datagram in self.link.datagrams]
        self.assertEqual(datagrams, [b"", b"", b""])

    def test_severalTargets(self) -> None:
        """A burst whose headers differ is told apart, in order."""
        other = packHeader(Address("192.0.2.2", 53))
        self.receive(packHeader(TARGET) + b"abc", other + b"def", other + b"gh")
        self.assertEqual(
            self.link.datagrams,
            [(TARGET, b"abc"), (Address("192.0.2.2", 53), b"def"), (Address("192.0.2.2", 53), b"gh")],
        )

    def test_anyBurst(self) -> None:
        """However a burst of datagrams with headers looks, each datagram goes where its header says."""
        targets = st.sampled_from([TARGET, Address("192.0.2.2", 53), SIX, NAME, Address("x", 1)])

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(st.lists(st.tuples(targets, st.binary(max_size=3)), min_size=1, max_size=6))
        def check(several: list[tuple[Address, bytes]]) -> None:
            self.link.parcels.clear()
            whole = [packHeader(target) + payload for target, payload in several]
            # What a burst holds: datagrams of one length.
            size = len(whole[0])
            run = [each for each in whole if len(each) == size]
            self.receive(*run)
            expected = [pair for pair, each in zip(several, whole, strict=True) if len(each) == size]
            self.assertEqual(self.link.datagrams, expected)

        check()

    def test_garbage(self) -> None:
        """No datagram, whatever stands in it, raises anything; each is passed on or counted."""

        @settings(max_examples=EXAMPLES, deadline=None)
        @given(st.lists(st.binary(max_size=40), min_size=1, max_size=3), st.integers(1, 40))
        def check(datagrams: list[bytes], size: int) -> None:
            self.link.parcels.clear()
            self.counters.dropped.clear()
            for datagram in datagrams:
                self.relay.burstsReceived([Burst(SOURCE, len(datagram), datagram)])
            self.assertEqual(len(self.link.parcels) + sum(self.counters.dropped.values()), len(datagrams))
            joined = b"".join(datagrams)
            self.relay.burstsReceived([Burst(SOURCE, min(size, len(joined)) or 1, joined)])

        check()

    def test_fragments(self) -> None:
        """A fragment is dropped and counted (RFC 1928 section 7)."""
        header = bytearray(packHeader(TARGET))
        for fragment in (1, 127, 128, 255):
            header[2] = fragment
            self.receive(bytes(header) + b"abc")
        self.assertEqual(self.link.parcels, [])
        self.assertEqual(self.counters.dropped, {"SOCKS5 fragment": 4})

    def test_fragmentAmidOthers(self) -> None:
        """A fragment in a burst takes no other datagram with it."""
        good, bad = packHeader(TARGET), b"\0\0\1" + packHeader(TARGET)[3:]
        self.receive(good + b"abc", bad + b"def", good + b"ghi")
        datagrams = [datagram for _, datagram in self.link.datagrams]
        self.assertEqual(datagrams, [b"abc", b"ghi"])
        self.assertEqual(self.counters.dropped, {"SOCKS5 fragment": 1})

    def test_reserved(self) -> None:
        """The reserved bytes of a header do not matter."""
        self.receive(b"\xff\xff\0" + packHeader(TARGET)[3:] + b"abc")
        self.assertEqual(self.link.parcels, [(0, TARGET, 3, b"abc")])

    def test_noHeader(self) -> None:
        """What has no whole header is dropped and counted."""
        whole = packHeader(TARGET)
        short = [whole[:length] for length in range(1, len(whole))]
        for datagram in (b"", *short, b"\0\0\0\2" + bytes(20), b"\0\0\0\3\0\0\0", packHeader(NAME)[:-1]):
            self.receive(datagram)
        self.assertEqual(self.link.parcels, [])
        self.assertEqual(self.counters.dropped, {"no SOCKS5 header": len(short) + 4})

    def test_otherHosts(self) -> None:
        """Datagrams from hosts other than the client are dropped and counted (S-14)."""
        for host in ("127.0.0.2", "::1", "192.0.2.1"):
            self.receive(packHeader(TARGET) + b"abc", source=Address(host, 4000))
        self.assertEqual(self.link.parcels, [])
        self.assertEqual(self.counters.dropped, {"not from the SOCKS5 client": 3})
        self.assertEqual(len(self.session.associations), 0)

    def test_mappedClient(self) -> None:
        """A client that came by an IPv4-mapped address is the same host."""
        relay = SocksRelay(self.traffic, self.session, self.clock.seconds, Address("::", 0), "::ffff:127.0.0.1")
        relay.burstsReceived([Burst(SOURCE, 13, packHeader(TARGET) + b"abc")])
        self.assertEqual(self.link.parcels, [(0, TARGET, 3, b"abc")])

    def test_ports(self) -> None:
        """A client may use several ports, each with an association of its own, but not endlessly many."""
        datagram = packHeader(TARGET) + b"x"
        for port in range(1, MOST_SOURCES + 3):
            self.receive(datagram, source=Address("127.0.0.1", port))
        self.assertEqual(len({each[0] for each in self.link.parcels}), MOST_SOURCES)
        self.assertEqual(self.counters.dropped, {"too many ports of one SOCKS5 client": 2})
        self.receive(datagram, source=Address("127.0.0.1", 1))
        self.assertEqual(len(self.link.parcels), MOST_SOURCES + 1)

    def test_back(self) -> None:
        """An answer, from whomever, goes to the source with its sender in the header, datagram by datagram."""
        self.receive(packHeader(NAME) + b"abc")
        for sender in (TARGET, Address("192.0.2.99", 1), SIX):
            self.socket.sent.clear()
            self.answer(0, sender, 3, b"defgh")
            header = packHeader(sender)
            self.assertEqual(self.socket.sent, [(header + b"def", tuple(SOURCE)), (header + b"gh", tuple(SOURCE))])

    def test_remembered(self) -> None:
        """However many targets there are, only so many headers are remembered, each way."""
        self.patch(headers, "MOST_HEADERS", 4)
        for port in [*range(1, 12), 1]:
            address = Address("192.0.2.1", port)
            self.receive(packHeader(address) + b"x")
            self.assertEqual(self.link.parcels.pop(), (0, address, 1, b"x"))
            self.answer(0, address, 1, b"y")
            self.assertEqual(self.socket.sent.pop()[0], packHeader(address) + b"y")


class NoEntryTests(SynchronousTestCase):
    """L{Entry}."""

    def test_abstract(self) -> None:
        """What an entry does with bursts is left to its kinds."""
        traffic = Traffic(PortReactor(), Offload(), Counters())
        entry = Entry(traffic, LocalSession(1, Counters(), countingRandom()), Clock().seconds, Address("127.0.0.1", 0))
        self.assertRaises(NotImplementedError, entry.burstsReceived, [])
        self.assertRaises(NotImplementedError, entry.answer, SOURCE, TARGET, 1, b"x")
