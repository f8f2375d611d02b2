"""
tun2socks: sends the TCP that comes out of a TUN to one SOCKS5 server, and the UDP to the same or another one.

L{Tun2socksService} wires the parts together: a TUN port, a gateway that sorts
its packets, a stack that makes connections of TCP, and what carries
connections and datagrams on. Instead of the TUN there may be a pipe to
udp-server, which sends its datagrams as packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from typing import Any, Protocol, TypeAlias

from twisted.application.service import MultiService
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from udptunnel.config import Tun2socksConfig
from udptunnel.core.counters import Counters
from udptunnel.core.fakenames import FakeNames
from udptunnel.errors import AddressError, ConfigError, ListenError, RouteError
from udptunnel.net import fifo
from udptunnel.net.crossing import SocksTcp
from udptunnel.net.datagrams import Traffic
from udptunnel.net.dial import Proxy
from udptunnel.net.dns import Before, FakeDns, Receiver, RedirectedDns
from udptunnel.net.gateway import Gateway, UdpWriter
from udptunnel.net.logs import lines
from udptunnel.net.netns import NetnsStack
from udptunnel.net.nostack import NoStack
from udptunnel.net.offload import parseNames, probe
from udptunnel.net.packetpipe import LARGEST_MESSAGE, MakePipe, Pipe
from udptunnel.net.platforms import isPortable, require
from udptunnel.net.routes import Capture, Routes
from udptunnel.net.socksudp import SocksUdp
from udptunnel.net.stack import Place, Stack, TcpReceiver, TunStack, firstThatWorks
from udptunnel.net.tun import NAMES, TunOffload, TunPort, systemHere
from udptunnel.net.tundevice import Interface, System
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.links import every
from udptunnel.services.local import LocalService
from udptunnel.services.proxies import passwordIn, resolved
from udptunnel.wire.address import Address

TICK_SECONDS = 1.0

TRIES = 4
"""How often a TUN that was taken away is made again, a second apart, before we give up."""

NO_IPV6 = "::"
"""C{--netif-ip6addr} for no IPv6."""

UdpMaker: TypeAlias = Callable[[UdpWriter], Receiver]
"""Makes what carries datagrams on, given what puts the answers into the TUN."""


class TcpCarrier(TcpReceiver, Protocol):
    """What carries connections on."""

    def tick(self, now: float) -> None:
        """To be called once a second."""

    def stop(self) -> None:
        """Close all connections."""

    def report(self) -> dict[str, Any]:
        """The figures as plain values."""


_Interface: TypeAlias = IPv4Interface | IPv6Interface


class Tun2socksService(MultiService):
    """
    The role tun2socks.

    @ivar gateway: sorts packets, and puts datagrams into the TUN.
    @ivar tcp: carries connections on.
    @ivar port: the TUN, or the pipe.
    @ivar stack: what makes connections of packets, once started.
    @ivar counters: its figures.
    @ivar whenFailed: called with the reason when the role can not go on.
    """

    _log = Logger()
    stack: Stack
    port: TunPort | Pipe

    def __init__(
        self,
        config: Tun2socksConfig,
        reactor: Any,
        system: System | None = None,
        udp: UdpMaker | None = None,
        routes: Routes | None = None,
        tcp: TcpCarrier | None = None,
        pipe: MakePipe | None = None,
        longest: int = LARGEST_MESSAGE,
        lent: bool = False,
        known: Tun2socksConfig | None = None,
    ) -> None:
        """
        @param system: the operating system; this one unless a test says otherwise.
        @param routes: what leads packets into the TUN, for tests.
        @param tcp: carries connections on instead of a SOCKS5 server.
        @param udp: carries datagrams on instead of a SOCKS5 server: our own
            end of the tunnel in the same process, for one.
        @param pipe: makes what packets come from, and go to, instead of a TUN:
            an end of a L{joint<udptunnel.net.packetpipe.joint>} with
            udp-server in the same process, for one.
        @param longest: the longest packet that goes down the pipe, in bytes.
        @param lent: whether the descriptor C{--tun-fd} stays with whoever has opened it. Otherwise it is closed in the
            end.
        @param known: what L{withAddresses} says, if somebody has asked it already where it may block.
        @raise ConfigError: options contradict each other, or a file can not be read.
        """
        super().__init__()
        self.setName("tun2socks")
        self._makePipe = pipe or (fifo.connector(*config.pipe) if config.pipe is not None else None)
        _check(config, pipe is not None)
        if config.fwmark:
            require("--fwmark")
        self._given = config
        self._lent = lent
        self.config = config = known or withAddresses(config)
        self.clock: Callable[[], float] = reactor.seconds
        self.counters = Counters()
        self.whenFailed: Callable[[str], None] = self._nobodyListens
        self._reactor = reactor
        self._system = system or systemHere()
        self._tunOffload = TunOffload(parseTunNames("none" if self._makePipe else config.tunOffload))
        self.routes = routes or Routes(captureOf(config))
        self.traffic = Traffic(reactor, probe(parseNames(config.offload)), self.counters, config.rest / 1000)
        mtu = longest if self._makePipe else config.mtu
        self.gateway = Gateway(self.counters, self.clock, self._lost, mtu, config.icmp)
        self._tcpProxy, self._udpProxy = proxiesOf(config)
        self._socksUdp: SocksUdp | None = None
        self._names = self._makeNames()
        self.tcp: TcpCarrier = tcp or self._makeTcp()
        self.udp = self._chain(udp or self._makeUdp)
        self._ticking: LoopingCall | None = None
        self._trying: IDelayedCall | None = None
        self._opened: list[Callable[[], None]] = []
        if config.status is not None:
            self._addStatus(config.status)

    # -- parts

    def _makeNames(self) -> list[Before]:
        """What looks at names on their way; the first one is nearest to the TUN."""
        config, parts = self.config, list[Before]()
        writer: UdpWriter = self.gateway
        if config.fakeDns:
            parts.append(FakeDns(_fakeNames(config), writer, self.counters, self.clock, config.dns is not None))
            writer = parts[-1]
        if config.dns is not None:
            parts.append(RedirectedDns(config.dns, writer, self.counters, self.clock))
        return parts

    def _chain(self, make: UdpMaker) -> Receiver:
        """What carries datagrams on, behind what looks at names."""
        receiver = make(self._names[-1] if self._names else self.gateway)
        for before in reversed(self._names):
            before.receiver, receiver = receiver, before
        self.gateway.udp = receiver
        return receiver

    def _targetOf(self, address: Address) -> Address:
        """
        Where a connection goes to, names considered.

        @raise AddressError: it goes to a fake address that stands for nothing.
        """
        for each in self._names:
            address = each.targetOf(address)
        return address

    def _makeTcp(self) -> SocksTcp:
        config = self.config
        return SocksTcp(
            self._reactor,
            self._tcpProxy,
            self.counters,
            early=config.earlyAccept,
            appendSource=config.appendSourceToUsername,
            idleSeconds=config.tcpIdle,
            most=config.maxConnections,
            names=self._targetOf,
        )

    def _makeUdp(self, writer: UdpWriter) -> SocksUdp:
        config = self.config
        self._socksUdp = SocksUdp(
            self._reactor,
            self._udpProxy,
            writer,
            self.traffic,
            self.counters,
            self.clock,
            most=config.maxAssociations,
            idleSeconds=config.udpIdle,
            udpAddress=config.udpAddress,
        )
        return self._socksUdp

    def _addStatus(self, endpoint: str) -> None:
        # A web server comes with it, and without one a role starts sooner.
        from udptunnel.services.status import StatusService

        allowed = self.config.insecureNoAuth
        status = StatusService("tun2socks", endpoint, self.report, self.illness, self._reactor, allowed)
        status.setServiceParent(self)

    # -- beginning

    def startService(self) -> None:
        """
        Open the TUN, find a stack that works, and set the routes.

        @raise ListenError: that can not be done. Then nothing is open, and no route is left.
        """
        self._open()
        try:
            super().startService()
        except ListenError:
            self._close()
            raise
        self._ticking = every(TICK_SECONDS, self._tick, self._reactor, self._log)
        self._log.info(
            "tun2socks: {port}, TCP by stack {stack} to {server}, UDP to {udp}",
            port=self._portText,
            stack=self.stack.name,
            server=self._tcpProxy.address,
            udp=self._udpProxy.address if self._socksUdp is not None else "a session of our own",
        )

    @property
    def _portText(self) -> str:
        """What packets come from."""
        return f"pipe {self.port.name}" if self._makePipe else f"TUN {self.port.name} with {self._tunOffload}"

    def _open(self) -> None:
        try:
            if self._makePipe is not None:
                self._openPipe(self._makePipe)
            else:
                self._openTun()
        except (ListenError, RouteError, OSError) as error:
            self._close()
            raise ListenError(str(error)) from error

    def _openPipe(self, make: MakePipe) -> None:
        self.port = self.gateway.outer = make(self._reactor, self.gateway, self.counters)
        self._opened.append(self.port.close)
        firstThatWorks(self._stacks(()), self._use)
        self.port.open()

    def _openTun(self) -> None:
        places, missing = self._findPlaces(self.config.tundev or "")
        interface = Interface(self.config.tundev or "", tuple(missing), self.config.mtu)
        port = TunPort(self._reactor, interface, self.gateway, self._tunOffload, self.counters, self._system)
        self.port = self.gateway.outer = port
        self._opened.append(port.close)
        if self.config.tunFd is not None:
            port.adopt(self.config.tunFd, lent=self._lent)
            if self.config.stack == "tun":
                places, _ = self._findPlaces(port.name)
        else:
            port.open()
        firstThatWorks(self._stacks(places), self._use)
        self.routes.start(port.name)
        for option, address in _serversIn(self.config):
            self.routes.refuseLoops(option, [address.host])

    def _findPlaces(self, name: str) -> tuple[list[Place], list[str]]:
        """Our address and the router's, of each family; and which of ours the device does not have yet."""
        existing = [ip_interface(each) for each in self._system.addresses(name)]
        places, missing = [], []
        for router in _routers(self.config):
            own = _ownBeside(router, existing)
            places.append(Place(str(own.ip), str(router.ip)))
            if own not in existing:
                missing.append(str(own))
        return places, missing

    def _use(self, stack: Stack) -> None:
        self.gateway.stack = self.stack = stack
        self._opened.append(stack.stop)

    def _stacks(self, places: Sequence[Place]) -> Iterator[Stack]:
        wanted, port = self.config.stack, self.port
        most = self.config.maxConnections
        mayTun = wanted == "tun" or (wanted == "auto" and self.config.tunFd is None)
        if mayTun and isinstance(port, TunPort):
            yield TunStack(self._reactor, port, places, self.tcp, self.counters, most)
        if wanted in ("auto", "netns"):
            yield NetnsStack(self._reactor, port, self._tunOffload, self.tcp, self.counters, self.config.mtu, most)
        # udp-server sends no TCP down its pipe, and needs none of what a namespace takes.
        if wanted == "none" or (wanted == "auto" and self._makePipe is not None):
            yield NoStack(port, self.counters)

    # -- time

    def _tick(self) -> None:
        now = self.clock()
        self.traffic.tick(now)
        self.port.check()
        if self.stack.broken:
            self._log.error("stack {stack} is broken: {why}", stack=self.stack.name, why=self.stack.broken)
            self.stack.broken = ""
            self._lost("of no use without it")
            return
        self.gateway.tick(now)
        self.tcp.tick(now)

    def _lost(self, why: str) -> None:
        """The TUN is gone."""
        self._log.error("TUN {name} is {why}", name=self.port.name, why=why)
        self._close()
        if self.config.tunFd is not None:
            self.whenFailed(f"TUN {self.port.name}, which we have inherited, is {why}")
        else:
            self._tryAgain(TRIES)

    def _tryAgain(self, tries: int) -> None:
        self._trying = None
        try:
            self._open()
        except ListenError as error:
            self._log.error("{error}", error=error)
            if tries > 1:
                self._trying = self._reactor.callLater(TICK_SECONDS, self._tryAgain, tries - 1)
            else:
                self.whenFailed(str(error))
        else:
            self._log.info("TUN {name} is there again", name=self.port.name)

    def _nobodyListens(self, why: str) -> None:
        self._log.error("tun2socks can not go on: {why}", why=why)

    # -- the end

    def _close(self) -> None:
        """Close what hangs on the TUN: its connections get no packet any more."""
        self.routes.stop()
        self.tcp.stop()
        while self._opened:
            self._opened.pop()()

    async def stopService(self) -> None:
        """Close everything."""
        if self._ticking is not None and self._ticking.running:
            self._ticking.stop()
        if self._trying is not None:
            self._trying.cancel()
        self._close()
        self.udp.stop()
        await super().stopService()

    def reload(self, config: Tun2socksConfig) -> None:
        """
        Read the password files again; what is open stays.

        @raise ConfigError: one can not be read; all stays as it was.
        """
        self._tcpProxy, self._udpProxy = proxiesOf(withAddresses(config, self._given, self.config))
        if isinstance(self.tcp, SocksTcp):
            self.tcp.proxy = self._tcpProxy
        if self._socksUdp is not None:
            self._socksUdp.proxy = self._udpProxy

    def illness(self) -> str:
        """Why nothing gets through; empty if everything is well, or nobody is at the other end of the pipe yet."""
        if self._makePipe is not None:
            return ""
        return "" if self.port.fileno() >= 0 else f"TUN {self.port.name} is gone"

    def report(self) -> dict[str, Any]:
        """The state as plain values."""
        return {
            "role": "tun2socks",
            "up": not self.illness(),
            **({"pipe": self.port.report()} if isinstance(self.port, Pipe) else {"tun": self.port.name}),
            "tunOffload": str(self._tunOffload),
            "offload": str(self.traffic.offload),
            "portable": isPortable(self._reactor, self.traffic.offload),
            "stack": self.stack.name,
            "connections": len(self.stack),
            "tcp": self.tcp.report(),
            "udp": self.udp.report(),
            "routes": self.routes.report(),
            "log": lines.report(),
            **self.counters.report(),
        }


def throughSession(local: LocalService) -> UdpMaker:
    """Carries datagrams into the session of an udp-local in the same process, whole bursts at a time."""
    return lambda writer: TunEntry(local.session, writer, local.clock)


# -- the configuration


def _check(config: Tun2socksConfig, joined: bool) -> None:
    """
    See that options go together.

    @param joined: whether packets come from somewhere that no option names.
    @raise ConfigError: they do not.
    """
    places = {"--tundev": config.tundev, "--tun-fd": config.tunFd, "--pipe": config.pipe}
    given = [name for name, value in places.items() if value is not None]
    if len(given) != (not joined):
        raise ConfigError(f"{' and '.join(given) or 'no TUN'}: give one of --tundev NAME, --tun-fd N and --pipe PATH")
    if joined or config.pipe is not None:
        _checkPipe(config)
    if config.socksServerAddr is None:
        raise ConfigError("--socks-server-addr HOST:PORT is missing: TCP has nowhere to go")


def _checkPipe(config: Tun2socksConfig) -> None:
    if config.stack == "tun":
        raise ConfigError("--stack tun: there is no TUN with --pipe; netns speaks TCP, none leaves it")
    if config.route or config.autoRoute:
        raise ConfigError("--route, --auto-route: they lead into a TUN, and there is none with --pipe")


def parseTunNames(text: str) -> tuple[str, ...]:
    """
    Read C{--tun-offload}.

    @raise ConfigError: there is no such ability.
    """
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    names = tuple(text.split(","))
    if not set(names) <= set(NAMES):
        raise ConfigError(f"--tun-offload {text}: expected all, none, or some of {','.join(NAMES)}")
    return names


def withAddresses(
    config: Tun2socksConfig, before: Tun2socksConfig | None = None, known: Tun2socksConfig | None = None
) -> Tun2socksConfig:
    """
    A configuration with addresses in place of the names of servers.

    Names are looked up once, and that blocks. Once there are routes the
    question would go into the TUN, which nobody serves meanwhile; and a second
    answer may be another one, to which no way leads past the TUN.

    @param before: what the configuration was, and...
    @param known: ...what this function has said then: names that are still the same are not looked up again.
    @raise ConfigError: a name is unknown.
    """
    found: dict[str, Any] = {}
    for field, option in _SERVERS.items():
        given: Address | None = getattr(config, field)
        if given is None:
            continue
        same = known is not None and given == getattr(before, field)
        found[field] = getattr(known, field) if same else resolved(option, given)
    return replace(config, **found)


_SERVERS = {
    "socksServerAddr": "--socks-server-addr",
    "udpSocksServerAddr": "--udp-socks-server-addr",
    "udpAddress": "--udp-address",
}
"""What our own packets go to: the fields, and the options that say so."""


def proxiesOf(config: Tun2socksConfig) -> tuple[Proxy, Proxy]:
    """
    The SOCKS5 servers for TCP and for UDP.

    @param config: see L{withAddresses}.
    @raise ConfigError: a file can not be read.
    """
    assert config.socksServerAddr is not None
    password = passwordIn("--password-file", config.passwordFile) or config.password or ""
    mark = captureOf(config).socketMark
    tcp = Proxy(config.socksServerAddr, config.username or "", password, mark)
    if config.udpSocksServerAddr is None:
        return tcp, tcp
    password = passwordIn("--udp-password-file", config.udpPasswordFile)
    return tcp, Proxy(config.udpSocksServerAddr, config.udpUsername or "", password, mark)


def captureOf(config: Tun2socksConfig) -> Capture:
    """What is to go into the TUN, given what L{withAddresses} says."""
    past = [address.host for _, address in _serversIn(config)]
    networks = tuple(dict.fromkeys((*config.route, *config.fakeDns)))
    return Capture(networks, config.autoRoute, config.fwmark, config.dns is not None, (*past, *config.bypass))


def _serversIn(config: Tun2socksConfig) -> Iterator[tuple[str, Address]]:
    """What our own packets go to, and the options that say so."""
    given = ((option, getattr(config, field)) for field, option in _SERVERS.items())
    return ((option, address) for option, address in given if address is not None)


def _fakeNames(config: Tun2socksConfig) -> FakeNames:
    try:
        return FakeNames(map(ip_network, config.fakeDns))
    except AddressError as error:
        raise ConfigError(f"--fake-dns: {error}") from error


def _routers(config: Tun2socksConfig) -> Iterator[_Interface]:
    """The addresses of the router behind the TUN, of each family."""
    yield IPv4Interface(f"{config.netifIpaddr}/{config.netifNetmask}")
    if config.netifIp6addr != NO_IPV6 and _hasIpv6():
        yield IPv6Interface(f"{config.netifIp6addr}/64")


def _hasIpv6() -> bool:
    """Whether this machine gives IPv6 addresses to new devices."""
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


def _ownBeside(router: _Interface, existing: Sequence[_Interface]) -> _Interface:
    """
    The TUN's own address in the router's network: the one that it has, or the router's neighbour.

    @raise ListenError: the TUN's is that of the router.
    """
    for each in existing:
        if each.ip == router.ip:
            raise ListenError(f"{each.ip} is the address of the TUN itself; the router behind it needs another one")
        if each.ip in router.network:
            return each
    beside = router + 1
    if beside not in router.network or beside.ip == router.network.broadcast_address:
        beside = router - 1
    return ip_interface(f"{beside.ip}/{router.network.prefixlen}")
