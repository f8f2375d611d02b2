"""
recvmmsg and sendmmsg for the load generator: it must be faster than what it measures.

The package has its own in C{udptunnel.net.mmsg}. This one shares nothing with
it, so that a mistake there can not hide itself here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
"""From linux/udp.h; Python's socket module does not have them."""

SLOTS = 32
"""Messages that one call moves at most."""

SLOT_BYTES = 65536

MSG_WAITFORONE = 0x10000
"""From linux/socket.h: wait for the first message, and take the others only if they are there."""

_CONTROL_BYTES = 32
"""CMSG_SPACE(sizeof(int)) is 24; the rest keeps the slots aligned."""


class _IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("nameLength", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovLength", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controlLength", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


_MESSAGE_BYTES = ctypes.sizeof(_Message)
_CMSG_DATA = ctypes.sizeof(ctypes.c_size_t) + 8
"""Offset of a control message's data: behind its length, level and type."""

_libc = ctypes.CDLL(None, use_errno=True)


def _addressOf(area: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def _messages(areas: Sequence[tuple[int, int]]) -> tuple[ctypes.Array[_Message], ctypes.Array[_IoVec]]:
    """Message headers for areas of memory, each with its address and length; the vectors must be kept with them."""
    vectors = (_IoVec * len(areas))(*(_IoVec(*area) for area in areas))
    messages = (_Message * len(areas))()
    for slot, message in enumerate(messages):
        message.header.iov = ctypes.addressof(vectors[slot])
        message.header.iovLength = 1
    return messages, vectors


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Inbox:
    """
    Receives up to L{SLOTS} messages at once.

    @ivar view: what has been received: message N stands at N times L{SLOT_BYTES}.
    """

    def __init__(self, sock: socket.socket) -> None:
        """
        @param sock: a blocking socket; SO_RCVTIMEO bounds how long it blocks.
        """
        self._descriptor = sock.fileno()
        area, controls = bytearray(SLOTS * SLOT_BYTES), bytearray(SLOTS * _CONTROL_BYTES)
        self.view = memoryview(area)
        self._layOut(_addressOf(area), _addressOf(controls))
        words = memoryview(self._headers).cast("I")
        self._lengths = words[_Message.length.offset // 4 :: _MESSAGE_BYTES // 4]
        self._marks = words[_Header.controlLength.offset // 4 :: _MESSAGE_BYTES // 4]
        self._segments = memoryview(controls).cast("I")[_CMSG_DATA // 4 :: _CONTROL_BYTES // 4]

    def _layOut(self, area: int, controls: int) -> None:
        """Make the message headers, and keep a copy: the kernel overwrites lengths in them."""
        messages, self._vectors = _messages([(area + slot * SLOT_BYTES, SLOT_BYTES) for slot in range(SLOTS)])
        for slot, message in enumerate(messages):
            message.header.control = controls + slot * _CONTROL_BYTES
            message.header.controlLength = _CONTROL_BYTES
        self._pristine = bytes(messages)
        self._headers = bytearray(self._pristine)
        self._start = ctypes.c_void_p(_addressOf(self._headers))

    def receive(self) -> list[tuple[int, int]]:
        """
        Wait for messages.

        @return: for each one its length, and that of the datagrams in it.
        @raise BlockingIOError: none has come in time.
        """
        self._headers[:] = self._pristine
        count = _check(_libc.recvmmsg(self._descriptor, self._start, SLOTS, MSG_WAITFORONE, None))
        lengths, marks, segments = (column[:count].tolist() for column in (self._lengths, self._marks, self._segments))
        return [
            (length, segment if mark else max(length, 1))
            for length, mark, segment in zip(lengths, marks, segments, strict=True)
        ]


class Outbox:
    """
    Sends the datagrams of one area of memory, all of one size.

    @ivar area: the datagrams, end to end.
    """

    def __init__(self, sock: socket.socket, size: int, count: int, segmented: bool) -> None:
        """
        @param sock: a connected socket.
        @param count: how many datagrams there are.
        @param segmented: hand them over as one message with UDP_SEGMENT; otherwise as one message each.
        """
        self._socket = sock
        self._descriptor = sock.fileno()
        self._count = count
        self.area = bytearray(size * count)
        self._ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))] if segmented else None
        start = _addressOf(self.area)
        self._messages, self._vectors = _messages([(start + place * size, size) for place in range(count)])
        self._start = ctypes.c_void_p(ctypes.addressof(self._messages))

    def send(self) -> int:
        """
        Send all datagrams.

        @return: how many went.
        @raise OSError: not even the first went.
        """
        if self._ancillary is not None:
            self._socket.sendmsg([self.area], self._ancillary)
            return self._count
        return _check(_libc.sendmmsg(self._descriptor, self._start, self._count, 0))
