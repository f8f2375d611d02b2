"""The examples of roles inside other programs, as they stand, and a program that starts and stops them again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue

from tests.services.tunnel import TunnelTestCase, portOf

ROOT = Path(__file__).parent.parent


THREAD = """
from udptunnel.api import start_udp_local, start_udp_server
from udptunnel.config import LocalConfig, ServerConfig

def happened(event, data):
    # Sessions come up in their own time.
    if not type(event).__name__.startswith("Session"):
        print(type(event).__name__, flush=True)

more = {}
server = start_udp_server(ServerConfig(listen=("tcp:0:interface=127.0.0.1",)), happened, log=None, **more)
profile = LocalConfig(socks="none", server=(f"tcp:{server.sockets[0].address}",))
start_udp_local(profile, happened, log=None, **more)
"""

TWISTED = (
    "from twisted.internet import reactor\n"
    + THREAD.replace("more = {}", "more = {'reactor': reactor}")
    + "reactor.callWhenRunning(reactor.stop)\nreactor.run()\n"
)

ENDED = """
from twisted.internet import reactor
reactor.callWhenRunning(reactor.stop)
reactor.run()
from udptunnel.api import start_udp_server
from udptunnel.config import ServerConfig
from udptunnel.errors import TunnelError
try:
    start_udp_server(ServerConfig())
except TunnelError as error:
    print(error)
"""

OUTLIVED = """
import threading
from udptunnel.api import Stopped, start_udp_local
from udptunnel.config import LocalConfig

over = threading.Event()
more = {"callback": lambda event, data: over.set() if isinstance(event, Stopped) else None}
handle = start_udp_local(LocalConfig(socks="none", server=("tcp:127.0.0.1:9",)), **more)

def work():
    over.wait()
    print(handle.send(b"x", ("192.0.2.1", 7), 1), handle.stats()["role"], flush=True)
    handle.stop()

threading.Thread(target=work).start()
"""


class ExampleTests(TunnelTestCase):
    """Each in a process of its own."""

    async def run_(self, *words: str) -> str:
        """What a Python program prints that ends well."""
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        out, errors, status = await getProcessOutputAndValue(sys.executable, words, environment)
        self.errors = errors.decode()
        self.assertEqual(status, 0, self.errors)
        return str(out.decode())

    async def _example(self, name: str) -> None:
        server, target = self.startServer(), self.echo()
        endpoint = f"tcp:127.0.0.1:{portOf(server)}"
        said = await self.run_(str(ROOT / "docs/examples" / name), endpoint, str(target))
        self.assertEqual(said, "".join(f"hello {n} from {target} for {n}\n" for n in range(3)))

    def test_twisted(self) -> Any:
        """docs/examples/embed_twisted.py."""
        return Deferred.fromCoroutine(self._example("embed_twisted.py"))

    def test_asyncio(self) -> Any:
        """docs/examples/embed_asyncio.py."""
        return Deferred.fromCoroutine(self._example("embed_asyncio.py"))

    def test_thread(self) -> Any:
        """docs/examples/embed_thread.py."""
        return Deferred.fromCoroutine(self._example("embed_thread.py"))

    async def test_reactorStops(self) -> None:
        """A reactor that is stopped waits for its roles, and these tell their end."""
        self.assertEqual(await self.run_("-c", TWISTED), "Ready\nReady\nStopped\nStopped\n")

    async def test_programEnds(self) -> None:
        """So does a program that ends without having stopped them."""
        self.assertEqual(await self.run_("-c", THREAD), "Ready\nReady\nStopped\nStopped\n")

    async def test_threadEnded(self) -> None:
        """When the reactor has ended, a role can not be started any more, and that is said."""
        self.assertEqual(
            await self.run_("-c", ENDED), "the reactor of this process has ended, and can not begin again\n"
        )
        self.assertEqual(self.errors, "")

    async def test_mainThreadEnds(self) -> None:
        """So do all roles when the main thread ends before others; what these call then does nothing."""
        self.assertEqual(await self.run_("-c", OUTLIVED), "False udp-local\n")

    async def test_hundredTimes(self) -> None:
        """A hundred starts and stops leave no descriptor, thread or delayed call behind, and the program ends."""
        said = await self.run_("-m", "tests.api.again", "100")
        before, after = said.splitlines()
        self.assertEqual(after, before)
