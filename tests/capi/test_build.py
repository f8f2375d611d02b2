"""Tests for L{udptunnel.capi.build}, and for the command that runs it."""

from __future__ import annotations

import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from cffi import FFI
from twisted.trial.unittest import SynchronousTestCase

from udptunnel.capi import bridge
from udptunnel.capi.__main__ import main
from udptunnel.capi.build import ABI, HERE, BuildError, build, definitions, pythonLibrary

HEADER = "udptunnel/capi/udptunnel.h"


class LinkTests(SynchronousTestCase):
    """How Python is linked."""

    def variables(self, **values: Any) -> None:
        """A Python that was built so."""
        self.patch(sysconfig, "get_config_var", values.get)

    def test_shared(self) -> None:
        """A Python with a shared library is linked with that, and it is found when programs start."""
        self.variables(Py_ENABLE_SHARED=1, LIBDIR="/opt/lib", LDVERSION="3.13t", VERSION="3.13")
        self.assertEqual(pythonLibrary(), ["-L/opt/lib", "-Wl,-rpath,/opt/lib", "-lpython3.13t"])

    def test_static(self) -> None:
        """One without is linked whole, with what it needs itself."""
        folder = Path(self.mktemp())
        folder.mkdir()
        library = folder / "libpython3.11.a"
        library.touch()
        self.variables(LIBPL=str(folder), LIBRARY=library.name, LIBS="-lz", SYSLIBS="-lm", VERSION="3.11")
        words = pythonLibrary()
        self.assertEqual(words[:3], ["-Wl,--whole-archive", str(library), "-Wl,--no-whole-archive"])
        self.assertIn("-lz", words)

    def test_none(self) -> None:
        """One without any library can not be built in, and what to do is said."""
        self.variables(VERSION="3.11")
        self.assertIn("--enable-shared", str(self.assertRaises(BuildError, pythonLibrary)))


class BuildTests(SynchronousTestCase):
    """What may be missing."""

    def test_compiler(self) -> None:
        """Without the compiler, that is said."""
        self.patch(os, "environ", {**os.environ, "CC": "no-such-compiler -m64"})
        error = self.assertRaises(BuildError, build, Path(self.mktemp()))
        self.assertIn("no compiler no-such-compiler", str(error))

    def test_command(self) -> None:
        """The command ends with one text, and status 1."""
        self.patch(os, "environ", {**os.environ, "CC": "no-such-compiler"})
        error = self.assertRaises(SystemExit, main, ["build", "--prefix", self.mktemp()])
        self.assertTrue(str(error.code).startswith("python -m udptunnel.capi: there is no compiler"))

    def test_refused(self) -> None:
        """What the compiler says is told."""
        self.patch(os, "environ", {**os.environ, "CC": "false"})
        self.assertIn("false ", str(self.assertRaises(BuildError, build, Path(self.mktemp()))))


class HeaderTests(SynchronousTestCase):
    """The header and the Python side say the same."""

    def setUp(self) -> None:
        self.ffi = FFI()
        self.ffi.cdef(definitions())
        self.constants = self.ffi.dlopen(None)

    def of(self, prefix: str, *names: str) -> list[int]:
        return [getattr(self.constants, f"UDPTUNNEL_{prefix}{name}") for name in names]

    def test_errors(self) -> None:
        """Errors have the same numbers on both sides."""
        names = "PROFILE", "LISTEN", "HANDLE", "ARGUMENT", "FULL", "PYTHON", "OTHER"
        self.assertEqual(self.of("ERROR_", *names), [getattr(bridge, name) for name in names])

    def test_events(self) -> None:
        """So have events, in the order of the header."""
        kinds = "READY", "SESSION_UP", "SESSION_DOWN", "MAPPINGS_LOST", "STATISTICS", "LOG", "FAILED", "STOPPED"
        self.assertEqual(self.of("", *kinds), list(bridge.KINDS.values()))
        names = [kind.__name__.upper() for kind in bridge.KINDS]
        self.assertEqual([kind.replace("_", "") for kind in kinds], [name.replace("LOGLINE", "LOG") for name in names])

    def test_page(self) -> None:
        """The page of the reference has all functions, errors and events of the header, and no others."""
        page, header = ((HERE.parent.parent / name).read_text() for name in ("docs/reference/capi.md", HEADER))
        functions = set(re.findall(r"^UDPTUNNEL_API .*?\b(udptunnel_\w+)\(", header, re.MULTILINE))
        self.assertEqual(set(re.findall(r"`(udptunnel_\w+)`", page)), functions)
        errors = set(re.findall(r"\b(UDPTUNNEL_ERROR_\w+) =", header))
        kinds = set(
            re.findall(r"\b(UDPTUNNEL_\w+) = ", header.partition("enum {\n    UDPTUNNEL_READY")[2].partition("}")[0])
        )
        self.assertEqual(
            set(re.findall(r"^\| `(UDPTUNNEL_\w+)`", page, re.MULTILINE)), errors | kinds | {"UDPTUNNEL_READY"}
        )

    def test_levels(self) -> None:
        """So have levels."""
        names = "NO_LOG", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"
        self.assertEqual(self.of("", *names), list(range(6)))
        self.assertEqual([name[:4].lower() for name in names[1:]], [str(level)[:4] for level in bridge.LEVELS[1:]])

    def test_figures(self) -> None:
        """The struct of figures has those of the Python side, and its size and nothing else."""
        fields = [name for name, _ in self.ffi.typeof("struct udptunnel_stats").fields]
        self.assertEqual(fields, ["size", *bridge.figuresOf({})])

    def test_abi(self) -> None:
        """The version of the interface is that of the file's name."""
        self.assertIn(f"#define UDPTUNNEL_ABI {ABI}\n", (HERE / "udptunnel.h").read_text())
