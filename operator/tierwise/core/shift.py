"""A lasting fall of demand, as against the calm between bursts: some minutes that all lie below everything before them.

Bursts and calm come and go within the range of the last hour; a smooth level would need long to believe in a step.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate

FALL_SECONDS = 300.0
"""What lies below everything before for so long is no calm: as long as autoscalers wait before they shrink."""

BEFORE_SECONDS = 900.0
"""So much has to be known from before, to tell."""

BELOW = 1.1
"""How far below, as a factor."""


def fallen(times: Sequence[datetime], rates: Sequence[float], window_seconds: float) -> int | None:
    """Number of the first window after the latest fall that has lasted; None without one.

    Args:
        times: ends of windows, oldest first.
        rates: requests/s in them.
        window_seconds: length of a window.
    """
    if not times:
        return None
    earliest = times[0] + timedelta(seconds=BEFORE_SECONDS)
    latest = times[-1] - timedelta(seconds=FALL_SECONDS - window_seconds)
    lows = list(accumulate(rates, min))
    high = rates[-1]
    for at in range(len(times) - 1, 0, -1):
        if times[at] < earliest:
            return None
        high = max(high, rates[at])
        if times[at] <= latest and BELOW * high < lows[at - 1]:
            return at
    return None
