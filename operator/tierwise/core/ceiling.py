"""What the budgets of a namespace have decided about its requests, as gateways are to carry it out.

Data only: the ladder decides (`status.enforcement` of each budget), this says what holds for a class when several
budgets have decided, and the renderer turns it into routes. The strictest holds; a budget's exempt classes are left
alone by that budget.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import FailurePolicy, NamespaceBudget, Unpriced
from tierwise.api.namespace_budget_status import Enforcement, LadderAction


@dataclass(frozen=True, slots=True)
class Denied:
    """No request is answered.

    Attributes:
        budget: by name. resets_at: when its period ends; the latest of all budgets that deny.
        lapses_seconds: requests are let through once no operator has decided for so long; None: they are not.
    """

    budget: str
    resets_at: datetime
    lapses_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Unattended:
    """What a gateway does once no operator has decided for a while: it denies.

    Attributes:
        budget: by name. seconds: that long.
    """

    budget: str
    seconds: float


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
        relief: whether a saturated tier passes requests on, to any tier.
        unattended: when gateways deny by themselves; None: never.
    """

    denied: Denied | None = None
    rates: tuple[Rate, ...] = ()
    tiers: frozenset[str] | None = None
    relief: bool = True
    unattended: Unattended | None = None

    @property
    def holds(self) -> bool:
        """Whether anything is held back now."""
        return self.denied is not None or bool(self.rates) or self.tiers is not None


NONE = Ceiling()
"""Nothing is held back."""


def of_class(budgets: Mapping[str, NamespaceBudget], policy: str, class_name: str) -> Ceiling:
    """What the namespace's budgets have decided about a class.

    Args:
        budgets: of the namespace, by name.
        policy: the class's, by name.
        class_name: of the class.
    """
    own = {name: budget for name, budget in sorted(budgets.items()) if not _exempt(budget, policy, class_name)}
    decided = [
        (name, enforcement) for name, budget in own.items() if (enforcement := budget.status.enforcement) is not None
    ]
    return Ceiling(
        denied=_denied(decided, own),
        unattended=_unattended(own),
        rates=tuple(
            Rate(name, one.resets_at, one.requests_per_second, one.tokens_per_second)
            for name, one in decided
            if one.action is LadderAction.THROTTLE
            and (one.requests_per_second is not None or one.tokens_per_second is not None)
        ),
        tiers=_tiers(one for _, one in decided),
        relief=all(one.relief for _, one in decided if one.action >= LadderAction.DOWNGRADE),
    )


def withheld(budgets: Mapping[str, NamespaceBudget], tiers: Mapping[str, ModelTier]) -> dict[str, str]:
    """Tier -> the budget for whose sake no request may reach it: what it costs is not known in the budget's currency.

    Exempt classes do not reach it either: their cost counts.

    Args:
        budgets: of the namespace, by name.
        tiers: of the namespace, by name.
    """
    found: dict[str, str] = {}
    for name, budget in sorted(budgets.items(), reverse=True):
        if budget.spec.unpriced is Unpriced.DENY:
            found.update((tier, name) for tier, each in tiers.items() if _currency(each) != budget.spec.currency)
    return found


def _currency(tier: ModelTier) -> str | None:
    inside, outside = tier.spec.in_cluster, tier.spec.external
    price = inside.price if inside is not None else outside.price if outside is not None else None
    return price.currency if price is not None else None


def _exempt(budget: NamespaceBudget, policy: str, class_name: str) -> bool:
    return any((one.policy, one.class_name) == (policy, class_name) for one in budget.spec.exempt)


def _unattended(budgets: Mapping[str, NamespaceBudget]) -> Unattended | None:
    """The first budget to deny when nobody decides; a ceiling that nothing makes hold does not."""
    found = [
        (budget.spec.failure_after.seconds, name)
        for name, budget in budgets.items()
        if budget.spec.failure_policy is FailurePolicy.CLOSED
        and any(step.action is LadderAction.DENY for step in budget.spec.ladder)
    ]
    if not found:
        return None
    seconds, name = min(found)
    return Unattended(name, seconds)


def _denied(decided: Iterable[tuple[str, Enforcement]], budgets: Mapping[str, NamespaceBudget]) -> Denied | None:
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
    denying = [budgets[each].spec for _, each in found]
    opens = all(spec.failure_policy is FailurePolicy.OPEN for spec in denying)
    return Denied(name, until, max(spec.failure_after.seconds for spec in denying) if opens else None)


def _tiers(decided: Iterable[Enforcement]) -> frozenset[str] | None:
    """Those that every budget names that downgrades; of budgets that name nothing in common, the last one's."""
    left: frozenset[str] | None = None
    for one in decided:
        if one.action >= LadderAction.DOWNGRADE and one.tiers:
            named = frozenset(one.tiers)
            left = named if left is None else (left & named or named)
    return left
