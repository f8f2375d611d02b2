"""Tests for L{udptunnel.services.l3}, with real UDP ports and all else in memory; tests.system has real interfaces."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.core.l3 import ALICE4, BEHIND_A, BEHIND_B, BOB4, FOUR, KEY, headerSum, life, plain, udpPacket
from udptunnel.config import L3Config, fill
from udptunnel.core.l3policy import Own
from udptunnel.core.l3way import Message
from udptunnel.errors import ConfigError, ListenError
from udptunnel.net.datagrams import DatagramPort
from udptunnel.net.testing import PortReactor, RecordingLink
from udptunnel.services.l3 import LOOKS, RETRY_SECONDS, TICK_SECONDS, USUAL_MTU, L3Service
from udptunnel.services.l3options import readKey
from udptunnel.services.l3outer import LinkOuter, UdpOuter
from udptunnel.wire.address import Address
from udptunnel.wire.burst import Burst, split
from udptunnel.wire.frame import Buffer
from udptunnel.wire.ip import TCP, UDP, parse
from udptunnel.wire.vnet import VNET_BYTES


class MemoryCapture:
    """Captures what a test hands to it."""

    def __init__(self, service: L3Service) -> None:
        self.service = service
        self.isCapturing = False
        self.checks = 0

    def open(self) -> None:
        self.isCapturing = True

    def close(self) -> None:
        self.isCapturing = False

    def check(self) -> None:
        self.checks += 1


class MemoryInjector:
    """Keeps what is injected."""

    segments = False

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.isOpen = False

    def open(self) -> None:
        self.isOpen = True

    def inject(self, packets: Sequence[tuple[Buffer, ...]]) -> None:
        self.packets += [b"".join(packet)[VNET_BYTES:] for packet in packets]

    def close(self) -> None:
        self.isOpen = False


class MemoryTun(MemoryInjector):
    """A TUN, as far as the service and its injector use it."""

    name, headed = "l3tun0", True

    def __init__(self, receiver: Any) -> None:
        super().__init__()
        self.receiver = receiver

    def write(self, *packet: Buffer) -> None:
        self.inject([packet])

    def check(self) -> None:
        pass


class MemorySetup:
    """Knows whether everything is set up."""

    def __init__(self) -> None:
        self.tuns: list[str] = []
        self.stops = self.renewals = 0
        self.wrong = ""

    def commands(self, tun: str = "") -> list[str]:
        return [f"ip route add blackhole 10.0.0.0/8 {tun}"]

    def start(self, tun: str = "") -> None:
        if self.wrong:
            raise ListenError(self.wrong)
        self.tuns.append(tun)

    def renew(self) -> None:
        self.renewals += 1

    def stop(self) -> None:
        self.stops += 1


class MemorySystem:
    """
    A system of which the test knows everything.

    @ivar mtu: of the path to the other end; 0: there is none.
    """

    def __init__(self) -> None:
        self.mtu = 0
        self.addresses = Own()
        self.blind = False
        self.captures: list[MemoryCapture] = []
        self.tuns: list[MemoryTun] = []
        self.injector = MemoryInjector()
        self.setups = MemorySetup()

    def capture(self, service: L3Service) -> Any:
        self.captures.append(MemoryCapture(service))
        return self.captures[-1]

    def tun(self, service: L3Service, receiver: Any) -> Any:
        self.tuns.append(MemoryTun(receiver))
        return self.tuns[-1]

    def setup(self, service: L3Service) -> Any:
        return self.setups

    def raw(self, service: L3Service) -> Any:
        return self.injector

    def own(self) -> Own:
        if self.blind:
            raise PermissionError("not for you")
        return self.addresses

    def pathMtu(self, host: str) -> int:
        if not self.mtu:
            raise OSError("no way")
        return self.mtu


class ServiceTestCase(SynchronousTestCase):
    """One reactor, and ends on loopback."""

    def setUp(self) -> None:
        self.reactor = PortReactor()
        self.key = self.mktemp()
        Path(self.key).write_bytes(base64.b64encode(KEY) + b"\n")

    def configOf(self, **texts: Any) -> L3Config:
        given = {"interface": "eth1", "capture": BEHIND_B, "keyFile": self.key, "local": "127.0.0.1:0", **texts}
        return fill(L3Config, {name: text for name, text in given.items() if text is not None})

    def make(self, **texts: Any) -> tuple[L3Service, MemorySystem]:
        system = MemorySystem()
        return L3Service(self.configOf(**texts), self.reactor, system), system

    def start(self, **texts: Any) -> tuple[L3Service, MemorySystem]:
        service, system = self.make(**texts)
        service.startService()
        self.addCleanup(lambda: self.stop(service))
        return service, system

    def stop(self, service: L3Service) -> None:
        self.successResultOf(Deferred.fromCoroutine(service.stopService()))

    def portOf(self, service: L3Service) -> DatagramPort:
        outer = service._outer
        assert isinstance(outer, UdpOuter)
        return outer.port

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.reactor.advance(TICK_SECONDS)


class ConfigurationTests(ServiceTestCase):
    """What the command line comes to."""

    def test_missing(self) -> None:
        """What is missing, or makes no sense, is named with its option."""
        for texts, word in (
            ({"interface": None}, "--interface"),
            ({"capture": None}, "--capture"),
            ({"keyFile": None}, "--key-file FILE is missing: udptunnel genkey"),
            ({"local": None}, "neither --local ADDRESS:PORT nor --peer"),
            ({}, "--local 127.0.0.1:0: without --peer"),
            ({"link": ["tcp:127.0.0.1:1"]}, "--link: give --peer"),
            ({"peer": "nobody.invalid:1"}, "--peer nobody.invalid:1"),
            ({"peer": "127.0.0.1:1", "mtu": "67"}, "--mtu 67: expected 0, or at least 68"),
        ):
            error = self.assertRaises(ConfigError, self.make, **texts)
            self.assertIn(word, str(error))

    def test_carriedInItself(self) -> None:
        """
        Where messages go is not to be captured, be it the other end or a udp-server. With --setup that is refused,
        without it somebody may have made another route, and is warned.
        """
        seen: list[str] = []

        def observer(event: LogEvent) -> None:
            seen.append(formatEvent(event))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for texts, word in (
            ({"capture": ("10.2.0.0/16", "127.0.0.0/8")}, "--peer 127.0.0.1:9 is in --capture 127.0.0.0/8"),
            ({"link": ["tcp:10.3.0.1:1", "tcp:10.2.0.1:1"]}, "--link 10.2.0.1:1 is in --capture 10.2.0.0/16"),
            ({"link": [r"tcp:fd00\:2\:\:7:1"]}, "--link [fd00:2::7]:1 is in --capture fd00:2::/64"),
        ):
            error = self.assertRaises(ConfigError, self.make, peer="127.0.0.1:9", setup=True, **texts)
            self.assertIn(word, str(error))
            self.assertEqual(self.make(peer="127.0.0.1:9", **texts)[0]._doubt[: len(word)], word)
        self.start(peer="127.0.0.1:9", capture=("127.0.0.0/8",))
        self.assertEqual(len([each for each in seen if each.startswith("--peer 127.0.0.1:9 is in")]), 1)
        for texts in ({}, {"link": ["tcp:nobody.invalid:1", "unix:/x"], "peer": "10.2.0.1:9"}):
            self.make(**{"peer": "127.0.0.1:9", "setup": True, **texts})

    def test_key(self) -> None:
        """A key file holds 32 bytes in base64; otherwise the file is named, and not what is in it."""
        self.assertEqual(readKey(self.key), KEY)
        for text in ("", "secret", base64.b64encode(bytes(31)).decode(), "\u00fc", "*" * 44):
            Path(self.key).write_text(text, encoding="utf-8")
            said = str(self.assertRaises(ConfigError, readKey, self.key))
            self.assertEqual(
                said, f"--key-file {self.key}: expected 32 bytes in base64, as udptunnel genkey makes them"
            )
        self.assertIn("No such file", str(self.assertRaises(ConfigError, readKey, self.key + "x")))

    def test_keepalive(self) -> None:
        """Who knows the other end asks whether it is there, unless told otherwise."""
        for texts, seconds in (
            ({"local": "127.0.0.1:9"}, 0.0),
            ({"peer": "127.0.0.1:9"}, 25.0),
            ({"peer": "127.0.0.1:9", "keepalive": "0"}, 0.0),
            ({"local": "127.0.0.1:9", "keepalive": "3"}, 3.0),
        ):
            self.assertEqual(self.make(**texts)[0].way._peer._keepalive, seconds)

    def test_anyPort(self) -> None:
        """Without --local it is any port of the family that the other end has."""
        for peer, host in (("127.0.0.1:9", "0.0.0.0"), ("[::1]:9", "::")):
            self.assertEqual(self.portOf(self.make(local=None, peer=peer)[0]).address, Address(host, 0))

    def test_link(self) -> None:
        """Over a link there is a udp-local inside that does nothing else; names are udp-server's affair."""
        service, _ = self.make(local=None, peer="far.invalid:9", link=["tcp:127.0.0.1:1"])
        (local,) = service
        self.assertEqual((local.config.socks, local.config.server), ("none", ("tcp:127.0.0.1:1",)))
        self.assertEqual(service.way.peer, Address("far.invalid", 9))

    def test_reload(self) -> None:
        """A configuration that is wrong is refused, and nothing changes."""
        service, _ = self.make(peer="127.0.0.1:9")
        service.reload(self.configOf(peer="127.0.0.1:9"))
        self.assertRaises(ConfigError, service.reload, self.configOf(peer="127.0.0.1:9", keyFile="/nowhere"))


class TrafficTests(ServiceTestCase):
    """Packets between two ends."""

    def pairUp(self) -> tuple[L3Service, MemorySystem, L3Service, MemorySystem]:
        b, systemB = self.start(capture=BEHIND_A, peer="127.0.0.1:9", keepalive="0")
        a, systemA = self.start(peer=f"127.0.0.1:{self.portOf(b).address.port}")
        self.reactor.until(lambda: a.way.up and b.way.up)
        return a, systemA, b, systemB

    def test_packets(self) -> None:
        """What is captured at one end is injected at the other, both ways."""
        a, systemA, b, systemB = self.pairUp()
        systemA.captures[0].service.packetsReceived([memoryview(plain(udpPacket()))])
        self.reactor.until(lambda: systemB.injector.packets)
        self.assertEqual(systemB.injector.packets, [life(udpPacket(), 63)])
        b.packetsReceived([memoryview(plain(udpPacket((BOB4, ALICE4))))])
        self.reactor.until(lambda: systemA.injector.packets)
        self.assertEqual((a.illness(), b.illness()), ("", ""))

    def test_refused(self) -> None:
        """Who sends what is too long is told at once; who sends it from the other side, through the tunnel."""
        a, systemA, b, _ = self.pairUp()
        a.packetsReceived([memoryview(plain(udpPacket(FOUR, bytes(1500))))])
        (word,) = systemA.injector.packets
        self.assertEqual(parse(word).destination, ALICE4)
        b.tooLong(udpPacket(FOUR, bytes(1300)), 1000)
        self.reactor.until(lambda: len(systemA.injector.packets) == 2)
        self.assertEqual(systemA.injector.packets[1][26:28], (1000).to_bytes(2, "big"))

    def test_report(self) -> None:
        """The state tells of packets and of messages, and why something was dropped."""
        a, _, b, _ = self.pairUp()
        a.packetsReceived([memoryview(plain(headerSum(udpPacket((ALICE4, ALICE4)))))])
        report = a.report()
        self.assertEqual(
            (report["role"], report["up"], report["peer"]), ("l3-tunnel", True, str(self.portOf(b).address))
        )
        self.assertEqual(report["dropped"], {"outward prefix": 1})
        self.assertGreater(report["sent"], 1)

    def test_strangers(self) -> None:
        """Whoever sends something else gets no answer."""
        _, _, b, _ = self.pairUp()
        sent = b.counters.sent
        b.burstsReceived([Burst(Address("127.0.0.1", 1), 68, bytes((1, 1)) + bytes(66))])
        self.assertEqual((b.counters.sent, b.counters.dropped["handshake refused"]), (sent, 1))


class LifeTests(ServiceTestCase):
    """Beginning, changes and end."""

    def test_ill(self) -> None:
        """It says what is missing: the interface, the TUN, or the other end."""
        service, system = self.start(peer="127.0.0.1:9", inject="tun")
        self.assertEqual(service.illness(), "there is no session with the other end")
        system.tuns[0].receiver.lost("deleted")
        self.assertEqual(service.illness(), "TUN l3tun0 is gone")
        system.captures[0].isCapturing = False
        self.assertEqual(service.illness(), "nothing is captured at eth1")
        service.lost("down")

    def test_setup(self) -> None:
        """With --setup all is set up once the injector is there, and undone at the end."""
        service, system = self.start(peer="127.0.0.1:9", setup=True)
        self.assertEqual((system.setups.tuns, system.injector.isOpen), ([""], True))
        self.stop(service)
        self.assertEqual(
            (system.setups.stops, system.injector.isOpen, system.captures[0].isCapturing), (1, False, False)
        )

    def test_tun(self) -> None:
        """With a TUN, what it can do decides what is joined; what comes out of it is carried, too."""
        service, system = self.start(peer="127.0.0.1:9", inject="tun", setup=True, tunOffload="vnet,tso")
        self.assertEqual(system.setups.tuns, ["l3tun0"])
        self.assertEqual(service.way._inward._joiner._protocols, {TCP})
        system.tuns[0].receiver.packetsReceived([memoryview(plain(udpPacket()))])
        self.assertEqual(len(service.way._waiting), 1)
        self.assertEqual(self.start(peer="127.0.0.1:9", inject="tun")[0].way._inward._joiner._protocols, {TCP, UDP})

    def test_tunAgain(self) -> None:
        """A TUN that is taken away is made again, and set up again; until that works, it is tried again."""
        service, system = self.start(peer="127.0.0.1:9", inject="tun", setup=True)
        system.setups.wrong = "not yet"
        system.tuns[0].receiver.lost("deleted")
        for _ in range(3):
            self.reactor.advance(RETRY_SECONDS)
        self.assertFalse(any(tun.isOpen for tun in system.tuns[1:]))
        self.flushLoggedErrors()
        system.setups.wrong = ""
        self.reactor.advance(RETRY_SECONDS)
        self.assertEqual((service.illness(), system.tuns[-1].isOpen), ("there is no session with the other end", True))

    def test_notStarted(self) -> None:
        """What can not be set up ends the start, and nothing stays open."""
        service, system = self.make(peer="127.0.0.1:9", setup=True)
        system.setups.wrong = "--setup: it can not be done"
        self.assertIn("it can not be done", str(self.assertRaises(ListenError, service.startService)))
        self.assertEqual((self.portOf(service).fileno(), self.reactor.getReaders()), (-1, []))
        self.assertFalse(system.injector.isOpen)

    def test_pathMtu(self) -> None:
        """The longest packet is what fits the path, as it is now; unless it was given."""
        service, system = self.start(peer="127.0.0.1:9")
        self.assertEqual(service.way.mtu, USUAL_MTU)
        for outer, inner in ((1500, 1440), (1400, 1340), (100, 68)):
            system.mtu = outer
            self.tick(LOOKS)
            self.assertEqual(service.way.mtu, inner)
        six, system = self.make(peer="[::1]:9", local=None)
        system.mtu = 1500
        six._look()
        self.assertEqual(six.way.mtu, 1420)
        fixed, system = self.make(peer="127.0.0.1:9", mtu="1300")
        system.mtu = 1500
        fixed._look()
        self.assertEqual(fixed.way.mtu, 1300)

    def test_own(self) -> None:
        """This machine's addresses are looked at again and again, unless it may be reached."""
        service, system = self.start(peer="127.0.0.1:9")
        system.addresses = Own(frozenset((ALICE4,)))
        self.tick(LOOKS)
        self.assertEqual(service.way.policy.own, Own(frozenset((ALICE4,))))
        open_, system = self.make(peer="127.0.0.1:9", allowSelf=True)
        system.addresses = Own(frozenset((ALICE4,)))
        open_._look()
        self.assertEqual(open_.way.policy.own, Own())

    def test_ownUnknown(self) -> None:
        """
        Addresses that can not be read are those that they were, which is said; if none are known it does not start,
        unless it may be reached anyhow.
        """
        service, system = self.start(peer="127.0.0.1:9")
        system.addresses = Own(frozenset((ALICE4,)))
        self.tick(LOOKS)
        system.blind = True
        self.tick(3 * LOOKS)
        self.assertEqual(service.way.policy.own, Own(frozenset((ALICE4,))))
        other, system = self.make(peer="127.0.0.1:9")
        system.blind = True
        self.assertIn("only --allow-self", str(self.assertRaises(ListenError, other.startService)))
        self.assertEqual(self.portOf(other).fileno(), -1)
        other, system = self.make(peer="127.0.0.1:9", allowSelf=True)
        system.blind = True
        other._look()

    def test_renewed(self) -> None:
        """When this machine's addresses change, the set-up learns it, and at no other time."""
        _, system = self.start(peer="127.0.0.1:9", allowSelf=True)
        before = system.setups.renewals
        self.tick(2 * LOOKS)
        self.assertEqual(system.setups.renewals, before)
        system.addresses = Own(frozenset((ALICE4,)))
        self.tick(2 * LOOKS)
        self.assertEqual(system.setups.renewals, before + 1)


class LinkTests(ServiceTestCase):
    """Messages through a session of ours."""

    def test_both(self) -> None:
        """They go to the other end by an association, and what comes back is heard."""
        service, _ = self.make(local=None, peer="192.0.2.9:50000", link=["tcp:127.0.0.1:1"])
        (local,) = service
        link = RecordingLink()
        local.session.links.append(link)
        outer = service._outer
        assert isinstance(outer, LinkOuter)
        messages = service.way.tick(0)
        outer.send(messages)
        ((number, target, size, payload),) = link.parcels
        self.assertEqual((target, bytes(payload)), (Address("192.0.2.9", 50000), messages[0].payload))
        association = local.session.associations.get(number)
        assert association is not None
        association.outlet.send(target, 40, bytes(40))
        self.assertEqual(service.counters.dropped, {"stranger": 1})
        self.assertEqual([len(each) for each in split(size, payload)], [68])
        outer.send([Message(target, 1400, bytes(47 * 1400))])
        self.assertEqual([len(parcel[3]) for parcel in link.parcels[1:]], [46 * 1400, 1400])
        outer.stop()
        self.assertEqual(len(local.session.associations), 0)
