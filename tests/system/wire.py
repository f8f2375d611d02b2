"""
A wire between two network namespaces, with all that may happen to packets on the way.

    python -m tests.system.wire NAMESPACE NAMESPACE SEED

makes a TUN device C{wire0} in each namespace, with 10.77.9.1/24 in the first
and 10.77.9.2/24 in the second, says "up", and carries packets until its input
ends. Lines of its input change what happens, and are repeated when that is
done: which way (C{there}, C{back} or C{both}), which of L{Conditions}, and the
value. Chance has a seed, so that the same packets have the same fate. Needs
root and iproute2. It stands in for C{tc netem}, which some kernels do not have.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.places import Site
from tests.system.namespaces import Namespace, run

if TYPE_CHECKING:
    from tests.system.programs import Program

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
"""From linux/if_tun.h."""

ENDS = "10.77.9.1", "10.77.9.2"
LARGEST = 65535
MOST_READ = 64
"""Packets that are taken from one side before the other has its turn."""


@dataclass
class Conditions:
    """
    What happens to the packets of one way.

    @ivar open: 1, or 0 for none gets through.
    @ivar delay: in milliseconds.
    @ivar jitter: up to how many milliseconds the delay is longer or shorter.
    @ivar loss: which share of packets is lost.
    @ivar reorder: which share has no delay, and overtakes others.
    @ivar duplicate: which share arrives twice.
    @ivar corrupt: which share has a bit turned over.
    @ivar rate: in Mbit/s; 0 for no limit.
    @ivar queue: KB that may wait because of the rate; what does not fit is lost.
    """

    open: float = 1
    delay: float = 0
    jitter: float = 0
    loss: float = 0
    reorder: float = 0
    duplicate: float = 0
    corrupt: float = 0
    rate: float = 0
    queue: float = 1000


class Way:
    """One way of the wire: packets first wait for the slow part, then travel."""

    def __init__(self, seed: str) -> None:
        self.conditions = Conditions()
        self._chance = random.Random(seed)
        self._free = 0.0  # when the slow part has nothing to do
        self._serial = 0
        self._travelling: list[tuple[float, int, bytes]] = []

    def _happens(self, share: float) -> bool:
        # Asked without need too: what happens to a packet is not to depend on what may not happen.
        return self._chance.random() < share

    def enter(self, packet: bytes, now: float) -> None:
        """Take a packet, and decide what becomes of it."""
        conditions = self.conditions
        lost, twice, damaged, early = map(
            self._happens, (conditions.loss, conditions.duplicate, conditions.corrupt, conditions.reorder)
        )
        jitter = self._chance.uniform(-conditions.jitter, conditions.jitter)
        if lost or not conditions.open or not self._waits(len(packet), now):
            return
        if damaged:
            packet = self._damaged(packet)
        departure = max(now, self._free)
        for _ in range(1 + twice):
            self._serial += 1
            arrival = departure + (0 if early else (conditions.delay + jitter) / 1e3)
            heapq.heappush(self._travelling, (arrival, self._serial, packet))

    def _waits(self, length: int, now: float) -> bool:
        """Have the slow part carry a packet, if the queue before it is not full."""
        if not self.conditions.rate:
            return True
        start = max(now, self._free)
        if (start - now) * self.conditions.rate * 125 > self.conditions.queue:
            return False
        self._free = start + length / (self.conditions.rate * 125e3)
        return True

    def _damaged(self, packet: bytes) -> bytes:
        changed = bytearray(packet)
        changed[self._chance.randrange(len(packet))] ^= 1 << self._chance.randrange(8)
        return bytes(changed)

    def leave(self, now: float) -> list[bytes]:
        """The packets that have arrived by now."""
        arrived = []
        while self._travelling and self._travelling[0][0] <= now:
            arrived.append(heapq.heappop(self._travelling)[2])
        return arrived

    @property
    def next(self) -> float:
        """When the next packet arrives."""
        return self._travelling[0][0] if self._travelling else float("inf")


class Carriage:
    """Both ways, and the devices at their ends."""

    def __init__(self, devices: tuple[int, int], seed: str) -> None:
        there, back = devices
        self.ways = {"there": Way(f"{seed} there"), "back": Way(f"{seed} back")}
        self._from = {there: self.ways["there"], back: self.ways["back"]}
        self._to = {there: self.ways["back"], back: self.ways["there"]}

    def run(self) -> None:
        """Carry packets until the input ends."""
        while True:
            now = time.monotonic()
            for device, way in self._to.items():
                for packet in way.leave(now):
                    _write(device, packet)
            soonest = min(way.next for way in self.ways.values())
            wait = max(0.0, soonest - time.monotonic()) if soonest < float("inf") else None
            for ready in select.select([*self._from, sys.stdin.fileno()], [], [], wait)[0]:
                if ready in self._from:
                    _take(ready, self._from[ready])
                elif lines := os.read(ready, LARGEST).decode().splitlines():
                    self._obey(lines)
                else:
                    return

    def _obey(self, lines: list[str]) -> None:
        for line in lines:
            which, name, value = line.split()
            for way in self.ways.values() if which == "both" else [self.ways[which]]:
                setattr(way.conditions, name, float(value))
            print(line, flush=True)


def _take(device: int, way: Way) -> None:
    for _ in range(MOST_READ):
        try:
            packet = os.read(device, LARGEST)
        except BlockingIOError:
            return
        way.enter(packet, time.monotonic())


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError:
        pass  # the device's own queue is full, or this is no packet any more: a drop, as on any wire


class Wire:
    """The program, as those who have started it see it."""

    def __init__(self, program: Program) -> None:
        self._program = program.says("up\n")
        self._lines: dict[str, int] = {}

    @staticmethod
    def command(a: Namespace, b: Namespace, seed: int = 1) -> list[str]:
        """The command line of the program. It has to be started with a pipe as its input."""
        return [sys.executable, "-m", "tests.system.wire", a.name, b.name, str(seed)]

    def set(self, way: str = "both", **conditions: float) -> None:
        """Change some of the L{Conditions} of a way, and wait until that is done."""
        for name, value in conditions.items():
            line = f"{way} {name} {value:g}\n"
            self._lines[line] = self._lines.get(line, 0) + 1
            self._program.write(line)
            self._program.says(line, self._lines[line])


def openDevice(namespace: str, host: str) -> int:
    """A TUN device in a namespace, up and with an address."""
    with Site(namespace=namespace).entered():
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire0", IFF_TUN | IFF_NO_PI))
        run("ip", "address", "add", f"{host}/24", "dev", "wire0")
        run("ip", "link", "set", "wire0", "mtu", "1500", "txqueuelen", "5000", "up")
    return device


def main(a: str, b: str, seed: str) -> None:
    """Be the wire."""
    carriage = Carriage((openDevice(a, ENDS[0]), openDevice(b, ENDS[1])), seed)
    print("up", flush=True)
    carriage.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
