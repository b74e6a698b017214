"""What a ceiling does holds: tiers without a price, two budgets in one namespace, every gateway.

What was let through is told by the provider's log, what was refused by the clients.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import budget_support
import support
from budget_support import FREE, PAID, Lab, Price
from tierwise.core import budget as calendar
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

PRICES = {"free": FREE, "paid": PAID}
CEILING = Decimal(120)
RATE, SECONDS = 8, 24
"""Which alone would go beyond the ceiling and its bound; a ladder that looks ahead stops long before."""
NAMESPACES = ("unpriced", "allowed", "two", "everywhere", "free-then-paid")
FALLBACK = {"when": ["ServerError", "ConnectFailure"], "attempts": 2}


def weighted(**weights: int) -> list[dict]:
    return [{"name": name, "weight": weight} for name, weight in weights.items()]


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), NAMESPACES) as running:
        ceiling = budget_support.budget("ceiling", str(CEILING))
        for namespace in ("unpriced", "allowed"):
            running.set_up(
                namespace,
                running.tier(namespace, "paid", PAID),
                running.tier(namespace, "nobody-knows", None),
                support.policy("chat", weighted(paid=50, **{"nobody-knows": 50}), fallback=FALLBACK),
                support.policy("alone", weighted(**{"nobody-knows": 100})),
                budget_support.budget("ceiling", "1000", unpriced="Allow" if namespace == "allowed" else "Deny"),
            )
        running.set_up(
            "two",
            running.tier("two", "paid", PAID),
            support.policy("chat", weighted(paid=100)),
            budget_support.budget("a-tight", str(CEILING), period="Day"),
            budget_support.budget("b-wide", "100000", [(1, "Notify"), (100, "Deny")]),
        )
        running.set_up(
            "everywhere", running.tier("everywhere", "paid", PAID), support.policy("chat", weighted(paid=100)), ceiling
        )
        running.set_up(
            "free-then-paid",
            running.tier("free-then-paid", "free", FREE),
            running.tier("free-then-paid", "paid", PAID),
            support.policy("chat", weighted(free=100, paid=0), fallback=FALLBACK),
            ceiling,
        )
        running.wait_ready(set(NAMESPACES) - {"unpriced"})
        yield running


def resets(kind: str, zone: str = "UTC") -> datetime:
    return calendar.period(kind, zone, datetime.now(UTC))[1]


def check_bound(lab: Lab, namespace: str, records: list[dict]) -> None:
    """The ceiling held up to the burn rate times the reaction."""
    bill = lab.provider.bill(namespace, PRICES)
    each = PAID.of(next(one for one in lab.provider.attempts(namespace, "paid") if one["fate"] == "ok"))
    bound = Decimal(str(RATE * budget_support.REACTION_SECONDS)) * each
    refused = budget_support.denied(records)
    print(f"{namespace}: bill {bill:.2f}, ceiling {CEILING}, bound {bound:.2f}, {len(refused)} refused")
    budget_support.check_held(records, bill, ceiling=CEILING, bound=bound)


@pytest.fixture(scope="module")
def race(lab: Lab) -> list[dict]:
    """Three namespaces on their way to their ceilings, at three gateways."""
    lab.cluster.kubectl("scale", "-n", install.NAMESPACE, "deployment/tierwise-gateway", "--replicas=3")
    try:
        support.until(lambda: len(lab.urls) == 3, seconds=60, what="three gateways")
        down = {"free-then-paid/free": "503"}
        return lab.send(
            [
                *budget_support.paced(lab.ask("everywhere"), rate=RATE, seconds=SECONDS),
                *budget_support.paced(lab.ask("free-then-paid", fates=down), rate=RATE, seconds=SECONDS),
                *budget_support.paced(lab.ask("two"), rate=RATE, seconds=SECONDS),
            ]
        )
    finally:
        lab.cluster.kubectl("scale", "-n", install.NAMESPACE, "deployment/tierwise-gateway", "--replicas=2")


def of(records: list[dict], namespace: str) -> list[dict]:
    return [one for one in records if one["model"] == f"{namespace}/chat"]


def test_the_ceiling_holds_at_every_gateway(lab: Lab, race: list[dict]) -> None:
    records = of(race, "everywhere")
    check_bound(lab, "everywhere", records)
    refused = budget_support.denied(records)
    assert {one["url"] for one in refused} == {one["url"] for one in records}
    assert len({one["url"] for one in refused}) == 3
    for one in refused:
        budget_support.check_denial(one, budget="everywhere/ceiling", resets_at=resets("Month"))


def test_a_paid_fallback_of_a_free_tier_is_held_by_the_ceiling(lab: Lab, race: list[dict]) -> None:
    check_bound(lab, "free-then-paid", of(race, "free-then-paid"))


def test_a_tier_without_price_serves_no_namespace_with_a_ceiling(lab: Lab) -> None:
    # Half of the weight, and the fallback of what fails elsewhere: none of it goes there.
    asks = [lab.ask("unpriced", at=i / 20, fates={"unpriced/paid": "503"} if i % 4 == 0 else {}) for i in range(40)]
    records = lab.send([*asks, *budget_support.paced(lab.ask("unpriced", "alone"), rate=10, seconds=1)])
    assert lab.provider.attempts("unpriced", "nobody-knows") == []
    assert len(lab.provider.attempts("unpriced", "paid")) >= 40
    statuses = {one["status"] for one in records}
    refused = [one for one in records if one["status"] not in {200, 503}]
    print(statuses, refused[-1])
    assert len([one for one in records if one["status"] == 200]) == 30
    # Once it has a price it serves.
    lab.apply("unpriced", lab.tier("unpriced", "nobody-knows", Price(Decimal(1), Decimal(1))))
    support.until(
        lambda: lab.send([lab.ask("unpriced", "alone")])[0]["status"] == 200, seconds=20, what="a priced tier serves"
    )


def test_a_tier_without_price_serves_where_the_budget_allows_it(lab: Lab) -> None:
    records = lab.send(budget_support.paced(lab.ask("allowed", "alone"), rate=10, seconds=1))
    assert {one["status"] for one in records} == {200}
    assert len(lab.provider.attempts("allowed", "nobody-knows")) == 10
    figures = lab.settled("allowed")
    assert any("nobody-knows" in one for one in figures["unknown"]), "never taken for zero"
    assert any(c["type"] == "SpendUnknown" and c["status"] == "True" for c in figures["conditions"])


def test_of_two_budgets_the_strictest_holds_and_is_named(lab: Lab, race: list[dict]) -> None:
    records = of(race, "two")
    check_bound(lab, "two", records)
    for one in budget_support.denied(records):
        budget_support.check_denial(one, budget="two/a-tight", resets_at=resets("Day"))
    # Both count all of it.
    bill, quiet = lab.provider.bill("two", PRICES).quantize(Decimal("0.01")), time.time()
    for name in ("a-tight", "b-wide"):
        assert budget_support.amount(lab.settled("two", name, quiet_since=quiet), "spent") == bill
    # Now the other one denies as well, and longer: raising the first helps nobody.
    lab.apply("two", budget_support.budget("b-wide", "10", [(1, "Notify"), (100, "Deny")]))
    support.until(
        lambda: budget_support.status(lab.cluster, "two", "b-wide").get("enforcement", {}).get("action") == "Deny",
        seconds=20,
        what="the second denies",
    )
    lab.apply("two", budget_support.budget("a-tight", "100000", period="Day"))
    support.until(
        lambda: "enforcement" not in budget_support.status(lab.cluster, "two", "a-tight"),
        seconds=20,
        what="the first lets go",
    )
    for one in lab.send(budget_support.paced(lab.ask("two"), rate=10, seconds=1)):
        budget_support.check_denial(one, budget="two/b-wide", resets_at=resets("Month"))
