"""
Building the C library: C{libudptunnel}, with this Python inside.

It is compiled on the machine where it is to run, for the Python that runs
this, whose modules it uses. cffi writes the glue, and the C compiler that has
compiled Python, or that C{CC} names, does the rest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import udptunnel
from udptunnel.errors import TunnelError

HERE = Path(__file__).parent
MODULE = "_udptunnel_capi"
NAME = "udptunnel"
ABI = 1
"""As in C{udptunnel.h}: what the library's file name ends with."""

BRIDGE = """
extern "Python" int bridge_start_udp_local(const struct udptunnel_local_profile *, const struct udptunnel_callbacks *,
                                           void *, udptunnel **, char *);
extern "Python" int bridge_start_udp_server(const struct udptunnel_server_profile *, const struct udptunnel_callbacks *,
                                            void *, udptunnel **, char *);
extern "Python" int bridge_start_tun2socks(const struct udptunnel_tun2socks_profile *,
                                           const struct udptunnel_callbacks *, void *, udptunnel **, char *);
extern "Python" int bridge_start_l3_tunnel(const struct udptunnel_l3_profile *, const struct udptunnel_callbacks *,
                                           void *, udptunnel **, char *);
extern "Python" int bridge_stop(udptunnel *, char *);
extern "Python" long bridge_send(udptunnel *, const struct udptunnel_datagram *, size_t, char *);
extern "Python" long bridge_send_packets(udptunnel *, const struct udptunnel_packet *, size_t, char *);
extern "Python" int bridge_close_source(udptunnel *, uint64_t, char *);
extern "Python" int bridge_get_stats(udptunnel *, struct udptunnel_stats *, char *);
extern "Python" long bridge_report(udptunnel *, char *, size_t, char *);
static void udptunnel_broken(const char *);
"""
"""What bridge.py defines and shim.c calls, and the one function that goes the other way."""

FIRST_WORDS = """
from {module} import ffi, lib
try:
    import sys
    if {folder!r} not in sys.path:
        # Another Python has a package of its own, which goes first.
        sys.path.insert(0 if sys.executable == {executable!r} else len(sys.path), {folder!r})
    from udptunnel.capi.bridge import serve
    serve(ffi)
except BaseException as error:
    lib.udptunnel_broken(f"{{sys.executable}}: {{error}}; UDPTUNNEL_PYTHON may name another Python".encode())
"""

PKG_CONFIG = """prefix=${{pcfiledir}}/../..
includedir=${{prefix}}/include
libdir=${{prefix}}/lib

Name: {name}
Description: UDP over TCP, inside other programs
Version: {version}
Cflags: -I${{includedir}}
Libs: -L${{libdir}} -l{name}
"""


class BuildError(TunnelError):
    """The library can not be built. The text says what is missing."""


def build(prefix: Path) -> Path:
    """
    Build the library, and put it with its header and its pkg-config file where programs find them.

    @param prefix: gets C{lib}, C{lib/pkgconfig} and C{include}.
    @return: the library.
    @raise BuildError: something is missing, or the compiler says no.
    """
    library = prefix / "lib" / _fileName()
    for folder in (library.parent / "pkgconfig", prefix / "include"):
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as work:
        source = Path(work, f"{MODULE}.c")
        _writeSource(source)
        _compile(source, library)
    shutil.copy(HERE / "udptunnel.h", prefix / "include")
    filled = PKG_CONFIG.format(name=NAME, version=udptunnel.__version__)
    (library.parent / "pkgconfig" / f"{NAME}.pc").write_text(filled)
    _link(library)
    return library


def _fileName() -> str:
    return f"lib{NAME}.{ABI}.dylib" if sys.platform == "darwin" else f"lib{NAME}.so.{ABI}"


def _link(library: Path) -> None:
    """Give it the name that a compiler looks for."""
    short = library.with_name(f"lib{NAME}.dylib" if sys.platform == "darwin" else f"lib{NAME}.so")
    short.unlink(missing_ok=True)
    short.symlink_to(library.name)


# -- the source


def definitions() -> str:
    """What cffi needs to know of C{udptunnel.h}: the part of it that has plain declarations alone."""
    header = (HERE / "udptunnel.h").read_text()
    return header.partition("/* [definitions]")[2].partition("*/")[2].partition("/* [end of definitions]")[0]


def _writeSource(source: Path) -> None:
    try:
        from cffi import FFI
    except ImportError as error:
        raise BuildError("there is no cffi: pip install 'udptunnel[capi]'") from error
    ffi = FFI()
    ffi.cdef(definitions() + BRIDGE)
    # What C programs call is in shim.c.
    ffi.embedding_api("")
    folder = str(HERE.parent.parent)
    ffi.embedding_init_code(FIRST_WORDS.format(module=MODULE, folder=folder, executable=sys.executable))
    ffi.set_source(MODULE, f'#include "udptunnel.h"\n{(HERE / "shim.c").read_text()}')
    with redirect_stdout(StringIO()):
        ffi.emit_c_code(str(source))


# -- the compiler


def _compile(source: Path, library: Path) -> None:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"there is no compiler {compiler[0]}: install one, or name it with CC")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise BuildError(f"there is no {include}/Python.h: install the development files of this Python")
    words = [*compiler[:1], *_flags(include), str(source), "-o", str(library), *pythonLibrary(), "-lpthread", "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(words)}:\n{done.stderr}")


def _flags(include: str) -> Iterator[str]:
    yield from ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-unused-function")
    yield from (f"-I{HERE}", f"-I{include}")
    yield f"-DUDPTUNNEL_PYTHON={_quoted(sys.executable)}"
    yield f"-DUDPTUNNEL_VERSION={_quoted(udptunnel.__version__)}"
    if sys.platform == "darwin":
        yield from ("-install_name", f"@rpath/{_fileName()}")
    else:
        yield f"-Wl,-soname,{_fileName()}"


def _quoted(text: str) -> str:
    """A text as a literal of C."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def pythonLibrary() -> list[str]:
    """
    How to link this Python: its shared library, or all of its static one.

    @raise BuildError: it has neither.
    """
    variable = sysconfig.get_config_var
    version = variable("LDVERSION") or variable("VERSION")
    if variable("Py_ENABLE_SHARED"):
        folder = variable("LIBDIR")
        return [f"-L{folder}", f"-Wl,-rpath,{folder}", f"-lpython{version}"]
    for folder in (variable("LIBPL"), variable("LIBDIR")):
        static = Path(folder or "", variable("LIBRARY") or "")
        if static.is_file():
            others = shlex.split(f"{variable('LIBS') or ''} {variable('SYSLIBS') or ''}")
            # Modules of Python look for what the interpreter has, so it must be found, and all of it be there.
            return ["-Wl,--whole-archive", str(static), "-Wl,--no-whole-archive", *others, "-lm", "-ldl", "-lutil"]
    raise BuildError("this Python has no library: build one with --enable-shared")
