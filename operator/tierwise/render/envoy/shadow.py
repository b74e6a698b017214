"""Copies of requests to a tier that is measured and not heard.

Envoy's request mirror sends the copy on its own and throws the answer away, but what it sends to is a cluster and
nothing counts there. So copies go to a listener inside the same Envoy, which has no socket: nobody but the mirror can
reach it. Its filters read the token counts, its log counts under names of their own (`envoy_tierwise_shadow_*`), which
the control loop never reads as demand, and its router sends the copy to the tier's cluster, whose filters reset
credentials and set the tier's own, as for any request.

The mirror says in headers which cluster a copy is for and whose it is. Clients can not set them: the listener for
clients removes them, and this one serves none. Everything here is static; which requests are copied stands in routes.
"""

from collections.abc import Mapping
from typing import Any

from tierwise.render.envoy import filters
from tierwise.render.envoy.fields import (
    COMPLETION_BOUND,
    METADATA,
    NO_BOUND,
    OUTPUT_STATE,
    PATH_STATE,
    PROMPT_BOUND,
    SHADOW_HEADER,
    SHADOW_LABELS,
    SHADOW_OUTPUT_HEADER,
    UNREACHED_HEADER,
    USAGE_METADATA,
    extension,
    set_header,
    typed,
)

CLUSTER = "tierwise_shadow"
"""The cluster that leads to the listener for copies; each gateway has it from its start."""
PREFIX = "tierwise.shadow"

MOST_AT_ONCE = 256
"""Copies of one gateway that may be under way, each with its body in memory; more are not sent."""
MOST_WAITING = 64
"""And as many more that wait for one of these to end."""

MAX_BODY_BYTES = 32 * 1024 * 1024
"""A larger request is not copied. Nothing is larger than what the listener for clients takes."""

_IDLE = "900s"
_HTTP = "envoy.extensions.filters.http"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_MILLION = 1_000_000


def policy(cluster: str, percent: int, labels: dict[str, str], output_tokens: int | None) -> dict[str, Any]:
    """A route's mirror policy.

    Args:
        cluster: of the shadow tier.
        percent: of the route's requests.
        labels: namespace, policy and class of the request.
        output_tokens: most output of a copy that states none; None: as the tier likes.
    """
    values = {SHADOW_HEADER: cluster, **{SHADOW_LABELS[name]: value for name, value in labels.items()}}
    if output_tokens is not None:
        values[SHADOW_OUTPUT_HEADER] = str(output_tokens)
    # One random number decides here and picks the tier by weight, there by its rest modulo 100. Below a part of a
    # million every such rest has its share; below a part of a hundred only requests of the first tier would be copied.
    fraction = {"numerator": percent * _MILLION // 100, "denominator": "MILLION"}
    return {
        "cluster": CLUSTER,
        "runtime_fraction": {"default_value": fraction},
        "request_headers_mutations": [{"append": set_header(name, value)} for name, value in values.items()],
    }


def target(mirror: Mapping[str, Any]) -> str:
    """The cluster (`namespace/tier`) that a mirror policy's copies are for; empty when it names none."""
    values = (each["append"]["header"] for each in mirror.get("request_headers_mutations", ()) if "append" in each)
    return next((str(value["value"]) for value in values if value["key"] == SHADOW_HEADER), "")


def cluster() -> dict[str, Any]:
    """Leads to the listener for copies."""
    address = {"envoy_internal_address": {"server_listener_name": CLUSTER, "endpoint_id": CLUSTER}}
    bounds = {"max_connections": MOST_AT_ONCE, "max_pending_requests": MOST_WAITING, "max_requests": MOST_AT_ONCE}
    return {
        "name": CLUSTER,
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": MAX_BODY_BYTES,
        "circuit_breakers": {"thresholds": [bounds]},
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def listener() -> dict[str, Any]:
    """The listener for copies."""
    manager = extension(
        "http",
        _MANAGER,
        stat_prefix="shadow",
        access_log=statistics(),
        stream_idle_timeout=_IDLE,
        generate_request_id=False,
        http_filters=[
            _remember(),
            filters.usage_of_stream(),
            filters.usage_of_body(),
            extension("envoy.filters.http.router", f"{_HTTP}.router.v3.Router"),
        ],
        route_config={
            "name": CLUSTER,
            "virtual_hosts": [
                {
                    "name": CLUSTER,
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster_header": SHADOW_HEADER, "timeout": "0s", "idle_timeout": _IDLE},
                        }
                    ],
                }
            ],
        },
    )
    return {
        "name": CLUSTER,
        "internal_listener": {},
        "per_connection_buffer_limit_bytes": MAX_BODY_BYTES,
        "ignore_global_conn_limit": True,  # which is about clients
        "filter_chains": [{"filters": [manager]}],
    }


def _remember() -> dict[str, Any]:
    """Keep what the mirror says: the tier's filters remove its headers before the log reads them."""

    def state(key: str, text: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
        source = {"text_format_source": {"inline_string": text}}
        return {"object_key": key, "factory_key": "envoy.string", "format_string": source, **more}

    kept = [state(PATH_STATE, "%PATH(NQ)%"), state(OUTPUT_STATE, f"%REQ({SHADOW_OUTPUT_HEADER})%")]
    kept += [state(f"{PREFIX}.{name}", f"%REQ({header})%") for name, header in SHADOW_LABELS.items()]
    return extension("tierwise.remember", f"{_HTTP}.set_filter_state.v3.Config", on_request_headers=kept)


# Counts ---------------------------------------------------------------------------------------------------------------


def statistics() -> list[dict[str, Any]]:
    """Loggers that count copies: requests by code, tokens, latency. The tier is the one that the copy went to."""
    return [
        _logger("requests", None, counters=[_one("requests", code="%RESPONSE_CODE%")]),
        _logger(
            "latency",
            _answered(),
            histograms=[
                _milliseconds("duration", "%DURATION%"),
                _milliseconds("ttfb", "%COMMON_DURATION(DS_RX_END:US_RX_BODY_BEG:ms)%"),
            ],
        ),
        _logger("usage", _reported("prompt"), counters=[_one("usage_requests"), _tokens("prompt_tokens", "prompt")]),
        _logger("completion", _reported("completion"), counters=[_tokens("completion_tokens", "completion")]),
        _logger("cached", _reported("cached"), counters=[_tokens("cached_prompt_tokens", "cached")]),
        _estimates(),
    ]


def _estimates() -> dict[str, Any]:
    """What a copy cost at most whose answer did not say, as `accesslog.estimates` has it for requests.

    An error status costs nothing, and neither does a connection that did not come about.
    """
    prompt, most = f"request.headers['{PROMPT_BOUND}']", f"request.headers['{COMPLETION_BOUND}']"
    whole = "(response.code_details == 'via_upstream')"
    came = "has(response.code_details) && !response.code_details.contains('connection_failure')"
    # The relay says in a 503 how an attempt at a provider ended.
    header = f"response.headers['{UNREACHED_HEADER}']"
    broken = f"('{UNREACHED_HEADER}' in response.headers && {header}.matches('(^|,)(UT|UR|UC|UPE|LR)(,|$)'))"
    free = f"({whole} && response.code >= 300 && !{broken})"
    sent = f"'{COMPLETION_BOUND}' in request.headers && {came} && !{free}"
    limited, limit = f"{most} != '{NO_BOUND}'", f"int({most})"
    answered = f"({whole} && response.code < 300)"
    of_whole = f"({limited} && {limit} < response.size ? {limit} : response.size)"
    unbounded = f"{prompt} == '{NO_BOUND}' || !({answered} || {limited})"
    values = {
        "estimated_prompt_tokens": f"{prompt} != '{NO_BOUND}' ? int({prompt}) : 0",
        "estimated_completion_tokens": f"{answered} ? {of_whole} : {limited} ? {limit} : 0",
        "unbounded_attempts": f"{unbounded} ? 1 : 0",
    }
    computed = [{"stat": _stat(name), "value_format": f"%CEL({text})%"} for name, text in values.items()]
    conditions = [_reported("prompt", invert=True), _when(sent)]
    return _logger(
        "estimates", {"and_filter": {"filters": conditions}}, counters=[_one("estimated_attempts"), *computed]
    )


def _logger(name: str, condition: dict[str, Any] | None, **metrics: Any) -> dict[str, Any]:  # noqa: ANN401
    config = typed("envoy.extensions.access_loggers.stats.v3.Config", stats_scope={"prefix": PREFIX}, **metrics)
    return {"name": name, "typed_config": config, **({"filter": condition} if condition is not None else {})}


def _stat(name: str, **more: str) -> dict[str, Any]:
    values = {f"tierwise_{label}": f"%FILTER_STATE({PREFIX}.{label}:PLAIN)%" for label in SHADOW_LABELS}
    values |= {"tierwise_tier": f"%METADATA(CLUSTER:{METADATA}:tier)%", **more}
    return {"name": name, "tags": [{"name": label, "value_format": value} for label, value in values.items()]}


def _one(name: str, **more: str) -> dict[str, Any]:
    return {"stat": _stat(name, **more), "value_fixed": 1}


def _tokens(name: str, key: str) -> dict[str, Any]:
    return {"stat": _stat(name), "value_format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{key})%"}


def _milliseconds(name: str, value: str) -> dict[str, Any]:
    return {"stat": _stat(name), "unit": "Milliseconds", "value_format": value}


def _answered() -> dict[str, Any]:
    return _when("response.code >= 200 && response.code < 300")


def _when(expression: str) -> dict[str, Any]:
    cel = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": extension("cel", cel, expression=expression)}


def _reported(key: str, *, invert: bool = False) -> dict[str, Any]:
    matcher: dict[str, Any] = {"filter": USAGE_METADATA, "path": [{"key": key}], "value": {"present_match": True}}
    if invert:
        matcher["invert"] = True
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": invert}}
