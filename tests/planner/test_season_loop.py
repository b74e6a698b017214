"""A season in the loop: replicas are there before the morning, on the third day and not on the first."""

import math
import random
from typing import Any

import pytest

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.world import Key
from tierwise.sim.profiles import profile
from tierwise.sim.replica import Objective
from tierwise.simulate.driver import UID, PlannerLoop
from tierwise.simulate.fluid import Demand, Fluid, FluidClass, FluidTier, work_seconds
from tierwise.simulate.run import Runner
from tierwise.simulate.signals import Observer

PARAMS = profile("qwen3-8b/h100").params
PROMPT, OUTPUT, SECONDS, DAY, MORNING = 500.0, 200.0, 60.0, 1440, 9 * 60
TIER = FluidTier("large", PARAMS, price_per_hour=28.0, startup_seconds=600.0)
CHAT = FluidClass("chat", Objective(2.0, 0.03), PROMPT, {"large": 0.9})
ONE = 1 / work_seconds(PARAMS, PROMPT, OUTPUT)
"""Requests/s that a replica carries at most."""


def written(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "demo", "uid": UID, "generation": 1}
    return {"apiVersion": "tierwise.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def played(days: int) -> list[tuple[int, float, float]]:
    """By minute: replicas that are ready, requests, those within the objective. The offices open at nine."""
    inside = {
        "image": "vllm/vllm-openai:v0.9.1",
        "replicas": {"min": 1, "max": 20, "startupSeconds": 600},
        "price": {"perReplicaHour": "28"},
    }
    tier = ModelTier.parse(written("ModelTier", "large", {"model": "large", "inCluster": inside}))
    chat = {
        "name": "chat",
        "objective": {"ttftP95": "2s", "interTokenP95": "30ms"},
        "tiers": [{"name": "large", "weight": 100}],
    }
    spec = {"models": ["assistant"], "sensitivity": "Public", "classes": [chat]}
    loop = PlannerLoop(
        "demo", {Key("demo", "large"): tier}, RoutingPolicy.parse(written("RoutingPolicy", "chat", spec))
    )
    fluid = Fluid((TIER,), (CHAT,))
    fluid.state["large"].ready = 1
    runner = Runner(fluid, loop, Observer("demo", "chat"), SECONDS)
    dice, found = random.Random(5), []
    for minute in range(days * DAY):
        busy = MORNING <= minute % DAY < 17 * 60
        rate = ONE * (2.4 if busy else 0.3) * (1 + 0.05 * dice.gauss(0, 1)) + 0.02 * math.sin(minute / 30)
        slot, _ = runner.step({"chat": Demand(60 * rate, PROMPT, OUTPUT, 11 * rate)})
        flow = slot.flows["chat", "large"]
        found.append((slot.tiers["large"].ready, flow.requests, flow.kept))
    return found


@pytest.fixture(scope="module")
def minutes() -> list[tuple[int, float, float]]:
    return played(3)


def half_hour(minutes: list[tuple[int, float, float]], day: int) -> float:
    """Share of the requests of the first half hour of a morning that kept their objective."""
    first = day * DAY + MORNING
    part = minutes[first : first + 30]
    return sum(kept for _, _, kept in part) / sum(requests for _, requests, _ in part)


def test_the_third_morning_is_expected(minutes: list[tuple[int, float, float]]) -> None:
    assert half_hour(minutes, 0) < 0.7, "ten minutes of start-up, and nobody else"
    assert half_hour(minutes, 2) > 0.99


def test_replicas_come_shortly_before_and_not_all_night(minutes: list[tuple[int, float, float]]) -> None:
    nine, noon = 2 * DAY + MORNING, 2 * DAY + 12 * 60
    needed = minutes[noon][0]
    assert needed >= 3
    assert minutes[nine][0] >= 0.7 * needed
    early = [ready for ready, _, _ in minutes[2 * DAY : nine - 40]]
    assert sum(early) / len(early) < 1.5
