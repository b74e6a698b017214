"""Step 3 of a planning round: the namespace as a problem for the solver."""

from collections.abc import Mapping
from dataclasses import replace

from tierwise.api.routing_policy import RebalanceMode
from tierwise.core import bursts, capacity, credit
from tierwise.core.bursts import Stream
from tierwise.core.problem import ClassLoad, Pair, Problem, Solution, Tier, Worth
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, Situation, TierView

Factors = Mapping[str, float]

START_SPREAD_SECONDS = 600.0
"""A replica's start-up is charged as if it then ran this long: cheap for short starts, dear for long ones. Those
that are started to save a little often run no longer."""

PASSED = 0.9
"""Share of a provider's limit that gateways let through for long: the rest is for bursts."""

UNKNOWN_PRICE_FACTOR = 10.0
"""What has no price is taken to be this much dearer than the dearest that has one: unknown is never free."""

OVERFLOW_TO = 0.9
"""Share of their safe capacity that ready replicas are left with where others take what they can not carry."""

_TOKEN_SECONDS = 0.03
"""Time between tokens of a request where no objective says."""


def state(
    situation: Situation,
    *,
    factors: Factors | None = None,
    recommended: bool = False,
    downgraded: bool = False,
) -> Problem:
    """The namespace's problem at the demand to plan for.

    Args:
        situation: as it stands.
        factors: tier -> load to have capacity for, in multiples of the level; None: at the weights in force.
        recommended: as if mode Recommend were Auto: what it would do.
        downgraded: as if all classes that a budget downgrades were movable, whatever their mode.
    """
    dearest = _dearest(situation)
    busy = burst_factors(situation, in_force(situation)) if factors is None else factors
    tiers = {name: _tier(situation, view, dearest) for name, view in situation.tiers.items()}

    def free(view: ClassView) -> bool:
        if view.key in situation.hold.denied:
            return False
        as_if = downgraded and view.key in situation.hold.downgraded
        return view.movable or as_if or (recommended and recommends(view))

    loads = tuple(
        load
        for view in situation.classes
        if (load := _load(situation, view, dearest, busy, free=free(view))) is not None and load.pairs
    )
    near = {load.key: load.current for load in loads}
    return Problem(tiers=tiers, classes=loads, headroom=situation.settings.headroom, near=near)


def in_force(situation: Situation) -> dict[ClassKey, dict[str, float]]:
    """Shares that requests go by; of a class that is elsewhere while replicas start, those from before."""
    found = {view.key: view.weights if view.memory.home is None else view.memory.home for view in situation.classes}
    return {key: {tier: percent / 100 for tier, percent in weights.items()} for key, weights in found.items()}


def burst_factors(situation: Situation, shares: Mapping[ClassKey, Mapping[str, float]]) -> dict[str, float]:
    """In-cluster tier -> load to have capacity for, in multiples of its level, at these shares.

    A tier that gets none is looked at with all that its classes may send there.
    """
    found: dict[str, float] = {}
    for name, tier in situation.tiers.items():
        if tier.capacity is None:
            continue
        streams = [
            stream
            for view in situation.users(name)
            if (stream := _stream(situation, view, tier, shares.get(view.key, {}).get(name, 0.0))) is not None
        ]
        if not any(stream.share > 0 for stream in streams):
            streams = [replace(stream, share=1.0) for stream in streams]
        price = float(tier.price_per_hour) if tier.price_per_hour is not None else 0.0
        found[name] = bursts.factor(streams, price)
    return found


def _stream(situation: Situation, view: ClassView, tier: TierView, share: float) -> Stream | None:
    forecast = view.demand
    if forecast is None or tier.capacity is None or view.key in situation.hold.denied:
        return None
    limit = capacity.utilisation_limit(tier.capacity, view.objective) or 0.5
    between = view.objective.inter_token_seconds or _TOKEN_SECONDS
    return Stream(
        samples=view.memory.history.samples,
        share=share,
        load=forecast.units_on(tier.name) / tier.capacity.saturation / limit,
        level=forecast.ahead,
        present=forecast.present,
        value=_value(situation, view),
        seconds=between * forecast.tokens_on(tier.name)[1],
        relief=_relief(situation, view, tier, forecast.units_on(tier.name) / tier.capacity.saturation / limit),
    )


def _relief(situation: Situation, view: ClassView, tier: TierView, load: float) -> float | None:
    """Currency units per hour of a replica's worth of a class on the provider that takes what this tier does not carry.

    None where nobody does, or replicas would have to be there for it, or where a budget makes it wait.
    """
    name, forecast = view.relieved.get(tier.name), view.demand
    other = situation.tiers.get(name) if name is not None else None
    if other is None or forecast is None or not other.external or not other.usable or load <= 0:
        return None
    shown, outside = tier.tier.status.capacity, other.tier.spec.external
    if shown is None or shown.concurrent_requests is None:
        return None  # gateways have no limit yet
    if other.memory.takes is not None or (outside is not None and outside.limits is not None):
        return None  # it does not take whatever comes
    if view.key in situation.hold.waiting or not _external_meets(view, other):
        return None
    each = other.cost_per_request(*forecast.tokens_on(other.name))
    return 3600 * each / load if each is not None else None


def _value(situation: Situation, view: ClassView) -> float | None:
    """Currency units per hour of a class on its reference tier, or on the dearest where none is named."""
    forecast = view.demand
    if forecast is None:
        return None
    reference = view.policy.spec.reference_tier
    names = [reference] if reference in situation.tiers else list(view.allowed)
    each = [_cost_of_one(situation.tiers[name], view) for name in names if name is not None]
    known = [cost for cost in each if cost is not None]
    return 3600 * forecast.ahead * max(known) if known and len(known) == len(each) else None


def _cost_of_one(tier: TierView, view: ClassView) -> float | None:
    """Currency units per request of a class: its tokens, or its part of a replica that is full."""
    forecast = view.demand
    if forecast is None:
        return None
    if tier.capacity is None:
        return tier.cost_per_request(*forecast.tokens_on(tier.name))
    if tier.price_per_hour is None:
        return None
    limit = capacity.utilisation_limit(tier.capacity, view.objective) or 0.5
    return float(tier.price_per_hour) * forecast.units_on(tier.name) / tier.capacity.saturation / limit / 3600


def ready_problem(situation: Situation, stated: Problem, free: Solution) -> Problem:
    """The same with the replicas that are ready now (never more than are wanted), at the demand of now.

    What they can not carry is looked for in the mean load: the replicas for bursts are what is still to come.
    """
    tiers = {}
    for name, tier in stated.tiers.items():
        if tier.external:
            tiers[name] = tier
            continue
        ready = situation.tiers[name].ready
        count = min(ready, max(free.replicas.get(name, ready), situation.tiers[name].planned))
        tiers[name] = replace(tier, min_replicas=count, max_replicas=count, start_cost=0.0)
    demands = {view.key: view.demand for view in situation.classes}
    classes = tuple(
        replace(load, rate=found.present, pairs=tuple(map(_without_bursts, load.pairs)))
        if (found := demands.get(load.key)) is not None and load.key not in situation.hold.denied
        else load
        for load in stated.classes
    )
    return replace(stated, tiers=tiers, classes=classes, near=free.shares, headroom=OVERFLOW_TO)


def _without_bursts(pair: Pair) -> Pair:
    return replace(pair, utilisation=pair.utilisation / pair.burst, burst=1.0)


def _dearest(situation: Situation) -> float:
    prices = [float(view.price_per_hour) for view in situation.tiers.values() if view.price_per_hour is not None]
    return UNKNOWN_PRICE_FACTOR * max(prices, default=1.0)


def _tier(situation: Situation, view: TierView, dearest: float) -> Tier:
    inside, outside = view.tier.spec.in_cluster, view.tier.spec.external
    if inside is None:
        limits = outside.limits if outside is not None else None
        requests = limits.requests_per_minute if limits is not None else None
        tokens = limits.tokens_per_minute if limits is not None else None
        # By contract, and by what it answered while it refused more.
        bounds = [PASSED * requests / 60] if requests is not None else []
        if view.memory.takes is not None:
            bounds.append(view.memory.takes)
        return Tier(
            view.name,
            requests_limit=min(bounds, default=None),
            tokens_limit=PASSED * tokens / 60 if tokens is not None else None,
        )
    price = float(view.price_per_hour) if view.price_per_hour is not None else dearest
    low = situation.hold.least.get(view.name, inside.replicas.min)
    return Tier(
        view.name,
        price_per_hour=price,
        min_replicas=low,
        max_replicas=max(low, min(inside.replicas.max, situation.hold.most.get(view.name, inside.replicas.max))),
        current_replicas=view.planned,
        start_cost=price * view.startup_seconds / START_SPREAD_SECONDS,
    )


def recommends(view: ClassView) -> bool:
    """Whether somebody wants to know what the loop would do with a class that it does not move."""
    return view.mode is RebalanceMode.RECOMMEND and view.missing is None and not view.policy.spec.suspend


def _load(situation: Situation, view: ClassView, dearest: float, factors: Factors, *, free: bool) -> ClassLoad | None:
    if view.demand is None:
        return None
    usable = [name for name in view.allowed if situation.tiers[name].usable]
    pairs = tuple(_pair(situation, view, name, dearest, factors.get(name, 1.0)) for name in usable)
    if not free:
        # Its weights are somebody else's, or nothing may move: they are a given load for the replicas.
        pairs = tuple(replace(pair, min_share=pair.current, max_share=pair.current) for pair in pairs)
    elif view.key in situation.hold.downgraded:
        pairs = tuple(replace(pair, min_share=0.0, max_share=1.0) for pair in pairs)
    floor = view.floor if free else None
    rate = 0.0 if view.key in situation.hold.denied else view.demand.ahead
    return ClassLoad(
        view.key,
        rate,
        pairs,
        floor,
        view.uncleared,
        yields=free and view.key in situation.hold.below_floor,
        worth=_worth(situation, view) if free else None,
    )


def _pair(situation: Situation, view: ClassView, name: str, dearest: float, burst: float) -> Pair:
    tier = situation.tiers[name]
    ref = view.spec.tier(name)
    forecast = view.demand
    if ref is None or forecast is None:  # the caller asks for the class's own tiers, with a forecast
        raise LookupError(f"{name} is no tier of {view.key}")
    tokens = forecast.tokens_on(name)
    cost = tier.cost_per_request(*tokens)
    score = view.scores.get(name)
    utilisation, limit = 0.0, 1.0
    seen = view.memory.latency.get(name)
    if tier.capacity is not None:
        utilisation = burst * forecast.units_on(name) / tier.capacity.saturation
        limit = capacity.utilisation_limit(
            tier.capacity, view.objective, idle_latency_seconds=seen.latency_seconds if seen is not None else None
        )
    elif not _external_meets(view, tier):
        limit = 0.0
    return Pair(
        tier=name,
        cost_per_request=dearest * sum(tokens) / 1e6 if cost is None else cost,
        utilisation=utilisation,
        burst=burst if tier.capacity is not None else 1.0,
        limit=limit,
        tokens=sum(tokens),
        score=score.value if score is not None else None,
        min_share=ref.min_weight / 100,
        max_share=ref.max_weight / 100,
        current=view.weights.get(name, 0) / 100,
    )


def _worth(situation: Situation, view: ClassView) -> Worth | None:
    """What quality counts for, where the floor holds on average; where money is short what was earned is spent."""
    held = view.credit
    if held is None or situation.hold.share < 1 or situation.hold.waiting:
        return None
    below, above = credit.worth(held)
    return Worth(held.floor, below, above) if below > 0 else None


def _external_meets(view: ClassView, tier: TierView) -> bool:
    """Whether a provider meets the objective: by what gateways measured, else by what its spec declares."""
    seen, outside = view.memory.latency.get(tier.name), tier.tier.spec.external
    declared = outside.latency if outside is not None else None
    ttft = seen.ttfb_seconds if seen is not None else None
    if ttft is None and declared is not None and declared.ttft_p95 is not None:
        ttft = declared.ttft_p95.seconds
    between = (
        declared.inter_token_p95.seconds if declared is not None and declared.inter_token_p95 is not None else None
    )
    whole = seen.latency_seconds if seen is not None else None
    checks = (
        (ttft, view.objective.ttft_seconds),
        (between, view.objective.inter_token_seconds),
        (whole, view.objective.latency_seconds),
    )
    return all(value is None or bound is None or value <= bound for value, bound in checks)
