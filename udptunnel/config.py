"""
Configuration: one frozen dataclass of plain values for each role.

Command lines, .tac files, TOML files and embedding programs all fill these.
Each field says what texts it accepts, so that one description serves every
way in, and an error always names the option, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, NamedTuple, Protocol, TypeVar

from udptunnel.errors import AddressError, ConfigError
from udptunnel.wire.address import Address

Config = TypeVar("Config")


class RoleConfig(Protocol):
    """What the configurations of all roles have in common."""

    @property
    def logFormat(self) -> str:
        """How log lines are written: text or json."""

    @property
    def redact(self) -> bool:
        """Whether they leave addresses and names out."""


Reader = Callable[[str], Any]
"""Turns a text into a value, or raises C{ValueError} with a text that says what is expected."""


class Inherited(NamedTuple):
    """A socket that systemd has opened for us, by its name or its number."""

    which: str

    def __str__(self) -> str:
        return f"systemd:{self.which}"


class Forward(NamedTuple):
    """One C{--forward}: datagrams to C{listen} go to C{target}."""

    listen: Address | Inherited
    target: Address

    def __str__(self) -> str:
        return f"{self.listen}={self.target}"


MESSAGES, STREAM, FIFO = "", "stream", "fifo"
"""Kinds of pipes: a Unix socket, of messages or else a stream, and two named pipes."""


class PipePlace(NamedTuple):
    """Where a pipe for packets is, and of which kind."""

    path: str
    kind: str = MESSAGES

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" if self.kind else self.path


@dataclass(frozen=True)
class EgressPlace:
    """C{--egress}: how targets are reached. At most one of these is there; without any, from this machine."""

    socks: Address | None = None
    pipe: PipePlace | None = None
    tun2socks: Address | None = None

    def __str__(self) -> str:
        if self.tun2socks is not None:
            return f"tun2socks:{self.tun2socks}"
        if self.socks is not None:
            return f"socks5:{self.socks}"
        if self.pipe is not None:
            return f"pipe-{self.pipe}" if self.pipe.kind else f"pipe:{self.pipe}"
        return "direct"


# -- readers


def anyText(text: str) -> str:
    """Any text but none."""
    if not text:
        raise ValueError("a text that is not empty")
    return text


def oneOf(*words: str) -> Reader:
    """One of some words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


def integer(least: int, most: int) -> Reader:
    """A whole number in a range."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return read


def number(least: float, most: float) -> Reader:
    """A number in a range."""

    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return float(text)

    return read


def address(text: str) -> Address:
    """HOST:PORT."""
    try:
        return Address.parse(text)
    except AddressError as error:
        raise ValueError("HOST:PORT, an IPv6 address in brackets") from error


def forward(text: str) -> Forward:
    """LISTEN=TARGET."""
    listen, _, target = text.partition("=")
    try:
        rule = Forward(_listenOf(listen), Address.parse(target))
    except AddressError as error:
        raise ValueError("LISTEN=TARGET, both HOST:PORT, such as 127.0.0.1:5353=9.9.9.9:53") from error
    isName = isinstance(rule.listen, Address) and rule.listen.isName
    if isName or not rule.target.port:
        raise ValueError("LISTEN=TARGET with a numeric host to listen at and a target port from 1 to 65535")
    return rule


def _listenOf(text: str) -> Address | Inherited:
    which = text.removeprefix("systemd:")
    return Inherited(which) if which and which != text else Address.parse(text)


def socksServer(text: str) -> Address:
    """HOST:PORT, where somebody listens."""
    given = address(text)
    if not given.port:
        raise ValueError("HOST:PORT with a port from 1 to 65535")
    return given


def socketAddress(text: str) -> Address:
    """ADDRESS:PORT, the address in digits."""
    given = address(text)
    if given.isName:
        raise ValueError("ADDRESS:PORT, the address in digits, such as 0.0.0.0:60000")
    return given


def egress(text: str) -> EgressPlace:
    """C{direct}, or another way with its place."""
    kind, _, place = text.partition(":")
    if text == "direct":
        return EgressPlace()
    if kind in ("socks5", "tun2socks"):
        with suppress(ValueError):
            server = socksServer(place)
            return EgressPlace(socks=server) if kind == "socks5" else EgressPlace(tun2socks=server)
    if kind in _PIPES and place:
        return EgressPlace(pipe=PipePlace(place, _PIPES[kind]))
    raise ValueError("direct, socks5:HOST:PORT, tun2socks:HOST:PORT, pipe:PATH, pipe-stream:PATH or pipe-fifo:PATH")


_PIPES = {"pipe": MESSAGES, "pipe-stream": STREAM, "pipe-fifo": FIFO}
"""What C{--egress} calls the kinds of pipes."""


def pipe(text: str) -> PipePlace:
    """PATH, C{stream:PATH} or C{fifo:PATH}."""
    kind, colon, path = text.partition(":")
    place = PipePlace(path, kind) if colon and kind in (STREAM, FIFO) else PipePlace(text)
    if not place.path:
        raise ValueError("PATH, stream:PATH or fifo:PATH")
    return place


def deviceName(text: str) -> str:
    """The name of a network device; the kernel allows more signs (C{dev_valid_name}), but no tool likes them."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text) or text in (".", ".."):
        raise ValueError("a name of 1 to 15 letters, digits, dots, hyphens and underscores")
    return text


def interfaceAddress(text: str) -> str:
    """ADDRESS/LENGTH."""
    try:
        interface = ip_interface(text)
    except ValueError:
        interface = None
    if interface is None or "/" not in text or "%" in text:
        raise ValueError("ADDRESS/LENGTH, such as 10.0.85.1/24")
    return text


def mark(text: str) -> int:
    """A mark of the kernel's, which others show in hexadecimal."""
    if re.fullmatch("0x[0-9a-fA-F]{1,8}", text):
        return int(text, 16)
    return int(integer(0, 0xFFFF_FFFF)(text))


def host4(text: str) -> str:
    """An IPv4 address."""
    try:
        return str(IPv4Address(text))
    except ValueError as error:
        raise ValueError("an IPv4 address") from error


def host6(text: str) -> str:
    """An IPv6 address."""
    try:
        return str(IPv6Address(text))
    except ValueError as error:
        raise ValueError("an IPv6 address") from error


def netmask(text: str) -> str:
    """A netmask in which two hosts have room."""
    try:
        length = IPv4Network(f"0.0.0.0/{text}").prefixlen
    except ValueError:
        length = 0
    if not 1 <= length <= 30:
        raise ValueError("a netmask from 128.0.0.0 to 255.255.255.252")
    return text


def network(text: str) -> str:
    """A network, or a host as one."""
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ValueError("an address, or ADDRESS/LENGTH with zeros behind the length") from error


def nameServer(text: str) -> Address:
    """HOST, or HOST:PORT."""
    try:
        return Address(str(ip_address(text)), DNS_PORT)
    except ValueError:
        given = address(text)
    if given.isName or not given.port:
        raise ValueError("the address of a name server, or ADDRESS:PORT")
    return given


DNS_PORT = 53
"""RFC 1035 section 4.2."""


# -- fields


def option(default: Any, read: Reader, value: str, text: str) -> Any:
    """
    A field of a role's configuration.

    @param default: its value if it is not given; a tuple makes it an option
        that may be given several times.
    @param value: how C{--help} names the value.
    @param text: what C{--help} says.
    """
    return dataclasses.field(default=default, metadata={"read": read, "value": value, "text": text})


def flag(text: str) -> Any:
    """A field that is either given or not."""
    return dataclasses.field(default=False, metadata={"text": text})


def optionName(field: str) -> str:
    """The option for a field: C{connectVia} becomes C{connect-via}."""
    return re.sub("([A-Z])", r"-\1", field).lower()


def fieldOf(kind: type[Any], option: str) -> str:
    """
    The field for an option, the inverse of L{optionName}.

    @raise ConfigError: there is none.
    """
    names = {optionName(field.name): field.name for field in dataclasses.fields(kind)}
    if option not in names:
        raise ConfigError(f"unknown option {option}; known are {', '.join(sorted(names))}")
    return names[option]


OFFLOAD = option("all", anyText, "NAMES", "Kernel abilities to use: all, none, or some of gro,gso,mmsg.")
REST = option(
    1.0,
    number(0, 100),
    "MS",
    "Milliseconds that a port with more than 20,000 datagrams a second rests between two reads; 0: none.",
)
DELAY = option(
    100.0,
    number(0, 10_000),
    "MS",
    "Milliseconds that bytes may wait on the path beyond our own queue (sockets, proxies); 0: no limit.",
)
QUEUE_AGE = option(200.0, number(1, 60_000), "MS", "Milliseconds that a datagram may wait in a link's queue.")
QUEUE_BYTES = option(4 << 20, integer(65_536, 1 << 30), "BYTES", "Bytes that may wait in a link's queue.")
HEARTBEAT = option(5.0, number(0.1, 600), "S", "Seconds between heartbeats; a link is dead after three without answer.")
NO_AUTH = flag("Listen beyond loopback although whoever can reach the port may use it.")
TLS = option(
    None, anyText, "FILE", "Links are TLS: our key and certificate, and the CA of the other end, in one PEM file."
)
PLUGIN = option(
    None, anyText, "PROGRAM", "Have a plugin of shadowsocks (SIP003) carry the links; no shadowsocks is needed."
)
PLUGIN_OPTS = option(None, anyText, "OPTIONS", "Options of the plugin, such as obfs=http;obfs-host=www.example.com.")
STATUS = option(
    None,
    anyText,
    "ENDPOINT",
    "Where the state can be read over HTTP, such as unix:PATH or tcp:9876:interface=127.0.0.1.",
)
LOG_FORMAT = option("text", oneOf("text", "json"), "HOW", "Log lines for people, or one JSON object a line.")
REDACT = flag("Leave addresses and names of users and targets out of the log.")


@dataclass(frozen=True)
class LocalConfig:
    """udp-local: takes UDP in, and wraps it."""

    socks: str = option(
        "tcp:1234:interface=127.0.0.1", anyText, "ENDPOINT", "Where the SOCKS5 server listens; none: no such server."
    )
    server: tuple[str, ...] = option(
        ("tcp:127.0.0.1:3456",),
        anyText,
        "ENDPOINT",
        "Where udp-server is; of several, the nearest that is well is used.",
    )
    via: Address | None = option(None, address, "HOST:PORT", "Reach udp-server through this SOCKS5 server.")
    forward: tuple[Forward, ...] = option(
        (), forward, "LISTEN=TARGET", "Send datagrams that come to LISTEN to TARGET, both HOST:PORT."
    )
    connectVia: Address | None = option(
        None, address, "HOST:PORT", "Relay SOCKS5 CONNECT requests to this SOCKS5 server."
    )
    passwordFile: str | None = option(
        None, anyText, "FILE", "Lines user:password; who uses the SOCKS5 server must know one of them."
    )
    links: int = option(1, integer(1, 64), "N", "TCP connections to udp-server.")
    maxAssociations: int = option(16_384, integer(1, 1 << 20), "N", "UDP sources at once.")
    offload: str = OFFLOAD
    delay: float = DELAY
    queueAge: float = QUEUE_AGE
    queueBytes: int = QUEUE_BYTES
    heartbeat: float = HEARTBEAT
    insecureNoAuth: bool = NO_AUTH
    rest: float = REST
    schedule: str = option(
        "flow",
        oneOf("flow", "idle"),
        "HOW",
        "How bursts are spread over several links: flow, each flow on a link of its own; "
        "idle, each burst on the link that was silent longest.",
    )
    newSources: int = option(
        128, integer(0, 1 << 20), "N", "New sources a second that a forward takes from one other machine; 0: no limit."
    )
    tls: str | None = TLS
    tlsTrust: str | None = option(
        None, anyText, "TRUST", "Links are TLS: the CA of udp-server in a PEM file, or sha256:HEX of its certificate."
    )
    tlsName: str | None = option(
        None, anyText, "NAME", "The name that udp-server's certificate must have, if not the host in --server."
    )
    secret: str | None = option(
        None, anyText, "FILE", "A line user:secret, with which we prove to udp-server who we are."
    )
    plugin: str | None = PLUGIN
    pluginOpts: str | None = PLUGIN_OPTS
    status: str | None = STATUS
    logFormat: str = LOG_FORMAT
    redact: bool = REDACT


@dataclass(frozen=True)
class ServerConfig:
    """udp-server: unwraps, and sends to the targets."""

    listen: tuple[str, ...] = option(
        ("tcp:3456:interface=127.0.0.1",), anyText, "ENDPOINT", "Where links are accepted."
    )
    egress: EgressPlace = option(
        EgressPlace(),
        egress,
        "HOW",
        "How targets are reached: direct, from this machine; socks5:HOST:PORT, by a SOCKS5 server; pipe:PATH, as IP "
        "packets over a Unix socket, to tun2socks --pipe; pipe-stream:PATH, the same over a stream; pipe-fifo:PATH, "
        "over two named pipes; tun2socks:HOST:PORT, to a tun2socks in this process, before a SOCKS5 server.",
    )
    allow: tuple[str, ...] = option((), anyText, "CIDR", "Allow targets in this network, even if it is private.")
    deny: tuple[str, ...] = option((), anyText, "CIDR", "Refuse targets in this network.")
    denyPort: tuple[int, ...] = option(
        (19, 25, 389, 1900, 11211),
        integer(0, 65535),
        "PORT",
        "Refuse targets with this port, instead of the usual ones.",
    )
    maxSessions: int = option(1024, integer(1, 1 << 20), "N", "Sessions at once.")
    maxLinks: int = option(64, integer(1, 1024), "N", "Links of one session at once.")
    maxAssociations: int = option(16_384, integer(1, 1 << 20), "N", "Associations of one session at once.")
    maxPorts: int = option(
        0, integer(0, 1 << 20), "N", "External ports at once; 0: as many as there are descriptors, less a reserve."
    )
    lookups: int = option(4, integer(1, 1024), "N", "Names that one session may have resolved at the same time.")
    lookupTimeout: float = option(2.0, number(0.1, 60), "S", "Seconds that resolving a name may take.")
    offload: str = OFFLOAD
    delay: float = DELAY
    queueAge: float = QUEUE_AGE
    queueBytes: int = QUEUE_BYTES
    heartbeat: float = HEARTBEAT
    insecureNoAuth: bool = NO_AUTH
    rest: float = REST
    resumeGrace: float = option(
        60.0, number(0, 86_400), "S", "Seconds that a session without links keeps its external ports; 0: none."
    )
    tls: str | None = TLS
    revoked: str | None = option(
        None, anyText, "FILE", "Certificates that are not valid any more, one fingerprint a line."
    )
    secrets: str | None = option(
        None, anyText, "FILE", "Lines user:secret; who opens a link must prove to know one, instead of a certificate."
    )
    insecurePlain: bool = flag("With --secrets, listen beyond loopback although nothing encrypts the links.")
    loginTimeout: float = option(10.0, number(0.1, 600), "S", "Seconds that a stranger may take to log in.")
    maxHalfOpen: int = option(
        256, integer(1, 1 << 20), "N", "Connections at once that are not logged in; one more makes one of them go."
    )
    maxHalfOpenSource: int = option(
        128, integer(1, 1 << 20), "N", "Connections at once of one host beyond loopback that are not logged in."
    )
    maxUserSessions: int = option(64, integer(1, 1 << 20), "N", "Sessions of one user at once, parked ones included.")
    maxUserAssociations: int = option(65_536, integer(1, 1 << 24), "N", "Associations of one user at once.")
    maxUserLinks: int = option(256, integer(1, 1 << 20), "N", "Links of one user at once, over all sessions.")
    filtering: str = option(
        "endpoint",
        oneOf("endpoint", "address", "port"),
        "WHO",
        "Who may send to an external port: endpoint, anybody; address, hosts that were sent to; "
        "port, hosts and ports that were sent to.",
    )
    strangerRate: int = option(
        1000,
        integer(0, 1 << 30),
        "N",
        "Datagrams a second to one external port from whom nothing was sent to; 0: no limit.",
    )
    drainSessions: int = option(
        0, integer(0, 1 << 20), "N", "After SIGUSR2, end as soon as no more sessions than this are left."
    )
    maxMemory: int = option(
        0,
        integer(0, 1 << 20),
        "MB",
        "Resident memory above which nothing new is let in; 0: three quarters of what the machine has.",
    )
    plugin: str | None = PLUGIN
    pluginOpts: str | None = PLUGIN_OPTS
    egressUser: str | None = option(None, anyText, "NAME", "Who we are to the SOCKS5 server of --egress.")
    egressPasswordFile: str | None = option(None, anyText, "FILE", "A file that holds the password for it.")
    egressUdpAddress: Address | None = option(
        None, address, "HOST:PORT", "Where that server takes datagrams, whatever it says; port 0: as it says."
    )
    egressNames: str | None = option(
        None,
        oneOf("pass", "resolve", "refuse"),
        "HOW",
        "What becomes of names with --egress socks5: pass, the SOCKS5 server gets them, and the access rules can not "
        "judge their addresses; resolve, it gets addresses; refuse, they are dropped. Must be said with --deny; "
        "otherwise pass.",
    )
    status: str | None = STATUS
    logFormat: str = LOG_FORMAT
    redact: bool = REDACT


@dataclass(frozen=True)
class Tun2socksConfig:
    """tun2socks: sends the TCP that comes out of a TUN to one SOCKS5 server, and the UDP to the same or another one."""

    tundev: str | None = option(None, deviceName, "NAME", "The TUN; it is made if it is not there.")
    tunFd: int | None = option(None, integer(0, 1 << 20), "N", "The TUN, as a descriptor that we have inherited.")
    pipe: PipePlace | None = option(
        None,
        pipe,
        "PATH",
        "Instead of a TUN, the socket of udp-server --egress pipe:PATH; stream:PATH: of pipe-stream; fifo:PATH: of "
        "pipe-fifo.",
    )
    netifIpaddr: str = option(
        "10.0.85.1", host4, "A", "An IPv4 address beside the TUN's own, as that of the router behind it; nobody has it."
    )
    netifNetmask: str = option("255.255.255.0", netmask, "M", "The netmask of both.")
    netifIp6addr: str = option(
        "fd75:6470:7475::1", host6, "A", "The same for IPv6, in a network of 64 bits; :: for no IPv6."
    )
    mtu: int = option(1500, integer(1280, 65_535), "BYTES", "The longest packet in the TUN.")
    stack: str = option(
        "auto",
        oneOf("auto", "tun", "netns", "none"),
        "HOW",
        "Who speaks TCP: tun, the kernel by way of the same TUN; netns, the kernel in a network namespace of its own, "
        "which no firewall of this machine concerns; none, nobody; auto, the first of tun and netns that works, with "
        "--pipe netns or else none.",
    )
    socksServerAddr: Address | None = option(
        None, socksServer, "HOST:PORT", "The SOCKS5 server that TCP goes to, and UDP unless it has its own."
    )
    udpSocksServerAddr: Address | None = option(None, socksServer, "HOST:PORT", "The SOCKS5 server that UDP goes to.")
    username: str | None = option(None, anyText, "NAME", "Who we are to the SOCKS5 server.")
    password: str | None = option(None, anyText, "PASSWORD", "How we prove it; all users of this machine can see that.")
    passwordFile: str | None = option(None, anyText, "FILE", "A file that holds the password, and nothing else.")
    udpUsername: str | None = option(None, anyText, "NAME", "Who we are to a SOCKS5 server for UDP alone.")
    udpPasswordFile: str | None = option(None, anyText, "FILE", "A file that holds the password for it.")
    appendSourceToUsername: bool = flag("Add @ and the address of the client to the name, for each TCP connection.")
    udpAddress: Address | None = option(
        None, address, "HOST:PORT", "Where the SOCKS5 server takes datagrams, whatever it says; port 0: as it says."
    )
    socks5Udp: bool = flag("Accepted for badvpn's sake: UDP goes to the SOCKS5 server in any case.")
    earlyAccept: bool = flag("Accept TCP connections before it is known whether their targets can be reached.")
    icmp: str = option(
        "reply",
        oneOf("off", "reply", "unreachable"),
        "HOW",
        "What an echo request gets: off, nothing; reply, a reply from us; unreachable, the word that nobody is there.",
    )
    dns: Address | None = option(
        None, nameServer, "ADDR", "Send DNS to this name server through the tunnel, wherever it was to go."
    )
    fakeDns: tuple[str, ...] = option(
        (),
        network,
        "CIDR",
        "Answer DNS ourselves with addresses of this network, such as 198.18.0.0/15, and pass on names in their place.",
    )
    route: tuple[str, ...] = option((), network, "CIDR", "Send what goes to this network into the TUN.")
    autoRoute: bool = flag("Send everything into the TUN that no other route is more specific for.")
    bypass: tuple[str, ...] = option(
        (), network, "CIDR", "Reach this network past the TUN: what carries our own connections on, for one."
    )
    fwmark: int = option(
        0,
        mark,
        "N",
        "Mark our own packets with this number, so that they take another route; 0: as it is needed for --auto-route.",
    )
    tunOffload: str = option("all", anyText, "NAMES", "What the TUN may do: all, none, or some of vnet,tso,uso.")
    offload: str = OFFLOAD
    rest: float = REST
    maxConnections: int = option(16_384, integer(1, 64_512), "N", "TCP connections at once.")
    maxAssociations: int = option(16_384, integer(1, 1 << 20), "N", "UDP sources at once.")
    tcpIdle: float = option(
        0.0,
        number(0, 864_000),
        "S",
        "Seconds of silence after which a TCP connection ends; 0: it may be silent for ever.",
    )
    udpIdle: float = option(60.0, number(1, 864_000), "S", "Seconds of silence after which a UDP source is forgotten.")
    loglevel: str = option(
        "info",
        oneOf("none", "error", "warning", "notice", "info", "debug", *"012345"),
        "LEVEL",
        "What is logged: none, error, warning, notice, info or debug, or their numbers 0 to 5.",
    )
    status: str | None = STATUS
    logFormat: str = LOG_FORMAT
    redact: bool = REDACT
    insecureNoAuth: bool = NO_AUTH


@dataclass(frozen=True)
class ControllerConfig:
    """proxy-controller: leads the machine's packets through a TUN when a client asks for it over a Unix socket."""

    socket: str | None = option(None, anyText, "PATH", "Unix socket where commands are taken; must be given.")
    socketGroup: str | None = option(
        None, anyText, "NAME", "Group that may use the socket, besides the user that we run as."
    )
    tundev: str = option("tun0", deviceName, "NAME", "What the TUN is called.")
    owner: str | None = option(None, anyText, "NAME", "User who may open the TUN; if not given, who we run as.")
    address: tuple[str, ...] = option(
        ("10.0.85.1/24",), interfaceAddress, "ADDRESS/LENGTH", "Address of the TUN, IPv4 or IPv6."
    )
    mtu: int = option(1500, integer(1280, 65_535), "BYTES", "MTU of the TUN.")
    ipv6: str = option(
        "block",
        oneOf("block", "leave"),
        "HOW",
        "What becomes of IPv6 if the TUN has no IPv6 address: block, unreachable meanwhile; leave, goes past the TUN.",
    )
    maxClients: int = option(16, integer(1, 1024), "N", "Clients at once.")
    status: str | None = STATUS
    logFormat: str = LOG_FORMAT
    redact: bool = REDACT


@dataclass(frozen=True)
class L3Config:
    """l3-tunnel: carries the IP packets between two networks, without an interface of its own."""

    interface: str | None = option(
        None, deviceName, "NAME", "Where packets are captured: the interface towards our network; must be given."
    )
    capture: tuple[str, ...] = option(
        (),
        network,
        "CIDR",
        "A network behind the other end: packets to it are captured, and only packets from it are injected; must be "
        "given.",
    )
    local: Address | None = option(
        None, socketAddress, "ADDRESS:PORT", "The UDP port of this end; needed unless --peer or --link is given."
    )
    peer: Address | None = option(
        None,
        socksServer,
        "HOST:PORT",
        "The other end, with --link as udp-server reaches it; if not given, whoever knows the key may begin.",
    )
    keyFile: str | None = option(
        None, anyText, "FILE", "The key, which both ends have: udptunnel genkey makes one; must be given."
    )
    link: tuple[str, ...] = option(
        (), anyText, "ENDPOINT", "Go through this udp-server, over TCP, instead of over UDP."
    )
    tls: str | None = TLS
    tlsTrust: str | None = option(
        None, anyText, "TRUST", "Links are TLS: the CA of udp-server in a PEM file, or sha256:HEX of its certificate."
    )
    tlsName: str | None = option(
        None, anyText, "NAME", "The name that udp-server's certificate must have, if not the host in --link."
    )
    secret: str | None = option(
        None, anyText, "FILE", "A line user:secret, with which we prove to udp-server who we are."
    )
    inject: str = option(
        "raw",
        oneOf("raw", "tun"),
        "HOW",
        "How packets get into our network: raw, by raw sockets; tun, through a TUN, several times as fast, if this "
        "machine forwards packets.",
    )
    tundev: str = option("l3tun0", deviceName, "NAME", "What the TUN is called.")
    tunOffload: str = option("all", anyText, "NAMES", "What the TUN may do: all, none, or some of vnet,tso,uso.")
    setup: bool = flag(
        "Set the routes that are needed, and with --mtu the MTU of --interface, and undo that at the end."
    )
    mtu: int = option(
        0,
        integer(0, 65_535),
        "BYTES",
        "The longest packet for the other end; 0: what fits the path to --peer, or 1420.",
    )
    keepalive: float | None = option(
        None,
        number(0, 3600),
        "S",
        "Seconds of silence after which we ask whether the other end is there; 0: never. Not given: 25 with --peer.",
    )
    allowSelf: bool = flag("Let the other end reach this machine itself, too.")
    offload: str = OFFLOAD
    rest: float = REST
    status: str | None = STATUS
    insecureNoAuth: bool = flag("Let --status listen beyond loopback although whoever can reach it may read it.")
    logFormat: str = LOG_FORMAT
    redact: bool = REDACT


ROLES: dict[str, type[Any]] = {
    "udp-local": LocalConfig,
    "udp-server": ServerConfig,
    "tun2socks": Tun2socksConfig,
    "proxy-controller": ControllerConfig,
    "l3-tunnel": L3Config,
}
"""The roles that can be configured, by the name of their TOML table and twistd command."""


# -- filling


def fill(kind: type[Config], texts: Mapping[str, str | bool | Iterable[str]], base: Config | None = None) -> Config:
    """
    Make a configuration from texts.

    @param texts: by field name; a list of texts for a field that may be given several times.
    @param base: where the other fields come from, instead of the defaults.
    @raise ConfigError: a text is not what its field accepts.
    """
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        given = texts.get(field.name)
        if given is not None:
            values[field.name] = _readField(field, given)
    return dataclasses.replace(base, **values) if base is not None else kind(**values)  # type: ignore[type-var]


def _readField(field: dataclasses.Field[Any], given: str | bool | Iterable[str]) -> Any:
    if isinstance(given, bool):
        return given
    if isinstance(given, str):
        return _readText(field, given)
    return tuple(_readText(field, each) for each in given)


def _readText(field: dataclasses.Field[Any], text: str) -> Any:
    try:
        return field.metadata["read"](text)
    except ValueError as error:
        raise ConfigError(f"--{optionName(field.name)} {text}: expected {error}") from error


# -- files


def readToml(kind: type[Config], role: str, text: str) -> Config:
    """
    Make a configuration from the table C{[role]} of a TOML text. Its keys are the option names.

    @raise ConfigError: it is no TOML, or a key or value is wrong; the text says in which line.
    """
    try:
        table = tomllib.loads(text).get(role)
    except (ValueError, RecursionError) as error:  # Python's limits are not all TOMLDecodeErrors.
        raise ConfigError(f"no TOML: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"there is no table [{role}]")
    names = {optionName(field.name): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    texts = {}
    for key, value in table.items():
        where = f"line {_lineOf(text, role, key)}: "
        if key not in names:
            raise ConfigError(f"{where}unknown key {key}; known are {', '.join(sorted(names))}")
        texts[names[key].name] = _tomlText(names[key], value, where)
        _checkLine(kind, names[key].name, texts, where)
    return fill(kind, texts)


def _checkLine(kind: type[Any], name: str, texts: Mapping[str, Any], where: str) -> None:
    try:
        fill(kind, {name: texts[name]})
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _tomlText(field: dataclasses.Field[Any], value: object, where: str) -> str | bool | list[str]:
    """A TOML value as it would stand on a command line."""
    several, isFlag = isinstance(field.default, tuple), isinstance(field.default, bool)
    if isinstance(value, list) and several:
        return [str(each) for each in value]
    if isinstance(value, bool) and isFlag:
        return value
    if isFlag or isinstance(value, bool | list | dict):
        expected = "true or false" if isFlag else "a list" if several else "a text or a number"
        raise ConfigError(f"{where}--{optionName(field.name)} {value}: expected {expected}")
    return [str(value)] if several else str(value)


def _lineOf(text: str, role: str, key: str) -> int:
    """The line of a key in its table."""
    header = re.compile(rf"""\[\s*(["']?){re.escape(role)}\1\s*\]""")
    inside = False
    for place, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("["):
            inside = header.match(line.strip()) is not None
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return place
    return 1
