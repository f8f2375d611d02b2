"""Sockets that systemd has opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from typing import Any

from udptunnel.errors import ListenError

PREFIX = "systemd:"
"""What stands before the name or the number of such a socket, where an address may stand too."""


def inheritedDatagramSocket(which: str, passed: Any = None) -> socket.socket:
    """
    A UDP socket that was handed to this process.

    @param which: its C{FileDescriptorName}, or its number, from 0.
    @param passed: a C{ListenFDs}, if not that of this process.
    @raise ListenError: there is none, or it is no UDP socket.
    """
    passed = passed or _ofThisProcess()
    found: dict[str, int] = passed.inheritedNamedDescriptors()
    found |= {str(place): each for place, each in enumerate(passed.inheritedDescriptors())}
    if which not in found:
        raise ListenError(f"{PREFIX}{which}: systemd has handed over {', '.join(sorted(found)) or 'no socket'}")
    return _datagramSocket(which, found[which])


def _datagramSocket(which: str, descriptor: int) -> socket.socket:
    try:
        # It may be asked for again, after a reload for example, so a copy is used.
        opened = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise ListenError(f"{PREFIX}{which}: {error.strerror}") from error
    if opened.type != socket.SOCK_DGRAM or opened.family not in (socket.AF_INET, socket.AF_INET6):
        opened.close()
        raise ListenError(f"{PREFIX}{which} is no UDP socket; the .socket unit must say ListenDatagram=")
    opened.setblocking(False)
    return opened


def _ofThisProcess() -> Any:
    # Who looks first takes the news out of the environment, and that was the parser of "systemd:" endpoints.
    from twisted.plugins.twisted_core import systemdEndpointParser

    return systemdEndpointParser._sddaemon
