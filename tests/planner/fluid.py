"""A tiny cluster for the planner's tests: it applies plans, starts replicas late, and serves a fluid load.

Its engines follow `ITL = a / (1 - rho)` with constants of its own; nothing of it is known to the planner but the
signals.
"""

import copy
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import routing, sensitivity
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.plan import Plan
from tierwise.core.signals import ClassSignals, CounterReading, Missing, Reading, Signals, TierSignals
from tierwise.core.world import Child, GatewayReport, Key, SecretData, Workload, World

START = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
NAMESPACE = "demo"


def metadata(name: str, namespace: str = NAMESPACE, generation: int = 1) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "generation": generation,
        "creationTimestamp": "2026-11-25T08:00:00Z",
    }


def in_cluster(
    name: str,
    *,
    price: str | None,
    low: int = 1,
    high: int = 10,
    startup: int = 10,
    rps: str | None = None,
    quality: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "engine": "VLLM",
        "image": "vllm/vllm-openai:v0.24.0",
        "replicas": {"min": low, "max": high, "startupSeconds": startup},
    }
    if price is not None:
        spec["price"] = {"perReplicaHour": price}
    if rps is not None:
        spec["capacity"] = {"requestsPerSecond": rps}
    body = {"model": name, "inCluster": spec}
    if quality:
        body["quality"] = [{"task": task, "score": score} for task, score in quality.items()]
    return {"metadata": metadata(name), "spec": body}


def external(
    name: str,
    *,
    prices: tuple[str, str] | None = ("3.00", "15.00"),
    quality: Mapping[str, str] | None = None,
    clearance: str = "Internal",
    limits: dict[str, int] | None = None,
) -> dict[str, Any]:
    spec: dict[str, Any] = {"url": "https://api.example/v1", "credentialsRef": {"name": f"{name}-key", "key": "token"}}
    if prices is not None:
        spec["price"] = {"inputPerMillionTokens": prices[0], "outputPerMillionTokens": prices[1]}
    if limits is not None:
        spec["limits"] = limits
    body = {"model": name, "clearance": clearance, "external": spec}
    if quality:
        body["quality"] = [{"task": task, "score": score} for task, score in quality.items()]
    return {"metadata": metadata(name), "spec": body}


def policy(name: str, classes: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    rebalance = {"interval": "5s", "cooldown": "20s", "maxStepPercent": 20, "minSavingPercent": 2}
    rebalance |= spec.pop("rebalance", {})
    body = {"models": [name], "sensitivity": "Internal", "classes": classes, "rebalance": rebalance, **spec}
    return {"metadata": metadata(name), "spec": body}


def budget(name: str, ceiling: str, ladder: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {"metadata": metadata(name), "spec": {"ceiling": ceiling, "ladder": ladder, **spec}}


@dataclass
class Engine:
    """The truth about one in-cluster tier: idle inter-token time and time to first token in seconds, work units/s."""

    idle_itl: float = 0.010
    idle_ttft: float = 0.15
    saturation: float = 2000.0
    startup: float = 8.0


@dataclass
class Demand:
    """A class's requests/s over time (seconds since start), and its tokens."""

    rate: Any
    prompt: float = 400.0
    completion: float = 150.0


@dataclass
class Replica:
    ready_at: datetime
    deployed: bool = True


@dataclass
class Cluster:
    """State of the world; `world()` shows it, `apply()` changes it, `run()` closes the loop."""

    tiers: dict[str, dict[str, Any]]
    policies: dict[str, dict[str, Any]]
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    demands: dict[tuple[str, str], Demand] = field(default_factory=dict)
    takes: dict[str, float] = field(default_factory=dict)  # provider -> requests/s that it answers, the rest gets 429
    noise: float = 0.0
    seed: int = 1
    now: datetime = START
    secrets: set[str] | None = None
    signals: Signals | None = None
    memory: LoopMemory = field(default_factory=LoopMemory)
    ledger: Ledger = field(default_factory=Ledger)
    children: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    replicas: dict[str, list[Replica]] = field(default_factory=dict)
    events: list[tuple[datetime, Any]] = field(default_factory=list)
    backlog: dict[str, float] = field(default_factory=dict)
    cost: float = 0.0
    served: float = 0.0
    attained: float = 0.0
    weights_log: list[tuple[datetime, dict[str, dict[str, int]]]] = field(default_factory=list)
    replicas_log: list[tuple[datetime, dict[str, int]]] = field(default_factory=list)
    gateways: dict[str, GatewayReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.gateways = {NAMESPACE: GatewayReport("h1", "h1", 2, 2, 0, "")}
        if self.secrets is None:
            self.secrets = {
                body["spec"]["external"]["credentialsRef"]["name"]
                for body in self.tiers.values()
                if "external" in body["spec"]
            }

    # -- what the planner sees ------------------------------------------------------------------------------------
    def world(self) -> World:
        tiers = {Key(NAMESPACE, n): ModelTier.parse(b) for n, b in self.tiers.items()}
        workloads, services, autoscalers, disruption = {}, {}, {}, {}
        for (kind, name), manifest in self.children.items():
            key = Key(NAMESPACE, name)
            if kind == "Deployment":
                pods = self.replicas.get(name, [])
                workloads[key] = Workload(
                    uid=f"deploy-{name}",
                    owned=True,
                    spec_replicas=len(pods),
                    replicas=len(pods),
                    ready_replicas=sum(pod.ready_at <= self.now for pod in pods),
                    updated_replicas=len(pods),
                    observed_current=True,
                    manifest=manifest,
                )
            else:
                shelf = {
                    "Service": services,
                    "HorizontalPodAutoscaler": autoscalers,
                    "PodDisruptionBudget": disruption,
                }[kind]
                shelf[key] = Child(uid=f"{kind}-{name}", owned=True, manifest=manifest)
        return World(
            now=self.now,
            replica="operator-0",
            tiers=tiers,
            policies={Key(NAMESPACE, n): RoutingPolicy.parse(b) for n, b in self.policies.items()},
            budgets={Key(NAMESPACE, n): NamespaceBudget.parse(b) for n, b in self.budgets.items()},
            workloads=workloads,
            services=services,
            autoscalers=autoscalers,
            disruption_budgets=disruption,
            secrets={Key(NAMESPACE, n): SecretData({"token": b"x"}) for n in self.secrets or ()},
            signals=self.signals,
            ledger=self.ledger,
            gateways=self.gateways,
            memory=self.memory,
            live_replicas=frozenset({"operator-0"}),
        )

    # -- what the API server does with a plan ---------------------------------------------------------------------
    def apply(self, plan: Plan) -> None:
        for manifest in plan.apply:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            self.children[kind, name] = copy.deepcopy(manifest)
            if kind == "Deployment" and name not in self.replicas:
                self.replicas[name] = [self._pod(name)]
        for ref, count in plan.scale:
            self._scale(ref.name, count)
        for ref in plan.delete:
            self.children.pop((ref.kind, ref.name), None)
        for one in plan.statuses:
            shelf = {"ModelTier": self.tiers, "RoutingPolicy": self.policies, "NamespaceBudget": self.budgets}
            body = shelf[one.target.kind][one.target.name]
            status = dict(body.get("status") or {})
            if one.manager_suffix:
                if one.status:
                    status["gateways"] = list(one.status["gateways"])
                else:
                    status.pop("gateways", None)
            else:
                kept = {k: v for k, v in status.items() if k == "gateways"}
                status = {**copy.deepcopy(dict(one.status)), **kept}
            body["status"] = status
        self.memory, self.ledger = plan.memory, plan.ledger
        self.events += [(self.now, event) for event in plan.events]

    def _pod(self, name: str) -> Replica:
        return Replica(self.now + timedelta(seconds=self.engines.get(name, Engine()).startup))

    def _scale(self, name: str, count: int) -> None:
        pods = self.replicas.setdefault(name, [])
        pods.sort(key=lambda pod: pod.ready_at)
        while len(pods) < count:
            pods.append(self._pod(name))
        del pods[count:]

    def autoscale(self) -> None:
        """The HPA: keeps replicas within its bounds, and adds one when running requests exceed 60 per replica."""
        for (kind, name), manifest in self.children.items():
            if kind != "HorizontalPodAutoscaler" or not self.replicas.get(name):
                continue
            low, high = manifest["spec"]["minReplicas"], manifest["spec"]["maxReplicas"]
            self._scale(name, min(max(len(self.replicas[name]), low), high) if self.hpa_holds else low)

    hpa_holds = False

    # -- load -----------------------------------------------------------------------------------------------------
    def weights(self) -> dict[tuple[str, str], dict[str, int]]:
        world = self.world()
        tiers = world.tiers_in(NAMESPACE)
        found = {}
        for key, item in world.policies.items():
            for spec in item.spec.classes:
                allowed = routing.cleared_tiers(spec, tiers, sensitivity.effective(item, spec))
                found[key.name, spec.name] = routing.weights_in_force(item, spec, allowed)
        return found

    def serve(self, seconds: float) -> None:
        """One slot: count cost and attainment, and make the signals of the window."""
        world, weights = self.world(), self.weights()
        elapsed = (self.now - START).total_seconds()
        rates = {key: max(0.0, demand.rate(elapsed)) for key, demand in self.demands.items()}
        load: dict[str, float] = {}
        for key, demand in self.demands.items():
            for tier, percent in weights[key].items():
                work = demand.completion + 0.3 * demand.prompt
                load[tier] = load.get(tier, 0.0) + rates[key] * percent / 100 * work
        meets: dict[str, tuple[float, float, float]] = {}
        tier_signals = {}
        for name, body in self.tiers.items():
            if "external" in body["spec"]:
                meets[name] = (0.5, 0.03, 1.0)
                tier_signals[(NAMESPACE, name)] = self._external_signals(name, weights, rates)
                continue
            engine = self.engines[name]
            ready = sum(pod.ready_at <= self.now for pod in self.replicas.get(name, []))
            price = body["spec"]["inCluster"].get("price", {}).get("perReplicaHour", "0")
            self.cost += len(self.replicas.get(name, [])) * float(price) * seconds / 3600
            if not ready:
                meets[name] = (99.0, 99.0, 0.0)
                continue
            carried = load.get(name, 0.0) + self.backlog.get(name, 0.0) / seconds
            rho = carried / (ready * engine.saturation)
            self.backlog[name] = max(0.0, (rho - 0.97) * ready * engine.saturation * seconds)
            rho = min(rho, 0.97)
            itl = engine.idle_itl / (1 - rho)
            waiting = self.backlog[name] / 300
            ttft = engine.idle_ttft / (1 - rho) + self.backlog[name] / (ready * engine.saturation)
            meets[name] = (ttft, itl, 1.0)
            tier_signals[(NAMESPACE, name)] = self._engine_signals(
                name, ready, rho * ready * engine.saturation, itl, ttft, waiting, weights, rates
            )
        self._attain(meets, weights, rates, seconds)
        self._observe(tier_signals, weights, rates, meets, seconds)
        del world

    def _noisy(self, value: float, factor: float = 1.0) -> float:
        return value * max(0.05, 1 + factor * self.noise * self.random.gauss(0, 1))

    def _engine_signals(self, name, ready, work, itl, ttft, waiting, weights, rates) -> TierSignals:
        mix = [
            (rates[key] * weights[key].get(name, 0) / 100, demand.prompt, demand.completion)
            for key, demand in self.demands.items()
        ]
        total = sum(rate * (completion + 0.3 * prompt) for rate, prompt, completion in mix)
        scale = work / total if total > 0 else 0.0
        generated = scale * sum(rate * completion for rate, _, completion in mix)
        prompts = scale * sum(rate * prompt for rate, prompt, _ in mix)
        idle = total <= 0
        itl, ttft = self._noisy(itl), self._noisy(ttft, 2)
        return TierSignals(
            request_rate=Reading(sum(rate for rate, _, _ in mix), 1.0),
            running=Reading(self._noisy(generated) * itl, 1.0),
            waiting=Reading(waiting, 1.0),
            ttft_p95_seconds=Missing("no requests") if idle else Reading(ttft, 1.0),
            inter_token_p95_seconds=Missing("no requests") if idle else Reading(itl * 1.15, 1.0),
            inter_token_mean_seconds=Missing("no requests") if idle else Reading(itl, 1.0),
            prompt_token_rate=Reading(self._noisy(prompts), 1.0),
            generation_token_rate=Reading(self._noisy(generated), 1.0),
            ready_replicas=Reading(ready, 1.0),
        )

    def _external_signals(self, name, weights, rates) -> TierSignals:
        rate = [(rates[key] * weights[key].get(name, 0) / 100, demand) for key, demand in self.demands.items()]
        sent = sum(r for r, _ in rate)
        answered = min(sent, self.takes.get(name, sent))
        return TierSignals(
            request_rate=Reading(sent, 1.0),
            answer_rate=Reading(answered, 1.0),
            refused_rate=Reading(sent - answered, 1.0),
            prompt_token_rate=Reading(sum(r * d.prompt for r, d in rate), 1.0),
            generation_token_rate=Reading(sum(r * d.completion for r, d in rate), 1.0),
        )

    def _attain(self, meets, weights, rates, seconds) -> None:
        parsed = {name: RoutingPolicy.parse(body) for name, body in self.policies.items()}
        for key, rate in rates.items():
            wanted = parsed[key[0]].spec.routing_class(key[1]).objective
            for tier, percent in weights[key].items():
                requests = rate * percent / 100 * seconds
                ttft, itl, up = meets[tier]
                good = up > 0
                if wanted is not None:
                    good = good and (wanted.ttft_p95 is None or ttft <= wanted.ttft_p95.seconds)
                    good = good and (wanted.inter_token_p95 is None or itl <= wanted.inter_token_p95.seconds)
                self.served += requests
                self.attained += requests * good
                body = self.tiers[tier]["spec"]
                if "external" in body and "price" in body["external"]:
                    price, demand = body["external"]["price"], self.demands[key]
                    each = demand.prompt * float(price["inputPerMillionTokens"])
                    each += demand.completion * float(price["outputPerMillionTokens"])
                    self.cost += requests * each / 1e6

    def _observe(self, tiers, weights, rates, meets, seconds) -> None:
        classes, usage = {}, {}
        for key, demand in self.demands.items():
            by_tier = {}
            for tier, percent in weights[key].items():
                rate = rates[key] * percent / 100
                by_tier[tier] = ClassSignals(
                    request_rate=Reading(self._noisy(rate), 1.0),
                    prompt_tokens=Reading(demand.prompt, 1.0) if rate > 0 else Missing("no requests"),
                    completion_tokens=Reading(demand.completion, 1.0) if rate > 0 else Missing("no requests"),
                    ttfb_p95_seconds=Reading(meets[tier][0], 1.0) if rate > 0 else Missing("no requests"),
                )
                before = usage.get((NAMESPACE, tier))
                add = rate * seconds
                usage[(NAMESPACE, tier)] = CounterReading(
                    (before.requests if before else 0) + add,
                    (before.requests_with_usage if before else 0) + add,
                    (before.input_tokens if before else 0) + add * demand.prompt,
                    0.0,
                    (before.output_tokens if before else 0) + add * demand.completion,
                    self.now - timedelta(seconds=seconds),
                    self.now,
                )
            classes[(NAMESPACE, *key)] = by_tier
        self.signals = Signals(
            time=self.now,
            tiers=tiers,
            classes=classes,
            usage=usage,
            window_seconds=15.0,
            gateways_up=Reading(2.0, 1.0),
        )

    # -- the loop -------------------------------------------------------------------------------------------------
    def run(self, planner, seconds: float, step: float = 5.0) -> None:
        for _ in range(round(seconds / step)):
            self.serve(step)
            self.apply(planner(self.world()))
            self.autoscale()
            self.weights_log.append((self.now, {"/".join(k): v for k, v in self.weights().items()}))
            self.replicas_log.append((self.now, {n: len(pods) for n, pods in self.replicas.items()}))
            self.now += timedelta(seconds=step)

    @property
    def attainment(self) -> float:
        return self.attained / self.served if self.served else 1.0

    def reset_counters(self) -> None:
        self.cost = self.served = self.attained = 0.0

    def reversals(self, name: str, tier: str) -> int:
        """How often the weight of a tier changed its direction."""
        path = [weights[name].get(tier, 0) for _, weights in self.weights_log]
        signs = [1 if b > a else -1 for a, b in itertools.pairwise(path) if a != b]
        return sum(a != b for a, b in itertools.pairwise(signs))

    def shallow(self, **changes: Any) -> "Cluster":
        return replace(self, **changes)
