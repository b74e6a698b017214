"""From one period to another: the calendar went on, or somebody changed a budget's period or time zone."""

from dataclasses import replace
from datetime import datetime, timedelta

from tierwise.core import book
from tierwise.core.ledger import ZERO, Account, Entry

ZONES_APART = timedelta(hours=26)
"""Most that midnights of two time zones lie apart."""


def following(known: Account, start: datetime, end: datetime, zone: str) -> Account:
    """The account of another period: the calendar went on, or somebody changed the budget's period or time zone."""
    edited = known.end > start and max(abs(start - known.start), abs(end - known.end)) <= ZONES_APART
    if edited or (known.end > start and known.start >= start):
        # A longer period around the old one, or another zone's: what is known is kept, rather some hours too much.
        return replace(known, start=start, end=end, checkpoint=None, rung=None, since=None)
    if known.start < start < known.end:
        return narrowed(known, start, end, zone)
    # All since the period's start is this period's; what nobody observed of it is a gap, bounded from above.
    return turned(known, start, end, zone)


def turned(account: Account, start: datetime, end: datetime, zone: str) -> Account:
    """The account of the period that follows; the last tokens of this one may still be on their way."""
    counted = {tier: e.counted_until for tier, e in account.entries.items() if e.counted_until is not None}
    # What nobody reads from now on is bounded from the period's start.
    begin = {tier: start for tier, seen in account.seen.items() if seen.external}
    return Account(
        start,
        end,
        start,
        entries={
            tier: Entry(counted_until=max(start, counted.get(tier, start)))
            for tier in sorted(begin.keys() | {tier for tier, until in counted.items() if until > start})
        },
        seen=account.seen,
        book=book.turned(account.book, zone, account.end),
        # Where nothing was counted yet, all of it may still come.
        earlier_until=max(counted.values(), default=account.start),
        currency=account.currency,
    )


def narrowed(account: Account, start: datetime, end: datetime, zone: str) -> Account:
    """The account of a shorter period that this one's owner chose: it has begun before, and what its time cost counts.

    What gateways took with them has no time: all of it may be of this one.
    """
    kept = book.narrowed(account.book, start, zone)
    of_tier = book.by_tier(kept)

    def entry(tier: str, whole: Entry) -> Entry:
        line = of_tier.get(tier, book.Line())
        return Entry(
            replica_seconds=line.replica_seconds,
            estimated_replica_seconds=line.estimated_replica_seconds,
            input_tokens=line.input_tokens + line.cached_input_tokens,
            cached_input_tokens=line.cached_input_tokens,
            output_tokens=line.output_tokens,
            cost=None if whole.cost is None else line.measured,
            estimated_cost=line.estimated or None,
            requests=line.requests,
            unpriced_requests=line.unpriced,
            counted_until=whole.counted_until,
            sampled_requests=whole.sampled_requests,
            sampled_cost=whole.sampled_cost,
        )

    return replace(
        account,
        start=start,
        end=end,
        entries={tier: entry(tier, whole) for tier, whole in account.entries.items()},
        book=kept,
        before=(ZERO, ZERO),
        checkpoint=None,
        rung=None,
        since=None,
        earlier_until=None,
    )
