"""What a RoutingPolicy's status says: whether it is served, the weights and why, what it saves, the last decision."""

from collections.abc import Mapping
from datetime import datetime

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RebalanceMode, RoutingPolicy
from tierwise.api.routing_policy_status import (
    Binding,
    ClassStatus,
    GatewayStatus,
    RoutingPolicyStatus,
    TierWeight,
)
from tierwise.core import conditions, credit, record, routing, sensitivity
from tierwise.core import saving as savings
from tierwise.core.claims import Claims
from tierwise.core.conditions import Finding
from tierwise.core.decision import ClassOutcome, Decision
from tierwise.core.memory import Realising
from tierwise.core.situation import ClassView, Situation
from tierwise.core.world import GatewayReport, Key, World

BINDINGS = {
    "": Binding.NONE,
    "Capacity": Binding.CAPACITY,
    "Clearance": Binding.CLEARANCE,
    "Floor": Binding.QUALITY_FLOOR,
    "Objective": Binding.OBJECTIVE,
    "WeightBounds": Binding.LIMITS,
}
_STALLED = {
    "InvalidSpec",
    "ModelNameTaken",
    "HostnameTaken",
    "TierNotFound",
    "NoClearedTier",
    "NoPricedTier",
    "EnvoyRefused",
    "UnsafeConfiguration",
}
"""Reasons of not being ready that only a person can remove."""

WANTED_MOVE_PERCENT = 5
"""A wanted weight (mode Recommend) is shown anew when it differs by this much: a status is no time series."""


def status(
    world: World,
    situation: Situation,
    decision: Decision,
    policy: RoutingPolicy,
    claims: Claims,
    *,
    grace_over: bool,
    realising: Realising | None = None,
) -> RoutingPolicyStatus:
    """The status that a policy should have now, without `gateways` (each replica writes its own).

    Args:
        world: of this round.
        situation: the policy's namespace in it.
        decision: about that namespace.
        policy: whose.
        claims: who owns which name.
        grace_over: gateways had their time to acknowledge the present configuration.
        realising: what the namespace's last decision is found to cost.
    """
    key = Key(policy.metadata.namespace, policy.metadata.name)
    before, generation = policy.status, policy.metadata.generation
    outcomes = [decision.classes[key.namespace, key.name, spec.name] for spec in policy.spec.classes]
    moved = any(outcome.moved for outcome in outcomes)
    found = findings(world, situation, policy, claims, grace_over=grace_over)
    tiers = {name: view.tier for name, view in situation.tiers.items()}
    classes = tuple(_class(outcome, before, tiers, generation, world.now) for outcome in outcomes)
    saving = before.saving
    if moved or decision.moved or (saving is None and _measured(outcomes)):
        saving = savings.saving(situation, outcomes, policy) or before.saving
    return RoutingPolicyStatus(
        observed_generation=generation,
        conditions=conditions.settle(found, before.conditions, generation=generation, now=world.now),
        classes=classes,
        saving=saving,
        decision=record.status(situation, decision, outcomes, BINDINGS)
        if _concerns(decision, outcomes)
        else record.with_realised(before.decision, realising),
    )


def _measured(outcomes: list[ClassOutcome]) -> bool:
    return any(
        o.view.demand is not None and o.view.demand.tokens_known and o.view.missing is None and o.view.demand.now > 0
        for o in outcomes
    )


def _concerns(decision: Decision, outcomes: list[ClassOutcome]) -> bool:
    """Whether something of the policy moved: its weights, or replicas of a tier that it uses."""
    tiers = {name for outcome in outcomes for name in outcome.view.allowed}
    return any(o.moved for o in outcomes) or any(decision.tiers[t].moved for t in tiers if t in decision.tiers)


def findings(
    world: World, situation: Situation, policy: RoutingPolicy, claims: Claims, *, grace_over: bool
) -> tuple[Finding, ...]:
    """Ready, MetricsStale, TierUnpriced, ShadowInactive, Stalled, Reconciling."""
    key = Key(policy.metadata.namespace, policy.metadata.name)
    views = [view for view in situation.classes if view.key[1] == key.name]
    ready = _ready(world, situation, policy, claims, views, grace_over=grace_over)
    found = [ready]
    if ready.reason in _STALLED:
        found.append(Finding(conditions.STALLED, True, ready.reason, ready.message))
    if ready.reason == "Pending":
        found.append(Finding(conditions.RECONCILING, True, ready.reason, ready.message))
    stale = [
        view
        for view in views
        if view.missing is not None and view.mode is RebalanceMode.AUTO and not policy.spec.suspend
    ]
    told = any(condition.type == conditions.METRICS_STALE for condition in policy.status.conditions)
    if stale and (told or any(view.stale for view in stale)):
        found.append(
            Finding(
                conditions.METRICS_STALE,
                True,
                "SignalsMissing",
                f"class {stale[0].spec.name}: weights and replicas stay as they are until signals are back",
            )
        )
    withheld = next((view for view in views if view.unpriced and view.allowed), None)
    if withheld is not None:
        text = f"class {withheld.spec.name}: {_unpriced(withheld)}; no request reaches it"
        found.append(Finding(conditions.TIER_UNPRICED, True, "NoPrice", text))
    found += _shadows(world, policy)
    return tuple(found)


def _shadows(world: World, policy: RoutingPolicy) -> list[Finding]:
    """Copies that nobody gets: requests are answered all the same, so it is no reason not to be ready."""
    for each in policy.spec.classes:
        if each.shadow is None:
            continue
        tier = world.tiers.get(Key(policy.metadata.namespace, each.shadow.tier))
        needed = sensitivity.effective(policy, each)
        what = f"class {each.name}: nothing is copied to ModelTier {each.shadow.tier}, "
        if tier is None:
            remedy = "which does not exist in this namespace: create it, or remove shadow"
            return [Finding(conditions.SHADOW_INACTIVE, True, "TierNotFound", what + remedy)]
        if not sensitivity.cleared(tier, needed):
            remedy = f"which is not cleared for {needed.value} requests: choose another tier, or remove shadow"
            return [Finding(conditions.SHADOW_INACTIVE, True, "NotCleared", what + remedy)]
    return []


def _ready(
    world: World,
    situation: Situation,
    policy: RoutingPolicy,
    claims: Claims,
    views: list[ClassView],
    *,
    grace_over: bool,
) -> Finding:
    key = Key(policy.metadata.namespace, policy.metadata.name)
    invalid = world.invalid.get(("RoutingPolicy", key))
    if invalid is not None:
        return conditions.not_ready("InvalidSpec", f"the last valid spec stays in effect; {invalid}")
    lost = claims.conflicts_of(key)
    if lost:
        reason = "ModelNameTaken" if any(c.field == "models" for c in lost) else "HostnameTaken"
        return conditions.not_ready(reason, "; ".join(conflict.message for conflict in lost))
    problem = _class_problem(situation, views)
    return problem if problem is not None else _gateways(world, policy, grace_over=grace_over)


def _class_problem(situation: Situation, views: list[ClassView]) -> Finding | None:
    for view in views:
        name = view.spec.name
        if view.unknown:
            return conditions.not_ready(
                "TierNotFound",
                f"class {name}: ModelTier {', '.join(view.unknown)} does not exist in this namespace: create it, or "
                "take it out of spec.classes[].tiers",
            )
        if not view.allowed and view.unpriced:
            return conditions.not_ready(
                "NoPricedTier",
                f"class {name}: {_unpriced(view)}; requests are answered 403",
            )
        if not view.allowed:
            return conditions.not_ready(
                "NoClearedTier",
                f"class {name}: no tier is cleared for {sensitivity.effective(view.policy, view.spec).value} requests; "
                "they are answered 403. Add a tier with that clearance",
            )
        if not any(_takes_requests(situation, tier) for tier in view.allowed):
            return conditions.not_ready(
                "NoReadyTier", f"class {name}: none of {', '.join(view.allowed)} takes requests"
            )
    return None


def _unpriced(view: ClassView) -> str:
    return (
        f"ModelTier {', '.join(view.unpriced)} has no price in the currency of the namespace's NamespaceBudget: set "
        "spec.*.price, or unpriced: Allow in the budget"
    )


def _takes_requests(situation: Situation, name: str) -> bool:
    tier = situation.tiers[name]
    return tier.usable if tier.external else tier.ready >= 1


def _gateways(world: World, policy: RoutingPolicy, *, grace_over: bool) -> Finding:
    entries = gateways(world, policy)
    unsafe = next((entry.message for entry in entries if entry.message and sensitivity.UNSAFE in entry.message), None)
    if unsafe is not None:
        return conditions.not_ready("UnsafeConfiguration", f"not published, to be reported as a defect: {unsafe}")
    refused = [entry for entry in entries if entry.refused]
    if refused:
        return conditions.not_ready(
            "EnvoyRefused", f"gateways keep the last good configuration; Envoy says: {refused[0].message or 'nothing'}"
        )
    connected = sum(entry.connected for entry in entries)
    if not connected:
        return conditions.not_ready("NoGateway", "no gateway is connected to any operator replica")
    if any(entry.acknowledged < entry.connected for entry in entries) and grace_over:
        return conditions.not_ready("Pending", "some gateways have not acknowledged the configuration yet")
    before = next((c for c in policy.status.conditions if c.type == conditions.READY), None)
    pending = any(entry.acknowledged < entry.connected for entry in entries)
    if pending and (before is None or before.reason != "Serving"):
        return conditions.not_ready("Pending", "some gateways have not acknowledged the configuration yet")
    return conditions.ready("Serving", "every connected gateway serves the present configuration")


def gateways(world: World, policy: RoutingPolicy) -> tuple[GatewayStatus, ...]:
    """What all live replicas say of their gateways: this replica's newest word, the others' from the status."""
    namespace = policy.metadata.namespace
    own = world.gateways.get(namespace)
    others = [
        entry
        for entry in policy.status.gateways
        if entry.name != world.replica and (world.live_replicas is None or entry.name in world.live_replicas)
    ]
    mine = [gateway(world, own, None)] if own is not None else []
    return tuple(sorted((*mine, *others), key=lambda entry: entry.name))


def gateway(world: World, report: GatewayReport, before: GatewayStatus | None) -> GatewayStatus:
    """This replica's entry; its time moves only when something else of it does."""
    made = GatewayStatus(
        name=world.replica,
        hash=report.wanted_hash or None,
        connected=report.connected,
        acknowledged=report.acknowledged,
        refused=report.refused,
        message=report.message[:2048] or None,
    )
    same = before is not None and before.model_copy(update={"last_transition_time": None}) == made
    moment = before.last_transition_time if same and before is not None else world.now.replace(microsecond=0)
    return made.model_copy(update={"last_transition_time": moment})


def _class(
    outcome: ClassOutcome,
    before: RoutingPolicyStatus,
    tiers: Mapping[str, ModelTier],
    generation: int,
    now: datetime,
) -> ClassStatus:
    view = outcome.view
    old = next((c for c in before.classes if c.name == view.spec.name), None)
    needed = sensitivity.effective(view.policy, view.spec)
    names = [ref.name for ref in view.spec.tiers if ref.name in view.allowed]
    shown = {w.tier: w.percent for w in old.weights} if old is not None else {}
    weights = {name: outcome.weights.get(name, 0) for name in names}
    made = ClassStatus(
        name=view.spec.name,
        sensitivity=needed,
        weights=tuple(
            TierWeight(
                tier=name,
                percent=weights[name],
                wanted=outcome.wanted.get(name, 0) if dict(outcome.wanted) != dict(outcome.weights) else None,
            )
            for name in names
        ),
        relieved_below_floor=relieved_below_floor(view, tiers),
        binding=_binding(outcome),
        reason=outcome.reason,
        message=outcome.message[:2048],
        last_move_time=now.replace(microsecond=0) if outcome.moved else (old.last_move_time if old else None),
    )
    if old is None or outcome.moved or before.observed_generation != generation or shown != weights:
        return made
    if outcome.reason == "Waiting":
        return old  # one round without signals, or the first after a restart, says nothing yet
    if old.sensitivity != needed or (
        (old.reason in _STATES or outcome.reason in _STATES) and old.reason != outcome.reason
    ):
        return made
    if view.mode is RebalanceMode.RECOMMEND and _differs(old, outcome.wanted):
        return made
    if old.relieved_below_floor != made.relieved_below_floor:
        return old.model_copy(update={"relieved_below_floor": made.relieved_below_floor})
    return old


def relieved_below_floor(view: ClassView, tiers: Mapping[str, ModelTier]) -> bool | None:
    """What a class's status says of it after this round; None where no tier below the floor could relieve another.

    What nobody counts is not spent: not while metrics are gone.

    Args:
        view: of the class.
        tiers: of the namespace, by name.
    """
    if not routing.spends_in_bursts(view.policy, view.spec, tiers, view.allowed):
        return None
    if view.stale:
        return False
    status = view.policy.status
    before = next((entry.relieved_below_floor for entry in status.classes if entry.name == view.spec.name), None)
    same = status.observed_generation == view.policy.metadata.generation
    return credit.relieves(view.credit, before=same and before is True)


# Reasons that name a state of the policy and not an outcome of a round; going in or out of one is shown at once.
_STATES = {"MetricsStale", "Suspended", "Manual", "Recommend", "NoDemand"}


def _differs(old: ClassStatus, wanted: Mapping[str, int]) -> bool:
    shown = {w.tier: w.percent if w.wanted is None else w.wanted for w in old.weights}
    return any(abs(shown.get(tier, 0) - percent) >= WANTED_MOVE_PERCENT for tier, percent in wanted.items())


def _binding(outcome: ClassOutcome) -> Binding:
    if outcome.reason == "MetricsStale":
        return Binding.STALE
    if outcome.reason in {"Manual", "Suspended", "Recommend"}:
        return Binding.MANUAL
    if outcome.moved and dict(outcome.wanted) != dict(outcome.weights):
        return Binding.STEP
    return BINDINGS.get(outcome.binding, Binding.NONE)
