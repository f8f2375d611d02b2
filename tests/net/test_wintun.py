"""Tests for L{udptunnel.net.wintun}, with a wintun.dll in memory."""

from __future__ import annotations

import ctypes
import errno
import select
import subprocess
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.net.test_tun import RecordingReceiver
from udptunnel.core.counters import Counters
from udptunnel.errors import ListenError, MissingError
from udptunnel.net.testing import PortReactor
from udptunnel.net.tun import PACKETS, TunOffload, TunPort
from udptunnel.net.tundevice import HEADER_BYTES, TUNSETOFFLOAD, Interface
from udptunnel.net.wintun import (
    ERROR_BUFFER_OVERFLOW,
    ERROR_HANDLE_EOF,
    ERROR_NO_MORE_ITEMS,
    RING_BYTES,
    Wintun,
    WintunSystem,
    load,
)

ADAPTER, SESSION, EVENT = 0x100000001, 0x200000002, 0x300000003
"""Handles are as long as pointers."""

NO_HEADER = bytes(HEADER_BYTES)
PACKET = b"\x45" + b" a packet of some length"
PATIENCE_SECONDS = 20.0


class Library:
    """
    What wintun.dll and kernel32.dll do.

    @ivar arrived: packets that wait to be read.
    @ivar sent: packets that were sent.
    @ivar called: the other calls.
    @ivar error: why the next call that can fail does.
    """

    def __init__(self) -> None:
        self.arrived: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.called: list[tuple[Any, ...]] = []
        self.error = 0
        self._event = threading.Event()
        self._lent: dict[int, Any] = {}
        functions = (self.createAdapter, self.startSession, self.getReadWaitEvent, self.receivePacket)
        functions += (self.releaseReceivePacket, self.allocateSendPacket, self.sendPacket)
        functions += (self.endSession, self.closeAdapter)
        names = {f"Wintun{each.__name__[0].upper()}{each.__name__[1:]}": each for each in functions}
        self.library = SimpleNamespace(**{name: self._plain(each) for name, each in names.items()})
        self.kernel = SimpleNamespace(WaitForSingleObject=self._plain(self.wait), SetEvent=self._plain(self.set))

    def _plain(self, method: Any) -> Any:
        # C functions can be given types, methods can not.
        return lambda *arguments: method(*arguments)

    def load(self) -> Wintun:
        return Wintun(self.library, self.kernel, lambda: self.error)

    def arrive(self, *packets: bytes) -> None:
        """Packets have arrived."""
        self.arrived.extend(packets)
        self._event.set()

    def createAdapter(self, name: str, kind: str, identity: None) -> int:
        self.called.append(("create", name))
        return 0 if self.error == 5 else ADAPTER

    def startSession(self, adapter: int, size: int) -> int:
        self.called.append(("start", adapter, size))
        return 0 if self.error else SESSION

    def getReadWaitEvent(self, session: int) -> int:
        return EVENT

    def receivePacket(self, session: int, size: Any) -> int:
        assert session == SESSION
        if not self.arrived:
            self.error = self.error or ERROR_NO_MORE_ITEMS
            return 0
        return self._lend(self.arrived.popleft(), size)

    def _lend(self, packet: bytes, size: Any) -> int:
        memory = ctypes.create_string_buffer(packet, len(packet))
        size._obj.value = len(packet)
        self._lent[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def releaseReceivePacket(self, session: int, packet: int) -> None:
        del self._lent[packet]

    def allocateSendPacket(self, session: int, size: int) -> int:
        if self.error == ERROR_BUFFER_OVERFLOW:
            return 0
        memory = ctypes.create_string_buffer(size)
        self._lent[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def sendPacket(self, session: int, packet: int) -> None:
        self.sent.append(self._lent.pop(packet).raw)

    def endSession(self, session: int) -> None:
        assert not self._lent
        self.called.append(("end", session))

    def closeAdapter(self, adapter: int) -> None:
        self.called.append(("close", adapter))

    def wait(self, event: int, milliseconds: int) -> int:
        assert (event, milliseconds) == (EVENT, 0xFFFFFFFF)
        self._event.wait()
        self._event.clear()
        return 0

    def set(self, event: int) -> int:
        self._event.set()
        return 1


class WintunTests(SynchronousTestCase):
    """L{WintunSystem}, and a port on it."""

    def setUp(self) -> None:
        self.library = Library()
        self.ran: list[str] = []
        self.failure: subprocess.CalledProcessError | None = None
        self.system = WintunSystem(self.run_, self.library.load)
        self.receiver = RecordingReceiver()
        self.counters = Counters()
        self.threads = threading.active_count()

    def run_(self, words: tuple[str, ...], **_: Any) -> None:
        """Run a command."""
        if self.failure is not None:
            raise self.failure
        self.ran.append(" ".join(words))

    def openPort(self, *addresses: str) -> TunPort:
        """A port."""
        interface = Interface("tunnel", addresses, 1400)
        self.reactor = PortReactor()
        port = TunPort(self.reactor, interface, self.receiver, TunOffload(), self.counters, self.system)
        self.addCleanup(port.close)
        port.open()
        return port

    def isReadable(self, port: TunPort, seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether select() says so within some time."""
        return bool(select.select([port.fileno()], [], [], seconds)[0])

    def test_open(self) -> None:
        """A device is an adapter with a session; closing it leaves neither, nor a thread."""
        port = self.openPort()
        self.assertEqual((port.name, port.headed), ("tunnel", False))
        port.close()
        expected = [("create", "tunnel"), ("start", ADAPTER, RING_BYTES), ("end", SESSION), ("close", ADAPTER)]
        self.assertEqual(self.library.called, expected)
        self.assertEqual(threading.active_count(), self.threads)

    def test_read(self) -> None:
        """select() says that packets are there, until all were read; and again when more arrive."""
        port = self.openPort()
        for turn in range(3):
            self.assertFalse(self.isReadable(port, 0))
            self.library.arrive(PACKET, PACKET[:20])
            self.assertTrue(self.isReadable(port), turn)
            self.library.error = 0
            port.doRead()
            self.assertEqual(self.receiver.calls.pop(), [NO_HEADER + PACKET, NO_HEADER + PACKET[:20]])
        self.assertEqual(self.counters.dropped, {})

    def test_manyPackets(self) -> None:
        """What is left after one turn still makes the descriptor readable."""
        port = self.openPort()
        self.reactor.seconds = lambda: 0.0
        self.library.arrive(*[PACKET] * (PACKETS + 1))
        self.assertTrue(self.isReadable(port))
        port.doRead()
        self.assertTrue(self.isReadable(port, 0))
        port.doRead()
        self.assertEqual([len(call) for call in self.receiver.calls], [PACKETS, 1])
        self.assertFalse(self.isReadable(port, 0))

    def test_write(self) -> None:
        """Packets are sent whole; what is too short for the driver, which is how we look for life, is not."""
        port = self.openPort()
        port.write(NO_HEADER + PACKET[:5], PACKET[5:])
        port.check()
        self.assertEqual(self.library.sent, [PACKET])
        self.assertEqual((self.counters.sent, self.counters.sentBytes), (1, len(PACKET)))

    def test_full(self) -> None:
        """What the ring does not take is dropped and counted."""
        port = self.openPort()
        self.library.error = ERROR_BUFFER_OVERFLOW
        port.write(NO_HEADER + PACKET)
        self.assertEqual(self.counters.dropped, {"write ENOBUFS": 1})

    def test_gone(self) -> None:
        """When the adapter goes away the port is closed, and says so."""
        port = self.openPort()
        self.library.error = ERROR_HANDLE_EOF
        port.doRead()
        self.reactor.advance(0)
        self.assertEqual((port.fileno(), self.receiver.losses), (-1, ["deleted"]))

    def test_refused(self) -> None:
        """Who is no administrator is told so; of a device without a session nothing is left."""
        for error, text in ((5, "error 5 of Windows"), (8, "error 8 of Windows")):
            self.library.error = error
            self.assertIn(text, str(self.assertRaises(ListenError, self.openPort)))
        self.assertEqual(self.library.called[-1], ("close", ADAPTER))

    def test_configure(self) -> None:
        """A device gets its addresses and its MTU."""
        self.openPort("10.0.85.1/24", "fd00:9::1/64")
        expected = [
            "netsh interface ipv4 add address name=tunnel address=10.0.85.1 mask=255.255.255.0",
            "netsh interface ipv4 set subinterface tunnel mtu=1400 store=active",
            "netsh interface ipv6 add address interface=tunnel address=fd00:9::1/64",
            "netsh interface ipv6 set subinterface tunnel mtu=1400 store=active",
        ]
        self.assertEqual(self.ran, expected)
        self.assertEqual(self.system.addresses("tunnel"), [])

    def test_notConfigured(self) -> None:
        """What netsh does not do is said in its words, and nothing stays open."""
        self.failure = subprocess.CalledProcessError(1, "netsh", "The parameter is incorrect.\n", "")
        error = self.assertRaises(ListenError, self.openPort, "10.0.85.1/24")
        self.assertIn("address=10.0.85.1 mask=255.255.255.0: The parameter is incorrect.", str(error))
        self.assertEqual(self.library.called[-1], ("close", ADAPTER))

    def test_handedOver(self) -> None:
        """There is no descriptor here that somebody else could have opened."""
        port = TunPort(PortReactor(), Interface(), self.receiver, TunOffload(), self.counters, self.system)
        self.assertIn("no TUNs of others", str(self.assertRaises(ListenError, port.adopt, 99999)))

    def test_ioctl(self) -> None:
        """What Linux alone knows is refused."""
        port = self.openPort()
        error = self.assertRaises(OSError, self.system.ioctl, port.fileno(), TUNSETOFFLOAD, 1)
        self.assertEqual(error.errno, errno.ENOTTY)

    def test_missing(self) -> None:
        """Where there is no wintun.dll, it is named, with where it should be."""
        self.system = WintunSystem(self.run_, load)
        error = self.assertRaises(ListenError, self.openPort)
        self.assertIn("wintun.dll beside python.exe or in System32", str(error))
        self.assertRaises(MissingError, load)
