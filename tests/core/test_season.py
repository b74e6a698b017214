"""A daily season: found where days are alike, of no effect where they are not."""

import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import demand, season
from tierwise.core.demand import History, Measured
from tierwise.core.season import Season

MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
LEAD = 300.0


def office(minute):
    """20 requests/s, from nine to five 100."""
    return 100.0 if 9 * 60 <= minute % 1440 < 17 * 60 else 20.0


def noisy(rate, dice, spread=0.05):
    return max(0.0, rate * (1 + spread * dice.gauss(0, 1)))


def lived(rates, start=MIDNIGHT, found=None):
    """The season after these minutes."""
    made = found if found is not None else Season()
    for minute, rate in enumerate(rates):
        made = season.seen(made, start + timedelta(minutes=minute + 1), rate, 60.0)
    return made


def days(count, shape, seed=1):
    dice = random.Random(seed)
    return [noisy(shape(minute), dice) for minute in range(round(1440 * count))]


def test_days_that_are_alike_are_a_season_after_two_and_before_that_they_are_none():
    assert not lived(days(1, office)).holds
    assert lived(days(2, office)).holds
    smooth = days(2, lambda minute: 60 - 40 * math.cos(2 * math.pi * minute / 1440))
    assert lived(smooth).holds


def test_what_only_chance_changes_is_no_season():
    assert not lived(days(5, lambda _: 50.0)).holds
    dice = random.Random(3)
    level, walk = 50.0, []
    for _ in range(5 * 144):
        level = min(200.0, max(10.0, level * math.exp(0.1 * dice.gauss(0, 1))))
        walk += [level] * 10
    assert not lived(walk).holds


def test_days_that_stop_being_alike_are_a_season_no_more():
    made = lived(days(3, office))
    assert made.holds
    later = lived(days(2, lambda minute: office(minute + 400), seed=2), MIDNIGHT + timedelta(days=3), made)
    assert not later.holds


def test_the_rise_is_known_before_it_comes():
    made = lived(days(3.375, office))
    eight = MIDNIGHT + timedelta(days=3, hours=8)
    assert season.ahead(made, eight, 20.0, LEAD) < 25.0
    # Nine o'clock, less the start-up.
    assert season.ahead(made, eight + timedelta(minutes=55), 20.0, LEAD) > 90.0
    # A day that is half as busy.
    assert season.ahead(made, eight + timedelta(minutes=55), 10.0, LEAD) == pytest.approx(50.0, rel=0.1)
    # Nobody plans for what has passed.
    assert season.ahead(made, MIDNIGHT + timedelta(days=3, hours=17, minutes=10), 20.0, LEAD) < 25.0


def test_traffic_that_sleeps_at_night_is_expected_in_the_morning():
    made = lived([0.0 if office(minute) < 50 else 100.0 for minute in range(3 * 1440)])
    assert made.holds
    assert season.ahead(made, MIDNIGHT + timedelta(days=3, hours=8, minutes=57), 0.0, LEAD) > 80.0
    assert season.ahead(made, MIDNIGHT + timedelta(days=3, hours=3), 0.0, LEAD) == 0.0


def test_a_gap_is_no_mean_and_clocks_that_go_back_do_no_harm():
    made = lived(days(2, office))
    after = season.seen(made, MIDNIGHT + timedelta(days=9), 5000.0, 60.0)
    assert after.means == made.means
    assert season.seen(after, MIDNIGHT, 5000.0, 60.0).means == made.means


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=1, max_size=400), st.floats(0, 5000), st.floats(0, 7200))
def test_it_says_at_most_twice_what_was_ever_seen(rates, level, lead):
    made = lived([rate for rate in rates for _ in range(10)])
    found = season.ahead(made, MIDNIGHT + timedelta(minutes=10 * len(rates)), level, lead)
    assert 0.0 <= found <= 2 * max(rates) + 1e-9


@pytest.mark.parametrize("seconds", [15, 60])
def test_the_forecast_is_ahead_of_the_morning_and_not_without_a_season(seconds):
    steps = round(86400 / seconds)

    def forecast(count, shape):
        dice, made = random.Random(1), History()
        for number in range(round(count * steps)):
            at = MIDNIGHT + timedelta(seconds=seconds * (number + 1))
            rate = noisy(shape(number * seconds / 60), dice)
            made = demand.remember(made, Measured(at, rate), held_seconds=900)
        return demand.forecast(made, window_seconds=900, lead_seconds=LEAD)

    before_nine = (8 + 55 / 60) / 24
    found = forecast(2 + before_nine, office)
    assert found.level == pytest.approx(20, rel=0.1)
    assert found.ahead > 80
    assert forecast(1 + before_nine, office).ahead < 25, "the first day says nothing yet"
    assert forecast(2 + before_nine, lambda _: 20.0).ahead < 25
