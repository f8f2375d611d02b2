"""
recvmmsg and sendmmsg (Linux), which Python does not have: many messages with one system call.

All memory that the kernel reads and writes is laid out once. A call then
costs one foreign function call, and Python looks at lengths and names of all
messages together: as long as they are alike, which they are in a flood, what
is done for each single one is done by the kernel and by C{bytes.join}.
"""

from __future__ import annotations

import ctypes
import os
import socket
from array import array
from bisect import bisect
from collections.abc import Sequence
from errno import EAGAIN, EINTR
from itertools import accumulate

from udptunnel.net.platforms import LINUX, libc
from udptunnel.net.sockaddr import SOCKADDR_BYTES, SourceNames, packSockaddr
from udptunnel.wire.burst import LARGEST_BURST, Burst, join, pieces
from udptunnel.wire.frame import Buffer

AVAILABLE = False
"""Whether the calls are there."""

SLOTS = 64
"""Messages that one call moves at most."""

FEW_SLOTS = 16
"""Messages that are asked for while they are so long that a cache could not hold more of them."""

LONGEST_EXPECTED = 2048
"""Datagrams of up to this length are laid end to end by the kernel: those that networks carry whole."""

LEAST_ALIKE = 4
"""So many messages of one call tell what the next call will bring."""

_SLOT_BYTES = 65536
_NAME_BYTES = 28
_LINE_BYTES = 64
"""Of a cache: slots begin where one begins."""
_CONTROL_BYTES = 32
"""CMSG_SPACE(sizeof(int)) is 24; the rest keeps the slots aligned."""


class _IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _MsgHdr(ctypes.Structure):
    """struct msghdr (recvmsg(2))."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("nameLength", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovLength", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controlLength", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _MMsgHdr(ctypes.Structure):
    """struct mmsghdr (recvmmsg(2))."""

    _fields_ = [("header", _MsgHdr), ("length", ctypes.c_uint32)]


_CMSG_DATA = ctypes.sizeof(ctypes.c_size_t) + 8
"""Offset of a control message's data: behind its length, level and type."""

if LINUX:
    try:
        _recvmmsg, _sendmmsg = libc.recvmmsg, libc.sendmmsg
        _recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        _sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
        AVAILABLE = True
    except AttributeError:
        pass


def _addressOf(area: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def _columnOf(headers: ctypes.Array[_MMsgHdr]) -> memoryview:
    """How long each message was, as far as it was received."""
    stride = ctypes.sizeof(_MMsgHdr) // 4
    return memoryview(headers).cast("B").cast("I")[_MMsgHdr.length.offset // 4 :: stride]


def _raiseUnlessNothing(number: int) -> None:
    if number not in (EAGAIN, EINTR):
        raise OSError(number, os.strerror(number))


def _column(headers: bytearray, offset: int, count: int) -> memoryview:
    """The 32-bit field at an offset of each message header."""
    stride = ctypes.sizeof(_MMsgHdr) // 4
    return memoryview(headers).cast("I")[offset // 4 :: stride][:count]


class Inbox:
    """
    Receives up to L{SLOTS} messages at once.

    A flood is of one size. As long as that is so, the kernel itself lays the
    datagrams end to end, and nothing is copied to join them: what is as long
    as the last ones goes there, and only what is longer overflows into a slot.

    @ivar full: whether the last call filled all slots, so that more may be there.
    """

    def __init__(self, sources: SourceNames) -> None:
        """
        @param sources: turns kernel addresses into ours.
        """
        self._sources = sources
        self._most = SLOTS
        self._expected = 0
        self.full = False
        # Written once: the kernel gives all of it now, and a process that carries nothing much does not seem to grow.
        self._area = bytearray(1) * (SLOTS * _SLOT_BYTES)
        self._row = bytearray(1) * (SLOTS * LONGEST_EXPECTED)
        self._names = bytearray(SLOTS * _NAME_BYTES)
        self._controls = bytearray(SLOTS * _CONTROL_BYTES)
        self._layOut()
        self._view, self._rowView = memoryview(self._area), memoryview(self._row)
        self._lengths = _column(self._headers, _MMsgHdr.length.offset, SLOTS)
        self._controlLengths = _column(self._headers, _MsgHdr.controlLength.offset, SLOTS)
        self._segments = memoryview(self._controls).cast("I")[_CMSG_DATA // 4 :: _CONTROL_BYTES // 4]

    def _layOut(self) -> None:
        """Make the message headers, and keep a copy: the kernel overwrites lengths in them."""
        area, names, controls = map(_addressOf, (self._area, self._names, self._controls))
        self._iovecs = (_IoVec * (2 * SLOTS))()
        # Pointers and sizes are as long as this on all machines that Linux runs on.
        fields = memoryview(self._iovecs).cast("B").cast("L")
        self._expectedBases, self._expectedLengths = fields[::4], fields[1::4]
        headers = (_MMsgHdr * SLOTS)()
        for slot, message in enumerate(headers):
            message.header.name = names + slot * _NAME_BYTES
            message.header.nameLength = _NAME_BYTES
            message.header.iov = ctypes.addressof(self._iovecs[2 * slot])
            message.header.iovLength = 2
            message.header.control = controls + slot * _CONTROL_BYTES
            message.header.controlLength = _CONTROL_BYTES
            self._iovecs[2 * slot + 1] = _IoVec(area + slot * _SLOT_BYTES, _SLOT_BYTES)
        self._pristine = bytes(headers)
        self._headers = bytearray(self._pristine)
        self._start = _addressOf(self._headers)
        self._expect(0)

    def _expect(self, length: int) -> None:
        """Have the next datagrams of this length laid end to end, and all that is longer go on in a slot each."""
        self._expected = length
        row = _addressOf(self._row)
        self._expectedBases[:] = array("L", [row + slot * length for slot in range(SLOTS)])
        self._expectedLengths[:] = array("L", [length]) * SLOTS

    def receive(self, descriptor: int, family: int) -> list[Burst]:
        """
        Take what has arrived at a socket, joined into bursts.

        The payloads are valid until the next call.

        @raise OSError: the kernel reports anything but "nothing there".
        """
        count = _recvmmsg(descriptor, self._start, self._most, socket.MSG_DONTWAIT, None)
        if count <= 0:
            _raiseUnlessNothing(ctypes.get_errno())
            return []
        self.full = count == self._most
        lengths = self._lengths[:count].tolist()
        marked = any(self._controlLengths[:count].tolist())
        alike = count > 1 and not marked and self._alike(count, lengths)
        nameBytes = SOCKADDR_BYTES[family]
        if alike:
            bursts = self._together(count, lengths[0], nameBytes)
        else:
            segments = self._sizes(count, lengths) if marked else lengths
            bursts = self._apart(count, lengths, segments, nameBytes)
        self._prepare(count, lengths, alike)
        return bursts

    def _prepare(self, count: int, lengths: list[int], alike: bool) -> None:
        """Make ready for the next call, which is likely to bring what this one has brought."""
        used = count * ctypes.sizeof(_MMsgHdr)
        self._headers[:used] = self._pristine[:used]
        self._most = FEW_SLOTS if sum(lengths) > FEW_SLOTS * _SLOT_BYTES / 4 else SLOTS
        if count >= LEAST_ALIKE:
            length = lengths[0] if alike and lengths[0] <= LONGEST_EXPECTED else 0
            if length != self._expected:
                self._expect(length)

    def _sizes(self, count: int, lengths: list[int]) -> list[int]:
        """Datagram size of each message: what UDP_GRO says, or the message's own length."""
        marks, segments = self._controlLengths[:count].tolist(), self._segments[:count].tolist()
        return [segment if mark else length for mark, segment, length in zip(marks, segments, lengths, strict=True)]

    def _alike(self, count: int, lengths: list[int]) -> bool:
        """Whether all messages have one length and one source."""
        length = lengths[0]
        names = self._names[: count * _NAME_BYTES]
        return length > 0 and lengths.count(length) == count and names == names[:_NAME_BYTES] * count

    def _together(self, count: int, length: int, nameBytes: int) -> list[Burst]:
        source = self._sources[bytes(self._names[:nameBytes])]
        return [Burst(source, length, payload) for payload in self._endToEnd(count, length)]

    def _endToEnd(self, count: int, length: int) -> Sequence[Buffer]:
        """Equal datagrams, as many together as a burst holds."""
        if length == self._expected:
            return pieces(length, self._rowView[: count * length], LARGEST_BURST)
        parts, step = [self._payload(slot, length) for slot in range(count)], max(1, LARGEST_BURST // length)
        return [b"".join(parts[place : place + step]) for place in range(0, count, step)]

    def _apart(self, count: int, lengths: list[int], segments: list[int], nameBytes: int) -> list[Burst]:
        names, sources = self._names, self._sources
        bursts = []
        for slot in range(count):
            name = slot * _NAME_BYTES
            source = sources[bytes(names[name : name + nameBytes])]
            bursts.append(Burst(source, segments[slot], self._payload(slot, lengths[slot])))
        if count == 1 or min(lengths) > LARGEST_BURST // 2:
            return bursts
        return join(bursts)

    def _payload(self, slot: int, length: int) -> Buffer:
        expected, place = self._expected, slot * _SLOT_BYTES
        if not expected:
            return self._view[place : place + length]
        begin = self._rowView[slot * expected : slot * expected + min(length, expected)]
        if length <= expected:
            return begin
        return b"".join((begin, self._view[place : place + length - expected]))


class Outbox:
    """Sends the datagrams of a burst, up to L{SLOTS} at once, to one address."""

    def __init__(self) -> None:
        self._area = bytearray(_SLOT_BYTES)
        self._name = bytearray(_NAME_BYTES)
        self._iovecs = (_IoVec * SLOTS)()
        self._headers = (_MMsgHdr * SLOTS)()
        self._size = -1
        for slot, message in enumerate(self._headers):
            message.header.name = _addressOf(self._name)
            message.header.iov = ctypes.addressof(self._iovecs[slot])
            message.header.iovLength = 1

    def send(self, descriptor: int, family: int, to: tuple[str, int], size: int, payload: Buffer) -> int:
        """
        Send a burst of at most L{SLOTS} datagrams.

        @return: how many went; the kernel took no more if that is fewer than there are.
        @raise OSError: not even the first went.
        """
        name = packSockaddr(family, to)
        self._name[: len(name)] = name
        self._area[: len(payload)] = payload
        count = -(-len(payload) // size)
        self._lay(size, count, len(payload), len(name))
        sent = _sendmmsg(descriptor, ctypes.addressof(self._headers), count, socket.MSG_DONTWAIT)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(sent)

    def _lay(self, size: int, count: int, length: int, nameBytes: int) -> None:
        """Point the vectors at the datagrams; most of it is still right from the last burst of this size."""
        if size != self._size or self._headers[0].header.nameLength != nameBytes:
            self._size = size
            start = _addressOf(self._area)
            for slot in range(min(SLOTS, _SLOT_BYTES // size)):
                self._iovecs[slot].base, self._iovecs[slot].length = start + slot * size, size
                self._headers[slot].header.nameLength = nameBytes
        elif self._shortened is not None:
            self._iovecs[self._shortened].length = size
        last = count - 1
        self._iovecs[last].length = length - last * size
        self._shortened = last

    _shortened: int | None = None


class PacketInbox:
    """
    Receives up to L{SLOTS} messages at once, each without a part of it that stands between two others.

    The kernel itself puts that part elsewhere: nothing is copied to close the gap.
    """

    def __init__(self, before: int, between: int, longest: int) -> None:
        """
        @param before: how many bytes come before what is left out.
        @param between: how many are left out.
        @param longest: how long a message without them may be. What is longer is cut.
        """
        self._slotBytes = longest + -longest % _LINE_BYTES
        self._between = between
        self._area = bytearray(SLOTS * self._slotBytes)
        self._view = memoryview(self._area)
        self._left = bytearray(max(1, between))
        self._iovecs = (_IoVec * (3 * SLOTS))()
        self._headers = (_MMsgHdr * SLOTS)()
        area, left = _addressOf(self._area), _addressOf(self._left)
        for slot, message in enumerate(self._headers):
            start, first = area + slot * self._slotBytes, 3 * slot
            parts = (start, before), (left, between), (start + before, longest - before)
            self._iovecs[first : first + 3] = [_IoVec(*part) for part in parts]
            message.header.iov = ctypes.addressof(self._iovecs[first])
            message.header.iovLength = 3
        self._lengths = _columnOf(self._headers)
        self._most = SLOTS

    def receive(self, descriptor: int) -> list[memoryview]:
        """
        Take what has arrived at a socket. It may be written to, and is valid until the next call.

        @raise OSError: the kernel reports anything but "nothing there".
        """
        count = _recvmmsg(descriptor, ctypes.addressof(self._headers), self._most, socket.MSG_DONTWAIT, None)
        if count <= 0:
            _raiseUnlessNothing(ctypes.get_errno())
            return []
        view, size, between = self._view, self._slotBytes, self._between
        lengths = self._lengths[:count].tolist()
        self._most = FEW_SLOTS if sum(lengths) > FEW_SLOTS * size / 4 else SLOTS
        starts = range(0, count * size, size)
        return [view[start : start + length - between] for start, length in zip(starts, lengths, strict=True)]


class PacketOutbox:
    """Sends messages of which each has its own address, up to L{SLOTS} at once."""

    def __init__(self, family: int) -> None:
        """
        @param family: of all addresses.
        """
        self._nameBytes = SOCKADDR_BYTES[family]
        self._area = bytearray(2 * _SLOT_BYTES)
        self._names = bytearray(SLOTS * self._nameBytes)
        self._vectors = bytearray(SLOTS * ctypes.sizeof(_IoVec))
        self._headers = (_MMsgHdr * SLOTS)()
        self._start, names, vectors = map(_addressOf, (self._area, self._names, self._vectors))
        for slot, message in enumerate(self._headers):
            message.header.name = names + slot * self._nameBytes
            message.header.nameLength = self._nameBytes
            message.header.iov = vectors + slot * ctypes.sizeof(_IoVec)
            message.header.iovLength = 1
        # Pointers and sizes are as long as this on all machines that Linux runs on.
        fields = memoryview(self._vectors).cast("L")
        self._bases, self._lengths = fields[::2], fields[1::2]

    def send(self, descriptor: int, names: Sequence[bytes], payloads: Sequence[Buffer]) -> int:
        """
        Send the first of some messages.

        @param names: the kernel's form of each address (L{packSockaddr}).
        @param payloads: of at most 65,536 bytes each.
        @return: how many went. If these are not all, call again for the others: then it shows why.
        @raise OSError: not even the first went.
        """
        count = self._lay(names, payloads)
        sent = _sendmmsg(descriptor, ctypes.addressof(self._headers), count, socket.MSG_DONTWAIT)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(sent)

    def _lay(self, names: Sequence[bytes], payloads: Sequence[Buffer]) -> int:
        """Copy as many as there is room for; returns how many."""
        lengths = list(map(len, payloads[:SLOTS]))
        ends = list(accumulate(lengths))
        count = bisect(ends, len(self._area))
        self._area[: ends[count - 1]] = b"".join(payloads[:count])
        self._names[: count * self._nameBytes] = b"".join(names[:count])
        bases = [self._start, *(self._start + end for end in ends[: count - 1])]
        self._bases[:count] = array("L", bases)
        self._lengths[:count] = array("L", lengths[:count])
        return count
