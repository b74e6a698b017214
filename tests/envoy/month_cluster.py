"""A cluster on an injected clock: what the API server holds of our objects, and Pods that an autoscaler moves.

Modelled: kube-apiserver's merging of statuses by field manager, the HorizontalPodAutoscaler (`tierwise.sim.hpa`, the
controller's own algorithm), cold starts, and an engine that slows down and queues as it fills up. Everything that money
is counted from (how many Pods exist, and for how long) is kept here exactly, apart from the ledger.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tierwise.api.consumer import Consumer
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.plan import ObjectRef, Plan, StatusApply
from tierwise.core.world import Child, Key, Workload
from tierwise.render import ledger
from tierwise.sim.hpa import Hpa, HpaSpec

KINDS = {
    "ModelTier": ModelTier,
    "RoutingPolicy": RoutingPolicy,
    "NamespaceBudget": NamespaceBudget,
    "Consumer": Consumer,
}
UID = "00000000-0000-0000-0000-000000000000"
SYNC_SECONDS = 15
"""Of the autoscaler, the controller manager's default."""
BY_ENTRY = {"gateways": "name"}
"""Lists of a status that are merged by key."""


class ApiServer:
    """Users' objects with their statuses, and what the operator made."""

    def __init__(self, *objects: ModelTier | RoutingPolicy | NamespaceBudget | Consumer) -> None:
        self.bodies: dict[tuple[str, Key], dict[str, Any]] = {}
        self.parsed: dict[tuple[str, Key], Any] = {}
        self.children: dict[tuple[str, Key], dict[str, Any]] = {}
        self.kept: dict[str, dict[str, Any]] = {}
        self._owned: dict[tuple[str, Key], dict[str, dict[str, Any]]] = {}
        for one in objects:
            self.put(one)

    def put(self, one: Any) -> None:
        """A user's object, as `kubectl apply` has it: its spec, and the status stays."""
        where = type(one).__name__, Key(one.metadata.namespace, one.metadata.name)
        status = self.bodies.get(where, {}).get("status", {})
        self.bodies[where] = {**one.manifest(), "status": status}
        self._parse(where)

    def of(self, kind: str) -> dict[Key, Any]:
        """All objects of one kind."""
        return {key: one for (name, key), one in self.parsed.items() if name == kind}

    def status(self, applied: StatusApply) -> None:
        """Server-side apply of a status: each manager has its fields, what it leaves out is gone."""
        where = applied.target.kind, Key(applied.target.namespace, applied.target.name)
        if where not in self.bodies:
            return
        managers = self._owned.setdefault(where, {})
        managers[applied.manager_suffix] = dict(applied.status)
        status: dict[str, Any] = {}
        for _, fields in sorted(managers.items()):
            for name, value in fields.items():
                if name in BY_ENTRY and name in status:
                    keyed = {each[BY_ENTRY[name]]: each for each in (*status[name], *value)}
                    status[name] = list(keyed.values())
                else:
                    status[name] = value
        self.bodies[where]["status"] = status
        self._parse(where)

    def carry_out(self, plan: Plan) -> None:
        """What the operator's writer does with a plan, scaling apart."""
        for manifest in plan.apply:
            metadata = manifest["metadata"]
            self.children[str(manifest["kind"]), Key(metadata["namespace"], metadata["name"])] = manifest
        for ref in plan.delete:
            self.children.pop((ref.kind, _key(ref)), None)
        for applied in plan.statuses:
            self.status(applied)
        self.kept |= {str(book["metadata"]["namespace"]): book for book in plan.books}

    def shelf(self, kind: str) -> dict[Key, Child]:
        """Children of one kind."""
        return {key: Child(UID, True, body) for (name, key), body in self.children.items() if name == kind}

    def books(self) -> dict[Key, str]:
        """Accounts that were kept whole."""
        return {
            Key(namespace, name): text
            for namespace, manifest in self.kept.items()
            for name, text in ledger.entries(manifest).items()
        }

    def _parse(self, where: tuple[str, Key]) -> None:
        self.parsed[where] = KINDS[where[0]].parse(self.bodies[where])


def _key(ref: ObjectRef) -> Key:
    return Key(ref.namespace, ref.name)


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica.

    Attributes:
        saturation: work units/s (generated tokens, and prompt tokens by `PROMPT_WEIGHT`).
        idle_seconds: between two tokens of an idle one.
        startup: cold start.
    """

    saturation: float
    idle_seconds: float
    startup: timedelta


PROMPT_WEIGHT = 0.3
"""What a prompt token costs an engine, in generated ones; the loop assumes the same."""


@dataclass(slots=True)
class Pods:
    """The Pods of one tier, and what they do."""

    engine: Engine
    target: float
    now: datetime
    born: list[datetime] = field(default_factory=list)
    wanted: int = 0
    prompts: float = 0.0
    """Prompt tokens/s of the tier."""
    outputs: float = 0.0
    waiting: float = 0.0
    seconds: Decimal = Decimal(0)
    """Of all Pods that ever existed: what is paid for."""
    most: int = 0
    autoscaler: Hpa | None = None

    @property
    def existing(self) -> int:
        return len(self.born)

    @property
    def ready(self) -> int:
        return sum(self.now - each >= self.engine.startup for each in self.born)

    def bound(self, least: int, most: int) -> None:
        """The autoscaler's bounds, as its object states them; it acts at its next look."""
        if self.autoscaler is None:
            self.autoscaler = Hpa(HpaSpec(self.target, least, most, down_stabilisation_seconds=120.0))
        self.autoscaler.bound(least, most)

    def scale(self, count: int) -> None:
        """`spec.replicas`, written by whoever."""
        self.wanted = count
        del self.born[count:]
        self.born += [self.now] * (count - len(self.born))
        self.most = max(self.most, len(self.born))

    def advance(self, until: datetime) -> Iterator[datetime]:
        """Time goes on; yields each moment at which Pods come or go."""
        while self.now < until:
            shown = self.existing
            step = min(timedelta(seconds=SYNC_SECONDS), until - self.now)
            self.seconds += self.existing * Decimal(str(step.total_seconds()))
            self.now += step
            self._queue(step.total_seconds())
            if self.autoscaler is not None and self.wanted > 0:
                average = self.running / self.ready if self.ready else None
                at = self.now.timestamp()
                self.scale(self.autoscaler.desired(at, self.wanted, self.ready, average))
            if self.existing != shown:
                yield self.now

    @property
    def work(self) -> float:
        return self.outputs + PROMPT_WEIGHT * self.prompts

    @property
    def gap(self) -> float:
        """Seconds between two tokens of a request."""
        load = self.work / (self.engine.saturation * self.ready) if self.ready else 1.0
        return self.engine.idle_seconds / (1 - min(load, 0.95))

    @property
    def running(self) -> float:
        """Little's law, and what waits is taken in as far as a full batch goes."""
        return self.outputs * self.gap

    def _queue(self, seconds: float) -> None:
        surplus = self.work - self.engine.saturation * self.ready
        self.waiting = max(0.0, self.waiting + surplus * seconds / 600)


@dataclass(slots=True)
class Cluster:
    """The API server and Pods of all in-cluster tiers."""

    api: ApiServer
    pods: dict[Key, Pods]

    def carry_out(self, plan: Plan) -> None:
        self.api.carry_out(plan)
        for ref, count in plan.scale:
            self.pods[_key(ref)].scale(count)
        for key, pods in self.pods.items():
            self._bound(key, pods)

    def _bound(self, key: Key, pods: Pods) -> None:
        shown: Mapping[str, Any] | None = self.api.children.get(("HorizontalPodAutoscaler", key))
        deployment = self.api.children.get(("Deployment", key))
        if deployment is not None and pods.autoscaler is None:
            pods.scale(max(1, pods.wanted))  # a Deployment without a number has one
        if shown is not None:
            pods.bound(int(shown["spec"]["minReplicas"]), int(shown["spec"]["maxReplicas"]))

    def workloads(self) -> dict[Key, Workload]:
        found = {}
        for key, pods in self.pods.items():
            manifest = self.api.children.get(("Deployment", key))
            if manifest is not None:
                count = pods.existing
                found[key] = Workload(UID, True, pods.wanted, count, pods.ready, count, True, manifest)
        return found
