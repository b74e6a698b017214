"""What each class asks for: requests/s and tokens per request, now, at the recent peak, and by the end of a start-up.

Zero is only ever a measurement: Prometheus answered, a gateway was scraped, and its counters stood still or hold no
series for
the class. Everything else that yields no number is `Missing`, with the reason, and moves nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tierwise.core import capacity
from tierwise.core.signals import ClassKey, ClassSignals, Missing, Signals, value_of

MAX_SAMPLES = 240
"""Samples kept per class."""

_TOKEN_GAIN = 0.3
"""Share of a new window's mean token counts in the smoothed ones."""

_JUMP = 1.3
"""A window this much above the two before it is a jump, and believed at once."""

_GROWTH_NOISE = 0.1
"""Growth by less than this share within a start-up is noise."""

_GROWTH_CAP = 1.5
"""A forecast exceeds the recent peak at most by this factor."""

DEFAULT_PROMPT_TOKENS = 512.0
DEFAULT_COMPLETION_TOKENS = 256.0
"""Assumed for a class that has had no request with usage yet; such a forecast says `estimated`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One class in one window.

    Attributes:
        time: when Prometheus was asked, aware UTC.
        rate: requests/s over all tiers.
        tokens: tier name -> (prompt, completion) mean tokens per request, where usage was reported.
        rates: tier name -> requests/s.
    """

    time: datetime
    rate: float
    tokens: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """What the loop remembers of a class.

    Attributes:
        samples: (time, requests/s), oldest first, one per answer of Prometheus.
        tokens: tier name -> smoothed (prompt, completion) tokens per request; "" is the class's mean over tiers.
    """

    samples: tuple[tuple[datetime, float], ...] = ()
    tokens: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Demand of one class, in requests/s.

    Attributes:
        now: the newest window's.
        peak: the largest of the window of stabilisation: what may safely be planned away.
        ahead: `peak` or, with a significant trend, what the trend reaches when a replica started now is ready.
        settled: the history covers the whole window of stabilisation (after a restart it does not; nothing scales
            down).
        tokens: tier name -> (prompt, completion) tokens per request; "" is the mean.
        tokens_known: False when tokens are assumed.
    """

    now: float
    peak: float
    ahead: float
    settled: bool
    tokens: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tokens_known: bool = True

    def tokens_on(self, tier: str) -> tuple[float, float]:
        """(prompt, completion) tokens per request on a tier: its own measurement, else the class's mean."""
        found = self.tokens.get(tier) or self.tokens.get("")
        return found if found is not None else (DEFAULT_PROMPT_TOKENS, DEFAULT_COMPLETION_TOKENS)

    def units_on(self, tier: str) -> float:
        """Work units per request on a tier."""
        return capacity.work_units(*self.tokens_on(tier))


def measure(key: ClassKey, signals: Signals, *, max_age_seconds: float) -> Measured | Missing:
    """One class's demand out of one answer of Prometheus.

    Args:
        key: namespace, policy, class.
        signals: the answer.
        max_age_seconds: samples older than this are stale.
    """
    if signals.error:
        return Missing(f"Prometheus: {signals.error}")
    by_tier = signals.classes.get(key)
    if not by_tier:
        up = value_of(signals.gateways_up, max_age_seconds=max_age_seconds)
        if up is not None and up > 0:
            return Measured(time=signals.time, rate=0.0)
        return Missing("no series of this class and no gateway that was scraped")
    rates: dict[str, float] = {}
    tokens: dict[str, tuple[float, float]] = {}
    for tier, seen in sorted(by_tier.items()):
        rate = value_of(seen.request_rate, max_age_seconds=max_age_seconds)
        if rate is None:
            return Missing(f"requests/s on tier {tier}: {_why(seen, max_age_seconds)}")
        rates[tier] = max(0.0, rate)
        prompt = value_of(seen.prompt_tokens, max_age_seconds=max_age_seconds)
        completion = value_of(seen.completion_tokens, max_age_seconds=max_age_seconds)
        if rate > 0 and prompt is not None and completion is not None:
            tokens[tier] = (prompt, completion)
    return Measured(time=signals.time, rate=sum(rates.values()), tokens=tokens, rates=rates)


def _why(seen: ClassSignals, max_age_seconds: float) -> str:
    rate = seen.request_rate
    if isinstance(rate, Missing):
        return rate.reason
    return f"last sample is {rate.age_seconds:.0f} s old (more than {max_age_seconds:.0f} s)"


def remember(history: History, seen: Measured, *, keep_seconds: float) -> History:
    """The history with one more window; the same answer of Prometheus counts once."""
    if history.samples and history.samples[-1][0] >= seen.time:
        return history
    oldest = seen.time - timedelta(seconds=keep_seconds)
    # One sample before the window stays, so that "covers the window" can be told.
    recent = [sample for sample in history.samples if sample[0] > oldest]
    before = [sample for sample in history.samples if sample[0] <= oldest][-1:]
    samples = (*before, *recent, (seen.time, seen.rate))[-MAX_SAMPLES:]
    tokens = dict(history.tokens)
    for tier, measured in seen.tokens.items():
        tokens[tier] = _smooth(tokens.get(tier), measured)
    weight = sum(seen.rates[tier] for tier in seen.tokens)
    if weight > 0:
        prompt = sum(seen.rates[tier] * pair[0] for tier, pair in seen.tokens.items()) / weight
        completion = sum(seen.rates[tier] * pair[1] for tier, pair in seen.tokens.items()) / weight
        tokens[""] = _smooth(tokens.get(""), (prompt, completion))
    return replace(history, samples=samples, tokens=dict(sorted(tokens.items())))


def _smooth(before: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    if before is None:
        return new
    gain = _TOKEN_GAIN
    return (before[0] + gain * (new[0] - before[0]), before[1] + gain * (new[1] - before[1]))


def forecast(history: History, *, window_seconds: float, lead_seconds: float) -> Forecast | None:
    """The forecast from a history; None when nothing was ever measured.

    Args:
        history: of the class.
        window_seconds: how long demand must have been low before it counts as low.
        lead_seconds: how long a replica that is asked for now takes to serve.
    """
    if not history.samples:
        return None
    newest, now = history.samples[-1]
    start = newest - timedelta(seconds=window_seconds)
    window = [rate for time, rate in history.samples if time >= start]
    level = _level(history.samples)
    peak = max(*_smoothed(window), level)
    ahead = peak
    slope = _slope([sample for sample in history.samples if sample[0] >= newest - timedelta(seconds=4 * lead_seconds)])
    if slope * lead_seconds > _GROWTH_NOISE * level:
        ahead = min(max(peak, level + slope * lead_seconds), _GROWTH_CAP * max(peak, level))
    return Forecast(
        now=now,
        peak=peak,
        ahead=ahead,
        settled=history.samples[0][0] <= start,
        tokens=history.tokens,
        tokens_known="" in history.tokens,
    )


def _level(samples: Sequence[tuple[datetime, float]]) -> float:
    """The level now: a mean of the last two windows, as one window's noise is no decision; after a jump the newest."""
    newest = samples[-1][1]
    before = [rate for _, rate in samples[-3:-1]]
    if before and newest > _JUMP * max(before):
        return newest
    return sum(rate for _, rate in samples[-2:]) / len(samples[-2:])


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means of neighbours: a single window's spike does not become the peak of minutes."""
    if len(values) < 2:
        return list(values)
    return [(left + right) / 2 for left, right in itertools.pairwise(values)]


def _slope(samples: Sequence[tuple[datetime, float]]) -> float:
    """Requests/s per second by least squares; 0 unless it stands out from the scatter (t > 5) over six samples."""
    if len(samples) < 6:
        return 0.0
    origin = samples[0][0]
    times = [(time - origin).total_seconds() for time, _ in samples]
    rates = [rate for _, rate in samples]
    count = len(samples)
    mean_time, mean_rate = sum(times) / count, sum(rates) / count
    spread = sum((time - mean_time) ** 2 for time in times)
    if spread <= 0:
        return 0.0
    slope = sum((t - mean_time) * (r - mean_rate) for t, r in zip(times, rates, strict=True)) / spread
    residual = sum((r - mean_rate - slope * (t - mean_time)) ** 2 for t, r in zip(times, rates, strict=True))
    error = (residual / (count - 2) / spread) ** 0.5
    return slope if slope > 5 * error else 0.0
