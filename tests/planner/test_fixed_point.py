"""A cluster that needs nothing gets nothing: no apply, scale, deletion, status or event, round after round."""

from itertools import pairwise
from typing import Any

import pytest
from api_server import Demand, Server, Truth, budget, external, in_cluster, policy, route
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tierwise import planner
from tierwise.core.plan import Plan

STEP_SECONDS = 5.0
CALM_ROUNDS = 24
"""Two minutes without a write count as settled: longer than any cool-down of these worlds."""


def round_of(server: Server, *, measured: bool = True) -> Plan:
    if measured:
        server.measure(STEP_SECONDS)
    plan = planner.plan(server.world())
    server.carry_out(plan)
    for status in planner.gateway_statuses(server.world()):
        server._apply_status(status)
        server.writes += 1
    server.control()
    return plan


def said(plan: Plan) -> list[Any]:
    """Everything but a budget's checkpoint."""
    statuses = [one for one in plan.statuses if one.target.kind != "NamespaceBudget"]
    return [*plan.apply, *plan.scale, *plan.delete, *statuses, *plan.events]


def settle(server: Server, most: int = 160) -> int:
    """Rounds until nothing was said for `CALM_ROUNDS`, and it is known what the last decision saved."""
    calm = 0
    for count in range(most):
        calm = calm + 1 if not said(round_of(server)) else 0
        counting = any(not one.finished for one in server.store.memory.realising.values())
        if not counting and calm >= CALM_ROUNDS:
            return count
        server.later(STEP_SECONDS)
    plan = round_of(server)
    pytest.fail(f"never settles; last: {said(plan)}, events {[e.note for e in server.events[-6:]]}")


def demo(**changes: Any) -> Server:
    floor = {"task": "qa", "quality": {"minScore": "0.62"}}
    rebalance = {"interval": "5s", "cooldown": "30s", "maxStepPercent": 50}
    server = Server(
        [
            in_cluster("compact", price="1.00", rps="6", quality=[{"task": "qa", "score": "0.55"}]),
            in_cluster("large", price="6.00", rps="3", quality=[{"task": "qa", "score": "0.80"}]),
            external("provider", quality=[{"task": "qa", "score": "0.85"}]),
            policy(
                "chat",
                [
                    route("easy", ["compact", "large", "provider"], objective={"interTokenP95": "40ms"}),
                    route("hard", ["compact", "large"], complexity="Complex", objective={"ttftP95": "900ms"}, **floor),
                ],
                referenceTier="large",
                rebalance=rebalance,
            ),
            policy("by-hand", [route("all", [{"name": "large", "weight": 100}])], rebalance={"mode": "Manual"}),
            policy("advice", [route("all", ["compact", "large"])], rebalance={"mode": "Recommend"}),
            budget("month"),
        ],
        demands={
            ("chat", "easy"): Demand(14.0),
            ("chat", "hard"): Demand(3.0, 900.0, 250.0),
            ("by-hand", "all"): Demand(0.4),
            ("advice", "all"): Demand(0.5),
        },
        truths={"compact": Truth(0.010, 0.15, 3200.0), "large": Truth(0.018, 0.3, 1500.0)},
        startup_seconds=8.0,
    )
    for name, value in changes.items():
        setattr(server, name, value)
    return server


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_steady_state_writes_nothing(noise: float) -> None:
    server = demo(noise=noise)
    settle(server)
    start = server.now
    budgets = []
    for _ in range(75):
        server.later(STEP_SECONDS)
        plan = round_of(server)
        assert not said(plan)
        budgets += [server.now for one in plan.statuses if one.target.kind == "NamespaceBudget"]
    seconds = (server.now - start).total_seconds()
    assert len(budgets) <= 1 + seconds / 300
    assert all((b - a).total_seconds() >= 300 for a, b in pairwise(budgets))


def test_settled_world_is_quiet_whenever_it_is_looked_at() -> None:
    server = demo()
    settle(server)
    round_of(server)
    at = server.now
    for seconds in (0.0, 1.0, 10.0, 29.0):
        server.now = at
        server.later(seconds)
        plan = planner.plan(server.world())  # with the signals of before, which grow older
        assert not said(plan)


def test_a_settled_world_stays_quiet_after_a_restart() -> None:
    """Memory and ledger are gone, statuses remain: nothing moves, nothing is said but the budget's own count."""
    server = demo()
    settle(server)
    from tierwise.core.ledger import Ledger
    from tierwise.core.memory import LoopMemory

    server.store.memory, server.store.ledger = LoopMemory(), Ledger()
    for _ in range(30):
        server.later(STEP_SECONDS)
        assert not said(round_of(server))


def test_equal_worlds_give_equal_plans() -> None:
    server = demo()
    server.measure()
    assert planner.plan(server.world()) == planner.plan(server.world())


def test_first_round_says_everything_once() -> None:
    server = demo()
    plan = planner.plan(server.world())
    assert {m["kind"] for m in plan.apply} == {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }
    assert len({(m["kind"], m["metadata"]["name"]) for m in plan.apply}) == len(plan.apply)
    assert len({one.target for one in plan.statuses}) == len(plan.statuses) == 7


prices = st.sampled_from(["0.50", "1.00", "2.50", "7.00"])
scores = st.sampled_from([None, "0.4", "0.6", "0.8"])


@st.composite
def worlds(draw: st.DrawFn) -> Server:
    tiers: list[dict[str, Any]] = []
    truths = {}
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")])):
        quality = draw(scores)
        tiers.append(
            in_cluster(
                name,
                price=draw(prices),
                low=draw(st.integers(0, 2)),
                high=draw(st.integers(2, 12)),
                rps=draw(st.sampled_from([None, "2", "8"])),
                quality=[{"task": "qa", "score": quality}] if quality else [],
            )
        )
        truths[name] = Truth(draw(st.sampled_from([0.008, 0.02])), 0.2, draw(st.sampled_from([1200.0, 3000.0])))
    if draw(st.booleans()):
        tiers.append(external("ext", prices=draw(st.sampled_from([("0.20", "0.80"), ("3.00", "15.00")]))))
    names = [tier["metadata"]["name"] for tier in tiers]
    classes, demands = [], {}
    for number in range(draw(st.integers(1, 3))):
        used = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        entry = route(f"c{number}", used)
        if draw(st.booleans()):
            entry["objective"] = {"interTokenP95": draw(st.sampled_from(["30ms", "60ms"]))}
        if draw(st.booleans()):
            entry |= {"task": "qa", "quality": {"minScore": draw(st.sampled_from(["0.5", "0.7"]))}}
        classes.append(entry)
        demands["p", f"c{number}"] = Demand(draw(st.sampled_from([0.0, 0.3, 4.0, 11.0])))
    mode = draw(st.sampled_from(["Auto", "Auto", "Recommend", "Manual"]))
    rebalance = {"interval": "5s", "cooldown": "30s", "maxStepPercent": draw(st.sampled_from([20, 50])), "mode": mode}
    objects = [*tiers, policy("p", classes, rebalance=rebalance)]
    if draw(st.booleans()):
        objects.append(budget("b", draw(st.sampled_from(["0.01", "1000"]))))
    return Server(
        objects,
        demands=demands,
        truths=truths,
        noise=draw(st.sampled_from([0.0, 0.03])),
        startup_seconds=10.0,
        secret=draw(st.booleans()),
    )


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_any_world_under_constant_load_comes_to_rest(server: Server) -> None:
    settle(server)
    for _ in range(30):
        server.later(STEP_SECONDS)
        assert not said(round_of(server))
