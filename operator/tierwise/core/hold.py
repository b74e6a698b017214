"""What a namespace's budgets ask of the plan: classes that are held back, and replicas that they can pay for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierwise.core.signals import ClassKey


@dataclass(frozen=True, slots=True)
class Hold:
    """Of all budgets of a namespace together, the strictest.

    Attributes:
        denied: classes that get no answer: no demand to plan for.
        downgraded: classes whose bounds of weights give way to cost.
        waiting: those of them whose requests wait while a tier is saturated, as the money does not last for relief.
        below_floor: those of them whose quality floor may give way too.
        least: in-cluster tier -> least replicas, where a budget may take a tier's own minimum.
        most: in-cluster tier -> most replicas that can be paid for.
        share: of what the namespace would cost without a ceiling, what may be spent, 0 to 1; 1: all.
    """

    denied: frozenset[ClassKey] = frozenset()
    downgraded: frozenset[ClassKey] = frozenset()
    waiting: frozenset[ClassKey] = frozenset()
    below_floor: frozenset[ClassKey] = frozenset()
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0


NOTHING = Hold()
"""No budget asks for anything."""
