"""The stack C{netns} for real: a private namespace whose kernel terminates TCP for those behind a TUN."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from typing import Any

from tests.system.test_tun import ABILITIES, DEVICE, MTU, OWN, PORT, TARGETS, TunTestCase, blocks, receive, send
from udptunnel.core.counters import Counters
from udptunnel.net.namespace import REDIRECT, TRANSPARENT
from udptunnel.net.netns import WAYS, NetnsStack
from udptunnel.net.stack import Connection
from udptunnel.net.tun import NAMES, Interface, TunOffload, TunPort
from udptunnel.wire.transport import Unreachable


class Gateway:
    """
    A TUN and the stack behind it; every target can be reached, and is this process.

    @ivar refusal: why no target can be reached, if none can.
    @ivar requested: connections that were asked for.
    @ivar opened: those that were accepted, with their sockets.
    @ivar largest: the length of the longest packet that came.
    """

    def __init__(self, reactor: Any, names: tuple[str, ...], ways: tuple[str, ...]) -> None:
        self.reactor = reactor
        self.counters = Counters()
        self.offload = TunOffload(names)
        addresses = (f"{OWN[0]}/24", f"{OWN[1]}/64")
        self.port = TunPort(reactor, Interface(DEVICE, addresses, MTU), self, self.offload, self.counters)
        self.port.open()
        self.stack = NetnsStack(reactor, self.port, self.offload, self, self.counters, MTU, ways=ways)
        self.requested: list[Connection] = []
        self.opened: list[tuple[Connection, socket.socket]] = []
        self.others = 0
        self.refusal: Unreachable | bool = False
        self.largest = 0

    def close(self) -> None:
        """Close everything."""
        self.port.close()
        self.stack.stop()
        for _, opened in self.opened:
            opened.close()

    def packetsReceived(self, packets: list[memoryview]) -> None:
        """They are the stack's."""
        self.largest = max(self.largest, *map(len, packets))
        self.others += len(self.stack.packetsReceived(packets, self.reactor.seconds()))

    def lost(self, why: str) -> None:
        """That does not happen here."""
        raise AssertionError(why)

    def connectionRequested(self, connection: Connection) -> None:
        """It can be reached or not."""
        self.requested.append(connection)
        if self.refusal:
            connection.refuse(self.refusal if isinstance(self.refusal, Unreachable) else None)
        else:
            connection.accept()

    def connectionMade(self, connection: Connection, opened: socket.socket) -> None:
        """It is open."""
        opened.setblocking(True)
        self.opened.append((connection, opened))

    def connectionLost(self, connection: Connection) -> None:
        """That does not happen here."""
        raise AssertionError(connection.target)


class NetnsTestCase(TunTestCase):
    """A TUN in a namespace of its own, and the stack in another one."""

    def openGateway(self, names: tuple[str, ...] = NAMES, ways: tuple[str, ...] = WAYS) -> Gateway:
        """A gateway to the targets."""
        with self.namespace.entered():
            gateway = Gateway(self.reactor, names, ways)
        # Not from inside: it must not matter where we are.
        gateway.stack.start()
        self.addCleanup(gateway.close)
        for host in TARGETS:
            self.namespace.ip("route", "add", host, "dev", DEVICE)
        return gateway

    def transfer(self, gateway: Gateway, host: str) -> None:
        """Send some megabytes there and back, and compare what comes with what was sent."""
        got = {}
        number = len(gateway.opened)

        def answer() -> None:
            while len(gateway.opened) == number:
                ready.wait(0.001)
            connection = gateway.opened[number][1]
            got["there"] = receive(connection)
            send(connection)
            connection.close()

        def ask() -> None:
            with client:
                client.connect((host, PORT))
                got["own"] = client.getsockname()[:2]
                send(client)
                got["here"] = receive(client)

        ready = threading.Event()
        client = self.connect(host)
        self.serve(threading.Thread(target=answer), threading.Thread(target=ask))
        digest = hashlib.sha256(b"".join(blocks())).digest()
        self.assertEqual((got["there"], got["here"]), (digest, digest))
        connection = gateway.opened[number][0]
        self.assertEqual((connection.source, connection.target), (got["own"], (host, PORT)))


class TransferTests(NetnsTestCase):
    """TCP through a TUN and the kernel of a private namespace."""

    def test_offload(self) -> None:
        """With all offloads, over IPv4 and IPv6: packets are far larger than the MTU."""
        gateway = self.openGateway()
        self.assertEqual(gateway.stack.way, TRANSPARENT)
        for host in TARGETS:
            gateway.largest = 0
            self.transfer(gateway, host)
            self.assertGreater(gateway.largest, 10 * MTU)
        self.assertEqual(gateway.counters.dropped, {})
        self.assertIn(str(gateway.offload), ABILITIES)

    def test_headersOnly(self) -> None:
        """With checksum offload alone packets are no larger than the MTU."""
        gateway = self.openGateway(("vnet",))
        self.transfer(gateway, TARGETS[0])
        self.assertLessEqual(gateway.largest, MTU + 10)

    def test_withoutOffload(self) -> None:
        """With none, over IPv4 and IPv6."""
        gateway = self.openGateway(())
        for host in TARGETS:
            self.transfer(gateway, host)
            self.assertLessEqual(gateway.largest, MTU + 10)

    def test_redirect(self) -> None:
        """Where the kernel has no tproxy, packets are translated by its own NAT; all else is the same."""
        gateway = self.openGateway(ways=(REDIRECT,))
        self.assertEqual(gateway.stack.way, REDIRECT)
        for host in TARGETS:
            self.transfer(gateway, host)

    def test_refused(self) -> None:
        """A refusal is one for the client, too, which is never connected."""
        gateway = self.openGateway()
        for refusal, number in ((True, errno.ECONNREFUSED), (Unreachable.HOST, errno.EHOSTUNREACH)):
            gateway.refusal = refusal
            for host in TARGETS:
                client, errors = self.connect(host), []

                def ask(client: socket.socket = client, host: str = host, errors: list[int] = errors) -> None:
                    errors.append(client.connect_ex((host, PORT)))

                self.serve(threading.Thread(target=ask))
                self.assertEqual(errors, [number])
        self.assertEqual((len(gateway.stack), gateway.opened), (0, []))
