"""How many descriptors this process may have."""

from __future__ import annotations

from udptunnel.net.platforms import resource

PORTABLE_LIMIT = 512
"""Where the system does not tell: what select() can look at on Windows (FD_SETSIZE of Twisted's builds)."""


def descriptorLimit() -> int:
    """The present limit."""
    return PORTABLE_LIMIT if resource is None else int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def raiseDescriptorLimit() -> None:
    """Raise the limit as far as this user may."""
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return
