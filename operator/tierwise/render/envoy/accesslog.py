"""What the gateway counts, and the line it writes, for each request.

Counters and histograms appear in Prometheus as `envoy_tierwise_*`; their labels are namespace, policy, class, tier
(that of the last attempt; `-` when the gateway answered by itself), on what is paid for consumer too (its name, or its
token's).

Not counted: tokens of streams that the client left before their last event, and tokens of attempts that were thrown
away. `usage_requests` beside `requests` says how many requests the token counts stand for.

A request is counted twice: in `arrivals` when its first attempt goes to a tier (or, where none of that tier's endpoints
takes it, when it ends), in `requests` when it ends. An answer takes ten seconds and more; a loop that saw demand only
when it is over would be that late at every rise.
"""

from typing import Any

from tierwise.render.envoy.fields import CONSUMER_STATE, METADATA, USAGE_METADATA, extension, typed

PREFIX = "tierwise"
_FIRST_BYTE = "%COMMON_DURATION(DS_RX_END:US_RX_BODY_BEG:ms)%"
_LABELS = {
    "namespace": f"%METADATA(ROUTE:{METADATA}:namespace)%",
    "policy": f"%METADATA(ROUTE:{METADATA}:policy)%",
    "class": f"%METADATA(ROUTE:{METADATA}:class)%",
    "tier": f"%METADATA(CLUSTER:{METADATA}:tier)%",
}
# Bounded: requests of callers that no Consumer stands for reach no route. "-" where nobody is asked who calls. On what
# is paid for only, not on histograms with their forty series each; the router's own log does not know it.
_CONSUMER = {"consumer": f"%FILTER_STATE({CONSUMER_STATE}:PLAIN)%"}
# Only requests that reached a policy: others would be labelled by whatever clients invent.
_ROUTED = f"xds.route_metadata.filter_metadata['{METADATA}']['policy'] != ''"
_ANSWERED = f"{_ROUTED} && response.code < 300"


def _tags(*, paid: bool = False, **more: str) -> list[dict[str, str]]:
    labels = _LABELS | (_CONSUMER if paid else {})
    tags = [{"name": f"tierwise_{name}", "value_format": value} for name, value in labels.items()]
    return tags + [{"name": name, "value_format": value} for name, value in more.items()]


def _stats(**metrics: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    return typed("envoy.extensions.access_loggers.stats.v3.Config", stats_scope={"prefix": PREFIX}, **metrics)


def _one(name: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": tags}, "value_fixed": 1}


def _tokens(name: str, key: str) -> dict[str, Any]:
    return {
        "stat": {"name": name, "tags": _tags(paid=True)},
        "value_format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{key})%",
    }


def _milliseconds(name: str, value: str) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": _tags()}, "unit": "Milliseconds", "value_format": value}


def _when(expression: str) -> dict[str, Any]:
    cel = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": extension("cel", cel, expression=expression)}


def _reported(key: str) -> dict[str, Any]:
    """The answer reported this count: without the filter, each that did not would be an error in the log."""
    matcher = {"filter": USAGE_METADATA, "path": [{"key": key}], "value": {"present_match": True}}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def statistics() -> list[dict[str, Any]]:
    """Loggers that count."""
    return [
        {
            "name": "requests",
            "filter": _when(_ROUTED),
            "typed_config": _stats(counters=[_one("requests", _tags(paid=True, code="%RESPONSE_CODE%"))]),
        },
        {
            "name": "unsent",
            "filter": {"and_filter": {"filters": [_when(_ROUTED), {"response_flag_filter": {"flags": ["UH"]}}]}},
            "typed_config": _stats(counters=[_one("arrivals", _tags())]),
        },
        {
            "name": "latency",
            "filter": _when(_ANSWERED),
            "typed_config": _stats(
                histograms=[_milliseconds("duration", "%DURATION%"), _milliseconds("ttfb", _FIRST_BYTE)]
            ),
        },
        {
            "name": "usage",
            "filter": _reported("prompt"),
            "typed_config": _stats(
                counters=[_one("usage_requests", _tags(paid=True)), _tokens("prompt_tokens", "prompt")]
            ),
        },
        {
            "name": "completion",
            "filter": _reported("completion"),
            "typed_config": _stats(counters=[_tokens("completion_tokens", "completion")]),
        },
        {
            "name": "cached",
            "filter": _reported("cached"),
            "typed_config": _stats(counters=[_tokens("cached_prompt_tokens", "cached")]),
        },
    ]


def arrivals() -> list[dict[str, Any]]:
    """The router's own loggers: count when a request's first attempt goes to a tier, or ends without a connection."""
    first = _when(f"{_ROUTED} && request.headers['x-envoy-attempt-count'] == '1'")
    begins = [{"log_type_filter": {"types": ["UpstreamPoolReady"]}}]
    fails = [
        {"log_type_filter": {"types": ["UpstreamEnd"]}},
        {"response_flag_filter": {"flags": ["UF", "UO"]}},
    ]
    return [
        {
            "name": name,
            "filter": {"and_filter": {"filters": [*condition, first]}},
            "typed_config": _stats(counters=[_one("arrivals", _tags())]),
        }
        for name, condition in (("arrivals", begins), ("unconnected", fails))
    ]


def refusals() -> list[dict[str, Any]]:
    """The router's own logger: counts attempts that a tier refused with 429, or that the gateway held back for it."""
    value = {"default_value": 429, "runtime_key": "tierwise.refused_status"}
    conditions: list[dict[str, Any]] = [
        {"log_type_filter": {"types": ["UpstreamEnd"]}},
        {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}},
    ]
    return [
        {
            "name": "refused",
            "filter": {"and_filter": {"filters": [*conditions, _when(_ROUTED)]}},
            "typed_config": _stats(counters=[_one("refused", _tags())]),
        }
    ]


def lines() -> dict[str, Any]:
    """One JSON line per request on standard output: who, where to, how long, how many tokens; never what was said."""
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        # What clients choose is cut: a line stays a line, whatever they send.
        "path": f"%FILTER_STATE({METADATA}.path:PLAIN):256%",
        "model": f"%DYNAMIC_METADATA({METADATA}:model):256%",
        **_LABELS,
        **_CONSUMER,
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "upstream": "%UPSTREAM_HOST%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": _FIRST_BYTE,
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "prompt_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:prompt)%",
        "completion_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:completion)%",
    }
    log = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
    return extension("stdout", log, log_format={"json_format": fields, "omit_empty_values": True})
