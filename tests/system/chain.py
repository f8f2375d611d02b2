"""
A data flow with the real programs, in network namespaces of its own, and each hop as it comes up:

    python -m tests.system.chain                     the whole chain (flow 4); then text both ways, and dig
    python -m tests.system.chain --names             the same with --fake-dns: names travel as names
    python -m tests.system.chain --flow 7-tls        another one; "--flow all" is one after the other
    python -m tests.system.chain --load 100          100 MB of numbered datagrams each way, and curl beside them
    python -m tests.system.chain --kill              each program is killed and started again, in turn
    python -m tests.system.chain --table             the addresses at each hop, from captures (flow 4)
    python -m tests.system.chain --hold              leaves all of it running until Ctrl-C

Needs root, and the programs of each hop. Nothing outside of the namespaces is touched, and nothing is left of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.system.clients import LARGEST
from tests.system.hops import FLOWS, NAMES, Flow, Hop
from tests.system.hoptable import Watch
from tests.system.namespaces import Namespace, Network, run
from tests.system.programs import ECHO, Program, until
from tests.system.test_restart import Pulse
from tests.system.traffic import TARGET, TARGET6, Starter, Traffic
from tests.system.tunnelled import Filter

SETTLED_SECONDS = 40.0
"""All programs have found each other by then, also on a machine that has other things to do."""

AGAIN_SECONDS = 5.0
"""How soon flows come again, counted from when the program that was killed is ready again."""

PLUGINS = ("ss-tunnel", "obfs-local"), ("ss-server", "obfs-server")
"""What starts which plugin."""

Say = Callable[[str], None]


class Chain:
    """
    The programs of a flow.

    @ivar flow: which.
    @ivar hops: from the application to the target, by name.
    @ivar running: the processes, by name.
    @ivar filters: what counts packets between client and server, in either direction.
    """

    def __init__(
        self,
        network: Network,
        starter: Starter,
        folder: Path,
        flow: str = "4",
        options: tuple[str, ...] = (),
        hops: Sequence[Hop] = (),
    ) -> None:
        """
        @param starter: starts them, and ends them some day.
        @param folder: for their files.
        @param options: of the client's tun2socks.
        @param hops: others than those of the flow.
        """
        self.network = network
        self.flow = FLOWS[flow]
        given = hops or self.flow.hops(folder, options)
        self.hops = {each.name: each for each in given}
        self.running: dict[str, Program] = {}
        self._starter = starter
        self.filters = self._count()

    def namespaceOf(self, hop: Hop) -> Namespace:
        """Where it runs."""
        return self.network.client if hop.isNear else self.network.server

    # -- up

    def launch(self, name: str) -> None:
        """Start one program of the chain."""
        hop = self.hops[name]
        self.running[name] = self._starter.start(self.namespaceOf(hop), *hop.command)

    def comeUp(self, say: Say = lambda line: None) -> None:
        """
        Start all, and say what comes up.

        Who needs another one comes before it: nothing has to be started in a certain order.
        """
        for name in self.hops:
            self.launch(name)
        begin = time.monotonic()
        for number, hop in enumerate(self.hops.values(), 1):
            self.awaitUp(hop.name)
            side = "client" if hop.isNear else "server"
            say(f"{number:2} {hop.name:14} {side}  up after {time.monotonic() - begin:4.1f} s  {hop.what}")

    def awaitUp(self, name: str) -> None:
        """Wait until one of them is ready."""
        hop, program = self.hops[name], self.running[name]
        namespace = self.namespaceOf(hop)
        until(
            lambda: hop.isUp(namespace, program) or program.process.poll() is not None, f"{name} does not come up", 20
        )
        if program.process.poll() is not None:
            raise AssertionError(f"{name} has ended: {program.said}")

    def become(self, flow: str, folder: Path) -> None:
        """Be another flow of the same programs: those that have other options are ended, and started with these."""
        before, self.hops = self.hops, {each.name: each for each in FLOWS[flow].hops(folder, ())}
        changed = [name for name, hop in self.hops.items() if hop.command != before[name].command]
        for name in changed:
            self.running[name].stop()
        for name in changed:
            self.launch(name)

    # -- between client and server

    def _count(self) -> list[Filter]:
        return [
            Filter(self.network.server, **_rules("down0", "dport", self.flow)),
            Filter(self.network.client, **_rules("up0", "sport", self.flow)),
        ]

    def counted(self) -> str:
        """
        See that between client and server there was TCP of the carrier alone, and not one datagram but shadowsocks'.

        @return: in words.
        """
        carried = 0
        for each in self.filters:
            carried += each["carrier"]
            if not each["carrier"] or each["datagrams"] or each["others"]:
                found = {name: each[name] for name in ("carrier", "datagrams", "others")}
                raise AssertionError(f"between client and server there was {found}")
        return f"between client and server: {carried} packets of the carrier's TCP, 0 datagrams, 0 others"

    # -- killed

    def killEach(self, traffic: Traffic, say: Say = lambda line: None) -> None:
        """Kill each program under traffic, in turn, plugins too, and start it again: all comes back soon."""
        pulse = Pulse(traffic.udp(TARGET), traffic.entry(TARGET, ECHO))
        try:
            until(lambda: pulse.last, "no echo")
            for name, plugin in [(name, "") for name in self.hops] + [each for each in PLUGINS if self._has(*each)]:
                seconds = self._kill(name, plugin, pulse, traffic)
                say(f"{plugin or name:14} killed, started again: datagrams and pages are back within {seconds:.1f} s")
        finally:
            pulse.stop()

    def _has(self, name: str, plugin: str) -> bool:
        return name in self.hops and plugin in self.hops[name].command

    def _kill(self, name: str, plugin: str, pulse: Pulse, traffic: Traffic) -> float:
        program = self.running[name]
        if plugin:
            os.kill(childOf(program, plugin), signal.SIGKILL)
            until(lambda: program.process.poll() is not None, f"{name} goes on without {plugin}")
        else:
            os.killpg(program.process.pid, signal.SIGKILL)
            program.process.wait()
        isTcp = name == "ss-local" and "udp-local" in self.hops
        broken = (lambda: not traffic.page()) if isTcp else (lambda: time.monotonic() - pulse.last > 0.3)
        until(broken, f"nobody misses {plugin or name}")
        self.launch(name)
        self.awaitUp(name)
        begin, what = time.monotonic(), f"although {plugin or name} is back"
        until(lambda: pulse.last > begin, f"no echo, {what}", AGAIN_SECONDS)
        until(traffic.page, f"no page, {what}", AGAIN_SECONDS)
        return time.monotonic() - begin


def _rules(device: str, which: str, flow: Flow) -> dict[str, str]:
    ports = f"{which} {{ {', '.join(map(str, flow.carriers))} }}"
    kinds = {
        "datagrams": f"udp {which} != {flow.datagrams}" if flow.datagrams else "meta l4proto udp",
        "carrier": f"tcp {ports}",
        "others": f"tcp {ports.replace('{', '!= {')}",
    }
    return {name: f'iifname "{device}" {rule}' for name, rule in kinds.items()}


def childOf(program: Program, name: str) -> int:
    """The process of a name that a program has started."""
    for number in map(int, run("ip", "netns", "pids", program.namespace.name).split()):
        try:
            if os.getpgid(number) == program.process.pid and Path(f"/proc/{number}/comm").read_text().strip() == name:
                return number
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"{program.log.name} has no {name}")


# -- as a program


class _Stage(ExitStack):
    """A network, a folder, and programs that end in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="udptunnel-chain-"))
        self.callback(shutil.rmtree, self.folder)
        self.network = Network()
        self.callback(self.network.remove)
        self.programs: list[Program] = []

    def start(self, namespace: Namespace, *words: str, stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program; it ends with the stage."""
        log = self.folder / f"{len(self.programs)}.log"
        self.programs.append(Program(namespace, log, *words, stdin=stdin))
        self.callback(self.programs[-1].stop)
        return self.programs[-1]

    def showLogs(self) -> None:
        """What the programs have said last."""
        for each in self.programs:
            print(f"--- {' '.join(each.words)}\n{each.said[-800:]}", file=sys.stderr)


def show(flow: str, arguments: argparse.Namespace, say: Say) -> None:
    """
    Bring a flow up, and do what was asked for.

    @raise AssertionError: something does not work.
    """
    with _Stage() as stage:
        say(f"flow {flow}: {FLOWS[flow].what}")
        try:
            _show(stage, flow, arguments, say)
        except AssertionError:
            stage.showLogs()
            raise


def _show(stage: _Stage, flow: str, arguments: argparse.Namespace, say: Say) -> None:
    options = NAMES if arguments.names else ()
    watch = Watch(stage.network, stage, stage.folder, options) if arguments.table else None
    chain = Chain(stage.network, stage, stage.folder, flow, options, watch.hops if watch else ())
    traffic = Traffic(stage.network, stage, stage.folder, chain.flow.isForwarded)
    stage.callback(traffic.close)
    chain.comeUp(say)
    traffic.awaitAll(SETTLED_SECONDS)
    say(f"a datagram takes {_roundTrip(traffic) * 1000:.1f} ms to {TARGET} and back")
    if watch is not None:
        say(watch.table(traffic))
    for what, check in _checks(traffic, arguments.names):
        check()
        say(f"{what}: all right")
    if arguments.load:
        traffic.load(arguments.load, arguments.rate, int(arguments.load * 1e6), say)
    if arguments.kill:
        chain.killEach(traffic, say)
    say(chain.counted())
    if arguments.hold:
        _hold(stage.network, say)


def _checks(traffic: Traffic, names: bool) -> list[tuple[str, Callable[[], None]]]:
    """What is tried of a flow, and how."""
    return [
        (f"nc, text both ways, {TARGET}", lambda: traffic.talk(TARGET)),
        (f"nc, text both ways, {TARGET6}", lambda: traffic.talk(TARGET6, TARGET6)),
        # With --fake-dns the question does not get so far.
        ("a name as a name, nc and curl", traffic.byName) if names else ("dig", traffic.dig),
    ]


def _roundTrip(traffic: Traffic) -> float:
    application = traffic.udp(TARGET)
    traffic.answers(application)
    begin = time.monotonic()
    application.sendto(b"how long?", traffic.entry(TARGET, ECHO))
    application.recv(LARGEST)
    return time.monotonic() - begin


def _hold(network: Network, say: Say) -> None:
    say(f"all of it runs until Ctrl-C; an echo is at {TARGET}, port {ECHO}. To try something as the client:")
    say(f"  ip netns exec {network.client.name} nc -u {TARGET} {ECHO}")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say("")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", choices=[*FLOWS, "all"], default="4", help="which (%(default)s)")
    parser.add_argument("--load", metavar="MB", type=float, default=0.0, help="numbered datagrams, so much each way")
    parser.add_argument("--rate", metavar="N", type=float, default=1e6, help="how many of them a second at most")
    parser.add_argument("--kill", action="store_true", help="kill each program, and start it again")
    parser.add_argument("--table", action="store_true", help="show the addresses at each hop")
    parser.add_argument("--names", action="store_true", help="give names instead of addresses to the chain (flow 4)")
    parser.add_argument("--hold", action="store_true", help="leave all running until Ctrl-C")
    arguments = parser.parse_args()
    if os.geteuid():
        sys.exit("network namespaces need root")
    # So that it takes everything away with it, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.table and arguments.flow != "4":
        sys.exit("--table: there is one of flow 4 alone")
    try:
        for flow in FLOWS if arguments.flow == "all" else (arguments.flow,):
            show(flow, arguments, lambda line: print(line, flush=True))
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except FileNotFoundError as error:
        sys.exit(f"FAILED: there is no {error.filename}")


if __name__ == "__main__":
    main()
