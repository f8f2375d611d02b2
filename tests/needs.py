"""What a test needs of the system, where that is not everywhere."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TypeVar
from unittest import skipUnless

from udptunnel.net.platforms import GATHERS, LINUX, PARTS, resource

Test = TypeVar("Test", bound=Callable[..., object])

_MORE: dict[str, Callable[[], bool]] = {
    "epoll": lambda: hasattr(select, "epoll"),
    "Linux": lambda: LINUX,
    "limits": lambda: resource is not None,
    "sendmsg": lambda: GATHERS,
}


def needs(part: str) -> Callable[[Test], Test]:
    """
    A decorator: a test, or all of a class, is skipped where something is missing.

    @param part: one of L{udptunnel.net.platforms.PARTS}, or epoll, Linux, limits or sendmsg.
    """
    return skipUnless({**PARTS, **_MORE}[part](), f"this system has no {part}")
