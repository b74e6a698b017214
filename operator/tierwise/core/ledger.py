"""What each namespace has spent: replica-seconds and tokens, each with how it is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Entry:
    """One tier's spend in one budget period.

    Attributes:
        replica_seconds: measured seconds of existing Pods (starting and idle ones included).
        estimated_replica_seconds: seconds in gaps nobody observed, bounded from above.
        input_tokens, cached_input_tokens, output_tokens: tokens that upstreams reported.
        requests_without_usage: requests whose usage is unknown; a budget shows them as unknown, never as free.
        cost, estimated_cost: in the budget's currency; None where a price is unknown.
    """

    replica_seconds: Decimal = Decimal(0)
    estimated_replica_seconds: Decimal = Decimal(0)
    input_tokens: Decimal = Decimal(0)
    cached_input_tokens: Decimal = Decimal(0)
    output_tokens: Decimal = Decimal(0)
    requests_without_usage: Decimal = Decimal(0)
    cost: Decimal | None = None
    estimated_cost: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """One budget's period.

    Attributes:
        start, end: the calendar period, aware.
        updated: until when spend is counted, aware.
        checkpoint: what was last written to status and when; the difference decides whether to write again.
        entries: tier name -> entry.
    """

    start: datetime
    end: datetime
    updated: datetime
    checkpoint: datetime | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Accounts by (namespace, budget name)."""

    accounts: Mapping[tuple[str, str], Account] = field(default_factory=dict)
