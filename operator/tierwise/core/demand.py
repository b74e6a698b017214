"""What each class asks for: requests/s and tokens per request, now, at the recent peak, and by the end of a start-up.

Zero is only ever a measurement: Prometheus answered, a gateway was scraped, and its counters stood still or hold no
series for
the class. Everything else that yields no number is `Missing`, with the reason, and moves nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from tierwise.core import capacity, season, shift
from tierwise.core.season import Season
from tierwise.core.signals import ClassKey, ClassSignals, Missing, Signals, value_of

MAX_SAMPLES = 600
"""Samples kept per class."""

KEEP_SECONDS = 3600.0
"""How long a sample is kept: bursts of the last hour are what capacity is planned for."""

DENSE_SECONDS, SPARSE_SECONDS = 120.0, 15.0
"""Samples older than the first are thinned to one in the second."""

WINDOW_SECONDS = 60.0
"""Length of a window, where none is named."""

BURST_SECONDS = 10.0
"""The busiest part of a window that gateways report apart."""

LEVEL_SECONDS, HELD_SECONDS = 1200.0, 600.0
"""Time constant of a class's level, which never leaves what the window of stabilisation saw: 10 minutes by default. A
shift that lasts (`core.shift`) is the new level at once."""

_TOKEN_GAIN = 0.3
"""Share of a new window's mean token counts in the smoothed ones."""

_FOLLOWED = 3.0
"""Factor by which tokens of a tier without requests follow those of others at most."""

_JUMP = 1.3
"""A window this much above the two before it is a jump, and believed at once."""

_GROWTH_NOISE = 0.1
"""Growth by less than this share within a start-up is noise."""

_GROWTH_CAP = 1.2
"""A forecast exceeds the level at most by this factor."""
_SETTLED = timedelta(seconds=0.9 * KEEP_SECONDS)
"""A longer history is not kept: a window of stabilisation beyond it is covered with this."""

DEFAULT_PROMPT_TOKENS = 512.0
DEFAULT_COMPLETION_TOKENS = 256.0
"""Assumed for a class that has had no request with usage yet; such a forecast says `estimated`."""


Tokens: TypeAlias = Mapping[str, tuple[float, float]]
"""Tier -> (prompt, completion) tokens per request."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One class in one window.

    Attributes:
        time: when Prometheus was asked, aware UTC.
        rate: requests/s over all tiers.
        tokens: tier name -> (prompt, completion) mean tokens per request, where usage was reported.
        rates: tier name -> requests/s that it took, `rate` together; where that is not known, those that arrived there.
        peak: requests/s in the window's busiest ten seconds, over all tiers; None when not known.
        window_seconds: length of the window.
    """

    time: datetime
    rate: float
    tokens: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    peak: float | None = None
    window_seconds: float = WINDOW_SECONDS


class Sample(NamedTuple):
    """One window of one class.

    Attributes:
        time: aware UTC. rate: requests/s.
        peak: requests/s in the busiest ten seconds, at least `rate`. share: of the window's requests, in these.
        level: requests/s that were usual then: the mean of some time before, held within the last minutes, or of the
            time since a shift that has lasted.
    """

    time: datetime
    rate: float
    peak: float
    share: float
    level: float


@dataclass(frozen=True, slots=True)
class History:
    """What the loop remembers of a class.

    Attributes:
        samples: oldest first, one per answer of Prometheus, older ones thinned.
        tokens: tier name -> smoothed (prompt, completion) tokens per request; "" is the class's mean over tiers.
        beside: tier name -> tokens on all tiers that got requests when it last did.
        season: how it changes with the time of day.
    """

    samples: tuple[Sample, ...] = ()
    tokens: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    season: Season = field(default_factory=Season)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Demand of one class, in requests/s.

    Attributes:
        now: the newest window's.
        present: the last two windows' mean, or the newest after a jump: what ready replicas have to carry.
        level: what is usual now. Tokens are paid for it; capacity is planned for `core.bursts`' multiple of it.
        ahead: `level` or, with a significant trend or a season, what it reaches when a replica started now is ready.
        settled: the history covers the whole window of stabilisation (after a restart it does not; nothing scales
            down).
        tokens: tier name -> (prompt, completion) tokens per request; "" is the mean.
        tokens_known: False when tokens are assumed.
    """

    now: float
    present: float
    level: float
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
    peaks: list[float | None] = []
    for tier, seen in sorted(by_tier.items()):
        rate = value_of(seen.request_rate, max_age_seconds=max_age_seconds)
        if rate is None:
            return Missing(f"requests/s on tier {tier}: {_why(seen, max_age_seconds)}")
        rates[tier] = max(0.0, rate)
        peak = value_of(seen.peak_rate, max_age_seconds=max_age_seconds)
        peaks.append(0.0 if peak is None and rate <= 0 else peak)
    known = [peak for peak in peaks if peak is not None]
    taken = _taken(by_tier, rates, max_age_seconds)
    return Measured(
        time=signals.time,
        rate=sum(rates.values()),
        tokens=_tokens(by_tier, taken, max_age_seconds),
        rates=taken,
        peak=sum(known) if len(known) == len(peaks) else None,
        window_seconds=signals.window_seconds,
    )


def took(seen: ClassSignals, max_age_seconds: float) -> float | None:
    """Requests/s that a tier took; where that is not known, those that arrived there; None when neither is."""
    taken = value_of(seen.taken_rate, max_age_seconds=max_age_seconds)
    return taken if taken is not None else value_of(seen.request_rate, max_age_seconds=max_age_seconds)


def _taken(
    by_tier: Mapping[str, ClassSignals], arrived: Mapping[str, float], max_age_seconds: float
) -> Mapping[str, float]:
    """Tier -> requests/s that it took. Who fell back was taken more than once: together they are what arrived."""
    found: dict[str, float] = {}
    for tier in arrived:
        taken = value_of(by_tier[tier].taken_rate, max_age_seconds=max_age_seconds)
        if taken is None:
            return arrived
        found[tier] = max(0.0, taken)
    total, asked = sum(found.values()), sum(arrived.values())
    return {tier: asked * (rate / total) for tier, rate in found.items()} if total > 0 else arrived


def _tokens(
    by_tier: Mapping[str, ClassSignals], taken: Mapping[str, float], max_age_seconds: float
) -> dict[str, tuple[float, float]]:
    """Tier that took requests -> (prompt, completion) tokens of one, where usage was reported."""
    found: dict[str, tuple[float, float]] = {}
    for tier, rate in taken.items():
        prompt = value_of(by_tier[tier].prompt_tokens, max_age_seconds=max_age_seconds)
        completion = value_of(by_tier[tier].completion_tokens, max_age_seconds=max_age_seconds)
        if rate > 0 and prompt is not None and completion is not None:
            found[tier] = (prompt, completion)
    return found


def _why(seen: ClassSignals, max_age_seconds: float) -> str:
    rate = seen.request_rate
    if isinstance(rate, Missing):
        return rate.reason
    return f"last sample is {rate.age_seconds:.0f} s old (more than {max_age_seconds:.0f} s)"


def remember(
    history: History, seen: Measured, *, held_seconds: float = HELD_SECONDS, keep_seconds: float = KEEP_SECONDS
) -> History:
    """The history with one more window; the same answer of Prometheus counts once.

    Args:
        history: so far.
        seen: the window.
        held_seconds: the level stays within what so long saw.
        keep_seconds: what is older goes.
    """
    before = history.samples
    if before and before[-1].time >= seen.time:
        return history
    samples = _thinned((*before, _sample(before, seen, held_seconds)), seen.time, keep_seconds)
    tokens = dict(history.tokens)
    for tier, measured in seen.tokens.items():
        tokens[tier] = _smooth(tokens.get(tier), measured)
    tokens |= _followed(history.beside, tokens, seen)
    weight = sum(seen.rates[tier] for tier in seen.tokens)
    if weight > 0:
        prompt = sum(seen.rates[tier] * pair[0] for tier, pair in seen.tokens.items()) / weight
        completion = sum(seen.rates[tier] * pair[1] for tier, pair in seen.tokens.items()) / weight
        tokens[""] = _smooth(tokens.get(""), (prompt, completion))
    own = {tier: tokens[tier] for tier in sorted(seen.tokens)}
    beside = dict(history.beside) | dict.fromkeys(sorted(seen.tokens), own)
    elapsed = min((seen.time - before[-1].time).total_seconds(), seen.window_seconds) if before else 0.0
    days = season.seen(history.season, seen.time, seen.rate, elapsed) if elapsed > 0 else history.season
    return History(samples, dict(sorted(tokens.items())), beside, days)


def _followed(beside: Mapping[str, Tokens], after: Tokens, seen: Measured) -> Tokens:
    """Tiers that got none of the class's requests: what they would generate has changed since as it has elsewhere.

    Told from what the tiers that both then and now got some generated then and generate now; never more than by the
    factor `_FOLLOWED`, lest a few odd requests price a tier out for good.
    """
    found: dict[str, tuple[float, float]] = {}
    for tier, then in beside.items():
        if tier in seen.tokens or tier not in then:
            continue
        factors = []
        for part in (0, 1):
            both = [
                other
                for other in seen.tokens
                if other in then and seen.rates[other] > 0 and then[other][part] > 0 and after[other][part] > 0
            ]
            old = sum(seen.rates[other] * then[other][part] for other in both)
            new = sum(seen.rates[other] * after[other][part] for other in both)
            factors.append(min(max(new / old, 1 / _FOLLOWED), _FOLLOWED) if old > 0 else 1.0)
        found[tier] = (then[tier][0] * factors[0], then[tier][1] * factors[1])
    return found


def _sample(before: Sequence[Sample], seen: Measured, held_seconds: float) -> Sample:
    rate = seen.rate
    peak = max(rate, seen.peak if seen.peak is not None else rate)
    window = max(seen.window_seconds, BURST_SECONDS)
    share = min(1.0, peak * BURST_SECONDS / (rate * window)) if rate > 0 else 0.0
    if not before:
        return Sample(seen.time, rate, peak, share, rate)
    elapsed = (seen.time - before[-1].time).total_seconds()
    so_far = (before[-1].time - before[0].time).total_seconds() + seen.window_seconds
    # At first the plain mean: the first window is no better than the second.
    gain = max(1 - math.exp(-elapsed / LEVEL_SECONDS), elapsed / (elapsed + so_far))
    level = before[-1].level + gain * (rate - before[-1].level)
    start = seen.time - timedelta(seconds=held_seconds)
    rates = [*(sample.rate for sample in before), rate]
    # A shift that has lasted is no matter of time constants.
    since = shift.since([*(sample.time for sample in before), seen.time], rates, seen.window_seconds)
    if since is not None:
        level = sum(rates[since:]) / (len(rates) - since)
    late = [sample.rate for sample in before if sample.time > start] + [rate]
    return Sample(seen.time, rate, peak, share, min(max(level, min(late)), max(late)))


def _thinned(samples: tuple[Sample, ...], now: datetime, keep_seconds: float) -> tuple[Sample, ...]:
    """The last `keep_seconds`, and one sample before, so that it can be told whether all of a window is known."""
    oldest, dense = now - timedelta(seconds=keep_seconds), now - timedelta(seconds=DENSE_SECONDS)
    first = next((number for number, sample in enumerate(samples) if sample.time > oldest), len(samples))
    found = samples[max(0, first - 1) :]
    # Only the sample that has just become old can be one too many: the others were looked at when they did.
    edge = next((number for number, sample in enumerate(found) if sample.time > dense), len(found)) - 1
    if edge >= 2 and (found[edge].time - found[edge - 2].time).total_seconds() <= SPARSE_SECONDS:
        # The busier of two stays: a burst is what an old sample is kept for.
        gone = edge - 1 if found[edge].peak >= found[edge - 1].peak else edge
        found = (*found[:gone], *found[gone + 1 :])
    return found[-MAX_SAMPLES:]


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
    newest = history.samples[-1]
    start = newest.time - timedelta(seconds=window_seconds)
    earliest = newest.time - timedelta(seconds=4 * lead_seconds)
    level = ahead = newest.level
    seen = [(sample.time, sample.rate) for sample in history.samples]
    since = shift.since([time for time, _ in seen], [rate for _, rate in seen], WINDOW_SECONDS)
    if since is not None:
        # A step is no trend.
        earliest = max(earliest, seen[since][0])
    slope = _slope([(time, rate) for time, rate in seen if time >= earliest])
    if slope * lead_seconds > _GROWTH_NOISE * level:
        ahead = min(level + slope * lead_seconds, _GROWTH_CAP * level)
    usual = season.ahead(history.season, newest.time, level, lead_seconds)
    if usual > (1 + _GROWTH_NOISE) * level:
        ahead = max(ahead, usual)
    return Forecast(
        now=newest.rate,
        present=_present([sample.rate for sample in history.samples[-3:]]),
        level=level,
        ahead=ahead,
        settled=history.samples[0].time <= max(start, newest.time - _SETTLED),
        tokens=history.tokens,
        tokens_known="" in history.tokens,
    )


def _present(rates: Sequence[float]) -> float:
    """The mean of the last two windows, as one window's noise is no decision; after a jump the newest."""
    newest, before = rates[-1], rates[:-1]
    if before and newest > _JUMP * max(before):
        return newest
    return sum(rates[-2:]) / len(rates[-2:])


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
