"""
UDP that comes out of a TUN, carried on by a SOCKS5 server.

Each source behind the TUN has a UDP ASSOCIATE of its own, so that it keeps its
port at the server whatever it sends to, and hears whoever answers: full cone,
if the server is. The first datagrams wait until the server has agreed. A server
that refuses is left alone for a while, and meanwhile clients are told that
there is no way. The methods stand in the order in which a burst meets them.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from udptunnel.core.backoff import Backoff
from udptunnel.core.bucket import Bucket
from udptunnel.core.counters import Counters
from udptunnel.core.headers import Headers
from udptunnel.core.recent import Recent
from udptunnel.core.waiting import Waiting
from udptunnel.errors import AddressError
from udptunnel.net.association import MakeDial, Means, OpenSocket, SocksAssociation
from udptunnel.net.datagrams import Traffic
from udptunnel.net.dial import Dial, Proxy
from udptunnel.net.gateway import UdpWriter
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst, Burst, count, join
from udptunnel.wire.transport import Unreachable

MOST_DIALS = 256
"""Requests to the server at once; other sources wait for their turn."""

PATIENCE_SECONDS = 10.0
"""How long the server may take to agree."""

REFUSED_SECONDS, UNREACHABLE_SECONDS = 30.0, 4.0
"""The longest pause after it refused, for somebody must change something there, and after it was not there."""

BRIEF_SECONDS = 2.0
"""An association that the server ends so soon, and that has brought nothing, was none."""

REFUSALS = 100
"""ICMP messages a second that tell clients so."""

REPEAT_SECONDS = 60.0
"""The log says the same about the server once within this time."""


class SocksUdp:
    """Carries datagrams to and from one SOCKS5 server: a L{udptunnel.net.gateway.UdpReceiver}."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        proxy: Proxy,
        writer: UdpWriter,
        traffic: Traffic,
        counters: Counters,
        clock: Callable[[], float],
        *,
        most: int,
        idleSeconds: float,
        udpAddress: Address | None = None,
        option: str = "--udp-socks-server-addr",
        udpOption: str = "--udp-address",
        makeDial: MakeDial = Dial,
        openSocket: OpenSocket | None = None,
    ) -> None:
        """
        @param writer: takes what comes back.
        @param most: how many sources may have an association at once; the one
            that was silent longest makes room.
        @param idleSeconds: how long an association may be unused.
        @param udpAddress: where datagrams go, whatever the server says; its
            host is numeric, and port 0 stands for the server's.
        @param option: which one the server was given with, for the log.
        @param udpOption: likewise for C{udpAddress}.
        @param makeDial: what stands between us and the server, for tests.
        @param openSocket: likewise.
        """
        self._means = Means(reactor, proxy, traffic, udpAddress, makeDial, openSocket, udpOption)
        self._writer = writer
        self._counters = counters
        self._clock = clock
        self._idle = idleSeconds
        self._option = option
        self._associations: Recent[Address, SocksAssociation] = Recent(most)
        self._headers = Headers(counters)
        self._waiting = Waiting(counters)
        self._line: OrderedDict[SocksAssociation, None] = OrderedDict()
        self._dialing: set[SocksAssociation] = set()
        self._backoff = Backoff()
        self._doubtful = False
        self._unreachable = Unreachable.PORT
        self._refusals = Bucket(REFUSALS, clock())
        self._said = ""
        self._saidAt = 0.0
        self._complained = self._stopped = False

    @property
    def proxy(self) -> Proxy:
        """The server. Another one, or another password, is for associations that begin from then on."""
        return self._means.proxy

    @proxy.setter
    def proxy(self, proxy: Proxy) -> None:
        if proxy != self._means.proxy:
            self._means.proxy = proxy
            self._backoff.worked()

    # -- to the server

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """Somebody behind the TUN has sent something."""
        now = self._clock()
        for burst in bursts:
            association = self._associations.get(burst.source)
            if association is None or association.over:
                association = self._begin(burst.source, now)
            if association is None:
                self._refuse(burst, now)
                continue
            association.touch(burst.target, now, self._idle)
            if association.port is None:
                self._waiting.put(burst, now)
            else:
                self._send(association, burst)

    def _send(self, association: SocksAssociation, burst: AimedBurst) -> None:
        _, target, size, payload = burst
        try:
            header = self._headers.of(target)
        except AddressError:
            self._counters.drop("no SOCKS5 address", count(size, payload))
            return
        association.send(header, size, payload)

    # -- a new association

    def _begin(self, source: Address, now: float) -> SocksAssociation | None:
        """An association for a source, unless the server is to be left alone."""
        ended = self._associations.get(source)
        if ended is not None:
            self._close(ended)
        if self._stopped or self._backoff.rests(now):
            return None
        for each in self._associations.surplus():
            self._counters.evicted += 1
            self._close(each)
        association = SocksAssociation(self._means, self, source, now)
        self._associations.put(source, association)
        self._line[association] = None
        self._dialNext(now)
        return association

    def _dialNext(self, now: float) -> None:
        """Ask for those whose turn it is; after a failure for one of them first."""
        most = 1 if self._doubtful else MOST_DIALS
        while self._line and len(self._dialing) < most:
            association, _ = self._line.popitem(last=False)
            self._dialing.add(association)
            association.dial(now)

    def opened(self, association: SocksAssociation) -> None:
        """The server has agreed: what waits may go."""
        now = self._clock()
        self._dialing.discard(association)
        association.since = now
        self._doubtful = False
        for burst in self._waiting.take(association.source, now):
            self._send(association, burst)
        self._dialNext(now)

    # -- from the server

    def answered(self, association: SocksAssociation, bursts: list[Burst]) -> None:
        """Datagrams with headers have come from the relay."""
        association.used = self._clock()
        if not association.heard:
            association.heard = True
            self._worked()
        inner = [each for _, size, payload in bursts for each in self._headers.unwrap(size, payload)]
        send, to = self._writer.send, association.source
        for source, size, payload in inner if len(inner) < 2 else join(inner):
            send(to, source, size, payload)

    def _worked(self) -> None:
        self._backoff.worked()
        if self._complained:
            self._complained = False
            self._log.info("UDP gets through the SOCKS5 server {server} again", server=self.proxy.address)

    # -- a server that does not do it

    def notOpened(self, association: SocksAssociation, why: str, refused: bool) -> None:
        """The server has not agreed, or could not be asked."""
        self._failed(why, refused)
        now = self._clock()
        for each in (association, *self._line):
            for burst in self._waiting.take(each.source, now):
                self._refuse(burst, now)
            self._close(each)

    def ended(self, association: SocksAssociation) -> None:
        """The control connection is closed, and so is the association (RFC 1928 section 7)."""
        if not association.heard and self._clock() - association.since < BRIEF_SECONDS:
            self._failed("it agrees to carry UDP, and then closes the control connection", True)
        self._close(association)

    def relayFailed(self, association: SocksAssociation, error: OSError) -> None:
        """The UDP socket is of no more use. The next datagram gets another one, unless there was no relay at all."""
        if error.errno != errno.ECONNREFUSED or association.heard:
            return
        if association.unasked:
            self._failed("nobody is there, neither for TCP nor for UDP", False)
        else:
            self._failed(
                f"it agrees to carry UDP, but nothing takes datagrams at {association.relay}; is UDP switched on there"
                f" (ss-local: -u), or is it elsewhere ({self._means.udpOption})?",
                True,
            )

    def _failed(self, why: str, refused: bool) -> None:
        """Leave the server alone for a while, and say why."""
        now = self._clock()
        self._backoff.failed(now, REFUSED_SECONDS if refused else UNREACHABLE_SECONDS)
        self._unreachable = Unreachable.PORT if refused else Unreachable.HOST
        self._doubtful = True
        if why != self._said or now - self._saidAt >= REPEAT_SECONDS:
            self._said, self._saidAt, self._complained = why, now, True
            text = "the SOCKS5 server {server} ({option}) carries no UDP for us: {why}"
            if not refused:
                text = "UDP waits for the SOCKS5 server {server} ({option}): {why}"
            self._log.warn(text, server=self.proxy.address, option=self._option, why=why)

    def _refuse(self, burst: AimedBurst, now: float) -> None:
        """Tell a client that there is no way, though not more often than makes sense."""
        self._counters.drop("no SOCKS5 association", count(burst.size, burst.payload))
        if self._refusals.take(1, now):
            self._writer.refuse(burst, self._unreachable)

    # -- time, and the end

    def tick(self, now: float) -> None:
        """A second or so has passed: close what is idle, and what takes too long."""
        for each in [each for each in self._dialing if now - each.since >= PATIENCE_SECONDS]:
            if not each.over:
                self.notOpened(each, f"it does not agree to carry UDP within {PATIENCE_SECONDS:g} s", False)
        for each in self._associations.idle(now):
            self._close(each)
        for each in [each for each in self._associations if each.over or self._isDoubtful(each, now)]:
            self._close(each)
        self._waiting.expire(now)
        self._dialNext(now)

    def _isDoubtful(self, association: SocksAssociation, now: float) -> bool:
        """Whether the server could not be asked, and nothing has come: it may be back by now, and can be asked."""
        silent = association.unasked and not association.heard
        return silent and now - association.since >= UNREACHABLE_SECONDS

    def forget(self, source: Address) -> None:
        """A source is no more: close its association, if it has one."""
        association = self._associations.get(source)
        if association is not None:
            self._close(association)
            self._dialNext(self._clock())

    def _close(self, association: SocksAssociation) -> None:
        self._line.pop(association, None)
        self._dialing.discard(association)
        self._associations.pop(association.source)
        self._waiting.forget(association.source)
        association.close()

    def stop(self) -> None:
        """Close everything."""
        self._stopped = True
        for each in self._associations:
            self._close(each)

    def report(self) -> dict[str, object]:
        """The figures for a status report."""
        return {
            "server": str(self.proxy.address),
            "associations": len(self._associations),
            "associationsDialing": len(self._dialing),
            "associationsInLine": len(self._line),
            "waitingBytes": self._waiting.bytes,
            "refused": self._backoff.rests(self._clock()),
        }
