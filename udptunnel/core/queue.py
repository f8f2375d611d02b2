"""
The queue before a link: what the path can not take yet, and no more than is still worth sending.

A datagram that waited too long is worth nothing to its flow, and one that
waits behind a download is late for no reason of its own. So the queue is
bounded in bytes and in age, drops the oldest first, and is fair: flows take
turns by bytes (deficit round robin, Shreedhar and Varghese 1995), and when
the queue is full it is the longest flow that loses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from udptunnel.core.associations import Association
from udptunnel.core.counters import Counters
from udptunnel.wire.address import Address
from udptunnel.wire.burst import LARGEST_BURST, count
from udptunnel.wire.frame import Buffer

Parcel: TypeAlias = tuple[Association, Address, int, Buffer]
"""A burst on its way to the other end: its association, the far address, datagram size and payload."""

BURST_BYTES = 256
"""What a waiting burst costs besides its payload, roughly: empty ones must not be free."""

MOST_PARCELS = 256
"""Bursts that are taken for one write: at most three buffers each, and sendmsg takes 1,024 (IOV_MAX)."""


class _Flow:
    """What waits for one association."""

    __slots__ = ("association", "bytes", "credit", "parcels")

    def __init__(self, association: Association) -> None:
        self.association = association
        self.parcels: deque[tuple[float, Address, int, Buffer]] = deque()
        self.bytes = 0
        self.credit = 0

    def push(self, burst: tuple[float, Address, int, Buffer]) -> int:
        """Put in the newest; returns what it costs."""
        self.parcels.append(burst)
        cost = BURST_BYTES + len(burst[3])
        self.bytes += cost
        return cost

    def pop(self, most: int = LARGEST_BURST) -> tuple[float, Address, int, Buffer]:
        """Take out the oldest; of a burst longer than C{most}, the datagrams at its begin."""
        oldest = self.parcels.popleft()
        if len(oldest[3]) > most:
            oldest = self._cut(oldest, most)
        self.bytes -= BURST_BYTES + len(oldest[3])
        return oldest

    def _cut(self, burst: tuple[float, Address, int, Buffer], most: int) -> tuple[float, Address, int, Buffer]:
        since, address, size, payload = burst
        step = max(1, most // size) * size if size else most
        if step >= len(payload):
            return burst
        view = memoryview(payload)
        self.parcels.appendleft((since, address, size, view[step:]))
        self.bytes += BURST_BYTES
        return since, address, size, view[:step]


class Queue:
    """Bursts that wait, by association. Owns its bytes: what is put in is copied unless it is C{bytes}."""

    def __init__(self, counters: Counters, most: int, age: float) -> None:
        """
        @param most: how many bytes may wait.
        @param age: how long a burst may wait, in seconds.
        """
        self.most = most
        self.age = age
        self.bytes = 0
        """What waits, with L{BURST_BYTES} for each burst."""
        self._counters = counters
        self._flows: dict[Association, _Flow] = {}
        self._turns: deque[_Flow] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def holds(self, association: Association) -> bool:
        """Whether anything waits for an association."""
        return association in self._flows

    def put(self, parcels: Iterable[Parcel], now: float) -> None:
        """Let bursts wait."""
        for association, address, size, payload in parcels:
            flow = self._flows.get(association) or self._begin(association)
            self.bytes += flow.push((now, address, size, bytes(payload)))
            while self.bytes > self.most:
                self._dropFrom(self._longest(flow), "queue full")

    def _begin(self, association: Association) -> _Flow:
        flow = self._flows[association] = _Flow(association)
        self._turns.append(flow)
        return flow

    def _longest(self, arriving: _Flow) -> _Flow:
        """The flow that must yield; the arriving one whenever it has its share, for that needs no search."""
        if arriving.bytes * len(self._flows) >= self.bytes:
            return arriving
        return max(self._turns, key=lambda flow: flow.bytes)

    def _dropFrom(self, flow: _Flow, reason: str) -> None:
        _, _, size, payload = self._pop(flow, LARGEST_BURST)
        self._counters.drop(reason, count(size, payload))

    def _pop(self, flow: _Flow, most: int) -> tuple[float, Address, int, Buffer]:
        before = flow.bytes
        burst = flow.pop(most)
        self.bytes += flow.bytes - before
        return burst

    def take(self, most: int, now: float, quantum: int = LARGEST_BURST) -> list[Parcel]:
        """
        Take out what goes next: C{most} bytes or a little less, but at least one burst if any is fresh.

        What has waited too long is dropped on the way.

        @param quantum: bytes that a flow may send in its turn. Longer bursts
            are cut, so that on a slow path none holds up the others.
        """
        taken: list[Parcel] = []
        while self._turns and len(taken) < MOST_PARCELS:
            flow = self._turns[0]
            self._dropStale(flow, now)
            if not flow.parcels:
                self._end(flow)
            elif taken and min(quantum, len(flow.parcels[0][3])) > most:
                break
            elif flow.credit <= 0:
                flow.credit += quantum
                self._turns.rotate(-1)
            else:
                most -= self._takeFrom(flow, taken, quantum)
        return taken

    def _takeFrom(self, flow: _Flow, taken: list[Parcel], quantum: int) -> int:
        _, address, size, payload = self._pop(flow, quantum)
        taken.append((flow.association, address, size, payload))
        flow.credit -= len(payload) or 1
        return len(payload)

    def _dropStale(self, flow: _Flow, now: float) -> None:
        while flow.parcels and now - flow.parcels[0][0] > self.age:
            self._dropFrom(flow, "too old")

    def _end(self, flow: _Flow) -> None:
        self._turns.popleft()
        del self._flows[flow.association]

    def forget(self, association: Association) -> None:
        """Drop what waits for an association: it is over."""
        flow = self._flows.get(association)
        if flow is not None:
            while flow.parcels:
                self._dropFrom(flow, "association closed")
            self._turns.remove(flow)
            del self._flows[association]

    def expire(self, now: float) -> None:
        """Drop what has waited too long, when nothing is taken for a while."""
        for flow in list(self._turns):
            self._dropStale(flow, now)
        for flow in [each for each in self._turns if not each.parcels]:
            self._turns.remove(flow)
            del self._flows[flow.association]

    def takeAll(self, now: float) -> list[Parcel]:
        """Take out everything that is fresh, for another queue."""
        taken: list[Parcel] = []
        while self._turns:
            taken += self.take(self.bytes + 1, now)
        return taken
