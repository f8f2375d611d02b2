"""
Where roles run: a reactor, and the ways into its thread.

A program that has a reactor keeps it. For one that has none, the reactor of
the process runs in a thread in the background, from the first role on until
the program ends.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.error import ReactorNotRestartable
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import globalLogBeginner
from twisted.python.threadable import isInIOThread

from udptunnel.errors import TunnelError

Result = TypeVar("Result")

END_SECONDS = 10.0
"""How long the end of the program waits for that of its roles."""

THREAD = "udptunnel"

_turn = threading.Lock()
_thread: threading.Thread | None = None


class Home:
    """
    A reactor, and the ways into its thread.

    @ivar reactor: the reactor.
    """

    def __init__(self, reactor: Any = None) -> None:
        """
        @param reactor: the program's own. If it is not given, that of the process, which is begun in the background
            if it does not run.
        @raise TunnelError: it has ended, and can not begin again.
        """
        self.reactor = reactor if reactor is not None else runningReactor()

    @property
    def inside(self) -> bool:
        """Whether this is the reactor's thread. Before it runs, whoever has made it is taken for that."""
        return isInIOThread() or not self.reactor.running

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """
        Call something in the reactor's thread. Elsewhere this waits for what it returns, or what its Deferred has.
        """
        if self.inside:
            return function(*arguments)
        return blockingCallFromThread(self.reactor, function, *arguments)


def runningReactor() -> Any:
    """
    The reactor of this process, running.

    @raise TunnelError: it has ended.
    """
    from twisted.internet import reactor

    with _turn:
        found: Any = reactor
        if not found.running:
            _beginInBackground(found)
        return found


def _beginInBackground(reactor: Any) -> None:
    global _thread
    begun = threading.Event()
    # It follows the clock on the wall otherwise, which somebody may set.
    reactor.seconds = time.monotonic
    _thread = threading.Thread(target=_run, args=(reactor, begun), name=THREAD, daemon=True)
    _thread.start()
    begun.wait()
    if not reactor.running:
        raise TunnelError("the reactor of this process has ended, and can not begin again")
    # Threads are waited for when Python ends, and the reactor has some; so it must end before.
    getattr(threading, "_register_atexit", atexit.register)(_end, reactor)


def _run(reactor: Any, begun: threading.Event) -> None:
    if hasattr(signal, "pthread_sigmask"):
        # In a program that is not Python's nobody ignores it, and it is for the thread that writes.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    # Twisted keeps what is logged until somebody wants it, and here nobody does.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    reactor.callWhenRunning(begun.set)
    try:
        reactor.run(installSignalHandlers=False)
    except ReactorNotRestartable:
        # Whoever waits for it says so.
        pass
    finally:
        begun.set()


def _end(reactor: Any) -> None:
    if reactor.running and _thread is not None:
        reactor.callFromThread(reactor.stop)
        _thread.join(END_SECONDS)
