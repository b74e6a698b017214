"""What a client saw of each request, and what that says about latency, quality and tokens. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """One request as its client saw it. Times are seconds on the run's clock (0 = first request of the trace).

    Attributes:
        arm: which of the compared set-ups it was sent to.
        request_id: unique; upstream logs carry it too.
        class_name: the class that its prompt size puts it in.
        tier: that answered, by the gateway's response header; None when none did.
        scheduled_seconds: when the trace has it. sent_seconds: when it was sent; later means that the client lags.
        status: HTTP status; None when there was no answer.
        ttft_seconds: from sending until the first content; None when there was none.
        inter_token_seconds: mean time between tokens after the first; None for fewer than two.
        latency_seconds: whole request.
        prompt_tokens, completion_tokens: as the answer's usage reported; None when it did not.
        attempts: upstream attempts; None when unknown.
        error: why it failed; empty when it did not.
    """

    arm: str
    request_id: str
    class_name: str
    tier: str | None
    scheduled_seconds: float
    sent_seconds: float
    status: int | None
    ttft_seconds: float | None
    inter_token_seconds: float | None
    latency_seconds: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Answered in full."""
        return self.status == 200 and not self.error and self.ttft_seconds is not None


@dataclass(frozen=True, slots=True)
class Objective:
    """Upper limits in seconds; None: no limit."""

    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    latency_seconds: float | None = None

    def met(self, record: Served) -> bool:
        """Whether a request was answered within the objective; a failed one was not."""
        if not record.ok:
            return False
        pairs = (
            (record.ttft_seconds, self.ttft_seconds),
            (record.inter_token_seconds, self.inter_token_seconds),
            (record.latency_seconds, self.latency_seconds),
        )
        return all(limit is None or value is None or value <= limit for value, limit in pairs)


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def attainment(records: Sequence[Served], objective: Objective) -> float | None:
    """Share of requests that met the objective; None of none."""
    if not records:
        return None
    return sum(objective.met(record) for record in records) / len(records)


def shares(records: Iterable[Served]) -> dict[str, float]:
    """Tier -> share of the answered requests."""
    counted: dict[str, int] = {}
    for record in records:
        if record.ok and record.tier is not None:
            counted[record.tier] = counted.get(record.tier, 0) + 1
    total = sum(counted.values())
    return {tier: count / total for tier, count in sorted(counted.items())} if total else {}


def tokens(records: Iterable[Served]) -> tuple[int, int, int]:
    """(prompt, completion, requests whose usage is not known) over the answered requests."""
    prompt = completion = unknown = 0
    for record in records:
        if not record.ok:
            continue
        if record.prompt_tokens is None or record.completion_tokens is None:
            unknown += 1
            continue
        prompt += record.prompt_tokens
        completion += record.completion_tokens
    return prompt, completion, unknown
