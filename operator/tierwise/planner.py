"""One planning round: a pure function from what is seen to what shall be done.

1. learn      from signals that are new
2. view       each namespace as it stands
3. account    what budgets' namespaces have spent, and which rung of each ladder that reaches
4. decide     weights and replicas together, within what budgets ask for
5. children   of each tier, where they differ from what is wanted
6. report     statuses and events, only those that say something new; what gateways do about budgets among them
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tierwise.api.base import StatusModel
from tierwise.api.consumer import Consumer
from tierwise.api.meta import API_VERSION, Condition
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RebalanceMode, RoutingPolicy
from tierwise.core import (
    accounts,
    budget_status,
    claims,
    conditions,
    consumers,
    decide,
    enforcement,
    figures,
    learning,
    outlook,
    policy_status,
    realised,
    record,
    situation,
    tier_status,
)
from tierwise.core.decision import Decision
from tierwise.core.enforcement import Standing
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account, Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.plan import EventRecord, Gauge, Manifest, ObjectRef, Plan, StatusApply
from tierwise.core.situation import Settings, Situation
from tierwise.core.world import Key, World
from tierwise.render import autoscaler, drift, ledger
from tierwise.render.children import children

SETTINGS = Settings()
IDLE_SECONDS = 30.0
MIN_ROUND_SECONDS = 1.0
_SERVED = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


@dataclass(slots=True)
class _Draft:
    """A plan while it is being made."""

    apply: list[Manifest] = field(default_factory=list)
    scale: list[tuple[ObjectRef, int]] = field(default_factory=list)
    delete: list[ObjectRef] = field(default_factory=list)
    statuses: list[StatusApply] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    gauges: list[Gauge] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)
    accounts: dict[tuple[str, str], Account] = field(default_factory=dict)
    books: list[Manifest] = field(default_factory=list)


def plan(world: World, settings: Settings = SETTINGS) -> Plan:
    """What the leader does now. Equal worlds give equal plans; a world that needs nothing gives an empty one."""
    draft = _Draft()
    settled = claims.settle(world.policies)
    memory = _pending(world, learning.learn(world, settings.max_age_seconds))  # 1
    for namespace in namespaces(world):
        seen = situation.view(world, memory, namespace, settings)  # 2
        standings = _accounts(world, seen, memory)  # 3
        seen = replace(seen, hold=enforcement.held(seen, standings.values()))
        decision = decide.decide(seen)  # 4
        memory = _follow(world, seen, decision, memory, draft)
        _children(world, seen, decision, draft)  # 5
        _report(world, seen, decision, settled, memory, draft)  # 6
        memory = decide.remember(memory, namespace, decision, world.now)
        memory = _budgets(world, seen, decision, standings, memory, draft)
        _gauges(seen, decision, memory, draft)
    _consumers(world, draft)
    _report_invalid(world, draft)
    return Plan(
        apply=tuple(draft.apply),
        scale=tuple(draft.scale),
        delete=tuple(draft.delete),
        statuses=tuple(draft.statuses),
        events=tuple(draft.events),
        ledger=Ledger(draft.accounts),
        next_round_seconds=_next_round(world, memory, settings, draft.accounts.values()),
        memory=_of_today(world, memory),
        gauges=tuple(sorted(draft.gauges)),
        books=tuple(draft.books),
        records=tuple(draft.records),
    )


def gateway_statuses(world: World) -> tuple[StatusApply, ...]:
    """What every replica writes: its own entry of `status.gateways[]` of each policy, where it differs."""
    found: list[StatusApply] = []
    for key, policy in sorted(world.policies.items()):
        report = world.gateways.get(key.namespace)
        if report is None:
            continue
        before = next((entry for entry in policy.status.gateways if entry.name == world.replica), None)
        wanted = policy_status.gateway(world, report, before)
        if before != wanted:
            found.append(
                StatusApply(_ref("RoutingPolicy", policy), {"gateways": [wanted.dump()]}, f"gateway-{world.replica}")
            )
    return tuple(found)


def namespaces(world: World) -> list[str]:
    """Namespaces with anything of ours, sorted."""
    return sorted({key.namespace for key in (*world.tiers, *world.policies, *world.budgets)})


def _ref(kind: str, item: ModelTier | RoutingPolicy | NamespaceBudget | Consumer) -> ObjectRef:
    metadata = item.metadata
    return ObjectRef(API_VERSION, kind, metadata.namespace, metadata.name, metadata.uid)


def _children(world: World, seen: Situation, decision: Decision, draft: _Draft) -> None:
    """Step 5."""
    for name, view in sorted(seen.tiers.items()):
        key = Key(seen.namespace, name)
        if view.tier.metadata.deletion_timestamp is not None:
            continue
        workload = world.workloads.get(key)
        if view.external:
            draft.delete += _orphans(world, key, wanted=set())
            continue
        if workload is not None and not workload.owned:
            continue  # a Deployment of someone else's: the tier's condition says so
        outcome = decision.tiers[name]
        asked = seen.settings.prometheus_url or autoscaler.DEFAULT_PROMETHEUS
        wanted = children(view.tier, outcome.bounds, prometheus_url=asked)
        for manifest in wanted:
            shown = _shown(world, key, manifest["kind"])
            if shown is not None and not shown[1]:
                continue
            if shown is None or drift.differs(manifest, shown[0]):
                draft.apply.append(manifest)
        draft.delete += _orphans(world, key, wanted={manifest["kind"] for manifest in wanted})
        if outcome.scale is not None and workload is not None and workload.spec_replicas != outcome.scale:
            ref = ObjectRef("apps/v1", "Deployment", key.namespace, name, workload.uid)
            draft.scale.append((ref, outcome.scale))


def _shown(world: World, key: Key, kind: str) -> tuple[Mapping[str, Any], bool] | None:
    """A child as the API server shows it, and whether it is ours; None when there is none."""
    if kind == "Deployment":
        workload = world.workloads.get(key)
        return (workload.manifest, workload.owned) if workload is not None else None
    shelf = {
        "Service": world.services,
        "HorizontalPodAutoscaler": world.autoscalers,
        "PodDisruptionBudget": world.disruption_budgets,
    }.get(kind, {})
    child = shelf.get(key)
    return (child.manifest, child.owned) if child is not None else None


def _orphans(world: World, key: Key, *, wanted: set[str]) -> list[ObjectRef]:
    """Owned children of kinds that a tier no longer has: it became external, or changed its autoscaler."""
    found: list[ObjectRef] = []
    for kind in sorted(_SERVED - wanted):
        shown = _shown(world, key, kind)
        if shown is None or not shown[1]:
            continue
        manifest = shown[0]
        uid = str((manifest.get("metadata") or {}).get("uid", ""))
        found.append(ObjectRef(str(manifest.get("apiVersion", "")), kind, key.namespace, key.name, uid))
    return found


def _accounts(world: World, seen: Situation, memory: LoopMemory) -> dict[Key, Standing]:
    """Step 3."""
    found: dict[Key, Standing] = {}
    for key, budget in sorted(world.budgets.items()):
        if key.namespace != seen.namespace:
            continue
        which = (key.namespace, key.name)
        account = accounts.account(world, seen, budget, world.ledger.accounts.get(which))
        figures = outlook.outlook(seen, budget, account)
        found[key] = enforcement.climbed(
            budget,
            account,
            figures,
            memory.ladders.get(which) or enforcement.recalled(budget, account, figures),
            blind=budget_status.uncounted(world, seen, budget),
            present_per_hour=memory.without.get(seen.namespace),
        )
    return found


def _budgets(
    world: World,
    seen: Situation,
    decision: Decision,
    standings: Mapping[Key, Standing],
    memory: LoopMemory,
    draft: _Draft,
) -> LoopMemory:
    """Step 6: budgets of one namespace, with what gateways shall do, and what the ladders remember.

    When a checkpoint is due the accounts are kept whole as well.
    """
    ladders = dict(memory.ladders)
    whole: list[tuple[NamespaceBudget, Kept]] = []
    due = False
    for key, one in standings.items():
        budget, which = one.budget, (key.namespace, key.name)
        before = world.ledger.accounts.get(which)
        ref = _ref("NamespaceBudget", budget)
        decided, ladders[which] = enforcement.decide(seen, one, decision)
        news = budget_status.notice(budget, before, one)
        if news is not None:
            draft.events.append(EventRecord(ref, "Warning", news[0], "Count", news[1]))
        status, held = budget_status.status(world, seen, one, decided)
        draft.accounts[which] = held
        labels = (("budget", key.name), ("namespace", key.namespace))
        draft.gauges.append(Gauge("budget_reaction_seconds", labels, one.seen.reaction_seconds))
        draft.gauges.append(Gauge("budget_in_flight", labels, float(one.seen.in_flight)))
        _apply_status(draft, ref, budget.status.dump(), status.dump())
        _news(draft, ref, budget.status.conditions, status.conditions)
        whole.append((budget, accounts.kept(budget, held)))
        due |= status.checkpoint != budget.status.checkpoint
    if due:
        draft.books.append(ledger.config_map(seen.namespace, whole))
    without = dict(memory.without)
    if decision.without_per_hour is not None:
        without[seen.namespace] = decision.without_per_hour
    return replace(memory, ladders=ladders, without=without)


def _report(
    world: World, seen: Situation, decision: Decision, settled: claims.Claims, memory: LoopMemory, draft: _Draft
) -> None:
    """Step 6: tiers and policies of one namespace."""
    for name, view in sorted(seen.tiers.items()):
        ref = _ref("ModelTier", view.tier)
        tier = tier_status.status(world, seen, decision, name)
        _apply_status(draft, ref, view.tier.status.dump(), tier.dump())
        _news(draft, ref, view.tier.status.conditions, tier.conditions)
        outcome = decision.tiers.get(name)
        if outcome is not None and outcome.moved and world.workloads.get(Key(seen.namespace, name)) is not None:
            draft.events.append(EventRecord(ref, "Normal", "ReplicasMoved", "Rebalance", outcome.message))
    for name, policy in world.policies_in(seen.namespace).items():
        ref = _ref("RoutingPolicy", policy)
        status = policy_status.status(
            world,
            seen,
            decision,
            policy,
            settled,
            grace_over=_grace_over(memory, seen.namespace, world, seen.settings),
            realising=memory.realising.get(seen.namespace),
        )
        _apply_status(draft, ref, _without(policy.status, "gateways"), status.dump())
        _news(draft, ref, policy.status.conditions, status.conditions)
        draft.statuses += _dead(world, policy, ref)
        for one in decision.classes.values():
            if one.moved and one.view.key[1] == name:
                note = f"class {one.view.spec.name}: {one.message}"
                draft.events.append(EventRecord(ref, "Normal", "WeightsMoved", "Rebalance", note))


def _consumers(world: World, draft: _Draft) -> None:
    """Step 6: who may call. Of all namespaces at once: a key belongs to one consumer only."""
    access = consumers.settle(world)
    for key, consumer in sorted(world.consumers.items()):
        ref = _ref("Consumer", consumer)
        status = consumers.status(world, access, key, consumer)
        _apply_status(draft, ref, consumer.status.dump(), status.dump())
        _news(draft, ref, consumer.status.conditions, status.conditions)


def _without(status: StatusModel, field_name: str) -> dict[str, Any]:
    return {name: value for name, value in status.dump().items() if name != field_name}


def _apply_status(draft: _Draft, ref: ObjectRef, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if dict(before) != dict(wanted):
        draft.statuses.append(StatusApply(ref, wanted))


def _news(draft: _Draft, ref: ObjectRef, before: Iterable[Condition], now: Iterable[Condition]) -> None:
    """An event when something goes wrong, or is well again."""
    old = {c.type: (c.status, c.reason) for c in before}
    for condition in now:
        if old.get(condition.type) == (condition.status, condition.reason):
            continue
        bad = (condition.type == conditions.READY) != (condition.status.value == "True")
        # Reconciling and Stalled repeat what Ready says, for tools that look for them.
        if condition.type in {conditions.RECONCILING, conditions.STALLED} or (
            bad and condition.reason in {"Creating", "Starting", "Pending"}
        ):
            continue
        kind = "Warning" if bad else "Normal"
        draft.events.append(EventRecord(ref, kind, condition.reason, "Observe", condition.message or condition.reason))


def _dead(world: World, policy: RoutingPolicy, ref: ObjectRef) -> list[StatusApply]:
    """Entries of replicas that no longer run are given up in their name."""
    if world.live_replicas is None:
        return []
    return [
        StatusApply(ref, {}, f"gateway-{entry.name}")
        for entry in policy.status.gateways
        if entry.name not in world.live_replicas and entry.name != world.replica
    ]


def _report_invalid(world: World, draft: _Draft) -> None:
    """Objects that never had a valid spec: a condition says what to do; nothing of theirs is in effect."""
    held = {
        "ModelTier": world.tiers,
        "RoutingPolicy": world.policies,
        "NamespaceBudget": world.budgets,
        "Consumer": world.consumers,
    }
    for (kind, key), why in sorted(world.invalid.items(), key=lambda item: item[0]):
        body = world.invalid_bodies.get((kind, key))
        if key in held.get(kind, {}) or body is None:
            continue
        metadata, shown = body.get("metadata") or {}, (body.get("status") or {}).get("conditions") or []
        generation = int(metadata.get("generation") or 0)
        settled = conditions.settle(
            conditions.invalid(str(why), held=False), _read(shown), generation=generation, now=world.now
        )
        ref = ObjectRef(API_VERSION, kind, key.namespace, key.name, str(metadata.get("uid", "")))
        # All else that was said before stays: a budget's checkpoint must outlive a spec that nobody can read.
        wanted = {**(body.get("status") or {}), "conditions": [c.dump() for c in settled]}
        wanted["observedGeneration"] = generation
        wanted.pop("gateways", None)
        if [dict(c) for c in shown] != wanted["conditions"]:
            draft.statuses.append(StatusApply(ref, wanted))
            draft.events.append(EventRecord(ref, "Warning", "InvalidSpec", "Validate", str(why)))


def _read(shown: Iterable[Mapping[str, Any]]) -> tuple[Condition, ...]:
    fields = {"type", "status", "lastTransitionTime", "reason"}
    return tuple(Condition.model_validate(dict(c)) for c in shown if fields <= set(c))


def _pending(world: World, memory: LoopMemory) -> LoopMemory:
    """Since when a namespace's gateways have not acknowledged what they should serve."""
    pending: dict[str, datetime] = {}
    for namespace in sorted({key.namespace for key in world.policies}):
        policies = world.policies_in(namespace).values()
        entries = [entry for policy in policies for entry in policy_status.gateways(world, policy)]
        if any(entry.acknowledged < entry.connected for entry in entries):
            pending[namespace] = memory.pending_since.get(namespace, world.now)
    return replace(memory, pending_since=pending)


def _grace_over(memory: LoopMemory, namespace: str, world: World, settings: Settings) -> bool:
    since = memory.pending_since.get(namespace)
    return since is not None and world.now - since >= timedelta(seconds=settings.grace_seconds)


def _of_today(world: World, memory: LoopMemory) -> LoopMemory:
    """Without what is remembered of budgets and namespaces that are gone."""
    left = set(namespaces(world))
    return replace(
        memory,
        ladders={which: one for which, one in memory.ladders.items() if Key(*which) in world.budgets},
        without={name: cost for name, cost in memory.without.items() if name in left},
        realising={name: one for name, one in memory.realising.items() if name in left},
    )


def _next_round(world: World, memory: LoopMemory, settings: Settings, held: Iterable[Account]) -> float:
    intervals = [
        policy.spec.rebalance.interval.seconds
        for policy in world.policies.values()
        if policy.spec.rebalance.mode is not RebalanceMode.MANUAL and not policy.spec.suspend
    ]
    soonest = min([IDLE_SECONDS, *intervals])
    for since in memory.pending_since.values():
        left = settings.grace_seconds - (world.now - since).total_seconds()
        if left > 0:
            soonest = min(soonest, left + 0.1)
    # What a period's end gives back is given back then.
    ends = ((account.end - world.now).total_seconds() for account in held)
    soonest = min([soonest, *(left + 0.01 for left in ends if left > 0)])
    expiries = (key.expires_at for one in world.consumers.values() for key in one.spec.api_keys or ())
    for expiry in expiries:
        if expiry is not None and expiry > world.now:
            soonest = min(soonest, (expiry - world.now).total_seconds() + 0.1)
    return max(MIN_ROUND_SECONDS, soonest)


def _follow(world: World, seen: Situation, decision: Decision, memory: LoopMemory, draft: _Draft) -> LoopMemory:
    """What decisions cost in the end; and the log's records of this round."""
    before = memory.realising.get(seen.namespace)
    memory = realised.follow(world, seen, decision, memory)
    after = memory.realising.get(seen.namespace)
    if decision.moved:
        draft.records.append(record.whole(seen, decision))
    if after is not None and after.finished and not (before is not None and before.finished):
        draft.records.append(record.measured(seen.namespace, after))
    return memory


def _gauges(seen: Situation, decision: Decision, memory: LoopMemory, draft: _Draft) -> None:
    """Figures that move every round: for the operator's metrics, never for a status."""
    draft.gauges += figures.of_decision(seen, decision, memory.realising.get(seen.namespace))
    for view in seen.classes:
        if view.demand is None:
            continue
        labels = (("class", view.key[2]), ("namespace", view.key[0]), ("policy", view.key[1]))
        draft.gauges.append(Gauge("class_requests_per_second", labels, view.demand.now))
        draft.gauges.append(Gauge("class_planned_requests_per_second", labels, view.demand.ahead))
    for name, outcome in decision.tiers.items():
        which = (("namespace", seen.namespace), ("tier", name))
        draft.gauges.append(Gauge("tier_planned_replicas", which, float(outcome.planned)))
        known = outcome.view.capacity
        if known is not None and known.observations:
            rate = tier_status.safe_rate(seen, outcome.view, known)
            draft.gauges.append(Gauge("tier_replica_requests_per_second", which, rate))
