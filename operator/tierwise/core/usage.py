"""Counts for the ledger, as gateways hold them: sums of increments over raw samples, aware of resets and new series.

PromQL's `increase()` extrapolates to the edges of its window and misses what a series brought with it when it was born;
money must do neither. So the samples themselves are read and summed here.

What a gateway counted between its last scrape and its death is in no sample. How many ended so, and how long each can
have counted unseen, is told with every reading: the ledger bounds by it what it can lack.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

from tierwise.core.signals import CounterReading, Counts, Origin, TierKey

Sample: TypeAlias = tuple[float, float]  # (Unix seconds, counter value), as scraped
Span: TypeAlias = tuple[float, float]  # (after, until): something happened in between, Unix seconds

REQUESTS = "requests"
REQUESTS_WITH_USAGE = "requests_with_usage"
INPUT_TOKENS = "input_tokens"
CACHED_INPUT_TOKENS = "cached_input_tokens"
OUTPUT_TOKENS = "output_tokens"
ESTIMATED_ATTEMPTS = "estimated_attempts"
ESTIMATED_INPUT_TOKENS = "estimated_input_tokens"
ESTIMATED_OUTPUT_TOKENS = "estimated_output_tokens"
UNBOUNDED_ATTEMPTS = "unbounded_attempts"
QUANTITIES = (
    REQUESTS,
    REQUESTS_WITH_USAGE,
    INPUT_TOKENS,
    CACHED_INPUT_TOKENS,
    OUTPUT_TOKENS,
    ESTIMATED_ATTEMPTS,
    ESTIMATED_INPUT_TOKENS,
    ESTIMATED_OUTPUT_TOKENS,
    UNBOUNDED_ATTEMPTS,
)
"""Also the names of `CounterReading`'s fields."""

NO_ORIGIN = Origin()

# A series that was not seen for this long is forgotten. Within it, a gap in scraping loses nothing.
FORGET_AFTER_SECONDS = 86_400.0
# A gateway that others outlive by this is gone for good; its last words are in no sample.
GONE_AFTER_SECONDS = 300.0
# Reads reach back further than their start by at least this: a process that began so late has no sample that is not
# seen, and all that it counted is new.
VISIBLE_SECONDS = 50.0
# Envoy sets its uptime every five seconds, in whole seconds.
UPTIME_ERROR_SECONDS = 7.0
DEFAULT_SCRAPE_SECONDS = 15.0
MAX_PIECES = 1024
# No gateway was scraped for longer than so many of their intervals: nobody scraped.
BLIND_SCRAPES = 1.5
MOST_BLIND = 64


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """Raw samples of one counter of one gateway process.

    Attributes:
        quantity: one of `QUANTITIES`.
        namespace, tier: whose.
        identity: what tells series of one quantity apart: the gateway and all labels that it sets.
        instance: which gateway exposes it.
        samples: oldest first.
        origin: of the traffic.
    """

    quantity: str
    namespace: str
    tier: str
    identity: str
    instance: str
    samples: Sequence[Sample]
    origin: Origin = NO_ORIGIN


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far usage has been read.

    Attributes:
        time: newest sample that was counted, Unix seconds; None before the first read.
        last: series identity -> the last counted sample.
        instances: gateway -> when it was last seen, Unix seconds.
        since: namespace -> where counting starts for a namespace whose ledger was restored, Unix seconds; other
            namespaces start at `time`.
        uptimes: gateway -> the newest sample of its uptime, seconds.
        gone: gateways that were told of as ended.
        restarted: gateway -> the span in which its process last began anew, as its uptime told.
        blind: spans in which no gateway was scraped, oldest first.
    """

    time: float | None = None
    last: Mapping[str, Sample] = field(default_factory=dict)
    instances: Mapping[str, float] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)
    uptimes: Mapping[str, Sample] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    restarted: Mapping[str, Span] = field(default_factory=dict)
    blind: tuple[Span, ...] = ()

    def start(self, namespace: str) -> float | None:
        """Where counting continues for one namespace, Unix seconds; None: the next read only sets a baseline."""
        return self.since.get(namespace, self.time)


def increase(samples: Sequence[Sample], previous: Sample, restarts: Iterable[Span] = ()) -> float:
    """Sum of increments after `previous`; after a restart a value counts from zero.

    A value below its predecessor is a restart, and so is what the gateway's uptime tells: after a long gap a counter
    can have passed its old value again.
    """
    ends = [end for _, end in restarts]
    total = 0.0
    time, value = previous
    for sample_time, sample_value in samples:
        if sample_time <= time:
            continue
        anew = sample_value < value or any(time < end <= sample_time for end in ends)
        total += sample_value if anew else sample_value - value
        time, value = sample_time, sample_value
    return total


def restarts(samples: Sequence[Sample], previous: Sample | None) -> tuple[Span, ...]:
    """Between which two samples of its uptime a process started anew.

    Args:
        samples: (Unix seconds, uptime in seconds), oldest first.
        previous: the last one that was read before.
    """
    found: list[Span] = []
    # Reads overlap: what came before the previous one's last sample was told then.
    fresh = [sample for sample in samples if previous is None or sample[0] > previous[0]]
    for (before, old), (time, uptime) in itertools.pairwise([*([previous] if previous else []), *fresh]):
        if time <= before:
            continue
        behind = old + (time - before) - uptime  # how much older an unbroken process would be
        if uptime < old or (behind > UPTIME_ERROR_SECONDS and uptime < time - before):
            found.append((before, time))
    return tuple(found)


def _baseline(series: CounterSeries, cursor: Cursor, seen: Mapping[str, float], began: float | None) -> Sample | None:
    """The sample to count from; None: count nothing, the series' past is unknown.

    Args:
        series: not empty.
        cursor: of the previous read.
        seen: gateway -> when it was first seen, Unix seconds.
        began: start of the gateway's process, Unix seconds; None when unknown.
    """
    held = cursor.last.get(series.identity)
    if held is not None and series.namespace not in cursor.since:
        return held
    since = cursor.start(series.namespace)
    if since is None:
        return None
    before = [sample for sample in (*([held] if held is not None else []), *series.samples) if sample[0] <= since]
    if before:
        return max(before)
    # Born after `since`, if its gateway was being scraped then; a gateway that itself came later may have been counting
    # for long before anyone looked, unless all of its life is in sight.
    first_seen = seen.get(series.instance)
    if first_seen is not None and first_seen <= since:
        return (since, 0.0)
    return (since, 0.0) if began is not None and began >= since - VISIBLE_SECONDS else None


def baseline(series: Iterable[CounterSeries], uptimes: Mapping[str, Sequence[Sample]], cursor: Cursor) -> Cursor:
    """The cursor of a restored ledger, told what counters were at its start.

    Args:
        series: with one sample each, as of the cursor's start (however long before it was scraped).
        uptimes: gateway -> likewise.
        cursor: with `since`, not read from yet.
    """
    last = {one.identity: one.samples[-1] for one in series if one.samples}
    known = {name: samples[-1] for name, samples in uptimes.items() if samples}
    return replace(
        cursor,
        last={**last, **cursor.last},
        uptimes={**known, **cursor.uptimes},
        instances={**{name: sample[0] for name, sample in known.items()}, **cursor.instances},
    )


def read(
    series: Iterable[CounterSeries],
    cursor: Cursor,
    *,
    tiers: Iterable[TierKey],
    instances: Mapping[str, tuple[float, float, float | None]],
    uptimes: Mapping[str, Sequence[Sample]] | None = None,
) -> tuple[dict[TierKey, CounterReading], Cursor]:
    """Count what came since the cursor.

    Args:
        series: raw samples that reach back to the cursor's start.
        cursor: as the previous read left it.
        tiers: tiers that get a reading even if they had no traffic; zero is then a measured zero.
        instances: gateway -> (first sample, newest sample, start of its process), Unix seconds; the start is None when
            unknown. Empty when no gateway was scraped: then there are no readings, for nothing is known.
        uptimes: gateway -> samples of its uptime in seconds.

    Returns:
        Readings by tier (none on the first read, which only sets the baseline), and the next cursor.
    """
    if not instances:
        return {}, cursor
    uptimes = uptimes or {}
    until = max(newest for _, newest, _ in instances.values())
    seen = {name: min(first, cursor.instances.get(name, first)) for name, (first, _, _) in instances.items()}
    last = {identity: sample for identity, sample in cursor.last.items() if sample[0] >= until - FORGET_AFTER_SECONDS}
    again = {name: restarts(samples, cursor.uptimes.get(name)) for name, samples in uptimes.items()}
    restarted = {**cursor.restarted, **{name: spans[-1] for name, spans in again.items() if spans}}
    totals: dict[TierKey, dict[Origin, dict[str, float]]] = {}
    for one in series:
        if not one.samples:
            continue
        found = _baseline(one, cursor, seen, instances.get(one.instance, (0.0, 0.0, None))[2])
        if found is not None:
            sums = totals.setdefault((one.namespace, one.tier), {}).setdefault(one.origin, {})
            # A series that comes back long after its process did counts from zero all the same.
            held = cursor.restarted.get(one.instance)
            spans = (*([held] if held is not None else []), *again.get(one.instance, ()))
            grown = increase(one.samples, found, spans)
            sums[one.quantity] = sums.get(one.quantity, 0.0) + grown
        last[one.identity] = one.samples[-1]
    gone = _gone(cursor, instances, until)
    usual = _usual(uptimes)
    blind = _blind(cursor, uptimes, usual, until)
    lost = _lost(cursor, again, gone, blind=blind, usual=usual, until=until)
    readings: dict[TierKey, CounterReading] = {}
    for key in sorted({*tiers, *totals}):
        start = cursor.start(key[0])
        if start is None or start > until:
            continue
        span = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(until, UTC))
        readings[key] = replace(_reading(totals.get(key, {}), *span), crashes=len(lost), lost_seconds=sum(lost))
    known = {
        name: seen_at
        for name, seen_at in cursor.instances.items()
        if seen_at >= until - FORGET_AFTER_SECONDS and name not in instances
    }
    known.update({name: newest for name, (_, newest, _) in instances.items()})
    newest_uptimes = {**cursor.uptimes, **{name: samples[-1] for name, samples in uptimes.items() if samples}}
    return readings, Cursor(
        time=until,
        last=last,
        instances=known,
        since={namespace: since for namespace, since in cursor.since.items() if since > until},
        uptimes={name: sample for name, sample in newest_uptimes.items() if name in known},
        restarted={name: span for name, span in restarted.items() if name in known},
        gone=((cursor.gone | gone) & known.keys()) - instances.keys(),
        blind=blind,
    )


def _gone(cursor: Cursor, instances: Mapping[str, object], until: float) -> frozenset[str]:
    """Gateways that others have outlived for long enough, and that were not told of yet."""
    return frozenset(
        name
        for name, seen_at in cursor.instances.items()
        if name not in instances and name not in cursor.gone and until - seen_at > GONE_AFTER_SECONDS
    )


def _blind(cursor: Cursor, uptimes: Mapping[str, Sequence[Sample]], usual: float, until: float) -> tuple[Span, ...]:
    """When no gateway was scraped: what was known before, and what the newest samples add."""
    known = max((sample[0] for sample in cursor.uptimes.values()), default=None)
    fresh = sorted({time for samples in uptimes.values() for time, _ in samples if known is None or time > known})
    moments = [*([known] if known is not None else []), *fresh]
    found = [(before, after) for before, after in itertools.pairwise(moments) if after - before > BLIND_SCRAPES * usual]
    return tuple(span for span in (*cursor.blind, *found) if span[1] >= until - FORGET_AFTER_SECONDS)[-MOST_BLIND:]


def _usual(uptimes: Mapping[str, Sequence[Sample]]) -> float:
    """Seconds between two scrapes of a gateway."""
    spacing = [
        later - earlier for samples in uptimes.values() for (earlier, _), (later, _) in itertools.pairwise(samples)
    ]
    return statistics.median(spacing) if spacing else DEFAULT_SCRAPE_SECONDS


def _lost(
    cursor: Cursor,
    again: Mapping[str, Sequence[Span]],
    gone: Iterable[str],
    *,
    blind: Sequence[Span],
    usual: float,
    until: float,
) -> list[float]:
    """Seconds, at most, that each gateway which ended has counted without being scraped."""
    ends = [*((cursor.instances[name], until) for name in gone), *(span for spans in again.values() for span in spans)]
    return [_unseen(before, after, blind, usual) for before, after in ends]


def _unseen(before: float, after: float, blind: Iterable[Span], usual: float) -> float:
    """How long after its last scrape a gateway can have lived: it would have been scraped again, had anybody scraped.

    Others that are scraped just before it when scraping begins again do not say that it was dead by then.
    """
    most = before + usual
    for start, end in sorted(blind):
        if before <= end and start <= most:
            most = max(most, end + usual)
    return min(after, most) - before


def _reading(parts: Mapping[Origin, Mapping[str, float]], since: datetime, until: datetime) -> CounterReading:
    counts = {
        origin: Counts(**{quantity: sums.get(quantity, 0.0) for quantity in QUANTITIES})
        for origin, sums in sorted(parts.items())
    }
    return _whole(counts, since, until)


def _whole(parts: Mapping[Origin, Counts], since: datetime, until: datetime) -> CounterReading:
    def total(quantity: str) -> float:
        return float(sum(getattr(counts, quantity) for counts in parts.values()))

    return CounterReading(
        requests=total(REQUESTS),
        requests_with_usage=total(REQUESTS_WITH_USAGE),
        input_tokens=total(INPUT_TOKENS),
        cached_input_tokens=total(CACHED_INPUT_TOKENS),
        output_tokens=total(OUTPUT_TOKENS),
        since=since,
        until=until,
        estimated_attempts=total(ESTIMATED_ATTEMPTS),
        estimated_input_tokens=total(ESTIMATED_INPUT_TOKENS),
        estimated_output_tokens=total(ESTIMATED_OUTPUT_TOKENS),
        unbounded_attempts=total(UNBOUNDED_ATTEMPTS),
        parts=parts,
    )


def parts_of(reading: CounterReading) -> Mapping[Origin, Counts]:
    """What came from where; all of it from nowhere in particular where the reading does not tell."""
    if reading.parts:
        return reading.parts
    return {NO_ORIGIN: Counts(**{quantity: getattr(reading, quantity) for quantity in QUANTITIES})}


def add(first: CounterReading, second: CounterReading) -> CounterReading:
    """Two consecutive readings of one tier as one, which remembers both."""
    parts = dict(parts_of(first))
    for origin, counts in parts_of(second).items():
        held = parts.get(origin, Counts())
        parts[origin] = Counts(**{name: getattr(held, name) + getattr(counts, name) for name in QUANTITIES})
    pieces = (*(first.pieces or (first,)), *(second.pieces or (second,)))
    if len(pieces) > MAX_PIECES:  # nobody counts: the oldest become one
        oldest = add(replace(pieces[0], pieces=()), replace(pieces[1], pieces=()))
        pieces = (replace(oldest, pieces=()), *pieces[2:])
    return replace(
        _whole(dict(sorted(parts.items())), min(first.since, second.since), max(first.until, second.until)),
        pieces=pieces,
        crashes=first.crashes + second.crashes,
        lost_seconds=first.lost_seconds + second.lost_seconds,
    )
