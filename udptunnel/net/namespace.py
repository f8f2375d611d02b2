"""
Network namespaces of our own, each made by a small process.

A process with several threads can not enter a new user namespace, and ours
must not leave the network that it is in. So another process goes there
(L{udptunnel.net.inside}), opens what is wanted, hands the descriptors over and
ends, or becomes the command that is to run there. Descriptors keep a namespace
alive, and so does the command; when they are gone, however that came, all of it is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from udptunnel.errors import ListenError
from udptunnel.net.platforms import require

SECONDS = 20.0
"""How long the small process may take. It takes half a second, most of it for Python to start."""

TRANSPARENT, REDIRECT = "tproxy", "redirect"
"""
How packets to any address come to a listener: as they are, or translated, with
SO_ORIGINAL_DST to tell what they were. Some kernels lack the first one.
"""

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit statuses, as env and timeout have them: we have failed; the command can not be run; there is no such command."""

_MOST_DESCRIPTORS = 3
_ANSWER_BYTES = 4096
_GO = b"\1"

# The command is to find the environment as it is, so what we import is not said there.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from udptunnel.net.inside import main; main()"


@dataclass(frozen=True)
class Wanted:
    """What the small process is to make."""

    device: str
    """What the TUN is called."""

    addresses: tuple[str, ...]
    """Of the TUN, ADDRESS/LENGTH of each. A family that has one gets a default route, and a listener if asked for."""

    mtu: int = 1500
    headed: bool = True
    """Whether there are to be virtio headers, if the kernel can do that."""

    ways: tuple[str, ...] = ()
    """How TCP comes to the listeners; the first way that works. None: there are no listeners."""

    nameServer: str = ""
    """Whom a command asks for names; empty: what /etc/resolv.conf says."""

    command: tuple[str, ...] = ()
    """What the process becomes when it is told to."""

    unblocked: tuple[int, ...] = ()
    """The signals that the command is to get, of those that are blocked."""

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """What L{__str__} has written."""
        given = json.loads(text).items()
        values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in given}
        return cls(**values)

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Made:
    """What it has made. All is the caller's from now on."""

    tun: int
    """The descriptor of the TUN."""

    way: str
    """Which of the ways it is."""

    listeners: tuple[socket.socket, ...]

    def close(self) -> None:
        """Let go of everything; the namespace is gone unless a command runs in it."""
        os.close(self.tun)
        for listener in self.listeners:
            listener.close()


class Inside:
    """
    A small process that is inside.

    @ivar process: the process; C{stdin}, C{stdout} and C{stderr} are ours.
    """

    def __init__(self, wanted: Wanted) -> None:
        """
        Start it.

        @raise MissingError: there are no namespaces here.
        @raise OSError: there is no process to be had.
        """
        require("a network namespace")
        self._outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._outside.settimeout(SECONDS)
        with inside:
            inside.set_inheritable(True)
            try:
                self.process = _start(wanted, inside.fileno())
            except OSError:
                self._outside.close()
                raise

    def made(self) -> Made:
        """
        Wait for what it makes.

        @raise ListenError: it could not; the text says what is missing.
        """
        try:
            text, descriptors = _receive(self._outside)
        except OSError as error:
            # It may hang where no closed socket wakes it, and L{end} would wait for ever.
            self.process.kill()
            raise ListenError(f"the namespace is not there after {SECONDS:g} s") from error
        answer = json.loads(text or '{"error": "the process that was to make it has died"}')
        if "error" in answer:
            raise ListenError(f"no network namespace of our own: {answer['error']}")
        tun, *others = descriptors
        return Made(tun, answer["way"], tuple(socket.socket(fileno=each) for each in others))

    def go(self) -> None:
        """All is ready for the command."""
        with suppress(OSError):
            self._outside.send(_GO)
        self._outside.close()

    def end(self) -> None:
        """There is nothing more for it to do."""
        self._outside.close()
        self.process.wait()


def _start(wanted: Wanted, descriptor: int) -> subprocess.Popen[bytes]:
    # What a shell, for example, has given us to hand on is the command's.
    kept: dict[str, Any] = {"close_fds": False} if wanted.command else {"pass_fds": (descriptor,)}
    words = json.dumps(sys.path), str(descriptor), str(wanted)
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, *words], **kept)


def _receive(outside: socket.socket) -> tuple[bytes, list[int]]:
    """A message with descriptors, which no other process is to inherit."""
    text, descriptors, _, _ = socket.recv_fds(outside, _ANSWER_BYTES, _MOST_DESCRIPTORS)
    for each in descriptors:
        # MSG_CMSG_CLOEXEC does not get as far as the kernel from recv_fds of Python 3.11.
        os.set_inheritable(each, False)
    return text, descriptors
