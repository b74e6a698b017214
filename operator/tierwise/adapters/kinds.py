"""The kinds of object that Tierwise reads or writes, and where the API server has them.

A fixed table instead of API discovery: no requests at start, no cache file that goes stale, and a broken aggregated API
of someone else's cannot stop the operator.
"""

from dataclasses import dataclass

GROUP_VERSION = "tierwise.dev/v1alpha1"


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """One namespaced kind.

    Attributes:
        api_version: as manifests say it, such as `apps/v1`.
        name: the kind, such as `Deployment`.
        plural: the resource's name in paths, such as `deployments`.
        ours: one of our own custom resources (watched whole); all others are watched by our label.
    """

    api_version: str
    name: str
    plural: str
    ours: bool = False

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """API version without the group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path; without namespace that of all namespaces."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        parts = [root]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


MODEL_TIER = Kind(GROUP_VERSION, "ModelTier", "modeltiers", ours=True)
ROUTING_POLICY = Kind(GROUP_VERSION, "RoutingPolicy", "routingpolicies", ours=True)
NAMESPACE_BUDGET = Kind(GROUP_VERSION, "NamespaceBudget", "namespacebudgets", ours=True)
CONSUMER = Kind(GROUP_VERSION, "Consumer", "consumers", ours=True)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SECRET = Kind("v1", "Secret", "secrets")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("events.k8s.io/v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

# Watched and relisted. The order is that of the first listing: what users want before what exists.
WATCHED: tuple[Kind, ...] = (
    MODEL_TIER,
    ROUTING_POLICY,
    NAMESPACE_BUDGET,
    CONSUMER,
    DEPLOYMENT,
    SERVICE,
    AUTOSCALER,
    DISRUPTION_BUDGET,
    ENDPOINT_SLICE,
    CONFIG_MAP,
)

_ALL = {(kind.api_version, kind.name): kind for kind in (*WATCHED, SECRET, POD, EVENT, LEASE)}


def kind_of(api_version: str, name: str) -> Kind:
    """The kind that a manifest or reference names; one that is not in the table is spelt by the common rule."""
    known = _ALL.get((api_version, name))
    return known if known is not None else Kind(api_version, name, f"{name.lower()}s")
