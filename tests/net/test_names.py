"""Tests for L{udptunnel.net.names}."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.names.error import DNSNameError
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.errors import ResolveError
from udptunnel.net import names as names_module
from udptunnel.net.names import FAILED_SECONDS, LEAST_SECONDS, MOST_SECONDS, Names, SystemResolver

BAD_NAMES = (
    *("127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1", "127.0.0.1.", "::1", "[127.0.0.1]", "[::1]"),
    *(
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a" * 64,
        "a." * 127 + "a",
        "a\0b",
        "a b",
        "a\nb",
        "127。0。0。1",
        "ⓔxample",
        "a%eth0",
    ),
)
"""Names of the A-matrix (S-8 too) that are numbers in disguise, literals or no names at all."""


class FakeResolver:
    """A resolver whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Deferred[Any]]] = []
        self.givenUp: list[Deferred[Any]] = []

    def lookupAddress(self, name: str, timeout: Any = None) -> Deferred[Any]:
        return self._ask("A", name)

    def lookupIPV6Address(self, name: str, timeout: Any = None) -> Deferred[Any]:
        return self._ask("AAAA", name)

    def _ask(self, kind: str, name: str) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(self.givenUp.append)
        self.asked.append((kind, name, answer))
        return answer

    def answer(self, *hosts: str, ttl: int = 60, extra: tuple[Any, ...] = ()) -> None:
        """Answer the oldest question for a name: the records of each kind in the order given."""
        (_, name, four), (_, _, six) = self.asked[:2]
        del self.asked[:2]
        for answer, six_ in ((four, False), (six, True)):
            records = [record(name, host, ttl) for host in hosts if (":" in host) == six_]
            answer.callback(([*extra, *records], [], []))

    def fail(self) -> None:
        """There is no such name."""
        for _, name, answer in self.asked[:2]:
            answer.errback(DNSNameError(name))
        del self.asked[:2]


def record(name: str, host: str, ttl: int = 60) -> dns.RRHeader:
    """An A or AAAA record."""
    payload = dns.Record_AAAA(host, ttl) if ":" in host else dns.Record_A(host, ttl)
    return dns.RRHeader(name, payload.TYPE, ttl=ttl, payload=payload)


class NamesTests(SynchronousTestCase):
    """L{Names}."""

    def setUp(self) -> None:
        self.clock, self.resolver = Clock(), FakeResolver()
        self.names = Names(self.clock, self.resolver, 2, 2.0)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def ask(self, name: str = "name.example", asker: str = "one") -> Deferred[tuple[str, ...]]:
        """Resolve a name."""
        return self.names.resolve(name, asker)

    def test_ipv4First(self) -> None:
        """All addresses of a name are given, IPv4 first, each in its one normal form."""
        answer = self.ask()
        self.assertNoResult(answer)
        self.resolver.answer("2001:0DB8::0001", "192.0.2.1", "::ffff:192.0.2.3", "192.0.2.2")
        self.assertEqual(self.successResultOf(answer), ("192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"))

    def test_oneFamily(self) -> None:
        """A name with addresses of one family only has an answer; so has one whose other question fails."""
        answer = self.ask()
        self.resolver.answer("2001:db8::1")
        self.assertEqual(self.successResultOf(answer), ("2001:db8::1",))
        answer = self.ask("other.example")
        (_, _, four), (_, _, six) = self.resolver.asked
        six.errback(DNSNameError("other.example"))
        self.assertNoResult(answer)
        four.callback(([record("other.example", "192.0.2.1")], [], []))
        self.assertEqual(self.successResultOf(answer), ("192.0.2.1",))

    def test_otherRecords(self) -> None:
        """Records of other kinds, such as CNAME, are passed over."""
        answer = self.ask()
        alias = dns.RRHeader("name.example", dns.CNAME, ttl=60, payload=dns.Record_CNAME("other.example", 60))
        self.resolver.answer("192.0.2.1", extra=(alias,))
        self.assertEqual(self.successResultOf(answer), ("192.0.2.1",))

    def test_cache(self) -> None:
        """An answer is remembered for its time to live, whoever asks, however the name is written."""
        self.ask()
        self.resolver.answer("192.0.2.1", ttl=60)
        self.clock.advance(59.9)
        for name in ("name.example", "NAME.Example."):
            self.assertEqual(self.successResultOf(self.ask(name, "other")), ("192.0.2.1",))
        self.assertEqual(self.resolver.asked, [])
        self.clock.advance(0.2)
        self.assertNoResult(self.ask())
        self.resolver.answer("192.0.2.2")
        self.assertEqual(self.successResultOf(self.ask()), ("192.0.2.2",))

    def test_cacheBounds(self) -> None:
        """However short or long the time to live, an answer is remembered for a sensible time."""
        for ttl, seconds in ((0, LEAST_SECONDS), (10**6, MOST_SECONDS)):
            self.ask(f"ttl{ttl}.example")
            self.resolver.answer("192.0.2.1", ttl=ttl)
            self.clock.advance(seconds - 0.1)
            self.successResultOf(self.ask(f"ttl{ttl}.example"))
            self.clock.advance(0.2)
            self.assertNoResult(self.ask(f"ttl{ttl}.example"))
            self.resolver.answer("192.0.2.1")

    def test_cacheSize(self) -> None:
        """However many names are asked for, only so many are remembered."""
        self.patch(names_module, "MOST_NAMES", 3)
        for number in range(4):
            self.ask(f"name{number}.example")
            self.resolver.answer("192.0.2.1")
        self.successResultOf(self.ask("name3.example"))
        self.assertNoResult(self.ask("name0.example"))
        self.resolver.answer("192.0.2.1")

    def test_negativeCache(self) -> None:
        """That a name has no address is remembered for a moment."""
        for respond in (self.resolver.fail, self.resolver.answer):
            answer = self.ask()
            respond()
            self.failureResultOf(answer, ResolveError)
            self.failureResultOf(self.ask(), ResolveError)
            self.assertEqual(self.resolver.asked, [])
            self.clock.advance(FAILED_SECONDS + 0.1)

    def test_limit(self) -> None:
        """One asker has so many names resolved at a time; the next is refused at once, other askers are not."""
        first, second = self.ask("a.example"), self.ask("b.example")
        refused = self.failureResultOf(self.ask("c.example"), ResolveError)
        self.assertIn("c.example", str(refused.value))
        other = self.ask("c.example", "other")
        self.assertNoResult(other)
        self.assertEqual(len(self.resolver.asked), 6)
        self.resolver.answer("192.0.2.1")
        self.assertNoResult(third := self.ask("d.example"))
        for _ in range(3):
            self.resolver.answer("192.0.2.2")
        for answer in (first, second, other, third):
            self.successResultOf(answer)

    def test_limitAfterFailures(self) -> None:
        """Names that could not be resolved count no longer."""
        for number in range(5):
            answer = self.ask(f"name{number}.example")
            self.resolver.fail()
            self.failureResultOf(answer, ResolveError)
        answers = [self.ask(f"late{number}.example") for number in range(2)]
        self.clock.advance(10)
        for answer in answers:
            self.failureResultOf(answer, ResolveError)
        self.assertNoResult(self.ask("last.example"))
        del self.resolver.asked[:-2]
        self.resolver.answer("192.0.2.1")

    def test_timeOut(self) -> None:
        """A resolver that never answers is waited for a limited time, and its questions are given up."""
        answer = self.ask()
        self.clock.advance(1.9)
        self.assertNoResult(answer)
        self.clock.advance(1)
        self.failureResultOf(answer, ResolveError)
        self.assertEqual(len(self.resolver.givenUp), 2)

    def test_halfAnswer(self) -> None:
        """When only one question is answered in time, that answer serves."""
        answer = self.ask()
        self.resolver.asked[0][2].callback(([record("name.example", "192.0.2.1")], [], []))
        self.clock.advance(3)
        self.assertEqual(self.successResultOf(answer), ("192.0.2.1",))

    def test_brokenResolver(self) -> None:
        """What a resolver raises is a failure like any other, and the name counts no longer."""

        def refuse(name: str, timeout: Any = None) -> Deferred[Any]:
            raise OSError(24, "Too many open files")

        self.resolver.lookupAddress = self.resolver.lookupIPV6Address = refuse  # type: ignore[method-assign]
        for number in range(3):
            self.failureResultOf(self.ask(f"name{number}.example"), ResolveError)

    def test_badNames(self) -> None:
        """What is a number in disguise, or no name at all, is never asked for."""
        for name in BAD_NAMES:
            self.failureResultOf(self.ask(name), ResolveError)
        self.assertEqual(self.resolver.asked, [])

    def test_question(self) -> None:
        """The resolver is asked for the normal form of a name, once for each kind of address."""
        self.ask("NAME.Example.")
        self.assertEqual([each[:2] for each in self.resolver.asked], [("A", "name.example"), ("AAAA", "name.example")])
        self.resolver.answer("192.0.2.1")


class SystemResolverTests(SynchronousTestCase):
    """L{SystemResolver}."""

    def test_hosts(self) -> None:
        """The system's hosts file is asked first, which needs no network."""
        clock = Clock()
        names = Names(clock, SystemResolver(clock), 4, 2.0)
        self.assertIn("127.0.0.1", self.successResultOf(names.resolve("localhost", "one")))

    def test_stop(self) -> None:
        """A resolver that is stopped leaves nothing; it may be stopped twice."""
        clock = Clock()
        resolver = SystemResolver(clock)
        resolver.stop()
        resolver.lookupAddress("localhost")
        self.assertNotEqual(clock.getDelayedCalls(), [])
        resolver.stop()
        resolver.stop()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_lazy(self) -> None:
        """One that is never asked does nothing at all."""
        clock = Clock()
        SystemResolver(clock)
        self.assertEqual(clock.getDelayedCalls(), [])
