"""
What the log does not tell: secrets never, and addresses and names if so asked.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from udptunnel.config import Forward
from udptunnel.wire.address import Address

NOTHING = "-"
"""Stands for what is left out."""

FIELDS = frozenset(
    "address client destination forward forwards host hosts listen name names peer peers server servers socks source "
    "target targets to user username users via".split()
)
"""Fields of log events that hold addresses, host names or user names."""

_PASSWORD = re.compile(r"""(password=)(?:\\.|[^:\s,'"\\])+""")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])")
_MAYBE_IPV6 = re.compile(r"(?<![\w:.])(?:\\?:|[0-9A-Fa-f.])*\\?:(?:\\?:|[0-9A-Fa-f.])*(?:%[\w.-]+)?")
_DOTTED = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+")


class LeftOut:
    """Stands for a value in an event, and for whatever a format asks of it."""

    def __str__(self) -> str:
        return NOTHING

    __repr__ = __str__

    def __format__(self, how: str) -> str:
        return NOTHING

    def __getattr__(self, name: str) -> LeftOut:
        return self

    def __getitem__(self, key: Any) -> LeftOut:
        return self

    def __call__(self) -> LeftOut:
        return self


LEFT_OUT = LeftOut()


def withoutSecrets(text: str) -> str:
    """A text without the passwords in its endpoint strings."""
    return _PASSWORD.sub(rf"\1{NOTHING}", text) if "password=" in text else text


class Redaction:
    """
    Leaves addresses and names out.

    What stands in a field is known by the field's name or by the value's type.
    In a text, such as that of an error, we can only look for what is written
    like an address, and for the host names of the configuration.
    """

    def __init__(self, config: object) -> None:
        """
        @param config: a role's configuration.
        """
        names = sorted(set(hostNames(config)), key=len, reverse=True)
        self._names = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, names))})(?![\w-])") if names else None

    def fields(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an event, with a L{LeftOut} where something is left out."""
        return {name: LEFT_OUT if _isPrivate(name, value) else value for name, value in event.items()}

    def text(self, text: str) -> str:
        """A text with a dash for each address and each known name."""
        if self._names is not None:
            text = self._names.sub(NOTHING, text)
        # IPv6 first: it may end with IPv4.
        return _IPV4.sub(NOTHING, _MAYBE_IPV6.sub(_replaced, text))


def _isPrivate(name: str, value: object) -> bool:
    return name in FIELDS or isinstance(value, Address | Forward)


def _replaced(match: re.Match[str]) -> str:
    """Times, and colons that belong to the sentence, look much like IPv6."""
    found = match[0]
    literal = found.rstrip(":.\\")
    for each in (found, literal):
        try:
            ipaddress.IPv6Address(each.replace("\\", ""))
        except ValueError:
            continue
        return NOTHING + found[len(each) :]
    return found


def hostNames(config: object) -> Iterator[str]:
    """The host names in a configuration, be they in addresses or in endpoint strings."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        for each in value if isinstance(value, tuple) and not isinstance(value, Address) else (value,):
            yield from _hostsOf(field.name, each)


def _hostsOf(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Address):
        yield from _ifName(value.host)
    elif isinstance(value, Forward):
        yield from _ifName(value.target.host)
    elif name == "server" and isinstance(value, str):
        yield from _namesOfEndpoint(value)


def _namesOfEndpoint(text: str) -> Iterator[str]:
    parts = re.split(r"(?<!\\):", text)
    if len(parts) > 1:
        yield from _ifName(parts[1].removeprefix("host="))
    for dotted in _DOTTED.findall(text):
        yield from _ifName(dotted)


def _ifName(host: str) -> Iterator[str]:
    """The host, unless it is a number, which is found without our knowing it."""
    if re.search("[A-Za-z]", host) and ":" not in host:
        yield host
