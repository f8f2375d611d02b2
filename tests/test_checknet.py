"""Tests for L{udptunnel.checknet}."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.services.tunnel import TunnelTestCase
from tests.tap.test_local import ROOT
from tests.test_console import Outcome
from tests.test_plugins import environment
from udptunnel.checknet import CheckNetOptions, walkAll
from udptunnel.errors import ConfigError
from udptunnel.net.offload import probe
from udptunnel.net.platforms import isPortable
from udptunnel.net.socks5client import addressOf


class CheckNetTests(TunnelTestCase):
    """The command."""

    def at(self) -> str:
        """Where a udp-server is."""
        return f"tcp:127.0.0.1:{addressOf(self.startServer().listeners[0].address).port}"

    def closed(self) -> str:
        """Where none is."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            return f"tcp:127.0.0.1:{closed.getsockname()[1]}"

    def file(self, text: str) -> str:
        """A configuration file with this in it."""
        name = self.mktemp()
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
        return name

    async def walk(self, *words: str) -> int:
        """Run the command, and keep what it says."""
        self.said: list[str] = []
        options = CheckNetOptions()
        options.parseOptions(list(words))
        return await walkAll(reactor, options, self.said.append)

    async def test_file(self) -> None:
        """The way to udp-server is taken from a file; what stands on the command line goes first."""
        name = self.file(f'[udp-local]\nserver = "{self.closed()}"\nlinks = 4\n')
        self.assertEqual(await self.walk(name), 1)
        at = self.at()
        self.assertEqual(await self.walk("--server", at, name), 0)
        self.assertEqual(self.said[0], f"udp-server at {at}")

    async def test_portable(self) -> None:
        """Where this end takes the portable path, that is said in the end, and nowhere else."""
        self.assertEqual(await self.walk("--server", self.at()), 0)
        said = [place for place, line in enumerate(self.said) if "portable path" in line]
        self.assertEqual(said, [len(self.said) - 1] if isPortable(reactor, probe()) else [])

    async def test_several(self) -> None:
        """Each of several servers is walked to; if one is not reached, the status is 1."""
        good, bad = self.at(), self.closed()
        name = self.file(f'[udp-local]\nserver = ["{bad}", "{good}"]\n')
        self.assertEqual(await self.walk(name), 1)
        self.assertEqual(
            [line for line in self.said if line.startswith("udp-server at")],
            [f"udp-server at {each}" for each in (bad, good)],
        )
        self.assertIn("welcomes us", "\n".join(self.said))

    async def test_wrongFile(self) -> None:
        """A file that can not be read, or has something wrong in it, is named with what is wrong."""
        for name, text in (
            ("/no/such/file", "No such file"),
            (self.file("[udp-server]\n"), "there is no table [udp-local]"),
            (self.file("[udp-local]\nlinks = 0\n"), "line 2"),
        ):
            with self.assertRaises(ConfigError) as caught:
                await self.walk(name)
            self.assertIn(name, str(caught.exception))
            self.assertIn(text, str(caught.exception))

    async def test_command(self) -> None:
        """As a process it says the same and ends with its status."""

        def run(server: str) -> Any:
            command = [sys.executable, "-c", "from udptunnel.console import main; main()", "check-net"]
            command += ["--server", server]
            return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)

        done = await deferToThread(run, self.at())
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("udp-server welcomes us", done.stdout)
        done = await deferToThread(run, self.closed())
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        self.assertIn("FAILED", done.stdout)

    def test_wrong(self) -> None:
        """Something must say where udp-server is, in words that can be understood; else one line says so."""
        for words in (
            (),
            ("a", "b"),
            ("--server", "tcp:x:1", "--echo", "x"),
            ("--server", "tcp:x:1", "--timeout", "0"),
        ):
            outcome = Outcome("check-net", *words)
            self.assertEqual((outcome.status, outcome.out), (1, ""), words)
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)
