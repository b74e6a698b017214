"""The answer to GET /v1/models."""

from collections.abc import Mapping
from typing import Any

from tierwise.api.routing_policy import RoutingPolicy
from tierwise.render.envoy import errors

MATCH: dict[str, Any] = {
    "path": "/v1/models",
    "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
}


def entries(
    namespace: str, policies: Mapping[str, RoutingPolicy], owners: Mapping[str, str], *, qualified: bool
) -> list[dict[str, Any]]:
    """One entry per model; `qualified` names are `namespace/model`."""
    found = []
    for model, owner in sorted(owners.items()):
        created = policies[owner].metadata.creation_timestamp
        found.append(
            {
                "id": f"{namespace}/{model}" if qualified else model,
                "object": "model",
                "created": int(created.timestamp()) if created is not None else 0,
                "owned_by": namespace,
            }
        )
    return found


def answer(data: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a route that lists models."""
    return errors.direct(200, {"object": "list", "data": data})


def listing(
    namespace: str, policies: Mapping[str, RoutingPolicy], owners: Mapping[str, str], *, qualified: bool
) -> dict[str, Any]:
    """The models of one namespace."""
    return answer(entries(namespace, policies, owners, qualified=qualified))
