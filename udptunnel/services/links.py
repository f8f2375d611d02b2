"""What both roles do alike with their links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from udptunnel.config import LocalConfig, ServerConfig
from udptunnel.core.link import LOGIN_SECONDS, LinkLimits


def linkLimits(config: LocalConfig | ServerConfig) -> LinkLimits:
    """What bounds a link, from the configuration of either role."""
    return LinkLimits(
        queueBytes=config.queueBytes,
        queueAge=config.queueAge / 1000,
        delay=config.delay / 1000,
        heartbeat=config.heartbeat,
        login=getattr(config, "loginTimeout", LOGIN_SECONDS),
    )


def tickSeconds(config: LocalConfig | ServerConfig) -> float:
    """How often a role looks at the clock: each second, or twice a heartbeat if that is shorter."""
    return min(1.0, config.heartbeat / 2)


def quietFactory(make: Callable[[], Protocol]) -> Any:
    """A factory that makes protocols and does not log that it starts and stops."""
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return factory
