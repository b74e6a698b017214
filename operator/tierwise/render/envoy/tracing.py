"""Spans of requests by OpenTelemetry's conventions for generative AI: which model, which tier answered, tokens.

One span per request, and one per attempt below it, which is what the tier's own spans continue (W3C `traceparent`).
Nothing of a prompt or an answer, and no query string: what a client writes into it may be anything.
"""

from typing import Any

from tierwise.render.envoy import clusters
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import METADATA, USAGE_METADATA, extension, typed
from tierwise.render.envoy.options import Tracing
from tierwise.render.envoy.protos import CLUSTER
from tierwise.render.envoy.upstream import HTTP_OPTIONS

OTLP_CLUSTER = "tierwise.otlp"
SERVICE_NAME = "tierwise-gateway"

_PATH = "%PATH(NQ):256%"
_MODEL = f"%DYNAMIC_METADATA({METADATA}:model):256%"
_OPERATIONS = {
    "chat/completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "rerank": "rerank",
    "score": "score",
}


def _operation() -> str:
    """`gen_ai.operation.name`: the conventions' word where they have one, else the endpoint's own."""
    path = "request.url_path"
    named = "".join(f"{path} == '/v1/{end}' ? '{name}' : " for end, name in _OPERATIONS.items())
    return f"%CEL({named}'_OTHER')%"


def _tags() -> list[dict[str, Any]]:
    texts = {
        "gen_ai.operation.name": _operation(),
        "gen_ai.request.model": _MODEL,
        "server.address": "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
        "tierwise.namespace": f"%METADATA(ROUTE:{METADATA}:namespace)%",
        "tierwise.policy": f"%METADATA(ROUTE:{METADATA}:policy)%",
        "tierwise.class": f"%METADATA(ROUTE:{METADATA}:class)%",
        "tierwise.tier": f"%METADATA(CLUSTER:{METADATA}:tier)%",
        "url.path": _PATH,
    }
    numbers = {
        "gen_ai.usage.input_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:prompt)%",
        "gen_ai.usage.output_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:completion)%",
        "tierwise.attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    }
    return [{"tag": tag, "value": value} for tag, value in sorted(texts.items())] + [
        {"tag": tag, "value": value, "value_type": "INT"} for tag, value in sorted(numbers.items())
    ]


def _sampler(percent: float) -> dict[str, Any]:
    """As the caller says in `traceparent`, else so many of all: by the trace's id, which the gateway made.

    Envoy's own choice goes by the request's id, which is the client's; that is off (see `clients.request_id`).
    """
    samplers = "envoy.extensions.tracers.opentelemetry.samplers.v3"
    share = {"numerator": round(percent * 10_000), "denominator": "MILLION"}
    ratio = extension(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        f"{samplers}.TraceIdRatioBasedSamplerConfig",
        sampling_percentage=share,
    )
    return extension(
        "envoy.tracers.opentelemetry.samplers.parent_based",
        f"{samplers}.ParentBasedSamplerConfig",
        wrapped_sampler=ratio,
    )


def of_requests(tracing: Tracing | None) -> dict[str, Any]:
    """Fields of the connection manager; none without tracing."""
    if tracing is None:
        return {}
    exporter = typed(
        "envoy.config.trace.v3.OpenTelemetryConfig",
        service_name=SERVICE_NAME,
        grpc_service={"envoy_grpc": {"cluster_name": OTLP_CLUSTER}, "timeout": "2s"},
        sampler=_sampler(tracing.sampling_percent),
    )
    return {
        "tracing": {
            "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": exporter},
            "spawn_upstream_span": True,
            "operation": f"{_operation()} {_MODEL}",
            "upstream_operation": f"{_operation()} %METADATA(CLUSTER:{METADATA}:tier)%",
            "max_path_tag_length": 0,  # Envoy's own tag has the query string
            "custom_tags": _tags(),
        }
    }


def cluster(tracing: Tracing) -> Resource:
    """Where spans go: OTLP over gRPC, in the clear, to a collector in the cluster."""
    endpoint = {"address": {"socket_address": {"address": tracing.host, "port_value": tracing.port}}}
    return {
        "@type": CLUSTER,
        "name": OTLP_CLUSTER,
        "connect_timeout": "2s",
        "cluster_type": clusters.dns(),
        "load_assignment": {
            "cluster_name": OTLP_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: typed(HTTP_OPTIONS, explicit_http_config={"http2_protocol_options": {}})
        },
    }


def collector(tracing: Tracing | None) -> dict[str, Resource]:
    """The cluster of spans, by name; none without tracing."""
    return {} if tracing is None else {OTLP_CLUSTER: cluster(tracing)}
