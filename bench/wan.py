"""
A wide-area link between two network namespaces: a delay, a rate, and a queue that drops its tail.

    python -m bench.wan --a NAMESPACE --b NAMESPACE --delay-ms 25 --rate-mbit 10 --queue-kb 1000

Makes a TUN device C{wan} in each namespace, with 10.77.0.1/24 in the first and
10.77.0.2/24 in the second, says "up", and carries packets until a signal ends
it. Needs root and iproute2. It stands in for C{tc netem}, which some kernels
do not have.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from bench.places import enterNamespace

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
"""From linux/if_tun.h."""

LARGEST = 65535
MOST_READ = 64
"""Packets that are taken from one side before the other has its turn."""


class Direction:
    """
    One way of the link: packets first wait for the slow part, then travel.
    """

    def __init__(self, delay: float, rate: float, queue: float) -> None:
        """
        @param delay: in seconds.
        @param rate: in bytes per second.
        @param queue: bytes that may wait for the slow part.
        """
        self._delay, self._rate, self._queue = delay, rate, queue
        self._free = 0.0  # when the slow part has nothing to do
        self._travelling: deque[tuple[float, bytes]] = deque()

    def enter(self, packet: bytes, now: float) -> bool:
        """Take a packet, unless the queue is full."""
        start = max(now, self._free)
        if (start - now) * self._rate > self._queue:
            return False
        self._free = start + len(packet) / self._rate
        self._travelling.append((self._free + self._delay, packet))
        return True

    def leave(self, now: float) -> list[bytes]:
        """The packets that have arrived by now."""
        arrived = []
        while self._travelling and self._travelling[0][0] <= now:
            arrived.append(self._travelling.popleft()[1])
        return arrived

    @property
    def next(self) -> float:
        """When the next packet arrives."""
        return self._travelling[0][0] if self._travelling else float("inf")


def carry(ways: dict[int, tuple[Direction, int]]) -> None:
    """
    Carry packets for ever.

    @param ways: by the device that packets come from: their direction, and the device that they go to.
    """
    while True:
        now = time.monotonic()
        for direction, out in ways.values():
            for packet in direction.leave(now):
                _write(out, packet)
        soonest = min(direction.next for direction, _ in ways.values())
        wait = max(0.0, soonest - now) if soonest < float("inf") else None
        for device in select.select(list(ways), [], [], wait)[0]:
            _take(device, ways[device][0])


def _take(device: int, direction: Direction) -> None:
    for _ in range(MOST_READ):
        try:
            packet = os.read(device, LARGEST)
        except BlockingIOError:
            return
        direction.enter(packet, time.monotonic())


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError:
        pass  # the device's own queue is full: a drop, as on any link


def openDevice(namespace: str, host: int) -> int:
    """A TUN device in a namespace, up and with an address."""
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        enterNamespace(there.fileno())
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wan", IFF_TUN | IFF_NO_PI))
            for words in (
                f"address add 10.77.0.{host}/24 dev wan",
                "link set wan mtu 1500 txqueuelen 5000 up",
                "link set lo up",
            ):
                subprocess.run(["ip", *words.split()], check=True)
        finally:
            enterNamespace(home.fileno())
    return device


def main(words: Sequence[str] | None = None) -> None:
    """Run the link."""
    parser = argparse.ArgumentParser(prog="python -m bench.wan", description="A wide-area link between two namespaces.")
    parser.add_argument("--a", required=True, help="the namespace that gets 10.77.0.1")
    parser.add_argument("--b", required=True, help="the namespace that gets 10.77.0.2")
    parser.add_argument("--delay-ms", type=float, default=25, help="delay of one way [default: %(default)g]")
    parser.add_argument("--rate-mbit", type=float, default=10, help="Mbit/s of one way [default: %(default)g]")
    parser.add_argument("--queue-kb", type=float, default=1000, help="KB that may wait [default: %(default)g]")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    a, b = openDevice(options.a, 1), openDevice(options.b, 2)
    figures = options.delay_ms / 1e3, options.rate_mbit * 125e3, options.queue_kb * 1e3
    print("up", flush=True)
    carry({a: (Direction(*figures), b), b: (Direction(*figures), a)})


if __name__ == "__main__":
    main()
