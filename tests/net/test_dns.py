"""Tests for L{udptunnel.net.dns}."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from tests.net.test_dnsmessages import OPT, question, read, withOptions
from udptunnel.core.counters import Counters
from udptunnel.core.fakenames import HELD_SECONDS, FakeNames
from udptunnel.core.fakepeers import SOURCE_SECONDS
from udptunnel.errors import AddressError
from udptunnel.net import dns as dns_module
from udptunnel.net.dns import ANSWER_SECONDS, FakeDns, RedirectedDns
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

SOURCE, OTHER, SIX = Address("10.0.0.2", 4000), Address("10.0.0.3", 4000), Address("fd00::2", 4000)
SERVER, SECOND = Address("192.0.2.53", 53), Address("192.0.2.54", 53)
RESOLVER = Address("9.9.9.9", 5300)
REAL = Address("203.0.113.1", 443)
FAKE = Address("198.18.0.2", 443)


def nameOf(*labels: str) -> bytes:
    """A name as DNS writes it."""
    return b"".join(bytes((len(each),)) + each.encode("ascii") for each in labels) + b"\0"


def burst(target: Address, *datagrams: bytes, source: Address = SOURCE) -> AimedBurst:
    """Datagrams of one size."""
    return AimedBurst(source, target, len(datagrams[0]), memoryview(b"".join(datagrams)))


class MemoryReceiver:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.bursts: list[AimedBurst] = []
        self.calls: list[Any] = []

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Somebody behind the TUN has sent something."""
        self.calls.append("bursts")
        self.bursts += [each._replace(payload=bytes(each.payload)) for each in bursts]

    def tick(self, now: float) -> None:
        """A second has passed."""
        self.calls.append(("tick", now))

    def stop(self) -> None:
        """Close everything."""
        self.calls.append("stop")

    def report(self) -> dict[str, Any]:
        """Figures."""
        return {"inner": 1}


class MemoryWriter:
    """Keeps what goes to those behind the TUN."""

    def __init__(self) -> None:
        self.sent: list[tuple[Address, Address, int, bytes]] = []
        self.refused: list[tuple[Address, Unreachable]] = []

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Send a burst."""
        self.sent.append((to, source, size, bytes(payload)))

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that a target can not be reached."""
        self.refused.append((burst.target, why))


class DnsTestCase(SynchronousTestCase):
    """Something that stands before a receiver in memory."""

    part: Any

    def setUp(self) -> None:
        self.clock, self.counters = Clock(), Counters()
        self.receiver, self.writer = MemoryReceiver(), MemoryWriter()

    def received(self) -> list[tuple[Address, bytes]]:
        """Where what was passed on goes."""
        return [(each.target, bytes(each.payload)) for each in self.receiver.bursts]

    def origins(self) -> list[Address]:
        """Where what was sent back comes from."""
        return [source for _, source, _, _ in self.writer.sent]

    def checkPassesOn(self) -> None:
        """What a part has no business with goes through."""
        one, two = burst(REAL, b"abc", b"def"), burst(REAL, b"", source=OTHER)
        self.part.burstsReceived([one, two])
        self.part.send(SOURCE, REAL, 2, b"abcd")
        self.part.refuse(one, Unreachable.NET)
        self.part.tick(7.0)
        self.part.stop()
        self.assertEqual(self.receiver.bursts, [each._replace(payload=bytes(each.payload)) for each in (one, two)])
        self.assertEqual(self.receiver.calls, ["bursts", ("tick", 7.0), "stop"])
        self.assertEqual(self.writer.sent, [(SOURCE, REAL, 2, b"abcd")])
        self.assertEqual(self.writer.refused, [(REAL, Unreachable.NET)])
        self.assertEqual(self.part.report()["inner"], 1)
        self.assertEqual(self.part.targetOf(REAL), REAL)


class RedirectedDnsTests(DnsTestCase):
    """L{RedirectedDns}."""

    def setUp(self) -> None:
        super().setUp()
        self.part = self.make(RESOLVER)

    def make(self, resolver: Address) -> RedirectedDns:
        part = RedirectedDns(resolver, self.writer, self.counters, self.clock.seconds)
        part.receiver = self.receiver
        return part

    def ask(self, target: Address, number: bytes = b"\x12\x34", source: Address = SOURCE) -> None:
        self.part.burstsReceived([burst(target, number + bytes(10), source=source)])

    def answer(self, *numbers: bytes, source: Address = RESOLVER) -> None:
        size = 14 if numbers[0] else 0
        self.part.send(SOURCE, source, size, b"".join(each + bytes(12) for each in numbers))

    def test_passesOn(self) -> None:
        """What has nothing to do with DNS goes through."""
        self.checkPassesOn()

    def test_there(self) -> None:
        """A question to port 53, wherever, goes to the resolver."""
        self.ask(SERVER)
        self.ask(Address("2001:db8::53", 53), source=SIX)
        self.assertEqual(self.received(), [(RESOLVER, b"\x12\x34" + bytes(10))] * 2)
        self.assertEqual([each.source for each in self.receiver.bursts], [SOURCE, SIX])
        self.assertEqual(self.part.report()["dns"], {"redirected": 2, "waiting": 2})

    def test_back(self) -> None:
        """The answer comes from where the question was sent to, by source and number."""
        self.ask(SERVER, b"aa")
        self.ask(SECOND, b"bb")
        self.ask(SECOND, b"aa", source=OTHER)
        self.answer(b"bb")
        self.answer(b"aa")
        self.assertEqual(self.writer.sent[0], (SOURCE, SECOND, 14, b"bb" + bytes(12)))
        self.assertEqual(self.origins(), [SECOND, SERVER])

    def test_burst(self) -> None:
        """Questions in a burst go on as one, and each answer of a burst finds its own way."""
        self.part.burstsReceived([burst(SERVER, b"aa" + bytes(10), b"bb" + bytes(10))])
        self.part.burstsReceived([burst(SECOND, b"cc" + bytes(10))])
        self.assertEqual(len(self.receiver.bursts), 2)
        self.answer(b"cc", b"aa", b"bb")
        self.assertEqual(self.origins(), [SECOND, SERVER, SERVER])
        self.assertEqual([size for _, _, size, _ in self.writer.sent], [14] * 3)

    def test_sameNumber(self) -> None:
        """Who asks several servers with one number gets an answer from each."""
        self.ask(SERVER)
        self.ask(SECOND)
        self.ask(SECOND)
        for _ in range(3):
            self.answer(b"\x12\x34")
        self.assertEqual(self.origins(), [SERVER, SECOND, SERVER])

    def test_nobodyWaits(self) -> None:
        """An answer to a number that was not asked with, or by somebody else, is dropped and counted."""
        self.ask(SERVER, b"aa", source=OTHER)
        self.answer(b"aa")
        self.answer(b"bb")
        self.part.send(SOURCE, RESOLVER, 0, b"")
        self.assertEqual(self.writer.sent, [])
        self.assertEqual(self.counters.dropped, {"DNS answer that nobody waits for": 3})

    def test_others(self) -> None:
        """What comes from anywhere but the resolver keeps its address."""
        self.ask(SERVER)
        for source in (SERVER, Address(RESOLVER.host, 53), Address("192.0.2.9", RESOLVER.port)):
            self.answer(b"\x12\x34", source=source)
            self.assertEqual(self.origins()[-1], source)

    def test_byName(self) -> None:
        """A resolver that is a name may answer from any host, but from its port only."""
        self.part = self.make(Address("dns.example", 53))
        self.ask(SERVER)
        self.assertEqual(self.receiver.bursts[0].target, Address("dns.example", 53))
        self.answer(b"\x12\x34", source=Address("203.0.113.7", 53))
        self.answer(b"\x12\x34", source=Address("203.0.113.7", 54))
        self.assertEqual(self.origins(), [SERVER, Address("203.0.113.7", 54)])

    def test_late(self) -> None:
        """After some seconds nobody waits any more; who asks again waits again."""
        self.ask(SERVER, b"aa")
        self.ask(SERVER, b"bb")
        self.clock.advance(1)
        self.ask(SERVER, b"aa")
        self.part.tick(ANSWER_SECONDS + 0.5)
        self.assertEqual(self.part.report()["dns"]["waiting"], 1)
        self.answer(b"aa")
        self.answer(b"bb")
        self.assertEqual(len(self.writer.sent), 1)
        self.part.tick(ANSWER_SECONDS + 1)
        self.assertEqual(self.part.report()["dns"]["waiting"], 0)

    def test_bounded(self) -> None:
        """Only so many questions wait; the oldest makes room."""
        self.patch(dns_module, "MOST_QUESTIONS", 2)
        for number in (b"aa", b"bb", b"cc"):
            self.ask(SERVER, number)
            self.answer(number)
        self.answer(b"aa")
        self.answer(b"bb")
        self.assertEqual(len(self.writer.sent), 4)

    def test_manyServers(self) -> None:
        """With one number only so many servers are asked at once."""
        for last in range(20):
            self.ask(Address(f"192.0.2.{last}", 53))
        for _ in range(20):
            self.answer(b"\x12\x34")
        self.assertEqual(sorted(set(self.origins())), [Address(f"192.0.2.{last}", 53) for last in (16, 17, 18, 19)])

    def test_noMessage(self) -> None:
        """What is too short for DNS is dropped and counted."""
        self.part.burstsReceived([burst(SERVER, bytes(11)), burst(SERVER, b""), burst(SERVER, bytes(12))])
        self.assertEqual(len(self.receiver.bursts), 1)
        self.assertEqual(self.counters.dropped, {"no DNS message": 2})

    def test_refused(self) -> None:
        """A resolver that can not be reached is, to who asked, the server that was asked."""
        self.ask(SERVER)
        self.part.refuse(self.receiver.bursts[0], Unreachable.PORT)
        self.assertEqual(self.writer.refused, [(SERVER, Unreachable.PORT)])

    def test_tcp(self) -> None:
        """A connection to port 53 goes to the resolver, all others where they should."""
        self.assertEqual(self.part.targetOf(SERVER), RESOLVER)
        self.assertEqual(self.part.targetOf(REAL), REAL)


class FakeDnsTestCase(DnsTestCase):
    """Fake DNS with prefixes of both families."""

    def setUp(self) -> None:
        super().setUp()
        self.part = self.make("198.18.0.0/15", "fd00:198::/64")

    def make(self, *prefixes: str, hasResolver: bool = False) -> FakeDns:
        names = FakeNames([ip_network(each) for each in prefixes])
        part = FakeDns(names, self.writer, self.counters, self.clock.seconds, hasResolver)
        part.receiver = self.receiver
        return part

    def ask(self, *labels: str, kind: int = dns.A) -> dns.Message:
        """The answer to a question."""
        self.writer.sent.clear()
        self.part.burstsReceived([burst(SERVER, question(nameOf(*labels), kind))])
        ((to, source, size, payload),) = self.writer.sent
        self.assertEqual((to, source, size), (SOURCE, SERVER, len(payload)))
        self.writer.sent.clear()
        return read(payload)

    def hostOf(self, *labels: str, kind: int = dns.A) -> str:
        """The address in an answer."""
        (record,) = self.ask(*labels, kind=kind).answers
        return self.text(record.payload)

    def text(self, record: Any) -> str:
        return record.dottedQuad() if isinstance(record, dns.Record_A) else record._address


class AnswersTests(FakeDnsTestCase):
    """What L{FakeDns} answers."""

    def assertEmpty(self, message: dns.Message, rCode: int = dns.OK) -> None:
        """An answer has nothing in it that anybody would remember."""
        self.assertEqual((message.rCode, message.answers, message.authority), (rCode, [], []))

    def test_addresses(self) -> None:
        """A name has an address of each family, for a second."""
        for kind, host in ((dns.A, "198.18.0.2"), (dns.AAAA, "fd00:198::2")):
            (record,) = self.ask("host", "example", kind=kind).answers
            self.assertEqual((self.text(record.payload), record.ttl), (host, 1))
        self.assertEqual(self.receiver.bursts, [])
        self.assertEqual(self.part.report()["fakeDns"], {"answered": 2, "names": 2, "sources": 0})

    def test_mixedCase(self) -> None:
        """A name is the same however it is written."""
        self.assertEqual(self.hostOf("HOST", "example"), self.hostOf("host", "Example"))

    def test_burst(self) -> None:
        """Each question of a burst gets an answer of its own."""
        one, two = question(nameOf("one", "example")), question(nameOf("two", "example"))
        self.part.burstsReceived([burst(SERVER, one, two)])
        self.assertEqual(
            [self.text(read(each[3]).answers[0].payload) for each in self.writer.sent], ["198.18.0.2", "198.18.0.3"]
        )

    def test_otherFamily(self) -> None:
        """Without a prefix of its family, a name has no address of that family."""
        self.part = self.make("198.18.0.0/15")
        self.assertEmpty(self.ask("host", "example", kind=dns.AAAA))
        self.part = self.make("fd00:198::/64")
        self.assertEmpty(self.ask("host", "example"))

    def test_noAddressLeft(self) -> None:
        """When all addresses are in use, the answer is that we failed: one may ask again."""
        self.part = self.make("192.0.2.0/30")
        self.hostOf("one", "example")
        self.assertEmpty(self.ask("two", "example"), dns.ESERVER)
        self.clock.advance(HELD_SECONDS)
        self.assertEqual(self.hostOf("two", "example"), "192.0.2.2")

    def test_https(self) -> None:
        """HTTPS and SVCB are empty, with a resolver too: they would bring real addresses."""
        for hasResolver in (False, True):
            self.part = self.make("198.18.0.0/15", hasResolver=hasResolver)
            for kind in (64, 65):
                self.assertEmpty(self.ask("host", "example", kind=kind))

    def test_otherTypes(self) -> None:
        """Other types are empty if there is no resolver, and go on if there is one."""
        kinds = (dns.TXT, dns.MX, dns.SRV, dns.NS, dns.ALL_RECORDS, dns.CNAME, dns.PTR)
        for kind in kinds:
            self.assertEmpty(self.ask("host", "example", kind=kind))
        self.part = self.make("198.18.0.0/15", hasResolver=True)
        asked = [question(nameOf("host", "example"), kind) for kind in kinds]
        self.part.burstsReceived([burst(SERVER, *asked)])
        self.assertEqual(self.received(), [(SERVER, each) for each in asked])
        self.assertEqual(self.writer.sent, [])

    def test_pointers(self) -> None:
        """PTR of a fake address is its name; of a fake address without one, that it does not exist."""
        four = ("2", "0", "18", "198", "in-addr", "ARPA")
        six = (*"2000000000000000000000008910", "0", "0", "d", "f", "ip6", "arpa")
        for address in (four, six):
            self.assertEmpty(self.ask(*address, kind=dns.PTR), dns.ENAME)
        self.hostOf("host", "example")
        self.hostOf("host", "example", kind=dns.AAAA)
        for address in (four, six):
            (record,) = self.ask(*address, kind=dns.PTR).answers
            self.assertEqual((str(record.payload.name), record.ttl), ("host.example", 1))

    def test_otherPointers(self) -> None:
        """PTR of anything else is a question like others."""
        others = (("1", "2", "0", "192"), ("18", "198"), ("2", "00", "18", "198"), ("2", "0", "18", "999"), ("x",))
        for labels in others:
            self.assertEmpty(self.ask(*labels, "in-addr", "arpa", kind=dns.PTR))
        self.assertEmpty(self.ask("2", "d", "f", "ip6", "arpa", kind=dns.PTR))

    def test_localhost(self) -> None:
        """What is called localhost is this machine, not the far end's own (RFC 6761)."""
        for labels in (("localhost",), ("x", "LocalHost")):
            self.assertEqual(self.hostOf(*labels), "127.0.0.1")
            self.assertEqual(self.hostOf(*labels, kind=dns.AAAA), "::1")
        self.assertEqual(self.part.report()["fakeDns"]["names"], 0)

    def test_noNames(self) -> None:
        """Names that nobody out there can have do not exist: for multicast, without a dot, numbers, odd bytes."""
        for labels in (
            ("printer", "local"),
            ("x", "invalid"),
            ("router",),
            (),
            ("192", "0", "2", "1"),
            ("a b", "example"),
            ("a:b", "example"),
            ("a.b.", "example"),
        ):
            self.assertEmpty(self.ask(*labels), dns.ENAME)
        self.assertEqual(self.part.report()["fakeDns"]["names"], 0)

    def test_oneLabel(self) -> None:
        """A name without a dot is a question for the resolver if there is one; one for multicast is not."""
        self.part = self.make("198.18.0.0/15", hasResolver=True)
        self.part.burstsReceived([burst(SERVER, question(nameOf("router")))])
        self.assertEqual(len(self.receiver.bursts), 1)
        self.assertEmpty(self.ask("printer", "local"), dns.ENAME)

    def test_refusedQuestions(self) -> None:
        """A question that breaks the format is answered with that, and goes to nobody."""
        for hasResolver in (False, True):
            self.part = self.make("198.18.0.0/15", hasResolver=hasResolver)
            self.part.burstsReceived([burst(SERVER, question()[:-1])])
            self.assertEqual(read(self.writer.sent.pop()[3]).rCode, dns.EFORMAT)
        self.assertEqual(self.receiver.bursts, [])

    def test_noQuestion(self) -> None:
        """What is no question is dropped and counted, and goes to nobody."""
        for hasResolver in (False, True):
            self.part = self.make("198.18.0.0/15", hasResolver=hasResolver)
            self.part.burstsReceived(
                [burst(SERVER, b""), burst(SERVER, bytes(11)), burst(SERVER, question(flags=0x8000))]
            )
        self.assertEqual((self.writer.sent, self.receiver.bursts), ([], []))
        self.assertEqual(self.counters.dropped, {"no DNS question": 6})

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=80),
            st.builds(lambda rest: question()[:12] + rest, st.binary(max_size=60)),
            st.builds(
                lambda whole, place, more: whole[:place] + more + whole[place + len(more) :],
                st.sampled_from(
                    [question(), withOptions(OPT), question(nameOf("2", "0", "18", "198", "in-addr", "arpa"), dns.PTR)]
                ),
                st.integers(0, 60),
                st.binary(max_size=4),
            ),
        ),
        st.booleans(),
    )
    def test_garbage(self, data: bytes, hasResolver: bool) -> None:
        """Whatever is sent to port 53 is answered once, dropped and counted, or passed on; nothing is raised."""
        self.setUp()
        self.part = self.make("198.18.0.0/15", hasResolver=hasResolver)
        self.part.burstsReceived([burst(SERVER, data)])
        outcomes = len(self.writer.sent) + len(self.receiver.bursts) + self.counters.dropped.total()
        self.assertEqual(outcomes, 1)
        for _, _, _, reply in self.writer.sent:
            self.assertEqual((reply[:2], read(reply).answer), (data[:2], 1))


class NamesTests(FakeDnsTestCase):
    """What L{FakeDns} does with what goes to fake addresses, and comes from their names."""

    def setUp(self) -> None:
        super().setUp()
        self.assertEqual(self.hostOf("host", "example"), FAKE.host)

    def test_passesOn(self) -> None:
        """What has nothing to do with names goes through."""
        self.checkPassesOn()

    def test_there(self) -> None:
        """What goes to a fake address goes on by name, burst by burst."""
        self.part.burstsReceived([burst(FAKE, b"abc", b"def"), burst(REAL, b"x"), burst(FAKE._replace(port=80), b"y")])
        named = Address("host.example", 443)
        self.assertEqual(self.received(), [(named, b"abcdef"), (REAL, b"x"), (named._replace(port=80), b"y")])
        self.assertEqual(self.receiver.bursts[0].size, 3)
        self.assertEqual(self.receiver.calls, ["bursts"])

    def test_back(self) -> None:
        """The name, and its real address, seem to be the fake address; another port of the name too."""
        self.part.burstsReceived([burst(FAKE, b"x")])
        for far in (REAL, Address("host.example", 443), Address("host.example", 8443), REAL._replace(port=444)):
            self.part.send(SOURCE, far, 1, b"abc")
        self.assertEqual(self.writer.sent[0], (SOURCE, FAKE, 1, b"abc"))
        self.assertEqual(self.origins(), [FAKE, FAKE, FAKE._replace(port=8443), REAL._replace(port=444)])

    def test_ipv6(self) -> None:
        """Over IPv6 it is the IPv6 address of the name, also if its real one is IPv4."""
        host = self.hostOf("host", "example", kind=dns.AAAA)
        self.part.burstsReceived([burst(Address(host, 443), b"x", source=SIX)])
        for far in (REAL, Address("host.example", 443), Address("host.example", 8443)):
            self.part.send(SIX, far, 1, b"abc")
        self.assertEqual([source.host for source in self.origins()], [host] * 3)

    def test_strangeNames(self) -> None:
        """What comes from a name that nobody has asked for is dropped and counted: a packet has no room for it."""
        self.part.send(SOURCE, Address("other.example", 443), 2, b"abc")
        self.assertEqual(self.writer.sent, [])
        self.assertEqual(self.counters.dropped, {"from a name without a fake address": 2})

    def test_real(self) -> None:
        """An address that a source sends to by itself stays what it is."""
        self.part.burstsReceived([burst(FAKE, b"x"), burst(REAL, b"x")])
        self.part.send(SOURCE, REAL, 1, b"a")
        self.assertEqual(self.origins(), [REAL])

    def test_forgotten(self) -> None:
        """A fake address without a name is refused, so that a program looks its name up again."""
        self.part.burstsReceived([burst(Address("198.18.7.7", 443), b"ab", b"cd")])
        self.assertEqual(self.receiver.bursts, [])
        self.assertEqual(self.receiver.calls, [])
        self.assertEqual(self.writer.refused, [(Address("198.18.7.7", 443), Unreachable.PORT)])
        self.assertEqual(self.counters.dropped, {"fake address without a name": 2})

    def test_refused(self) -> None:
        """A name that can not be reached is, to who sent there, its fake address."""
        self.part.burstsReceived([burst(FAKE, b"x")])
        self.part.refuse(self.receiver.bursts[0], Unreachable.HOST)
        self.assertEqual(self.writer.refused, [(FAKE, Unreachable.HOST)])

    def test_expired(self) -> None:
        """A source that has been silent for long is forgotten."""
        self.part.burstsReceived([burst(FAKE, b"x")])
        self.assertEqual(self.part.report()["fakeDns"]["sources"], 1)
        self.part.tick(SOURCE_SECONDS)
        self.assertEqual(self.part.report()["fakeDns"]["sources"], 0)

    def test_keptAlive(self) -> None:
        """Who goes on sending keeps the name's address."""
        self.part = self.make("192.0.2.0/30")
        host = self.hostOf("host", "example")
        self.clock.advance(HELD_SECONDS)
        self.part.burstsReceived([burst(Address(host, 443), b"x")])
        self.assertEqual(self.ask("other", "example").rCode, dns.ESERVER)

    def test_tcp(self) -> None:
        """A connection to a fake address goes to the name; if there is none any more, it goes nowhere."""
        self.assertEqual(self.part.targetOf(FAKE), Address("host.example", 443))
        self.assertEqual([self.part.targetOf(each) for each in (REAL, SERVER)], [REAL, SERVER])
        self.assertRaises(AddressError, self.part.targetOf, Address("198.18.7.7", 443))


class BothTests(FakeDnsTestCase):
    """L{FakeDns} before L{RedirectedDns}."""

    def setUp(self) -> None:
        super().setUp()
        self.part = self.make("198.18.0.0/15", hasResolver=True)
        redirected = RedirectedDns(RESOLVER, self.part, self.counters, self.clock.seconds)
        redirected.receiver = self.receiver
        self.part.receiver = self.inner = redirected

    def test_answered(self) -> None:
        """A is answered here, TXT by the resolver, whose answer comes from where the question went."""
        self.assertEqual(self.hostOf("host", "example"), "198.18.0.2")
        self.part.burstsReceived([burst(SERVER, question(kind=dns.TXT))])
        self.assertEqual(self.received(), [(RESOLVER, question(kind=dns.TXT))])
        self.inner.send(SOURCE, RESOLVER, 14, b"\x12\x34" + bytes(12))
        self.assertEqual(self.origins(), [SERVER])

    def test_named(self) -> None:
        """A server that is asked by its fake address answers from there, and other datagrams go by name."""
        host = self.hostOf("ns", "example")
        server = Address(host, 53)
        self.part.burstsReceived([burst(server, question(kind=dns.TXT)), burst(server._replace(port=443), b"x")])
        self.inner.send(SOURCE, RESOLVER, 14, b"\x12\x34" + bytes(12))
        self.assertEqual(self.origins(), [server])
        self.assertEqual([each for each, _ in self.received()], [RESOLVER, Address("ns.example", 443)])
        self.assertEqual(self.inner.targetOf(self.part.targetOf(server)), RESOLVER)

    def test_report(self) -> None:
        """The figures of all stand beside each other."""
        self.assertEqual(sorted(self.part.report()), ["dns", "fakeDns", "inner"])
