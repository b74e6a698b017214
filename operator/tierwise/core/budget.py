"""Budget periods by the calendar, the ladder's rung, and the forecast to the period's end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

HYSTERESIS_PERCENT = 2
"""A rung is left when spend (after a raised ceiling, or a corrected estimate) is this far below it."""

CHECKPOINT_SECONDS = 300.0
"""Least time between two checkpoints of an account in its budget's status."""

MIN_ELAPSED_SECONDS = 600.0
"""A forecast from less of the period than this says nothing and is not made."""


def period(kind: str, zone: str, now: datetime) -> tuple[datetime, datetime]:
    """Start and end, in UTC, of the calendar period around `now`.

    Args:
        kind: Day, Week (from Monday) or Month.
        zone: IANA name of the time zone whose calendar counts; days of a clock change have 23 or 25 hours.
        now: aware.

    Raises:
        ValueError: `kind` is none of these. KeyError: the zone is not known.
    """
    place = ZoneInfo(zone)
    today = now.astimezone(place).date()
    if kind == "Day":
        first, after = today, today + timedelta(days=1)
    elif kind == "Week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    elif kind == "Month":
        first = today.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        raise ValueError(f"no such period: {kind}")
    return _midnight(first, place), _midnight(after, place)


def _midnight(day: date, place: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), tzinfo=place).astimezone(UTC)


def rung(percent: Decimal, steps: Sequence[int], current: int | None) -> int | None:
    """The highest step reached, in percent; None below the first. The present one is left only clearly below it."""
    reached = max((at for at in steps if percent >= at), default=None)
    if current is None or current not in steps or (reached is not None and reached >= current):
        return reached
    return current if percent >= current - HYSTERESIS_PERCENT else reached


@dataclass(frozen=True, slots=True)
class Forecast:
    """Spend at the period's end if it goes on as now (estimated).

    Attributes:
        expected: by the hours of the day, or else between the mean rate so far and the present rate.
        low, high: of all these.
    """

    expected: Decimal
    low: Decimal
    high: Decimal


def forecast(
    spent: Decimal,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    cost_per_hour: Decimal | None,
    ahead: Decimal | None = None,
) -> Forecast | None:
    """Spend at the end of the period; None while too little of it has passed.

    Three forecasts bound the interval: by the mean rate so far, by the present rate, and by what each hour of the day
    has cost (`ahead`, from now on), where that is known. It is the expectation; else their middle is. That is an
    estimate, not a statistical interval.
    """
    elapsed = Decimal(str((now - start).total_seconds()))
    left = Decimal(str(max(0.0, (end - now).total_seconds())))
    if elapsed < Decimal(str(MIN_ELAPSED_SECONDS)):
        return None
    by_mean = spent + spent / elapsed * left
    found = [by_mean]
    if cost_per_hour is not None:
        found.append(spent + cost_per_hour * left / 3600)
    expected = (min(found) + max(found)) / 2
    if ahead is not None:
        expected = spent + ahead
        found.append(expected)
    return Forecast(expected=expected, low=min(found), high=max(found))
