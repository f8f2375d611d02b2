"""Tests for L{udptunnel.wire.stun}."""

from __future__ import annotations

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.wire.address import Address
from udptunnel.wire.stun import CHANGE_BOTH, StunAnswer, packRequest, unpackAnswer

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")

IPV4_ANSWER = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
"""RFC 5769 section 2.2."""

IPV6_ANSWER = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)
"""RFC 5769 section 2.3."""

OTHER_ANSWER = (
    bytes.fromhex("010100182112a442")
    + TRANSACTION
    + bytes.fromhex("0001000800010d96c6336407")
    + bytes.fromhex("802c000800010d97c6336408")
)
"""With MAPPED-ADDRESS and OTHER-ADDRESS."""


class StunTests(SynchronousTestCase):
    """Questions and answers."""

    def test_request(self) -> None:
        """A question is a Binding request with its transaction; a change is an attribute of it."""
        self.assertEqual(packRequest(TRANSACTION), bytes.fromhex("000100002112a442") + TRANSACTION)
        changed = packRequest(TRANSACTION, CHANGE_BOTH)
        self.assertEqual(changed, bytes.fromhex("000100082112a442") + TRANSACTION + bytes.fromhex("0003000400000006"))

    def test_answers(self) -> None:
        """The address in an answer is found, masked or not, among what else is there."""
        for raw, expected in (
            (IPV4_ANSWER, StunAnswer(Address("192.0.2.1", 32853), None)),
            (IPV6_ANSWER, StunAnswer(Address("2001:db8:1234:5678:11:2233:4455:6677", 32853), None)),
            (OTHER_ANSWER, StunAnswer(Address("198.51.100.7", 3478), Address("198.51.100.8", 3479))),
        ):
            self.assertEqual(unpackAnswer(raw, TRANSACTION), expected)

    def test_others(self) -> None:
        """The answer to another question, and what is no answer, is none."""
        question = packRequest(TRANSACTION)
        self.assertIs(unpackAnswer(IPV4_ANSWER, b"another one."), None)
        for raw in (b"", question, OTHER_ANSWER[:-1], OTHER_ANSWER + b"x", b"\x01\x11" + IPV4_ANSWER[2:]):
            self.assertIs(unpackAnswer(raw, TRANSACTION), None)

    def test_cut(self) -> None:
        """An answer that ends inside an attribute is none, wherever that is."""
        for length in range(20, len(OTHER_ANSWER)):
            raw = OTHER_ANSWER[:2] + (length - 20).to_bytes(2, "big") + OTHER_ANSWER[4:length]
            answer = unpackAnswer(raw, TRANSACTION)
            self.assertEqual(answer is not None, length >= 32, length)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(strategies.binary(max_size=60))
    def test_anything(self, attributes: bytes) -> None:
        """Whatever stands in an answer, reading it does not fail."""
        raw = b"\x01\x01" + len(attributes).to_bytes(2, "big") + IPV4_ANSWER[4:20] + attributes
        unpackAnswer(raw, TRANSACTION)
