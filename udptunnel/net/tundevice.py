"""What a TUN is, whichever system it belongs to: its words, what it is to be like, and what opens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from udptunnel.wire.frame import Buffer

IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000
TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x800454D2, 0x400454D0, 0x400454D8
TUN_F_CSUM, TUN_F_TSO, TUN_F_USO = 0x01, 0x02 | 0x04, 0x20 | 0x40
"""From linux/if_tun.h. IPv4 and IPv6 are asked for together: the kernel wants that for UDP."""

FIONBIO = 0x5421
"""From asm-generic/ioctls.h."""

HEADER_BYTES = 10
"""Of C{struct virtio_net_hdr}, without the number of buffers that some devices have there."""

QUEUE_PACKETS = 4000
"""
What the kernel keeps for us (txqueuelen): with its own 500 it drops what 90,000 single datagrams a second bring while
others have the processor for a moment. We always read, so nothing waits there for longer than that.
"""


@dataclass(frozen=True)
class Interface:
    """What a TUN is to be like."""

    name: str = ""
    """What it is called; empty: the kernel finds a name."""

    addresses: tuple[str, ...] = ()
    """ADDRESS/LENGTH of each, IPv4 or IPv6."""

    mtu: int = 1500
    queue: int = QUEUE_PACKETS
    """How many packets the kernel keeps for us."""


class System(Protocol):
    """The operating system, as far as TUN ports need it. All may raise C{OSError}."""

    def open(self, name: str, flags: int) -> int:
        """Make a device, or join one that is there; returns its descriptor."""

    def close(self, descriptor: int) -> None:
        """Let go of a device; if nobody else holds it, it is gone."""

    def read(self, descriptor: int, buffer: memoryview) -> int:
        """Put the next packet into a buffer; returns its length."""

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        """Write one packet that lies in several buffers."""

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        """As C{fcntl.ioctl}."""

    def configure(self, name: str, interface: Interface) -> None:
        """Give a device what it is to have, and set it up."""

    def addresses(self, name: str) -> list[str]:
        """ADDRESS/LENGTH of each that a device has; none if there is no such device."""
