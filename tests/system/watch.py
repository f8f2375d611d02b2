"""What can be seen of links and processes from outside, and what can be done to them there."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import LINK, Program

ESTABLISHED = "01"
"""A state in /proc/net/tcp."""

Connection = tuple[str, str]
"""Both ends of a TCP connection, as /proc/net/tcp writes them."""


def links(namespace: Namespace, host: str = "", port: int = LINK) -> frozenset[Connection]:
    """
    The TCP connections from a namespace to a port, as C{ss -tn} shows them.

    @param host: the address that they must come from, if it matters.
    """
    with namespace.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    begin = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:" if host else ""
    return frozenset(
        (each[1], each[2])
        for each in fields
        if each[1].startswith(begin) and each[2].endswith(f":{port:04X}") and each[3] == ESTABLISHED
    )


def resetLinks(namespace: Namespace, host: str = Network.atClient[0], port: int = LINK) -> None:
    """Have the kernel reset the TCP connections from a host to a port: both ends are told at once."""
    run(*namespace.command("ss", "-K", "-tn", "src", host, "dport", "=", f":{port}"))


def residentBytes(program: Program) -> int:
    """The memory that a program has."""
    text = Path(f"/proc/{program.process.pid}/statm").read_text()
    return int(text.split()[1]) * resource.getpagesize()


def processorSeconds(program: Program) -> float:
    """The processor time that a program has used."""
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limitDescriptors(program: Program, most: int) -> None:
    """Let a program that runs have so many descriptors, and no more."""
    _, hard = resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def filtering(namespace: Namespace, *statements: str) -> Iterator[None]:
    """
    Rules of C{nft} in a namespace, for a while.

    @param statements: each begins with the hook that it belongs to, C{input}, C{output} or C{forward}.
    """
    lines = ["table inet fault {"]
    for hook in ("input", "output"):
        rules = [each.partition(" ")[2] for each in statements if each.startswith(hook)]
        lines += [f"chain {hook} {{ type filter hook {hook} priority 0;", *rules, "}"]
    run(*namespace.command("nft", "-f", "-"), text="\n".join([*lines, "}"]) + "\n")
    try:
        yield
    finally:
        run(*namespace.command("nft", "delete", "table", "inet", "fault"))
