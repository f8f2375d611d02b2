"""How much memory this process holds."""

from __future__ import annotations

try:
    from resource import getpagesize
except ImportError:
    getpagesize = None  # type: ignore[assignment]


def residentBytes() -> int:
    """Resident memory (the second field of C{/proc/self/statm}, proc(5)); 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * getpagesize()
    except (OSError, IndexError, ValueError, TypeError):
        return 0
