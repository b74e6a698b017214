import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import demand, shift
from tierwise.core.demand import History, Measured

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)


def fallen(rates, step=60.0, window=60.0):
    return shift.fallen([NOW + timedelta(seconds=step * number) for number in range(len(rates))], rates, window)


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
        found = fallen([100.0] * 40 + [50.0] * after)
        assert found == (40 if after >= 5 else None)
        found = fallen(noisy([100.0] * 40 + [50.0] * after))
        assert found in ((40, 41) if after >= 5 else (None,))


def test_a_rise_is_none():
    assert all(fallen([100.0] * 40 + [200.0] * after) is None for after in range(12))


def test_what_comes_and_goes_is_no_fall():
    bursts = ([100.0] * 8 + [300.0] * 2) * 6
    assert all(fallen(bursts[:count]) is None for count in range(1, 60))
    # The calm of six minutes has been there before.
    assert fallen([300.0] * 20 + [100.0] * 6 + [300.0] * 20 + [100.0] * 6) is None


def test_without_enough_before_nothing_is_told():
    assert fallen([100.0] * 10 + [50.0] * 5) is None
    assert fallen([]) is None


@given(st.lists(st.floats(100.0, 109.0), min_size=1, max_size=60))
def test_a_level_that_moves_little_never_falls(rates):
    assert fallen(rates) is None


@pytest.mark.parametrize("seconds", [10, 15, 60])
def test_the_level_is_there_within_minutes_of_a_fall(seconds):
    before, after = (round(length / seconds) for length in (3600, 360))
    assert forecast(noisy([100.0] * before + [50.0] * after), seconds).level == pytest.approx(50, rel=0.1)
