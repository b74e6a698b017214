"""The ladder's rules: rungs, rates, and when they change."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import ladder
from tierwise.core.outlook import MOST_PERCENT, Outlook

NOW = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
STEPS = [50, 80, 90, 100]
money = st.decimals(0, 10_000, places=2)
percents = st.lists(st.integers(0, 130), min_size=1, max_size=40)


def seen(*, spent="0", flight="0", committed="0", hours="100", ceiling="1000") -> Outlook:
    return Outlook(Decimal(ceiling), Decimal(spent), Decimal(flight), Decimal(committed), Decimal(hours), 30.0)


@given(percents)
def test_more_spend_never_means_a_lower_rung(path: list[int]) -> None:
    held = None
    for percent in sorted(path):
        after = ladder.climb(Decimal(percent), STEPS, held, blind=False)
        assert (after or 0) >= (held or 0)
        held = after


@given(percents, st.sampled_from([None, *STEPS]))
def test_nothing_is_relaxed_while_nobody_sees_what_is_spent(path: list[int], held: int | None) -> None:
    for percent in path:
        after = ladder.climb(Decimal(percent), STEPS, held, blind=True)
        assert (after or 0) >= (held or 0)
        held = after


@given(st.integers(1, 99), st.lists(st.floats(-0.9, 0.9), min_size=30, max_size=30))
def test_noise_around_a_rung_moves_it_once(at: int, noise: list[float]) -> None:
    held, changes = None, 0
    for each in noise:
        after = ladder.climb(Decimal(str(at + each)), [at], held, blind=False)
        changes += after != held
        held = after
    assert changes <= 1


@given(money, money, money, st.decimals(0, 50, places=2), st.integers(0, 744))
def test_what_is_committed_is_reserved_first(
    ceiling: Decimal, spent: Decimal, flight: Decimal, per_hour: Decimal, hours: int
) -> None:
    ceiling += 1
    found = Outlook(ceiling, spent, flight, per_hour, Decimal(hours), 30.0)
    assert found.percent() >= min(MOST_PERCENT, 100 * spent / ceiling)
    full = spent + flight + found.committed >= ceiling
    assert (found.percent() >= 100 - Decimal("1e-9")) == full
    assert (found.left(100) == 0) == full


def test_what_was_in_flight_when_a_rung_was_reached_keeps_it() -> None:
    """Requests that are refused are in flight no more: that must not let them in again."""
    before = seen(spent="960", flight="50")
    after = seen(spent="965", flight="0")
    assert before.percent() >= 100
    assert after.percent() < 98
    assert after.percent(Decimal(50)) >= 100


@given(st.decimals("0.01", 10_000, places=2), st.decimals("0.000001", 10, places=6))
def test_a_rate_never_costs_more_than_there_is(per_hour: Decimal, each: Decimal) -> None:
    rate = ladder.rate(per_hour, each)
    assert 3600 * rate * each <= per_hour
    assert 3600 * rate * each >= per_hour * Decimal("0.98")


def test_a_request_that_costs_nothing_has_no_rate() -> None:
    with pytest.raises(ValueError, match="costs nothing"):
        ladder.rate(Decimal(1), Decimal(0))


@given(
    st.decimals("0.1", 100, places=2),
    st.decimals("0.1", 100, places=2),
    st.one_of(st.none(), st.floats(0, 1000)),
    st.one_of(st.none(), st.floats(0, 200)),
)
def test_no_rate_is_raised_while_nobody_sees_what_is_spent(
    previous: Decimal, wanted: Decimal, age: float | None, admitted: float | None
) -> None:
    after = ladder.paced(previous, wanted, age_seconds=age, admitted=admitted, blind=True)
    assert after <= previous
    assert after in {previous, wanted}


@given(st.lists(st.floats(0.92, 1.08), min_size=5, max_size=50))
def test_noise_of_the_wanted_rate_changes_nothing(noise: list[float]) -> None:
    held = Decimal(10)
    for each in noise:
        after = ladder.paced(held, Decimal(str(10 * each)), age_seconds=1e6, admitted=10.0, blind=False)
        assert after == held


def test_a_rate_falls_after_seconds_and_rises_after_a_minute_where_it_binds() -> None:
    held, low, high = Decimal(10), Decimal(5), Decimal(15)
    assert ladder.paced(held, low, age_seconds=5, admitted=10, blind=False) == held
    assert ladder.paced(held, low, age_seconds=11, admitted=10, blind=False) == low
    assert ladder.paced(held, high, age_seconds=59, admitted=10, blind=False) == held
    assert ladder.paced(held, high, age_seconds=61, admitted=10, blind=False) == high
    assert ladder.paced(held, high, age_seconds=1e6, admitted=1, blind=False) == held
    assert ladder.paced(held, 2 * high, age_seconds=1e6, admitted=1, blind=False) == 2 * high
    assert ladder.paced(Decimal(0), low, age_seconds=61, admitted=0, blind=False) == low


@given(
    st.floats(0.05, 5.0),
    st.floats(0.3, 0.95),
    st.floats(1.2, 20.0),
    st.floats(0.7, 1.4),
)
def test_a_throttle_spends_what_is_left_evenly(each: float, spent: float, pressure: float, misfit: float) -> None:
    """More requests than the money pays for, each at another price than is believed at first.

    The money lasts to the end, nothing is over, and the rate hardly moves once the price is known.
    """
    ceiling, hours = 1000.0, 100.0
    left = ceiling * (1 - spent)
    demand = pressure * left / hours / 3600 / each
    held, since, rates, done, believed = None, 0.0, [], spent * ceiling, each * misfit
    step = 300.0
    for number in range(int(hours * 3600 / step)):
        at = number * step
        look = seen(spent=f"{done:.6f}", hours=f"{hours - at / 3600:.6f}")
        wanted = ladder.rate(look.per_hour(100), Decimal(f"{believed:.9f}"))
        admitted = min(demand, float(held)) if held is not None else demand
        after = ladder.paced(held, wanted, age_seconds=at - since, admitted=admitted, blind=False)
        if after != held:
            held, since = after, at
            rates.append(float(after))
        done += min(demand, float(held)) * each * step
        believed += 0.2 * (each - believed)
    assert done <= ceiling * 1.001
    assert done >= ceiling - 0.03 * left
    assert len(rates) <= 40
    settled = rates[2:] or rates
    assert max(settled) <= 1.35 * min(settled)


@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=2, max_size=30))
def test_tiers_of_a_downgrade_do_not_flap(choices: list[set[str]]) -> None:
    named: tuple[str, ...] = ()
    memory: dict[str, datetime] = {}
    for number, needed in enumerate(choices):
        now = NOW + timedelta(seconds=10 * number)
        after, memory = ladder.kept_tiers(named, sorted(needed), memory, now)
        assert needed <= set(after)
        assert set(named) <= set(after)  # all of it within ten minutes: nothing that was named is left out
        named = after
    late = NOW + timedelta(hours=1)
    after, _ = ladder.kept_tiers(named, ["a"], memory, late)
    assert after == ("a",)
