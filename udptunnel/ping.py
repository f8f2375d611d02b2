"""
C{udptunnel ping}: how long it takes there and back.

With a target, datagrams go the way of any program's: by SOCKS5 through a
running udp-local. Without one, PINGs go over a link that is opened for them.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python import usage

from udptunnel.config import LocalConfig, address, fill, integer, number, optionName
from udptunnel.errors import TunnelError

if TYPE_CHECKING:
    # Most of the package comes with it, and the commands are to start at once.
    from udptunnel.services.trips import Association

LARGEST = 65_485
"""Bytes of the largest datagram that leaves room for a SOCKS5 header with an IPv6 address."""

_FILLING = bytes(range(256)) * 257

_NUMBER = Struct("!4sI")
"""What is ours, and which one it is."""


class LinkOptions(usage.Options):
    """The options that say how udp-server is reached: those of udp-local, with the same names."""

    fields = tuple(
        each
        for each in dataclasses.fields(LocalConfig)
        if each.name in ("server", "via", "tls", "tlsTrust", "tlsName", "secret")
    )
    optParameters = [[optionName(each.name), None, None, each.metadata["text"]] for each in fields]  # noqa: RUF012

    def config(self, base: LocalConfig | None = None) -> LocalConfig:
        """
        The configuration that follows.

        @param base: where the other fields come from, instead of the defaults.
        @raise ConfigError: a text is not what its option accepts.
        """
        texts: Mapping[str, Any] = {
            each.name: [text] if isinstance(each.default, tuple) else text
            for each in self.fields
            if (text := self[optionName(each.name)]) is not None
        }
        return fill(LocalConfig, texts, base)


# -- the command


class PingOptions(LinkOptions):
    """udptunnel ping."""

    synopsis = "[options] --to HOST:PORT | --server ENDPOINT"
    longdesc = """With --to, sends datagrams through a running udp-local to a target that sends
them back, and shows how long each took. With --server, opens a link to
udp-server and sends no datagrams, only PINGs over the link. Exit status 0 if
something came back, 1 if nothing did."""
    optParameters = [  # noqa: RUF012
        ["to", "t", None, "Echo target, HOST:PORT, as udp-server sees it.", address],
        ["socks", None, "127.0.0.1:1234", "SOCKS5 server of udp-local.", address],
        ["count", "c", 4, "How many.", integer(1, 1_000_000)],
        ["interval", "i", 1.0, "Seconds between two.", number(0, 3600)],
        ["size", "s", 56, "Bytes in each datagram.", integer(8, LARGEST)],
    ]

    def postOptions(self) -> None:
        """There must be one place to send to."""
        if (self["to"] is None) == (self["server"] is None):
            raise usage.UsageError("where to? --to HOST:PORT or --server ENDPOINT")


class Tally:
    """
    What came of a number of trips.

    @ivar trips: the seconds that each took which came to an end.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.sent = 0
        self.trips: list[float] = []
        self._show = show

    def add(self, seconds: float | None) -> None:
        """One more; C{None} if it did not come to an end."""
        self.sent += 1
        if seconds is None:
            self._show(f"{self.sent}: nothing")
        else:
            self.trips.append(seconds)
            self._show(f"{self.sent}: {1e3 * seconds:.2f} ms")

    def __str__(self) -> str:
        from udptunnel.services.trips import spread

        lost = 100 * (self.sent - len(self.trips)) / max(1, self.sent)
        counts = f"{self.sent} sent, {len(self.trips)} back, {lost:.0f} % lost"
        return f"{counts}, {spread(self.trips)}" if self.trips else counts


def ping(options: PingOptions) -> int:
    """
    Run the command.

    @return: its exit status.
    """
    return run("ping", lambda reactor: Ping(reactor, options, lambda line: print(line, flush=True)).run())


def run(name: str, work: Callable[[Any], Awaitable[int]]) -> int:
    """
    Do something for which the reactor must run.

    @param name: the command, for the line that says what went wrong.
    @return: the exit status.
    """
    from twisted.internet import reactor, task

    codes: list[int] = []

    async def main(reactor: Any) -> None:
        reactor.seconds = time.monotonic
        try:
            codes.append(await work(reactor))
        except TunnelError as error:
            print(f"udptunnel {name}: {error}", file=sys.stderr)
        except CancelledError:
            # There is nothing yet that could be shown.
            return

    def begin(reactor: Any) -> Deferred[None]:
        done = Deferred.fromCoroutine(main(reactor))
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        return done

    try:
        task.react(begin, [], reactor)
    except SystemExit as end:
        return int(end.code or 0) or (codes[0] if codes else 1)
    return 1


class Ping:
    """
    One run of the command.

    @ivar tally: what came of it.
    """

    def __init__(self, reactor: Any, options: PingOptions, show: Callable[[str], None]) -> None:
        """
        @param show: told each line.
        """
        self.tally = Tally(show)
        self._reactor = reactor
        self._options = options
        self._show = show
        self._token = os.urandom(4)

    async def run(self) -> int:
        """
        Do it.

        @return: the exit status.
        @raise TunnelError: it can not even begin.
        """
        if self._options["to"] is None:
            await self._runLink()
        else:
            await self._runDatagrams()
        return 0 if self.tally.trips else 1

    async def _runLink(self) -> None:
        from udptunnel.services.trips import linkTrip, temporaryLink

        config = self._options.config()
        self._show(f"PINGs over a link to {', '.join(config.server)}")
        async with temporaryLink(self._reactor, config) as local:
            await self._repeat(lambda: linkTrip(self._reactor, local.session.links[0]))

    async def _runDatagrams(self) -> None:
        from udptunnel.services.trips import associate

        target, socks = self._options["to"], self._options["socks"]
        self._show(f"datagrams of {self._options['size']} bytes to {target} by way of udp-local at {socks}")
        async with associate(self._reactor, socks) as way:
            await self._repeat(lambda: self._echo(way))
            if not self.tally.trips:
                self._show(_advice(target, way))

    async def _repeat(self, once: Callable[[], Awaitable[float | None]]) -> None:
        """One trip after the other, each at its time unless the one before takes longer."""
        try:
            for left in reversed(range(self._options["count"])):
                begin = self._reactor.seconds()
                self.tally.add(await once())
                rest = begin + self._options["interval"] - self._reactor.seconds()
                if left and rest > 0:
                    await deferLater(self._reactor, rest)
        except CancelledError:
            # The user has seen enough, and wants to know what came of it.
            pass
        self._show(str(self.tally))

    async def _echo(self, way: Association) -> float | None:
        datagram = self._datagram(self.tally.sent)
        back = await way.trip(self._options["to"], datagram, datagram.__eq__)
        return None if back is None else back[0]

    def _datagram(self, number: int) -> bytes:
        begin = _NUMBER.pack(self._token, number)
        return begin + _FILLING[: self._options["size"] - len(begin)]


def _advice(target: object, way: Association) -> str:
    """What to make of it that nothing came back."""
    if way.strange:
        return f"{target} answers, but not with what it is sent: it is no echo target"
    return (
        f"nothing came back from {target}: is there a UDP echo target, may udp-server send to it (--allow), "
        "and is its link up (udptunnel status)?"
    )
