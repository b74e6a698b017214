"""Usage is read from where accounts have counted: as they are held, or as a restart will find them."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from tierwise.adapters import kinds
from tierwise.core import accounts, kept
from tierwise.core.ledger import Account, Entry, Ledger
from tierwise.core.world import Key
from tierwise.runtime.targets import checkpoints, targets_of


def external(name):
    spec = {"model": "m", "external": {"url": "https://api.example/v1"}}
    metadata = {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "resourceVersion": "7", "generation": 1}
    return {"apiVersion": "tierwise.dev/v1alpha1", "kind": "ModelTier", "metadata": metadata, "spec": spec}


def budget(name, **status):
    metadata = {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "resourceVersion": "8", "generation": 1}
    spec = {"ceiling": "100.00", "ladder": [{"atPercent": 100, "action": "Deny"}]}
    return {
        "apiVersion": "tierwise.dev/v1alpha1",
        "kind": "NamespaceBudget",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def status(now):
    """A checkpoint of a minute ago."""
    return {
        "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
        "checkpoint": {"time": (now - timedelta(seconds=60)).isoformat()},
    }


def account(now, counted):
    entries = {"paid": Entry(cost=Decimal(3), counted_until=counted), "gone": Entry(counted_until=now - timedelta(1))}
    return Account(
        now.replace(day=1, hour=0), now.replace(month=12, day=1, hour=0), now, entries=entries, currency="USD"
    )


def test_an_account_that_was_kept_after_the_status_is_not_given_what_it_has_again(store, now):
    store.put(kinds.MODEL_TIER, external("paid"))
    store.put(kinds.NAMESPACE_BUDGET, budget("ceiling", **status(now)))
    world = store.snapshot(now)
    assert checkpoints(world) == {"team-a": ((now - timedelta(seconds=60)).timestamp(),)}
    counted = now - timedelta(seconds=2.25)
    key = Key("team-a", "ceiling")
    text = kept.pack(accounts.kept(world.budgets[key], account(now, counted)))
    assert checkpoints(replace(world, books={key: text})) == {"team-a": (counted.timestamp(),)}


def test_an_account_that_is_held_goes_on_where_it_is(store, now):
    store.put(kinds.MODEL_TIER, external("paid"))
    store.put(kinds.NAMESPACE_BUDGET, budget("ceiling", **status(now)))
    counted = now - timedelta(seconds=1)
    held = Ledger({("team-a", "ceiling"): account(now, counted)})
    assert checkpoints(replace(store.snapshot(now), ledger=held)) == {"team-a": (counted.timestamp(),)}


def test_each_account_of_a_namespace_goes_on_at_its_own_moment(store, now):
    store.put(kinds.MODEL_TIER, external("paid"))
    store.put(kinds.NAMESPACE_BUDGET, budget("first", **status(now)))
    store.put(kinds.NAMESPACE_BUDGET, budget("second"))
    held = Ledger({("team-a", "second"): account(now, now)})
    found = checkpoints(replace(store.snapshot(now), ledger=held))
    assert found == {"team-a": ((now - timedelta(seconds=60)).timestamp(), now.timestamp())}


def test_what_is_read_after_a_period_ended_is_told_apart_at_its_end(store, now):
    """An operator that was away over a month's end: each side is another month's."""
    store.put(kinds.MODEL_TIER, external("paid"))
    store.put(kinds.NAMESPACE_BUDGET, budget("ceiling", **status(now)))
    end = now.replace(month=12, day=1, hour=0)
    found = checkpoints(store.snapshot(end + timedelta(hours=1)))
    assert found == {"team-a": ((now - timedelta(seconds=60)).timestamp(), end.timestamp())}
    # What was counted beyond it, by a clock that was ahead, is not read again.
    held = Ledger({("team-a", "ceiling"): replace(account(now, end + timedelta(seconds=5)), end=end)})
    world = replace(store.snapshot(end + timedelta(hours=1)), ledger=held)
    assert checkpoints(world) == {"team-a": ((end + timedelta(seconds=5)).timestamp(),)}


def test_periods_edges_part_what_is_read(store, now):
    store.put(kinds.MODEL_TIER, external("paid"))
    held = Ledger({("team-a", "ceiling"): account(now, now)})
    found = targets_of(replace(store.snapshot(now), ledger=held), recover=False)
    assert found.period_edges == {
        now.replace(day=1, hour=0).timestamp(),
        now.replace(month=12, day=1, hour=0).timestamp(),
    }
