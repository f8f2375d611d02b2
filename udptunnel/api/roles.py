"""The handles of the roles: what each of them can do besides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from udptunnel.api.events import Callback, DatagramsReceived, MappingsLost, PacketsReceived
from udptunnel.api.handle import Handle
from udptunnel.api.home import Home
from udptunnel.api.postbox import Postbox
from udptunnel.core.counters import Counters
from udptunnel.core.session import ServerSession
from udptunnel.errors import AddressError
from udptunnel.net.packetcalls import CallPipe
from udptunnel.net.tun import Receiver
from udptunnel.net.tunentry import TunEntry
from udptunnel.wire.address import Address, normalHost, packAddress
from udptunnel.wire.burst import LARGEST_DATAGRAM, AimedBurst, join, split
from udptunnel.wire.frame import Buffer
from udptunnel.wire.transport import Unreachable

Target: TypeAlias = tuple[str, int]
"""Host and port, as an L{Address} or any other tuple. The host is an address, or a name that udp-server looks up."""

MOST_TARGETS = 4096
"""Targets that are known to be good."""


@lru_cache(MOST_TARGETS)
def _checked(target: Target) -> Address:
    host, port = target
    checked = Address(normalHost(host), port)
    packAddress(checked)
    if not port:
        raise AddressError(f"{checked}: a datagram goes to a port from 1 to {65535}")
    return checked


def _bytesOf(given: Buffer) -> bytes:
    """
    What the host wants to send, which it can not change any more.

    @raise TypeError: it is no bytes, but a text, for one.
    """
    # The reactor fetches it later, and nobody would learn of an error then.
    return given if type(given) is bytes else bytes(memoryview(given))


def _burstOf(datagram: bytes, target: Target, source: Hashable) -> AimedBurst:
    taken = _bytesOf(datagram)
    return AimedBurst(_keyOf(source), _checked(target), len(taken), taken)


class LocalHandle(Handle):
    """
    udp-local. Besides what comes in by its sockets it takes datagrams by call.
    """

    def __init__(self, home: Home, callback: Callback | None, data: Any, received: DatagramsReceived | None) -> None:
        """
        The same as L{Handle}, and

        @param received: called with datagrams that come back.
        """
        super().__init__(home, callback, data)
        self._received = received
        self._isUp = False
        self._lost = self._resumed = 0
        self._entry: TunEntry | None = None
        self._box: Postbox[AimedBurst] = Postbox(home.reactor, self._fetched)

    def _watch(self) -> None:
        super()._watch()
        service = self.service
        service.whenLinksChanged = self._linksChanged
        self._entry = TunEntry(service.session, _ToHost(self._answered), service.clock)

    def _linksChanged(self) -> None:
        session = self.service.session
        if bool(session.links) != self._isUp:
            self._isUp = not self._isUp
            if self._isUp:
                self._sessionUp(session.name, session.shortName, session.resumed > self._resumed)
            else:
                for key in list(self._up):
                    self._sessionDown(key)
        if session.lost > self._lost:
            self._tell(MappingsLost(self, session.shortName))
        self._lost, self._resumed = session.lost, session.resumed

    # -- datagrams

    def send(self, datagram: bytes, target: Target, source: Hashable) -> bool:
        """
        Send a datagram through the tunnel.

        Each source has an association, and so an external port of its own at
        udp-server. It begins with the first datagram, and ends when it was
        silent for five minutes (ten seconds, if all that it sent was DNS, NTP
        or STUN); then the next datagram begins a new one.

        @param datagram: at most 65,507 bytes.
        @param source: who sends it: an address, a number, or anything else that can be the key of a dictionary.
            Answers come with it.
        @return: whether there was room for it. If not, much was sent at once: try again, or drop it; or the role has
            stopped, and there never will be. That there was room does not mean that it arrives.
        @raise AddressError: the target is none.
        @raise ValueError: the datagram is too long.
        @raise TypeError: it is no bytes.
        """
        return self.sendAll((datagram,), target, source) == 1

    def sendAll(self, datagrams: Sequence[bytes], target: Target, source: Hashable) -> int:
        """
        Send datagrams to one target, which costs less than one by one.

        @return: for how many of them, from the first on, there was room.
        @raise AddressError: the target is none.
        @raise ValueError: a datagram is too long. None is sent then.
        @raise TypeError: one is no bytes. None is sent then.
        """
        to, key = _checked(target), _keyOf(source)
        return self._leave([AimedBurst(key, to, len(each), each) for each in map(_bytesOf, datagrams)])

    def sendEach(self, parcels: Iterable[tuple[bytes, Target, Hashable]]) -> int:
        """
        Send datagrams, each to its target from its source. The rest is as for L{sendAll}.
        """
        return self._leave([_burstOf(*each) for each in parcels])

    def _leave(self, bursts: list[AimedBurst]) -> int:
        sizes = [burst.size for burst in bursts]
        if sizes and max(sizes) > LARGEST_DATAGRAM:
            raise ValueError(f"a datagram has at most {LARGEST_DATAGRAM} bytes, not {max(sizes)}")
        return self._box.leave(bursts, sizes)

    def _fetched(self, bursts: list[AimedBurst]) -> None:
        counters = self.service.counters
        counters.received += len(bursts)
        counters.receivedBytes += sum(len(burst.payload) for burst in bursts)
        if self._entry is not None:
            self._entry.burstsReceived(join(bursts))

    def _answered(self, datagrams: list[bytes], address: Address, source: Any) -> None:
        counters = self.service.counters
        counters.sent += len(datagrams)
        counters.sentBytes += sum(map(len, datagrams))
        if self._received is not None:
            self._guarded(self._received, datagrams, address, source, self._data)

    def closeSource(self, source: Hashable) -> None:
        """End the association of a source now, as if it had been silent for long. It may have none."""
        self._home.call(self._closeSource, source)

    def _closeSource(self, source: Any) -> None:
        if self._entry is not None:
            # Who asks for it here has not waited for the reactor, so what he has sent before may still lie there.
            self._box.fetch()
            self._entry.close(source)

    # -- its end

    def _closeDoors(self) -> None:
        self._box.close(self._begun)
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.stop()


class _ToHost:
    """Where the entry of a TUN would write answers."""

    def __init__(self, answered: Callable[[list[bytes], Address, Any], None]) -> None:
        self._answered = answered

    def send(self, to: Address, source: Address, size: int, payload: Buffer) -> None:
        """A burst has come for one of the host's sources."""
        self._answered([bytes(each) for each in split(size, payload)], source, to)

    def refuse(self, burst: AimedBurst, why: Unreachable) -> None:
        """Nobody is told that a target can not be reached."""


def _keyOf(source: Hashable) -> Any:
    """What stands for a source of the host's where a packet has an address."""
    hash(source)
    return source


class ServerHandle(Handle):
    """udp-server."""

    def _watch(self) -> None:
        super()._watch()
        self.service.whenSessionBegan = self._began
        self.service.whenSessionEnded = self._endedOne

    def _began(self, session: ServerSession) -> None:
        self._sessionUp(session.name, session.shortName)

    def _endedOne(self, session: ServerSession) -> None:
        self._sessionDown(session.name)


class PacketHandle(Handle):
    """
    tun2socks. If it has no TUN, packets come by call, and go by callback.
    """

    def __init__(self, home: Home, callback: Callback | None, data: Any, received: PacketsReceived | None) -> None:
        """
        The same as L{Handle}, and

        @param received: called with packets for applications. Without it packets go through a TUN or a pipe.
        """
        super().__init__(home, callback, data)
        self._received = received
        self._pipe: CallPipe | None = None
        self._box: Postbox[bytes] = Postbox(home.reactor, self._fetched)

    def makePipe(self, reactor: Any, receiver: Receiver, counters: Counters) -> CallPipe:
        """What the role takes for its pipe."""
        self._pipe = CallPipe(reactor, receiver, counters, self._leave)
        return self._pipe

    def sendPackets(self, packets: Sequence[bytes]) -> int:
        """
        Hand in IP packets that applications have sent, each from its first header on.

        @return: for how many of them, from the first on, there was room. If it is not all, much came at once, or the
            role has stopped: what is dropped is sent again by who wants it to arrive, as on any network.
        @raise TypeError: one is no bytes. None is handed in then.
        """
        taken = [*map(_bytesOf, packets)]
        return self._box.leave(taken, [len(each) for each in taken])

    def _fetched(self, packets: list[bytes]) -> None:
        if self._pipe is not None:
            self._pipe.packetsReceived(packets)

    def _leave(self, packets: list[bytes]) -> None:
        if self._received is not None:
            self._guarded(self._received, packets, self._data)

    def _closeDoors(self) -> None:
        self._box.close(self._begun)


class L3Handle(Handle):
    """l3-tunnel. Its one session is called by the other end's address."""

    def _watch(self) -> None:
        super()._watch()
        self.service.whenSessionChanged = self._sessionChanged

    def _sessionChanged(self, isUp: bool) -> None:
        if isUp:
            peer = str(self.service.way.peer)
            self._sessionUp(peer, peer)
        else:
            for key in list(self._up):
                self._sessionDown(key)
