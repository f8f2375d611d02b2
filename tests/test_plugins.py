"""Tests for twisted/plugins, and for the roles as twistd starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT

TWISTD = "from twisted.scripts.twistd import run; run()"

FIND = """
import json, sys
from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import IStreamClientEndpointStringParserWithReactor
from twisted.plugin import getPlugins
roles = {maker.tapname: maker.module for maker in getPlugins(IServiceMaker) if maker.module.startswith("udptunnel")}
parsers = [parser.prefix for parser in getPlugins(IStreamClientEndpointStringParserWithReactor)]
print(json.dumps([roles, parsers, sorted(name for name in sys.modules if name.startswith("udptunnel"))]))
"""

IMPORT = """
import json, sys
import twisted.plugins.udptunnel_plugins, twisted.plugins.udptunnel_endpoints
print(json.dumps(sorted(sys.modules)))
"""


def environment() -> dict[str, str]:
    """For a process that is to find this package and its plugins wherever it runs."""
    return {**os.environ, "PYTHONPATH": ROOT}


class ProcessTestCase(SynchronousTestCase):
    """What must be seen from outside: each test runs a process in a folder of its own."""

    def run_(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program to its end."""
        folder = self.mktemp()
        os.makedirs(folder)
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)


class PluginTests(ProcessTestCase):
    """What Twisted finds."""

    def test_found(self) -> None:
        """Twisted finds all roles and the parser of socks5: endpoints, without loading any of the package."""
        done = self.run_(FIND)
        self.assertEqual(done.returncode, 0, done.stderr)
        roles, parsers, loaded = json.loads(done.stdout)
        expected = {
            "udp-local": "udptunnel.tap.local",
            "udp-server": "udptunnel.tap.server",
            "tun2socks": "udptunnel.tap.tun2socks",
            "proxy-controller": "udptunnel.tap.controller",
            "l3-tunnel": "udptunnel.tap.l3",
        }
        self.assertEqual(roles, expected)
        self.assertIn("socks5", parsers)
        self.assertEqual(loaded, [])

    def test_light(self) -> None:
        """The plugin modules load neither the package nor a reactor: every twistd on the machine reads them."""
        done = self.run_(IMPORT)
        self.assertEqual(done.returncode, 0, done.stderr)
        loaded = json.loads(done.stdout)
        self.assertIn("twisted.plugins.udptunnel_plugins", loaded)
        heavy = [name for name in loaded if name.startswith("udptunnel") or name == "twisted.internet.reactor"]
        self.assertEqual(heavy, [])


class TwistdTests(ProcessTestCase):
    """The roles as twistd starts them."""

    def twistd(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run twistd in the foreground to its end."""
        return self.run_(TWISTD, "-n", *words)

    def test_list(self) -> None:
        """twistd lists all roles with what they do."""
        done = self.run_(TWISTD, "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("udp-local", done.stdout)
        self.assertIn("udp-server", done.stdout)
        self.assertIn("tun2socks", done.stdout)
        self.assertIn("proxy-controller", done.stdout)
        self.assertIn("l3-tunnel", done.stdout)

    def test_help(self) -> None:
        """Each role has a help with examples."""
        for role, example in (
            ("udp-local", "--forward 127.0.0.1:5353=9.9.9.9:53"),
            ("udp-server", "--allow 10.1.0.0/16"),
            ("tun2socks", "--udp-socks-server-addr 127.0.0.1:1234"),
            ("proxy-controller", "--socket /run/udptunnel.sock"),
            ("l3-tunnel", "udptunnel genkey >tunnel.key"),
        ):
            done = self.twistd(role, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn(example, done.stdout)

    def test_wrongOption(self) -> None:
        """A wrong option ends the process with status 1 and one line on the error output."""
        for words, expected in (
            (("udp-local", "--links", "0"), "--links 0: expected a whole number from 1 to 64"),
            (("udp-local", "--server", "nonsense"), "--server nonsense"),
            (("udp-server", "--deny", "moon"), "moon"),
            (("tun2socks", "--tundev", "tun0"), "--socks-server-addr HOST:PORT is missing"),
            (("tun2socks", "--fwmark", "red"), "--fwmark red: expected a whole number"),
            (("proxy-controller",), "--socket: expected the PATH"),
            (("l3-tunnel",), "--interface NAME is missing"),
        ):
            done = self.twistd(*words)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn(expected, done.stderr)
            self.assertEqual(done.stdout, "")

    def test_taken(self) -> None:
        """A port that is taken ends the process with status 1, and the last line names it."""
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            stream = f"tcp:{tcp.getsockname()[1]}:interface=127.0.0.1"
            datagrams = f"127.0.0.1:{udp.getsockname()[1]}"
            for words, expected in (
                (("udp-local", "--socks", stream), f"--socks {stream}"),
                (("udp-server", "--listen", stream), f"--listen {stream}"),
                (("udp-local", "--socks", "none", "--forward", f"{datagrams}=9.9.9.9:53"), datagrams),
            ):
                done = self.twistd(*words)
                self.assertEqual(done.returncode, 1)
                last = (done.stdout + done.stderr).splitlines()[-1]
                self.assertIn(expected, last)
                self.assertIn("Address already in use", last)

    def test_strangers(self) -> None:
        """A listener that others could reach ends the process, and the last line names the way out."""
        for words in (("udp-local", "--socks", "tcp:0"), ("udp-server", "--listen", "tcp:0")):
            done = self.twistd(*words)
            self.assertEqual(done.returncode, 1)
            self.assertIn("--insecure-no-auth", (done.stdout + done.stderr).splitlines()[-1])
