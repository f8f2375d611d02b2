"""A steady load through both ends."""

from __future__ import annotations

import json
import sys

from tests.system.namespaces import Network
from tests.system.programs import ECHO, FORWARD, SystemTestCase, until

SIZE, RATE, SECONDS = 1400, 20_000, 3
COUNT = RATE * SECONDS


class LoadTests(SystemTestCase):
    """Numbered datagrams from an application to a target."""

    alone = True

    def test_load(self) -> None:
        """Of 20,000 datagrams of 1400 bytes a second nothing is lost, damaged, out of order or there twice."""
        self.startBoth("--forward", f"127.0.0.1:{FORWARD}={Network.atTarget[0]}:{ECHO}")
        load = sys.executable, "-m", "tests.system.load"
        far = self.start(self.network.target, *load, "receive", Network.atTarget[0], *map(str, (ECHO, SIZE, COUNT)))
        far.listens(ECHO, "udp")
        near = self.start(self.network.client, *load, "send", "127.0.0.1", *map(str, (FORWARD, SIZE, RATE, COUNT)))
        for program in (near, far):
            until(lambda program=program: program.process.poll() is not None, f"{program.log.name} does not end", 30)
        self.assertEqual(
            json.loads(far.said), {"received": COUNT, "lost": 0, "damaged": 0, "reordered": 0, "duplicate": 0}
        )
        self.assertGreater(COUNT / json.loads(near.said)["seconds"], 0.95 * RATE)
