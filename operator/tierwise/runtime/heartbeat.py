"""Tells this replica's gateways that somebody decides; when nobody does they act alone (a budget's `failurePolicy`)."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

BEAT_SECONDS = 5.0


class Gateways(Protocol):
    """What is used of `adapters.xds.XdsServer`."""

    def decided(self, age_seconds: float) -> None:
        """Somebody was last seen to decide so many seconds ago."""
        ...


class Seen:
    """When the deciding replica last renewed its Lease, as this replica saw it.

    Clocks of two machines are compared only once, at the first look: later a renewal is a change that was seen.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last: tuple[str, str] | None = None
        self._renewed: float | None = None

    def look(self, holder: str | None, renewed: str | None, now: datetime) -> None:
        """Take in the Lease; one that nobody holds, or that says no time, is no sign of anybody."""
        if not holder or not renewed or (holder, renewed) == self._last:
            return
        age = 0.0 if self._last is not None else _age(renewed, now)
        self._last = (holder, renewed)
        self._renewed = self._monotonic() - age

    def age_seconds(self) -> float | None:
        """Since the last renewal; None: none was ever seen."""
        return None if self._renewed is None else self._monotonic() - self._renewed


def _age(renewed: str, now: datetime) -> float:
    try:
        then = datetime.fromisoformat(renewed)
    except ValueError:
        return 0.0
    return max(0.0, (now - (then if then.tzinfo is not None else then.replace(tzinfo=UTC))).total_seconds())


async def run(gateways: Gateways, age_seconds: Callable[[], float | None]) -> None:
    """Tell gateways again and again, until cancelled."""
    while True:
        age = age_seconds()
        if age is not None:
            gateways.decided(age)
        await asyncio.sleep(BEAT_SECONDS)
