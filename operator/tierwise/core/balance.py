"""The joint choice of weights and replicas: one small mixed-integer programme per namespace.

Weights and replicas are one problem because an idle replica that runs anyway serves for nothing: the average cost of
a token
misprices it. Costs are currency units per hour; rates are per second; shares and utilisations are fractions.

When not everything can hold, constraints give way in this order, and the solution says which did: the cost target,
then the
latency objective (load above the safe utilisation). A quality floor that no allowed mix reaches is replaced by the best
reachable quality, and clearance can not give way: a tier that is not cleared is not in the problem.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tierwise.core import idle, rounding
from tierwise.core.problem import Problem, Relaxed, Solution, Usable, cost_of, usable
from tierwise.core.programme import Found, Programme

TIME_LIMIT_SECONDS = 2.0
RELATIVE_GAP = 1e-3
EXACT_PAIRS = 40
"""Up to so many pairs of class and tier the problem is solved to the end; beyond, replicas are rounded."""


def solve(
    problem: Problem, *, within: float | None = None, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> Solution | None:
    """The cheapest mix; None only when the solver found no point in time (the caller then keeps what is in force).

    Args:
        problem: to be solved.
        within: not the cheapest mix but, of those that cost at most so much per hour, the one in which the floors that
            yield are missed least, by the classes' demand.
        time_limit_seconds: for each part of the problem that has nothing to do with the others.
    """
    ready = tuple(item for load in problem.classes if (item := usable(load)).pairs)
    parts: list[Found] = []
    for part, classes in _parts(problem, [item for item in ready if item.load.rate > 0], whole=within is not None):
        found = _solve(part, classes, within, time_limit_seconds)
        if found is None:
            return None
        parts.append(found)
    resting = {
        name: tier.min_replicas
        for name, tier in problem.tiers.items()
        if not tier.external and not any(name in part.replicas for part in parts)
    }
    parts.append(Found(resting, {}, {}, {}, "Optimal"))
    quiet = tuple(item for item in ready if item.load.rate <= 0)
    if quiet:
        placed = idle.place(problem, quiet, parts, time_limit_seconds=time_limit_seconds)
        if placed is None:
            return None
        parts.append(placed)
    return _judged(problem, ready, parts)


def _solve(
    problem: Problem, classes: tuple[Usable, ...], within: float | None, time_limit_seconds: float
) -> Found | None:
    if sum(len(item.pairs) for item in classes) > EXACT_PAIRS:
        return rounding.solve(problem, classes, time_limit_seconds=time_limit_seconds, within=within)
    programme = Programme(problem, classes, within=within)
    outcome = programme.model.solve(time_limit_seconds=time_limit_seconds, relative_gap=RELATIVE_GAP)
    return None if outcome.values is None else programme.read(outcome.values, outcome.status)


def _parts(problem: Problem, classes: list[Usable], *, whole: bool) -> Iterable[tuple[Problem, tuple[Usable, ...]]]:
    """Classes that share no tier, directly or through others, have nothing to do with each other.

    Args:
        problem: all of it.
        classes: those with demand.
        whole: they have: they share what may be spent.
    """
    if not classes:
        return
    if whole:
        yield problem, tuple(classes)
        return
    groups: list[tuple[set[str], list[Usable]]] = []
    for item in classes:
        names = {pair.tier for pair in item.pairs}
        joined = [group for group in groups if not group[0].isdisjoint(names)]
        first = joined[0] if joined else (names, [])
        if not joined:
            groups.append(first)
        for other in joined[1:]:
            groups.remove(other)
            first[1].extend(other[1])
            names |= other[0]
        first[0].update(names)
        first[1].append(item)
    order = {item.load.key: at for at, item in enumerate(classes)}
    for names, members in sorted(groups, key=lambda group: min(group[0])):
        members.sort(key=lambda item: order[item.load.key])
        yield replace(problem, tiers={name: problem.tiers[name] for name in sorted(names)}), tuple(members)


def _judged(problem: Problem, classes: tuple[Usable, ...], parts: list[Found]) -> Solution:
    """What the parts come to together, what gave way, and what binds each class."""
    replicas = dict(sorted((name, count) for part in parts for name, count in part.replicas.items()))
    overload = dict(sorted((name, over) for part in parts for name, over in part.overload.items()))
    excess = sorted(name for part in parts for name in part.excess)
    mixes = {key: mix for part in parts for key, mix in part.shares.items()}
    shares = {item.load.key: mixes[item.load.key] for item in classes}
    relaxed = [entry for item in classes for entry in item.relaxed]
    relaxed += [Relaxed("Latency", name) for name in overload]
    relaxed += [Relaxed("ProviderLimit", name) for name in excess]
    cost = cost_of(problem, replicas, shares)
    target = problem.cost_target_per_hour
    if target is not None and cost > target * (1 + 1e-9):
        relaxed.insert(0, Relaxed("CostTarget", "namespace"))
    return Solution(
        replicas=replicas,
        shares=shares,
        cost_per_hour=cost,
        overload=overload,
        relaxed=tuple(relaxed),
        binding={item.load.key: _binding(problem, item, shares[item.load.key], replicas) for item in classes},
        status=next((part.status for part in parts if part.status != "Optimal"), "Optimal"),
    )


def _binding(problem: Problem, item: Usable, mix: Mapping[str, float], replicas: Mapping[str, int]) -> str:
    """What keeps a class from a cheaper mix: the first that applies; empty for none."""
    score = sum(mix[pair.tier] * (pair.score or 0.0) for pair in item.pairs)
    unreachable = any(entry.kind == "FloorUnreachable" for entry in item.relaxed)
    scores = {pair.score for pair in item.pairs}
    # One that holds on average has a price instead.
    weighed = item.load.worth is not None
    tight = item.floor is not None and len(scores) > 1 and (weighed or score < item.floor + 1e-4)
    bounded = any(
        (pair.max_share < 1 and mix[pair.tier] > pair.max_share - 1e-4)
        or (pair.min_share > 0 and mix[pair.tier] < pair.min_share + 1e-4)
        for pair in item.pairs
    )
    tiers = problem.tiers
    full = any(
        not tiers[pair.tier].external
        and 1e-6 < mix[pair.tier] < 1 - 1e-6
        and replicas[pair.tier] >= tiers[pair.tier].max_replicas
        for pair in item.pairs
    )
    why = set(item.excluded.values())
    causes = (
        ("Floor", unreachable or tight),
        ("WeightBounds", bounded),
        ("Capacity", full),
        ("Objective", "objective" in why),
        ("Floor", "quality unknown" in why),
        ("Clearance", bool(item.load.uncleared) and len(item.pairs) == 1),
    )
    return next((name for name, holds in causes if holds), "")
