"""Operators that are killed on each rung: the rung stays, nothing slips through, spending goes on where it was."""

import os
import signal
import time
from collections.abc import Iterator
from decimal import Decimal

import pytest

import budget_support
import support
from budget_support import FREE, PAID, Lab
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

PRICES = {"free": FREE, "paid": PAID}
# Spent before: 20 requests of 0.87 each, 17.40. Ceilings and ladders are so far apart that no haste changes the rung.
LADDERS = {
    "below": ("100000", [(50, "Notify"), (100, "Deny")]),
    "notify": ("1000", [(1, "Notify"), (100, "Deny")]),
    "downgrade": ("1000", [(1, "Downgrade"), (100, "Deny")]),
    "throttle": ("1000", [(1, "Throttle"), (100, "Deny")]),
    "deny": ("16", [(100, "Deny")]),
    # Denied before the money is gone, for what is under way: also then a restart gives nothing back.
    "ahead": ("60", [(100, "Deny")]),
}
ACTIONS = {
    "below": None,
    "notify": "Notify",
    "downgrade": "Downgrade",
    "throttle": "Throttle",
    "deny": "Deny",
    "ahead": "Deny",
}
CENT = Decimal("0.01")
SECONDS = 34
"""The operators are gone for some of it, and somebody decides again at the end of it."""


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), LADDERS) as running:
        for namespace, (ceiling, ladder) in LADDERS.items():
            running.set_up(
                namespace,
                running.tier(namespace, "paid", PAID),
                running.tier(namespace, "free", FREE),
                support.policy("chat", [{"name": "paid", "weight": 100}, {"name": "free", "weight": 0}]),
                budget_support.budget("ceiling", ceiling, ladder),
            )
        running.wait_ready(LADDERS)
        yield running


def kill_operators(cluster: Cluster) -> None:
    for pod in support.pods(cluster, install.NAMESPACE, "tierwise.dev/component=operator"):
        for pid in cluster.pod_pids(install.NAMESPACE, pod["metadata"]["name"]).values():
            os.kill(pid, signal.SIGKILL)


def rung(figures: dict) -> tuple:
    enforcement = dict(figures.get("enforcement", {}))
    # A throttle's rate follows what is left; what is decided does not.
    for name in ("requestsPerSecond", "tokensPerSecond"):
        enforcement.pop(name, None)
    return figures.get("rung", {}).get("action"), figures.get("since"), enforcement


def test_a_restart_on_any_rung_changes_nothing(lab: Lab) -> None:
    asks = [lab.ask(namespace, at=i / 10) for namespace in LADDERS if namespace != "ahead" for i in range(20)]
    lab.send([*asks, *budget_support.paced(lab.ask("ahead"), rate=6, seconds=16)])

    def arrived() -> dict[str, dict] | None:
        found = {namespace: budget_support.status(lab.cluster, namespace) for namespace in LADDERS}
        return found if {name: rung(one)[0] for name, one in found.items()} == ACTIONS else None

    before = support.until(arrived, seconds=30, what="each namespace is on its rung", every=1)
    assert lab.provider.bill("below", PRICES) == lab.provider.bill("notify", PRICES) > 17
    denying = {name: len(lab.provider.attempts(name)) for name in ("deny", "ahead")}
    # Through the time without operators, and until one decides again.
    asks = [
        *budget_support.paced(lab.ask("deny"), rate=10, seconds=SECONDS),
        *budget_support.paced(lab.ask("ahead"), rate=5, seconds=SECONDS),
        *budget_support.paced(lab.ask("below"), rate=2, seconds=SECONDS),
        *budget_support.paced(lab.ask("downgrade"), rate=1, seconds=SECONDS),
    ]
    load = lab.load(asks)
    time.sleep(3)
    old = budget_support.leader(lab.cluster)
    killed = time.time()
    kill_operators(lab.cluster)
    records = load.records()
    quiet = time.time()
    print(f"leader {old}, then {budget_support.leader(lab.cluster)}")
    for name, rate in (("deny", 10), ("ahead", 5)):
        sent = [one for one in records if of(one, name)]
        through = [one for one in sent if one not in budget_support.denied([one])]
        print(f"{name}: {len(sent)} sent, not refused by the ceiling: {through[:3]}")
        assert len(sent) == rate * SECONDS
        assert not through, "no request slips through"
        assert len(lab.provider.attempts(name)) == denying[name]
    downgraded = [one for one in records if of(one, "downgrade")]
    assert {one["tier"] for one in downgraded} == {"free"}
    # Decided and counted anew: the same rungs, since the same moments, and all that was spent meanwhile.
    for namespace in LADDERS:
        figures = lab.settled(namespace, quiet_since=quiet)
        assert rung(figures) == rung(before[namespace]), namespace
        assert budget_support.moment(figures["checkpoint"]["time"]).timestamp() > killed
        bill = lab.provider.bill(namespace, PRICES)
        print(namespace, figures["spent"], bill)
        assert abs(budget_support.amount(figures, "spent") - bill) <= CENT, namespace
    assert lab.provider.bill("below", PRICES) > lab.provider.bill("notify", PRICES)


def of(record: dict, namespace: str) -> bool:
    return record["model"].split("/")[0] == namespace
