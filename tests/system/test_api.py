"""A host with packets only: they are handed in by call, reach real servers, and the answers come by callback."""

from __future__ import annotations

import sys

from tests.system.namespaces import Namespace, Network
from tests.system.programs import LINK, REPOSITORY, Program, until
from tests.system.tunnelled import PROXY, WEB, TunnelledTestCase

DEVICE = "phone0"


class PacketTests(TunnelledTestCase):
    """
    docs/examples/embed_packets.py, as it stands.

    Its device is moved to a namespace with nothing else in it, where the
    applications are: no packet of theirs gets out but by the program.
    """

    programs = "dig", "dnsmasq", "curl", "microsocks"

    def setUp(self) -> None:
        super().setUp()
        self.phone = Namespace("p")
        self.addCleanup(self.phone.remove)
        self.startServer()
        self.startMicrosocks()
        self.startNameServer("--address=/name.test/10.77.2.9")
        self.program = self.startHost()

    def startHost(self) -> Program:
        """Start the program, and give its device to the phone."""
        words = f"tcp:{Network.atServer[0]}:{LINK}", f"{Network.atServer[0]}:{PROXY}"
        path = str(REPOSITORY / "docs/examples/embed_packets.py")
        program = self.start(self.network.client, sys.executable, path, DEVICE, *words)
        program.says("TCP by stack netns").says("is up")
        self.network.client.ip("link", "set", DEVICE, "netns", self.phone.name)
        self.phone.addAddress("10.5.0.2/32", DEVICE)
        self.phone.addAddress("fd00:5::2/128", DEVICE)
        self.phone.ip("link", "set", DEVICE, "mtu", "1400", "up")
        for family in ("-4", "-6"):
            self.phone.ip(family, "route", "add", "default", "dev", DEVICE)
        return program

    def test_servers(self) -> None:
        """A DNS server and HTTP servers answer, over IPv4 and IPv6, and so does udp-server for what is long."""
        for transport in ("+notcp", "+tcp"):
            words = "dig", "+short", "+time=5", "+tries=2", transport, f"@{Network.atTarget[0]}", "name.test"
            self.assertEqual(self.ask(self.phone, *words), "10.77.2.9\n")
        for host in Network.atTarget:
            self.addWeb(host)
            shown = f"[{host}]" if ":" in host else host
            said = self.ask(self.phone, "curl", "-sS", "-m", "10", f"http://{shown}:{WEB}/page")
            self.assertEqual(said, "This is /page.\n")
        self.program.process.terminate()
        until(lambda: self.program.process.poll() is not None, "the program ends")
        self.assertNotIn("Traceback", self.program.said)
