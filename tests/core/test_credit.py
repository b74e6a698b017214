"""Credit of a floor that holds on average: earned before it is spent, bounded, and at a price that finds the floor."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import balance, credit, problem, worth
from tierwise.core.credit import Credit
from tierwise.core.problem import ClassLoad, Pair, Problem, Tier, Worth
from tierwise.core.programme import Programme
from tierwise.core.quality import Floor

NOW = datetime(2026, 11, 27, 9, tzinfo=UTC)
SCORES = {"cheap": 0.7, "dear": 0.9}
FLOOR = 0.85


SPAN = (0.7, 0.9)
SWING = credit.swing(FLOOR, *SPAN)
AIM = 10 * 3600 * credit.TARGET_HOURS * SWING
"""Of 10 requests/s."""


def held_with(**fields):
    return Credit(FLOOR, swing=SWING, counted=NOW, **fields)


def counted(before, rates, elapsed=60.0, window=60.0):
    now = NOW if before is None or before.counted is None else before.counted + timedelta(seconds=elapsed)
    return credit.counted(before, FLOOR, SPAN, SCORES, rates, now=now, window_seconds=window)


def test_what_is_better_than_the_floor_is_credit_by_the_request():
    found = counted(held_with(rate=10.0), {"dear": 10.0})
    assert found.points == pytest.approx(10 * 60 * 0.05)
    assert counted(found, {"cheap": 2.0}).points == pytest.approx(10 * 60 * 0.05 - 2 * 60 * 0.15)


def test_a_first_answer_and_one_after_a_gap_earn_nothing_that_was_not_seen():
    assert counted(None, {"dear": 10.0}).points == 0
    assert counted(held_with(rate=10.0), {"dear": 10.0}, elapsed=600.0).points == pytest.approx(10 * 60 * 0.05)
    # Spent it may have been all the time.
    rich = held_with(points=900.0, rate=10.0)
    assert counted(rich, {"cheap": 1.0}, elapsed=600.0).points == pytest.approx(900 - 600 * 0.15)


def test_a_tier_without_a_score_counts_as_none():
    assert counted(held_with(points=100.0, rate=10.0), {"unheard": 1.0}).points == pytest.approx(100 - 60 * FLOOR)


def test_another_floor_begins_anew():
    other = Credit(0.8, swing=0.05, counted=NOW, points=500.0, rate=10.0, price=1.0, since=NOW, priced=NOW, worth=1.0)
    found = counted(other, {"dear": 10.0})
    assert (found.floor, found.points, found.price) == (FLOOR, 0.0, None)


def test_without_a_price_or_credit_the_floor_holds_now():
    assert credit.least(held_with(points=900.0), 10.0) == FLOOR
    assert credit.least(held_with(points=-5.0, price=1.0), 10.0) == FLOOR
    assert credit.least(held_with(points=900.0, price=1.0), 0.0) == FLOOR
    held = held_with(points=720.0, rate=10.0, price=1.0)
    left = 720 - credit.RESERVE * AIM
    spent = left / (10 * 3600 * credit.SPEND_HOURS)
    assert FLOOR - spent - 1e-9 <= credit.least(held, 10.0) <= FLOOR - spent + SWING / 20
    # Where weights move seldom, what is left has to last.
    assert credit.least(held, 10.0, 3600.0) == pytest.approx(FLOOR - left / (10 * 4 * 3600), abs=SWING / 20)
    # The reserve is for bursts.
    assert credit.least(held_with(points=credit.RESERVE * AIM, rate=10.0, price=1.0), 10.0) == FLOOR


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1)), min_size=1, max_size=200), st.integers(10, 90))
def test_a_mix_at_the_least_that_is_allowed_never_overdraws(slots, elapsed):
    """With what is planned for a round old, and demand up to four times of it."""
    held = held_with(rate=10.0, price=1.0)
    total, planned = 0.0, 10.0
    for asked, greed in slots:
        rate = min(asked, 4 * planned)
        low = credit.least(held, planned)
        score = greed * max(low, SCORES["cheap"]) + (1 - greed) * SCORES["dear"]
        share = (score - SCORES["cheap"]) / (SCORES["dear"] - SCORES["cheap"])
        held = counted(held, {"dear": rate * share, "cheap": rate * (1 - share)}, elapsed=elapsed, window=90)
        total += elapsed * rate * (score - FLOOR)
        planned = max(rate, 0.01)
        assert held.points >= -1e-6
        assert total >= held.points - 1e-6  # what was thrown away is no debt


@given(st.lists(st.sampled_from(["cheap", "dear"]), max_size=60), st.floats(0.1, 100))
def test_credit_and_debt_are_bounded(tiers, rate):
    held = held_with(rate=rate, price=1.0)
    bound = rate * 3600 * credit.TARGET_HOURS * SWING
    for tier in tiers:
        held = counted(held, {tier: rate}, elapsed=3600, window=3600)
        assert -bound * (1 + 1e-9) <= held.points <= 3 * bound * (1 + 1e-9)


def priced_at(points, worth=2.0, price=2.0):
    return held_with(points=points, rate=10.0, price=price, since=NOW, priced=NOW, worth=worth)


def test_quality_is_worth_less_the_more_there_is_and_in_the_end_nothing():
    values = [credit.worth(priced_at(AIM * part)) for part in (credit.RESERVE, 0.5, 1, 2, 2.5, 3)]
    assert values == sorted(values, reverse=True)
    assert values[2] == pytest.approx((2.0 * (1 + credit.INDIFFERENT), 2.0 * (1 - credit.INDIFFERENT)))
    assert values[-1] == pytest.approx((0, 0), abs=1e-12)


def test_nothing_above_the_floor_is_bought_at_the_usual_price_but_the_reserve_and_what_is_owed():
    assert credit.worth(priced_at(credit.RESERVE * AIM, worth=100.0))[1] < 2.0
    assert credit.worth(priced_at(0.0))[1] > 2.0
    assert credit.worth(priced_at(-0.1 * AIM))[1] > 2.0


def test_where_bursts_may_not_spend_it_no_reserve_is_bought():
    held = replace(priced_at(0.0), bursts=False)
    assert credit.worth(held)[1] < 2.0
    assert credit.worth(replace(held, points=-0.1 * AIM))[1] > 2.0
    some = replace(held, points=credit.RESERVE * AIM)
    assert credit.least(some, 10.0) < FLOOR


def test_tiers_below_the_floor_relieve_others_while_something_is_left_of_the_reserve():
    def relieves(points, *, before):
        return credit.relieves(priced_at(points * AIM), before=before)

    assert relieves(0.03, before=False)
    assert relieves(0.01, before=True)
    assert not relieves(0.01, before=False), "it does not come and go"
    assert not relieves(0.0, before=True)
    assert not credit.relieves(None, before=True)
    assert not credit.relieves(held_with(points=900.0, rate=10.0), before=True), "no price, nothing to buy it back at"
    nothing = replace(priced_at(900.0), swing=0.0)
    assert not credit.relieves(nothing, before=True), "what no mix can earn again is not spent"


def test_nothing_is_worth_anything_where_no_mix_can_be_both_better_and_worse():
    for span in ((0.9, 0.95), (0.5, 0.8), (FLOOR, FLOOR)):
        assert credit.swing(FLOOR, *span) == 0
    assert credit.worth(Credit(FLOOR, rate=10.0, price=2.0, worth=2.0)) == (0, 0)


def test_a_price_that_changes_for_good_is_followed():
    held = credit.priced(Credit(FLOOR, rate=1.0), 8.0, NOW)
    assert held.worth == held.price == 8.0
    for hour in range(1, 24):
        held = credit.priced(held, 8.0, NOW + timedelta(hours=hour))
    for hour in range(24, 7 * 24):
        held = credit.priced(held, 0.1, NOW + timedelta(hours=hour))
    assert held.price == pytest.approx(0.1, abs=0.03)
    assert held.worth <= 1.2 * held.price


def test_the_first_prices_count_alike_and_one_far_off_later_counts_little():
    held = Credit(FLOOR, rate=1.0)
    for minute, price in enumerate((500.0, 90.0, 90.0, 90.0, 90.0, 8.0, 2.0, 2.0)):
        held = credit.priced(held, price, NOW + timedelta(minutes=minute))
    assert held.price == pytest.approx(4.0)
    for minute in range(8, 24 * 60):
        held = credit.priced(held, 2.0, NOW + timedelta(minutes=minute))
    before = held.price
    held = credit.priced(held, 300.0, NOW + timedelta(days=1))
    assert held.price < 1.01 * before


def simulated(hours, prices, *, on_average):
    """Cost and mean score of a class on two tiers, `dear` costing prices(hour) more per request."""
    held, cost, score, count, lowest = held_with(rate=10.0), 0.0, 0.0, 0, 0.0
    strict = (FLOOR - SCORES["cheap"]) / (SCORES["dear"] - SCORES["cheap"])
    for minute in range(60 * hours):
        price = prices(minute / 60)
        share = strict
        if on_average:
            unit = price / (SCORES["dear"] - SCORES["cheap"])
            low = credit.least(held, 10.0)
            least = max(0.0, (low - SCORES["cheap"]) / (SCORES["dear"] - SCORES["cheap"]))
            below, above = credit.worth(held)
            share = max(least, 1.0 if above > unit else strict if below > unit else 0.0)
            held = credit.priced(held, unit, NOW + timedelta(minutes=minute))
            held = counted(held, {"dear": 10 * share, "cheap": 10 * (1 - share)})
        cost += share * price
        score += SCORES["cheap"] + share * (SCORES["dear"] - SCORES["cheap"])
        count += 1
        lowest = min(lowest, score - count * FLOOR)
    return cost / count, score / count, lowest


@pytest.mark.parametrize("period", [2, 4, 8])
def test_quality_moves_to_hours_in_which_it_is_cheap(period):
    def prices(hour):
        return 1 + 0.5 * math.sin(2 * math.pi * hour / period)

    always, _, _ = simulated(96, prices, on_average=False)
    found, mean, lowest = simulated(96, prices, on_average=True)
    assert found < 0.95 * always
    assert FLOOR - 1e-9 <= mean < FLOOR + 0.005
    assert lowest > -1e-6  # never in debt


def test_where_the_price_stands_still_nothing_is_lost():
    always, _, _ = simulated(96, lambda _hour: 1.0, on_average=False)
    found, mean, _ = simulated(96, lambda _hour: 1.0, on_average=True)
    assert mean >= FLOOR - 1e-9
    assert found < 1.02 * always


def test_a_move_of_quality_has_to_be_worth_one():
    """At the floor between both prices; all of one tier beyond them."""
    key = ("n", "p", "c")

    def score(unit):
        stated = two_tiers(10.0, 0.75, token=unit * 0.2, worth=Worth(0.8, 1.2, 0.8))
        found = balance.solve(stated)
        return sum(share * {"inside": 0.7, "provider": 0.9}[tier] for tier, share in found.shares[key].items())

    assert score(0.7) == pytest.approx(0.9)
    assert score(1.0) == pytest.approx(0.8)
    assert score(1.3) == pytest.approx(0.75)  # what the floor of the moment allows


def two_tiers(rate, floor, *, replicas=4.0, token=0.01, worth=None):
    if worth is not None:
        inside, tier = Pair("inside", score=0.7), Tier("inside")
    else:
        inside, tier = Pair("inside", utilisation=0.2, limit=0.8, score=0.7), Tier("inside", replicas, 0, 50)
    pairs = (inside, Pair("provider", cost_per_request=token, score=0.9))
    load = ClassLoad(("n", "p", "c"), rate, pairs, Floor(value=floor), worth=worth)
    return Problem({"inside": tier, "provider": Tier("provider")}, (load,))


@settings(max_examples=60)
@given(st.floats(0.5, 50), st.floats(0.71, 0.88), st.floats(0.5, 20), st.floats(0.001, 0.05))
def test_the_price_of_quality_is_what_a_little_less_of_it_saves(rate, floor, price, token):
    stated = two_tiers(rate, floor, replicas=price, token=token)
    key = stated.classes[0].key
    found = worth.prices(stated, {key: Floor(value=floor)})[key]

    def cost(value):
        ready = tuple(problem.usable(load) for load in two_tiers(rate, value, replicas=price, token=token).classes)
        return Programme(stated, ready, exact=False).model.solve(time_limit_seconds=1, relative_gap=0).objective

    saved = (cost(floor) - cost(floor - 1e-4)) / 1e-4 / 3600 / rate
    assert found == pytest.approx(max(0.0, saved), rel=1e-3, abs=1e-6)


def test_who_asks_for_no_price_and_who_has_no_demand_gets_none():
    stated = two_tiers(1.0, 0.8)
    assert worth.prices(stated, {}) == {}
    assert worth.prices(two_tiers(0.0, 0.8), {("n", "p", "c"): Floor(value=0.8)}) == {}
    # No mix reaches it: at no price.
    assert worth.prices(two_tiers(1.0, 0.95), {("n", "p", "c"): Floor(value=0.95)}) == {}


def test_a_shortage_is_no_price():
    key = ("n", "p", "c")
    stated = two_tiers(10.0, 0.8)
    full = replace(stated, tiers=stated.tiers | {"provider": Tier("provider", requests_limit=1.0)})
    assert worth.prices(stated, {key: Floor(value=0.8)})
    assert worth.prices(full, {key: Floor(value=0.8)}) == {}


def test_a_trickle_has_the_price_of_a_stream():
    key = ("n", "p", "c")
    found = [worth.prices(two_tiers(rate, 0.8), {key: Floor(value=0.8)})[key] for rate in (1e-5, 10.0)]
    assert found[0] == pytest.approx(found[1], rel=0.05)
