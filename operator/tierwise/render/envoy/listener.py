"""The listener that clients connect to. It depends on the gateway's options only."""

from typing import Any

from tierwise.render.envoy import accesslog, clients, errors, filters, tracing
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import ADS, LISTENER_NAME, SCOPE_HEADER, extension
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import LISTENER
from tierwise.render.envoy.scopes import SEPARATOR

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def connection_manager(options: GatewayOptions) -> dict[str, Any]:
    """HTTP on the client's side."""
    scope = {"name": SCOPE_HEADER, "element_separator": SEPARATOR, "index": 0}
    logs = accesslog.statistics() + ([accesslog.lines()] if options.access_log else [])
    return extension(
        "http",
        _MANAGER,
        stat_prefix="gateway",
        access_log=logs,
        use_remote_address=True,
        normalize_path=True,
        merge_slashes=True,
        # `GET /v1/models/legal%2Fassistant`: so write clients a model's name. Decoded before the path is normalized, so
        # routes match what tiers get.
        path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD",
        strip_any_host_port=True,
        server_header_transformation="PASS_THROUGH",
        **clients.bounds(options),
        **clients.request_id(),
        **tracing.of_requests(options.tracing),
        early_header_mutation_extensions=[filters.strip_internal_headers()],
        http_filters=filters.chain(options),
        local_reply_config=errors.local_replies(authenticated=options.authentication is not None),
        scoped_routes={
            "name": "tierwise",
            "scope_key_builder": {"fragments": [{"header_value_extractor": scope}]},
            "rds_config_source": ADS,
            "scoped_rds": {"scoped_rds_config_source": ADS},
        },
    )


def listener(options: GatewayOptions) -> Resource:
    """The LDS resource."""
    return {
        "@type": LISTENER,
        "name": LISTENER_NAME,
        "address": {"socket_address": {"address": options.address, "port_value": options.port}},
        "per_connection_buffer_limit_bytes": options.max_body_bytes,
        "filter_chains": [{"filters": [connection_manager(options)]}],
    }
