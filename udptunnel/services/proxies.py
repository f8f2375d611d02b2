"""SOCKS5 servers that the user names in options."""

from __future__ import annotations

import socket

from udptunnel.errors import ConfigError
from udptunnel.wire.address import Address


def passwordIn(option: str, name: str | None) -> str:
    """
    The password in a file, if there is one.

    @raise ConfigError: it can not be read.
    """
    if name is None:
        return ""
    try:
        with open(name, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {name}: {getattr(error, 'strerror', error)}") from error


def resolved(option: str, address: Address) -> Address:
    """
    An address in digits. A name is looked up now, which blocks.

    @raise ConfigError: nobody knows it.
    """
    if not address.isName:
        return address
    try:
        found = socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"{option} {address}: {error.strerror}") from error
    return Address(str(found[0][4][0]), address.port)
