"""Prometheus is gone while namespaces spend: ceilings hold on worst-case spend, and nothing is lost but what a gateway
takes with it.

Counters of gateways are sums: what was counted during the outage is read when Prometheus is back. Only a gateway that
dies meanwhile leaves a gap that no history fills: it has to be within `status.bound`.

`TIERWISE_OUTAGE_SECONDS` (default 49, `make bench-outage`: 600) says how long Prometheus is gone.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

import budget_support
import support
from budget_support import CENT, FREE, PAID, Lab
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

GONE_SECONDS = int(os.environ.get("TIERWISE_OUTAGE_SECONDS", "49"))
BEFORE_SECONDS = 15
SECONDS = BEFORE_SECONDS + GONE_SECONDS
LOOK_SECONDS = max(4.0, SECONDS / 50)
pytestmark = pytest.mark.timeout(350 + SECONDS)

PRICES = {"free": FREE, "paid": PAID}
HELD = ("outage", "outage-fallback", "outage-ladder")
NAMESPACES = (*HELD, "outage-calm", "outage-crash")
DOWN = {"outage-fallback/free": "503"}  # all that costs something there is fallback, of a tier without weight
RATE = 4
EACH = PAID.of({"prompt": 35, "completion": budget_support.TOKENS})
CEILING = (EACH * RATE * SECONDS * Decimal("0.9")).quantize(Decimal(1))
"""Would be reached at nine tenths of the load."""
THROTTLED = 60
LADDER = [(30, "Notify"), (THROTTLED, "Throttle"), (100, "Deny")]


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), NAMESPACES) as running:
        for namespace in NAMESPACES:
            first = "free" if namespace == "outage-fallback" else "paid"
            ladder = LADDER if namespace == "outage-ladder" else [(100, "Deny")]
            running.set_up(
                namespace,
                running.tier(namespace, "paid", PAID),
                running.tier(namespace, "free", FREE),
                support.policy(
                    "chat",
                    [{"name": name, "weight": 100 if name == first else 0} for name in ("free", "paid")],
                    fallback={"when": ["ServerError"], "attempts": 2},
                ),
                budget_support.budget("ceiling", str(CEILING) if namespace in HELD else "100000", ladder),
            )
        running.wait_ready(NAMESPACES)
        yield running
        set_prometheus(platform, running=True)


def set_prometheus(cluster: Cluster, *, running: bool) -> None:
    cluster.kubectl("scale", "-n", "monitoring", "deployment/prometheus", f"--replicas={int(running)}")
    if running:
        cluster.kubectl("rollout", "status", "-n", "monitoring", "deployment/prometheus", "--timeout=60s")


@dataclass
class Watch:
    """What the deciding operator said by its own metrics, beside the bill of that moment; printed as it goes on.

    Attributes:
        rungs: namespace -> the rungs that were seen, in percent, one after another (0: below the first).
    """

    lab: Lab
    rungs: dict[str, list[int]] = field(default_factory=dict)

    def look(self, since: float) -> None:
        path = (
            f"/api/v1/namespaces/{install.NAMESPACE}/pods/{budget_support.leader(self.lab.cluster)}:8080/proxy/metrics"
        )
        found: dict[tuple[str, str], Decimal] = {}
        rungs: dict[str, int] = {}
        for family in text_string_to_metric_families(self.lab.cluster.kubectl("get", "--raw", path).stdout):
            for sample in family.samples:
                namespace = sample.labels.get("namespace", "")
                if sample.name in {"tierwise_cost_total", "tierwise_cost_not_shared"}:
                    key = (namespace, sample.name.removeprefix("tierwise_"))
                    found[key] = found.get(key, Decimal(0)) + Decimal(str(sample.value))
                if sample.name == "tierwise_budget_rung":
                    rungs[namespace] = int(sample.value)
        parts = []
        for namespace in NAMESPACES:
            counted, pending = (found.get((namespace, name), Decimal(0)) for name in ("cost_total", "cost_not_shared"))
            rung = rungs.get(namespace, 0)
            seen = self.rungs.setdefault(namespace, [])
            if seen[-1:] != [rung]:
                seen.append(rung)
            bill = self.lab.provider.bill(namespace, PRICES)
            parts.append(
                f"{namespace.removeprefix('outage')[1:] or 'deny'} {bill:.0f}/{counted:.0f}+{pending:.0f}@{rung}"
            )
        print(f"{time.time() - since:6.1f} s  bill/counted+worst case@rung:  {',  '.join(parts)}", flush=True)


@contextlib.contextmanager
def watched(lab: Lab, since: float) -> Iterator[Watch]:
    """Look again and again."""
    watch, over = Watch(lab), threading.Event()

    def run() -> None:
        while not over.wait(LOOK_SECONDS):
            watch.look(since)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join(30)


def test_without_metrics_the_ceiling_holds_and_only_a_gateway_that_dies_loses_anything(lab: Lab) -> None:
    doomed, *others = lab.urls
    pod = budget_support.gateways(lab.cluster)[doomed]
    other = {"url": others[0]}
    asks = [
        *budget_support.paced(lab.ask("outage", **other), rate=RATE, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-ladder", **other), rate=RATE, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-fallback", fates=DOWN, **other), rate=RATE, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-calm", **other), rate=RATE / 4, seconds=SECONDS),
        *budget_support.paced(lab.ask("outage-crash", url=doomed), rate=RATE / 4, seconds=SECONDS),
    ]
    load = lab.load(asks)
    began = time.time()
    with watched(lab, began) as watch:
        time.sleep(BEFORE_SECONDS)
        set_prometheus(lab.cluster, running=False)
        gone = time.time()
        time.sleep(GONE_SECONDS / 2)
        (pid,) = lab.cluster.pod_pids(install.NAMESPACE, pod).values()
        os.kill(pid, signal.SIGKILL)
        records = load.records(SECONDS + 120)
        assert not support.pods(lab.cluster, "monitoring", "app.kubernetes.io/name=prometheus"), "gone all the while"
    print(f"Prometheus was gone for {time.time() - gone:.0f} s; rungs: {watch.rungs}")
    for namespace in HELD:
        bill = lab.provider.bill(namespace, PRICES)
        sent = [one for one in records if one["model"] == f"{namespace}/chat"]
        refused = budget_support.denied(sent)
        first = min((one["start"] for one in refused), default=0.0) - began
        print(f"{namespace}: bill {bill:.2f} of {CEILING}; denied {len(refused)} of {len(sent)}, from {first:.0f} s")
        assert CEILING / 5 < bill <= CEILING
        rungs = watch.rungs[namespace]
        assert rungs == sorted(rungs), "no rung is left while nobody counts"
        if namespace == "outage-ladder":
            assert rungs[-1] >= THROTTLED, "worst-case spend climbs the ladder while nobody counts"
            continue
        assert refused, "worst-case spend reaches the ceiling while nobody counts"
        assert first > BEFORE_SECONDS, "and not before"
        last = [one for one in sent if one["start"] > max(one["start"] for one in sent) - 10]
        assert len(budget_support.denied(last)) == len(last)
    # Others are far from their ceilings: they are served, and their spend of the outage is not lost.
    assert {one["status"] for one in records if one["model"] == "outage-calm/chat"} == {200}
    set_prometheus(lab.cluster, running=True)
    back = time.time()
    support.until(lambda: counted(lab), seconds=60, what="what gateways counted meanwhile is read")
    print(f"counted {time.time() - back:.0f} s after Prometheus is back")
    for namespace in NAMESPACES:
        figures = lab.settled(namespace)
        bill = lab.provider.bill(namespace, PRICES)
        shown = {name: figures[name] for name in ("measured", "estimated", "spent", "bound", "gatewaysLost")}
        print(f"{namespace}: bill {bill:.2f}, {shown}, rung {figures.get('rung')}")
        assert figures["gatewaysLost"] == 1
        if namespace == "outage-crash":
            # What the dead gateway had counted since Prometheus went is in no history: it is bounded.
            lost = bill - budget_support.amount(figures, "spent")
            print(f"lost {lost:.2f}")
            assert lost > EACH, "it did count something that nobody scraped"
            assert budget_support.amount(figures, "spent") + budget_support.amount(figures, "bound") >= bill
        else:
            budget_support.check_exact(figures, bill)


def counted(lab: Lab) -> bool:
    """A namespace that nothing was lost of: its bill is in its figures."""
    figures = lab.settled("outage-calm")
    return abs(budget_support.amount(figures, "measured") - lab.provider.bill("outage-calm", PRICES)) <= CENT
