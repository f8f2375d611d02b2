"""Tests for L{udptunnel.ping}."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from tests.services.tunnel import TunnelTestCase
from tests.tap.test_local import ROOT
from tests.test_console import Outcome
from tests.test_plugins import environment
from tests.waiting import until
from udptunnel.net.socks5client import addressOf
from udptunnel.ping import LARGEST, Ping, PingOptions, Tally
from udptunnel.services.trips import Association
from udptunnel.wire.address import Address


class PingTests(TunnelTestCase):
    """The command with real sockets."""

    def socks(self) -> Address:
        """The SOCKS5 server of a udp-local whose links are up soon."""
        local = self.startLocal(self.startServer())
        assert local.door is not None
        return addressOf(local.door.address)

    async def ping(self, *words: str) -> int:
        """Run the command, and keep what it says."""
        self.said: list[str] = []
        options = PingOptions()
        options.parseOptions(["--interval", "0.01", *words])
        self.ran = Ping(reactor, options, self.said.append)
        return await self.ran.run()

    async def test_echo(self) -> None:
        """Each datagram that comes back is shown with its time, and what came of all at the end."""
        for size in (8, 56, LARGEST):
            code = await self.ping("--to", str(self.echo()), "--socks", str(self.socks()), "--size", str(size))
            self.assertEqual((code, len(self.ran.tally.trips)), (0, 4))
            self.assertRegex("\n".join(self.said[1:]), r"^(\d: [0-9.]+ ms\n){4}4 sent, 4 back, 0 % lost, least ")

    async def test_nobody(self) -> None:
        """If nothing comes back, that is said with what to look at, and the status is 1."""
        port, _ = self.application()
        self._beImpatient()
        code = await self.ping("--to", str(port.address), "--socks", str(self.socks()), "--count", "2")
        self.assertEqual(code, 1)
        self.assertEqual(self.said[1:4], ["1: nothing", "2: nothing", "2 sent, 0 back, 100 % lost"])
        self.assertIn("is there a UDP echo target", self.said[4])

    async def test_noEcho(self) -> None:
        """A target that answers something else is said to be no echo target."""
        port, receiver = self.application()

        def answer(bursts: Any) -> None:
            port.send(bursts[0].source, 5, b"other")

        self.patch(receiver, "burstsReceived", answer)
        self._beImpatient()
        code = await self.ping("--to", str(port.address), "--socks", str(self.socks()), "--count", "1")
        self.assertEqual(code, 1)
        self.assertIn("it is no echo target", self.said[-1])

    def _beImpatient(self) -> None:
        self.patch(Association.trip, "__defaults__", (0.1,))

    async def test_server(self) -> None:
        """Without any datagram, PINGs go over a link."""
        server = self.startServer()
        code = await self.ping("--server", f"tcp:127.0.0.1:{addressOf(server.listeners[0].address).port}")
        self.assertEqual((code, len(self.ran.tally.trips)), (0, 4))
        self.assertEqual(server.report()["sent"], 0)

    async def test_interrupted(self) -> None:
        """Who stops it is shown what came of it so far, and the status is that of what was seen."""
        self.said = []
        options = PingOptions()
        options.parseOptions(["--to", str(self.echo()), "--socks", str(self.socks())])
        running = Deferred.fromCoroutine(Ping(reactor, options, self.said.append).run())
        await until(lambda: len(self.said) == 2)
        running.cancel()
        self.assertEqual(await running, 0)
        self.assertIn("1 sent, 1 back", self.said[-1])

    async def test_command(self) -> None:
        """As a process it says what is wrong in one line, and ends with its status."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        command = [sys.executable, "-c", "from udptunnel.console import main; main()", "ping"]
        command += ["--server", f"tcp:127.0.0.1:{port}"]

        def run() -> Any:
            return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)

        done = await deferToThread(run)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^udptunnel ping: .*refused.*\n$")


class TallyTests(SynchronousTestCase):
    """L{Tally}."""

    def test_lost(self) -> None:
        """Those that did not come back count as lost."""
        said: list[str] = []
        tally = Tally(said.append)
        for seconds in (0.01, None, 0.02):
            tally.add(seconds)
        self.assertEqual(said, ["1: 10.00 ms", "2: nothing", "3: 20.00 ms"])
        self.assertEqual(str(tally), "3 sent, 2 back, 33 % lost, least 10.00, median 15.00, most 20.00 ms")


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_wrong(self) -> None:
        """There must be one place to send to, and each value must be one; else one line says so."""
        for words in (
            (),
            ("--to", "127.0.0.1:9", "--server", "tcp:x:1"),
            ("--to", "nonsense"),
            ("--to", "127.0.0.1:9", "--size", "7"),
            ("--to", "127.0.0.1:9", "--size", "65486"),
            ("--to", "127.0.0.1:9", "--count", "0"),
            ("--to", "127.0.0.1:9", "x"),
        ):
            outcome = Outcome("ping", *words)
            self.assertEqual((outcome.status, outcome.out), (1, ""), words)
            self.assertEqual(len(outcome.err.splitlines()), 1, outcome.err)

    def test_link(self) -> None:
        """The options for a link mean what they mean to udp-local."""
        options = PingOptions()
        options.parseOptions(["--server", "tcp:x:1", "--via", "127.0.0.1:1080", "--tls-trust", "ca.pem"])
        config = options.config()
        self.assertEqual((config.server, config.via), (("tcp:x:1",), Address("127.0.0.1", 1080)))
        self.assertEqual((config.tlsTrust, config.tls), ("ca.pem", None))
