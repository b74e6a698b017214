"""What one namespace looks like to the loop: its tiers and classes with demand, capacity, prices and what may be moved.

Step 2 of a planning round. Nothing here decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from tierwise.api.in_cluster import AutoscalingProvider, InCluster, ScalingSignal
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RebalanceMode, RoutingPolicy
from tierwise.core import ceiling, credit, demand, engines, learning, promise, quality, routing, sensitivity
from tierwise.core.capacity import Capacity, Objective
from tierwise.core.damping import Rules
from tierwise.core.hold import NOTHING, Hold
from tierwise.core.memory import ClassMemory, LoopMemory, TierMemory
from tierwise.core.signals import ClassKey, Missing, Reading, TierSignals, value_of
from tierwise.core.world import Key, World


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator's administrator sets about the loop.

    Attributes:
        max_age_seconds: a sample older than this is stale (a few scrape intervals).
        max_gap_seconds: rounds further apart than this leave a gap in the ledger, which is bounded from above.
        headroom: share of the safe capacity to plan for.
        grace_seconds: how long gateways may take to acknowledge a change before the policy is not Ready.
        prometheus_url: where KEDA reads engines' metrics; empty: the renderer's default.
    """

    max_age_seconds: float = 45.0
    max_gap_seconds: float = 90.0
    headroom: float = 1.0
    grace_seconds: float = 15.0
    prometheus_url: str = ""


@dataclass(frozen=True, slots=True)
class TierView:
    """One tier as it stands.

    Attributes:
        name, tier: the object.
        signals: newest measurements; None when there are none.
        capacity: of one replica; None for an external tier.
        planned: replicas that the last plan asked for (the autoscaler's minimum, or 0 when scaled to zero).
        existing, ready: Pods. usable: can take requests now, or could once started (an external one: has its
            credential).
        last_scale: the last change of `planned`.
        running_target: running requests per replica at which the autoscaler was told to add one; None for the preset.
    """

    name: str
    tier: ModelTier
    signals: TierSignals | None
    capacity: Capacity | None
    planned: int
    existing: int
    ready: int
    usable: bool
    memory: TierMemory = field(default_factory=TierMemory)
    running_target: int | None = None

    @property
    def external(self) -> bool:
        """Paid by the token."""
        return self.tier.spec.external is not None

    @property
    def price_per_hour(self) -> Decimal | None:
        """Of one replica; None when unknown or external."""
        inside = self.tier.spec.in_cluster
        return inside.price.per_replica_hour if inside is not None and inside.price is not None else None

    @property
    def startup_seconds(self) -> float:
        """From the creation of a replica until it serves."""
        return learning.startup_seconds(self.tier)

    def cost_per_request(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Price of one request's tokens: 0 in-cluster, None when unknown."""
        outside = self.tier.spec.external
        if outside is None:
            return 0.0
        if outside.price is None:
            return None
        price = outside.price
        prompt = prompt_tokens * float(price.input_per_million_tokens)
        return (prompt + completion_tokens * float(price.output_per_million_tokens)) / 1e6


@dataclass(frozen=True, slots=True)
class ClassView:
    """One class as it stands.

    Attributes:
        key: namespace, policy, class. policy, spec: the objects.
        rules: the policy's limits on change.
        allowed: cleared tiers that exist, in the user's order. uncleared, unknown: listed tiers that are not, or do
            not exist.
        unpriced: listed tiers that a budget withholds, because what they cost is not known.
        weights: in force, percent, zero left out.
        window_seconds: how long demand must have been low before it counts as low.
        demand: the forecast; None when nothing was ever measured.
        missing: why there is no fresh measurement; None when there is one. Nothing moves meanwhile.
        stale: it has been missing for longer than a sample may be old: now people are told.
        scores: tier -> quality. floor: in the same scale, what the mix must keep now.
        promised: the floor as the policy states it: what `floor` is unless it holds on average.
        credit: that was counted from `promised`, where that holds on average.
        objective: what is promised.
        memory: of the class.
        relieved: in-cluster tier -> the tier that takes its requests while it is saturated.
        held: what budgets have decided about it, as gateways carry it out now.
    """

    key: ClassKey
    policy: RoutingPolicy
    spec: RoutingClass
    rules: Rules
    allowed: tuple[str, ...]
    uncleared: tuple[str, ...]
    unknown: tuple[str, ...]
    unpriced: tuple[str, ...]
    weights: Mapping[str, int]
    window_seconds: float
    demand: demand.Forecast | None
    missing: Missing | None
    stale: bool
    scores: Mapping[str, quality.Score]
    floor: quality.Floor | None
    promised: quality.Floor | None
    credit: credit.Credit | None
    objective: Objective
    memory: ClassMemory
    relieved: Mapping[str, str] = field(default_factory=dict)
    held: ceiling.Ceiling = ceiling.NONE

    @property
    def movable(self) -> bool:
        """Whether the loop may move its weights now."""
        return self.mode is RebalanceMode.AUTO and not self.policy.spec.suspend and self.missing is None

    @property
    def mode(self) -> RebalanceMode:
        """The policy's."""
        return self.policy.spec.rebalance.mode


@dataclass(frozen=True, slots=True)
class Situation:
    """One namespace as it stands, and what its budgets ask of the plan."""

    namespace: str
    now: datetime
    tiers: Mapping[str, TierView]
    classes: tuple[ClassView, ...]
    settings: Settings
    hold: Hold = NOTHING

    def users(self, tier: str) -> tuple[ClassView, ...]:
        """The classes that may use a tier."""
        return tuple(view for view in self.classes if tier in view.allowed)

    def reaching(self, tier: str) -> tuple[ClassView, ...]:
        """The classes of which a request can get to a tier: by weight, or since others are saturated or fail.

        Where a budget downgrades, with relief and without: that may change while nobody counts.
        """
        return tuple(view for view in self.users(tier) if tier in view.weights or tier in self._reached(view))

    def _reached(self, view: ClassView) -> frozenset[str]:
        tiers = {name: self.tiers[name].tier for name in view.allowed}
        least = sensitivity.effective(view.policy, view.spec)
        found = (
            routing.reached(view.policy, view.spec, tiers, least, view.held.tiers, relieved=relieved)
            for relieved in ({True, False} if view.held.tiers is not None else {view.held.relief})
        )
        return frozenset().union(*found)


def rules_of(policy: RoutingPolicy) -> Rules:
    """A policy's limits on change."""
    rebalance = policy.spec.rebalance
    return Rules(
        interval_seconds=rebalance.interval.seconds,
        max_step=rebalance.max_step_percent,
        min_saving=rebalance.min_saving_percent / 100,
        cooldown_seconds=rebalance.cooldown.seconds,
    )


def planned_replicas(world: World, key: Key) -> int:
    """What the last plan asked for: 0 when scaled to zero, else the autoscaler's minimum, else the tier's."""
    tier, shown = world.tiers[key].spec.in_cluster, world.tiers[key].status.replicas
    if tier is None:
        return 0
    workload = world.workloads.get(key)
    if workload is not None and workload.spec_replicas == 0:
        return 0
    found = autoscaler_bounds(world, key)
    if found is not None:
        return found[0]
    if tier.autoscaling.provider is AutoscalingProvider.KEDA and workload is not None and shown is not None:
        # KEDA's object is not watched: the status remembers what it was told.
        return shown.desired if shown.desired is not None else tier.replicas.min
    return tier.replicas.min


def autoscaler_bounds(world: World, key: Key) -> tuple[int, int] | None:
    """The bounds that the autoscaler shows; None when there is none."""
    child = world.autoscalers.get(key)
    spec = child.manifest.get("spec") if child is not None else None
    if not isinstance(spec, Mapping):
        return None
    low, high = spec.get("minReplicas", 1), spec.get("maxReplicas")
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def credential_found(world: World, key: Key) -> bool:
    """Whether an external tier's credential is there (or none is asked for)."""
    outside = world.tiers[key].spec.external
    if outside is None or outside.credentials_ref is None:
        return True
    secret = world.secrets.get(Key(key.namespace, outside.credentials_ref.name))
    return secret is not None and bool(secret.data.get(outside.credentials_ref.key))


def view(world: World, memory: LoopMemory, namespace: str, settings: Settings) -> Situation:
    """Step 2: the namespace as it stands."""
    tiers = {name: _tier_view(world, memory, Key(namespace, name)) for name in world.tiers_in(namespace)}
    classes = tuple(
        _class_view(world, memory, Key(namespace, name), policy, spec, tiers, settings)
        for name, policy in world.policies_in(namespace).items()
        for spec in policy.spec.classes
    )
    return Situation(namespace, world.now, tiers, classes, settings)


def _tier_view(world: World, memory: LoopMemory, key: Key) -> TierView:
    tier = world.tiers[key]
    entry = memory.tiers.get((key.namespace, key.name), TierMemory())
    workload = world.workloads.get(key)
    inside = tier.spec.in_cluster is not None
    known = entry.capacity or learning.prior(tier, learning.units(world, key, memory.classes)) if inside else None
    return TierView(
        name=key.name,
        tier=tier,
        signals=world.signals.tiers.get((key.namespace, key.name)) if world.signals is not None else None,
        capacity=known,
        planned=planned_replicas(world, key),
        existing=workload.replicas if workload is not None and workload.owned else 0,
        ready=workload.ready_replicas if workload is not None and workload.owned else 0,
        usable=(workload is None or workload.owned) if inside else credential_found(world, key),
        memory=entry,
        running_target=entry.running_target or _running_target(world, key),
    )


def _running_target(world: World, key: Key) -> int | None:
    """What the autoscaler shows, where the loop wrote it: it outlives a restart there."""
    tier, child = world.tiers[key], world.autoscalers.get(key)
    inside = tier.spec.in_cluster
    if inside is None or child is None or not learns_target(inside):
        return None
    if tier.status.observed_generation != tier.metadata.generation:
        return None  # written for another spec, which may have named a target
    spec = child.manifest.get("spec")
    metrics = spec.get("metrics") if isinstance(spec, Mapping) else None
    try:
        pods = metrics[0]["pods"] if metrics else None
        # Of another signal, which the spec named before, nothing can be learnt.
        if pods is None or pods["metric"]["name"] != engines.pod_metric(engines.signal_metric(inside)):
            return None
        shown = int(pods["target"]["averageValue"])
    except (KeyError, TypeError, ValueError):
        return None
    return shown if shown != int(engines.scaling_target(inside)) else None


def learns_target(inside: InCluster) -> bool:
    """Whether the loop sets an autoscaler's target: it is for running requests, and the user names none."""
    return inside.autoscaling.target is None and inside.autoscaling.signal is ScalingSignal.RUNNING_REQUESTS


def _class_view(
    world: World,
    memory: LoopMemory,
    key: Key,
    policy: RoutingPolicy,
    spec: RoutingClass,
    tiers: Mapping[str, TierView],
    settings: Settings,
) -> ClassView:
    class_key = (key.namespace, key.name, spec.name)
    objects = {name: entry.tier for name, entry in tiers.items()}
    budgets = {each.name: budget for each, budget in world.budgets.items() if each.namespace == key.namespace}
    withheld = ceiling.withheld(budgets, objects)
    cleared = routing.cleared_tiers(spec, objects, sensitivity.effective(policy, spec))
    allowed = tuple(name for name in cleared if name not in withheld)
    rules = rules_of(policy)
    entry = memory.classes.get(class_key, ClassMemory())
    startup = max((tiers[name].startup_seconds for name in allowed), default=0.0)
    missing = _missing(world, class_key, settings)
    window = learning.window_seconds(policy, startup)
    since = entry.history.samples[-1][0] if entry.history.samples else memory.started
    scores = promise.scores_of(spec.task, objects)
    promised = promise.floor_of(policy, spec, scores)
    decided = ceiling.of_class(budgets, key.name, spec.name)
    earned = _credit(promised, spec, entry)
    return ClassView(
        key=class_key,
        policy=policy,
        spec=spec,
        rules=rules,
        allowed=allowed,
        uncleared=tuple(ref.name for ref in spec.tiers if ref.name in objects and ref.name not in cleared),
        unknown=tuple(ref.name for ref in spec.tiers if ref.name not in objects),
        unpriced=tuple(name for name in cleared if name in withheld),
        weights=routing.weights_in_force(policy, spec, allowed),
        window_seconds=window,
        demand=demand.forecast(
            entry.history,
            window_seconds=window,
            lead_seconds=startup + rules.interval_seconds,
        ),
        missing=missing,
        stale=missing is not None
        and since is not None
        and (world.now - since).total_seconds() > settings.max_age_seconds,
        scores=scores,
        floor=_now(promised, earned, entry, rules),
        promised=promised,
        credit=earned,
        objective=learning.objective_of(spec),
        memory=entry,
        relieved=routing.relieved_by(policy, spec, objects, allowed, decided.tiers) if decided.relief else {},
        held=decided,
    )


def _credit(promised: quality.Floor | None, spec: RoutingClass, entry: ClassMemory) -> credit.Credit | None:
    """What is remembered may be of another promise: the policy has changed since."""
    held = entry.credit
    if held is None or promised is None or promised.value is None or not promise.on_average(spec):
        return None
    return held if credit.belongs(held, promised.value) else None


def _now(
    promised: quality.Floor | None, held: credit.Credit | None, entry: ClassMemory, rules: Rules
) -> quality.Floor | None:
    """What the mix must keep now: a floor that holds on average leaves what was earned to be spent."""
    if promised is None or promised.value is None or held is None or not entry.history.samples:
        return promised
    value = credit.least(held, entry.history.samples[-1].level, rules.interval_seconds)
    return replace(promised, value=min(promised.value, value))


def _missing(world: World, key: ClassKey, settings: Settings) -> Missing | None:
    signals = world.signals
    if signals is None:
        return Missing("Prometheus has not been asked yet")
    age = (world.now - signals.time).total_seconds()
    if age > settings.max_age_seconds:
        return Missing(f"the last answer of Prometheus is {age:.0f} s old")
    seen = demand.measure(key, signals, max_age_seconds=settings.max_age_seconds)
    return seen if isinstance(seen, Missing) else None


def fresh(signal: Reading | Missing, settings: Settings) -> float | None:
    """A signal's value when it is fresh."""
    return value_of(signal, max_age_seconds=settings.max_age_seconds)
