"""What application teams may do, or what happens by itself, takes no ceiling away."""

from typing import Any

import pytest
from api_server import NAMESPACE, Demand, Server, budget, external, policy, route

from tierwise import planner
from tierwise.core import ledger

DENY = [{"atPercent": 100, "action": "Deny"}]


def server(*more: dict[str, Any], ceiling: str = "2", **spec: Any) -> Server:
    """6 requests/s for 0.0288 a second."""
    objects = [
        external("provider", prices=("3.00", "15.00")),
        policy("chat", [route("all", ["provider"])], rebalance={"mode": "Manual"}),
        budget("month", ceiling, **{"ladder": DENY, **spec}),
    ]
    return Server([*objects, *more], demands={("chat", "all"): Demand(6.0)})


def rounds(made: Server, count: int) -> None:
    for _ in range(count):
        made.measure()
        made.carry_out(planner.plan(made.world()))
        made.later(5)


def action(made: Server) -> str | None:
    found = made.status("NamespaceBudget", "month").get("enforcement")
    return found["action"] if found else None


def spent(made: Server) -> float:
    return float(ledger.spend(made.store.ledger.accounts[NAMESPACE, "month"]).total)


def test_any_number_of_tiers_leaves_the_count_alone() -> None:
    made = server(*(external(f"idle-{number}") for number in range(140)))
    rounds(made, 20)
    assert action(made) == "Deny"
    assert len(made.status("NamespaceBudget", "month")["checkpoint"]["entries"]) == 1, "those that were used"


def test_many_tiers_that_were_used_are_kept_as_sums() -> None:
    names = [f"t{number}" for number in range(140)]
    objects = [external(name, prices=("3.00", "15.00")) for name in names]
    policies = [
        policy(
            f"p{first}",
            [
                route(
                    "all",
                    [
                        {"name": name, "weight": 16 - 2 * (number > 0)}
                        for number, name in enumerate(names[first : first + 7])
                    ],
                )
            ],
            rebalance={"mode": "Manual"},
        )
        for first in range(0, 140, 7)
    ]
    made = Server(
        [*objects, *policies, budget("month", "1000")],
        demands={(f"p{first}", "all"): Demand(6.0) for first in range(0, 140, 7)},
    )
    rounds(made, 64)
    entries = made.status("NamespaceBudget", "month")["checkpoint"]["entries"]
    assert len(entries) == 128
    shown = sum(float(entry["cost"]) for entry in entries)
    assert shown == pytest.approx(float(made.status("NamespaceBudget", "month")["spent"]), abs=0.01)


def test_more_tiers_than_an_enforcement_may_name() -> None:
    names = [f"t{number}" for number in range(70)]
    objects = [external(name, prices=("3.00", "15.00")) for name in names]
    policies = [policy(f"p-{name}", [route("all", [name])]) for name in names]
    ladder = [{"atPercent": 20, "action": "Downgrade"}, {"atPercent": 100, "action": "Deny"}]
    made = Server([*objects, *policies, budget("month", "2", ladder=ladder)], demands={("p-t0", "all"): Demand(6.0)})
    rounds(made, 30)
    assert action(made) == "Deny"


def test_another_time_zone_forgets_nothing() -> None:
    made = server(ceiling="100", period="Month", timeZone="Asia/Tokyo")
    rounds(made, 20)
    before = spent(made)
    assert before > 1
    made.change("NamespaceBudget", "month", timeZone="UTC")
    rounds(made, 1)
    assert before <= spent(made) <= before + 0.5, "neither forgotten nor estimated anew"
