"""
A gateway to nowhere: tells each TCP connection where it wanted to go, and sends each datagram back.

    python docs/examples/tungate.py tun9 10.9.0.1/24 fd00:9::1/64
"""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from udptunnel.net.arrivals import Arrival
from udptunnel.net.tundevice import Interface
from udptunnel.services.tungate import GatewayService
from udptunnel.wire.address import Address
from udptunnel.wire.transport import Unreachable


class Teller(Protocol):
    """Says what a connection was opened to, and ends it."""

    def __init__(self, target: Address) -> None:
        self.target = target

    def connectionMade(self) -> None:
        self.transport.write(f"{self.target}\n".encode())
        self.transport.loseConnection()


def tcpReceived(arrival: Arrival, target: Address) -> None:
    if target.port == 1:
        arrival.refuse()
    elif target.port == 2:
        arrival.refuse(Unreachable.HOST)
    else:
        arrival.accept(Teller(target))


async def main(reactor: object, name: str, *addresses: str) -> None:
    def udpReceived(datagram: bytes, target: Address, source: Address) -> None:
        if target.port == 1:
            gate.refuse(datagram, target, source)
        else:
            gate.writeTo(datagram, to=source, source=target)

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    gate = GatewayService(Interface(name, addresses), tcpReceived, udpReceived, reactor)
    ended: Deferred[None] = Deferred()
    gate.lost = lambda why: ended.errback(SystemExit(f"TUN {name} is {why}"))
    gate.startService()
    try:
        print(f"TUN {gate.port.name} is open, TCP by stack {gate.report()['stack']}", flush=True)
        await ended
    finally:
        gate.stopService()


if __name__ == "__main__":
    react(lambda reactor, *words: Deferred.fromCoroutine(main(reactor, *words)), sys.argv[1:])
