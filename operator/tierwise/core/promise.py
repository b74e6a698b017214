"""What a class is promised in quality, as its policy says it: scores of its tiers, the floor, and how it holds."""

from collections.abc import Collection, Mapping
from decimal import Decimal

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import FloorHolds, RoutingClass, TierRef
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import quality


def scores_of(task: str | None, tiers: Mapping[str, ModelTier]) -> dict[str, quality.Score]:
    """Tier -> declared quality in a task; unknown ones are absent."""
    if task is None:
        return {}
    found: dict[str, quality.Score] = {}
    for name, tier in sorted(tiers.items()):
        entry = next((entry for entry in tier.spec.quality if entry.task == task), None)
        if entry is not None:
            found[name] = quality.Score(value=float(entry.score), source=entry.source or "")
    return found


def floor_of(policy: RoutingPolicy, spec: RoutingClass, scores: Mapping[str, quality.Score]) -> quality.Floor | None:
    """The floor that a class asks for, in the scale of its scores; None when it asks for none."""
    wanted = spec.quality
    return quality.floor(
        min_score=_number(wanted.min_score) if wanted is not None else None,
        max_loss_percent=_number(wanted.max_loss_percent) if wanted is not None else None,
        reference=policy.spec.reference_tier,
        scores=scores,
    )


def span(spec: RoutingClass, scores: Mapping[str, quality.Score], tiers: Collection[str]) -> tuple[float, float]:
    """Mean scores of the worst and of the best mix of these tiers within the class's bounds of weights."""
    refs = [ref for ref in spec.tiers if ref.name in scores and ref.name in tiers]
    return _mean(refs, scores, best=False), _mean(refs, scores, best=True)


def _mean(refs: list[TierRef], scores: Mapping[str, quality.Score], *, best: bool) -> float:
    total = sum(ref.min_weight * scores[ref.name].value for ref in refs) / 100
    left = 100 - sum(ref.min_weight for ref in refs)
    for ref in sorted(refs, key=lambda each: scores[each.name].value, reverse=best):
        more = max(0, min(left, ref.max_weight - ref.min_weight))
        total += more * scores[ref.name].value / 100
        left -= more
    return total


def on_average(spec: RoutingClass) -> bool:
    """Whether the floor is of all requests together, not of each moment's."""
    return spec.quality is not None and spec.quality.holds is FloorHolds.ON_AVERAGE


def _number(value: Decimal | None) -> float | None:
    return float(value) if value is not None else None
