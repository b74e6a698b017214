"""Quality of tiers by task, and the floor of a class in the same scale.

A score is a share of right answers or any other number in [0, 1]; what is not known is None and satisfies no floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """A tier's score in a task.

    Attributes:
        value: in [0, 1].
        provenance: `declared` (the tier's spec) or `measured` (a TierEvaluation).
        source: where it comes from, in the user's words; empty when unsaid.
    """

    value: float
    provenance: str = "declared"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least mean quality of a class.

    Attributes:
        value: the least mean score; None when it is `only`.
        only: with a loss against a reference of unknown score, only the reference itself loses nothing: its name.
        text: the floor in words.
    """

    value: float | None
    only: str | None = None
    text: str = ""


def floor(
    *,
    min_score: float | None,
    max_loss_percent: float | None,
    reference: str | None,
    scores: Mapping[str, Score],
) -> Floor | None:
    """The floor that a class asks for; None when it asks for none.

    Args:
        min_score: absolute, in [0, 1].
        max_loss_percent: percentage points below the reference tier's score.
        reference: the reference tier's name.
        scores: tier name -> score in the class's task; unknown ones are absent.
    """
    if min_score is not None:
        return Floor(value=min_score, text=f"score at least {min_score:g}")
    if max_loss_percent is None or reference is None:
        return None
    score = scores.get(reference)
    text = f"at most {max_loss_percent:g} points below {reference}"
    if score is None:
        return Floor(value=None, only=reference, text=f"{text}, whose score is not known")
    return Floor(value=score.value - max_loss_percent / 100, text=f"{text} ({score.value:g})")


def mean(shares: Mapping[str, float], scores: Mapping[str, Score]) -> float | None:
    """Mean score of a mix; None when any tier with a share has an unknown score."""
    total = 0.0
    for tier, share in shares.items():
        if share <= 0:
            continue
        score = scores.get(tier)
        if score is None:
            return None
        total += share * score.value
    return total
