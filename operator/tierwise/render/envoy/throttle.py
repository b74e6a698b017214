"""A budget's Throttle: requests and tokens per second that classes share, in buckets that no change of routes refills.

A bucket belongs to the listener, which does not depend on budgets, and comes into being with the first request that
names it. What a route says is data: which bucket, and how much of it a request and a token take. So a rate that is
decided anew, or weights that move, change routes and touch no bucket. All worker threads of a gateway share its
buckets; of several gateways each has its part of the rate.
"""

from collections.abc import Mapping
from datetime import UTC
from decimal import ROUND_CEILING, Decimal
from typing import Any

from tierwise.core.ceiling import Rate
from tierwise.render.envoy.fields import (
    BYTES_HEADER,
    METADATA,
    OUTPUT_HEADER,
    THROTTLE_HEADER,
    extension,
    set_header,
)

FULL = 1_000_000_000
"""What every full bucket holds; Envoy takes no more at once."""
WINDOWS_SECONDS = (1, 10, 100, 1000, 10_000)
"""Seconds in which an empty bucket fills. The shortest in which the rate allows `LARGEST` is taken: a bucket that is
full when a throttle begins lets no more than that much through at once."""
LARGEST_REQUESTS = 1
LARGEST_TOKENS = 16_384
"""A larger request takes the whole bucket, and no more."""
ASSUMED_TOKENS = 512
"""Of an answer whose request and class state no most."""
MOST_BUCKETS = 10_000
"""That are kept; beyond, the one that was used longest ago is forgotten, and full when it comes back."""

_HTTP = "envoy.extensions.filters.http"
_KEY, _WINDOW = "bucket", "window"
_BYTES_PER_TOKEN = 4


def metadata(
    namespace: str, rates: tuple[Rate, ...], gateways: int, assumed_tokens: int = ASSUMED_TOKENS
) -> dict[str, Any]:
    """What a route says of its buckets, as its filter metadata; empty when nothing throttles its class.

    Args:
        namespace: whose budgets these are.
        rates: of the budgets that throttle the class. Of several the lowest holds.
        gateways: that share them, at least 1.
        assumed_tokens: of an answer whose request states no most.
    """
    found: dict[str, Any] = {}
    kinds = {
        "requests": ({rate: rate.requests_per_second for rate in rates}, LARGEST_REQUESTS),
        "tokens": ({rate: rate.tokens_per_second for rate in rates}, LARGEST_TOKENS),
    }
    for kind, (stated, largest) in kinds.items():
        per_second = {rate: value for rate, value in stated.items() if value is not None}
        if not per_second:
            continue
        rate = min(per_second, key=lambda one: (per_second[one], one.budget))
        share = per_second[rate] / gateways
        window = next((one for one in WINDOWS_SECONDS if share * one >= largest), WINDOWS_SECONDS[-1])
        units = Decimal(FULL) if share <= 0 else min(Decimal(FULL), FULL / (share * window))
        found[f"{kind}_bucket"] = f"{namespace}/{rate.budget}"
        found[f"{kind}_window"] = str(window)
        found[f"{kind}_units"] = str(units.to_integral_value(ROUND_CEILING))
        found["budget"] = f"{namespace}/{rate.budget}"
        found["resets_at"] = f"{rate.resets_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        found["assumed_tokens"] = str(assumed_tokens)
    return found


def filters() -> list[dict[str, Any]]:
    """What a request takes, and the two kinds of buckets. To be placed behind the choice of the route."""
    return [_tokens_taken(), _bucket("requests", "1"), _bucket("tokens", f"%REQ({THROTTLE_HEADER})%")]


def _tokens_taken() -> dict[str, Any]:
    """Prompt by its bytes, and the most that the answer may have: what is used is known when it is too late."""
    ours = f"xds.route_metadata.filter_metadata['{METADATA}.throttle']"
    throttled = f"'{METADATA}.throttle' in xds.route_metadata.filter_metadata && 'tokens_units' in {ours}"
    size = f"int(request.headers['{BYTES_HEADER}'])"
    answer = (
        f"'{OUTPUT_HEADER}' in request.headers && request.headers['{OUTPUT_HEADER}'].matches('^[1-9][0-9]{{0,8}}$') ? "
        f"int(request.headers['{OUTPUT_HEADER}']) : int({ours}['assumed_tokens'])"
    )
    # Of a body whose length is not known, or a very long one, the whole bucket: no product overflows.
    tokens = f"({size} / {_BYTES_PER_TOKEN} + 1 + ({answer}))"
    units = f"int({ours}['tokens_units'])"
    most = f"({FULL} / {units})"
    charge = f"{size} > 1000000000 || {tokens} > {most} ? '{FULL}' : string({tokens} * {units})"
    cel = extension(
        "envoy.formatter.cel",
        "envoy.extensions.formatter.cel.v3.Cel",
        cel_config={"enable_string_conversion": True, "enable_string_concat": True},
    )
    return extension(
        "tierwise.throttle",
        f"{_HTTP}.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [
                {"append": set_header(THROTTLE_HEADER, f"%CEL({throttled} ? ({charge}) : '1')%")},
            ],
            "formatters": [cel],
        },
    )


def _bucket(kind: str, taken: str) -> dict[str, Any]:
    every = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    unlimited = {"max_tokens": 2**31, "tokens_per_fill": 2**31, "fill_interval": "1s"}

    def of_route(key: str, field: str) -> dict[str, Any]:
        path = {"key": f"{METADATA}.throttle", "path": [{"key": field}]}
        return {"metadata": {"descriptor_key": key, "metadata_key": path, "source": "ROUTE_ENTRY"}}

    addend = f"%METADATA(ROUTE:{METADATA}.throttle:requests_units)%" if kind == "requests" else taken
    return extension(
        f"tierwise.throttle_{kind}",
        f"{_HTTP}.local_ratelimit.v3.LocalRateLimit",
        stat_prefix=f"tierwise_throttle_{kind}",
        status={"code": "TooManyRequests"},
        filter_enabled=every,
        filter_enforced=every,
        enable_retry_after_header=True,
        token_bucket=unlimited,
        always_consume_default_token_bucket=False,
        max_dynamic_descriptors=MOST_BUCKETS,
        descriptors=[
            {
                "entries": [{"key": _WINDOW, "value": str(window)}, {"key": _KEY}],
                "token_bucket": {
                    "max_tokens": FULL,
                    "tokens_per_fill": FULL // 20,
                    "fill_interval": f"{window / 20}s",
                },
            }
            for window in WINDOWS_SECONDS
        ],
        rate_limits=[
            {
                "actions": [of_route(_WINDOW, f"{kind}_window"), of_route(_KEY, f"{kind}_bucket")],
                "hits_addend": {"format": addend},
            }
        ],
    )


def of(filters: Mapping[str, Any]) -> Mapping[str, str]:
    """What a route's filter metadata says of its buckets; empty where it says nothing."""
    found: Mapping[str, str] = filters.get(f"{METADATA}.throttle", {})
    return found


def of_route(found: Mapping[str, Any]) -> dict[str, Any]:
    """A route's filter metadata, beside its labels."""
    return {f"{METADATA}.throttle": dict(found)} if found else {}
