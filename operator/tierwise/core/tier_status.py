"""What a ModelTier's status says: conditions and replicas as they are, figures as they were at the last decision."""

import math
from dataclasses import replace
from decimal import Decimal

from tierwise.api.meta import Provenance
from tierwise.api.model_tier_status import ModelTierStatus, TierCapacity, TierCost, TierLatency, TierReplicas
from tierwise.api.scalars import Duration
from tierwise.core import capacity, conditions, cost, demand, engines, inflight
from tierwise.core.capacity import Capacity
from tierwise.core.conditions import Finding
from tierwise.core.decision import Decision, TierOutcome
from tierwise.core.situation import ClassView, Situation, TierView, fresh
from tierwise.core.world import Key, World

CAPACITY_MOVE = 1.2
"""A measured capacity is shown anew when it differs by this factor: a status is no time series."""

CONCURRENT_MOVE = 0.1
"""And requests in flight when they differ by this share: gateways go by them."""

LAST_PEAKS = 5
"""Windows whose busiest ten seconds are taken for the next burst."""


def status(world: World, situation: Situation, decision: Decision, name: str) -> ModelTierStatus:
    """The status that a tier should have now."""
    view = situation.tiers[name]
    key = Key(situation.namespace, name)
    before = view.tier.status
    generation = view.tier.metadata.generation
    outcome = decision.tiers.get(name)
    first = before.cost is None and before.capacity is None
    again = first or before.observed_generation != generation or _again(situation, decision, view)
    figures = _figures(situation, view) if again else before
    if first and figures.cost is None and figures.capacity is None:
        figures = before
    return ModelTierStatus(
        observed_generation=generation,
        conditions=conditions.settle(
            findings(world, key, view), before.conditions, generation=generation, now=world.now
        ),
        replicas=_replicas(view, outcome),
        capacity=figures.capacity,
        latency=figures.latency,
        cost=figures.cost,
    )


def shown_capacity(situation: Situation, decision: Decision, name: str) -> TierCapacity | None:
    """The capacity that a tier's status should show now."""
    view = situation.tiers[name]
    before = view.tier.status.capacity
    return _capacity(situation, view) if before is None or _again(situation, decision, view) else before


def _again(situation: Situation, decision: Decision, view: TierView) -> bool:
    """Figures move with every measurement; in a status they move when a decision does, or the number of replicas."""
    shown = view.tier.status.replicas
    counted = shown is not None and shown.current != view.existing
    return counted or decision.moved or _learnt(situation, view)


def _learnt(situation: Situation, view: TierView) -> bool:
    """Whether the capacity in the status misleads: it is where learning starts after a restart."""
    shown, known = view.tier.status.capacity, view.capacity
    if known is None or known.provenance != "measured":
        return False
    if shown is None or shown.requests_per_second is None or shown.provenance is not Provenance.MEASURED:
        return True
    concurrent, before = _concurrent(situation, view, known), shown.concurrent_requests
    if concurrent is not None and (before is None or abs(concurrent - before) > 0.75 + CONCURRENT_MOVE * before):
        return True
    ratio = safe_rate(situation, view, known) / float(shown.requests_per_second)
    return not 1 / CAPACITY_MOVE <= ratio <= CAPACITY_MOVE


def findings(world: World, key: Key, view: TierView) -> tuple[Finding, ...]:
    """Ready, and Reconciling while something is under way."""
    invalid = world.invalid.get(("ModelTier", key))
    if invalid is not None:
        return conditions.invalid(str(invalid), held=True)
    if view.external:
        return _external(view)
    return _in_cluster(world, key)


def _external(view: TierView) -> tuple[Finding, ...]:
    outside = view.tier.spec.external
    ref = outside.credentials_ref if outside is not None else None
    if not view.usable and ref is not None:
        return conditions.stalled(
            "CredentialNotFound",
            f"spec.external.credentialsRef: Secret {ref.name!r} has no key {ref.key!r} in this namespace: create it",
        )
    if outside is not None and outside.price is None:
        message = "spec.external.price is absent: its cost is unknown and counts as the dearest"
        return (conditions.ready("Unpriced", message),)
    return (conditions.ready("Configured", "gateways can send requests to the provider"),)


def _in_cluster(world: World, key: Key) -> tuple[Finding, ...]:
    workload = world.workloads.get(key)
    if workload is None:
        message = "the Deployment does not exist yet"
        return (
            conditions.not_ready("Creating", message),
            Finding(conditions.RECONCILING, True, "Creating", message),
        )
    if not workload.owned:
        message = f"Deployment {key} exists and is not this tier's: rename the tier, or remove the Deployment"
        return conditions.stalled("NameTaken", message)
    rolling = not workload.observed_current or workload.updated_replicas < max(
        workload.replicas, workload.spec_replicas
    )
    if workload.spec_replicas == 0:
        return (conditions.ready("ScaledToZero", "no replica runs, on purpose"),)
    if workload.ready_replicas >= 1:
        found = conditions.ready("Available", "at least one replica takes requests")
        if rolling:
            return (found, Finding(conditions.RECONCILING, True, "RollingOut", "replicas are being replaced"))
        return (found,)
    message = "no replica takes requests yet"
    return (
        conditions.not_ready("Starting", message),
        Finding(conditions.RECONCILING, True, "Starting", message),
    )


def _replicas(view: TierView, outcome: TierOutcome | None) -> TierReplicas | None:
    if outcome is None:
        return None
    return TierReplicas(
        desired=outcome.planned,
        min=outcome.bounds.min,
        max=outcome.bounds.max,
        current=view.existing,
        ready=view.ready,
    )


def _figures(situation: Situation, view: TierView) -> ModelTierStatus:
    """Capacity, latency and cost, rounded; what is unknown is absent."""
    return ModelTierStatus(
        capacity=_capacity(situation, view), latency=_latency(situation, view), cost=_cost(situation, view)
    )


def _provenance(word: str) -> Provenance:
    return Provenance(word.capitalize())


def _rounded(value: Decimal | float | None, digits: int = 3) -> Decimal | None:
    """Three significant digits: what a person reads, and what noise does not move."""
    if value is None:
        return None
    number = Decimal(str(value))
    if not number:
        return Decimal(0)
    # Plain notation: an exponent reads badly in kubectl.
    return Decimal(format(number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1)), "f"))


def _mean_units(situation: Situation, view: TierView) -> float:
    """Work units per request of the tier's classes, weighted by rate."""
    total, weight = 0.0, 0.0
    for user in situation.users(view.name):
        if user.demand is None or not user.demand.tokens_known:
            continue
        rate = max(user.demand.now, 1e-6)
        total += rate * user.demand.units_on(view.name)
        weight += rate
    if weight:
        return total / weight
    return capacity.work_units(demand.DEFAULT_PROMPT_TOKENS, demand.DEFAULT_COMPLETION_TOKENS)


def safe_rate(situation: Situation, view: TierView, known: Capacity) -> float:
    """Requests/s of one replica at which the objectives of its classes hold."""
    return known.saturation * _safe(situation, view, known) / _mean_units(situation, view)


def _safe(situation: Situation, view: TierView, known: Capacity) -> float:
    """Utilisation of a replica at which the objectives of its classes hold."""
    limits = [capacity.utilisation_limit(known, user.objective) for user in situation.users(view.name)]
    return min((limit for limit in limits if limit > 0), default=capacity.DEFAULT_UTILISATION)


def _concurrent(situation: Situation, view: TierView, known: Capacity) -> float | None:
    """Requests in flight of one replica at that utilisation; None before it is measured, or where nobody asks."""
    if known.provenance != "measured" or not any(view.name in user.relieved for user in situation.users(view.name)):
        return None
    users = [
        user
        for user in situation.users(view.name)
        if user.demand is not None and user.demand.tokens_known and user.weights.get(view.name, 0) > 0
    ]
    at = inflight.GUARDED * _safe(situation, view, known)
    # A replica is full when one of its classes bursts, and of short requests it is with fewer.
    shared = max(view.ready, 1)
    found = [inflight.concurrent_at(known, at, shared, _mix(view, users, bursting)) for bursting in users]
    least = min((each for each in found if each is not None), default=None)
    if least is None:
        return None
    # More than a replica runs at a time would queue in it.
    inside = view.tier.spec.in_cluster
    bounds = [engines.most_running(inside) if inside is not None else None, known.most_running]
    return min(least, *(float(bound) for bound in bounds if bound is not None), math.inf)


def _kept(view: TierView) -> int | None:
    """An idle tier, or a restart, says nothing against what was learnt of this spec."""
    before = view.tier.status
    same = before.observed_generation == view.tier.metadata.generation
    return before.capacity.concurrent_requests if same and before.capacity is not None else None


def _mix(view: TierView, users: list[ClassView], bursting: ClassView) -> list[tuple[float, float, float, bool]]:
    """Requests/s and tokens of a tier's classes while one has a burst, and whether they are relieved.

    Gateways count relieved requests only. Where there is none, all count: it is what a replica holds. The others go by
    their level, as one window's noise moves no limit.
    """
    counted = [user for user in users if view.name in user.relieved] or users
    found = []
    for user in users:
        forecast = user.demand
        if forecast is None:
            continue
        peaks = [sample.peak for sample in user.memory.history.samples[-LAST_PEAKS:]]
        rate = max([forecast.level, *peaks]) if user is bursting else forecast.level
        share = user.weights.get(view.name, 0) / 100
        found.append((rate * share, *forecast.tokens_on(view.name), user in counted))
    return found


def _capacity(situation: Situation, view: TierView) -> TierCapacity | None:
    known = view.capacity
    if known is None:
        return None
    if known.observations == 0:
        inside = view.tier.spec.in_cluster
        declared = inside.capacity if inside is not None else None
        if declared is None or declared.requests_per_second is None:
            return None
        return TierCapacity(requests_per_second=declared.requests_per_second, provenance=Provenance.DECLARED)
    concurrent = _concurrent(situation, view, known)
    return TierCapacity(
        requests_per_second=_rounded(safe_rate(situation, view, known)),
        saturation_requests_per_second=_rounded(known.saturation / _mean_units(situation, view)),
        concurrent_requests=max(1, round(concurrent)) if concurrent is not None else _kept(view),
        provenance=_provenance(known.provenance),
    )


def _latency(situation: Situation, view: TierView) -> TierLatency | None:
    seen = view.signals
    ttft = fresh(seen.ttft_p95_seconds, situation.settings) if seen is not None else None
    oldest = situation.settings.max_age_seconds
    between = capacity.inter_token_of_requests(seen, max_age_seconds=oldest) if seen is not None else None
    if ttft is not None or between is not None:
        return TierLatency(ttft_p95=_duration(ttft), inter_token_p95=_duration(between), provenance=Provenance.MEASURED)
    outside = view.tier.spec.external
    if outside is not None and outside.latency is not None:
        declared = outside.latency
        return TierLatency(
            ttft_p95=declared.ttft_p95, inter_token_p95=declared.inter_token_p95, provenance=Provenance.DECLARED
        )
    return None


def _duration(seconds: float | None) -> Duration | None:
    rounded = _rounded(seconds)
    return Duration.from_seconds(rounded) if rounded is not None else None


def token_rates(view: TierView, situation: Situation) -> tuple[float, float] | None:
    """Prompt and completion tokens/s of a tier: the engine's counters, or what gateways counted at a provider."""
    seen = view.signals
    if seen is None:
        return None
    prompt = fresh(seen.prompt_token_rate, situation.settings)
    completion = fresh(seen.generation_token_rate, situation.settings)
    return (prompt, completion) if prompt is not None and completion is not None else None


def tier_cost(situation: Situation, view: TierView) -> cost.TierCost:
    """What a tier costs now, in the currency of its price."""
    rates = token_rates(view, situation)
    outside = view.tier.spec.external
    if outside is not None:
        price = outside.price
        return cost.external(
            input_price=price.input_per_million_tokens if price is not None else None,
            output_price=price.output_per_million_tokens if price is not None else None,
            prompt_tokens_per_second=rates[0] if rates is not None else None,
            completion_tokens_per_second=rates[1] if rates is not None else None,
        )
    known = view.capacity
    utilisation = None
    if known is not None and view.signals is not None and view.ready:
        seen = capacity.observe(view.signals, view.ready, max_age_seconds=situation.settings.max_age_seconds)
        utilisation = seen.work_rate / known.saturation / capacity.DEFAULT_UTILISATION if seen is not None else None
    each = None
    if known is not None and known.observations and rates is not None and sum(rates) > 0:
        units = rates[1] + capacity.PROMPT_WEIGHT * rates[0]
        each = known.saturation * capacity.DEFAULT_UTILISATION * sum(rates) / max(units, 1e-9)
    return cost.in_cluster(
        price_per_hour=view.price_per_hour,
        replicas=view.existing,
        tokens_per_second=sum(rates) if rates is not None else None,
        utilisation=utilisation,
        capacity_tokens_per_second=each,
    )


def currency(view: TierView) -> str | None:
    """Of the tier's price; None when it has none."""
    inside, outside = view.tier.spec.in_cluster, view.tier.spec.external
    if inside is not None:
        return inside.price.currency if inside.price is not None else None
    return outside.price.currency if outside is not None and outside.price is not None else None


def _cost(situation: Situation, view: TierView) -> TierCost | None:
    found, money = tier_cost(situation, view), currency(view)
    if money is None or found.per_hour is None:
        return None
    found = replace(found, break_even_requests_per_second=_break_even(situation, view))
    return TierCost(
        per_hour=_rounded(found.per_hour, 4),
        per_million_tokens=_rounded(found.per_million_tokens),
        marginal_per_million_tokens=_rounded(found.marginal_per_million_tokens),
        break_even_requests_per_second=_rounded(found.break_even_requests_per_second),
        currency=money,
        provenance=Provenance.MEASURED,
    )


def _break_even(situation: Situation, view: TierView) -> Decimal | None:
    """Rate from which one replica is cheaper than the cheapest provider that its classes may use instead."""
    if view.external:
        return None
    prices: list[Decimal] = []
    for user in situation.users(view.name):
        if user.demand is None or not user.demand.tokens_known:
            continue
        for other in user.allowed:
            tier = situation.tiers[other]
            each = tier.cost_per_request(*user.demand.tokens_on(other)) if tier.external else None
            if each:
                prices.append(cost.decimal(each))
    return cost.break_even(view.price_per_hour, min(prices, default=None))
