"""
Tests of all roles on a system that lacks what Windows does (L{tests.elsewhere}).

What was taken away does not come back, so each test runs processes of its own.
"""

from __future__ import annotations

import json
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
    ("twistd -n tun2socks --tundev=tun7 " + SOCKS, "lacks fcntl, pytun, pyroute2, which a TUN takes"),
    (
        "twistd -n l3-tunnel --interface=a --capture=10.0.0.0/8 --peer=127.0.0.1:1 --key-file=a.key",
        "lacks packet sockets, rtnetlink, fcntl, pytun, pyroute2, which l3-tunnel takes",
    ),
    ("twistd -n proxy-controller --socket=a.sock", "rtnetlink, fcntl, pytun, pyroute2, which proxy-controller takes"),
)
"""Command lines that end with status 1 there, and what is said."""

LACKING_ROLES = (
    ("tun2socks --tun-fd=0 " + SOCKS, "lacks fcntl, which a TUN of somebody else takes"),
    ("tun2socks --pipe=a.pipe " + SOCKS, "lacks Unix sockets, which a pipe takes"),
    ("tun2socks --tundev=tun7 --fwmark=7 " + SOCKS, "lacks marks on sockets, which --fwmark takes"),
    ("local --server=tcp:127.0.0.1:9 --socks=none --plugin=python3", "lacks process groups"),
)
"""The same of roles, without their processes."""

LACKING_COMMANDS = (
    ("run -- true", 125, "lacks network namespaces, Unix sockets, sigwaitinfo"),
    ("up a.toml", 1, "lacks fork, process groups, fcntl, which udptunnel up takes"),
    ("down a", 1, "lacks fork, process groups, fcntl, which udptunnel up takes"),
    ("status unix:a.sock", 1, "lacks Unix sockets"),
)
"""The same of commands, and their exit status."""

ASK = """
import io, json, sys
from contextlib import redirect_stderr
from importlib import import_module
from tests.elsewhere import go
go()
from udptunnel.console import main
from udptunnel.errors import ListenError
roles, commands = json.loads(sys.argv[1])
said = []
for name, *words in map(str.split, roles):
    role = import_module("udptunnel.tap." + name)
    options = role.Options()
    options.parseOptions(words)
    try:
        role.makeService(options).startService()
    except (ListenError, SystemExit) as error:
        said.append(str(error))
for words in map(str.split, commands):
    with redirect_stderr(io.StringIO()) as err:
        try:
            main(words)
        except SystemExit as end:
            said.append([end.code, err.getvalue()])
print(json.dumps(said))
"""


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
        processes = [self.start("-m", "tests.elsewhere", *line.split()) for line, _ in LACKING]
        for (line, text), process in zip(LACKING, processes, strict=True):
            said, _ = process.communicate(timeout=PATIENCE_SECONDS)
            self.assertEqual(process.returncode, 1, f"{line}: {said}")
            self.assertIn(text, said, line)
            self.assertNotIn("Traceback", said, line)

    def test_lackingMore(self) -> None:
        """The same of everything else, in one process."""
        roles, commands = [line for line, _ in LACKING_ROLES], [line for line, *_ in LACKING_COMMANDS]
        answers = json.loads(self.assertWorks("-c", ASK, json.dumps([roles, commands])).splitlines()[-1])
        for (line, text), said in zip(LACKING_ROLES, answers, strict=False):
            self.assertIn(text, said, line)
        for (line, status, text), (code, said) in zip(LACKING_COMMANDS, answers[len(roles) :], strict=True):
            self.assertEqual(code, status, f"{line}: {said}")
            self.assertIn(text, said, line)


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
