"""
DNS that is seen on a TUN: answered with fake addresses, or sent to another resolver.

Both stand before the receiver of datagrams that carries them on, and are the
writer of that receiver: they change where a datagram goes to, and, on the way
back, where it seems to come from. They may stand one behind the other, L{FakeDns}
first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any, Protocol

from twisted.names import dns

from udptunnel.core.counters import Counters
from udptunnel.core.fakenames import FakeNames
from udptunnel.core.fakepeers import FakePeers
from udptunnel.errors import AddressError
from udptunnel.net.dnsmessages import (
    FAILED,
    HEADER_BYTES,
    NO_SUCH_NAME,
    NotAQueryError,
    Query,
    QueryError,
    readQuery,
    writeReply,
)
from udptunnel.net.gateway import UdpReceiver, UdpWriter
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, count, split
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

DNS_PORT = 53


class Receiver(UdpReceiver, Protocol):
    """A receiver that has figures to show."""

    def report(self) -> dict[str, Any]:
        """The figures as plain values."""


class Before:
    """
    What stands before a receiver, and passes on all that it has no business with.

    @ivar receiver: who carries datagrams on; to be set before the first burst.
    """

    receiver: Receiver

    def __init__(self, writer: UdpWriter, counters: Counters, clock: Callable[[], float]) -> None:
        """
        @param writer: where datagrams to those behind the TUN go.
        """
        self._writer = writer
        self._counters = counters
        self._clock = clock

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Somebody behind the TUN has sent something."""
        now = self._clock()
        passed = [each for burst in bursts for each in self.passOn(burst, now)]
        if passed:
            self.receiver.burstsReceived(passed)

    def passOn(self, burst: AimedBurst, now: float) -> list[AimedBurst]:
        """What of a burst goes on, and where to."""
        raise NotImplementedError

    def targetOf(self, address: Address) -> Address:
        """Where a TCP connection to an address is to go."""
        raise NotImplementedError

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Send a burst to somebody behind the TUN."""
        self._writer.send(to, source, size, payload)

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that the target of a burst can not be reached."""
        self._writer.refuse(burst, why)

    def tick(self, now: float) -> None:
        """To be called once a second: forget what is idle."""
        self.receiver.tick(now)

    def stop(self) -> None:
        """Close everything."""
        self.receiver.stop()

    def report(self) -> dict[str, Any]:
        """The figures as plain values, those of the receiver included."""
        return self.receiver.report()


# -- another resolver

MOST_QUESTIONS = 16_384
"""Questions that wait for an answer at the same time. The oldest makes room."""

ANSWER_SECONDS = 10.0
"""How long one waits: most programs have given up after five."""

_ID_BYTES = 2


class _Question:
    """
    A question on its way.

    @ivar targets: where it was sent to. Somebody may ask several servers the
        same at once; then they answer in turn.
    @ivar since: when it was last sent.
    """

    __slots__ = ("since", "targets")

    def __init__(self, target: Address, since: float) -> None:
        self.targets = [target]
        self.since = since

    def askedAgain(self, target: Address, now: float) -> None:
        """The same program has used the same number again."""
        if target not in self.targets:
            self.targets = [*self.targets[-3:], target]
        self.since = now

    def answered(self) -> Address:
        """Where the next answer seems to come from. It stays: an answer may come twice."""
        target = self.targets.pop(0)
        self.targets.append(target)
        return target


class RedirectedDns(Before):
    """Sends what goes to port 53, anywhere, to one resolver."""

    def __init__(self, resolver: Address, writer: UdpWriter, counters: Counters, clock: Callable[[], float]) -> None:
        """
        @param resolver: where questions go; a name is resolved by whoever carries them on.
        """
        super().__init__(writer, counters, clock)
        self._resolver = resolver
        self._questions: dict[tuple[Address, bytes], _Question] = {}
        self._redirected = 0

    def passOn(self, burst: AimedBurst, now: float) -> list[AimedBurst]:
        """Questions to the resolver, all else where it goes."""
        if burst.target[1] != DNS_PORT:
            return [burst]
        for datagram in split(burst.size, burst.payload):
            if len(datagram) < HEADER_BYTES:
                self._counters.drop("no DNS message", count(burst.size, burst.payload))
                return []
            self._remember(burst, bytes(datagram[:_ID_BYTES]), now)
        return [burst._replace(target=self._resolver)]

    def _remember(self, burst: AimedBurst, number: bytes, now: float) -> None:
        self._redirected += 1
        key = burst.source, number
        question = self._questions.pop(key, None)
        if question is None:
            if len(self._questions) >= MOST_QUESTIONS:
                del self._questions[next(iter(self._questions))]
            question = _Question(burst.target, now)
        else:
            question.askedAgain(burst.target, now)
        # At the end: the first one is always the oldest.
        self._questions[key] = question

    def targetOf(self, address: Address) -> Address:
        """The resolver for a connection to port 53; all else as it is."""
        return self._resolver if address[1] == DNS_PORT else address

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Let answers of the resolver seem to come from where the questions were sent to."""
        if not self._isResolver(source):
            self._writer.send(to, source, size, payload)
            return
        for datagram in split(size, payload):
            question = self._questions.get((to, bytes(datagram[:_ID_BYTES])))
            if question is None:
                self._counters.drop("DNS answer that nobody waits for")
            else:
                self._writer.send(to, question.answered(), len(datagram), datagram)

    def _isResolver(self, source: Address) -> bool:
        # Of a resolver that is a name we only know the port; the number of the question tells the rest.
        return source == self._resolver or (source[1] == self._resolver.port and self._resolver.isName)

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that a target can not be reached: the one that was asked, if it is the resolver."""
        question = self._questions.get((burst.source, bytes(burst.payload[:_ID_BYTES])))
        if question is not None and burst.target == self._resolver:
            burst = burst._replace(target=question.targets[0])
        self._writer.refuse(burst, why)

    def tick(self, now: float) -> None:
        """Forget the questions that nobody has answered."""
        super().tick(now)
        for key, question in list(self._questions.items()):
            if now - question.since < ANSWER_SECONDS:
                break
            del self._questions[key]

    def report(self) -> dict[str, Any]:
        """The figures as plain values, those of the receiver included."""
        figures = {"redirected": self._redirected, "waiting": len(self._questions)}
        return {**super().report(), "dns": figures}


# -- fake addresses

_FAKE_SECONDS = 1
"""What we answer may be remembered so long: whoever uses a name asks for it, so we know which ones are in use."""

_HTTPS, _SVCB = 65, 64
"""RFC 9460."""

_VERSIONS = {dns.A: 4, dns.AAAA: 6}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}

_REVERSE = {
    4: re.compile(r"((?:[0-9]{1,3}\.){4})in-addr\.arpa", re.IGNORECASE),
    6: re.compile(r"((?:[0-9a-f]\.){32})ip6\.arpa", re.IGNORECASE),
}


class FakeDns(Before):
    """
    Answers DNS with fake addresses, and sends on by name what goes to these.

    Answered are A and AAAA, those of a family without a prefix with nothing;
    HTTPS and SVCB with nothing, for they would bring real addresses; and PTR for
    a fake address. Other questions go to a resolver, if there is one. If not,
    they are answered with nothing, too. An error, NOTIMP say, would make a stub
    resolver ask another server, or go on asking. Without a SOA record nobody
    remembers that there was nothing (RFC 2308 section 5).

    Not all names get an address: C{localhost} has one already, and must not
    become the far end's own (RFC 6761 section 6.3); C{local} is for multicast
    (RFC 6762 section 22.1), which does not come here; and a name of one label
    means something near us, or nothing. If it does not exist, a stub resolver
    tries it with its search domains.
    """

    def __init__(
        self,
        names: FakeNames,
        writer: UdpWriter,
        counters: Counters,
        clock: Callable[[], float],
        hasResolver: bool = False,
    ) -> None:
        """
        @param hasResolver: whether questions that are not answered here may go on.
        """
        super().__init__(writer, counters, clock)
        self._names = names
        self._hasResolver = hasResolver
        self._peers = FakePeers()
        self._answered = 0

    # -- there

    def passOn(self, burst: AimedBurst, now: float) -> list[AimedBurst]:
        """No question that is answered here; by name what goes to a fake address; the rest as it is."""
        source, target, size, payload = burst
        if target[1] == DNS_PORT:
            datagrams = [AimedBurst(source, target, len(each), each) for each in split(size, payload)]
            return [each for each in datagrams if not self._answers(each, now)]
        name = self._names.nameOf(target[0], now)
        if name is not None:
            return [AimedBurst(source, self._peers.sentToFake(source, target, name, now), size, payload)]
        if self._names.covers(target[0]):
            self._forgotten(burst)
            return []
        self._peers.sentToReal(source, target)
        return [burst]

    def _forgotten(self, burst: AimedBurst) -> None:
        """Nobody knows any more what an address stood for."""
        self._counters.drop("fake address without a name", count(burst.size, burst.payload))
        # Linux tells a connected socket of this reason, and not of NET or HOST: so the program looks the name up again.
        self._writer.refuse(burst, Unreachable.PORT)

    def _answers(self, question: AimedBurst, now: float) -> bool:
        """Answer a datagram to port 53; false if it is a question for a resolver."""
        try:
            reply = self._replyTo(readQuery(bytes(question.payload)), now)
        except NotAQueryError:
            self._counters.drop("no DNS question")
            return True
        except QueryError as error:
            reply = error.reply
        if reply is None:
            return False
        self._answered += 1
        self._writer.send(question.source, question.target, len(reply), reply)
        return True

    def _replyTo(self, query: Query, now: float) -> bytes | None:
        """What to answer; C{None} if the question is for a resolver."""
        if query.kind in _VERSIONS:
            return self._address(query, _VERSIONS[query.kind], now)
        if query.kind == dns.PTR and (host := _reverseOf(query.name)) is not None and self._names.covers(host):
            return self._pointer(query, host, now)
        return writeReply(query) if query.kind in (_HTTPS, _SVCB) else self._otherwise(query, dns.OK)

    def _otherwise(self, query: Query, rCode: int) -> bytes | None:
        return None if self._hasResolver else writeReply(query, rCode=rCode)

    def _address(self, query: Query, version: int, now: float) -> bytes | None:
        above, _, last = query.name.lower().rpartition(".")
        if last == "localhost":
            return _addressReply(query, version, _LOOPBACK[version])
        if last in ("local", "invalid"):
            return writeReply(query, rCode=NO_SUCH_NAME)
        if not above:
            return self._otherwise(query, NO_SUCH_NAME)
        return self._fakeAddress(query, version, now)

    def _fakeAddress(self, query: Query, version: int, now: float) -> bytes:
        try:
            host = self._names.addressFor(query.name, version, now)
        except AddressError:
            return writeReply(query, rCode=NO_SUCH_NAME)
        if host is not None:
            return _addressReply(query, version, host)
        return writeReply(query, rCode=FAILED if self._names.serves(version) else dns.OK)

    def _pointer(self, query: Query, host: str, now: float) -> bytes:
        name = self._names.nameOf(host, now)
        if name is None:
            return writeReply(query, rCode=NO_SUCH_NAME)
        return writeReply(query, (dns.Record_PTR(name),), _FAKE_SECONDS)

    def targetOf(self, address: Address) -> Address:
        """
        The name behind a fake address, with the port; all else as it is.

        @raise AddressError: nobody knows any more what name a fake address stood for.
        """
        name = self._names.nameOf(address[0], self._clock())
        if name is not None:
            return Address(name, address[1])
        if self._names.covers(address[0]):
            raise AddressError(f"{address[0]} stands for no name any more")
        return address

    # -- and back

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Let what comes from the real address of a name, or from the name, seem to come from its fake address."""
        seeming = self._seeming(to, source)
        if _looksLikeName(seeming[0]):
            self._counters.drop("from a name without a fake address", count(size, payload))
        else:
            self._writer.send(to, seeming, size, payload)

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Say that a target can not be reached: the fake address that it had."""
        self._writer.refuse(burst._replace(target=self._seeming(burst.source, burst.target)), why)

    def _seeming(self, to: Address, far: Address) -> Address:
        seeming = self._peers.seeming(to, far)
        if not _looksLikeName(seeming[0]):
            return seeming
        # Another port of a name that we know.
        host = self._names.hostOf(seeming[0], 6 if ":" in to[0] else 4)
        return seeming if host is None else Address(host, seeming[1])

    # -- the rest

    def tick(self, now: float) -> None:
        """Forget the sources that have been silent for long."""
        super().tick(now)
        self._peers.expire(now)

    def report(self) -> dict[str, Any]:
        """The figures as plain values, those of the receiver included."""
        figures = {"answered": self._answered, "names": len(self._names), "sources": len(self._peers)}
        return {**super().report(), "fakeDns": figures}


def _addressReply(query: Query, version: int, host: str) -> bytes:
    record = dns.Record_A(host) if version == 4 else dns.Record_AAAA(host)
    return writeReply(query, (record,), _FAKE_SECONDS)


def _reverseOf(name: str) -> str | None:
    """The host that a PTR question is about (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    for version, pattern in _REVERSE.items():
        match = pattern.fullmatch(name)
        if match is not None:
            labels = match[1].split(".")[-2::-1]
            return ".".join(labels) if version == 4 else str(IPv6Address(int("".join(labels), 16)))
    return None


def _looksLikeName(host: str) -> bool:
    """Whether a host is no literal, in a hurry: no top-level domain is a number (RFC 3696 section 2)."""
    return ":" not in host and not host.rpartition(".")[2].isdigit()
