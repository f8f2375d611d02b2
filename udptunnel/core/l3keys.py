"""
The handshake of an l3-tunnel: two messages, and keys that nobody else has.

It is C{Noise_NNpsk0_25519_AESGCM_SHA256} (the Noise Protocol Framework,
revision 34): the key that both ends have been given lets each of them know the
other, and two ephemeral keys make what is sent later unreadable for whoever
gets that key afterwards. The prologue is L{LABEL} and the header of the
INITIATION; the header of the RESPONSE is mixed into the hash before its
ephemeral key, so that no bit of either message can be changed.

The payload of the INITIATION is a B{stamp}: nanoseconds since 1970 (8), and a
number that the process has drawn (4). Stamps of one end grow, so that an old
message is known; by the number an end knows its own, which an attacker may
have sent back.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from copy import copy
from hashlib import sha256
from struct import Struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from udptunnel.errors import PacketError
from udptunnel.wire.l3 import (
    KEY_BYTES,
    Initiation,
    Response,
    packInitiation,
    packResponse,
)

PROTOCOL = b"Noise_NNpsk0_25519_AESGCM_SHA256"
LABEL = b"udptunnel l3"

Random = Callable[[int], bytes]
"""Makes so many random bytes, as C{os.urandom} does."""

_NONCE = Struct("!4xQ")
_STAMP = Struct("!Q4s")


class Keys(NamedTuple):
    """The keys of one session, as one end has them."""

    send: bytes
    receive: bytes


class Stamp(NamedTuple):
    """When an INITIATION was made, and by which process."""

    moment: int
    """Nanoseconds since 1970, as far as that end knows."""

    process: bytes

    def pack(self) -> bytes:
        """The twelve bytes of it."""
        return _STAMP.pack(*self)


class NoiseState:
    """What both ends know after each token of a handshake (Noise, section 5.2)."""

    __slots__ = ("_chaining", "_cipher", "_hash", "_nonce")

    def __init__(self, prologue: bytes) -> None:
        """Begin with the name of the protocol, which is as long as a hash, and with what is known besides."""
        self._chaining = self._hash = PROTOCOL
        self._nonce = 0
        self._cipher = AESGCM(bytes(KEY_BYTES))
        self.mixHash(prologue)

    def mixHash(self, data: bytes) -> None:
        """Data that both ends must agree about."""
        self._hash = sha256(self._hash + data).digest()

    def mixKey(self, material: bytes) -> None:
        """A secret, or what a key depends on."""
        self._chaining, key = _derive(self._chaining, material, 2)
        self._useKey(key)

    def mixShared(self, key: bytes) -> None:
        """The key that both ends have been given (C{MixKeyAndHash})."""
        self._chaining, hashed, key = _derive(self._chaining, key, 3)
        self.mixHash(hashed)
        self._useKey(key)

    def mixEphemeral(self, public: bytes) -> None:
        """A public ephemeral key: with a shared key it also makes the cipher's key another one (section 9.2)."""
        self.mixHash(public)
        self.mixKey(public)

    def seal(self, payload: bytes) -> bytes:
        """The payload of a message, sealed (C{EncryptAndHash})."""
        sealed = self._cipher.encrypt(self._nextNonce(), payload, self._hash)
        self.mixHash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """
        The payload of a message (C{DecryptAndHash}).

        @raise PacketError: it was not sealed by somebody who knows what we know.
        """
        try:
            payload = self._cipher.decrypt(self._nextNonce(), sealed, self._hash)
        except InvalidTag:
            raise PacketError("a handshake message of somebody who has not our key") from None
        self.mixHash(sealed)
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """The keys of a session: of who began, and of who answered."""
        first, second = _derive(self._chaining, b"", 2)
        return first, second

    def _useKey(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._nonce = 0

    def _nextNonce(self) -> bytes:
        self._nonce += 1
        return _NONCE.pack(self._nonce - 1)


def _derive(chaining: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
    """HKDF with HMAC-SHA256, without the expansion's info (Noise, section 4.3)."""
    secret = hmac.digest(chaining, material, "sha256")
    outputs, last = [], b""
    for number in range(1, count + 1):
        last = hmac.digest(secret, last + bytes((number,)), "sha256")
        outputs.append(last)
    return tuple(outputs)


def _exchange(own: X25519PrivateKey, other: bytes) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        # RFC 7748 section 6.1: what all keys lead to is no secret.
        raise PacketError("an ephemeral key that makes no secret") from error


# -- who begins


class Attempt:
    """
    A handshake that we have begun.

    @ivar index: the number of the session that it is to become.
    @ivar message: the INITIATION.
    """

    def __init__(self, key: bytes, index: int, stamp: Stamp, random: Random) -> None:
        """
        @param key: the 32 bytes that both ends have.
        """
        self.index = index
        self._own = X25519PrivateKey.from_private_bytes(random(KEY_BYTES))
        public = self._own.public_key().public_bytes_raw()
        state = _initial(key, Initiation(index, public, b""))
        self.message = packInitiation(Initiation(index, public, state.seal(stamp.pack())))
        self._state = state

    def finish(self, response: Response) -> Keys:
        """
        The keys that a RESPONSE leads to.

        @raise PacketError: it is nobody's who knows the key, or it is to
            another INITIATION. The right one may still come.
        """
        state = copy(self._state)
        state.mixHash(response.header)
        state.mixEphemeral(response.ephemeral)
        state.mixKey(_exchange(self._own, response.ephemeral))
        if state.open(response.sealed):
            raise PacketError("a RESPONSE that says something")
        return Keys(*state.split())


def _initial(key: bytes, initiation: Initiation) -> NoiseState:
    """What both ends know before the payload of the INITIATION."""
    state = NoiseState(LABEL + initiation.header)
    state.mixShared(key)
    state.mixEphemeral(initiation.ephemeral)
    return state


# -- who answers


class Asked:
    """
    An INITIATION of somebody who knows the key.

    @ivar stamp: when it was made.
    """

    def __init__(self, key: bytes, initiation: Initiation) -> None:
        """
        @raise PacketError: it was made without the key.
        """
        self._initiation = initiation
        self._state = _initial(key, initiation)
        self.stamp = Stamp._make(_STAMP.unpack(self._state.open(initiation.sealed)))

    def answer(self, index: int, random: Random) -> tuple[bytes, Keys]:
        """
        The RESPONSE, and the keys that it leads to.

        @param index: the number of the session at this end.
        @raise PacketError: the other end's ephemeral key makes no secret.
        """
        own = X25519PrivateKey.from_private_bytes(random(KEY_BYTES))
        made = Response(index, self._initiation.sender, own.public_key().public_bytes_raw(), b"")
        state = self._state
        state.mixHash(made.header)
        state.mixEphemeral(made.ephemeral)
        state.mixKey(_exchange(own, self._initiation.ephemeral))
        message = packResponse(made._replace(sealed=state.seal(b"")))
        theirs, ours = state.split()
        return message, Keys(ours, theirs)
