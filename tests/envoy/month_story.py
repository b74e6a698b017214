"""What happens in a simulated month, and what it came to."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import month_objects as objects
from month_wire import Seen, Tokens


@dataclass(frozen=True, slots=True)
class Story:
    """What happens in a run.

    Attributes:
        start, period, days: of the budget's period; it has to begin and end so. step: of the clock.
        requests: that are asked for in it, about. seed: of demand.
        ceiling: of the budget; None: none that is ever reached.
        crash, restart: day on which a gateway is killed, and on which the operator starts anew from its checkpoint.
        raise_price: day on which the dear provider's price goes up.
        ladder: of the budget.
        plant: a defect, by its name in `PLANTS`, to see the bench turn red.
    """

    start: datetime = objects.START
    period: str = "Month"
    days: int = 30
    step: timedelta = timedelta(minutes=15)
    requests: int = 40_000
    seed: int = 20261101
    ceiling: Decimal | None = None
    crash: float | None = 11.3
    restart: float | None = 17.6
    raise_price: float | None = 15.0
    ladder: tuple[tuple[str, str], ...] = objects.LADDER
    plant: str = ""


DAY = Story(
    start=datetime(2026, 11, 2, tzinfo=UTC),
    period="Day",
    days=1,
    requests=1400,
    crash=0.37,
    restart=0.58,
    raise_price=0.5,
)
"""The short form: a day, with a budget for the day. About 35 without a ceiling."""


@dataclass(slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        spent, counted, estimated: in truth, and by the ledger.
        told: sum of the ledger's lines; by_origin: tokens in them, by (class, tier, consumer).
        seen: by clients. stubs: tier -> what upstreams wrote down.
        rungs: (moment, action or None) of each change.
        steepest: most that was spent in one of the last steps before the ceiling.
        downgraded: requests that cheaper tiers answered because the ladder said so.
        lost: what a gateway had counted since its last scrape when it was killed. lost_tokens: that in tokens.
        bound: what the ledger says that it can have been at most.
        kept_out: what refused requests would have cost at the cheapest.
        after: statuses of requests in the first steps of the next period.
        unbalanced: where upstreams and clients do not say the same.
    """

    story: Story
    spent: Decimal = Decimal(0)
    replicas: Decimal = Decimal(0)
    counted: Decimal = Decimal(0)
    estimated: Decimal = Decimal(0)
    told: Decimal = Decimal(0)
    by_origin: dict[tuple[str, str, str], Tokens] = field(default_factory=lambda: defaultdict(Tokens))
    seen: Seen = field(default_factory=Seen)
    stubs: dict[str, Tokens] = field(default_factory=dict)
    rungs: list[tuple[datetime, str | None]] = field(default_factory=list)
    steepest: Decimal = Decimal(0)
    downgraded: int = 0
    lost: Decimal = Decimal(0)
    lost_tokens: int = 0
    bound: Decimal = Decimal(0)
    kept_out: Decimal = Decimal(0)
    after: Counter = field(default_factory=Counter)
    rounds: int = 0
    publishes: int = 0
    seconds: float = 0.0
    most_replicas: int = 0
    replica_hours: Decimal = Decimal(0)
    unbalanced: list[str] = field(default_factory=list)

    def mistold(self) -> tuple[int, int]:
        """Tokens that the ledger tells of another class, tier or consumer than clients, or not at all; of how many."""
        seen, told = self.seen.by_caller, self.by_origin
        whole = sum(tokens.prompt + tokens.completion for tokens in seen.values())
        apart = 0
        for who in {*seen, *told}:
            one, other = seen.get(who, Tokens()), told.get(who, Tokens())
            apart += abs(one.prompt - other.prompt) + abs(one.completion - other.completion)
        return apart, whole


def merge(into: Seen, more: Seen) -> None:
    for whole, part in ((into.by_tier, more.by_tier), (into.by_caller, more.by_caller), (into.kept_out, more.kept_out)):
        for key, tokens in part.items():
            held = whole[key]
            held.requests += tokens.requests
            held.prompt += tokens.prompt
            held.cached += tokens.cached
            held.completion += tokens.completion
    into.statuses.update(more.statuses)
    into.refused.update(more.refused)
    into.mute += more.mute
    into.lost += more.lost
