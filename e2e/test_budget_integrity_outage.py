"""Prometheus is gone while a namespace spends: the ceiling holds on worst-case spend, and nothing is lost.

Counters of gateways are sums: what was counted during the outage is read when Prometheus is back.
"""

import time
from collections.abc import Iterator
from decimal import Decimal

import pytest

import budget_support
import support
from budget_support import FREE, PAID, Lab
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

PRICES = {"free": FREE, "paid": PAID}
HELD = ("outage", "outage-fallback")
NAMESPACES = (*HELD, "outage-calm")
DOWN = {"outage-fallback/free": "503"}  # all that costs something there is fallback, of a tier without weight
CEILING = Decimal(200)
RATE = 4  # 3.50 a second: the ceiling is reached after 57 s
SECONDS = 64
BEFORE_SECONDS = 15


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), NAMESPACES) as running:
        for namespace in NAMESPACES:
            first = "free" if namespace == "outage-fallback" else "paid"
            running.set_up(
                namespace,
                running.tier(namespace, "paid", PAID),
                running.tier(namespace, "free", FREE),
                support.policy(
                    "chat",
                    [{"name": name, "weight": 100 if name == first else 0} for name in ("free", "paid")],
                    fallback={"when": ["ServerError"], "attempts": 2},
                ),
                budget_support.budget("ceiling", str(CEILING) if namespace in HELD else "100000"),
            )
        running.wait_ready(NAMESPACES)
        yield running
        set_prometheus(platform, running=True)


def set_prometheus(cluster: Cluster, *, running: bool) -> None:
    cluster.kubectl("scale", "-n", "monitoring", "deployment/prometheus", f"--replicas={int(running)}")
    if running:
        cluster.kubectl("rollout", "status", "-n", "monitoring", "deployment/prometheus", "--timeout=60s")


def test_without_metrics_the_ceiling_holds_and_nothing_is_lost(lab: Lab) -> None:
    asks = [
        *budget_support.paced(lab.ask("outage"), rate=RATE, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-fallback", fates=DOWN), rate=RATE, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-calm"), rate=RATE / 4, seconds=SECONDS),
    ]
    load = lab.load(asks)
    time.sleep(BEFORE_SECONDS)
    set_prometheus(lab.cluster, running=False)
    gone = time.time()
    records = load.records()
    assert not support.pods(lab.cluster, "monitoring", "app.kubernetes.io/name=prometheus"), "gone all the while"
    for namespace in HELD:
        bill = lab.provider.bill(namespace, PRICES)
        sent = [one for one in records if one["model"] == f"{namespace}/chat"]
        refused = budget_support.denied(sent)
        print(f"{namespace}: bill {bill:.2f} of {CEILING}; refused {len(refused)} of {len(sent)}")
        assert refused, "worst-case spend reaches the ceiling while nobody counts"
        assert min(one["start"] for one in refused) > gone, "and not before"
        assert CEILING / 5 < bill <= CEILING
        last = [one for one in sent if one["start"] > max(one["start"] for one in sent) - 10]
        assert len(budget_support.denied(last)) == len(last)
    # The other namespace is far from its ceiling: it is served, and its spend of the outage is not lost.
    calm = [one for one in records if one["model"] == "outage-calm/chat"]
    assert {one["status"] for one in calm} == {200}
    set_prometheus(lab.cluster, running=True)
    time.sleep(3 * budget_support.READ_SECONDS)
    for namespace in NAMESPACES:
        figures = lab.settled(namespace)
        exact = lab.provider.bill(namespace, PRICES).quantize(Decimal("0.01"))
        print(namespace, figures["measured"], figures["spent"], exact)
        assert budget_support.amount(figures, "measured") == exact, namespace
