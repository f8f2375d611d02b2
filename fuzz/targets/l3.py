"""Messages of an l3-tunnel: from strangers, and from an other end that means harm; and packets that are captured."""

from __future__ import annotations

from hashlib import sha256

from udptunnel.core.l3way import Message, Way
from udptunnel.errors import PacketError
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.ip import ICMP, ICMPV6, TCP, UDP, parse
from udptunnel.wire.l3 import DATA, OPEN, OVERHEAD
from udptunnel.wire.transport import checksumHolds
from udptunnel.wire.vnet import VNET_BYTES, unpackVnet

KEY = bytes(range(32))
A, B = Address("192.0.2.1", 60000), Address("198.51.100.7", 50000)
PREFIXES = "10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"
MTU = 1420


def _ends() -> tuple[Way, Way]:
    """Two ends with a session."""
    draws = iter(range(1 << 20))

    def random(length: int) -> bytes:
        return sha256(next(draws).to_bytes(4, "big")).digest()[:length]

    a = Way(KEY, B, PREFIXES, random, lambda: next(draws), mtu=MTU, keepalive=25)
    b = Way(KEY, None, PREFIXES, random, lambda: next(draws), mtu=MTU)
    b.join((TCP, UDP))
    messages, source, receiver = a.tick(0), A, b
    while messages:
        _, messages = receiver.received([_burst(source, each) for each in messages], 0)
        source, receiver = (B, a) if receiver is b else (A, b)
    assert a.up and b.up
    return a, b


def _burst(source: Address, message: Message) -> Burst:
    return Burst(source, message.size, message.payload)


def l3Message(data: bytes) -> None:
    """
    Whatever a stranger sends, nothing is injected, nothing answered, and no session is lost.

    The input is datagrams, each behind one byte with its length.
    """
    _, b = _ends()
    sessions = dict(b._peer.sessions)
    while data:
        length, data = data[0], data[1:]
        datagram, data = data[:length], data[length:]
        assert b.received([Burst(A, max(1, length // 2), datagram)], 0) == ([], [])
    assert b._peer.sessions == sessions and b.peer == A


def l3Inward(data: bytes) -> None:
    """
    Whatever the other end seals, what is injected is good packets of its networks, or joins such packets.

    The input is a bit for OPEN, and packets, each behind two bytes with its length.
    """
    a, b = _ends()
    session = a._peer.current
    assert session is not None
    while len(data) >= 3:
        word, length = (OPEN if data[0] & 1 else DATA), int.from_bytes(data[1:3], "big")
        packet, data = data[3 : 3 + length], data[3 + length :]
        sealed = session.seal(word, [packet] * 3)
        injected, _ = b.received([Burst(A, len(packet) + OVERHEAD, sealed)], 0)
        for each in injected:
            _checkInjected(b"".join(each))


def _checkInjected(frame: bytes) -> None:
    unpackVnet(frame)
    packet = frame[VNET_BYTES:]
    found = parse(packet)
    assert found.totalLength == len(packet)
    assert found.source in Way(KEY, None, PREFIXES, bytes, lambda: 0).policy._peers


def l3Outward(data: bytes) -> None:
    """
    Whatever is captured, no message is longer than fits, and who is answered gets a good ICMP error.

    The input is frames, each behind two bytes with its length.
    """
    a, _ = _ends()
    while len(data) >= 2:
        length = int.from_bytes(data[:2], "big")
        frame, data = data[2 : 2 + length], data[2 + length :]
        messages, refusals = a.captured([frame], 0)
        for message in messages:
            assert all(len(each) <= MTU + OVERHEAD for each in split(message.size, message.payload))
        for refusal in refusals:
            _checkRefusal(refusal[VNET_BYTES:])


def _checkRefusal(packet: bytes) -> None:
    try:
        found = parse(packet)
    except PacketError as error:
        raise AssertionError("we answer with something that is no packet") from error
    assert found.protocol in (ICMP, ICMPV6) and found.totalLength == len(packet)
    assert checksumHolds(packet, found)
