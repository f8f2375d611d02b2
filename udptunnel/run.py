"""
C{udptunnel run}: one command whose only way out is the tunnel, without root.

The command lives in a network namespace of its own, in which a TUN is the only
device (L{udptunnel.net.inside}). We have the other end of the TUN, are
tun2socks for it, and stay outside::

    command -- TUN -- tun2socks -- TCP: a SOCKS5 server
                                 - UDP: the same, or a link to udp-server

When the command ends so do we, with its exit status; and when we end so does it.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import AsyncExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python import usage
from twisted.python.failure import Failure

from udptunnel.config import Tun2socksConfig, address, integer, network
from udptunnel.errors import LoginError, MissingError, TunnelError
from udptunnel.net.logs import useLogLines
from udptunnel.net.namespace import FAILED, Inside, Made, Wanted
from udptunnel.net.platforms import require
from udptunnel.ping import LinkOptions
from udptunnel.wire.address import Address

if TYPE_CHECKING:
    # Most of the package comes with it, and the command is to start at once.
    from udptunnel.net.stack import Connection
    from udptunnel.services.local import LocalService

DEVICE = "tun0"

ADDRESSES = "100.64.0.2/32", "fd75:6470:7475:6e::2/128"
"""What the command sees as its own (RFC 6598, RFC 4193). Nobody beyond the TUN ever sees them."""

SOCKS = "127.0.0.1:1234"
"""Where udp-local has its SOCKS5 server unless it is told otherwise."""

PASSED = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Signals that are the command's, not ours."""

_AWAITED = frozenset((*PASSED, getattr(signal, "SIGCHLD", signal.SIGTERM)))

SI_KERNEL = 0x80
"""From asm-generic/siginfo.h: a terminal has sent the signal, to the command as well as to us."""


def _host(text: str) -> str:
    """An address; C{resolv.conf} knows no ports."""
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise ValueError("expected an address without port") from error


class RunOptions(LinkOptions):
    """udptunnel run."""

    synopsis = "[options] -- COMMAND [ARGUMENTS]"
    longdesc = """Runs a command whose only way out is the tunnel: TCP by way of a SOCKS5
server, UDP by way of the same one, or over a link to udp-server. Needs no
root. Names are looked up through the tunnel, too. The exit status is the
command's; 125 if it was not even started.

    udptunnel run -- curl https://example.org/
    udptunnel run --server tcp:relay.example:3456 -- dig example.org
"""
    optParameters = [  # noqa: RUF012
        ["socks-server", None, None, f"SOCKS5 server for TCP, and without --server for UDP; {SOCKS}.", address],
        ["username", None, "", "Who we are to the SOCKS5 server."],
        ["password-file", None, None, "A file that holds the password, and nothing else."],
        ["dns", None, "9.9.9.9", "The name server that the command asks.", _host],
        [
            "fake-dns",
            None,
            None,
            "Answer DNS with addresses of this network, and pass on names in their place.",
            network,
        ],
        ["mtu", None, 1500, "The longest packet.", integer(1280, 65_535)],
    ]
    optFlags = [["verbose", "v", "Say what goes on, not only what goes wrong."]]  # noqa: RUF012

    def parseArgs(self, *command: str) -> None:
        """The command."""
        if not command:
            raise usage.UsageError("run what? udptunnel run [options] -- COMMAND")
        self["command"] = command


def run(options: RunOptions) -> int:
    """
    Run the command.

    @return: its exit status; 128 and the number of a signal that has killed it.
    """
    try:
        require("udptunnel run")
    except MissingError as error:
        return _failed(error)
    # All threads inherit this. The command does not keep it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        inside = Inside(wanted(options, _AWAITED - before))
    except OSError as error:
        return _failed(error)
    from twisted.internet import reactor

    return Run(reactor, options, inside).run()


def _failed(error: Exception) -> int:
    print(f"udptunnel run: {error}", file=sys.stderr)
    return FAILED


def wanted(options: RunOptions, unblocked: Collection[int] = ()) -> Wanted:
    """
    What the command is to have around it.

    @param unblocked: signals that only we have blocked.
    """
    return Wanted(
        DEVICE,
        ADDRESSES,
        options["mtu"],
        nameServer=options["dns"],
        command=options["command"],
        unblocked=tuple(map(int, unblocked)),
    )


class Run:
    """
    A command that is inside, and the tunnel for it.

    @ivar status: the exit status.
    """

    def __init__(self, reactor: Any, options: RunOptions, inside: Inside) -> None:
        """
        @param reactor: any real one.
        @param inside: waits for the network, and then becomes the command.
        """
        self.status = FAILED
        self._reactor = reactor
        self._options = options
        self._inside = inside
        self._stack = AsyncExitStack()
        self._gone = self._stopped = False
        self._code: int | None = None

    def run(self) -> int:
        """
        Do it, until the command ends.

        @return: the exit status.
        """
        self._reactor.seconds = time.monotonic
        _showLog(self._reactor, "info" if self._options["verbose"] else "warning")
        threading.Thread(target=self._attend, daemon=True).start()
        self._reactor.callWhenRunning(self._begin)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._end)
        # The signals are the command's.
        self._reactor.run(installSignalHandlers=False)
        return self.status

    # -- beginning

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._prepare()).addErrback(self._failed)

    async def _prepare(self) -> None:
        """Make the tunnel, and let the command go."""
        made = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._inside.made)
        await self._carry(made)
        self._gone = True
        self._inside.go()
        if self._code is not None:
            self._ended(self._code)

    async def _carry(self, made: Made) -> None:
        """Carry on what comes out of the TUN."""
        from udptunnel.net.routes import Capture, Routes
        from udptunnel.services.tun2socks import Tun2socksService, throughSession

        local = await self._link()
        udp = throughSession(local) if local is not None else None
        tcp = NoTcp() if local is not None and self._options["socks-server"] is None else None
        # The routes into the TUN are where the TUN is, not here.
        service = Tun2socksService(self._config(made), self._reactor, udp=udp, tcp=tcp, routes=Routes(Capture()))
        service.startService()
        self._stack.push_async_callback(service.stopService)

    async def _link(self) -> LocalService | None:
        """Our own end of the tunnel, if there is to be one."""
        if self._options["server"] is None:
            return None
        from udptunnel.services.local import LocalService
        from udptunnel.services.trips import linked

        config = dataclasses.replace(self._options.config(), socks="none")
        local = linked(self._reactor, LocalService(config, self._reactor))
        try:
            return await self._stack.enter_async_context(local)
        except LoginError as error:
            raise LoginError(f"no link to {', '.join(config.server)}: {error}") from error

    def _config(self, made: Made) -> Tun2socksConfig:
        options = self._options
        return Tun2socksConfig(
            tunFd=made.tun,
            stack="netns",
            mtu=options["mtu"],
            fakeDns=(options["fake-dns"],) if options["fake-dns"] is not None else (),
            socksServerAddr=options["socks-server"] or Address.parse(SOCKS),
            username=options["username"],
            passwordFile=options["password-file"],
        )

    def _failed(self, failure: Failure) -> None:
        if failure.check(TunnelError):
            print(f"udptunnel run: {failure.getErrorMessage()}", file=sys.stderr)
        else:
            failure.printTraceback(sys.stderr)
        self._stop(FAILED)

    # -- the command

    def _attend(self) -> None:
        """Pass signals on until the command ends. Runs in a thread of its own."""
        process = self._inside.process
        while process.poll() is None:
            arrived = signal.sigwaitinfo(_AWAITED)
            if not self._gone and arrived.si_signo != signal.SIGCHLD:
                self._reactor.callFromThread(self._stop, 128 + arrived.si_signo)
            elif arrived.si_signo != signal.SIGCHLD and arrived.si_code != SI_KERNEL:
                process.send_signal(arrived.si_signo)
        self._reactor.callFromThread(self._ended, process.returncode)

    def _ended(self, code: int) -> None:
        """The command has ended."""
        if self._gone:
            self._stop(code if code >= 0 else 128 - code)
        else:
            # It says itself what is wrong; unless somebody has killed it after all was well.
            self._code = code

    # -- the end

    def _stop(self, status: int) -> None:
        if self._reactor.running and not self._stopped:
            self._stopped = True
            self.status = status
            self._reactor.stop()

    def _end(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._stack.aclose()
        self._inside.end()


class NoTcp:
    """Where there is no SOCKS5 server, nobody carries connections on. It is a L{udptunnel.net.stack.TcpReceiver}."""

    _log = Logger()

    def connectionRequested(self, connection: Connection) -> None:
        """It is refused, at once."""
        self._log.warn(
            "no TCP to {target}: --server carries datagrams only; add --socks-server", target=connection.target
        )
        connection.refuse()

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """That never happens."""
        opened.close()

    def connectionLost(self, connection: Connection) -> None:
        """That never happens."""

    def tick(self, now: float) -> None:
        """Time changes nothing."""

    def stop(self) -> None:
        """There is nothing to stop."""

    def report(self) -> dict[str, object]:
        """There is nothing to report."""
        return {}


def _showLog(reactor: Any, level: str) -> None:
    """The terminal is the command's: we say what goes wrong, or what goes on."""
    useLogLines(Tun2socksConfig(loglevel=level), reactor)
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
