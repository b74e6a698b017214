"""What a planning round decided about a namespace: the record that statuses, events and children are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tierwise.core.plan import ReplicaBounds
from tierwise.core.problem import Option, Solution
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, TierView


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """What becomes of a class.

    Attributes:
        view: as it stands. weights: percent after this round. wanted: percent where it should be.
        moved: the weights change in this round.
        binding: what keeps it from a cheaper mix (the solver's word; empty for none).
        reason: CamelCase. message: in words, with figures.
    """

    view: ClassView
    weights: Mapping[str, int]
    wanted: Mapping[str, int]
    moved: bool
    binding: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TierOutcome:
    """What becomes of an in-cluster tier.

    Attributes:
        view: as it stands. planned: replicas wanted. bounds: the autoscaler's.
        scale: replicas to set directly (0 or 1), else None.
        moved: `planned` differs from what it was. managed: some class in mode Auto uses it.
        message: in words.
        needs: (time, replicas) that were needed lately, oldest first, each more than all later ones.
    """

    view: TierView
    planned: int
    bounds: ReplicaBounds
    scale: int | None
    moved: bool
    managed: bool
    message: str = ""
    needs: tuple[tuple[datetime, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """One namespace's outcome.

    Attributes:
        classes, tiers: by key and name.
        options: mixes that were considered, the chosen one last.
        cost_per_hour: of the chosen mix, with replicas that are kept for a while yet, estimated.
        stay_cost_per_hour: of the present weights.
        solution: of the free problem; None when nothing could be decided.
        without_per_hour: what the best mix would cost if no ceiling asked for a cheaper one, estimated.
        downgrade: cheapest mixes of the classes that budgets downgrade: in the end, and with the replicas that are
            ready; empty when none does.
        prices: classes whose floor holds on average -> what quality costs them (see `core.worth`).
    """

    classes: Mapping[ClassKey, ClassOutcome]
    tiers: Mapping[str, TierOutcome]
    options: tuple[Option, ...] = ()
    cost_per_hour: float | None = None
    stay_cost_per_hour: float | None = None
    solution: Solution | None = None
    downgrade: tuple[Solution, ...] = ()
    without_per_hour: float | None = None
    prices: Mapping[ClassKey, float] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        """Whether anything moves."""
        return any(c.moved for c in self.classes.values()) or any(t.moved for t in self.tiers.values())
