"""The way to providers leads through a listener inside of Envoy, where an attempt can be refused.

Envoy chooses a host before the filters of an attempt run, and what such a filter answers by itself goes to the client:
the router does not try the next tier. So an external tier is two clusters. `namespace/tier` leads to the internal
listener (no socket, no copy of the bytes), and that to `namespace/tier@provider`. A provider's limit that is reached,
or its `Retry-After`, is answered there with a 429, for which the router, on its side, tries the next tier.
"""

from typing import Any

from tierwise.api.external import ProviderLimits
from tierwise.render.envoy import clients, errors, hold_lua
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import (
    HELD_HEADER,
    PROVIDER_HEADER,
    RELAY_LISTENER,
    REQUEST_UNITS_HEADER,
    ROUTE_HEADER,
    TOKEN_UNITS_HEADER,
    UNREACHED_HEADER,
    extension,
    seconds,
    set_header,
)
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import LISTENER
from tierwise.render.envoy.provider_lua import BUCKET_UNITS

PROVIDER = "@provider"
"""Suffix of the cluster that holds a provider's addresses. No tier's name has an `@`, so no route can mean it."""

MOST_PROVIDERS = 10_000
"""Buckets that are kept; beyond, the one that was used longest ago is forgotten, and full when it comes back."""

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTE_STATE = "tierwise.route"
"""Filter state of an inner listener: on whose behalf it is asked."""


def provider_cluster(cluster: str) -> str:
    """Name of the cluster with the provider's addresses, of the tier's cluster."""
    return cluster + PROVIDER


def host(name: str, listener: str = RELAY_LISTENER) -> dict[str, Any]:
    """The internal listener as the one host of a cluster, under the name of the provider's host, for spans."""
    address = {"envoy_internal_address": {"server_listener_name": listener}}
    return {"endpoint": {"hostname": name, "address": address}}


def request_units(limits: ProviderLimits | None, gateways: int) -> int:
    """What a request takes of a provider's bucket, of which each gateway has its share; 0 without a limit.

    A bucket holds a tenth of the limit per minute, and nine tenths flow in during a minute: in no minute can more than
    the limit flow out.

    Args:
        limits: the provider's.
        gateways: that share them, at least 1.
    """
    if limits is None or limits.requests_per_minute is None:
        return 0
    return min(BUCKET_UNITS, -(-10 * BUCKET_UNITS * gateways // limits.requests_per_minute))


def token_units(limits: ProviderLimits | None, gateways: int) -> float:
    """What a token takes of the bucket for tokens, as `request_units`."""
    if limits is None or limits.tokens_per_minute is None:
        return 0.0
    return 10 * BUCKET_UNITS * gateways / limits.tokens_per_minute


def _hold() -> dict[str, Any]:
    return extension(
        "tierwise.hold",
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": hold_lua.SOURCE},
    )


def _limit(name: str, header: str) -> dict[str, Any]:
    """A bucket per provider: it comes into being with the first request and lives as long as the listener does.

    All worker threads share it.
    """
    every = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    unlimited = {"max_tokens": 2**31, "tokens_per_fill": 2**31, "fill_interval": "1s"}
    present = {"descriptor_value": "limited", "headers": [{"name": header, "present_match": True}]}
    return extension(
        f"tierwise.{name}",
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix=f"tierwise_{name}",
        status={"code": "TooManyRequests"},
        filter_enabled=every,
        filter_enforced=every,
        enable_retry_after_header=True,
        response_headers_to_add=[set_header(HELD_HEADER, "limit")],
        token_bucket=unlimited,
        always_consume_default_token_bucket=False,
        max_dynamic_descriptors=MOST_PROVIDERS,
        descriptors=[
            {
                "entries": [{"key": "header_match", "value": "limited"}, {"key": "provider"}],
                "token_bucket": {
                    "max_tokens": BUCKET_UNITS,
                    "tokens_per_fill": BUCKET_UNITS * 9 // 10,
                    "fill_interval": "6s",
                },
            }
        ],
        rate_limits=[
            {
                "actions": [
                    {"header_value_match": present},
                    {"request_headers": {"header_name": PROVIDER_HEADER, "descriptor_key": "provider"}},
                ],
                "hits_addend": {"format": f"%REQ({header})%"},
            }
        ],
    )


def listener(options: GatewayOptions) -> Resource:
    """The LDS resource. It depends on the gateway's options only."""
    route = to_named(PROVIDER_HEADER, options)
    filters = [_hold(), _limit("requests", REQUEST_UNITS_HEADER), _limit("tokens", TOKEN_UNITS_HEADER)]
    return inner_listener(RELAY_LISTENER, "providers", filters, [route], _replies(), options)


def to_named(header: str, options: GatewayOptions) -> dict[str, Any]:
    """The one route of an inner listener: to the cluster that a header names, for as long as it takes."""
    action = {"cluster_header": header, "timeout": "0s", "idle_timeout": seconds(options.idle_timeout_seconds)}
    return {"match": {"prefix": "/"}, "route": action}


def inner_listener(
    name: str,
    stat_prefix: str,
    filters: list[dict[str, Any]],
    routes: list[dict[str, Any]],
    replies: dict[str, Any],
    options: GatewayOptions,
) -> Resource:
    """A listener without a socket, to which clusters lead.

    Args:
        name: its own.
        stat_prefix: of its statistics.
        filters: between the one that keeps on whose behalf a request is made and the router.
        routes: for all requests.
        replies: the local_reply_config.
        options: the gateway's settings.
    """
    manager = extension(
        "http",
        _MANAGER,
        stat_prefix=stat_prefix,
        # What the router on the other side sent arrives as it was: it has been checked and numbered.
        generate_request_id=False,
        preserve_external_request_id=True,
        skip_xff_append=True,
        max_request_headers_kb=96,
        common_http_protocol_options={"max_headers_count": 2 * clients.MAX_HEADERS},  # the client's, and ours
        server_header_transformation="PASS_THROUGH",
        stream_idle_timeout=seconds(options.idle_timeout_seconds),
        http_filters=[
            extension(
                "tierwise.for",
                "envoy.extensions.filters.http.set_filter_state.v3.Config",
                on_request_headers=[
                    {
                        "object_key": ROUTE_STATE,
                        "factory_key": "envoy.string",
                        "format_string": {"text_format_source": {"inline_string": f"%REQ({ROUTE_HEADER})%"}},
                    }
                ],
            ),
            *filters,
            extension(
                "envoy.filters.http.router",
                "envoy.extensions.filters.http.router.v3.Router",
                suppress_envoy_headers=True,
            ),
        ],
        local_reply_config=replies,
        route_config={
            "name": stat_prefix,
            "virtual_hosts": [{"name": stat_prefix, "domains": ["*"], "routes": routes}],
        },
    )
    return {
        "@type": LISTENER,
        "name": name,
        "internal_listener": {},
        # What comes here has been let in already: neither counted twice, nor refused half-way.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [manager]}],
    }


def _replies() -> dict[str, Any]:
    """What Envoy answers here in the provider's place."""
    who = f"%FILTER_STATE({ROUTE_STATE}:PLAIN)%"
    held = errors.error(
        f"The gateway held this request back, and no other tier of {who}, may answer (%RESP({HELD_HEADER})%: 'limit' "
        "is spec.external.limits of the tier, 'retry-after' a pause that its provider asked for)",
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    status = {"default_value": 429, "runtime_key": "tierwise.relay_status_429"}  # of this listener's own answers
    return {
        "mappers": [
            {
                "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": status}}},
                "status_code": 429,
                "body_format_override": {"json_format": held},
            },
            unreached({"response_flag_filter": {"flags": FLAGS}}, "%RESPONSE_FLAGS%"),
        ]
    }


FLAGS = ["UF", "UC", "UH", "UO", "UR", "LR", "NC", "UPE", "UT", "SI", "URX", "OM"]
"""Response flags that say that a host was not reached, or did not answer."""


def unreached(condition: dict[str, Any], flags: str) -> dict[str, Any]:
    """A mapper of local replies: as the answer that a tier was not reached, for which routers try the next one.

    Args:
        condition: filter of the replies.
        flags: what `UNREACHED_HEADER` says.
    """
    text = f"No tier of %FILTER_STATE({ROUTE_STATE}:PLAIN)%, could answer (%RESPONSE_FLAGS%: %RESPONSE_CODE_DETAILS%)"
    return {
        "filter": condition,
        "status_code": 503,
        "body_format_override": {"json_format": errors.error(text, "server_error", "no_tier_available")},
        "headers_to_add": [set_header(UNREACHED_HEADER, flags)],
    }
