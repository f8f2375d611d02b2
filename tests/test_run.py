"""Tests for L{udptunnel.run}; commands that really run are in tests.system."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_nat import SYN, segment
from tests.net.test_gateway import RecordingWriter
from tests.net.test_netns import MemoryInside
from tests.test_console import Outcome
from udptunnel.core.counters import Counters
from udptunnel.net.namespace import TRANSPARENT, Made
from udptunnel.net.netns import NetnsStack
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import TunOffload
from udptunnel.run import SI_KERNEL, NoTcp, Run, RunOptions, wanted
from udptunnel.services.tun2socks import Tun2socksService
from udptunnel.wire.address import Address
from udptunnel.wire.ip import parse
from udptunnel.wire.transport import RST, parseTcp

MADE = Made(7, TRANSPARENT, ())


class StoppableReactor(PortReactor):
    """
    A reactor that runs, until it is stopped.

    @ivar stops: how often it was.
    """

    running = True
    stops = 0

    def stop(self) -> None:
        """Count."""
        self.stops += 1

    def callFromThread(self, call: Any, *words: Any) -> None:
        """Call something soon."""
        self.callLater(0, call, *words)


class MemoryProcess:
    """
    A process that ends when it was looked at often enough.

    @ivar signals: what it was sent.
    """

    returncode = -9

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self.signals: list[int] = []

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        self._looks -= 1
        return None if self._looks >= 0 else self.returncode

    def send_signal(self, number: int) -> None:
        """Keep it."""
        self.signals.append(number)


def options(*words: str) -> RunOptions:
    """What follows from some words."""
    parsed = RunOptions()
    parsed.parseOptions(words)
    return parsed


class OptionsTests(SynchronousTestCase):
    """The words of the command."""

    def config(self, *words: str) -> Any:
        """The configuration of tun2socks that follows."""
        given = options(*words, "--", "true")
        return Run(PortReactor(), given, MemoryInside())._config(MADE)  # type: ignore[arg-type]

    def test_command(self) -> None:
        """The command's words are its own, whether they follow two dashes or not."""
        for words in (("--", "curl", "-v", "--dns", "x"), ("curl", "-v", "--dns", "x")):
            given = options("--dns", "192.0.2.1", *words)
            self.assertEqual((given["command"], given["dns"]), (("curl", "-v", "--dns", "x"), "192.0.2.1"))

    def test_noCommand(self) -> None:
        """There must be one."""
        for words in ((), ("--",), ("--server", "tcp:127.0.0.1:3456")):
            outcome = Outcome("run", *words)
            self.assertEqual((outcome.status, outcome.out), (1, ""))
            self.assertIn("run what?", outcome.err)

    def test_wrong(self) -> None:
        """Values that can not be are refused before anything is done."""
        for words in (("--dns", "name.example"), ("--dns", "9.9.9.9:53"), ("--mtu", "100"), ("--fake-dns", "x")):
            self.assertRaises(UsageError, options, *words, "--", "true")

    def test_defaults(self) -> None:
        """Without options all goes to the SOCKS5 server of a udp-local, by way of the given descriptor."""
        config = self.config()
        self.assertEqual((config.socksServerAddr, config.udpSocksServerAddr), (Address("127.0.0.1", 1234), None))
        self.assertEqual((config.tunFd, config.stack, config.mtu, config.fakeDns), (7, "netns", 1500, ()))
        self.assertEqual((config.route, config.autoRoute, config.fwmark), ((), False, 0))

    def test_given(self) -> None:
        """What is given is passed on."""
        words = "--socks-server [::1]:1080 --username me --fake-dns 198.18.0.0/15 --mtu 9000".split()
        config = self.config(*words)
        self.assertEqual((config.socksServerAddr, config.username), (Address("::1", 1080), "me"))
        self.assertEqual((config.fakeDns, config.mtu), (("198.18.0.0/15",), 9000))

    def test_complete(self) -> None:
        """tun2socks accepts what follows."""
        for words in ((), ("--fake-dns", "198.18.0.0/15")):
            Tun2socksService(self.config(*words), PortReactor())

    def test_wanted(self) -> None:
        """The command gets a TUN with IPv4 and IPv6, its name server, and no listeners."""
        asked = wanted(options("--dns", "2001:db8::53", "--", "dig", "x"))
        self.assertEqual((asked.command, asked.nameServer, asked.ways), (("dig", "x"), "2001:db8::53", ()))
        self.assertEqual([":" in each for each in asked.addresses], [False, True])

    def test_unblocked(self) -> None:
        """Signals that we keep from ourselves are not kept from the command."""
        asked = wanted(options("true"), {signal.SIGUSR1})
        self.assertEqual(asked.unblocked, (int(signal.SIGUSR1),))


class SignalTests(SynchronousTestCase):
    """Whose a signal is."""

    def attend(self, *arriving: tuple[int, int], gone: bool = True) -> MemoryProcess:
        """Let signals arrive, each with its code; the process has ended then."""
        self.reactor = StoppableReactor()
        inside = MemoryInside()
        self.addCleanup(inside.close)
        inside.process = process = MemoryProcess(len(arriving))  # type: ignore[attr-defined]
        left = [SimpleNamespace(si_signo=number, si_code=code) for number, code in arriving]
        self.patch(signal, "sigwaitinfo", lambda _: left.pop(0))
        self.running = Run(self.reactor, options("true"), inside)  # type: ignore[arg-type]
        self.running._gone = gone
        self.running._attend()
        return process

    def test_passedOn(self) -> None:
        """What somebody sends to us is the command's; what a terminal sends, the command has got already."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self.assertEqual(self.attend((number, 0)).signals, [number])
            self.assertEqual(self.attend((number, SI_KERNEL)).signals, [])

    def test_children(self) -> None:
        """That a child has ended is no signal for the command."""
        self.assertEqual(self.attend((signal.SIGCHLD, 1), (signal.SIGTERM, 0)).signals, [signal.SIGTERM])

    def test_early(self) -> None:
        """Before there is a command, a signal ends us, whoever sends it."""
        for code in (0, SI_KERNEL):
            process = self.attend((signal.SIGINT, code), gone=False)
            self.reactor.advance(0)
            self.assertEqual((process.signals, self.reactor.stops, self.running.status), ([], 1, 130))

    def test_killed(self) -> None:
        """A command that a signal has killed has the exit status that a shell would give it."""
        self.attend()
        self.reactor.advance(0)
        self.assertEqual((self.reactor.stops, self.running.status), (1, 137))


class NoTcpTests(SynchronousTestCase):
    """Where only datagrams are carried."""

    def test_refused(self) -> None:
        """A connection is refused at once, and the log says what to add."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        inside, tun, tcp = MemoryInside(), RecordingWriter(), NoTcp()
        self.addCleanup(inside.close)
        stack = NetnsStack(PortReactor(), tun, TunOffload(()), tcp, Counters(), inside=inside)
        stack.start()
        self.addCleanup(stack.stop)
        stack.packetsReceived([memoryview(segment(flags=SYN))], 0)
        frame = tun.packets.pop()[10:]
        self.assertTrue(parseTcp(frame, parse(frame)).flags & RST)
        self.assertEqual(len(stack), 0)
        self.assertTrue(any("--socks-server" in event["log_format"] for event in events))
        tcp.tick(0)
        tcp.stop()
        self.assertEqual(tcp.report(), {})
