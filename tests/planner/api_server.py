"""An API server small enough for a property test: it merges what is applied, adds defaults, and runs the Pods.

Worlds are made by the real store from plain manifests, so that everything a plan wrote comes back the way it would from
a cluster: as text.
"""

import copy
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tierwise.adapters import kinds
from tierwise.adapters.kinds import Kind
from tierwise.core import routing, sensitivity
from tierwise.core.plan import Plan, StatusApply
from tierwise.core.signals import ClassSignals, CounterReading, Missing, Reading, Signals, TierSignals
from tierwise.core.world import GatewayReport, Key, SecretData, World
from tierwise.runtime.store import Store

START = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)
NAMESPACE = "legal"
GROUP = "tierwise.dev/v1alpha1"
REPLICA = "operator-0"
OURS = {"ModelTier": kinds.MODEL_TIER, "RoutingPolicy": kinds.ROUTING_POLICY, "NamespaceBudget": kinds.NAMESPACE_BUDGET}


def in_cluster(name: str, *, price: str | None = "2.00", low: int = 1, high: int = 8, **spec: Any) -> dict[str, Any]:
    startup = spec.pop("startup", 30)
    inside = {
        "image": "vllm/vllm-openai:v0.24.0",
        "replicas": {"min": low, "max": high, "startupSeconds": startup},
        "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "24Gi"}},
    }
    if price is not None:
        inside["price"] = {"perReplicaHour": price}
    rps = spec.pop("rps", None)
    if rps is not None:
        inside["capacity"] = {"requestsPerSecond": rps}
    return _object("ModelTier", name, {"model": name, "inCluster": inside, **spec})


def external(name: str, *, prices: tuple[str, str] | None = ("0.60", "2.40"), **spec: Any) -> dict[str, Any]:
    outside: dict[str, Any] = {"url": "https://api.example/v1", "credentialsRef": {"name": "key"}}
    if prices is not None:
        outside["price"] = {"inputPerMillionTokens": prices[0], "outputPerMillionTokens": prices[1]}
    if "limits" in spec:
        outside["limits"] = spec.pop("limits")
    return _object("ModelTier", name, {"model": name, "clearance": "Internal", "external": outside, **spec})


def route(name: str, tiers: list[str | dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """One class; give it a match to put it before others."""
    return {"name": name, "tiers": [{"name": t} if isinstance(t, str) else t for t in tiers], **spec}


def policy(name: str, classes: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    for entry in classes[:-1]:
        entry.setdefault("match", {"headers": [{"name": "x-class", "value": entry["name"]}]})
    return _object("RoutingPolicy", name, {"models": [name], "sensitivity": "Internal", "classes": classes, **spec})


def budget(name: str, ceiling: str = "100", **spec: Any) -> dict[str, Any]:
    ladder = spec.pop("ladder", [{"atPercent": 80, "action": "Notify"}])
    return _object("NamespaceBudget", name, {"ceiling": ceiling, "ladder": ladder, **spec})


def _object(kind: str, name: str, spec: dict[str, Any], namespace: str = NAMESPACE) -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{kind}-{name}",
            "generation": 1,
            "creationTimestamp": "2026-11-25T08:00:00Z",
        },
        "spec": spec,
    }


@dataclass
class Truth:
    """What an engine really does: idle seconds per token, idle time to first token, work units/s at saturation."""

    idle_itl: float = 0.012
    idle_ttft: float = 0.2
    saturation: float = 2500.0


@dataclass
class Demand:
    """Of a class: requests/s, tokens per request."""

    rate: float
    prompt: float = 600.0
    completion: float = 200.0


@dataclass
class Server:
    """Holds objects and Pods; `world()` shows them, `carry_out()` changes them, `measure()` makes new signals."""

    manifests: list[dict[str, Any]]
    demands: dict[tuple[str, str], Demand] = field(default_factory=dict)
    truths: dict[str, Truth] = field(default_factory=dict)
    noise: float = 0.0
    seed: int = 0
    now: datetime = START
    secret: bool = True
    startup_seconds: float = 30.0
    ahead_seconds: float = 0.0  # Prometheus' clock is
    passed: dict[str, float] = field(default_factory=dict)  # requests/s, of tiers of which that is known

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.version = 0
        self.store = Store(REPLICA)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.managers: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self.pods: dict[str, list[datetime]] = {}
        self.events: list[Any] = []
        self.writes = 0
        for manifest in self.manifests:
            self.put(manifest)
        if self.secret:
            self.store.put_secret(Key(NAMESPACE, "key"), SecretData({"token": b"k"}, "1"))
        self.store.put_gateways({NAMESPACE: GatewayReport("h1", "h1", 2, 2, 0, "")})
        self.store.put_live_replicas(frozenset({REPLICA}))

    # -- objects ----------------------------------------------------------------------------------------------------
    def put(self, manifest: dict[str, Any]) -> None:
        """What a user applies, or a controller writes."""
        manifest = json.loads(json.dumps(manifest))
        self.version += 1
        manifest["metadata"]["resourceVersion"] = str(self.version)
        self.objects[manifest["kind"], manifest["metadata"]["name"]] = manifest
        self.store.put(self._kind(manifest), manifest)

    @staticmethod
    def _kind(manifest: dict[str, Any]) -> Kind:
        return kinds.kind_of(manifest["apiVersion"], manifest["kind"])

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """A user edits a spec."""
        manifest = copy.deepcopy(self.objects[kind, name])
        manifest["spec"].update(spec)
        manifest["metadata"]["generation"] += 1
        self.put(manifest)

    def status(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[kind, name].get("status", {})
        return found

    def condition(self, kind: str, name: str, which: str = "Ready") -> dict[str, Any] | None:
        return next((c for c in self.status(kind, name).get("conditions", []) if c["type"] == which), None)

    def weights(self, policy_name: str, class_name: str) -> dict[str, int]:
        entry = next(c for c in self.status("RoutingPolicy", policy_name)["classes"] if c["name"] == class_name)
        return {w["tier"]: w["percent"] for w in entry["weights"]}

    def carry_out(self, plan: Plan) -> None:
        """Apply all of a plan, as the runtime's writer does."""
        for child in plan.apply:
            self._apply(child)
        for ref, count in plan.scale:
            deployment = copy.deepcopy(self.objects[ref.kind, ref.name])
            deployment["spec"]["replicas"] = count
            self.put(deployment)
        for ref in plan.delete:
            gone = self.objects.pop((ref.kind, ref.name))
            self.store.remove(self._kind(gone), gone)
        for status in plan.statuses:
            self._apply_status(status)
        self.events += plan.events
        self.writes += len(plan.apply) + len(plan.scale) + len(plan.delete) + len(plan.statuses)
        world = self.world()
        self.store.ledger, self.store.memory = plan.ledger, plan.memory
        self.store.counted(world)

    def _apply(self, child: dict[str, Any]) -> None:
        kind, name = child["kind"], child["metadata"]["name"]
        before = self.objects.get((kind, name))
        shown = json.loads(json.dumps(child))
        shown["metadata"]["uid"] = f"uid-{kind}-{name}"
        shown["metadata"]["generation"] = (before or {}).get("metadata", {}).get("generation", 0) + 1
        if kind == "Deployment":
            held = before["spec"]["replicas"] if before else shown["spec"].get("replicas", 1)
            shown["spec"].setdefault("replicas", held)
            shown["spec"].setdefault("progressDeadlineSeconds", 600)
            pod = shown["spec"]["template"]["spec"]
            pod["dnsPolicy"] = "ClusterFirst"
            pod["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
            pod["containers"][0]["resources"]["limits"]["memory"] = "25769803776"
        if kind == "HorizontalPodAutoscaler":
            shown["status"] = {"currentReplicas": 1, "desiredReplicas": 1}
        if kind == "Service":
            shown["spec"]["clusterIPs"] = ["None"]
            shown["spec"]["sessionAffinity"] = "None"
        self.put(shown)

    def _apply_status(self, wanted: StatusApply) -> None:
        """Server-side apply: each manager's fields are replaced, the others' stay; gateways are a map by name."""
        key = (wanted.target.kind, wanted.target.name)
        managers = self.managers.setdefault(key, {})
        managers[wanted.manager_suffix] = json.loads(json.dumps(dict(wanted.status)))
        merged: dict[str, Any] = {}
        entries: list[Any] = []
        for _, status in sorted(managers.items()):
            entries += status.get("gateways", [])
            merged |= {name: value for name, value in status.items() if name != "gateways"}
        if entries:
            merged["gateways"] = entries
        manifest = copy.deepcopy(self.objects[key])
        manifest["status"] = merged
        self.put(manifest)

    # -- controllers ------------------------------------------------------------------------------------------------
    def control(self) -> None:
        """The autoscaler has no reason to exceed its least; the Deployment controller makes Pods and reports them."""
        for kind, name in list(self.objects):
            if kind != "Deployment":
                continue
            manifest = copy.deepcopy(self.objects[kind, name])
            scaler = self.objects.get(("HorizontalPodAutoscaler", name))
            count = manifest["spec"]["replicas"]
            if scaler is not None and count > 0:
                count = scaler["spec"]["minReplicas"]
            pods = self.pods.setdefault(name, [])
            while len(pods) < count:
                pods.append(self.now + timedelta(seconds=self.startup_seconds))
            del pods[count:]
            manifest["spec"]["replicas"] = count
            manifest["status"] = {
                "replicas": len(pods),
                "readyReplicas": self.ready(name),
                "updatedReplicas": len(pods),
                "observedGeneration": manifest["metadata"]["generation"],
            }
            if manifest != self.objects[kind, name]:
                self.put(manifest)

    def ready(self, name: str) -> int:
        return sum(moment <= self.now for moment in self.pods.get(name, []))

    # -- load -------------------------------------------------------------------------------------------------------
    def _jitter(self, value: float) -> Reading:
        return Reading(value * (1 + self.noise * self.random.uniform(-1, 1)), 2.0)

    def measure(self, seconds: float = 5.0) -> None:
        """Prometheus answers: what the engines do under the weights in force."""
        world = self.world()
        tiers = world.tiers_in(NAMESPACE)
        rates: dict[str, dict[tuple[str, str], float]] = {name: {} for name in tiers}
        for key, item in world.policies.items():
            for spec in item.spec.classes:
                demand = self.demands.get((key.name, spec.name))
                allowed = routing.cleared_tiers(spec, tiers, sensitivity.effective(item, spec))
                for tier, percent in routing.weights_in_force(item, spec, allowed).items():
                    if demand is not None:
                        rates[tier][key.name, spec.name] = demand.rate * percent / 100
        engines, usage = {}, {}
        for name, tier in tiers.items():
            total = sum(rates[name].values())
            prompts = sum(rate * self.demands[which].prompt for which, rate in rates[name].items())
            generated = sum(rate * self.demands[which].completion for which, rate in rates[name].items())
            usage[NAMESPACE, name] = CounterReading(
                requests=total * seconds,
                requests_with_usage=total * seconds,
                input_tokens=prompts * seconds,
                cached_input_tokens=0.0,
                output_tokens=generated * seconds,
                since=self.now + timedelta(seconds=self.ahead_seconds - seconds),
                until=self.now + timedelta(seconds=self.ahead_seconds),
            )
            if tier.spec.in_cluster is not None and self.ready(name):
                engines[NAMESPACE, name] = self._engine(name, total, prompts, generated)
            elif tier.spec.external is not None:
                engines[NAMESPACE, name] = TierSignals(
                    request_rate=Reading(total, 2.0),
                    prompt_token_rate=self._jitter(prompts),
                    generation_token_rate=self._jitter(generated),
                )
        classes: dict[tuple[str, str, str], dict[str, ClassSignals]] = {}
        for tier_name, by_class in rates.items():
            for (policy_name, class_name), rate in by_class.items():
                demand = self.demands[policy_name, class_name]
                unknown = Missing("no requests")
                classes.setdefault((NAMESPACE, policy_name, class_name), {})[tier_name] = ClassSignals(
                    request_rate=self._jitter(rate),
                    prompt_tokens=self._jitter(demand.prompt) if rate else unknown,
                    completion_tokens=self._jitter(demand.completion) if rate else unknown,
                )
        self.store.put_signals(
            Signals(
                time=self.now,
                tiers=engines,
                classes=classes,
                usage=usage,
                window_seconds=15.0,
                gateways_up=Reading(2.0, 2.0),
            )
        )

    def _engine(self, name: str, total: float, prompts: float, generated: float) -> TierSignals:
        truth = self.truths.setdefault(name, Truth())
        count = self.ready(name)
        rho = (generated + 0.3 * prompts) / (count * truth.saturation)
        carried = min(1.0, 0.97 / rho) if rho > 0 else 1.0
        rho = min(rho, 0.97)
        itl, ttft = truth.idle_itl / (1 - rho), truth.idle_ttft / (1 - rho)
        unknown = Missing("no requests")
        passed = self.passed.get(name)
        return TierSignals(
            request_rate=Reading(total, 2.0),
            passed_rate=Reading(passed, 2.0) if passed is not None else unknown,
            running=self._jitter(generated * carried * itl),
            waiting=Reading(0.0 if carried == 1.0 else 5.0 * count, 2.0),
            ttft_p95_seconds=self._jitter(ttft) if total else unknown,
            inter_token_p95_seconds=self._jitter(itl * 1.15) if total else unknown,
            inter_token_mean_seconds=self._jitter(itl) if total else unknown,
            prompt_token_rate=self._jitter(prompts * carried),
            generation_token_rate=self._jitter(generated * carried),
            ready_replicas=Reading(count, 2.0),
        )

    # -- time -------------------------------------------------------------------------------------------------------
    def world(self) -> World:
        return self.store.snapshot(self.now)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
