"""
Injectors: they put IP packets into the host's stack as if they had come by a wire.

L{RawInjector} uses raw sockets (raw(7)), which need neither an interface nor forwarding; they take one packet at a
time, whose checksums are full. L{TunInjector} writes to a TUN: super-packets go in as they are, and the host forwards
them like those of any other interface.

Packets stand behind a virtio header, as L{TunPort<udptunnel.net.tun.TunPort>} writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from udptunnel.core.counters import Counters
from udptunnel.net.tun import TunPort
from udptunnel.wire.frame import Buffer


class Injector(Protocol):
    """
    Where packets go that came from the peer.

    @ivar segments: whether super-packets may be among them. An injector takes them in any case; but one that has to cut
        them saves nobody anything.
    """

    @property
    def segments(self) -> bool:
        """Whether super-packets save work."""

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """
        Put packets into the stack. What the kernel does not take is dropped and counted.

        @param packets: each in one or several buffers, of which the first begins with the virtio header.
        """

    def close(self) -> None:
        """Inject no more."""


class RawInjector:
    """
    Raw sockets for both versions of IP, opened when the first packet of a version comes...
    """

    segments = False

    def __init__(
        self,
        counters: Counters,
        mark: int = 0,
        tooLong: Callable[[bytes, int], None] | None = None,
        system: object | None = None,
    ) -> None:
        """
        @param counters: what is injected counts as sent.
        @param mark: C{SO_MARK} of what is injected; 0: none.
        @param tooLong: is told of each packet that is too long for where it goes and may not be cut (without virtio
            header), and how long it may be: its sender is to be told.
        """

    def open(self) -> None:
        """
        Open the sockets.

        @raise ListenError: this user may not.
        """

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """Put packets into the stack."""

    def close(self) -> None:
        """Inject no more."""


class TunInjector:
    """A TUN, which somebody else opens; whoever opens it is also told what the host sends into it."""

    def __init__(self, port: TunPort) -> None:
        self._port = port

    @property
    def segments(self) -> bool:
        """Whether super-packets save work."""
        return self._port.headed

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        """Put packets into the stack."""
        write = self._port.write
        for packet in packets:
            write(*packet)

    def close(self) -> None:
        """Inject no more."""
        self._port.close()
