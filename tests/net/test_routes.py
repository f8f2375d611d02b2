"""Tests for L{udptunnel.net.routes}, in memory; tests.system.test_routes has real kernels."""

from __future__ import annotations

import errno

from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.net.routing import LAN, TUN, MemoryRouting, failure, makeDevice
from udptunnel.errors import ListenError, RouteError
from udptunnel.net.routes import (
    DNS_PORT,
    FIRST_TABLE,
    MARK,
    PROTOCOL,
    TABLES,
    Capture,
    Routes,
    _tableOf,
    priorityOf,
)
from udptunnel.net.rtnetlink import MAIN, Device, KernelRoute, Rule, networkOf

FAR, NEAR, SERVER = "198.51.100.7", "192.168.1.9", "203.0.113.5"
FAR6, SERVER6 = "2001:db8:7::7", "2001:db8:5::5"
EVERYTHING = Capture(everything=True)
BOTH = Capture(("198.51.100.0/24",), everything=True, past=(SERVER,))


class RoutesTestCase(SynchronousTestCase):
    """A machine in memory, which in the end is what it was in the beginning."""

    def setUp(self) -> None:
        self.system = MemoryRouting()
        self.warnings: list[str] = []
        globalLogPublisher.addObserver(self._logged)
        self.addCleanup(globalLogPublisher.removeObserver, self._logged)

    def _logged(self, event: dict[str, object]) -> None:
        if event.get("log_level") == LogLevel.warn:
            self.warnings.append(str(event.get("log_format")))

    def state(self) -> tuple[list[KernelRoute], list[Rule], dict[str, int]]:
        """What must not change in the end."""
        return sorted(self.system.table), sorted(self.system.chosen), dict(self.system.strict)

    def start(self, capture: Capture, name: str = "tun0", checks: bool = True) -> Routes:
        """Routes for a TUN; the cleanup sees that nothing of them stays."""
        before = self.state()
        routes = Routes(capture, self.system)
        routes.start(name)
        if checks:
            self.addCleanup(lambda: self.assertEqual(self.state(), before))
        self.addCleanup(routes.stop)
        return routes


class NetworkTests(RoutesTestCase):
    """--route."""

    def test_networks(self) -> None:
        """Each network leads to the TUN, and nothing else does."""
        self.start(Capture(("198.51.100.0/24", "2001:db8:7::/48")))
        for host, device in ((FAR, TUN), (FAR6, TUN), (SERVER, LAN), (SERVER6, LAN)):
            self.assertEqual(self.system.deviceTowards(host), device, host)
        self.assertEqual({route.table for route in self.system.routes(PROTOCOL)}, {MAIN})

    def test_lone(self) -> None:
        """An address is a network of its own."""
        self.assertEqual((networkOf(FAR), networkOf(FAR6)), (f"{FAR}/32", f"{FAR6}/128"))
        self.start(Capture((FAR,)))
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_taken(self) -> None:
        """A route that is there already is named, with the way out, and what was added before is gone."""
        before = self.state()
        routes = Routes(Capture(("198.51.100.0/24", "192.168.1.0/24")), self.system)
        error = self.assertRaises(RouteError, routes.start, "tun0")
        self.assertIn("--route 192.168.1.0/24: there is such a route already", str(error))
        self.assertEqual(self.state(), before)

    def test_wrong(self) -> None:
        """What is no network is said with its option."""
        for network in ("moon", "10.0.0.1/8", "10.0.0.0/33"):
            error = self.assertRaises(RouteError, Routes(Capture((network,)), self.system).start, "tun0")
            self.assertIn(f"--route {network}", str(error))

    def test_nothing(self) -> None:
        """Who wants nothing needs no right to it, and not even a device."""
        self.system.refused["devices"] = failure(errno.EPERM)
        self.start(Capture())

    def test_noMark(self) -> None:
        """Without --auto-route our sockets are marked only if somebody says so."""
        self.assertEqual(Capture(("10.0.0.0/8",)).socketMark, 0)
        self.assertEqual(Capture(("10.0.0.0/8",), mark=5).socketMark, 5)


class EverythingTests(RoutesTestCase):
    """--auto-route."""

    def test_captured(self) -> None:
        """Whatever has no route of its own goes into the TUN, except packets of ours."""
        routes = self.start(EVERYTHING)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)
        self.assertEqual(self.system.deviceTowards(NEAR), LAN)
        self.assertEqual(self.system.deviceTowards("127.0.0.1"), 1)
        for host in (FAR, FAR6):
            self.assertEqual(self.system.deviceTowards(host, MARK), LAN)
        self.assertEqual(routes.report(), {"device": "tun0", "routes": [], "table": FIRST_TABLE, "mark": MARK})

    def test_mark(self) -> None:
        """The mark can be another one."""
        self.start(Capture(everything=True, mark=5))
        self.assertEqual(self.system.deviceTowards(FAR, 5), LAN)
        self.assertEqual(self.system.deviceTowards(FAR, MARK), TUN)

    def test_otherFamily(self) -> None:
        """A family of which the TUN has no address is unreachable, so that nothing leaves beside the TUN."""
        self.start(EVERYTHING)
        error = self.assertRaises(OSError, self.system.deviceTowards, FAR6)
        self.assertEqual(error.errno, errno.EHOSTUNREACH)
        self.assertEqual(self.system.deviceTowards("fd00:1::5"), LAN)

    def test_onlyIpv6(self) -> None:
        """The same holds for IPv4; and the first route leads to the TUN, so that nobody takes it for left over."""
        self.system = MemoryRouting(makeDevice(families=(6,)))
        self.start(EVERYTHING)
        self.assertEqual(self.system.deviceTowards(FAR6), TUN)
        self.assertRaises(OSError, self.system.deviceTowards, FAR)
        self.assertEqual(self.system.routes(PROTOCOL)[0].device, TUN)

    def test_bothFamilies(self) -> None:
        """A TUN with addresses of both families takes both, and so does one that has none."""
        for families in ((4, 6), ()):
            self.system = MemoryRouting(makeDevice(families=families))
            routes = self.start(EVERYTHING)
            self.assertEqual((self.system.deviceTowards(FAR), self.system.deviceTowards(FAR6)), (TUN, TUN))
            routes.stop()

    def test_noIpv6(self) -> None:
        """A kernel without IPv6 is no hindrance; it is said once."""
        self.system.refused["addRoute", 6] = failure(errno.EAFNOSUPPORT)
        self.start(EVERYTHING)
        self.assertEqual(len(self.warnings), 1)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_names(self) -> None:
        """DNS goes to a near server by its own route, and with --dns into the TUN."""
        for names, device in ((False, LAN), (True, TUN)):
            routes = self.start(Capture(everything=True, names=names))
            self.assertEqual(self.system.deviceTowards(NEAR, port=DNS_PORT), device)
            self.assertEqual(self.system.deviceTowards(NEAR, port=443), LAN)
            self.assertEqual(self.system.deviceTowards(NEAR, MARK, DNS_PORT), LAN)
            routes.stop()

    def test_past(self) -> None:
        """Servers are reached past the TUN even without our mark, as the reverse path filter looks for them."""
        self.start(Capture(everything=True, past=(SERVER, "2001:db8:5::/48", "127.0.0.1")))
        self.assertEqual(self.system.deviceTowards(SERVER), LAN)
        self.assertEqual(self.system.deviceTowards(SERVER6), LAN)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)
        self.assertFalse(any("127" in rule.to for rule in self.system.chosen))

    def test_pastOtherRules(self) -> None:
        """What goes past the TUN meets the rules of others behind ours, such as those of WireGuard."""
        wireguard = Device(9, "wg0", True)
        self.system.present.append(wireguard)
        self.system.table.append(KernelRoute("0.0.0.0/0", 9, table=51820))
        self.system.chosen.append(Rule(4, 32000, 0, 51820, notMark=51820))
        self.start(Capture(everything=True, past=(SERVER,)))
        self.assertEqual(self.system.deviceTowards(SERVER), 9)
        self.assertEqual(self.system.deviceTowards(FAR, MARK), 9)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_captureLast(self) -> None:
        """The rules that capture are the last to come and the first to go: no packet meets half of our rules."""
        removed: list[int] = []

        def remove(rule: Rule) -> None:
            removed.append(rule.table)
            self.system.chosen.remove(rule)

        self.patch(self.system, "removeRule", remove)
        routes = self.start(Capture(everything=True, past=(SERVER,)))
        last = [rule.table for rule in self.system.rules(PROTOCOL)][-2:]
        self.assertEqual(last, [routes.table] * 2)
        routes.stop()
        self.assertEqual(removed[:2], last)


class SeveralTests(RoutesTestCase):
    """Several processes, each with its own TUN."""

    def setUp(self) -> None:
        super().setUp()
        self.system = MemoryRouting(makeDevice(), makeDevice("tun1", 8))

    def test_coexist(self) -> None:
        """Each takes a table of its own, the later one captures, and each removes its own only."""
        first = self.start(EVERYTHING)
        between = self.state()
        second = self.start(EVERYTHING, "tun1")
        self.assertEqual(second.table, first.table + 1)
        self.assertEqual(self.system.deviceTowards(FAR), 8)
        self.assertEqual(self.system.deviceTowards(FAR, MARK), LAN)
        second.stop()
        self.assertEqual(self.state(), between)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_secondFamily(self) -> None:
        """A table of which somebody has one family only is not taken either."""
        self.system.table.append(KernelRoute("::/0", 8, table=FIRST_TABLE, metric=1024, protocol=PROTOCOL))
        self.assertEqual(self.start(EVERYTHING, checks=False).table, FIRST_TABLE + 1)
        self.assertEqual(len(self.system.routes(table=FIRST_TABLE)), 1)

    def test_tooMany(self) -> None:
        """There is an end to tables."""
        for table in range(FIRST_TABLE, FIRST_TABLE + TABLES):
            self.system.table.append(KernelRoute("0.0.0.0/0", 8, table=table, protocol=PROTOCOL))
        error = self.assertRaises(RouteError, Routes(EVERYTHING, self.system).start, "tun0")
        self.assertIn(f"{TABLES} processes", str(error))

    def test_priorities(self) -> None:
        """Each priority of each table is known as that table's."""
        for table in range(FIRST_TABLE, FIRST_TABLE + TABLES):
            for step in range(4):
                self.assertEqual(_tableOf(priorityOf(table) + step), table)


class LeftoverTests(RoutesTestCase):
    """What a killed process has left."""

    def kill(self, name: str = "tun0", capture: Capture = BOTH) -> None:
        """Start a process and let it vanish, with its descriptors but without a word."""
        Routes(capture, self.system).start(name)
        self.system.present = [
            each._replace(carrier=False) if each.name == name else each for each in self.system.present
        ]

    def test_deviceGone(self) -> None:
        """The TUN went with the process, its routes with it; the rules go when the next process starts."""
        before = self.state()
        self.kill()
        self.system.removeDevice(TUN)
        self.assertNotEqual(self.system.rules(PROTOCOL), [])
        self.system.present.append(makeDevice("tun0", 12))
        routes = Routes(EVERYTHING, self.system)
        routes.start("tun0")
        self.assertEqual((routes.table, self.system.deviceTowards(FAR)), (FIRST_TABLE, 12))
        routes.stop()
        self.assertEqual(self.state(), before)

    def test_devicePersists(self) -> None:
        """The TUN is there but nobody has it open: whoever starts, with this TUN or another, removes all of it."""
        for name in ("tun0", "tun1"):
            self.system = MemoryRouting(makeDevice(), makeDevice("tun1", 8))
            before = self.state()
            self.kill()
            routes = Routes(EVERYTHING, self.system)
            routes.start(name)
            routes.stop()
            self.assertEqual(self.state(), before, name)

    def test_sameDeviceOpen(self) -> None:
        """If we have the TUN open nobody else has, so all that leads there is left over."""
        before = self.state()
        self.kill()
        self.system.present = [each._replace(carrier=True) for each in self.system.present]
        routes = Routes(Capture(("203.0.113.0/24",)), self.system)
        routes.start("tun0")
        routes.stop()
        self.assertEqual(self.state(), before)

    def test_living(self) -> None:
        """What belongs to a process that lives stays."""
        self.system = MemoryRouting(makeDevice(), makeDevice("tun1", 8))
        living = self.start(Capture(("198.51.100.0/24",), True))
        between = self.state()
        self.kill("tun1", EVERYTHING)
        self.system.removeDevice(8)
        self.system.present.append(makeDevice("tun1", 9))
        Routes(Capture(("203.0.113.0/24",)), self.system).start("tun1")
        self.system.removeDevice(9)
        self.assertEqual(self.state(), between)
        self.assertEqual(living.table, FIRST_TABLE)

    def test_strangers(self) -> None:
        """Nothing that others have made is touched, whatever its priority or table."""
        self.system.chosen.append(Rule(4, priorityOf(FIRST_TABLE), 4, FIRST_TABLE))
        self.system.table.append(KernelRoute("0.0.0.0/0", TUN, table=FIRST_TABLE, metric=7, protocol=4))
        self.start(EVERYTHING)

    def test_again(self) -> None:
        """When the TUN was made anew all is set for the new one, and nothing twice."""
        before = self.state()
        routes = Routes(EVERYTHING, self.system)
        routes.start("tun0")
        count = len(self.system.rules(PROTOCOL))
        self.system.removeDevice(TUN)
        self.system.present.append(makeDevice("tun0", 12))
        routes.start("tun0")
        self.assertEqual((self.system.deviceTowards(FAR), len(self.system.rules(PROTOCOL))), (12, count))
        routes.stop()
        routes.stop()
        self.assertEqual((self.state(), self.warnings), (before, []))


class FailureTests(RoutesTestCase):
    """What the kernel does not do."""

    def test_notAllowed(self) -> None:
        """Who may not change routes is told what is missing and for which option, as one whose port is taken."""
        for call in ("addRoute", "addRule"):
            self.system.refused = {call: failure(errno.EPERM)}
            before = self.state()
            error = self.assertRaises(ListenError, Routes(EVERYTHING, self.system).start, "tun0")
            self.assertEqual(str(error), "--auto-route: routes need root or CAP_NET_ADMIN")
            self.assertEqual(self.state(), before)

    def test_noDevice(self) -> None:
        """A TUN that is not there is named."""
        error = self.assertRaises(RouteError, Routes(EVERYTHING, self.system).start, "tun5")
        self.assertIn("tun5", str(error))

    def test_notRemoved(self) -> None:
        """What can not be removed is said, and the rest is removed."""
        routes = Routes(Capture(("198.51.100.0/24",), True), self.system)
        routes.start("tun0")
        self.system.refused["removeRule", 6] = failure(errno.EPERM)
        routes.stop()
        self.assertEqual(len(self.warnings), 2)
        self.assertEqual({rule.family for rule in self.system.rules(PROTOCOL)}, {6})
        self.assertEqual(self.system.routes(PROTOCOL), [])


class ReversePathTests(RoutesTestCase):
    """rp_filter."""

    def test_loosened(self) -> None:
        """Where the TUN would be strict it becomes loose, and is strict again in the end; nothing else changes."""
        for own, everywhere, expected in ((1, 0, 2), (0, 1, 2), (1, 1, 2), (0, 0, 0), (2, 1, 2), (0, 2, 0)):
            self.system.strict = {"all": everywhere, "tun0": own}
            routes = self.start(EVERYTHING, checks=False)
            self.assertEqual(self.system.strict, {"all": everywhere, "tun0": expected})
            routes.stop()
            self.assertEqual(self.system.strict, {"all": everywhere, "tun0": own})

    def test_readOnly(self) -> None:
        """Where it can not be changed, such as in a container, nothing happens."""
        self.system.strict["all"] = 1
        self.system.refused["setReversePath"] = failure(errno.EROFS)
        self.start(EVERYTHING)
        self.assertEqual(self.warnings, [])


class LoopTests(RoutesTestCase):
    """Our own packets, back in our own TUN."""

    def test_route(self) -> None:
        """A server in a network that goes into the TUN is refused, and named with its option."""
        routes = self.start(Capture(("203.0.113.0/24",)))
        self.assertTrue(routes.leadsBack(SERVER))
        error = self.assertRaises(RouteError, routes.refuseLoops, "--socks-server-addr", [FAR, SERVER])
        self.assertIn(f"--socks-server-addr {SERVER}", str(error))
        self.assertIn("--fwmark", str(error))

    def test_mark(self) -> None:
        """With our mark they go another way."""
        routes = self.start(EVERYTHING)
        routes.refuseLoops("--socks-server-addr", [SERVER, NEAR, "127.0.0.1"])

    def test_unreachable(self) -> None:
        """What can not be reached at all is no loop."""
        self.system.table = []
        self.assertFalse(self.start(Capture(("198.51.100.0/24",))).leadsBack(SERVER))
