"""
Places that a peer runs in: where its near end and its far end are, and what lies between them.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from bench.programs import Program

Address = tuple[str, int]

CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE = 33
RECEIVE_BYTES = 32 << 20
"""What the load generator asks for, so that what gets lost is not lost there."""

# Python has os.setns only since 3.12.
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def enterNamespace(descriptor: int) -> None:
    """Move this thread into the network namespace that a descriptor stands for."""
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Site(NamedTuple):
    """
    One end: an address, and the network namespace that it is in, if any.
    """

    host: str = "127.0.0.1"
    namespace: str = ""

    def command(self, *words: str) -> list[str]:
        """The command line that runs another one there."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else list(words)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be there with this thread: sockets that it opens stay there."""
        if not self.namespace:
            yield
            return
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.namespace}") as there:
            enterNamespace(there.fileno())
            try:
                yield
            finally:
                enterNamespace(home.fileno())

    def openUdp(self) -> socket.socket:
        """A UDP socket there, with room for much."""
        with self.entered():
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        option = socket.SO_RCVBUF if os.geteuid() else SO_RCVBUFFORCE
        opened.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BYTES)
        return opened

    def bindUdp(self) -> socket.socket:
        """A UDP socket there, bound to a free port of its address."""
        opened = self.openUdp()
        # Lennox' udptunnel binds the port of its target too, and what comes must still go to us.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((self.host, 0))
        return opened

    def connect(self, to: Address) -> socket.socket:
        """A TCP connection from there."""
        with self.entered():
            opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        opened.settimeout(5)
        opened.connect(to)
        return opened

    def freePort(self, kind: int = socket.SOCK_STREAM) -> int:
        """A port of its address that nobody has."""
        with self.entered(), socket.socket(socket.AF_INET, kind) as probe:
            probe.bind((self.host, 0))
            port: int = probe.getsockname()[1]
            return port


class Place(NamedTuple):
    """Both ends."""

    near: Site
    far: Site


LOOPBACK = Place(Site(), Site())


class Link(NamedTuple):
    """
    What a wide-area link does, the same in both directions.

    @ivar delay: one way, in milliseconds.
    @ivar rate: in Mbit/s.
    @ivar queue: bytes that wait at most before the slow part, in KB; what does not fit is dropped.
    """

    delay: float = 25
    rate: float = 10
    queue: float = 1000


@contextmanager
def wideArea(link: Link, log: str) -> Iterator[Place]:
    """
    Two network namespaces with a link between them. Needs root.

    @param log: the file that takes what the link's program says.
    """
    with ExitStack() as undo:
        near, far = (undo.enter_context(namespace(role)) for role in ("near", "far"))
        options = f"--a {near} --b {far} --delay-ms {link.delay} --rate-mbit {link.rate} --queue-kb {link.queue}"
        program = Program([sys.executable, "-m", "bench.wan", *options.split()], log)
        undo.callback(program.stop)
        program.says("up")
        yield Place(Site("10.77.0.1", near), Site("10.77.0.2", far))


WIRED = Place(Site("10.77.0.1"), Site("10.77.0.2"))
"""The addresses of L{wired}."""


@contextmanager
def wired() -> Iterator[Place]:
    """Two network namespaces with a wire between them, as fast as the machine. Needs root."""
    with ExitStack() as undo:
        near, far = (undo.enter_context(namespace(role)) for role in ("near", "far"))
        _ip(near, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far)
        for site, where in zip(WIRED, (near, far), strict=True):
            _ip(where, "link", "set", "lo", "up")
            _ip(where, "link", "set", "wire", "up")
            _ip(where, "address", "add", f"{site.host}/24", "dev", "wire")
        yield Place(*(Site(site.host, name) for site, name in zip(WIRED, (near, far), strict=True)))


def _ip(namespace: str, *words: str) -> None:
    subprocess.run(["ip", "-n", namespace, *words], check=True)


@contextmanager
def namespace(role: str) -> Iterator[str]:
    """A network namespace, which has a name of its own."""
    name = f"bench{os.getpid()}-{next(_serial)}{role}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
