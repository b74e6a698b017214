"""A lasting shift of demand, as against bursts and the calm between them: some minutes beyond everything before them.

Bursts and calm come and go within the range of the last hour; a smooth level would need long to believe in a step.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import accumulate

FALL_SECONDS = 300.0
"""What lies below everything before for so long is no calm: as long as autoscalers wait before they shrink."""

RISE_SECONDS = 240.0
"""What lies above everything before for so long is no burst. Sooner than a fall, as others carry it meanwhile, at their
price, and a replica takes minutes to start."""

BEFORE_SECONDS = 900.0
"""So much has to be known from before, to tell."""

BEYOND = 1.1
"""How far below or above, as a factor."""


def since(times: Sequence[datetime], rates: Sequence[float], window_seconds: float) -> int | None:
    """Number of the first window after the latest fall or rise that has lasted; None without one.

    Args:
        times: ends of windows, oldest first.
        rates: requests/s in them.
        window_seconds: length of a window.
    """
    upside_down = [1 / rate if rate > 0 else math.inf for rate in rates]
    found = (
        _fallen(times, rates, FALL_SECONDS - window_seconds),
        _fallen(times, upside_down, RISE_SECONDS - window_seconds),
    )
    return max((at for at in found if at is not None), default=None)


def _fallen(times: Sequence[datetime], values: Sequence[float], seconds: float) -> int | None:
    if not times:
        return None
    earliest = times[0] + timedelta(seconds=BEFORE_SECONDS)
    latest = times[-1] - timedelta(seconds=seconds)
    lows = list(accumulate(values, min))
    high = values[-1]
    for at in range(len(times) - 1, 0, -1):
        if times[at] < earliest:
            return None
        high = max(high, values[at])
        if times[at] <= latest and BEYOND * high < lows[at - 1]:
            return at
    return None
