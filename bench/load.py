"""
The load: datagrams that know their number, when they were sent, and what is in them; who sends and who counts them.

A source is opened once for each start of a peer, and a sink too: some peers
serve the first source only, and some end when nobody takes what they send.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from mmap import mmap

from bench.mmsg import SLOT_BYTES, SOL_UDP, UDP_GRO, Inbox, Outbox
from bench.places import Address, Site
from bench.programs import BenchError

HEAD = struct.Struct("!QdI")
"""The run and the number in one word, when it was sent, a check word."""

TALLY = struct.Struct("Q")
"""How many have come, as two processes share it."""

FILLING = bytes(range(256)) * 256
RUN_SHIFT = 48
NUMBERS = 1 << RUN_SHIFT

LARGEST_BURST = 60_000
MOST_SEGMENTS = 60
"""Of a GSO sender: UDP_MAX_SEGMENTS of linux/udp.h is 64 before Linux 6.9."""

BATCH_SECONDS = 0.0002
MOST_BATCHED = 16
"""Without GSO, datagrams of so much time, or so many, leave with one sendmmsg."""

DEBT_SECONDS = 0.005
"""How much of what it owes a sender makes up for after it was held up. More would be a flood that nobody ordered."""

WINDOW_BYTES = 2_000_000
"""What a sender has under way that waits for what it has sent: 5 ms at 3 Gbit/s, less than the peers' buffers hold."""

LOOK_SECONDS, GIVE_UP_SECONDS = 0.0002, 0.1
"""How often it looks what has arrived, and after what silence it believes that the rest is lost."""

TICK_SECONDS = 0.05
SILENCE_SECONDS = 0.4
"""Nothing comes any more if nothing has come for so long after the last was sent."""

SO_RCVTIMEO = struct.pack("ll", 0, int(TICK_SECONDS * 1e6))


# -- datagrams


def checkWord(number: int, size: int) -> int:
    """What a datagram of this number and size must say."""
    return ((number ^ number >> 32) * 2_654_435_761 + size) & 0xFFFFFFFF


def isRight(datagram: bytes | memoryview, size: int) -> bool:
    """Whether a datagram is what somebody has sent as one of this size. When it was sent is not looked at."""
    if len(datagram) != size:
        return False
    number, _, word = HEAD.unpack_from(datagram)
    return word == checkWord(number, size) and datagram[HEAD.size :] == FILLING[: size - HEAD.size]


def payload(number: int, size: int, now: float) -> bytes:
    """One datagram."""
    return HEAD.pack(number, now, checkWord(number, size)) + FILLING[: size - HEAD.size]


# -- outcomes


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that is not below this part of all of them; NaN if there are none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * part) - 1)] if ranked else math.nan


@dataclass
class Outcome:
    """
    What became of a load.

    @ivar sent: datagrams.
    @ivar seconds: how long they were sent.
    @ivar delivered: datagrams of this load that arrived; if only the first of each read is looked at, also copies.
    @ivar span: seconds from the first that arrived to the last.
    @ivar reordered: those that came after one with a higher number.
    @ivar damaged: those that are not as they were sent. They do not count as delivered.
    @ivar duplicates: copies. They do not count as delivered.
    @ivar trips: round trips in seconds.
    """

    sent: int = 0
    seconds: float = 0
    delivered: int = 0
    span: float = 0
    reordered: int = 0
    damaged: int = 0
    duplicates: int = 0
    trips: list[float] = field(default_factory=list)

    @property
    def lost(self) -> float:
        """The share that did not arrive."""
        return max(0.0, 1 - self.delivered / self.sent) if self.sent else 1.0

    @property
    def offered(self) -> float:
        """Datagrams sent per second."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def rate(self) -> float:
        """Datagrams delivered per second. A backlog that comes late makes the time longer, not the rate higher."""
        return self.delivered / max(self.span, self.seconds) if self.delivered else 0.0


# -- sources


@dataclass(frozen=True)
class Way:
    """
    How datagrams get to a target: to an address as they are, or through a SOCKS5 server.

    @ivar to: where datagrams go, or where the SOCKS5 server listens.
    @ivar socksTarget: the target that the SOCKS5 server is told, if it is one.
    """

    near: Site
    to: Address
    socksTarget: Address | None = None

    def open(self) -> Source:
        """A new source."""
        return Source(self)


class Source:
    """
    An application's socket.

    @ivar header: what goes before each payload.
    @ivar socket: connected to where datagrams go.
    """

    def __init__(self, way: Way) -> None:
        self.socket = way.near.openUdp()
        self.header = b""
        self._control: socket.socket | None = None
        to = way.to
        if way.socksTarget is not None:
            self._control, to = associate(way.near, way.to)
            self.header = socksHeader(way.socksTarget)
        self.socket.connect(to)

    def send(self, datagram: bytes) -> None:
        """Send one datagram. That nobody takes it is no error: it is lost."""
        try:
            self.socket.send(self.header + datagram)
        except OSError:
            pass

    def receive(self) -> bytes | None:
        """The next datagram that is there, if there is one."""
        try:
            return self.socket.recv(SLOT_BYTES, socket.MSG_DONTWAIT)[len(self.header) :]
        except (BlockingIOError, ConnectionRefusedError):
            return None

    def close(self) -> None:
        """Close the socket, and the association if there is one."""
        self.socket.close()
        if self._control is not None:
            self._control.close()


def socksHeader(target: Address) -> bytes:
    """The header of a datagram to a target (RFC 1928 section 7), which is as long as that of its answer."""
    return b"\0\0\0\x01" + socket.inet_aton(target[0]) + struct.pack("!H", target[1])


def associate(near: Site, server: Address) -> tuple[socket.socket, Address]:
    """UDP ASSOCIATE (RFC 1928 section 4): the connection that it lives with, and where datagrams go."""
    control = near.connect(server)
    try:
        control.sendall(b"\x05\x01\x00")
        if control.recv(2, socket.MSG_WAITALL) != b"\x05\x00":
            raise BenchError("the SOCKS5 server wants a password")
        control.sendall(b"\x05\x03\x00\x01" + bytes(6))
        reply = control.recv(10, socket.MSG_WAITALL)
        if reply[:2] != b"\x05\x00" or reply[3] != 1:
            raise BenchError(f"the SOCKS5 server answers UDP ASSOCIATE with {reply.hex()}")
    except BaseException:
        control.close()
        raise
    return control, (socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:], "big"))


# -- sending


@dataclass(frozen=True)
class Load:
    """
    What is to be sent.

    @ivar size: bytes of a datagram.
    @ivar rate: datagrams per second.
    @ivar gso: send with UDP_SEGMENT, as QUIC and WireGuard senders do.
    """

    size: int
    rate: float
    seconds: float
    gso: bool = False

    @property
    def batch(self) -> int:
        """How many leave with one system call."""
        if self.gso:
            return max(1, min(MOST_SEGMENTS, LARGEST_BURST // self.size))
        return max(1, min(MOST_BATCHED, int(self.rate * BATCH_SECONDS)))


class Sender:
    """Sends a load from a source."""

    def __init__(self, source: Source, load: Load, run: int) -> None:
        """
        @param run: marks the datagrams.
        """
        self._load, self._first = load, run << RUN_SHIFT
        self._batch = load.batch
        header, self._filling = source.header, FILLING[: load.size - HEAD.size]
        self._header = header
        self._layout = struct.Struct("!" + f"{len(header)}sQdI{len(self._filling)}s" * self._batch)
        self._outbox = Outbox(source.socket, len(header) + load.size, self._batch, load.gso and self._batch > 1)

    def send(self) -> tuple[int, float]:
        """Send it all: how many datagrams, and how many seconds it took."""
        rate, batch = self._load.rate, self._batch
        most, allowance, sent = max(2 * batch, rate * DEBT_SECONDS), float(batch), 0
        begin = last = time.monotonic()
        while (now := time.monotonic()) - begin < self._load.seconds:
            allowance = min(most, allowance + (now - last) * rate)
            last = now
            if allowance < batch:
                time.sleep((batch - allowance) / rate)
                continue
            allowance -= batch
            self._sendBatch(sent, now)
            sent += batch
        return sent, time.monotonic() - begin

    def sendWindowed(self, delivered: Callable[[], int]) -> tuple[int, float]:
        """
        Send as fast as it arrives: never more than L{WINDOW_BYTES} that have not, whatever the load's rate.

        It is always the same batch, as iperf3 always sends the same bytes: who counts looks at the first of each only.

        @param delivered: says how many have arrived so far.
        @return: how many datagrams, and how many seconds it took.
        """
        batch, window = self._batch, max(self._batch, WINDOW_BYTES // self._load.size)
        sent = gone = arrived = 0
        begin = moved = time.monotonic()
        self._pack(0, begin)
        while (now := time.monotonic()) - begin < self._load.seconds:
            count = delivered()
            if count > arrived:
                arrived, moved = count, now
            elif now - moved > GIVE_UP_SECONDS:
                # What is still missing is lost.
                gone, moved = sent - arrived, now
            if sent - arrived - gone + batch > window:
                time.sleep(LOOK_SECONDS)
                continue
            self._send()
            sent += batch
        return sent, time.monotonic() - begin

    def _sendBatch(self, sent: int, now: float) -> None:
        self._pack(sent, now)
        self._send()

    def _pack(self, sent: int, now: float) -> None:
        first, size = self._first + sent, self._load.size
        words: list[object] = []
        for number in range(first, first + self._batch):
            words += (self._header, number, now, checkWord(number, size), self._filling)
        self._layout.pack_into(self._outbox.area, 0, *words)

    def _send(self) -> None:
        try:
            self._outbox.send()
        except OSError:
            pass  # nobody takes them: they are lost, and the sink knows


# -- receiving


class Sink:
    """
    A target: a socket that stays open, and while a load is sent a process that counts what arrives at it.

    @ivar address: where it is.
    """

    def __init__(self, site: Site, gro: bool = True) -> None:
        self.socket = site.bindUdp()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SO_RCVTIMEO)
        if gro:
            self.socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.address: Address = self.socket.getsockname()
        self._runs = 0

    def offer(self, source: Source, load: Load, light: bool = False) -> Outcome:
        """
        Send a load from a source, and count what arrives here.

        @param light: look at the first datagram of each read only.
        """
        with self.counting(load.size, light) as counting:
            return counting.finish(*Sender(source, load, counting.run).send())

    @contextmanager
    def counting(self, size: int, light: bool = False, silence: float = SILENCE_SECONDS) -> Iterator[Counting]:
        """
        Have a process that counts what arrives.

        @param silence: how long nothing comes after the last has come.
        """
        self._runs += 1
        (hear, tell), (told, say) = os.pipe(), os.pipe()
        tally = mmap(-1, TALLY.size)
        child = os.fork()
        if not child:
            os.close(tell)
            os.close(told)
            endAfter(lambda: self._count(_Counter(self._runs, size, light), hear, say, silence, tally))
        os.close(hear)
        os.close(say)
        try:
            yield Counting(self._runs, tell, told, tally)
        finally:
            os.close(tell)
            os.close(told)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _count(self, counter: _Counter, hear: int, say: int, silence: float, tally: mmap) -> None:
        inbox = Inbox(self.socket)
        sent, quiet = NUMBERS, 0.0
        while counter.delivered + counter.damaged < sent and quiet < silence:
            try:
                counter.count(inbox.view, inbox.receive())
                TALLY.pack_into(tally, 0, counter.delivered)
                quiet = 0.0
            except BlockingIOError:
                if sent < NUMBERS:
                    quiet += TICK_SECONDS
                elif isReadable(hear, 0):
                    sent = int(os.read(hear, 64) or b"0")
        os.write(say, json.dumps(counter.report()).encode())

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Counting:
    """
    A process that counts.

    @ivar run: what marks the datagrams that it counts.
    """

    def __init__(self, run: int, tell: int, told: int, tally: mmap) -> None:
        """
        @param tell: where it is told how many were sent.
        @param told: where it tells how many came.
        @param tally: where one can see at any time how many have come so far.
        """
        self.run, self._tell, self._told, self._tally = run, tell, told, tally

    @property
    def delivered(self) -> int:
        """How many have come so far."""
        count: int = TALLY.unpack_from(self._tally)[0]
        return count

    def finish(self, sent: int, seconds: float) -> Outcome:
        """Wait until all have come, or nothing comes any more."""
        with suppress(BrokenPipeError):
            os.write(self._tell, b"%d\n" % sent)
        answer = b"".join(iter(lambda: os.read(self._told, 4096), b""))
        if not answer:
            raise BenchError("the process that counts has failed")
        return Outcome(sent, seconds, **json.loads(answer))


class _Counter:
    """What has arrived of a run."""

    def __init__(self, run: int, size: int, light: bool) -> None:
        self._run, self._size, self._light = run, size, light
        self.delivered = self.damaged = self.reordered = self.duplicates = 0
        self._first = self._last = 0.0
        self._highest = -1
        self._seen: set[int] = set()

    def count(self, view: memoryview, messages: list[tuple[int, int]]) -> None:
        """Count messages, each with its length and that of the datagrams in it."""
        now = time.monotonic()
        if not self._light or not self._countLightly(view, messages):
            self._countEach(view, messages)
        self._first = self._first or now
        self._last = now

    def _countLightly(self, view: memoryview, messages: list[tuple[int, int]]) -> bool:
        """Count all if the first one is right, and of this run."""
        length, step = messages[0]
        first = view[: min(length, step)]
        if not isRight(first, self._size) or not self._isOfRun(first):
            return False
        self._look(first)
        self.delivered += sum(-(-length // step) for length, step in messages) - 1
        return True

    def _countEach(self, view: memoryview, messages: list[tuple[int, int]]) -> None:
        for slot, (length, step) in enumerate(messages):
            start = slot * SLOT_BYTES
            for place in range(start, start + length, step):
                self._look(view[place : min(place + step, start + length)])

    def _isOfRun(self, datagram: memoryview) -> bool:
        number: int = HEAD.unpack_from(datagram)[0]
        return number >> RUN_SHIFT == self._run

    def _look(self, datagram: memoryview) -> None:
        if not isRight(datagram, self._size):
            self.damaged += 1
            return
        if not self._isOfRun(datagram):
            return  # late, of the run before
        number: int = HEAD.unpack_from(datagram)[0]
        if not self._light:
            if number in self._seen:
                self.duplicates += 1
                return
            self._seen.add(number)
        self.reordered += number < self._highest
        self._highest = max(self._highest, number)
        self.delivered += 1

    def report(self) -> dict[str, float]:
        """Its part of an L{Outcome}."""
        names = "delivered", "damaged", "reordered", "duplicates"
        return {name: getattr(self, name) for name in names} | {"span": self._last - self._first}


def endAfter(run: Callable[[], None]) -> None:
    """Run a function in a process that was forked for it, and end the process, whatever happens."""
    # Its parent ends it; an interrupt from the keyboard comes to both.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


# -- round trips


class Echo(Sink):
    """A target that sends everything back, in a process of its own."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, gro=False)
        self._child = os.fork()
        if not self._child:
            endAfter(self._echo)

    def _echo(self) -> None:
        parent = os.getppid()
        buffer = bytearray(SLOT_BYTES)
        view = memoryview(buffer)
        while os.getppid() == parent:
            try:
                length, source = self.socket.recvfrom_into(buffer)
                self.socket.sendto(view[:length], source)
            except OSError:
                pass  # nothing there, or nobody takes the answer

    def close(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        super().close()


def roundTrips(source: Source, load: Load, silence: float = SILENCE_SECONDS) -> Outcome:
    """Send a load to an L{Echo}, one datagram at a time, and see what comes back."""
    outcome = Outcome()
    begin = time.monotonic()
    while (now := time.monotonic()) - begin < load.seconds:
        due = begin + outcome.sent / load.rate
        if now < due:
            _collect(source, load.size, outcome, due - now)
            continue
        source.send(payload(NUMBERS + outcome.sent, load.size, now))
        outcome.sent += 1
    outcome.seconds = outcome.span = now - begin
    until = now + silence
    while outcome.delivered < outcome.sent and time.monotonic() < until:
        if _collect(source, load.size, outcome, TICK_SECONDS):
            until = time.monotonic() + silence
    return outcome


def _collect(source: Source, size: int, outcome: Outcome, seconds: float) -> int:
    """Wait for answers, and take those that are there."""
    taken = 0
    isReadable(source.socket, seconds)
    now = time.monotonic()
    while (answer := source.receive()) is not None:
        taken += 1
        if not isRight(answer, size):
            outcome.damaged += 1
            continue
        number, sent, _ = HEAD.unpack_from(answer)
        if number >= NUMBERS:  # others were sent to see whether anything comes back
            outcome.delivered += 1
            outcome.trips.append(now - sent)
    return taken


def arrives(source: Source, sink: Sink, seconds: float = 10.0) -> bool:
    """Whether a datagram gets from a source to a sink at all; what was sent for that is gone afterwards."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        source.send(payload(0, 64, 0.0))
        if _drain(sink.socket):
            while _drain(sink.socket):
                pass
            return True
    return False


def _drain(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(SLOT_BYTES))
    except (BlockingIOError, ConnectionRefusedError):
        return False


def isReadable(source: socket.socket | int, seconds: float) -> bool:
    """Wait until something can be read. The descriptor's number may be larger than C{select()} takes."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def comesBack(source: Source, seconds: float = 10.0, tick: float = 0.2) -> bool:
    """Whether a datagram gets to an L{Echo} and back; it is sent again until it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        source.send(payload(0, 64, 0.0))
        if isReadable(source.socket, tick) and source.receive() is not None:
            return True
    return False
