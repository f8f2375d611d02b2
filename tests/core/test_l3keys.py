"""Tests for L{udptunnel.core.l3keys}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.core.l3keys import Asked, Attempt, Stamp
from udptunnel.errors import PacketError
from udptunnel.wire.l3 import unpackInitiation, unpackResponse

KEY = bytes(range(0x80, 0xA0))
STAMP = Stamp(1_700_000_000_000_000_000, b"abcd")
FIRST, SECOND = bytes(range(0x20, 0x40)), bytes(range(0x40, 0x60))

INITIATION = (
    "0101000000000005 358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254"
    " f0abec5c32f402b0154313c2eccce047bb710d9ccbcceb0c1cc0170f"
)
RESPONSE = (
    "020100000000000900000005 79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a"
    " fd06ebd7d85d2326e6b0a166297f3854"
)
SEND = "f09dc27a33cee50e6be5ffaf7b82c8be18ab53d6f2a625c524668762a3651dfa"
"""Made with noiseprotocol 0.3.1, an implementation of Noise by others."""


def begin(key: bytes = KEY) -> Attempt:
    return Attempt(key, 5, STAMP, lambda length: FIRST)


def changed(raw: bytes, place: int) -> bytes:
    """A message with one bit that is another."""
    return raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :]


class HandshakeTests(SynchronousTestCase):
    """L{Attempt} and L{Asked}."""

    def test_golden(self) -> None:
        """The messages and the keys are those that another implementation makes of the same secrets."""
        attempt = begin()
        self.assertEqual(attempt.message, bytes.fromhex(INITIATION))
        response, answerer = Asked(KEY, unpackInitiation(attempt.message)).answer(9, lambda length: SECOND)
        self.assertEqual(response, bytes.fromhex(RESPONSE))
        starter = attempt.finish(unpackResponse(response))
        self.assertEqual(starter.send.hex(), SEND)
        self.assertEqual((starter.send, starter.receive), (answerer.receive, answerer.send))
        self.assertNotEqual(starter.send, starter.receive)

    def test_stamp(self) -> None:
        """Who is asked learns when the message was made, and by whom."""
        self.assertEqual(Asked(KEY, unpackInitiation(begin().message)).stamp, STAMP)

    def test_otherKey(self) -> None:
        """Without the key neither message is understood."""
        self.assertRaises(PacketError, Asked, bytes(32), unpackInitiation(begin().message))
        response, _ = Asked(KEY, unpackInitiation(begin().message)).answer(9, lambda length: SECOND)
        self.assertRaises(PacketError, begin(bytes(32)).finish, unpackResponse(response))

    def test_everyBit(self) -> None:
        """No byte of either message can be changed, headers included."""
        attempt = begin()
        response, _ = Asked(KEY, unpackInitiation(attempt.message)).answer(9, lambda length: SECOND)
        for place in range(len(attempt.message)):
            with self.assertRaises(PacketError):
                Asked(KEY, unpackInitiation(changed(attempt.message, place)))
        for place in range(len(response)):
            with self.assertRaises(PacketError):
                attempt.finish(unpackResponse(changed(response, place)))
        # And what was forged has not spoiled the attempt.
        attempt.finish(unpackResponse(response))

    def test_anotherAttempt(self) -> None:
        """The answer to one message is none to another."""
        response, _ = Asked(KEY, unpackInitiation(begin().message)).answer(9, lambda length: SECOND)
        other = Attempt(KEY, 5, STAMP._replace(moment=1), lambda length: FIRST)
        self.assertRaises(PacketError, other.finish, unpackResponse(response))

    def test_noSecret(self) -> None:
        """An ephemeral key that leads everybody to the same secret is refused (RFC 7748 section 6.1)."""
        message = unpackInitiation(begin().message)
        asked = Asked(KEY, message)
        asked._initiation = message._replace(ephemeral=bytes(32))
        self.assertRaises(PacketError, asked.answer, 9, lambda length: SECOND)
