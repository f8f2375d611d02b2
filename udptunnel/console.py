"""
The console script C{udptunnel}: what is not a daemon.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from twisted.internet.defer import Deferred
from twisted.python import usage

from udptunnel import __version__
from udptunnel.checknet import CheckNetOptions, checkNet
from udptunnel.errors import ConfigError
from udptunnel.ping import PingOptions, ping
from udptunnel.pki import PkiOptions
from udptunnel.pki import run as _pki
from udptunnel.run import RunOptions
from udptunnel.run import run as _run
from udptunnel.status import StatusOptions, status
from udptunnel.up import DownOptions, UpOptions, down, up
from udptunnel.wire.l3 import KEY_BYTES


class DemoOptions(usage.Options):
    """udptunnel demo."""

    longdesc = """Runs udp-server, udp-local and an echo target in this process, on free
loopback ports, sends datagrams of several sizes through forwards and through
SOCKS5, and shows what came back. Exit status 0 if everything did."""


class CheckOptions(usage.Options):
    """udptunnel check."""

    synopsis = "Usage: udptunnel check FILE"
    longdesc = """Reads a TOML configuration file and says what is wrong with it, in which
line. Exit status 0 if nothing is. The file has a table for each role, with the
option names of twistd udp-local, udp-server and the others as keys, and tables
[[carrier]] as udptunnel up --help shows them:

    [udp-local]
    server = "tcp:relay.example:3456"
    forward = ["127.0.0.1:5353=9.9.9.9:53"]
"""

    def parseArgs(self, name: str) -> None:  # type: ignore[override]
        """The file."""
        self["file"] = name


class GenkeyOptions(usage.Options):
    """udptunnel genkey."""

    longdesc = """Prints 32 random bytes in base64: the key that both ends of an l3-tunnel
have. Let nobody else read the file:

    (umask 077; udptunnel genkey >tunnel.key)
"""


class Options(usage.Options):
    """udptunnel."""

    synopsis = "Usage: udptunnel COMMAND"
    longdesc = """UDP over TCP. The daemons are twistd commands; each has its own --help:

    twistd -n udp-server
    twistd -n udp-local --forward 127.0.0.1:5353=9.9.9.9:53
"""
    subCommands = [  # noqa: RUF012
        ["demo", None, DemoOptions, "Send real datagrams through both ends, here and now."],
        ["check", None, CheckOptions, "Check a configuration file."],
        ["status", None, StatusOptions, "Show the state of a running udp-local or udp-server."],
        ["ping", None, PingOptions, "Measure how long it takes there and back."],
        ["check-net", None, CheckNetOptions, "Walk the path to udp-server step by step."],
        ["run", None, RunOptions, "Run one command whose only way out is the tunnel."],
        ["up", None, UpOptions, "Bring up what a file describes: roles, and the programs that carry their links."],
        ["down", None, DownOptions, "Take it down again."],
        ["genkey", None, GenkeyOptions, "Make a key for the two ends of an l3-tunnel."],
        ["pki", None, PkiOptions, "Make certificates and secrets for links over TLS."],
    ]

    def opt_version(self) -> None:
        """Show the version, and exit."""
        print(f"udptunnel {__version__}")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """There must be a command."""
        if self.subCommand is None:
            raise usage.UsageError("which command?")


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; its exit status ends the process."""
    options = Options()
    try:
        options.parseOptions(words)
    except usage.UsageError as error:
        raise SystemExit(f"udptunnel: {error}; see udptunnel --help") from None
    commands: dict[str, Callable[[Any], int]] = {"demo": lambda _: _demo(), "check": _check, "pki": _pki, "run": _run}
    commands |= {"status": status, "ping": ping, "check-net": checkNet, "up": up, "down": down}
    commands["genkey"] = lambda _: _genkey()
    raise SystemExit(commands[str(options.subCommand)](options.subOptions))


def _genkey() -> int:
    print(base64.b64encode(os.urandom(KEY_BYTES)).decode("ascii"))
    return 0


# -- check


def _check(options: CheckOptions) -> int:
    try:
        roles = checkFile(options["file"])
    except ConfigError as error:
        print(f"udptunnel check: {error}", file=sys.stderr)
        return 1
    print(f"{options['file']}: nothing wrong with {', '.join(roles)}")
    return 0


def checkFile(name: str) -> list[str]:
    """
    Read all tables of a configuration file, make what they describe, and throw it away: that checks
    what can not be checked by one value alone.

    @return: the tables that it has.
    @raise ConfigError: something in it is wrong; the text says what, and where.
    """
    from twisted.internet import reactor

    from udptunnel.services.side import Side, readSide

    config = readSide(name)
    try:
        Side(config, reactor)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return config.tables


# -- demo


class Table:
    """The demonstration's table on a terminal: drawn anew in place, or once where that is not possible."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines = 0

    def show(self, demo: Any) -> None:
        """Draw the table as it is now, if the terminal can draw it over the old one."""
        if self._out.isatty():
            self._out.write(f"\x1b[{self._lines}A\x1b[J" if self._lines else "")
            self.print(demo)

    def print(self, demo: Any) -> None:
        """Draw the table."""
        from udptunnel.services.demo import HEAD

        lines = [HEAD, *(path.row() for path in demo.paths), *demo.remarks]
        self._lines = len(lines)
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()


def _demo() -> int:
    from twisted.internet import reactor, task

    from udptunnel.services.demo import Demo

    arrived: list[bool] = []

    async def run(reactor: Any) -> None:
        reactor.seconds = time.monotonic
        table = Table(sys.stdout)
        demo = Demo(reactor, table.show)
        arrived.append(await demo.run())
        if not sys.stdout.isatty():
            table.print(demo)
        print("every datagram came back as it was sent" if arrived[0] else "NOT every datagram came back")

    print("udp-local and udp-server on loopback, an echo target behind them:")
    try:
        task.react(lambda given: Deferred.fromCoroutine(run(given)), [], reactor)
    except SystemExit as end:
        return int(end.code or 0) or int(not all(arrived))
    return 0
