"""Who relieves a saturated tier, when it is saturated, and how many replicas that makes worth while."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from tierwise.api.in_cluster import InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import bursts, capacity, decision, engines, inflight, policy_status, routing, situation, tier_status
from tierwise.core.bursts import Stream
from tierwise.core.capacity import Capacity, Observation
from tierwise.core.demand import Forecast, Sample
from tierwise.core.memory import LoopMemory
from tierwise.core.world import Key, World

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


def earned(found, *, generation=1):
    """The policy with the word that quality was earned, of this generation of its spec."""
    status = {"observedGeneration": generation, "classes": [{"name": "c", "relievedBelowFloor": True}]}
    return RoutingPolicy.parse(
        {
            "metadata": {"name": "p", "namespace": "n", "generation": 1},
            "spec": found.spec.model_dump(by_alias=True, mode="json", exclude_none=True),
            "status": status,
        }
    )


def test_what_was_earned_on_average_lets_worse_tiers_relieve_better_ones():
    tiers = [inside("small", "0.7"), inside("large", "0.9"), outside("far")]
    average = policy("small", "large", "far", quality={"minScore": "0.85", "holds": "OnAverage"})
    assert relieved(average, tiers) == {"small": "large"}
    assert relieved(earned(average), tiers) == {"small": "large", "large": "small"}
    assert relieved(earned(average, generation=2), tiers) == {"small": "large"}, "said of another spec"
    always = policy("small", "large", "far", quality={"minScore": "0.85"})
    assert relieved(earned(always), tiers) == {"small": "large"}, "a floor at all times is not spent"
    # A tier that no mix may have is there for failures only.
    shut = average.model_dump(by_alias=True, mode="json", exclude_none=True)
    shut["spec"]["classes"][0]["tiers"][0]["maxWeight"] = 0
    assert relieved(earned(RoutingPolicy.parse(shut)), tiers) == {"small": "large"}
    # A tier that is not cleared stays out, whatever was earned.
    unsafe = [inside("small", "0.7", clearance="Public"), inside("large", "0.9"), outside("far")]
    secret = policy("small", "large", "far", quality=average.spec.classes[0].quality, sensitivity="Internal")
    assert relieved(earned(secret), unsafe, ("large", "far")) == {}
    # Limits and clusters of gateways do not come and go with it.
    named = {tier.metadata.name: tier for tier in tiers}
    assert routing.guarded_tiers([average], named) == {"small", "large"}
    assert routing.guarded_tiers([always], named) == {"small"}


def test_the_reference_of_a_floor_need_not_be_a_tier_that_may_be_used():
    """It says what is promised; that it is not cleared for a request, or no tier of the class, changes nothing."""
    tiers = [inside("mid", "0.86"), inside("large", "0.88"), outside("far", "0.9")]
    loss = {"maxLossPercent": "5", "holds": "OnAverage"}
    public = policy("mid", "large", "far", quality=loss)
    assert relieved(public, tiers)["large"] == "mid"
    secret = policy("mid", "large", "far", quality=loss, sensitivity="Confidential")
    assert relieved(secret, tiers, ("mid", "large")) == {"mid": "large", "large": "mid"}


def said_of(found, tiers):
    """What the status will say of earned quality, of which there is none yet."""
    made = seen(found, tiers)
    return policy_status.relieved_below_floor(made.classes[0], {name: each.tier for name, each in made.tiers.items()})


def test_nothing_is_said_nor_made_ready_where_earned_quality_changes_nothing():
    average = {"minScore": "0.6", "holds": "OnAverage"}
    below = [inside("small", "0.5"), inside("large", "0.9")]
    assert said_of(policy("small", "large", quality=average), below) is False
    kept = [inside("small", "0.7"), inside("large", "0.9")]
    assert said_of(policy("small", "large", quality=average), kept) is None, "both keep the floor"
    assert said_of(policy("far", "large", quality=average), [outside("far", "0.5"), outside("large", "0.9")]) is None
    assert said_of(policy("small", "large", quality=average, when=["ServerError"]), below) is None
    unknown = [inside("small", "0.5"), inside("large")]
    loss = policy("small", "large", quality={"maxLossPercent": "5", "holds": "OnAverage"})
    assert said_of(loss, unknown) is None, "what is lost is not known"
    assert routing.guarded_tiers([loss], {tier.metadata.name: tier for tier in unknown}) == set()


def seen(found, tiers, *, spent=None):
    """The namespace as the loop sees it."""
    budgets = {Key("n", "money"): spent} if spent is not None else {}
    tiers = {Key("n", tier.metadata.name): tier for tier in tiers}
    made = World(now=NOW, replica="r", tiers=tiers, policies={Key("n", "p"): found}, budgets=budgets)
    return situation.view(made, LoopMemory(), "n", situation.Settings())


def reached(found, tiers, **more):
    made = seen(found, tiers, **more)
    return "".join(name for name in made.tiers if made.reaching(name))


def test_the_loop_counts_on_the_order_in_which_gateways_try():
    tiers = [inside("a", "0.7"), outside("b", "0.5"), outside("c", "0.9")]
    floor = {"minScore": "0.6"}
    assert reached(policy("a", "b", "c", quality=floor, when=["ServerError"]), tiers) == "ab"
    # Who relieves comes first, whatever the order of the class.
    relieved_first = policy("a", "b", "c", quality=floor)
    assert reached(relieved_first, tiers) == "ac"
    assert relieved(relieved_first, tiers) == {"a": "c"}
    assert reached(policy("a", "b", "c", quality=floor, order=["a", "b", "c"]), tiers) == "ab"
    assert reached(policy("a", "b", "c", attempts=1), tiers) == "a"


def test_whether_quality_was_earned_may_change_while_nobody_counts():
    tiers = [inside("a", "0.7"), outside("b", "0.5"), outside("c", "0.9")]
    average = policy("a", "b", "c", quality={"minScore": "0.6", "holds": "OnAverage"})
    assert relieved(average, tiers) == {"a": "c"}
    assert relieved(earned(average), tiers) == {"a": "b"}
    assert reached(average, tiers) == reached(earned(average), tiers) == "abc"
    always = policy("a", "b", "c", quality={"minScore": "0.6"})
    assert reached(earned(always), tiers) == "ac"


def test_what_a_header_raises_goes_past_tiers_that_may_not_see_it():
    tiers = [inside("a"), outside("b", clearance="Public"), outside("c", clearance="Internal"), inside("d")]
    assert reached(policy("a", "b", "c", "d"), tiers) == "abcd"
    assert reached(policy("a", "b", "c", "d", sensitivity="Internal"), tiers) == "acd"


def downgrade(*names, exempt=None, relief=False):
    """A budget that has requests go to these tiers first, all but those of one class."""
    until = {"since": "2026-01-05T00:00:00Z", "resetsAt": "2026-02-01T00:00:00Z"}
    status = {"enforcement": {"action": "Downgrade", "tiers": names, "relief": relief, **until}}
    ladder = [{"atPercent": 50, "action": "Downgrade"}]
    spec = {"currency": "USD", "ceiling": "1", "period": "Month", "unpriced": "Allow", "ladder": ladder}
    if exempt is not None:
        spec["exempt"] = [{"policy": "p", "class": exempt}]
    return NamespaceBudget.parse({"metadata": {"name": "money", "namespace": "n"}, "spec": spec, "status": status})


def test_what_a_budget_downgrades_goes_to_its_tiers_first_and_is_relieved_while_the_money_lasts():
    tiers = [inside("a"), outside("b"), outside("c")]
    spent = downgrade("a", "c")
    found = policy("a", "b", "c")
    assert reached(found, tiers) == "ab"
    assert reached(found, tiers, spent=spent) == "ac"
    assert dict(seen(found, tiers).classes[0].relieved) == {"a": "b"}
    assert dict(seen(found, tiers, spent=spent).classes[0].relieved) == {}
    lasts = downgrade("a", "c", relief=True)
    assert dict(seen(found, tiers, spent=lasts).classes[0].relieved) == {"a": "c"}
    floor = policy("a", "b", "c", quality={"minScore": "0.6"})
    scored = [inside("a", "0.7"), outside("b", "0.9"), outside("c", "0.5")]
    # Whether money lasts may change while nobody counts what is spent.
    assert reached(floor, scored, spent=lasts) == reached(floor, scored, spent=spent) == "abc"


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
    assert inflight.concurrent_at(known, 0.5, 1, [(3.0, 0.0, 100.0, True)]) == pytest.approx(5 * 101 * 0.02)
    # Others hold a tenth of two replicas each: four parts in five are left, however many of those that count come.
    for rate in (0.01, 1.0, 100.0):
        mix = [(rate, 0.0, 100.0, True), (2.0, 0.0, 100.0, False)]
        assert inflight.concurrent_at(known, 0.5, 2, mix) == pytest.approx(0.8 * 5 * 101 * 0.02)
    assert inflight.concurrent_at(known, 0.5, 1, [(1.0, 0.0, 100.0, True), (9.0, 0.0, 100.0, False)]) == 0
    assert inflight.concurrent_at(known, 0.5, 1, []) is None
    assert inflight.concurrent_at(Capacity(saturation=1000.0), 0.5, 1, mix) is None


def limit(rates, *listed, spent=None, raised=()):
    """Requests in flight that gateways give a replica of `a`, of classes that list `Saturated` or do not.

    Args:
        rates: requests/s of each class: of the first as it lists it or not, and so on.
        listed: whether it does.
        spent: a budget that has decided.
        raised: numbers of classes for what is more sensitive than any other tier is cleared for.
    """
    tiers = [inside("a"), outside("far")]
    entries = []
    for number, lists in enumerate(listed):
        (entry,) = policy("a", "far", when=["ServerError", *["Saturated"] * lists]).spec.classes
        level = Sensitivity.CONFIDENTIAL if number in raised else None
        entries.append(entry.model_copy(update={"name": f"c{number}", "sensitivity": level}))
    found = policy("a", "far")
    found = found.model_copy(update={"spec": found.spec.model_copy(update={"classes": tuple(entries)})})
    made = seen(found, tiers, spent=spent)
    known = Capacity(saturation=1000.0, idle_inter_token_seconds=0.01, observations=50)
    tier = dataclasses.replace(made.tiers["a"], capacity=known)
    demands = [Forecast(rate, rate, rate, rate, settled=True, tokens={"": (0.0, 100.0)}) for rate in rates]
    classes = [dataclasses.replace(view, demand=one) for view, one in zip(made.classes, demands, strict=True)]
    made = dataclasses.replace(made, tiers={**made.tiers, "a": tier}, classes=tuple(classes))
    shown = tier_status.shown_capacity(made, decision.Decision({}, {}), "a")
    return shown.concurrent_requests


def test_the_limit_leaves_the_room_that_requests_of_other_classes_hold():
    alone = limit([4.0], True)
    assert limit([4.0, 4.0], True, True) == alone
    # A replica carries 7.2 requests/s with what is kept free.
    assert limit([4.0, 3.6], True, False) == pytest.approx(alone / 2, abs=0.5)
    assert limit([4.0, 5.4], True, False) == pytest.approx(alone / 4, abs=0.5)
    # Also for who has hardly had a request yet: others have just been sent there by the loop, as their tier is full.
    assert limit([0.01, 3.6], True, False) == limit([4.0, 3.6], True, False)
    assert limit([4.0, 0.0], True, False) == alone, "who sends nothing holds nothing"
    assert limit([4.0, 4000.0], True, False) == 1
    assert limit([4.0, 3.6], True, True, raised={1}) == pytest.approx(alone / 2, abs=0.5)
    # Where a budget saves nothing is passed on, and nothing counted.
    assert limit([4.0, 3.6], True, True, spent=downgrade("a", exempt="c0")) == pytest.approx(alone / 2, abs=0.5)


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
