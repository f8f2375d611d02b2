"""
C{udptunnel check-net}: walks the path to udp-server, and says where it ends and what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.python import usage

from udptunnel.config import LocalConfig, address, number, readToml
from udptunnel.errors import ConfigError
from udptunnel.ping import LinkOptions, run
from udptunnel.status import escape

LONGEST_LINE = 500
"""Characters of a line; what others say may stand in it."""


class CheckNetOptions(LinkOptions):
    """udptunnel check-net."""

    synopsis = "[options] FILE | --server ENDPOINT"
    longdesc = """Walks the path from here to udp-server: name resolution, TCP, TLS, login, round
trip, and with --echo the largest datagram that comes back. Says what to do
where it ends. FILE is a configuration file with a table [udp-local]; what
stands on the command line goes first. Exit status 0 if the whole path is
there, 1 if a step failed."""
    optParameters = [  # noqa: RUF012
        ["echo", "e", None, "UDP echo target or STUN server, HOST:PORT, as udp-server sees it.", address],
        ["timeout", None, 12.0, "Seconds that a step may take.", number(0.1, 600)],
    ]

    def parseArgs(self, name: str | None = None) -> None:
        """The file."""
        self["file"] = name

    def postOptions(self) -> None:
        """Something must say where udp-server is."""
        if self["file"] is None and self["server"] is None:
            raise usage.UsageError("where is udp-server? FILE or --server ENDPOINT")


def checkNet(options: CheckNetOptions) -> int:
    """
    Run the command.

    @return: its exit status.
    """

    def show(line: str) -> None:
        print(escape(line, LONGEST_LINE), flush=True)

    return run("check-net", lambda reactor: walkAll(reactor, options, show))


async def walkAll(reactor: Any, options: CheckNetOptions, show: Callable[[str], None]) -> int:
    """
    Walk the path to each server that is configured.

    @param show: told each line.
    @return: the exit status.
    @raise ConfigError: the file or an option is wrong.
    """
    from udptunnel.net.offload import parseNames, probe
    from udptunnel.net.platforms import isPortable
    from udptunnel.services.walk import Walk

    config = options.config(_readFile(options["file"]))
    failed = False
    for server in config.server:
        show(f"udp-server at {server}" + (f" through {config.via}" if config.via else ""))
        walk = Walk(reactor, replace(config, server=(server,)), options["echo"], show, options["timeout"])
        failed |= not await walk.walk()
    if isPortable(reactor, probe(parseNames(config.offload))):
        show("this end takes the portable path: reactor select, offload none")
    return int(failed)


def _readFile(name: str | None) -> LocalConfig | None:
    if name is None:
        return None
    try:
        with open(name, encoding="utf-8") as file:
            return readToml(LocalConfig, "udp-local", file.read())
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from error
