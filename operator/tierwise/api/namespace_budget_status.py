"""What Tierwise reports about a NamespaceBudget: spending, forecast, the rung that holds, the ledger's checkpoint."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tierwise.api.base import StatusModel
from tierwise.api.meta import Conditions, Provenance, Time
from tierwise.api.scalars import Figure, Int, Percent
from tierwise.api.shapes import SET, list_map

Total = Annotated[Int, Field(ge=0)]


class LadderAction(StrEnum):
    """What a rung does; ordered, mildest first."""

    NOTIFY = "Notify"
    DOWNGRADE = "Downgrade"
    THROTTLE = "Throttle"
    DENY = "Deny"

    @property
    def rank(self) -> int:
        """0 for Notify to 3 for Deny."""
        return list(LadderAction).index(self)

    def __lt__(self, other: object) -> bool:
        return self.rank < other.rank if isinstance(other, LadderAction) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self.rank <= other.rank if isinstance(other, LadderAction) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self.rank > other.rank if isinstance(other, LadderAction) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self.rank >= other.rank if isinstance(other, LadderAction) else NotImplemented


class PeriodBounds(StatusModel):
    """The present period."""

    start: Time
    """When it began; inclusive."""
    end: Time
    """When it ends; exclusive."""


class RungStatus(StatusModel):
    """The rung that holds."""

    at_percent: Percent
    """Its percent of the ceiling."""
    action: LadderAction
    """Its action."""


class Enforcement(StatusModel):
    """What gateways do about the namespace's requests, until it is changed."""

    action: LadderAction
    """Downgrade, Throttle or Deny; Notify does nothing to requests."""
    since: Time
    """When it was decided."""
    resets_at: Time
    """When the budget's period ends: requests that are refused are told."""
    tiers: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=64, json_schema_extra=SET)
    ] = ()
    """Tiers that requests go to first, from Downgrade on. A class none of whose cleared tiers is among them keeps its
    own."""
    relief: bool = False
    """Whether a saturated tier passes requests on, to tiers that are not among these too. Only below a throttle, and
    while the money lasts for all that the loop would spend."""
    requests_per_second: Figure | None = None
    """With Throttle: requests per second of all classes together that are not exempt, over all gateways."""
    tokens_per_second: Figure | None = None
    """With Throttle: tokens per second, prompt and answer, likewise."""


class LedgerEntry(StatusModel):
    """What one tier has used and cost since the period's start."""

    tier: Annotated[str, Field(max_length=253)]
    """Name of the ModelTier; one that was deleted keeps its entry until the period ends."""
    replica_seconds: Figure | None = None
    """Seconds of replicas, starting ones included."""
    input_tokens: Total | None = None
    """Prompt tokens, those from the provider's cache not included."""
    cached_input_tokens: Total | None = None
    """Prompt tokens that the provider served from its cache."""
    output_tokens: Total | None = None
    """Generated tokens."""
    cost: Figure | None = None
    """What they cost; absent when price or usage is unknown."""
    provenance: Provenance
    """Measured or Estimated."""


class Checkpoint(StatusModel):
    """The ledger, as it was last written: a restarted operator goes on from here."""

    time: Time
    """Until when usage is counted."""
    tokens_until: Time | None = None
    """Until when tokens are counted, where that is another moment: gateways' counters are read every few seconds."""
    entries: Annotated[tuple[LedgerEntry, ...], Field(max_length=128, json_schema_extra=list_map("tier"))] = ()
    """One per tier."""


class NamespaceBudgetStatus(StatusModel):
    """What Tierwise sees. What is not known is absent."""

    observed_generation: Annotated[Int | None, Field(ge=0)] = None
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready is always present; SpendUnknown when a price or a usage is unknown; Reconciling and Stalled only when
    True."""
    period: PeriodBounds | None = None
    """The present period."""
    spent: Figure | None = None
    """Spent since the period's start: measured plus estimated. What `unknown` lists is not in it."""
    measured: Figure | None = None
    """The part of spent that rests on counted replica-seconds and tokens."""
    estimated: Figure | None = None
    """The part of spent that is estimated, on the high side, for times and requests that were not counted."""
    bound: Figure | None = None
    """The ledger is exact up to this: most that gateways which ended in this period can have counted after their last
    scrape. Not in spent."""
    gateways_lost: Annotated[Int | None, Field(ge=0)] = None
    """Gateways that ended in this period and took such counts with them: restarts, and scaling down."""
    forecast: Figure | None = None
    """Spending to expect at the period's end."""
    forecast_low: Figure | None = None
    """Lower end of the forecast's 90% interval."""
    forecast_high: Figure | None = None
    """Upper end of the forecast's 90% interval."""
    remaining: Figure | None = None
    """Ceiling less spent; negative when overspent."""
    currency: Annotated[str | None, Field(max_length=3)] = None
    """Currency of the figures."""
    rung: RungStatus | None = None
    """The rung that holds; absent below the first."""
    since: Time | None = None
    """Since when the rung holds."""
    enforcement: Enforcement | None = None
    """What gateways do about it; absent: nothing."""
    unknown: Annotated[
        tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=64, json_schema_extra=SET)
    ] = ()
    """Whose price or usage is unknown, and is thus not in spent."""
    checkpoint: Checkpoint | None = None
    """The ledger, as it was last written."""
