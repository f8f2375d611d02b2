"""
Fake peers: where an answer is to come from when its target had a fake address.

What goes to a fake address is carried on by name. Most SOCKS5 servers then give
the real address of who answers, and not the name; but a program takes an answer
only from where it has sent to. So we remember who sent where. A real address
belongs to the fake one that its source sent to last at that port, before others
to one that has not answered yet; and that stays so, however many follow.
"""

from __future__ import annotations

from collections import OrderedDict

from udptunnel.wire.address import Address

MOST_SOURCES = 16_384
"""Sources that are remembered. The one that was silent longest makes room."""

MOST_PEERS = 64
"""Fake addresses that are remembered for each source, and real ones. The oldest goes first."""

SOURCE_SECONDS = 300.0
"""How long a source is remembered without sending: as long as its association (RFC 4787 REQ-5)."""


class FakePeers:
    """The fake addresses that sources sent to, and what answered."""

    def __init__(self, most: int = MOST_SOURCES) -> None:
        """
        @param most: how many sources are remembered.
        """
        self._most = most
        self._sources: OrderedDict[Address, _Source] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def sentToFake(self, source: Address, target: Address, name: str, now: float) -> Address:
        """
        A source has sent to a fake address.

        @return: where it goes: the name, with the port.
        """
        known = self._sources.get(source)
        if known is None:
            if len(self._sources) >= self._most:
                self._sources.popitem(last=False)
            known = self._sources[source] = _Source()
        self._sources.move_to_end(source)
        known.used = now
        return known.sentToFake(target, name)

    def sentToReal(self, source: Address, target: Address) -> None:
        """A source has sent to a real address: answers from there keep it."""
        known = self._sources.get(source)
        if known is not None:
            known.belongs(target, target)

    def seeming(self, source: Address, far: Address) -> Address:
        """
        Where an answer to a source is to come from.

        @param far: where it comes from: a real address, or a name.
        @return: C{far} again if it has nothing to do with a fake address.
        """
        known = self._sources.get(source)
        return far if known is None else known.seeming(far)

    def expire(self, now: float) -> None:
        """Forget the sources that have not sent to a fake address for long."""
        while self._sources:
            source, known = next(iter(self._sources.items()))
            if now - known.used < SOURCE_SECONDS:
                return
            del self._sources[source]


class _Source:
    """
    One source.

    @ivar used: when it last sent to a fake address.
    """

    __slots__ = ("_fakes", "_named", "_real", "used")

    def __init__(self) -> None:
        self.used = 0.0
        # Fake addresses and the names that they stood for, the last one used at the end; and the other way round.
        self._fakes: OrderedDict[Address, Address] = OrderedDict()
        self._named: dict[Address, Address] = {}
        # Real addresses, and where their answers are to come from.
        self._real: dict[Address, Address] = {}

    def sentToFake(self, target: Address, name: str) -> Address:
        """It has sent to a fake address; the name, with the port."""
        named = self._fakes.get(target)
        if named is None or named.host != name:
            if len(self._fakes) >= MOST_PEERS:
                self._named.pop(self._fakes.popitem(last=False)[1], None)
            named = self._fakes[target] = Address(name, target.port)
            self._named[named] = target
        self._fakes.move_to_end(target)
        return named

    def seeming(self, far: Address) -> Address:
        """Where an answer is to come from."""
        seeming = self._named.get(far) or self._real.get(far)
        if seeming is None:
            seeming = self._guess(far.port)
            if seeming is None:
                return far
            self.belongs(far, seeming)
        return seeming

    def _guess(self, port: int) -> Address | None:
        """The fake address of a port that was sent to last, before others one that has not answered yet."""
        fakes = [fake for fake in reversed(self._fakes) if fake.port == port]
        answered = set(self._real.values())
        return next((fake for fake in fakes if fake not in answered), fakes[0] if fakes else None)

    def belongs(self, real: Address, seeming: Address) -> None:
        """From now on answers from a real address come from this one."""
        if real not in self._real and len(self._real) >= MOST_PEERS:
            del self._real[next(iter(self._real))]
        self._real[real] = seeming
