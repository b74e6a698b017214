import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import demand, shift
from tierwise.core.demand import History, Measured

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)


def since(rates, step=60.0, window=60.0):
    return shift.since([NOW + timedelta(seconds=step * number) for number in range(len(rates))], rates, window)


def forecast(rates, step=60):
    made = History()
    for number, rate in enumerate(rates):
        made = demand.remember(made, Measured(NOW + timedelta(seconds=step * number), rate), held_seconds=900)
    return demand.forecast(made, window_seconds=900, lead_seconds=360)


def noisy(rates, seed=1):
    dice = random.Random(seed)
    return [rate * (1 + 0.08 * dice.gauss(0, 1)) for rate in rates]


def test_a_fall_is_one_once_it_has_lasted():
    for after in range(1, 12):
        found = since([100.0] * 40 + [50.0] * after)
        assert found == (40 if after >= 5 else None)
        found = since(noisy([100.0] * 40 + [50.0] * after))
        assert found in ((40, 41) if after >= 5 else (None,))


def test_a_rise_is_one_once_it_has_lasted():
    for before in (100.0, 0.0):
        for after in range(1, 12):
            found = since([before] * 40 + [200.0] * after)
            assert found == (40 if after >= 4 else None)
            found = since(noisy([before] * 40 + [200.0] * after))
            assert found in ((40, 41, 42) if after >= 6 else (40, 41, None))


def test_of_two_shifts_the_later_one_counts():
    assert since([100.0] * 40 + [200.0] * 10 + [50.0] * 5) == 50
    assert since([100.0] * 40 + [50.0] * 10 + [200.0] * 4) == 50


def test_what_comes_and_goes_is_no_shift():
    bursts = ([100.0] * 8 + [300.0] * 2) * 6
    assert all(since(bursts[:count]) is None for count in range(1, 60))
    # Bursts of six minutes, and a calm of six, have been there before.
    assert since([100.0] * 20 + [300.0] * 3 + [100.0] * 20 + [300.0] * 6) is None
    assert since([300.0] * 20 + [100.0] * 6 + [300.0] * 20 + [100.0] * 6) is None


def test_without_enough_before_nothing_is_told():
    assert since([100.0] * 10 + [50.0] * 5) is None
    assert since([]) is None


@given(st.lists(st.floats(100.0, 109.0), min_size=1, max_size=60))
def test_a_level_that_moves_little_never_shifts(rates):
    assert since(rates) is None


@pytest.mark.parametrize("seconds", [10, 15, 60])
def test_the_level_is_there_within_minutes_of_a_fall(seconds):
    before, after = (round(length / seconds) for length in (3600, 360))
    assert forecast(noisy([100.0] * before + [50.0] * after), seconds).level == pytest.approx(50, rel=0.1)


@pytest.mark.parametrize("seconds", [10, 15, 60])
def test_the_level_is_there_within_minutes_of_a_rise_and_a_step_is_no_trend(seconds):
    before, after = (round(length / seconds) for length in (3600, 360))
    found = forecast(noisy([100.0] * before + [200.0] * after), seconds)
    assert found.level == pytest.approx(200, rel=0.1)
    assert found.ahead == pytest.approx(found.level, rel=0.05)
