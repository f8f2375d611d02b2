"""SOCKS5: both roles, the header of a datagram, and the file of credentials."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from fuzz.cuts import sameInPieces
from udptunnel.errors import AddressError, FragmentedError, SocksError, TruncatedError
from udptunnel.wire.address import Address, normalHost
from udptunnel.wire.socks5 import (
    LARGEST_HEADER,
    ClientNegotiation,
    Command,
    Credentials,
    ServerNegotiation,
    packHeader,
    unpackHeader,
)

LARGEST_MESSAGE = 2 + 255 + 1 + 255
"""The longest message of a negotiation, a login."""

Negotiation = ServerNegotiation | ClientNegotiation


def socksServer(data: bytes) -> None:
    """A server judges a client the same however its bytes are cut, with and without a login, and keeps few of them."""
    sameInPieces(lambda parts: _negotiate(ServerNegotiation(), parts), data)
    sameInPieces(lambda parts: _negotiate(ServerNegotiation(_isAnn), parts), data)


def _isAnn(user: bytes, password: bytes) -> bool:
    return (user, password) == (b"ann", b"secret")


def socksClient(data: bytes) -> None:
    """A client judges a server the same however its bytes are cut, with and without a login, and keeps few of them."""
    sameInPieces(lambda parts: _negotiate(_client(""), parts), data)
    sameInPieces(lambda parts: _negotiate(_client("ann"), parts), data)


def _client(user: str) -> ClientNegotiation:
    return ClientNegotiation(Command.UDP_ASSOCIATE, Address("192.0.2.1", 53), user, user)


def _negotiate(negotiation: Negotiation, parts: list[bytes]) -> tuple[bytes, object, bytes, str]:
    """What a negotiation answers, what it found, what is left over, and why it failed."""
    answered = b""
    for part in parts:
        answered += negotiation.receive(part)
        assert len(negotiation._arrived) <= LARGEST_MESSAGE, "more is kept than a message holds"
        assert not (negotiation.failed and negotiation.rest)
    found = negotiation.request if isinstance(negotiation, ServerNegotiation) else negotiation.reply
    assert "\n" not in negotiation.failed
    return answered, found, negotiation.rest, negotiation.failed


# -- datagrams


def socksHeader(data: bytes) -> None:
    """A header is read as RFC 1928 section 7 says, by another reader too, and can be written again."""
    expected = _headerByHand(data)
    try:
        found, length = unpackHeader(data)
    except (TruncatedError, FragmentedError, AddressError):
        assert expected is None or not expected[0].isascii() or _isOdd(expected[0]), f"{expected} was refused"
        return
    assert length <= min(len(data), LARGEST_HEADER)
    assert expected == (found.host, found.port, length)
    assert unpackHeader(packHeader(found))[0] == found


def _headerByHand(data: bytes) -> tuple[str, int, int] | None:
    """Host, port and length of a header, read without our own code; C{None} if there is none."""
    if len(data) < 5 or data[2]:
        return None
    readers: dict[int, tuple[int, int, Callable[[bytes], str]]] = {
        1: (4, 8, lambda raw: str(IPv4Address(raw))),
        4: (4, 20, lambda raw: normalHost(str(IPv6Address(raw)))),
        3: (5, 5 + data[4], lambda raw: normalHost(raw.decode("latin-1"))),
    }
    if data[3] not in readers:
        return None
    begin, end, read = readers[data[3]]
    if len(data) < end + 2:
        return None
    return read(data[begin:end]), int.from_bytes(data[end : end + 2], "big"), end + 2


def _isOdd(name: str) -> bool:
    """Whether a name holds what no name may hold."""
    return not name or any(not "!" <= char <= "~" or char in "[]:%" for char in name)


# -- credentials


def socksCredentials(data: bytes) -> None:
    """Any text is a list of users, each with the password in its line, or refused without a word of it."""
    text = data.decode("utf-8", "replace")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    try:
        credentials = Credentials.parse(text)
    except SocksError as error:
        assert str(error).startswith("line ") and not any(line in str(error) for line in lines if len(line) > 40)
        return
    for line in lines:
        user, colon, password = line.partition(":")
        if colon and line.strip() and not line.lstrip().startswith("#"):
            assert credentials.check(user.encode(), password.encode())
            assert not credentials.check(user.encode(), password.encode() + b"x")
