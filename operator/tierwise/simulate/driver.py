"""The real planner under the fluid engine: one planning round per slot, on signals alone.

A round takes the planner's own steps (learn, view, decide, remember) on a `World` that shows what the API server would:
weights in force in the policy's status, the autoscaler's bounds, Deployments with what is ready. Children and statuses
that feed nothing back are not rendered; `tests/simulate` holds the rounds to those of `planner.plan`.

Between the plan's bounds replicas follow the autoscaler, as `sim.hpa` computes it on the running requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from tierwise.api.in_cluster import InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.api.model_tier_status import TierReplicas
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.routing_policy_status import ClassStatus, RoutingPolicyStatus, TierWeight
from tierwise.core import decide, engines, learning, policy_status, routing, situation, tier_status
from tierwise.core.decision import Decision
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import ClassKey, Signals
from tierwise.core.situation import Settings, Situation
from tierwise.core.world import Child, Key, Workload, World
from tierwise.sim.hpa import Hpa, HpaSpec
from tierwise.simulate.fluid import UNGUARDED, Guard, Replicas, TierSlot

START = datetime(2026, 1, 5, 0, 0, tzinfo=UTC)
"""Second 0, a Monday; a fixed moment makes a run repeatable."""

UID = "00000000-0000-0000-0000-000000000000"
HPA_DOWN_SECONDS = 120.0
"""`scaleDown.stabilizationWindowSeconds` that `render.autoscaler` writes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a controller wants in the next slot.

    Attributes:
        weights: class -> tier -> share. replicas: tier -> how many.
        guard: what happens to requests that a tier can not carry at the moment.
        denied: classes that get no answer.
        limits: (classes, requests/s that they may have together), each from one budget.
    """

    weights: Mapping[str, Mapping[str, float]]
    replicas: Mapping[str, int]
    guard: Guard = UNGUARDED
    denied: frozenset[str] = frozenset()
    limits: tuple[tuple[frozenset[str], float], ...] = ()


@dataclass(slots=True)
class PlannerLoop:
    """The planner with its memory, and the autoscalers below it.

    Attributes:
        namespace: of the objects. tiers, policy: the users' objects.
        settings: the operator's.
        autoscale: whether an autoscaler moves replicas above the plan's minimum.
        decision: the last one.
        others: further policies of the namespace, by name.
        names: (namespace, policy, class) -> class of the engine; absent: the class's own name.
    """

    namespace: str
    tiers: dict[Key, ModelTier]
    policy: RoutingPolicy
    settings: Settings = field(default_factory=Settings)
    autoscale: bool = True
    memory: LoopMemory = field(default_factory=LoopMemory)
    decision: Decision | None = None
    others: dict[str, RoutingPolicy] = field(default_factory=dict)
    names: Mapping[ClassKey, str] = field(default_factory=dict)
    _bounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    _desired: dict[str, int] = field(default_factory=dict)
    _hpas: dict[str, Hpa] = field(default_factory=dict)
    _guarded: frozenset[str] = frozenset()
    _relief: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {key.name: tier for key, tier in self.tiers.items()}
        self._guarded = routing.guarded_tiers((self.policy, *self.others.values()), named)
        for key, tier in self.tiers.items():
            inside = tier.spec.in_cluster
            if inside is None:
                continue
            low, high = inside.replicas.min, inside.replicas.max
            self._bounds[key.name] = (max(1, low), high)
            self._desired[key.name] = low
            spec = HpaSpec(
                float(engines.scaling_target(inside)),
                max(1, low),
                high,
                down_stabilisation_seconds=_down_seconds(inside),
            )
            self._hpas[key.name] = Hpa(spec)

    def wanted(self) -> Wanted:
        """What is in force now."""
        weights: dict[str, dict[str, float]] = {}
        for policy in (self.policy, *self.others.values()):
            shown = {entry.name: entry.weights for entry in policy.status.classes}
            for spec in policy.spec.classes:
                name = self._name((self.namespace, policy.metadata.name, spec.name))
                weights[name] = {each.tier: float(each.percent) for each in shown.get(spec.name, ())} or {
                    tier: float(share) for tier, share in spec.starting_weights().items()
                }
        return Wanted(weights, dict(self._desired), Guard(self._concurrency(), self._relief))

    def begin(self) -> None:
        """What is counted begins here: quality that was earned before it is not spent in it."""
        classes = {
            key: entry if entry.credit is None else replace(entry, credit=replace(entry.credit, points=0.0))
            for key, entry in self.memory.classes.items()
        }
        self.memory = replace(self.memory, classes=classes)

    def _name(self, key: ClassKey) -> str:
        return self.names.get(key, key[2])

    def decide(
        self, seconds: float, signals: Signals | None, state: Mapping[str, Replicas], seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """One round at `seconds` since the start.

        Args:
            seconds: since the start.
            signals: the newest answer of Prometheus, which may be old; None before the first.
            state: replicas as they are.
            seen: of the last slot, for the autoscaler.
        """
        world = self.world(seconds, signals, state)
        memory = learning.learn(world, self.settings.max_age_seconds)
        view = self._held(world, situation.view(world, memory, self.namespace, self.settings), memory)
        self.decision = decide.decide(view)
        memory = decide.remember(memory, self.namespace, self.decision, world.now)
        self.memory = self._enforced(view, self.decision, memory)
        self._take(self.decision)
        self._show(view, self.decision)
        held = view.hold.waiting
        self._relief = {self._name(each.key): each.relieved for each in view.classes if each.key not in held}
        self._autoscale(seconds, state, seen)
        return self.wanted()

    def world(self, seconds: float, signals: Signals | None, state: Mapping[str, Replicas]) -> World:
        """What the planner may know."""
        workloads: dict[Key, Workload] = {}
        autoscalers: dict[Key, Child] = {}
        for key, tier in self.tiers.items():
            if tier.spec.in_cluster is None:
                continue
            held, asked = state[key.name], self._desired[key.name]
            workloads[key] = Workload(UID, True, asked, held.existing, held.ready, held.existing, True, {})
            low, high = self._bounds[key.name]
            autoscalers[key] = Child(UID, True, {"spec": {"minReplicas": low, "maxReplicas": high}})
        return World(
            now=START + timedelta(seconds=seconds),
            replica="simulated",
            tiers=self.tiers,
            policies={Key(self.namespace, each.metadata.name): each for each in (self.policy, *self.others.values())},
            budgets={},
            workloads=workloads,
            autoscalers=autoscalers,
            signals=signals,
            memory=self.memory,
        )

    def _held(self, _world: World, view: Situation, _memory: LoopMemory) -> Situation:
        """The namespace with what its budgets ask of the plan."""
        return view

    def _enforced(self, _view: Situation, _decision: Decision, memory: LoopMemory) -> LoopMemory:
        """What budgets remember after a decision."""
        return memory

    def _take(self, decision: Decision) -> None:
        """What the operator would write: weights into the status, bounds into the autoscaler, 0 and 1 into `scale`."""
        named = {key.name: tier for key, tier in self.tiers.items()}
        self.policy = _with_weights(self.policy, decision, named)
        self.others = {name: _with_weights(policy, decision, named) for name, policy in self.others.items()}
        for name, outcome in decision.tiers.items():
            if outcome.scale is not None:
                self._desired[name] = outcome.scale
            if outcome.bounds.running_target is not None:
                hpa = self._hpas[name]
                hpa.spec = replace(hpa.spec, target=float(outcome.bounds.running_target))
            if outcome.bounds.max > 0:
                self._bounds[name] = (max(1, outcome.bounds.min), max(1, outcome.bounds.min, outcome.bounds.max))

    def _show(self, view: Situation, decision: Decision) -> None:
        """What the operator would write into the tiers' statuses, as far as gateways go by it."""
        for name in self._guarded:
            key = Key(self.namespace, name)
            status = self.tiers[key].status
            # When figures are shown anew depends on the number of replicas that was shown.
            now = {
                "capacity": tier_status.shown_capacity(view, decision, name),
                "replicas": TierReplicas(current=view.tiers[name].existing),
            }
            if now != {"capacity": status.capacity, "replicas": status.replicas}:
                status = status.model_copy(update=now)
                self.tiers[key] = self.tiers[key].model_copy(update={"status": status})

    def _concurrency(self) -> dict[str, int]:
        shown = {name: self.tiers[Key(self.namespace, name)].status.capacity for name in self._guarded}
        return {
            name: each.concurrent_requests
            for name, each in shown.items()
            if each is not None and each.concurrent_requests is not None
        }

    def _autoscale(self, seconds: float, state: Mapping[str, Replicas], seen: Mapping[str, TierSlot]) -> None:
        for name, (low, high) in self._bounds.items():
            if self._desired[name] == 0:
                continue  # an autoscaler leaves a Deployment with 0 replicas alone
            if not self.autoscale:
                self._desired[name] = low
                continue
            hpa, held = self._hpas[name], state[name]
            hpa.bound(low, high)
            slot = seen.get(name)
            average = slot.running / slot.ready if slot is not None and slot.ready > 0 else None
            self._desired[name] = hpa.desired(
                seconds, self._desired[name], min(held.ready, self._desired[name]), average
            )


def _with_weights(policy: RoutingPolicy, decision: Decision, tiers: Mapping[str, ModelTier]) -> RoutingPolicy:
    """A policy whose status shows what was decided, where that is new."""
    mine = {key[2]: outcome for key, outcome in decision.classes.items() if key[1] == policy.metadata.name}
    below = {name: policy_status.relieved_below_floor(outcome.view, tiers) for name, outcome in mine.items()}
    shown = {each.name: each.relieved_below_floor for each in policy.status.classes}
    if policy.status.classes and below == shown and not any(outcome.moved for outcome in mine.values()):
        return policy
    classes = tuple(
        ClassStatus(
            name=name,
            weights=tuple(TierWeight(tier=tier, percent=share) for tier, share in outcome.weights.items()),
            relieved_below_floor=below[name],
        )
        for name, outcome in mine.items()
    )
    status = RoutingPolicyStatus(classes=classes, observed_generation=policy.metadata.generation)
    return policy.model_copy(update={"status": status})


def _down_seconds(inside: InCluster) -> float:
    """How long the tier's autoscaler waits before it shrinks: the user's word, else what the operator writes."""
    behavior = inside.autoscaling.behavior
    rules = behavior.scale_down if behavior is not None else None
    stated = rules.stabilization_window_seconds if rules is not None else None
    return HPA_DOWN_SECONDS if stated is None else float(stated)
