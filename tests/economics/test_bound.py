"""The offline programme against every schedule on a grid, and its replay."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tierwise.economics import bench, bound, loads
from tierwise.economics.bound import BoundError
from tierwise.economics.loads import Loads
from tierwise.economics.scenarios import Scenario
from tierwise.sim.replica import Objective, ReplicaParams
from tierwise.simulate.fluid import FluidClass, FluidTier
from tierwise.simulate.traces import SlotTrace

PARAMS = ReplicaParams(10.0, 0.1, 0.05, 10.0, 20.0, 0.0, 1_000_000)


def tiny(floor, quality=(70.0, 80.0), startup=60.0):
    ones = np.ones(3)
    trace = SlotTrace(60.0, 60 * ones, 60 * ones, 60 * ones, 10 * ones)
    each = FluidClass("chat", Objective(None, 0.04), 0.0, dict(zip(("inside", "outside"), quality, strict=True)), {})
    tiers = (FluidTier("inside", PARAMS, 60.0, startup_seconds=startup), FluidTier("outside", price_in=1.0))
    made = Scenario("tiny", "outside", {"chat": floor}, tiers, (each,), {"chat": trace}, {"inside": PARAMS})
    inside = np.array([1.0, 3.0, 1.0])
    money = np.array([120.0, 900.0, 120.0])
    pair = ("chat", "inside")
    have = Loads({"inside": 0.7}, {pair: inside}, {pair: 2 * inside}, {("chat", "outside"): money},
                 {"chat": np.ones(3) / 3}, 3, 60.0)  # fmt: skip
    return made, have


def brute(have, floor, startup_slots, quality):
    """The cheapest schedule on a grid of twelfths of shares; replicas follow from shares, or are held between."""
    best = np.inf
    grid = np.linspace(0, 1, 13)
    load, money = have.mean["chat", "inside"], have.money["chat", "outside"]
    for shares in itertools.product(grid, repeat=3):
        inside = np.array(shares)
        if (inside * quality[0] + (1 - inside) * quality[1]).mean() < floor - 1e-9:
            continue
        need = inside * load
        # A replica may stay for later: each slot's count is its own need or that of any other slot.
        for counts in itertools.product(*[sorted({value for value in need if value >= need[k]}) for k in range(3)]):
            starts = np.maximum(np.diff(counts), 0).sum()
            cost = (60 * np.sum(counts) + 60 * startup_slots * starts + ((1 - inside) * money).sum()) / 3
            best = min(best, cost)
    return best


@pytest.mark.parametrize("floor", [0.0, 75.0, 77.5, 80.0])
@pytest.mark.parametrize("startup", [0.0, 60.0, 120.0])
def test_the_bound_is_the_best_of_all_schedules(floor, startup):
    made, have = tiny(floor, startup=startup)
    found = bound.schedule(made, known=have)
    assert found.usd_per_hour == pytest.approx(brute(have, floor, startup / 60, (70.0, 80.0)), rel=1e-4)


def test_a_floor_holds_over_all_slots_and_not_in_each():
    made, have = tiny(76.0)
    found = bound.schedule(made, known=have)
    inside = found.shares["chat", "inside"]
    assert 70 * inside.mean() + 80 * (1 - inside.mean()) == pytest.approx(76.0, abs=1e-3)
    assert np.ptp(inside) > 0.1


def test_a_floor_in_each_slot_costs_no_less():
    made, have = tiny(76.0)
    always = bound.schedule(made, known=have, each_slot=True)
    inside = always.shares["chat", "inside"]
    assert (70 * inside + 80 * (1 - inside) >= 76.0 - 1e-6).all()
    assert always.usd_per_hour > bound.schedule(made, known=have).usd_per_hour + 1


def test_a_ceiling_gives_the_least_loss():
    made, have = tiny(80.0)
    free = bound.schedule(made, known=have).usd_per_hour
    tight = bound.schedule(made, known=have, ceiling=0.9 * free)
    assert tight.usd_per_hour <= 0.9 * free + 1e-6
    assert 0 < tight.loss < 12.6
    assert bound.schedule(made, known=have, ceiling=free + 1).loss == pytest.approx(0, abs=1e-6)
    with pytest.raises(BoundError, match="nfeasible"):
        bound.schedule(made, known=have, ceiling=1.0)


def test_the_replay_rounds_up_and_keeps_everything(scenario):
    have = loads.loads(scenario)
    burst = bound.schedule(scenario, burst=True, known=have)
    counts = bound.rounded(burst)["inside"]
    assert (counts >= burst.replicas["inside"] - 1e-6).all()
    assert (counts < burst.replicas["inside"] + 1).all()
    assert bound.replay_cost(scenario, burst) >= burst.usd_per_hour
    score = bench.replay_run(scenario, burst)
    assert score.attainment == pytest.approx(100.0)
    assert score.worst_loss <= 1.0 + 1e-6
    # The mean schedule misses some bursts: the accounting can fail.
    mean = bound.schedule(scenario, known=have)
    assert bench.replay_run(scenario, mean).attainment < 99.9
    assert mean.usd_per_hour < burst.usd_per_hour


def test_cost_of_a_replay_counts_starts(scenario):
    have = loads.loads(scenario)
    burst = bound.schedule(scenario, burst=True, known=have)
    free = replace(scenario, tiers=tuple(replace(tier, startup_seconds=0.0) for tier in scenario.tiers))
    counts = bound.rounded(burst)["inside"]
    starts = np.maximum(np.diff(counts), 0).sum()
    more = 4.0 * starts * 120 / 3600 / scenario.hours
    assert bound.replay_cost(scenario, burst) - bound.replay_cost(free, burst) == pytest.approx(more)
    assert starts > 0
