"""What both roles do alike with their links."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

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


def every(seconds: float, call: Callable[[], None], clock: IReactorTime, log: Logger) -> LoopingCall:
    """
    Have something done again and again, from now on.

    One mistake must not stop the time of everything else: it is logged, and
    the next turn comes.
    """

    def safely() -> None:
        try:
            call()
        except Exception:
            log.failure("a tick has failed; the next one comes")

    calls = LoopingCall(safely)
    calls.clock = clock
    calls.start(seconds, now=False)
    return calls


LEAST_LOOK_SECONDS, MOST_LOOK_SECONDS = 0.005, 0.1


async def allGone(left: Callable[[], Sized], seconds: float, clock: IReactorTime) -> None:
    """
    Wait until nothing is left of something, looking now and then.

    @param seconds: how long to wait at most.
    """
    until, pause = clock.seconds() + seconds, LEAST_LOOK_SECONDS
    while left() and clock.seconds() < until:
        await deferLater(clock, pause)
        pause = min(2 * pause, MOST_LOOK_SECONDS)


def tickSeconds(config: LocalConfig | ServerConfig) -> float:
    """How often a role looks at the clock: each second, or twice a heartbeat if that is shorter."""
    return min(1.0, config.heartbeat / 2)


def quietFactory(make: Callable[[], Protocol]) -> Any:
    """A factory that makes protocols and does not log that it starts and stops."""
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return factory
