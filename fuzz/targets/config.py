"""Configuration files."""

from __future__ import annotations

import dataclasses
from typing import Any

from udptunnel.config import LocalConfig, ServerConfig, fill, optionName, readToml
from udptunnel.errors import ConfigError


def localConfig(data: bytes) -> None:
    """Any text is a configuration of udp-local, or refused with a reason."""
    _check(LocalConfig, "udp-local", data)


def serverConfig(data: bytes) -> None:
    """Any text is a configuration of udp-server, or refused with a reason."""
    _check(ServerConfig, "udp-server", data)


def _check(kind: type[Any], role: str, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        config = readToml(kind, role, text)
    except ConfigError as error:
        assert str(error)
        return
    texts = {field.name: _texts(getattr(config, field.name)) for field in dataclasses.fields(kind)}
    assert fill(kind, {name: given for name, given in texts.items() if given is not None}) == config
    assert readToml(kind, role, _toml(role, texts)) == config, "written again it is another one"


def _texts(value: object) -> str | bool | list[str] | None:
    """A value as it would stand on a command line."""
    if isinstance(value, tuple) and type(value) is tuple:
        return [str(each) for each in value]
    if value is None or isinstance(value, bool):
        return value
    return f"{value:.9f}" if isinstance(value, float) else str(value)


def _toml(role: str, texts: dict[str, Any]) -> str:
    given = {optionName(name): value for name, value in texts.items() if value is not None}
    return "\n".join([f"[{role}]", *(f"{name} = {_tomlValue(value)}" for name, value in given.items())])


def _tomlValue(value: str | bool | list[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else f"[{', '.join(map(_quoted, value))}]"


def _quoted(text: str) -> str:
    """A TOML basic string, with everything escaped that is not plain."""
    return '"' + "".join(char if char.isalnum() and char.isascii() else f"\\U{ord(char):08x}" for char in text) + '"'
