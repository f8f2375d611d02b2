"""
The addresses of a datagram at each hop of the whole chain, from captures.

C{tcpdump} listens at the devices of the client and the server; a tap, which is
this file run as a program, stands in the pipe between udp-server and tun2socks:

    python -m tests.system.hoptable PIPE-OF-UDP-SERVER PIPE-FOR-TUN2SOCKS
"""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.hops import BEYOND, CARRIER, FLOWS, Hop, exitHops
from tests.system.namespaces import Namespace, Network
from tests.system.programs import ECHO, LINK, SOCKS, Program, until
from tests.system.traffic import TARGET, Starter, Traffic
from tests.system.tunnelled import DEVICE, PROXY
from udptunnel.config import MESSAGES
from udptunnel.core.counters import Counters
from udptunnel.net import fifo
from udptunnel.wire.vnet import VNET_BYTES

FIXED = {ECHO, SOCKS, LINK, CARRIER, PROXY, BEYOND}
"""Ports that somebody has chosen; all others are the kernel's choice."""

DATAGRAMS = 20
PIPE = "pipe"

HEAD = (
    "| No | Protocol | Source | Destination | Status | Location |",
    "|---|---|---|---|---|---|",
)

_LINE = re.compile(r" IP (\S+)\.(\d+) > (\S+)\.(\d+): (?:Flags \[([^\]]+)\].* length (\d+))?")
"""What tcpdump says of a packet; it has flags if it is TCP, and otherwise what the port makes it guess."""


class Packet(NamedTuple):
    """A packet that was seen."""

    protocol: str
    source: tuple[str, int]
    destination: tuple[str, int]
    opens: bool
    """Whether it opens a connection."""
    length: int
    """Of what a TCP segment carries."""


class Row(NamedTuple):
    """One line of the table."""

    capture: str
    """Where it was seen: side and device."""
    protocol: str
    port: int
    """That of the destination; 0: one that is not fixed."""
    status: str
    location: str


ROWS = (
    Row(f"client {DEVICE}", "UDP", ECHO, "as the application has sent it", f"client, {DEVICE}"),
    Row("client lo", "UDP", 0, "with a SOCKS5 header that names the target", "tun2socks to udp-local"),
    Row("client lo", "TCP", LINK, "in a frame of a link, the target beside it", "udp-local to ss-tunnel"),
    Row("client lo", "TCP", 0, "encrypted", "ss-tunnel to obfs-local"),
    Row("client up0", "TCP", CARRIER, "encrypted, looks like HTTP", "obfs-local to obfs-server"),
    Row("server lo", "TCP", 0, "encrypted", "obfs-server to ss-server"),
    Row("server lo", "TCP", LINK, "in a frame of a link", "ss-server to udp-server"),
    Row(f"server {PIPE}", "UDP", ECHO, "unwrapped, a packet of its own", "udp-server to tun2socks, pipe"),
    Row("server lo", "UDP", PROXY, "with a SOCKS5 header that names the target", "tun2socks to ss-local"),
    Row("server lo", "UDP", BEYOND, "encrypted", "ss-local to ss-server"),
    Row("server up0", "UDP", ECHO, "as the application has sent it", "ss-server to the target"),
)
"""What a datagram meets, in this order."""


class Watch:
    """
    Captures at each hop of the whole chain.

    @ivar hops: the programs, with the tap in the pipe.
    """

    def __init__(self, network: Network, starter: Starter, folder: Path, options: tuple[str, ...] = ()) -> None:
        """
        @param options: of the client's tun2socks.
        """
        here, there = str(folder / "near.pipe"), str(folder / "far.pipe")
        before = [each for each in FLOWS["4"].hops(folder, options) if each.name not in _names(exitHops(here, there))]
        self.hops = [*before, *exitHops(here, there)]
        tap = sys.executable, "-m", "tests.system.hoptable", here, there
        self._captures = {f"server {PIPE}": starter.start(network.server, *tap)}
        for side, namespace, device in (
            ("client", network.client, "lo"),
            ("client", network.client, "up0"),
            ("server", network.server, "lo"),
            ("server", network.server, "up0"),
        ):
            self._captures[f"{side} {device}"] = _capture(starter, namespace, device)
        self._network, self._starter = network, starter

    def packets(self, capture: str, since: int = 0) -> list[Packet]:
        """What was seen somewhere since a moment."""
        return [each for each in map(_packet, self._captures[capture].said[since:].splitlines()) if each is not None]

    def table(self, traffic: Traffic) -> str:
        """
        Send something through the chain, and tell its addresses at each hop, as a table in Markdown.

        @raise AssertionError: it was not seen somewhere, or went another way.
        """
        # The TUN is there only now.
        self._captures[f"client {DEVICE}"] = _capture(self._starter, self._network.client, DEVICE)
        application = traffic.udp(TARGET)
        until(lambda: traffic.answers(application), "no datagram comes back")
        marks = {name: len(program.said) for name, program in self._captures.items()}
        for _ in range(DATAGRAMS):
            until(lambda: traffic.answers(application), "no datagram comes back")
        lines = []
        for number, row in enumerate(ROWS, 1):
            found = until(lambda: self._found(row, marks), f"{row} was not seen")  # noqa: B023
            if len(found) > 1:
                raise AssertionError(f"{row} was seen with {found}")
            ((source, destination),) = found
            cells = str(number), row.protocol, _text(source), _text(destination), row.status, row.location
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join((*HEAD, *lines))

    def _found(self, row: Row, marks: dict[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
        """The addresses that a hop's packets had, on their way to the target."""
        seen = self.packets(row.capture, marks[row.capture])
        there = {(each.source, each.destination) for each in seen if each.protocol == row.protocol and each.length}
        if row.protocol == "TCP":
            there &= {(each.source, each.destination) for each in self.packets(row.capture) if each.opens}
        elif not row.port:
            # Whoever answers is seen, too: what tun2socks sends to goes on with what udp-local sends.
            there = {each for each in there if each[0][1] not in FIXED} - self._answers(there)
        return {each for each in there if each[1][1] == row.port or (not row.port and each[1][1] not in FIXED)}

    def _answers(self, there: set[tuple[Any, Any]]) -> set[tuple[Any, Any]]:
        """Of pairs of ways the second one: the first one to be seen was the question."""
        questions: list[tuple[Any, Any]] = []
        for each in self.packets("client lo"):
            way = each.source, each.destination
            if each.protocol == "UDP" and way in there and way[::-1] not in questions:
                questions.append(way)
        return there - set(questions)


def _names(hops: list[Hop]) -> set[str]:
    return {each.name for each in hops}


def _capture(starter: Starter, namespace: Namespace, device: str) -> Program:
    words = "tcpdump", "-i", device, "-nn", "-tt", "-l", "--immediate-mode", "-s", "128", "ip", "and", "(", "udp", "or"
    return starter.start(namespace, *words, "tcp", ")").says("listening on")


def _packet(line: str) -> Packet | None:
    found = _LINE.search(line)
    if found is None:
        return None
    source, sourcePort, destination, port, flags, length = found.groups()
    ways = (source, int(sourcePort)), (destination, int(port))
    return Packet("TCP", *ways, flags == "S", int(length)) if flags else Packet("UDP", *ways, False, 1)


def _text(place: tuple[str, int]) -> str:
    host, port = place
    return f"{host}:{port}"


def normal(table: str) -> str:
    """A table without what is another one each time: ports that nobody has chosen, and addresses out of a pool."""
    table = re.sub(r":(\d+)", lambda found: found[0] if int(found[1]) in FIXED else ":*", table)
    return re.sub(r"\b10\.85\.\d+\.\d+", "10.85.*", table)


# -- the tap


class _Tap:
    """One end of the tap: what it receives the other end writes, and is told."""

    other: Any

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """Tell it, and pass it on."""
        for each in packets:
            print(_told(bytes(each[VNET_BYTES:])), flush=True)
            self.other.write(each)

    def lost(self, why: str) -> None:
        """Pipes never say so."""


def _told(packet: bytes) -> str:
    """An IPv4 packet of UDP, in the words of C{tcpdump}."""
    source, destination = (socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16))
    ports = (int.from_bytes(packet[at : at + 2], "big") for at in (20, 22))
    return f"0 IP {source}.{next(ports)} > {destination}.{next(ports)}: UDP"


def main(here: str, there: str) -> None:
    """Stand between two pipes until somebody ends it."""
    from twisted.internet import reactor

    near, far = _Tap(), _Tap()
    far.other = fifo.connector(here, MESSAGES)(reactor, near, Counters())
    near.other = fifo.listener(there, MESSAGES)(reactor, far, Counters())
    for each in (far.other, near.other):
        each.open()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
