"""Tests for L{udptunnel.net.detour}, in memory; tests.system.test_routes has real kernels."""

from __future__ import annotations

import errno

from twisted.trial.unittest import SynchronousTestCase

from tests.net.routing import LAN, TUN, USUAL_RULES, MemoryRouting, failure, makeDevice
from udptunnel.errors import RouteError
from udptunnel.net.detour import HALVES, METRIC, PROTOCOL, Detour, Way
from udptunnel.net.rtnetlink import Device, KernelRoute, Rule

ADDRESSES = "10.0.85.1/24", "fd00:85::1/64"
PROXY, PROXY6, ROUTER, ROUTER6, FAR, FAR6 = (
    "203.0.113.5",
    "2001:db8:5::5",
    "10.0.85.1",
    "fd00:85::2",
    "198.51.100.7",
    "2001:db8:7::7",
)
WAY = Way(PROXY, ROUTER)


class WayTests(SynchronousTestCase):
    """What a client may say."""

    def test_parse(self) -> None:
        """Numeric addresses of both families are taken, written as the kernel writes them."""
        self.assertEqual(Way.parse(PROXY, ROUTER, ADDRESSES), WAY)
        self.assertEqual(Way.parse("2001:DB8:5:0::5", ROUTER6, ADDRESSES), Way(PROXY6, ROUTER6))

    def test_refused(self) -> None:
        """Names, and addresses that no proxy or no gateway can have, are refused, each by its name."""
        never = (
            *("", "localhost", "proxy.example", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"),
            *("255.255.255.255", "240.0.0.1", "169.254.1.1", "fe80::1", "fe80::1%eth0", "::ffff:203.0.113.5"),
            *("203.0.113.5/32", "203.0.113.5:80", "203.0.113", "2001:db8::1%eth0", " 203.0.113.5", "1" * 5000),
        )
        for text in never:
            for name, words in (("proxyIp", (text, ROUTER)), ("routerIp", (PROXY, text))):
                error = self.assertRaises(RouteError, Way.parse, *words, ADDRESSES)
                self.assertTrue(str(error).startswith(name), str(error))
                self.assertLess(len(str(error)), 200)

    def test_router(self) -> None:
        """The router is in the TUN's network, and the proxy is not."""
        for words, expected in (
            (("203.0.113.5", "192.168.1.1"), "routerIp 192.168.1.1: expected an address in 10.0.85.0/24"),
            (("10.0.85.7", ROUTER), "proxyIp 10.0.85.7"),
            ((PROXY, "fd00:85::1"), "routerIp fd00:85::1: the TUN's own"),
        ):
            self.assertIn(expected, str(self.assertRaises(RouteError, Way.parse, *words, ADDRESSES)))
        self.assertRaises(RouteError, Way.parse, PROXY, ROUTER6, ADDRESSES[:1])


class DetourTestCase(SynchronousTestCase):
    """A machine in memory with default routes, and a TUN."""

    def setUp(self) -> None:
        self.use(MemoryRouting())

    def use(self, system: MemoryRouting, keepIpv6: bool = False) -> None:
        """Begin with another machine."""
        self.system, self.before = system, sorted(system.table)
        self.detour = Detour(system, keepIpv6)

    @property
    def tun(self) -> Device:
        """The TUN as it is."""
        return self.system.present[-1]

    def set(self, way: Way = WAY) -> None:
        self.detour.set(self.tun, way)

    def routes(self) -> dict[str, KernelRoute]:
        """Our routes by network."""
        return {route.network: route for route in self.system.routes(PROTOCOL)}

    def assertRestored(self) -> None:
        """Nothing of us is left."""
        self.assertEqual(sorted(self.system.table), self.before)
        self.assertEqual(self.system.chosen, USUAL_RULES)
        self.assertIsNone(self.detour.way)


class SetTests(DetourTestCase):
    """The routes that are set."""

    def test_set(self) -> None:
        """The default route leads through the TUN by way of the router, and the proxy has its old way."""
        self.set()
        routes = self.routes()
        self.assertEqual(routes["0.0.0.0/0"], KernelRoute("0.0.0.0/0", TUN, ROUTER, metric=METRIC, protocol=PROTOCOL))
        self.assertEqual(routes[f"{PROXY}/32"], KernelRoute(f"{PROXY}/32", LAN, "192.168.1.1", protocol=PROTOCOL))
        self.assertEqual((self.system.deviceTowards(FAR), self.system.deviceTowards(PROXY)), (TUN, LAN))
        self.assertTrue(self.detour.reachable)
        self.detour.clear()
        self.assertRestored()

    def test_ipv6Blocked(self) -> None:
        """If the TUN has no IPv6 address, IPv6 is unreachable; near hosts are not."""
        self.set()
        self.assertRaises(OSError, self.system.deviceTowards, FAR6)
        self.assertEqual(self.system.deviceTowards("fd00:1::9"), LAN)

    def test_ipv6Left(self) -> None:
        """Who wants IPv6 left alone has it so."""
        self.use(MemoryRouting(), keepIpv6=True)
        self.set()
        self.assertEqual(self.system.deviceTowards(FAR6), LAN)

    def test_ipv6Routed(self) -> None:
        """If the TUN has an IPv6 address, IPv6 goes there, too; the router is the gateway of its own family."""
        for router in (ROUTER, ROUTER6):
            self.use(MemoryRouting(makeDevice(families=(4, 6))))
            self.set(Way(PROXY, router))
            self.assertEqual((self.system.deviceTowards(FAR), self.system.deviceTowards(FAR6)), (TUN, TUN))
            gateways = {route.family: route.gateway for route in self.routes().values() if route.device == TUN}
            expected = {4: router, 6: ""} if router == ROUTER else {4: "", 6: router}
            self.assertEqual(gateways, expected)

    def test_ipv6Proxy(self) -> None:
        """A proxy may have an IPv6 address while the TUN has none."""
        self.set(Way(PROXY6, ROUTER))
        self.assertEqual(self.system.deviceTowards(PROXY6), LAN)
        self.assertRaises(OSError, self.system.deviceTowards, FAR6)

    def test_noIpv6(self) -> None:
        """Where IPv6 is switched off there is nothing to block."""
        self.system.refused["addRoute", 6] = failure(errno.EACCES)
        self.set()
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_firstMetric(self) -> None:
        """Where no metric is below that of the old default route, two halves are more specific."""
        for metric in (0, METRIC):
            self.system.table[1] = self.system.table[1]._replace(metric=metric)
            self.before = sorted(self.system.table)
            self.set()
            self.assertEqual(set(HALVES[4]) - set(self.routes()), set())
            self.assertEqual((self.system.deviceTowards(FAR), self.system.deviceTowards("1.1.1.1")), (TUN, TUN))
            self.assertEqual(self.system.deviceTowards(PROXY), LAN)
            self.detour.clear()
            self.assertRestored()

    def test_nearProxy(self) -> None:
        """A proxy that has a route of its own needs no other."""
        self.set(Way("192.168.1.9", ROUTER))
        self.assertNotIn("192.168.1.9/32", self.routes())
        self.assertEqual(self.system.deviceTowards("192.168.1.9"), LAN)

    def test_proxyThroughTun(self) -> None:
        """A route that leads to the proxy through the TUN itself is no way to it."""
        self.system.table.append(KernelRoute("203.0.113.0/24", TUN))
        self.before = sorted(self.system.table)
        self.set()
        self.assertEqual(self.system.deviceTowards(PROXY), LAN)

    def test_bestGateway(self) -> None:
        """Of several default routes the proxy has the one with the least metric."""
        self.system.table.append(KernelRoute("0.0.0.0/0", LAN, "192.168.1.2", metric=50))
        self.set()
        self.assertEqual(self.routes()[f"{PROXY}/32"].gateway, "192.168.1.2")

    def test_another(self) -> None:
        """Another proxy takes the place of the first one."""
        self.set()
        self.set(Way(FAR, "10.0.85.2"))
        self.assertEqual((self.system.deviceTowards(PROXY), self.system.deviceTowards(FAR)), (TUN, LAN))
        self.assertEqual(self.routes()["0.0.0.0/0"].gateway, "10.0.85.2")
        self.assertNotIn(f"{PROXY}/32", self.routes())


class RefusedTests(DetourTestCase):
    """What is not possible leaves nothing behind."""

    def refuse(self, way: Way = WAY) -> str:
        error = self.assertRaises((OSError, RouteError), self.set, way)  # type: ignore[arg-type]
        self.assertRestored()
        return str(error)

    def test_noWay(self) -> None:
        """Without a way to the proxy there is no detour."""
        del self.system.table[1]
        self.before = sorted(self.system.table)
        self.assertIn(f"proxyIp {PROXY}: this machine has no way to it", self.refuse())

    def test_noIpv6Way(self) -> None:
        """Nor for an IPv6 proxy without IPv6."""
        del self.system.table[3]
        self.before = sorted(self.system.table)
        self.assertIn("no way", self.refuse(Way(PROXY6, ROUTER)))

    def test_otherRules(self) -> None:
        """Rules of others that go first, such as those of WireGuard, are found out."""
        self.system.present.insert(0, Device(9, "wg0", True))
        self.system.table.append(KernelRoute("0.0.0.0/0", 9, table=51820))
        self.before = sorted(self.system.table)
        rule = Rule(4, 32764, 0, 51820, notMark=51820)
        self.system.chosen.append(rule)
        error = self.assertRaises(RouteError, self.set)
        self.assertIn("other routes or rules", str(error))
        self.system.chosen.remove(rule)
        self.assertRestored()

    def test_otherHalves(self) -> None:
        """So are halves of the address space through another TUN, as OpenVPN has them."""
        self.system.present.insert(0, Device(9, "tun9", True))
        self.system.table += [KernelRoute(half, 9, "10.8.0.1") for half in HALVES[4]]
        self.before = sorted(self.system.table)
        self.assertIn("other routes or rules", self.refuse())

    def test_notAllowed(self) -> None:
        """Without rights the error says which route it was."""
        self.system.refused["addRoute"] = failure(errno.EPERM)
        self.assertIn("203.0.113.5/32", self.refuse())


class MendTests(DetourTestCase):
    """The machine's routes change."""

    def test_nothing(self) -> None:
        """Without a detour, or without a change, nothing is done."""
        self.assertFalse(self.detour.mend(self.tun))
        self.set()
        between = sorted(self.system.table)
        self.assertFalse(self.detour.mend(self.tun))
        self.assertEqual(sorted(self.system.table), between)

    def test_gateway(self) -> None:
        """The proxy's route follows the default gateway."""
        self.set()
        self.system.table[1] = self.system.table[1]._replace(gateway="192.168.1.77")
        self.assertTrue(self.detour.mend(self.tun))
        self.assertEqual(self.routes()[f"{PROXY}/32"].gateway, "192.168.1.77")

    def test_offline(self) -> None:
        """Without a default route the proxy is unreachable, instead of reached through its own TUN; then it is back."""
        self.set()
        gone = self.system.table.pop(1)
        self.assertTrue(self.detour.mend(self.tun))
        self.assertFalse(self.detour.reachable)
        self.assertRaises(OSError, self.system.deviceTowards, PROXY)
        self.system.table.insert(1, gone)
        self.assertTrue(self.detour.mend(self.tun))
        self.assertTrue(self.detour.reachable)
        self.assertEqual(self.system.deviceTowards(PROXY), LAN)
        self.detour.clear()
        self.assertRestored()

    def test_greaterRival(self) -> None:
        """A new default route with a metric below ours does not win."""
        self.set()
        rival = KernelRoute("0.0.0.0/0", LAN, "192.168.1.1", metric=1)
        self.system.table.append(rival)
        self.detour.mend(self.tun)
        self.assertEqual(self.system.deviceTowards(FAR), TUN)

    def test_newTun(self) -> None:
        """When the TUN was made anew, the routes lead there."""
        self.set()
        self.system.removeDevice(TUN)
        self.system.present.append(makeDevice("tun0", 12))
        self.assertTrue(self.detour.mend(self.tun))
        self.assertEqual(self.system.deviceTowards(FAR), 12)


class LeftoverTests(DetourTestCase):
    """What a killed controller has left."""

    def test_sweep(self) -> None:
        """All of it is removed, and nothing else, be it ours of another role."""
        self.system.table.append(KernelRoute("198.18.0.0/15", LAN, protocol=117))
        self.before = sorted(self.system.table)
        self.set()
        again = Detour(self.system)
        again.sweep()
        again.sweep()
        self.assertEqual(sorted(self.system.table), self.before)

    def test_gone(self) -> None:
        """What goes while we look is gone."""
        self.set()
        self.system.refused["removeRoute"] = failure(errno.ESRCH)
        Detour(self.system).sweep()
        self.system.refused["removeRoute"] = failure(errno.EPERM)
        self.assertRaises(OSError, Detour(self.system).sweep)
