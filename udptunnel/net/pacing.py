"""
Pacing, and where there is none.

BBR (draft-ietf-ccwg-bbr), which many have made their system's congestion
control, spreads segments by the clock so that they meet no queue. Between two
programs of one machine, or of one room, there is hardly a queue to meet; but
the timers take up to a third of all processor time of a connection that is as
fast as these can be. So a connection to such a peer has Reno (RFC 5681), which
every Linux has and lets anybody choose.

How far away a peer is shows when it is connected. Linux never stops to pace a
connection that was paced once. So it begins without, and gets what the system
wanted for it if its peer is far.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from struct import Struct

from udptunnel.net.platforms import LINUX, socketOption

NEAR_MICROSECONDS = 2000
"""Whoever answers sooner is near."""

_TCP_INFO, _TCP_CONGESTION = socketOption("TCP_INFO", 11), socketOption("TCP_CONGESTION", 13)
_MIN_RTT = Struct("=148xI")
"""C{tcpi_min_rtt} of C{struct tcp_info} (linux/tcp.h), in microseconds; the largest number if nothing was measured."""

_NAME_BYTES = 16
"""TCP_CA_NAME_MAX."""

_PACED, _PLAIN = b"bbr", b"reno"


def delayPacing(opened: socket.socket) -> None:
    """
    Have a connection begin without pacing, if the system would pace it.

    @param opened: a TCP socket before it connects, or before it listens; then it is for what is accepted.
    """
    if LINUX:
        with suppress(OSError):
            if _choiceOf(opened).startswith(_PACED):
                opened.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, _PLAIN)


def settlePacing(opened: socket.socket) -> None:
    """
    Give a connection what the system wanted for it, unless its peer is near.

    @param opened: a connected socket.
    """
    if LINUX:
        with suppress(OSError):
            # It may be gone.
            if _choiceOf(opened) == _PLAIN and not _isNear(opened):
                with socket.socket(opened.family, socket.SOCK_STREAM) as fresh:
                    opened.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, _choiceOf(fresh))


def _choiceOf(opened: socket.socket) -> bytes:
    return opened.getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, _NAME_BYTES).rstrip(b"\0")


def _isNear(opened: socket.socket) -> bool:
    information = opened.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _MIN_RTT.size)
    return len(information) == _MIN_RTT.size and int(_MIN_RTT.unpack(information)[0]) <= NEAR_MICROSECONDS
