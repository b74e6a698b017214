"""What a planning round never does, and what it says about each object, seen from outside: plans and statuses."""

from typing import Any

import pytest
from api_server import NAMESPACE, REPLICA, Demand, Server, budget, external, in_cluster, policy, route

from tierwise import planner
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Missing, Signals
from tierwise.core.world import GatewayReport

FAST = {"interval": "5s", "cooldown": "20s", "maxStepPercent": 50}


def rounds(server: Server, count: int, *, measured: bool = True) -> None:
    for _ in range(count):
        if measured:
            server.measure()
        server.carry_out(planner.plan(server.world()))
        server.control()
        server.later(5)


def small(rate: float = 6.0, *, rebalance: dict[str, Any] | None = None, **spec: Any) -> Server:
    """Everything starts on a dear provider that the own tier would replace for a tenth."""
    tiers = [{"name": "own", "weight": 0}, {"name": "provider", "weight": 100}]
    return Server(
        [
            in_cluster("own", price="1.00", rps="8"),
            external("provider", prices=("3.00", "15.00")),
            policy("chat", [route("all", tiers)], rebalance={**FAST, **(rebalance or {})}, **spec),
        ],
        demands={("chat", "all"): Demand(rate)},
        startup_seconds=5.0,
    )


def moves(server: Server) -> list[Any]:
    return [event for event in server.events if event.reason == "WeightsMoved"]


def test_auto_moves_to_the_cheaper_tier_and_says_why() -> None:
    server = small()
    rounds(server, 20)
    assert server.weights("chat", "all") == {"own": 100, "provider": 0}
    assert moves(server)
    decision = server.status("RoutingPolicy", "chat")["decision"]
    assert decision["inputs"]
    assert decision["options"]
    assert decision["reason"]


@pytest.mark.parametrize("mode", ["Manual", "Recommend"])
def test_other_modes_move_nothing(mode: str) -> None:
    server = small(rebalance={"mode": mode})
    rounds(server, 20)
    assert server.weights("chat", "all") == {"own": 0, "provider": 100}
    assert not moves(server)
    entry = server.status("RoutingPolicy", "chat")["classes"][0]
    assert entry["reason"] == mode
    wanted = {w["tier"]: w.get("wanted") for w in entry["weights"]}
    assert wanted == ({"own": 100, "provider": 0} if mode == "Recommend" else {"own": None, "provider": None})


def test_a_suspended_policy_moves_nothing_until_it_is_resumed() -> None:
    server = small(suspend=True)
    rounds(server, 10)
    assert server.weights("chat", "all") == {"own": 0, "provider": 100}
    assert server.status("RoutingPolicy", "chat")["classes"][0]["reason"] == "Suspended"
    server.change("RoutingPolicy", "chat", suspend=False)
    rounds(server, 15)
    assert server.weights("chat", "all")["own"] == 100


def test_without_prometheus_everything_freezes_and_is_told() -> None:
    server = small(rate=6.0)
    rounds(server, 20)
    before = server.weights("chat", "all")
    replicas = len(server.pods["own"])
    events = len(moves(server))
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("down"), error="connection refused"))
    rounds(server, 30, measured=False)
    assert server.weights("chat", "all") == before
    assert len(server.pods["own"]) == replicas
    assert len(moves(server)) == events
    stale = server.condition("RoutingPolicy", "chat", "MetricsStale")
    assert stale is not None
    assert stale["status"] == "True"
    assert server.status("RoutingPolicy", "chat")["classes"][0]["reason"] == "MetricsStale"
    rounds(server, 3)
    assert server.condition("RoutingPolicy", "chat", "MetricsStale") is None


def test_a_class_without_series_is_zero_only_while_a_gateway_is_scraped() -> None:
    server = small(rate=6.0)
    rounds(server, 20)
    for _ in range(12):
        server.store.put_signals(Signals(time=server.now, gateways_up=Missing("no target")))
        rounds(server, 1, measured=False)
    assert server.condition("RoutingPolicy", "chat", "MetricsStale") is not None


@pytest.mark.parametrize("sensitivity", ["Confidential", "Restricted"])
def test_an_uncleared_tier_never_gets_weight(sensitivity: str) -> None:
    """Though it would be the cheapest, and the own tier is overloaded."""
    server = Server(
        [
            in_cluster("own", price="9.00", high=1, rps="2"),
            external("provider", prices=("0.01", "0.01")),
            policy("chat", [route("all", ["provider", "own"])], rebalance=FAST, sensitivity=sensitivity),
        ],
        demands={("chat", "all"): Demand(30.0)},
        startup_seconds=5.0,
    )
    for _ in range(12):
        rounds(server, 1)
        assert server.weights("chat", "all") == {"own": 100}
    assert server.status("RoutingPolicy", "chat")["classes"][0]["sensitivity"] == sensitivity


def test_a_clearance_that_is_lowered_takes_effect_in_the_same_round() -> None:
    server = small(rebalance={"mode": "Manual"})
    rounds(server, 3)
    assert server.weights("chat", "all")["provider"] == 100
    server.change("ModelTier", "provider", clearance="Public")
    rounds(server, 1)
    assert server.weights("chat", "all") == {"own": 100}


def test_an_invalid_object_is_told_and_others_go_on() -> None:
    server = small()
    bad = policy("broken", [route("all", ["own"])])
    bad["spec"]["classes"][0]["objective"] = {"ttftP95": "soon"}
    server.put(bad)
    rounds(server, 40)
    ready = server.condition("RoutingPolicy", "broken")
    assert ready is not None
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "ttftP95" in ready["message"]
    stalled = server.condition("RoutingPolicy", "broken", "Stalled")
    assert stalled is not None
    assert server.weights("chat", "all")["own"] == 100
    writes = server.writes
    rounds(server, 3)
    assert server.writes == writes


def test_the_last_valid_spec_stays_in_effect() -> None:
    server = small()
    rounds(server, 20)
    server.change("ModelTier", "own", clearance="Nobody")
    rounds(server, 4)
    ready = server.condition("ModelTier", "own")
    assert ready is not None
    assert ready["reason"] == "InvalidSpec"
    assert "stays in effect" in ready["message"]
    assert server.weights("chat", "all")["own"] == 100
    assert ("Deployment", "own") in server.objects


def test_a_budget_whose_spec_became_invalid_keeps_its_checkpoint_over_a_restart() -> None:
    server = small()
    server.put(budget("month"))
    rounds(server, 4)
    kept = server.status("NamespaceBudget", "month")["checkpoint"]
    fresh = small()
    broken = server.objects["NamespaceBudget", "month"]
    broken = {**broken, "spec": {**broken["spec"], "ceiling": "much"}}
    fresh.put(broken)
    rounds(fresh, 3)
    assert fresh.condition("NamespaceBudget", "month")["reason"] == "InvalidSpec"  # type: ignore[index]
    assert fresh.status("NamespaceBudget", "month")["checkpoint"] == kept


def ready_of(server: Server, kind: str = "RoutingPolicy", name: str = "chat") -> tuple[str, str]:
    rounds(server, 1)
    found = server.condition(kind, name)
    assert found is not None
    return found["status"], found["reason"]


def test_each_reason_of_a_policy_that_is_not_ready() -> None:
    server = small()
    rounds(server, 4)
    assert ready_of(server) == ("True", "Serving")
    server.store.put_gateways({NAMESPACE: GatewayReport("h2", "h1", 2, 2, 1, "no such cluster")})
    assert ready_of(server) == ("False", "EnvoyRefused")
    assert server.condition("RoutingPolicy", "chat", "Stalled") is not None
    server.store.put_gateways({NAMESPACE: GatewayReport("h2", "h2", 0, 0, 0, "")})
    assert ready_of(server) == ("False", "NoGateway")
    server.store.put_gateways({NAMESPACE: GatewayReport("h2", "h2", 2, 2, 0, "")})
    assert ready_of(server) == ("True", "Serving")
    server.store.put_gateways({NAMESPACE: GatewayReport("h3", "h3", 2, 1, 0, "")})
    assert ready_of(server) == ("True", "Serving")  # a change is given its time
    rounds(server, 4)
    assert ready_of(server) == ("False", "Pending")
    assert server.condition("RoutingPolicy", "chat", "Reconciling") is not None
    server.store.put_gateways({NAMESPACE: GatewayReport("h3", "h3", 2, 2, 0, "")})
    server.change("RoutingPolicy", "chat", classes=[route("all", ["own", "nowhere"])])
    assert ready_of(server) == ("False", "TierNotFound")
    server.change("RoutingPolicy", "chat", classes=[route("all", ["provider"])], sensitivity="Restricted")
    assert ready_of(server) == ("False", "NoClearedTier")
    assert "403" in server.condition("RoutingPolicy", "chat")["message"]  # type: ignore[index]


def test_a_model_that_is_taken_and_a_tier_that_is_not_ready() -> None:
    server = Server(
        [in_cluster("own", rps="8"), policy("chat", [route("all", ["own"])], rebalance=FAST)],
        demands={("chat", "all"): Demand(1.0)},
        startup_seconds=60.0,
    )
    later = policy("other", [route("all", ["own"])])
    later["spec"]["models"] = ["chat"]
    later["metadata"]["creationTimestamp"] = "2026-11-25T08:30:00Z"
    server.put(later)
    assert ready_of(server) == ("False", "NoReadyTier")
    assert ready_of(server, name="other") == ("False", "ModelNameTaken")
    rounds(server, 14)
    assert ready_of(server) == ("True", "Serving")


def test_each_reason_of_a_tier() -> None:
    server = small()
    server.put(external("free", prices=None))
    server.carry_out(planner.plan(server.world()))
    assert server.condition("ModelTier", "own")["reason"] == "Creating"  # type: ignore[index]
    server.control()
    server.carry_out(planner.plan(server.world()))
    assert server.condition("ModelTier", "own")["reason"] == "Starting"  # type: ignore[index]
    assert server.condition("ModelTier", "own", "Reconciling") is not None
    rounds(server, 3)
    assert ready_of(server, "ModelTier", "own") == ("True", "Available")
    assert server.condition("ModelTier", "own", "Reconciling") is None
    assert ready_of(server, "ModelTier", "free") == ("True", "Unpriced")
    assert ready_of(server, "ModelTier", "provider") == ("True", "Configured")
    no_key = small()
    no_key.store.drop_secrets(frozenset())
    assert ready_of(no_key, "ModelTier", "provider") == ("False", "CredentialNotFound")


def test_a_deployment_of_somebody_else_is_left_alone() -> None:
    server = small()
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "own", "namespace": NAMESPACE, "uid": "theirs", "generation": 1, "labels": {}},
        "spec": {"replicas": 3},
        "status": {"replicas": 3, "readyReplicas": 3, "updatedReplicas": 3, "observedGeneration": 1},
    }
    server.put(theirs)
    plan = planner.plan(server.world())
    assert not [one for one in plan.apply if one["metadata"]["name"] == "own"]
    assert not plan.delete
    server.carry_out(plan)
    assert server.condition("ModelTier", "own")["reason"] == "NameTaken"  # type: ignore[index]


def test_a_gateway_entry_is_written_once_and_a_dead_replica_is_cleared() -> None:
    server = small()
    (wanted,) = planner.gateway_statuses(server.world())
    assert (wanted.manager_suffix, wanted.status["gateways"][0]["connected"]) == (f"gateway-{REPLICA}", 2)
    server._apply_status(wanted)
    assert planner.gateway_statuses(server.world()) == ()
    gone = {"gateways": [{**wanted.status["gateways"][0], "name": "operator-9"}]}
    server._apply_status(type(wanted)(wanted.target, gone, "gateway-operator-9"))
    plan = planner.plan(server.world())
    assert [s.manager_suffix for s in plan.statuses if s.manager_suffix] == ["gateway-operator-9"]


# -- budgets ------------------------------------------------------------------------------------------------------
def spent(server: Server) -> float:
    """As the ledger has it now."""
    from tierwise.core import ledger

    return float(ledger.spend(server.store.ledger.accounts[NAMESPACE, "month"]).total)


def with_budget(**spec: Any) -> Server:
    server = small(rebalance={"mode": "Manual"})
    server.put(budget("month", **spec))
    return server


def test_a_budget_counts_replicas_and_tokens_together() -> None:
    server = with_budget()
    rounds(server, 13)
    # 12 intervals of 5 s: one replica at 1.00 an hour, and 6 requests/s of 600 + 200 tokens at 3 and 15 a million; the
    # first reading reaches back 5 s.
    replicas, tokens = 60 / 3600 * 1.0, 65 * 6 * (600 * 3 + 200 * 15) / 1e6
    assert spent(server) == pytest.approx(replicas + tokens, rel=0.01)


def test_a_restart_from_the_checkpoint_is_a_gap_bounded_from_above() -> None:
    going_on, restarted = with_budget(), with_budget()
    for server in (going_on, restarted):
        rounds(server, 70)
    restarted.store.ledger, restarted.store.memory = Ledger(), LoopMemory()
    kept = restarted.status("NamespaceBudget", "month")
    assert float(kept["spent"]) <= spent(going_on) + 0.005
    for server in (going_on, restarted):
        rounds(server, 1)
    # The replica's seconds since the checkpoint are charged once, from above; tokens are read again by the runtime.
    account = restarted.store.ledger.accounts[NAMESPACE, "month"]
    mine, theirs = account.entries["own"], going_on.store.ledger.accounts[NAMESPACE, "month"].entries["own"]
    total = mine.replica_seconds + mine.estimated_replica_seconds
    assert theirs.replica_seconds <= total + 1
    assert account.start == going_on.store.ledger.accounts[NAMESPACE, "month"].start


def test_the_rung_is_told_once() -> None:
    server = with_budget(ceiling="1.00")
    rounds(server, 60)
    status = server.status("NamespaceBudget", "month")
    assert status["rung"] == {"atPercent": 80, "action": "Notify"}
    assert [e.reason for e in server.events].count("CeilingRung") == 1


def test_use_without_a_price_is_unknown_also_after_a_restart() -> None:
    server = with_budget(currency="EUR")
    rounds(server, 5)
    for _ in range(2):
        unknown = server.condition("NamespaceBudget", "month", "SpendUnknown")
        assert unknown is not None
        assert unknown["reason"] == "PriceOrUsageUnknown"
        assert "provider" in unknown["message"]
        server.store.ledger, server.store.memory = Ledger(), LoopMemory()
        rounds(server, 1, measured=False)


def test_tokens_that_nobody_reads_are_told() -> None:
    server = with_budget()
    rounds(server, 3)
    assert server.condition("NamespaceBudget", "month", "SpendUnknown") is None
    server.store.put_signals(Signals(time=server.now, gateways_up=Missing("down"), error="connection refused"))
    rounds(server, 12, measured=False)
    unknown = server.condition("NamespaceBudget", "month", "SpendUnknown")
    assert unknown is not None
    assert unknown["reason"] == "UsageNotRead"
    rounds(server, 1)
    assert server.condition("NamespaceBudget", "month", "SpendUnknown") is None


def test_a_new_period_starts_at_zero_and_counts_from_its_beginning() -> None:
    server = with_budget(period="Day")
    rounds(server, 5)
    before = spent(server)
    server.later(20 * 3600)  # past midnight; nobody looked since
    rounds(server, 1, measured=False)
    account = server.store.ledger.accounts[NAMESPACE, "month"]
    assert account.start.day == 26
    entry = account.entries["own"]
    assert entry.replica_seconds == 0
    assert float(entry.estimated_replica_seconds) == pytest.approx(
        8 * (server.now - account.start).total_seconds(), abs=60
    )
    assert before > 0


def test_keda_reads_the_prometheus_that_the_operator_reads() -> None:
    tier = in_cluster("own")
    tier["spec"]["inCluster"]["autoscaling"] = {"provider": "KEDA"}
    server = Server([tier])
    plan = planner.plan(server.world(), planner.Settings(prometheus_url="http://prometheus.here:9090"))
    scaled = next(one for one in plan.apply if one["kind"] == "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] == "http://prometheus.here:9090"
