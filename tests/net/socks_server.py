"""A SOCKS5 server for tests."""

from __future__ import annotations

import socket
from typing import Any

from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import ServerNegotiation


class SocksServer:
    """A SOCKS5 server on loopback that does nothing by itself."""

    def __init__(self, host: str = "127.0.0.1", authenticate: Any = None) -> None:
        self.listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.listener.settimeout(10)
        self.address = Address(host, self.listener.getsockname()[1])
        self.negotiation = ServerNegotiation(authenticate)
        self.accepted: socket.socket | None = None

    def accept(self) -> socket.socket:
        """The next connection."""
        self.accepted, _ = self.listener.accept()
        self.accepted.setblocking(False)
        return self.accepted

    def negotiate(self) -> bool:
        """Answer what has arrived; say whether the request has."""
        accepted = self.accepted or self.accept()
        try:
            accepted.sendall(self.negotiation.receive(accepted.recv(4096)))
        except BlockingIOError:
            pass
        return self.negotiation.request is not None or bool(self.negotiation.failed)

    def close(self) -> None:
        """No more of it."""
        self.listener.close()
        if self.accepted is not None:
            self.accepted.close()
