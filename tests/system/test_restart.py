"""Either end is killed, and started again, in any order."""

from __future__ import annotations

import socket
import threading
import time

from tests.system.clients import Echo, open_
from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, LINK, SystemTestCase, until

LOOPBACK = "127.0.0.1"
AGAIN_SECONDS = 2.0
"""Echoes come again this soon after what was missing is ready."""


class Pulse(threading.Thread):
    """
    Sends a numbered datagram every 10 ms.

    @ivar last: when the one that has come back last was sent.
    """

    def __init__(self, udp: socket.socket, to: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.last = 0.0
        self._udp = udp
        self._to = to
        self._over = threading.Event()
        udp.setblocking(False)
        self.start()

    def run(self) -> None:
        sentAt: list[float] = []
        while not self._over.wait(0.01):
            self._udp.sendto(b"%d" % len(sentAt), self._to)
            sentAt.append(time.monotonic())
            try:
                while True:
                    self.last = max(self.last, sentAt[int(self._udp.recv(100))])
            except BlockingIOError:
                pass

    def stop(self) -> None:
        """Send no more."""
        self._over.set()
        self.join()


class RestartTestCase(SystemTestCase):
    """With datagrams that travel all the time."""

    def setUp(self) -> None:
        super().setUp()
        echo = Echo(self.network.target, (Network.atTarget[0], ECHO))
        self.addCleanup(echo.close)
        udp = open_(self.network.client, LOOPBACK)
        self.addCleanup(udp.close)
        self.pulse = Pulse(udp, (LOOPBACK, FORWARD))
        self.addCleanup(self.pulse.stop)
        self.options = "--forward", f"{LOOPBACK}:{FORWARD}={Network.atTarget[0]}:{ECHO}"

    def assertBeats(self, what: str) -> None:
        """Something that is sent from now on comes back soon."""
        now = time.monotonic()
        until(lambda: self.pulse.last > now, f"no echo, {what}", AGAIN_SECONDS)

    def assertSilent(self) -> None:
        """Nothing comes back any more."""
        until(lambda: time.monotonic() - self.pulse.last > 0.3, "echoes come from somewhere")


class RestartTests(RestartTestCase):
    """C{kill -9}; nothing is done to the other end."""

    def test_server(self) -> None:
        """A udp-server that was killed is found again when it is back, twice."""
        server, _ = self.startBoth(*self.options)
        for _ in range(2):
            self.assertBeats("at first")
            server.kill()
            self.assertSilent()
            server = self.startServer()
            self.assertBeats("although udp-server is back")

    def test_local(self) -> None:
        """A udp-local that was killed goes on when it is back, twice."""
        _, local = self.startBoth(*self.options)
        for _ in range(2):
            self.assertBeats("at first")
            local.kill()
            self.assertSilent()
            local = self.startLocal(*self.options)
            self.assertBeats("although udp-local is back")

    def test_both(self) -> None:
        """Both may be killed."""
        server, local = self.startBoth(*self.options)
        self.assertBeats("at first")
        server.kill()
        local.kill()
        self.assertSilent()
        self.startLocal(*self.options)
        self.startServer()
        self.assertBeats("although both are back")

    def test_localFirst(self) -> None:
        """udp-local may be started first; it waits."""
        self.startLocal(*self.options)
        self.startServer()
        self.assertBeats("although both are there")

    def test_serverFirst(self) -> None:
        """udp-server may be started first."""
        self.startServer()
        self.startLocal(*self.options)
        self.assertBeats("although both are there")


class TunnelRestartTests(RestartTestCase):
    """
    The same behind ss-tunnel.

    It accepts whatever is behind it, so that udp-local is connected all the
    time, and cut off at once.
    """

    programs = "ss-tunnel", "ss-server"

    def test_server(self) -> None:
        """A udp-server that was killed is found again when it is back, and udp-local waits calmly until then."""
        server = self.startServer(host=LOOPBACK)
        carrier = self.startShadowsocks("ss-tunnel", LINK, "-L", f"{LOOPBACK}:{LINK}")
        local = self.startLocal(*self.options, server=f"tcp:{LOOPBACK}:{LINK}").says("is up")
        self.assertBeats("at first")
        server.kill()
        self.assertSilent()
        carrier.says("connect to", times=5)
        self.assertEqual(local.said.count("is up"), 1)
        self.startServer(host=LOOPBACK)
        self.assertBeats("although udp-server is back")
