"""Many clients of several consumers race at the ceiling, at every gateway: it holds, and each is told why."""

import base64
import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import budget_support
import support
from budget_support import PAID, Lab
from tierwise.core import budget as calendar
from tierwise.devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(400)

NAMESPACE, OTHER = "race", "race-other"
PEOPLE = {NAMESPACE: ("app", "batch", "tool"), OTHER: ("app",)}
CEILING = Decimal(500)
RATE, SECONDS = 24, 30
"""Of all together: 21 a second, which alone would go beyond the ceiling and its bound."""


def key(namespace: str, name: str) -> str:
    return f"tw-{namespace}-{name}-" + 4 * "0a1b2c3d"


def consumer(namespace: str, name: str) -> tuple[dict, dict]:
    data = {"token": base64.b64encode(key(namespace, name).encode()).decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-key"}, "data": data}
    spec = {"apiKeys": [{"name": f"{name}-key"}]}
    return secret, {"apiVersion": support.API, "kind": "Consumer", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def lab(guarded: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with budget_support.lab(guarded, tmp_path_factory.mktemp("provider"), PEOPLE) as running:
        for namespace, names in PEOPLE.items():
            running.set_up(
                namespace,
                running.tier(namespace, "paid", PAID),
                support.policy("chat", [{"name": "paid", "weight": 100}]),
                support.policy("other", [{"name": "paid", "weight": 100}]),
                budget_support.budget("ceiling", str(CEILING), period="Week", timeZone="Asia/Kathmandu"),
                *itertools.chain.from_iterable(consumer(namespace, name) for name in names),
            )
        running.wait_ready(PEOPLE)
        for namespace in PEOPLE:
            support.wait_ready(guarded, namespace, "consumers")
        yield running


def test_the_ceiling_holds_against_many_clients_at_once(lab: Lab) -> None:
    asks = [
        lab.ask(NAMESPACE, policy, at=number / RATE, key=key(NAMESPACE, name), stream=stream)
        for number, (name, policy, stream) in zip(
            range(RATE * SECONDS),
            itertools.cycle(itertools.product(PEOPLE[NAMESPACE], ("chat", "other"), (True, False))),
            strict=False,
        )
    ]
    beside = budget_support.paced(lab.ask(OTHER, key=key(OTHER, "app")), rate=1, seconds=SECONDS)
    records = lab.send([*asks, *beside])
    of_race = [one for one in records if one["model"].startswith(f"{NAMESPACE}/")]
    refused = budget_support.denied(of_race)
    bill = lab.provider.bill(NAMESPACE, {"paid": PAID})
    each = PAID.of(lab.provider.attempts(NAMESPACE)[0])
    bound = Decimal(str(RATE * budget_support.REACTION_SECONDS)) * each
    print(f"bill {bill:.2f}, ceiling {CEILING}, bound {bound:.2f}, {len(refused)} of {len(of_race)} refused")
    assert Counter(one["status"] for one in of_race).keys() == {200, 429}
    budget_support.check_held(of_race, bill, ceiling=CEILING, bound=bound)
    # Of every consumer, policy and gateway, with the same words.
    resets_at = calendar.period("Week", "Asia/Kathmandu", datetime.now(UTC))[1]
    for one in refused:
        budget_support.check_denial(one, budget=f"{NAMESPACE}/ceiling", resets_at=resets_at)
    assert {one["url"] for one in refused} == set(lab.urls)
    assert {one["model"] for one in refused} == {f"{NAMESPACE}/chat", f"{NAMESPACE}/other"}
    # The neighbour has its own ceiling.
    assert {one["status"] for one in records if one["model"].startswith(f"{OTHER}/")} == {200}
    # What was let through was counted, once.
    budget_support.check_exact(lab.settled(NAMESPACE), bill)
