"""NamespaceBudget: a namespace's spending ceiling, and what happens on the way to it."""

from enum import StrEnum
from typing import Annotated, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from tierwise.api.base import ApiModel, Rule
from tierwise.api.meta import ApiObject, Kind, PrinterColumn
from tierwise.api.namespace_budget_status import LadderAction, NamespaceBudgetStatus
from tierwise.api.scalars import Bool, Duration, Int, PositiveDecimal
from tierwise.api.shapes import ATOMIC, Currency, Label, ObjectName


class Period(StrEnum):
    """Calendar period of a budget."""

    DAY = "Day"
    WEEK = "Week"
    MONTH = "Month"


class Unpriced(StrEnum):
    """What happens to requests whose cost is unknown."""

    DENY = "Deny"
    ALLOW = "Allow"


class FailurePolicy(StrEnum):
    """What gateways do when no operator decides."""

    OPEN = "Open"
    CLOSED = "Closed"


# A CEL map, which Python happens to print in CEL's syntax; the API server can bound its cost, unlike that of indexOf.
_SEVERITY = {action.value: action.rank for action in LadderAction}


class LadderRung(ApiModel):
    """What happens from a share of the ceiling on."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.belowFloor) || !self.belowFloor || self.action == 'Downgrade'",
            "belowFloor belongs to a rung whose action is Downgrade: remove it here",
            lambda s: not s.below_floor or s.action is LadderAction.DOWNGRADE,
            "belowFloor",
        ),
    )

    at_percent: Annotated[Int, Field(ge=1, le=100)]
    """Percent of the ceiling that is spent, from which the action holds. What the least replicas cost until the period
    ends is taken from the ceiling first, unless enforceReplicas is true."""
    action: LadderAction
    """Notify: condition, event and metric. Downgrade: to the cheapest tiers that keep the classes' quality floors.
    Throttle: requests per second that spend what is left evenly until the period ends. Deny: 429."""
    below_floor: Bool = False
    """With Downgrade: quality floors give way too, as far as the ceiling asks for it, with the least loss that fits."""


class ExemptClass(ApiModel):
    """A class that the ladder leaves alone. Its cost still counts."""

    policy: ObjectName
    """Name of a RoutingPolicy in this namespace."""
    class_name: Annotated[Label, Field(alias="class")]
    """Name of one of its classes."""


def _is_time_zone(spec: "NamespaceBudgetSpec") -> bool:
    try:
        ZoneInfo(spec.time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        return False
    return spec.time_zone.lower() != "local"


class NamespaceBudgetSpec(ApiModel):
    """What the platform team grants the namespace."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.ladder.all(r, self.ladder.exists_one(o, o.atPercent == r.atPercent)) && self.ladder.map(r, "
            "r.atPercent).isSorted()",
            "ladder must ascend: order its rungs by atPercent and give each another atPercent",
            lambda s: all(a.at_percent < b.at_percent for a, b in zip(s.ladder, s.ladder[1:], strict=False)),
            "ladder",
        ),
        Rule(
            f"self.ladder.map(r, {_SEVERITY}[r.action]).isSorted()",
            "ladder's actions may not become milder on the way up: order them Notify, Downgrade, Throttle, Deny",
            lambda s: all(a.action <= b.action for a, b in zip(s.ladder, s.ladder[1:], strict=False)),
            "ladder",
        ),
        Rule(
            "!has(self.exempt) || self.exempt.all(e, self.exempt.exists_one(o, o.policy == e.policy && o.class == "
            "e.class))",
            "exempt lists a class twice: keep one",
            lambda s: len({*s.exempt}) == len(s.exempt),
            "exempt",
        ),
        Rule(
            "self.timeZone != 'Local' && self.timeZone.matches('^[A-Za-z][A-Za-z0-9._+/-]*$') && "
            "timestamp('2026-01-01T00:00:00Z').getFullYear(self.timeZone) > 0",
            'timeZone must be a name of the IANA time zone database, such as "Europe/London" or "UTC"',
            _is_time_zone,
            "timeZone",
        ),
    )

    period: Period = Period.MONTH
    """Day, Week (from Monday) or Month, by the calendar of timeZone. Spending starts at zero with each."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64)] = "UTC"
    """Time zone of the calendar, by its IANA name, such as "Europe/London"."""
    ceiling: PositiveDecimal
    """Most that the namespace may spend in a period, as a quoted decimal number such as "12000.00". Of several
    budgets the strictest holds."""
    currency: Currency = "USD"
    """ISO 4217 code of the ceiling's currency. Tiers priced in another currency count as unpriced."""
    ladder: Annotated[tuple[LadderRung, ...], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)]
    """What happens on the way to the ceiling, in ascending order of atPercent."""
    exempt: Annotated[tuple[ExemptClass, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Classes that the ladder leaves alone. Their cost still counts."""
    unpriced: Unpriced = Unpriced.DENY
    """What happens to requests whose tier has no price in this currency: Deny keeps them off the tier, Allow lets them
    through uncounted (and says so)."""
    failure_policy: FailurePolicy = FailurePolicy.CLOSED
    """What gateways do once no operator has decided for failureAfter: Closed denies with 503 (if the ladder denies at
    all), Open lets requests through that a rung denies. Until then the last rung stays."""
    failure_after: Duration = Field(default="10m", validate_default=True)
    """How long no operator may decide before failurePolicy applies: 1m, 2m, 5m, 10m, 15m, 30m, 1h, 2h, 6h or 24h;
    others are rounded to the strict side, Closed down and Open up."""
    enforce_replicas: Bool = False
    """Lets Deny take replicas below a tier's replicas.min, to none. When false, what the minimum costs until the
    period's end is reserved first."""


class NamespaceBudget(ApiObject[NamespaceBudgetSpec, NamespaceBudgetStatus]):
    """A namespace's spending ceiling over replicas and tokens together, and what happens on the way to it."""

    KIND: ClassVar[Kind] = Kind(
        kind="NamespaceBudget",
        plural="namespacebudgets",
        short_name="nbud",
        columns=(
            PrinterColumn("Ceiling", ".spec.ceiling", "Most that may be spent in a period"),
            PrinterColumn("Currency", ".spec.currency", "Currency of all amounts"),
            PrinterColumn("Period", ".spec.period", "Day, Week or Month"),
            PrinterColumn("Spent", ".status.spent", "Spent since the period's start"),
            PrinterColumn("Forecast", ".status.forecast", "Expected at the period's end"),
            PrinterColumn("Rung", ".status.rung.action", "Action of the ladder that holds now"),
            PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether the budget is being kept"),
            PrinterColumn("Remaining", ".status.remaining", "Ceiling less spent", "string", 1),
            PrinterColumn("Resets", ".status.period.end", "When the period ends", "string", 1),
            PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", "date"),
        ),
    )

    status: NamespaceBudgetStatus = NamespaceBudgetStatus()
