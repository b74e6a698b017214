"""A fleet as the offline simulator sees it: tiers, classes, decisions, what is observed, what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from tierwise.errors import TierwiseError
from tierwise.sim.outcome import Record
from tierwise.sim.profiles import ProviderProfile
from tierwise.sim.replica import Objective, ReplicaParams


class FleetError(TierwiseError):
    """A fleet or decision that makes no sense."""


@dataclass(frozen=True, slots=True)
class ReplicaTier:
    """A tier of engine replicas.

    Attributes:
        name: of the tier.
        params: of each replica.
        usd_per_replica_hour: price.
        startup_seconds: from creation until it serves.
        quality: by class, any scale.
    """

    name: str
    params: ReplicaParams
    usd_per_replica_hour: Decimal
    startup_seconds: float
    quality: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProviderTier:
    """An external tier, paid by token."""

    name: str
    profile: ProviderProfile
    quality: Mapping[str, float] = field(default_factory=dict)


Tier = ReplicaTier | ProviderTier


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class of requests.

    Attributes:
        kind: as the trace names it.
        tiers: those it may use, in order of fallback.
        objective: latency limits.
        quality_floor: least mean quality over tiers; None: any.
    """

    kind: str
    tiers: tuple[str, ...]
    objective: Objective
    quality_floor: float | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Tiers and classes; the seed decides weights' choices, balancing and providers' latency."""

    tiers: tuple[Tier, ...]
    classes: tuple[TrafficClass, ...]
    seed: int = 0

    def tier(self, name: str) -> Tier:
        """The tier of this name."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise FleetError(f"no tier {name!r}; there are {', '.join(tier.name for tier in self.tiers)}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What a controller wants.

    Attributes:
        weights: class -> tier -> share; need not sum to one.
        replicas: tier -> (least, most) replicas. Without an autoscaler the least is what there is.
    """

    weights: Mapping[str, Mapping[str, float]]
    replicas: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TierObservation:
    """What is seen of a tier since the last decision; None is unknown.

    Attributes:
        desired, ready: replicas asked for, and those that serve.
        running, waiting: mean requests over all ready replicas.
        ttft_p95_seconds: of requests that finished since.
        inter_token_mean_seconds: over tokens generated since.
        requests_per_second: arrived since. prompt_tokens_per_second, output_tokens_per_second: computed since.
    """

    desired: int
    ready: int
    running: float | None
    waiting: float | None
    ttft_p95_seconds: float | None
    inter_token_mean_seconds: float | None
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ClassObservation:
    """What is seen of a class since the last decision."""

    requests_per_second: float
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything a controller sees; none of the simulator's parameters."""

    tiers: Mapping[str, TierObservation]
    classes: Mapping[str, ClassObservation]


class Controller(Protocol):
    """Decides weights and bounds, at the start and every `interval_seconds`."""

    @property
    def interval_seconds(self) -> float:
        """Seconds between two decisions; looked at each time."""
        ...

    def decide(self, t_seconds: float, observation: Observation) -> Decision:
        """The decision from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """A controller that never changes its mind."""

    decision: Decision
    interval_seconds: float = 1e9

    def decide(self, t_seconds: float, observation: Observation) -> Decision:  # noqa: ARG002 - the protocol's
        """Always the same."""
        return self.decision


@dataclass(frozen=True, slots=True)
class Sample:
    """One tier at one moment of the timeline."""

    t_seconds: float
    tier: str
    desired: int
    ready: int
    outstanding: int


@dataclass(frozen=True, slots=True)
class FleetResult:
    """A simulated replay.

    Attributes:
        records: one per request, in order.
        horizon_seconds: time that is charged.
        replica_hours: by tier, including starting, idle and draining ones.
        cost_usd: by tier.
        timeline: every 5 s.
        changes: decisions that differed from the one before.
    """

    records: Sequence[Record]
    horizon_seconds: float
    replica_hours: Mapping[str, float]
    cost_usd: Mapping[str, Decimal]
    timeline: Sequence[Sample]
    changes: int

    @property
    def total_usd(self) -> Decimal:
        """All tiers together."""
        return sum(self.cost_usd.values(), start=Decimal(0))
