"""What the gateway is given: one bundle per namespace, plus the shared resources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from tierwise.api.routing_class import ClassMatch
from tierwise.api.scalars import Sensitivity
from tierwise.core.ceiling import NONE, Ceiling

Resource: TypeAlias = dict[str, Any]  # protobuf JSON of one Envoy resource, with "@type"

GUARDED = "@guarded"
"""Suffix of the cluster by which routes reach a tier that gives way when it is saturated: see `guard`."""


@dataclass(frozen=True, slots=True)
class NamespaceBundle:
    """All Envoy resources of one namespace. Refused or taken as a whole; never mixed with another namespace's.

    Attributes:
        namespace: the Kubernetes namespace.
        clusters, endpoints, secrets: by resource name (`namespace/tier`).
        routes: the namespace's one RouteConfiguration (None when it has no valid policy).
        scopes: ScopedRouteConfigurations that lead to it, by name.
        hash: content hash over all but endpoints and secrets (those move without being a new configuration).
    """

    namespace: str
    clusters: Mapping[str, Resource]
    endpoints: Mapping[str, Resource]
    secrets: Mapping[str, Resource] = field(repr=False)
    routes: Resource | None
    scopes: Mapping[str, Resource]
    hash: str


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """A class of a policy, as far as it tells whose requests are whose.

    Attributes:
        name: of the class. sensitivity: least of its requests. match: as the user states it.
    """

    name: str
    sensitivity: Sensitivity
    match: ClassMatch | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Which tiers may see what, as the objects say now; it holds for older configurations too.

    Attributes:
        clearances: by tier name. A tier that is not here is cleared for nothing.
        required: (policy, class) -> least sensitivity of its requests; class "": of the whole policy.
        owners: model -> name of the policy that it belongs to.
        hosts: external tier -> host of its URL.
        pickers: in-cluster tier with an endpoint picker -> host and port of that.
        classes: policy -> its classes in order.
        callers: keys of the scopes of those who may call; None: nobody is asked who calls.
        identities: consumer -> what it is known by.
        namespace: whose.
        ceiling: what budgets refuse or throttle now. exempt: (policy, class) -> the same for a class that some budget
            exempts.
        gateways: that share a rate.
    """

    clearances: Mapping[str, Sensitivity]
    required: Mapping[tuple[str, str], Sensitivity]
    owners: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    pickers: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    classes: Mapping[str, tuple[ClassLimit, ...]] = field(default_factory=dict)
    callers: frozenset[str] | None = None
    identities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    namespace: str = ""
    ceiling: Ceiling = NONE
    exempt: Mapping[tuple[str, str], Ceiling] = field(default_factory=dict)
    gateways: int = 1

    def cleared(self, cluster: str, sensitivity: Sensitivity) -> bool:
        """Whether the tier of this cluster (`namespace/tier`, guarded or not) may see requests of this sensitivity."""
        clearance = self.clearances.get(cluster.rpartition("/")[2].removesuffix(GUARDED))
        return clearance is not None and clearance >= sensitivity


NO_LIMITS = Limits({}, {})
"""Of a namespace of which nothing is known: no tier is cleared."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The whole desired gateway configuration.

    Attributes:
        shared: listener(s), the default RouteConfiguration and scopes of no namespace, by type URL and name.
        namespaces: by namespace.
        invalid: namespace -> why its resources can not be what Envoy's API defines; it has no bundle then.
        limits: namespace -> which tiers may see what.
        concurrency: cluster -> requests that one gateway may have in flight there, as `concurrency` has it. In no hash:
            it moves without being a new configuration.
        until: when it is right no longer, since a credential expires; None: as long as nothing changes.
    """

    shared: Mapping[str, Mapping[str, Resource]]
    namespaces: Mapping[str, NamespaceBundle]
    invalid: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    concurrency: Mapping[str, int] = field(default_factory=dict)
    until: datetime | None = None
