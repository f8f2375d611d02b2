"""Links through a carrier that waits for acknowledgements before it sends small segments."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from statistics import median

from tests.system.namespaces import Namespace
from tests.system.programs import ECHO, FORWARD, LINK, REPOSITORY, TWISTD, Program, SystemTestCase, until

ESTABLISHED = "01"
"""The state in C{/proc/net/tcp}."""

NEAR, FAR = "127.0.0.1", "10.77.0.2"
DELAY_MILLISECONDS = 50
PAYLOAD_BYTES, INTERVAL_SECONDS, DATAGRAMS = 104, 0.02, 200


class ScheduleTests(SystemTestCase):
    """
    C{--schedule idle}, through ss-tunnel and simple-obfs, over 50 ms of one way.

    simple-obfs leaves Nagle's algorithm on: with one link a datagram waits
    until the one before it is acknowledged, which takes two ways.
    """

    alone = True
    programs = "ss-server", "ss-tunnel", "obfs-local", "obfs-server"

    def setUp(self) -> None:
        super().setUp()
        self.near, self.far = (self.add(role) for role in "nf")
        self.startWan()
        self.startCarrier()
        words = "udp-server", "--allow", "127.0.0.0/8"
        self.start(self.far, *TWISTD, *words).listens(LINK)

    def add(self, role: str) -> Namespace:
        namespace = Namespace(role)
        self.addCleanup(namespace.remove)
        return namespace

    def startWan(self) -> Program:
        words = [sys.executable, "-m", "bench.wan", "--a", self.near.name, "--b", self.far.name]
        wan = self.start(
            self.network.client, "env", "-C", str(REPOSITORY), *words, "--delay-ms", "50", "--rate-mbit", "100"
        )
        # It is started outside of the two namespaces, and enters them by itself.
        return wan.says("up")

    def startCarrier(self) -> None:
        both = "-s", FAR, "-p", "8388", "-k", "secret", "-m", "aes-256-gcm", "--no-delay"
        far = "--plugin", "obfs-server", "--plugin-opts", "obfs=http"
        near = "--plugin", "obfs-local", "--plugin-opts", "obfs=http;obfs-host=www.example.org"
        self.start(self.far, "ss-server", *both, *far).listens(8388)
        tunnel = "ss-tunnel", *both, *near, "-b", NEAR, "-l", str(LINK), "-L", f"{NEAR}:{LINK}"
        self.start(self.near, *tunnel).listens(LINK)

    def oneWayTimes(self, links: int, *options: str) -> list[float]:
        """How long each of some datagrams took to a target at the far end, in milliseconds."""
        forward = f"{NEAR}:{FORWARD}={NEAR}:{ECHO}"
        words = "udp-local", "--socks", "none", "--forward", forward, "--links", str(links), *options
        local = self.start(self.near, *TWISTD, *words).says("is up")
        until(lambda: self._linksAtServer() == links, f"there are not {links} links")
        with self.far.entered():
            target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with self.near.entered():
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with target, source:
            target.bind((NEAR, ECHO))
            target.setblocking(False)
            times = self._send(source, target)
        local.stop()
        return times

    def _linksAtServer(self) -> int:
        with self.far.entered():
            lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
        return sum(int(line[1].rpartition(":")[2], 16) == LINK and line[3] == ESTABLISHED for line in lines)

    def _send(self, source: socket.socket, target: socket.socket) -> list[float]:
        sentAt: dict[int, float] = {}
        times: list[float] = []

        def receive() -> None:
            try:
                while data := target.recv(2000):
                    times.append(1e3 * (time.monotonic() - sentAt[int.from_bytes(data[:8], "big")]))
            except BlockingIOError:
                pass

        begin = time.monotonic()
        for number in range(DATAGRAMS):
            while time.monotonic() < begin + number * INTERVAL_SECONDS:
                receive()
                time.sleep(0.0005)
            sentAt[number] = time.monotonic()
            source.sendto(number.to_bytes(8, "big") + bytes(PAYLOAD_BYTES - 8), (NEAR, FORWARD))
        until(lambda: receive() or len(times) >= DATAGRAMS * 0.98, "not all datagrams arrive")
        return times

    def test_idle(self) -> None:
        """Six links in turn take the carrier's delay away: half of the datagrams need no more than the way itself."""
        one = median(self.oneWayTimes(1))
        six = median(self.oneWayTimes(6, "--schedule", "idle"))
        print(f"one link {one:.1f} ms, six {six:.1f} ms")
        self.assertLess(six, DELAY_MILLISECONDS + 10, f"with one link it is {one:.1f} ms")
        self.assertGreater(one, six)
