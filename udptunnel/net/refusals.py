"""What the kernel says when a system call on a descriptor brings nothing: expected input, not an accident."""

from __future__ import annotations

import errno

NOTHING_THERE = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
"""Just now there is nothing to read, or no room to write: no error at all."""


def nameOf(error: OSError) -> str:
    """The name of an error, such as EMSGSIZE, by which it is counted."""
    return errno.errorcode.get(error.errno or 0, "error")
