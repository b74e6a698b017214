"""Where classes point that have no demand: they cost nothing, and nothing is kept running for them.

They come after everything else: what runs by then anyway may serve their first request.
"""

from collections.abc import Iterable, Mapping

from tierwise.core import milp
from tierwise.core.problem import Problem, Usable
from tierwise.core.programme import Found
from tierwise.core.signals import ClassKey

_ASLEEP = 1000.0
"""What pointing at a tier without replicas counts, to ..."""
_FULL = 100.0
"""... one that is loaded above what the class's objective allows, and to ..."""
_PAID = 1.0
"""... the dearest provider. What runs anyway counts nothing."""
_AWAY = 1e-3
_TIE = 1e-5


def place(
    problem: Problem, classes: tuple[Usable, ...], parts: Iterable[Found], *, time_limit_seconds: float
) -> Found | None:
    """The shares of classes without demand, within their floors and bounds; None when none are found in time.

    Args:
        problem: all of it.
        classes: without demand.
        parts: what was decided for those with demand, all in-cluster tiers' replicas among them.
        time_limit_seconds: for the solver.
    """
    parts = tuple(parts)
    replicas: dict[str, int] = {}
    overfull: set[str] = set()
    for part in parts:
        replicas |= part.replicas
        overfull |= {*part.overload, *part.excess}
    used = _used(problem, parts, replicas)
    model = milp.Model()
    columns: dict[ClassKey, dict[str, int]] = {}
    for item in classes:
        near = problem.near.get(item.load.key)
        mix = columns[item.load.key] = {}
        costs = _costs(problem, item, {name for name, count in replicas.items() if count})
        for pair, cost in zip(item.pairs, costs, strict=True):
            full = pair.tier in overfull or used.get(pair.tier, 0.0) > pair.limit * problem.headroom + 1e-6
            column = model.column(cost=max(cost, _FULL) if full else cost, lower=pair.min_share, upper=pair.max_share)
            mix[pair.tier] = column
            if near is not None:
                model.near(column, near.get(pair.tier, 0.0), cost=_AWAY)
        model.row([(column, 1.0) for column in mix.values()], lower=1.0, upper=1.0)
        if item.floor is not None:
            model.row([(mix[pair.tier], pair.score or 0.0) for pair in item.pairs], lower=item.floor)
    outcome = model.solve(time_limit_seconds=time_limit_seconds, relative_gap=0.0)
    if outcome.values is None:
        return None
    return Found({}, milp.shares(columns, outcome.values), {}, {}, outcome.status)


def _used(problem: Problem, parts: Iterable[Found], replicas: Mapping[str, int]) -> dict[str, float]:
    """In-cluster tier with replicas -> their utilisation."""
    mixes = {key: mix for part in parts for key, mix in part.shares.items()}
    used: dict[str, float] = {}
    for load in problem.classes:
        mix = mixes.get(load.key, {})
        for pair in load.pairs:
            count = replicas.get(pair.tier, 0)
            if count:
                used[pair.tier] = (
                    used.get(pair.tier, 0.0) + load.rate * mix.get(pair.tier, 0.0) * pair.utilisation / count
                )
    return used


def _costs(problem: Problem, item: Usable, awake: set[str]) -> list[float]:
    """What each of a class's tiers counts; of equals what a replica's price makes dearer, then the later, loses."""
    paid = max(pair.cost_per_request for pair in item.pairs) or 1.0
    prices = [pair.utilisation * (problem.tiers[pair.tier].price_per_hour or 0.0) for pair in item.pairs]
    dearest = max(prices) or 1.0
    costs = []
    for order, (pair, price) in enumerate(zip(item.pairs, prices, strict=True)):
        asleep = not problem.tiers[pair.tier].external and pair.tier not in awake
        cost = _ASLEEP if asleep else _PAID * pair.cost_per_request / paid
        costs.append(cost + _TIE * (price / dearest + order / len(item.pairs)))
    return costs
