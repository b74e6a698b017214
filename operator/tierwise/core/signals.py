"""What was measured, typed, each value with its age. Missing is a reason, never a zero.

Filled by `adapters.prometheus` from Prometheus; read by capacity, cost, balance and damping.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured value.

    Attributes:
        value: finite number in the unit of the field that holds it.
        age_seconds: how old the newest sample behind it was at `Signals.time`.
    """

    value: float
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Missing:
    """No value: no series, NaN, infinite, too few samples, or Prometheus did not answer. `reason` says which."""

    reason: str


Signal: TypeAlias = Reading | Missing

NOT_ASKED = Missing("not queried")


@dataclass(frozen=True, slots=True)
class TierSignals:
    """One tier's measurements: the engine's own metrics for in-cluster tiers, Envoy's for external ones.

    Attributes:
        request_rate: requests/s that ended at the tier (Envoy's counters).
        error_rate: share of requests that ended in 5xx, reset or 429, 0 to 1.
        answer_rate: requests/s that an external tier answered with a 2xx.
        refused_rate: attempts/s that an external tier refused with 429, or that gateways held back for its sake.
        passed_rate: attempts/s that an in-cluster tier passed on because it was saturated.
        running, waiting: requests in the engine, summed over replicas.
        kv_cache_usage: share of the KV cache in use, mean over replicas, 0 to 1.
        ttft_p95_seconds, inter_token_p95_seconds: 95th percentiles over the query window.
        prompt_token_rate, generation_token_rate: tokens/s, summed over replicas.
        ready_replicas: Pods whose metrics were scraped in the window.
        inter_token_mean_seconds: mean over the window (histogram sum / count: exact, where percentiles are rounded to
            buckets); may stay unasked, then it is estimated from `running` and `generation_token_rate`.
    """

    request_rate: Signal = NOT_ASKED
    error_rate: Signal = NOT_ASKED
    answer_rate: Signal = NOT_ASKED
    refused_rate: Signal = NOT_ASKED
    passed_rate: Signal = NOT_ASKED
    running: Signal = NOT_ASKED
    waiting: Signal = NOT_ASKED
    kv_cache_usage: Signal = NOT_ASKED
    ttft_p95_seconds: Signal = NOT_ASKED
    inter_token_p95_seconds: Signal = NOT_ASKED
    prompt_token_rate: Signal = NOT_ASKED
    generation_token_rate: Signal = NOT_ASKED
    ready_replicas: Signal = NOT_ASKED
    inter_token_mean_seconds: Signal = NOT_ASKED


@dataclass(frozen=True, slots=True)
class ClassSignals:
    """One class of one policy on one tier (`tier` name), from Envoy's access-log statistics.

    Attributes:
        request_rate: requests/s that arrive, each counted at its first attempt, whether the tier took it or not.
        prompt_tokens, completion_tokens: mean tokens per request that reported usage.
        ttfb_p95_seconds: time to first body byte, 95th percentile.
        latency_p95_seconds: whole request, 95th percentile.
        peak_rate: requests/s that arrive in the busiest ten seconds of the window.
        taken_rate: attempts/s that the tier took: those that went to it, less those that it passed on because it was
            saturated. In the mean of a window it may be a little below zero.
        taken_peak_rate: the same in the busiest ten seconds of the window.
    """

    request_rate: Signal = NOT_ASKED
    prompt_tokens: Signal = NOT_ASKED
    completion_tokens: Signal = NOT_ASKED
    ttfb_p95_seconds: Signal = NOT_ASKED
    latency_p95_seconds: Signal = NOT_ASKED
    peak_rate: Signal = NOT_ASKED
    taken_rate: Signal = NOT_ASKED
    taken_peak_rate: Signal = NOT_ASKED


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Whose traffic used a tier, as gateways label what they count; empty where they do not say.

    Attributes:
        policy, class_name: of the request. consumer: who called; empty where nobody is asked.
        purpose: empty: to answer; `shadow`: a copy whose answer is thrown away.
    """

    policy: str = ""
    class_name: str = ""
    consumer: str = ""
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What gateways counted of one origin at one tier; the fields are those of `CounterReading`."""

    requests: float = 0.0
    requests_with_usage: float = 0.0
    input_tokens: float = 0.0
    cached_input_tokens: float = 0.0
    output_tokens: float = 0.0
    estimated_attempts: float = 0.0
    estimated_input_tokens: float = 0.0
    estimated_output_tokens: float = 0.0
    unbounded_attempts: float = 0.0


@dataclass(frozen=True, slots=True)
class CounterReading:
    """Cumulative token counts of one series set since the ledger's last read, reset-aware sums of raw samples.

    Attributes:
        requests, requests_with_usage: count; the others are among the estimated attempts.
        input_tokens, cached_input_tokens, output_tokens: tokens that upstreams reported.
        since, until: the time span that the raw samples cover, aware UTC.
        estimated_attempts: attempts at this tier that may be billed and reported no usage: whole answers without it,
            streams that broke off, attempts that a retry replaced.
        estimated_input_tokens, estimated_output_tokens: what these can have cost at most, tokens.
        unbounded_attempts: those among them that nothing bounds; the sums leave out what is unknown of them.
        parts: origin -> its part; they add up to the whole. Empty: nobody told origins apart.
        pieces: the consecutive readings that this one adds up, oldest first; empty: it is one.
        crashes: gateways that ended meanwhile, and took with them what they had counted since they were last scraped.
        lost_seconds: how long these can have counted unseen, together.
    """

    requests: float
    requests_with_usage: float
    input_tokens: float
    cached_input_tokens: float
    output_tokens: float
    since: datetime
    until: datetime
    estimated_attempts: float = 0.0
    estimated_input_tokens: float = 0.0
    estimated_output_tokens: float = 0.0
    unbounded_attempts: float = 0.0
    parts: Mapping[Origin, Counts] = field(default_factory=dict)
    pieces: tuple["CounterReading", ...] = ()
    crashes: int = 0
    lost_seconds: float = 0.0


ClassKey: TypeAlias = tuple[str, str, str]  # namespace, policy, class
TierKey: TypeAlias = tuple[str, str]  # namespace, tier


@dataclass(frozen=True, slots=True)
class Signals:
    """One answer of Prometheus.

    Attributes:
        time: when it was asked, aware UTC.
        tiers: (namespace, tier) -> signals.
        classes: (namespace, policy, class) -> tier name -> signals.
        usage: (namespace, tier) -> token counts since the previous successful read, for the ledger.
        window_seconds: the range that rates and percentiles cover.
        gateways_up: gateway targets whose scrape succeeded. When it is fresh and positive, a class without a series had
            no traffic (measured zero); otherwise a class without a series is missing.
        error: why Prometheus could not be asked; empty when it answered.
    """

    time: datetime
    tiers: Mapping[TierKey, TierSignals] = field(default_factory=dict)
    classes: Mapping[ClassKey, Mapping[str, ClassSignals]] = field(default_factory=dict)
    usage: Mapping[TierKey, CounterReading] = field(default_factory=dict)
    window_seconds: float = 0.0
    gateways_up: Signal = NOT_ASKED
    error: str = ""


def value_of(signal: Signal, *, max_age_seconds: float) -> float | None:
    """The value when it is fresh enough, else None (never zero)."""
    if isinstance(signal, Reading) and signal.age_seconds <= max_age_seconds:
        return signal.value
    return None
