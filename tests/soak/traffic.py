"""Applications and targets: numbered datagrams that travel all the time, and their answers."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence

from tests.soak.judge import ANSWER, QUESTION, Judge, Note, pack
from tests.soak.stage import LOOPBACK
from tests.system.clients import SO_RCVBUFFORCE, SocksClient, open_
from tests.system.namespaces import Namespace
from udptunnel.errors import AddressError
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import packHeader, unpackHeader

SO_TIMESTAMPNS = 35
"""From asm-generic/socket.h: the kernel tells when a datagram came, however late we look at it."""

LARGEST = 65535
AGAIN_SECONDS, SOCKS_SECONDS = 0.1, 3.0
MOST_READ = 64

_TIMESPEC = struct.Struct("@qq")

Endpoint = tuple[str, int]


def receive(udp: socket.socket) -> tuple[bytes, Endpoint, float]:
    """A datagram, who sent it, and when it came."""
    datagram, ancillary, _, source = udp.recvmsg(LARGEST, 64)
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
    return datagram, source[:2], seconds + nanoseconds / 1e9


def stamped(udp: socket.socket) -> socket.socket:
    """Have the kernel note when datagrams come."""
    udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    udp.setblocking(False)
    return udp


class ForwardSource:
    """
    An application that sends to a forward.

    @ivar targets: the numbers of those that it sends to.
    @ivar udp: its socket.
    """

    def __init__(self, namespace: Namespace, port: int, target: int) -> None:
        self.udp = stamped(open_(namespace, LOOPBACK))
        self.targets = [target]
        self._entry = LOOPBACK, port

    def send(self, target: Endpoint, payload: bytes) -> None:
        """Send a datagram."""
        self.udp.sendto(payload, self._entry)

    def unwrap(self, datagram: bytes, source: Endpoint) -> tuple[Endpoint | None, bytes]:
        """The target that an answer came from, as far as it shows, and what is in it."""
        return (None, datagram) if source == self._entry else (source, datagram)

    def close(self) -> None:
        """End."""
        self.udp.close()


class SocksSource:
    """
    An application with a SOCKS5 association, which it makes anew whenever it was lost.

    @ivar lost: how often that was.
    """

    def __init__(self, namespace: Namespace, targets: Sequence[int]) -> None:
        self.udp = stamped(open_(namespace, LOOPBACK))
        self.targets = list(targets)
        self.lost = 0
        self._namespace = namespace
        self._relay: Endpoint | None = None
        self._over = threading.Event()
        self._client: SocksClient | None = None
        self._keeping = threading.Thread(target=self._keep, daemon=True)
        self._keeping.start()

    def _keep(self) -> None:
        while not self._over.wait(AGAIN_SECONDS):
            try:
                client = SocksClient(self._namespace)
            except (OSError, AssertionError):
                continue
            self._client, self._relay = client, client.relay
            self._awaitEnd(client)
            self._relay = None
            client.close()
            self.lost += 1

    def _awaitEnd(self, client: SocksClient) -> None:
        """Until the server or we have closed the association."""
        client.control.settimeout(0.2)
        while not self._over.is_set():
            try:
                client.control.recv(1)
            except TimeoutError:
                continue
            except OSError:
                pass
            return

    def send(self, target: Endpoint, payload: bytes) -> None:
        """Send a datagram, if there is a relay."""
        if self._relay is None:
            raise ConnectionError("there is no relay")
        self.udp.sendto(packHeader(Address(*target)) + payload, self._relay)

    def unwrap(self, datagram: bytes, source: Endpoint) -> tuple[Endpoint | None, bytes]:
        """The target that an answer came from, and what is in it."""
        try:
            address, length = unpackHeader(datagram)
        except AddressError:
            return source, datagram
        return (address.host, address.port), datagram[length:]

    def close(self) -> None:
        """End."""
        self._over.set()
        self._keeping.join()
        self.udp.close()


class Traffic(threading.Thread):
    """
    All applications and targets, in one thread.

    @ivar sent: how many questions were sent.
    @ivar refused: how many could not be sent, for udp-local was not there.
    """

    def __init__(
        self,
        judge: Judge,
        sources: Sequence[ForwardSource | SocksSource],
        far: Namespace,
        targets: Sequence[Endpoint],
        briefPorts: frozenset[int],
        rate: float,
        seed: int,
    ) -> None:
        """
        @param targets: their addresses, in the order of their numbers.
        @param briefPorts: at these associations are brief.
        @param rate: questions a second, all flows together.
        """
        super().__init__(daemon=True)
        self.sent = self.refused = 0
        self._judge, self._sources, self._addresses = judge, sources, list(targets)
        self._targets = [stamped(open_(far, *each)) for each in targets]
        self._brief = [all(targets[each][1] in briefPorts for each in source.targets) for source in sources]
        self._flows = [(place, each) for place, source in enumerate(sources) for each in source.targets]
        self._numbers = dict.fromkeys(self._flows, 0)
        judge.lastAsked = dict.fromkeys(self._flows, 0.0)
        self._chance = random.Random(seed)
        self._rate = rate
        self._over = threading.Event()
        self._poll = select.epoll()
        self._places = {each.udp.fileno(): place for place, each in enumerate(sources)}
        self._stalled = {each.fileno(): place for place, each in enumerate(self._targets)}
        for number in (*self._places, *self._stalled):
            self._poll.register(number, select.EPOLLIN)
        self.start()

    def run(self) -> None:
        began, turn = time.monotonic(), 0
        while not self._over.is_set():
            wait = began + turn / self._rate - time.monotonic()
            if wait <= 0:
                self._ask(*self._flows[turn % len(self._flows)])
                turn += 1
            for number, _ in self._poll.poll(min(0.1, max(0.0, wait))):
                self._read(number)

    def _ask(self, source: int, target: int) -> None:
        number = self._numbers[source, target]
        self._numbers[source, target] += 1
        now = time.time()
        note = Note(QUESTION, source, target, number, now, now)
        size = self._chance.randrange(40, 8000 if self._chance.random() < 0.05 else 1400)
        self._judge.asks(note)
        try:
            self._sources[source].send(self._addresses[target], pack(note, size))
        except OSError:
            self.refused += 1
        self.sent += 1

    def _read(self, number: int) -> None:
        for _ in range(MOST_READ):
            try:
                if number in self._places:
                    self._answerArrived(self._places[number])
                else:
                    self._questionArrived(self._stalled[number])
            except OSError:
                return  # nothing more, or an answer by ICMP

    def _questionArrived(self, place: int) -> None:
        datagram, source, at = receive(self._targets[place])
        note = self._judge.arrived(datagram, QUESTION, place, at)
        if note is None:
            return
        self._judge.comesFrom(note, source[1], self._brief[note.source])
        answer = note._replace(kind=ANSWER, sentAt=time.time(), askedAt=note.sentAt)
        self._targets[place].sendto(pack(answer, len(datagram)), source)

    def _answerArrived(self, place: int) -> None:
        datagram, source, at = receive(self._sources[place].udp)
        target, payload = self._sources[place].unwrap(datagram, source)
        note = self._judge.arrived(payload, ANSWER, place, at)
        if note is None:
            return
        if target is not None and target != self._addresses[note.target]:
            self._judge.violate(f"wrong source: {note} came from {target}")
        self._judge.answered(note)

    # -- a target that does not read

    def stall(self, place: int) -> None:
        """A target reads no more."""
        self._poll.unregister(self._targets[place])

    def resume(self, place: int) -> None:
        """It reads again."""
        self._poll.register(self._targets[place], select.EPOLLIN)

    def close(self) -> None:
        """Send no more, and close everything."""
        if not self._over.is_set():
            self._over.set()
            self.join()
            for each in (*self._sources, *self._targets, self._poll):
                each.close()
