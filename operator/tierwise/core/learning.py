"""What the loop learns from each answer of Prometheus: demand of classes, capacity of tiers, latencies that were met.

Step 1 of a planning round. What is remembered goes from round to round as a value.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from tierwise.api.meta import Provenance
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import capacity, credit, demand, promise, routing, sensitivity
from tierwise.core.capacity import Capacity, Objective
from tierwise.core.credit import Credit
from tierwise.core.demand import Measured
from tierwise.core.memory import ClassMemory, IdleLatency, LoopMemory, TierMemory
from tierwise.core.signals import ClassKey, Missing, Signals, TierKey, TierSignals, value_of
from tierwise.core.world import Key, World

ASSUMED_SATURATION = 1500.0
"""Work units/s per replica where neither the spec nor a measurement says any: a mid-sized model on one accelerator."""

FORGET_LATENCY = timedelta(minutes=10)
"""A latency that was measured longer ago keeps no tier out of a class: it is tried again."""

REFUSED_SHARE = 0.05
"""A provider that refuses a larger share of what it is sent gets less."""

FORGET_REFUSAL = timedelta(minutes=10)
"""A provider that has refused nothing for so long may have got more: it is tried again."""

_LATENCY_GAIN = 0.3


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


def learn(world: World, max_age_seconds: float) -> LoopMemory:
    """Step 1: the memory after the newest signals. Each answer of Prometheus is learnt from once.

    Args:
        world: of this round.
        max_age_seconds: samples older than this are stale.
    """
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
            seen = demand.measure(class_key, signals, max_age_seconds=max_age_seconds)
            if isinstance(seen, Missing):
                continue
            entry = classes.get(class_key, ClassMemory())
            startups = (world.tiers.get(Key(key.namespace, ref.name)) for ref in spec.tiers)
            startup = max((startup_seconds(one) for one in startups if one is not None), default=0.0)
            held = window_seconds(policy, startup)
            history = demand.remember(entry.history, seen, held_seconds=held)
            classes[class_key] = replace(entry, history=history, credit=_credit(world, policy, spec, entry, seen))
    for key, tier in sorted(world.tiers.items()):
        if tier.spec.in_cluster is not None:
            _learn_tier(world, key, tier, signals, tiers, classes, max_age_seconds, _news(memory, signals))
        else:
            name = (key.namespace, key.name)
            provider = refusals(tiers.get(name, TierMemory()), signals, name, max_age_seconds)
            if provider != TierMemory():
                tiers[name] = provider
            else:
                tiers.pop(name, None)
    for class_key in sorted(classes):
        classes[class_key] = _learn_latency(world, class_key, classes[class_key], signals, tiers, max_age_seconds)
    return replace(memory, signals_time=signals.time, classes=classes, tiers=tiers)


def _credit(
    world: World, policy: RoutingPolicy, spec: RoutingClass, entry: ClassMemory, seen: Measured
) -> Credit | None:
    """What a class has earned, where its floor holds on average."""
    if not promise.on_average(spec):
        return None
    tiers = world.tiers_in(policy.metadata.namespace)
    scores = promise.scores_of(spec.task, tiers)
    floor = promise.floor_of(policy, spec, scores)
    if floor is None or floor.value is None:
        return None
    cleared = routing.cleared_tiers(spec, tiers, sensitivity.effective(policy, spec))
    return credit.counted(
        entry.credit,
        floor.value,
        promise.span(spec, scores, cleared),
        {name: score.value for name, score in scores.items()},
        seen.rates,
        now=seen.time,
        window_seconds=seen.window_seconds,
        bursts=routing.spends_in_bursts(policy, spec, tiers, cleared),
    )


def startup_seconds(tier: ModelTier) -> float:
    """From the creation of a replica until it serves; 0 for an external tier."""
    inside = tier.spec.in_cluster
    return float(inside.replicas.startup_seconds) if inside is not None else 0.0


def window_seconds(policy: RoutingPolicy, startup: float) -> float:
    """How long demand must have been low before it counts as low: the window of stabilisation.

    Args:
        policy: of the class.
        startup: the longest of its tiers, seconds.
    """
    rebalance = policy.spec.rebalance
    return max(2 * rebalance.cooldown.seconds, 3 * startup, 8 * rebalance.interval.seconds)


def _class_exists(world: World, key: ClassKey) -> bool:
    policy = world.policies.get(Key(key[0], key[1]))
    return policy is not None and any(spec.name == key[2] for spec in policy.spec.classes)


def units(world: World, key: Key, classes: Mapping[ClassKey, ClassMemory]) -> float:
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
    max_age_seconds: float,
    news: float,
) -> None:
    name = (key.namespace, key.name)
    entry = tiers.get(name, TierMemory())
    seen_tier = signals.tiers.get(name)
    workload = world.workloads.get(key)
    ready = workload.ready_replicas if workload is not None else 0
    if seen_tier is None or not ready:
        return
    parts = _parts(key, signals, classes, max_age_seconds)
    seen = capacity.observe(seen_tier, ready, max_age_seconds=max_age_seconds, parts=parts)
    if seen is None:
        return
    idle = seen.work_rate <= 0
    objectives = [
        objective_of(spec)
        for policy_key, policy in sorted(world.policies.items())
        if policy_key.namespace == key.namespace
        for spec in policy.spec.classes
        if spec.tier(key.name) is not None and (idle or _weight(policy, spec, key.name, world) > 0)
    ]
    known = entry.capacity or prior(tier, units(world, key, classes))
    tiers[name] = replace(entry, capacity=capacity.learn(known, seen, objectives, news=news))


def _parts(
    key: Key, signals: Signals, classes: Mapping[ClassKey, ClassMemory], max_age_seconds: float
) -> tuple[tuple[float, float], ...]:
    """How uneven a tier's load was: (multiple of its mean, share of its tokens) of each class's bursts and calm.

    Load is what the tier took: what a saturated one passed on, mostly in bursts, made nothing slow there. While one
    class has its busiest seconds, the others are taken at their mean. Empty where nothing is known of it: an even load
    makes the tier no larger than it is.
    """
    window = signals.window_seconds
    found: list[tuple[float, float, float, float]] = []
    for class_key, by_tier in sorted(signals.classes.items()):
        seen, entry = by_tier.get(key.name), classes.get(class_key)
        if class_key[0] != key.namespace or seen is None or entry is None:
            continue
        rate = value_of(seen.taken_rate, max_age_seconds=max_age_seconds)
        if rate is not None and rate <= 0:
            continue
        peak = value_of(seen.taken_peak_rate, max_age_seconds=max_age_seconds)
        tokens = entry.history.tokens.get(key.name) or entry.history.tokens.get("")
        if rate is None or peak is None or tokens is None or window <= demand.BURST_SECONDS:
            return ()
        peak = max(rate, min(peak, rate * window / demand.BURST_SECONDS))
        found.append((rate, peak, capacity.work_units(*tokens), tokens[1]))
    work = sum(rate * units for rate, _, units, _ in found)
    if work <= 0:
        return ()
    parts: list[tuple[float, float]] = []
    for rate, peak, each, completion in found:
        busy = peak * demand.BURST_SECONDS / (rate * window)
        calm = rate * (1 - busy) * window / (window - demand.BURST_SECONDS)
        parts.append((1 + (peak - rate) * each / work, rate * completion * busy))
        parts.append((1 + (calm - rate) * each / work, rate * completion * (1 - busy)))
    return tuple(parts)


def refusals(entry: TierMemory, signals: Signals, name: TierKey, max_age_seconds: float) -> TierMemory:
    """What an external tier takes, after one more look at what it answered and what it refused."""
    seen = signals.tiers.get(name)
    if seen is None:
        return entry
    answered = value_of(seen.answer_rate, max_age_seconds=max_age_seconds)
    refused = value_of(seen.refused_rate, max_age_seconds=max_age_seconds)
    if answered is None or refused is None:
        return entry
    if refused > REFUSED_SHARE * (answered + refused):
        # The least that was seen: what it takes while weights are on their way down says nothing of what it takes.
        takes = answered if entry.takes is None else min(entry.takes, answered)
        return replace(entry, takes=takes, refused=signals.time)
    if entry.refused is not None and signals.time - entry.refused >= FORGET_REFUSAL:
        return replace(entry, takes=None, refused=None)
    return entry


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
    max_age_seconds: float,
) -> ClassMemory:
    latency = {tier: seen for tier, seen in entry.latency.items() if signals.time - seen.time < FORGET_LATENCY}
    for tier, seen in sorted(signals.classes.get(key, {}).items()):
        if not demand.took(seen, max_age_seconds):
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
        ttfb = value_of(seen.ttfb_p95_seconds, max_age_seconds=max_age_seconds)
        whole = value_of(seen.latency_p95_seconds, max_age_seconds=max_age_seconds)
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
