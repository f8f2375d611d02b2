"""Formats: bytes to values and back. No sockets, no clock, no state beyond an unfinished value."""
