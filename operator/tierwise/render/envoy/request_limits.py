"""What one request of a class may ask for: how it is read, refused, and how a request that states nothing is bounded.

All of it happens in routes and headers, before any tier is asked. What is not understood counts as too much: a string
that one server takes for a number, a number below 1 that another takes for "without limit".
"""

from typing import Any

from tierwise.api.routing_class import RequestLimits, RoutingClass
from tierwise.render.envoy import errors
from tierwise.render.envoy.fields import BYTES_HEADER, METADATA, OUTPUT_HEADER

BYTES_PER_TOKEN = 4
"""Bytes of a body per prompt token: an estimate (English text has about 4, other languages and JSON fewer)."""

OUTPUT_KEYS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""Keys of a body that say how long an answer may be; the last is llama.cpp's own, and there outranks the others."""

GENERATING = "/v1/(chat/completions|completions|responses)"
"""Paths whose answers have a length that can be asked for."""

TOO_MANY = 4_000_000_000_000_000_000
"""Stands for a wish that is no number from 1."""

REQUEST_FILTER = "tierwise.request"
"""The filter that changes bodies; it reads the route's metadata under its own name."""
OUTPUT_KEY = "max_output_tokens"


def reading() -> list[dict[str, Any]]:
    """Rules of `json_to_metadata` that keep what a body says about the length of its answer."""
    return [
        {"selectors": [{"key": key}], "on_present": {"metadata_namespace": METADATA, "key": key}} for key in OUTPUT_KEYS
    ]


def most_output() -> str:
    """CEL: the most output tokens that a body asks for under any key, in digits; 0 when it says nothing."""
    found = f"metadata.filter_metadata['{METADATA}']"

    def wish(key: str) -> str:
        value = f"{found}['{key}']"
        number = f"(type({value}) == double && {value} >= 1.0 && {value} < 1000000000000.0)"
        return f"('{key}' in {found} ? ({number} ? int({value}) : {TOO_MANY}) : 0)"

    def larger(left: str, right: str) -> str:
        return f"({left} > {right} ? {left} : {right})"

    first, second, third, fourth = (wish(key) for key in OUTPUT_KEYS)
    return f"string({larger(larger(first, second), larger(third, fourth))})"


def refusals(
    policy: str, routing_class: RoutingClass, endpoints: str, conditions: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Routes that answer requests of the class which ask for too much; they stand before those that lead to tiers.

    Args:
        policy: `namespace/name`, for the message.
        routing_class: of the policy.
        endpoints: regular expression of the paths that it serves.
        conditions: what a request of the class fulfils.
    """
    limits = routing_class.limits
    routes: list[dict[str, Any]] = []
    if limits is not None and limits.max_prompt_tokens is not None:
        most = (limits.max_prompt_tokens + 1) * BYTES_PER_TOKEN
        answer = errors.prompt_too_long(policy, routing_class.name, limits.max_prompt_tokens, most)
        routes.append(_refusal(endpoints, [*conditions, _beyond(BYTES_HEADER, most)], answer))
    if limits is not None and limits.max_output_tokens is not None:
        answer = errors.output_too_long(policy, routing_class.name, limits.max_output_tokens)
        condition = _beyond(OUTPUT_HEADER, limits.max_output_tokens + 1)
        routes.append(_refusal(GENERATING, [*conditions, condition], answer))
    return routes


def _beyond(header: str, end: int) -> dict[str, Any]:
    """Everything but a number below `end`: what is no number is not let through either."""
    return {"name": header, "range_match": {"start": 0, "end": end}, "invert_match": True}


def _refusal(paths: str, headers: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, Any]:
    return {"match": {"safe_regex": {"regex": paths}, "headers": headers}, **answer}


def metadata(limits: RequestLimits | None) -> dict[str, dict[str, Any]]:
    """What the filter that changes bodies finds on the route."""
    if limits is None or limits.max_output_tokens is None:
        return {}
    return {REQUEST_FILTER: {OUTPUT_KEY: limits.max_output_tokens}}
