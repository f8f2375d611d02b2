"""A program of others in a .tac file, such as ss-local, beside our roles."""

from __future__ import annotations

import os
import sys
from typing import Any

from udptunnel.errors import ListenError
from udptunnel.net.guard import Guard
from udptunnel.services.carrier import Carrier, Program


class CarrierService(Carrier):
    """A L{Carrier} with a guard of its own."""

    def __init__(self, program: Program, reactor: Any) -> None:
        """
        @param program: what is to run.
        @param reactor: provides C{IReactorProcess} and C{IReactorTime}.
        """
        super().__init__(reactor, program, Guard())

    def startService(self) -> None:
        """
        Start it.

        @raise ListenError: there is no such program. Nothing but this line is shown.
        """
        try:
            super().startService()
        except ListenError as error:
            sys.tracebacklimit = 0
            raise error.with_traceback(None) from None

    async def stopService(self) -> None:
        """Ask it to end, and wait until it has."""
        await super().stopService()
        self._guard.close()


def makeService(*command: str, name: str = "") -> CarrierService:
    """
    Keeps a program running: it is started again when it ends, its output goes into our log, and it ends with us.

    @param command: the program, which must stay in the foreground, and its arguments. There is no shell.
    @param name: what it is called in our log, if not like the program.
    """
    from twisted.internet import reactor

    name = name or os.path.basename(command[0])
    return CarrierService(Program(name, command, f"carrier {name}"), reactor)
