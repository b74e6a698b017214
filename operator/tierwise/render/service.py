"""The Service of an in-cluster tier."""

from tierwise.api.in_cluster import InCluster
from tierwise.api.model_tier import ModelTier
from tierwise.core import engines
from tierwise.core.plan import Manifest
from tierwise.render import labels


def service(tier: ModelTier, spec: InCluster) -> Manifest:
    """A headless Service: Envoy balances over the Pods itself, so a virtual address would only be in the way.

    It exists for the EndpointSlices that the gateway follows, and for a name by which people reach the engines.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.metadata(tier),
        "spec": {
            "clusterIP": "None",
            "ports": [{"name": "http", "port": engines.port(spec), "protocol": "TCP", "targetPort": "http"}],
            "selector": labels.selector(tier),
            "type": "ClusterIP",
        },
    }
