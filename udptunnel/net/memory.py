"""How much memory this process holds, and how much there is."""

from __future__ import annotations

import os
from typing import Any

from udptunnel.net.platforms import resource

getpagesize: Any = getattr(resource, "getpagesize", None)


def physicalBytes() -> int:
    """How much memory the machine has; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def residentBytes() -> int:
    """Resident memory (the second field of C{/proc/self/statm}, proc(5)); 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * int(getpagesize())
    except (OSError, IndexError, ValueError, TypeError):
        return 0
