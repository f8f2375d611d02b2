"""Lines out of what somebody else's program prints: whole ones, however it comes, and none of them endless."""

from __future__ import annotations

MOST = 1000
"""Bytes of a line; what is beyond is left out."""

CUT = " ..."
"""Stands for what was left out."""


class SaidLines:
    """One stream of a program, cut into lines."""

    def __init__(self, most: int = MOST) -> None:
        """
        @param most: bytes of a line at most.
        """
        self._most = most
        self._begun = bytearray()
        self._cut = False

    def add(self, data: bytes) -> list[str]:
        """
        Take what has come.

        @return: the lines that are complete now, without their ends; empty ones are left out.
        """
        *whole, begun = data.split(b"\n")
        lines = []
        for each in whole:
            self._extend(each)
            lines += self.rest()
        self._extend(begun)
        return lines

    def rest(self) -> list[str]:
        """What has no end yet, if there is anything: the stream is over."""
        line = self._begun.decode(errors="replace").rstrip() + CUT * self._cut
        self._begun.clear()
        self._cut = False
        return [line] if line else []

    def _extend(self, part: bytes) -> None:
        room = self._most - len(self._begun)
        self._begun += part[:room]
        self._cut |= len(part) > room
