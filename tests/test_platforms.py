"""
Tests of all roles on a system that lacks what Windows does (L{tests.elsewhere}).

What was taken away does not come back, so each test runs processes of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.tap.test_local import ROOT
from tests.test_plugins import environment
from udptunnel.net.platforms import LINUX_ONLY, NEEDS

PATIENCE_SECONDS = 60.0

IMPORT_ALL = """
import importlib, pkgutil, sys
from tests.elsewhere import MODULES, go
go()
import udptunnel
for each in pkgutil.walk_packages(udptunnel.__path__, "udptunnel."):
    importlib.import_module(each.name)
assert len([name for name in sys.modules if name.startswith("udptunnel.")]) > 100
assert not MODULES & sys.modules.keys()
from udptunnel.net import offload, platforms, splice
assert str(offload.probe()) == "none" and not platforms.GATHERS and platforms.libc is None
assert not splice.Pipes().spliced
"""

CONVERSATIONS = (
    "tests.services.test_demo.DemoTests.test_run",
    "tests.services.test_resuming.ResumingTests.test_reset",
    "tests.services.test_resuming.ResumingTests.test_waiting",
    "tests.test_checknet.CheckNetTests.test_portable",
)
"""
Datagrams of all sizes there and back, through forwards and SOCKS5; what is said before and after links are cut; and
that check-net says which path it is.
"""

SOCKS = "--socks-server-addr=127.0.0.1:1080"

LACKING = (
    ("twistd -n tun2socks --tundev=tun7 " + SOCKS, 1, "lacks fcntl, pytun, pyroute2, which a TUN takes"),
    ("twistd -n tun2socks --tun-fd=0 " + SOCKS, 1, "lacks fcntl, which a TUN of somebody else takes"),
    ("twistd -n tun2socks --pipe=a.pipe " + SOCKS, 1, "lacks Unix sockets, which a pipe takes"),
    (
        "twistd -n proxy-controller --socket=a.sock",
        1,
        "rtnetlink, fcntl, pytun, pyroute2, which proxy-controller takes",
    ),
    ("twistd -n udp-local --server=tcp:127.0.0.1:9 --socks=none --plugin=python", 1, "lacks process groups"),
    ("udptunnel run -- true", 125, "lacks network namespaces, Unix sockets, sigwaitinfo"),
    ("udptunnel up a.toml", 1, "lacks fork, process groups, fcntl, which udptunnel up takes"),
    ("udptunnel status unix:a.sock", 1, "lacks Unix sockets"),
)
"""Command lines that can not be had there, the exit status, and what is said."""


class ElsewhereTests(SynchronousTestCase):
    """What works there, and what is said where it does not."""

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A process in a folder of its own."""
        folder = self.mktemp()
        os.makedirs(folder)
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        return process

    def assertWorks(self, *words: str) -> str:
        """A process ends well; returns what it has said."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual(process.returncode, 0, said)
        return said

    def test_import(self) -> None:
        """Every module can be imported, and finds out that nothing is there to be used."""
        self.assertWorks("-c", IMPORT_ALL)

    def test_conversations(self) -> None:
        """Both ends carry datagrams both ways by the portable path, and sessions go on after cut links."""
        said = self.assertWorks("-m", "tests.elsewhere", "twisted.trial", *CONVERSATIONS)
        self.assertIn(f"PASSED (successes={len(CONVERSATIONS)})", said)

    def test_lacking(self) -> None:
        """What can not be had there is refused at once, with the names of all that is missing and no traceback."""
        together = 4
        for place in range(0, len(LACKING), together):
            cases = LACKING[place : place + together]
            processes = [self.start("-m", "tests.elsewhere", *line.split()) for line, _, _ in cases]
            for (line, status, text), process in zip(cases, processes, strict=True):
                said, _ = process.communicate(timeout=PATIENCE_SECONDS)
                self.assertEqual(process.returncode, status, f"{line}: {said}")
                self.assertIn(text, said, line)
                self.assertNotIn("Traceback", said, line)


class PageTests(SynchronousTestCase):
    """docs/platforms.md."""

    def setUp(self) -> None:
        with open(os.path.join(ROOT, "docs", "platforms.md"), encoding="utf-8") as file:
            self.page = file.read()

    def test_linuxOnly(self) -> None:
        """It lists the modules that are of use on Linux only."""
        self.assertEqual(set(re.findall(r"^\| `(udptunnel\.[\w.]+)`", self.page, re.MULTILINE)), LINUX_ONLY)

    def test_needs(self) -> None:
        """It says what each thing needs that can not be had everywhere."""
        rows = re.findall(r"^\| (.+?) \| needs (.+?) \|", self.page, re.MULTILINE)
        found = {what.replace("`", ""): tuple(needs.split(", ")) for what, needs in rows}
        self.assertEqual(found, NEEDS)
