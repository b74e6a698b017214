"""The way to a tier that others relieve while it is saturated: its limit is kept inside of Envoy, and never queues.

Envoy never tries the next tier after its own circuit breaker, so such a tier has two clusters beside its plain one,
where requests wait. `namespace/tier@guarded` leads to a listener inside of Envoy (no socket, no copy of the bytes), and
that to `namespace/tier@limited`, which has the same replicas and takes no more requests at a time than the limit of now
(see `concurrency`). What is beyond it is answered there with a 503 that says so, for which the router, on its side,
tries the next tier.
"""

from typing import Any

from tierwise.render.envoy import errors, relay, upstream
from tierwise.render.envoy.bundle import GUARDED, Resource
from tierwise.render.envoy.fields import (
    GUARD_HEADER,
    GUARD_LISTENER,
    ROUTE_HEADER,
    SATURATED_HEADER,
    set_header,
)
from tierwise.render.envoy.options import GatewayOptions

LIMITED = "@limited"
"""Suffix of the cluster with the limit. No tier's name has an `@`, so no tier can be meant by it."""


def front(cluster: str) -> str:
    """Name of the cluster that gives way when the tier is saturated, of the tier's cluster."""
    return cluster + GUARDED


def limited(cluster: str) -> str:
    """Name of the cluster that has the limit, of the tier's cluster."""
    return cluster + LIMITED


def reset(cluster: str, removed: tuple[str, ...]) -> dict[str, Any]:
    """The filter of the front: as `upstream.reset`, and tells the listener which cluster to take, on whose behalf.

    Args:
        cluster: the tier's.
        removed: headers that no tier but their owner may see.
    """
    return upstream.reset(removed, ((GUARD_HEADER, limited(cluster)), (ROUTE_HEADER, upstream.OF_ROUTE)))


def listener(options: GatewayOptions) -> Resource:
    """The LDS resource. It depends on the gateway's options only."""
    route = relay.to_named(GUARD_HEADER, options)
    return relay.inner_listener(GUARD_LISTENER, "guard", [], [route], _replies(), options)


def _replies() -> dict[str, Any]:
    """What Envoy answers here in the tier's place."""
    text = (
        "The tier has as many requests in flight as its replicas carry, and no other tier of "
        f"%FILTER_STATE({relay.ROUTE_STATE}:PLAIN)%, may answer"
    )
    saturated = {
        "filter": {"response_flag_filter": {"flags": ["UO"]}},
        "status_code": 503,
        "body_format_override": {"json_format": errors.error(text, "server_error", "no_tier_available")},
        "headers_to_add": [set_header(SATURATED_HEADER, "true")],
    }
    return {
        "mappers": [saturated, relay.unreached({"response_flag_filter": {"flags": relay.FLAGS}}, "%RESPONSE_FLAGS%")]
    }
