"""`tierwise costs` on a real cluster: each policy's cost is its part of the provider's bill, after restarts too."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

import budget_support
import support
from budget_support import PAID, Lab
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

CENT = Decimal("0.01")
PRICES = {"paid": PAID}


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), ["costs"]) as running:
        running.set_up(
            "costs",
            running.tier("costs", "paid", PAID),
            *(support.policy(name, [{"name": "paid", "weight": 100}]) for name in ("chat", "batch")),
            budget_support.budget("ceiling", "100000", [(100, "Notify")]),
        )
        running.wait_ready(["costs"])
        yield running


def shown(lab: Lab, folder: Path, *arguments: str) -> dict:
    return budget_support.costs(lab.cluster, "costs", folder, *arguments)


def test_each_policy_costs_its_part_of_the_bill_and_a_restart_forgets_nothing(lab: Lab, tmp_path: Path) -> None:
    bills, before = {}, Decimal(0)
    for policy, count in (("chat", 30), ("batch", 50)):
        lab.send([lab.ask("costs", policy, at=i / 20) for i in range(count)])
        bills[policy] = lab.provider.bill("costs", PRICES) - before
        before += bills[policy]
    lab.settled("costs")
    kept = support.until(
        lambda: [row for row in shown(lab, tmp_path)["rows"] if row["requests"] == 80],
        seconds=20,
        what="the ledger is kept",
    )
    assert kept[0]["tier"] == "paid"
    found = shown(lab, tmp_path, "--by", "policy,class")
    assert all(one["agrees"] for one in found["checks"]), found
    costs = {row["policy"]: Decimal(row["cost"]) for row in found["rows"]}
    print(costs, bills)
    for policy, bill in bills.items():
        assert abs(costs[policy] - bill) <= CENT
    assert sum(costs.values()) == before.quantize(CENT)

    leader = budget_support.leader(lab.cluster)
    lab.cluster.kubectl("delete", "pod", leader, "-n", install.NAMESPACE, "--wait=false", "--grace-period=0", "--force")
    lab.send([lab.ask("costs", "chat", at=i / 20) for i in range(20)])
    support.until(lambda: budget_support.leader(lab.cluster) not in {"", leader}, seconds=60, what="another one leads")
    lab.settled("costs")
    bill = lab.provider.bill("costs", PRICES)
    support.until(
        lambda: sum(row["requests"] for row in shown(lab, tmp_path)["rows"]) == 100,
        seconds=40,
        what="the ledger is kept",
    )
    again = shown(lab, tmp_path, "--by", "policy,purpose")
    print(again)
    assert sum(Decimal(row["measured"]) for row in again["rows"]) == bill.quantize(CENT)
    assert {row["purpose"] for row in again["rows"]} == {"answer"}, "every line kept its detail"
    assert all(one["agrees"] for one in again["checks"])
