"""IP packets: their headers, the answers that we give, and fragments."""

from __future__ import annotations

from udptunnel.core.fragments import LIFE_SECONDS, Fragments
from udptunnel.errors import PacketError
from udptunnel.wire.ip import TCP, UDP, Packet, fragmented, ipHeader, parse
from udptunnel.wire.transport import (
    Unreachable,
    checksumHolds,
    echoReply,
    parseTcp,
    parseUdp,
    protocolUnreachable,
    resetFor,
    tooBig,
    unreachable,
)

MOST_PACKETS, MOST_BYTES = 4, 8192
"""Room for fragments here."""

NUMBERS = 4
"""So many packets are in parts at once."""


# -- packets


def packet(data: bytes) -> None:
    """All that is said about a packet lies in it, also of what it carries; each answer is a good packet."""
    try:
        found = parse(data)
    except PacketError:
        return
    assert found.headerLength <= found.payloadStart <= found.totalLength <= len(data)
    assert data[found.protocolAt] == found.protocol
    assert parse(data[: found.totalLength]) == found
    for cut in range(found.totalLength):
        assert _isRefused(data[:cut]), f"the first {cut} of {found.totalLength} bytes are a packet, too"
    _readTransport(data, found)
    for answer in _answers(data, found):
        _checkAnswer(found, answer)


def _isRefused(data: bytes) -> bool:
    try:
        parse(data)
    except PacketError:
        return True
    return False


def _readTransport(data: bytes, found: Packet) -> None:
    try:
        if found.protocol == TCP:
            segment = parseTcp(data, found)
            assert found.payloadStart + 20 <= segment.payloadStart <= found.totalLength
            assert segment.payloadStart + segment.payloadLength == found.totalLength
        if found.protocol == UDP:
            datagram = parseUdp(data, found)
            assert found.payloadStart + 8 == datagram.payloadStart <= datagram.payloadEnd <= found.totalLength
        checksumHolds(data, found)
    except PacketError:
        pass


def _answers(data: bytes, found: Packet) -> list[bytes]:
    errors = [unreachable(data, found, why) for why in Unreachable]
    errors += [protocolUnreachable(data, found), tooBig(data, found, 1280)]
    for error in filter(None, errors):
        assert len(error) <= (576 if found.version == 4 else 1280)
        assert unreachable(error, parse(error), Unreachable.NET) is None, "an error is answered by an error"
        assert checksumHolds(error, parse(error))
    return [each for each in (*errors, echoReply(data, found), _reset(data, found)) if each is not None]


def _reset(data: bytes, found: Packet) -> bytes | None:
    try:
        reset = resetFor(data, found) if found.protocol == TCP else None
    except PacketError:
        return None
    if reset is not None:
        assert checksumHolds(reset, parse(reset))
        assert resetFor(reset, parse(reset)) is None, "an RST is answered by an RST"
    return reset


def _checkAnswer(found: Packet, answer: bytes) -> None:
    said = parse(answer)
    assert (said.source, said.destination) == (found.destination, found.source)
    assert said.totalLength == len(answer)


# -- fragments


def fragments(data: bytes) -> None:
    """
    Parts of any length at any place: bounds hold, and what is whole is what
    was put in.

    The input is parts: C{number(1) version, more(1) place(1) length(1) pause(1)}. Each
    byte of a packet follows from its place, so that parts agree.
    """
    held, now = Fragments(MOST_PACKETS, MOST_BYTES), 0.0
    while len(data) >= 5:
        number, flags, place, length, pause = data[:5]
        data, now = data[5:], now + pause / 16
        raw = _part(number % NUMBERS, 4 if flags & 2 else 6, bool(flags & 1), place * 8, length)
        whole = held.add(raw, parse(raw), now)
        assert len(held) <= MOST_PACKETS and held.size <= MOST_BYTES
        if whole is not None:
            _checkWhole(whole)
    held.expire(now + LIFE_SECONDS)
    assert not len(held) and not held.size


def _part(number: int, version: int, more: bool, offset: int, length: int) -> bytes:
    payload = bytes(each & 0xFF for each in range(offset, offset + length))
    hosts = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])) if version == 4 else (bytes(15) + b"\1", bytes(15) + b"\2")
    if version == 4:
        header = bytearray(ipHeader(*hosts, UDP, length))
        header[4:8] = number.to_bytes(2, "big") + (more << 13 | offset >> 3).to_bytes(2, "big")
        return bytes(header) + payload
    fields = bytes((UDP, 0)) + (offset | more).to_bytes(2, "big") + number.to_bytes(4, "big")
    return ipHeader(*hosts, 44, 8 + length) + fields + payload


def _checkWhole(whole: bytes) -> None:
    found = parse(whole)
    payload = whole[found.payloadStart :]
    assert found.fragment is None and found.totalLength == len(whole)
    assert payload == bytes(each & 0xFF for each in range(len(payload)))
    # A fragment that is all of its packet keeps its header, and what has such a header is not cut.
    if found.payloadStart == (20 if found.version == 4 else 40):
        _cutAgain(whole, payload)


def _cutAgain(whole: bytes, payload: bytes) -> None:
    """What was put together can be cut and put together again."""
    held = Fragments()
    again = [held.add(raw, parse(raw), 0.0) for raw in reversed(fragmented(whole, 100, 1))]
    assert again[:-1] == [None] * (len(again) - 1) and again[-1] is not None
    assert again[-1][parse(whole).payloadStart :] == payload
