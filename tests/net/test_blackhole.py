"""Tests for L{udptunnel.net.blackhole}; tests.system.test_packet has a real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.net.routing import LAN, TUN, MemoryRouting, failure
from tests.test_plugins import environment
from udptunnel.errors import RouteError
from udptunnel.net.blackhole import PROTOCOL, Setup, hold
from udptunnel.net.rtnetlink import KernelRoute

NETWORKS = ["10.7.0.0/16", "fd07::/48"]
NOWHERE = [
    KernelRoute("10.7.0.0/16", 0, protocol=PROTOCOL, silent=True),
    KernelRoute("fd07::/48", 0, metric=1024, protocol=PROTOCOL, silent=True),
]
INTO_TUN = [
    route._replace(device=TUN, silent=False, source=source)
    for route, source in zip(NOWHERE, ("192.168.1.7", "fd00:1::7"), strict=True)
]
VANISHING = {network: "eth0" for network in NETWORKS}


class MemoryDiscards(dict[str, str]):
    """Networks, and at which interface packets for them vanish."""

    def __init__(self, system: MemoryRouting) -> None:
        super().__init__()
        self.called = system._called

    def add(self, network: str, interface: str) -> None:
        self.called("discard", 6 if ":" in network else 4)
        self[network] = interface

    def remove(self, network: str) -> None:
        if network not in self:
            raise failure(errno.ENOENT)
        del self[network]

    def networks(self) -> list[str]:
        self.called("networks")
        return list(self)


class MemoryNames:
    """
    Names of a network namespace.

    @ivar held: those that somebody has.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()

    def hold(self, name: str) -> MemoryName:
        if name in self.held:
            raise failure(errno.EADDRINUSE)
        self.held.add(name)
        return MemoryName(self, name)


class MemoryName:
    """One that is held."""

    def __init__(self, names: MemoryNames, name: str) -> None:
        self._names, self._name = names, name

    def close(self) -> None:
        self._names.held.remove(self._name)


class SetupTests(SynchronousTestCase):
    """L{Setup}."""

    def setUp(self) -> None:
        self.names = MemoryNames()
        self.system = MemoryRouting()
        self.system.setMtu(LAN, 1500)
        self.discards = MemoryDiscards(self.system)
        self.before = self.state()

    def make(self, networks: list[str] = NETWORKS, mtu: int = 0, interface: str = "eth0") -> Setup:
        """A set-up on this machine."""
        return Setup(interface, networks, mtu, self.system, self.names.hold, self.discards)

    def state(self) -> tuple[object, ...]:
        """Everything that could be different afterwards."""
        return list(self.system.present), list(self.system.table), dict(self.discards), set(self.names.held)

    def ours(self) -> tuple[list[KernelRoute], dict[str, str]]:
        """What is there of ours."""
        return self.system.routes(PROTOCOL), dict(self.discards)

    def test_raw(self) -> None:
        """With raw sockets the captured networks lead nowhere, silently; and afterwards everything is as before."""
        setup = self.make()
        setup.start()
        self.assertEqual(self.ours(), (NOWHERE, {}))
        setup.stop()
        self.assertEqual(self.state(), self.before)

    def test_tun(self) -> None:
        """
        With a TUN they lead into it, so that what comes out of it has a way back, and what the host sends bears an
        address of the interface; only what arrives by the interface vanishes. What comes out of the TUN goes further.
        """
        setup = self.make()
        setup.start("tun0")
        self.assertEqual(self.ours(), (INTO_TUN, VANISHING))
        self.assertEqual(self.system.forwarding, {("tun0", 4), ("tun0", 6)})
        setup.stop()
        self.assertEqual(self.state(), self.before)

    def test_otherAddresses(self) -> None:
        """
        When the interface has got other addresses, packets of the host bear one of these, or none that we choose;
        routes that went with an address are there again, and afterwards everything is as before.
        """
        setup = self.make()
        setup.start("tun0")
        for addresses in (("192.168.1.9", "fd00:1::7"), ("fd00:1::9",), ("192.168.1.9", "fd00:1::9")):
            self.system.setAddresses(LAN, *addresses)
            setup.renew()
            four = addresses[0] if len(addresses) > 1 else ""
            expected = [INTO_TUN[0]._replace(source=four), INTO_TUN[1]._replace(source=addresses[-1])]
            self.assertEqual(sorted(self.system.routes(PROTOCOL)), expected)
        self.system.table.remove(expected[0])
        setup.renew()
        self.assertEqual(sorted(self.system.routes(PROTOCOL)), expected)
        setup.stop()
        self.assertEqual(self.ours(), ([], {}))

    def test_otherAddressesUntouched(self) -> None:
        """Nothing is changed before the start, with raw sockets, without a TUN any more, or after the end."""
        setup = self.make()
        setup.renew()
        self.assertEqual(self.state(), self.before)
        setup.start()
        setup.renew()
        self.assertEqual(self.ours(), (NOWHERE, {}))
        setup.start("tun0")
        self.system.removeDevice(TUN)
        setup.renew()
        self.assertEqual(self.system.routes(PROTOCOL), [])
        setup.stop()
        setup.renew()
        self.assertEqual(self.ours(), ([], {}))

    def test_again(self) -> None:
        """It may be started again, as when the TUN was made anew, and stopped again."""
        setup = self.make()
        setup.start("tun0")
        setup.start("tun0")
        self.assertEqual(self.ours(), (INTO_TUN, VANISHING))
        setup.stop()
        setup.stop()
        self.assertEqual(self.state(), self.before)

    def test_gone(self) -> None:
        """What went with its device is no error when all is undone."""
        setup = self.make()
        setup.start("tun0")
        self.system.removeDevice(TUN)
        setup.stop()
        self.assertEqual(self.ours(), ([], {}))

    def test_mtu(self) -> None:
        """The MTU of the interface is changed on demand, its former value written there, and both undone."""
        self.system.setAlias(LAN, "uplink")
        before = self.state()
        setup = self.make(mtu=1400)
        setup.start()
        device = self.system.present[1]
        self.assertEqual((device.mtu, device.alias), (1400, "uplink [udptunnel l3-tunnel: mtu was 1500]"))
        setup.stop()
        self.assertEqual(self.state(), before)

    def test_mtuOfTwo(self) -> None:
        """Of two processes at one interface the first one has changed it, and the other leaves it alone."""
        first, second = self.make(NETWORKS[:1], mtu=1400), self.make(NETWORKS[1:], mtu=1300)
        first.start()
        second.start()
        self.assertEqual(self.system.present[1].mtu, 1400)
        second.stop()
        self.assertEqual(self.system.present[1].mtu, 1400)
        first.stop()
        self.assertEqual(self.state(), self.before)

    def test_longAlias(self) -> None:
        """An alias with no room left is not cut: that is refused."""
        self.system.setAlias(LAN, "x" * 240)
        error = self.assertRaises(RouteError, self.make(mtu=1400).start)
        self.assertIn("--interface eth0: its alias leaves no room", str(error))

    def test_killed(self) -> None:
        """The next start takes away what a killed process has left: routes, tables, and a changed MTU."""
        for tun in ("", "tun0"):
            self.make(["10.8.0.0/16", *NETWORKS], mtu=1400).start(tun)
            self.names.held.clear()
            setup = self.make()
            setup.start()
            self.assertEqual(self.ours(), (NOWHERE, {}))
            setup.stop()
            self.assertEqual(self.state(), self.before)

    def test_killedWithMtu(self) -> None:
        """However often a process is killed, its interface bears one mark, which tells the first MTU."""
        self.system.setAlias(LAN, "uplink")
        before = self.state()
        for _ in range(3):
            self.make(mtu=1400).start()
            self.names.held.clear()
            self.assertEqual(self.system.present[1].alias, "uplink [udptunnel l3-tunnel: mtu was 1500]")
        last = self.make()
        last.start()
        last.stop()
        self.assertEqual(self.state(), before)

    def test_living(self) -> None:
        """What belongs to a living process stays."""
        self.make(["10.8.0.0/16"], mtu=1400).start("tun0")
        before = self.state()
        setup = self.make()
        setup.start()
        setup.stop()
        self.assertEqual(self.state(), before)

    def test_sameNetwork(self) -> None:
        """Two processes can not capture one network: the second is refused, and has changed nothing."""
        self.make(["10.8.0.0/16", "fd07::/48"]).start()
        before = self.state()
        error = self.assertRaises(RouteError, self.make().start)
        self.assertEqual(str(error), "--capture fd07::/48: another process here captures it")
        self.assertEqual(self.state(), before)

    def test_routeThere(self) -> None:
        """A route that somebody else has made is not touched: that is refused, with a way out."""
        self.system.addRoute(KernelRoute("fd07::/48", LAN, protocol=4))
        before = self.state()
        error = self.assertRaises(RouteError, self.make().start)
        text = "--capture fd07::/48: there is such a route already; remove it, or leave out --setup"
        self.assertEqual(str(error), text)
        self.assertEqual(self.state(), before)

    def test_refused(self) -> None:
        """Whatever fails, in whichever step, is said with its reason, and everything is as before."""
        for what in (
            "devices",
            ("addRoute", 6),
            ("discard", 6),
            ("forward", 4),
            "setAlias",
            "setMtu",
            "routes",
            "networks",
        ):
            self.system.refused = {what: failure(errno.EPERM)}
            setup = self.make(mtu=1400)
            error = self.assertRaises(RouteError, setup.start, "tun0")
            self.assertEqual(str(error), "--setup: routes need root or CAP_NET_ADMIN")
            self.system.refused = {}
            self.assertEqual(self.ours(), ([], {}))
            self.assertEqual((self.system.present[1].mtu, self.names.held), (1500, set()))

    def test_noNftables(self) -> None:
        """A kernel without nftables can not do it with a TUN, and the other way is named; nothing is left."""
        reason = os.strerror(errno.EOPNOTSUPP)
        text = f"--setup: nftables can not drop what was captured: {reason}; use --inject raw"
        for what in ("discard", 6), "networks":
            self.system.refused = {what: failure(errno.EOPNOTSUPP)}
            error = self.assertRaises(RouteError, self.make().start, "tun0")
            self.assertEqual((str(error), self.state()), (text, self.before))
        self.make().start()
        self.assertEqual(self.ours(), (NOWHERE, {}))

    def test_noInterface(self) -> None:
        """An interface that is not there is named."""
        error = self.assertRaises(RouteError, self.make(interface="eth9").start)
        self.assertEqual(str(error), "--setup: there is no interface eth9")
        error = self.assertRaises(RouteError, self.make().start, "tun9")
        self.assertEqual(str(error), "--setup: there is no interface tun9")

    def test_oldKernel(self) -> None:
        """Where one device can not forward IPv6 by itself, nothing else is made to: somebody must decide that."""
        self.system.refused["forward", 6] = failure(errno.ENOENT)
        setup = self.make()
        setup.start("tun0")
        self.assertEqual(self.ours(), (INTO_TUN, VANISHING))
        setup.stop()

    def test_byHand(self) -> None:
        """What somebody must type is what would be done."""
        self.assertEqual(
            self.make(mtu=1400).commands(),
            [
                "ip route add blackhole 10.7.0.0/16",
                "ip -6 route add blackhole fd07::/48",
                "ip link set eth0 mtu 1400",
            ],
        )
        self.assertEqual(
            self.make(NETWORKS[:1]).commands("tun0"),
            [
                "ip route add 10.7.0.0/16 dev tun0 src 192.168.1.7",
                "nft 'add table inet udptunnel-by-hand-10.7.0.0/16; "
                "add chain inet udptunnel-by-hand-10.7.0.0/16 arriving { type filter hook prerouting priority -300; }; "
                'add rule inet udptunnel-by-hand-10.7.0.0/16 arriving iifname "eth0" ip daddr 10.7.0.0/16 drop\'',
                "sysctl -w net.ipv4.conf.tun0.forwarding=1",
            ],
        )
        self.system.setAddresses(LAN)
        self.assertEqual(self.make(NETWORKS[:1]).commands("tun0")[0], "ip route add 10.7.0.0/16 dev tun0")
        self.system.refused["devices"] = failure(errno.EPERM)
        self.assertEqual(self.make(NETWORKS[:1]).commands("tun0")[0], "ip route add 10.7.0.0/16 dev tun0")


HOLD = """
import sys
from udptunnel.net.blackhole import hold
held = hold(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


class HoldTests(SynchronousTestCase):
    """L{hold}."""

    if sys.platform != "linux":
        skip = "names without a file are Linux's"

    def test_untilItDies(self) -> None:
        """A name is somebody's until that process ends, however it ends; then it is free, and nothing is left."""
        name = f"test {os.getpid()}"
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), b"held\n")
            error = self.assertRaises(OSError, hold, name)
            self.assertEqual(error.errno, errno.EADDRINUSE)
            process.kill()
        hold(name).close()
        hold(name).close()
