"""How far the loop moves in one round, and whether it moves at all: steps, hysteresis, cool-down, whole percents.

Weights in force are whole percents that sum to 100. A move goes along the straight line from the weights in force to
the wanted
ones, so that whatever both ends satisfy (floors, bounds, capacity) every step satisfies too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

WHOLE = 100


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy's own limits on change.

    Attributes:
        interval_seconds: between two moves in the same direction.
        max_step: percent points that one weight may change in one move.
        min_saving: share of the present cost that a move must save, 0 to 1.
        cooldown_seconds: before a move for saving's sake reverses the last one, and between two removals of replicas.
    """

    interval_seconds: float
    max_step: int
    min_saving: float
    cooldown_seconds: float


@dataclass(frozen=True, slots=True)
class Mix:
    """What a rounded mix must respect.

    Attributes:
        scores: tier -> quality, where known. floor: least mean quality, None for none.
        low, high: tier -> bounds in percent.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    floor: float | None = None
    low: Mapping[str, int] = field(default_factory=dict)
    high: Mapping[str, int] = field(default_factory=dict)

    def quality(self, weights: Mapping[str, float]) -> float:
        """Mean score at these weights (percent); a tier of unknown score counts as none."""
        return sum(weight * self.scores.get(tier, 0.0) for tier, weight in weights.items()) / WHOLE


def whole_percents(shares: Mapping[str, float], mix: Mix) -> dict[str, int]:
    """Round shares (sum 1) to percents (sum 100) by largest remainder; the floor holds after rounding if it did before.

    Tiers that `shares` does not name get no weight.
    """
    exact = {tier: WHOLE * max(0.0, share) for tier, share in sorted(shares.items())}
    total = sum(exact.values())
    if total <= 0:
        return dict.fromkeys(exact, 0)
    exact = {tier: value * WHOLE / total for tier, value in exact.items()}
    rounded = {tier: math.floor(value + 1e-6) for tier, value in exact.items()}
    order = sorted(exact, key=lambda tier: (rounded[tier] - exact[tier], tier))
    for tier in order[: WHOLE - sum(rounded.values())]:
        rounded[tier] += 1
    return _repair(rounded, mix)


def _repair(weights: dict[str, int], mix: Mix) -> dict[str, int]:
    """Shift single percents from the worst to the best tier until the floor holds, within bounds."""
    if mix.floor is None:
        return weights
    by_quality = sorted(weights, key=lambda tier: (mix.scores.get(tier, 0.0), tier))
    for _ in range(len(weights) + 1):
        if mix.quality(weights) >= mix.floor - 1e-9:
            break
        giver = next((t for t in by_quality if weights[t] > mix.low.get(t, 0)), None)
        taker = next((t for t in reversed(by_quality) if weights[t] < mix.high.get(t, WHOLE)), None)
        if giver is None or taker is None or mix.scores.get(giver, 0.0) >= mix.scores.get(taker, 0.0):
            break
        weights[giver] -= 1
        weights[taker] += 1
    return weights


def step(current: Mapping[str, int], wanted: Mapping[str, int], *, max_step: int, mix: Mix) -> dict[str, int]:
    """The weights after one move from `current` towards `wanted`.

    No weight changes by more than `max_step`, unless only a longer step brings the quality floor back (then the
    shortest that
    does). Both mappings sum to 100; tiers that are missing have weight 0.
    """
    tiers = sorted(set(current) | set(wanted))
    delta = {tier: wanted.get(tier, 0) - current.get(tier, 0) for tier in tiers}
    farthest = max((abs(change) for change in delta.values()), default=0)
    if farthest <= max_step:
        return {tier: wanted.get(tier, 0) for tier in tiers}
    for length in range(max_step, farthest + 1):
        moved = _along(current, delta, length, farthest)
        if mix.floor is None or mix.quality(moved) >= mix.floor - 1e-9:
            return moved
    return {tier: wanted.get(tier, 0) for tier in tiers}


def _along(current: Mapping[str, int], delta: Mapping[str, int], length: int, farthest: int) -> dict[str, int]:
    """`length / farthest` of the way, rounded towards `current` so that no weight exceeds the length, sum kept."""
    moved: dict[str, int] = {}
    remainders: list[tuple[float, str]] = []
    for tier, change in delta.items():
        exact = change * length / farthest
        whole = math.trunc(exact)
        moved[tier] = current.get(tier, 0) + whole
        remainders.append((exact - whole, tier))
    missing = WHOLE - sum(moved.values())
    # Positive and negative remainders sum to `missing`: round up (or down) those with most of it.
    sign = 1 if missing > 0 else -1
    remainders.sort(key=lambda item: (-sign * item[0], item[1]))
    for remainder, tier in remainders[: abs(missing)]:
        if sign * remainder > 0:
            moved[tier] += sign
    return moved


@dataclass(frozen=True, slots=True)
class LastMove:
    """A class's or a tier's last change.

    Attributes:
        time: when, aware UTC.
        direction: what it changed by, per tier (empty: not known, as after a restart).
    """

    time: datetime
    direction: Mapping[str, int] = field(default_factory=dict)


def may_move(last: LastMove | None, delta: Mapping[str, int], now: datetime, rules: Rules, *, urgent: bool) -> bool:
    """Whether the interval and the cool-down permit a move by `delta`.

    One that reacts to overload or to something broken waits for nothing but the interval.
    """
    if last is None:
        return True
    elapsed = (now - last.time).total_seconds()
    if elapsed < rules.interval_seconds:
        return False
    if urgent or elapsed >= rules.cooldown_seconds:
        return True
    if not last.direction:
        return False
    return not any(change * last.direction.get(tier, 0) < 0 for tier, change in delta.items())


def worthwhile(now_cost: float, then_cost: float, min_saving: float) -> bool:
    """Whether a move saves enough to be made."""
    if now_cost <= 0:
        return False
    return (now_cost - then_cost) / now_cost >= max(min_saving, 1e-6)


def surge(replicas: int) -> int:
    """Replicas above the plan that the autoscaler may add on its own between two rounds."""
    return max(1, math.ceil(replicas / 4))


def bounds(*, planned: int, low: int, high: int, affordable: int | None = None) -> tuple[int, int]:
    """The autoscaler's bounds: at least the plan, at most a surge above it, within the user's and the budget's.

    Args:
        planned: replicas that the plan wants.
        low: the user's least.
        high: the user's most.
        affordable: what a ceiling leaves; None when none binds.
    """
    most = min(high, planned + surge(planned))
    if affordable is not None:
        most = min(most, affordable)
    least = min(max(planned, low), high)
    return least, max(most, least)
