"""The run second by second, made afterwards from what was observed. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tierwise.demo import bill, pods, records
from tierwise.demo.pods import PodLife
from tierwise.demo.records import Served
from tierwise.demo.terms import Terms

WINDOW_SECONDS = 10.0
"""Rates and percentiles look back this far: a second holds too few requests for a percentile."""


@dataclass(frozen=True, slots=True)
class WeightSeen:
    """The weights of one class, as its policy's status showed them from a moment on."""

    arm: str
    class_name: str
    at_seconds: float
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the compared set-ups: its name and its namespace."""

    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Observed:
    """All that was seen, of all arms."""

    lives: Sequence[PodLife]
    served: Sequence[Served]
    weights: Sequence[WeightSeen]


@dataclass(frozen=True, slots=True)
class Point:
    """One tier of one arm at one second.

    Attributes:
        second: since the first request. arm, tier: whose.
        replicas, ready: Pods observed; None for an external tier.
        weights: class -> percent in the policy's status (declared by the operator; what clients got is `share`).
        share: of the arm's requests answered in the window, measured; None when there were none.
        requests_per_second: answered by the tier, by the time of their first token, mean of the window.
        ttft_p95_seconds: of the window; None without requests.
        cost_per_hour: replicas now, and tokens of the window.
    """

    second: int
    arm: str
    tier: str
    replicas: int | None
    ready: int | None
    weights: Mapping[str, float]
    share: float | None
    requests_per_second: float
    ttft_p95_seconds: float | None
    cost_per_hour: float


def first_token_at(record: Served) -> float | None:
    """When a client had the first token, on the run's clock."""
    return None if record.ttft_seconds is None else record.sent_seconds + record.ttft_seconds


def ended_at(record: Served) -> float | None:
    """When a client had the whole answer, on the run's clock."""
    return None if record.latency_seconds is None else record.sent_seconds + record.latency_seconds


def weights_at(seen: Iterable[WeightSeen], arm: str, at_seconds: float) -> dict[str, dict[str, float]]:
    """Tier -> class -> percent in force at a moment."""
    latest: dict[str, WeightSeen] = {}
    for entry in seen:
        if entry.arm != arm or entry.at_seconds > at_seconds:
            continue
        before = latest.get(entry.class_name)
        if before is None or entry.at_seconds >= before.at_seconds:
            latest[entry.class_name] = entry
    out: dict[str, dict[str, float]] = {}
    for name, entry in sorted(latest.items()):
        for tier, weight in entry.weights.items():
            out.setdefault(tier, {})[name] = weight
    return out


def points_at(
    second: float,
    arm: Arm,
    terms: Terms,
    seen: Observed,
    *,
    window_seconds: float = WINDOW_SECONDS,
    when: Callable[[Served], float | None] = first_token_at,
) -> tuple[Point, ...]:
    """All tiers of an arm at one moment.

    Args:
        second: the moment, on the run's clock.
        arm: whose.
        terms: prices.
        seen: of all arms.
        window_seconds: how far rates look back; less at the start of the run.
        when: the moment that a request counts at. Live, that is its end: before, its client has said nothing.
    """
    window = min(window_seconds, max(second, 1.0))
    recent = [
        record
        for record in seen.served
        if record.arm == arm.name and record.ok and (at := when(record)) is not None and second - window < at <= second
    ]
    in_force = weights_at(seen.weights, arm.name, second)
    mine = [life for life in seen.lives if life.key.namespace == arm.namespace]
    tiers = {life.key.tier for life in mine} | {record.tier for record in recent if record.tier} | set(in_force)
    points = []
    for name in sorted(tiers & set(terms.tiers)):
        agreed = terms.tiers[name]
        here = [record for record in recent if record.tier == name]
        existing, ready = pods.counts((life for life in mine if life.key.tier == name), second)
        prompt, completion, _ = records.tokens(here)
        per_hour = float(bill.token_price(terms, name, prompt, completion)) * bill.SECONDS_PER_HOUR / window
        if agreed.per_replica_hour is not None:
            per_hour += existing * float(agreed.per_replica_hour)
        points.append(
            Point(
                second=int(second),
                arm=arm.name,
                tier=name,
                replicas=None if agreed.external else existing,
                ready=None if agreed.external else ready,
                weights=in_force.get(name, {}),
                share=len(here) / len(recent) if recent else None,
                requests_per_second=len(here) / window,
                ttft_p95_seconds=records.percentile(
                    (record.ttft_seconds for record in here if record.ttft_seconds is not None), 0.95
                ),
                cost_per_hour=per_hour,
            )
        )
    return tuple(points)


def build(seconds: int, arms: Sequence[Arm], terms: Terms, seen: Observed) -> tuple[Point, ...]:
    """The whole run: every second, arm and tier."""
    return tuple(
        point for second in range(seconds + 1) for arm in arms for point in points_at(float(second), arm, terms, seen)
    )
