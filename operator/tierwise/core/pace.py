"""How a namespace spends over the day, and what that comes to until the period ends.

For each hour of the day (UTC) the mean cost per hour is kept that the loop would plan for without a ceiling, and how
what was spent compares with what was planned. Hours that were not seen yet count as the mean of those that were. A
restart forgets it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

_GAIN = 0.3
_LEAST_SECONDS = 600.0
_BIAS = (0.3, 1.5)
_MOST_HOURS = 24 * 32
SHARE_BAND = 0.03
"""A share that differs by less from the one in force changes nothing."""
LEAST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Pace:
    """What is remembered of a budget's spending.

    Attributes:
        hour: that is under way, its start. spent: when it began.
        last: the newest round. seconds, planned, without: of the hour so far: time, and cost planned for, with and
            without a ceiling, currency units.
        by_hour: hour of the day -> cost per hour without a ceiling.
        bias: what is spent over what is planned.
        share: of the cost without a ceiling, what may be spent.
    """

    hour: datetime | None = None
    spent: Decimal = Decimal(0)
    last: datetime | None = None
    seconds: float = 0.0
    planned: float = 0.0
    without: float = 0.0
    by_hour: Mapping[int, float] = field(default_factory=dict)
    bias: float = 1.0
    share: float = 1.0


def remember(
    pace: Pace, now: datetime, spent: Decimal, *, planned_per_hour: float | None, without_per_hour: float | None
) -> Pace:
    """With one more round."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    if pace.hour is None or pace.last is None or spent < pace.spent:
        return replace(pace, hour=hour, spent=spent, last=now, seconds=0.0, planned=0.0, without=0.0)
    if planned_per_hour is not None and without_per_hour is not None:
        seconds = max(0.0, (now - pace.last).total_seconds())
        pace = replace(
            pace,
            seconds=pace.seconds + seconds,
            planned=pace.planned + planned_per_hour * seconds / 3600,
            without=pace.without + without_per_hour * seconds / 3600,
        )
    if hour == pace.hour:
        return replace(pace, last=now)
    begun = pace.hour or hour
    by_hour, bias = dict(pace.by_hour), pace.bias
    if pace.seconds >= _LEAST_SECONDS:
        mean = 3600 * pace.without / pace.seconds
        before = by_hour.get(begun.hour, mean)
        by_hour[begun.hour] = before + _GAIN * (mean - before)
        if pace.planned > 0:
            seen = min(max(float(spent - pace.spent) / pace.planned, _BIAS[0]), _BIAS[1])
            bias += _GAIN * (seen - bias)
    return Pace(hour, spent, now, by_hour=by_hour, bias=bias, share=pace.share)


def ahead(pace: Pace, now: datetime, end: datetime, present_per_hour: float | None) -> Decimal | None:
    """What would be spent from now to `end` without a ceiling; None when nothing tells."""
    known = pace.by_hour
    if present_per_hour is None and not known:
        return None
    mean = sum(known.values()) / len(known) if known else present_per_hour or 0.0
    total, at = 0.0, now
    for _ in range(_MOST_HOURS):
        if at >= end:
            break
        until = min(end, at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1))
        each = present_per_hour if at == now and present_per_hour is not None else known.get(at.hour, mean)
        total += each * (until - at).total_seconds() / 3600
        at = until
    return Decimal(str(round(total * pace.bias, 9)))


KNOWN_HOURS = 6
"""A forecast by the hours of the day is made from so many on."""


def forecast(pace: Pace, now: datetime, end: datetime) -> Decimal | None:
    """What will be spent from now to `end` if days are alike, under the ceiling as it is; None: too little is known."""
    if len(pace.by_hour) < KNOWN_HOURS:
        return None
    found = ahead(pace, now, end, None)
    return found * Decimal(str(pace.share)) if found is not None else None


def share(pace: Pace, left: Decimal, expected: Decimal | None, *, blind: bool) -> float:
    """Of the cost without a ceiling, what may be spent, 0 to 1: what is left over what would be."""
    if expected is None or expected <= 0:
        return pace.share
    wanted = min(1.0, max(LEAST_SHARE, float(left / expected)))
    if blind:
        wanted = min(wanted, pace.share)
    if wanted == 1.0 or abs(wanted / pace.share - 1) > SHARE_BAND:
        return wanted
    return pace.share
