"""What a settled namespace costs and promises: per tier, per class, per budget.

All of it is estimated, and says from what.

What can not be told is None and is not shown; in sums it makes the sum a lower bound, never a smaller number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from tierwise.api.namespace_budget import NamespaceBudget, Unpriced
from tierwise.api.routing_policy_status import Binding
from tierwise.core import budget as calendar
from tierwise.core import capacity, decide, policy_status, tier_status
from tierwise.core.decision import ClassOutcome
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, Situation, TierView
from tierwise.preview import climb
from tierwise.preview.climb import Climb
from tierwise.preview.metrics import Load, Metrics
from tierwise.preview.rounds import Settled

HOURS_PER_MONTH = Decimal(730)
"""365 days of 24 hours, divided by 12."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Money per hour in one currency.

    Attributes:
        value: what is known of it. missing: why it is only a lower bound; empty when it is all.
    """

    value: Decimal
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Nothing is left out."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class TierEstimate:
    """One tier.

    Attributes:
        replicas: kept on average; None for an external tier. most: the autoscaler's maximum.
        cost_per_hour: None when unknown. currency: of it. why: what is missing for it.
        utilisation: share of the saturation of its replicas at the planned demand; None when unknown.
        capacity: where its capacity comes from: measured, estimated, declared or assumed; empty for an external tier.
        used: some class may use it.
    """

    name: str
    replicas: int | None
    most: int | None
    cost_per_hour: Decimal | None
    currency: str | None
    why: str = ""
    utilisation: float | None = None
    capacity: str = ""
    used: bool = True


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """One class of a policy.

    Attributes:
        weights: percent by tier. load: None when unknown.
        attainment: share of requests on tiers whose estimated 95th percentiles are within the objective, 0 to 1; None
            when the model has no basis. basis: from what, or why not.
        binding, reason: what keeps it from a cheaper mix, and why the weights are what they are.
    """

    policy: str
    name: str
    weights: Mapping[str, int]
    load: Load | None
    objective: str
    attainment: float | None
    basis: str
    binding: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BudgetEstimate:
    """One budget at this cost.

    Attributes:
        period_cost: a whole period's, without the ladder (estimated). percent: of the ceiling.
        ladder: its rungs. whole: the ladder in the next whole period. present: in the rest of this one, where its spend
            is known. Both None when the cost is unknown.
        unpriced: (policy, class, tier) whose cost does not count because the tier has no price in the currency.
        unpriced_denied: no request goes to such a tier; else they pass uncounted.
        spent: of the present period, as the cluster has it; None when unknown.
    """

    name: str
    ceiling: Decimal
    currency: str
    period: str
    period_cost: Amount | None
    percent: Decimal | None
    ladder: tuple[tuple[int, str], ...]
    unpriced: tuple[tuple[str, str, str], ...]
    unpriced_denied: bool
    spent: Decimal | None = None
    whole: Climb | None = None
    present: Climb | None = None


@dataclass(frozen=True, slots=True)
class NamespaceEstimate:
    """One namespace."""

    namespace: str
    tiers: tuple[TierEstimate, ...]
    classes: tuple[ClassEstimate, ...]
    budgets: tuple[BudgetEstimate, ...]
    costs: Mapping[str, Amount] = field(default_factory=dict)
    unpriced: tuple[str, ...] = ()
    steady: bool = True


def estimate(settled: Settled, metrics: Metrics, now: datetime) -> dict[str, NamespaceEstimate]:
    """All namespaces."""
    return {name: _namespace(seen, settled, metrics, now) for name, seen in sorted(settled.situations.items())}


def _namespace(seen: Situation, settled: Settled, metrics: Metrics, now: datetime) -> NamespaceEstimate:
    tiers = tuple(_tier(seen, view, settled, metrics) for _, view in sorted(seen.tiers.items()))
    decision = decide.decide(seen)
    classes = tuple(_class(seen, view, decision.classes[view.key], metrics) for view in seen.classes)
    used = {ref.name for view in seen.classes for ref in view.spec.tiers}
    used |= {each.name for each in tiers if each.replicas}
    costs: dict[str, Amount] = {}
    unpriced: list[str] = []
    for each in tiers:
        if each.currency is None:
            if each.name in used:
                unpriced.append(each.name)
            continue
        held = costs.get(each.currency, Amount(Decimal(0)))
        if each.cost_per_hour is None:
            costs[each.currency] = Amount(held.value, (*held.missing, f"{each.name}: {each.why}"))
        else:
            why = (f"{each.name}: {each.why}",) if each.why else ()
            costs[each.currency] = Amount(held.value + each.cost_per_hour, (*held.missing, *why))
    for name in unpriced:
        costs = {money: Amount(held.value, (*held.missing, f"{name}: no price")) for money, held in costs.items()}
    budgets = tuple(
        _budget(key.name, budget, seen, costs, now, metrics)
        for key, budget in sorted(settled.world.budgets.items())
        if key.namespace == seen.namespace
    )
    return NamespaceEstimate(seen.namespace, tiers, classes, budgets, costs, tuple(unpriced), settled.steady)


def _tier(seen: Situation, view: TierView, settled: Settled, metrics: Metrics) -> TierEstimate:
    money = tier_status.currency(view)
    users = seen.users(view.name)
    if view.external:
        return _provider(view, users, metrics, money)
    child = settled.manifests.get(("HorizontalPodAutoscaler", seen.namespace, view.name))
    inside = view.tier.spec.in_cluster
    most = int(child["spec"]["maxReplicas"]) if child is not None else inside.replicas.max if inside else None
    price = view.price_per_hour
    blind = [user.key[2] for user in users if user.key not in metrics.loads]
    return TierEstimate(
        name=view.name,
        replicas=view.planned,
        most=most,
        cost_per_hour=price * view.planned if price is not None else None,
        currency=money,
        why=f"demand of class {', '.join(sorted(set(blind)))} unknown, at the minimum of replicas"
        if blind and view.planned < (most or 0)
        else "",
        utilisation=_utilisation(view, users, metrics) if view.planned and not blind else None,
        capacity=_basis(view),
    )


def _basis(view: TierView) -> str:
    """Where a tier's capacity comes from."""
    inside = view.tier.spec.in_cluster
    if view.capacity is None or inside is None:
        return ""
    if view.capacity.observations:
        return view.capacity.provenance
    return "declared" if inside.capacity is not None else "assumed"


def _provider(view: TierView, users: tuple[ClassView, ...], metrics: Metrics, money: str | None) -> TierEstimate:
    total, blind = Decimal(0), []
    for user in users:
        percent = user.weights.get(view.name, 0)
        load = metrics.loads.get(user.key)
        if load is not None and not percent:
            continue
        each = view.cost_per_request(load.prompt, load.completion) if load is not None else None
        if load is None or each is None:
            blind.append(user.key[2])
            continue
        total += Decimal(str(3600 * load.mean * percent / 100 * each))
    why = f"demand of class {', '.join(sorted(set(blind)))} unknown" if blind else ""
    known = money is not None and not (blind and not total)
    return TierEstimate(view.name, None, None, total if known else None, money, why, used=bool(users))


def _work(load: Load) -> float:
    return capacity.work_units(load.prompt, load.completion)


def _utilisation(view: TierView, users: tuple[ClassView, ...], metrics: Metrics) -> float | None:
    if view.capacity is None or not view.planned:
        return None
    work = 0.0
    for user in users:
        load = metrics.loads.get(user.key)
        if load is None:
            if user.weights.get(view.name, 0):
                return None
            continue
        work += load.peak * user.weights.get(view.name, 0) / 100 * _work(load)
    return work / (view.planned * view.capacity.saturation)


def _class(seen: Situation, view: ClassView, outcome: ClassOutcome, metrics: Metrics) -> ClassEstimate:
    load = metrics.loads.get(view.key)
    objective = ", ".join(
        f"{name} {value}"
        for name, value in (
            ("TTFT p95", view.spec.objective.ttft_p95 if view.spec.objective else None),
            ("inter-token p95", view.spec.objective.inter_token_p95 if view.spec.objective else None),
            ("latency p95", view.spec.objective.latency_p95 if view.spec.objective else None),
        )
        if value is not None
    )
    attained, basis = _attainment(seen, view, load, metrics) if objective else (None, "no objective")
    return ClassEstimate(
        policy=view.key[1],
        name=view.key[2],
        weights=dict(view.weights),
        load=load,
        objective=objective,
        attainment=attained,
        basis=basis,
        binding=policy_status.BINDINGS.get(outcome.binding, Binding.NONE).value if load is not None else "",
        reason=outcome.reason if load is not None else "",
    )


def _attainment(seen: Situation, view: ClassView, load: Load | None, metrics: Metrics) -> tuple[float | None, str]:
    """Share of the requests on tiers that are estimated to hold the objective, and from what."""
    if load is None:
        return None, "demand unknown"
    if not view.weights:
        return None, "no tier takes its requests"
    held, basis = 0.0, set()
    for name, percent in view.weights.items():
        tier = seen.tiers[name]
        meets, why = _provider_meets(view, tier) if tier.external else _replicas_meet(seen, view, tier, metrics)
        if meets is None:
            return None, f"{name}: {why}"
        held += percent / 100 if meets else 0.0
        basis.add(why)
    return held, ", ".join(sorted(basis))


def _replicas_meet(seen: Situation, view: ClassView, tier: TierView, metrics: Metrics) -> tuple[bool | None, str]:
    load = _utilisation(tier, seen.users(tier.name), metrics)
    known, basis = tier.capacity, _basis(tier)
    if load is None or known is None:
        return None, "load unknown"
    if basis == "assumed":
        return None, "no capacity is declared or measured"
    limit = capacity.utilisation_limit(known, view.objective)
    return load <= limit + 1e-9, f"{basis} capacity"


def _provider_meets(view: ClassView, tier: TierView) -> tuple[bool | None, str]:
    outside = tier.tier.spec.external
    stated = outside.latency if outside is not None else None
    wanted = view.objective
    for bound, value, name in (
        (wanted.ttft_seconds, stated.ttft_p95 if stated is not None else None, "time to first token"),
        (wanted.inter_token_seconds, stated.inter_token_p95 if stated is not None else None, "inter-token time"),
    ):
        if bound is None:
            continue
        if value is None:
            return None, f"its {name} is not declared"
        if value.seconds > bound:
            return False, "declared latency"
    return (
        (None, "its latency of whole requests is unknown")
        if wanted.latency_seconds is not None
        else (
            True,
            "declared latency",
        )
    )


def _budget(
    name: str,
    budget: NamespaceBudget,
    seen: Situation,
    costs: Mapping[str, Amount],
    now: datetime,
    metrics: Metrics,
) -> BudgetEstimate:
    spec = budget.spec
    start, end = calendar.period(spec.period.value, spec.time_zone, now)
    hours = Decimal(str((end - start).total_seconds())) / 3600
    rate = costs.get(spec.currency)
    known = rate is not None and (rate.value > 0 or rate.whole)
    unpriced = [
        (view.key[1], view.key[2], tier)
        for view in seen.classes
        for tier in (ref.name for ref in view.spec.tiers)
        if tier in seen.tiers and tier_status.currency(seen.tiers[tier]) != spec.currency
    ]
    cost = Amount(rate.value * hours, rate.missing) if rate is not None and known else None
    whole = present = None
    spent = budget.status.spent
    if cost is not None and rate is not None:
        following = calendar.period(spec.period.value, spec.time_zone, end)
        whole = climb.play(budget, seen, metrics.loads, rate.value, period=following, now=following[0])
        bounds = budget.status.period
        if spent is not None and bounds is not None and bounds.end == end:
            present = climb.play(budget, seen, metrics.loads, rate.value, period=(start, end), now=now, spent=spent)
    return BudgetEstimate(
        name=name,
        ceiling=spec.ceiling,
        currency=spec.currency,
        period=spec.period.value,
        period_cost=cost,
        percent=100 * cost.value / spec.ceiling if cost is not None else None,
        ladder=tuple((step.at_percent, step.action.value) for step in spec.ladder),
        unpriced=tuple(unpriced),
        unpriced_denied=spec.unpriced is Unpriced.DENY,
        spent=spent,
        whole=whole,
        present=present,
    )


def classes_of(settled: Settled) -> set[ClassKey]:
    """All classes."""
    return {view.key for seen in settled.situations.values() for view in seen.classes}
