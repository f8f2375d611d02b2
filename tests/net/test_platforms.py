"""Tests for L{udptunnel.net.platforms}; tests.test_platforms is on a system that lacks much of it."""

from __future__ import annotations

import pkgutil
import socket
import sys
from importlib.abc import MetaPathFinder
from unittest.mock import patch

from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

import udptunnel
from udptunnel.errors import ConfigError, ListenError, MissingError
from udptunnel.net import platforms
from udptunnel.net.platforms import (
    LINUX_ONLY,
    NEEDS,
    NO_OPTION,
    PARTS,
    found,
    isPortable,
    missing,
    require,
    socketOption,
)
from udptunnel.net.routes import Capture, Routes


class Refusing(MetaPathFinder):
    """Says of one module that it is not there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pytun":
            raise ModuleNotFoundError(name)


class PlatformsTests(SynchronousTestCase):
    """What there is, and what there is not."""

    def test_found(self) -> None:
        """A module that is there is found; one that is not is C{None}."""
        self.assertIs(found("socket"), socket)
        self.assertIsNone(found("no_such_module"))

    def test_require(self) -> None:
        """Who asks for something is told all that is missing for it, whether the role is made or started."""
        for name, lacks in (("fcntl", True), ("pytun", True), ("pyroute2", False)):
            self.patch(platforms, "PARTS", {**platforms.PARTS, name: lambda lacks=lacks: not lacks})
        error = self.assertRaises(MissingError, require, "a TUN")
        self.assertIn("lacks fcntl, pytun, which a TUN takes", str(error))
        self.assertIsInstance(error, ConfigError)
        self.assertIsInstance(error, ListenError)

    def test_nothingMissing(self) -> None:
        """Where all is there, nothing is said."""
        self.patch(platforms, "PARTS", dict.fromkeys(PARTS, lambda: True))
        for what in NEEDS:
            require(what)
        self.assertEqual(missing(PARTS), [])

    def test_parts(self) -> None:
        """All that is needed for something can be looked for, and every part is needed for something."""
        self.assertEqual({part for parts in NEEDS.values() for part in parts}, set(PARTS))

    def test_routes(self) -> None:
        """Who wants routes where there is no way to set them is told by name."""
        self.patch(platforms, "PARTS", {**dict.fromkeys(PARTS, lambda: True), "rtnetlink": lambda: False})
        routes = Routes(Capture(("10.0.0.0/8",)))
        error = self.assertRaises(ListenError, routes.start, "tun7")
        self.assertIn("lacks rtnetlink, which a route takes", str(error))

    def test_refused(self) -> None:
        """A module that may not be looked for is not there, either."""
        with patch.dict(sys.modules), patch.object(sys, "meta_path", [Refusing()]):
            sys.modules.pop("pytun", None)
            self.assertEqual(missing(["pytun"]), ["pytun"])

    def test_options(self) -> None:
        """Linux's numbers of options are for Linux only: elsewhere they mean something else."""
        self.assertEqual(socketOption("SO_REUSEADDR", 99), socket.SO_REUSEADDR)
        for linux, number in ((True, 33), (False, NO_OPTION)):
            self.patch(platforms, "LINUX", linux)
            self.assertEqual(socketOption("NO_SUCH_OPTION", 33), number)

    def test_noOption(self) -> None:
        """An option that is nowhere is refused by the kernel."""
        with socket.socket() as opened:
            self.assertRaises(OSError, opened.setsockopt, socket.SOL_SOCKET, NO_OPTION, 1)

    def test_linuxOnly(self) -> None:
        """The modules that are of use on Linux only are modules of this package."""
        known = {each.name for each in pkgutil.walk_packages(udptunnel.__path__, "udptunnel.")}
        self.assertEqual(LINUX_ONLY - known, set())

    def test_isPortable(self) -> None:
        """The portable path is select(), and nothing asked of the kernel; anything more is another one."""
        reactor = object.__new__(SelectReactor)
        self.assertTrue(isPortable(reactor, "none"))
        self.assertFalse(isPortable(reactor, "gro,gso"))
        self.assertFalse(isPortable(object(), "none"))
