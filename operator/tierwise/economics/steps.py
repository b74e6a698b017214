"""Steps of demand, and how long it took after each until cost was where it then stayed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 600.0
"""A step is seen between the means of so long before and after it."""
FACTOR = 1.5
"""A smaller change is no step."""
PLATEAU_SECONDS = 3600.0
"""The plateau is the mean cost of the second half of so long after the step, or up to the next one."""
NEAR = 0.1
ATTAINED = 0.99
SMOOTH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds after a step of demand until cost is within 10% of its new plateau with attainment of at least 99%.

    Attributes:
        at_seconds: when. factor: demand after over before. seconds: None: not before the next step.
    """

    at_seconds: float
    factor: float
    seconds: float | None


def steps(load: Sequence[float], cost: Sequence[float], attained: Sequence[float], seconds: float) -> list[Step]:
    """All steps of a run.

    Args:
        load: per round, any measure of demand.
        cost: per round.
        attained: per round, 0 to 1.
        seconds: of a round.
    """
    width = max(1, round(WINDOW_SECONDS / seconds))
    sums = [0.0]
    for value in load:
        sums.append(sums[-1] + value)

    def ratio(at: int) -> float:
        before, after = sums[at] - sums[at - width], sums[at + width] - sums[at]
        return after / before if before > 0 else float("inf") if after > 0 else 1.0

    found: list[tuple[int, float]] = []
    at = width
    while at + width <= len(load):
        size = _size(ratio(at))
        if size < FACTOR:
            at += 1
            continue
        # The steepest place within a window's length is the step.
        best = max(range(at, min(at + width, len(load) - width + 1)), key=lambda place: _size(ratio(place)))
        found.append((best, ratio(best)))
        at = best + width
    ends = [*(place for place, _ in found), len(load)][1:]
    return [
        Step(place * seconds, factor, _after(place, end, cost, attained, seconds))
        for (place, factor), end in zip(found, ends, strict=True)
    ]


def _size(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else float("inf")


def _after(at: int, end: int, cost: Sequence[float], attained: Sequence[float], seconds: float) -> float | None:
    end = min(end, at + round(PLATEAU_SECONDS / seconds))
    half = (at + end) // 2
    if end - half < 1:
        return None
    plateau = sum(cost[half:end]) / (end - half)
    smooth = max(1, round(SMOOTH_SECONDS / seconds))
    for place in range(at, end - smooth + 1):
        mean = sum(cost[place : place + smooth]) / smooth
        met = sum(attained[place : place + smooth]) / smooth
        if abs(mean - plateau) <= NEAR * plateau and met >= ATTAINED:
            return (place - at) * seconds
    return None
