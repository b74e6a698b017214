"""Steps of demand and the time until cost has settled, on series made by hand."""

import pytest

from tierwise.economics.steps import steps


def test_a_step_is_found_where_it_is_and_lasts_until_cost_stays():
    load = [10.0] * 60 + [30.0] * 120
    cost = [1.0] * 60 + [1.0, 1.5, 2.0, 2.5] + [3.0] * 116
    (step,) = steps(load, cost, [1.0] * 180, 60.0)
    assert (step.at_seconds, step.factor, step.seconds) == (3600.0, pytest.approx(3.0), 240.0)


def test_cost_that_has_settled_does_not_count_before_the_objective_is_kept():
    load = [10.0] * 60 + [30.0] * 120
    attained = [1.0] * 60 + [0.5] * 10 + [1.0] * 110
    (step,) = steps(load, [1.0] * 60 + [3.0] * 120, attained, 60.0)
    assert step.seconds == 600.0


def test_slow_change_and_noise_are_no_steps():
    assert steps([10.0 + 0.02 * k for k in range(300)], [1.0] * 300, [1.0] * 300, 60.0) == []
    assert steps([10.0, 11.0] * 100, [1.0] * 200, [1.0] * 200, 60.0) == []


def test_demand_that_goes_back_is_a_second_step():
    load = [10.0] * 40 + [30.0] * 40 + [10.0] * 40
    found = steps(load, [1.0] * 40 + [3.0] * 40 + [1.0] * 40, [1.0] * 120, 60.0)
    assert [(step.at_seconds, round(step.factor, 2)) for step in found] == [(2400.0, 3.0), (4800.0, 0.33)]
    assert [step.seconds for step in found] == [0.0, 0.0]
