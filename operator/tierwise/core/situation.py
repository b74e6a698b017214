"""What one namespace looks like to the loop: its tiers and classes with demand, capacity, prices and what may be moved.

Steps 1 and 2 of a planning round: learn from the newest signals, then state the problem. Nothing here decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from tierwise.api.in_cluster import AutoscalingProvider
from tierwise.api.meta import Provenance
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RebalanceMode, RoutingPolicy
from tierwise.core import capacity, demand, quality, routing, sensitivity
from tierwise.core.capacity import Capacity, Objective
from tierwise.core.damping import Rules
from tierwise.core.memory import ClassMemory, IdleLatency, LoopMemory, TierMemory
from tierwise.core.signals import ClassKey, Missing, Reading, Signals, TierSignals, value_of
from tierwise.core.world import Key, World

ASSUMED_SATURATION = 1500.0
"""Work units/s per replica where neither the spec nor a measurement says any: a mid-sized model on one accelerator."""

FORGET_LATENCY = timedelta(minutes=10)
"""A latency that was measured longer ago keeps no tier out of a class: it is tried again."""

_LATENCY_GAIN = 0.3
_KEEP_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator's administrator sets about the loop.

    Attributes:
        max_age_seconds: a sample older than this is stale (a few scrape intervals).
        max_gap_seconds: rounds further apart than this leave a gap in the ledger, which is bounded from above.
        headroom: share of the safe capacity to plan for.
        grace_seconds: how long gateways may take to acknowledge a change before the policy is not Ready.
        prometheus_url: where KEDA reads engines' metrics; empty: the renderer's default.
    """

    max_age_seconds: float = 45.0
    max_gap_seconds: float = 90.0
    headroom: float = 0.9
    grace_seconds: float = 15.0
    prometheus_url: str = ""


@dataclass(frozen=True, slots=True)
class TierView:
    """One tier as it stands.

    Attributes:
        name, tier: the object.
        signals: newest measurements; None when there are none.
        capacity: of one replica; None for an external tier.
        planned: replicas that the last plan asked for (the autoscaler's minimum, or 0 when scaled to zero).
        existing, ready: Pods. usable: can take requests now, or could once started (an external one: has its
            credential).
        last_scale: the last change of `planned`.
    """

    name: str
    tier: ModelTier
    signals: TierSignals | None
    capacity: Capacity | None
    planned: int
    existing: int
    ready: int
    usable: bool
    memory: TierMemory = field(default_factory=TierMemory)

    @property
    def external(self) -> bool:
        """Paid by the token."""
        return self.tier.spec.external is not None

    @property
    def price_per_hour(self) -> Decimal | None:
        """Of one replica; None when unknown or external."""
        inside = self.tier.spec.in_cluster
        return inside.price.per_replica_hour if inside is not None and inside.price is not None else None

    @property
    def startup_seconds(self) -> float:
        """From the creation of a replica until it serves."""
        inside = self.tier.spec.in_cluster
        return float(inside.replicas.startup_seconds) if inside is not None else 0.0

    def cost_per_request(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Price of one request's tokens: 0 in-cluster, None when unknown."""
        outside = self.tier.spec.external
        if outside is None:
            return 0.0
        if outside.price is None:
            return None
        price = outside.price
        prompt = prompt_tokens * float(price.input_per_million_tokens)
        return (prompt + completion_tokens * float(price.output_per_million_tokens)) / 1e6


@dataclass(frozen=True, slots=True)
class ClassView:
    """One class as it stands.

    Attributes:
        key: namespace, policy, class. policy, spec: the objects.
        rules: the policy's limits on change.
        allowed: cleared tiers that exist, in the user's order. uncleared, unknown: listed tiers that are not, or do
            not exist.
        weights: in force, percent, zero left out.
        window_seconds: how long demand must have been low before it counts as low.
        demand: the forecast; None when nothing was ever measured.
        missing: why there is no fresh measurement; None when there is one. Nothing moves meanwhile.
        stale: it has been missing for longer than a sample may be old: now people are told.
        scores: tier -> quality. floor: in the same scale.
        objective: what is promised.
        memory: of the class.
    """

    key: ClassKey
    policy: RoutingPolicy
    spec: RoutingClass
    rules: Rules
    allowed: tuple[str, ...]
    uncleared: tuple[str, ...]
    unknown: tuple[str, ...]
    weights: Mapping[str, int]
    window_seconds: float
    demand: demand.Forecast | None
    missing: Missing | None
    stale: bool
    scores: Mapping[str, quality.Score]
    floor: quality.Floor | None
    objective: Objective
    memory: ClassMemory

    @property
    def movable(self) -> bool:
        """Whether the loop may move its weights now."""
        return self.mode is RebalanceMode.AUTO and not self.policy.spec.suspend and self.missing is None

    @property
    def mode(self) -> RebalanceMode:
        """The policy's."""
        return self.policy.spec.rebalance.mode


@dataclass(frozen=True, slots=True)
class Situation:
    """One namespace as it stands."""

    namespace: str
    now: datetime
    tiers: Mapping[str, TierView]
    classes: tuple[ClassView, ...]
    settings: Settings

    def users(self, tier: str) -> tuple[ClassView, ...]:
        """The classes that may use a tier."""
        return tuple(view for view in self.classes if tier in view.allowed)


def objective_of(spec: RoutingClass) -> Objective:
    """A class's objective in seconds."""
    wanted = spec.objective
    if wanted is None:
        return Objective()
    return Objective(
        ttft_seconds=wanted.ttft_p95.seconds if wanted.ttft_p95 is not None else None,
        inter_token_seconds=wanted.inter_token_p95.seconds if wanted.inter_token_p95 is not None else None,
        latency_seconds=wanted.latency_p95.seconds if wanted.latency_p95 is not None else None,
    )


def rules_of(policy: RoutingPolicy) -> Rules:
    """A policy's limits on change."""
    rebalance = policy.spec.rebalance
    return Rules(
        interval_seconds=rebalance.interval.seconds,
        max_step=rebalance.max_step_percent,
        min_saving=rebalance.min_saving_percent / 100,
        cooldown_seconds=rebalance.cooldown.seconds,
    )


def scores_of(task: str | None, tiers: Mapping[str, ModelTier]) -> dict[str, quality.Score]:
    """Tier -> declared quality in a task; unknown ones are absent."""
    if task is None:
        return {}
    found: dict[str, quality.Score] = {}
    for name, tier in sorted(tiers.items()):
        entry = next((entry for entry in tier.spec.quality if entry.task == task), None)
        if entry is not None:
            found[name] = quality.Score(value=float(entry.score), source=entry.source or "")
    return found


def planned_replicas(world: World, key: Key) -> int:
    """What the last plan asked for: 0 when scaled to zero, else the autoscaler's minimum, else the tier's."""
    tier, shown = world.tiers[key].spec.in_cluster, world.tiers[key].status.replicas
    if tier is None:
        return 0
    workload = world.workloads.get(key)
    if workload is not None and workload.spec_replicas == 0:
        return 0
    found = autoscaler_bounds(world, key)
    if found is not None:
        return found[0]
    if tier.autoscaling.provider is AutoscalingProvider.KEDA and workload is not None and shown is not None:
        # KEDA's object is not watched: the status remembers what it was told.
        return shown.desired if shown.desired is not None else tier.replicas.min
    return tier.replicas.min


def autoscaler_bounds(world: World, key: Key) -> tuple[int, int] | None:
    """The bounds that the autoscaler shows; None when there is none."""
    child = world.autoscalers.get(key)
    spec = child.manifest.get("spec") if child is not None else None
    if not isinstance(spec, Mapping):
        return None
    low, high = spec.get("minReplicas", 1), spec.get("maxReplicas")
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def credential_found(world: World, key: Key) -> bool:
    """Whether an external tier's credential is there (or none is asked for)."""
    outside = world.tiers[key].spec.external
    if outside is None or outside.credentials_ref is None:
        return True
    secret = world.secrets.get(Key(key.namespace, outside.credentials_ref.name))
    return secret is not None and bool(secret.data.get(outside.credentials_ref.key))


def prior(tier: ModelTier, units_per_request: float) -> Capacity:
    """Where learning starts: what the status kept, else what the spec declares, else an assumption."""
    kept = tier.status.capacity
    inside = tier.spec.in_cluster
    declared = inside.capacity if inside is not None else None
    if kept is not None and kept.saturation_requests_per_second and kept.provenance is not Provenance.DECLARED:
        saturation = float(kept.saturation_requests_per_second) * units_per_request
        return Capacity(saturation=saturation, observations=1)
    if kept is not None and kept.requests_per_second is not None and kept.provenance is not Provenance.DECLARED:
        return replace(capacity.declared(float(kept.requests_per_second), units_per_request), observations=1)
    if declared is not None and declared.requests_per_second is not None:
        return capacity.declared(float(declared.requests_per_second), units_per_request)
    if declared is not None and declared.tokens_per_second is not None:
        # Prompt and generated tokens together: the request's mix tells how many work units that is.
        tokens = demand.DEFAULT_PROMPT_TOKENS + demand.DEFAULT_COMPLETION_TOKENS
        units = capacity.work_units(demand.DEFAULT_PROMPT_TOKENS, demand.DEFAULT_COMPLETION_TOKENS)
        return Capacity(saturation=float(declared.tokens_per_second) * units / tokens / capacity.DEFAULT_UTILISATION)
    return Capacity(saturation=ASSUMED_SATURATION)


def learn(world: World, settings: Settings) -> LoopMemory:
    """Step 1: the memory after the newest signals. Each answer of Prometheus is learnt from once."""
    memory = world.memory if world.memory.started is not None else replace(world.memory, started=world.now)
    classes = {key: entry for key, entry in memory.classes.items() if _class_exists(world, key)}
    tiers = {key: entry for key, entry in memory.tiers.items() if Key(*key) in world.tiers}
    memory = replace(memory, classes=classes, tiers=tiers)
    signals = world.signals
    if signals is None or signals.error or (memory.signals_time is not None and memory.signals_time >= signals.time):
        return memory
    for key, policy in sorted(world.policies.items()):
        for spec in policy.spec.classes:
            class_key = (key.namespace, key.name, spec.name)
            seen = demand.measure(class_key, signals, max_age_seconds=settings.max_age_seconds)
            if isinstance(seen, Missing):
                continue
            entry = classes.get(class_key, ClassMemory())
            history = demand.remember(entry.history, seen, keep_seconds=_KEEP_SECONDS)
            classes[class_key] = replace(entry, history=history)
    for key, tier in sorted(world.tiers.items()):
        if tier.spec.in_cluster is not None:
            _learn_tier(world, key, tier, signals, tiers, classes, settings, _news(memory, signals))
    for class_key in sorted(classes):
        classes[class_key] = _learn_latency(world, class_key, classes[class_key], signals, tiers, settings)
    return replace(memory, signals_time=signals.time, classes=classes, tiers=tiers)


def _class_exists(world: World, key: ClassKey) -> bool:
    policy = world.policies.get(Key(key[0], key[1]))
    return policy is not None and any(spec.name == key[2] for spec in policy.spec.classes)


def _units(world: World, key: Key, classes: Mapping[ClassKey, ClassMemory]) -> float:
    """Mean work units per request over the classes that may use the tier, weighted by their rates."""
    total, weight = 0.0, 0.0
    for class_key, entry in sorted(classes.items()):
        if class_key[0] != key.namespace:
            continue
        spec = _spec(world, class_key)
        if spec is None or spec.tier(key.name) is None:
            continue
        tokens = entry.history.tokens.get(key.name) or entry.history.tokens.get("")
        if tokens is None:
            continue
        rate = max(entry.history.samples[-1][1] if entry.history.samples else 0.0, 1e-6)
        total += rate * capacity.work_units(*tokens)
        weight += rate
    if weight > 0:
        return total / weight
    return capacity.work_units(demand.DEFAULT_PROMPT_TOKENS, demand.DEFAULT_COMPLETION_TOKENS)


def _spec(world: World, key: ClassKey) -> RoutingClass | None:
    policy = world.policies.get(Key(key[0], key[1]))
    return policy.spec.routing_class(key[2]) if policy is not None else None


def _learn_tier(
    world: World,
    key: Key,
    tier: ModelTier,
    signals: Signals,
    tiers: dict[tuple[str, str], TierMemory],
    classes: Mapping[ClassKey, ClassMemory],
    settings: Settings,
    news: float,
) -> None:
    name = (key.namespace, key.name)
    entry = tiers.get(name, TierMemory())
    seen_tier = signals.tiers.get(name)
    workload = world.workloads.get(key)
    ready = workload.ready_replicas if workload is not None else 0
    if seen_tier is None or not ready:
        return
    seen = capacity.observe(seen_tier, ready, max_age_seconds=settings.max_age_seconds)
    if seen is None:
        return
    objectives = [
        objective_of(spec)
        for policy_key, policy in sorted(world.policies.items())
        if policy_key.namespace == key.namespace
        for spec in policy.spec.classes
        if spec.tier(key.name) is not None and _weight(policy, spec, key.name, world) > 0
    ]
    known = entry.capacity or prior(tier, _units(world, key, classes))
    tiers[name] = replace(entry, capacity=capacity.learn(known, seen, objectives, news=news))


def _news(memory: LoopMemory, signals: Signals) -> float:
    """Share of the signals' window that has passed since the last ones."""
    if memory.signals_time is None or signals.window_seconds <= 0:
        return 1.0
    return min(1.0, (signals.time - memory.signals_time).total_seconds() / signals.window_seconds)


def _weight(policy: RoutingPolicy, spec: RoutingClass, tier: str, world: World) -> int:
    needed = sensitivity.effective(policy, spec)
    allowed = routing.cleared_tiers(spec, world.tiers_in(policy.metadata.namespace), needed)
    return routing.weights_in_force(policy, spec, allowed).get(tier, 0)


def _learn_latency(
    world: World,
    key: ClassKey,
    entry: ClassMemory,
    signals: Signals,
    tiers: Mapping[tuple[str, str], TierMemory],
    settings: Settings,
) -> ClassMemory:
    latency = {tier: seen for tier, seen in entry.latency.items() if signals.time - seen.time < FORGET_LATENCY}
    for tier, seen in sorted(signals.classes.get(key, {}).items()):
        if not value_of(seen.request_rate, max_age_seconds=settings.max_age_seconds):
            continue
        spec = world.tiers.get(Key(key[0], tier))
        if spec is None:
            continue
        left = 1.0
        if spec.spec.in_cluster is not None:
            load = _utilisation(tiers.get((key[0], tier)), signals.tiers.get((key[0], tier)), world, Key(key[0], tier))
            if load is None:
                continue
            left = 1 - min(load, 0.9)
        ttfb = value_of(seen.ttfb_p95_seconds, max_age_seconds=settings.max_age_seconds)
        whole = value_of(seen.latency_p95_seconds, max_age_seconds=settings.max_age_seconds)
        before = latency.get(tier)
        latency[tier] = IdleLatency(
            time=signals.time,
            ttfb_seconds=_smooth(before.ttfb_seconds if before else None, ttfb, left),
            latency_seconds=_smooth(before.latency_seconds if before else None, whole, left),
        )
    return replace(entry, latency=dict(sorted(latency.items())))


def _smooth(before: float | None, new: float | None, factor: float) -> float | None:
    if new is None:
        return before
    return new * factor if before is None else before + _LATENCY_GAIN * (new * factor - before)


def _utilisation(entry: TierMemory | None, signals: TierSignals | None, world: World, key: Key) -> float | None:
    workload = world.workloads.get(key)
    if entry is None or entry.capacity is None or signals is None or workload is None or not workload.ready_replicas:
        return None
    seen = capacity.observe(signals, workload.ready_replicas, max_age_seconds=3600.0)
    return seen.work_rate / entry.capacity.saturation if seen is not None else None


def view(world: World, memory: LoopMemory, namespace: str, settings: Settings) -> Situation:
    """Step 2: the namespace as it stands."""
    tiers = {name: _tier_view(world, memory, Key(namespace, name)) for name in world.tiers_in(namespace)}
    classes = tuple(
        _class_view(world, memory, Key(namespace, name), policy, spec, tiers, settings)
        for name, policy in world.policies_in(namespace).items()
        for spec in policy.spec.classes
    )
    return Situation(namespace, world.now, tiers, classes, settings)


def _tier_view(world: World, memory: LoopMemory, key: Key) -> TierView:
    tier = world.tiers[key]
    entry = memory.tiers.get((key.namespace, key.name), TierMemory())
    workload = world.workloads.get(key)
    inside = tier.spec.in_cluster is not None
    known = entry.capacity or prior(tier, _units(world, key, memory.classes)) if inside else None
    return TierView(
        name=key.name,
        tier=tier,
        signals=world.signals.tiers.get((key.namespace, key.name)) if world.signals is not None else None,
        capacity=known,
        planned=planned_replicas(world, key),
        existing=workload.replicas if workload is not None and workload.owned else 0,
        ready=workload.ready_replicas if workload is not None and workload.owned else 0,
        usable=(workload is None or workload.owned) if inside else credential_found(world, key),
        memory=entry,
    )


def _class_view(
    world: World,
    memory: LoopMemory,
    key: Key,
    policy: RoutingPolicy,
    spec: RoutingClass,
    tiers: Mapping[str, TierView],
    settings: Settings,
) -> ClassView:
    class_key = (key.namespace, key.name, spec.name)
    objects = {name: entry.tier for name, entry in tiers.items()}
    allowed = routing.cleared_tiers(spec, objects, sensitivity.effective(policy, spec))
    rules = rules_of(policy)
    entry = memory.classes.get(class_key, ClassMemory())
    startup = max((tiers[name].startup_seconds for name in allowed), default=0.0)
    missing = _missing(world, class_key, settings)
    window = max(2 * rules.cooldown_seconds, 3 * startup, 8 * rules.interval_seconds)
    since = entry.history.samples[-1][0] if entry.history.samples else memory.started
    scores = scores_of(spec.task, objects)
    wanted = spec.quality
    return ClassView(
        key=class_key,
        policy=policy,
        spec=spec,
        rules=rules,
        allowed=allowed,
        uncleared=tuple(ref.name for ref in spec.tiers if ref.name in objects and ref.name not in allowed),
        unknown=tuple(ref.name for ref in spec.tiers if ref.name not in objects),
        weights=routing.weights_in_force(policy, spec, allowed),
        window_seconds=window,
        demand=demand.forecast(
            entry.history,
            window_seconds=window,
            lead_seconds=startup + rules.interval_seconds,
        ),
        missing=missing,
        stale=missing is not None
        and since is not None
        and (world.now - since).total_seconds() > settings.max_age_seconds,
        scores=scores,
        floor=quality.floor(
            min_score=_number(wanted.min_score) if wanted is not None else None,
            max_loss_percent=_number(wanted.max_loss_percent) if wanted is not None else None,
            reference=policy.spec.reference_tier,
            scores=scores,
        ),
        objective=objective_of(spec),
        memory=entry,
    )


def _number(value: Decimal | None) -> float | None:
    return float(value) if value is not None else None


def _missing(world: World, key: ClassKey, settings: Settings) -> Missing | None:
    signals = world.signals
    if signals is None:
        return Missing("Prometheus has not been asked yet")
    age = (world.now - signals.time).total_seconds()
    if age > settings.max_age_seconds:
        return Missing(f"the last answer of Prometheus is {age:.0f} s old")
    seen = demand.measure(key, signals, max_age_seconds=settings.max_age_seconds)
    return seen if isinstance(seen, Missing) else None


def fresh(signal: Reading | Missing, settings: Settings) -> float | None:
    """A signal's value when it is fresh."""
    return value_of(signal, max_age_seconds=settings.max_age_seconds)
