from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import budget, ledger
from tierwise.core.ledger import Account, TokenPrices, Use
from tierwise.core.signals import CounterReading

START = datetime(2026, 11, 25, tzinfo=UTC)
PRICES = TokenPrices(Decimal(3), Decimal("0.3"), Decimal(15))


def account(**fields):
    return Account(START, START + timedelta(days=1), START, **fields)


def reading(until, *, requests=10.0, usage=10.0, tokens=(1e6, 0.0, 1e6), **estimated):
    return CounterReading(requests, usage, *tokens, START, START + timedelta(seconds=until), **estimated)


def after(seconds):
    return START + timedelta(seconds=seconds)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_how_often_one_looks_does_not_change_the_bill(steps):
    use = Use("a", replicas=3, most_replicas=8, price_per_hour=Decimal("7.20"))
    held = account()
    total = 0
    for step in steps:
        total += step
        held = ledger.accrue(held, [use], after(total), max_gap_seconds=90)
        held = ledger.accrue(held, [use], after(total), max_gap_seconds=90)
    assert ledger.spend(held).counted == pytest.approx(3 * total * Decimal("7.20") / 3600)
    assert ledger.spend(held).estimated == 0


def test_a_gap_is_bounded_from_above_and_kept_apart():
    use = Use("a", replicas=1, most_replicas=4, price_per_hour=Decimal(36))
    held = ledger.accrue(account(), [use], after(1000), max_gap_seconds=90)
    assert ledger.spend(held).counted == 0
    assert ledger.spend(held).estimated == 4 * 1000 * Decimal(36) / 3600


def test_no_price_is_unknown_and_never_zero():
    held = ledger.accrue(account(), [Use("a", replicas=2, most_replicas=2)], after(60), max_gap_seconds=90)
    assert ledger.spend(held).unknown == ("a",)
    outside = Use("x", external=True, reading=reading(60))
    held = ledger.accrue(account(), [outside], after(60), max_gap_seconds=90)
    assert ledger.spend(held).unknown == ("x",)
    assert held.entries["x"].cost is None


def test_tokens_are_charged_once_and_cached_ones_at_their_price():
    use = Use("x", external=True, token_prices=PRICES, reading=reading(60, tokens=(1e6, 4e5, 1e5)))
    held = ledger.accrue(account(), [use], after(60), max_gap_seconds=90)
    held = ledger.accrue(held, [use], after(65), max_gap_seconds=90)
    assert ledger.spend(held).counted == Decimal("0.6") * 3 + Decimal("0.4") * Decimal("0.3") + Decimal("1.5")


def test_attempts_that_nothing_bounds_are_estimated_above_the_mean():
    given = reading(60, requests=12.0, usage=10.0, estimated_attempts=2.0, unbounded_attempts=2.0)
    use = Use("x", external=True, token_prices=PRICES, reading=given)
    held = ledger.accrue(account(), [use], after(60), max_gap_seconds=90)
    assert ledger.spend(held).counted == 18
    assert ledger.spend(held).estimated == 2 * 2 * Decimal("1.8")


def test_a_new_price_rewrites_no_history():
    cheap, dear = (Use("a", replicas=1, most_replicas=1, price_per_hour=Decimal(p)) for p in (36, 360))
    held = ledger.accrue(account(), [cheap], after(60), max_gap_seconds=90)
    held = ledger.accrue(held, [dear], after(120), max_gap_seconds=90)
    assert ledger.spend(held).counted == Decimal("0.6") + 6


def test_a_provider_that_nobody_counts_is_charged_its_bound_until_counters_return():
    use = Use("x", external=True, token_prices=PRICES, reading=reading(60), most_cost_per_hour=Decimal(36))
    held = ledger.accrue(account(), [use], after(60), max_gap_seconds=90)
    assert held.pending == 0
    silent = Use("x", external=True, token_prices=PRICES, most_cost_per_hour=Decimal(36))
    held = ledger.accrue(held, [silent], after(1060), max_gap_seconds=90)
    assert held.pending == 10
    assert ledger.spend(held).estimated == 10
    cheaper = Use("x", external=True, token_prices=PRICES, most_cost_per_hour=Decimal(0))
    assert ledger.accrue(held, [cheaper], after(1065), max_gap_seconds=90).pending == 10, "objects take nothing back"
    restarted = Use("x", external=True, token_prices=PRICES)
    assert ledger.accrue(held, [restarted], after(1065), max_gap_seconds=90).pending > 10, "as it was last counted"
    back = Use("x", external=True, token_prices=PRICES, reading=reading(1070), most_cost_per_hour=Decimal(36))
    held = ledger.accrue(held, [back], after(1070), max_gap_seconds=90)
    assert held.pending == 0
    assert ledger.spend(held).counted == 36


@pytest.mark.parametrize(
    ("kind", "zone", "now", "start", "hours"),
    [
        ("Day", "UTC", "2026-11-25T12:00", "2026-11-25T00:00", 24),
        ("Day", "Europe/London", "2026-03-29T12:00", "2026-03-29T00:00", 23),  # clocks go forward
        ("Day", "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", 25),  # and back
        ("Week", "UTC", "2026-11-25T12:00", "2026-11-23T00:00", 168),
        ("Month", "Europe/London", "2026-03-31T23:30", "2026-03-31T23:00", 720),  # already April there
        ("Month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", 744),
    ],
)
def test_periods_follow_the_calendar_of_their_zone(kind, zone, now, start, hours):
    begin, end = budget.period(kind, zone, datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert begin == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert (end - begin).total_seconds() == hours * 3600


def test_a_rung_is_left_only_clearly_below_it():
    steps = [70, 85, 100]
    assert budget.rung(Decimal(69), steps, None) is None
    assert budget.rung(Decimal(70), steps, None) == 70
    assert budget.rung(Decimal(99), steps, 85) == 85
    assert budget.rung(Decimal("68.5"), steps, 70) == 70
    assert budget.rung(Decimal("67.9"), steps, 70) is None
    assert budget.rung(Decimal(120), steps, 70) == 100


def test_a_forecast_needs_some_of_the_period_and_has_an_interval():
    day = {"start": START, "end": START + timedelta(days=1)}
    assert budget.forecast(Decimal(1), now=after(60), cost_per_hour=Decimal(5), **day) is None
    found = budget.forecast(Decimal(12), now=after(6 * 3600), cost_per_hour=Decimal(3), **day)
    assert found.low == 12 + 36
    assert found.high == 12 + 54
    assert found.low <= found.expected <= found.high
