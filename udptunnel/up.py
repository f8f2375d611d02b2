"""
C{udptunnel up} and C{udptunnel down}: one side of the chain, as a file describes it, in the background.

A pid file says who does it, and is locked as long as anything of it runs
(L{udptunnel.net.pidfile}): by us, and by the guard of our carriers, which
outlives us. So who has the lock knows that nothing is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python import usage
from twisted.python.failure import Failure

from udptunnel.config import LocalConfig, RoleConfig
from udptunnel.errors import ConfigError, ListenError, TunnelError

if TYPE_CHECKING:
    # Most of the package comes with it, and the other commands are to start at once.
    from udptunnel.net.pidfile import PidFile
    from udptunnel.services.side import Side, SideConfig

ROOTS_FOLDER = "/run/udptunnel"
"""Where the pid file and the log are, if we are root."""

LOG_BYTES = 1 << 20
"""The log begins anew after so many; the one before is kept."""

END_SECONDS = 12.0
"""What is told to end has ended by then (L{udptunnel.tap.signals.STOP_SECONDS}), or is killed."""

SWEEP_SECONDS = 8.0
"""The carriers of what was killed have ended by then."""

_FOLDER = ["run-dir", None, None, "Folder for the pid file and the log."]

EXAMPLE = """
A file client.toml:

    [[carrier]]
    command = ["ss-local", "-s", "192.0.2.7", "-p", "8389", "-k", "PASSWORD",
               "-m", "chacha20-ietf-poly1305", "--no-delay", "-l", "1080"]

    [udp-local]
    via = "127.0.0.1:1080"
    server = "tcp:127.0.0.1:3456"
    forward = ["127.0.0.1:5353=9.9.9.9:53"]

brings up ss-local, and udp-local whose links go through it:

    udptunnel check client.toml
    udptunnel up client.toml
    dig -p 5353 @127.0.0.1 example.org
    udptunnel down client.toml
"""


class _FileOptions(usage.Options):
    """The options of both commands."""

    def parseArgs(self, name: str) -> None:  # type: ignore[override]
        """The file."""
        self["file"] = name

    @property
    def name(self) -> str:
        """What it is called: the file's name without folder and .toml."""
        return Path(self["file"]).name.removesuffix(".toml")


class UpOptions(_FileOptions):
    """udptunnel up."""

    synopsis = "[options] FILE"
    longdesc = f"""Brings up what a TOML file describes, in one process: the roles that it has
tables for, and each [[carrier]], a program of others, which is started again
when it ends, and whose output goes into our log. Goes into the background once
all of it is up; otherwise exit status 1, and nothing is left.
{EXAMPLE}
The log is NAME.log beside NAME.pid, in {ROOTS_FOLDER} for root, otherwise in
$XDG_RUNTIME_DIR/udptunnel."""
    optFlags = [["foreground", "f", "Stay in the foreground, and log to the standard output."]]  # noqa: RUF012
    optParameters = [_FOLDER]  # noqa: RUF012


class DownOptions(_FileOptions):
    """udptunnel down."""

    synopsis = "[options] FILE"
    longdesc = """Takes down what udptunnel up FILE has brought up, and comes back when nothing
of it is left: no process, route, rule or device. Also cleans up after it was
killed. FILE need not be there any more; its name without .toml will do.

    udptunnel down client
"""
    optParameters = [_FOLDER]  # noqa: RUF012


def folderFor(given: str | None) -> str:
    """
    The folder for pid files and logs; it is made if it is not there.

    @raise ConfigError: nobody says where, or it can not be made.
    """
    folder = given or (ROOTS_FOLDER if os.geteuid() == 0 else _ofUser())
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: {error.strerror}") from error
    return os.path.abspath(folder)


def _ofUser() -> str:
    if "XDG_RUNTIME_DIR" not in os.environ:
        raise ConfigError("XDG_RUNTIME_DIR is not set: say with --run-dir FOLDER where the pid file is to be")
    return os.path.join(os.environ["XDG_RUNTIME_DIR"], "udptunnel")


def _pidFileOf(options: _FileOptions) -> PidFile:
    from udptunnel.net.pidfile import PidFile

    if not re.fullmatch(r"[\w.@+-]{1,100}", options.name) or options.name in (".", ".."):
        raise ConfigError(f"{options['file']}: it is called after the file, and that is no good name for it")
    return PidFile(os.path.join(folderFor(options["run-dir"]), f"{options.name}.pid"))


# -- up


def up(options: UpOptions) -> int:
    """
    Bring a side up.

    @return: the exit status.
    """
    from udptunnel.net.platforms import require
    from udptunnel.services.side import readSide

    try:
        require("udptunnel up")
        config = readSide(options["file"])
        pidFile = _pidFileOf(options)
        _take(pidFile, options)
    except TunnelError as error:
        return _failed("up", error)
    return _stay(options, config, pidFile) if options["foreground"] else _goAway(options, config, pidFile)


def _take(pidFile: PidFile, options: _FileOptions) -> None:
    """Take the lock. While the carriers of one that was killed still end, nobody has a number."""
    if not pidFile.take():
        process, file = pidFile.read()
        if process or not pidFile.await_(SWEEP_SECONDS):
            raise ListenError(f"{options.name} is up already: process {process}, {file}; see udptunnel down --help")
    pidFile.write(os.path.abspath(options["file"]))


def _failed(command: str, error: object) -> int:
    print(f"udptunnel {command}: {error}", file=sys.stderr)
    return 1


def _stay(options: UpOptions, config: SideConfig, pidFile: PidFile) -> int:
    """In the foreground."""
    return _run(options, config, pidFile, sys.stdout, lambda told: None)


def _run(
    options: UpOptions, config: SideConfig, pidFile: PidFile, log: Any, tell: Callable[[dict[str, Any]], None]
) -> int:
    from twisted.internet import reactor

    try:
        return Up(reactor, options, config, pidFile, log, tell).run()
    except ConfigError as error:
        tell({"error": f"{options['file']}: {error}"})
        return _failed("up", f"{options['file']}: {error}")
    finally:
        pidFile.remove()


def _goAway(options: UpOptions, config: SideConfig, pidFile: PidFile) -> int:
    """In the background: what stays here tells how it went."""
    log = pidFile.name.removesuffix(".pid") + ".log"
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _leaveTerminal(log)
        pidFile.write(os.path.abspath(options["file"]))
        sys.exit(_run(options, config, pidFile, _logFile(log), lambda told: _tell(writing, told)))
    os.close(writing)
    pidFile.release()
    try:
        return _await(options, child, reading, log)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        return 130


def _leaveTerminal(log: str) -> None:
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, usual in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(ours, usual)
    os.close(said)
    os.close(nothing)


def _logFile(name: str) -> Any:
    from twisted.python.logfile import LogFile

    return LogFile(os.path.basename(name), os.path.dirname(name), LOG_BYTES, maxRotatedFiles=1)


def _tell(writing: int, told: dict[str, Any]) -> None:
    # Whoever has started us may be gone.
    with suppress(OSError):
        os.write(writing, json.dumps(told).encode())
        os.close(writing)


def _await(options: UpOptions, child: int, reading: int, log: str) -> int:
    """Hear how it went, and tell the user."""
    with open(reading, "rb") as file:
        told = json.loads(file.read() or '{"error": "it has ended before it was up"}')
    if "error" in told:
        os.waitpid(child, 0)
        return _failed("up", f"{told['error']}; the log is {log}")
    for name, state in told["hops"]:
        print(f"{name:16} {state}")
    print(f"{options.name} is up: process {child}, log {log}")
    return 0


class Up:
    """
    A side that is up, until a signal ends it.

    @ivar side: its services.
    @ivar status: the exit status.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: UpOptions,
        config: SideConfig,
        pidFile: PidFile,
        log: Any,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """
        @param log: the file for the log.
        @param tell: is told once what became of it: the hops, or an error.
        @raise ConfigError: a role can not be made.
        """
        from udptunnel.net.guard import Guard
        from udptunnel.services.side import Side
        from udptunnel.tap.common import RoleService, chooseTurns, prepareProcess

        prepareProcess(reactor, logConfigOf(config))
        chooseTurns(config.roles.values())
        globalLogBeginner.beginLoggingTo([textFileLogObserver(log)], redirectStandardIO=False)
        self.status = 0
        self.side: Side = Side(config, reactor, Guard((pidFile.descriptor,)))
        self._reactor = reactor
        self._tell = tell
        self._name = options.name
        self._service = RoleService(self.side, cast(Any, Reread(options, pidFile.name)), reactor)

    def run(self) -> int:
        """
        Do it, until a signal comes.

        @return: the exit status.
        """
        self._reactor.callWhenRunning(self._begin)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._end)
        self._reactor.run()
        return self.status

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._start()).addErrback(self._failed)

    async def _start(self) -> None:
        self._service.startService()
        await self.side.settled()
        hops = self.side.hops()
        for name, state in hops:
            self._log.info("{name} {state}", name=name, state=state)
        self._tell({"hops": hops})

    def _failed(self, failure: Failure) -> None:
        self.status = 1
        if failure.check(TunnelError):
            self._log.critical("{name} is not up: {error}", name=self._name, error=failure.getErrorMessage())
        else:
            self._log.failure("{name} is not up", failure, name=self._name)
        self._tell({"error": failure.getErrorMessage()})
        if self._reactor.running:
            self._reactor.stop()

    def _end(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._service.stopService()


class Reread:
    """
    What L{udptunnel.tap.common.RoleService} needs of a command line.

    @ivar role: what runs.
    @ivar pidFile: the file to remove when the process ends at once.
    """

    def __init__(self, options: UpOptions, pidFile: str) -> None:
        self.role = options.name
        self.pidFile = pidFile
        # The folder may be another one by then.
        self._file = os.path.abspath(options["file"])

    def reread(self) -> SideConfig:
        """
        What the file says now.

        @raise ConfigError: that is wrong.
        """
        from udptunnel.services.side import readSide

        return readSide(self._file)


def logConfigOf(config: SideConfig) -> RoleConfig:
    """How the log is written: as the first role says that leaves something out, or as the first one."""
    roles: list[RoleConfig] = list(config.roles.values())
    return next((role for role in roles if role.redact), (roles or [cast(RoleConfig, LocalConfig())])[0])


# -- down


def down(options: DownOptions) -> int:
    """
    Take a side down.

    @return: the exit status.
    """
    from udptunnel.net.platforms import require

    try:
        require("udptunnel up")
        pidFile = _pidFileOf(options)
        if not os.path.exists(pidFile.name):
            raise ListenError(f"{options.name} is not up: there is no {pidFile.name}")
        _end(pidFile)
    except TunnelError as error:
        return _failed("down", error)
    swept = _sweep()
    pidFile.remove()
    return swept


def _end(pidFile: PidFile) -> None:
    """
    End it, and wait until nothing is left of it.

    @raise ListenError: something does not end, or is not ours to end.
    """
    if pidFile.take():
        print(f"it was not running any more: {pidFile.name} was left behind")
        return
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, SWEEP_SECONDS)):
        process, _ = pidFile.read()
        if process:
            _send(process, number)
        if pidFile.await_(seconds):
            return
    raise ListenError(f"{pidFile.name}: whoever has it open does not end")


def _send(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ListenError(f"process {process} belongs to somebody else") from error


def _sweep() -> int:
    """Remove the routes and rules of processes that were killed."""
    try:
        from udptunnel.net.routes import sweep
        from udptunnel.net.rtnetlink import LinuxRouting

        system = LinuxRouting()
        sweep(system, system.devices())
    except ImportError:
        # Then nobody here has made any.
        return 0
    except OSError as error:
        # Who may not remove routes has made none.
        return 0 if os.geteuid() else _failed("down", f"routes: {error}")
    return 0
