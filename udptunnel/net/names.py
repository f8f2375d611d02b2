"""
Names, resolved without blocking: the reactor asks by itself, no thread waits.

C{getaddrinfo} blocks, and Twisted runs it in a pool of threads that everything
shares: ten names whose servers are silent stop all look-ups for ten seconds.
So the questions are asked with C{twisted.names}, each session may have a few
at a time, each may take a moment, and answers are remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.names import client, dns, hosts, resolve
from twisted.python.failure import Failure

from udptunnel.core.acl import normalName
from udptunnel.errors import AddressError, ResolveError
from udptunnel.wire.address import normalHost

MOST_NAMES = 16384
"""Names that are remembered."""

LEAST_SECONDS, MOST_SECONDS = 5.0, 300.0
"""How long an answer is remembered, whatever its time to live says."""

FAILED_SECONDS = 5.0
"""How long a failure is."""


class Resolver(Protocol):
    """The part of C{twisted.internet.interfaces.IResolver} that is used here."""

    def lookupAddress(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Ask for A records."""

    def lookupIPV6Address(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Ask for AAAA records."""


class SystemResolver:
    """
    A resolver that uses the system's hosts file and name servers.

    From the first question on it looks at the list of name servers now and then.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._servers: client.Resolver | None = None

    def lookupAddress(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Ask for A records."""
        answer: Deferred[Any] = self._chain().lookupAddress(name, timeout)
        return answer

    def lookupIPV6Address(self, name: str, timeout: Any = None) -> Deferred[Any]:
        """Ask for AAAA records."""
        answer: Deferred[Any] = self._chain().lookupIPV6Address(name, timeout)
        return answer

    def _chain(self) -> resolve.ResolverChain:
        if self._servers is None:
            self._servers = client.Resolver(resolv="/etc/resolv.conf", reactor=self._reactor)
        return resolve.ResolverChain([hosts.Resolver(), self._servers])

    def stop(self) -> None:
        """Look at the list of name servers no more."""
        looking = None if self._servers is None else self._servers._parseCall
        if looking is not None and looking.active():
            looking.cancel()


class Names:
    """Resolves names for the sessions of a server."""

    def __init__(self, clock: IReactorTime, resolver: Resolver, most: int, seconds: float) -> None:
        """
        @param most: how many names one asker may have resolved at a time.
        @param seconds: how long resolving may take.
        """
        self._clock = clock
        self._resolver = resolver
        self._most = most
        self._seconds = seconds
        self._asking: Counter[Hashable] = Counter()
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}

    def resolve(self, name: str, asker: Hashable) -> Deferred[tuple[str, ...]]:
        """
        The addresses of a name, IPv4 first, as numeric hosts.

        @param asker: whose limit counts.
        @return: fails with L{ResolveError<udptunnel.errors.ResolveError>} if there are none.
        """
        try:
            name = normalName(name)
        except AddressError as error:
            return fail(ResolveError(str(error)))
        until, addresses = self._known.get(name, (0.0, ()))
        if self._clock.seconds() < until:
            return succeed(addresses) if addresses else fail(ResolveError(f"{name} has no address"))
        if self._asking[asker] >= self._most:
            return fail(ResolveError(f"{name} is not asked for: {self._most} names are being resolved already"))
        return self._ask(name, asker)

    def _ask(self, name: str, asker: Hashable) -> Deferred[tuple[str, ...]]:
        self._asking[asker] += 1
        # Two tries, so that one lost packet does not cost the whole time.
        timeout = (self._seconds / 2, self._seconds / 2)
        asked: Deferred[Any] = DeferredList(
            [
                maybeDeferred(self._resolver.lookupAddress, name, timeout=timeout),
                maybeDeferred(self._resolver.lookupIPV6Address, name, timeout=timeout),
            ],
            consumeErrors=True,
        )
        asked.addTimeout(self._seconds + 0.5, self._clock)
        asked.addBoth(self._answered, name, asker)
        return asked

    def _answered(self, results: Any, name: str, asker: Hashable) -> tuple[str, ...]:
        self._asking -= Counter((asker,))
        records = [] if isinstance(results, Failure) else [r for ok, r in results if ok]
        answers = [record for answer, *_ in records for record in answer]
        addresses = tuple(_hosts(answers, dns.Record_A) + _hosts(answers, dns.Record_AAAA))
        seconds = min((record.ttl or 0 for record in answers), default=0)
        self._remember(name, addresses, min(max(seconds, LEAST_SECONDS), MOST_SECONDS) if addresses else FAILED_SECONDS)
        if not addresses:
            raise ResolveError(f"{name} has no address")
        return addresses

    def _remember(self, name: str, addresses: tuple[str, ...], seconds: float) -> None:
        if len(self._known) >= MOST_NAMES:
            self._known.clear()
        self._known[name] = (self._clock.seconds() + seconds, addresses)


def _hosts(answers: list[Any], kind: type[Any]) -> list[str]:
    payloads: list[Any] = [record.payload for record in answers if isinstance(record.payload, kind)]
    read = dns.Record_A.dottedQuad if kind is dns.Record_A else _six
    return [normalHost(read(payload)) for payload in payloads]


def _six(record: Any) -> str:
    raw: bytes = record.address
    return ":".join(raw[place : place + 2].hex() for place in range(0, 16, 2))
