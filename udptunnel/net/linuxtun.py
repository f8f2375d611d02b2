"""TUNs of Linux, by way of python-pytun and pyroute2."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from udptunnel.net.platforms import fcntl, require
from udptunnel.net.tundevice import Interface
from udptunnel.wire.frame import Buffer

IFA_F_NODAD = 0x02
"""From linux/if_addr.h: nobody else can have an address on a wire that ends in this process."""


class LinuxSystem:
    """Linux, by way of python-pytun and pyroute2, which are looked for only when they are needed."""

    def open(self, name: str, flags: int) -> int:
        """
        Make a device, or join one that is there.

        @raise MissingError: there are no TUNs here, or what we need for them is not installed.
        """
        require("a TUN")
        from pytun import TunTapDevice

        device = TunTapDevice(name=name, flags=flags)
        try:
            # The device would close its own descriptor when it is forgotten, and hand it on to every child until then.
            return os.dup(device.fileno())
        finally:
            device.close()

    def close(self, descriptor: int) -> None:
        """Let go of a device."""
        os.close(descriptor)

    def read(self, descriptor: int, buffer: memoryview) -> int:
        """Put the next packet into a buffer."""
        return os.readv(descriptor, (buffer,))

    def write(self, descriptor: int, buffers: Sequence[Buffer]) -> int:
        """Write one packet."""
        return os.writev(descriptor, buffers)

    def ioctl(self, descriptor: int, request: int, argument: int | bytes) -> Any:
        """
        As C{fcntl.ioctl}.

        @raise MissingError: there is none.
        """
        require("a TUN of somebody else")
        return fcntl.ioctl(descriptor, request, argument)

    def configure(self, name: str, interface: Interface) -> None:
        """Give a device what it is to have, and set it up."""
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        _silence(name)
        try:
            with IPRoute() as route:
                _configure(route, name, interface)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    def addresses(self, name: str) -> list[str]:
        """
        ADDRESS/LENGTH of each that a device has.

        @raise MissingError: as L{open}.
        """
        if not name:
            return []
        require("a TUN")
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            with IPRoute() as route:
                return [
                    f"{each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}"
                    for index in route.link_lookup(ifname=name)
                    for each in route.get_addr(index=index)
                ]
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error


def _configure(route: Any, name: str, interface: Interface) -> None:
    (index,) = route.link_lookup(ifname=name)
    route.link("set", index=index, mtu=interface.mtu, txqlen=interface.queue)
    for each in interface.addresses:
        address, _, length = each.partition("/")
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        route.addr("replace", index=index, address=address, prefixlen=int(length), **flags)
    route.link("set", index=index, state="up")


def _silence(name: str) -> None:
    """Have IPv6 neither make up an address nor ask for routers: nobody answers. It may be switched off altogether."""
    for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0")):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/{key}", "w", encoding="ascii") as file:
                file.write(value)
        except OSError:
            continue
