"""Accounts that are kept whole: signed, read again after a restart, and of no interest to anybody meanwhile."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
import runtime_fakes as make
from test_loops import decider

from tierwise import planner
from tierwise.adapters import kinds
from tierwise.core import book, ledger
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.world import Key
from tierwise.render.ledger import NAME
from tierwise.runtime import isolation
from tierwise.runtime.writer import Writer

KEY = b"k" * 32
BUDGET = Key("team-a", "ceiling")


def budget(**status):
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "NamespaceBudget",
        "metadata": {
            "name": "ceiling",
            "namespace": "team-a",
            "uid": "uid-ceiling",
            "resourceVersion": "30",
            "generation": 1,
        },
        "spec": {"ceiling": "100.00", "period": "Month", "ladder": [{"atPercent": 100, "action": "Notify"}]},
        "status": status,
    }


@pytest.fixture
def clock(now):
    return {"now": now}


@pytest.fixture
def operator(cluster, store, metrics, clock):
    """A replica that decides, with one tier of two replicas and a budget."""
    for kind, manifest in (
        (kinds.MODEL_TIER, priced(make.tier())),
        (kinds.DEPLOYMENT, make.deployment(ready=2)),
        (kinds.NAMESPACE_BUDGET, budget()),
    ):
        cluster.place(manifest)
        store.put(kind, manifest)
    store.put_signing_key(KEY)
    writer = Writer(cluster, store, metrics, identity="op-0", now=lambda: clock["now"], monotonic=lambda: 0.0)
    made = decider(cluster, store, metrics, now=None, writer=writer, plan=planner.plan)
    made.now = lambda: clock["now"]
    return made


def priced(tier):
    spec = tier["spec"]
    return tier | {"spec": spec | {"inCluster": spec["inCluster"] | {"price": {"perReplicaHour": "3.60"}}}}


async def rounds(operator, clock, count, seconds=30):
    for _ in range(count):
        await operator.once()
        clock["now"] += timedelta(seconds=seconds)


async def test_an_account_outlives_the_operator_to_the_last_digit(operator, store, clock):
    await rounds(operator, clock, 12)
    held = store.ledger.accounts["team-a", "ceiling"]
    assert ledger.spend(held).counted > 0
    assert BUDGET in store.snapshot(clock["now"]).books
    clock["now"] -= timedelta(seconds=30)
    await operator.once()
    before = store.ledger.accounts["team-a", "ceiling"]
    kept_at = before.checkpoint
    store.ledger, store.memory = Ledger(), LoopMemory()
    clock["now"] += timedelta(seconds=5)
    await operator.once()
    after = store.ledger.accounts["team-a", "ceiling"]
    missing = Decimal(str((before.updated - kept_at).total_seconds())) * 2 * Decimal("3.60") / 3600
    assert ledger.spend(after).total >= ledger.spend(before).total - missing
    assert book.total(after.book).cost == ledger.spend(after).total


async def test_what_others_wrote_or_changed_is_not_read(operator, store, clock, now):
    await rounds(operator, clock, 2)
    kept = store.get(kinds.CONFIG_MAP, Key("team-a", NAME))
    assert store.snapshot(now).books.keys() == {BUDGET}
    for version, change in (("9000", {"data": {"ceiling": "AAAA"}}), ("9001", {"data": kept["data"]})):
        metadata = kept["metadata"] | {"resourceVersion": version}
        store.put(kinds.CONFIG_MAP, kept | change | {"metadata": metadata})
        expected = {BUDGET} if change["data"] == kept["data"] else set()
        assert store.snapshot(now).books.keys() == expected
    store.put_signing_key(b"another" * 5)
    assert store.snapshot(now).books == {}
    store.put_signing_key(KEY)
    elsewhere = kept["metadata"] | {"namespace": "team-b", "resourceVersion": "9002"}
    store.put(kinds.CONFIG_MAP, kept | {"metadata": elsewhere})
    assert store.snapshot(now).books.keys() == {BUDGET}, "a copy in another namespace is not its ledger"


async def test_a_kept_account_wakes_nobody(operator, store, clock, pokes):
    await rounds(operator, clock, 2)
    kept = store.get(kinds.CONFIG_MAP, Key("team-a", NAME))
    pokes.clear()
    store.put(kinds.CONFIG_MAP, kept | {"metadata": kept["metadata"] | {"resourceVersion": "9000"}, "data": {}})
    assert pokes == []


async def test_an_older_account_does_not_take_back_what_the_status_says(operator, store, clock):
    """Whoever may write ConfigMaps can put an old one back: the status then says more, and holds."""
    await rounds(operator, clock, 2)
    old = store.get(kinds.CONFIG_MAP, Key("team-a", NAME))
    await rounds(operator, clock, 25)
    spent = Decimal(store.get(kinds.NAMESPACE_BUDGET, BUDGET)["status"]["spent"])
    assert spent > 0
    store.put(kinds.CONFIG_MAP, old | {"metadata": old["metadata"] | {"resourceVersion": "9000"}})
    store.ledger, store.memory = Ledger(), LoopMemory()
    await operator.once()
    held = store.ledger.accounts["team-a", "ceiling"]
    assert ledger.spend(held).total >= spent
    assert ("compact", book.UNTOLD) in book.lines_of(held.book)
    total = book.total(held.book)
    assert (total.measured, total.estimated) == (ledger.spend(held).counted, ledger.spend(held).estimated)


async def test_a_budget_made_anew_under_the_same_name_starts_at_zero(operator, store, clock):
    await rounds(operator, clock, 12)
    anew = budget()
    anew["metadata"] |= {"uid": "uid-2", "resourceVersion": "9100"}
    store.put(kinds.NAMESPACE_BUDGET, anew)
    store.ledger, store.memory = Ledger(), LoopMemory()
    await operator.once()
    assert ledger.spend(store.ledger.accounts["team-a", "ceiling"]).total == 0


async def test_without_a_key_nothing_is_kept(operator, store, cluster, clock):
    store.put_signing_key(b"")
    await rounds(operator, clock, 2)
    assert ("apply", NAME) not in [call[:2] for call in cluster.calls]


async def test_planning_apart_keeps_accounts_too(operator, store, clock):
    await rounds(operator, clock, 1)
    world = store.snapshot(clock["now"] + timedelta(seconds=400))
    world = replace(world, ledger=store.ledger)
    alone = planner.plan(isolation.restrict(world, "team-a"))
    assert alone.books
    assert isolation.merge(world, [alone]).books == alone.books
    assert isolation.restrict(world, "team-b").books == {}
