"""What both roles do alike with their links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from udptunnel.config import LocalConfig, ServerConfig
from udptunnel.core.link import LinkLimits


def linkLimits(config: LocalConfig | ServerConfig) -> LinkLimits:
    """What bounds a link, from the configuration of either role."""
    return LinkLimits(
        queueBytes=config.queueBytes,
        queueAge=config.queueAge / 1000,
        delay=config.delay / 1000,
        heartbeat=config.heartbeat,
    )


def quietFactory(make: Callable[[], Protocol]) -> Any:
    """A factory that makes protocols and does not log that it starts and stops."""
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return factory
