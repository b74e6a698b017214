"""The snapshot that every decision is taken from: what users want, what the cluster shows, what was measured.

A `World` is immutable. The watch store makes one per planning round; the planner and the gateway's renderer read the
same one, so that what is applied and what is routed can never come from two different moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tierwise.api.base import InvalidObject
from tierwise.api.consumer import Consumer
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Signals


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one namespaced object; its kind is clear from where it stands."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the API server shows of a tier's Deployment.

    Attributes:
        uid: the Deployment's uid.
        owned: whether its controller is our ModelTier; a Deployment of someone else's with the same name is left alone.
        spec_replicas: `spec.replicas`, written by the HPA (or by the operator between 0 and 1).
        replicas: Pods that exist, starting ones included: these are paid for.
        ready_replicas: Pods that are ready.
        updated_replicas: Pods of the current template.
        observed_current: `status.observedGeneration` has caught up with `metadata.generation`.
        manifest: the object itself, for comparison with what is wanted.
    """

    uid: str
    owned: bool
    spec_replicas: int
    replicas: int
    ready_replicas: int
    updated_replicas: int
    observed_current: bool
    manifest: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Child:
    """Any other owned object (Service, HorizontalPodAutoscaler, PodDisruptionBudget, ConfigMap)."""

    uid: str
    owned: bool
    manifest: Mapping[str, object]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One Pod's address of a tier, from EndpointSlices.

    Attributes:
        address: IP address. port: TCP port.
        ready: receives new requests.
        serving: answers, though it may be terminating (its streams go on).
        terminating: its Pod is being deleted.
        zone: topology zone, if known.
    """

    address: str
    port: int
    ready: bool
    serving: bool
    terminating: bool
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class SecretData:
    """A Secret that an external tier or a consumer refers to. The values never show in a repr."""

    data: Mapping[str, bytes] = field(repr=False)
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """What the Envoys connected to this operator replica say about one namespace's configuration.

    Attributes:
        wanted_hash: content hash of the namespace's bundle that this replica wants served.
        served_hash: content hash of what it does serve (the last good one while a newer is refused).
        connected: gateways connected to this replica.
        acknowledged: those of them that acknowledged `served_hash`.
        refused: those that refused `wanted_hash`.
        message: Envoy's own words for the refusal; empty when none.
    """

    wanted_hash: str
    served_hash: str
    connected: int
    acknowledged: int
    refused: int
    message: str


@dataclass(frozen=True, slots=True)
class World:
    """Everything a decision may depend on.

    Attributes:
        now: the moment of the snapshot, aware, UTC. The only clock the pure rooms know.
        replica: name of this operator replica (its entry in `status.gateways[]`).
        tiers, policies, budgets, consumers: the users' objects, parsed and valid, by key.
        invalid: objects of ours that do not parse (kind, key -> why): reported in their conditions, never dropped
            silently.
        workloads: tier key -> its Deployment. services, autoscalers, disruption_budgets: likewise.
        endpoints: tier key -> its Pods' addresses, sorted. A key that is missing means: no EndpointSlice seen.
        secrets: Secrets that tiers and consumers refer to; a missing key means: not found (or not readable).
        last_good: namespace -> its last-good ConfigMap.
        books: budget -> its account as it was kept, packed by `core.kept`; only after a start is it read.
        signals: what Prometheus said, each value with its age; None before the first answer.
        ledger: what each budget's namespace has spent.
        gateways: namespace -> what the Envoys of this replica say.
        memory: what the loop remembers between rounds, as the last `Plan` handed it back; empty after a restart.
        invalid_bodies: the raw objects behind `invalid`, for their uid, generation and present status. An invalid
            object without a body is not written to.
        live_replicas: names of the operator replicas that run; None when unknown (then no entry of `status.gateways[]`
            is taken for dead).
        gateway_zones: topology zone (empty: unknown) -> ready gateways in it; empty before the first look, and where
            they can not be seen.
    """

    now: datetime
    replica: str
    tiers: Mapping[Key, ModelTier]
    policies: Mapping[Key, RoutingPolicy]
    budgets: Mapping[Key, NamespaceBudget]
    consumers: Mapping[Key, Consumer] = field(default_factory=dict)
    invalid: Mapping[tuple[str, Key], InvalidObject] = field(default_factory=dict)
    workloads: Mapping[Key, Workload] = field(default_factory=dict)
    services: Mapping[Key, Child] = field(default_factory=dict)
    autoscalers: Mapping[Key, Child] = field(default_factory=dict)
    disruption_budgets: Mapping[Key, Child] = field(default_factory=dict)
    endpoints: Mapping[Key, tuple[Endpoint, ...]] = field(default_factory=dict)
    secrets: Mapping[Key, SecretData] = field(default_factory=dict)
    last_good: Mapping[str, Child] = field(default_factory=dict)
    books: Mapping[Key, str] = field(default_factory=dict)
    signals: Signals | None = None
    ledger: Ledger = field(default_factory=Ledger)
    gateways: Mapping[str, GatewayReport] = field(default_factory=dict)
    memory: LoopMemory = field(default_factory=LoopMemory)
    invalid_bodies: Mapping[tuple[str, Key], Mapping[str, Any]] = field(default_factory=dict)
    live_replicas: frozenset[str] | None = None
    gateway_zones: Mapping[str, int] = field(default_factory=dict)

    def tiers_in(self, namespace: str) -> dict[str, ModelTier]:
        """Tier name -> tier of one namespace: a policy's tier references never leave its namespace."""
        return {key.name: tier for key, tier in sorted(self.tiers.items()) if key.namespace == namespace}

    def policies_in(self, namespace: str) -> dict[str, RoutingPolicy]:
        """Policy name -> policy of one namespace."""
        return {key.name: policy for key, policy in sorted(self.policies.items()) if key.namespace == namespace}
