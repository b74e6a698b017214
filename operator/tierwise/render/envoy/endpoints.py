"""Addresses of a tier's replicas, by zone, and how many gateways each zone has."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from tierwise.core.world import Endpoint
from tierwise.render.envoy import relay
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import RELAY_LISTENER
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

GATEWAYS = "tierwise.gateways"
"""The cluster that the gateways are themselves; it leads nowhere. No namespace's name has a dot."""


def assignment(cluster: str, addresses: Sequence[tuple[str, int]], hostname: str) -> dict[str, Any]:
    """Hosts of a cluster, and the one that refuses, for when there are none."""
    hosts = [_host(hostname, address, port) for address, port in addresses]
    first = [{"priority": 0, "lb_endpoints": hosts}] if hosts else []
    return {"cluster_name": cluster, "endpoints": [*first, _REFUSES], "policy": _POLICY}


def relayed(cluster: str, hostname: str, *, usable: bool = True, listener: str = RELAY_LISTENER) -> dict[str, Any]:
    """An inner listener as a cluster's one host, or, when it is not `usable`, none but the one that refuses."""
    first = [{"priority": 0, "lb_endpoints": [relay.host(hostname, listener)]}] if usable else []
    return {"cluster_name": cluster, "endpoints": [*first, _REFUSES], "policy": _POLICY}


def usable(endpoints: Sequence[Endpoint]) -> list[tuple[str, str, int]]:
    """Zone (empty: unknown), address and port of where new requests go, sorted.

    Ready replicas, or, when none is, those that still serve while they terminate.
    """
    chosen = [e for e in endpoints if e.ready] or [e for e in endpoints if e.serving]
    return sorted({(e.zone or "", e.address, e.port) for e in chosen})


def endpoints(cluster: str, found: Sequence[Endpoint], hostname: str) -> Resource:
    """The EDS resource of an in-cluster tier."""
    zones = [
        {**_zone(zone), "priority": 0, "lb_endpoints": [_host(hostname, address, port) for _, address, port in hosts]}
        for zone, hosts in groupby(usable(found), key=lambda each: each[0])
    ]
    return {"@type": ENDPOINTS, "cluster_name": cluster, "endpoints": [*zones, _REFUSES], "policy": _POLICY}


def renamed(found: Resource, cluster: str) -> Resource:
    """The same endpoints for another cluster."""
    return {**found, "cluster_name": cluster}


def gateways(zones: Mapping[str, int]) -> Resource:
    """How many gateways each zone has, in the form in which Envoy asks for it: a cluster of all of them.

    No request goes there. The hosts are stand-ins, so that a Pod that is replaced in its zone changes nothing. Where no
    zone is known there are none: no replica is nearer than others.
    """
    zones = zones if any(zones) else {}
    ports = iter(range(1, 1 + sum(zones.values())))
    found = [
        {**_zone(zone), "lb_endpoints": [_host("none", "127.0.0.1", next(ports)) for _ in range(count)]}
        for zone, count in sorted(zones.items())
    ]
    return {"@type": ENDPOINTS, "cluster_name": GATEWAYS, "endpoints": found}


def _zone(zone: str) -> dict[str, Any]:
    return {"locality": {"zone": zone}} if zone else {}


def _host(hostname: str, address: str, port: int) -> dict[str, Any]:
    return {"endpoint": {"hostname": hostname, "address": {"socket_address": {"address": address, "port_value": port}}}}
