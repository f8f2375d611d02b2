"""
The relay turns bursts into frames and back: one for each link.

What it remembers are target numbers. An address crosses a link once, in a
TARGET frame that goes ahead of the first burst that needs it; from then on two
bytes stand for it. The numbers belong to a link and a direction, so that any
frame may travel on any link without waiting for another.
"""

from __future__ import annotations

from collections.abc import Iterable

from udptunnel.core.queue import Parcel
from udptunnel.errors import AddressError, FrameError, TruncatedError
from udptunnel.wire.address import Address, packAddress, unpackAddress
from udptunnel.wire.frame import HEADER, TARGET, Buffer, encode


class Relay:
    """
    The target numbers of one link, ours and theirs.

    @ivar addresses: what the other end's target numbers stand for.
    """

    def __init__(self, targets: int) -> None:
        """
        @param targets: how many numbers the other end may use; its TARGET
            frames may not go beyond.
        """
        self.addresses: dict[int, Address] = {}
        self._targets = targets
        self._numbers: dict[Address, int] = {}
        self.mostNumbers = 1

    def wrap(self, parcels: Iterable[Parcel]) -> list[Buffer]:
        """The frames for some bursts, as buffers to be written in this order."""
        buffers: list[Buffer] = []
        append, pack, numbers = buffers.append, HEADER.pack, self._numbers
        for association, address, size, payload in parcels:
            number = numbers.get(address)
            if number is None:
                number = self._choose(address)
                append(encode(TARGET, number, 0, packAddress(address)))
            append(pack(association.number, number, size, len(payload)))
            append(payload)
        return buffers

    def _choose(self, address: Address) -> int:
        """A number for a new address; when all are taken, the one that was given first."""
        number = len(self._numbers)
        if number >= self.mostNumbers:
            number = self._numbers.pop(next(iter(self._numbers)))
        self._numbers[address] = number
        return number

    def targetReceived(self, number: int, body: Buffer) -> None:
        """
        The other end says what one of its numbers stands for from now on.

        @raise FrameError: the number is beyond the limit, or the body is no address.
        """
        if number >= self._targets:
            raise FrameError(f"target numbers go from 0 to {self._targets - 1}, not {number}")
        try:
            self.addresses[number], _ = unpackAddress(body)
        except (AddressError, TruncatedError) as error:
            raise FrameError(f"a TARGET frame holds no address: {error}") from error
