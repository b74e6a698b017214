"""How many requests each guarded tier may have in flight, which gateways are told while they run.

The limit moves with a tier's ready replicas and with what is learnt of them. It is a value of Envoy's runtime and no
part of a cluster, whose replacement would forget what is in flight. The layer has no time to live: without any operator
the last limits stay. A gateway whose bootstrap has no such layer (an older one) has no limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import routing
from tierwise.core.world import Endpoint, Key
from tierwise.render.envoy import endpoints, guard
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import ADS
from tierwise.render.envoy.protos import RUNTIME

LAYER = "tierwise-concurrency"


def of_namespace(
    namespace: str,
    policies: Iterable[RoutingPolicy],
    tiers: Mapping[str, ModelTier],
    found: Mapping[str, Sequence[Endpoint]],
    gateways: int,
) -> dict[str, int]:
    """Cluster -> requests of one gateway that it may have in flight; absent: no limit is known.

    Args:
        namespace: whose.
        policies: its policies.
        tiers: by name.
        found: their endpoints, by tier.
        gateways: that share a tier, at least 1.
    """
    limits: dict[str, int] = {}
    for name in sorted(routing.guarded_tiers(policies, tiers)):
        capacity = tiers[name].status.capacity
        each = capacity.concurrent_requests if capacity is not None else None
        ready = len(endpoints.usable([one for one in found.get(name, ()) if one.ready]))
        if each is not None and ready:
            limits[guard.limited(str(Key(namespace, name)))] = max(1, -(-each * ready // gateways))
    return limits


def bootstrap_layer() -> dict[str, Any]:
    """Of the bootstrap. An operator of an older version does not say it: a gateway starts without."""
    patient = {**ADS, "initial_fetch_timeout": "5s"}
    return {"name": LAYER, "rtds_layer": {"name": LAYER, "rtds_config": patient}}


def layer(limits: Mapping[str, int]) -> Resource:
    """The RTDS resource.

    Args:
        limits: cluster -> requests in flight.
    """
    values = {f"circuit_breakers.{cluster}.default.max_requests": most for cluster, most in limits.items()}
    return {"@type": RUNTIME, "name": LAYER, "layer": values}
