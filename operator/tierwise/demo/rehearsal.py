"""The real planner in simulated time: the same `planner.plan` as in the operator, on signals that the simulator gives.

The planner sees what Prometheus would show it (rates over a window, inter-token times, queues), never the simulator's
parameters. What the API server and the HPA do is done here: statuses are merged, bounds go to the simulated HPA.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tierwise import planner
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import ClassKey, ClassSignals, Missing, Reading, Signal, Signals, TierKey, TierSignals
from tierwise.core.world import Child, Endpoint, GatewayReport, Key, SecretData, Workload, World
from tierwise.sim.fleet import Decision, Observation, TierObservation

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
"""Second 0 of a rehearsal; any moment would do, a fixed one makes it repeatable."""

UID = "00000000-0000-0000-0000-000000000000"
IDLE = Missing("idle")


@dataclass(slots=True)
class PlannerController:
    """A `sim.fleet.Controller` that asks the planner.

    Attributes:
        namespace: of the objects.
        tiers, policy: the users' objects.
        interval_seconds: between two readings of signals.
        window_seconds: range of rates and means.
        scrape_seconds: age of the newest sample.
        lag_seconds: how far a class's signals lie back: the gateway counts a request when it goes to a tier.
    """

    namespace: str
    tiers: dict[Key, ModelTier]
    policy: RoutingPolicy
    interval_seconds: float = 2.0
    window_seconds: float = 8.0
    scrape_seconds: float = 1.0
    lag_seconds: float = 1.0
    moves: list[tuple[float, str]] = field(default_factory=list)
    _bodies: dict[Key, dict[str, Any]] = field(default_factory=dict)
    _memory: LoopMemory = field(default_factory=LoopMemory)
    _children: dict[tuple[str, Key], dict[str, Any]] = field(default_factory=dict)
    _desired: dict[str, int] = field(default_factory=dict)
    _weights: dict[str, dict[str, float]] = field(default_factory=dict)
    _seen: deque[tuple[float, float, Observation, dict[str, dict[str, float]]]] = field(default_factory=deque)
    _last: float = 0.0

    def decide(self, t_seconds: float, observation: Observation) -> Decision:
        """One reading of signals and one planning round."""
        if t_seconds > 0:
            self._seen.append((t_seconds, t_seconds - self._last, observation, self._weights))
        self._last = t_seconds
        while self._seen and self._seen[0][0] <= t_seconds - self.window_seconds - self.lag_seconds:
            self._seen.popleft()
        now = START + timedelta(seconds=t_seconds)
        world = self._world(now, observation)
        made = planner.plan(world)
        self._memory = made.memory
        for manifest in made.apply:
            key = Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            self._children[str(manifest["kind"]), key] = manifest
        for applied in made.statuses:
            self._take_status(applied.target.kind, Key(applied.target.namespace, applied.target.name), applied.status)
        for ref, count in made.scale:
            self._desired[ref.name] = count
        self.moves += [(t_seconds, event.note) for event in made.events if event.action == "Rebalance"]
        self._weights = self._in_force()
        return Decision(self._weights, self._bounds())

    def _take_status(self, kind: str, key: Key, status: Mapping[str, Any]) -> None:
        if kind == "ModelTier":
            body = self.tiers[key].manifest() | {"status": dict(status)}
            self.tiers[key] = ModelTier.parse(body)
        elif kind == "RoutingPolicy":
            body = self.policy.manifest() | {"status": dict(status)}
            self.policy = RoutingPolicy.parse(body)

    def _in_force(self) -> dict[str, dict[str, float]]:
        """Weights as the gateway would have them: the status', else the spec's."""
        shown = {entry.name: entry for entry in self.policy.status.classes}
        weights: dict[str, dict[str, float]] = {}
        for spec in self.policy.spec.classes:
            entry = shown.get(spec.name)
            found = {each.tier: float(each.percent) for each in entry.weights} if entry is not None else {}
            weights[spec.name] = found or {name: float(share) for name, share in spec.starting_weights().items()}
        return weights

    def _bounds(self) -> dict[str, tuple[int, int]]:
        bounds: dict[str, tuple[int, int]] = {}
        for key, tier in self.tiers.items():
            if tier.spec.in_cluster is None:
                continue
            if self._desired.get(key.name) == 0:
                bounds[key.name] = (0, 0)
                continue
            shown = self._children.get(("HorizontalPodAutoscaler", key))
            spec = shown["spec"] if shown is not None else {}
            least = int(spec.get("minReplicas", tier.spec.in_cluster.replicas.min))
            bounds[key.name] = (least, int(spec.get("maxReplicas", tier.spec.in_cluster.replicas.max)))
        return bounds

    def _world(self, now: datetime, observation: Observation) -> World:
        workloads: dict[Key, Workload] = {}
        endpoints: dict[Key, tuple[Endpoint, ...]] = {}
        for key, tier in self.tiers.items():
            if tier.spec.in_cluster is None:
                continue
            seen = observation.tiers[key.name]
            manifest = self._children.get(("Deployment", key))
            ready = seen.ready if self._last > 0 else tier.spec.in_cluster.replicas.min
            count = seen.desired if self._last > 0 else ready
            if manifest is not None:
                workloads[key] = Workload(UID, True, count, count, ready, count, True, manifest)
            endpoints[key] = tuple(Endpoint(f"10.0.0.{n + 1}", 8000, True, True, False) for n in range(ready))
        report = GatewayReport("rehearsal", "rehearsal", 1, 1, 0, "")
        return World(
            now=now,
            replica="rehearsal",
            tiers=self.tiers,
            policies={Key(self.namespace, self.policy.metadata.name): self.policy},
            budgets={},
            workloads=workloads,
            services=self._shelf("Service"),
            autoscalers=self._shelf("HorizontalPodAutoscaler"),
            disruption_budgets=self._shelf("PodDisruptionBudget"),
            endpoints=endpoints,
            secrets=self._secrets(),
            signals=self._signals(now) if self._seen else None,
            gateways={self.namespace: report},
            memory=self._memory,
        )

    def _shelf(self, kind: str) -> dict[Key, Child]:
        return {key: Child(UID, True, body) for (name, key), body in self._children.items() if name == kind}

    def _secrets(self) -> dict[Key, SecretData]:
        found: dict[Key, SecretData] = {}
        for key, tier in self.tiers.items():
            outside = tier.spec.external
            if outside is not None and outside.credentials_ref is not None:
                data = {outside.credentials_ref.key: b"rehearsal"}
                found[Key(key.namespace, outside.credentials_ref.name)] = SecretData(data)
        return found

    # Signals ----------------------------------------------------------------------------------------------------------

    def _signals(self, now: datetime) -> Signals:
        tiers: dict[TierKey, TierSignals] = {
            (self.namespace, key.name): self._tier_signals(key.name) for key in self.tiers
        }
        classes: dict[ClassKey, dict[str, ClassSignals]] = {}
        for spec in self.policy.spec.classes:
            classes[self.namespace, self.policy.metadata.name, spec.name] = self._class_signals(spec.name)
        return Signals(
            time=now,
            tiers=tiers,
            classes=classes,
            window_seconds=round(self.window_seconds),
            gateways_up=Reading(2.0, self.scrape_seconds),
        )

    def _reading(self, value: float | None) -> Signal:
        return IDLE if value is None else Reading(value, self.scrape_seconds)

    def _tier_signals(self, name: str) -> TierSignals:
        since = self._last - self.window_seconds
        spans = [(span, seen.tiers[name]) for at, span, seen, _ in self._seen if at > since]
        newest = spans[-1][1]
        gaps = [(seen.output_tokens_per_second * span, seen.inter_token_mean_seconds) for span, seen in spans]
        return replace(
            TierSignals(),
            request_rate=self._reading(_mean((span, seen.requests_per_second) for span, seen in spans)),
            error_rate=self._reading(0.0),
            running=self._reading(newest.running),
            waiting=self._reading(newest.waiting),
            ttft_p95_seconds=self._reading(_most(spans)),
            prompt_token_rate=self._reading(_mean((span, seen.prompt_tokens_per_second) for span, seen in spans)),
            generation_token_rate=self._reading(_mean((span, seen.output_tokens_per_second) for span, seen in spans)),
            ready_replicas=self._reading(float(newest.ready)),
            inter_token_mean_seconds=self._reading(_mean((w, gap) for w, gap in gaps if gap is not None)),
        )

    def _class_signals(self, name: str) -> dict[str, ClassSignals]:
        """Requests of a class on each tier: the weights in force tell how they are split."""
        until = self._last - self.lag_seconds
        past = [entry for entry in self._seen if until - self.window_seconds < entry[0] <= until]
        tiers = {tier for _, _, _, weights in past for tier, share in weights.get(name, {}).items() if share > 0}
        total = sum(span for _, span, _, _ in past)
        found: dict[str, ClassSignals] = {}
        for tier in sorted(tiers):
            requests = prompts = outputs = 0.0
            for _, span, seen, weights in past:
                shares = weights.get(name, {})
                share = shares.get(tier, 0.0) / (sum(shares.values()) or 1.0)
                observed = seen.classes[name]
                count = observed.requests_per_second * span * share
                requests += count
                prompts += count * (observed.mean_prompt_tokens or 0.0)
                outputs += count * (observed.mean_output_tokens or 0.0)
            found[tier] = ClassSignals(
                request_rate=self._reading(requests / total),
                prompt_tokens=self._reading(prompts / requests if requests else None),
                completion_tokens=self._reading(outputs / requests if requests else None),
            )
        return found


def _mean(pairs: Iterable[tuple[float, float]]) -> float | None:
    total = weight = 0.0
    for each, value in pairs:
        total += each * value
        weight += each
    return total / weight if weight > 0 else None


def _most(spans: Iterable[tuple[float, TierObservation]]) -> float | None:
    return max((seen.ttft_p95_seconds for _, seen in spans if seen.ttft_p95_seconds is not None), default=None)
