"""How much is asked for, and what was measured: the file that `tierwise plan --metrics` reads, or Prometheus.

classes:
  - policy: assistant
    class: routine
    requestsPerSecond: "12"
    peakRequestsPerSecond: "20"
    promptTokens: 600
    completionTokens: 200
tiers:
  - tier: compact
    requestsPerSecondPerReplica: "6.5"
    ttftP95: 180ms
    interTokenP95: 14ms
    utilisation: "0.5"
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError

from tierwise.api.base import ApiModel, field_errors
from tierwise.api.scalars import Duration, PositiveDecimal
from tierwise.core import capacity, demand
from tierwise.core.capacity import Capacity
from tierwise.core.signals import ClassKey, ClassSignals, Missing, Reading, Signals, TierKey
from tierwise.preview.load import Problem
from tierwise.preview.source import SourceError, Text

Name = Annotated[str, Field(min_length=1, max_length=253)]
Tokens = Annotated[float, Field(gt=0, le=10_000_000)]


class ClassDemand(ApiModel):
    """What one class is asked for."""

    namespace: Name | None = None
    """Namespace of the policy. When absent: that of the command."""
    policy: Name
    """Name of the RoutingPolicy."""
    routing_class: Annotated[str, Field(alias="class", min_length=1, max_length=63)]
    """Name of the class."""
    requests_per_second: Annotated[float, Field(ge=0, le=1_000_000)]
    """Mean requests per second: what tokens are paid for."""
    peak_requests_per_second: Annotated[float | None, Field(gt=0, le=1_000_000)] = None
    """Requests per second in bursts: what replicas are kept for. When absent: the mean."""
    prompt_tokens: Tokens | None = None
    """Mean tokens of a prompt. When absent: 512 are assumed."""
    completion_tokens: Tokens | None = None
    """Mean generated tokens. When absent: 256 are assumed."""


class TierMeasurement(ApiModel):
    """What was measured of one tier."""

    namespace: Name | None = None
    """Namespace of the tier. When absent: that of the command."""
    tier: Name
    """Name of the ModelTier."""
    requests_per_second_per_replica: PositiveDecimal | None = None
    """Requests per second that one replica serves within the objective (in-cluster tiers)."""
    ttft_p95: Duration | None = None
    """Time to first token, 95th percentile."""
    inter_token_p95: Duration | None = None
    """Inter-token time, 95th percentile over requests."""
    utilisation: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of a replica's saturation at which the latencies were measured; 0: without load."""


class MetricsFile(ApiModel):
    """The file."""

    classes: Annotated[tuple[ClassDemand, ...], Field(max_length=5000)] = ()
    """Demand of classes."""
    tiers: Annotated[tuple[TierMeasurement, ...], Field(max_length=5000)] = ()
    """Measurements of tiers."""


@dataclass(frozen=True, slots=True)
class Load:
    """Demand of one class: requests/s (mean, and what replicas are kept for), tokens per request.

    Attributes:
        assumed_tokens: nobody said how many tokens a request has.
    """

    mean: float
    peak: float
    prompt: float
    completion: float
    assumed_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is known about demand and tiers. `source` says where from; empty when nothing is known."""

    loads: Mapping[ClassKey, Load] = field(default_factory=dict)
    tiers: Mapping[TierKey, TierMeasurement] = field(default_factory=dict)
    source: str = ""


def parse(document: Text, namespace: str) -> Metrics:
    """Read the file.

    Raises:
        SourceError: it does not have this form; the message names line, field, value and remedy.
    """
    try:
        found = MetricsFile.model_validate(document.value)
    except ValidationError as error:
        problems = [
            Problem(f"{document.file}:{document.line_of(each.field)}", "", each.field, each.value, each.remedy)
            for each in field_errors(error)
        ]
        raise SourceError("\n".join(map(str, problems))) from error
    loads: dict[ClassKey, Load] = {}
    for each in found.classes:
        key = (each.namespace or namespace, each.policy, each.routing_class)
        mean = each.requests_per_second
        loads[key] = Load(
            mean=mean,
            peak=max(mean, each.peak_requests_per_second or mean),
            prompt=each.prompt_tokens or demand.DEFAULT_PROMPT_TOKENS,
            completion=each.completion_tokens or demand.DEFAULT_COMPLETION_TOKENS,
            assumed_tokens=each.prompt_tokens is None or each.completion_tokens is None,
        )
    tiers = {(each.namespace or namespace, each.tier): each for each in found.tiers}
    return Metrics(loads, tiers, document.file)


def from_signals(signals: Signals, classes: Iterable[ClassKey], source: str, *, max_age_seconds: float) -> Metrics:
    """Demand as Prometheus has it. A class without a fresh rate is left out: it is unknown, not zero."""
    loads: dict[ClassKey, Load] = {}
    for key in sorted(classes):
        seen = demand.measure(key, signals, max_age_seconds=max_age_seconds)
        if isinstance(seen, Missing):
            continue
        weight = sum(seen.rates[tier] for tier in seen.tokens)
        prompt = completion = None
        if weight > 0:
            prompt = sum(seen.rates[tier] * pair[0] for tier, pair in seen.tokens.items()) / weight
            completion = sum(seen.rates[tier] * pair[1] for tier, pair in seen.tokens.items()) / weight
        loads[key] = Load(
            seen.rate,
            seen.rate,
            prompt or demand.DEFAULT_PROMPT_TOKENS,
            completion or demand.DEFAULT_COMPLETION_TOKENS,
            assumed_tokens=prompt is None or completion is None,
        )
    return Metrics(loads, {}, source)


def signals_of(metrics: Metrics, classes: Mapping[ClassKey, str], now: datetime) -> Signals | None:
    """The demand as an answer of Prometheus, with its peak: replicas are kept for that.

    Args:
        metrics: what is known.
        classes: class -> any of its tiers, which the demand is shown on (the loop adds them up).
        now: when.
    """
    if not metrics.loads:
        return None
    shown = {
        key: {
            classes[key]: ClassSignals(
                request_rate=Reading(load.mean, 0.0),
                peak_rate=Reading(load.peak, 0.0),
                prompt_tokens=Reading(load.prompt, 0.0),
                completion_tokens=Reading(load.completion, 0.0),
            )
        }
        for key, load in metrics.loads.items()
        if key in classes
    }
    # No gateway is said to be up: a class that nobody gave figures for is unknown, not idle.
    return Signals(time=now, classes=shown, window_seconds=60.0)


def measured(known: Capacity, figures: TierMeasurement, units_per_request: float) -> Capacity:
    """A tier's capacity with what was measured in place of what is declared."""
    if figures.requests_per_second_per_replica is not None:
        known = capacity.declared(float(figures.requests_per_second_per_replica), units_per_request)
    left = 1 - figures.utilisation
    if figures.inter_token_p95 is not None:
        known = replace(known, idle_inter_token_seconds=figures.inter_token_p95.seconds * left / capacity.TAIL_FACTOR)
    if figures.ttft_p95 is not None:
        known = replace(known, idle_ttft_seconds=figures.ttft_p95.seconds * left)
    return replace(known, observations=10)


def unknown_names(metrics: Metrics, known: set[Any]) -> list[str]:
    """What the figures name and no manifest has: a misspelt name must not pass for no demand."""
    return [
        f"{'/'.join(key)} is named in {metrics.source} and does not exist" for key in metrics.loads if key not in known
    ] + [
        f"ModelTier {'/'.join(key)} is named in {metrics.source} and does not exist"
        for key in metrics.tiers
        if key not in known
    ]
