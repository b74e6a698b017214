"""What a saturated tier passed on is none of its load: learnt by the loop in both simulators, limit and all."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import capacity
from tierwise.core.signals import Signals
from tierwise.core.world import Key
from tierwise.sim.profiles import profile
from tierwise.sim.replica import Objective
from tierwise.simulate.driver import START, PlannerLoop
from tierwise.simulate.events import Events
from tierwise.simulate.fluid import Demand, Fluid, FluidClass, FluidTier, Guard, work_seconds
from tierwise.simulate.requests import RequestFeed, Requests
from tierwise.simulate.run import Runner
from tierwise.simulate.signals import Observer

PARAMS = profile("qwen3-8b/h100").params
PROMPT, OUTPUT, REPLICAS, SECONDS, SLOTS = 500.0, 200.0, 2, 60.0, 90
INSIDE = FluidTier("inside", PARAMS, price_per_hour=3.0, startup_seconds=30.0)
OUTSIDE = FluidTier("outside", price_in=1.0, price_out=10.0)
CHAT = FluidClass("chat", Objective(2.0, 0.03), PROMPT, {"inside": 0.7, "outside": 0.8})
ALL = REPLICAS / work_seconds(PARAMS, PROMPT, OUTPUT)
"""Requests/s that the replicas carry at most."""
TRUE = ALL / REPLICAS * capacity.work_units(PROMPT, OUTPUT)


def load(slot):
    """Requests/s of a minute, in its busiest ten seconds and in the rest: it varies, else little can be learnt."""
    calm = ALL * (0.5 - 0.3 * math.cos(slot / 4))
    return 1.5 * calm, calm


def count(slot):
    """Requests of a minute."""
    burst, calm = load(slot)
    return 10 * burst + 50 * calm


class Deaf(Observer):
    """The defect: what arrives at a tier is taken for its load."""

    def signals(self, *args) -> Signals:
        found = super().signals(*args)
        classes = {
            key: {
                tier: replace(each, taken_rate=each.request_rate, taken_peak_rate=each.peak_rate)
                for tier, each in by_tier.items()
            }
            for key, by_tier in found.classes.items()
        }
        return replace(found, classes=classes)


class Minutes:
    """As slots."""

    def demand(self, slot):
        return {"chat": Demand(count(slot), PROMPT, OUTPUT, 10 * load(slot)[0])}


def drawn(seed):
    """The same, request by request."""
    source = np.random.default_rng(seed)
    times = []
    for slot in range(SLOTS):
        burst, calm = load(slot)
        start = SECONDS * slot
        times += [start + 10 * source.random(round(10 * burst)), start + 10 + 50 * source.random(round(50 * calm))]
    t = np.sort(np.concatenate(times))
    return Requests(t, np.full(t.size, PROMPT), np.full(t.size, OUTPUT))


def loop():
    """Weights and replicas stand still; what is learnt is the limit, and the limit is what is taken."""

    def made(name, **kind):
        spec = {"model": "m", "clearance": "Public", **kind}
        return ModelTier.parse({"metadata": {"name": name, "namespace": "n"}, "spec": spec})

    tiers = {
        Key("n", "inside"): made(
            "inside",
            inCluster={
                "image": "i:1",
                "price": {"currency": "USD", "perReplicaHour": "3"},
                "replicas": {"min": REPLICAS, "max": REPLICAS},
            },
        ),
        Key("n", "outside"): made(
            "outside",
            external={
                "url": "https://p.example/v1",
                "price": {"currency": "USD", "inputPerMillionTokens": "1", "outputPerMillionTokens": "10"},
            },
        ),
    }
    policy = RoutingPolicy.parse(
        {
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {
                "models": ["m"],
                "sensitivity": "Public",
                "referenceTier": "inside",
                "rebalance": {"mode": "Manual"},
                "classes": [
                    {
                        "name": "chat",
                        "tiers": [{"name": "inside", "weight": 100}, {"name": "outside", "weight": 0}],
                        "objective": {"ttftP95": "2s", "interTokenP95": "30ms"},
                        "fallback": {"when": ["ConnectFailure", "Saturated"], "attempts": 2},
                    }
                ],
            },
        }
    )
    return PlannerLoop("n", tiers, policy, autoscale=False)


def played(kind, observer, seed=7):
    """The loop after an hour and a half, and what went elsewhere in its last minute."""
    if kind == "fluid":
        engine, feed = Fluid((INSIDE, OUTSIDE), (CHAT,)), Minutes()
    else:
        requests = {"chat": drawn(seed)}
        engine, feed = Events((INSIDE, OUTSIDE), (CHAT,), requests), RequestFeed(requests, SECONDS)
    engine.state["inside"].ready = REPLICAS
    driven = loop()
    runner = Runner(engine, driven, observer("n", "p"), SECONDS)
    for at in range(SLOTS):
        slot, _ = runner.step(feed.demand(at))
    return driven, slot, runner.newest


def learnt(kind, observer, seeds):
    """Saturation as it was learnt, in multiples of the true one."""
    runs = [played(kind, observer, seed)[0] for seed in seeds]
    return sorted(driven.memory.tiers["n", "inside"].capacity.saturation / TRUE for driven in runs)


def test_requests_by_chance_are_learnt_from_as_well():
    """One draw may mislead by more than the usual, as its limit follows what is learnt."""
    found = learnt("events", Observer, range(7, 12))
    assert found[2] == pytest.approx(1, rel=0.05)
    assert found[-1] < 1.15
    assert learnt("events", Deaf, range(7, 10))[1] > 1.1


@pytest.mark.parametrize("kind", ["fluid", "events"])
def test_a_tier_that_is_relieved_is_learnt_to_be_as_large_as_it_is(kind):
    driven, slot, signals = played(kind, Observer, seed=8)
    known, last = driven.memory.tiers["n", "inside"].capacity, count(SLOTS - 1)
    assert slot.passed["chat", "inside", "outside"] > 0.1 * last, "it is overloaded"
    assert known.saturation == pytest.approx(TRUE, rel=0.05)
    assert known.idle_inter_token_seconds == pytest.approx(PARAMS.a_ms / 1e3, rel=0.05)
    deaf, _, _ = played(kind, Deaf, seed=8)
    assert deaf.memory.tiers["n", "inside"].capacity.saturation > 1.1 * TRUE
    # Each request is demand once, where it arrived.
    seen = signals.classes["n", "p", "chat"]
    assert seen["inside"].request_rate.value == pytest.approx(last / SECONDS, rel=0.01)
    assert seen["outside"].request_rate.value == 0
    away = slot.passed["chat", "inside", "outside"] / SECONDS
    assert signals.tiers["n", "inside"].passed_rate.value == pytest.approx(away)
    assert seen["outside"].taken_rate.value == pytest.approx(away)
    assert seen["inside"].taken_rate.value == pytest.approx(last / SECONDS - away, rel=0.01)
    # Learnt before the last minute.
    sample = driven.memory.classes["n", "p", "chat"].history.samples[-1]
    assert sample.rate == pytest.approx(count(SLOTS - 2) / SECONDS, rel=0.01)


def test_the_busiest_seconds_are_those_of_what_was_taken():
    """Of a burst most is passed on: then the calm is busier than the burst was."""
    fluid = Fluid((INSIDE, OUTSIDE), (CHAT,))
    fluid.state["inside"].ready = 1
    fluid.guard = Guard({"inside": 8}, {"chat": {"inside": "outside"}})
    demand = Minutes().demand(12)
    slot = fluid.step(demand, {"chat": {"inside": 1.0}}, SECONDS)
    burst, _ = load(12)
    flow, away = slot.flows["chat", "inside"], slot.flows["chat", "outside"]
    assert flow.requests + away.requests == pytest.approx(count(12))
    assert flow.requests / 6 <= slot.peaks["chat", "inside"] < 10 * burst / 2
    assert slot.peaks["chat", "outside"] <= 10 * burst
    seen = Observer("n", "p").signals(START, fluid, slot, demand).classes["n", "p", "chat"]["inside"]
    assert seen.peak_rate.value == pytest.approx(burst)
    assert seen.taken_peak_rate.value == pytest.approx(slot.peaks["chat", "inside"] / 10)
