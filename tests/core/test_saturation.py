"""Who relieves a saturated tier, when it is saturated, and how many replicas that makes worth while."""

from datetime import UTC, datetime, timedelta

import pytest

from tierwise.api.in_cluster import InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import bursts, capacity, engines, inflight, routing
from tierwise.core.bursts import Stream
from tierwise.core.capacity import Capacity, Observation
from tierwise.core.demand import Sample

NOW = datetime(2026, 1, 5, tzinfo=UTC)


def inside(name, score=None, clearance="Restricted", **more):
    spec = {
        "model": "m",
        "clearance": clearance,
        "inCluster": {"image": "i:1", "replicas": {"min": 1, "max": 1}, **more},
    }
    return made(name, spec, score)


def outside(name, score=None, clearance="Internal"):
    return made(name, {"model": "m", "clearance": clearance, "external": {"url": "https://p.example/v1"}}, score)


def made(name, spec, score):
    if score is not None:
        spec["quality"] = [{"task": "qa", "score": score}]
    return ModelTier.parse({"metadata": {"name": name, "namespace": "n"}, "spec": spec})


def policy(*names, when=("ConnectFailure", "Saturated"), attempts=2, order=None, quality=None, sensitivity="Public"):
    fallback = {"when": list(when), "attempts": attempts, **({"order": order} if order else {})}
    entry = {"name": "c", "task": "qa", "tiers": [{"name": name} for name in names], "fallback": fallback}
    if quality is not None:
        entry["quality"] = quality
    spec = {"models": ["m"], "sensitivity": sensitivity, "classes": [entry], "referenceTier": names[-1]}
    return RoutingPolicy.parse({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})


def relieved(found, tiers, allowed=None):
    tiers = {tier.metadata.name: tier for tier in tiers}
    return routing.relieved_by(found, found.spec.classes[0], tiers, tuple(tiers) if allowed is None else allowed)


def test_the_next_tier_relieves_an_in_cluster_one_and_nobody_relieves_a_provider():
    assert relieved(policy("small", "far"), [inside("small"), outside("far")]) == {"small": "far"}
    assert relieved(policy("small", "far", when=["ConnectFailure"]), [inside("small"), outside("far")]) == {}
    assert relieved(policy("small", "far", attempts=1), [inside("small"), outside("far")]) == {}


def test_a_floor_is_relieved_by_tiers_that_are_no_worse():
    tiers = [inside("small", "0.7"), inside("large", "0.9"), outside("far", "0.8")]
    floor = {"minScore": "0.75"}
    assert relieved(policy("small", "large", "far", quality=floor), tiers) == {"small": "large"}
    # On average those are enough that keep the floor alone, in the user's order or not.
    floor["holds"] = "OnAverage"
    assert relieved(policy("small", "large", "far", quality=floor), tiers) == {"small": "large", "large": "far"}
    named = policy("small", "large", "far", quality=floor, order=["small", "large", "far"])
    assert relieved(named, tiers) == {"small": "large"}
    # What is not known is no better.
    assert relieved(policy("small", "far", quality=floor), [inside("small", "0.7"), outside("far")]) == {}


def test_a_session_or_a_picker_is_not_relieved():
    picked = inside("small", endpointPickerRef={"name": "picker", "port": 9002})
    assert relieved(policy("small", "far"), [picked, outside("far")]) == {}


def test_who_is_not_cleared_relieves_nobody_and_where_a_budget_saves_requests_wait():
    found = policy("small", "far", sensitivity="Confidential")
    tiers = {tier.metadata.name: tier for tier in (inside("small"), outside("far"))}
    plan = routing.plan_attempts(found, found.spec.classes[0], tiers, Sensitivity.CONFIDENTIAL)
    assert plan.tiers == ("small",)
    assert not any(any(group) for group in plan.guarded)
    public = policy("small", "far")
    plan = routing.plan_attempts(public, public.spec.classes[0], tiers, Sensitivity.PUBLIC)
    # It waits where it was first for, should the other fail: that tier has not failed.
    assert [name for group in plan.groups for name, _ in group] == ["small", "far", "small"]
    assert plan.guarded == ((True,), (False,), (False,))
    held = routing.plan_attempts(public, public.spec.classes[0], tiers, Sensitivity.PUBLIC, ("small",), relieved=False)
    assert held.guarded == ((False,), (False,))
    # While the money lasts a downgrade says where requests go first, and bursts go on.
    lasts = routing.plan_attempts(public, public.spec.classes[0], tiers, Sensitivity.PUBLIC, ("small",))
    assert lasts == plan


def test_requests_in_flight_are_arrivals_times_how_long_they_take():
    # 1000 units/s at 50%: 5 requests/s of 100 tokens, each of them 101 * 20 ms long on a replica that is half full.
    known = Capacity(saturation=1000.0, idle_inter_token_seconds=0.01)
    assert inflight.concurrent_at(known, 0.5, [(3.0, 0.0, 100.0, True)]) == pytest.approx(5 * 101 * 0.02)
    # Of two classes of equal work only one is counted: half as many.
    mix = [(1.0, 0.0, 100.0, True), (1.0, 0.0, 100.0, False)]
    assert inflight.concurrent_at(known, 0.5, mix) == pytest.approx(5 * 101 * 0.02 / 2)
    assert inflight.concurrent_at(known, 0.5, []) is None
    assert inflight.concurrent_at(Capacity(saturation=1000.0), 0.5, mix) is None


def test_a_queue_shows_how_many_a_replica_runs():
    known = Capacity(saturation=1000.0)
    for _ in range(2):
        known = capacity.learn(known, Observation(500.0, 0.02, None, None, waiting=20.0, running=32.0), ())
    assert known.most_running == 32.0
    after = capacity.learn(known, Observation(500.0, 0.02, None, None, waiting=0.0, running=30.0), ())
    assert 32.0 < after.most_running < 33.0


@pytest.mark.parametrize(
    ("args", "most"),
    [
        (["--max-num-seqs=32"], 32),
        (["--x", "--max-running-requests", "8"], 8),
        (["-np"], None),
        (["--max-num-seqs=0"], None),
        ([], None),
    ],
)
def test_arguments_say_how_many_a_replica_runs(args, most):
    spec = InCluster.model_validate({"image": "i:1", "replicas": {"min": 1, "max": 1}, "args": args})
    assert engines.most_running(spec) == most


def stream(relief, *, peak=3.0):
    samples = tuple(Sample(NOW + timedelta(minutes=n), 1.0, peak if n % 10 == 0 else 1.0, 0.3, 1.0) for n in range(60))
    return Stream(samples, 1.0, 1.0, 1.0, 1.0, 100.0, 1000.0, relief)


def test_replicas_are_there_for_bursts_as_far_as_that_is_cheaper_than_relief():
    alone = bursts.factor([stream(None)], 1.0)
    assert alone >= 3.0
    cheap, dear = bursts.factor([stream(1.5)], 1.0), bursts.factor([stream(1000.0)], 1.0)
    assert cheap == pytest.approx(1 / inflight.GUARDED)
    assert dear > 2.5
    # One class that has to wait asks for what it always asked for.
    assert bursts.factor([stream(1.5), stream(None)], 1.0) >= 2.0
