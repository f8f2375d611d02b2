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


class ExampleTests(TunnelTestCase):
    """Each in a process of its own."""

    async def run_(self, *words: str) -> str:
        """What a Python program prints that ends well."""
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        out, errors, status = await getProcessOutputAndValue(sys.executable, words, environment)
        self.assertEqual(status, 0, errors.decode())
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

    async def test_hundredTimes(self) -> None:
        """A hundred starts and stops leave no descriptor, thread or delayed call behind, and the program ends."""
        said = await self.run_("-m", "tests.api.again", "100")
        before, after = said.splitlines()
        self.assertEqual(after, before)
