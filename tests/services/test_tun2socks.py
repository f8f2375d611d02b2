"""Tests for L{udptunnel.services.tun2socks}, in memory; tests.system has it with real devices."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.core.fakes import countingRandom
from tests.needs import needs
from tests.net.test_gateway import CLIENTS, TARGETS, fresh
from tests.net.test_stack import NatStack
from tests.net.test_tun import PACKET, MemorySystem, failure
from udptunnel.config import Tun2socksConfig, fill
from udptunnel.core.counters import Counters
from udptunnel.core.session import LocalSession
from udptunnel.errors import ConfigError, ListenError, RouteError
from udptunnel.net.crossing import SocksTcp
from udptunnel.net.dns import FakeDns, RedirectedDns
from udptunnel.net.routes import MARK
from udptunnel.net.stack import KernelStack, Place
from udptunnel.net.testing import PortReactor, RecordingLink
from udptunnel.net.tundevice import IFF_NO_PI, IFF_TUN
from udptunnel.net.tunentry import TunEntry
from udptunnel.services.tun2socks import (
    TRIES,
    Tun2socksService,
    _ownBeside,
    captureOf,
    parseTunNames,
    proxiesOf,
    withAddresses,
)
from udptunnel.wire.address import Address
from udptunnel.wire.ip import parse
from udptunnel.wire.vnet import VNET_BYTES, udpVnet, unpackVnet

SERVER = "192.0.2.1:1080"


def configOf(**texts: Any) -> Tun2socksConfig:
    """What a command line says, with a TUN and a SOCKS5 server unless it says otherwise."""
    given = {"tundev": "tun7", "socksServerAddr": SERVER, **texts}
    return fill(Tun2socksConfig, {name: text for name, text in given.items() if text is not None})


class ConfigurationTests(SynchronousTestCase):
    """What the command line comes to."""

    def test_missing(self) -> None:
        """Without a TUN, with two, or without a SOCKS5 server nothing begins, and the options are named."""
        for texts, word in (
            ({"tundev": None}, "--tundev"),
            ({"tunFd": "3"}, "--tun-fd"),
            ({"pipe": "exit"}, "--tundev and --pipe"),
            ({"socksServerAddr": None}, "--socks-server-addr"),
            ({"tundev": None, "pipe": "exit", "stack": "tun"}, "--stack tun"),
            ({"tundev": None, "pipe": "exit", "route": ["10.0.0.0/8"]}, "--route"),
            ({"tundev": None, "pipe": "exit", "autoRoute": True}, "--auto-route"),
        ):
            error = self.assertRaises(ConfigError, Tun2socksService, configOf(**texts), PortReactor())
            self.assertIn(word, str(error))

    def test_offload(self) -> None:
        """All of the TUN's abilities, none or some; others are refused by name."""
        self.assertEqual(parseTunNames("all"), ("vnet", "tso", "uso"))
        self.assertEqual((parseTunNames("none"), parseTunNames("vnet,tso")), ((), ("vnet", "tso")))
        self.assertIn("--tun-offload gro", str(self.assertRaises(ConfigError, parseTunNames, "gro")))

    def test_oneServer(self) -> None:
        """UDP goes where TCP goes, with the same name and password."""
        tcp, udp = proxiesOf(configOf(username="alice", password="secret"))
        self.assertEqual(
            (tcp.address, tcp.user, tcp.password, tcp.mark), (Address("192.0.2.1", 1080), "alice", "secret", 0)
        )
        self.assertIs(tcp, udp)

    def test_twoServers(self) -> None:
        """A server for UDP alone has a name and a password of its own."""
        name = self.mktemp()
        Path(name).write_text("top secret\n", encoding="utf-8")
        given = {
            "username": "alice",
            "udpSocksServerAddr": "[2001:db8::1]:1",
            "udpUsername": "bob",
            "udpPasswordFile": name,
        }
        tcp, udp = proxiesOf(configOf(**given))
        self.assertEqual((tcp.user, udp.user, udp.password), ("alice", "bob", "top secret"))
        self.assertEqual(udp.address, Address("2001:db8::1", 1))

    def test_passwordFile(self) -> None:
        """A password file that can not be read is named."""
        error = self.assertRaises(ConfigError, proxiesOf, configOf(passwordFile="/nowhere/password"))
        self.assertEqual(str(error), "--password-file /nowhere/password: No such file or directory")

    def test_serverName(self) -> None:
        """The server's name is looked up at once: later, the question would go into the TUN."""
        tcp, _ = proxiesOf(withAddresses(configOf(socksServerAddr="localhost:1080")))
        self.assertIn(tcp.address.host, ("127.0.0.1", "::1"))
        error = self.assertRaises(ConfigError, withAddresses, configOf(socksServerAddr="nobody.invalid:1080"))
        self.assertIn("--socks-server-addr nobody.invalid:1080", str(error))

    @needs("marks on sockets")
    def test_mark(self) -> None:
        """Our sockets are marked if that was said, or if everything goes into the TUN."""
        for texts, mark in (
            ({}, 0),
            ({"fwmark": "0x10"}, 16),
            ({"autoRoute": True}, MARK),
            ({"autoRoute": True, "fwmark": "9"}, 9),
        ):
            self.assertEqual(proxiesOf(configOf(**texts))[0].mark, mark)

    def test_capture(self) -> None:
        """The servers, and what carries them on, are reached past the TUN."""
        capture = captureOf(configOf(autoRoute=True, bypass=["203.0.113.0/24"], dns="9.9.9.9", route=["10.0.0.0/8"]))
        self.assertEqual(capture.past, ("192.0.2.1", "203.0.113.0/24"))
        self.assertEqual((capture.networks, capture.everything, capture.names), (("10.0.0.0/8",), True, True))

    def test_fakeRoute(self) -> None:
        """Fake addresses lead into the TUN without a word; nobody wants them anywhere else."""
        self.assertEqual(captureOf(configOf(fakeDns=["198.18.0.0/15"])).networks, ("198.18.0.0/15",))

    def test_fakeDns(self) -> None:
        """Two prefixes of one family are refused, with the option's name."""
        config = configOf(fakeDns=["198.18.0.0/15", "10.0.0.0/8"])
        self.assertIn("--fake-dns", str(self.assertRaises(ConfigError, Tun2socksService, config, PortReactor())))

    def test_names(self) -> None:
        """Fake names stand before a redirected resolver, and both before what carries datagrams on."""
        service = Tun2socksService(configOf(fakeDns=["198.18.0.0/15"], dns="9.9.9.9"), PortReactor(), MemorySystem())
        fake = service.gateway.udp
        assert isinstance(fake, FakeDns)
        self.assertIsInstance(fake.receiver, RedirectedDns)
        self.assertEqual(service._targetOf(Address("192.0.2.53", 53)), Address("9.9.9.9", 53))
        self.assertEqual(service._targetOf(Address("192.0.2.53", 80)), Address("192.0.2.53", 80))


class PlaceTests(SynchronousTestCase):
    """The TUN's own address."""

    def beside(self, router: str, *existing: str) -> str:
        """The address that goes with a router's."""
        return str(_ownBeside(ip_interface(router), [ip_interface(each) for each in existing]))

    def test_neighbour(self) -> None:
        """It is the one behind the router's, or the one before it at the end of the network."""
        self.assertEqual(self.beside("10.0.85.1/24"), "10.0.85.2/24")
        self.assertEqual(self.beside("10.0.85.254/24"), "10.0.85.253/24")
        self.assertEqual(self.beside("10.0.85.2/30"), "10.0.85.1/30")
        self.assertEqual(self.beside("fd00::1/64"), "fd00::2/64")

    def test_existing(self) -> None:
        """A device that has one in this network keeps it."""
        self.assertEqual(self.beside("10.0.85.1/24", "192.0.2.1/24", "10.0.85.77/16", "fd00::9/64"), "10.0.85.77/16")

    def test_same(self) -> None:
        """The device's own address can not be the router's."""
        error = self.assertRaises(ListenError, self.beside, "10.0.85.1/24", "10.0.85.1/24")
        self.assertIn("10.0.85.1", str(error))


class Stacks:
    """Makes stacks that work or do not, and remembers them."""

    def __init__(self, *flaws: str) -> None:
        self.flaws = list(flaws)
        self.made: list[KernelStack] = []
        self.places: list[Place] = []


class FlawedStack(NatStack):
    """A stack that finds something wrong with itself, or nothing."""

    flaw = ""
    started = stopped = False

    def start(self) -> None:
        """Begin, or not."""
        if self.flaw == "start":
            raise ListenError("it does not start")
        self.started = True

    def prove(self) -> str:
        """Find something."""
        return self.flaw

    def stop(self) -> None:
        """End."""
        self.stopped = True


class MemoryRoutes:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.loop = False

    def start(self, name: str) -> None:
        """Remember it."""
        self.calls.append(name)

    def refuseLoops(self, option: str, hosts: Sequence[str]) -> None:
        """Find one, or none."""
        if self.loop:
            raise RouteError(f"{option} {hosts[0]}: a loop")

    def stop(self) -> None:
        """Remember it."""
        self.calls.append("stop")

    def report(self) -> dict[str, object]:
        """Nothing."""
        return {}


class MemoryService(Tun2socksService):
    """A role whose stacks a test chooses."""

    stacks: Stacks

    def _stacks(self, places: Sequence[Place]) -> Iterator[KernelStack]:
        self.stacks.places = list(places)
        for flaw in self.stacks.flaws:
            stack = FlawedStack(self._reactor, self.port, self.tcp, self.counters)  # type: ignore[arg-type]
            stack.flaw = flaw
            self.stacks.made.append(stack)
            yield stack


def raising(error: Exception) -> Callable[..., None]:
    """A call that fails."""

    def call(*_: object) -> None:
        raise error

    return call


class ServiceTestCase(SynchronousTestCase):
    """A role in memory."""

    def setUp(self) -> None:
        self.reactor, self.system, self.routes = PortReactor(), MemorySystem(), MemoryRoutes()
        self.failures: list[str] = []

    def make(self, *flaws: str, **texts: Any) -> MemoryService:
        """A role with stacks that have these flaws."""
        service = MemoryService(configOf(**texts), self.reactor, self.system, routes=self.routes)  # type: ignore[arg-type]
        service.stacks = Stacks(*flaws)
        service.whenFailed = self.failures.append
        return service

    def start(self, *flaws: str, **texts: Any) -> MemoryService:
        """One that runs."""
        service = self.make(*flaws or ("",), **texts)
        service.startService()
        return service


class ServiceTests(ServiceTestCase):
    """From the beginning to the end."""

    def test_start(self) -> None:
        """The TUN gets its addresses, the stack its places, and routes are set last."""
        service = self.start()
        ((name, interface),) = self.system.configured
        self.assertEqual((name, interface.addresses[0], interface.mtu), ("tun7", "10.0.85.2/24", 1500))
        self.assertEqual(service.stacks.places[0], Place("10.0.85.2", "10.0.85.1"))
        self.assertEqual(self.routes.calls, ["tun7"])
        self.assertEqual((service.illness(), service.report()["stack"]), ("", "test"))

    def test_firstThatWorks(self) -> None:
        """Stacks are tried in their order, and those that do not work are closed."""
        service = self.start("start", "a firewall", "", "never tried")
        self.assertEqual([stack.stopped for stack in service.stacks.made], [True, True, False])  # type: ignore[attr-defined]
        self.assertIs(service.gateway.stack, service.stacks.made[2])

    def test_noneWorks(self) -> None:
        """If none works, all reasons are told, and the TUN is closed."""
        service = self.make("start", "a firewall")
        error = self.assertRaises(ListenError, service.startService)
        self.assertEqual(str(error), "it does not start; a firewall")
        self.assertFalse(self.system.isOpen)

    def test_loop(self) -> None:
        """If our own packets would come back to us, nothing begins, and the routes are taken back."""
        service = self.make("")
        self.routes.loop = True
        self.assertIn("--socks-server-addr 192.0.2.1", str(self.assertRaises(ListenError, service.startService)))
        self.assertEqual((self.routes.calls[-1], self.system.isOpen), ("stop", False))

    def test_namesOnce(self) -> None:
        """The names of servers are looked up once: with the routes set, nobody would serve the question."""
        asked: list[str] = []

        def look(host: str, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            return [(0, 0, 0, "", (f"192.0.2.{len(asked)}", 0))]

        self.patch(socket, "getaddrinfo", look)
        texts = {"socksServerAddr": "relay.example:1080", "autoRoute": True}
        service = self.start("", **texts)
        service.reload(configOf(**texts, username="alice"))
        self.assertEqual(asked, ["relay.example"])
        assert isinstance(service.tcp, SocksTcp)
        self.assertEqual((service.tcp.proxy.address.host, service.tcp.proxy.user), ("192.0.2.1", "alice"))
        self.assertEqual(captureOf(service.config).past, ("192.0.2.1",))

    def test_kernelFails(self) -> None:
        """Whatever the kernel refuses on the way, nothing stays open, and no route is left."""
        service = self.make("")
        self.patch(service.routes, "start", raising(failure(errno.EMFILE)))
        self.assertRaises(ListenError, service.startService)
        self.assertEqual((self.routes.calls[-1], self.system.isOpen), ("stop", False))

    def test_statusFails(self) -> None:
        """If the status can not be shown, nothing stays open, and no route is left: nobody will stop the role."""
        service = self.make("", status="tcp:9:interface=127.0.0.1")
        (status,) = service
        self.patch(status, "startService", raising(ListenError("it is taken")))
        self.assertRaises(ListenError, service.startService)
        self.assertEqual((self.routes.calls[-1], self.system.isOpen), ("stop", False))
        self.assertEqual((self.reactor.getDelayedCalls(), self.reactor.getReaders()), ([], []))

    def test_stopUnstarted(self) -> None:
        """A role that has not started, or was stopped already, can be stopped."""
        service = self.make("")
        self.system.refused["open"] = failure(errno.EPERM)
        self.assertRaises(ListenError, service.startService)
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(service.stopService()))

    def test_adoptedPlace(self) -> None:
        """A TUN that was handed over may have any address in the router's network."""
        self.system.flags = IFF_TUN | IFF_NO_PI
        self.patch(self.system, "addresses", lambda name: ["10.0.85.77/24"] if name == "tun7" else [])
        service = self.start(tundev=None, tunFd="77", stack="tun")
        self.assertEqual(service.stacks.places[0], Place("10.0.85.77", "10.0.85.1"))

    def test_adopted(self) -> None:
        """A descriptor that was handed over is used as it is, and its loss is the end."""
        self.system.flags = IFF_TUN | IFF_NO_PI
        service = self.start(tundev=None, tunFd="77")
        self.assertEqual(self.system.configured, [])
        self.lose()
        self.assertEqual(len(self.failures), 1)
        self.assertNotEqual(service.illness(), "")

    def lose(self) -> None:
        """Delete the TUN."""
        self.system.up = False
        self.reactor.advance(1)
        self.reactor.advance(0)

    def test_madeAnew(self) -> None:
        """A TUN that was deleted is made again, with a stack and routes of its own."""
        service = self.start("")
        first = service.stack
        self.system.up = False
        self.reactor.advance(1)
        self.system.up = True
        self.reactor.advance(0)
        self.assertIsNot(service.stack, first)
        self.assertEqual((service.illness(), self.routes.calls, self.failures), ("", ["tun7", "stop", "tun7"], []))

    def test_brokenStack(self) -> None:
        """A stack that breaks takes the TUN with it, and both are made again."""
        service = self.start("")
        first = service.stack
        first.broken = "its inner TUN is deleted"
        self.reactor.advance(1)
        self.reactor.advance(0)
        self.assertIsNot(service.stack, first)
        self.assertEqual((service.illness(), self.failures), ("", []))

    def test_brokenForGood(self) -> None:
        """If the TUN can not be made again then, that is said once."""
        service = self.start("")
        service.stack.broken = "its inner TUN is deleted"
        self.system.refused["open"] = failure(errno.EPERM)
        for _ in range(2 * TRIES):
            self.reactor.advance(1)
        self.assertEqual(len(self.failures), 1)

    def test_givenUp(self) -> None:
        """If it can not be made again within some seconds, that is the end."""
        service = self.start("")
        self.system.refused["open"] = failure(errno.EPERM)
        self.lose()
        for _ in range(TRIES - 1):
            self.assertEqual(self.failures, [])
            self.reactor.advance(1)
        self.assertEqual(len(self.failures), 1)
        self.assertIn("tun7", service.illness())

    def test_stop(self) -> None:
        """In the end nothing is open, and nothing is left to do."""
        service = self.start("")
        self.successResultOf(Deferred.fromCoroutine(service.stopService()))
        self.assertEqual((self.system.isOpen, self.routes.calls[-1]), (False, "stop"))
        self.assertEqual((self.reactor.getDelayedCalls(), self.reactor.getReaders()), ([], []))


class WayTests(ServiceTestCase):
    """The way of a burst through all parts."""

    def test_aDatagramsWay(self) -> None:
        """Packets out of the TUN become a burst of a session, and a burst becomes a packet into the TUN."""
        session, link = LocalSession(10, Counters(), countingRandom()), RecordingLink()
        session.links.append(link)  # type: ignore[arg-type]
        service = MemoryService(
            configOf(),
            self.reactor,
            self.system,
            udp=lambda writer: TunEntry(session, writer, self.reactor.seconds),
            routes=self.routes,  # type: ignore[arg-type]
        )
        service.stacks = Stacks("")
        service.startService()
        # 0. Somebody behind the TUN has sent three datagrams; two of them are still one packet.
        self.system.arrived += [fresh(4, PACKET * 2, size=len(PACKET)), fresh(4, PACKET)]
        # 1. The reactor finds the TUN ready. The gateway finds no TCP; what is left becomes one burst.
        service.port.doRead()
        # 2. It goes as a whole into the session, as that of association 0.
        self.assertEqual(link.parcels, [(0, TARGETS[4], len(PACKET), PACKET * 3)])
        # Back 1. An answer comes from somebody else than was asked: the cone is full.
        (association,) = session.associations
        stranger = Address("203.0.113.9", 7)
        association.outlet.send(stranger, len(PACKET), PACKET + b"!")
        # Back 2. It is one packet, which the kernel cuts, and completes the checksums of.
        (packet,) = self.system.written
        self.assertEqual(unpackVnet(packet), udpVnet(20, len(PACKET)))
        parsed = parse(packet[VNET_BYTES:])
        self.assertEqual((parsed.sourceHost, parsed.destinationHost), (stranger.host, CLIENTS[4].host))
        self.assertEqual(packet[-len(PACKET) - 1 :], PACKET + b"!")
        # Nothing was dropped on the way, and everything was counted.
        report = service.report()
        self.assertEqual((report["received"], report["dropped"]), (2, {}))
        self.assertEqual(report["udp"], {"associations": 1})
