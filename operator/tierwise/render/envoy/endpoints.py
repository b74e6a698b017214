"""Addresses of a tier's replicas."""

from collections.abc import Sequence
from typing import Any

from tierwise.core.world import Endpoint
from tierwise.render.envoy import relay
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.protos import ENDPOINTS

# A cluster without hosts answers 503, and Envoy tries no other tier. This host refuses, and then it does.
_REFUSES: dict[str, Any] = {
    "priority": 1,
    "lb_endpoints": [
        {"endpoint": {"hostname": "none", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}}
    ],
}
# Priority 1 gets nothing as long as one host in a hundred of priority 0 is there.
_POLICY: dict[str, Any] = {"overprovisioning_factor": 10_000}


def assignment(cluster: str, addresses: Sequence[tuple[str, int]], hostname: str) -> dict[str, Any]:
    """Hosts of a cluster, and the one that refuses, for when there are none."""
    hosts = [
        {"endpoint": {"hostname": hostname, "address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in addresses
    ]
    first = [{"priority": 0, "lb_endpoints": hosts}] if hosts else []
    return {"cluster_name": cluster, "endpoints": [*first, _REFUSES], "policy": _POLICY}


def relayed(cluster: str, hostname: str, *, usable: bool) -> dict[str, Any]:
    """The relay as a cluster's one host, or, when it is not `usable`, none but the one that refuses."""
    first = [{"priority": 0, "lb_endpoints": [relay.host(hostname)]}] if usable else []
    return {"cluster_name": cluster, "endpoints": [*first, _REFUSES], "policy": _POLICY}


def usable(endpoints: Sequence[Endpoint]) -> list[tuple[str, int]]:
    """Where new requests go: ready replicas, or, when none is, those that still serve while they terminate."""
    chosen = [e for e in endpoints if e.ready] or [e for e in endpoints if e.serving]
    return sorted({(e.address, e.port) for e in chosen})


def endpoints(cluster: str, found: Sequence[Endpoint], hostname: str) -> Resource:
    """The EDS resource of an in-cluster tier."""
    return {"@type": ENDPOINTS, **assignment(cluster, usable(found), hostname)}
