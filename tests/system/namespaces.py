"""Network namespaces: a client, a server and a target behind it, on wires of their own."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
SECONDS = 20

# Python has os.setns only since 3.12.
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def run(*words: str, text: str | None = None) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Namespace:
    """One network namespace, with its loopback interface up. Its name is this process's own."""

    def __init__(self, role: str) -> None:
        self.name = f"udpt{os.getpid()}-{next(_serial)}{role}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        with self.entered():
            # Addresses are there at once, and no neighbour is asked about them.
            for name in ("accept_dad", "dad_transmits"):
                Path(f"/proc/sys/net/ipv6/conf/default/{name}").write_text("0")

    @property
    def _etc(self) -> Path:
        return Path("/etc/netns", self.name)

    def ip(self, *words: str) -> None:
        """Run C{ip} inside."""
        run("ip", "-n", self.name, *words)

    def addAddress(self, address: str, device: str = "lo") -> None:
        """Give an interface one more address, ADDRESS/LENGTH."""
        self.ip("address", "add", address, "dev", device, *(("nodad",) if ":" in address else ("broadcast", "+")))

    def useNameServer(self, host: str) -> None:
        """Have programs that are started inside from now on ask this name server."""
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / "resolv.conf").write_text(f"nameserver {host}\n")

    def command(self, *words: str) -> list[str]:
        """The command line that runs another one inside."""
        return ["ip", "netns", "exec", self.name, *words]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside with this thread: sockets that it opens stay there."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def listens(self, kind: str, port: int) -> bool:
        """Whether somebody inside listens at a port of a kind, C{tcp} or C{udp}."""
        state = {"tcp": "0A", "udp": "07"}[kind]
        with self.entered():
            lines = [
                line.split()
                for name in (kind, kind + "6")
                for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            ]
        return any(int(line[1].rpartition(":")[2], 16) == port and line[3] == state for line in lines)

    def remove(self) -> None:
        """Take it away, with all its interfaces."""
        run("ip", "netns", "del", self.name)
        shutil.rmtree(self._etc, ignore_errors=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """
    client -- server -- target, and nothing routed between client and target.

    @cvar atServer: the server's addresses, IPv4 and IPv6, as the client sees them.
    @cvar beforeTarget: its addresses as the target sees them.
    @cvar atTarget: the target's addresses.
    @cvar third: further addresses at the target's end.
    """

    atClient = "10.77.1.1", "fd77:1::1"
    atServer = "10.77.1.2", "fd77:1::2"
    beforeTarget = "10.77.2.1", "fd77:2::1"
    atTarget = "10.77.2.2", "fd77:2::2"
    third = "10.77.2.3", "fd77:2::3"

    def __init__(self) -> None:
        self.all: list[Namespace] = []
        self.client, self.server, self.target = (self._add(role) for role in "cst")
        self._wire(self.client, "up0", self.atClient, self.server, "down0", self.atServer)
        self._wire(self.server, "up0", self.beforeTarget, self.target, "down0", self.atTarget)
        for address, length in zip(self.third, ("24", "64"), strict=True):
            self.target.addAddress(f"{address}/{length}", "down0")
        # So that no test asks the name server of this machine.
        self.client.useNameServer("127.0.0.1")
        self.server.useNameServer(self.atTarget[0])

    def _add(self, role: str) -> Namespace:
        self.all.append(Namespace(role))
        return self.all[-1]

    def _wire(
        self,
        a: Namespace,
        nameA: str,
        addressesA: tuple[str, str],
        b: Namespace,
        nameB: str,
        addressesB: tuple[str, str],
    ) -> None:
        a.ip("link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.name)
        for namespace, name, (four, six) in ((a, nameA, addressesA), (b, nameB, addressesB)):
            namespace.addAddress(f"{four}/24", name)
            namespace.addAddress(f"{six}/64", name)
        for namespace, name in ((a, nameA), (b, nameB)):
            namespace.ip("link", "set", name, "up")

    def remove(self) -> None:
        """Take everything away."""
        for namespace in self.all:
            namespace.remove()
