"""
Entries: where the UDP of applications comes in, and where its answers go out.

An entry owns one UDP port. Each source that sends to it has an association,
whose outlet leads back to that source.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from udptunnel.core.associations import Association
from udptunnel.core.bucket import Bucket
from udptunnel.core.headers import Headers
from udptunnel.core.session import Session
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.reach import isLoopback
from udptunnel.wire.address import Address, normalHost
from udptunnel.wire.burst import Burst, count
from udptunnel.wire.frame import Buffer


class _WayBack:
    """The outlet of an association on the local side: back to its source."""

    __slots__ = ("_source", "_sources")

    def __init__(self, sources: Sources, source: Address) -> None:
        self._sources = sources
        self._source = source

    def send(self, address: Address, size: int, payload: Buffer) -> None:
        """A burst has come from a far address."""
        self._sources.answer(self._source, address, size, payload)

    def closed(self) -> None:
        """The association is over; if the source sends again, there will be another."""
        self._sources.forget(self._source)


class Sources:
    """Those who send through a session, and their associations."""

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self._session = session
        self._clock = clock
        self._associations: dict[Address, Association] = {}

    def _associationOf(self, source: Address, target: Address, now: float) -> Association:
        association = self._associations.get(source)
        if association is None:
            association = self._session.begin(lambda number: _WayBack(self, source), now)
            self._associations[source] = association
        association.touch(target, now)
        return association

    def answer(self, source: Address, address: Address, size: int, payload: Buffer) -> None:
        """C{address} has sent something to one of our sources."""
        raise NotImplementedError

    def forget(self, source: Address) -> None:
        """The association of a source is over."""
        self._associations.pop(source, None)

    def close(self, source: Address) -> None:
        """Close the association of a source. It may have none."""
        association = self._associations.get(source)
        if association is not None:
            self._session.close(association)

    def closeAll(self) -> None:
        """Close the associations of all of them."""
        for association in list(self._associations.values()):
            self._session.close(association)


class Entry(Sources):
    """
    What a forward and a SOCKS5 relay have in common.

    @ivar port: the UDP port.
    """

    def __init__(self, traffic: Traffic, session: Session, clock: Callable[[], float], listen: Address) -> None:
        super().__init__(session, clock)
        self.port = DatagramPort(traffic, listen, self)
        self._traffic = traffic

    def startListening(self) -> None:
        """
        Open the port.

        @raise ListenError: that can not be done.
        """
        self.port.startListening()

    def adopt(self, opened: socket.socket) -> None:
        """Use a bound socket that somebody else has opened."""
        self.port.equip(opened)
        self.port.adopt(opened)

    def stopListening(self) -> None:
        """Close the port and the associations of all that have sent to it."""
        self.port.stopListening()
        self.closeAll()

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Applications have sent something."""
        raise NotImplementedError


MOST_HOSTS = 1024
"""Other machines that a forward knows one by one."""


class ForwardEntry(Entry):
    """
    Sends what comes to one address to one target.

    Should that lead back here, the datagram would come from another external
    port each time, go round for ever, and open a port in each round. So another
    machine may bring only so many new sources a second.
    """

    def __init__(
        self,
        traffic: Traffic,
        session: Session,
        clock: Callable[[], float],
        listen: Address,
        target: Address,
        newSources: int = 0,
    ) -> None:
        """
        @param newSources: how many new sources a second another machine may bring; 0 for no limit.
        """
        super().__init__(traffic, session, clock, listen)
        self._target = Address(normalHost(target.host), target.port)
        self._newSources = newSources
        self._hosts: dict[str, Bucket] = {}

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Send everything to the target."""
        now, target = self._clock(), self._target
        parcels = [
            (self._associationOf(source, target, now), target, size, payload)
            for source, size, payload in bursts
            if source in self._associations or self._admits(source, size, payload, now)
        ]
        if parcels:
            self._session.send(parcels, now)

    def _admits(self, source: Address, size: int, payload: Buffer, now: float) -> bool:
        """Whether a new source may come in; counted if not."""
        if not self._newSources or isLoopback(source.host) or self._bucketOf(source.host, now).take(1, now):
            return True
        self._traffic.counters.drop("too many new sources", count(size, payload))
        return False

    def _bucketOf(self, host: str, now: float) -> Bucket:
        bucket = self._hosts.get(host)
        if bucket is None:
            if len(self._hosts) >= MOST_HOSTS:
                del self._hosts[next(iter(self._hosts))]
            bucket = self._hosts[host] = Bucket(self._newSources, now)
        return bucket

    def answer(self, source: Address, address: Address, size: int, payload: Buffer) -> None:
        """
        Pass on what comes from the target, and nothing else.

        The application sees the forward's own address as the source, so a
        stranger's datagram would look like an answer. Of a target that is a
        name we only know the port.
        """
        if address == self._target or (self._target.isName and address[1] == self._target.port):
            self.port.send(source, size, payload)
        else:
            self._traffic.counters.drop("not from the forward's target", count(size, payload))


MOST_SOURCES = 256
"""Ports of one client that may use its relay."""


class SocksRelay(Entry):
    """
    The relay of one SOCKS5 UDP ASSOCIATE (RFC 1928 section 7).

    It is for one client: datagrams from other hosts are dropped and counted.
    """

    def __init__(
        self, traffic: Traffic, session: Session, clock: Callable[[], float], listen: Address, client: str
    ) -> None:
        """
        @param client: the only host that may use this relay.
        """
        super().__init__(traffic, session, clock, listen)
        self._client = normalHost(client)
        self._headers = Headers(traffic.counters)

    def stopListening(self) -> None:
        """Close the relay for good."""
        super().stopListening()
        self.port.close()

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Take the headers off, and send each datagram to the target that its header names."""
        now = self._clock()
        parcels = []
        for source, size, payload in bursts:
            if (why := self._refusal(source)) is not None:
                self._traffic.counters.drop(why, count(size, payload))
            else:
                for target, inner, rest in self._headers.unwrap(size, payload):
                    parcels.append((self._associationOf(source, target, now), target, inner, rest))
        if parcels:
            self._session.send(parcels, now)

    def _refusal(self, source: Address) -> str | None:
        """Why a source may not use this relay; C{None} if it may."""
        if source[0] != self._client:
            return "not from the SOCKS5 client"
        if source not in self._associations and len(self._associations) >= MOST_SOURCES:
            return "too many ports of one SOCKS5 client"
        return None

    def answer(self, source: Address, address: Address, size: int, payload: Buffer) -> None:
        """Put a header before each datagram, and send it to the client."""
        self.port.sendHeaded(source, self._headers.of(address), size, payload)
