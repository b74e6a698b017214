"""What the gateway is given: one bundle per namespace, plus the shared resources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Resource: TypeAlias = dict[str, Any]  # protobuf JSON of one Envoy resource, with "@type"


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
class GatewayConfig:
    """The whole desired gateway configuration.

    Attributes:
        shared: listener(s), the default RouteConfiguration and scopes of no namespace, by type URL and name.
        namespaces: by namespace.
        invalid: namespace -> why its resources can not be what Envoy's API defines; it has no bundle then.
    """

    shared: Mapping[str, Mapping[str, Resource]]
    namespaces: Mapping[str, NamespaceBundle]
    invalid: Mapping[str, str] = field(default_factory=dict)
