"""Requests on their own agree with the iteration level, and with the fluid simulator on the same demand."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tierwise.economics import scenarios
from tierwise.economics.scenarios import NAMESPACE, POLICY
from tierwise.sim.batching import Batcher, Sequence
from tierwise.sim.profiles import profile
from tierwise.sim.replica import Mix, Objective, work_seconds
from tierwise.simulate import agreement, requests
from tierwise.simulate.driver import PlannerLoop
from tierwise.simulate.events import Events
from tierwise.simulate.fluid import FluidClass, FluidTier
from tierwise.simulate.requests import Requests, RequestTraceError
from tierwise.simulate.signals import Observer
from tierwise.simulate.tierload import Arrivals, TierLoad
from tierwise.simulate.traces import SlotTrace

SHARED = Path(os.environ.get("TIERWISE_SHARED", Path(__file__).parents[3] / "shared"))
DATA = SHARED / "data"


@pytest.mark.parametrize("name", ["qwen3-8b/h100", "llama-3.1-70b/4xh100", "qwen3-235b-a22b/8xh200"])
@pytest.mark.parametrize(
    ("rho", "mean", "tail"), [(0.1, 0.02, 0.03), (0.5, 0.03, 0.06), (0.65, 0.04, 0.13), (0.8, 0.1, 0.15)]
)
def test_time_between_tokens_is_that_of_the_iteration_level(name, rho, mean, tail):
    # The closed form leaves out the fixed part of a prefill: so does the iteration level here.
    params = replace(profile(name).params, p0_ms=0.0)
    rate = rho / work_seconds(params, Mix.of(1000, 200))
    t = np.sort(np.random.default_rng(1).uniform(0, 300, int(rate * 300)))
    load, gaps = TierLoad(params), []
    for start in range(0, 300, 30):
        mine = t[(t >= start) & (t < start + 30)]
        whole = np.full(mine.size, 1.0)
        served, _ = load.step(Arrivals(mine, 1000 * whole, 200 * whole, np.zeros(mine.size, dtype=int)), np.ones(30))
        gaps.append(served.gap)
    gaps.append(load.drain().gap)
    batcher, sequences = Batcher(params), [Sequence(1000, 200, float(at)) for at in t]
    for sequence in sequences:
        batcher.advance(sequence.arrival_seconds)
        batcher.submit(sequence)
    batcher.advance(1e6)
    true = np.array([sequence.inter_token_seconds for sequence in sequences])
    ours = np.concatenate(gaps)
    assert ours.size == t.size
    assert ours.mean() == pytest.approx(true.mean(), rel=mean)
    assert np.quantile(ours, 0.95) == pytest.approx(np.quantile(true, 0.95), rel=tail)


def small(requests_a, requests_b, seed=0):
    tiers = (
        FluidTier("own", profile("qwen3-8b/h100").params, price_per_hour=3.0, startup_seconds=25.0),
        FluidTier("far", price_in=1.0, price_out=10.0),
    )
    classes = (
        FluidClass("a", Objective(1.0, 0.05), 1000, {"own": 0.7, "far": 0.9}),
        FluidClass("b", Objective(1.0, 0.05), 1000, {"own": 0.7, "far": 0.9}, {"far": 2.0}),
    )
    return Events(tiers, classes, {"a": requests_a, "b": requests_b}, {"a": ("own", "far")}, seed)


def steady(count, seconds=60.0):
    t = np.linspace(0, seconds, count, endpoint=False)
    return Requests(t, np.full(count, 500.0), np.full(count, 100.0))


def test_a_tier_that_starts_is_passed_over_in_the_order_of_fallback():
    engine = small(steady(600), steady(60))
    engine.scale({"own": 1})
    for _ in range(2):
        slot = engine.step({}, {"a": {"own": 1.0}, "b": {"own": 1.0}}, 30.0)
    engine.finish()
    # It is ready after 25 s: until then a's requests go to the provider, b's have nowhere to go.
    assert engine.short == {"a": 250}
    assert engine.failed == {"b": 25}
    assert slot.tiers["own"].cost == pytest.approx(3.0 * 30 / 3600)
    first, second = engine.flows
    assert first["a", "far"].kept == 250
    assert second["a", "own"].kept == 300
    assert ("b", "far") not in first


def test_tokens_are_paid_with_the_tiers_own_length_of_answers():
    engine = small(steady(0), steady(60))
    slot = engine.step({}, {"b": {"far": 1.0}}, 60.0)
    assert slot.tiers["far"].cost == pytest.approx(60 * (500 * 1.0 + 200 * 10.0) / 1e6)


def test_equal_seeds_give_equal_runs_and_others_differ():
    def kept(seed):
        engine = small(steady(3000), steady(600), seed)
        engine.scale({"own": 1})
        engine.state["own"].ready, engine.state["own"].starting = 1, []
        engine.step({}, {"a": {"own": 0.5, "far": 0.5}, "b": {"own": 1.0}}, 60.0)
        engine.finish()
        return {key: (flow.requests, flow.kept) for key, flow in engine.flows[0].items()}

    assert kept(1) == kept(1)
    assert kept(1) != kept(2)


def test_drawn_requests_have_the_sums_and_the_busiest_ten_seconds_of_the_file():
    trace = SlotTrace(
        60.0, np.array([120.0, 0.0, 61.0]), np.array([12000.0, 0.0, 610.0]), np.array([2400.0, 0.0, 6100.0]),
        np.array([50.0, 0.0, 11.0]),
    )  # fmt: skip
    drawn = requests.drawn(trace, 3)
    minute = (drawn.t // 60).astype(int)
    assert np.bincount(minute, minlength=3).tolist() == [120, 0, 61]
    assert np.bincount((drawn.t[minute == 0] // 10).astype(int)).max() == 50
    assert np.bincount((drawn.t[minute == 2] // 10).astype(int) - 12).max() == 11
    assert drawn.prompt.sum() == pytest.approx(12610, rel=0.02)
    assert drawn.output.sum() == pytest.approx(8500, rel=0.02)
    assert (np.diff(drawn.t) >= 0).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "names no column t_s, prompt_tokens, output_tokens"),
        ("t_s,prompt_tokens,output_tokens\n", "no request after the header"),
        ("t_s,prompt_tokens,output_tokens\n1,2,3\n0.5,2,3\n", "line 3: t_s is before the line above"),
        ("t_s,prompt_tokens,output_tokens\n1,2,3\n2,x,3\n", "line 3: '2,x,3' has no number"),
        ("t_s,prompt_tokens,output_tokens\n1,-2,3\n", "line 2: a value is negative"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, text, words):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(RequestTraceError, match=words):
        requests.read(path)


def test_classes_of_a_file_are_taken_apart(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t_s,class,prompt_tokens,output_tokens\n0,x,1,2\n1,y,3,4\n2,x,5,6\n")
    found = requests.read(path, classes=True)
    assert {name: mine.prompt.tolist() for name, mine in found.items()} == {"x": [1, 5], "y": [3]}


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the reference traces")
@pytest.mark.parametrize(("name", "hours"), [("week-hybrid-claude", (8, 10)), ("week-incluster", (60, 62))])
def test_fluid_and_event_level_agree_on_an_hour_of_a_week(name, hours):
    scenario = scenarios.load(DATA / "scenarios.json", DATA, (name,), hours)[0]
    loop = PlannerLoop(NAMESPACE, scenarios.tiers_of(scenario), scenarios.policy_of(scenario))
    found = agreement.compare(
        scenario.tiers, scenario.classes, scenario.traces, scenario, loop, Observer(NAMESPACE, POLICY),
        first=scenario.slots // 2, slots=scenario.slots // 2,
    )  # fmt: skip
    assert abs(found.cost_percent) <= 2.0
    assert abs(found.attainment_points) <= 2.0
