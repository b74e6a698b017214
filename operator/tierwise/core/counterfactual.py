"""What the namespace would cost without the constraint that binds a class, so that people can tell a promise's price.

Only for the record: nothing is decided from it. Clearance is not among them: nobody is to be tempted.
"""

from collections.abc import Mapping
from dataclasses import replace

from tierwise.core import balance, problem
from tierwise.core.problem import ClassLoad, Option, Problem
from tierwise.core.signals import ClassKey

MOST = 4
"""Constraints that are tried per decision: each is one more problem to solve."""

_TIME_LIMIT_SECONDS = 0.5
_NAMES = {"Floor": "QualityFloor", "WeightBounds": "Limits", "Objective": "Objective", "Capacity": "Capacity"}


def name_of(binding: str, key: ClassKey) -> str:
    """How the option is called."""
    return f"without {_NAMES[binding]} of {key[1]}/{key[2]}"


def without(stated: Problem, binding: Mapping[ClassKey, str]) -> tuple[Option, ...]:
    """An option for each class that a constraint binds, at most `MOST`: the best mix without it, and what it breaks."""
    options: list[Option] = []
    for load in stated.classes:
        word = binding.get(load.key, "")
        if word not in _NAMES or len(options) >= MOST or _given(load):
            continue
        solved = balance.solve(_lifted(stated, load, word), time_limit_seconds=_TIME_LIMIT_SECONDS)
        if solved is None:
            continue
        judged = problem.evaluate(stated, name_of(word, load.key), solved.shares)
        options.append(replace(judged, cost_per_hour=solved.cost_per_hour, replicas=solved.replicas))
    return tuple(options)


def _given(load: ClassLoad) -> bool:
    """Whether a person, not the loop, sets its weights: then it is no constraint of the loop's that binds."""
    return all(pair.min_share == pair.max_share for pair in load.pairs)


def _lifted(stated: Problem, load: ClassLoad, word: str) -> Problem:
    if word == "Capacity":
        wide = {
            name: tier if tier.external else replace(tier, max_replicas=10 * max(1, tier.max_replicas))
            for name, tier in stated.tiers.items()
        }
        return replace(stated, tiers=wide)
    if word == "Floor":
        lifted = replace(load, floor=None, worth=None)
    elif word == "Objective":
        lifted = replace(load, pairs=tuple(replace(pair, limit=max(pair.limit, 0.9)) for pair in load.pairs))
    else:
        lifted = replace(load, pairs=tuple(replace(pair, min_share=0.0, max_share=1.0) for pair in load.pairs))
    return replace(stated, classes=tuple(lifted if item.key == load.key else item for item in stated.classes))
