"""Datagrams of all sizes, empty ones included, both ways."""

from __future__ import annotations

import os

from tests.system.clients import Echo, SocksClient, exchange, open_
from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, SOCKS, SystemTestCase

SIZES = (0, 1, 1472, 1473, 8192, 8193, 65507)
HEADERS = {"IPv4": 10, "IPv6": 22}
"""Bytes of a SOCKS5 header."""

LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
TARGET = {"IPv4": Network.atTarget[0], "IPv6": Network.atTarget[1]}


class SizeTests(SystemTestCase):
    """What is sent comes back as it was, with all offloads of this kernel and with none."""

    def setUp(self) -> None:
        super().setUp()
        echo = Echo(self.network.target, *((host, ECHO) for host in TARGET.values()))
        self.addCleanup(echo.close)

    def startWith(self, *options: str) -> None:
        self.startServer(*options)
        four, six = (f"{LOOPBACK[family]}:{FORWARD}={TARGET[family]}:{ECHO}" for family in ("IPv4", "IPv6"))
        six = six.replace("::1:", "[::1]:").replace(f"{TARGET['IPv6']}:", f"[{TARGET['IPv6']}]:")
        self.startLocal("--forward", four, "--forward", six, *options).says("is up")
        self.startLocal("--socks", f"tcp6:{SOCKS}:interface=\\:\\:1", *options).says("is up")

    def assertForwarded(self) -> None:
        for family, here in LOOPBACK.items():
            with open_(self.network.client, here) as udp:
                for size in SIZES:
                    payload = os.urandom(size)
                    self.assertTrue(exchange(udp, (here, FORWARD), payload) == payload, f"{size} bytes over {family}")

    def assertRelayed(self) -> None:
        for family, here in LOOPBACK.items():
            for targetFamily, host in TARGET.items():
                client = SocksClient(self.network.client, here)
                self.addCleanup(client.close)
                for size in SIZES:
                    payload = os.urandom(min(size, SIZES[-1] - HEADERS[targetFamily]))
                    source, received = client.exchange((host, ECHO), payload)
                    self.assertEqual(source, (host, ECHO))
                    self.assertTrue(received == payload, f"{size} bytes over {family} to {targetFamily}")

    def test_forward(self) -> None:
        """Through a forward, over IPv4 and IPv6."""
        self.startWith()
        self.assertForwarded()

    def test_socks5(self) -> None:
        """Through SOCKS5, whose header takes some bytes of the largest, over IPv4 and IPv6 to targets of both."""
        self.startWith()
        self.assertRelayed()

    def test_withoutOffload(self) -> None:
        """The portable path does the same."""
        self.startWith("--offload", "none")
        self.assertForwarded()
        self.assertRelayed()
