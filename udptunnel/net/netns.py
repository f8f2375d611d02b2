"""
The stack C{netns}: TCP goes into a second TUN, in a network namespace of our own where a listener has every address.

Packets stay as they are, both ways: the listener's sockets have the addresses
that the packets have. Nobody else is in there, so no firewall, no route and no
setting of this machine comes in between; and no rights are needed where
unprivileged user namespaces are allowed. So it is also the stack for packets
that come from no TUN at all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from udptunnel.core.counters import Counters
from udptunnel.core.nat import PORTS, Session
from udptunnel.core.transparent import Transparent
from udptunnel.errors import ListenError
from udptunnel.net.namespace import REDIRECT, TRANSPARENT, Inside, Made, Wanted
from udptunnel.net.sockaddr import SOCKADDR_BYTES, SourceNames, addressIn
from udptunnel.net.stack import Door, KernelStack, TcpReceiver, Writer
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.wire.address import Address

DEVICE = "inner0"

PLACES = {4: "192.0.0.8/32", 6: "100::8/128"}
"""Addresses of the inner TUN: dummies (RFC 7600, RFC 6666), which nobody behind a TUN has."""

WAYS = TRANSPARENT, REDIRECT

SO_ORIGINAL_DST = 80
"""From linux/netfilter_ipv4.h; the same number in linux/netfilter_ipv6/ip6_tables.h."""

_LEVELS = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}


class NetnsStack(KernelStack):
    """
    TCP in a private namespace. See L{udptunnel.core.transparent}.

    @ivar way: how packets come to the listeners, once it is started.
    """

    name = "netns"

    def __init__(
        self,
        reactor: Any,
        outer: Writer,
        offload: TunOffload,
        receiver: TcpReceiver,
        counters: Counters,
        mtu: int = 1500,
        most: int = PORTS,
        ways: Sequence[str] = WAYS,
        inside: Callable[[Wanted], Inside] = Inside,
    ) -> None:
        """
        @param outer: where packets to clients are written. If it is a TUN port
            it must be open when the stack is started.
        @param offload: what the outer side takes, and gives. The inner TUN
            does the same, and what it refuses is switched off here, too.
        @param mtu: of the outer side.
        @param most: connections at once.
        @param ways: how packets may come to the listeners, of L{WAYS}; the first one that works.
        @param inside: makes the namespace.
        """
        super().__init__(reactor, outer, receiver, counters)
        self.table: Transparent = Transparent((), most)
        self.way = ""
        self._offload = offload
        self._mtu = mtu
        self._most = most
        self._ways = tuple(ways)
        self._inside = inside
        self._innerCounters = Counters()
        self._inner: TunPort | None = None
        self._asked = 0
        self._names = SourceNames()

    # -- beginning

    def start(self) -> None:
        """
        Make the namespace. Blocks for half a second.

        @raise ListenError: that can not be done; the text says what is missing.
        """
        versions = (4, 6) if os.path.exists("/proc/net/if_inet6") else (4,)
        addresses = tuple(PLACES[version] for version in versions)
        try:
            self._use(self._make(Wanted(DEVICE, addresses, self._mtu, self._offload.vnet, self._ways)))
        except (ListenError, OSError) as error:
            self.stop()
            raise ListenError(f"--stack netns: {error}") from error
        self.table = Transparent(versions, self._most)
        for door in self.doors:
            door.open()

    def _make(self, wanted: Wanted) -> Made:
        process = self._inside(wanted)
        try:
            return process.made()
        finally:
            process.end()

    def _use(self, made: Made) -> None:
        self.way = made.way
        self.doors += [Door(self._reactor, each, self._accepted, self._counters) for each in made.listeners]
        back = _Back(self._outer.write, self._innerLost)
        inner = TunPort(self._reactor, Interface(DEVICE), back, self._offload, self._innerCounters)
        self._inner = inner
        inner.adopt(made.tun, self._offload.vnet)
        self._asked = self._offload.flags
        self._forward = inner.write

    # -- connections

    def _whose(self, opened: socket.socket, peer: Address) -> Session | None:
        try:
            target = self._targetOf(opened)
        except OSError:
            return None
        return self.table.accept(peer.host, peer.port, target.host, target.port)

    def _targetOf(self, opened: socket.socket) -> Address:
        if self.way == TRANSPARENT:
            return addressIn(opened.getsockname())
        family = opened.family
        return self._names[opened.getsockopt(_LEVELS[family], SO_ORIGINAL_DST, SOCKADDR_BYTES[family])]

    # -- the rest

    def _innerLost(self, why: str) -> None:
        # Nobody is in there who could have done it.
        self.broken = f"its inner TUN is {why}"

    def tick(self, now: float) -> None:
        """Forget what is over."""
        super().tick(now)
        if self._offload.flags != self._asked:
            self._settle()

    def _settle(self) -> None:
        """One of the two sides has refused something that it had promised: it must not get it from the other."""
        self._asked = self._offload.flags
        for side in (self._inner, self._outer):
            if isinstance(side, TunPort):
                side.settle()

    def report(self) -> dict[str, object]:
        """Figures for the status."""
        return {
            "way": self.way,
            "connections": len(self.table),
            "pending": self.table.pending,
            "innerDropped": dict(self._innerCounters.dropped),
        }

    def stop(self) -> None:
        """Close all that is ours. The namespace lives on as long as sockets that were accepted in it."""
        super().stop()
        if self._inner is not None:
            self._inner.close()


class _Back:
    """The receiver of the inner TUN: what comes out of it goes out of the outer side as it is."""

    def __init__(self, write: Callable[..., None], lost: Callable[[str], None]) -> None:
        self._write = write
        self.lost = lost

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Answers of the listener and its connections."""
        write = self._write
        for packet in packets:
            write(packet)
