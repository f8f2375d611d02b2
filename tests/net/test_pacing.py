"""Tests for L{udptunnel.net.pacing}."""

from __future__ import annotations

import errno
import socket
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net import pacing
from udptunnel.net.pacing import NEAR_MICROSECONDS, delayPacing, settlePacing

_INFO, _CONGESTION = 11, 13


class FakeSocket:
    """
    A TCP socket of Linux.

    @ivar chosen: its congestion control.
    """

    def __init__(self, chosen: bytes, roundTrip: int | None = None) -> None:
        """
        @param roundTrip: in microseconds; an older kernel does not tell it.
        """
        self.family = socket.AF_INET
        self.chosen = chosen
        self._roundTrip = roundTrip

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        if option == _CONGESTION:
            return self.chosen.ljust(length, b"\0")
        return bytes(104) if self._roundTrip is None else bytes(148) + self._roundTrip.to_bytes(4, "little")

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert option == _CONGESTION
        self.chosen = value

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class NoTcp(FakeSocket):
    """A socket that knows none of this."""

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "")


class PacingTests(SynchronousTestCase):
    """Which connections are paced."""

    def setUp(self) -> None:
        self.patch(pacing, "LINUX", True)

    def systemWants(self, name: bytes) -> None:
        """Have new sockets come with some congestion control."""
        self.patch(pacing.socket, "socket", lambda *_: FakeSocket(name))

    def after(self, system: bytes, roundTrip: int | None) -> bytes:
        """The congestion control of a connection whose peer answers after so many microseconds."""
        opened: Any = FakeSocket(system, roundTrip)
        self.systemWants(system)
        delayPacing(opened)
        settlePacing(opened)
        chosen: bytes = opened.chosen
        return chosen

    def test_near(self) -> None:
        """Whose peer is near is not paced, whichever BBR it is that the system wants."""
        for system in (b"bbr", b"bbr2", b"bbr3"):
            self.assertEqual(self.after(system, NEAR_MICROSECONDS), b"reno")

    def test_far(self) -> None:
        """Whose peer is far, or who knows where, is paced as the system wants it, but did not begin so."""
        for roundTrip in (NEAR_MICROSECONDS + 1, 0xFFFFFFFF, None):
            self.assertEqual(self.after(b"bbr", roundTrip), b"bbr")
        opened: Any = FakeSocket(b"bbr")
        delayPacing(opened)
        self.assertEqual(opened.chosen, b"reno")

    def test_others(self) -> None:
        """What the system does not pace stays as it is, near or far."""
        for system in (b"cubic", b"reno", b"dctcp"):
            for roundTrip in (1, NEAR_MICROSECONDS + 1):
                self.assertEqual(self.after(system, roundTrip), system)

    def test_refused(self) -> None:
        """A socket that knows nothing of it, and another system, are left alone."""
        stranger: Any = NoTcp(b"bbr")
        delayPacing(stranger)
        settlePacing(stranger)
        self.assertEqual(stranger.chosen, b"bbr")
        self.patch(pacing, "LINUX", False)
        self.assertEqual(self.after(b"bbr", 1), b"bbr")

    def test_real(self) -> None:
        """What connects and what is accepted begins without pacing, whatever this system wants."""
        if not pacing.LINUX:
            raise SkipTest("this is no Linux")
        with socket.socket() as listener, socket.socket() as client:
            for each in (listener, client):
                delayPacing(each)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                for each in (accepted, client):
                    name = each.getsockopt(socket.IPPROTO_TCP, _CONGESTION, 16)
                    self.assertFalse(name.startswith(b"bbr"), name)
