"""Where the requests of a class go: weights in force, and the order of tiers that each attempt tries.

Weights are integer percent that sum to 100. A tier that is not cleared for the request's sensitivity, or that does not
exist, appears nowhere, whatever weights or fallback say.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import FallbackReason, RoutingClass
from tierwise.api.routing_policy import RebalanceMode, RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import promise
from tierwise.core.sensitivity import cleared

Group = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Attempts:
    """Which tier each attempt of a request goes to.

    One random number picks the same position in every group, so the segments of all groups have the same widths: a
    request that went to a tier first finds another tier at the same position of the next group.

    Attributes:
        groups: one per attempt; each a sequence of (tier name, percent), percent > 0 and summing to 100.
        guarded: of the same shape: whether a tier that is saturated passes the attempt on to the next group.
    """

    groups: tuple[Group, ...]
    guarded: tuple[tuple[bool, ...], ...] = ()

    @property
    def tiers(self) -> tuple[str, ...]:
        """All tiers that some attempt may reach, sorted."""
        return tuple(sorted({name for group in self.groups for name, _ in group}))


def to_percent(shares: Mapping[str, Decimal | float | int]) -> dict[str, int]:
    """Integer percent that sum to 100 in proportion to `shares`, by largest remainder; ties go to the first.

    Returns:
        Empty when no share is positive. Negative shares count as 0.
    """
    positive = {name: Decimal(str(share)) for name, share in shares.items() if share > 0}
    total = sum(positive.values(), Decimal(0))
    if not total:
        return {}
    exact = {name: share * 100 / total for name, share in positive.items()}
    percent = {name: int(value) for name, value in exact.items()}
    left = 100 - sum(percent.values())
    by_remainder = sorted(exact, key=lambda name: percent[name] - exact[name])
    for name in by_remainder[:left]:
        percent[name] += 1
    return percent


def cleared_tiers(
    routing_class: RoutingClass, tiers: Mapping[str, ModelTier], sensitivity: Sensitivity
) -> tuple[str, ...]:
    """The class's tiers that exist and are cleared, in the user's order."""
    return tuple(ref.name for ref in routing_class.tiers if ref.name in tiers and cleared(tiers[ref.name], sensitivity))


def weights_in_force(policy: RoutingPolicy, routing_class: RoutingClass, allowed: Collection[str]) -> dict[str, int]:
    """Percent of each allowed tier, zero left out, in the user's order.

    From the status, where the last plan left them; from the spec when the status has none, and always with mode
    Manual, where the spec is the plan. What tiers that are not allowed would get goes to the others in proportion.

    Args:
        policy: whose status holds the weights.
        routing_class: one of its classes.
        allowed: names of tiers that may be used; others get nothing.

    Returns:
        Empty only when the class lists no allowed tier.
    """
    names = [ref.name for ref in routing_class.tiers if ref.name in allowed]
    starting: Mapping[str, Decimal | int] = routing_class.starting_weights()
    sources = (
        [starting] if policy.spec.rebalance.mode is RebalanceMode.MANUAL else [_kept(policy, routing_class), starting]
    )
    for source in sources:
        percent = to_percent({name: source.get(name, 0) for name in names})
        if percent:
            return {name: percent[name] for name in names if percent.get(name)}
    return {names[0]: 100} if names else {}


def _kept(policy: RoutingPolicy, routing_class: RoutingClass) -> dict[str, int]:
    status = next((c for c in policy.status.classes if c.name == routing_class.name), None)
    return {weight.tier: weight.percent for weight in status.weights} if status is not None else {}


def fallback_order(routing_class: RoutingClass, allowed: Collection[str]) -> tuple[str, ...]:
    """Allowed tiers in the order in which fallback tries them: the user's `order`, else the class's tiers."""
    order = routing_class.fallback.order or tuple(ref.name for ref in routing_class.tiers)
    return tuple(name for name in order if name in allowed)


def attempts(
    weights: Mapping[str, int],
    order: Sequence[str],
    count: int,
    relief: Mapping[str, Collection[str]] | None = None,
    *,
    relieved_first: bool = False,
) -> Attempts:
    """The groups of `count` attempts: first by weight, then each time the next tier that the request has not tried.

    A request that has tried all of them tries its last tier again (another replica of it, as Envoy avoids the host
    that failed). Where a saturated tier passed it on and the others failed too, one more attempt waits at that tier.

    Args:
        weights: percent by tier, positive, summing to 100. Empty: no attempt can be made.
        order: tiers to fall back to.
        count: attempts in all, at least 1.
        relief: tier -> tiers that may take its requests while it is saturated; absent: it queues them itself.
        relieved_first: whether these come before the others, whatever the order.
    """
    if not weights:
        return Attempts(())
    helps = relief or {}

    def chain_of(first: str) -> list[str]:
        others = [name for name in order if name != first]
        if relieved_first:
            others.sort(key=lambda name: name not in helps.get(first, others))
        return [first, *others]

    chains = {first: chain_of(first) for first in weights}
    longest = max(len(chain) for chain in chains.values())
    length = min(count, longest)
    groups = tuple(
        tuple((chain[min(n, len(chain) - 1)], weights[first]) for first, chain in chains.items()) for n in range(length)
    )
    # The last attempt waits: a queue is better than an error.
    after = (*groups[1:], ()) if length else ()
    guarded = tuple(
        tuple(
            number < len(following) and following[number][0] in helps.get(name, ())
            for number, (name, _) in enumerate(group)
        )
        for group, following in zip(groups, after, strict=True)
    )
    if not any(any(group) for group in guarded):
        return Attempts(groups, guarded)
    # A tier that gave way has not failed.
    waits = tuple(
        (_waits(chain, [group[number] for group in guarded], length), weights[first])
        for number, (first, chain) in enumerate(chains.items())
    )
    return Attempts((*groups, waits), (*guarded, (False,) * len(waits)))


def _waits(chain: Sequence[str], gives_way: Sequence[bool], length: int) -> str:
    """The last tier of a chain that may have passed the request on, or, where none does, the next one."""
    passed = [tier for tier, gives in zip(chain, gives_way, strict=False) if gives]
    return passed[-1] if passed else chain[min(length, len(chain) - 1)]


def relief(
    policy: RoutingPolicy,
    routing_class: RoutingClass,
    tiers: Mapping[str, ModelTier],
    *,
    scored: Mapping[str, ModelTier] | None = None,
    earned: bool | None = None,
) -> dict[str, frozenset[str]]:
    """In-cluster tier -> tiers of the class that may take its requests while it is saturated; empty: none.

    A class with a quality floor is relieved by tiers that are known to be no worse than the one that is saturated, so
    that no burst lowers what its mix was chosen for. Where the floor holds on average, by those too that keep it alone,
    and, while enough quality was earned (`status.classes[].relievedBelowFloor`), by all whose quality is known and
    that a mix may have (`maxWeight`). Requests that belong to a session, and tiers with an endpoint picker, which
    queues by itself, are not relieved.

    Args:
        policy: whose requests.
        routing_class: one of its classes.
        tiers: that may be used, by name.
        scored: tiers of the namespace: a floor's reference need not be one that may be used. None: these.
        earned: as if enough quality was earned, or as if not; None: as the status says.
    """
    when = routing_class.fallback.when
    if (
        FallbackReason.SATURATED not in when
        or FallbackReason.LOW_CONFIDENCE in when
        or routing_class.affinity is not None
    ):
        return {}
    names = [ref.name for ref in routing_class.tiers if ref.name in tiers]
    known = promise.scores_of(routing_class.task, tiers)
    scores = {name: score.value for name, score in known.items()}
    enough, floor = (
        _enough(policy, routing_class, tiers if scored is None else scored, earned=each) for each in (earned, False)
    )
    least = {ref.name: enough if ref.max_weight > 0 else floor for ref in routing_class.tiers}
    found: dict[str, frozenset[str]] = {}
    for name in names:
        inside = tiers[name].spec.in_cluster
        if inside is None or inside.endpoint_picker_ref is not None:
            continue
        others = {other for other in names if other != name}
        if routing_class.quality is not None:
            as_good = scores.get(name, math.inf)
            others = {other for other in others if other in scores and scores[other] >= min(least[other], as_good)}
        if others:
            found[name] = frozenset(others)
    return found


def spends_in_bursts(
    policy: RoutingPolicy, routing_class: RoutingClass, tiers: Mapping[str, ModelTier], allowed: Collection[str]
) -> bool:
    """Whether tiers below a floor that holds on average could relieve others, if enough quality was earned.

    Args:
        policy: whose requests.
        routing_class: one of its classes.
        tiers: of the namespace, by name.
        allowed: names of those that may be used.
    """
    if not promise.on_average(routing_class):
        return False
    usable = {name: tier for name, tier in tiers.items() if name in allowed}
    before, after = (relief(policy, routing_class, usable, scored=tiers, earned=each) for each in (False, True))
    return before != after


def _enough(
    policy: RoutingPolicy, routing_class: RoutingClass, tiers: Mapping[str, ModelTier], *, earned: bool | None
) -> float:
    """Least score with which a tier may relieve a better one."""
    if not promise.on_average(routing_class):
        return math.inf
    floor = promise.floor_of(policy, routing_class, promise.scores_of(routing_class.task, tiers))
    if floor is None or floor.value is None:
        return math.inf
    below = _below_floor(policy, routing_class) if earned is None else earned
    return -math.inf if below else floor.value


def _below_floor(policy: RoutingPolicy, routing_class: RoutingClass) -> bool:
    """What the loop last said, of this spec: quality that was earned under another floor is none."""
    if policy.status.observed_generation != policy.metadata.generation:
        return False
    return any(each.relieved_below_floor for each in policy.status.classes if each.name == routing_class.name)


def relieved_by(
    policy: RoutingPolicy,
    routing_class: RoutingClass,
    tiers: Mapping[str, ModelTier],
    allowed: Collection[str],
    preferred: Collection[str] | None = None,
) -> dict[str, str]:
    """In-cluster tier -> the allowed tier that its requests go to while it is saturated; absent: they wait.

    Args:
        policy: whose requests.
        routing_class: one of its classes.
        tiers: of the namespace, by name.
        allowed: names of those that may be used.
        preferred: tiers to which a budget downgrades.
    """
    usable = {name: tier for name, tier in tiers.items() if name in allowed}
    found: dict[str, str] = {}
    helps = relief(policy, routing_class, usable, scored=tiers)
    for name in helps:
        plan = _attempts_from(routing_class, usable, {name: 100}, preferred, helps)
        if plan.guarded[0][0]:
            found[name] = plan.groups[1][0][0]
    return found


def guarded_tiers(policies: Iterable[RoutingPolicy], tiers: Mapping[str, ModelTier]) -> frozenset[str]:
    """Tiers of a namespace that some class is relieved of while they are saturated, now or once quality was earned."""
    return frozenset(
        name
        for policy in policies
        for routing_class in policy.spec.classes
        for name in relief(policy, routing_class, tiers, earned=True)
    )


def plan_attempts(
    policy: RoutingPolicy,
    routing_class: RoutingClass,
    tiers: Mapping[str, ModelTier],
    sensitivity: Sensitivity,
    preferred: Collection[str] | None = None,
    *,
    relieved: bool = True,
    earned: bool | None = None,
) -> Attempts:
    """Which tiers a request of this class and sensitivity may reach; no groups when none is cleared.

    Args:
        policy: whose requests.
        routing_class: one of its classes.
        tiers: of the namespace, by name.
        sensitivity: of the request.
        preferred: tiers to which a budget downgrades; the class's others answer only when these fail or give way.
            Where none of them is cleared it changes nothing: a ceiling never sends a request where it must not go.
        relieved: whether a saturated tier passes requests on: where a budget saves, a burst is no reason to spend.
        earned: see `relief`.
    """
    allowed = {name: tiers[name] for name in cleared_tiers(routing_class, tiers, sensitivity)}
    first = None if preferred is None else tuple(name for name in allowed if name in preferred) or tuple(allowed)
    weights = weights_in_force(policy, routing_class, allowed if first is None else first)
    helps = relief(policy, routing_class, allowed, scored=tiers, earned=earned) if relieved else {}
    return _attempts_from(routing_class, allowed, weights, first, helps)


def _attempts_from(
    routing_class: RoutingClass,
    tiers: Mapping[str, ModelTier],
    weights: Mapping[str, int],
    preferred: Collection[str] | None,
    helps: Mapping[str, Collection[str]],
) -> Attempts:
    """The one order in which requests try tiers, which gateways keep and the loop plans by.

    Args:
        routing_class: the class.
        tiers: those that may be used, by name.
        weights: percent of the first attempts.
        preferred: those to which a budget downgrades.
        helps: see `relief`; empty: no saturated tier passes requests on.
    """
    order = fallback_order(routing_class, tiers)
    if preferred is not None:
        order = tuple(sorted(order, key=lambda name: name not in preferred))
    return attempts(
        weights, order, routing_class.fallback.attempts, helps, relieved_first=not routing_class.fallback.order
    )


def reached(
    policy: RoutingPolicy,
    routing_class: RoutingClass,
    tiers: Mapping[str, ModelTier],
    sensitivity: Sensitivity,
    preferred: Collection[str] | None = None,
    *,
    relieved: bool = True,
) -> frozenset[str]:
    """Tiers that some attempt of some request of the class may get to, whatever its header raises it to.

    Whether enough quality was earned or not: that may change while nobody counts.

    Args:
        policy: whose requests.
        routing_class: one of its classes.
        tiers: of the namespace, by name.
        sensitivity: of a request without the header.
        preferred: tiers to which a budget downgrades.
        relieved: whether a saturated tier passes requests on.
    """
    levels = [level for level in Sensitivity if level >= sensitivity]
    plans = [
        plan_attempts(policy, routing_class, tiers, level, preferred, relieved=relieved, earned=earned)
        for level in levels
        for earned in ((False, True) if promise.on_average(routing_class) else (None,))
    ]
    return frozenset(name for plan in plans for name in plan.tiers)


def shadow_tier(
    routing_class: RoutingClass, tiers: Mapping[str, ModelTier], sensitivity: Sensitivity
) -> tuple[str, int] | None:
    """The tier that requests of this class and sensitivity are copied to, and percent of them.

    Returns:
        None where the class has no shadow, its tier does not exist, or it is not cleared.
    """
    shadow = routing_class.shadow
    if shadow is None or shadow.tier not in tiers or not cleared(tiers[shadow.tier], sensitivity):
        return None
    return shadow.tier, shadow.percent
