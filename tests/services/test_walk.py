"""Tests for L{udptunnel.services.walk}."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from tests.services.tunnel import TunnelTestCase
from tests.waiting import until
from udptunnel.config import LocalConfig
from udptunnel.net.datagrams import DatagramPort
from udptunnel.net.socks5client import addressOf
from udptunnel.services import walk as walk_module
from udptunnel.services.walk import ALPN, SIZES, Hop, Walk, firstHop
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.stun import CHANGE_BOTH, CHANGE_PORT, COOKIE

SECONDS = 0.2
"""Long enough for loopback."""


class Target:
    """A target that answers as a test wants."""

    def __init__(self, test: TunnelTestCase, answer: Callable[[Target, Address, bytes], None], host: str) -> None:
        self.seen: list[bytes] = []
        self._answer = answer
        self.port = DatagramPort(test.traffic(), Address(host, 0), self)
        self.port.startListening()
        test.addCleanup(self.port.stopListening)

    def burstsReceived(self, bursts: list[Burst]) -> None:
        for source, size, payload in bursts:
            for datagram in split(size, payload):
                self.seen.append(bytes(datagram))
                self._answer(self, source, bytes(datagram))

    def say(self, to: Address, datagram: bytes) -> None:
        self.port.send(to, len(datagram), datagram)


def packAnswer(question: bytes, mapped: Address, other: Address | None) -> bytes:
    """What a STUN server says."""

    def attribute(kind: int, at: Address) -> bytes:
        value = b"\0\1" + at.port.to_bytes(2, "big") + socket.inet_aton(at.host)
        return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value

    body = attribute(1, mapped) + (attribute(0x802C, other) if other is not None else b"")
    return b"\1\1" + len(body).to_bytes(2, "big") + COOKIE.to_bytes(4, "big") + question[8:20] + body


class WalkTestCase(TunnelTestCase):
    """A walk with real sockets."""

    def setUp(self) -> None:
        self.patch(walk_module, "TRY_SECONDS", 0.05)

    async def walk(self, server: str, echo: Address | None = None, seconds: float = SECONDS, **fields: Any) -> bool:
        """Walk to a server, and keep what was said."""
        self.said: list[str] = []
        config = LocalConfig(server=(server,), offload=self.offload, **fields)
        clock: Any = reactor
        return await Walk(clock, config, echo, self.said.append, seconds).walk()

    def at(self, **fields: Any) -> str:
        """Where a udp-server is."""
        return f"tcp:127.0.0.1:{addressOf(self.startServer(**fields).listeners[0].address).port}"

    def states(self) -> str:
        """How each step ended, as C{ok -}, for example."""
        return " ".join(line[19:].split()[0] for line in self.said if line[0].isdigit())

    def assertEnds(self, states: str, why: str, advice: str) -> None:
        """The walk ended so, and for this reason."""
        self.assertEqual(self.states(), states, self.said)
        self.assertIn(why, self.said[-2])
        self.assertIn(advice, self.said[-1])


class WalkTests(WalkTestCase):
    """How far the path goes."""

    async def test_whole(self) -> None:
        """With nothing in the way each step is well, and the largest datagram comes back."""
        self.assertTrue(await self.walk(self.at(), self.echo()))
        self.assertEqual(self.states(), "ok ok - ok ok ok")
        self.assertEqual([line[0] for line in self.said], list("123456"))
        self.assertIn("65000 bytes come back", self.said[-1])

    async def test_withoutEcho(self) -> None:
        """Without an echo target the last step is left out."""
        self.assertTrue(await self.walk(self.at()))
        self.assertEqual(self.states(), "ok ok - ok ok -")

    async def test_otherOptions(self) -> None:
        """Ports that the real udp-local has taken are not asked for again."""
        held = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(held.close)
        port = held.getsockname()[1]
        taken = {"socks": f"tcp:{port}:interface=127.0.0.1", "status": f"tcp:{port}:interface=127.0.0.1"}
        self.assertTrue(await self.walk(self.at(), passwordFile="/no/such/file", **taken))

    async def test_noName(self) -> None:
        """A name that nobody knows ends it at the first step."""

        def unknown(*_: Any, **__: Any) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(socket, "getaddrinfo", unknown)
        self.assertFalse(await self.walk("tcp:relay.invalid:3456"))
        self.assertEnds("FAILED", "relay.invalid: Name or service not known", "spelled")

    async def test_closed(self) -> None:
        """A closed port ends it at the second."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        self.assertFalse(await self.walk(f"tcp:127.0.0.1:{port}"))
        self.assertEnds("ok FAILED", "Connection refused", "nothing listens there")

    async def test_noTls(self) -> None:
        """A udp-server without TLS ends it at the handshake."""
        self.assertFalse(await self.walk(self.at().replace("tcp:", "tls:")))
        self.assertEnds("ok ok FAILED", "no handshake", "does udp-server use TLS")

    async def test_silent(self) -> None:
        """A listener that never answers ends it at the login, in time."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            self.assertFalse(await self.walk(f"tcp:127.0.0.1:{silent.getsockname()[1]}"))
        self.assertEnds("ok ok - FAILED", f"no WELCOME within {SECONDS:g} s", "is it udp-server")

    async def test_stranger(self) -> None:
        """So does one that hangs up, at once."""
        server = self.startServer()
        local = self.startLocal(server)
        assert local.door is not None
        self.assertFalse(await self.walk(f"tcp:127.0.0.1:{addressOf(local.door.address).port}", seconds=9.0))
        self.assertEqual(self.states(), "ok ok - FAILED")
        self.assertNotIn("within", self.said[-2])

    async def test_refused(self) -> None:
        """If udp-server says why it does not let us in, that is shown."""
        at = self.startServer(maxSessions=1)
        held = self.startLocal(at)
        await until(lambda: held.session.links)
        port = addressOf(at.listeners[0].address).port
        self.assertFalse(await self.walk(f"tcp:127.0.0.1:{port}", seconds=9.0))
        self.assertEnds("ok ok - FAILED", "too many sessions", "The log of udp-server says more")

    async def test_noProxy(self) -> None:
        """With a proxy, the first steps look at that."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            via = Address("127.0.0.1", closed.getsockname()[1])
        self.assertFalse(await self.walk("tcp:relay.invalid:3456", via=via))
        self.assertEnds("ok FAILED", "Connection refused", "or the proxy before it")


class BeyondTests(WalkTestCase):
    """What datagrams meet beyond udp-server."""

    def target(self, answer: Callable[[Target, Address, bytes], None], host: str = "127.0.0.1") -> Target:
        """A target."""
        return Target(self, answer, host)

    async def test_noEcho(self) -> None:
        """A target that says nothing ends the walk, and is asked more than once."""
        target = self.target(lambda *_: None)
        self.assertFalse(await self.walk(self.at(), target.port.address))
        self.assertEnds("ok ok - ok ok FAILED", f"nothing came back from {target.port.address}", "--allow")
        self.assertEqual(len(target.seen), 3)

    async def test_forbidden(self) -> None:
        """So does one that udp-server may not send to."""
        self.assertFalse(await self.walk(self.at(allow=()), self.echo()))
        self.assertEqual(self.states(), "ok ok - ok ok FAILED")

    async def test_small(self) -> None:
        """If larger datagrams do not come back, it is said which ones do."""

        def echoSmall(target: Target, source: Address, datagram: bytes) -> None:
            if len(datagram) <= 1400:
                target.say(source, datagram)

        self.assertTrue(await self.walk(self.at(), self.target(echoSmall).port.address))
        self.assertIn("1400 bytes come back, 1472 do not", self.said[-1])

    async def test_lossy(self) -> None:
        """One datagram may be lost."""
        lost: list[bytes] = []

        def echoSecond(target: Target, source: Address, datagram: bytes) -> None:
            if datagram in lost:
                target.say(source, datagram)
            lost.append(datagram)

        self.assertTrue(await self.walk(self.at(), self.target(echoSecond).port.address))
        self.assertIn(f"{SIZES[-1]} bytes come back", self.said[-1])

    async def test_plainStun(self) -> None:
        """A STUN server tells under which address the world sees the external port."""
        seen = Address("198.51.100.7", 40001)
        stun = self.target(lambda target, source, question: target.say(source, packAnswer(question, seen, None)))
        self.assertTrue(await self.walk(self.at(), stun.port.address))
        self.assertIn("the world sees 198.51.100.7:40001; this STUN server has no other address", self.said[-1])

    async def nat(self, allowed: int, symmetric: bool = False) -> str:
        """What is said of a NAT that lets answers to such changes in."""
        others: list[Target] = []

        def answer(target: Target, source: Address, question: bytes) -> None:
            change = question[-1] if len(question) > 20 else 0
            mapped = target.port.address if symmetric else source
            # Whom it has heard of, a NAT of any kind lets in.
            if change in (0, allowed) or allowed == CHANGE_BOTH or others[0].seen:
                teller = others[0] if change else target
                teller.say(source, packAnswer(question, mapped, others[0].port.address))

        first = self.target(answer)
        others.append(self.target(answer, "127.0.0.2"))
        self.assertTrue(await self.walk(self.at(), first.port.address))
        return self.said[-1]

    async def test_nat(self) -> None:
        """One with two addresses tells what kind of NAT there is (RFC 5780)."""
        for allowed, text in (
            (CHANGE_BOTH, "mapping endpoint-independent, filtering endpoint-independent (full cone)"),
            (CHANGE_PORT, "mapping endpoint-independent, filtering address-dependent (restricted cone)"),
            (0, "mapping endpoint-independent, filtering address and port-dependent (port-restricted cone)"),
        ):
            self.assertIn(text, await self.nat(allowed))
        self.assertIn("mapping one for each target (symmetric)", await self.nat(CHANGE_BOTH, symmetric=True))


class HopTests(SynchronousTestCase):
    """L{firstHop}."""

    def test_endpoints(self) -> None:
        """The first TCP connection of a link goes where its endpoint says, if it says it plainly."""
        for server, hop in (
            ("tcp:relay.example:3456", Hop("relay.example", 3456, False)),
            ("tcp:host=relay.example:port=3456", Hop("relay.example", 3456, False)),
            ("tcp:relay.example:3456:timeout=5", Hop("relay.example", 3456, False)),
            (r"tcp:\:\:1:3456", Hop("::1", 3456, False)),
            ("tls:relay.example:443", Hop("relay.example", 443, True)),
            ("ssl:relay.example:443", Hop("relay.example", 443, True)),
            (r"tls:relay.example:443:endpoint=tcp\:192.0.2.7\:443", None),
            (r"socks5:relay.example:443:endpoint=tcp\:127.0.0.1\:1080", None),
            ("unix:/run/udptunnel", None),
            ("tcp:relay.example", None),
            ("nonsense", None),
        ):
            self.assertEqual(firstHop(LocalConfig(server=(server,))), hop, server)

    def test_tls(self) -> None:
        """With the options for TLS it begins there, unless a proxy is in between."""
        config = LocalConfig(server=("tcp:relay.example:3456",), tlsTrust="sha256:00")
        self.assertEqual(firstHop(config), Hop("relay.example", 3456, True))
        config = LocalConfig(server=("tcp:relay.example:3456",), tlsTrust="x", via=Address("192.0.2.7", 1080))
        self.assertEqual(firstHop(config), Hop("192.0.2.7", 1080, False))

    def test_alpn(self) -> None:
        """The handshake offers what links speak."""
        self.assertEqual(ALPN, "udptunnel/1")
