"""What each namespace has spent: replica-seconds and tokens, each with how it is known.

Money is added as it is spent, at the price of that moment: a price that changes later rewrites no history. What nobody
observed is bounded from above and kept apart as an estimate: gaps, and what gateways say that attempts whose usage no
upstream reported can have cost at most. What has no price or no bound is counted as such and never as free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from tierwise.core.signals import CounterReading

MILLION = Decimal(1_000_000)
HOUR = Decimal(3600)

USAGE_BOUND = Decimal(2)
"""An attempt that may be billed and that nothing bounds (no usage, no limit in its request) is estimated at this many
times the mean of requests with usage: no bound, but more than most."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tier's spend in one budget period.

    Attributes:
        replica_seconds: measured seconds of existing Pods (starting and idle ones included).
        estimated_replica_seconds: seconds in gaps nobody observed, bounded from above.
        input_tokens, cached_input_tokens, output_tokens: tokens that upstreams reported.
        requests: that may be billed, by their last attempt.
        estimated_attempts: attempts without usage that may be billed; their cost is part of the estimate.
        cost, estimated_cost: in the budget's currency; None where a price is unknown.
        unpriced_replica_seconds, unpriced_requests: what was used while no price was known.
        counted_until: until when tokens are counted, aware; None before the first reading.
        sampled_requests, sampled_cost: requests with usage since this process began to count, and what they cost: the
            mean by which those without usage are estimated. A checkpoint does not keep them.
    """

    replica_seconds: Decimal = Decimal(0)
    estimated_replica_seconds: Decimal = Decimal(0)
    input_tokens: Decimal = Decimal(0)
    cached_input_tokens: Decimal = Decimal(0)
    output_tokens: Decimal = Decimal(0)
    estimated_attempts: Decimal = Decimal(0)
    cost: Decimal | None = None
    estimated_cost: Decimal | None = None
    requests: Decimal = Decimal(0)
    unpriced_replica_seconds: Decimal = Decimal(0)
    unpriced_requests: Decimal = Decimal(0)
    counted_until: datetime | None = None
    sampled_requests: Decimal = Decimal(0)
    sampled_cost: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Account:
    """One budget's period.

    Attributes:
        start, end: the calendar period, aware.
        updated: until when spend is counted, aware.
        checkpoint: when it was last written to status; decides whether to write again.
        entries: tier name -> entry.
        rung: the ladder's rung in force, in percent of the ceiling; None below the first.
        since: when that rung was reached.
        pending: upper bound of what providers cost since their counters were last read; gone when they are read again.
        before: spend of the period that a checkpoint brought back without telling tiers apart, and what of it is
            estimated.
        bound: most that gateways which ended in this period can have counted and told nobody.
    """

    start: datetime
    end: datetime
    updated: datetime
    checkpoint: datetime | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    rung: int | None = None
    since: datetime | None = None
    before: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))
    pending: Decimal = Decimal(0)
    bound: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Accounts by (namespace, budget name)."""

    accounts: Mapping[tuple[str, str], Account] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Per million tokens."""

    input: Decimal
    cached_input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class Use:
    """What one tier uses now.

    Attributes:
        tier: name.
        replicas: Pods that exist; None for an external tier or where the workload is not known.
        most_replicas: most that can have existed meanwhile, for gaps.
        price_per_hour: per replica, in the budget's currency; None when unknown or in another currency.
        token_prices: of an external tier; None when unknown or in another currency.
        external: paid by the token.
        reading: tokens since the previous reading; None when there is none.
        most_cost_per_hour: of an external tier, an upper bound; None when nothing tells one.
    """

    tier: str
    replicas: int | None = None
    most_replicas: int = 0
    price_per_hour: Decimal | None = None
    token_prices: TokenPrices | None = None
    external: bool = False
    reading: CounterReading | None = None
    most_cost_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Spend:
    """An account's sum.

    Attributes:
        counted: spend that was observed, at known prices.
        estimated: spend bounded from above where it was not observed.
        unknown: tiers with use that has no price, sorted.
        bound: most that gateways which ended can have counted and told nobody; not in the sum.
    """

    counted: Decimal
    estimated: Decimal
    unknown: tuple[str, ...]
    bound: Decimal = Decimal(0)

    @property
    def total(self) -> Decimal:
        """Counted and estimated."""
        return self.counted + self.estimated

    @property
    def worst(self) -> Decimal:
        """Most that can have been spent: what a ceiling is held against."""
        return self.total + self.bound


def accrue(account: Account, uses: Iterable[Use], now: datetime, *, max_gap_seconds: float) -> Account:
    """The account at `now`.

    Replica-seconds since the last round are measured while rounds follow each other within `max_gap_seconds`; over a
    longer gap the most replicas that can have existed are charged, and all of that counts as an estimate.
    """
    elapsed = Decimal(str(max(0.0, (min(now, account.end) - account.updated).total_seconds())))
    gap = elapsed > Decimal(str(max_gap_seconds))
    entries = dict(account.entries)
    pending = Decimal(0)
    for use in uses:
        entry = entries.get(use.tier, Entry())
        if not use.external and elapsed > 0:
            entry = _replicas(entry, use, elapsed, gap=gap)
        if use.reading is not None:
            entry = _tokens(entry, use, use.reading, account)
        if entry != Entry() or use.tier in entries:
            entries[use.tier] = entry
        pending += _pending(entry, use, account, now, max_gap_seconds)
    updated = max(account.updated, now)
    return replace(account, updated=updated, entries=dict(sorted(entries.items())), pending=pending)


def _pending(entry: Entry, use: Use, account: Account, now: datetime, max_gap_seconds: float) -> Decimal:
    """What an uncounted provider can have cost since its tokens were last counted; counters that return will tell."""
    since = entry.counted_until or account.start
    silent = (now - since).total_seconds()
    if not use.external or use.most_cost_per_hour is None or entry.counted_until is None or silent <= max_gap_seconds:
        return Decimal(0)
    return Decimal(str(silent)) * use.most_cost_per_hour / HOUR


def _replicas(entry: Entry, use: Use, elapsed: Decimal, *, gap: bool) -> Entry:
    measured = Decimal(0) if gap or use.replicas is None else use.replicas * elapsed
    bound = use.most_replicas if use.replicas is None else max(use.most_replicas, use.replicas)
    estimated = bound * elapsed if gap or use.replicas is None else Decimal(0)
    if not measured and not estimated:
        return entry
    entry = replace(
        entry,
        replica_seconds=entry.replica_seconds + measured,
        estimated_replica_seconds=entry.estimated_replica_seconds + estimated,
    )
    if use.price_per_hour is None:
        return replace(entry, unpriced_replica_seconds=entry.unpriced_replica_seconds + measured + estimated)
    return _charge(entry, measured * use.price_per_hour / HOUR, estimated * use.price_per_hour / HOUR)


def _tokens(entry: Entry, use: Use, reading: CounterReading, account: Account) -> Entry:
    if reading.until <= (entry.counted_until or account.start):
        return entry  # counted before, or of an earlier period
    read = [Decimal(str(value)) for value in (reading.input_tokens, reading.cached_input_tokens, reading.output_tokens)]
    requests = Decimal(str(reading.requests))
    with_usage = Decimal(str(reading.requests_with_usage))
    attempts = Decimal(str(reading.estimated_attempts))
    # Requests that no counter explains (an older gateway's) have no bound either.
    unexplained = max(Decimal(0), requests - with_usage - attempts)
    unbounded = Decimal(str(reading.unbounded_attempts)) + unexplained
    entry = replace(
        entry,
        input_tokens=entry.input_tokens + read[0],
        cached_input_tokens=entry.cached_input_tokens + read[1],
        output_tokens=entry.output_tokens + read[2],
        requests=entry.requests + requests,
        estimated_attempts=entry.estimated_attempts + attempts,
        counted_until=reading.until,
    )
    if not use.external or not (requests or attempts):
        return entry
    prices = use.token_prices
    if prices is None:
        return replace(entry, unpriced_requests=entry.unpriced_requests + max(requests, attempts))
    fresh = max(Decimal(0), read[0] - read[1])
    cost = (fresh * prices.input + read[1] * prices.cached_input + read[2] * prices.output) / MILLION
    most = Decimal(str(reading.estimated_input_tokens)) * max(prices.input, prices.cached_input)
    most += Decimal(str(reading.estimated_output_tokens)) * prices.output
    entry = replace(
        _charge(entry, cost, most / MILLION),
        sampled_requests=entry.sampled_requests + min(with_usage, requests),
        sampled_cost=entry.sampled_cost + cost,
    )
    if not unbounded:
        return entry
    if entry.sampled_requests <= 0:
        return replace(entry, unpriced_requests=entry.unpriced_requests + unbounded)
    return _charge(entry, Decimal(0), USAGE_BOUND * unbounded * entry.sampled_cost / entry.sampled_requests)


def _charge(entry: Entry, cost: Decimal, estimated: Decimal) -> Entry:
    charged = replace(entry, cost=(entry.cost or Decimal(0)) + cost)
    if estimated:
        charged = replace(charged, estimated_cost=(entry.estimated_cost or Decimal(0)) + estimated)
    return charged


def spend(account: Account) -> Spend:
    """The account's sum."""
    counted = account.before[0] + sum((e.cost for e in account.entries.values() if e.cost is not None), Decimal(0))
    estimated = (
        account.before[1]
        + account.pending
        + sum((e.estimated_cost for e in account.entries.values() if e.estimated_cost is not None), Decimal(0))
    )
    unknown = sorted(
        tier for tier, e in account.entries.items() if e.unpriced_replica_seconds > 0 or e.unpriced_requests > 0
    )
    return Spend(counted=counted, estimated=estimated, unknown=tuple(unknown), bound=account.bound)
