"""
Many associations (L-3, L-9): all open at once, then opened and closed in rounds.

Each session is that of a true udp-local with a SOCKS5 server; one client of
it has a relay, and sends from many ports. Each port is an association. What
must be so:

 - each association gets an answer from the target that it asked, and one from
   another port of the target, to which it has sent nothing: a full cone;
 - each has an external port of its own;
 - when the control connections are closed, so are all external ports: within
   five seconds udp-server and the udp-locals have at most two descriptors more
   than before. The rounds are like that, too;
 - in the end udp-server has at most 5 MB more than after the first time that
   all were open, and the udp-locals together as well.

A datagram that got no answer within a second is sent again; how many is told.
"""

from __future__ import annotations

import select
import threading
import time
from argparse import Namespace as Arguments
from contextlib import ExitStack

from tests.soak.clients import Clients
from tests.soak.report import Report
from tests.soak.stage import LOOPBACK, Stage, inWords, measure
from tests.system.clients import SocksClient, open_
from tests.system.namespaces import Namespace
from tests.system.programs import LINK
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import packHeader, unpackHeader

FIRST_PORT, TARGET_PORT, STRANGER_PORT = 20_000, 7007, 7008
ANSWER_SECONDS, TRIES, UP_SECONDS = 1.0, 5, 60.0
CLOSED_SECONDS, SETTLE_SECONDS = 5.0, 1.0
MOST_DESCRIPTORS, MOST_BYTES = 2, 5_000_000
IN_A_ROW = 200
"""So many datagrams are sent before their answers are looked for, which is what socket buffers hold easily."""

LARGEST = 65535


class ConeTarget(threading.Thread):
    """Answers each datagram from the port that it came to, and from another one."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        self.externalPorts: set[int] = set()
        self._asked, self._stranger = (open_(namespace, LOOPBACK, port) for port in (TARGET_PORT, STRANGER_PORT))
        self._asked.settimeout(0.2)
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                payload, source = self._asked.recvfrom(LARGEST)
            except TimeoutError:
                continue
            self.externalPorts.add(source[1])
            self._asked.sendto(payload, source)
            self._stranger.sendto(payload, source)

    def close(self) -> None:
        """End it."""
        self._over.set()
        self.join()
        self._asked.close()
        self._stranger.close()


class Ports:
    """Ports of applications: each remembers who has answered the present question."""

    def __init__(self, namespace: Namespace, count: int) -> None:
        with ExitStack() as undo:
            self.all = [undo.enter_context(open_(namespace, LOOPBACK)) for _ in range(count)]
            self._poll = undo.enter_context(select.epoll())
            self._undo = undo.pop_all()
        self._byNumber = {each.fileno(): place for place, each in enumerate(self.all)}
        for each in self.all:
            each.setblocking(False)
            self._poll.register(each, select.EPOLLIN)

    def close(self) -> None:
        """Close them."""
        self._undo.close()

    def ask(self, relays: list[tuple[str, int]], turn: int) -> tuple[list[set[int]], int]:
        """
        Have each of them ask the target by way of its relay, until both answers are there.

        @param relays: for each.
        @param turn: makes this question differ from others.
        @return: for each which ports have answered, and how many datagrams were sent again.
        """
        self._answers: list[set[int]] = [set() for _ in self.all]
        again = 0
        for attempt in range(TRIES):
            waiting = [place for place, found in enumerate(self._answers) if len(found) < 2]
            again += len(waiting) if attempt else 0
            for first in range(0, len(waiting), IN_A_ROW):
                self._askSome(waiting[first : first + IN_A_ROW], relays, turn)
        return self._answers, again

    def _askSome(self, places: list[int], relays: list[tuple[str, int]], turn: int) -> None:
        header = packHeader(Address(LOOPBACK, TARGET_PORT))
        for place in places:
            self.all[place].sendto(header + b"%d %d" % (turn, place), relays[place])
        end = time.monotonic() + ANSWER_SECONDS
        while any(len(self._answers[place]) < 2 for place in places) and time.monotonic() < end:
            for number, _ in self._poll.poll(0.05, 1024):
                self._receive(self._byNumber[number], turn)

    def _receive(self, place: int, turn: int) -> None:
        datagram = self.all[place].recv(LARGEST)
        source, length = unpackHeader(datagram)
        if datagram[length:] == b"%d %d" % (turn, place):
            self._answers[place].add(source.port)
        elif datagram[length:].endswith(b" %d" % place):
            return  # an answer to the turn before, which was asked twice
        else:
            raise AssertionError(f"port {place} got {datagram[length:]!r}, which is not for it")


class Associations:
    """One run."""

    def __init__(self, stage: Stage, arguments: Arguments) -> None:
        self.stage, self.report, self.arguments = stage, stage.report, arguments
        self.namespace = stage.namespace("soak")
        words = "--listen", f"tcp:{LINK}:interface={LOOPBACK}", "--allow", "127.0.0.0/8"
        beat = "--heartbeat", f"{arguments.heartbeat:g}"
        self.server = stage.startRole(self.namespace, "udp-server", *words, *beat).listens(LINK)
        self.clients = Clients(stage, self.namespace, arguments.heartbeat, firstPort=FIRST_PORT)
        self.target = ConeTarget(self.namespace)
        stage.callback(self.target.close)
        self.ports = Ports(self.namespace, arguments.count)
        stage.callback(self.ports.close)
        self._turn = 0

    def run(self) -> None:
        """All of it."""
        sessions = self.arguments.sessions
        self.clients.begin(sessions)
        self.report.require(
            self.clients.allUp(sessions, UP_SECONDS) is not None, f"{self.clients.state['up']} of {sessions} are up"
        )
        before = self._measure("before")
        self._round(tell=True)
        self._requireClosed(before)
        time.sleep(SETTLE_SECONDS)
        first = self._measure("after the first time")
        rounds = -(-self.arguments.total // self.arguments.count)
        began = time.monotonic()
        for _ in range(rounds):
            self._round()
        seconds = time.monotonic() - began
        self.report.say(f"{rounds * self.arguments.count} opened and closed in {rounds} rounds, {seconds:.0f} s")
        self._requireClosed(before)
        time.sleep(SETTLE_SECONDS)
        self._requireFreed(first, self._measure("in the end"))

    def _measure(self, when: str) -> list[tuple[int, int]]:
        both = [measure(each) for each in (self.server, self.clients.program)]
        self.report.say(f"{when}: udp-server {inWords(both[0])}, udp-locals {inWords(both[1])}")
        return both

    def _round(self, tell: bool = False) -> None:
        """Open all of them, see that each is answered twice, and close them."""
        with ExitStack() as undo:
            relays = self._openRelays(undo)
            self._turn += 1
            self.target.externalPorts.clear()
            answers, again = self.ports.ask(relays, self._turn)
            if tell:
                self._measure("all open")
            self._judge(answers, again, tell)
        self._awaitClosed()

    def _openRelays(self, undo: ExitStack) -> list[tuple[str, int]]:
        """One relay for each session, and for each port which of them it uses."""
        made = []
        for number in range(self.arguments.sessions):
            client = SocksClient(self.namespace, port=FIRST_PORT + number)
            undo.callback(client.close)
            made.append(client.relay)
        return [made[place % len(made)] for place in range(self.arguments.count)]

    def _judge(self, answers: list[set[int]], again: int, tell: bool) -> None:
        count = self.arguments.count
        own = sum(TARGET_PORT in each for each in answers)
        cone = sum(STRANGER_PORT in each for each in answers)
        external = len(self.target.externalPorts)
        found = f"{own} answers, {cone} from another port, {external} external ports, {again} sent again"
        if tell or (own, cone, external) != (count, count, count):
            self.report.require((own, cone, external) == (count, count, count), f"{count} associations: {found}")

    def _awaitClosed(self) -> int:
        """Wait until udp-server has no external ports, and return how many it has."""
        end = time.monotonic() + CLOSED_SECONDS
        while (ports := self.stage.status("udp-server")["externalPorts"]) and time.monotonic() < end:
            time.sleep(0.05)
        return int(ports)

    def _requireClosed(self, before: list[tuple[int, int]]) -> None:
        ports = self._awaitClosed()
        now = [each.descriptors() for each in (self.server, self.clients.program)]
        more = [each - then[1] for each, then in zip(now, before, strict=True)]
        self.report.require(
            not ports and max(more) <= MOST_DESCRIPTORS, f"{ports} external ports, {more} descriptors more than before"
        )

    def _requireFreed(self, first: list[tuple[int, int]], last: list[tuple[int, int]]) -> None:
        for name, then, now in zip(("udp-server", "udp-locals"), first, last, strict=True):
            more = now[0] - then[0]
            self.report.require(more <= MOST_BYTES, f"{name} has {more / 1e6:+.1f} MB more than after the first time")


def main(arguments: Arguments) -> int:
    """Run it, and return the exit status."""
    title = f"associations: {arguments.count} over {arguments.sessions} sessions, then {arguments.total}"
    report = Report(title, arguments.report)
    with Stage(report) as stage:
        Associations(stage, arguments).run()
    return report.close()
