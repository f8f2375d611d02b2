"""
A gateway as a library: what comes out of a TUN goes to two functions.

One is called for each TCP connection, with its target, the other for each
datagram, with its target and its source; and datagrams can be sent back from
any source address. There is no SOCKS in this. What comes back is up to the
program: see docs/howto/gateway-library.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from itertools import chain
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError
from udptunnel.net.arrivals import Arrivals, Datagrams, TcpReceived, UdpReceived
from udptunnel.net.gateway import Gateway
from udptunnel.net.netns import NetnsStack
from udptunnel.net.stack import Place, TunStack, firstThatWorks
from udptunnel.net.tun import TunOffload, TunPort
from udptunnel.net.tundevice import Interface, System
from udptunnel.services.links import every
from udptunnel.wire.address import Address
from udptunnel.wire.burst import AimedBurst
from udptunnel.wire.transport import Unreachable

TICK_SECONDS = 1.0

STACKS = ("auto", "tun", "netns")


class GatewayService(Service):
    """
    A TUN, and what becomes of its packets.

    @ivar counters: datagrams that went through, and what was dropped and why.
    @ivar port: the TUN; its C{name} is known once the service has started.
    @ivar lost: called when the TUN is no use any more, and why: somebody has
        deleted it, say. The service is to be stopped then.
    """

    _log = Logger()
    port: TunPort

    def __init__(
        self,
        interface: Interface,
        tcpReceived: TcpReceived,
        udpReceived: UdpReceived,
        reactor: Any,
        *,
        stack: str = "auto",
        descriptor: int | None = None,
        offload: TunOffload | None = None,
        icmp: str = "reply",
        most: int = 16_384,
        system: System | None = None,
    ) -> None:
        """
        @param interface: the TUN: name, own addresses and MTU. Routes into it
            are the caller's affair.
        @param tcpReceived: called with an
            L{Arrival<udptunnel.net.arrivals.Arrival>} and its target, for each
            TCP connection that somebody opens.
        @param udpReceived: called with each datagram, its target and its source.
        @param stack: of L{STACKS}: who speaks TCP. C{tun} needs an address of
            each family, in a network with room for another one, and the right
            to make a TUN; C{auto} is the first of the others that works.
        @param descriptor: a TUN that is open already; it is used as it is.
        @param offload: what the TUN may do; all that this kernel can, if not given.
        @param icmp: what an echo request gets: C{off}, C{reply} or C{unreachable}.
        @param most: TCP connections at once.
        @param system: the operating system; Linux unless a test says otherwise.
        """
        self.counters = Counters()
        self.lost: Callable[[str], object] = self._nobodyListens
        self.tcp = Arrivals(reactor, tcpReceived)
        self._reactor = reactor
        self._interface = interface
        self._wanted = stack
        self._descriptor = descriptor
        self._offload = offload or TunOffload()
        self._most = most
        self._system = system
        self._gateway = Gateway(self.counters, reactor.seconds, self._lost, interface.mtu, icmp)
        self._gateway.udp = Datagrams(udpReceived)
        self._stack: TunStack | NetnsStack | None = None
        self._ticking: LoopingCall | None = None

    # -- beginning

    def privilegedStartService(self) -> None:
        """
        Open the TUN while we may: C{twistd} calls this before it changes the user.

        @raise ListenError: that can not be done, or TCP can not be spoken.
        """
        port = TunPort(self._reactor, self._interface, self._gateway, self._offload, self.counters, self._system)
        self.port = self._gateway.outer = port
        if self._descriptor is not None:
            port.adopt(self._descriptor)
        else:
            port.open()
        try:
            self._gateway.stack = self._stack = self._findStack()
        except ListenError:
            port.close()
            raise

    def startService(self) -> None:
        """
        Begin, if that has not happened yet.

        @raise ListenError: as above.
        """
        super().startService()
        if self._stack is None:
            self.privilegedStartService()
        self._ticking = every(TICK_SECONDS, self._tick, self._reactor, self._log)

    def _findStack(self) -> TunStack | NetnsStack:
        """The first stack that works."""
        stacks = self._stacks()
        first = next(stacks, None)
        if first is None:
            raise ListenError(f"there is no stack {self._wanted}: expected {', '.join(STACKS)}")
        return firstThatWorks(chain((first,), stacks), self._use)

    def _use(self, stack: TunStack | NetnsStack) -> None:
        self._gateway.stack = stack

    def _stacks(self) -> Iterator[TunStack | NetnsStack]:
        if self._wanted in ("auto", "tun") and self._interface.addresses:
            places = [_placeAt(address) for address in self._interface.addresses]
            yield TunStack(self._reactor, self.port, places, self.tcp, self.counters, self._most)
        if self._wanted in ("auto", "netns"):
            yield NetnsStack(
                self._reactor, self.port, self._offload, self.tcp, self.counters, self._interface.mtu, self._most
            )

    # -- datagrams

    def writeTo(self, datagram: bytes, to: Address, source: Address) -> None:
        """
        Send a datagram to somebody behind the TUN.

        @param source: where it seems to come from: any address of the same family.
        """
        self._gateway.send(to, source, len(datagram), datagram)

    def refuse(self, datagram: bytes, target: Address, source: Address, why: Unreachable = Unreachable.PORT) -> None:
        """Tell the source of a datagram, by ICMP, that its target can not be reached."""
        self._gateway.refuse(AimedBurst(source, target, len(datagram), datagram), why)

    # -- time

    def _tick(self) -> None:
        self.port.check()
        self._gateway.tick(self._reactor.seconds())

    def _lost(self, why: str) -> None:
        self.lost(why)

    def _nobodyListens(self, why: str) -> None:
        self._log.error("TUN {name} is {why}", name=self.port.name, why=why)

    # -- the end

    def stopService(self) -> None:
        """Close the TUN, and all connections that came out of it."""
        super().stopService()
        if self._ticking is not None and self._ticking.running:
            self._ticking.stop()
        if self._stack is not None:
            self.tcp.stop()
            self._gateway.stop()
            self._stack = None
            self.port.close()

    def report(self) -> dict[str, Any]:
        """The figures as plain values."""
        stack = "" if self._stack is None else self._stack.name
        return {"stack": stack, "connections": len(self.tcp), **self.counters.report()}


def _placeAt(address: str) -> Place:
    """
    The TUN's own address, and the next one in its network.

    @raise ListenError: there is no room for that.
    """
    own = ip_interface(address)
    beside = own + 1
    if beside not in own.network or beside.ip == own.network.broadcast_address:
        beside = own - 1
    if beside not in own.network or beside.ip == own.network.network_address:
        raise ListenError(f"{address}: the network has no room for an address beside this one, which --stack tun needs")
    return Place(str(own.ip), str(beside.ip))
