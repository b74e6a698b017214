"""Counts for the ledger, as gateways hold them: sums of increments over raw samples, aware of resets and new series.

PromQL's `increase()` extrapolates to the edges of its window and misses what a series brought with it when it was born;
money must do neither. So the samples themselves are read and summed here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from tierwise.core.signals import CounterReading, TierKey

Sample: TypeAlias = tuple[float, float]  # (Unix seconds, counter value), as scraped

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


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """Raw samples of one counter of one gateway process.

    Attributes:
        quantity: one of `QUANTITIES`.
        namespace, tier: whose.
        identity: all labels together; tells series of one quantity apart.
        instance: which gateway exposes it.
        samples: oldest first.
    """

    quantity: str
    namespace: str
    tier: str
    identity: str
    instance: str
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far usage has been read.

    Attributes:
        time: newest sample that was counted, Unix seconds; None before the first read.
        last: series identity -> the last counted sample.
        instances: gateway -> when it was last seen, Unix seconds.
        since: namespace -> where counting starts for a namespace whose ledger was restored, Unix seconds; other
            namespaces start at `time`.
    """

    time: float | None = None
    last: Mapping[str, Sample] = field(default_factory=dict)
    instances: Mapping[str, float] = field(default_factory=dict)
    since: Mapping[str, float] = field(default_factory=dict)

    def start(self, namespace: str) -> float | None:
        """Where counting continues for one namespace, Unix seconds; None: the next read only sets a baseline."""
        return self.since.get(namespace, self.time)


# A series that was not seen for this long is forgotten. Within it, a gap in scraping loses nothing.
FORGET_AFTER_SECONDS = 86_400.0


def increase(samples: Sequence[Sample], previous: Sample) -> float:
    """Sum of increments after `previous`; a value below its predecessor is a restart and counts from zero.

    What a process counted between its last scrape and its death is in no sample and not counted.
    """
    total = 0.0
    time, value = previous
    for sample_time, sample_value in samples:
        if sample_time <= time:
            continue
        total += sample_value - value if sample_value >= value else sample_value
        time, value = sample_time, sample_value
    return total


def _baseline(series: CounterSeries, cursor: Cursor, seen: Mapping[str, float]) -> Sample | None:
    """The sample to count from; None: count nothing, the series' past is unknown."""
    if series.identity in cursor.last and series.namespace not in cursor.since:
        return cursor.last[series.identity]
    since = cursor.start(series.namespace)
    if since is None:
        return None
    before = [sample for sample in series.samples if sample[0] <= since]
    if before:
        return before[-1]
    # Born after `since`, if its gateway was being scraped then; a gateway that itself came later may have been counting
    # for long before anyone looked, unless this series started with it inside the window (then others tell).
    first_seen = seen.get(series.instance)
    if first_seen is not None and first_seen <= since:
        return (since, 0.0)
    return None


def read(
    series: Iterable[CounterSeries],
    cursor: Cursor,
    *,
    tiers: Iterable[TierKey],
    instances: Mapping[str, tuple[float, float, float | None]],
) -> tuple[dict[TierKey, CounterReading], Cursor]:
    """Count what came since the cursor.

    Args:
        series: raw samples that reach back to the cursor's start.
        cursor: as the previous read left it.
        tiers: tiers that get a reading even if they had no traffic; zero is then a measured zero.
        instances: gateway -> (first sample, newest sample, start of its process), Unix seconds; the start is None when
            unknown. Empty when no gateway was scraped: then there are no readings, for nothing is known.

    Returns:
        Readings by tier (none on the first read, which only sets the baseline), and the next cursor.
    """
    if not instances:
        return {}, cursor
    until = max(newest for _, newest, _ in instances.values())
    seen = {name: min(first, cursor.instances.get(name, first)) for name, (first, _, _) in instances.items()}
    last = {identity: sample for identity, sample in cursor.last.items() if sample[0] >= until - FORGET_AFTER_SECONDS}
    totals: dict[TierKey, dict[str, float]] = {}
    for one in series:
        if not one.samples:
            continue
        start = cursor.start(one.namespace)
        baseline = _baseline(one, cursor, seen)
        if baseline is None and start is not None:
            process_start = instances.get(one.instance, (0.0, 0.0, None))[2]
            if process_start is not None and process_start >= start:
                baseline = (start, 0.0)  # the whole process is younger than the last read
        if baseline is not None:
            sums = totals.setdefault((one.namespace, one.tier), {})
            sums[one.quantity] = sums.get(one.quantity, 0.0) + increase(one.samples, baseline)
        last[one.identity] = one.samples[-1]
    readings: dict[TierKey, CounterReading] = {}
    for key in sorted({*tiers, *totals}):
        start = cursor.start(key[0])
        if start is None or start > until:
            continue
        sums = totals.get(key, {})
        readings[key] = _reading(sums, datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(until, UTC))
    known = {
        name: seen_at
        for name, seen_at in cursor.instances.items()
        if seen_at >= until - FORGET_AFTER_SECONDS and name not in instances
    }
    known.update({name: newest for name, (_, newest, _) in instances.items()})
    return readings, Cursor(time=until, last=last, instances=known)


def _reading(sums: Mapping[str, float], since: datetime, until: datetime) -> CounterReading:
    counts = {quantity: sums.get(quantity, 0.0) for quantity in QUANTITIES}
    return CounterReading(
        requests=counts[REQUESTS],
        requests_with_usage=counts[REQUESTS_WITH_USAGE],
        input_tokens=counts[INPUT_TOKENS],
        cached_input_tokens=counts[CACHED_INPUT_TOKENS],
        output_tokens=counts[OUTPUT_TOKENS],
        since=since,
        until=until,
        estimated_attempts=counts[ESTIMATED_ATTEMPTS],
        estimated_input_tokens=counts[ESTIMATED_INPUT_TOKENS],
        estimated_output_tokens=counts[ESTIMATED_OUTPUT_TOKENS],
        unbounded_attempts=counts[UNBOUNDED_ATTEMPTS],
    )


def add(first: CounterReading, second: CounterReading) -> CounterReading:
    """Two consecutive readings of one tier as one."""
    sums = {quantity: getattr(first, quantity) + getattr(second, quantity) for quantity in QUANTITIES}
    return _reading(sums, min(first.since, second.since), max(first.until, second.until))
