"""What happened to each request of a replay, measured or simulated, and the figures that are made of it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tierwise.sim.replica import Objective


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times in seconds; absent when not known.

    Attributes:
        index: position in the trace.
        kind: class of the request.
        planned_seconds: when the trace wanted it, after the start.
        sent_seconds: when it went out; None: never sent.
        status: HTTP status; 0 without a response.
        tier: who served it, as the gateway says.
        ttft_seconds: to the first generated token; not known without streaming.
        inter_token_seconds: mean between tokens.
        latency_seconds: to the last byte.
        prompt_tokens, completion_tokens: as the response's usage says.
        error: why it failed; None when it was served whole.
        response_id: the response's own `id`, by which an upstream's log line can be found.
        attempts: upstream attempts, as the gateway says.
    """

    index: int
    kind: str
    planned_seconds: float
    sent_seconds: float | None = None
    status: int = 0
    tier: str | None = None
    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    latency_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    response_id: str | None = None
    attempts: int | None = None

    @property
    def served(self) -> bool:
        """Whether the client got a whole answer."""
        return self.error is None and self.status == 200

    def attained(self, objective: Objective) -> bool:
        """Whether it was served within an objective; what can not be known does not count as met."""
        if not self.served or self.latency_seconds is None:
            return False
        if objective.ttft_seconds is not None and self.ttft_seconds is None:
            return False
        return objective.met(self.ttft_seconds or 0.0, self.inter_token_seconds, self.latency_seconds)


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a quantity in seconds, by nearest rank; None without any value."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class KindSummary:
    """Figures of one class.

    Attributes:
        requests: all of the trace.
        served: with a whole answer.
        attained: served within the objective.
        attainment: attained / requests.
        ttft, inter_token, latency: of those served.
        tiers: served requests by tier.
        prompt_tokens, completion_tokens: sums over those served.
    """

    requests: int
    served: int
    attained: int
    attainment: float
    ttft: Spread
    inter_token: Spread
    latency: Spread
    tiers: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures over all classes, each class, and how requests failed (reason: count)."""

    overall: KindSummary
    kinds: Mapping[str, KindSummary]
    errors: Mapping[str, int]

    @property
    def worst_attainment(self) -> float:
        """Attainment of the class that fares worst."""
        return min((kind.attainment for kind in self.kinds.values()), default=1.0)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values; `share` from 0 to 1."""
    if not values:
        return None
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _spread(values: Iterable[float | None]) -> Spread:
    known = sorted(value for value in values if value is not None)
    return Spread(percentile(known, 0.5), percentile(known, 0.95), percentile(known, 0.99))


def _summary(records: Sequence[Record], objectives: Mapping[str, Objective]) -> KindSummary:
    served = [record for record in records if record.served]
    attained = sum(record.attained(objectives.get(record.kind, Objective())) for record in records)
    return KindSummary(
        requests=len(records),
        served=len(served),
        attained=attained,
        attainment=attained / len(records) if records else 1.0,
        ttft=_spread(record.ttft_seconds for record in served),
        inter_token=_spread(record.inter_token_seconds for record in served),
        latency=_spread(record.latency_seconds for record in served),
        tiers=dict(sorted(Counter(record.tier for record in served if record.tier is not None).items())),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in served),
        completion_tokens=sum(record.completion_tokens or 0 for record in served),
    )


def summarise(records: Sequence[Record], objectives: Mapping[str, Objective]) -> Summary:
    """Figures of a replay. A class without an objective attains when it is served."""
    kinds = sorted({record.kind for record in records})
    return Summary(
        overall=_summary(records, objectives),
        kinds={kind: _summary([r for r in records if r.kind == kind], objectives) for kind in kinds},
        errors=dict(sorted(Counter(record.error for record in records if record.error is not None).items())),
    )
