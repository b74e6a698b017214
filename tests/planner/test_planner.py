import copy
from dataclasses import replace
from datetime import timedelta

import fluid
import pytest
from fluid import NAMESPACE, Cluster, Demand, Engine

from tierwise import planner
from tierwise.api.base import FieldError, InvalidObject
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import CounterReading
from tierwise.core.world import GatewayReport, Key

SMALL, LARGE = {"routine": "0.80", "complex": "0.48"}, {"routine": "0.87", "complex": "0.66"}
BEST = {"routine": "0.886", "complex": "0.73"}
ALL = [{"name": "compact"}, {"name": "large"}, {"name": "provider"}]
COMPLEX = {
    "name": "complex",
    "match": {"promptTokens": {"min": 1000}},
    "task": "complex",
    "objective": {"ttftP95": "3s"},
    "quality": {"maxLossPercent": "1"},
    "tiers": ALL,
}
ROUTINE = {
    "name": "routine",
    "task": "routine",
    "objective": {"ttftP95": "800ms", "interTokenP95": "60ms"},
    "quality": {"minScore": "0.82"},
    "tiers": ALL,
}


def cluster(rate=lambda _: 6.0, *, noise=0.05, seed=1, classes=None, tiers=None, **spec):
    made = {
        "compact": fluid.in_cluster("compact", price="1.55", high=6, rps="4", quality=SMALL),
        "large": fluid.in_cluster("large", price="7.00", high=8, rps="3", quality=LARGE),
        "provider": fluid.external("provider", prices=("1.00", "3.00"), quality=BEST),
    }
    chosen = classes or [COMPLEX, ROUTINE]
    shares = {"complex": (0.2, 1500, 200), "routine": (0.8, 400, 100)}
    reference = {} if classes else {"referenceTier": "large"}
    return Cluster(
        tiers=made | (tiers or {}),
        policies={"assistant": fluid.policy("assistant", copy.deepcopy(chosen), **(reference | spec))},
        engines={"compact": Engine(0.020, 0.08, 1800), "large": Engine(0.022, 0.12, 2500)},
        demands={
            ("assistant", item["name"]): Demand(
                lambda t, part=shares[item["name"]][0]: rate(t) * part, *shares[item["name"]][1:]
            )
            for item in chosen
        },
        noise=noise,
        seed=seed,
    )


def condition(body, kind="Ready"):
    return next((c for c in body["status"]["conditions"] if c["type"] == kind), None)


def class_status(made, name):
    return next(c for c in made.policies["assistant"]["status"]["classes"] if c["name"] == name)


def reasons(made):
    return [event.reason for _, event in made.events]


def quiet(plan):
    return not (plan.apply or plan.scale or plan.delete or plan.statuses or plan.events)


@pytest.fixture(scope="module")
def settled():
    """A namespace whose loop has come to rest."""
    made = cluster(noise=0.0)
    made.run(planner.plan, 400)
    return made


def test_a_plan_that_is_applied_leaves_nothing_to_do():
    made = cluster(rate=lambda t: 4.0 if t < 60 else 12.0, noise=0.1)
    made.budgets["ceiling"] = fluid.budget(
        "ceiling", "9", [{"atPercent": 1, "action": "Notify"}, {"atPercent": 90, "action": "Deny"}]
    )
    for _ in range(25):
        made.serve(5)
        made.apply(planner.plan(made.world()))
        made.apply(planner.plan(made.world()))  # new Pods show
        again = planner.plan(made.world())
        assert quiet(again), again
        made.autoscale()
        made.now += timedelta(seconds=5)


def test_at_rest_nothing_is_written(settled):
    made = copy.deepcopy(settled)
    for _ in range(10):
        made.serve(5)
        plan = planner.plan(made.world())
        assert quiet(plan)
        made.apply(plan)
        made.now += timedelta(seconds=5)


def test_equal_worlds_give_equal_plans(settled):
    assert planner.plan(settled.world()) == planner.plan(settled.world())


def test_a_restart_at_rest_writes_nothing_and_shrinks_nothing(settled):
    made = copy.deepcopy(settled)
    made.memory, made.ledger, made.signals = LoopMemory(), Ledger(), None
    assert quiet(planner.plan(made.world()))
    before = {name: len(pods) for name, pods in made.replicas.items()}
    made.demands = {key: replace(demand, rate=lambda _: 0.1) for key, demand in made.demands.items()}
    made.run(planner.plan, 20)
    assert {name: len(pods) for name, pods in made.replicas.items()} == before


def test_children_appear_and_bounds_follow_the_plan(settled):
    kinds = {kind for kind, name in settled.children if name == "compact"}
    assert kinds == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    spec = settled.children["HorizontalPodAutoscaler", "compact"]["spec"]
    shown = settled.tiers["compact"]["status"]["replicas"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (shown["min"], shown["max"])
    assert not any(name == "provider" for _, name in settled.children)


def test_the_decision_is_a_record_with_inputs_and_alternatives(settled):
    decision = settled.policies["assistant"]["status"]["decision"]
    assert {option["name"] for option in decision["options"]} >= {"all to large", "all to provider", "chosen"}
    names = {item["name"] for item in decision["inputs"]}
    assert "class/routine/requestsPerSecond" in names
    assert "tier/compact/requestsPerSecondPerReplica" in names
    assert any(reason == "WeightsMoved" for reason in reasons(settled))


def test_weights_sum_to_100_and_floors_hold_after_every_round():
    made = cluster(rate=lambda t: 4.0 + 8 * (int(t / 40) % 2), noise=0.1)
    scores = {"compact": SMALL, "large": LARGE, "provider": BEST}
    for _ in range(40):
        made.run(planner.plan, 5)
        for (_, name), weights in made.weights().items():
            assert sum(weights.values()) == 100
            mean = sum(weight * float(scores[tier][name]) for tier, weight in weights.items()) / 100
            floor = 0.82 if name == "routine" else 0.65
            # The first round starts from the spec's weights; from the second on the floor holds.
            assert mean >= floor - 1e-9 or made.now <= fluid.START + timedelta(seconds=10)


def stale(made):
    made.signals = replace(made.signals, error="time-out", classes={}, tiers={})


def test_without_signals_nothing_moves_and_after_a_while_it_is_said(settled):
    made = copy.deepcopy(settled)
    weights, bounds = made.weights(), copy.deepcopy(made.children)
    for seconds in range(0, 90, 5):
        stale(made)
        plan = planner.plan(made.world())
        assert not plan.apply
        assert not plan.scale
        made.apply(plan)
        told = condition(made.policies["assistant"], "MetricsStale")
        assert (told is not None) == (seconds >= 45), seconds  # the last sample was 5 s old
        made.now += timedelta(seconds=5)
    assert made.weights() == weights
    assert made.children == bounds
    assert class_status(made, "routine")["binding"] == "Stale"
    made.run(planner.plan, 10)
    assert condition(made.policies["assistant"], "MetricsStale") is None


def test_one_unanswered_question_is_no_news(settled):
    made = copy.deepcopy(settled)
    stale(made)
    assert quiet(planner.plan(made.world()))


def test_a_class_without_traffic_lets_its_replicas_go():
    made = cluster(rate=lambda t: 14.0 if t < 100 else 0.0, noise=0.0)
    made.run(planner.plan, 100)
    busy = len(made.replicas["compact"])
    made.run(planner.plan, 150)
    assert busy > 1
    assert len(made.replicas["compact"]) == 1


def test_scale_to_zero_and_back_is_the_operators_step():
    tiers = {"compact": fluid.in_cluster("compact", price="1.55", low=0, rps="4", quality=SMALL)}
    only = [{**ROUTINE, "quality": {"minScore": "0.5"}, "tiers": [{"name": "compact"}]}]
    made = cluster(rate=lambda t: 2.0 if t < 60 or t > 200 else 0.0, classes=only, tiers=tiers, noise=0.0)
    made.run(planner.plan, 60)
    assert len(made.replicas["compact"]) >= 1
    made.run(planner.plan, 140)
    assert len(made.replicas["compact"]) == 0
    assert condition(made.tiers["compact"])["reason"] == "ScaledToZero"
    made.run(planner.plan, 40)
    assert len(made.replicas["compact"]) >= 1


def test_an_uncleared_tier_gets_nothing_and_a_class_without_any_says_so():
    secret = [{**ROUTINE, "sensitivity": "Restricted", "quality": {"minScore": "0.5"}}]
    made = cluster(classes=secret, noise=0.0)
    for _ in range(20):
        made.run(planner.plan, 5)
        assert made.weights()["assistant", "routine"].get("provider", 0) == 0
    made.policies["assistant"]["spec"]["classes"][0]["tiers"] = [{"name": "provider"}]
    made.policies["assistant"]["metadata"]["generation"] = 2
    made.apply(planner.plan(made.world()))
    assert condition(made.policies["assistant"])["reason"] == "NoClearedTier"


def test_a_missing_tier_harms_its_policy_alone(settled):
    made = copy.deepcopy(settled)
    other = fluid.policy("other", [{**ROUTINE, "tiers": [{"name": "compact"}, {"name": "nowhere"}]}])
    made.policies["other"] = other
    made.apply(planner.plan(made.world()))
    assert condition(made.policies["other"])["reason"] == "TierNotFound"
    assert "nowhere" in condition(made.policies["other"])["message"]
    assert condition(made.policies["assistant"])["status"] == "True"


@pytest.mark.parametrize(
    ("tier", "reason"), [("gone", "TierNotFound"), ("provider", None), ("public", "NotCleared"), ("compact", None)]
)
def test_a_shadow_that_gets_nothing_is_said_and_harms_nobody(tier, reason):
    public = fluid.external("public", clearance="Public")
    made = cluster(
        classes=[{"name": "routine", "tiers": [{"name": "compact"}], "shadow": {"tier": tier, "percent": 5}}],
        tiers={"public": public},
    )
    made.demands = {("assistant", "routine"): Demand(lambda _: 3.0, 400, 100)}
    made.run(planner.plan, 20)
    told = condition(made.policies["assistant"], "ShadowInactive")
    assert (told and told["reason"]) == reason
    assert reasons(made).count(reason) == (reason is not None)
    assert condition(made.policies["assistant"])["status"] == "True"
    if told:
        assert f"class routine: nothing is copied to ModelTier {tier}" in told["message"]
        made.policies["assistant"]["spec"]["classes"][0].pop("shadow")
        made.run(planner.plan, 10)
        assert condition(made.policies["assistant"], "ShadowInactive") is None


def test_while_nobody_counts_copies_are_part_of_the_bound():
    """The planned demand times its copied share: without copies this provider has no weight, and costs nothing."""

    def pending(percent):
        made = cluster(
            classes=[
                {"name": "routine", "tiers": [{"name": "compact"}], "shadow": {"tier": "provider", "percent": percent}}
            ]
        )
        if not percent:
            made.policies["assistant"]["spec"]["classes"][0].pop("shadow")
        made.demands = {("assistant", "routine"): Demand(lambda _: 3.0, 400, 100)}
        made.budgets["ceiling"] = fluid.budget("ceiling", "100", [{"atPercent": 100, "action": "Notify"}])
        made.run(planner.plan, 60)
        nothing = CounterReading(0.0, 0.0, 0.0, 0.0, 0.0, made.now, made.now)  # was read as every tier's counters are
        made.signals = replace(made.signals, usage={**made.signals.usage, (NAMESPACE, "provider"): nothing})
        made.apply(planner.plan(made.world()))
        for _ in range(24):
            stale(made)
            made.signals = replace(made.signals, usage={})
            made.apply(planner.plan(made.world()))
            made.now += timedelta(seconds=5)
        (account,) = made.ledger.accounts.values()
        return float(account.pending)

    assert pending(0) == 0
    some, twice = pending(20), pending(40)
    assert some > 0
    assert twice == pytest.approx(2 * some)


def test_the_older_policy_keeps_a_models_name(settled):
    made = copy.deepcopy(settled)
    late = fluid.policy("late", [ROUTINE], models=["assistant"])
    late["metadata"]["creationTimestamp"] = "2026-11-25T08:30:00Z"
    made.policies["late"] = late
    made.apply(planner.plan(made.world()))
    assert condition(made.policies["late"])["reason"] == "ModelNameTaken"
    assert condition(made.policies["assistant"])["status"] == "True"


def test_envoys_words_reach_the_condition(settled):
    made = copy.deepcopy(settled)
    made.gateways = {NAMESPACE: GatewayReport("h2", "h1", 2, 2, 1, "bad regex at column 7")}
    made.apply(planner.plan(made.world()))
    found = condition(made.policies["assistant"])
    assert found["reason"] == "EnvoyRefused"
    assert "bad regex at column 7" in found["message"]


def test_what_was_held_back_as_unsafe_is_not_said_to_be_envoys_refusal(settled):
    made = copy.deepcopy(settled)
    words = "routes legal: unsafe configuration: requests of model m that are Restricted could reach tier b"
    made.gateways = {NAMESPACE: GatewayReport("", "h1", 2, 2, 2, words)}
    made.apply(planner.plan(made.world()))
    found = condition(made.policies["assistant"])
    assert found["reason"] == "UnsafeConfiguration"
    assert "could reach tier b" in found["message"]


def test_without_a_gateway_a_policy_is_not_ready(settled):
    made = copy.deepcopy(settled)
    made.gateways = {}
    made.apply(planner.plan(made.world()))
    assert condition(made.policies["assistant"])["reason"] == "NoGateway"


def test_each_replica_writes_its_own_gateways_once(settled):
    made = copy.deepcopy(settled)
    (first,) = planner.gateway_statuses(made.world())
    assert first.manager_suffix == "gateway-operator-0"
    assert first.status["gateways"][0]["acknowledged"] == 2
    made.policies["assistant"]["status"]["gateways"] = first.status["gateways"]
    made.now += timedelta(seconds=60)
    assert planner.gateway_statuses(made.world()) == ()


def test_a_lost_credential_moves_requests_away_at_once():
    made = cluster(noise=0.0)
    made.run(planner.plan, 15)
    assert made.weights()["assistant", "routine"].get("provider", 0) > 0
    made.run(planner.plan, 15)
    made.secrets = set()
    made.run(planner.plan, 10)
    assert made.weights()["assistant", "routine"].get("provider", 0) == 0
    assert condition(made.tiers["provider"])["reason"] == "CredentialNotFound"


def test_manual_and_suspended_policies_keep_their_weights():
    tiers = [{"name": "compact", "weight": 30}, {"name": "large", "weight": 70}]
    manual = cluster(classes=[{**ROUTINE, "tiers": tiers}], rebalance={"mode": "Manual"}, noise=0.0)
    manual.run(planner.plan, 60)
    assert manual.weights()["assistant", "routine"] == {"compact": 30, "large": 70}
    suspended = cluster(classes=[{**ROUTINE, "tiers": tiers}], suspend=True, noise=0.0)
    suspended.run(planner.plan, 60)
    assert suspended.weights()["assistant", "routine"] == {"compact": 30, "large": 70}


def test_recommend_shows_what_it_would_do_and_does_not_do_it():
    tiers = [{"name": "compact", "weight": 0}, {"name": "large", "weight": 0}, {"name": "provider", "weight": 100}]
    made = cluster(classes=[{**ROUTINE, "tiers": tiers}], rebalance={"mode": "Recommend"}, noise=0.0)
    made.run(planner.plan, 90)
    assert made.weights()["assistant", "routine"] == {"provider": 100}
    wanted = {weight["tier"]: weight.get("wanted", 0) for weight in class_status(made, "routine")["weights"]}
    assert wanted["compact"] > 50


def test_an_invalid_spec_is_told_with_field_and_remedy(settled):
    made = copy.deepcopy(settled)
    why = InvalidObject("RoutingPolicy", "bad", (FieldError("spec.models", "[]", "write at least one"),))
    key = ("RoutingPolicy", Key(NAMESPACE, "bad"))
    body = {"metadata": fluid.metadata("bad"), "spec": {}}
    world = replace(made.world(), invalid={key: why}, invalid_bodies={key: body})
    plan = planner.plan(world)
    (told,) = [one for one in plan.statuses if one.target.name == "bad"]
    assert told.status["conditions"][0]["reason"] == "InvalidSpec"
    assert "spec.models" in told.status["conditions"][0]["message"]
    again = replace(world, invalid_bodies={key: {**body, "status": dict(told.status)}})
    assert not [one for one in planner.plan(again).statuses if one.target.name == "bad"]


def test_a_budget_counts_climbs_once_and_survives_a_restart():
    made = cluster(noise=0.0)
    made.budgets["ceiling"] = fluid.budget(
        "ceiling",
        "1.00",
        [{"atPercent": 20, "action": "Notify"}, {"atPercent": 99, "action": "Notify"}],
        enforceReplicas=True,
    )
    made.run(planner.plan, 600)
    status = made.budgets["ceiling"]["status"]
    spent = float(status["spent"])
    assert reasons(made).count("CeilingRung") == 2
    assert status["rung"]["atPercent"] == 99
    made.memory, made.ledger = LoopMemory(), Ledger()
    made.run(planner.plan, 305)
    before = made.budgets["ceiling"]["status"]["spent"]
    for _ in range(64):  # until the next checkpoint, which is made before the seconds that follow it
        cost = made.cost
        made.run(planner.plan, 5)
        if made.budgets["ceiling"]["status"]["spent"] != before:
            break
    after = made.budgets["ceiling"]["status"]
    assert float(after["spent"]) > spent
    assert reasons(made).count("CeilingRung") == 2
    # The fluid world counts for itself. What nobody observed, between checkpoint and restart, is bounded from above.
    assert float(after["measured"]) <= 1.01 * cost
    assert 0.99 * cost <= float(after["spent"]) <= 2 * cost


def test_a_spend_without_a_price_is_unknown_and_said():
    made = cluster(tiers={"large": fluid.in_cluster("large", price=None, rps="3", quality=LARGE)}, noise=0.0)
    made.budgets["ceiling"] = fluid.budget("ceiling", "100", [{"atPercent": 100, "action": "Notify"}])
    made.run(planner.plan, 30)
    told = condition(made.budgets["ceiling"], "SpendUnknown")
    assert told is not None
    assert "large" in told["message"]


def test_a_policy_parses_what_the_planner_writes(settled):
    parsed = RoutingPolicy.parse(settled.policies["assistant"])
    assert parsed.unreadable_status == ()
    assert parsed.status.decision is not None
