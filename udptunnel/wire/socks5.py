"""
SOCKS5 (RFC 1928) with user and password (RFC 1929), both roles, without I/O.

A negotiation is fed with bytes as they arrive, however they are cut, and says
what to write. Inside it is a generator that yields while bytes are missing, so
that it reads like blocking code and keeps no half-read state anywhere else. The
client's messages, all fields unsigned::

    greeting   VER(1)=5  NMETHODS(1)  METHODS(NMETHODS)              at most 257 bytes
    login      VER(1)=1  ULEN(1) UNAME(ULEN)  PLEN(1) PASSWD(PLEN)   at most 513 bytes
    request    VER(1)=5  CMD(1)  RSV(1)  ATYP DST.ADDR DST.PORT      at most 262 bytes

and the server's::

    choice     VER(1)=5  METHOD(1)
    status     VER(1)=1  STATUS(1)
    reply      VER(1)=5  REP(1)  RSV(1)  ATYP BND.ADDR BND.PORT      at most 262 bytes

Addresses are read and written by L{udptunnel.wire.address}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from enum import IntEnum
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from udptunnel.errors import AddressError, FragmentedError, SocksError, TruncatedError
from udptunnel.wire.address import IPV4, IPV6, LARGEST_ADDRESS, NAME, Address, packAddress, unpackAddress
from udptunnel.wire.frame import Buffer

VERSION = 5
LOGIN_VERSION = 1
"""The login has a version of its own (RFC 1929 section 2)."""

OPEN, LOGIN, NO_METHOD = 0x00, 0x02, 0xFF
"""Methods of RFC 1928 section 3: no authentication, user and password, none of those offered."""

LARGEST_HEADER = 3 + LARGEST_ADDRESS
"""Bytes of the longest header of a UDP datagram."""

NOWHERE = Address("0.0.0.0", 0)
"""What stands in a message whose address means nothing."""

_NOT_SOCKS5 = {
    4: "SOCKS version 4 is not spoken here",
    0x16: "this looks like TLS, not like SOCKS5",
    **dict.fromkeys(range(ord("A"), ord("Z") + 1), "this looks like an HTTP request or reply, not like SOCKS5"),
}
"""What the first byte gives away about programs that were pointed at the wrong port."""


class Command(IntEnum):
    """What a client asks for (RFC 1928 section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class ReplyCode(IntEnum):
    """How a server answers (RFC 1928 section 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8

    @property
    def text(self) -> str:
        """The same in words, for people."""
        return _TEXTS[self]


_TEXTS = {
    ReplyCode.SUCCEEDED: "succeeded",
    ReplyCode.GENERAL_FAILURE: "general SOCKS server failure",
    ReplyCode.NOT_ALLOWED: "connection not allowed by the server's rules",
    ReplyCode.NETWORK_UNREACHABLE: "network unreachable",
    ReplyCode.HOST_UNREACHABLE: "host unreachable",
    ReplyCode.CONNECTION_REFUSED: "connection refused",
    ReplyCode.TTL_EXPIRED: "TTL expired",
    ReplyCode.COMMAND_NOT_SUPPORTED: "command not supported",
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


class Request(NamedTuple):
    """What a client asked for."""

    command: int
    """A L{Command}, or a number that we do not know: answer that with C{COMMAND_NOT_SUPPORTED}."""

    address: Address
    """The target of a CONNECT. With UDP ASSOCIATE only a hint where the client sends from, often a wrong one."""


class Reply(NamedTuple):
    """What a server answered."""

    code: int
    """A L{ReplyCode}, or a number that we do not know."""

    address: Address
    """Where the server listens (UDP ASSOCIATE) or sends from (CONNECT); L{NOWHERE} if it refused."""


class _Negotiation(ABC):
    """
    What both roles share.

    @ivar rest: bytes that followed the negotiation and belong to what it
        opened. What C{receive} gets later is appended here as well, without a
        bound: once the negotiation is over, read bytes from elsewhere.
    @ivar failed: empty while all is well, otherwise one line that says why it
        ended. Then the bytes that this call returned are the last to write
        before closing, and what still arrives is ignored.
    """

    def __init__(self) -> None:
        self.rest = b""
        self.failed = ""
        self._arrived = bytearray()
        self._answer = bytearray()
        self._over = False
        self._progress = self._run()

    def receive(self, data: Buffer) -> bytes:
        """Bytes arrived; get those that must be written now, which may be none."""
        self._arrived += data
        next(self._progress, None)
        if self._over:
            self._leaveRest()
        answer = bytes(self._answer)
        self._answer.clear()
        return answer

    def _run(self) -> Generator[None]:
        """The negotiation until it is over. Then this ends, and lets go of us: nothing is left to the collector."""
        try:
            yield from self._exchange()
        except (SocksError, AddressError) as error:
            self.failed = str(error)
        self._over = True

    def _leaveRest(self) -> None:
        if not self.failed:
            self.rest += bytes(self._arrived)
        self._arrived.clear()

    @abstractmethod
    def _exchange(self) -> Generator[None]:
        """The negotiation itself. It yields while bytes are missing, and raises when it can not go on."""

    def _take(self, count: int) -> Generator[None, None, bytes]:
        while len(self._arrived) < count:
            yield
        taken = bytes(self._arrived[:count])
        del self._arrived[:count]
        return taken

    def _takeCounted(self) -> Generator[None, None, bytes]:
        """Bytes with their count in one byte before them."""
        (count,) = yield from self._take(1)
        return (yield from self._take(count))

    def _takeVersion(self, expected: int) -> Generator[None]:
        (version,) = yield from self._take(1)
        if version != expected:
            raise SocksError(_NOT_SOCKS5.get(version, f"a message of version {version} instead of {expected}"))

    def _takeAddress(self) -> Generator[None, None, Address]:
        while (found := self._findAddress()) is None:
            yield
        address, end = found
        del self._arrived[:end]
        return address

    def _findAddress(self) -> tuple[Address, int] | None:
        try:
            return unpackAddress(self._arrived)
        except TruncatedError:
            return None


class ServerNegotiation(_Negotiation):
    """
    A server's side of a SOCKS5 connection, up to the request.

    Answering the request is left to the caller, with L{packReply}.

    @ivar request: what the client asked for, once it did.
    @ivar rest: bytes that followed the request. What L{receive} gets later is
        appended here as well, without a bound: once there is a request, read
        bytes from elsewhere.
    @ivar failed: empty while all is well, otherwise one line that says why
        there will be no request. Then the bytes that this call returned are the
        last to write before closing, and what still arrives is ignored.
    """

    request: Request | None = None

    def __init__(self, authenticate: Callable[[bytes, bytes], bool] | None = None) -> None:
        """
        @param authenticate: tells whether a user and a password are good. With
            it, clients must log in; without it, they can not. What it raises
            leaves L{receive}: close the connection then.
        """
        super().__init__()
        self._authenticate = authenticate

    def _exchange(self) -> Generator[None]:
        yield from self._greeting()
        if self._authenticate is not None:
            yield from self._login(self._authenticate)
        yield from self._readRequest()

    def _greeting(self) -> Generator[None]:
        yield from self._takeVersion(VERSION)
        offered = yield from self._takeCounted()
        method = OPEN if self._authenticate is None else LOGIN
        if method not in offered:
            self._answer += bytes((VERSION, NO_METHOD))
            raise SocksError(f"the client does not offer method {method}, but {list(offered)}")
        self._answer += bytes((VERSION, method))

    def _login(self, authenticate: Callable[[bytes, bytes], bool]) -> Generator[None]:
        yield from self._takeVersion(LOGIN_VERSION)
        user = yield from self._takeCounted()
        password = yield from self._takeCounted()
        if not authenticate(user, password):
            self._answer += bytes((LOGIN_VERSION, 1))
            raise SocksError("the client gave a wrong user or password")
        self._answer += bytes((LOGIN_VERSION, 0))

    def _readRequest(self) -> Generator[None]:
        yield from self._takeVersion(VERSION)
        command, _ = yield from self._take(2)
        try:
            address = yield from self._takeAddress()
        except AddressError:
            known = self._arrived[0] in (IPV4, NAME, IPV6)
            self._answer += packReply(ReplyCode.GENERAL_FAILURE if known else ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)
            raise
        self.request = Request(command, address)


class ClientNegotiation(_Negotiation):
    """
    A client's side of a SOCKS5 connection, up to the reply.

    @ivar asked: whether the request was written: the server is one, and lets us in.
    @ivar reply: what the server answered to the request, once it did.
    @ivar rest: bytes that followed the reply. What L{receive} gets later is
        appended here as well, without a bound: once there is a reply, read
        bytes from elsewhere.
    @ivar failed: empty while all is well, otherwise one line that says what
        went wrong; a reply other than C{SUCCEEDED} counts, and is in C{reply}
        too. Nothing is left to write then, and what still arrives is ignored.
    """

    asked = False
    reply: Reply | None = None

    def __init__(self, command: int, address: Address, user: str | bytes = "", password: str | bytes = "") -> None:
        """
        @param user: offer to log in as this one; the server may do without.
        @raise AddressError: the address can not be written.
        @raise SocksError: the user or the password is longer than 255 bytes.
        """
        super().__init__()
        self._request = bytes((VERSION, command, 0)) + packAddress(address)
        self._login = _packLogin(_encode(user), _encode(password)) if user or password else b""

    def begin(self) -> bytes:
        """What to write first."""
        methods = bytes((OPEN, LOGIN)) if self._login else bytes((OPEN,))
        return bytes((VERSION, len(methods))) + methods

    def _exchange(self) -> Generator[None]:
        yield from self._takeVersion(VERSION)
        (method,) = yield from self._take(1)
        if method == LOGIN and self._login:
            yield from self._logIn()
        elif method != OPEN:
            raise SocksError(_refusedMethod(method))
        self._answer += self._request
        self.asked = True
        yield from self._readReply()

    def _logIn(self) -> Generator[None]:
        self._answer += self._login
        # Some servers put 5 where RFC 1929 section 2 has the version 1. The status is what counts.
        _, status = yield from self._take(2)
        if status:
            raise SocksError("the SOCKS5 server does not accept the user and password")

    def _readReply(self) -> Generator[None]:
        yield from self._takeVersion(VERSION)
        (code,) = yield from self._take(1)
        if code:
            # Nothing that follows a refusal matters, and some servers send no whole address there.
            self.reply = Reply(code, NOWHERE)
            raise SocksError(f"the SOCKS5 server answered: {_describe(code)}")
        yield from self._take(1)
        self.reply = Reply(code, (yield from self._takeAddress()))


def _encode(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _packLogin(user: bytes, password: bytes) -> bytes:
    if max(len(user), len(password)) > 255:
        raise SocksError("a SOCKS5 user or password holds at most 255 bytes")
    return bytes((LOGIN_VERSION, len(user))) + user + bytes((len(password),)) + password


def _refusedMethod(method: int) -> str:
    if method == NO_METHOD:
        return "the SOCKS5 server accepts none of the login methods offered"
    return f"the SOCKS5 server chose login method {method}, which was not offered"


def _describe(code: int) -> str:
    try:
        return f"{ReplyCode(code).text} ({code})"
    except ValueError:
        return f"unknown reply code {code}"


def packReply(code: int, address: Address = NOWHERE) -> bytes:
    """
    A server's answer to a request: C{5 REP(1) 0 ATYP BND.ADDR BND.PORT} (RFC 1928 section 6).

    @raise AddressError: the address can not be written.
    """
    return bytes((VERSION, code, 0)) + packAddress(address)


def packHeader(address: Address) -> bytes:
    """
    What stands before the payload of a datagram between client and server:
    C{RSV(2)=0 FRAG(1)=0 ATYP ADDR PORT} (RFC 1928 section 7).

    @raise AddressError: the address can not be written.
    """
    return b"\0\0\0" + packAddress(address)


def unpackHeader(buffer: Buffer) -> tuple[Address, int]:
    """
    The address in a datagram's header, and the length of that header.

    @raise TruncatedError: the datagram ends inside the header.
    @raise FragmentedError: it is a fragment.
    @raise AddressError: it holds no address.
    """
    if len(buffer) < 3:
        raise TruncatedError("a SOCKS5 UDP header is cut short")
    if buffer[2]:
        raise FragmentedError(f"fragment {buffer[2]} of a datagram, and fragments are not reassembled")
    return unpackAddress(buffer, 3)


class Credentials:
    """Who may use a SOCKS5 server. What is kept are digests of the passwords."""

    def __init__(self, passwords: Mapping[bytes, bytes]) -> None:
        """
        @param passwords: each user's password.
        """
        self._digests = {user: sha256(password).digest() for user, password in passwords.items()}

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """
        Read lines C{user:password}. The password begins after the first colon
        and goes to the end of the line; blank lines, and those that begin with
        C{#}, say nothing.

        @raise SocksError: a line is something else, or names a user again. The
            text has the line's number, never what stands in the line.
        """
        passwords: dict[bytes, bytes] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                user, password = _parseLogin(line.removesuffix("\r"), number)
                if user in passwords:
                    raise SocksError(f"line {number}: this user has a password already")
                passwords[user] = password
        return cls(passwords)

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether this is a user and its password; takes as long if it is not."""
        expected = self._digests.get(user)
        # An unknown user is compared too, so that the time does not tell which users there are.
        same = compare_digest(expected or bytes(32), sha256(password).digest())
        return same and expected is not None


def _parseLogin(line: str, number: int) -> tuple[bytes, bytes]:
    user, _, password = (part.encode() for part in line.partition(":"))
    # RFC 1929 section 2 counts both in one byte.
    if not (1 <= len(user) <= 255 and 1 <= len(password) <= 255):
        raise SocksError(f"line {number}: expected user:password, each of 1 to 255 bytes")
    return user, password
