"""What an application and a target at the two ends of a chain say to each other, and whether all of it arrives."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.system.clients import LARGEST, Echo
from tests.system.hops import ANYBODY, DNS, FORWARDED, NUMBERED, TEXT
from tests.system.namespaces import Namespace, Network
from tests.system.programs import ECHO, Program, until
from tests.system.stream import Stream
from tests.system.tunnelled import Files, block

TARGET, TARGET6 = Network.atTarget
FILES = 8081
"""The port of the target's web server."""

SIZE, WINDOW = 1200, 64
"""Bytes of a numbered datagram, and how many may be under way at most."""

PAGE = b"It works through all of them.\n"
CURL_SECONDS, CURL_RATE = 300.0, "2M"
"""How long curl may take, and how many bytes a second: it is to be there as long as the datagrams are."""


class Starter(Protocol):
    """Who starts programs, and ends them."""

    def start(self, namespace: Namespace, *words: str, stdin: int = subprocess.DEVNULL) -> Program:
        """Start one in a namespace."""


class Application(socket.socket):
    """A UDP socket that goes on while nothing leads to where it sends to: the TUN comes and goes with its program."""

    def sendto(self, payload: bytes, to: tuple[str, int]) -> int:  # type: ignore[override]
        """Send, if there is a way."""
        try:
            return super().sendto(payload, to)
        except OSError:
            return 0


class Traffic:
    """
    Programs and sockets at both ends. What is not as it must be is an C{AssertionError}.

    @ivar echo: what sends everything back.
    """

    def __init__(self, network: Network, starter: Starter, folder: Path, isForwarded: bool = False) -> None:
        """
        @param folder: for the files that the target has.
        @param isForwarded: whether applications send to udp-local's forwards instead of the targets.
        """
        self.network = network
        self._starter = starter
        self._folder = folder
        self._isForwarded = isForwarded
        self._sockets: list[socket.socket] = []
        self.echo = Echo(network.target, *((host, ECHO) for host in Network.atTarget))
        (folder / "files").mkdir()
        (folder / "files" / "page").write_bytes(PAGE)
        self._web = Files(network.target, folder / "files", FILES)
        records = f"--host-record=www.tunnel.test,{TARGET},{TARGET6}", f"--host-record=four.tunnel.test,{TARGET}"
        words = f"--listen-address={TARGET}", "--bind-interfaces", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"
        log = "--log-queries", "--log-facility=-", "--user=root"
        self.names = starter.start(network.target, "dnsmasq", "--no-daemon", *words, *log, *records)
        network.client.useNameServer(ANYBODY)

    def close(self) -> None:
        """Close the sockets."""
        self.echo.close()
        self._web.close()
        for each in self._sockets:
            each.close()

    def entry(self, host: str, port: int) -> tuple[str, int]:
        """Where an application sends what is for a target."""
        return FORWARDED[host, port] if self._isForwarded else (host, port)

    def udp(self, host: str) -> Application:
        """A UDP socket of the client's, for a target of this family."""
        six = ":" in host
        with self.network.client.entered():
            made = Application(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(made)
        made.bind((self.source(host), 0))
        made.settimeout(0.25)
        return made

    def source(self, host: str) -> str:
        """The address of an application for a target of this family."""
        six = ":" in host
        return ("127.0.0.1", "::1")[six] if self._isForwarded else Network.atClient[six]

    # -- whether it works at all

    def awaitAll(self, seconds: float) -> None:
        """Wait until datagrams and pages come back."""
        application = self.udp(TARGET)
        until(lambda: self.answers(application), "no datagram comes back", seconds)
        until(self.page, "there is no TCP", seconds)

    def answers(self, application: Application, host: str = TARGET) -> bool:
        """Whether a datagram comes back."""
        application.sendto(b"is anybody there?", self.entry(host, ECHO))
        try:
            return application.recv(LARGEST) == b"is anybody there?"
        except OSError:
            return False

    def page(self, host: str = TARGET) -> bool:
        """Whether curl gets a page."""
        words = (
            "curl",
            "-sS",
            "-m",
            "5",
            f"http://[{host}]:{FILES}/page" if ":" in host else f"http://{host}:{FILES}/page",
        )
        done = subprocess.run(self.network.client.command(*words), capture_output=True, timeout=20)
        return done.stdout == PAGE

    # -- what people do

    def talk(self, host: str, bound: str = TARGET) -> None:
        """
        What is typed into one nc is what the other one prints, both ways.

        @param host: whom the client's talks to, an address or a name of the target.
        @param bound: the target's address.
        """
        place = self.entry(host, TEXT) if host == bound else (host, TEXT)
        far = self._starter.start(self.network.target, "nc", "-u", "-l", "-n", bound, str(TEXT), stdin=subprocess.PIPE)
        far.listens(TEXT, "udp")
        near = self._starter.start(self.network.client, "nc", "-u", *map(str, place), stdin=subprocess.PIPE)
        for number in range(3):
            near.write(f"question {number}\n")
            far.says(f"question {number}\n")
            far.write(f"answer {number}\n")
            near.says(f"answer {number}\n")
        _require(far.said.count("question") == near.said.count("answer") == 3, "nc has heard something twice")
        far.stop()
        near.stop()

    def dig(self) -> None:
        """A name server beyond the chain answers dig, over UDP; where no forward does that, over TCP, too."""
        asked: list[tuple[tuple[str, ...], str]] = [(("A",), TARGET), (("AAAA",), TARGET6)]
        if not self._isForwarded:
            asked.append((("A", "+tcp"), TARGET))
        server, port = self.entry(TARGET, DNS)
        for more, address in asked:
            words = "dig", f"@{server}", "-p", str(port), "www.tunnel.test", *more, "+short", "+tries=3", "+time=4"
            said = self.ask(*words)
            _require(said.split() == [address], f"dig {more} says {said!r}")

    def byName(self) -> None:
        """A name goes through the chain as a name, from nc and from curl; needs C{--fake-dns}."""
        self.talk("four.tunnel.test")
        query = f"four.tunnel.test from {Network.beforeTarget[0]}"
        _require(query in self.names.said, "the name was not looked up at the far side")
        page = self.ask("curl", "-sS", "-m", "10", f"http://four.tunnel.test:{FILES}/page")
        _require(page.encode() == PAGE, f"curl says {page!r}")

    def ask(self, *words: str) -> str:
        """What a program of the client's prints that must succeed."""
        done = subprocess.run(self.network.client.command(*words), capture_output=True, text=True, timeout=30)
        _require(done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    # -- load

    def load(
        self, megabytes: float, rate: float = 1e6, fileBytes: int = 0, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """
        Numbered datagrams get to the target and back, none damaged, none twice, less than 0.1 % lost, while curl
        fetches a file.

        No more of them are under way than the chain bears, so that none is lost for want of room.

        @param megabytes: how much, in each direction.
        @param rate: how many datagrams a second at most.
        @param fileBytes: the length of the file; none is fetched if there is none.
        """
        curl = self._fetch(fileBytes) if fileBytes else None
        count = int(megabytes * 1e6 / SIZE)
        stream = Stream(
            self.network.client,
            self.entry(TARGET, NUMBERED),
            self.network.target,
            (TARGET, NUMBERED),
            rate,
            SIZE,
            source=self.source(TARGET),
            window=WINDOW,
            most=count,
        )
        begin = time.monotonic()
        stream.await_(count, say)
        seconds = time.monotonic() - begin
        stream.stop()
        for where, arrived in (("the target", stream.far), ("the client", stream.near)):
            numbers = arrived.numbers
            lost = 1 - len(set(numbers)) / count
            say(
                f"{where} got {len(numbers)} of {count} datagrams of {SIZE} bytes, {arrived.damaged} damaged, "
                f"{len(numbers) - len(set(numbers))} twice, {lost:.4%} lost"
            )
            _require(not arrived.damaged, f"{arrived.damaged} are damaged at {where}")
            _require(len(set(numbers)) == len(numbers), f"some are there twice at {where}")
            _require(lost < 0.001, f"{lost:.3%} have not come to {where}")
        say(
            f"{count / seconds:.0f} datagrams a second there and back, {count * SIZE / seconds / 1e6:.2f} MB/s each way"
        )
        if curl is not None:
            self._fetched(curl, fileBytes)
            say(f"curl got {fileBytes} bytes meanwhile, the same as they were sent")

    def _fetch(self, size: int) -> Program:
        (self._folder / "files" / "file").write_bytes(block(size))
        limits = "-m", f"{CURL_SECONDS:g}", "--limit-rate", CURL_RATE
        words = "-sS", *limits, "-o", str(self._folder / "fetched"), f"http://{TARGET}:{FILES}/file"
        return self._starter.start(self.network.client, "curl", *words)

    def _fetched(self, curl: Program, size: int) -> None:
        until(lambda: curl.process.poll() is not None, "curl does not end", CURL_SECONDS)
        _require(curl.said == "", f"curl says {curl.said!r}")
        _require((self._folder / "fetched").read_bytes() == block(size), "what curl got is not what was sent")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)
