"""DNS questions as they come out of a TUN."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from twisted.names import dns

from udptunnel.core.counters import Counters
from udptunnel.core.fakenames import FakeNames
from udptunnel.net.dns import FakeDns, RedirectedDns
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

SOURCE, SERVER, RESOLVER = Address("10.0.0.2", 4000), Address("192.0.2.53", 53), Address("9.9.9.9", 53)
NETWORKS = [ip_network("198.18.0.0/29"), ip_network("fd00:198::/64")]


class _Ends:
    """Both sides: keeps what is passed on, and what is sent back."""

    def __init__(self) -> None:
        self.passed: list[AimedBurst] = []
        self.sent: list[tuple[Address, bytes]] = []

    def burstsReceived(self, bursts: list[AimedBurst]) -> None:
        """A question goes on."""
        self.passed += bursts

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """Something goes back."""
        assert to == SOURCE
        self.sent.append((source, bytes(payload)))

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """A target can not be reached."""

    def tick(self, now: float) -> None:
        """A second has passed."""

    def stop(self) -> None:
        """Close everything."""

    def report(self) -> dict[str, Any]:
        """Figures."""
        return {}


def dnsQuestion(data: bytes) -> None:
    """Any datagram to port 53 is answered once, dropped and counted, or redirected; an answer is good DNS."""
    for hasResolver in (False, True):
        ends, counters = _Ends(), Counters()
        fake = FakeDns(FakeNames(NETWORKS), ends, counters, lambda: 0.0, hasResolver)
        redirected = RedirectedDns(RESOLVER, fake, counters, lambda: 0.0)
        fake.receiver, redirected.receiver = redirected, ends
        fake.burstsReceived([AimedBurst(SOURCE, SERVER, len(data), memoryview(data))])
        assert len(ends.sent) + len(ends.passed) + counters.dropped.total() == 1
        for source, reply in ends.sent:
            assert source == SERVER
            _checkReply(data, reply)
        for burst in ends.passed:
            assert hasResolver and burst.target == RESOLVER and burst.payload == data
            redirected.send(SOURCE, RESOLVER, len(data), data)
            assert ends.sent == [(SERVER, data)]


def _checkReply(data: bytes, reply: bytes) -> None:
    message = dns.Message()
    message.fromStr(reply)
    assert reply[:2] == data[:2] and message.answer and not message.trunc and len(reply) <= 512
    assert len(message.queries) == int.from_bytes(reply[4:6]) <= 1
    assert len(message.answers) == int.from_bytes(reply[6:8]) <= 1
    assert reply[12 : 12 + len(data)].startswith(data[12:17]) or not message.queries
