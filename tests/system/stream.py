"""
Datagrams that tell when and as which they were sent, and whether they are whole.

As a program, many of them as fast as wished, from an address and a port:

    python -m tests.system.stream HOST PORT TO-HOST TO-PORT SIZE RATE SECONDS
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tests.system.namespaces import Namespace

_HEAD, _TIMESPEC = struct.Struct("!QdI"), struct.Struct("@ll")
LEAST = _HEAD.size
FILLING = bytes(range(256)) * 256
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
LARGEST = 65535

LOST_SECONDS = 3.0
"""What has not come back in so long a silence is lost."""

PAUSE_SECONDS, TELL_SECONDS = 0.02, 10.0

Endpoint = tuple[str, int]


def pack(number: int, sentAt: float, size: int) -> bytes:
    """The datagram of a number, sent at a time; a checksum covers all of it."""
    body = struct.pack("!Qd", number, sentAt) + FILLING[number & 0xFF :][: size - LEAST]
    return body[:16] + zlib.crc32(body).to_bytes(4, "big") + body[16:]


def unpack(datagram: bytes) -> tuple[int, float] | None:
    """Number and time of a datagram; C{None} if it is not as it was sent."""
    if len(datagram) < LEAST:
        return None
    number, sentAt, check = _HEAD.unpack_from(datagram)
    return (number, sentAt) if check == zlib.crc32(datagram[:16] + datagram[LEAST:]) else None


class Arrival(NamedTuple):
    """One datagram that has arrived."""

    number: int
    age: float
    at: float
    source: Endpoint


@dataclass
class Arrivals:
    """What has arrived at one end, in that order, and how much of it was damaged."""

    def __init__(self) -> None:
        self.all: list[Arrival] = []
        self.damaged = 0

    def add(self, datagram: bytes, source: Endpoint, waited: float = 0.0) -> int | None:
        """
        Take a datagram, and return its number.

        @param waited: for how long it was there before we looked.
        """
        now = time.monotonic() - waited
        if (head := unpack(datagram)) is None:
            self.damaged += 1
            return None
        self.all.append(Arrival(head[0], now - head[1], now, source))
        return head[0]

    def since(self, moment: float) -> list[Arrival]:
        """What has arrived since then."""
        return [each for each in list(self.all) if each.at >= moment]

    @property
    def last(self) -> float:
        """When the last one has arrived."""
        return self.all[-1].at if self.all else 0.0

    @property
    def numbers(self) -> list[int]:
        """The numbers of all that has arrived."""
        return [each.number for each in list(self.all)]

    @property
    def oldest(self) -> float:
        """How long the slowest was on its way, in seconds."""
        return max((each.age for each in list(self.all)), default=0.0)

    @property
    def sources(self) -> set[Endpoint]:
        """Where all that has come from."""
        return {each.source for each in list(self.all)}

    def gap(self, since: float = 0.0) -> float:
        """The longest time without an arrival, up to now."""
        times = [each.at for each in self.since(since)] + [time.monotonic()]
        return max((later - earlier for earlier, later in zip([since or times[0], *times], times, strict=False)))


def open_(namespace: Namespace, host: str, port: int = 0) -> socket.socket:
    """A UDP socket in a namespace, with room for much."""
    with namespace.entered():
        opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    opened.bind((host, port))
    opened.setblocking(False)
    return opened


def receive(opened: socket.socket) -> tuple[bytes, float, Endpoint]:
    """A datagram, how long the kernel had it before we looked, and where it is from: a busy test is not to blame us."""
    datagram, ((_, _, stamp),), _, source = opened.recvmsg(LARGEST, socket.CMSG_SPACE(_TIMESPEC.size))
    seconds, nanoseconds = _TIMESPEC.unpack(stamp)
    return datagram, max(0.0, time.time() - seconds - nanoseconds / 1e9), source


class Stream(threading.Thread):
    """
    A flow from an application to a target, at a steady rate, and its answers.

    The target answers each datagram by one of the same number, with a time of
    its own, so that the age of both can be told.

    @ivar far: what has arrived at the target.
    @ivar near: what has come back.
    @ivar sent: how many the application has sent.
    """

    def __init__(
        self,
        application: Namespace,
        entry: Endpoint,
        far: Namespace,
        target: Endpoint,
        rate: float = 500,
        size: int = 200,
        source: str = "",
        window: int = 1 << 30,
        most: int = 1 << 62,
    ) -> None:
        """
        @param entry: where the application sends.
        @param target: what the target is bound to.
        @param source: the application's address, if it is not loopback.
        @param window: how many may be under way; what was sent before something that has come back counts no more.
        @param most: how many it sends at all.
        """
        super().__init__(daemon=True)
        self.far, self.near = Arrivals(), Arrivals()
        self.sent = 0
        self._application, self._target = (
            open_(application, source or ("::1" if ":" in entry[0] else "127.0.0.1")),
            open_(far, *target),
        )
        self._window, self._most, self._settled = window, most, 0
        self._entry, self._rate, self._size = entry, rate, size
        self._over = threading.Event()
        self._begin = time.monotonic()
        self.start()

    def run(self) -> None:
        descriptors = [self._application, self._target]
        while not self._over.is_set():
            wait = self._wait()
            if wait <= 0:
                self._application.sendto(pack(self.sent, time.monotonic(), self._size), self._entry)
                self.sent += 1
            for ready in select.select(descriptors, [], [], max(0.0, wait))[0]:
                self._receive(ready)

    def _wait(self) -> float:
        """Seconds until the next one may go."""
        if self.sent >= self._most:
            return PAUSE_SECONDS
        if self.sent - self._settled >= self._window:
            if time.monotonic() - max(self._begin, self.near.last) > LOST_SECONDS:
                # Whatever is under way will not come any more.
                self._settled = self.sent
            return PAUSE_SECONDS
        return self._begin + self.sent / self._rate - time.monotonic()

    def await_(self, count: int, say: Callable[[str], None]) -> None:
        """
        Wait until so many have come back, or no more come.

        @param say: told each ten seconds how many it were.
        """
        told = time.monotonic()
        while len(self.near.all) < count:
            time.sleep(0.01)
            now = time.monotonic()
            if self.sent >= count and now - self.near.last > LOST_SECONDS:
                return
            if now - told >= TELL_SECONDS:
                told = now
                say(f"  {self.sent} sent, {len(self.near.all)} are back")

    def _receive(self, ready: socket.socket) -> None:
        try:
            datagram, waited, source = receive(ready)
        except OSError:
            return
        if ready is self._application:
            number = self.near.add(datagram, source, waited)
            self._settled = max(self._settled, -1 if number is None else number + 1)
        elif (number := self.far.add(datagram, source, waited)) is not None:
            ready.sendto(pack(number, time.monotonic(), len(datagram)), source)

    def stop(self) -> None:
        """Send no more, and close the sockets."""
        if not self._over.is_set():
            self._over.set()
            self.join()
            self._application.close()
            self._target.close()


def send(host: str, port: str, toHost: str, toPort: str, size: str, rate: str, seconds: str) -> int:
    """Send datagrams for some time, and return how many."""
    length, pace, end = int(size), float(rate), time.monotonic() + float(seconds)
    payload, to, sent = bytes(length), (toHost, int(toPort)), 0
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((host, int(port)))
        begin = now = time.monotonic()
        while now < end:
            for _ in range(max(0, int((now - begin) * pace) - sent)):
                try:
                    udp.sendto(payload, to)
                except OSError:
                    pass  # an answer by ICMP, or no room
                sent += 1
            time.sleep(0.0005)
            now = time.monotonic()
    return sent


if __name__ == "__main__":
    print(send(*sys.argv[1:]))
