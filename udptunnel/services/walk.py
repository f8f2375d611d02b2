"""
The walk from udp-local's side to udp-server: step by step, until it ends.

The first steps look at what is on the way with nothing of ours; from the login
on, a udp-local of our own does what any other does.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThread

from udptunnel.config import LocalConfig
from udptunnel.errors import ConfigError, LoginError, SocksError, TunnelError
from udptunnel.net.socks5client import addressOf
from udptunnel.services.local import LocalService
from udptunnel.services.trips import (
    FILLING,
    LOGIN_SECONDS,
    Association,
    associate,
    linkTrip,
    spread,
    temporaryLink,
)
from udptunnel.wire.address import Address
from udptunnel.wire.stun import CHANGE_BOTH, CHANGE_PORT, TRANSACTION_BYTES, StunAnswer, packRequest, unpackAnswer

SIZES = (64, 512, 1200, 1400, 1472, 4096, 8192, 16_384, 32_768, 65_000)
"""
Bytes of the datagrams that are tried, the smallest first: 1,200 is what QUIC
needs, 1,472 what an Ethernet frame holds. Larger ones go in fragments beyond
udp-server.
"""

TRIES, TRY_SECONDS = 3, 1.0
"""How often a datagram may be lost before we believe that it does not come through."""

ALPN = "udptunnel/1"
"""What is spoken inside TLS."""


# -- the first hop


class Hop(NamedTuple):
    """Where the first TCP connection goes."""

    host: str
    port: int
    tls: bool
    """Whether TLS begins there."""


def firstHop(config: LocalConfig) -> Hop | None:
    """Where the TCP connection of a link goes; C{None} if its endpoint is of a kind that does not say it."""
    if config.via is not None:
        return Hop(config.via.host, config.via.port, False)
    kind, *parts = (re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", config.server[0]))
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    host = named.get("host") or (plain.pop(0) if plain else "")
    port = named.get("port") or (plain.pop(0) if plain else "")
    if kind not in ("tcp", "tls", "ssl") or "endpoint" in named or not port.isdecimal():
        return None
    return Hop(host.strip("[]"), int(port), kind != "tcp" or bool(config.tls or config.tlsTrust))


# -- the walk


class StepError(TunnelError):
    """
    The path ends at a step. The text says why.

    @ivar advice: what to do.
    """

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.advice = advice


@dataclass
class Walk:
    """One way to one udp-server."""

    reactor: Any
    config: LocalConfig
    echo: Address | None
    show: Callable[[str], None]
    """Told each line."""

    patience: float = LOGIN_SECONDS
    """Seconds that a step may take."""

    async def walk(self) -> bool:
        """
        Go as far as the path goes.

        @return: whether that is to its end.
        """
        try:
            await self._walkHop(firstHop(self.config))
            async with AsyncExitStack() as held:
                await self._walkLink(held)
        except StepError:
            return False
        return True

    async def _walkHop(self, hop: Hop | None) -> None:
        if hop is None:
            self._skip(1, "names to TLS", "the endpoint does not say where it goes")
            return
        found = await self._step(1, "name resolution", lambda: deferToThread(_resolve, hop))
        await self._step(2, "TCP", lambda: deferToThread(_reach, found, self.patience))
        if hop.tls:
            await self._step(3, "TLS", lambda: deferToThread(_shakeHands, hop, found, self.config, self.patience))
        else:
            self._skip(3, "TLS", "there is none at the first hop")

    async def _walkLink(self, held: AsyncExitStack) -> None:
        local = await self._step(4, "login", lambda: self._login(held))
        await self._step(5, "round trip", lambda: self._roundTrip(local))
        echo = self.echo
        if echo is None:
            self._skip(6, "datagrams", "there is no --echo")
        else:
            await self._step(6, "datagrams", lambda: self._datagrams(local, echo))

    async def _step(self, place: int, name: str, work: Callable[[], Awaitable[tuple[Any, str]]]) -> Any:
        """
        One step.

        @param work: returns something, and what to show of it.
        @return: the former.
        @raise StepError: the path ends here; it was said already.
        """
        begin = self.reactor.seconds()
        try:
            value, text = await work()
        except StepError as error:
            self.show(_line(place, name, "FAILED", begin, self.reactor.seconds(), str(error)))
            self.show(f"   {error.advice}")
            raise
        self.show(_line(place, name, "ok", begin, self.reactor.seconds(), text))
        return value

    def _skip(self, place: int, name: str, why: str) -> None:
        self.show(f"{place}  {name:<16}-       {'':>10}     {why}")

    # -- the link

    async def _login(self, held: AsyncExitStack) -> tuple[LocalService, str]:
        link = temporaryLink(self.reactor, self.config, self.patience)
        try:
            return await held.enter_async_context(link), "udp-server welcomes us"
        except (LoginError, ConfigError) as error:
            raise StepError(str(error), _LOGIN_ADVICE) from error

    async def _roundTrip(self, local: LocalService) -> tuple[None, str]:
        trips = [await linkTrip(self.reactor, link) for _ in range(TRIES) for link in local.session.links[:1]]
        back = [each for each in trips if each is not None]
        if not back:
            raise StepError("no PONG", "the path takes TCP connections but loses what is on them: look at middleboxes")
        return None, spread(back)

    # -- datagrams

    async def _datagrams(self, local: LocalService, echo: Address) -> tuple[None, str]:
        assert local.door is not None
        try:
            async with associate(self.reactor, addressOf(local.door.address)) as way:
                return None, await self._lookBeyond(way, echo)
        except SocksError as error:
            raise StepError(str(error), "this is about this machine: look at its limits and firewall") from error

    async def _lookBeyond(self, way: Association, echo: Address) -> str:
        """A question that an echo target sends back, and a STUN server answers."""
        transaction = os.urandom(TRANSACTION_BYTES)
        question = packRequest(transaction)
        answer = await _insist(
            way, echo, question, lambda back: bool(unpackAnswer(back, transaction) or back == question)
        )
        if answer is None:
            raise StepError(f"nothing came back from {echo}", _ECHO_ADVICE)
        stun = unpackAnswer(answer, transaction)
        return await _largest(way, echo) if stun is None else await _describeNat(way, echo, stun)


_LOGIN_ADVICE = (
    "is it udp-server that listens there, and if there is a proxy, does udp-server run behind it? "
    "Do both ends use TLS and secrets, or neither? The log of udp-server says more"
)

_ECHO_ADVICE = "is it a UDP echo target or STUN server, and may udp-server send to it (--allow, --deny-port)?"


def _line(place: int, name: str, state: str, begin: float, end: float, text: str) -> str:
    return f"{place}  {name:<16}{state:<7} {1e3 * (end - begin):>10.1f} ms  {text}"


# -- what is done at each step


def _resolve(hop: Hop) -> tuple[Sequence[Any], str]:
    try:
        found = socket.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        advice = "is the name spelled as it should be, and does this machine's resolver answer?"
        raise StepError(f"{hop.host}: {why}", advice) from error
    return found, ", ".join(dict.fromkeys(str(at[0]) for *_, at in found))


def _reach(found: Sequence[Any], patience: float) -> tuple[None, str]:
    with _connect(found, patience) as stream:
        return None, f"{Address(*stream.getpeername()[:2])} accepts connections"


def _connect(found: Sequence[Any], patience: float) -> socket.socket:
    """A connection to the first of some addresses that takes it."""
    errors = []
    for family, kind, protocol, _, at in found:
        stream = socket.socket(family, kind, protocol)
        stream.settimeout(patience / len(found))
        try:
            stream.connect(at)
        except OSError as error:
            stream.close()
            errors.append(error)
        else:
            return stream
    last = errors[-1]
    raise StepError(last.strerror or "no answer", _tcpAdvice(last)) from last


def _tcpAdvice(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: does udp-server, or the proxy before it, run at this address and port?"
    if isinstance(error, TimeoutError):
        return "a firewall on the way drops it, or the machine is down"
    return "this machine has no way there: look at its routes and firewall"


def _shakeHands(hop: Hop, found: Sequence[Any], config: LocalConfig, patience: float) -> tuple[None, str]:
    """
    Whether TLS is spoken there. Whom the certificates stand for is looked at by the login, as in any udp-local.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    try:
        if config.tls is not None:
            context.load_cert_chain(config.tls)
        stream = _connect(found, patience)
        stream.settimeout(patience)
        with stream, context.wrap_socket(stream, server_hostname=config.tlsName or hop.host) as secured:
            return None, _describeTls(secured)
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise StepError(
            f"no handshake: {why}", "does udp-server use TLS at this port, and can --tls be read?"
        ) from error


def _describeTls(secured: ssl.SSLSocket) -> str:
    certificate = secured.getpeercert(binary_form=True) or b""
    return f"{secured.version()}, certificate sha256:{hashlib.sha256(certificate).hexdigest()}"


async def _insist(
    way: Association, to: Address, datagram: bytes, expected: Callable[[bytes], bool], tries: int = TRIES
) -> bytes | None:
    """What comes back for a datagram, which may be lost now and then."""
    for _ in range(tries):
        back = await way.trip(to, datagram, expected, TRY_SECONDS)
        if back is not None:
            return back[1]
    return None


async def _largest(way: Association, echo: Address) -> str:
    """The largest datagram that an echo target sends back."""
    largest = 0
    for size in SIZES:
        datagram = (os.urandom(8) + FILLING)[:size]
        if await _insist(way, echo, datagram, datagram.__eq__, 2) is None:
            break
        largest = size
    more = (
        "" if largest == SIZES[-1] else f", {size} do not: fragments are lost beyond udp-server, or the target limits"
    )
    return f"{largest} bytes come back{more}; a STUN server at --echo would tell the kind of NAT"


async def _describeNat(way: Association, server: Address, first: StunAnswer) -> str:
    """What stands between udp-server and the world (RFC 5780)."""
    seen = f"the world sees {first.mapped}"
    if first.other is None:
        return f"{seen}; this STUN server has no other address to tell the kind of NAT by"
    # This first: whom we talk to is let in.
    filtering = await _filtering(way, server)
    second = await _askStun(way, first.other)
    if second is None:
        return f"{seen}; filtering {filtering}; {first.other} does not answer"
    mapping = "endpoint-independent" if second.mapped == first.mapped else "one for each target (symmetric)"
    return f"{seen}; mapping {mapping}, filtering {filtering}"


async def _askStun(way: Association, server: Address, change: int = 0) -> StunAnswer | None:
    transaction = os.urandom(TRANSACTION_BYTES)
    answer = await _insist(
        way, server, packRequest(transaction, change), lambda back: unpackAnswer(back, transaction) is not None, 2
    )
    return None if answer is None else unpackAnswer(answer, transaction)


async def _filtering(way: Association, server: Address) -> str:
    """From where datagrams are let in, if nobody but this server was talked to."""
    if await _askStun(way, server, CHANGE_BOTH) is not None:
        return "endpoint-independent (full cone)"
    if await _askStun(way, server, CHANGE_PORT) is not None:
        return "address-dependent (restricted cone)"
    return "address and port-dependent (port-restricted cone)"
