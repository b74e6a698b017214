"""How one strategy fared on a trace, and all of them side by side. Every figure is simulated and says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from tierwise.sim.fleet import Controller, Decision, Fleet, FleetResult
from tierwise.sim.hpa import HpaSpec
from tierwise.sim.outcome import summarise
from tierwise.sim.simulate import simulate
from tierwise.sim.traces import TraceRequest

Weights = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How the baselines are found.

    Attributes:
        attainment: share of each class's requests within the objective that a baseline must reach.
        weight_step: grid of the weights.
        combinations: weight settings that are simulated, best by the fluid estimate first.
        max_replicas: per tier.
        down_stabilisation_seconds: of the HPAs.
        sync_seconds: of the HPAs.
        metric_window_seconds: over which the HPAs' metric is averaged.
    """

    attainment: float = 0.99
    weight_step: float = 0.25
    combinations: int = 24
    max_replicas: int = 40
    down_stabilisation_seconds: float = 300.0
    sync_seconds: float = 15.0
    metric_window_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """How one strategy fared on the trace; every figure is simulated.

    Attributes:
        name: of the strategy.
        weights: at the start; those of a fixed strategy hold throughout.
        replicas: tier -> (least, most) at the start.
        cost_usd: over the horizon, all tiers.
        usd_per_hour: the same per hour.
        attainment: share of requests within their objective.
        class_attainment: by class.
        quality: mean quality by class of what was served; only where all tiers declare one.
        tier_shares: served requests by class and tier.
        replica_hours: by tier.
        changes: decisions that moved something.
        reached: whether every class reached the wanted attainment.
    """

    name: str
    weights: Weights
    replicas: Mapping[str, tuple[int, int]]
    cost_usd: Decimal
    usd_per_hour: Decimal
    attainment: float
    class_attainment: Mapping[str, float]
    quality: Mapping[str, float]
    tier_shares: Mapping[str, Mapping[str, float]]
    replica_hours: Mapping[str, float]
    changes: int
    reached: bool
    provenance: str = "simulated"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All strategies on one trace."""

    requests: int
    horizon_seconds: float
    wanted_attainment: float
    strategies: Sequence[StrategyResult]
    provenance: str = "simulated"

    def to_json(self) -> str:
        """For a file; money as decimal strings."""
        return json.dumps(asdict(self), default=str, indent=2, sort_keys=True)


def assess(
    name: str,
    fleet: Fleet,
    trace: Sequence[TraceRequest],
    controller: Controller,
    *,
    scaling: Mapping[str, HpaSpec] | None = None,
    horizon_seconds: float | None = None,
    attainment: float = 0.99,
    decision: Decision | None = None,
) -> StrategyResult:
    """Simulate one controller and sum up. `decision` is what to show as its start, if it is fixed."""
    result = simulate(fleet, trace, controller, scaling=scaling, horizon_seconds=horizon_seconds)
    return judged(name, fleet, result, decision or Decision({}, {}), attainment)


def judged(name: str, fleet: Fleet, result: FleetResult, decision: Decision, attainment: float) -> StrategyResult:
    """Sum a simulated replay up; `attainment` is what each class must reach."""
    summary = summarise(result.records, {traffic.kind: traffic.objective for traffic in fleet.classes})
    quality: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for kind, figures in summary.kinds.items():
        shares[kind] = {name: count / max(1, figures.served) for name, count in figures.tiers.items()}
        scores = {tier: fleet.tier(tier).quality.get(kind) for tier in shares[kind]}
        if all(score is not None for score in scores.values()):
            quality[kind] = sum(share * (scores[tier] or 0.0) for tier, share in shares[kind].items())
    hours = max(result.horizon_seconds, 1e-9) / 3600
    by_class = {kind: figures.attainment for kind, figures in summary.kinds.items()}
    return StrategyResult(
        name=name,
        weights=decision.weights,
        replicas=decision.replicas,
        cost_usd=result.total_usd,
        usd_per_hour=(result.total_usd / Decimal(repr(hours))).quantize(Decimal("0.0001")),
        attainment=summary.overall.attainment,
        class_attainment=by_class,
        quality=quality,
        tier_shares=shares,
        replica_hours=dict(result.replica_hours),
        changes=result.changes,
        reached=all(value >= attainment for value in by_class.values()),
    )
