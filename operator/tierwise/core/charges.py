"""What one reading of gateways' counters costs, origin by origin."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from tierwise.core import usage
from tierwise.core.book import MICRO, PICO, SLOT_SECONDS, ZERO, Line, hour, slot, work_of
from tierwise.core.signals import CounterReading, Counts, Origin

MILLION = Decimal(1_000_000)

USAGE_BOUND = Decimal(2)
"""An attempt that may be billed and that nothing bounds (no usage, no limit in its request) is estimated at this many
times the mean of requests with usage: no bound, but more than most."""


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Per million tokens."""

    input: Decimal
    cached_input: Decimal
    output: Decimal


def higher(one: TokenPrices | None, other: TokenPrices | None) -> TokenPrices | None:
    """The higher of two prices of each kind of token; one that is not known is no bound."""
    if one is None or other is None:
        return one or other
    return TokenPrices(
        max(one.input, other.input), max(one.cached_input, other.cached_input), max(one.output, other.output)
    )


@dataclass(frozen=True, slots=True)
class Charged:
    """What a reading costs.

    Attributes:
        lines: origin -> tokens and cost.
        work: origin -> work units, for sharing replicas.
        unpriced: requests that no price, or no bound, is known for.
        sampled: requests with usage so far, and what they cost.
    """

    lines: Mapping[Origin, Line]
    work: Mapping[Origin, Decimal]
    unpriced: Decimal
    sampled: tuple[Decimal, Decimal]

    @property
    def measured(self) -> Decimal:
        """Cost of what was reported."""
        return sum((line.measured for line in self.lines.values()), ZERO)

    @property
    def estimated(self) -> Decimal:
        """Cost of what was bounded."""
        return sum((line.estimated for line in self.lines.values()), ZERO)


def charge(
    reading: CounterReading,
    prices: TokenPrices | None,
    *,
    external: bool,
    sampled: tuple[Decimal, Decimal] = (ZERO, ZERO),
) -> Charged:
    """Charge a reading.

    Args:
        reading: of one tier.
        prices: of its tokens; None: unknown, or paid by the replica.
        external: paid by the token.
        sampled: requests with usage so far, and what they cost: the mean for attempts that nothing bounds.
    """
    lines: dict[Origin, Line] = {}
    work: dict[Origin, Decimal] = {}
    unbounded: dict[Origin, Decimal] = {}
    unpriced = ZERO
    requests, cost = sampled
    for origin, counts in usage.parts_of(reading).items():
        if not any(getattr(counts, name) for name in usage.QUANTITIES):
            continue
        line = _line(counts, prices if external else None)
        estimated = _decimal(counts.estimated_input_tokens), _decimal(counts.estimated_output_tokens)
        work[origin] = work_of(
            line.input_tokens + line.cached_input_tokens + estimated[0], line.output_tokens + estimated[1]
        )
        used = max(line.requests, _decimal(counts.estimated_attempts))
        if external and prices is None:
            line = _with(line, unpriced=used)
            unpriced += used
        elif external:
            requests += min(_decimal(counts.requests_with_usage), line.requests)
            cost += line.measured
            # Requests that no counter explains (an older gateway's) have no bound either.
            known = _decimal(counts.requests_with_usage) + _decimal(counts.estimated_attempts)
            unbounded[origin] = _decimal(counts.unbounded_attempts) + max(ZERO, line.requests - known)
        lines[origin] = line
    for origin, attempts in unbounded.items():
        if attempts and requests > 0:
            most = (USAGE_BOUND * attempts * cost / requests).quantize(PICO)
            lines[origin] = _with(lines[origin], estimated_tokens_cost=most)
        elif attempts:
            lines[origin] = _with(lines[origin], unpriced=attempts)
            unpriced += attempts
    return Charged(lines, work, unpriced, (requests, cost))


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))


def _with(line: Line, **more: Decimal) -> Line:
    return line + Line(**more)


def _line(counts: Counts, prices: TokenPrices | None) -> Line:
    cached = _decimal(counts.cached_input_tokens)
    fresh = max(ZERO, _decimal(counts.input_tokens) - cached)
    line = Line(
        input_tokens=fresh,
        cached_input_tokens=cached,
        output_tokens=_decimal(counts.output_tokens),
        requests=_decimal(counts.requests),
    )
    if prices is None:
        return line
    most = _decimal(counts.estimated_input_tokens) * max(prices.input, prices.cached_input)
    most += _decimal(counts.estimated_output_tokens) * prices.output
    return _with(
        line,
        input_cost=(fresh * prices.input / MILLION).quantize(PICO),
        cached_input_cost=(cached * prices.cached_input / MILLION).quantize(PICO),
        output_cost=(line.output_tokens * prices.output / MILLION).quantize(PICO),
        estimated_tokens_cost=(most / MILLION).quantize(PICO),
    )


def seconds_of(span: timedelta) -> Decimal:
    """Seconds, exact to the microsecond."""
    return Decimal(span // timedelta(microseconds=1)) * MICRO


def segments(start: datetime, end: datetime) -> Iterator[tuple[datetime, Decimal]]:
    """A span cut where slots begin, or hours where it is long: (start, seconds) of each part."""
    fine = end - start <= timedelta(hours=2)
    while start < end:
        following = slot(start) + timedelta(seconds=SLOT_SECONDS) if fine else hour(start) + timedelta(hours=1)
        stop = min(following, end)
        yield start, seconds_of(stop - start)
        start = stop
