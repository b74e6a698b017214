from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import budget

moments = st.datetimes(datetime(2020, 1, 1), datetime(2032, 12, 31)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001 - made aware
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"])


@given(moments, zones, st.sampled_from(["Day", "Week", "Month"]))
def test_periods_tile_time(now: datetime, zone: str, kind: str) -> None:
    start, end = budget.period(kind, zone, now)
    assert start <= now < end
    assert budget.period(kind, zone, end)[0] == end
    assert budget.period(kind, zone, start - timedelta(seconds=1))[1] == start


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24), ("2026-12-31", 24)]
)
def test_days_of_a_clock_change_have_23_or_25_hours(day: str, hours: int) -> None:
    noon = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    start, end = budget.period("Day", "Europe/Berlin", noon)
    assert end - start == timedelta(hours=hours)


def test_weeks_begin_on_monday_and_months_on_the_first_local_midnight() -> None:
    now = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
    assert budget.period("Week", "UTC", now)[0] == datetime(2026, 11, 23, tzinfo=UTC)
    start, end = budget.period("Month", "America/New_York", datetime(2026, 11, 1, 3, 0, tzinfo=UTC))
    assert (start, end) == (datetime(2026, 10, 1, 4, tzinfo=UTC), datetime(2026, 11, 1, 4, tzinfo=UTC))


def test_unknown_kinds_and_zones_are_errors() -> None:
    now = datetime(2026, 11, 25, tzinfo=UTC)
    with pytest.raises(ValueError, match="Fortnight"):
        budget.period("Fortnight", "UTC", now)
    with pytest.raises(KeyError):
        budget.period("Day", "Mars/Olympus", now)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_rungs_climb_with_spend_and_come_down_only_clearly_below(path: list[int]) -> None:
    steps, held = [50, 80, 100], None
    for percent in path:
        after = budget.rung(Decimal(percent), steps, held)
        reached = max((s for s in steps if percent >= s), default=None)
        assert (after or 0) >= (reached or 0)
        if held is not None and (after is None or after < held):
            assert percent < held - budget.HYSTERESIS_PERCENT
        if after is not None and after != reached:
            assert after == held
        held = after


def test_a_rung_that_was_taken_out_of_the_ladder_is_left() -> None:
    assert budget.rung(Decimal(85), [50, 100], 80) == 50


START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


def test_a_forecast_lies_between_the_mean_and_the_present_rate() -> None:
    now = START + (END - START) / 2
    found = budget.forecast(Decimal(100), start=START, end=END, now=now, cost_per_hour=Decimal(0))
    assert found is not None
    assert (found.low, found.expected, found.high) == (100, 150, 200)
    alone = budget.forecast(Decimal(100), start=START, end=END, now=now, cost_per_hour=None)
    assert alone is not None
    assert alone.low == alone.expected == alone.high == 200


def test_too_little_of_a_period_gives_no_forecast() -> None:
    now = START + timedelta(seconds=599)
    assert budget.forecast(Decimal(1), start=START, end=END, now=now, cost_per_hour=Decimal(1)) is None


@given(st.decimals(0, 1000, places=2), st.decimals(0, 100, places=2), st.floats(0.01, 0.99))
def test_forecasts_never_fall_below_what_is_spent(spent: Decimal, rate: Decimal, part: float) -> None:
    now = START + (END - START) * part
    found = budget.forecast(spent, start=START, end=END, now=now, cost_per_hour=rate)
    assert found is not None
    assert spent <= found.low <= found.expected <= found.high
