"""
What keeps the host from handling packets that were captured, as L{CapturePort<udptunnel.net.packet.CapturePort>} only
looks on.

With raw sockets, the captured networks get a route on which packets vanish. Where packets are injected by a TUN that
would be wrong: the host looks whether the source of what comes out of the TUN has a route back there (C{rp_filter},
RFC 3704), and a route into nothing is none, whatever the filter is set to but 0. A rule that sends only what arrives by
the captured interface into nothing is no better, for the host asks about the answer, which would arrive there. So the
networks lead into the TUN, and a rule of nftables drops what was captured::

    raw    route     blackhole NETWORK
    tun    route     NETWORK dev TUN
           nftables  iifname INTERFACE daddr NETWORK drop

Then also what the host itself sends to the other side, such as its ICMP errors, comes to us, out of the TUN. That has
no address, so the routes say which one such packets bear: one of the interface, for the other end takes only what
comes from the networks behind us. With IPv4 a route goes with the address that it names.

Routes carry a protocol number of ours, and tables of nftables a name. Who lives holds a name for each of its networks,
an abstract socket (unix(7)) that each network namespace has its own of and that nobody can leave behind: so the next
start takes away what a killed process has left, and nothing else.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from twisted.logger import Logger

from udptunnel.errors import RouteError
from udptunnel.net.discards import Discards, LinuxDiscards, command
from udptunnel.net.rtnetlink import USUAL_METRIC, Device, KernelRoute, LinuxRouting, Routing, networkOf

PROTOCOL = 118
"""Who has made a route: us, but not L{udptunnel.net.routes}."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)
"""What the kernel says of a route, table or device that is not there."""

_MARK = re.compile(r" ?\[udptunnel l3-tunnel: mtu was ([0-9]{1,6})\]")
_LARGEST_ALIAS = 255
"""IFALIASZ of linux/if.h, without the zero."""


class Name(Protocol):
    """A name that is held."""

    def close(self) -> None:
        """Let go of it."""


def hold(name: str) -> Name:
    """
    Hold a name in this network namespace, as long as this process lives.

    @raise OSError: somebody has it (C{EADDRINUSE}).
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(f"\0udptunnel l3-tunnel {name}")
    except OSError:
        made.close()
        raise
    return made


class Setup:
    """
    The set-up for one l3-tunnel. All calls block for some milliseconds.

    @ivar tun: the TUN by which packets are injected; empty: it is done with raw sockets.
    """

    _log = Logger()

    def __init__(
        self,
        interface: str,
        prefixes: Sequence[str],
        mtu: int = 0,
        system: Routing | None = None,
        hold: Callable[[str], Name] = hold,
        discards: Discards | None = None,
    ) -> None:
        """
        @param interface: where packets are captured.
        @param prefixes: the captured networks, ADDRESS/LENGTH.
        @param mtu: how long packets of the interface may be; 0: leave that alone. If it is set lower here than at
            the hosts beside it, cards and C{veth} devices drop what is longer, and nobody tells these hosts.
        @param system: the operating system; Linux unless a test says otherwise.
        @param hold: takes a name that only one can have, as L{hold} does.
        @param discards: what makes packets vanish that arrive; Linux unless a test says otherwise.
        """
        self.tun = ""
        self._interface = interface
        self._networks = [networkOf(prefix) for prefix in prefixes]
        self._mtu = mtu
        self._system: Routing = system or LinuxRouting()
        self._hold = hold
        self._discards: Discards = LinuxDiscards() if discards is None else discards
        self._names: list[Name] = []
        self._routes: dict[str, KernelRoute] = {}
        self._undo: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    # -- by hand

    def commands(self, tun: str = "") -> list[str]:
        """
        What somebody must type who does it by hand, line by line.

        @param tun: the TUN by which packets are injected, if so.
        """
        lines, devices = [], self._devicesIfAny() if tun else {}
        for network in self._networks:
            ip = "ip -6" if ":" in network else "ip"
            if tun:
                source = self._sourceOf(network, devices)
                lines.append(f"{ip} route add {network} dev {tun}" + (f" src {source}" if source else ""))
                lines.append(command(network, self._interface))
            else:
                lines.append(f"{ip} route add blackhole {network}")
        if tun:
            lines += [_FORWARDING[family].format(tun) for family in self._families]
        if self._mtu:
            lines.append(f"ip link set {self._interface} mtu {self._mtu}")
        return lines

    def _devicesIfAny(self) -> dict[str, Device]:
        try:
            return self._devices()
        except OSError:
            return {}

    @property
    def _families(self) -> list[int]:
        return sorted({_familyOf(network) for network in self._networks})

    # -- start

    def start(self, tun: str = "") -> None:
        """
        Take away what dead processes have left, and set everything up. It may be called again.

        @param tun: the TUN by which packets are injected, if so; it is there and up.
        @raise RouteError: that can not be done; nothing was changed.
        """
        self.stop()
        self.tun = tun
        try:
            self._start()
        except (OSError, RouteError) as error:
            self.stop()
            if isinstance(error, RouteError):
                raise
            raise RouteError(f"--setup: {_reason(error)}") from error

    def _start(self) -> None:
        for network in self._networks:
            self._take(network, f"--capture {network}: another process here captures it")
        devices = self._devices()
        for name in filter(None, (self._interface, self.tun)):
            if name not in devices:
                raise RouteError(f"--setup: there is no interface {name}")
        self._sweep(devices)
        # What the sweep has written on a device is not to be written there once more.
        devices = self._devices()
        for network in self._networks:
            self._lead(network, devices)
        for family in self._families if self.tun else ():
            self._forward(family)
        if self._mtu:
            self._shorten(devices[self._interface])

    def _devices(self) -> dict[str, Device]:
        return {device.name: device for device in self._system.devices()}

    def _take(self, name: str, taken: str) -> None:
        try:
            self._names.append(self._hold(name))
        except OSError as error:
            raise RouteError(taken if error.errno == errno.EADDRINUSE else f"--setup: {error.strerror}") from error

    def _lead(self, network: str, devices: dict[str, Device]) -> None:
        route = self._routeFor(network, devices)
        try:
            self._system.addRoute(route)
        except FileExistsError:
            raise RouteError(
                f"--capture {network}: there is such a route already; remove it, or leave out --setup"
            ) from None
        self._routes[network] = route
        self._undo.append((self._leaveAlone, (network,)))
        if self.tun:
            self._discard(network)

    def _routeFor(self, network: str, devices: dict[str, Device]) -> KernelRoute:
        metric = USUAL_METRIC[_familyOf(network)]
        if not self.tun:
            return KernelRoute(network, 0, metric=metric, protocol=PROTOCOL, silent=True)
        source, number = self._sourceOf(network, devices), devices[self.tun].number
        return KernelRoute(network, number, metric=metric, protocol=PROTOCOL, source=source)

    def _sourceOf(self, network: str, devices: dict[str, Device]) -> str:
        """The address of the interface that packets of this host to a network bear; empty: it has none."""
        sources = devices[self._interface].sources if self._interface in devices else ()
        return next((each for each in sources if _familyOf(each) == _familyOf(network)), "")

    def _leaveAlone(self, network: str) -> None:
        self._system.removeRoute(self._routes.pop(network))

    def _discard(self, network: str) -> None:
        # It may fail halfway, and leave a table without a rule.
        self._undo.append((self._discards.remove, (network,)))
        try:
            self._discards.add(network, self._interface)
        except OSError as error:
            raise _withoutNftables(error) from error

    def _forward(self, family: int) -> None:
        """What comes out of the TUN goes further. That ends with the TUN, so nothing is to be undone."""
        try:
            self._system.forward(self.tun, family)
        except OSError:
            if family == 4:
                raise
            # Where it can not be done for one device, it is not for us to make a router of the host.
            self._log.warn("IPv6 from the peer is not forwarded before: sysctl -w net.ipv6.conf.all.forwarding=1")

    # -- other addresses

    def renew(self) -> None:
        """The host has got other addresses: what it sends itself bears one that is there."""
        devices = self._devicesIfAny() if self.tun and self._routes else {}
        if self.tun not in devices:
            return
        for network, route in list(self._routes.items()):
            try:
                self._renewOne(route, self._routeFor(network, devices))
            except OSError as error:
                self._log.warn("not changed, {what}: {error}", what=route, error=_reason(error))

    def _renewOne(self, route: KernelRoute, wanted: KernelRoute) -> None:
        if wanted != route:
            _unlessGone(self._system.removeRoute, route)
            self._routes[route.network] = wanted
        with suppress(FileExistsError):
            self._system.addRoute(wanted)

    # -- the interface's MTU

    def _shorten(self, device: Device) -> None:
        """Write on the interface what its MTU was, and change it. If another process of ours has done so, leave it."""
        try:
            self._names.append(self._hold(_mtuName(device)))
        except OSError:
            return
        alias = f"{device.alias} [udptunnel l3-tunnel: mtu was {device.mtu}]".strip()
        if len(alias.encode()) > _LARGEST_ALIAS:
            raise RouteError(f"--interface {device.name}: its alias leaves no room to write down what its MTU was")
        self._system.setAlias(device.number, alias)
        self._undo.append((self._restore, (device.name,)))
        self._system.setMtu(device.number, self._mtu)

    def _restore(self, name: str) -> None:
        """Give an interface back the MTU that is written on it."""
        for device in self._system.devices():
            if device.name == name and (found := _MARK.search(device.alias)):
                self._system.setMtu(device.number, int(found[1]))
                self._system.setAlias(device.number, _MARK.sub("", device.alias))

    # -- what is left over

    def _sweep(self, devices: dict[str, Device]) -> None:
        for network in self._discarded():
            if self._isDead(network):
                _unlessGone(self._discards.remove, network)
        for route in self._system.routes(PROTOCOL):
            if self._isDead(route.network):
                _unlessGone(self._system.removeRoute, route)
        for device in devices.values():
            if _MARK.search(device.alias) and self._isDead(_mtuName(device)):
                self._restore(device.name)

    def _discarded(self) -> list[str]:
        try:
            return self._discards.networks()
        except OSError as error:
            if self.tun:
                raise _withoutNftables(error) from error
            # Where there are no nftables nobody has left any, and with raw sockets none are needed.
            return []

    def _isDead(self, name: str) -> bool:
        """Whether nobody holds a name, or only we do."""
        if name in self._networks:
            return True
        try:
            self._hold(name).close()
        except OSError:
            return False
        return True

    # -- stop

    def stop(self) -> None:
        """Make everything as it was before. What is gone already is gone."""
        while self._undo:
            call, arguments = self._undo.pop()
            try:
                call(*arguments)
            except OSError as error:
                if error.errno not in _GONE:
                    self._log.warn("not removed, {what}: {error}", what=arguments, error=_reason(error))
        while self._names:
            self._names.pop().close()


_FORWARDING = {
    4: "sysctl -w net.ipv4.conf.{}.forwarding=1",
    6: "sysctl -w net.ipv6.conf.{}.force_forwarding=1 || sysctl -w net.ipv6.conf.all.forwarding=1",
}
"""The first one for IPv6 is there since Linux 6.17."""


def _familyOf(network: str) -> int:
    return 6 if ":" in network else 4


def _mtuName(device: Device) -> str:
    return f"mtu of {device.name}"


def _unlessGone(call: Callable[..., None], what: KernelRoute | str) -> None:
    try:
        call(what)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _withoutNftables(error: OSError) -> OSError | RouteError:
    """What is to be said when nftables can not be used."""
    if error.errno == errno.EPERM:
        return error
    return RouteError(f"--setup: nftables can not drop what was captured: {_reason(error)}; use --inject raw")


def _reason(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "routes need root or CAP_NET_ADMIN"
    return os.strerror(error.errno) if error.errno else str(error)
