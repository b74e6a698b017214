"""What each namespace has spent: replica-seconds and tokens, each with how it is known.

Money is added as it is spent, at the price of that moment: a price that changes later rewrites no history. What nobody
observed is bounded from above and kept apart as an estimate: gaps, and what gateways say that attempts whose usage no
upstream reported can have cost at most. What has no price or no bound is counted as such and never as free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from tierwise.core import book, charges
from tierwise.core.book import Book, Pen, Window
from tierwise.core.charges import TokenPrices as TokenPrices  # noqa: PLC0414 - part of what this module offers
from tierwise.core.charges import seconds_of
from tierwise.core.signals import CounterReading

HOUR = Decimal(3600)
ZERO = Decimal(0)


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
        crashes: how many gateways that were.
        seen: tier -> how it was at the last round.
        book: the same spend in detail.
        earlier_until: until when tokens of the period before were counted; None: there is none.
        currency: of all amounts.
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
    crashes: int = 0
    seen: Mapping[str, "Seen"] = field(default_factory=dict)
    book: Book = field(default_factory=Book)
    earlier_until: datetime | None = None
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A tier as a round saw it: what an interval is charged by that ends with the next round.

    Attributes:
        moment: of the last round.
        external, replicas, price_per_hour, token_prices: as in `Use`.
        earlier: token prices before they last changed; None: unchanged, or none.
        changed: when the old prices were seen last, and when the new ones first; None: unchanged.
        rate: what its tokens cost per second, by the newest reading.
        first: of a tier whose tokens were never counted: when it was seen first.
        gone: since when the tier is no more; None: it is.
        read: round in which its tokens were last counted, by this process, whose clock may be behind Prometheus'.
    """

    moment: datetime
    external: bool
    replicas: int | None = None
    price_per_hour: Decimal | None = None
    token_prices: TokenPrices | None = None
    earlier: TokenPrices | None = None
    changed: tuple[datetime, datetime] | None = None
    rate: Decimal = ZERO
    first: datetime | None = None
    gone: datetime | None = None
    read: datetime | None = field(default=None, compare=False)  # not kept


@dataclass(frozen=True, slots=True)
class Ledger:
    """Accounts by (namespace, budget name)."""

    accounts: Mapping[tuple[str, str], Account] = field(default_factory=dict)


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
        room: work units/s that its ready replicas do within their objectives; 0: unknown.
        gone: the tier is no more; what is left of it is counted.
    """

    tier: str
    replicas: int | None = None
    most_replicas: int = 0
    price_per_hour: Decimal | None = None
    token_prices: TokenPrices | None = None
    external: bool = False
    reading: CounterReading | None = None
    most_cost_per_hour: Decimal | None = None
    room: Decimal = ZERO
    gone: bool = False


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

    An interval between two rounds is charged for the replicas that the first of them saw (a change wakes the next
    within a second or two), at the higher price of both. Over an interval longer than `max_gap_seconds` the most
    replicas that can have existed are charged, and all of that counts as an estimate. Tokens are charged at the price
    of the time in which they were counted, and at the higher of two where it changed meanwhile.
    """
    end = min(now, account.end)
    elapsed = (end - account.updated).total_seconds()
    entries, seen = dict(account.entries), dict(account.seen)
    pen = Pen(account.book)
    pending, bound, crashes, late, fresh = ZERO, account.bound, 0, account.earlier_until, False
    for use in uses:
        entry = entries.get(use.tier, Entry())
        before = account.seen.get(use.tier)
        now_seen = _seen(use, before, now, entry.counted_until)
        if not use.external and elapsed > 0:
            gap = elapsed > max_gap_seconds
            entry = _replicas(entry, use, before, (account.updated, end), pen, gap=gap)
        read = use.reading
        for piece in () if read is None else read.pieces or (read,):
            if piece.until > account.end <= now:
                continue  # of the next period; while this one goes on, whoever scraped has a clock that is ahead
            if piece.until <= account.start:
                if account.earlier_until is not None and piece.until > account.earlier_until:
                    found = charges.charge(piece, _prices(now_seen, piece), external=use.external)
                    pen.write_earlier({(use.tier, o): line for o, line in found.lines.items()})
                    late = max(late, piece.until) if late is not None else piece.until
                continue
            if piece.until <= (entry.counted_until or account.start):
                continue  # counted before
            entry = _hole(entry, use, now_seen, piece, pen, max_gap_seconds)
            entry, rate = _tokens(entry, use, piece, _prices(now_seen, piece), pen)
            bound += seconds_of(timedelta(seconds=piece.lost_seconds)) * max(rate, now_seen.rate)
            now_seen = replace(now_seen, rate=rate, read=now)
        if read is not None:
            crashes = max(crashes, read.crashes)
        seen[use.tier] = now_seen if entry.counted_until is None else replace(now_seen, first=None)
        if now_seen.gone is not None and (now - now_seen.gone).total_seconds() > book.PATIENCE_SECONDS:
            del seen[use.tier]  # nothing of it is on its way any more
        if entry != Entry() or use.tier in entries:
            entries[use.tier] = entry
        fresh = fresh or read is not None
        pending += _pending(entry, use, now_seen, now, max_gap_seconds)
    if not fresh:
        # Nobody was read: what objects that were changed since would cost takes nothing of it back.
        pending = max(pending, account.pending)
    pen.close(now, {tier: entry.counted_until for tier, entry in entries.items()})
    return replace(
        account,
        updated=max(account.updated, now),
        entries=dict(sorted(entries.items())),
        seen=dict(sorted(seen.items())),
        book=pen.done(),
        pending=pending,
        bound=bound.quantize(book.PICO),
        crashes=account.crashes + crashes,
        earlier_until=late,
    )


def _seen(use: Use, before: Seen | None, now: datetime, counted: datetime | None) -> Seen:
    made = Seen(now, use.external, use.replicas, use.price_per_hour, use.token_prices, gone=now if use.gone else None)
    if before is None:
        return replace(made, first=now if counted is None else None)
    first, gone = before.first if counted is None else None, (before.gone or now) if use.gone else None
    made = replace(made, first=first, gone=gone, read=before.read)
    # What is not counted yet may still be of the time before an earlier change.
    open_change = before.changed
    if open_change is not None and counted is not None and counted >= open_change[1]:
        open_change = None
    if before.token_prices == use.token_prices:
        earlier = before.earlier if open_change else None
        return replace(made, earlier=earlier, changed=open_change, rate=before.rate)
    # Two changes between two readings: what lies between them costs the highest of all.
    earlier = charges.higher(before.earlier if open_change else None, before.token_prices)
    since = open_change[0] if open_change else before.moment
    return replace(made, earlier=earlier, changed=(since, now), rate=before.rate)


def _prices(seen: Seen, piece: CounterReading) -> TokenPrices | None:
    if seen.changed is None or piece.since >= seen.changed[1]:
        return seen.token_prices
    if piece.until <= seen.changed[0]:
        return seen.earlier
    return charges.higher(seen.earlier, seen.token_prices)


def _pending(entry: Entry, use: Use, seen: Seen, now: datetime, max_gap_seconds: float) -> Decimal:
    """What an uncounted provider can have cost since its tokens were last counted; counters that return will tell.

    By the planned demand, and where a restart forgot that, by what it cost when it was last counted.
    """
    since = counted_at(entry, seen) or seen.first
    if not use.external or since is None or (now - since).total_seconds() <= max_gap_seconds:
        return ZERO
    rate = seen.rate if use.most_cost_per_hour is None else use.most_cost_per_hour / HOUR
    return (seconds_of(now - since) * rate).quantize(book.PICO)


def counted_at(entry: Entry, seen: Seen | None) -> datetime | None:
    """Until when a tier's tokens are counted, at the latest by the clock of rounds; None: they never were."""
    if entry.counted_until is None or seen is None or seen.read is None:
        return entry.counted_until
    return min(entry.counted_until, seen.read)


def _replicas(
    entry: Entry, use: Use, before: Seen | None, span: tuple[datetime, datetime], pen: Pen, *, gap: bool
) -> Entry:
    """Charge replicas from one moment to another."""
    count = before.replicas if before is not None else use.replicas
    prices = [price for price in (use.price_per_hour, before.price_per_hour if before else None) if price is not None]
    known = not gap and count is not None
    most = max(use.most_replicas, use.replicas or 0, count or 0)
    running = (count or 0) if known else most
    if not running:
        return entry
    for start, seconds in charges.segments(*span):
        used = running * seconds
        cost = (used * max(prices) / HOUR).quantize(book.PICO) if prices else ZERO
        window = Window(
            seconds=used if known else ZERO,
            estimated_seconds=ZERO if known else used,
            cost=cost if known else ZERO,
            estimated=ZERO if known else cost,
            unpriced_seconds=ZERO if prices else used,
            room=(use.room * seconds).quantize(book.MICRO),
        )
        pen.replicas(use.tier, start, window)
        entry = replace(
            entry,
            replica_seconds=entry.replica_seconds + window.seconds,
            estimated_replica_seconds=entry.estimated_replica_seconds + window.estimated_seconds,
            unpriced_replica_seconds=entry.unpriced_replica_seconds + window.unpriced_seconds,
        )
        if prices:
            entry = _charge(entry, window.cost, window.estimated)
    return entry


def _hole(entry: Entry, use: Use, seen: Seen, piece: CounterReading, pen: Pen, max_gap_seconds: float) -> Entry:
    """Charge a bound for what no reading covers: Prometheus' history did not reach back so far."""
    if not use.external or entry.counted_until is None:
        return entry
    hole = piece.since - entry.counted_until
    if hole.total_seconds() <= max_gap_seconds:
        return entry
    rate = max(seen.rate, (use.most_cost_per_hour or ZERO) / HOUR)
    if rate <= 0 and use.most_cost_per_hour is None:
        return replace(entry, unpriced_requests=entry.unpriced_requests + 1)
    most = (seconds_of(hole) * rate).quantize(book.PICO)
    if most:
        pen.write(piece.since, use.tier, {(use.tier, book.UNTOLD): book.Line(estimated_tokens_cost=most)})
    return _charge(entry, ZERO, most)


def _tokens(
    entry: Entry, use: Use, piece: CounterReading, prices: TokenPrices | None, pen: Pen
) -> tuple[Entry, Decimal]:
    """Charge a reading; the entry, and what it cost per second."""
    found = charges.charge(piece, prices, external=use.external, sampled=(entry.sampled_requests, entry.sampled_cost))
    # A scrape on the hour shows what came before it.
    pen.write(
        piece.until - timedelta(microseconds=1),
        use.tier,
        {(use.tier, origin): line for origin, line in found.lines.items()},
    )
    if not use.external:
        pen.worked(use.tier, piece.until, found.work)
    attempts = Decimal(str(piece.estimated_attempts))
    entry = replace(
        entry,
        input_tokens=entry.input_tokens + Decimal(str(piece.input_tokens)),
        cached_input_tokens=entry.cached_input_tokens + Decimal(str(piece.cached_input_tokens)),
        output_tokens=entry.output_tokens + Decimal(str(piece.output_tokens)),
        requests=entry.requests + Decimal(str(piece.requests)),
        estimated_attempts=entry.estimated_attempts + attempts,
        counted_until=piece.until,
        sampled_requests=found.sampled[0],
        sampled_cost=found.sampled[1],
        unpriced_requests=entry.unpriced_requests + found.unpriced,
    )
    # A scrape can fall between a request's tokens and the request itself: tokens alone are charged too.
    if not use.external or prices is None or not found.lines:
        return entry, ZERO
    span = seconds_of(piece.until - piece.since)
    rate = (found.measured + found.estimated) / span if span > 0 else ZERO
    return _charge(entry, found.measured, found.estimated), rate


def _charge(entry: Entry, cost: Decimal, estimated: Decimal) -> Entry:
    charged = replace(entry, cost=(entry.cost or ZERO) + cost)
    if estimated:
        charged = replace(charged, estimated_cost=(entry.estimated_cost or ZERO) + estimated)
    return charged


def summed(entries: Iterable[Entry]) -> Entry:
    """Several tiers' entries as one; it is counted no further."""
    found = list(entries)

    def sums(name: str) -> Decimal:
        return sum((getattr(one, name) or ZERO for one in found), ZERO)

    def money(name: str) -> Decimal | None:
        return sums(name) if any(getattr(one, name) is not None for one in found) else None

    return Entry(
        replica_seconds=sums("replica_seconds"),
        estimated_replica_seconds=sums("estimated_replica_seconds"),
        input_tokens=sums("input_tokens"),
        cached_input_tokens=sums("cached_input_tokens"),
        output_tokens=sums("output_tokens"),
        cost=money("cost"),
        estimated_cost=money("estimated_cost"),
    )


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
