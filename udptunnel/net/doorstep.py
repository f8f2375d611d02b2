"""
The doorstep: where connections wait until they have said all of a first word.

A connection in OpenSSL costs 40 kB and more from its first moment on, and
whoever says nothing, or only half of a ClientHello, is to cost nearly nothing.
So what Twisted's TLS transport is given at first is a L{Doorstep}. It keeps
the bytes of the first record (RFC 8446 section 5.1), which are not many, and
only when that is whole it makes the connection and passes everything on.

At the other end of its life it keeps OpenSSL from telling that a connection
that is closed anyway has ended too early: that error would hold all of the
connection in its traceback, until the garbage is collected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

RECORD_HEADER_BYTES = 5
"""Of a TLS record: one for its type, two for the version, two for its length."""

HANDSHAKE = 22
"""The type of the record that holds a ClientHello."""

LARGEST_RECORD = 1 << 14
"""What a record may hold that is not encrypted."""


def isWhole(data: bytes | bytearray) -> bool:
    """
    Whether bytes begin with a whole record.

    What can not become the begin of a ClientHello counts as whole, too: OpenSSL is to say what is wrong with it.
    """
    if data[:1] not in (b"", bytes((HANDSHAKE,))) or data[1:2] not in (b"", b"\3"):
        return True
    if len(data) < RECORD_HEADER_BYTES:
        return False
    length = int.from_bytes(data[3:RECORD_HEADER_BYTES], "big")
    return length > LARGEST_RECORD or len(data) >= RECORD_HEADER_BYTES + length


class Doorstep:
    """
    Stands in for the connection of a server in pyOpenSSL, on memory BIOs.

    @ivar connection: the connection, once there is one.
    """

    connection: SSL.Connection | None = None

    def __init__(self, make: Callable[[], SSL.Connection]) -> None:
        """
        @param make: makes the connection.
        """
        self._make = make
        self._owner: object = None
        self._begun = bytearray()

    def set_accept_state(self) -> None:
        """It will be a server's; we are for nothing else."""

    def set_app_data(self, owner: object) -> None:
        """The transport says whose the connection will be."""
        self._owner = owner

    def bio_write(self, data: bytes) -> int:
        """Bytes have come from the other end."""
        self._begun += data
        if isWhole(self._begun):
            self._open()
        return len(data)

    def _open(self) -> SSL.Connection:
        if self.connection is None:
            connection = self.connection = self._make()
            connection.set_accept_state()
            connection.set_app_data(self._owner)
            if self._begun:
                connection.bio_write(bytes(self._begun))
                self._begun.clear()
            # From now on these are called as if we were not there.
            for name in ("bio_write", "bio_read", "do_handshake", "recv", "send", "shutdown"):
                setattr(self, name, getattr(connection, name))
        return self.connection

    def bio_read(self, length: int) -> bytes:
        """There is nothing to send yet."""
        raise SSL.WantReadError

    def do_handshake(self) -> None:
        """It has not begun."""
        raise SSL.WantReadError

    def recv(self, length: int) -> bytes:
        """Nothing has come."""
        return _nothing(length)

    def shutdown(self) -> bool:
        """There is nobody to say goodbye to."""
        return False

    def bio_shutdown(self) -> None:
        """Nothing more will come. What did come was read when it came."""
        self.recv = _nothing  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        """Everything else is asked of the connection."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._open(), name)


def _nothing(length: int) -> bytes:
    raise SSL.WantReadError
