"""
Processes that end when we do, even if we are killed.

Each one is started in a process group of its own, so that it is ended together
with whatever it has started itself. A small process, the guard, knows the
groups. It holds the reading end of a pipe whose other end only we have: when
we are gone, however that came, it reads the end, and ends what is left of the
groups. That needs nothing of the programs and nothing but POSIX; Linux's
C{PR_SET_PDEATHSIG} would reach neither their children nor a program that
ignores the one signal.

A program is started by way of this file, too: a few lines make it the leader
of its group and tell the guard, before the program itself takes their place.
So there is no moment in which it runs and nobody knows of it.

This file runs as a program by itself, without the package around it, and
imports nothing but the standard library. The functions at its end run there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import subprocess

FAREWELL_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit statuses, as env and timeout have them: a program can not be run; there is no such program."""

_LIFELINE = 3
"""The descriptor over which a program, before it is one, tells the guard."""

_LOOK_SECONDS = 0.02
_GUARD_SECONDS = 1.0


class Guard:
    """
    Knows what to end when this process is gone.

    It is cheap until it is started.
    """

    def __init__(self, kept: Sequence[int] = ()) -> None:
        """
        @param kept: descriptors that the guard has open as long as it lives, such as that of a file that
            is locked. They are files, and are emptied when it finds us gone: what they say of us holds no more.
        """
        self._kept = tuple(kept)
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = self._nothing = -1

    def start(self) -> None:
        """
        Start the guard's process, if it does not run yet.

        @raise OSError: there is no process to be had.
        """
        if self._process is not None:
            return
        # What runs as a program by itself has no need for it, and starts sooner without.
        import subprocess

        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*_python(), "watch", *map(str, self._kept)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=self._kept,
                start_new_session=True,
            )
        except OSError:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._lifeline = writing
        self._nothing = os.open(os.devnull, os.O_RDONLY)

    def words(self, command: Sequence[str]) -> list[str]:
        """The command line that starts a program so that the guard knows of it."""
        return [*_python(), "become", *command]

    @property
    def descriptors(self) -> dict[int, int | str]:
        """The descriptors for that, as C{spawnProcess} takes them: nothing to read, and we read what is said."""
        return {0: self._nothing, 1: "r", 2: "r", _LIFELINE: self._lifeline}

    def signal(self, process: int, number: int) -> None:
        """Send a signal to a program and to what it has started."""
        try:
            os.killpg(process, number)
        except ProcessLookupError:
            # It has no group yet: it was started in this moment.
            with suppress(OSError):
                os.kill(process, number)
        except PermissionError:
            # It has become somebody else.
            return

    def ended(self, process: int) -> None:
        """A program has ended. What it has started and left ends, too."""
        with suppress(OSError):
            os.killpg(process, signal.SIGKILL)
        with suppress(OSError):
            os.write(self._lifeline, b"-%d\n" % process)

    def close(self) -> None:
        """Let go of everything; the guard ends what is left, and itself."""
        if self._process is None:
            return
        process, self._process = self._process, None
        os.close(self._lifeline)
        os.close(self._nothing)
        with suppress(Exception):
            process.wait(_GUARD_SECONDS)


def _python() -> list[str]:
    """Python with this file, and with as little else as possible."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__)]


# -- in the guard's process


def watch(lines: Iterable[bytes], kept: Iterable[int] = ()) -> None:
    """
    Be the guard, until its owner is gone and everything has ended.

    @param lines: +N, there is a group; -N, it is gone.
    @param kept: files to empty in the end.
    """
    groups = set()
    for line in lines:
        number = int(line[1:])
        if line.startswith(b"+"):
            groups.add(number)
        else:
            groups.discard(number)
    for each in kept:
        os.ftruncate(each, 0)
    end(groups)


def end(groups: Iterable[int], seconds: float = FAREWELL_SECONDS) -> None:
    """
    End process groups: ask them to, and after a while do it.

    @param seconds: how long that while is.
    """
    left = [group for group in groups if _signalled(group, signal.SIGTERM)]
    until = time.monotonic() + seconds
    while left and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        left = [group for group in left if _signalled(group, 0)]
    for group in left:
        _signalled(group, signal.SIGKILL)


def _signalled(group: int, number: int) -> bool:
    """Whether there was anybody to get a signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- in the process that becomes a program


def become(command: Sequence[str], lifeline: int = _LIFELINE) -> NoReturn:
    """Become a program that the guard knows of."""
    os.setsid()
    os.write(lifeline, b"+%d\n" % os.getpid())
    os.close(lifeline)
    for name in ("SIGPIPE", "SIGXFSZ"):
        # Python ignores them, and what is ignored stays so.
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def main(words: Sequence[str]) -> None:
    """Do what the words say: C{watch [DESCRIPTOR]...} or C{become PROGRAM [ARGUMENT]...}."""
    if words[0] == "become":
        become(words[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # It goes when its owner goes, and not before.
        signal.signal(number, signal.SIG_IGN)
    lines: Any = sys.stdin.buffer
    watch(lines, map(int, words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
