"""
Turns on a processor, and giving way to those for whom the datagrams are.

A socket of an application holds what the system gives to everybody: some 90
datagrams of 1,400 bytes. One read of a link brings more than that. When the
application is on this machine and the processors are busy, it gets no turn
before we have sent all of it, and most is lost. So after a large read we give
way.

Others may wait who have nothing to do with us, and who would calculate for
milliseconds. That is why we do so only where our own turns can be short: then
it costs us no more than the rest of one. Linux lets a thread choose from 6.12
on (sched(7), C{sched_setattr(2)}).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

from udptunnel.net.platforms import LINUX, libc

TURN_NANOSECONDS = 100_000
"""How long a turn is to be: the shortest that Linux gives."""

LARGE_READ = 32768
"""Bytes of one read behind which we give way."""

_ATTRIBUTES = Struct("=IIQiIQQQ")
"""C{struct sched_attr} (linux/sched/types.h): size, policy, flags, nice, priority, runtime, deadline, period."""

_POLICY, _RUNTIME = 1, 5

_USUAL = 0
"""A length that leaves it to the system."""

_FAIR = (0, 3)
"""SCHED_OTHER and SCHED_BATCH: who has chosen something else knows why."""

_NUMBERS = {"x86_64": (315, 314), "aarch64": (275, 274), "riscv64": (275, 274)}
"""Of the system calls C{sched_getattr} and C{sched_setattr}, for which few C libraries have a function."""

_short = False


def shortenTurns() -> bool:
    """
    Have this thread take short turns from now on.

    @return: whether it does. If it does not, L{giveWay} gives no way.
    """
    global _short
    attributes = _read()
    if attributes is not None and attributes[_POLICY] in _FAIR:
        _choose(attributes, TURN_NANOSECONDS)
        attributes = _read()
    _short = attributes is not None and attributes[_RUNTIME] == TURN_NANOSECONDS
    return _short


@contextmanager
def usualTurns() -> Iterator[None]:
    """
    Take turns of the usual length meanwhile.

    Processes begin with the turns of who starts them, and others know better
    than we what is good for them.
    """
    attributes = _read() if _short else None
    if attributes is None:
        yield
        return
    _choose(attributes, _USUAL)
    try:
        yield
    finally:
        _choose(attributes, TURN_NANOSECONDS)


def giveWay() -> None:
    """Let those run who wait for their turn."""
    if _short:
        os.sched_yield()


def _read() -> list[int] | None:
    """How this thread is scheduled; C{None} if nobody tells."""
    area = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if not _call(0, area, _ATTRIBUTES.size, 0):
        return None
    return list(_ATTRIBUTES.unpack(area.raw))


def _choose(attributes: list[int], runtime: int) -> None:
    """Have turns of some length, and leave everything else as it is."""
    attributes[_RUNTIME] = runtime
    _call(1, ctypes.create_string_buffer(_ATTRIBUTES.pack(*attributes)), 0)


def _call(which: int, area: ctypes.Array[ctypes.c_char], *rest: int) -> bool:
    """Whether one of the two system calls, for this thread, went well. Sandboxes may forbid them."""
    numbers = _NUMBERS.get(platform.machine()) if LINUX else None
    return numbers is not None and libc.syscall(numbers[which], 0, area, *map(ctypes.c_uint, rest)) == 0
