"""
Logging in with a secret: both ends prove that they know it, and neither says it.

Each proof is an HMAC-SHA256 (RFC 2104) over all that the two ends have said
so far: C{label(16) binding(32) nonce(32) hello}. The binding ties it to one
TLS connection (RFC 8446 section 7.5, RFC 9266), so that nobody in the middle
can pass it on; without TLS it is zeros, and the two nonces keep a proof from
being used again. A secret is 256 random bits, not a password, so that what
is seen on the way is of no use to guess it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from udptunnel.errors import ConfigError, RefusedError
from udptunnel.wire.frame import Buffer
from udptunnel.wire.greeting import LARGEST_USER

SECRET_BYTES = 32

NO_BINDING = bytes(32)
"""The binding of a link without TLS."""

Binding = Callable[[], bytes]
"""Tells the 32 bytes that tie a proof to the connection, once its handshake is done."""

_OF_SERVER, _OF_LOCAL = b"udptunnel server", b"udptunnel local "


def _proof(label: bytes, secret: bytes, binding: bytes, nonce: bytes, hello: Buffer) -> bytes:
    return hmac.digest(secret, label + binding + nonce + hello, "sha256")


@dataclass(frozen=True)
class Login:
    """
    Who udp-local is, and how it shows that.

    @ivar nonce: 32 random bytes, new for each link.
    """

    user: str
    secret: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    binding: Binding = field(repr=False)

    def answer(self, hello: Buffer, nonce: bytes, proof: bytes) -> bytes:
        """
        Our proof, if that of the server is right.

        @param hello: the body of our HELLO.
        @raise RefusedError: whoever asks does not know the secret: it is not our server.
        """
        binding = self.binding()
        if not hmac.compare_digest(proof, _proof(_OF_SERVER, self.secret, binding, nonce, hello)):
            raise RefusedError(f"udp-server does not know the secret of {self.user!r}, or somebody stands between")
        return _proof(_OF_LOCAL, self.secret, binding, nonce, hello)


@dataclass(frozen=True)
class Challenge:
    """
    What udp-server asks whoever says HELLO.

    @ivar hello: the body of the HELLO.
    @ivar nonce: 32 random bytes, new for each link.
    @ivar known: whether there is such a user. One who does not exist is asked all the same, and fails.
    """

    secret: bytes = field(repr=False)
    binding: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    hello: bytes = field(repr=False)
    known: bool

    @property
    def proof(self) -> bytes:
        """The proof of the server."""
        return _proof(_OF_SERVER, self.secret, self.binding, self.nonce, self.hello)

    def check(self, proof: bytes) -> bool:
        """Whether the other end knows the secret of the user that it claims to be."""
        expected = _proof(_OF_LOCAL, self.secret, self.binding, self.nonce, self.hello)
        return hmac.compare_digest(proof, expected) and self.known


class Secrets:
    """The secrets of all users."""

    def __init__(self, users: dict[str, bytes], dummy: bytes) -> None:
        """
        @param dummy: a random secret for users who do not exist.
        """
        self._users = users
        self._dummy = dummy

    @classmethod
    def parse(cls, text: str, dummy: bytes) -> Secrets:
        """
        Read lines C{user:secret}, the secret as 64 hexadecimal digits. Empty lines and those that begin with # mean
        nothing.

        @raise ConfigError: a line is something else; it is named by its number, for it may hold a secret.
        """
        users: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                user, secret = _parseLine(number, line.strip())
                if user in users:
                    raise ConfigError(f"line {number}: the user {user!r} stands there twice")
                users[user] = secret
        return cls(users, dummy)

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def __len__(self) -> int:
        return len(self._users)

    def of(self, user: str) -> bytes:
        """The secret of a user; that of nobody, if there is no such user."""
        return self._users.get(user, self._dummy)

    def only(self) -> tuple[str, bytes]:
        """
        The one user in a file that is meant for one.

        @raise ConfigError: there are more, or none.
        """
        if len(self._users) != 1:
            raise ConfigError(f"there is to be one line user:secret, not {len(self._users)}")
        return next(iter(self._users.items()))


def _parseLine(number: int, line: str) -> tuple[str, bytes]:
    user, _, digits = line.rpartition(":")
    try:
        secret = bytes.fromhex(digits)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES or len(digits) != 2 * SECRET_BYTES:
        raise ConfigError(f"line {number}: expected user:secret, the secret as {2 * SECRET_BYTES} hexadecimal digits")
    if not 0 < len(user.encode()) <= LARGEST_USER or not user.isprintable():
        raise ConfigError(f"line {number}: a user's name has 1 to {LARGEST_USER} printable bytes")
    return user, secret
