"""Formats: frames, greetings, addresses and bursts."""

from __future__ import annotations

from fuzz.cuts import sameInPieces
from udptunnel.core.relay import Relay
from udptunnel.errors import AddressError, FrameError, TruncatedError
from udptunnel.wire.address import Address, normalHost, packAddress, parseHost, unpackAddress
from udptunnel.wire.burst import LARGEST_BURST, Burst, count, join, pieces, split
from udptunnel.wire.frame import HELLO, WELCOME, decode, encode, ping, pong, unpackPing, unpackPong
from udptunnel.wire.greeting import (
    Greeting,
    checkFirstBytes,
    commonVersion,
    packChallenge,
    packHello,
    packProof,
    packWelcome,
    unpackChallenge,
    unpackGreeting,
    unpackProof,
)

Plain = tuple[int, int, int, bytes]

TARGETS = 64
"""Target numbers that are granted here."""

SOURCES = [Address("192.0.2.1", 1), Address("192.0.2.2", 2)]


# -- frames


def frames(data: bytes) -> None:
    """However a stream is cut, the same frames are in it; written again they are the stream."""
    found, rest = sameInPieces(_decodePieces, data)
    assert b"".join(encode(*frame) for frame in found) + rest == data
    for _, _, _, body in found:
        _readBody(body)


def _decodePieces(parts: list[bytes]) -> tuple[list[Plain], bytes]:
    found: list[Plain] = []
    rest = b""
    for part in parts:
        arrived, used = decode(memoryview(rest + part))
        found += [(word, target, size, bytes(body)) for word, target, size, body in arrived]
        rest = (rest + part)[used:]
    return found, rest


def _readBody(body: bytes) -> None:
    """A body may be that of any kind; what it says can be said again."""
    try:
        assert ping(unpackPing(body)).endswith(body[:8])
        assert pong(*unpackPong(body)).endswith(body[:16])
    except FrameError:
        pass
    try:
        assert packProof(unpackProof(body)).endswith(body)
    except FrameError:
        pass
    try:
        assert packChallenge(*unpackChallenge(body)).endswith(body)
    except FrameError:
        pass


# -- greeting


def greeting(data: bytes) -> None:
    """The first bytes of a link are refused as early as can be; a greeting says something that can be said again."""
    _checkBeginnings(data)
    try:
        found = unpackGreeting(int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big"), data[4:])
    except FrameError:
        return
    assert _readFrame(packHello(found)) == found
    assert _readFrame(packWelcome(found)) == found._replace(lowest=0)
    assert commonVersion(found) in (None, 1)


def _checkBeginnings(data: bytes) -> None:
    """What is refused stays refused when more arrives, and what is a whole greeting never was."""
    refused = [_isRefused(data[:length]) for length in range(min(len(data), 16) + 1)]
    assert refused == sorted(refused), "a refused beginning was accepted later"
    whole, _ = decode(memoryview(data))
    if whole and whole[0][0] in (HELLO, WELCOME) and len(whole[0][3]) <= 502:
        assert not refused[-1], "a whole greeting was refused"


def _isRefused(data: bytes) -> bool:
    try:
        checkFirstBytes(data, (HELLO, WELCOME))
    except FrameError:
        return True
    return False


def _readFrame(raw: bytes) -> Greeting:
    ((_, number, size, body),), _ = decode(memoryview(raw))
    return unpackGreeting(number, size, body)


# -- addresses


def address(data: bytes) -> None:
    """Any bytes are an address, or refused; cut short they are never taken for another one."""
    try:
        found, end = unpackAddress(data)
    except (AddressError, TruncatedError):
        return
    assert end <= len(data)
    assert unpackAddress(packAddress(found))[0] == found
    assert Address.parse(str(found)) == found
    for cut in range(end):
        try:
            unpackAddress(data[:cut])
        except TruncatedError:
            continue
        raise AssertionError(f"the first {cut} of {end} bytes are an address, too")


def addressText(data: bytes) -> None:
    """Any text is an address whose text is the same address, or refused."""
    text = data.decode("utf-8", "surrogateescape")
    assert normalHost(normalHost(text)) == normalHost(text)
    assert parseHost(normalHost(text)) == parseHost(text) or "%" in text
    try:
        found = Address.parse(text)
    except AddressError:
        return
    assert Address.parse(str(found)) == found
    again, _ = unpackAddress(packAddress(found))
    assert again == found._replace(host=found.host.partition("%")[0])


def target(data: bytes) -> None:
    """TARGET bodies are remembered under the numbers that were granted, and nowhere else."""
    relay = Relay(TARGETS)
    for number, body in _numbered(data):
        try:
            relay.targetReceived(number, body)
        except FrameError:
            assert number >= TARGETS or not _isAddress(body)
        else:
            assert relay.addresses[number] == unpackAddress(body)[0]
        assert len(relay.addresses) <= TARGETS


def _numbered(data: bytes) -> list[tuple[int, bytes]]:
    """Some target numbers with a body each: C{number(1) length(1) body(length)}."""
    found = []
    while len(data) > 1:
        found.append((data[0], data[2 : 2 + data[1]]))
        data = data[2 + data[1] :]
    return found


def _isAddress(body: bytes) -> bool:
    try:
        unpackAddress(body)
    except (AddressError, TruncatedError):
        return False
    return True


# -- bursts


def burst(data: bytes) -> None:
    """
    Splitting, cutting and joining change no datagram.

    The input is bursts: C{source(1) size(2) length(2) most(2) payload}.
    """
    found = []
    while len(data) > 7:
        size, length, most = (int.from_bytes(data[place : place + 2], "big") for place in (1, 3, 5))
        found.append(Burst(SOURCES[data[0] & 1], size, data[7 : 7 + length] if size else b""))
        _checkPieces(found[-1], most + 1)
        data = data[7 + length :]
    joined = join(found)
    assert _datagrams(joined) == _datagrams(found)
    assert len(joined) <= len(found) and all(len(each.payload) <= LARGEST_BURST for each in joined)


def _checkPieces(whole: Burst, most: int) -> None:
    parts = [Burst(whole.source, whole.size, part) for part in pieces(whole.size, whole.payload, most)]
    datagrams = _datagrams([whole])
    assert _datagrams(parts) == datagrams and count(whole.size, whole.payload) == len(datagrams)
    assert all(len(part.payload) <= max(most, whole.size) for part in parts)
    assert all(len(each) == whole.size for _, each in datagrams[:-1])


def _datagrams(bursts: list[Burst]) -> list[tuple[Address, bytes]]:
    return [(each.source, bytes(datagram)) for each in bursts for datagram in split(each.size, each.payload)]
