"""The C library, built once for all tests, and C programs that use it."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest import SkipTest

from udptunnel.capi.build import BuildError, build

ROOT = Path(__file__).parent.parent.parent
SECONDS = 240.0

COMPILER = os.environ.get("CC", "cc")


def require(*programs: str) -> None:
    """
    See that programs are there.

    @raise SkipTest: one is not.
    """
    for name in (COMPILER, "pkg-config", *programs):
        if shutil.which(name) is None:
            raise SkipTest(f"{name} is not installed")


@lru_cache(1)
def prefix() -> Path:
    """
    Where the library is installed.

    @raise SkipTest: it can not be built here.
    """
    require()
    folder = Path(tempfile.mkdtemp(prefix="udptunnel-capi-"))
    atexit.register(shutil.rmtree, folder)
    try:
        build(folder)
    except BuildError as error:
        if "has no library" in str(error):
            raise SkipTest(str(error)) from error
        raise
    return folder


def compileProgram(source: Path, to: Path, *packages: str) -> Path:
    """
    Compile a C program without a warning.

    @param packages: which it uses besides, as C{pkg-config} knows them.
    @return: the program.
    @raise SkipTest: a package is not there.
    """
    lib = prefix() / "lib"
    environment = dict(os.environ, PKG_CONFIG_PATH=str(lib / "pkgconfig"))
    asked = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "udptunnel", *packages], env=environment, capture_output=True, text=True
    )
    if asked.returncode:
        raise SkipTest(asked.stderr.strip())
    words = [COMPILER, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", str(source), "-o", str(to)]
    run(*words, *asked.stdout.split(), f"-Wl,-rpath,{lib}", "-lpthread", "-ldl")
    return to


def run(*words: str, **environment: str) -> str:
    """
    Run a program that must succeed.

    @param environment: what its environment has besides.
    @return: what it prints to its standard output.
    """
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(words, env=whole, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout
