"""Planning rounds until nothing moves any more: the operator's own planner, with time passing and all written at once.

Nothing of a cluster is imitated beyond what the planner looks at: what it applies is there in the next round, and
replicas that it asks for are ready. How long that takes does not matter to where it ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tierwise import planner
from tierwise.adapters import kinds
from tierwise.api.namespace_budget_status import NamespaceBudgetStatus
from tierwise.core import credit, learning, situation
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory, TierMemory
from tierwise.core.plan import EventRecord, Plan
from tierwise.core.signals import ClassKey
from tierwise.core.situation import Settings, Situation
from tierwise.core.world import Key, World
from tierwise.preview.metrics import Metrics, measured, signals_of
from tierwise.preview.state import CHILDREN
from tierwise.runtime.store import Store

MAX_ROUNDS = 120
"""A loop that has not settled by then is said not to have."""

_QUIET = 3
"""Rounds beyond the longest window of stabilisation without a change: then it has settled."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the loop ends.

    Attributes:
        world: of the last round. situations: namespace -> as it then stands.
        manifests: (kind, namespace, name) -> children, as the operator applied them.
        store: as it then is: where a change can start from.
        rounds: how many it took. steady: nothing moved any more. events: what the rounds said.
    """

    world: World
    situations: Mapping[str, Situation]
    manifests: Mapping[tuple[str, str, str], Mapping[str, Any]]
    store: Store
    rounds: int
    steady: bool
    events: tuple[EventRecord, ...]


class _Cluster:
    """What of a cluster the planner sees: a store, with what was applied in it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.version = 1_000_000_000
        self.applied: dict[tuple[str, str, str], Mapping[str, Any]] = {}

    def put(self, manifest: Mapping[str, Any]) -> None:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        kind = kinds.kind_of(str(manifest["apiVersion"]), str(manifest["kind"]))
        self.store.put(kind, {**manifest, "metadata": metadata})

    def carry_out(self, plan: Plan) -> None:
        for manifest in plan.apply:
            metadata = manifest["metadata"]
            which = (str(manifest["kind"]), str(metadata["namespace"]), str(metadata["name"]))
            self.applied[which] = manifest
            kind = kinds.kind_of(str(manifest["apiVersion"]), which[0])
            old = self.store.get(kind, Key(*which[1:])) if kind in CHILDREN else None
            spec = dict(manifest.get("spec") or {})
            if kind is kinds.DEPLOYMENT and old is not None and "replicas" in old["spec"]:
                spec["replicas"] = old["spec"]["replicas"]
            made = {**manifest, "spec": spec, "metadata": {"uid": "-".join(which), **metadata}}
            if old is not None and "status" in old:
                made["status"] = old["status"]
            self.put(made)
        for ref, count in plan.scale:
            self._scale(Key(ref.namespace, ref.name), count)
        for ref in plan.delete:
            kind = kinds.kind_of(ref.api_version, ref.kind)
            gone = self.store.get(kind, Key(ref.namespace, ref.name))
            self.applied.pop((ref.kind, ref.namespace, ref.name), None)
            if gone is not None:
                self.store.remove(kind, gone)
        for one in plan.statuses:
            kind = kinds.kind_of(one.target.api_version, one.target.kind)
            held = self.store.get(kind, Key(one.target.namespace, one.target.name))
            if held is not None and not one.manager_suffix and kind is not kinds.NAMESPACE_BUDGET:
                kept = {k: v for k, v in (held.get("status") or {}).items() if k in {"gateways", "enforcement"}}
                self.put({**held, "status": {**kept, **one.status}})
        self.store.memory, self.store.ledger = _at_rest(plan.memory), plan.ledger

    def run_pods(self, world: World) -> None:
        """Every tier has the replicas that it is asked for, ready."""
        for key, workload in world.workloads.items():
            if key not in world.tiers or not workload.owned:
                continue
            planned = situation.planned_replicas(world, key)
            manifest = workload.manifest
            status = {
                "replicas": planned,
                "readyReplicas": planned,
                "updatedReplicas": planned,
                "observedGeneration": int(_of(manifest, "metadata").get("generation") or 0),
            }
            if {name: _of(manifest, "status").get(name) for name in status} != status:
                spec = {**_of(manifest, "spec"), "replicas": planned}
                self.put({**manifest, "metadata": _of(manifest, "metadata"), "spec": spec, "status": status})

    def _scale(self, key: Key, count: int) -> None:
        held = self.store.get(kinds.DEPLOYMENT, key)
        if held is not None:
            self.put({**held, "spec": {**held["spec"], "replicas": count}})


def _of(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = manifest.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def settle(store: Store, metrics: Metrics, now: datetime, settings: Settings | None = None) -> Settled:
    """Plan until nothing moves.

    Args:
        store: of the state to begin with; it is used up.
        metrics: demand and measurements.
        now: of the first round.
        settings: of the loop.
    """
    settings = settings or planner.SETTINGS
    cluster = _Cluster(store)
    step, quiet_needed = _pace(store.snapshot(now))
    classes = _classes(store.snapshot(now))
    _seed(store, metrics, now)
    quiet, rounds, events = 0, 0, []
    while rounds < MAX_ROUNDS and quiet < quiet_needed:
        moment = now + rounds * step
        signals = signals_of(metrics, classes, moment)
        if signals is not None:
            store.put_signals(signals)
        world = store.snapshot(moment)
        plan = planner.plan(_unspent(world), settings)
        cluster.carry_out(plan)
        cluster.run_pods(store.snapshot(moment))
        events += [event for event in plan.events if event not in events]
        moved = plan.apply or plan.scale or plan.delete or _weights(world) != _weights(store.snapshot(moment))
        quiet = 0 if moved else quiet + 1
        rounds += 1
        if signals is None and quiet:
            break  # nothing is measured: nothing will move
    world = store.snapshot(now + rounds * step)
    memory = learning.learn(world, settings.max_age_seconds)
    unspent = _unspent(world)
    views = {ns: situation.view(unspent, memory, ns, settings) for ns in planner.namespaces(world)}
    steady = quiet >= quiet_needed or (not metrics.loads and quiet > 0)
    return Settled(world, views, dict(sorted(cluster.applied.items())), store, rounds, steady, tuple(events))


def _unspent(world: World) -> World:
    """With budgets that nothing was spent of, and that do not fill: time passes here as it never will.

    What they say of tiers without a price holds all the same.
    """
    budgets = {
        key: budget.model_copy(
            update={
                "spec": budget.spec.model_copy(update={"ceiling": Decimal(10) ** 15}),
                "status": NamespaceBudgetStatus(),
            }
        )
        for key, budget in world.budgets.items()
    }
    return replace(world, budgets=budgets, ledger=Ledger())


def _at_rest(memory: LoopMemory) -> LoopMemory:
    """With floors that hold on average just kept: what is bought once, or is left to be spent, is no lasting cost."""
    classes = {
        key: entry if entry.credit is None else replace(entry, credit=credit.at_rest(entry.credit))
        for key, entry in memory.classes.items()
    }
    return replace(memory, classes=classes)


def _pace(world: World) -> tuple[timedelta, int]:
    """Time between rounds: past every cool-down; and how many quiet ones cover the longest window."""
    longest, window = 30.0, 30.0
    for policy in world.policies.values():
        rules = situation.rules_of(policy)
        longest = max(longest, rules.interval_seconds, rules.cooldown_seconds)
        window = max(window, 2 * rules.cooldown_seconds, 8 * rules.interval_seconds)
    for tier in world.tiers.values():
        if tier.spec.in_cluster is not None:
            window = max(window, 3.0 * tier.spec.in_cluster.replicas.startup_seconds)
    step = longest + 1
    # Windows longer than a few rounds: longer rounds, as their number is what costs.
    step = max(step, window / 8)
    return timedelta(seconds=step), int(window / step) + 1 + _QUIET


def _classes(world: World) -> dict[ClassKey, str]:
    return {
        (key.namespace, key.name, spec.name): spec.tiers[0].name
        for key, policy in world.policies.items()
        for spec in policy.spec.classes
        if spec.tiers
    }


def _seed(store: Store, metrics: Metrics, now: datetime) -> None:
    """What was measured of tiers, as the loop would remember it."""
    if not metrics.tiers:
        return
    world = store.snapshot(now)
    tiers = dict(store.memory.tiers)
    for key, figures in metrics.tiers.items():
        tier = world.tiers.get(Key(*key))
        if tier is None or tier.spec.in_cluster is None:
            continue
        units = learning.units(world, Key(*key), {})
        loads = [
            load
            for (namespace, policy, name), load in metrics.loads.items()
            if namespace == key[0]
            and (found := world.policies.get(Key(namespace, policy))) is not None
            and (spec := found.spec.routing_class(name)) is not None
            and spec.tier(key[1]) is not None
        ]
        weight = sum(load.mean for load in loads)
        if weight > 0:
            units = sum(load.mean * (load.completion + 0.3 * load.prompt) for load in loads) / weight
        tiers[key] = TierMemory(capacity=measured(learning.prior(tier, units), figures, units))
    store.memory = replace(store.memory, tiers=tiers)


def _weights(world: World) -> dict[tuple[Key, str], dict[str, int]]:
    return {
        (key, entry.name): {weight.tier: weight.percent for weight in entry.weights}
        for key, policy in world.policies.items()
        for entry in policy.status.classes
    }
