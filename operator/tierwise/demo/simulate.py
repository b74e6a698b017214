"""The offline comparison: the run's own trace, tiers and prices in the replica model. Everything here is simulated.

Auto is the real planner (`rehearsal`). The others know the whole trace and the replica model beforehand, which Auto
does not: the best fixed weights, with the fewest fixed replicas or an autoscaler.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.world import Key
from tierwise.demo import objects
from tierwise.demo.errors import DemoError
from tierwise.demo.rehearsal import UID, PlannerController
from tierwise.demo.summary import PROMISED, Simulated
from tierwise.demo.terms import Terms
from tierwise.sim import profiles
from tierwise.sim.fleet import Fleet, ProviderTier, ReplicaTier, Tier, TrafficClass
from tierwise.sim.hpa import HpaSpec
from tierwise.sim.replay import Search
from tierwise.sim.replica import Objective
from tierwise.sim.strategy import SearchOptions, StrategyResult, assess
from tierwise.sim.traces import TraceRequest

AUTO = "Auto"
PROFILE_VARIABLE = "TIERWISE_SIM_PROFILE"
STARTUP_VARIABLE = "TIERWISE_SIM_STARTUP_SECONDS"
PROCESS_START_SECONDS = 4.0
"""From a changed minimum until the autoscaler acts, the Pod runs, and, at the other end, until the gateway knows."""
SYNC_SECONDS = 5.0
"""The development cluster's `--horizontal-pod-autoscaler-sync-period`."""
METRIC_SECONDS = 5.0
"""Engines are scraped every second, and the autoscaler takes the newest sample."""
HPA_SHARES = (0.7, 0.55, 0.4, 0.3)
"""Autoscalers' targets, as shares of the running requests that a replica holds within the objective."""
CONTROL_SHARE = 0.4
"""The live control arm's: at 70% and 55% it misses the objective on the built-in trace, at 40% it keeps it."""


@dataclass(frozen=True, slots=True)
class Model:
    """The examples as the simulator sees them."""

    fleet: Fleet
    tiers: Mapping[Key, ModelTier]
    policy: RoutingPolicy
    scaling: Mapping[str, HpaSpec]
    terms: Terms


def model_of(documents: Iterable[Mapping[str, Any]], provider_profile: str, seed: int) -> Model:
    """Tiers, classes and autoscalers from the manifests; each engine's profile is the one that its environment names.

    Args:
        documents: the examples.
        provider_profile: latency of the provider.
        seed: of balancing and weights' choices.
    """
    placed = objects.in_namespace(documents, objects.AUTO_NAMESPACE)
    terms = objects.terms_of(placed)
    tiers: dict[Key, ModelTier] = {}
    made: list[Tier] = []
    scaling: dict[str, HpaSpec] = {}
    policy: RoutingPolicy | None = None
    for body in placed:
        body.setdefault("metadata", {}).update({"uid": UID, "generation": 1})
        if body["kind"] == "ModelTier":
            tier = ModelTier.parse(body)
            tiers[Key(objects.AUTO_NAMESPACE, tier.metadata.name)] = tier
            made.append(_tier(tier, terms, provider_profile))
            spec = _scaling(tier)
            if spec is not None:
                scaling[tier.metadata.name] = spec
        elif body["kind"] == "RoutingPolicy":
            policy = RoutingPolicy.parse(body)
    if policy is None:
        raise DemoError("the examples hold no RoutingPolicy")
    classes = tuple(
        TrafficClass(
            entry.name,
            entry.tiers,
            Objective(
                entry.objective.ttft_seconds, entry.objective.inter_token_seconds, entry.objective.latency_seconds
            ),
            entry.floor,
        )
        for entry in terms.classes
    )
    return Model(Fleet(tuple(made), classes, seed), tiers, policy, scaling, terms)


def _quality(tier: ModelTier, terms: Terms) -> dict[str, float]:
    scores = terms.tiers[tier.metadata.name].quality
    return {entry.name: scores[entry.task] for entry in terms.classes if entry.task and entry.task in scores}


def _tier(tier: ModelTier, terms: Terms, provider_profile: str) -> Tier:
    name = tier.metadata.name
    agreed = terms.tiers[name]
    inside = tier.spec.in_cluster
    if inside is None:
        profile = replace(
            profiles.provider_profile(provider_profile),
            usd_per_million_input=agreed.input_per_million or Decimal(0),
            usd_per_million_output=agreed.output_per_million or Decimal(0),
        )
        return ProviderTier(name, profile, _quality(tier, terms))
    settings = {entry.name: entry.value for entry in inside.env}
    named = settings.get(PROFILE_VARIABLE)
    if named is None or agreed.per_replica_hour is None:
        raise DemoError(f"tier {name} needs a price and {PROFILE_VARIABLE} in its env to be simulated")
    startup = float(settings.get(STARTUP_VARIABLE) or 0.0) + PROCESS_START_SECONDS
    return ReplicaTier(name, profiles.profile(named).params, agreed.per_replica_hour, startup, _quality(tier, terms))


def _scaling(tier: ModelTier) -> HpaSpec | None:
    inside = tier.spec.in_cluster
    if inside is None or inside.autoscaling.target is None:
        return None
    behavior = inside.autoscaling.behavior
    down = behavior.scale_down if behavior is not None else None
    window = down.stabilization_window_seconds if down is not None else None
    return HpaSpec(
        target=float(inside.autoscaling.target.value),
        min_replicas=max(1, inside.replicas.min),
        max_replicas=inside.replicas.max,
        sync_seconds=SYNC_SECONDS,
        down_stabilisation_seconds=300.0 if window is None else float(window),
        metric_window_seconds=METRIC_SECONDS,
    )


def hpa_target(model: Model, trace: Sequence[TraceRequest], seconds: float, share: float = CONTROL_SHARE) -> float:
    """Running requests per replica for an autoscaler of the reference tier when all requests go there.

    Args:
        model: of the examples.
        trace: for the mean request.
        seconds: that it lasts.
        share: of the running requests that one replica holds within every objective.
    """
    search = Search(model.fleet, trace, SearchOptions(), seconds)
    chosen = model.fleet.tier(model.terms.reference)
    held = search.capacity(chosen, search.all_on(chosen.name)) if isinstance(chosen, ReplicaTier) else None
    if held is None or held.sequences <= 0:
        raise DemoError(f"{chosen.name} keeps no objective of the policy, not even idle")
    return max(1.0, share * held.sequences)


def rehearse(model: Model, trace: Sequence[TraceRequest], seconds: float) -> tuple[Simulated, list[tuple[float, str]]]:
    """Auto by the real planner, and its moves."""
    controller = PlannerController(objects.AUTO_NAMESPACE, dict(model.tiers), model.policy)
    result = assess(
        AUTO,
        model.fleet,
        trace,
        controller,
        scaling=model.scaling,
        horizon_seconds=seconds,
        attainment=PROMISED,
    )
    return _row(result, AUTO, "the operator's own planner, deciding as it goes"), controller.moves


def _row(result: StrategyResult, name: str, note: str) -> Simulated:
    return Simulated(
        name=name,
        cost=float(result.cost_usd),
        cost_per_hour=float(result.usd_per_hour),
        attainment=result.attainment,
        worst=min(result.class_attainment.values(), default=0.0),
        scores=dict(result.quality),
        replica_hours=sum(result.replica_hours.values()),
        note=note,
    )


def others(
    model: Model, trace: Sequence[TraceRequest], seconds: float, attainment: float = PROMISED
) -> list[Simulated]:
    """What Auto is compared with, each found with the trace known beforehand.

    Args:
        model: of the examples.
        trace: that is replayed.
        seconds: that are charged.
        attainment: share of each class within its objective that a way must keep to count as the same service.
    """
    options = SearchOptions(
        attainment=attainment,
        weight_step=0.05,
        combinations=6,
        max_replicas=20,
        down_stabilisation_seconds=15.0,
        sync_seconds=SYNC_SECONDS,
        metric_window_seconds=METRIC_SECONDS,
    )
    search = Search(model.fleet, trace, options, seconds)
    reference = model.terms.reference
    large = f"all-{reference}"
    return [
        _row(search.all_large(reference), f"{large}, replicas for its peak", "fewest fixed replicas that keep it"),
        *_autoscaled(lambda share: search.hpa_on(reference, share), f"{large}, HPA at"),
        _row(search.best_static(), "best static split", "best fixed weights, fewest fixed replicas that keep it"),
        *_autoscaled(search.hpa, "best fixed weights, HPA at"),
    ]


def _autoscaled(find: Callable[[float], StrategyResult], name: str) -> list[Simulated]:
    """HPA at 70%, and where that misses the objective, at the first lower target that keeps it."""
    rows: list[Simulated] = []
    for share in HPA_SHARES:
        result = find(share)
        if rows and not result.reached:
            continue
        rows.append(_row(result, f"{name} {share:.0%}", "" if result.reached else "misses the objective"))
        if result.reached:
            break
    return rows
