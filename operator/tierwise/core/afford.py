"""The cheapest mix, or under a ceiling the best one that it pays for.

Constraints give way in a stated order, each only as far as it has to. Where a rung of a budget's ladder lets quality
floors give way, three problems are solved: the cheapest mix within the floors; if that costs more than may be spent,
the cheapest without them; and between the two the one with the least loss that is paid for.
"""

from dataclasses import replace

from tierwise.core import balance
from tierwise.core.problem import Problem, Relaxed, Solution

_ENOUGH = 1e-3


def solve(problem: Problem) -> Solution | None:
    """As `balance.solve`; with a cost target, and classes whose floors yield, the least loss that it pays for."""
    found = balance.solve(problem)
    target = problem.cost_target_per_hour
    yielding = {load.key for load in problem.classes if load.yields and load.floor is not None}
    if found is None or target is None or not yielding or found.cost_per_hour <= target * (1 + _ENOUGH):
        return found
    bare = tuple(replace(load, floor=None) if load.key in yielding else load for load in problem.classes)
    cheapest = balance.solve(replace(problem, classes=bare))
    if cheapest is None or cheapest.cost_per_hour >= found.cost_per_hour * (1 - _ENOUGH):
        return found
    if cheapest.cost_per_hour >= target:
        return _marked(problem, cheapest, yielding)
    best = balance.solve(problem, within=target)
    return _marked(problem, best if best is not None else cheapest, yielding)


def _marked(problem: Problem, found: Solution, yielding: set[tuple[str, str, str]]) -> Solution:
    """Says whose floor gave way to the ceiling."""
    binding, relaxed = dict(found.binding), list(found.relaxed)
    for load in problem.classes:
        if load.key not in yielding or load.floor is None:
            continue
        scores = {pair.tier: pair.score or 0.0 for pair in load.pairs}
        mean = sum(share * scores.get(tier, 0.0) for tier, share in found.shares.get(load.key, {}).items())
        short = load.floor.value is None or mean < load.floor.value - 1e-6
        if short:
            binding[load.key] = "Ceiling"
            relaxed.append(Relaxed("QualityFloor", "/".join(load.key[1:])))
    return replace(found, binding=binding, relaxed=tuple(relaxed))
