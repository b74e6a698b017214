"""What a policy saves: the cost of its requests as they are routed against all of them on the reference tier."""

from collections.abc import Mapping
from decimal import Decimal

from tierwise.api.meta import Provenance
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.routing_policy_status import Saving
from tierwise.core import capacity, tier_status
from tierwise.core.decision import ClassOutcome
from tierwise.core.situation import ClassView, Situation


def saving(situation: Situation, outcomes: list[ClassOutcome], policy: RoutingPolicy) -> Saving | None:
    """Cost of the policy's requests against all of them on the reference tier; None when either is unknown."""
    reference = policy.spec.reference_tier
    if reference is None or reference not in situation.tiers:
        return None
    money = {tier_status.currency(situation.tiers[n]) for o in outcomes for n in o.view.allowed} - {None}
    cost = _policy_cost(situation, outcomes)
    base = _reference_cost(situation, outcomes, reference)
    if cost is None or base is None or len(money) != 1 or cost <= 0:
        return None
    return Saving(
        cost_per_hour=_cents(cost),
        reference_cost_per_hour=_cents(base),
        factor=Decimal(f"{base / cost:.2f}"),
        provenance=Provenance.ESTIMATED,
        currency=str(next(iter(money))),
    )


def _cents(value: float) -> Decimal:
    return Decimal(f"{value:.2f}")


def _load_on(view: ClassView, tier: str, weights: Mapping[str, int]) -> float:
    if view.demand is None:
        return 0.0
    return view.demand.now * weights.get(tier, 0) / 100 * view.demand.units_on(tier)


def _policy_cost(situation: Situation, outcomes: list[ClassOutcome]) -> float | None:
    """Tokens at providers, and the policy's share of each in-cluster tier by work (evenly where nothing runs)."""
    total = 0.0
    for name in sorted({tier for o in outcomes for tier in o.view.allowed}):
        view = situation.tiers[name]
        if view.external:
            for outcome in outcomes:
                demand = outcome.view.demand
                if demand is None:
                    return None
                each = view.cost_per_request(*demand.tokens_on(name))
                if each is None:
                    return None
                total += 3600 * demand.now * outcome.weights.get(name, 0) / 100 * each
            continue
        if view.price_per_hour is None:
            return None
        own = sum(_load_on(o.view, name, o.weights) for o in outcomes)
        everyone = sum(_load_on(v, name, v.weights) for v in situation.users(name))
        policies = {v.key[1] for v in situation.users(name)}
        share = min(1.0, own / everyone) if everyone > 0 else 1 / max(1, len(policies))
        total += share * float(view.price_per_hour) * view.existing
    return total


def _reference_cost(situation: Situation, outcomes: list[ClassOutcome], reference: str) -> float | None:
    view = situation.tiers[reference]
    if view.external:
        total = 0.0
        for outcome in outcomes:
            demand = outcome.view.demand
            each = view.cost_per_request(*demand.tokens_on(reference)) if demand is not None else None
            if demand is None or each is None:
                return None
            total += 3600 * demand.now * each
        return total
    if view.capacity is None or view.price_per_hour is None:
        return None
    load, limit = 0.0, 1.0
    for outcome in outcomes:
        if outcome.view.demand is None:
            return None
        load += outcome.view.demand.now * outcome.view.demand.units_on(reference) / view.capacity.saturation
        limit = min(limit, capacity.utilisation_limit(view.capacity, outcome.view.objective) or 0.5)
    replicas = max(1, -int(-load // (limit * situation.settings.headroom)))
    return replicas * float(view.price_per_hour)
