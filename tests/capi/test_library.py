"""Tests for the library: C programs use it, and so does one that knows ctypes only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import udptunnel
from tests.capi.library import COMPILER, ROOT, compileProgram, prefix, require, run
from tests.system.turns import TakesTurns

EXAMPLES = ROOT / "docs/examples"
HERE = Path(__file__).parent

SAID = "".join(
    rf"there: hello {number}\nback from 127\.0\.0\.1:\d+ for source {number}: HELLO {number}\n" for number in range(3)
)
"""What both examples print."""


class LibraryTests(TakesTurns, SynchronousTestCase):
    """C{libudptunnel}. Valgrind and compilers take a processor, which tests that measure time need themselves."""

    def program(self, source: Path, *packages: str) -> str:
        """A compiled program."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        return str(compileProgram(source, folder / "program", *packages))

    def test_cmocka(self) -> None:
        """What tests/capi/test_udptunnel.c says, in C."""
        said = run(self.program(HERE / "test_udptunnel.c", "cmocka"), CMOCKA_MESSAGE_OUTPUT="tap")
        self.assertEqual(re.findall("^not ok.*", said, re.MULTILINE), [])
        tests = re.findall(r"^static void (test_\w+)\(void \*\*state\)$", (HERE / "test_udptunnel.c").read_text(), re.M)
        self.assertEqual(set(re.findall(r"^ok \d+ - (\w+)", said, re.MULTILINE)), set(tests))

    def test_example(self) -> None:
        """docs/examples/embed.c tunnels datagrams between two instances in one process."""
        self.assertRegex(run(self.program(EXAMPLES / "embed.c")), f"^{SAID}$")

    def test_ctypes(self) -> None:
        """docs/examples/embed_ctypes.py does the same with the library as it is installed."""
        library = prefix() / "lib/libudptunnel.so"
        self.assertRegex(run(sys.executable, str(EXAMPLES / "embed_ctypes.py"), str(library)), f"^{SAID}$")

    def test_noLeak(self) -> None:
        """C{valgrind} finds nothing that the C side has lost."""
        require("valgrind")
        if os.environ.get("UDPTUNNEL_OFFLOAD") == "none":
            raise SkipTest("the C side is the same on the portable path")
        leaks = "--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"
        rest = "--error-exitcode=9", "--undef-value-errors=no", "--num-callers=12"
        words = "nice", "valgrind", "--quiet", *leaks, *rest, f"--suppressions={HERE / 'valgrind.supp'}"
        run(*words, self.program(EXAMPLES / "embed.c"))

    def test_loaded(self) -> None:
        """A program may load the library at run time, and show it to nobody else."""
        run(self.program(HERE / "load.c"), str(prefix() / "lib/libudptunnel.so"))

    def test_names(self) -> None:
        """The library shows the names of its header to programs, and no others."""
        listed = run("nm", "--dynamic", "--defined-only", str(prefix() / "lib/libudptunnel.so"))
        shown = {line.split()[-1] for line in listed.splitlines()}
        header = (ROOT / "udptunnel/capi/udptunnel.h").read_text()
        promised = set(re.findall(r"^UDPTUNNEL_API .*?\b(udptunnel_\w+)\(", header, re.MULTILINE))
        self.assertEqual(shown - {"_cffi_pypyinit__udptunnel_capi", "PyInit__udptunnel_capi"}, promised)

    def test_header(self) -> None:
        """The header is standard C, by itself."""
        prefix()
        header = str(ROOT / "udptunnel/capi/udptunnel.h")
        run(COMPILER, "-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc", header)

    def test_installed(self) -> None:
        """What is installed tells its version, by C{pkg-config} and by the file's name."""
        place = str(prefix() / "lib/pkgconfig")
        said = run("pkg-config", "--modversion", "udptunnel", PKG_CONFIG_PATH=place)
        self.assertEqual(said.strip(), udptunnel.__version__)
        dynamic = run("readelf", "--dynamic", str(prefix() / "lib/libudptunnel.so"))
        self.assertIn("[libudptunnel.so.1]", dynamic)

    def test_otherPython(self) -> None:
        """C{UDPTUNNEL_PYTHON} names another Python; one that has not what is needed is an error, not the end."""
        empty = Path(self.mktemp()).absolute()
        run(sys.executable, "-m", "venv", "--without-pip", str(empty))
        program = self.program(EXAMPLES / "embed.c")
        error = self.assertRaises(AssertionError, run, program, UDPTUNNEL_PYTHON=str(empty / "bin/python"))
        self.assertIn("status 1", str(error))
        self.assertIn("Python, or what the library needs there, is not found", str(error))
        self.assertIn("UDPTUNNEL_PYTHON may name another", str(error))


class StressTests(SynchronousTestCase):
    """The command for the long run."""

    def test_filter(self) -> None:
        """The program of tests takes the name of one test, and C{UDPTUNNEL_STRESS} says how long the threads take."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        program = compileProgram(HERE / "test_udptunnel.c", folder / "program", "cmocka")
        done = subprocess.run(
            [program, "test_threads"],
            env={"PYTHONPATH": str(ROOT), "UDPTUNNEL_STRESS": "0.2"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        self.assertIn("datagrams there and back in 0.2 s", done.stdout)
        self.assertIn("1 test(s) run", done.stdout + done.stderr)
