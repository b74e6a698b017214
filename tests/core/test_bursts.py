from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierwise.core import bursts, demand
from tierwise.core.bursts import Stream
from tierwise.core.demand import History, Measured

NOW = datetime(2026, 11, 26, 9, tzinfo=UTC)


def history(rates, peaks=None, step=60):
    made = History()
    for number, rate in enumerate(rates):
        peak = peaks[number] if peaks is not None else rate
        made = demand.remember(made, Measured(NOW + timedelta(seconds=step * number), rate, peak=peak))
    return made


def stream(rates, peaks=None, *, share=1.0, load=0.01, value=None, seconds=0.0):
    made = history(rates, peaks)
    newest = made.samples[-1]
    return Stream(made.samples, share, load, newest.level, newest.rate, value, seconds)


def planned(streams, price=10.0):
    """Replicas' worth of load that is planned for."""
    level = sum(each.level * each.share * each.load for each in streams)
    return level * bursts.factor(streams, price)


def test_nothing_is_planned_for_nothing():
    assert bursts.factor([], 10.0) == 1.0
    assert bursts.factor([stream([0.0] * 5)], 10.0) == 1.0
    assert bursts.factor([stream([5.0] * 5, share=0.0)], 10.0) == 1.0


def test_a_steady_hour_leaves_what_chance_does():
    many = bursts.factor([stream([1000.0] * 60)], 10.0)
    few = bursts.factor([stream([2.0] * 60)], 10.0)
    assert 1.0 < many < 1.1
    assert many < few < 2.5


def test_long_requests_even_out_what_chance_does():
    short = bursts.factor([stream([5.0] * 60)], 10.0)
    assert bursts.factor([stream([5.0] * 60, seconds=60.0)], 10.0) < short


def test_capacity_is_there_for_bursts_that_come_again_and_again():
    peaks = [200.0 if number % 5 == 0 else 100.0 for number in range(60)]
    assert planned([stream([100.0] * 60, peaks)]) == pytest.approx(2.0, rel=0.01)


def test_one_burst_within_the_hour_is_no_reason_while_it_is_less_than_one_request_in_a_hundred():
    peaks = [100.0] * 60
    peaks[30] = 300.0
    assert planned([stream([100.0] * 60, peaks)]) < 1.3
    peaks[31] = 300.0
    assert planned([stream([100.0] * 60, peaks)]) == pytest.approx(3.0)


def test_capacity_that_is_cheap_for_what_it_keeps_is_there_for_a_single_burst():
    peaks = [100.0] * 60
    peaks[30] = 300.0
    worth_it = stream([100.0] * 60, peaks, value=100.0)
    assert planned([worth_it], price=1.0) == pytest.approx(3.0)
    assert planned([worth_it], price=100.0) < 1.3
    assert planned([worth_it], price=0.0) < 1.3, "a price that is not known is none"


def test_bursts_that_do_not_coincide_are_not_added_up():
    first = stream([100.0] * 60, [300.0 if number % 2 else 100.0 for number in range(60)])
    second = stream([100.0] * 60, [100.0 if number % 2 else 300.0 for number in range(60)])
    both = planned([first, second])
    assert both == pytest.approx(4.0, rel=0.02)
    assert both < planned([first]) + planned([second])


def test_capacity_that_is_dearer_than_what_it_keeps_is_not_planned_for():
    peaks = [2000.0 if number % 10 == 0 else 100.0 for number in range(60)]
    cheap = stream([100.0] * 60, peaks, value=0.5)
    assert planned([replace(cheap, value=50.0)], price=1.0) > 15.0
    assert planned([cheap], price=10.0) < 2.0


def test_yesterdays_bursts_are_scaled_to_todays_level():
    rates = [100.0] * 50 + [50.0] * 12
    peaks = [2 * rate for rate in rates]
    steady = planned([stream([100.0] * 60, [200.0] * 60)])
    assert planned([stream(rates, peaks)]) < 0.85 * steady


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0.0, 500.0), min_size=1, max_size=30),
    extra=st.floats(1.0, 5.0),
    share=st.floats(0.05, 1.0),
    price=st.floats(0.0, 50.0),
)
def test_the_factor_does_not_depend_on_units_and_is_never_below_one(rates, extra, share, price):
    peaks = [extra * rate for rate in rates]
    one = [stream(rates, peaks, share=share, value=5.0)]
    found = bursts.factor(one, price)
    assert found >= 1.0
    # Twice the work per request and half the price of a replica is the same problem.
    assert bursts.factor([replace(each, load=2 * each.load) for each in one], price / 2) == pytest.approx(found)


@settings(max_examples=40, deadline=None)
@given(rates=st.lists(st.floats(1.0, 100.0), min_size=3, max_size=40), lower=st.floats(0.5, 1.0))
def test_a_dearer_replica_never_buys_more(rates, lower):
    one = [stream(rates, [3 * rate for rate in rates], value=20.0)]
    assert bursts.factor(one, 10.0) <= bursts.factor(one, 10.0 * lower) + 1e-9


def test_the_first_minutes_of_a_step_are_no_burst_of_the_new_level():
    stepped = [100.0] * 30 + [200.0] * 40
    steady = [200.0] * 70
    assert planned([stream(stepped)]) == pytest.approx(planned([stream(steady)]), rel=0.02)
    fallen = [200.0] * 30 + [100.0] * 40
    assert planned([stream(fallen)]) == pytest.approx(planned([stream([100.0] * 70)]), rel=0.02)


def test_classes_are_compared_by_time_though_one_of_them_was_not_measured_for_a_while():
    """One is busy when the other is not; three windows of one are missing, and nothing becomes busier by that."""
    odd, even = (stream([150.0 if number % 6 < 3 else 50.0 for number in range(first, first + 60)]) for first in (0, 3))
    gap = replace(even, samples=(*even.samples[:50], *even.samples[53:]))
    assert planned([odd, gap]) == pytest.approx(planned([odd, even]), rel=0.05)


def test_a_class_that_was_measured_between_the_others_windows_counts_with_the_nearest():
    odd, even = (stream([150.0 if number % 6 < 3 else 50.0 for number in range(first, first + 60)]) for first in (0, 3))
    later = [each._replace(time=each.time + timedelta(seconds=9)) for each in even.samples]
    assert planned([odd, replace(even, samples=tuple(later))]) == pytest.approx(planned([odd, even]), rel=0.05)
