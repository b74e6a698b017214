"""A floor that holds on average, over a real loop: quality moves to cheap hours, and nobody is ever owed any.

Scores are summed up from what the engine answered, not from what the planner thinks.
"""

import itertools
import math
from dataclasses import replace

import pytest

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import situation, state
from tierwise.core.hold import Hold
from tierwise.core.memory import LoopMemory
from tierwise.core.world import Key
from tierwise.sim.replica import Objective
from tierwise.simulate.driver import UID, PlannerLoop
from tierwise.simulate.fluid import Demand, Fluid, FluidClass, FluidTier
from tierwise.simulate.run import Runner
from tierwise.simulate.signals import Observer

SECONDS, HOURS = 60.0, 24
FLOOR = 0.86
SCORES = {"light": 0.80, "large": 0.90}
TIERS = (FluidTier("light", price_in=0.2, price_out=1.0), FluidTier("large", price_in=1.0, price_out=10.0))
CLASSES = (FluidClass("chat", Objective(), 1000.0, SCORES),)


def written(kind, name, spec):
    metadata = {"name": name, "namespace": "demo", "uid": UID, "generation": 1}
    return {"apiVersion": "tierwise.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def provider(tier):
    price = {"inputPerMillionTokens": str(tier.price_in), "outputPerMillionTokens": str(tier.price_out)}
    return ModelTier.parse(
        written(
            "ModelTier",
            tier.name,
            {
                "model": tier.name,
                "quality": [{"task": "chat", "score": str(SCORES[tier.name])}],
                "external": {"url": f"https://{tier.name}.example/v1", "price": price},
            },
        )
    )


def policy(holds):
    quality = {"minScore": str(FLOOR)} | ({"holds": holds} if holds else {})
    tiers = [{"name": "light", "weight": 40}, {"name": "large", "weight": 60}]
    return RoutingPolicy.parse(
        written(
            "RoutingPolicy",
            "chat",
            {
                "models": ["assistant"],
                "sensitivity": "Public",
                "classes": [{"name": "chat", "task": "chat", "quality": quality, "tiers": tiers}],
            },
        )
    )


def demand(slot):
    """Answers are three times as long in the dearest hour as in the cheapest, with a period of six hours."""
    output = 300.0 * (1 + 0.5 * math.sin(2 * math.pi * slot / 360))
    return {"chat": Demand(requests=600.0, prompt=500.0, output=output, peak=110.0)}


class Run:
    """A loop over the fluid engine, with what clients got."""

    def __init__(self, holds):
        self.fluid = Fluid(TIERS, CLASSES)
        self.loop = PlannerLoop("demo", {Key("demo", tier.name): provider(tier) for tier in TIERS}, policy(holds))
        self.runner = Runner(self.fluid, self.loop, Observer("demo", "chat"), SECONDS)
        self.cost = 0.0
        self.scores = []  # per slot: requests, sum of scores

    def go(self, slots, start=0):
        for at in range(start, start + slots):
            slot, _ = self.runner.step(demand(at))
            self.cost += slot.cost
            flows = [(tier, flow.requests) for (_, tier), flow in slot.flows.items()]
            count = sum(requests for _, requests in flows)
            self.scores.append((count, sum(SCORES[tier] * requests for tier, requests in flows)))
        return self

    @property
    def surplus(self):
        """After each slot: sum of scores less the floor's, per request of a slot."""
        return list(itertools.accumulate((score - FLOOR * count) / count for count, score in self.scores))


@pytest.fixture(scope="module")
def runs():
    return {holds: Run(holds).go(HOURS * 60) for holds in (None, "OnAverage")}


def test_it_is_cheaper_and_keeps_the_floor_at_every_moment_for_all_requests_so_far(runs):
    always, average = runs[None], runs["OnAverage"]
    assert average.cost < 0.95 * always.cost
    assert min(average.surplus) >= -1e-6
    assert sum(score for _, score in average.scores) >= FLOOR * sum(count for count, _ in average.scores)


def test_mixes_are_worse_than_the_floor_only_there(runs):
    below = {holds: sum(score < FLOOR * count - 1e-6 for count, score in run.scores) for holds, run in runs.items()}
    assert below[None] == 0
    assert below["OnAverage"] > 60


def test_where_its_price_stands_still_no_quality_is_bought(monkeypatch):
    """No burst may spend any here: nothing lists Saturated, and no tier is saturated."""
    calm = demand(0)
    monkeypatch.setitem(globals(), "demand", lambda _slot: calm)
    run = Run("OnAverage").go(120)
    assert max(run.surplus) < 0.1


def test_always_is_the_default(runs):
    plain, said = runs[None], Run("Always").go(120)
    assert said.scores == plain.scores[:120]


def test_a_restart_begins_without_credit():
    run = Run("OnAverage").go(300)
    assert run.surplus[-1] > 0.5
    run.loop.memory = LoopMemory()
    run.scores = []
    run.go(600, start=300)
    # It may finish a move that it did not begin, for a round or two: nothing has been measured yet.
    assert min(run.surplus) > -0.1
    assert run.surplus[-1] >= -1e-6


def test_signals_that_are_gone_earn_nothing_and_move_nothing():
    run = Run("OnAverage").go(300)
    run.runner.silent = True
    run.go(2, start=300)  # the last answer is looked at once more
    before = run.loop.memory.classes["demo", "chat", "chat"].credit
    run.go(8, start=302)
    assert run.loop.memory.classes["demo", "chat", "chat"].credit == before
    weights = run.loop.wanted().weights
    run.go(10, start=310)
    assert run.loop.wanted().weights == weights


def test_a_move_says_what_quality_is_worth():
    run = Run("OnAverage")
    texts = set()
    for at in range(600):
        run.go(1, start=at)
        outcome = run.loop.decision.classes["demo", "chat", "chat"]
        if outcome.moved:
            texts.add(outcome.message.rpartition("namespace")[2])
            assert outcome.binding == "Floor" or outcome.reason != "CheaperMix"
    assert any("worth" in text and "more where floors hold on average" in text for text in texts)
    assert any("worth" in text and "less where floors hold on average" in text for text in texts)


def view_of(run):
    """The namespace as the loop sees it now."""
    loop = run.loop
    world = loop.world(run.fluid.now, run.runner.newest, run.fluid.state)
    return situation.view(world, loop.memory, "demo", loop.settings)


def test_while_money_is_short_no_quality_is_bought_by_anybody():
    run = Run("OnAverage").go(300)
    seen = view_of(run)
    assert all(load.worth is not None for load in state.state(seen).classes)
    key = ("demo", "chat", "chat")
    for hold in (Hold(share=0.9), Hold(waiting=frozenset({("demo", "other", "one")})), Hold(waiting=frozenset({key}))):
        assert all(load.worth is None for load in state.state(replace(seen, hold=hold)).classes)
    # A rung that is reached while the money lasts takes nothing away.
    lasting = state.state(replace(seen, hold=Hold(downgraded=frozenset({key}))))
    assert all(load.worth is not None for load in lasting.classes)


@pytest.mark.parametrize("change", [{"holds": "Always"}, {"minScore": "0.89"}])
def test_another_promise_holds_at_once(change):
    run = Run("OnAverage").go(300)
    assert view_of(run).classes[0].floor.value < FLOOR
    changed = run.loop.policy.manifest()
    changed["spec"]["classes"][0]["quality"] |= change
    run.loop.policy = RoutingPolicy.parse(changed)
    seen = view_of(run)
    assert seen.classes[0].floor.value == float(change.get("minScore", FLOOR))
    assert state.state(seen).classes[0].worth is None


def test_what_is_owed_is_made_up_for():
    run = Run("OnAverage").go(300)
    key = ("demo", "chat", "chat")
    entry = run.loop.memory.classes[key]
    owed = replace(entry, credit=replace(entry.credit, points=-500.0))
    run.loop.memory = replace(run.loop.memory, classes={key: owed})
    run.go(240, start=300)
    assert run.loop.memory.classes[key].credit.points > -50
