"""Children in memory: a reactor that starts none, and a guard that guards none."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from udptunnel.net.guard import Guard
from udptunnel.net.testing import PortReactor


class FakeChild:
    """
    A process that does what the test says.

    @ivar words: its command line.
    @ivar environment: its environment.
    @ivar signals: the signals that it was sent.
    """

    def __init__(self, pid: int, protocol: Any, words: list[str], environment: dict[str, str]) -> None:
        self.pid = pid
        self.words = words
        self.environment = environment
        self.signals: list[int] = []
        self.whenSignalled: Callable[[int], None] = self.dies
        self.isAlive = True
        self.isCut = False
        self._protocol = protocol
        protocol.makeConnection(self)

    def says(self, data: bytes, descriptor: int = 1) -> None:
        """Print something."""
        self._protocol.childDataReceived(descriptor, data)

    def exits(self, status: int = 0, number: int | None = None, quiet: bool = True) -> None:
        """
        End.

        @param quiet: whether nobody else has its output open.
        """
        self.isAlive = False
        self._reason = Failure(
            ProcessDone(0) if status == 0 and number is None else ProcessTerminated(status, number, None)
        )
        self._protocol.processExited(self._reason)
        if quiet:
            self._protocol.processEnded(self._reason)

    def dies(self, number: int) -> None:
        """End by a signal."""
        self.exits(0, number)

    def loseConnection(self) -> None:
        """Read no more."""
        self.isCut = True
        self._protocol.processEnded(self._reason)


class FakeGuard(Guard):
    """Knows of children that there are not."""

    def __init__(self) -> None:
        super().__init__()
        self.children: dict[int, FakeChild] = {}
        self.over: list[int] = []
        self.isStarted = self.isClosed = False

    def start(self) -> None:
        self.isStarted = True

    def words(self, command: Any) -> list[str]:
        return ["guarded", *command]

    def signal(self, process: int, number: int) -> None:
        self.children[process].signals.append(number)
        self.children[process].whenSignalled(number)

    def ended(self, process: int) -> None:
        self.over.append(process)

    def close(self) -> None:
        self.isClosed = True


class ChildReactor(PortReactor):
    """
    A clock, sockets in memory, and children that are not started.

    @ivar guard: what is to know them.
    @ivar refusal: why the next child can not be started, if it can not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guard = FakeGuard()
        self.refusal: OSError | None = None

    @property
    def children(self) -> list[FakeChild]:
        """All that were started."""
        return list(self.guard.children.values())

    @property
    def child(self) -> FakeChild:
        """The last one."""
        return self.children[-1]

    def spawnProcess(
        self, protocol: Any, executable: str, args: list[str], env: dict[str, str], childFDs: dict[int, int | str]
    ) -> FakeChild:
        """Start one."""
        if self.refusal is not None:
            raise self.refusal
        number = 1001 + len(self.guard.children)
        self.guard.children[number] = FakeChild(number, protocol, args, env)
        return self.guard.children[number]


TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
