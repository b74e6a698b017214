"""Budgets count what providers bill: through fallback, gateways, streams without usage, clients that leave, crashes.

The bill is the provider's own log. What the ledger counted must be that bill: exactly where usage was reported, never
less where it was not.
"""

import os
import signal
import time
from collections.abc import Iterator
from decimal import Decimal

import pytest

import budget_support
import support
from budget_support import FREE, PAID, Lab, Price
from tierwise.devcluster import install
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

CRASH_SECONDS = 2 * budget_support.SCRAPE_SECONDS
"""What a gateway counted since its last scrape dies with it: an interval, and the scrape's own time on a busy node."""
REPRICED_SECONDS = budget_support.SCRAPE_SECONDS + budget_support.READ_SECONDS
"""What was counted, but not read yet when a price changed is charged at the new one."""

NAMESPACES = ("fallback", "gateways", "silent", "leaving", "crash", "repriced")


@pytest.fixture(scope="module")
def lab(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(platform, tmp_path_factory.mktemp("provider"), NAMESPACES) as running:
        for namespace in NAMESPACES:
            first = "free" if namespace == "fallback" else "paid"
            tiers = [{"name": name, "weight": 100 if name == first else 0} for name in ("free", "paid")]
            running.set_up(
                namespace,
                running.tier(namespace, "free", FREE),
                running.tier(namespace, "paid", PAID),
                support.policy("chat", tiers, fallback={"when": ["ServerError", "ConnectFailure"], "attempts": 2}),
                budget_support.budget("ceiling", "100000", [(100, "Notify")]),
            )
        running.wait_ready(NAMESPACES)
        yield running


PRICES = {"free": FREE, "paid": PAID}


def test_a_free_tiers_paid_fallback_is_charged(lab: Lab) -> None:
    down = {"fallback/free": "503"}
    asks = [lab.ask("fallback", at=i / 20, stream=i % 3 == 0, fates=down if i % 2 else {}) for i in range(40)]
    records = lab.send(asks)
    assert [one["tier"] for one in records].count("paid") == 20
    assert len(lab.provider.attempts("fallback", "free")) == 40
    figures = lab.settled("fallback")
    bill = lab.provider.bill("fallback", PRICES)
    print(figures["spent"], bill)
    assert bill > 10
    budget_support.check_exact(figures, bill)


def test_several_gateways_neither_multiply_nor_lose(lab: Lab) -> None:
    lab.cluster.kubectl("scale", "-n", install.NAMESPACE, "deployment/tierwise-gateway", "--replicas=3")
    try:
        urls = support.until(lambda: len(lab.urls) == 3 and lab.urls, seconds=60, what="three gateways")
        time.sleep(2 * budget_support.SCRAPE_SECONDS)
        shares = zip(urls, (7, 11, 13), strict=True)
        asks = [
            lab.ask("gateways", url=url, at=i / 10, stream=i % 2 == 0) for url, count in shares for i in range(count)
        ]
        records = lab.send(asks)
        assert {one["url"] for one in records} == set(urls)
        figures = lab.settled("gateways")
    finally:
        lab.cluster.kubectl("scale", "-n", install.NAMESPACE, "deployment/tierwise-gateway", "--replicas=2")
    bill = lab.provider.bill("gateways", PRICES)
    print(figures["spent"], bill)
    assert len(lab.provider.attempts("gateways")) == 31
    budget_support.check_exact(figures, bill)
    # The third is gone: what it counted stays counted, and once.
    records = lab.send([lab.ask("gateways") for _ in range(5)])
    figures = lab.settled("gateways")
    budget_support.check_exact(figures, lab.provider.bill("gateways", PRICES))


def test_streams_without_usage_are_estimated_on_the_high_side(lab: Lab) -> None:
    fates = {"silent/paid": "silent"}
    lab.send([lab.ask("silent", at=i / 20, stream=True, fates=fates, tokens=10 + i) for i in range(20)])
    figures = lab.settled("silent")
    bill = lab.provider.bill("silent", PRICES)
    print(figures["spent"], bill)
    assert {(one["reported"], one["completion"] > 0) for one in lab.provider.attempts("silent")} == {(False, True)}
    budget_support.check_bounded(figures, bill)


def test_streams_that_clients_leave_are_counted(lab: Lab) -> None:
    fates = {"leaving/paid": "endless"}
    asks = [lab.ask("leaving", at=i / 20, stream=True, fates=fates, leave=5 + i, max_tokens=4000) for i in range(20)]
    records = lab.send(asks)
    assert all(one["left"] for one in records)
    support.until(lambda: len(lab.provider.attempts("leaving")) == 20, seconds=20, what="the provider has stopped")
    figures = lab.settled("leaving")
    bill = lab.provider.bill("leaving", PRICES)
    print(figures["spent"], bill)
    budget_support.check_bounded(figures, bill)


def test_a_gateway_that_is_killed_loses_at_most_what_it_had_counted_since_its_last_scrape(lab: Lab) -> None:
    urls = lab.urls
    pods = budget_support.gateways(lab.cluster)
    load = lab.load(budget_support.paced(lab.ask("crash"), rate=10, seconds=24))
    kills = []
    for pause in (4, 12):  # once counting, once counting anew, and long enough for its uptime to show it
        time.sleep(pause)
        (pid,) = lab.cluster.pod_pids(install.NAMESPACE, pods[urls[0]]).values()
        kills.append(time.time())
        os.kill(pid, signal.SIGKILL)
    records = load.records()
    assert sum(one.get("status") == 200 for one in records) > 160, "the other one served, and the killed one came back"
    back = [one for one in records if one["url"] == urls[0] and one.get("status") == 200 and one["end"] > kills[1]]
    print(f"{len(back)} answers of the killed one's successor")
    support.until(lambda: urls[0] in lab.urls, seconds=60, what="the killed one is back")
    figures = lab.settled("crash")
    attempts = lab.provider.attempts("crash")
    bill = lab.provider.bill("crash", PRICES)
    through = {one["id"] for one in records if one["url"] == urls[0]}
    at_risk = sum(
        (
            PAID.of(one)
            for one in attempts
            if one["id"] in through and any(at - CRASH_SECONDS <= one["end"] <= at + 0.5 for at in kills)
        ),
        Decimal(0),
    )
    spent = budget_support.amount(figures, "spent")
    bound = budget_support.amount(figures, "bound")
    print(f"spent {spent}, bill {bill}, of it at risk {at_risk:.2f}, lost {bill - spent:.2f}, bound {bound}")
    assert at_risk < bill / 4
    budget_support.check_crash(figures, bill, at_risk, crashes=2)


def test_a_price_that_changes_applies_from_then_on(lab: Lab) -> None:
    dear = Price(PAID.input * 3, PAID.output * 3)
    lab.send([lab.ask("repriced", at=i / 20) for i in range(20)])
    before = lab.provider.bill("repriced", PRICES)
    figures = lab.settled("repriced")
    budget_support.check_exact(figures, before)
    url = lab.provider.url("repriced", "paid")
    # Under way while the price changes.
    load = lab.load(budget_support.paced(lab.ask("repriced"), rate=10, seconds=14))
    time.sleep(5)
    support.apply(lab.cluster, "repriced", budget_support.provider_tier("paid", url, dear))
    changed = budget_support.written(lab.cluster, "modeltiers", "repriced", "paid")
    load.records()
    figures = lab.settled("repriced")
    attempts = lab.provider.attempts("repriced")
    exact = sum(((dear if one["end"] > changed else PAID).of(one) for one in attempts), Decimal(0))
    slack = 10 * (dear.of(attempts[0]) - PAID.of(attempts[0])) * Decimal(str(REPRICED_SECONDS))
    spent = budget_support.amount(figures, "measured")
    print(f"spent {spent}, by the log {exact:.2f}, slack {slack:.2f}")
    budget_support.check_prices(spent, attempts, changed=changed, before=PAID, after=dear, slack=slack)
