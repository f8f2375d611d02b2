"""
l3-tunnel: carries the IP packets between two networks, without an interface of its own.

L{L3Service} wires the parts together: a capture port, the way between packets
and sealed messages, what carries the messages, and what injects packets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from udptunnel.config import L3Config
from udptunnel.core.counters import Counters
from udptunnel.core.l3policy import Own
from udptunnel.core.l3way import Way
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.blackhole import Setup
from udptunnel.net.datagrams import DatagramPort, Traffic
from udptunnel.net.injection import Injector, LinuxRawSystem, RawInjector, TunInjector
from udptunnel.net.logs import lines
from udptunnel.net.offload import parseNames, probe
from udptunnel.net.ownaddresses import ownAddresses
from udptunnel.net.packet import CapturePort
from udptunnel.net.platforms import require
from udptunnel.net.sockaddr import familyOf
from udptunnel.net.tun import Receiver, TunOffload, TunPort
from udptunnel.net.tundevice import Interface
from udptunnel.services.l3options import LEAST_MTU, anyPort, carriedInItself, check, linkConfig, readKey
from udptunnel.services.l3outer import LinkOuter, Outer, UdpOuter
from udptunnel.services.links import every
from udptunnel.services.local import LocalService
from udptunnel.services.proxies import resolved
from udptunnel.services.status import StatusService
from udptunnel.services.tun2socks import parseTunNames
from udptunnel.wire.burst import Burst
from udptunnel.wire.ip import TCP, UDP
from udptunnel.wire.l3 import innerMtu

TICK_SECONDS = 0.25

LOOKS = 4
"""Ticks between two looks at what seldom changes: the MTU of the path, this machine's addresses."""

RETRY_SECONDS = 1.0
"""How long a TUN that was taken away is left alone before it is made again."""

USUAL_MTU = 1420
"""Of packets for the other end, if nothing is known of the path: what fits Ethernet with IPv6 outside."""

KEEPALIVE_SECONDS = 25.0
"""Shorter than any NAT forgets a UDP mapping (RFC 4787 REQ-5 allows 120; 30 are seen)."""


class System(Protocol):
    """The operating system, as far as this role needs it besides its ports."""

    def capture(self, service: L3Service) -> CapturePort:
        """What captures packets."""

    def tun(self, service: L3Service, receiver: Receiver) -> TunPort:
        """The TUN that packets are injected through."""

    def setup(self, service: L3Service) -> Setup:
        """What keeps this machine from handling captured packets itself."""

    def raw(self, service: L3Service) -> RawInjector:
        """What injects packets without one."""

    def own(self) -> Own:
        """
        The addresses of this machine.

        @raise OSError: they can not be read.
        """

    def pathMtu(self, host: str) -> int:
        """
        How long a packet to a host may be.

        @raise OSError: there is no way.
        """


class LinuxSystem:
    """Linux."""

    def capture(self, service: L3Service) -> CapturePort:
        """What captures packets."""
        config = service.config
        assert config.interface is not None
        return CapturePort(service.reactor, config.interface, config.capture, service, service.inside)

    def tun(self, service: L3Service, receiver: Receiver) -> TunPort:
        """The TUN that packets are injected through."""
        interface = Interface(service.config.tundev, (), service.way.mtu)
        return TunPort(service.reactor, interface, receiver, service.tunOffload, service.inside)

    def setup(self, service: L3Service) -> Setup:
        """What keeps this machine from handling captured packets itself."""
        config = service.config
        assert config.interface is not None
        return Setup(config.interface, config.capture, config.mtu)

    def raw(self, service: L3Service) -> RawInjector:
        """What injects packets without one."""
        return RawInjector(service.inside, tooLong=service.tooLong)

    def own(self) -> Own:
        """The addresses of this machine."""
        return ownAddresses()

    def pathMtu(self, host: str) -> int:
        """How long a packet to a host may be."""
        return LinuxRawSystem().longest(familyOf(host), host, 0)


class _TunSide:
    """Told of what happens at the TUN: what this machine itself sends to the other end comes out of it."""

    def __init__(self, service: L3Service) -> None:
        self.packetsReceived = service.packetsReceived
        self.lost = service.tunLost


class L3Service(MultiService):
    """
    The role l3-tunnel.

    @ivar way: what lies between packets and messages.
    @ivar counters: figures of the messages, and what was dropped and why.
    @ivar inside: figures of the packets.
    @ivar whenFailed: called with the reason when the role can not go on.
    @ivar whenSessionChanged: called when the session with the other end is up, and when it is over.
    """

    _log = Logger()

    def __init__(self, config: L3Config, reactor: Any, system: System | None = None) -> None:
        """
        @param system: the operating system; Linux unless a test says otherwise.
        @raise ConfigError: something is missing, or contradicts something else.
        @raise MissingError: this is not Linux, or not all is installed.
        """
        super().__init__()
        self.setName("l3-tunnel")
        check(config)
        if system is None:
            require("l3-tunnel")
        self.config = config
        self.reactor = reactor
        self.clock: Callable[[], float] = reactor.seconds
        self.counters, self.inside = Counters(), Counters()
        self.whenFailed: Callable[[str], None] = self._nobodyListens
        self.whenSessionChanged: Callable[[bool], object] = bool
        self.tunOffload = TunOffload(parseTunNames(config.tunOffload))
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        self._system: System = system or LinuxSystem()
        self.way = self._makeWay(config)
        self._doubt = carriedInItself(config, self.way.peer)
        if self._doubt and config.setup:
            raise ConfigError(f"{self._doubt}: capture less, or do by hand what --setup does")
        self._outer = self._makeOuter(config)
        self._setup = self._system.setup(self)
        self._injector: Injector | None = None
        self._capture: CapturePort | None = None
        self._tun: TunPort | None = None
        self._ticking: LoopingCall | None = None
        self._trying: IDelayedCall | None = None
        self._ticks = 0
        self._own: Own | None = None
        self._ownReason = ""
        self._wasUp = False
        if config.status is not None:
            allowed = config.insecureNoAuth
            StatusService("l3-tunnel", config.status, self.report, self.illness, reactor, allowed).setServiceParent(
                self
            )

    # -- parts

    def _makeWay(self, config: L3Config) -> Way:
        peer = config.peer if config.peer is None or config.link else resolved("--peer", config.peer)
        keepalive = config.keepalive
        if keepalive is None:
            keepalive = KEEPALIVE_SECONDS if peer is not None else 0.0
        return Way(
            readKey(config.keyFile or ""),
            peer,
            config.capture,
            os.urandom,
            time.time_ns,
            mtu=config.mtu or USUAL_MTU,
            keepalive=keepalive,
            counters=self.counters,
            now=self.clock(),
        )

    def _makeOuter(self, config: L3Config) -> Outer:
        if not config.link:
            return UdpOuter(self.traffic, config.local or anyPort(self.way.peer), self)
        local = LocalService(linkConfig(config), self.reactor)
        local.setServiceParent(self)
        return LinkOuter(local, self)

    @property
    def port(self) -> DatagramPort | None:
        """The UDP port of this end; C{None} if it goes through udp-server."""
        return self._outer.port if isinstance(self._outer, UdpOuter) else None

    # -- beginning

    def startService(self) -> None:
        """
        Open everything.

        @raise ListenError: something can not be opened. Then nothing is.
        """
        self._look()
        try:
            self._outer.start()
            self._openInside()
            super().startService()
        except ListenError:
            self._close()
            raise
        if self._doubt:
            self._log.warn("{doubt}, unless a narrower route leads there", doubt=self._doubt)
        self._ticking = every(TICK_SECONDS, self._tick, self.reactor, self._log)
        self._log.info(
            "l3-tunnel: packets to {networks} from {where}, for {peer}, of {mtu} bytes at most",
            networks=", ".join(self.config.capture),
            where=self.config.interface,
            peer=self.way.peer or "whoever knows the key",
            mtu=self.way.mtu,
        )
        self._tick()

    def _openInside(self) -> None:
        self._injector = self._openTun() if self.config.inject == "tun" else self._openRaw()
        self._capture = self._system.capture(self)
        self._capture.open()

    def _openRaw(self) -> Injector:
        injector = self._system.raw(self)
        injector.open()
        # It cuts them again, but what is joined is judged and completed together.
        self.way.join([TCP, UDP])
        return self._prepared(injector, "")

    def _openTun(self) -> Injector:
        port = self._system.tun(self, _TunSide(self))
        port.open()
        injector = self._prepared(TunInjector(port), port.name)
        self._tun = port
        self.way.join([TCP] * self.tunOffload.tso + [UDP] * self.tunOffload.uso)
        return injector

    def _prepared(self, injector: Injector, tun: str) -> Injector:
        """Keep this machine from handling what is captured, or say how that is done; if it can not be, close."""
        try:
            self._prepare(tun)
        except ListenError:
            injector.close()
            raise
        return injector

    def _prepare(self, tun: str) -> None:
        if self.config.setup:
            self._setup.start(tun)
            return
        for command in self._setup.commands(tun):
            self._log.info("without --setup, unless it is done already: {command}", command=command)

    # -- what comes and goes

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Packets for the other end were captured."""
        messages, refusals = self.way.captured(packets, self.clock())
        if messages:
            self._outer.send(messages)
        if refusals and self._injector is not None:
            self._injector.inject([(refusal,) for refusal in refusals])

    def burstsReceived(self, bursts: list[Burst]) -> None:
        """Messages have come, from the other end or from anybody."""
        packets, messages = self.way.received(bursts, self.clock())
        if packets and self._injector is not None:
            self._injector.inject(packets)
        if messages:
            self._outer.send(messages)

    def tooLong(self, packet: bytes, most: int) -> None:
        """A packet from the other end is too long for where it goes: its sender is told."""
        self._outer.send(self.way.refused(packet, most, self.clock()))

    def lost(self, why: str) -> None:
        """The interface is down or gone; the capture port has said so, and looks for it."""

    def tunLost(self, why: str) -> None:
        """The TUN is down or gone: make it again."""
        self._log.error("TUN {name} is {why}", name=self.config.tundev, why=why)
        self._tun = self._injector = None
        self._trying = self.reactor.callLater(RETRY_SECONDS, self._tryAgain)

    def _tryAgain(self) -> None:
        self._trying = None
        try:
            self._injector = self._openTun()
        except ListenError as error:
            self._log.error("{error}", error=error)
            self._trying = self.reactor.callLater(RETRY_SECONDS, self._tryAgain)
        else:
            self._log.info("TUN {name} is there again", name=self.config.tundev)

    # -- time

    def _tick(self) -> None:
        now = self.clock()
        self._ticks += 1
        if self._ticks % LOOKS == 0:
            self.traffic.tick(now)
            self._look()
            if self._capture is not None:
                self._capture.check()
            if self._tun is not None:
                self._tun.check()
        messages = self.way.tick(now)
        if messages:
            self._outer.send(messages)
        if self.way.up != self._wasUp:
            self._wasUp = self.way.up
            self.whenSessionChanged(self._wasUp)
            self._log.info(
                "the session with {peer} is {state}", peer=self.way.peer, state="up" if self._wasUp else "over"
            )

    def _look(self) -> None:
        """Look at what may have changed."""
        self._lookAtOwn()
        if not self.config.mtu and not self.config.link:
            self._lookAtPath()

    def _lookAtOwn(self) -> None:
        """What this machine's addresses are. While they can not be read, those that were known are good."""
        try:
            own = self._system.own()
        except OSError as error:
            self._ownUnknown(str(error))
            return
        self._ownReason = ""
        if own != self._own:
            self._own = own
            self._setup.renew()
        if not self.config.allowSelf:
            self.way.policy.own = own

    def _ownUnknown(self, why: str) -> None:
        if self._own is None and not self.config.allowSelf:
            raise ListenError(f"the addresses of this machine are not known, and only --allow-self needs none: {why}")
        if why != self._ownReason:
            self._ownReason = why
            self._log.warn("the addresses of this machine may have changed: {why}", why=why)

    def _lookAtPath(self) -> None:
        peer = self.way.peer
        if peer is None:
            return
        try:
            outer = self._system.pathMtu(peer.host)
        except OSError:
            return
        self.way.mtu = max(LEAST_MTU, innerMtu(outer, 6 if ":" in peer.host else 4))

    def _nobodyListens(self, why: str) -> None:
        self._log.error("l3-tunnel can not go on: {why}", why=why)

    # -- the end

    def _close(self) -> None:
        self._outer.stop()
        self._setup.stop()
        if self._capture is not None:
            self._capture.close()
        if self._injector is not None:
            self._injector.close()
        self._capture = self._injector = self._tun = None

    async def stopService(self) -> None:
        """Close everything."""
        if self._ticking is not None and self._ticking.running:
            self._ticking.stop()
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None
        self._close()
        await super().stopService()

    def reload(self, config: L3Config) -> None:
        """
        See that the configuration is well; what is new in it takes effect at the next start.

        @raise ConfigError: it is not.
        """
        check(config)
        readKey(config.keyFile or "")

    def illness(self) -> str:
        """Why nothing gets through; empty if everything is well."""
        if self._capture is None or not self._capture.isCapturing:
            return f"nothing is captured at {self.config.interface}"
        if self._injector is None:
            return f"TUN {self.config.tundev} is gone"
        return "" if self.way.up else "there is no session with the other end"

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "role": "l3-tunnel",
            **self.way.report(self.clock()),
            "capture": list(self.config.capture),
            "inject": self.config.inject,
            "tunOffload": str(self.tunOffload),
            "offload": str(self.traffic.offload),
            "packets": self.inside.report(),
            "log": lines.report(),
            **self.counters.report(),
            "dropped": dict(self.counters.dropped + self.inside.dropped),
        }
