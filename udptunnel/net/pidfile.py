"""
A file that says which process does something, and is locked as long as it does.

A number alone may belong to a stranger by now. So the file counts only while
somebody holds its lock, which the kernel releases when the last process that
has inherited it is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from udptunnel.errors import ListenError
from udptunnel.net.platforms import fcntl

LOOK_SECONDS = 0.02


class PidFile:
    """
    One such file.

    @ivar name: its name.
    @ivar descriptor: while we have the lock, the file; else -1.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.descriptor = -1

    def take(self) -> bool:
        """
        Take the lock, if nobody has it, and make the file if it is not there.

        @raise ListenError: there can be no such file.
        """
        while self.descriptor < 0:
            try:
                opened = os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ListenError(f"{self.name}: {error.strerror}") from error
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(opened)
                return False
            if self._isThere(opened):
                self.descriptor = opened
            else:
                # Somebody has removed it in this moment.
                os.close(opened)
        return True

    def _isThere(self, opened: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(opened))
        except FileNotFoundError:
            return False

    def await_(self, seconds: float, sleep: Callable[[float], object] = time.sleep) -> bool:
        """Take the lock as soon as nobody else has it; whether that came to pass within some time."""
        until = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() > until:
                return False
            sleep(LOOK_SECONDS)
        return True

    def write(self, what: str) -> None:
        """Say that it is this process, and what it does."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n{what}\n".encode(), 0)

    def read(self) -> tuple[int, str]:
        """The process, and what it does; 0 if nobody says so."""
        try:
            with open(self.name, encoding="utf-8", errors="replace") as file:
                number, what = file.readline().strip(), file.readline().strip()
        except OSError:
            return 0, ""
        return (int(number), what) if number.isascii() and number.isdigit() else (0, "")

    def remove(self) -> None:
        """Remove the file, and let go of the lock."""
        with suppress(OSError):
            os.unlink(self.name)
        self.release()

    def release(self) -> None:
        """Let go of the lock; who has inherited it still has it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
