"""The offline comparison: the run's own trace, tiers and prices in the replica model. Everything here is simulated.

Auto is the real planner (`rehearsal`). The others know the whole trace and the replica model beforehand, which Auto does
not: the best fixed weights, and the fewest fixed replicas or an autoscaler at 70% of what a replica carries.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from tierwise.sim.replica import Mix, Objective, capacity
from tierwise.sim.strategy import SearchOptions, StrategyResult, assess
from tierwise.sim.traces import TraceRequest

AUTO = "Auto"
PROFILE_VARIABLE = "TIERWISE_SIM_PROFILE"
STARTUP_VARIABLE = "TIERWISE_SIM_STARTUP_SECONDS"
PROCESS_START_SECONDS = 2.0
"""From a Pod's creation until its process runs, and from its readiness until the gateway knows."""
SYNC_SECONDS = 5.0
"""The development cluster's `--horizontal-pod-autoscaler-sync-period`."""
METRIC_SECONDS = 5.0
"""Engines are scraped every second, and the autoscaler takes the newest sample."""
HPA_SHARE = 0.7


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
    return {entry.name: scores[entry.task] for entry in terms.classes if entry.task in scores}


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
    return ReplicaTier(
        name, profiles.profile(named).params, agreed.per_replica_hour, startup, _quality(tier, terms)
    )


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


def hpa_target(model: Model, trace: Sequence[TraceRequest], tier: str, share: float = HPA_SHARE) -> float:
    """Running requests per replica for an autoscaler at `share` of what a replica carries within every objective.

    Args:
        model: of the examples.
        trace: for the mean request.
        tier: name of an in-cluster tier that all requests go to.
        share: of the capacity.
    """
    chosen = model.fleet.tier(tier)
    if not isinstance(chosen, ReplicaTier):
        raise DemoError(f"{tier} has no replicas")
    count = len(trace)
    mix = Mix(
        prompt=sum(r.prompt_tokens for r in trace) / count,
        prompt_squared=sum(r.prompt_tokens**2 for r in trace) / count,
        output=sum(r.output_tokens for r in trace) / count,
        output_context=sum(r.output_tokens * (r.prompt_tokens + r.output_tokens / 2) for r in trace) / count,
    )
    prompts = sorted(r.prompt_tokens for r in trace)
    limits = [traffic.objective for traffic in model.fleet.classes]
    strictest = Objective(
        _least(limit.ttft_seconds for limit in limits),
        _least(limit.inter_token_seconds for limit in limits),
        _least(limit.latency_seconds for limit in limits),
    )
    held = capacity(chosen.params, mix, strictest, prompts[int(0.95 * (count - 1))])
    # Utilisation, not concurrency, is what shall be at 70%: sequences grow faster than load.
    rho = share * held.utilisation
    rate = share * held.requests_per_second
    return max(1.0, rate * mix.output * chosen.params.a_ms / 1e3 / (1 - rho))


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def rehearse(
    model: Model, trace: Sequence[TraceRequest], seconds: float
) -> tuple[Simulated, list[tuple[float, str]]]:
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


def others(model: Model, trace: Sequence[TraceRequest], seconds: float, attainment: float = PROMISED) -> list[Simulated]:
    """What Auto is compared with: each found with the trace known, at the least cost that keeps `attainment` per class."""
    options = SearchOptions(
        attainment=attainment,
        weight_step=0.05,
        combinations=12,
        max_replicas=20,
        down_stabilisation_seconds=15.0,
        sync_seconds=SYNC_SECONDS,
        metric_window_seconds=METRIC_SECONDS,
    )
    search = Search(model.fleet, trace, options, seconds)
    reference = model.terms.reference
    return [
        _row(search.hpa_on(reference, HPA_SHARE), f"all-{reference}, autoscaled at 70%", "fixed weights, HPA"),
        _row(search.all_large(reference), f"all-{reference}, replicas for the peak", "fewest fixed replicas"),
        _row(search.best_static(), "best static split", "best fixed weights and fewest fixed replicas"),
        _row(search.hpa(HPA_SHARE), "HPA at 70%, best fixed weights", "HPA on running requests"),
    ]
