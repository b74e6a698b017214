"""What a ceiling does about bursts: relief while the money lasts, less headroom before requests are refused."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from api_server import Demand, Server, budget, external, in_cluster, policy, route
from test_ladder_loop import FAST, Metered

from tierwise import planner
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import afford, ceiling, decide, enforcement, situation, state
from tierwise.core.hold import Hold
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.outlook import Outlook, outlook
from tierwise.core.situation import Situation
from tierwise.core.world import Key
from tierwise.sim.replica import Objective, ReplicaParams
from tierwise.simulate import fluid
from tierwise.simulate.driver import PlannerLoop
from tierwise.simulate.run import Runner
from tierwise.simulate.signals import Observer

NIGHT = datetime(2026, 3, 10, 23, 40, tzinfo=UTC)
"""Twenty minutes before a day's budget ends."""
RATE_PER_HOUR = 6 * (600 * 3 + 200 * 15) / 1e6 * 3600
LADDER = [{"atPercent": 1, "action": "Downgrade", "belowFloor": True}, {"atPercent": 99, "action": "Throttle"}]


def made(amount: float, ladder: list | None = None, *, now: datetime = NIGHT) -> Server:
    """6 requests/s at a provider, 104 USD an hour: 34.6 until the day ends."""
    server = Server(
        [
            external("provider", prices=("3.00", "15.00")),
            policy("chat", [route("all", ["provider"])], rebalance={"mode": "Manual"}),
            budget("month", f"{amount:.2f}", period="Day", ladder=ladder or LADDER),
        ],
        demands={("chat", "all"): Demand(6.0)},
        now=now,
    )
    for manifest in list(server.objects.values()):
        manifest["metadata"]["creationTimestamp"] = now.isoformat()
        server.put(manifest)
    return server


def rounds(server: Server, count: int) -> dict:
    for _ in range(count):
        server.measure()
        server.carry_out(planner.plan(server.world()))
        server.later(5)
    found: dict = server.status("NamespaceBudget", "month")["enforcement"]
    return found


def test_saturated_tiers_give_way_while_the_money_lasts_and_not_while_it_is_short() -> None:
    assert rounds(made(RATE_PER_HOUR), 40).get("relief") is True
    assert not rounds(made(RATE_PER_HOUR / 6), 40).get("relief", False)


def test_short_money_is_relied_on_again_after_a_while() -> None:
    server = made(RATE_PER_HOUR / 6)
    rounds(server, 40)
    server.change("NamespaceBudget", "month", ceiling="500.00")
    assert not rounds(server, 20).get("relief", False)
    assert rounds(server, 120).get("relief") is True


def test_a_throttle_gives_way_to_nobody() -> None:
    found = rounds(made(RATE_PER_HOUR, [{"atPercent": 1, "action": "Throttle"}]), 40)
    assert (found["action"], found.get("relief", False)) == ("Throttle", False)


@pytest.mark.parametrize(("first", "second", "relieved"), [(True, True, True), (True, False, False)])
def test_of_several_budgets_the_strictest_says(first: bool, second: bool, relieved: bool) -> None:
    def saying(relief: bool) -> NamespaceBudget:
        told = {
            "action": "Downgrade",
            "since": "2026-03-10T00:00:00Z",
            "resetsAt": "2026-03-11T00:00:00Z",
            "tiers": ["provider"],
            "relief": relief,
        }
        return NamespaceBudget.parse(budget("b", "1.00") | {"status": {"enforcement": told}})

    assert ceiling.of_class({"a": saying(first), "b": saying(second)}, "chat", "all").relief is relieved
    assert ceiling.of_class({}, "chat", "all").relief


def test_nothing_is_in_flight_beyond_the_end_of_the_period(monkeypatch: pytest.MonkeyPatch) -> None:
    server, seen = made(500.0), {}

    def noted(*given: Any) -> Outlook:
        found = outlook(*given)
        seen[float(found.hours_left) * 3600] = found.in_flight
        return found

    monkeypatch.setattr(planner.outlook, "outlook", noted)
    rounds(server, int(20 * 60 / 5) - 1)
    usual = max(value for left, value in seen.items() if 100 < left < 300)
    last = min(value for left, value in seen.items() if 0 < left <= 10)
    assert 0 < last < usual / 3


def test_a_throttle_is_not_lifted_because_what_it_lets_through_is_little() -> None:
    """One replica runs anyway and carries what gets in; the 20 requests/s outside would need seven."""
    server = Server(
        [
            in_cluster("own", price="2.00", rps="4", low=1, high=8, startup=10),
            policy("chat", [route("all", ["own"])], rebalance=FAST),
            budget(
                "month",
                "4.50",
                ladder=[{"atPercent": 70, "action": "Throttle"}, {"atPercent": 100, "action": "Deny"}],
                period="Day",
                timeZone="Pacific/Auckland",
            ),
        ],
        demands={("chat", "all"): Demand(20.0)},
        startup_seconds=10.0,
    )
    lab = Metered(server, 20.0)
    told = lab.run(5400)
    begun = told.index("Throttle")
    assert set(told[begun:]) <= {"Throttle", "Deny"}
    assert float(lab.told["requestsPerSecond"]) > 1
    assert lab.spent <= 4.5


def test_requests_that_cost_nothing_are_not_throttled() -> None:
    """Nobody's replicas bound a provider that is free; a rate of nothing would deny."""
    server = made(RATE_PER_HOUR / 6, [{"atPercent": 50, "action": "Throttle"}])
    assert rounds(server, 60)["action"] == "Throttle"
    server.put(external("free", prices=("0", "0")))
    server.change("RoutingPolicy", "chat", classes=[route("all", ["free"])])
    told = rounds(server, 30)
    assert (told["action"], told.get("requestsPerSecond")) == ("Downgrade", None)


def test_what_exempt_classes_take_of_the_least_replicas_is_not_given_away() -> None:
    view = bursting()
    one, decision = view.classes[0], decide.decide(view)
    alone = enforcement._free(view, [one], [], decision)
    assert alone is not None
    assert one.demand is not None
    exempt = replace(one, demand=replace(one.demand, ahead=0.75 * alone))
    assert enforcement._free(view, [one], [exempt], decision) == pytest.approx(0.25 * alone)
    busy = replace(one, demand=replace(one.demand, ahead=3 * alone))
    assert enforcement._free(view, [one], [busy], decision) == 0
    unknown = replace(view, tiers={"own": replace(view.tiers["own"], capacity=None)})
    assert enforcement._free(unknown, [one], [], decision) is None


def test_an_operator_that_restarts_does_not_relieve_before_it_knows_that_money_lasts() -> None:
    server = made(RATE_PER_HOUR / 6)
    assert not rounds(server, 40).get("relief", False)
    server.store.forget_usage()
    server.store.ledger, server.store.memory = Ledger(), LoopMemory()
    for _ in range(4):
        assert not rounds(server, 1).get("relief", False)


def bursting() -> Situation:
    """One class on one tier, whose busiest ten seconds are three times the mean."""
    params = ReplicaParams(a_ms=10.0, b_ms=0.1, g_ms=0.05, p0_ms=20.0, p1_ms=20.0, p2_ms=0.0, kv_tokens=1_000_000)
    engine = fluid.Fluid(
        (fluid.FluidTier("own", params, price_per_hour=2.0, startup_seconds=30.0),),
        (fluid.FluidClass("all", Objective(1.0, 0.04), 1000.0, {"own": 70.0}),),
    )
    floor = {"minScore": "0.70"}
    entry = route("all", ["own"], task="qa", quality=floor, objective={"interTokenP95": "40ms"})
    own = in_cluster("own", price="2.00", rps="20", low=1, high=50, quality=[{"task": "qa", "score": "0.70"}])
    loop = PlannerLoop(
        "legal",
        {Key("legal", "own"): ModelTier.parse(own)},
        RoutingPolicy.parse(policy("chat", [entry], rebalance=FAST)),
    )
    runner = Runner(engine, loop, Observer("legal", "chat"), 60.0)
    for _ in range(90):
        runner.step({"all": fluid.Demand(3600, 1000, 100, 1800)})
    return situation.view(loop.world(engine.now, runner.newest, engine.state), loop.memory, "legal", loop.settings)


def test_headroom_of_a_class_that_is_exempt_stays() -> None:
    view = bursting()
    plain, tight = decide.decide(view), decide.decide(replace(view, hold=Hold(share=0.7)))
    assert plain.solution is not None
    assert tight.solution is not None
    assert tight.solution.replicas == plain.solution.replicas


def test_headroom_for_bursts_gives_way_where_floors_can_not() -> None:
    """The class has one tier: nothing to downgrade to. Rather some slow requests than refused ones."""
    view = bursting()
    plain = decide.decide(view)
    key = view.classes[0].key
    short = Hold(downgraded=frozenset({key}), waiting=frozenset({key}), below_floor=frozenset({key}), share=0.7)
    tight = decide.decide(replace(view, hold=short))
    assert plain.solution is not None
    assert tight.solution is not None
    assert tight.solution.replicas["own"] < plain.solution.replicas["own"]
    # But not what carries the mean.
    mean = afford.solve(state.state(view, factors={"own": 1.0}))
    assert mean is not None
    assert tight.solution.replicas["own"] >= mean.replicas["own"]
