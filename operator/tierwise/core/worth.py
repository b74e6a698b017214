"""What quality costs a class at the margin: the price of its floor in the relaxed problem."""

from collections.abc import Mapping
from dataclasses import replace

from tierwise.core import problem
from tierwise.core.problem import Problem
from tierwise.core.programme import EPSILON_RATE, Programme
from tierwise.core.quality import Floor
from tierwise.core.signals import ClassKey

_TIME_LIMIT_SECONDS = 0.5


def prices(stated: Problem, floors: Mapping[ClassKey, Floor]) -> dict[ClassKey, float]:
    """Class -> what one more unit of mean score costs per request where floors hold at all times, currency units.

    It is the dual value of the floor's row, with parts of replicas. Classes without demand, or whose floor no mix
    reaches, have none; nobody has one while a tier has more load than it carries.

    Args:
        stated: the problem, at the demand to plan for.
        floors: the classes that are asked about, and what was promised to them.
    """
    if not floors:
        return {}
    loads = tuple(
        replace(load, floor=floors.get(load.key, load.floor), worth=None) for load in stated.classes if load.rate > 0
    )
    ready = tuple(item for load in loads if (item := problem.usable(load)).pairs)
    if not ready:
        return {}
    programme = Programme(replace(stated, classes=loads), ready, exact=False)
    outcome = programme.model.solve(time_limit_seconds=_TIME_LIMIT_SECONDS, relative_gap=0.0)
    if outcome.values is None or not outcome.duals or outcome.status != "Optimal":
        return {}
    found = programme.read(outcome.values, outcome.status)
    if found.overload or found.excess:
        return {}  # what is short has no price but a penalty
    rates = {item.load.key: item.load.rate for item in ready if not item.relaxed}
    return {
        key: max(0.0, outcome.duals[row]) / 3600 / max(rates[key], EPSILON_RATE)
        for key, row in programme.floors.items()
        if key in floors and key in rates
    }
