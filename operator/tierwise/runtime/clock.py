"""The clock of plans: this machine's, without its backward steps.

Ages, pauses and periods are differences of two readings: a clock that went back would stop what waits for time to pass,
and could end a period twice.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

FOLLOWED = timedelta(days=1)
"""A clock that was set back by more had been set wrong: it is followed at once."""


def utc_now() -> datetime:
    """This machine's wall clock."""
    return datetime.now(UTC)


class SteadyClock:
    """Aware UTC time that never goes back: after the wall clock was set back it runs at half its pace until it is met.

    A step forward is followed at once.

    Args:
        wall: may be set at any time. monotonic: seconds.
    """

    def __init__(self, wall: Callable[[], datetime] = utc_now, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall()
        self._at = monotonic()

    def __call__(self) -> datetime:
        """Now."""
        wall, at = self._wall(), self._monotonic()
        slow = self._last + timedelta(seconds=(at - self._at) / 2)
        self._last = wall if slow - wall > FOLLOWED else max(wall, slow)
        self._at = at
        return self._last
