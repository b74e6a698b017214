"""What the budgets of a namespace have decided about its requests, as gateways are to carry it out.

Data only: the ladder decides (`status.enforcement` of each budget), this says what holds for a class when several
budgets have decided, and the renderer turns it into routes. The strictest holds; a budget's exempt classes are left
alone by that budget.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import Enforcement, LadderAction


@dataclass(frozen=True, slots=True)
class Denied:
    """No request is answered.

    Attributes:
        budget: by name. resets_at: when its period ends; the latest of all budgets that deny.
    """

    budget: str
    resets_at: datetime


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate that all classes share that a budget throttles.

    Attributes:
        budget: by name; one bucket each. resets_at: when its period ends.
        requests_per_second, tokens_per_second: over all gateways; None: not limited.
    """

    budget: str
    resets_at: datetime
    requests_per_second: Decimal | None
    tokens_per_second: Decimal | None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What holds for one class.

    Attributes:
        denied: None unless some budget denies.
        rates: of the budgets that throttle, by name.
        tiers: names of those that requests are to prefer; None: no budget downgrades.
    """

    denied: Denied | None = None
    rates: tuple[Rate, ...] = ()
    tiers: frozenset[str] | None = None


NONE = Ceiling()
"""Nothing is held back."""


def of_class(budgets: Mapping[str, NamespaceBudget], policy: str, class_name: str) -> Ceiling:
    """What the namespace's budgets have decided about a class.

    Args:
        budgets: of the namespace, by name.
        policy: the class's, by name.
        class_name: of the class.
    """
    decided = [
        (name, enforcement)
        for name, budget in sorted(budgets.items())
        if (enforcement := budget.status.enforcement) is not None and not _exempt(budget, policy, class_name)
    ]
    return Ceiling(
        denied=_denied(decided),
        rates=tuple(
            Rate(name, one.resets_at, one.requests_per_second, one.tokens_per_second)
            for name, one in decided
            if one.action is LadderAction.THROTTLE
            and (one.requests_per_second is not None or one.tokens_per_second is not None)
        ),
        tiers=_tiers(one for _, one in decided),
    )


def _exempt(budget: NamespaceBudget, policy: str, class_name: str) -> bool:
    return any((one.policy, one.class_name) == (policy, class_name) for one in budget.spec.exempt)


def _denied(decided: Iterable[tuple[str, Enforcement]]) -> Denied | None:
    # A throttle that states no rate can not be carried out: it denies, since a ceiling is never relaxed.
    found = [
        (one.resets_at, name)
        for name, one in decided
        if one.action is LadderAction.DENY
        or (
            one.action is LadderAction.THROTTLE
            and one.requests_per_second in {None, Decimal(0)}
            and one.tokens_per_second in {None, Decimal(0)}
        )
    ]
    if not found:
        return None
    until, name = max(found)
    return Denied(name, until)


def _tiers(decided: Iterable[Enforcement]) -> frozenset[str] | None:
    """Those that every budget names that downgrades; of budgets that name nothing in common, the last one's."""
    left: frozenset[str] | None = None
    for one in decided:
        if one.action >= LadderAction.DOWNGRADE and one.tiers:
            named = frozenset(one.tiers)
            left = named if left is None else (left & named or named)
    return left
