"""What there is to choose between in one namespace, and what a choice would cost or break.

Costs are currency units per hour; rates are per second; shares and utilisations are fractions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tierwise.core.quality import Floor
from tierwise.core.signals import ClassKey

HEADROOM = 0.9
"""Share of the safe capacity to plan for."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier as the problem sees it.

    Attributes:
        name: within the namespace.
        price_per_hour: per replica; None for an external tier.
        min_replicas, max_replicas: the user's (external: 0).
        current_replicas: asked for now.
        start_cost: currency units per hour charged for each replica above `current_replicas` (its start-up, spread).
        requests_limit: requests/s that the provider takes. tokens_limit: tokens/s.
    """

    name: str
    price_per_hour: float | None = None
    min_replicas: int = 0
    max_replicas: int = 0
    current_replicas: int = 0
    start_cost: float = 0.0
    requests_limit: float | None = None
    tokens_limit: float | None = None

    @property
    def external(self) -> bool:
        """Paid by the token."""
        return self.price_per_hour is None


@dataclass(frozen=True, slots=True)
class Pair:
    """One class on one tier that is cleared for it.

    Attributes:
        tier: name.
        cost_per_request: price of its tokens (0 in-cluster).
        utilisation: replicas fully used by 1 request/s of the level (0 external), bursts included.
        burst: multiple of the level that `utilisation` includes.
        limit: largest utilisation of the tier at which the class's objective holds; 0: it holds at none.
        tokens: per request, prompt and completion.
        score: quality, None when unknown.
        min_share, max_share: the user's bounds.
        current: share in force.
    """

    tier: str
    cost_per_request: float = 0.0
    utilisation: float = 0.0
    burst: float = 1.0
    limit: float = 1.0
    tokens: float = 0.0
    score: float | None = None
    min_share: float = 0.0
    max_share: float = 1.0
    current: float = 0.0


@dataclass(frozen=True, slots=True)
class Worth:
    """What a class's quality counts for, where its floor holds on average (see `core.credit`).

    Attributes:
        floor: mean score that is aimed at in the long run.
        below, above: currency units per request and unit of score, of what is missing to it and of what exceeds it. In
            between nothing gains by a move.
    """

    floor: float
    below: float
    above: float

    def of(self, score: float) -> float:
        """Of a mean score, currency units per request: negative below the floor."""
        return (score - self.floor) * (self.below if score < self.floor else self.above)


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """One class.

    Attributes:
        key: namespace, policy, class.
        rate: requests/s to plan for.
        pairs: the cleared tiers of the class, in the user's order.
        floor: least mean quality.
        uncleared: tiers of the class that its sensitivity rules out.
        yields: the floor gives way to the cost target, as far as that needs it.
        worth: of quality, where the floor holds on average.
    """

    key: ClassKey
    rate: float
    pairs: tuple[Pair, ...]
    floor: Floor | None = None
    uncleared: tuple[str, ...] = ()
    yields: bool = False
    worth: Worth | None = None

    @property
    def current(self) -> dict[str, float]:
        """Shares in force."""
        return {pair.tier: pair.current for pair in self.pairs}


@dataclass(frozen=True, slots=True)
class Problem:
    """One namespace.

    Attributes:
        tiers: by name. classes: in order.
        headroom: share of the safe capacity to plan for.
        cost_target_per_hour: wished for; gives way first.
        near: shares to stay near where cost does not decide (class -> tier -> share).
    """

    tiers: Mapping[str, Tier]
    classes: tuple[ClassLoad, ...]
    headroom: float = HEADROOM
    cost_target_per_hour: float | None = None
    near: Mapping[ClassKey, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A constraint that gave way. `kind`: CostTarget, Latency, ProviderLimit, FloorUnreachable or WeightBounds."""

    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class Solution:
    """The cheapest mix found.

    Attributes:
        replicas: in-cluster tier -> replicas. shares: class -> tier -> share.
        cost_per_hour: replicas and tokens. overload: tier -> replicas' worth of load above the safe utilisation.
        relaxed: what gave way. binding: class -> what keeps it from a cheaper mix (empty: nothing but cost).
        status: the solver's word.
    """

    replicas: Mapping[str, int]
    shares: Mapping[ClassKey, Mapping[str, float]]
    cost_per_hour: float
    overload: Mapping[str, float]
    relaxed: tuple[Relaxed, ...]
    binding: Mapping[ClassKey, str]
    status: str


@dataclass(frozen=True, slots=True)
class Option:
    """A mix that was considered. `cost_per_hour` counts the replicas it needs; `why_not` says what it would break."""

    name: str
    cost_per_hour: float
    replicas: Mapping[str, int]
    why_not: str = ""

    @property
    def feasible(self) -> bool:
        """Breaks nothing."""
        return not self.why_not


@dataclass(frozen=True, slots=True)
class Usable:
    """A class after what can be decided without the solver."""

    load: ClassLoad
    pairs: tuple[Pair, ...]
    floor: float | None
    relaxed: tuple[Relaxed, ...]
    excluded: Mapping[str, str]  # tier -> why


def best_quality(pairs: tuple[Pair, ...]) -> float:
    """The highest mean score that the shares' bounds allow (unknown scores count as none)."""
    left = 1.0 - sum(pair.min_share for pair in pairs)
    total = sum(pair.min_share * (pair.score or 0.0) for pair in pairs)
    for pair in sorted(pairs, key=lambda item: -(item.score or 0.0)):
        more = min(left, pair.max_share - pair.min_share)
        total += more * (pair.score or 0.0)
        left -= more
    return total


def usable(load: ClassLoad) -> Usable:
    """Rule out what no load makes possible, and let bounds give way that contradict each other."""
    relaxed: list[Relaxed] = []
    subject = "/".join(load.key[1:])
    excluded: dict[str, str] = {}
    pairs = load.pairs
    if load.floor is not None:
        if load.floor.only is not None:
            kept = tuple(pair for pair in pairs if pair.tier == load.floor.only)
        else:
            kept = tuple(pair for pair in pairs if pair.score is not None)
        if kept:
            names = {pair.tier for pair in kept}
            excluded |= {pair.tier: "quality unknown" for pair in pairs if pair.tier not in names}
            pairs = kept
        elif pairs:
            relaxed.append(Relaxed("FloorUnreachable", subject))
    value = load.floor.value if load.floor is not None and not relaxed else None
    fast = tuple(pair for pair in pairs if pair.limit > 0)
    if len(fast) < len(pairs):
        if fast and (value is None or best_quality(_bounds(fast)[0]) >= value - 1e-9):
            excluded |= {pair.tier: "objective" for pair in pairs if pair.limit <= 0}
            pairs = fast
        elif pairs:
            relaxed.append(Relaxed("Latency", subject))
            pairs = tuple(pair if pair.limit > 0 else replace(pair, limit=0.5) for pair in pairs)
    pairs, bounds_relaxed = _bounds(pairs)
    if bounds_relaxed:
        relaxed.append(Relaxed("WeightBounds", subject))
    if value is not None and pairs:
        best = best_quality(pairs)
        if best < value - 1e-9:
            relaxed.append(Relaxed("FloorUnreachable", subject))
            value = best
        value -= 1e-9
    return Usable(load, pairs, value, tuple(relaxed), excluded)


def _bounds(pairs: tuple[Pair, ...]) -> tuple[tuple[Pair, ...], bool]:
    """Bounds that can be met: with tiers ruled out, the rest may neither fill up nor fit."""
    if not pairs:
        return pairs, False
    low, high = sum(pair.min_share for pair in pairs), sum(pair.max_share for pair in pairs)
    if low <= 1 + 1e-9 and high >= 1 - 1e-9:
        return pairs, False
    return (
        tuple(
            replace(
                pair,
                min_share=0.0 if low > 1 + 1e-9 else pair.min_share,
                max_share=1.0 if high < 1 - 1e-9 else pair.max_share,
            )
            for pair in pairs
        ),
        True,
    )


def cost_of(problem: Problem, replicas: Mapping[str, int], shares: Mapping[ClassKey, Mapping[str, float]]) -> float:
    """Currency units per hour of these replicas and of the tokens at these shares."""
    total = sum(count * (problem.tiers[name].price_per_hour or 0.0) for name, count in replicas.items())
    for load in problem.classes:
        mix = shares.get(load.key, {})
        total += sum(3600 * load.rate * mix.get(pair.tier, 0.0) * pair.cost_per_request for pair in load.pairs)
    return total


def worth_of(problem: Problem, shares: Mapping[ClassKey, Mapping[str, float]]) -> float:
    """What the quality of these shares is worth against the floors', currency units per hour."""
    total = 0.0
    for load in problem.classes:
        mix = shares.get(load.key)
        if load.worth is not None and mix:
            score = sum(mix.get(pair.tier, 0.0) * (pair.score or 0.0) for pair in load.pairs)
            total += 3600 * load.rate * load.worth.of(score)
    return total


def needed_replicas(
    problem: Problem, shares: Mapping[ClassKey, Mapping[str, float]], *, headroom: float | None = None
) -> dict[str, int]:
    """In-cluster tier -> the fewest replicas that carry these shares safely (may exceed the tier's maximum).

    A class without demand needs none, and its objective holds at any load: nobody waits.
    """
    use = problem.headroom if headroom is None else headroom
    needed: dict[str, int] = {}
    for name, tier in sorted(problem.tiers.items()):
        if tier.external:
            continue
        load, limit = 0.0, 1.0
        for item in problem.classes:
            share = shares.get(item.key, {}).get(name, 0.0)
            for pair in item.pairs:
                if pair.tier == name and share > 0 and item.rate > 0:
                    load += item.rate * share * pair.utilisation
                    limit = min(limit, pair.limit or 0.5)
        needed[name] = max(tier.min_replicas, math.ceil(load / (limit * use) - 1e-6))
    return needed


def evaluate(problem: Problem, name: str, shares: Mapping[ClassKey, Mapping[str, float]]) -> Option:
    """What a mix would cost with the replicas it needs, and what it would break."""
    replicas = needed_replicas(problem, shares)
    broken: list[str] = []
    for tier_name, count in replicas.items():
        if count > problem.tiers[tier_name].max_replicas:
            broken.append(f"{tier_name} would need {count} replicas of {problem.tiers[tier_name].max_replicas}")
    for load in problem.classes:
        mix = shares.get(load.key, {})
        broken += broken_for(load, mix)
    broken += limits_exceeded(problem, shares).values()
    return Option(name, cost_of(problem, replicas, shares), replicas, "; ".join(broken))


def limits_exceeded(problem: Problem, shares: Mapping[ClassKey, Mapping[str, float]]) -> dict[str, str]:
    """External tier -> which of its provider's limits a mix exceeds, in words."""
    over: dict[str, str] = {}
    for name, tier in sorted(problem.tiers.items()):
        rate = sum(load.rate * shares.get(load.key, {}).get(name, 0.0) for load in problem.classes)
        if tier.requests_limit is not None and rate > tier.requests_limit * (1 + 1e-9):
            over[name] = f"{name} takes {60 * tier.requests_limit:.0f} requests/min of {60 * rate:.0f}"
        tokens = sum(
            load.rate * shares.get(load.key, {}).get(name, 0.0) * pair.tokens
            for load in problem.classes
            for pair in load.pairs
            if pair.tier == name
        )
        if tier.tokens_limit is not None and tokens > tier.tokens_limit * (1 + 1e-9):
            over[name] = f"{name} takes {60 * tier.tokens_limit:.0f} tokens/min of {60 * tokens:.0f}"
    return over


def broken_for(load: ClassLoad, mix: Mapping[str, float]) -> list[str]:
    """What a mix breaks of one class's own constraints, in words."""
    broken: list[str] = []
    subject = load.key[2]
    pairs = {pair.tier: pair for pair in load.pairs}
    for tier, share in mix.items():
        if share <= 1e-9:
            continue
        if tier not in pairs:
            broken.append(f"{tier} is not cleared for {subject}")
            continue
        pair = pairs[tier]
        if pair.limit <= 0:
            broken.append(f"{tier} can not meet the objective of {subject}")
        if load.floor is not None and (pair.score is None and load.floor.only != tier):
            broken.append(f"quality of {tier} for {subject} is not known")
    for pair in load.pairs:
        share = mix.get(pair.tier, 0.0)
        if share < pair.min_share - 1e-6 or share > pair.max_share + 1e-6:
            broken.append(f"weight of {pair.tier} for {subject} is outside its bounds")
    if load.floor is not None and load.floor.value is not None:
        score = sum(share * (pairs[tier].score or 0.0) for tier, share in mix.items() if tier in pairs)
        if score < load.floor.value - 1e-6:
            broken.append(f"quality of {subject} would be {score:.3f} of {load.floor.value:.3f}")
    return broken
